"""What must always hold, and what must hold again once everything is mended.

Safety is looked at with every fact a core tells and every message it sends, what it keeps once every virtual second. Liveness is
looked at after healing. The invariants, by the names of docs/simulation.md:

I1. A record is accepted only if the peer it names has sealed these very bytes, for this time; its sequence number is greater than
    every one accepted before; no peer that means well seals a number twice; nothing is passed on that nobody sealed.
I2. After healing all living nodes hold the newest card of one another, nobody living is suspected, gone or accused, nobody dead
    that meant well is alive, and what one of them pushes reaches all others over the mesh of links. In a mesh of which nodes hold
    a part this is demanded of what their scopes cover, and connections count as links: a scope's edge is reached by comparison.
I5. Nobody is suspected, or held for dead, for a silence that is this node's own stall; nobody is doubted on too few voices.
I6. What is counted is within its limit, and nobody who means well is blamed.
I9. What is kept is bounded by the limits, and is not kept past its time.

I3, I4 and I10 speak of requests. I7 and I8 speak of relays and of QUIC's handshake, neither of which there is here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from protocol import gossip, membership, probe, suspicion
from protocol.errors import RemoteProtocolError
from protocol.identity import PeerId, public_key_of, verify_signature
from protocol.membership import Standing
from protocol.node import Output
from protocol.records import Card, Record, RecordKind, Verdict, peek, signed_bytes
from protocol.records.config import SIGNATURE_BYTES
from protocol.records.envelope import RECORD_DOMAIN
from protocol.scope import place_of
from protocol.table import RecordKey, record_key
from protocol.wire import PackingLimits, Plain, unpack
from sim.bounds import excess
from sim.process import Process
from sim.world import World

BOUNDS_EVERY_S = 1.0
"""Seconds between two looks at what is kept: looking after every event would cost more than the event."""

LOOKED_AT_MAX = 32
"""Processes whose bounds are looked at each time, a count; they take turns, so that a large mesh is not slowed down."""

WATCHED_MAX = 32
"""Processes up to which every message is opened, a count: opening costs as much as taking it in."""

SPREAD_S = 10.0
"""Seconds that a card may be under way before it counts as missing: five rounds of anti-entropy."""

SLACK_S = 0.3
"""Seconds by which a silence may seem longer to a core than it was: the lateness it does not yet call a stall, rounded up."""

OVERDUE_S = 10.0
"""Seconds that an expired record may stay: five rounds, with each of which what has expired is dropped."""

ENVELOPE_BYTES_MIN = 120
"""Shortest envelope in bytes: signature, peer id and numbers; shorter byte strings in a message are none."""

DOUBTERS_MIN = 2
"""Accusers without whom nobody may be doubted, a count: one liar must not take anybody out."""

_LIMITS = PackingLimits(size_bytes_max=1 << 20, depth_max=16, values_max=100_000)


class CheckFailedError(Exception):
    """An invariant does not hold; `invariant` is its short name."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.detail = detail


