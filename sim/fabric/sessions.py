"""One fabric between two processes, as each of them keeps it: regions given, regions taken, and what is said beside transfers.

Each class stands for the session of the shell of the same kind (`mesh.fabric`), with the core's books, tables and words. It
decides as that one does and moves the bytes over memory that breaks. Whatever a session is asked to do raises `FabricError`
where the hardware fails, and `RemoteProtocolError` where the peer is not to be believed.

Source: mesh/fabric/session.py, gpu/session.py, rdma/session.py.
Spec: docs/spec/11-fabric.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import FabricConfig, Kind, Lease, LeaseBook, Place, RegionTable, Rights
from protocol.fabric import gpu as words
from protocol.fabric.messages import Offer
from protocol.fabric.tags import check_tag, tag_of
from sim.fabric.device import Device
from sim.fabric.hardware import FabricError, Hardware, Segment, Timer

FREE_AFTER_S = 10.0
"""Seconds after the end of a session until memory is given back that the peer may still have open (ISO-FAB-065)."""

SAY_S = 0.0001
"""Seconds that a word beside transfers takes, where it goes by a ring or a local socket."""

REGION_BYTES_MIN = 8192
"""Smallest region in bytes."""

Say = Callable[[bytes], None]
"""Says a word on the control stream."""


@dataclass(eq=False, slots=True)
class Given:
    """Tensors that a session gives.

    Attributes:
        data: all of their bytes, as they lay before.
        places: where each lies in the lease.
        lease: what the peer is told; None where it is to grant one.
        tag: of the bytes, where the offer tells one.
    """

    data: bytes
    places: tuple[Place, ...]
    lease: Lease | None = None
    tag: bytes = b""


@dataclass(eq=False, slots=True)
class Base:
    """What all sessions have.

    Attributes:
        kind: which fabric.
        hardware: of this process.
        peer: name of the other process.
        config: bounds.
        clock: of this process.
        on_closed: told once why it is over; empty where nothing is wrong.
        say: the control stream; set when both ends are there.
        on_end: tells the other end that this one is closed, and why.
        n_late: transfers in a row that the other end has not taken in time.
    """

    kind: Kind
    hardware: Hardware
    peer: str
    config: FabricConfig
    clock: Timer
    on_closed: Callable[["Base", str], None]
    say: Say = field(default=lambda _word: None)
    on_end: Callable[[str], None] = field(default=lambda _why: None)
    closed: bool = False
    n_late: int = 0
    book: LeaseBook = field(init=False)
    table: RegionTable = field(init=False)
    granted: list[tuple[Segment, Lease]] = field(default_factory=list[tuple[Segment, Lease]])  # for those who try old leases
    taken: list[Lease] = field(default_factory=list[Lease])

    def __post_init__(self) -> None:
        self.book, self.table = LeaseBook(self.config, self.hardware.numbers), RegionTable(self.config)


@dataclass(eq=False, slots=True)
class _Own:
    """A region of this process: its memory, and its lease while the peer has one."""

    segment: Segment
    token: bytes = b""
    lease: Lease | None = None


@dataclass(eq=False, slots=True)
class _Regions(Base):
    """Regions in memory of the system, of which one is used again as soon as its lease is over."""

    own: dict[int, _Own] = field(default_factory=dict[int, _Own])

    def region_for(self, size_bytes: int, make: Callable[[int], tuple[bytes, Segment]]) -> int | None:
        """A free region that is large enough, or a new one; None where the peer has as much as it may have."""
        wanted = max(REGION_BYTES_MIN, 1 << max(0, size_bytes - 1).bit_length())
        free = sorted((len(own.segment.data), number) for number, own in self.own.items() if own.lease is None)
        fitting = next((number for size, number in free if size >= size_bytes), None)
        if fitting is not None:
            return fitting
        number = self.book.add(wanted)
        while number is None and free:  # too many lie idle: they make room
            self.drop(free.pop()[1])
            number = self.book.add(wanted)
        if number is None:
            return None
        try:
            token, segment = make(wanted)
        except FabricError:
            self.book.drop(number)
            raise
        self.own[number] = _Own(segment, token)
        self.show(number, segment)
        return number

    def show(self, number: int, segment: Segment) -> None:
        """A region is new."""

    def drop(self, number: int) -> None:
        """A region is not used any more."""
        raise NotImplementedError

    def lend(self, number: int, size_bytes: int, rights: Rights, lifetime_s: float, key: bytes = b"") -> Lease:
        """Lease a region to the peer."""
        own = self.own[number]
        own.lease = self.book.grant(number, 0, max(size_bytes, 1), rights, lifetime_s, self.clock.now, key)
        own.segment.bind(own.lease)
        self.granted.append((own.segment, own.lease))
        return own.lease

    def end(self, lease: Lease) -> None:
        """A lease is over: its holder has said so."""
        own = self.own.get(lease.region)
        if own is not None and own.lease == lease and self.book.end(lease):
            own.segment.unbind(lease)
            own.lease = None

    def end_by(self, region: int, epoch: int) -> None:
        """The same, by number and epoch; nothing happens where that is not the one that holds."""
        own = self.own.get(region)
        if own is not None and own.lease is not None and own.lease.epoch == epoch:
            self.end(own.lease)

    def reuse(self, given: Given) -> None:
        """The peer is done with what was given, or has never used it."""
        if given.lease is not None:
            self.end(given.lease)

    def retire(self, given: Given) -> None:
        """Never use that memory again: the peer may still be looking at it."""
        own = None if given.lease is None else self.own.get(given.lease.region)
        if given.lease is not None and own is not None and own.lease == given.lease:
            own.segment.unbind(given.lease)
            self.drop(given.lease.region)

    def tick(self) -> None:
        """Retire what was not given back in time."""
        for number in self.book.expired(self.clock.now):
            self.drop(number)

    def outstanding(self, now: float) -> list[str]:
        """Leases that hold though their time is over."""
        late = self.book.expired(now)
        return [f"region {number} of {self.hardware.name} is leased to {self.peer} past its time" for number in late]

    def leased(self) -> list[str]:
        """Leases that hold."""
        return [
            f"region {number} of {self.hardware.name} is leased to {self.peer}"
            for number, own in self.own.items()
            if own.lease is not None
        ]


@dataclass(eq=False, slots=True)
class ShmSession(_Regions):
    """Memory of one host: the receiver maps what the giver shows it, and looks at it where it lies."""

    other: "ShmSession | None" = None
    mapped: dict[int, Segment] = field(default_factory=dict[int, Segment])
    views: dict[tuple[int, int], tuple[Segment, Lease]] = field(default_factory=dict[tuple[int, int], tuple[Segment, Lease]])

    def give(self, data: bytes, places: Sequence[Place], lifetime_s: float) -> Given | None:
        """Put tensors where the peer can read them, and lease it to it; None where it has as much as it may have.

        Raises:
            FabricError: there is no memory.
        """
        self.hardware.touch(self.kind, "fill")
        number = self.region_for(len(data), lambda size: (b"", self.hardware.allocate(self.peer, size)))
        if number is None:
            return None
        lease = self.lend(number, len(data), Rights.READ, lifetime_s)
        self.own[number].segment.fill(lease, data)
        return Given(data, tuple(places), lease)

    def show(self, number: int, segment: Segment) -> None:
        """The descriptor goes by the local socket, before any offer of it."""
        if self.other is not None and not self.other.closed:
            self.other.mapped[number] = segment

    def drop(self, number: int) -> None:
        """Whoever has it mapped keeps it as it is."""
        self.book.drop(number)
        self.hardware.give_back(self.own.pop(number).segment, seen=True)
        if self.other is not None and not self.other.closed:
            self.other.mapped.pop(number, None)
            self.other.table.hide(number)

    def take(self, offer: Offer) -> bytes:
        """Look at tensors that the peer has leased."""
        lease = lease_of(offer)
        if self.closed:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "this fabric is closed")
        segment = self.mapped.get(lease.region)
        if segment is None:
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"region {lease.region} was not shown")
        if lease.region not in self.table:
            self.table.show(lease.region, len(segment.data))
        self.table.take(lease, Rights.READ)
        self.taken.append(lease)
        self.views[lease.region, lease.epoch] = segment, lease
        return self.look(lease, offer.size_bytes)

    def look(self, lease: Lease, size_bytes: int) -> bytes:
        """The bytes as they lie there now."""
        segment, _ = self.views[lease.region, lease.epoch]
        return segment.get(self.hardware.name, lease, 0, size_bytes)

    def let_go(self, lease: Lease) -> None:
        """Look no more; the owner hears of it by the ring."""
        if self.views.pop((lease.region, lease.epoch), None) is not None and not self.closed:
            other, region, epoch = self.other, lease.region, lease.epoch
            assert other is not None
            other.clock.after(SAY_S, lambda: other.end_by(region, epoch))

    def hear(self, word: bytes) -> None:
        """Nothing is said on this control stream."""

    def close(self, why: str) -> None:
        """End it; what is looked at stays as it is."""
        if not self.closed:
            self.closed = True
            for number in list(self.own):
                self.drop(number)
            self.mapped.clear()
            self.on_closed(self, why)

    def leaks(self) -> list[str]:
        """What is kept for nobody once no request is under way."""
        looked = [f"{self.hardware.name} looks at region {number} of {self.peer}" for number, _ in self.views]
        return self.leased() + looked


@dataclass(eq=False, slots=True)
class RdmaSession(_Regions):
    """Memory that the receiver leases, and the giver's card writes to."""

    other: "RdmaSession | None" = None
    port_is_down: bool = False

    def give(self, data: bytes, places: Sequence[Place], lifetime_s: float) -> Given | None:
        """Nothing is done before the peer has leased memory."""
        del lifetime_s
        self.hardware.touch(self.kind, "fill")
        return Given(data, tuple(places))

    def drop(self, number: int) -> None:
        """The card lets nobody in any more, and the memory is the system's."""
        self.book.drop(number)
        own = self.own.pop(number)
        if own.lease is not None:
            own.segment.unbind(own.lease)
        self.hardware.give_back(own.segment)

    def grant(self, offer: Offer, lifetime_s: float) -> Lease:
        """Lease memory that takes all tensors of an offer."""
        if self.closed:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "this fabric is closed")
        number = self.region_for(offer.size_bytes, lambda size: (b"", self.hardware.allocate(self.peer, size)))
        if number is None:
            raise RemoteProtocolError(ErrorCode.OVERLOADED, "the peer has as much as it may have")
        return self.lend(number, offer.size_bytes, Rights.WRITE, lifetime_s, number.to_bytes(12, "big"))

    def write(self, given: Given, lease: Lease) -> bytes:
        """Write into what the peer has leased; return the tag of what was meant to be written."""
        other = self.other
        if self.closed or other is None or self.port_is_down:
            raise FabricError("transport retry counter exceeded")
        target = other.own.get(int.from_bytes(lease.key, "big"))
        for place in given.places:
            data = self.hardware.carried(self.kind, given.data[place.offset : place.offset + place.length])
            if target is None:
                other.hardware.refused += 1
                raise FabricError("remote access error")
            try:
                target.segment.put(self.hardware.name, lease, place.offset, data)
            except FabricError:
                other.hardware.refused += 1
                raise
        return tag_of([given.data])

    def check(self, offer: Offer, lease: Lease, tag: bytes) -> bytes:
        """See that what was written is what the tag says, once the lease was taken back."""
        own = self.own.get(lease.region)
        if self.closed or own is None:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "this fabric is closed")
        data = own.segment.own(lease, offer.size_bytes)
        check_tag([data], tag)
        return data

    def break_card(self, *, keys_alone: bool) -> None:
        """The card lets nobody in by any key that was given; or it does nothing at all any more."""
        self.port_is_down = not keys_alone
        for own in self.own.values():
            own.segment.bound = None

    def invalidate(self, lease: Lease) -> None:
        """Let the peer in no more."""
        own = self.own.get(lease.region)
        if own is not None:
            own.segment.unbind(lease)

    def hear(self, word: bytes) -> None:
        """Nothing is said on this control stream."""

    def close(self, why: str) -> None:
        """End it: no key is worth anything any more."""
        if not self.closed:
            self.closed = True
            for number in list(self.own):
                self.drop(number)
            self.on_closed(self, why)

    def leaks(self) -> list[str]:
        """What is kept for nobody once no request is under way."""
        return self.leased()


