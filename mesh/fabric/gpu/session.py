"""Tensors between two processes that use one GPU: copied into a region by who gives, and out of it by who takes.

A region is an allocation of its own, in which nothing else lies: whoever opens its token can read and write all of it. So the
receiver copies what it takes, on the device, before it answers for it, and the giver never reads a region again: where the bytes
have to go by the stream, they come from where the tensors lay. Whatever blocks for longer than a copy is done in a worker thread.

Source: the CUDA driver API reference, "Memory Management" (cuIpcGetMemHandle, cuIpcOpenMemHandle).
Spec: docs/spec/11-fabric.md, section "GPU memory".
"""

import errno
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

import trio

from mesh.fabric.base import REGION_NUMBERS, Closed
from mesh.fabric.base import Given as Offered
from mesh.fabric.control import Control
from mesh.fabric.gpu.arrays import DeviceArray, array_of
from mesh.fabric.gpu.driver import CudaError, Device
from mesh.fabric.gpu.pool import Pool, block_size
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import GPU, FabricConfig, Kind, Lease, LeaseBook, Place, RegionTable, Rights, Way
from protocol.fabric.adverts import GPU_TAG_BYTES
from protocol.fabric.gpu import TOKEN_BYTES, LeaseOver, RegionClosed, RegionGone, decode_word, encode_word
from protocol.fabric.values import ALIGNMENT_BYTES
from protocol.identity import PeerId
from protocol.inference import Tensor

WORDS_MAX = 256
"""Regions of a peer that are gone and still to be closed, a count: more than it may have had open."""


@dataclass(eq=False, slots=True)
class _Own:
    """A region of this node: where it is, what it is opened by, and its lease while the peer has one."""

    device: Device
    address: int
    size_bytes: int
    key: bytes
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class _Open:
    """A region of the peer: on which GPU, where what is taken from it goes, where it is mapped, and what it was opened by."""

    device: Device
    pool: Pool
    address: int
    key: bytes


@dataclass(eq=False, slots=True)
class Given:
    """Tensors in a region, and where they came from.

    Attributes:
        lease: what the peer is told.
        places: and of each tensor.
        sources: the tensors themselves.
    """

    lease: Lease
    places: tuple[Place, ...]
    sources: tuple[Tensor, ...]
    tag: ClassVar[bytes] = b""
    on_device: ClassVar[bool] = False

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.length for place in self.places)

    def hold(self) -> None:
        """The sources are held anyway."""

    def let_go(self) -> None:
        """The same."""

    def pieces(self, bytes_max: int) -> Iterator[memoryview]:
        """All bytes of the tensors, in order, in pieces of at most so many."""
        for tensor in self.sources:
            view = tensor.data if tensor.device is None else tensor.device.to_host()
            flat = view.cast("B") if view.nbytes else memoryview(b"")
            for start in range(0, flat.nbytes, bytes_max):
                yield flat[start : start + bytes_max]