@dataclass
class Safety:
    """Watches a world from the moment it is made.

    Attributes:
        world: what is watched.
        sealed: what those who mean well have sealed.
        newest: the newest number of a record that a life of a process has accepted.
        numbers: the newest number that a process has sealed, one for each disk it has had.
    """

    world: World
    sealed: set[bytes] = field(default_factory=set[bytes])
    newest: dict[tuple[int, int, PeerId, RecordKind], int] = field(default_factory=dict[tuple[int, int, PeerId, RecordKind], int])
    numbers: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])

    def __post_init__(self) -> None:
        self._members: dict[tuple[int, int], set[PeerId]] = {}
        self._overdue: dict[tuple[int, int, PeerId, RecordKind], float] = {}
        self._suspected_at: dict[tuple[int, int, PeerId], float] = {}
        self._doubted_at: dict[tuple[int, int, RecordKey], float] = {}
        self._clock_steps: dict[int, int] = {}
        self._turn = 0
        self.world.watchers.append(self._watch)
        self.world.seal_watchers.append(self._note_sealed)
        self.world.message_watchers.append(self._look_at_message)
        self.world.at(self.world.now + BOUNDS_EVERY_S, self._look_at_bounds)

    # What is told

    def _note_sealed(self, process: Process, record: Record) -> None:
        self.sealed.add(record.envelope)
        disk = (process.index, process.disks)
        last = self.numbers.get(disk, 0)
        if record.sequence <= last and not process.hostile:
            raise CheckFailedError("I1", f"n{process.index} seals {record.kind} {record.sequence} after {last}")
        self.numbers[disk] = record.sequence

    def _watch(self, process: Process, output: Output) -> None:
        if process.hostile:
            return
        match output:
            case gossip.RecordAccepted(record):
                self._look_at_record(process, record)
            case gossip.RecordEvicted(record):  # it may come back as it is
                self.newest.pop((process.index, process.life, record.peer_id, record.kind), None)
            case probe.PeerSuspected(peer):
                self._suspected_at[process.index, process.life, peer] = self.world.now
                self._look_at_silence(process, peer)
            case membership.PeerGone(peer):
                self._look_at_death(process, peer)
            case suspicion.Doubted(key):
                self._doubted_at[process.index, process.life, key] = self.world.now
                self._look_at_voices(process, key)
            case gossip.Misbehaved(peer, code) | probe.Misbehaved(peer, code):
                if self._means_well(peer):
                    raise CheckFailedError("I6", f"n{process.index} blames {self._name(peer)} for {code.name}")
            case membership.PeerJoined(peer):
                self._look_at_member(process, peer, joins=True)
            case membership.PeerLeft(peer):
                self._look_at_member(process, peer, joins=False)
            case _:
                pass

    def _look_at_record(self, process: Process, record: Record) -> None:
        where = f"n{process.index} accepted {record.kind} {record.sequence} of {self._name(record.peer_id)}"
        if not self._is_genuine(record):
            raise CheckFailedError("I1", f"{where}, which that peer has not sealed")
        wall_s, skew_s = self.world.wall_s(process), process.config.table.records.skew_s
        if not record.issued_s - skew_s - SLACK_S <= wall_s <= record.expires_s + skew_s + SLACK_S:
            raise CheckFailedError("I1", f"{where}, issued at {record.issued_s:.1f}, when its clock showed {wall_s:.1f}")
        if process.clock_steps > self._clock_steps.get(process.index, 0):  # by another clock, what expired is good again
            self.newest = {place: newest for place, newest in self.newest.items() if place[0] != process.index}
            self._clock_steps[process.index] = process.clock_steps
        place = (process.index, process.life, record.peer_id, record.kind)
        if record.sequence <= self.newest.get(place, 0):
            raise CheckFailedError("I1", f"{where} after {self.newest[place]}")
        self.newest[place] = record.sequence

    def _is_genuine(self, record: Record) -> bool:
        """Whether the peer it names has sealed it; of those who mean harm and of invented ones, the signature is looked at."""
        if record.envelope in self.sealed:
            return True
        if self._means_well(record.peer_id):
            return False
        signed = RECORD_DOMAIN + signed_bytes(record.envelope)
        return verify_signature(public_key_of(record.peer_id), record.envelope[:SIGNATURE_BYTES], signed)

    def _look_at_message(self, process: Process, _peer: PeerId, payload: bytes) -> None:
        if process.hostile or len(self.world.processes) > WATCHED_MAX:
            return
        for envelope in envelopes_in(payload):
            if envelope in self.sealed:
                continue
            header = peek(envelope)
            signed = RECORD_DOMAIN + signed_bytes(envelope)
            genuine = verify_signature(public_key_of(header.peer_id), envelope[:SIGNATURE_BYTES], signed)
            if self._means_well(header.peer_id) or not genuine:
                what = f"{header.kind} {header.sequence} of {self._name(header.peer_id)}"
                raise CheckFailedError("I1", f"n{process.index} passes on {what}, which that peer has not sealed")

    def _look_at_silence(self, process: Process, peer: PeerId) -> None:
        heard = process.heard.get(peer)
        if heard is None or process.slow_s > 0.0 or process.busy_until >= heard:
            return  # a slow process takes in late what came in time
        silent_s = self.world.now - heard - process.stalled_s(heard, self.world.now)
        limit_s = process.config.probe.suspect_after_s - SLACK_S
        doubted_at = self._doubted_at.get((process.index, process.life, record_key(peer, RecordKind.CARD)), -1.0)
        if doubted_at < heard:
            limit_s += process.config.probe.echo_s  # else others have heard nothing of it, and it was asked at once
        if silent_s < limit_s:
            who = self._name(peer)
            raise CheckFailedError("I5", f"n{process.index} suspects {who} after {silent_s:.3f} s of silence in its own time")

    def _look_at_death(self, process: Process, peer: PeerId) -> None:
        since = self._suspected_at.get((process.index, process.life, peer))
        if since is None or not process.node.membership.is_connected(peer):
            return  # others have lost it
        waited_s = self.world.now - since - process.stalled_s(since, self.world.now)
        stalls = 1 + sum(end > since for _, end in process.stalls)  # each is noticed only when a timer is late
        if waited_s < process.config.membership.gone_after_s - stalls * SLACK_S:
            who = self._name(peer)
            raise CheckFailedError(
                "I5", f"n{process.index} holds {who} for dead {waited_s:.3f} s of its own time after a suspicion"
            )

    def _look_at_voices(self, process: Process, subject: RecordKey) -> None:
        if not process.node.suspicion.is_doubted(subject):
            return  # the same message brought a verdict that cleared it again
        newest = process.node.table.incarnation_of(subject)
        voices = sum(
            any(item.subject == subject and newest in (None, item.incarnation) for item in record.payload.accused)
            for record in process.node.table
            if isinstance(record.payload, Verdict) and record.peer_id != process.peer_id
        )
        if voices < DOUBTERS_MIN:
            raise CheckFailedError("I5", f"n{process.index} doubts {self._name_of(subject)} on {voices} voices")

    def _look_at_member(self, process: Process, peer: PeerId, *, joins: bool) -> None:
        members = self._members.setdefault((process.index, process.life), set())
        if (peer in members) is joins:
            told = "joins" if joins else "leaves"
            raise CheckFailedError("I6", f"n{process.index} tells twice that {self._name(peer)} {told}")
        if joins:
            members.add(peer)
        else:
            members.remove(peer)

    # What is kept

    def look(self) -> None:
        """Looks at what up to `LOOKED_AT_MAX` processes keep now; this is done once a second by itself."""
        running = [process for process in self.world.processes if process.running and not process.hostile]
        for number in range(min(LOOKED_AT_MAX, len(running))):
            process = running[(self._turn + number) % len(running)]
            over = excess(process.node, process.config)
            if over is not None:
                raise CheckFailedError("I9", f"n{process.index} has {over}")
            self._look_at_expiry(process)
        self._turn += LOOKED_AT_MAX

    def _look_at_bounds(self) -> None:
        self.look()
        self.world.at(self.world.now + BOUNDS_EVERY_S, self._look_at_bounds)

    def _look_at_expiry(self, process: Process) -> None:
        """Nothing stays past its time, the process's own stalls and jumps of its clock allowed for."""
        wall_s = self.world.wall_s(process) - process.config.table.records.skew_s
        for record in process.node.table:
            place = (process.index, process.life, record.peer_id, record.kind)
            if record.expires_s >= wall_s or process.paused:
                self._overdue.pop(place, None)
            elif self.world.now - self._overdue.setdefault(place, self.world.now) > OVERDUE_S + process.stalled_s(
                0.0, self.world.now
            ):
                who = self._name(record.peer_id)
                raise CheckFailedError(
                    "I9", f"n{process.index} keeps {record.kind} of {who}, {wall_s - record.expires_s:.0f} s late"
                )

    def _means_well(self, peer: PeerId) -> bool:
        process = self.world.by_id.get(peer)
        return process is not None and not process.hostile

    def _name(self, peer: PeerId) -> str:
        return self.world.journal.names.get(peer, peer.hex()[-8:])

    def _name_of(self, key: RecordKey) -> str:
        """Whose card has this key."""
        return self.world.journal.name_of(key)


