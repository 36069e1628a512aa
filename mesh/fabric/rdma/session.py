"""One RDMA fabric with one peer: tensors written into memory that the other side has leased for one transfer.

To receive, a region is taken, its window is bound to the queue pair for writing, and the key goes out with the lease. When the
peer says that it has written, the key is taken back, the device confirms that, and only then are the bytes compared with the
tag that came by the QUIC session: from there on nobody but this process can change them, and they are handed out where they
lie. To give, a tensor that lies in registered memory (`allocate`) is written from there; others are copied once into a source.

Tensors on a GPU stay on GPUs where both cards can (`mesh.fabric.rdma.direct`): the giver copies them within its GPU into a source
there, and the receiver leases memory of its own. There is no tag then, since nobody could compare it without a copy on the host.
Where the giver's card cannot, it writes them from the host, after one copy; where the receiver's cannot, it leases memory of the
host. Neither costs more than that copy.

Where a device has no windows of type 2, and on GPUs, a region is registered for one transfer and deregistered after it.

Source: Rothenberger et al., "ReDMArk" (USENIX Security 2021), section 8.
Spec: docs/spec/11-fabric.md, section "RDMA".
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from mesh.fabric.base import REGION_NUMBERS, Given, Session
from mesh.fabric.control import Control
from mesh.fabric.gpu import array_of
from mesh.fabric.gpu.driver import Device
from mesh.fabric.memory import address_of
from mesh.fabric.rdma.direct import Direct, GpuMemory, show
from mesh.fabric.rdma.given import RdmaGiven, extent_of
from mesh.fabric.rdma.memory import Locked, Pool, Registered, Sort, Use, are_free, device_class, let_go, locked_class, register
from mesh.fabric.rdma.wire import Operation, Wire
from mesh.fabric.verbs.objects import Access, VerbsError
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import FabricConfig, Kind, Lease, LeaseBook, Rights, Way
from protocol.fabric.messages import Offer
from protocol.fabric.rdma import HeldLeases, Target, compare_tags, encode_key, keyed_tag
from protocol.identity import PeerId
from protocol.inference import Tensor

_T = TypeVar("_T")
TARGET_ON_DEVICE = Access.LOCAL_WRITE | Access.REMOTE_WRITE
"""What a card may do to memory of a GPU that a peer writes to; windows are bound to none."""

PIECE_BYTES = 256 * 1024
"""Bytes of one request to write. Each tells when it has ended, so that a cable that was pulled is noticed; and each costs the
device less than a microsecond, some hundredth of what it takes to send so many."""

THREAD_BYTES = 256 * 1024
"""Bytes from which on copying and hashing go to a worker thread: they take some 100 us, as long as going there and back."""

IDLE_BYTES_MAX = 256 * 2**20
"""Bytes of free regions of each sort that stay registered for the next tensors of a peer."""

WRITTEN_S = 0.1
"""How long the device may take to tell that the peer has written after the peer said so, in seconds: as `STALL_S`."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class RdmaSession:
    """The fabric with one peer, from the moment both queue pairs are connected.

    Attributes:
        peer: who is at the other end.
        config: bounds.
        way: what a transfer costs.
        wire: the queue pair.
        control: the stream of the opening, whose end is the end of the session.
        key: of the tags.
        entropy: draws so many bytes.
        has_windows: whether the device has windows of type 2.
        locked: what all sessions of the node may lock together.
        on_closed: told once why the session is over; empty where nothing is wrong.
        direct: the GPUs whose memory cards may have.
        gpus: those that tensors may be put on, the one that is nearest to the port first.
        memory_node: the NUMA node from which memory of the host is to be; None leaves it to the system.
        title: how people are told this way.
    """

    peer: PeerId
    config: FabricConfig
    way: Way
    wire: Wire
    control: Control
    key: bytes
    entropy: Callable[[int], bytes]
    has_windows: bool
    locked: Locked
    on_closed: Callable[[Session, str], None]
    direct: Direct = field(default_factory=Direct)
    gpus: tuple[Device, ...] = ()
    memory_node: int | None = None
    title: str = "rdma"
    closed: bool = False
    n_given: int = 0
    n_taken: int = 0
    n_on_device: int = 0
    kind: ClassVar[Kind] = Kind.RDMA
    takes_devices: ClassVar[bool] = True
    _held: HeldLeases = field(init=False, default_factory=HeldLeases)
    _book: LeaseBook = field(init=False)
    _targets: Pool = field(init=False)
    _sources: Pool = field(init=False)
    _next_source: int = field(init=False, default=0)
    _changed: trio.Event = field(init=False, default_factory=trio.Event)
    _n_threads: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._book = LeaseBook(self.config, REGION_NUMBERS)
        self._targets, self._sources = Pool(IDLE_BYTES_MAX), Pool(IDLE_BYTES_MAX)
        self.wire.on_written, self.wire.on_failed = self._was_written, self.close

    @property
    def reads(self) -> None:
        """Nothing is read by RDMA: what can be read could be read by whoever finds a key."""
        return

    @property
    def writes(self) -> "RdmaSession":
        """This."""
        return self

    # Giving

    def allocate(self, size_bytes: int) -> NDArray[np.uint8] | None:
        """Memory to be filled and then given to this peer without a copy; None where the peer has as much as it may have.

        Nothing else is put there while the array, or anything that views it, is in use. Blocks for as long as it takes to lock
        the pages in memory.

        Raises:
            OSError: the system refuses more memory.
        """
        own = self._free_source(size_bytes)
        if own is None:
            try:
                own = self._add_source(self._new_source(locked_class(size_bytes))())
            except RemoteProtocolError:
                return None
        own.use = Use.FREE
        own.held += 1
        array = own.array(size_bytes)
        weakref.finalize(array, let_go, own).atexit = False
        return array

    def give(self, tensors: Sequence[Tensor], lifetime_s: float, now: float) -> RdmaGiven | None:
        """Make tensors ready for the peer: nothing is done to them before it has leased memory."""
        del lifetime_s, now  # the lease is the peer's
        given = RdmaGiven.of(tensors)
        return None if self.closed or given.extent_bytes > self.config.mapped_bytes_max else given

    def reuse(self, given: Given) -> None:
        """The tensors are whoever's they were."""

    def retire(self, given: Given) -> None:
        """The peer never looks at this side's memory."""

    async def write(self, given: Given, lease: Lease) -> bytes:
        """Write tensors into what the peer has leased; return the tag of their bytes, and none for memory of a device.

        Raises:
            RemoteProtocolError: the lease is none for these tensors, or the hardware fails.
            OSError: the same, by the system's words.
        """
        assert isinstance(given, RdmaGiven)
        target = self._held.take(lease, given.extent_bytes, on_device=given.on_device)
        sources = [await self._copied_on_device(given)] if target.on_device else []
        if given.on_device and not any(sources):
            await self._in_thread(given.bring_to_host, given.size_bytes)
        lying = [self._lying(tensor.data) for tensor in given.tensors]
        if any(key is None and tensor.data.nbytes for key, tensor in zip(lying, given.tensors, strict=True)):
            try:
                sources.append(await self._copied(given))
            except BaseException:
                are_free(sources)
                raise
        last = await self._post(given, lying, [source for source in sources if source is not None], target, lease.region)
        tag = b""
        if not target.on_device:
            pieces = (piece for _, piece in self._wanted(given))
            tag = await self._in_thread(partial(keyed_tag, self.key, pieces), given.size_bytes)
        await self.wire.wait(last)
        are_free(sources)  # after a failure they are not used again: the device may still be reading
        self.n_given += 1
        return tag

    def _wanted(self, given: RdmaGiven) -> Iterator[tuple[int, memoryview]]:
        """The bytes of tensors on the host, and where they go: what has failed has 200 ms to take the stream."""
        return given.placed(PIECE_BYTES, lambda: not self.closed)

    async def _copied(self, given: RdmaGiven) -> Registered:
        """The tensors that lie on the host, in memory that the device may read.

        Raises:
            RemoteProtocolError: there is no more of it for this peer.
        """
        size = locked_class(given.extent_bytes)
        source = self._free_source(given.extent_bytes)
        if source is None:
            source = self._add_source(await self._in_thread(self._new_source(size), size))
        room = source.array(source.size_bytes)

        def copy() -> None:
            for at, piece in self._wanted(given):
                room[at : at + len(piece)] = np.frombuffer(piece, np.uint8)

        await self._in_thread(copy, given.size_bytes)
        return source

    async def _copied_on_device(self, given: RdmaGiven) -> Registered | None:
        """The tensors that lie on a GPU, in memory there that the card may read; None where it cannot."""
        arrays = [array_of(tensor) for tensor in given.tensors]
        device = next(array.device for array in arrays if array is not None)
        if not self.direct.works(self.wire.device.name, device):
            return None
        source = self._free_source(given.extent_bytes, device)
        try:
            if source is None:
                make = self._new_source(device_class(given.extent_bytes), device)
                source = self._add_source(await self._in_thread(make, THREAD_BYTES))
            begins = source.address
            pieces = [
                (begins + place.offset, array.address, place.length)
                for place, array in zip(given.places, arrays, strict=True)
                if array is not None
            ]
            await self._in_thread(partial(device.copy, pieces), THREAD_BYTES)
        except (OSError, RemoteProtocolError) as error:
            if isinstance(error, OSError):
                self.direct.told(self.wire.device.name, device, error)
            if source is not None:
                source.use = Use.FREE
            return None
        self.direct.told(self.wire.device.name, device, None)
        return source

    async def _post(
        self, given: RdmaGiven, lying: list[int | None], sources: list[Registered], target: Target, region: int
    ) -> Operation:
        """Have everything written, piece by piece; the last piece tells the peer."""
        pieces: list[tuple[tuple[int, int, int], int, bool]] = []
        for place, tensor, key in zip(given.places, given.tensors, lying, strict=True):
            on_device = tensor.device is not None
            source = next((own for own in sources if (own.gpu is not None) == on_device), None)
            if key is None and source is not None:
                begins, local_key = source.address + place.offset, source.local_key
            else:
                begins, local_key = address_of(tensor.data), key or 0
            pieces += [
                ((begins + at, min(PIECE_BYTES, place.length - at), local_key), target.address + place.offset + at, on_device)
                for at in range(0, place.length, PIECE_BYTES)
            ]
        last = pieces.pop() if pieces else ((0, 0, 0), target.address, False)
        for piece, to, on_device in pieces:
            await self.wire.write(piece, (to, target.remote_key), on_device=on_device)
        return await self.wire.write(last[0], (last[1], target.remote_key), region, on_device=last[2])

    def _lying(self, data: memoryview) -> int | None:
        """The local key of the registered memory in which a tensor lies already; None where it lies elsewhere."""
        if not data.nbytes or not data.c_contiguous:
            return None
        begins = address_of(data)
        for own in self._sources.regions.values():
            if own.held and own.address <= begins and begins + data.nbytes <= own.address + own.size_bytes:
                return own.local_key
        return None

    def _free_source(self, size_bytes: int, device: Device | None = None) -> Registered | None:
        """A source of at least so many bytes that nobody uses, on the host or on a GPU."""
        own = self._sources.find(size_bytes, device)
        if own is not None:
            own.use = Use.TAKEN
        return own

    def _new_source(self, size_bytes: int, device: Device | None = None) -> Callable[[], Registered]:
        """What makes another source, which takes a while.

        Raises:
            RemoteProtocolError: this peer has as many as it may have.
        """
        while self._sources.size_bytes + size_bytes > self.config.mapped_bytes_max and (idle := self._sources.largest_free()):
            self._sources.regions.pop(idle.number).close()
        full = len(self._sources.regions) >= self.config.regions_max
        if full or self._sources.size_bytes + size_bytes > self.config.mapped_bytes_max or self.closed:
            raise RemoteProtocolError(ErrorCode.OVERLOADED, "as much is being given to this peer as may be")
        self._next_source = number = self._next_source + 1
        if device is not None:
            return partial(self._make_on_device, number, size_bytes, device, Access.LOCAL_READ)
        return partial(register, self.wire.domain, number, size_bytes, self.locked, Sort(node=self.memory_node))

    def _make_on_device(self, number: int, size_bytes: int, device: Device, access: Access) -> Registered:
        """Memory of a GPU that the card knows.

        Raises:
            RemoteProtocolError: OVERLOADED, peers have as much of this GPU as they may have.
            OSError: it has no more, or the card does not take it.
        """
        own = Registered(number, None, None, None, None, self.direct.make(device, size_bytes))
        own.open(self.wire.domain, access)
        return own

    def _add_source(self, own: Registered) -> Registered:
        own.use = Use.TAKEN
        self._sources.regions[own.number] = own
        return own

    # Taking

    async def grant(self, offer: Offer, lifetime_s: float, now: float) -> Lease:
        """Lease memory that takes all tensors of an offer.

        Raises:
            RemoteProtocolError: OVERLOADED, this peer has as much as it may have; or the hardware fails.
            OSError: the system refuses.
        """
        size = extent_of(offer)
        own = await self._target_on_device(size) if offer.on_device else None
        if own is None:
            own = await self._target_for(size)
        assert own.region is not None
        own.key = own.region.remote_key
        if own.window is not None:  # where that fails, the region is used no more: nobody knows what the device has bound
            own.key = own.window.next_key(self.entropy(1)[0])
            await self.wire.wait(self.wire.bind(own.window, own.key, own.region, (own.address, size)))
        told = encode_key(own.address, own.key, on_device=own.gpu is not None)
        lease = self._book.grant(own.number, 0, size, Rights.WRITE, lifetime_s, now, told)
        own.lease, own.use, own.written = lease, Use.LEASED, 0
        return lease

    async def _target_for(self, size_bytes: int) -> Registered:
        """A region of the host that takes so many bytes, and that nobody uses."""
        self._drop_spent()
        if size_bytes > self.config.mapped_bytes_max:
            raise RemoteProtocolError(ErrorCode.OVERLOADED, f"{size_bytes} bytes are more than this peer may have leased")
        own, size = self._targets.find(size_bytes), locked_class(size_bytes)
        if own is not None:
            own.use = Use.TAKEN
            return own
        number = self._number_for(size)
        sort = Sort(is_target=True, has_windows=self.has_windows, node=self.memory_node)
        make = partial(register, self.wire.domain, number, size, self.locked, sort)
        return await self._made(number, make, size)

    async def _target_on_device(self, size_bytes: int) -> Registered | None:
        """The same of the GPU that is nearest to the port; None where the card takes memory of none, or there is no more."""
        card = self.wire.device.name
        device = next((device for device in self.gpus if self.direct.works(card, device)), None)
        if device is None or size_bytes > self.config.mapped_bytes_max:
            return None
        own = self._targets.find(size_bytes, device)
        try:
            if own is None:
                number = self._number_for(size := device_class(size_bytes))
                make = partial(self._make_on_device, number, size, device, TARGET_ON_DEVICE)
                own = await self._made(number, make, THREAD_BYTES)
            else:
                own.use = Use.TAKEN
                await self._open_again(own, device)
        except OSError as error:
            self.direct.told(card, device, error)
            return None
        except RemoteProtocolError as error:
            if error.code is not ErrorCode.OVERLOADED:
                raise
            return None
        self.direct.told(card, device, None)
        return own

    async def _open_again(self, own: Registered, device: Device) -> None:
        """Have the card know a region once more, when nothing that engines have queued looks at it any more."""

        def open_again() -> None:
            device.wait()
            own.open(self.wire.domain, TARGET_ON_DEVICE)

        try:
            await self._in_thread(open_again, THREAD_BYTES)
        except OSError:
            self._drop(self._targets.regions.pop(own.number))
            raise

    def _number_for(self, size_bytes: int) -> int:
        """The number of a region that is to be made; others that nobody uses make room for it.

        Raises:
            RemoteProtocolError: OVERLOADED, this peer has as much as it may have.
        """
        number = self._book.add(size_bytes)
        while number is None and (idle := self._targets.largest_free()) is not None:
            self._drop(self._targets.regions.pop(idle.number))
            number = self._book.add(size_bytes)
        if number is None:
            raise RemoteProtocolError(ErrorCode.OVERLOADED, "this peer has as much leased memory as it may have")
        return number

    async def _made(self, number: int, make: Callable[[], Registered], size_bytes: int) -> Registered:
        """A target that is new, and taken."""
        try:
            own = await self._in_thread(make, size_bytes)
        except BaseException:
            self._book.drop(number)
            raise
        if self.closed:
            own.close()
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "this fabric was closed meanwhile")
        self._targets.regions[number] = own
        own.use = Use.TAKEN
        return own

    def _drop(self, own: Registered) -> None:
        """Have a region that nobody uses forgotten."""
        self._book.drop(own.number)
        own.close()

    async def check(self, offer: Offer, lease: Lease, tag: bytes) -> tuple[Tensor, ...]:
        """Take a lease back, have the device confirm that, and then see that what was written is what the tag says.

        Raises:
            RemoteProtocolError: CORRUPTED, STALE_LEASE, or the hardware fails.
            OSError: the same, by the system's words.
        """
        own = self._leased(lease)
        if own is None:
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"region {lease.region} is not leased so any more")
        own.use = Use.ENDING
        if own.window is None:
            await self._in_thread(own.shut, own.size_bytes)
        else:
            await self.wire.wait(self.wire.invalidate(own.key))
        own.key = 0
        await self._await_written(own)
        self._book.end(lease)
        if own.gpu is not None:
            return await self._shown_on_device(own, own.gpu, offer)
        whole = own.array(lease.length)
        whole.flags.writeable = False
        view = whole.data
        shown = [view[place.offset : place.offset + place.length] for place in offer.places]
        try:
            compare_tags(tag, await self._in_thread(partial(keyed_tag, self.key, shown), lease.length))
        except BaseException:
            self._is_free(own)
            raise
        own.use, own.lease = Use.VIEWED, None
        weakref.finalize(whole, self._is_free, own).atexit = False
        self.n_taken += 1
        return tuple(Tensor(place.name, place.dtype, place.shape, data) for place, data in zip(offer.places, shown, strict=True))

    async def _shown_on_device(self, own: Registered, memory: GpuMemory, offer: Offer) -> tuple[Tensor, ...]:
        """What was written into memory of a GPU, once the GPU sees it; nothing else writes there any more."""
        try:
            await self._in_thread(memory.device.flush_writes, THREAD_BYTES)
        except BaseException:
            self._is_free(own)
            raise
        own.use, own.lease = Use.VIEWED, None
        self.n_taken += 1
        self.n_on_device += 1
        return show(memory, offer.places, partial(self._is_free, own))

    async def _await_written(self, own: Registered) -> None:
        """See that the device has told that everything is there: it tells before the peer can know (ISO-FAB-043)."""
        self.wire.reap()
        with trio.move_on_after(WRITTEN_S):
            while not own.written and not self.closed:
                self._changed = trio.Event()
                await self._changed.wait()
        if not own.written:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "the peer says that it has written, the RDMA device does not")

    def withdraw(self, lease: Lease) -> None:
        """Begin to take a lease back whose tensors are not wanted; its memory is not used before that is confirmed."""
        own = self._leased(lease)
        if own is None or self.closed:
            return
        own.use = Use.ENDING
        try:
            if own.window is None:
                own.shut()
                self._is_withdrawn(own, lease)
            else:
                self.wire.invalidate(own.key, lambda _operation: self._is_withdrawn(own, lease))
        except (VerbsError, RemoteProtocolError) as error:
            self.close(str(error))

    def _is_withdrawn(self, own: Registered, lease: Lease) -> None:
        own.key = 0
        self._book.end(lease)
        self._is_free(own)

    def _leased(self, lease: Lease) -> Registered | None:
        own = self._targets.regions.get(lease.region)
        return own if own is not None and own.use is Use.LEASED and own.lease == lease else None

    def _is_free(self, own: Registered) -> None:
        """A target may be used again; this may be any thread, and in the middle of anything."""
        own.lease = None
        own.use = Use.SPENT if own.window is None and own.gpu is None else Use.FREE

    def _was_written(self, number: int) -> None:
        own = self._targets.regions.get(number)
        if own is not None and own.use in (Use.LEASED, Use.ENDING):
            own.written += 1
        self._changed.set()

    def handle_timer(self, now: float) -> None:
        """Take back what has run out, and let go of what is not needed."""
        for number in self._book.expired(now):
            own = self._targets.regions.get(number)
            if own is not None and own.lease is not None:
                self.withdraw(own.lease)
        for own in self._targets.surplus():
            self._drop(own)
        for own in self._sources.surplus():
            own.close()
        self._drop_spent()

    def _drop_spent(self) -> None:
        """Without windows each region serves one transfer."""
        for own in [own for own in self._targets.regions.values() if own.use is Use.SPENT]:
            self._drop(self._targets.regions.pop(own.number))

    # The session

    async def run(self) -> None:
        """Listens to the device and to the stream of the opening until the session is over."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_wire, nursery.cancel_scope)
                nursery.start_soon(self._run_control, nursery.cancel_scope)
        finally:
            self.close("")
            with trio.CancelScope(shield=True):
                while self._n_threads:  # memory is being registered, or hashed
                    self._changed = trio.Event()
                    await self._changed.wait()
                await trio.to_thread.run_sync(self.discard)

    async def _run_wire(self, scope: trio.CancelScope) -> None:
        await self.wire.run()
        self.close(self.wire.failure)
        scope.cancel()

    async def _run_control(self, scope: trio.CancelScope) -> None:
        self.close(await self.control.run(lambda _frame: None))  # words of later versions
        scope.cancel()

    def close(self, why: str) -> None:
        """End the session; a second call does nothing. What is viewed stays as it is until nothing views it."""
        if self.closed:
            return
        self.closed = True
        self.wire.fail(why or "the fabric was closed")
        self.control.close(ErrorCode.FABRIC_FAILED if why else ErrorCode.NO_ERROR)
        self._changed.set()
        self.on_closed(self, why)

    def discard(self) -> None:
        """Give back what the device has given; takes a while, and belongs in a worker thread. The wire has been stopped."""

        def forget() -> None:
            for own in (*self._targets.regions.values(), *self._sources.regions.values()):
                own.close()

        self.wire.close(forget)
        self.direct.sweep()

    async def _in_thread(self, work: Callable[[], _T], size_bytes: int) -> _T:
        """Do what takes as long as there are bytes, beside the event loop where they are many."""
        if size_bytes < THREAD_BYTES:
            return work()
        self._n_threads += 1
        try:
            return await trio.to_thread.run_sync(work)
        finally:
            self._n_threads -= 1
            self._changed.set()

    def figures(self) -> dict[str, int]:
        """How much is given and taken, for people."""
        return {
            "regions_leased": len(self._targets.regions),
            "leased_bytes": self._targets.size_bytes,
            "regions_given": len(self._sources.regions),
            "given_bytes": self._sources.size_bytes,
            "transfers_given": self.n_given,
            "transfers_taken": self.n_taken,
            "taken_on_device": self.n_on_device,
            "written_bytes": self.wire.n_written_bytes,
        }
