"""Probes: how far each connected peer is, and whether it still answers.

Every `interval_s` each connected peer is sent a datagram with a fresh 64-bit nonce and returns it at once. The round trip is
timed here, from the moment the probe was handed out to the moment its echo arrived; nothing a peer reports about time is used,
so a liar can delay an echo and cannot hasten it. A nonce counts once, and only on the connection of the peer it was sent to.

The same echoes tell whether the peer lives: `suspect_after_s` of silence makes a suspicion, `lost_after_s` a loss, any later
echo a recovery. Lost datagrams are no silence: from `doubt_after_s` on a peer is probed every `burst_interval_s`, until it
answers or is lost. A node that was itself held up blames nobody: when its own timer fires more than `lateness_s_max` late, the
time it was not running is taken off everybody's silence (invariant: no peer is declared dead by a node whose own loop lags).

A peer that floods is answered up to a budget; what is over it is dropped and told once a second as `Misbehaved`.

Source: A. Das, I. Gupta, A. Motivala, "SWIM", DSN 2002 (probes and suspicion); A. Dadgar, J. Phillips, J. Currey, "Lifeguard:
Local Health Awareness for More Accurate Failure Detection", 2017 (local health); RFC 3550 section 6.4.1 (jitter).
Spec: docs/spec/05-coordinates.md.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from protocol.encoding import Luck
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.timers import TimerQueue

PROBE_BYTES = 9
"""Bytes of a probe or an echo: one kind byte and the nonce."""

KIND_PROBE = 1
"""First byte of a probe. 0 is left out, so that a zeroed buffer is no probe."""

KIND_ECHO = 2
"""First byte of an echo."""

_NONCE_BITS = 64
"""Bits of a nonce: guessing one among 64 outstanding takes 2**57 datagrams on average, each of them counted."""

_JITTER_GAIN = 1 / 16
"""Share of one sample in the jitter, unitless: RFC 3550 section 6.4.1."""


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """Intervals and bounds.

    Attributes:
        interval_s: seconds between probes of one peer; 9 bytes each way twice a second cost a peer below 200 B/s with headers.
        interval_spread: each interval is varied by this share, so that a mesh does not probe in step.
        burst_probes: probes sent soon after a peer connects, so that its distance is known within a round trip.
        burst_interval_s: seconds between those; 20 probes a second are what every node answers.
        doubt_after_s: silence in seconds after which a peer is probed as often as at first: a little more than the longest
            interval, so that it begins when an echo is missing. Until a suspicion 17 probes follow; where a fifth of all
            datagrams is lost, none of them is answered once in 10^7 times.
        suspect_after_s: silence in seconds until a peer is suspected: three intervals (SWIM's k).
        lost_after_s: silence in seconds until a peer is lost; below 3 s, the time in which a dead peer must leave the routing
            set.
        lateness_s_max: how late, in seconds, the own timer may fire before this node holds itself to be unwell.
        rtt_s_max: longest round trip in seconds that counts as a sample.
        window_probes: probes kept per peer, the outstanding ones included; 64 cover 32 s and any round trip up to `rtt_s_max`.
        median_samples: the newest samples that `PathQuality.rtt_s` is the median of; 8 cover 4 s, so that a change shows soon.
        answers_per_s: probes of one peer that are answered per second in the long run; ours send two.
        answers_burst: and at once.
        peers_max: connected peers that are probed.
    """

    interval_s: float = 0.5
    interval_spread: float = 0.1
    burst_probes: int = 4
    burst_interval_s: float = 0.05
    doubt_after_s: float = 0.65
    suspect_after_s: float = 1.5
    lost_after_s: float = 2.5
    lateness_s_max: float = 0.25
    rtt_s_max: float = 10.0
    window_probes: int = 64
    median_samples: int = 8
    answers_per_s: float = 20.0
    answers_burst: int = 40
    peers_max: int = 1024


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send `payload` to the peer in a QUIC DATAGRAM frame, at once."""

    peer: PeerId
    payload: bytes


@dataclass(frozen=True, slots=True)
class SampleTaken:
    """A round trip was measured."""

    peer: PeerId
    rtt_s: float


@dataclass(frozen=True, slots=True)
class PeerSuspected:
    """The peer has been silent since `since`, a monotonic time in seconds; work should go elsewhere."""

    peer: PeerId
    since: float


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The peer has been silent for too long; it is still probed while it stays connected."""

    peer: PeerId
    since: float


@dataclass(frozen=True, slots=True)
class PeerRecovered:
    """A suspected or lost peer has answered."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """The peer broke the protocol; it is to be scored."""

    peer: PeerId
    code: ErrorCode
    detail: str


Output = SendDatagram | SampleTaken | PeerSuspected | PeerLost | PeerRecovered | Misbehaved
"""What the machine wants done, and what it found out."""


class Liveness(StrEnum):
    """What is known of a connected peer."""

    ALIVE = "alive"
    SUSPECTED = "suspected"
    LOST = "lost"


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
    """One probe: when it was handed out, and its round trip once the echo came (None before; -1 when it could not be one)."""

    sent_at: float
    rtt_s: float | None = None


@dataclass(slots=True)
class _Peer:
    """What is kept of one connected peer."""

    heard_at: float
    probed_at: float
    next_probe_at: float
    burst_left: int
    allowance: float
    allowance_at: float
    warned_at: float | None = None
    liveness: Liveness = Liveness.ALIVE
    sent: OrderedDict[int, _Sent] = field(default_factory=OrderedDict[int, _Sent])
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
        self._timers: TimerQueue[PeerId] = TimerQueue()
        self._outputs: deque[Output] = deque()
        self._stalls = 0

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
        if peer not in self._peers and len(self._peers) >= self._config.peers_max:
            return False
        state = _Peer(now, now, now, self._config.burst_probes, float(self._config.answers_burst), now)
        self._peers[peer] = state
        self._send_probe(peer, state, now)
        self._schedule(peer, state)
        return True

    def handle_disconnected(self, peer: PeerId, now: float) -> None:
        """Forget a peer whose connection is gone."""
        del now
        self._peers.pop(peer, None)
        self._timers.discard(peer)

    def handle_datagram(self, peer: PeerId, payload: bytes, received_at: float, now: float) -> None:
        """Take in one datagram of a connected peer.

        Args:
            peer: whose connection it came on.
            payload: its bytes.
            received_at: monotonic time of arrival, from the kernel where it tells; `now` otherwise.
            now: monotonic time.
        """
        state = self._peers.get(peer)
        if state is None:
            return  # it crossed with the end of the connection
        if payload and payload[0] not in (KIND_PROBE, KIND_ECHO):
            return  # a kind of a later version
        if len(payload) != PROBE_BYTES:
            detail = f"a datagram of {len(payload)} bytes is no probe, which has {PROBE_BYTES}"
            self._complain(peer, state, ErrorCode.MALFORMED, detail, now)
        elif payload[0] == KIND_PROBE:
            self._answer(peer, state, payload, now)
        else:
            self._take_echo(peer, state, int.from_bytes(payload[1:], "big"), min(received_at, now))

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

    def silent_since(self, peer: PeerId) -> float | None:
        """When a suspected or lost peer was last heard, as a monotonic time; None for all others."""
        state = self._peers.get(peer)
        return state.heard_at if state and state.liveness is not Liveness.ALIVE else None

    def quality(self, peer: PeerId, now: float) -> PathQuality | None:
        """What the probes tell of the path to the peer, or None before its first echo."""
        state = self._peers.get(peer)
        if state is None or state.last_rtt_s is None:
            return None
        overdue_at = now - self._config.lost_after_s
        answered = [sent.rtt_s for sent in state.sent.values() if sent.rtt_s is not None]
        samples = [rtt_s for rtt_s in answered if rtt_s > 0.0] or [state.last_rtt_s]
        unanswered = sum(1 for sent in state.sent.values() if sent.rtt_s is None and sent.sent_at < overdue_at)
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
            state.sent.popitem(last=False)
        self._outputs.append(SendDatagram(peer, bytes((KIND_PROBE,)) + nonce.to_bytes(PROBE_BYTES - 1, "big")))
        if state.burst_left > 1:
            state.burst_left -= 1
            state.next_probe_at = now + self._config.burst_interval_s
        else:
            spread = self._config.interval_spread
            state.next_probe_at = now + self._config.interval_s * self._luck.uniform(1.0 - spread, 1.0 + spread)

    def _schedule(self, peer: PeerId, state: _Peer) -> None:
        """Wake for the next probe or for the end of the peer's grace, whichever is earlier."""
        due = self._probe_due_at(state)
        if state.liveness is Liveness.ALIVE:
            due = min(due, state.heard_at + self._config.suspect_after_s)
        elif state.liveness is Liveness.SUSPECTED:
            due = min(due, state.heard_at + self._config.lost_after_s)
        self._timers.set(peer, due)

    def _probe_due_at(self, state: _Peer) -> float:
        """When the next probe goes out: sooner while the peer is in doubt."""
        if state.liveness is Liveness.LOST:
            return state.next_probe_at
        config = self._config
        doubt_at = max(state.heard_at + config.doubt_after_s, state.probed_at + config.burst_interval_s)
        return min(state.next_probe_at, doubt_at)

    def _judge(self, peer: PeerId, state: _Peer, now: float) -> None:
        if state.liveness is Liveness.ALIVE and now >= state.heard_at + self._config.suspect_after_s:
            state.liveness = Liveness.SUSPECTED
            self._outputs.append(PeerSuspected(peer, state.heard_at))
        if state.liveness is Liveness.SUSPECTED and now >= state.heard_at + self._config.lost_after_s:
            state.liveness = Liveness.LOST
            self._outputs.append(PeerLost(peer, state.heard_at))

    def _excuse_everybody(self, lateness_s: float, now: float) -> None:
        """Take the time in which this node did not run off everybody's silence: echoes may be waiting in our own buffers."""
        self._stalls += 1
        for state in self._peers.values():
            state.heard_at = min(now, state.heard_at + lateness_s)

    def _answer(self, peer: PeerId, state: _Peer, payload: bytes, now: float) -> None:
        config = self._config
        refill = max(0.0, now - state.allowance_at) * config.answers_per_s
        state.allowance = min(float(config.answers_burst), state.allowance + refill)
        state.allowance_at = now
        if state.allowance < 1.0:
            self._complain(peer, state, ErrorCode.FLOODING, f"more than {config.answers_per_s:g} probes per second", now)
            return
        state.allowance -= 1.0
        self._outputs.append(SendDatagram(peer, bytes((KIND_ECHO,)) + payload[1:]))

    def _take_echo(self, peer: PeerId, state: _Peer, nonce: int, received_at: float) -> None:
        sent = state.sent.get(nonce)
        if sent is None or sent.rtt_s is not None:
            return  # never sent, sent to someone else, forgotten, or counted already
        rtt_s = received_at - sent.sent_at
        if 0.0 < rtt_s <= self._config.rtt_s_max:
            sent.rtt_s = rtt_s
            if state.last_rtt_s is not None:
                state.jitter_s += (abs(rtt_s - state.last_rtt_s) - state.jitter_s) * _JITTER_GAIN
            state.last_rtt_s = rtt_s
            state.measured_at = received_at
            self._outputs.append(SampleTaken(peer, rtt_s))
        else:
            sent.rtt_s = -1.0  # two clocks disagree about the moment, or the echo took absurdly long: it lives, and no more
        state.heard_at = max(state.heard_at, received_at)
        if state.liveness is not Liveness.ALIVE:
            state.liveness = Liveness.ALIVE
            self._outputs.append(PeerRecovered(peer))
        self._schedule(peer, state)

    def _complain(self, peer: PeerId, state: _Peer, code: ErrorCode, detail: str, now: float) -> None:
        """Tell of a peer's fault, at most once a second, so that a flood of faults costs no flood of facts."""
        if state.warned_at is None or now - state.warned_at >= 1.0:
            state.warned_at = now
            self._outputs.append(Misbehaved(peer, code, detail))