@dataclass(eq=False, slots=True)
class GpuSession:
    """The fabric with one peer by the memory of the GPUs that both use.

    Attributes:
        peer: who is at the other end.
        config: bounds.
        control: the stream of the opening; its end is the end of the session.
        device: the GPU that is meant where none is named, and for tensors on GPUs that the peer does not use.
        pool: where what is taken there is copied to.
        free: takes memory of a GPU that nobody here uses any more, and whether the peer may still have it open.
        on_closed: told once why the session is over; empty where nothing is wrong.
        others: the GPUs of this node by their tags, each with its pool.
        shared: the tags of those that the peer uses as well.
    """

    peer: PeerId
    config: FabricConfig
    control: Control
    device: Device
    pool: Pool
    free: Callable[[Device, int, bool], None]
    on_closed: Closed
    others: Mapping[bytes, tuple[Device, Pool]] = field(default_factory=dict)
    shared: Collection[bytes] = ()
    closed: bool = False
    kind: ClassVar[Kind] = Kind.GPU
    way: ClassVar[Way] = GPU
    writes: ClassVar[None] = None
    title: ClassVar[str] = "gpu"
    takes_devices: ClassVar[bool] = True
    _book: LeaseBook = field(init=False)
    _table: RegionTable = field(init=False)
    _own: dict[int, _Own] = field(init=False, default_factory=dict)
    _gone: dict[int, _Own] = field(init=False, default_factory=dict)
    _opened: dict[int, _Open] = field(init=False, default_factory=dict)
    _to_close: deque[int] = field(init=False, default_factory=deque)
    _has_to_close: trio.Event = field(init=False, default_factory=trio.Event)
    _taking: trio.Lock = field(init=False, default_factory=trio.Lock)

    def __post_init__(self) -> None:
        self._book, self._table = LeaseBook(self.config, REGION_NUMBERS), RegionTable(self.config)

    @property
    def reads(self) -> "GpuSession":
        """What the peer leases is read."""
        return self

    # Giving

    def give(self, tensors: Sequence[Tensor], lifetime_s: float, now: float) -> Given | None:
        """Copy tensors into a region and lease it to the peer; None where it has as much as it may have, or the GPU is full.

        Raises:
            CudaError: the device fails.
        """
        places, total = _layout(tensors)
        device, tag = self._device_for(tensors)
        try:
            number = self._region_for(total, device, tag)
        except CudaError as error:
            if error.errno == errno.ENOMEM:
                return None
            raise
        if number is None:
            return None
        own = self._own[number]
        pieces = []
        for place, tensor in zip(places, tensors, strict=True):
            array = array_of(tensor)
            if array is None:
                device.write(own.address + place.offset, tensor.data)
            else:
                array.settle()
                pieces.append((own.address + place.offset, array.address, place.length))
        device.copy(pieces)
        own.lease = self._book.grant(number, 0, total, Rights.READ, lifetime_s, now, own.key)
        return Given(own.lease, places, tuple(tensors))

    def reuse(self, given: Offered) -> None:
        """The peer is done with a lease, or has never used it."""
        assert given.lease is not None
        self._end(given.lease.region, given.lease.epoch)

    def retire(self, given: Offered) -> None:
        """Never use the region of a lease again: the peer may still be copying from it."""
        assert given.lease is not None
        own = self._own.get(given.lease.region)
        if own is not None and own.lease == given.lease:
            self._drop(given.lease.region)

    def handle_timer(self, now: float) -> None:
        """Retire what was not given back in time."""
        for number in self._book.expired(now):
            self._drop(number)

    def _device_for(self, tensors: Sequence[Tensor]) -> tuple[Device, bytes]:
        """The GPU on which the first tensor lies that lies on one, and its tag where it has to be named."""
        lies = next((array.device for tensor in tensors if (array := array_of(tensor)) is not None), self.device)
        tag = next((tag for tag, (device, _) in self.others.items() if device is lies and tag in self.shared), b"")
        return (self.device, b"") if lies is self.device or not tag else (lies, tag)

    def _region_for(self, size_bytes: int, device: Device, tag: bytes) -> int | None:
        """The smallest free region of a GPU that is large enough, or a new one."""
        wanted = block_size(size_bytes)
        free = sorted((own.size_bytes, number) for number, own in self._own.items() if own.lease is None)
        fitting = next(
            ((size, number) for size, number in free if size >= size_bytes and self._own[number].device is device), None
        )
        if fitting is not None and fitting[0] <= 2 * wanted:
            return fitting[1]
        number = self._book.add(wanted)
        while number is None and free:  # too many or too large ones lie idle: they make room
            self._drop(free.pop()[1])
            number = self._book.add(wanted)
        if number is None:
            return None
        waiting = sum(own.size_bytes for own in self._gone.values())
        if len(self._gone) >= self.config.regions_max or waiting + self._book.size_bytes > 2 * self.config.mapped_bytes_max:
            self._book.drop(number)  # the peer does not let go of what is gone
            return None
        address = 0
        try:
            address = device.allocate(wanted)
            key = device.token(address) + tag
        except CudaError:
            self._book.drop(number)
            if address:
                self.free(device, address, False)
            raise
        self._own[number] = _Own(device, address, wanted, key)
        return number

    def _end(self, region: int, epoch: int) -> None:
        own = self._own.get(region)
        if own is not None and own.lease is not None and own.lease.epoch == epoch and self._book.end(own.lease):
            own.lease = None

    def _drop(self, number: int) -> None:
        """Forget a region; its memory is kept until the peer has let go of it."""
        self._book.drop(number)
        self._gone[number] = self._own.pop(number)
        with suppress(RemoteProtocolError):  # who does not read its control stream is found out elsewhere
            self.control.say(encode_word(RegionGone(number)))

    # Taking

    async def take(self, lease: Lease, places: Sequence[Place], tag: bytes = b"") -> tuple[Tensor, ...]:
        """Copy tensors that the peer has leased into memory of this process.

        Raises:
            RemoteProtocolError: STALE_LEASE, OUT_OF_BOUNDS, or whatever is wrong with a region.
            CudaError: the device fails, or knows no such token.
        """
        del tag  # the bytes do not leave the device
        async with self._taking:
            try:
                region = await self._open_for(lease)
                self._table.take(lease, Rights.READ)
                for place in places:
                    if not lease.covers(place.offset, place.length):
                        raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, f"a tensor at {place.offset} of {lease.length} bytes")
                tensors = await trio.to_thread.run_sync(self._copy, region, lease.offset, places)
            finally:
                if self.closed:
                    self._close_all()
        if not self.closed:
            self.control.say(encode_word(LeaseOver(lease.region, lease.epoch)))
        return tensors

    async def _open_for(self, lease: Lease) -> _Open:
        """The region of a lease, opened where it is a new one."""
        if self.closed:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "the peer has closed this fabric")
        known = self._opened.get(lease.region)
        if known is not None:
            if known.key != lease.key:
                raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"another token of region {lease.region}")
            return known
        if len(lease.key) not in (TOKEN_BYTES, TOKEN_BYTES + GPU_TAG_BYTES):
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"a token of {len(lease.key)} bytes")
        token, tag = lease.key[:TOKEN_BYTES], lease.key[TOKEN_BYTES:]
        found = self.others.get(tag) if tag else (self.device, self.pool)
        if found is None:
            raise RemoteProtocolError(ErrorCode.UNSUPPORTED, "memory of a GPU that this node does not use")
        device, pool = found
        if len(self._opened) >= self.config.regions_max:
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"more than {self.config.regions_max} regions")
        address, size = await trio.to_thread.run_sync(_map, device, token)
        try:
            self._table.show(lease.region, size)
        except RemoteProtocolError:
            device.close(address)
            raise
        opened = self._opened[lease.region] = _Open(device, pool, address, lease.key)
        return opened

    def _copy(self, region: _Open, at: int, places: Sequence[Place]) -> tuple[Tensor, ...]:
        """Copy tensors of the peer into a block of this process, on the same GPU."""
        own, total = _place_again(places)
        block, begin = region.pool.take(total), region.address + at
        region.device.copy(
            [(block.address + offset, begin + place.offset, place.length) for offset, place in zip(own, places, strict=True)]
        )
        return tuple(
            Tensor(
                place.name,
                place.dtype,
                place.shape,
                memoryview(b""),
                DeviceArray(region.device, block.address + offset, place.dtype, place.shape, block),
            )
            for offset, place in zip(own, places, strict=True)
        )

    # What comes

    async def run(self) -> None:
        """Listens to the control stream until the session is over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_gone)
            self.close(await self.control.run(self._hear))
            nursery.cancel_scope.cancel()

    def _hear(self, frame: bytes) -> None:
        match decode_word(frame):
            case LeaseOver(region, epoch):
                self._end(region, epoch)
            case RegionGone(region):
                if len(self._to_close) >= WORDS_MAX:
                    raise RemoteProtocolError(ErrorCode.FLOODING, "more regions are gone than were ever there")
                self._to_close.append(region)
                self._has_to_close.set()
            case RegionClosed(region):
                own = self._gone.pop(region, None)
                if own is None:
                    raise RemoteProtocolError(ErrorCode.MALFORMED, f"region {region} is closed, which is not gone")
                self.free(own.device, own.address, False)
            case None:
                pass

    async def _close_gone(self) -> None:
        """Lets go of regions that are gone, while nothing is copied from them."""
        while True:
            if not self._to_close:
                self._has_to_close = trio.Event()
                await self._has_to_close.wait()
            async with self._taking:
                number = self._to_close.popleft()
                self._table.hide(number)
                opened = self._opened.pop(number, None)
                if opened is not None:
                    with suppress(CudaError):
                        await trio.to_thread.run_sync(opened.device.close, opened.address)
            if not self.closed:
                with suppress(RemoteProtocolError):
                    self.control.say(encode_word(RegionClosed(number)))

    # The end

    def close(self, why: str) -> None:
        """End the session; a second call does nothing. What was taken stays as it is."""
        if self.closed:
            return
        self.closed = True
        self.control.close(ErrorCode.FABRIC_FAILED if why else ErrorCode.NO_ERROR)
        for own in (*self._own.values(), *self._gone.values()):
            self.free(own.device, own.address, True)
        self._own.clear()
        self._gone.clear()
        if not self._taking.locked():
            self._close_all()
        self.on_closed(self, why)

    def _close_all(self) -> None:
        while self._opened:
            _, opened = self._opened.popitem()
            with suppress(CudaError):
                opened.device.close(opened.address)

    def figures(self) -> dict[str, int]:
        """How much is given and open, for people."""
        return {
            "regions_given": len(self._own),
            "given_bytes": self._book.size_bytes,
            "regions_open": len(self._opened),
            "open_bytes": self._table.size_bytes,
        }


def _map(device: Device, token: bytes) -> tuple[int, int]:
    """Map a region of the peer: where it is, and its size, which is what the driver says."""
    address = device.open(token)
    try:
        begin, size = device.range_of(address)
    except CudaError:
        device.close(address)
        raise
    return address, begin + size - address


def _layout(tensors: Sequence[Tensor]) -> tuple[tuple[Place, ...], int]:
    """Where tensors go one behind the other, and how many bytes they take; one byte at the least."""
    places, end = [], 0
    for tensor in tensors:
        places.append(Place(tensor.name, tensor.dtype, tensor.shape, end, tensor.size_bytes))
        end += _aligned(tensor.size_bytes)
    return tuple(places), max(end, 1)


def _place_again(places: Sequence[Place]) -> tuple[list[int], int]:
    """Where the tensors of a peer go in a block of one's own, and how many bytes they take there."""
    offsets, end = [], 0
    for place in places:
        offsets.append(end)
        end += _aligned(place.length)
    return offsets, max(end, 1)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
