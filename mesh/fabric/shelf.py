"""The regions that one session gives from: which is free, which is leased, and in which a tensor lies already.

A tensor that is to be given is put into a region that only this peer is ever shown, unless it lies in one already (`allocate`):
then nothing is copied, however large it is. What regions are made of, and how the peer learns of them, the session says.

Spec: docs/spec/11-fabric.md, section "Leases".
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from mesh.fabric.base import REGION_NUMBERS
from mesh.fabric.base import Given as Offered
from mesh.fabric.memory import address_of
from protocol.fabric import FabricConfig, Lease, LeaseBook, Place, Rights
from protocol.fabric.values import ALIGNMENT_BYTES
from protocol.inference import Tensor

IDLE_BYTES_MAX = 256 * 2**20
"""Bytes of free regions that are kept for the next tensors of a peer; past that the largest are given back to the system."""


class Memory(Protocol):
    """What a region is made of."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all of it."""
        ...

    @property
    def address(self) -> int:
        """Where it lies in this process."""
        ...

    @property
    def writable(self) -> memoryview:
        """All of it, to be written to."""
        ...

    @property
    def key(self) -> bytes:
        """What a lease of it tells the peer besides."""
        ...


@dataclass(eq=False, slots=True)
class Own:
    """A region of this node: `lease` while the peer has it, `held` while somebody here writes to it."""

    region: Memory
    lease: Lease | None = None
    held: int = 0

    @property
    def is_free(self) -> bool:
        """Whether it can be used for the next tensors."""
        return self.lease is None and self.held == 0


@dataclass(eq=False, slots=True)
class Given:
    """Tensors that lie where the peer can read them.

    Attributes:
        lease: what the peer is told.
        places: and of each tensor.
        copied_bytes: how many had to be put there.
        own: the region.
        tag: of the bytes, where the session tells one.
        source: the tensors' bytes as they came, where others can write to what lies in the region.
    """

    lease: Lease
    places: tuple[Place, ...]
    copied_bytes: int
    own: Own
    tag: bytes = b""
    source: tuple[memoryview, ...] = ()
    on_device: ClassVar[bool] = False

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.length for place in self.places)

    def hold(self) -> None:
        """Keep the bytes as they are, also when the lease is over, until `let_go`."""
        self.own.held += 1

    def let_go(self) -> None:
        """The region may be used again."""
        self.own.held -= 1

    def pieces(self, bytes_max: int) -> Iterator[memoryview]:
        """All bytes of the tensors, in order, in pieces of at most so many."""
        whole = self.own.region.writable
        views = self.source or tuple(whole[place.offset : place.offset + place.length] for place in self.places)
        for view in views:
            for start in range(0, len(view), bytes_max):
                yield view[start : start + bytes_max]


