"""One fabric between two processes by a pool that both map, as each of them keeps it.

It stands for `mesh.fabric.cxl`: the giver puts tensors into slabs that it claims, the receiver holds them, looks whose they are,
and reads them there. What owners do is the core's.

Spec: docs/spec/11-fabric.md, section "Pools".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Lease, LeaseBook, Place, RegionTable, Rights
from protocol.fabric.messages import Offer
from protocol.fabric.pools import (
    LINE_BYTES,
    Hidden,
    LeaseReleased,
    RegionHead,
    Token,
    decode_place,
    decode_word,
    encode_place,
    encode_region,
    encode_word,
)
from protocol.fabric.tags import check_tag, tag_of
from sim.fabric.hardware import BrokenPromiseError, FabricError
from sim.fabric.pool import Host, Put, SimOwner, SimRun
from sim.fabric.sessions import Base, Given, lease_of


@dataclass(eq=False)
class Member:
    """A process in a pool: its place, and regions that are to be free once nobody writes to them."""

    host: Host
    owner: SimOwner

    def claim(self, size_bytes: int) -> SimRun | None:
        """Slabs for so many bytes and their head."""
        run = self.owner.claim(-(-(size_bytes + LINE_BYTES) // self.host.layout.slab_bytes))
        if run is not None:
            self.host.pool.note_claim(self.host.name, run)
        return run

    def retire(self, run: SimRun) -> None:
        """Have slabs free again: the head is spoilt first; who looks holds them."""
        if self.owner.has_slot:
            run.window.write(0, bytes(LINE_BYTES))
        self.host.pool.note_free(run)
        self.owner.free(run)

    def hold(self, first: int, count: int) -> None:
        """Look at slabs."""
        self.owner.hold(first, count)

    def looks(self, first: int, count: int) -> None:
        """What is looked at may be nobody's else: it was found to be leased."""
        for slab in range(first, first + count):
            self.host.looked_at[slab] = self.host.looked_at.get(slab, 0) + 1

    def let_go(self, first: int, count: int, *, looked: bool) -> None:
        """Look at them no more."""
        self.owner.let_go(first, count)
        for slab in range(first, first + count if looked else first):
            left = self.host.looked_at.pop(slab, 1) - 1
            if left:
                self.host.looked_at[slab] = left


@dataclass(eq=False, slots=True)
class _Held:
    """Slabs of the peer that are held for a lease, and whether somebody looks at them."""

    first: int
    count: int
    looked: bool = False