def envelopes_in(payload: bytes) -> Iterator[bytes]:
    """The envelopes in a gossip message of whatever shape."""
    try:
        left: list[Plain] = [unpack(payload, _LIMITS)]
    except RemoteProtocolError:
        return
    while left:
        value = left.pop()
        if isinstance(value, list):
            left.extend(value)
        elif isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, bytes) and len(value) >= ENVELOPE_BYTES_MIN:
            try:
                peek(value)
            except RemoteProtocolError:
                continue
            yield value


def unhealed(world: World, *, fresh_s: float = SPREAD_S) -> str | None:
    """What keeps the world from having healed, or None.

    Args:
        world: with no fault on.
        fresh_s: a card issued within so many seconds may still be under way.
    """
    living = world.working()
    cards = {process.peer_id: process.node.table.get(process.peer_id, RecordKind.CARD) for process in living}
    dead = [process for process in world.processes if not process.running and process.life and not process.hostile]
    for process in living:
        for other in living:
            own = cards[other.peer_id]
            if other is process or world.now - other.started_at < fresh_s:
                continue
            if own is None:
                return f"I2: n{other.index} has no card of its own"
            pair = f"n{process.index} {{}} n{other.index}"
            held = process.node.table.get(other.peer_id, RecordKind.CARD)
            fresh = own.issued_s > world.wall_s(other) - fresh_s
            if not concerns(process, own):
                continue
            if held is None or (held.sequence != own.sequence and not fresh):
                return "I2: " + pair.format("has not the newest card of")
            standing, why = process.node.membership.standing(other.peer_id, world.now)
            if standing in (Standing.SUSPECTED, Standing.GONE):
                return "I2: " + pair.format("holds") + f" for {standing}: {why}"
        for other in dead:
            last = other.node.table.get(other.peer_id, RecordKind.CARD)
            if last is None or not concerns(process, last):
                continue
            standing, why = process.node.membership.standing(other.peer_id, world.now)
            if standing is Standing.ALIVE:
                return f"I2: n{process.index} holds n{other.index}, which is dead, for {standing}: {why}"
    return _accused(living) or _torn(living)


