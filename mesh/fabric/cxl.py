"""Tensors by a pool that both nodes map: the giver puts them into slabs that it claims, and the receiver reads them there.

What stands in the pool can be changed at any time by whoever maps it. So nothing is decided by it but whether a lease still
holds: types, shapes and places come by QUIC. In a pool whose readers do not trust all of its writers (`tagged`) the receiver
copies the bytes first and then compares the copy with a tag that came by QUIC.

Spec: docs/spec/11-fabric.md, section "Pools".
"""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import numpy as np
import trio
from numpy.typing import NDArray

from mesh.fabric.base import Closed
from mesh.fabric.base import Given as Offered
from mesh.fabric.control import Control
from mesh.fabric.memory import address_of
from mesh.fabric.owner import Owner, Run
from mesh.fabric.pool import Pool
from mesh.fabric.shelf import Given, Own, Shelf, flat
from mesh.fabric.views import Returns, check_places, view_tensors
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import CXL, FabricConfig, Kind, Lease, Place, RegionTable, Rights, Way
from protocol.fabric.pools import (
    LINE_BYTES,
    Hidden,
    LeaseReleased,
    PoolFlags,
    RegionHead,
    Token,
    decode_place,
    decode_word,
    encode_place,
    encode_region,
    encode_word,
)
from protocol.fabric.tags import check_tag, tag_of
from protocol.identity import PeerId
from protocol.inference import Tensor

AT_ONCE_BYTES_MAX = 2**20
"""Bytes that are flushed or copied without a thread: that takes less time than to go to one and back."""


@dataclass(eq=False, slots=True)
class PoolRegion:
    """A run of slabs, past the line in which it says whose it is."""

    run: Run

    @property
    def size_bytes(self) -> int:
        """Bytes for tensors."""
        return self.run.window.view.nbytes - LINE_BYTES

    @property
    def address(self) -> int:
        """Where they lie in this process."""
        return address_of(self.run.window.view) + LINE_BYTES

    @property
    def writable(self) -> memoryview:
        """All of them, to be written to."""
        return self.run.window.view[LINE_BYTES:]

    @property
    def key(self) -> bytes:
        """Where in the pool the region is."""
        return encode_place(self.run.first, self.run.count)

    def spoil(self) -> None:
        """No lease of it holds any more."""
        self.run.window.write(0, bytes(LINE_BYTES))


@dataclass(eq=False)
class Membership:
    """What all sessions of one node in one pool share.

    Attributes:
        pool: which.
        owner: this node's place in it.
        retired: regions that are to be free once nobody here writes to them; whoever looks at them holds them by itself.
    """

    pool: Pool
    owner: Owner
    retired: list[Own] = field(default_factory=list)

    @property
    def is_tagged(self) -> bool:
        """Whether readers copy and check what they take."""
        return bool(self.pool.layout.flags & PoolFlags.TAGGED)

    def retire(self, own: Own) -> None:
        """Have a region free again as soon as that may be."""
        assert isinstance(own.region, PoolRegion)
        if self.owner.has_slot:
            own.region.spoil()
        self.retired.append(own)
        self.sweep()

    def sweep(self) -> None:
        """Free what nobody here writes to any more."""
        for own in [own for own in self.retired if own.held == 0]:
            self.retired.remove(own)
            assert isinstance(own.region, PoolRegion)
            self.owner.free(own.region.run)


