"""Probes: how far each connected peer is, and whether it still answers.

A connected peer is sent a datagram with a fresh 64-bit nonce and returns it at once. The round trip is timed here, from the
moment the probe was handed out to the moment its echo arrived; nothing a peer reports about time is used, so a liar can delay
an echo and cannot hasten it. A nonce counts once, and only on the connection of the peer it was sent to.

A peer that is known to speak it is probed with three legs: its echo carries a nonce of its own, which is returned at once. So
both ends take a sample of one exchange, each by its own nonce and clock, and the end that was probed may put off its own probe.
Who speaks it says so on its gossip stream (`handle_legs`) or shows it by a datagram of these kinds; nobody else is sent
any, for a node of an earlier version would ignore them. In doubt a peer is probed in the plain way, which all answer.

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
from dataclasses import dataclass

from protocol.coordinates import Coordinate
from protocol.encoding import Luck
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId
from protocol.places import decode_place, encode_place
from protocol.probe.config import ProbeConfig
from protocol.probe.events import Liveness, Misbehaved, Output, PeerRecovered, PeerSuspected, SampleTaken, SendDatagram
from protocol.probe.quality import PathQuality, PathWindow
from protocol.probe.wire import (
    KIND_ECHO,
    KIND_ECHO_THREE,
    KIND_PROBE,
    KIND_PROBE_THREE,
    KIND_THIRD_LEG,
    NONCE_BITS,
    THREE_LEGS,
    Datagram,
    decode_datagram,
    encode_datagram,
)
from protocol.timers import TimerQueue

_PATIENCE_GAIN = 0.25
"""What one doubt that proved wrong adds to the patience with a path, unitless: four in a row double the time."""

_PATIENCE_LOSS = 0.05
"""What an echo without any doubt takes off it, unitless: forty seconds without loss forget one wrong doubt after another."""

_INSISTING_FACTOR = 2
"""By how much, unitless, probes of a peer that does not answer come farther apart once it has been in doubt for a while."""


@dataclass(slots=True)
class _Peer:
    """What is kept of one connected peer."""

    path: PathWindow
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
    three_legs: bool = False  # whether it speaks them
    since_third: int = 0  # probes sent since both ends measured one exchange


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
        config = self._config
        state = _Peer(PathWindow(config), now, now, now, 0, float(config.answers_burst), now, config.settle_s)
        state.since_third = config.third_leg_every
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

    def handle_legs(self, peer: PeerId, legs: int) -> None:
        """Note how many legs of a probe a connected peer says it speaks; 0 says nothing."""
        state = self._peers.get(peer)
        if state is not None and legs >= THREE_LEGS:
            state.three_legs = True

    def handle_sought(self, peer: PeerId, now: float) -> bool:
        """Probe a connected peer at once, because a request may go to it; whether an echo of it is awaited now."""
        state = self._peers.get(peer)
        if state is None or state.liveness is not Liveness.ALIVE:
            return False
        if state.unanswered_at is None:
            self._send_probe(peer, state, now)
            self._schedule(peer, state)
        return True

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
        try:
            datagram = decode_datagram(payload)
        except RemoteProtocolError as error:
            self._complain(peer, state, error.code, error.detail, now)
            return
        if datagram is None:
            return  # a kind of a later version
        received_at = min(received_at, now)
        if datagram.kind in (KIND_PROBE, KIND_PROBE_THREE):
            self._answer(peer, state, datagram, received_at, now, place)
        elif datagram.kind == KIND_THIRD_LEG:
            self._take_third_leg(peer, state, datagram, received_at, now)
        else:
            self._take_echo(peer, state, datagram, received_at, place)

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
        if state is None or state.liveness is not Liveness.ALIVE or state.path.last_rtt_s is None:
            return False
        return now - state.path.measured_at < self._config.quiet_s

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
            shortest_s = state.path.shortest_s()
            if shortest_s is not None:
                found[peer] = shortest_s
        return found

    def quality(self, peer: PeerId, now: float) -> PathQuality | None:
        """What the probes tell of the path to the peer, or None before its first echo."""
        state = self._peers.get(peer)
        return None if state is None else state.path.quality(now)

    def _send_probe(self, peer: PeerId, state: _Peer, now: float) -> None:
        nonce = self._luck.getrandbits(NONCE_BITS)
        state.path.send_probe(nonce, now)
        state.probed_at = now
        kind = KIND_PROBE_THREE if self._asks_for_third_leg(state) else KIND_PROBE
        state.since_third += 1
        self._outputs.append(SendDatagram(peer, encode_datagram(Datagram(kind, nonce))))
        if state.unanswered_at is None:
            state.unanswered_at = now
        state.burst_left -= state.burst_left > 0
        if state.burst_left > 0:
            state.next_probe_at = now + self._config.burst_interval_s
        else:
            state.next_probe_at = now + self._next_gap_s(state)

    def _asks_for_third_leg(self, state: _Peer) -> bool:
        """Whether the next probe asks for three legs: of who is only measured each, of who is watched one in a few.

        Not while the connection is new, and never in doubt, which any version's echo must be able to end.
        """
        if state.settling_s < self._config.third_leg_after_s:
            return False
        if not state.three_legs or state.doubt_at is not None or state.liveness is not Liveness.ALIVE or state.burst_left > 0:
            return False
        return not state.watched or state.since_third >= self._config.third_leg_every

    def _next_gap_s(self, state: _Peer) -> float:
        """Seconds to the next probe of a peer that has just been measured; those of a new connection grow."""
        spread, gap_s = self._config.interval_spread, min(state.settling_s, self._interval_s(state))
        state.settling_s = min(2.0 * state.settling_s, self._config.idle_interval_s)
        return gap_s * self._luck.uniform(1.0 - spread, 1.0 + spread)

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
        return state.doubt_at + self._config.suspect_after_s * patience + (state.path.last_rtt_s or 0.0)

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
        self, peer: PeerId, state: _Peer, probe: Datagram, received_at: float, now: float, place: Coordinate | None
    ) -> None:
        config = self._config
        refill = max(0.0, now - state.allowance_at) * config.answers_per_s
        state.allowance = min(float(config.answers_burst), state.allowance + refill)
        state.allowance_at = now
        if state.allowance < 1.0:
            self._complain(peer, state, ErrorCode.FLOODING, f"more than {config.answers_per_s:g} probes per second", now)
            return
        state.allowance -= 1.0
        if probe.kind == KIND_PROBE_THREE:
            state.three_legs = True
            drawn = self._luck.getrandbits(NONCE_BITS)
            state.path.send_echo(drawn, now)
            echo = Datagram(KIND_ECHO_THREE, probe.nonce, drawn, self._told(place))
        else:
            echo = Datagram(KIND_ECHO, probe.nonce, 0, self._told(place))
        self._outputs.append(SendDatagram(peer, encode_datagram(echo)))
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

    def _take_echo(self, peer: PeerId, state: _Peer, echo: Datagram, received_at: float, place: Coordinate | None) -> None:
        """Take an echo; one that carries a nonce of its own is answered by the third leg, once."""
        rtt_s = state.path.take_echo(echo.nonce, received_at)
        if rtt_s is None:
            return  # never sent, sent to someone else, forgotten, or counted already
        if echo.kind == KIND_ECHO_THREE:
            state.three_legs, state.since_third = True, 0
            leg = Datagram(KIND_THIRD_LEG, echo.drawn, 0, self._told(place))
            self._outputs.append(SendDatagram(peer, encode_datagram(leg)))
        self._take_answer(peer, state, echo.place, rtt_s, received_at)
        self._schedule(peer, state)

    def _take_third_leg(self, peer: PeerId, state: _Peer, leg: Datagram, received_at: float, now: float) -> None:
        """Take a third leg: as good as an echo, so a peer that is only measured need not be probed for an interval."""
        rtt_s = state.path.take_third_leg(leg.nonce, received_at)
        if rtt_s is None:
            return
        state.since_third = 0
        self._take_answer(peer, state, leg.place, rtt_s, received_at)
        if not state.watched:
            state.next_probe_at = max(state.next_probe_at, now + self._next_gap_s(state))
        self._schedule(peer, state)

    def _take_answer(self, peer: PeerId, state: _Peer, told: bytes, rtt_s: float, received_at: float) -> None:
        """A nonce of this node has come back: the peer lives and hears, and where the moment is possible it was measured."""
        if rtt_s > 0.0:
            self._outputs.append(SampleTaken(peer, rtt_s, decode_place(told) if told else None))
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

    def _complain(self, peer: PeerId, state: _Peer, code: ErrorCode, detail: str, now: float) -> None:
        """Tell of a peer's fault, at most once a second, so that a flood of faults costs no flood of facts."""
        if state.warned_at is None or now - state.warned_at >= 1.0:
            state.warned_at = now
            self._outputs.append(Misbehaved(peer, code, detail))
