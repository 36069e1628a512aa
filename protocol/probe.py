"""Probes: how far each connected peer is, and whether it still answers.

A connected peer is sent a datagram with a fresh 64-bit nonce and returns it at once. The round trip is timed here, from the
moment the probe was handed out to the moment its echo arrived; nothing a peer reports about time is used, so a liar can delay
an echo and cannot hasten it. A nonce counts once, and only on the connection of the peer it was sent to.

An echo also tells where its sender is (`places`), so that a round trip and the place at its other end come together: while a
mesh forms places change faster than any record can tell, and a sample against a place of some seconds ago moves a node astray.

The same datagrams tell whether the peer lives. Peers whose link belongs to the mesh are watched: each end probes the other
every `interval_s`, by turns, so that each hears the other twice as often. Other peers are only measured, every
`idle_interval_s`; who watches them tells when they fall silent, and then `handle_doubt` has them probed at once. A peer is in
doubt when it should have been heard and was not, or when a probe stays without an echo; it is then probed every
`doubt_interval_s`. `suspect_after_s` in doubt make a suspicion, any later echo a recovery; what becomes of a suspicion is
for membership to say.

A node that was itself held up blames nobody (Lifeguard's local health): when its own timer fires more than `lateness_s_max`
late, the time it was not running is taken off everybody's silence, and it is more patient with everybody until it was in time
for a while (invariant: no peer is declared dead by a node whose own loop lags).

A peer that floods is answered up to a budget; what is over it is dropped and told once a second as `Misbehaved`.

Source: A. Das, I. Gupta, A. Motivala, "SWIM", DSN 2002 (probes and suspicion); A. Dadgar, J. Phillips, J. Currey, "Lifeguard:
Local Health Awareness for More Accurate Failure Detection", 2017 (local health); RFC 3550 section 6.4.1 (jitter).
Spec: docs/spec/05-coordinates.md.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from protocol.coordinates import Coordinate
from protocol.encoding import Luck
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.places import PLACE_BYTES, decode_place, encode_place
from protocol.timers import TimerQueue

PROBE_BYTES = 9
"""Bytes of a probe, and of an echo that tells no place: one kind byte and the nonce."""

KIND_PROBE = 1
"""First byte of a probe. 0 is left out, so that a zeroed buffer is no probe."""

KIND_ECHO = 2
"""First byte of an echo."""

_ECHO = bytes((KIND_ECHO,))

_NONCE_BITS = 64
"""Bits of a nonce: guessing one among 64 outstanding takes 2**57 datagrams on average, each of them counted."""

_JITTER_GAIN = 1 / 16
"""Share of one sample in the jitter, unitless: RFC 3550 section 6.4.1."""


_PATIENCE_GAIN = 0.25
"""What one doubt that proved wrong adds to the patience with a path, unitless: four in a row double the time."""

_PATIENCE_LOSS = 0.05
"""What an echo without any doubt takes off it, unitless: forty seconds without loss forget one wrong doubt after another."""

_INSISTING_FACTOR = 2
"""By how much, unitless, probes of a peer that does not answer come farther apart once it has been in doubt for a while."""


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """Intervals and bounds.

    Attributes:
        interval_s: seconds between probes of one watched peer. The other end probes as often, half an interval later, so that
            each hears the other every 0.8 s.
        idle_interval_s: seconds between probes of a peer that is only measured: a distance is fresh for a minute, as long as a
            ranking of the nearest is. A path that breaks is noticed by QUIC's idle timeout (30 s) or by who watches the peer.
        interval_spread: each interval is varied by this share, so that a mesh does not probe in step.
        settle_s: seconds between the first two probes of a peer that has connected; each further gap is twice as long, up to an
            interval. Samples that are seconds apart tell more of a path than as many at once, and each meets better places.
        burst_probes: probes sent at once to a suspected peer that speaks.
        burst_interval_s: seconds between those; 20 probes a second are what every node answers in the long run.
        doubt_interval_s: seconds between probes of a peer in doubt until it may be suspected: 14 of them, which are far from the
            64 that every node answers at once.
        quiet_s: silence in seconds after which a watched peer is in doubt: a little more than half of the longest interval.
        echo_s: seconds after which a probe without an echo puts a peer in doubt: twice the longest round trip on land.
        insist_s: seconds from the beginning of a doubt in which the peer is probed nearly as often, suspected or not. Where
            30 % of all datagrams are lost half of the probes get no echo: 18 of them leave one doubt in 200,000 that a living
            peer has not ended, while a third of them left some suspicions for three seconds and more.
        suspect_after_s: seconds in doubt, and a round trip more, until a peer is suspected. Fourteen probes are sent in them;
            where 30 % of all datagrams are lost, none is answered once in 12,000 times, and any echo takes a suspicion back.
            With seven it was once in 110, and in a mesh of 100 somebody was suspected at almost any time.
        lateness_s_max: how late, in seconds, the own timer may fire before this node holds itself to be unwell.
        health_max: how unwell a node may hold itself to be: each step adds `suspect_after_s` once more. Lifeguard's 8.
        health_back_s: seconds in time that take one step back.
        rtt_s_max: longest round trip in seconds that counts as a sample.
        window_probes: probes kept per peer, the outstanding ones included; 64 cover a minute and a half and any round trip up to
            `rtt_s_max`.
        overdue_s: seconds after which a probe without an echo counts as lost in `PathQuality.loss`.
        median_samples: the newest samples that `PathQuality.rtt_s` is the median of; 8 cover 13 s, so that a change shows soon.
        answers_per_s: probes of one peer that are answered per second in the long run; ours send less than one.
        answers_burst: and at once: a path that was clogged for ten seconds and more delivers some fifty probes in one moment.
        peers_max: connected peers that are probed.
        remembered_max: peers measured earlier and not connected now whose distance is remembered.
        remembered_s: and for how long; paths change.
    """

    interval_s: float = 1.6
    idle_interval_s: float = 60.0
    interval_spread: float = 0.1
    settle_s: float = 0.5
    burst_probes: int = 4
    burst_interval_s: float = 0.05
    doubt_interval_s: float = 0.025
    quiet_s: float = 1.0
    echo_s: float = 0.6
    suspect_after_s: float = 0.35
    insist_s: float = 1.5
    lateness_s_max: float = 0.25
    health_max: int = 8
    health_back_s: float = 10.0
    rtt_s_max: float = 10.0
    window_probes: int = 64
    overdue_s: float = 2.5
    median_samples: int = 8
    answers_per_s: float = 20.0
    answers_burst: int = 64
    peers_max: int = 1024
    remembered_max: int = 1024
    remembered_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send `payload` to the peer in a QUIC DATAGRAM frame, at once."""

    peer: PeerId
    payload: bytes