@dataclass(eq=False, slots=True)
class GpuSession(_Regions):
    """Memory of one GPU: copied in by the giver, and out by the receiver."""

    device: Device = field(default_factory=Device)
    gone: dict[int, _Own] = field(default_factory=dict[int, _Own])
    opened: dict[int, tuple[Segment, bytes]] = field(default_factory=dict[int, tuple[Segment, bytes]])

    def give(self, data: bytes, places: Sequence[Place], lifetime_s: float) -> Given | None:
        """Copy tensors into a region and lease it; None where the peer has as much as it may have, or the device is full."""
        if self.device.is_full and not any(own.lease is None for own in self.own.values()):
            return None
        number = self.region_for(len(data), lambda size: self.device.allocate(self.hardware, self.peer, size))
        if number is None:
            return None
        self.device.work(self.hardware, "copy in")
        own = self.own[number]
        lease = self.lend(number, len(data), Rights.READ, lifetime_s, own.token)
        own.segment.fill(lease, data)
        return Given(data, tuple(places), lease)

    def drop(self, number: int) -> None:
        """Its memory is kept until the peer has let go of it."""
        self.book.drop(number)
        own = self.gone[number] = self.own.pop(number)
        if own.lease is not None:
            own.segment.unbind(own.lease)
        own.segment.retired = True
        self.say(words.encode_word(words.RegionGone(number)))

    def take(self, offer: Offer) -> bytes:
        """Copy tensors that the peer has leased into memory of this process."""
        lease = lease_of(offer)
        if self.closed:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "the peer has closed this fabric")
        known = self.opened.get(lease.region)
        if known is None:
            segment = self.device.open(self.hardware, lease.key)
            try:
                self.table.show(lease.region, len(segment.data))
            except RemoteProtocolError:
                self.device.close(self.hardware, lease.key)
                raise
            known = self.opened[lease.region] = segment, lease.key
        elif known[1] != lease.key:
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"another token of region {lease.region}")
        self.table.take(lease, Rights.READ)
        self.taken.append(lease)
        self.device.work(self.hardware, "copy out")
        data = known[0].get(self.hardware.name, lease, 0, offer.size_bytes)
        self.say(words.encode_word(words.LeaseOver(lease.region, lease.epoch)))
        return data

    def let_go(self, lease: Lease) -> None:
        """What was taken is a copy."""

    def hear(self, word: bytes) -> None:
        """Takes what the peer says beside transfers."""
        if self.closed:
            return
        match words.decode_word(word):
            case words.LeaseOver(region, epoch):
                self.end_by(region, epoch)
            case words.RegionGone(region):
                self.table.hide(region)
                opened = self.opened.pop(region, None)
                if opened is not None:
                    self.device.close(self.hardware, opened[1])
                self.say(words.encode_word(words.RegionClosed(region)))
            case words.RegionClosed(region):
                self.device.free(self.hardware, self.gone.pop(region).token)
            case None:
                pass

    def close(self, why: str) -> None:
        """End it; memory is given back when the peer has had the time to close it."""
        if self.closed:
            return
        self.closed = True
        kept = [own.token for own in (*self.own.values(), *self.gone.values())]
        self.own.clear()
        self.gone.clear()
        self.clock.after(FREE_AFTER_S, lambda: self._free_all(kept))
        for _, token in self.opened.values():
            self.device.close(self.hardware, token)
        self.opened.clear()
        self.on_closed(self, why)

    def _free_all(self, tokens: Sequence[bytes]) -> None:
        for token in tokens:
            self.device.free(self.hardware, token, waited=True)

    def leaks(self) -> list[str]:
        """What is kept for nobody once no request is under way."""
        unclosed = [f"region {number} of {self.hardware.name} is gone and {self.peer} keeps it" for number in self.gone]
        return self.leased() + unclosed


def lease_of(offer: Offer) -> Lease:
    """The lease of an offer to read."""
    assert offer.lease is not None
    return offer.lease
