"""One end of the two: gives what its side has, takes what the other offers, by the core's own tables, books and codec.

It stands where `mesh.fabric` stands. Each step of the hardware is drawn a fate: it works, it fails, it comes late or never.
Whoever holds tensors looks at them when it gets them and again before it counts on them.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.fabric import (
    Action,
    FabricConfig,
    Giver,
    Gives,
    Giving,
    Kind,
    Lease,
    LeaseBook,
    Place,
    Receiver,
    RegionTable,
    Rights,
    Takes,
    Taking,
)
from protocol.fabric import FabricPeers as Peers
from protocol.fabric.messages import (
    FrameKind,
    Leased,
    Message,
    Offer,
    Placed,
    Refused,
    Released,
    Revoked,
    Streamed,
    Taken,
    bulk_head,
    decode_message,
    encode_message,
    kind_of_frame,
)
from protocol.identity import PeerId
from sim.fabric.memory import BrokenPromiseError, FabricError, Memory
from sim.fabric.world import Clock, Pipe

FALL_BACK_S = 0.2
"""Seconds within which the bytes are on the stream, from the first sign that the fabric does not carry them (ISO-FAB-018)."""

REGION_BYTES = 8192
"""Size of a region in bytes: what is given here is smaller."""

PEER = PeerId(b"the other end")

Taker = Callable[[int, bytes], None]
"""Takes the number of a transfer and its bytes; again where what it had was void."""


@dataclass(frozen=True, slots=True)
class Fates:
    """How often each thing goes wrong, as shares of the steps of the hardware, and how long steps take, in seconds."""

    fail: float = 0.0
    stall: float = 0.0
    revoke: float = 0.0
    late_s: float = 3.0
    step_s: float = 0.0002
    lease_s: float = 2.0


@dataclass(slots=True)
class _Given:
    """A transfer that this end gives."""

    data: bytes
    offer: Offer
    giving: Giving
    lease: Lease | None = None
    lease_to_write: Lease | None = None
    first_sign_at: float | None = None


@dataclass(slots=True)
class _Taken:
    """A transfer that this end takes."""

    offer: Offer
    taking: Taking
    lease: Lease | None = None
    collects: bool = False
    drops: bool = False
    arrived: bytearray = field(default_factory=bytearray)
    placed_tag: bytes = b""
    seen: bytes | None = None
    stale: bool = False  # the lease was taken back or ran out since the tensors were handed out


class End:
    """One end."""

    def __init__(self, name: str, clock: Clock, luck: random.Random, fates: Fates, config: FabricConfig, memory: Memory) -> None:
        """Begins without a counterpart: `joins` completes it."""
        self.name = name
        self.clock, self._luck, self._fates, self._config = clock, luck, fates, config
        self.memory = memory
        self._book, self._table, self.peers = LeaseBook(config), RegionTable(config), Peers(config)
        self._free: list[int] = []
        self._given: dict[int, _Given] = {}
        self._taken: dict[int, _Taken] = {}
        self.old_leases: list[Lease] = []
        self.taken_leases: list[Lease] = []
        self._running: int | None = None  # the transfer whose bytes arrive
        self.by_fabric = self.by_stream = self.errors = self.retired = self.voided = 0
        self.longest_fall_back_s = 0.0
        self.taker: Taker = lambda _number, _data: None
        self.on_void: Callable[[int], None] = lambda _number: None

    def joins(self, out: Pipe, back: Pipe, other: "End") -> None:
        """Connects both ends."""
        self._out, self._other = out, other
        back.taker = self._frame

    # Giving

    def give(self, number: int, data: bytes, kind: Kind) -> None:
        """Offers some bytes as two tensors, by the fabric while it is open."""
        half = len(data) // 2
        places = (Place("a", "u1", (half,), 0, half), Place("b", "u1", (len(data) - half,), half, len(data) - half))
        writes = kind is Kind.RDMA
        tag = b"" if kind is Kind.SHM or writes else _tag(data)
        lease: Lease | None = None
        if not writes:
            region = self._region()
            if region is None or not self.peers.is_open(PEER, self.clock.now):
                writes = True  # nothing to read: the offer asks for what the other will refuse, or the giver fails at once
            else:
                lease = self._book.grant(region, 0, len(data), Rights.READ, self._fates.lease_s, self.clock.now)
                self.memory.bind(lease)
                self.memory.fill(lease, [(0, data)])
                self.old_leases.append(lease)
        offer = Offer(number, kind, places, lease, tag)
        given = self._given[number] = _Given(data, offer, Giving(writes=writes), lease)
        self._say(offer)
        if not self.peers.is_open(PEER, self.clock.now):
            self._step(given, Gives.FAILED)
            return
        self.clock.after(self._config.take_s, lambda: self._late(given))
        if self._luck.random() < self._fates.revoke:
            self.clock.after(self._luck.random() * self._fates.lease_s, lambda: self._own_failure(given))

    def _late(self, given: _Given) -> None:
        if given.giving.awaits_taking:
            self._step(given, Gives.LATE)

    def _own_failure(self, given: _Given) -> None:
        """The giver's memory is taken from it, or its card dies."""
        if given.giving.state in (Giver.OFFERED, Giver.TAKEN):
            self._step(given, Gives.FAILED)

    def _lease_over(self, given: _Given) -> None:
        if given.lease is not None and given.giving.state in (Giver.TAKEN, Giver.DOUBTED):
            self._step(given, Gives.LATE)

    def _step(self, given: _Given, event: Gives) -> None:
        if event in (Gives.FAILED, Gives.REFUSED, Gives.LATE) and given.first_sign_at is None:
            offered_late = event is Gives.LATE
            given.first_sign_at = self.clock.now - (self._config.take_s if offered_late else 0.0)
            self.errors += 1
            self.peers.handle_error(PEER, event.value, self.clock.now)
        for action in given.giving.handle(event):
            self._do_give(given, action)
        if given.giving.state in (Giver.TAKEN, Giver.DOUBTED) and given.lease is not None:
            wait_s = given.lease.lifetime_s + self._config.lease_grace_s
            self.clock.after(wait_s, lambda: self._lease_over(given))

    def _do_give(self, given: _Given, action: Action) -> None:
        number = given.offer.transfer
        match action:
            case Action.STREAM:
                assert given.first_sign_at is not None
                self.longest_fall_back_s = max(self.longest_fall_back_s, self.clock.now - given.first_sign_at)
                self._say(Streamed(number))
                for start in range(0, len(given.data), 1024):
                    self._out.send(bulk_head() + given.data[start : start + 1024])
                given.first_sign_at = None
            case Action.REUSE if given.lease is not None:
                self.memory.unbind(given.lease)
                self._book.end(given.lease)
                self._free.append(given.lease.region)
                given.lease = None
            case Action.RETIRE if given.lease is not None:
                self.memory.unbind(given.lease)
                self.memory.retire(given.lease.region)
                self._book.drop(given.lease.region)
                self.retired += 1
                given.lease = None
            case Action.WRITE:
                self._hardware(lambda: self._write(given), lambda: self._written(given, Gives.FAILED))
            case Action.SAY_PLACED:
                self._say(Placed(number, _tag(given.data)))
            case Action.SAY_REVOKED:
                self._say(Revoked(number))
            case _:
                assert action in (Action.REUSE, Action.RETIRE)

    def _write(self, given: _Given) -> None:
        target = given.lease_to_write
        assert target is not None
        try:
            for place in given.offer.places:
                self._other.memory.write(target, place.offset, given.data[place.offset : place.offset + place.length])
        except FabricError:
            self._written(given, Gives.FAILED)
        else:
            self._written(given, Gives.WRITTEN)

    def _written(self, given: _Given, event: Gives) -> None:
        if given.giving.state in (Giver.WRITING, Giver.STREAMED):
            self._step(given, event)

    # Taking

    def _take(self, taken: _Taken, event: Takes) -> None:
        if event in (Takes.FAILED, Takes.LATE):
            self.errors += 1
        if event in (Takes.REVOKED, Takes.LATE) and taken.taking.state is Receiver.TAKEN:
            taken.stale = True
        for action in taken.taking.handle(event):
            self._do_take(taken, action)

    def _do_take(self, taken: _Taken, action: Action) -> None:
        number = taken.offer.transfer
        match action:
            case Action.SAY_LEASED:
                assert taken.lease is not None
                self._say(Leased(number, taken.lease))
            case Action.INVALIDATE:
                if taken.lease is not None:
                    self.memory.unbind(taken.lease)
                    if taken.taking.state is not Receiver.CHECKING:
                        self._give_up(taken)
            case Action.CHECK:
                self._hardware(lambda: self._check(taken), lambda: self._ready(taken, Takes.FAILED))
            case Action.SAY_TAKEN:
                self._say(Taken(number))
            case Action.SAY_REFUSED:
                self._say(Refused(number, ErrorCode.FABRIC_FAILED, "as it happens"))
            case Action.SAY_RELEASED:
                self._say(Released(number))
            case Action.HAND_OUT:
                self._hand_out(taken)
            case Action.VOID:
                self.voided += 1
                self.on_void(number)
            case Action.LET_GO:
                self._give_up(taken)
            case Action.COLLECT:
                taken.collects, taken.drops = True, False
                taken.arrived.clear()
            case Action.DROP:
                taken.collects, taken.drops = False, True
                taken.arrived.clear()
            case _:
                raise AssertionError(action)

    def _give_up(self, taken: _Taken) -> None:
        """Ends the lease that this end gave, or the use of the other's."""
        if taken.lease is not None and taken.offer.lease is None:
            self.memory.unbind(taken.lease)
            if self._book.end(taken.lease):
                self._free.append(taken.lease.region)
        taken.lease = None

    def _begin(self, offer: Offer) -> None:
        taken = self._taken[offer.transfer] = _Taken(offer, Taking(grants=offer.lease is None))
        refused = self.peers.charge_offer(PEER, self.clock.now)
        if refused is not None:
            self._take(taken, Takes.FAILED)
        elif taken.taking.first is Action.GRANT:
            self._hardware(lambda: self._grant(taken), lambda: self._ready(taken, Takes.FAILED))
        else:
            self._hardware(lambda: self._map(taken), lambda: self._ready(taken, Takes.FAILED))

    def _grant(self, taken: _Taken) -> None:
        region = self._region()
        if region is None or taken.taking.state is not Receiver.GRANTING or taken.offer.kind is not Kind.RDMA:
            self._ready(taken, Takes.FAILED)
            return
        size = taken.offer.size_bytes
        lease = self._book.grant(region, 0, size, Rights.WRITE, self._fates.lease_s, self.clock.now, bytes(4))
        taken.lease = lease
        self.memory.bind(lease)
        self.old_leases.append(lease)
        self._ready(taken, Takes.READY)
        self._runs_out(taken, lease)

    def _map(self, taken: _Taken) -> None:
        lease = taken.offer.lease
        assert lease is not None
        try:
            if lease.region not in self._table:
                self._table.show(lease.region, REGION_BYTES)
            self._table.take(lease, Rights.READ)
            self.taken_leases.append(lease)
        except RemoteProtocolError:
            self._ready(taken, Takes.FAILED)
            return
        if taken.taking.state is Receiver.MAPPING:
            taken.lease = lease
            if taken.offer.tag and _tag(self._look(taken)) != taken.offer.tag:
                self._ready(taken, Takes.FAILED)
                return
        self._ready(taken, Takes.READY)
        self._runs_out(taken, lease)

    def _runs_out(self, taken: _Taken, lease: Lease) -> None:
        def over() -> None:
            if taken.lease == lease and taken.taking.state in (Receiver.TAKEN, Receiver.GRANTED):
                self._take(taken, Takes.LATE)

        self.clock.after(lease.lifetime_s, over)

    def _check(self, taken: _Taken) -> None:
        if taken.taking.state is not Receiver.CHECKING:
            return
        whole = _tag(self._look(taken)) == taken.placed_tag
        self._take(taken, Takes.READY if whole else Takes.FAILED)

    def _ready(self, taken: _Taken, event: Takes) -> None:
        """The hardware is done, perhaps long after anybody waited for it."""
        awaited = taken.taking.state in (Receiver.MAPPING, Receiver.GRANTING, Receiver.CHECKING)
        if awaited or (event is Takes.READY and taken.taking.state is not Receiver.TAKEN):
            self._take(taken, event)

    def _look(self, taken: _Taken) -> bytes:
        """The bytes of a transfer as they lie in memory now."""
        assert taken.lease is not None
        pieces: list[bytes] = []
        for place in taken.offer.places:
            if taken.offer.lease is None:
                pieces.append(self.memory.own(taken.lease, place.offset, place.length))
            else:
                pieces.append(self._other.memory.read(taken.lease, place.offset, place.length))
        return b"".join(pieces)

    def _hand_out(self, taken: _Taken) -> None:
        taken.stale = False
        if taken.taking.state is Receiver.TAKEN:
            taken.seen = self._look(taken) if taken.offer.kind is Kind.SHM or taken.offer.lease is None else None
            data = taken.seen if taken.seen is not None else bytes(self._clean(taken))
            self.by_fabric += 1
        else:
            data = bytes(taken.arrived)
            self.by_stream += 1
        self.taker(taken.offer.transfer, data)

    def _clean(self, taken: _Taken) -> bytes:
        """What a pool holds: it was checked, and is copied out of the way of later bit flips on the link."""
        for _ in range(64):
            if _tag(data := self._look(taken)) == taken.offer.tag:
                return data
        raise BrokenPromiseError("a pool that never gives what it holds")

    def done(self, number: int) -> bool:
        """The user of a transfer is done; False where what it had is void, so that it must wait for it again."""
        taken = self._taken[number]
        if not taken.taking.has_tensors:
            return False
        if taken.stale:
            raise BrokenPromiseError(f"transfer {number} counts though its lease was over before its user was done")
        if taken.taking.state is Receiver.TAKEN and taken.seen is not None and self._look(taken) != taken.seen:
            raise BrokenPromiseError(f"transfer {number} has changed while it was used")
        self._take(taken, Takes.DONE)
        return True

    def gets_in_again(self, lease: Lease) -> bool:
        """Whether an offer of the other end that was taken before could be taken once more."""
        try:
            self._table.take(lease, Rights.READ)
        except RemoteProtocolError:
            return False
        return True

    # The stream

    def _frame(self, frame: bytes) -> None:
        match kind_of_frame(frame):
            case FrameKind.BULK:
                self._bulk(frame[8:])
            case FrameKind.TRANSFER:
                message = decode_message(frame)
                assert message is not None
                self._hear(message)
            case FrameKind.INFERENCE:
                raise AssertionError("there are no requests on this stream")

    def _bulk(self, data: bytes) -> None:
        assert self._running is not None
        taken = self._taken[self._running]
        if taken.collects:
            taken.arrived += data
            if len(taken.arrived) > taken.offer.size_bytes:
                raise BrokenPromiseError("more bytes arrive than were offered")
            self._maybe_arrived(taken)

    def _maybe_arrived(self, taken: _Taken) -> None:
        if taken.collects and len(taken.arrived) == taken.offer.size_bytes:
            taken.collects = False
            self._take(taken, Takes.ARRIVED)

    def _hear(self, message: Message) -> None:
        match message:
            case Offer():
                self._begin(message)
            case Leased(number, lease):
                self._given[number].lease_to_write = lease
                self._step(self._given[number], Gives.LEASED)
            case Placed(number, tag):
                self._taken[number].placed_tag = tag
                self._take(self._taken[number], Takes.PLACED)
            case Taken(number):
                self._step(self._given[number], Gives.TAKEN)
            case Refused(number):
                self._step(self._given[number], Gives.REFUSED)
            case Released(number):
                self._step(self._given[number], Gives.RELEASED)
            case Revoked(number):
                self._take(self._taken[number], Takes.REVOKED)
            case Streamed(number):
                self._running = number
                self._take(self._taken[number], Takes.STREAMED)
                self._maybe_arrived(self._taken[number])

    def _say(self, message: Message) -> None:
        self._out.send(encode_message(message))

    def _hardware(self, works: Callable[[], None], fails: Callable[[], None]) -> None:
        """One step of the hardware, with a fate."""
        fate, fates = self._luck.random(), self._fates
        if fate < fates.fail:
            self.clock.after(fates.step_s, fails)
        elif fate < fates.fail + fates.stall:
            if self._luck.random() < 0.5:  # else it never comes to an end
                self.clock.after(self._luck.random() * fates.late_s, works)
        else:
            self.clock.after(fates.step_s, works)

    def _region(self) -> int | None:
        """A region to lease: one that is free, or a new one within the limits."""
        if self._free:
            return self._free.pop(0)
        try:
            number = self._book.add(REGION_BYTES)
        except LocalProtocolError:
            return None
        if number is not None:
            self.memory.add(number, REGION_BYTES)
        return number


def _tag(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