@dataclass(frozen=True, slots=True)
class SampleTaken:
    """A round trip was measured; `place` is where the peer says it is, None where it does not say."""

    peer: PeerId
    rtt_s: float
    place: Coordinate | None = None


@dataclass(frozen=True, slots=True)
class PeerSuspected:
    """The peer has been silent since `since`, a monotonic time in seconds; work should go elsewhere."""

    peer: PeerId
    since: float


@dataclass(frozen=True, slots=True)
class PeerRecovered:
    """A suspected peer has answered."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """The peer broke the protocol; it is to be scored."""

    peer: PeerId
    code: ErrorCode
    detail: str


Output = SendDatagram | SampleTaken | PeerSuspected | PeerRecovered | Misbehaved
"""What the machine wants done, and what it found out."""


class Liveness(StrEnum):
    """What is known of a connected peer."""

    ALIVE = "alive"
    SUSPECTED = "suspected"


@dataclass(frozen=True, slots=True)
class PathQuality:
    """What the probes tell of one path.

    Attributes:
        rtt_s: median of the newest samples, in seconds.
        rtt_s_min: smallest sample in the window: the path without queues.
        jitter_s: mean difference between neighbouring samples, smoothed as in RFC 3550.
        loss: share of the window's probes that got no echo, 0 to 1, the ones still under way left out.
        samples: how many samples the window holds.
        measured_at: monotonic time of the newest sample.
    """

    rtt_s: float
    rtt_s_min: float
    jitter_s: float
    loss: float
    samples: int
    measured_at: float


@dataclass(slots=True)
class _Sent:
    """One probe: when it was handed out, and its round trip once the echo came (0 before; -1 when it could not be one)."""

    sent_at: float
    rtt_s: float = 0.0


@dataclass(slots=True)
class _Peer:
    """What is kept of one connected peer."""

    heard_at: float  # any datagram of the peer
    probed_at: float
    next_probe_at: float
    burst_left: int
    allowance: float
    allowance_at: float
    settling_s: float  # gap to the next probe while it is shorter than an interval
    warned_at: float | None = None
    liveness: Liveness = Liveness.ALIVE
    watched: bool = False
    unanswered_at: float | None = None  # when the first probe went out since the last echo
    doubt_at: float | None = None  # since when it is in doubt
    patience: float = 0.0  # how often doubts proved wrong lately, 0 to 1: the path loses much
    sent: dict[int, _Sent] = field(default_factory=dict[int, _Sent])  # by nonce, the oldest first
    jitter_s: float = 0.0
    last_rtt_s: float | None = None
    measured_at: float = 0.0


class Probe:
    """The machine: `handle_*`, `next_timer`, `handle_timer`, and `next_output` until it returns None."""

    def __init__(self, config: ProbeConfig, luck: Luck) -> None:
        """`luck` must be unpredictable to peers (`random.SystemRandom` outside of simulations): the nonces come from it."""
        self._config = config
        self._luck = luck
        self._peers: dict[PeerId, _Peer] = {}
        self._remembered: dict[PeerId, tuple[float, float]] = {}  # shortest round trips and since when, the oldest first
        self._timers: TimerQueue[PeerId] = TimerQueue()
        self._outputs: deque[Output] = deque()
        self.outputs = self._outputs  # for who drains several machines at once
        self._stalls = 0
        self._unwell = 0
        self._unwell_at = 0.0
        self._place: Coordinate | None = None
        self._packed_place = b""

    @property
    def stalls(self) -> int:
        """How often this node found itself held up for longer than `lateness_s_max`."""
        return self._stalls

    def handle_connected(self, peer: PeerId, now: float) -> bool:
        """Start to probe a peer; its first probe goes out at once.

        A peer that connects anew starts afresh and alive, without a `PeerRecovered`: the handshake has told as much.

        Returns:
            False when `peers_max` are probed already; the peer is then neither measured nor answered.
        """
        known = self._peers.get(peer)
        if known is None and len(self._peers) >= self._config.peers_max:
            return False
        state = _Peer(now, now, now, 0, float(self._config.answers_burst), now, self._config.settle_s)
        state.watched = known is not None and known.watched
        self._peers[peer] = state
        self._send_probe(peer, state, now)
        self._schedule(peer, state)
        return True

    def handle_disconnected(self, peer: PeerId, now: float) -> None:
        """Forget a peer whose connection is gone, but for its distance."""
        quality = self.quality(peer, now)
        if quality is not None:
            self._remembered.pop(peer, None)
            self._remembered[peer] = (quality.rtt_s_min, now)
            if len(self._remembered) > self._config.remembered_max:
                del self._remembered[next(iter(self._remembered))]
        self._peers.pop(peer, None)
        self._timers.discard(peer)

    def handle_watched(self, peer: PeerId, now: float, *, watched: bool) -> None:
        """Begin or end to watch a connected peer closely, because its link joined or left the mesh."""
        state = self._peers.get(peer)
        if state is None or state.watched is watched:
            return
        state.watched = watched
        if watched:
            state.heard_at = max(state.heard_at, now - self._config.quiet_s / 2)  # it was not expected to speak so far
            state.next_probe_at = min(state.next_probe_at, now + self._luck.uniform(0.0, self._config.interval_s / 2))
        self._schedule(peer, state)

    def handle_doubt(self, peer: PeerId, now: float) -> None:
        """Probe a connected peer at once and often, because somebody else does not hear it."""
        state = self._peers.get(peer)
        if state is not None and state.liveness is Liveness.ALIVE and state.doubt_at is None:
            state.doubt_at = now
            self._schedule(peer, state)

    def handle_datagram(
        self, peer: PeerId, payload: bytes, received_at: float, now: float, place: Coordinate | None = None
    ) -> None:
        """Take in one datagram of a connected peer.

        Args:
            peer: whose connection it came on.
            payload: its bytes.
            received_at: monotonic time of arrival, from the kernel where it tells; `now` otherwise.
            now: monotonic time.
            place: where this node is, which its echo tells; None where it does not know.
        """
        state = self._peers.get(peer)
        if state is None:
            return  # it crossed with the end of the connection
        if payload and payload[0] not in (KIND_PROBE, KIND_ECHO):
            return  # a kind of a later version
        if len(payload) != PROBE_BYTES and (payload[:1] != _ECHO or len(payload) != PROBE_BYTES + PLACE_BYTES):
            detail = f"a datagram of {len(payload)} bytes is neither a probe nor an echo"
            self._complain(peer, state, ErrorCode.MALFORMED, detail, now)
        elif payload[0] == KIND_PROBE:
            self._answer(peer, state, payload, min(received_at, now), now, place)
        else:
            self._take_echo(peer, state, payload, min(received_at, now))

    def handle_spoken(self, peer: PeerId, now: float) -> bool:
        """Note that a peer has said something on a stream; whether it is probed sooner now, for it was suspected."""
        state = self._peers.get(peer)
        if state is None or state.liveness is Liveness.ALIVE or not self._begin_burst(state, now):
            return False
        self._schedule(peer, state)
        return True

    def next_timer(self) -> float | None:
        """When `handle_timer` has to be called next, or None."""
        return self._timers.next_due()

    def handle_timer(self, now: float) -> None:
        """Send the probes that are due and judge who has been silent for too long."""
        due = self._timers.next_due()
        if due is None or due > now:
            return
        lateness_s = now - due
        if lateness_s > self._config.lateness_s_max:
            self._excuse_everybody(lateness_s, now)
        while (entry := self._timers.pop_due(now)) is not None:
            peer = entry[0]
            state = self._peers[peer]
            self._judge(peer, state, now)
            if self._probe_due_at(state) <= now:
                self._send_probe(peer, state, now)
            self._schedule(peer, state)

    def next_output(self) -> Output | None:
        """The next thing to do or to know, or None."""
        return self._outputs.popleft() if self._outputs else None

    def liveness(self, peer: PeerId) -> Liveness | None:
        """What is known of the peer; None when it is not connected."""
        state = self._peers.get(peer)
        return state.liveness if state else None

    def answered_lately(self, peer: PeerId, now: float) -> bool:
        """Whether an echo of a connected peer came less than `quiet_s` ago: whoever misses the peer has waited for longer."""
        state = self._peers.get(peer)
        if state is None or state.liveness is not Liveness.ALIVE or state.last_rtt_s is None:
            return False
        return now - state.measured_at < self._config.quiet_s

    def silent_since(self, peer: PeerId) -> float | None:
        """When a suspected peer was last heard, as a monotonic time; None for all others."""
        state = self._peers.get(peer)
        return state.heard_at if state and state.liveness is not Liveness.ALIVE else None

    def health(self, now: float) -> int:
        """How unwell this node holds itself to be: 0 is well."""
        config = self._config
        while self._unwell > 0 and now >= self._unwell_at + config.health_back_s:
            self._unwell -= 1
            self._unwell_at += config.health_back_s
        return self._unwell

    def distances(self, now: float) -> dict[PeerId, float]:
        """The shortest round trips in seconds to all peers that were measured not long ago, connected or not any more."""
        since = now - self._config.remembered_s
        found = {peer: rtt_s for peer, (rtt_s, at) in self._remembered.items() if at >= since}
        for peer, state in self._peers.items():
            if state.last_rtt_s is not None:
                found[peer] = min([sent.rtt_s for sent in state.sent.values() if sent.rtt_s > 0.0], default=state.last_rtt_s)
        return found

    def quality(self, peer: PeerId, now: float) -> PathQuality | None:
        """What the probes tell of the path to the peer, or None before its first echo."""
        state = self._peers.get(peer)
        if state is None or state.last_rtt_s is None:
            return None
        overdue_at = now - self._config.overdue_s
        answered = [sent.rtt_s for sent in state.sent.values() if sent.rtt_s != 0.0]
        samples = [rtt_s for rtt_s in answered if rtt_s > 0.0] or [state.last_rtt_s]
        unanswered = sum([1 for sent in state.sent.values() if sent.rtt_s == 0.0 and sent.sent_at < overdue_at])
        return PathQuality(
            rtt_s=median(samples[-self._config.median_samples :]),
            rtt_s_min=min(samples),
            jitter_s=state.jitter_s,
            loss=unanswered / max(1, unanswered + len(answered)),
            samples=len(samples),
            measured_at=state.measured_at,
        )

    def _send_probe(self, peer: PeerId, state: _Peer, now: float) -> None:
        nonce = self._luck.getrandbits(_NONCE_BITS)
        state.sent[nonce] = _Sent(now)
        state.probed_at = now
        if len(state.sent) > self._config.window_probes:
            del state.sent[next(iter(state.sent))]
        self._outputs.append(SendDatagram(peer, bytes((KIND_PROBE,)) + nonce.to_bytes(PROBE_BYTES - 1, "big")))
        if state.unanswered_at is None:
            state.unanswered_at = now
        state.burst_left -= state.burst_left > 0
        if state.burst_left > 0:
            state.next_probe_at = now + self._config.burst_interval_s
        else:
            spread, gap_s = self._config.interval_spread, min(state.settling_s, self._interval_s(state))
            state.settling_s = min(2.0 * state.settling_s, self._config.idle_interval_s)
            state.next_probe_at = now + gap_s * self._luck.uniform(1.0 - spread, 1.0 + spread)

    def _interval_s(self, state: _Peer) -> float:
        """Seconds between two probes of a peer that answers, or is suspected and may come back."""
        if state.liveness is Liveness.SUSPECTED:
            return self._doubt_gap_s(state)
        return self._config.interval_s if state.watched else self._config.idle_interval_s

    def _schedule(self, peer: PeerId, state: _Peer) -> None:
        """Wake for the next probe, for the beginning of doubt, or for its end, whichever is earliest."""
        due = self._probe_due_at(state)
        if state.liveness is Liveness.ALIVE:
            due = min(due, self._expected_at(state) if state.doubt_at is None else self._suspect_at(state))
        self._timers.set(peer, due)

    def _expected_at(self, state: _Peer) -> float:
        """When a peer that is not in doubt comes into it, if nothing is heard."""
        expected_at = state.heard_at + self._config.quiet_s if state.watched else float("inf")
        if state.unanswered_at is not None:
            expected_at = min(expected_at, state.unanswered_at + self._config.echo_s)
        return expected_at

    def _suspect_at(self, state: _Peer) -> float:
        """When a peer in doubt becomes suspected; later the more unwell this node is, and the more the path has lost lately."""
        assert state.doubt_at is not None
        patience = 1.0 + state.patience + self._unwell
        return state.doubt_at + self._config.suspect_after_s * patience + (state.last_rtt_s or 0.0)

    def _probe_due_at(self, state: _Peer) -> float:
        """When the next probe goes out: sooner while the peer is in doubt."""
        if state.doubt_at is None or state.liveness is not Liveness.ALIVE:
            return state.next_probe_at
        return min(state.next_probe_at, max(state.doubt_at, state.probed_at + self._doubt_gap_s(state)))

    def _doubt_gap_s(self, state: _Peer) -> float:
        """Seconds between two probes of a peer in doubt or suspected: the longer it does not answer, the more."""
        config = self._config
        since_s = 0.0 if state.doubt_at is None else state.probed_at - state.doubt_at
        if since_s <= config.suspect_after_s:
            return config.doubt_interval_s
        return _INSISTING_FACTOR * config.burst_interval_s if since_s <= config.insist_s else config.interval_s / 4

    def _judge(self, peer: PeerId, state: _Peer, now: float) -> None:
        if state.liveness is not Liveness.ALIVE:
            return
        if state.doubt_at is None and now >= self._expected_at(state):
            state.doubt_at = now
        self.health(now)
        if state.doubt_at is not None and now >= self._suspect_at(state):
            state.liveness = Liveness.SUSPECTED
            state.next_probe_at = min(state.next_probe_at, now + self._interval_s(state))  # the path may heal soon
            self._outputs.append(PeerSuspected(peer, state.heard_at))

    def _excuse_everybody(self, lateness_s: float, now: float) -> None:
        """Take the time in which this node did not run off everybody's silence: echoes may be waiting in our own buffers."""
        config = self._config
        self._stalls += 1
        self._unwell = min(config.health_max, self.health(now) + 1)
        self._unwell_at = now
        for peer, state in self._peers.items():
            state.allowance, state.allowance_at = float(config.answers_burst), now  # what has piled up is no flood
            if lateness_s >= config.interval_s / 2:
                state.next_probe_at = now  # who suspects this node meanwhile hears at once that it lives
            state.heard_at = min(now, state.heard_at + lateness_s)
            if state.unanswered_at is not None:
                state.unanswered_at = min(now, state.unanswered_at + lateness_s)
            if state.doubt_at is not None:
                state.doubt_at = min(now, state.doubt_at + lateness_s)
            self._schedule(peer, state)

    def _answer(
        self, peer: PeerId, state: _Peer, payload: bytes, received_at: float, now: float, place: Coordinate | None
    ) -> None:
        config = self._config
        refill = max(0.0, now - state.allowance_at) * config.answers_per_s
        state.allowance = min(float(config.answers_burst), state.allowance + refill)
        state.allowance_at = now
        if state.allowance < 1.0:
            self._complain(peer, state, ErrorCode.FLOODING, f"more than {config.answers_per_s:g} probes per second", now)
            return
        state.allowance -= 1.0
        self._outputs.append(SendDatagram(peer, _ECHO + payload[1:] + self._told(place)))
        if state.liveness is not Liveness.ALIVE:
            self._begin_burst(state, now)
        elif state.watched and state.burst_left == 0 and state.next_probe_at > now:
            state.next_probe_at = self._turn_at(state, now)
        state.heard_at = max(state.heard_at, received_at)
        if state.unanswered_at is None:
            state.doubt_at = None
        self._schedule(peer, state)

    def _begin_burst(self, state: _Peer, now: float) -> bool:
        """Has a suspected peer that speaks probed at once, unless it is probed fast already: its echo tells whether it hears."""
        config = self._config
        if self._doubt_gap_s(state) <= _INSISTING_FACTOR * config.burst_interval_s:
            return False
        state.burst_left = config.burst_probes
        state.next_probe_at = min(state.next_probe_at, max(now, state.probed_at + config.burst_interval_s))
        return True

    def _told(self, place: Coordinate | None) -> bytes:
        """A place as an echo tells it; most echoes tell the one before."""
        if place is not self._place:
            self._place, self._packed_place = place, b"" if place is None else encode_place(place)
        return self._packed_place

    def _turn_at(self, state: _Peer, now: float) -> float:
        """When a watched peer, whose probe has come, is probed next: half an interval later, so that the ends take turns."""
        interval_s = self._config.interval_s
        if state.unanswered_at is not None:  # the probes crossed, and would again: chance says who begins
            return now + interval_s * self._luck.uniform(0.25, 0.75)
        turn_at = min(now + interval_s / 2, state.probed_at + 1.5 * interval_s)  # who probes often is still measured
        return max(state.next_probe_at, turn_at)

    def _take_echo(self, peer: PeerId, state: _Peer, payload: bytes, received_at: float) -> None:
        sent = state.sent.get(int.from_bytes(payload[1:PROBE_BYTES], "big"))
        if sent is None or sent.rtt_s != 0.0:
            return  # never sent, sent to someone else, forgotten, or counted already
        rtt_s = received_at - sent.sent_at
        if 0.0 < rtt_s <= self._config.rtt_s_max:
            sent.rtt_s = rtt_s
            if state.last_rtt_s is not None:
                state.jitter_s += (abs(rtt_s - state.last_rtt_s) - state.jitter_s) * _JITTER_GAIN
            state.last_rtt_s = rtt_s
            state.measured_at = received_at
            place = decode_place(payload[PROBE_BYTES:]) if len(payload) > PROBE_BYTES else None
            self._outputs.append(SampleTaken(peer, rtt_s, place))
        else:
            sent.rtt_s = -1.0  # two clocks disagree about the moment, or the echo took absurdly long: it lives, and no more
        state.heard_at = max(state.heard_at, received_at)
        if state.doubt_at is not None:
            state.patience = min(1.0, state.patience + _PATIENCE_GAIN)
        else:
            state.patience = max(0.0, state.patience - _PATIENCE_LOSS)
        state.unanswered_at = state.doubt_at = None
        if state.liveness is not Liveness.ALIVE:
            state.liveness = Liveness.ALIVE
            state.next_probe_at = min(state.next_probe_at, received_at + self._interval_s(state))
            self._outputs.append(PeerRecovered(peer))
        self._schedule(peer, state)

    def _complain(self, peer: PeerId, state: _Peer, code: ErrorCode, detail: str, now: float) -> None:
        """Tell of a peer's fault, at most once a second, so that a flood of faults costs no flood of facts."""
        if state.warned_at is None or now - state.warned_at >= 1.0:
            state.warned_at = now
            self._outputs.append(Misbehaved(peer, code, detail))