@dataclass(eq=False, slots=True)
class Shelf:
    """The regions of one session.

    Attributes:
        config: bounds.
        make: makes the memory of a region that is about to get this number and has at least so many bytes, and shows it to the
            peer; None where there is no more, OSError where the system refuses.
        gone: hears of a region that is not used again, with its number; the peer may still be looking at one that is leased.
        size_class: the size that a region for so many bytes has.
        idle_bytes_max: of free regions that are kept.
        own: the regions, by number.
        book: their leases.
    """

    config: FabricConfig
    make: Callable[[int, int], Memory | None]
    gone: Callable[[int, Own], None]
    size_class: Callable[[int], int]
    idle_bytes_max: int = IDLE_BYTES_MAX
    own: dict[int, Own] = field(default_factory=dict)
    book: LeaseBook = field(init=False)

    def __post_init__(self) -> None:
        self.book = LeaseBook(self.config, REGION_NUMBERS)

    def allocate(self, size_bytes: int) -> NDArray[np.uint8] | None:
        """Memory to be filled and then given to this peer without a copy; None where the peer has as much as it may have.

        Nothing else is put there while the array, or anything that views it, is in use.
        """
        number = self._region_for(size_bytes)
        if number is None:
            return None
        own = self.own[number]
        own.held += 1
        array = np.frombuffer(own.region.writable, np.uint8, size_bytes)
        weakref.finalize(array, _let_go, own).atexit = False
        return array

    def give(self, tensors: Sequence[Tensor], lifetime_s: float, now: float) -> Given | None:
        """Put tensors where the peer can read them, and lease it to it; None where it has as much as it may have.

        Raises:
            OSError: the system refuses more memory.
        """
        found = self._lying(tensors)
        copied = 0
        if found is None:
            offsets, total = layout_of(tensors)
            number = self._region_for(total)
            if number is None:
                return None
            own = self.own[number]
            view = own.region.writable
            for tensor, offset in zip(tensors, offsets, strict=True):
                data = flat(tensor.data)
                view[offset : offset + len(data)] = data
                copied += len(data)
        else:
            number, offsets = found
            own = self.own[number]
        end = max((offset + tensor.data.nbytes for offset, tensor in zip(offsets, tensors, strict=True)), default=0)
        lease = self.book.grant(number, 0, max(end, 1), Rights.READ, lifetime_s, now, own.region.key)
        own.lease = lease
        places = tuple(
            Place(tensor.name, tensor.dtype, tensor.shape, offset, tensor.data.nbytes)
            for tensor, offset in zip(tensors, offsets, strict=True)
        )
        return Given(lease, places, copied, own)

    def end(self, lease: Lease | None) -> None:
        """The peer is done with a lease, or has never used it."""
        own = None if lease is None else self.own.get(lease.region)
        if lease is not None and own is not None and own.lease == lease and self.book.end(lease):
            own.lease = None
            self._trim()

    def end_by(self, region: int, epoch: int) -> None:
        """The peer says that the lease of a region and epoch is over; nothing happens where that is not the one that holds."""
        own = self.own.get(region)
        if own is not None and own.lease is not None and own.lease.epoch == epoch:
            self.end(own.lease)

    def retire(self, given: Offered) -> None:
        """Never use the region of a lease again: the peer may still be looking at it."""
        lease = given.lease
        own = None if lease is None else self.own.get(lease.region)
        if lease is not None and own is not None and own.lease == lease:
            self._drop(lease.region)

    def handle_timer(self, now: float) -> None:
        """Retire what was not given back in time."""
        for number in self.book.expired(now):
            self._drop(number)

    def close(self) -> None:
        """The session is over, and nobody hears of regions any more."""
        self.own.clear()

    def _lying(self, tensors: Sequence[Tensor]) -> tuple[int, tuple[int, ...]] | None:
        """The region in which all tensors lie already, and where; None where they lie elsewhere, or somebody has it leased."""
        held = [(number, own) for number, own in self.own.items() if own.held and own.lease is None]
        if not held or not tensors:
            return None
        addresses = [address_of(tensor.data) for tensor in tensors]
        for number, own in held:
            begins, ends = own.region.address, own.region.address + own.region.size_bytes
            offsets = tuple(address - begins for address in addresses)
            lies = all(
                begins <= address and address + tensor.data.nbytes <= ends and offset % ALIGNMENT_BYTES == 0
                for address, tensor, offset in zip(addresses, tensors, offsets, strict=True)
            )
            if lies:
                return number, offsets
        return None

    def _region_for(self, size_bytes: int) -> int | None:
        """The smallest free region that is large enough, or a new one, which the peer is shown."""
        wanted = self.size_class(size_bytes)
        free = [(own.region.size_bytes, number) for number, own in self.own.items() if own.is_free]
        fitting = min(((size, number) for size, number in free if size >= size_bytes), default=None)
        if fitting is not None and fitting[0] <= 4 * wanted:
            return fitting[1]
        number = self.book.add(wanted)
        while number is None and free:  # too many or too large ones lie idle: they make room
            self._drop(free.pop(free.index(max(free)))[1])
            number = self.book.add(wanted)
        if number is None:
            return None
        try:
            region = self.make(number, wanted)
            while region is None and free:
                self._drop(free.pop(free.index(max(free)))[1])
                region = self.make(number, wanted)
        except OSError:
            self.book.drop(number)
            raise
        if region is None:
            self.book.drop(number)
            return None
        self.own[number] = Own(region)
        return number

    def _drop(self, number: int) -> None:
        """Forget a region, and have the peer told to forget it."""
        self.book.drop(number)
        own = self.own.pop(number, None)
        if own is not None:
            self.gone(number, own)

    def _trim(self) -> None:
        free = sorted((own.region.size_bytes, number) for number, own in self.own.items() if own.is_free)
        idle_bytes = sum(size for size, _ in free)
        while free and idle_bytes > self.idle_bytes_max:
            size, number = free.pop()
            idle_bytes -= size
            self._drop(number)


def layout_of(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], int]:
    """Where tensors go one behind the other, and how many bytes they take; one byte at the least."""
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += -(-tensor.data.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return tuple(offsets), max(end, 1)


def _let_go(own: Own) -> None:
    own.held -= 1


def flat(data: memoryview) -> memoryview:
    """The bytes of a tensor one after the other."""
    if data.ndim == 1 and data.itemsize == 1:
        return data
    return data.cast("B") if data.nbytes else memoryview(b"")