@dataclass(eq=False, slots=True)
class CxlSession(Base):
    """A pool that both map: the giver puts tensors into slabs of its own, and the receiver reads them there."""

    member: Member | None = None
    theirs: Token | None = None
    own: dict[int, tuple[SimRun, Lease | None]] = field(default_factory=dict[int, tuple[SimRun, Lease | None]])
    places: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    held: dict[tuple[int, int], _Held] = field(default_factory=dict[tuple[int, int], _Held])

    def __post_init__(self) -> None:
        half = replace(self.config, regions_max=self.config.regions_max // 2, mapped_bytes_max=self.config.mapped_bytes_max // 2)
        self.book, self.table = LeaseBook(half, self.hardware.numbers), RegionTable(self.config)

    @property
    def _member(self) -> Member:
        assert self.member is not None
        return self.member

    # Giving

    def give(self, data: bytes, places: Sequence[Place], lifetime_s: float) -> Given | None:
        """Put tensors into the pool, and lease them to the peer; None where there is no room."""
        member = self._member
        if not member.owner.has_slot:
            self.close("this node has lost its slot in the pool")
            return None
        self.hardware.touch(self.kind, "fill")
        number = self._region_for(len(data))
        if number is None:
            return None
        run, _ = self.own[number]
        key = encode_place(run.first, run.count)
        lease = self.book.grant(number, 0, max(len(data), 1), Rights.READ, lifetime_s, self.clock.now, key)
        self.own[number] = run, lease
        member.host.pool.put[run.first] = Put(self.hardware.name, self.peer, number, lease.epoch, data)
        run.window.put(LINE_BYTES, data)
        run.window.write_back(LINE_BYTES, len(data))
        token = member.owner.token
        run.window.write(0, encode_region(RegionHead(token.slot, token.epoch, number, lease.epoch, lease.length)))
        member.host.fence()
        return Given(data, tuple(places), lease, tag_of([data]) if member.host.pool.is_tagged else b"")

    def _region_for(self, size_bytes: int) -> int | None:
        slab_bytes = self._member.host.layout.slab_bytes
        wanted = -(-(size_bytes + LINE_BYTES) // slab_bytes) * slab_bytes - LINE_BYTES
        free = [number for number, (run, lease) in self.own.items() if lease is None and run.count * slab_bytes > size_bytes]
        if free:
            return free[0]
        number = self.book.add(wanted)
        idle = [number for number, (_, lease) in self.own.items() if lease is None]
        while number is None and idle:
            self.drop(idle.pop())
            number = self.book.add(wanted)
        if number is None:
            return None
        run = self._member.claim(size_bytes)
        if run is None:
            self.book.drop(number)
            return None
        self.own[number] = run, None
        return number

    def reuse(self, given: Given) -> None:
        """The peer is done with what was given, or has never used it."""
        if given.lease is not None:
            self.end_by(given.lease.region, given.lease.epoch)

    def end_by(self, region: int, epoch: int) -> None:
        """The lease of a region and epoch is over; nothing happens where that is not the one that holds."""
        run, lease = self.own.get(region, (None, None))
        if run is not None and lease is not None and lease.epoch == epoch and self.book.end(lease):
            self.own[region] = run, None

    def retire(self, given: Given) -> None:
        """Never use that memory again; whoever looks at it holds it."""
        if given.lease is not None and self.own.get(given.lease.region, (None, None))[1] == given.lease:
            self.drop(given.lease.region)

    def drop(self, number: int) -> None:
        """A region is gone."""
        self.book.drop(number)
        run, _ = self.own.pop(number)
        self._member.retire(run)
        if not self.closed:
            self.say(encode_word(Hidden(number)))

    def tick(self) -> None:
        """Retire what was not given back in time."""
        for number in self.book.expired(self.clock.now):
            self.drop(number)

    # Taking

    def take(self, offer: Offer) -> bytes:
        """Look at tensors that the peer has leased; a copy where the pool is tagged."""
        lease, member = lease_of(offer), self._member
        if self.closed or self.theirs is None:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "this fabric is closed")
        first, count = decode_place(lease.key, member.host.layout)
        if not member.owner.has_slot:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "this node has lost its slot in the pool")
        key = lease.region, lease.epoch
        if key in self.held:
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"epoch {lease.epoch} of region {lease.region} is taken already")
        member.hold(first, count)
        held = self.held[key] = _Held(first, count)
        try:
            member.owner.check(self.theirs, lease, first, count)
            self._take_in(lease, first, count)
            member.looks(first, count)
            held.looked = True
            self.taken.append(lease)
            at = member.host.layout.slab_at(first) + LINE_BYTES + lease.offset
            member.host.invalidate(at, lease.length)
            data = self.look(lease, offer.size_bytes)
            if member.host.pool.is_tagged:
                data = self.hardware.carried(self.kind, data)
                check_tag([data], offer.tag)
                self.let_go(lease)
        except (RemoteProtocolError, FabricError):
            self.let_go(lease)
            raise
        return data

    def _take_in(self, lease: Lease, first: int, count: int) -> None:
        if lease.region not in self.table:
            self.table.show(lease.region, count * self._member.host.layout.slab_bytes - LINE_BYTES)
            self.places[lease.region] = first, count
        elif self.places[lease.region] != (first, count):
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"region {lease.region} has moved")
        self.table.take(lease, Rights.READ)

    def look(self, lease: Lease, size_bytes: int) -> bytes:
        """The bytes as this host sees them now."""
        member, held = self._member, self.held[lease.region, lease.epoch]
        put = member.host.pool.put.get(held.first)
        who = f"{self.hardware.name} reads slab {held.first}"
        if put is None or put.peer != self.hardware.name or put.owner != self.peer:
            raise BrokenPromiseError(f"{who}, which is not leased to it")
        if (put.region, put.epoch) != (lease.region, lease.epoch):
            raise BrokenPromiseError(f"{who} by epoch {lease.epoch} when it holds another one's bytes")
        at = member.host.layout.slab_at(held.first) + LINE_BYTES + lease.offset
        seen = member.host.load(at, size_bytes)
        if seen != put.data[:size_bytes]:
            raise BrokenPromiseError(f"{who} and sees other bytes than were put there")
        return seen

    def looks_at(self, lease: Lease) -> bool:
        """Whether somebody here looks at what was leased, and holds it: who has lost its slot holds nothing."""
        return (lease.region, lease.epoch) in self.held and self._member.owner.has_slot

    def let_go(self, lease: Lease) -> None:
        """Look no more."""
        held = self.held.pop((lease.region, lease.epoch), None)
        if held is not None:
            self._member.let_go(held.first, held.count, looked=held.looked)
            if held.looked and not self.closed:
                self.say(encode_word(LeaseReleased(lease.region, lease.epoch)))

    def hear(self, word: bytes) -> None:
        """Takes what the peer says beside transfers."""
        match decode_word(word):
            case LeaseReleased(region, epoch):
                self.end_by(region, epoch)
            case Hidden(region):
                self.table.hide(region)
                self.places.pop(region, None)
            case _:
                raise RemoteProtocolError(ErrorCode.MALFORMED, "a word of an opening where the fabric is open")

    def close(self, why: str) -> None:
        """End it; what is looked at stays as it is until nobody looks."""
        if self.closed:
            return
        self.closed = True
        for number in list(self.own):
            self.drop(number)
        self.on_closed(self, why)

    def outstanding(self, now: float) -> list[str]:
        """Leases that hold though their time is over."""
        late = self.book.expired(now)
        return [f"region {number} of {self.hardware.name} is leased to {self.peer} past its time" for number in late]

    def leaks(self) -> list[str]:
        """What is kept for nobody once no request is under way."""
        leased = [
            f"region {number} of {self.hardware.name} is leased" for number, (_, lease) in self.own.items() if lease is not None
        ]
        return leased + [f"{self.hardware.name} holds slab {held.first}" for held in self.held.values()]