@dataclass(eq=False, slots=True)
class CxlSession:
    """The fabric with one peer by a pool.

    Attributes:
        peer: who is at the other end.
        config: bounds.
        control: the stream of the opening; its end is the end of the session.
        member: of the pool.
        theirs: who the peer is in the pool.
        on_closed: told once why the session is over; empty where nothing is wrong.
    """

    peer: PeerId
    config: FabricConfig
    control: Control
    member: Membership
    theirs: Token
    on_closed: Closed
    closed: bool = False
    kind: ClassVar[Kind] = Kind.CXL
    way: ClassVar[Way] = CXL
    writes: ClassVar[None] = None
    title: ClassVar[str] = "cxl"
    takes_devices: ClassVar[bool] = False
    _shelf: Shelf = field(init=False)
    _table: RegionTable = field(init=False)
    _places: dict[int, tuple[int, int]] = field(init=False, default_factory=dict)
    _held: dict[tuple[int, int], tuple[int, int]] = field(init=False, default_factory=dict)
    _returns: Returns = field(init=False)

    def __post_init__(self) -> None:
        # Half of what the peer takes: it may hear late, by another stream, of regions that are gone.
        half = replace(self.config, regions_max=self.config.regions_max // 2, mapped_bytes_max=self.config.mapped_bytes_max // 2)
        self._shelf = Shelf(half, self._make, self._gone, self._size_class)
        self._table = RegionTable(self.config)
        self._returns = Returns(self._give_back)

    @property
    def reads(self) -> "CxlSession":
        """What the peer leases is read."""
        return self

    # Giving

    def allocate(self, size_bytes: int) -> NDArray[np.uint8] | None:
        """Memory to be filled and then given to this peer without a copy; see `Shelf.allocate`."""
        return self._shelf.allocate(size_bytes)

    def give(self, tensors: Sequence[Tensor], lifetime_s: float, now: float) -> Given | None:
        """Put tensors into the pool, and lease them to the peer; None where there is no room.

        Raises:
            OSError: the system refuses to map them.
        """
        if not self.member.owner.has_slot:
            self.close("this node has lost its slot in the pool")
            return None
        given = self._shelf.give(tensors, lifetime_s, now)
        if given is None:
            return None
        region, token, lease = given.own.region, self.member.owner.token, given.lease
        assert isinstance(region, PoolRegion)
        window = region.run.window
        window.write_back(LINE_BYTES, lease.length)
        window.write(0, encode_region(RegionHead(token.slot, token.epoch, lease.region, lease.epoch, lease.length)))
        self.member.pool.flusher.fence()
        if self.member.is_tagged:
            given.source = tuple(flat(tensor.data) for tensor in tensors)
            given.tag = tag_of(given.source)
        return given

    def reuse(self, given: Offered) -> None:
        """The peer is done with a lease, or has never used it."""
        self._shelf.end(given.lease)

    def retire(self, given: Offered) -> None:
        """Use the region of a lease for nothing while the peer may look at it, and for no lease of this session any more."""
        self._shelf.retire(given)

    def handle_timer(self, now: float) -> None:
        """Retire what was not given back in time."""
        self._shelf.handle_timer(now)
        self.member.sweep()

    def _size_class(self, size_bytes: int) -> int:
        slab_bytes = self.member.pool.layout.slab_bytes
        return -(-(size_bytes + LINE_BYTES) // slab_bytes) * slab_bytes - LINE_BYTES

    def _make(self, number: int, size_bytes: int) -> PoolRegion | None:
        del number  # the head says it with the first lease
        run = self.member.owner.claim((size_bytes + LINE_BYTES) // self.member.pool.layout.slab_bytes)
        return None if run is None else PoolRegion(run)

    def _gone(self, number: int, own: Own) -> None:
        self.member.retire(own)  # where the peer looks at it, it holds its slabs
        self._say(Hidden(number))

    # Taking

    def take(self, lease: Lease, places: Sequence[Place], tag: bytes = b"") -> tuple[Tensor, ...] | Awaitable[tuple[Tensor, ...]]:
        """View tensors that the peer has leased; the lease comes back when nothing views them any more.

        Raises:
            RemoteProtocolError: STALE_LEASE, OUT_OF_BOUNDS, or whatever is wrong with a region.
        """
        if self.closed:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "this fabric is closed")
        check_places(lease, places)
        pool, layout = self.member.pool, self.member.pool.layout
        first, count = decode_place(lease.key, layout)
        self._hold(lease, first, count)
        try:
            self._check(lease, first, count)
        except BaseException:
            self._let_go(lease.region, lease.epoch)
            raise
        at = layout.slab_at(first) + LINE_BYTES + lease.offset
        if self.member.is_tagged:
            return self._copied(lease, places, tag, at)
        if pool.flusher.coherent or lease.length <= AT_ONCE_BYTES_MAX:
            pool.invalidate(at, lease.length)
            return self._viewed(lease, places, at)
        return self._flushed(lease, places, at)

    def _hold(self, lease: Lease, first: int, count: int) -> None:
        """Keep the slabs from being used anew; first of all, so that what is found after it stays so."""
        owner = self.member.owner
        if not owner.has_slot:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "this node has lost its slot in the pool")
        if (lease.region, lease.epoch) in self._held:
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"epoch {lease.epoch} of region {lease.region} is taken already")
        owner.hold(first, count)
        self._held[lease.region, lease.epoch] = first, count

    def _check(self, lease: Lease, first: int, count: int) -> None:
        """See that the peer is still who it was in the pool, that the slabs are its own, and that the lease holds."""
        layout = self.member.pool.layout
        self.member.owner.check(self.theirs, lease, first, count)
        if lease.region not in self._table:
            self._table.show(lease.region, count * layout.slab_bytes - LINE_BYTES)
            self._places[lease.region] = first, count
        elif self._places[lease.region] != (first, count):
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"region {lease.region} has moved")
        self._table.take(lease, Rights.READ)

    def _viewed(self, lease: Lease, places: Sequence[Place], at: int) -> tuple[Tensor, ...]:
        whole = self.member.pool.array(at, lease.length)
        self._returns.watch(whole, lease.region, lease.epoch)
        return view_tensors(whole, places)

    async def _flushed(self, lease: Lease, places: Sequence[Place], at: int) -> tuple[Tensor, ...]:
        """The same, where forgetting what the caches hold takes a while."""
        try:
            await trio.to_thread.run_sync(partial(self.member.pool.invalidate, at, lease.length))
        except BaseException:
            self._let_go(lease.region, lease.epoch)
            raise
        return self._viewed(lease, places, at)

    async def _copied(self, lease: Lease, places: Sequence[Place], tag: bytes, at: int) -> tuple[Tensor, ...]:
        """Copies of tensors that nobody can change any more, found to be what the tag says."""

        def copy() -> tuple[Tensor, ...]:
            self.member.pool.invalidate(at, lease.length)
            whole = self.member.pool.array(at, lease.length).data
            pieces = [bytes(whole[place.offset : place.offset + place.length]) for place in places]
            check_tag(pieces, tag)
            named = zip(places, pieces, strict=True)
            return tuple(Tensor(place.name, place.dtype, place.shape, memoryview(piece)) for place, piece in named)

        try:
            return await trio.to_thread.run_sync(copy)
        finally:
            self._give_back(lease.region, lease.epoch)

    def _give_back(self, region: int, epoch: int) -> None:
        if self._let_go(region, epoch) and not self.closed:
            self._say(LeaseReleased(region, epoch))

    def _let_go(self, region: int, epoch: int) -> bool:
        held = self._held.pop((region, epoch), None)
        if held is not None:
            self.member.owner.let_go(*held)
        return held is not None

    # What is said beside transfers

    def _say(self, word: LeaseReleased | Hidden) -> None:
        if not self.closed:
            try:
                self.control.say(encode_word(word))
            except RemoteProtocolError as error:
                self.close(error.detail)

    async def run(self) -> None:
        """Listens to the control stream until the session is over."""
        self.close(await self.control.run(self._take_word))

    def _take_word(self, frame: bytes) -> None:
        match decode_word(frame):
            case LeaseReleased(region, epoch):
                self._shelf.end_by(region, epoch)
            case Hidden(region):
                self._table.hide(region)
                self._places.pop(region, None)
            case None:
                pass
            case _:
                raise RemoteProtocolError(ErrorCode.MALFORMED, "a word of an opening where the fabric is open")

    def close(self, why: str) -> None:
        """End the session; a second call does nothing. What is viewed stays as it is until nothing views it."""
        if self.closed:
            return
        self.closed = True
        self.control.close(ErrorCode.FABRIC_FAILED if why else ErrorCode.NO_ERROR)
        for own in self._shelf.own.values():
            self.member.retire(own)
        self._shelf.close()
        self.on_closed(self, why)

    def figures(self) -> dict[str, int]:
        """How much is given and held, for people."""
        return {
            "regions_given": len(self._shelf.own),
            "given_bytes": self._shelf.book.size_bytes,
            "regions_mapped": len(self._table),
            "mapped_bytes": self._table.size_bytes,
        }