def concerns(process: Process, card: Record) -> bool:
    """Whether a process is to hold a card: its scope covers the place on it."""
    scope = process.node.gossip.scope
    coordinate = card.payload.coordinate if isinstance(card.payload, Card) else None
    return scope is None or (coordinate is not None and scope.covers(place_of(coordinate)))


def _accused(living: list[Process]) -> str | None:
    """Who is named by the verdict of somebody living, though it lives, in the words of the one that believes it."""
    subjects = {record_key(process.peer_id, RecordKind.CARD): process for process in living}
    accusers = {process.peer_id: process for process in living}
    for process in living:
        for record in process.node.table:
            accuser = accusers.get(record.peer_id)
            if accuser is None or not isinstance(record.payload, Verdict):
                continue
            for item in record.payload.accused:
                subject = subjects.get(RecordKey(item.subject))
                if subject is not None and item.incarnation >= subject.node.announcer.incarnation:
                    return f"I2: n{process.index} has heard n{accuser.index} accuse n{subject.index}, and not take it back"
    return None


def _torn(living: list[Process]) -> str | None:
    """Whom something that another pushes does not reach over the mesh of links."""
    indices = {process.peer_id: process.index for process in living}
    whole = all(process.node.gossip.scope is None for process in living)
    links: dict[int, list[int]] = {}
    for process in living:
        peers = process.node.gossip.mesh() if whole else process.node.membership.connected()
        links[process.index] = [indices[peer] for peer in peers if peer in indices]
    for process in living:
        begin, own = process.index, process.node.table.get(process.peer_id, RecordKind.CARD)
        concerned = {other.index for other in living if whole or other is process or (own and concerns(other, own))}
        reached, left = {begin}, [begin]
        while left:
            new = (set(links[left.pop()]) & concerned) - reached
            reached |= new
            left.extend(new)
        missed = sorted(concerned - reached)
        if missed:
            return f"I2: what n{begin} pushes does not reach n{missed[0]}"
    return None


def healed(world: World) -> Callable[[], bool]:
    """The same as a question to `World.run_until`."""
    return lambda: unhealed(world) is None
