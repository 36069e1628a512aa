"""One shared-memory fabric with one peer: regions given, regions taken, and the ring by which leases come back.

A tensor that is to be given is put into a region that only this peer is ever shown, unless it lies in one already (`allocate`):
then nothing is copied, however large it is. The peer's views are read-only, and tell by being garbage that they are done with;
the lease then comes back by the ring, and the region is used again.

Spec: docs/spec/11-fabric.md, section "Shared memory".
"""

import contextlib
import mmap
import os
import socket
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import trio
from numpy.typing import NDArray

from mesh.fabric.base import Closed
from mesh.fabric.base import Given as Offered
from mesh.fabric.door import close_all, receive_packet, send_packet
from mesh.fabric.memory import Region, address_of, make_region, map_for_reading, sealed_size, size_class
from mesh.fabric.ring import Entry, Inbox, Outbox, Word
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import SHM, FabricConfig, Kind, Lease, LeaseBook, Place, RegionTable, Rights, Way
from protocol.fabric.values import ALIGNMENT_BYTES
from protocol.identity import PeerId
from protocol.inference import Tensor

SHOW, HIDE = b"S", b"H"
"""Words on the local socket: a region is passed, a region is gone."""

COPIED_BYTES_MAX = 64 * 1024
"""Tensors of whole numbers up to so many bytes are copied as they are taken (ISO-FAB-013): engines look up rows by them, and
check them before; copying so many takes some microseconds."""

IDLE_BYTES_MAX = 256 * 2**20
"""Bytes of free regions that are kept for the next tensors of a peer; past that the largest are given back to the system."""

_PACKET = struct.Struct("<cIQ")


@dataclass(eq=False, slots=True)
class _Own:
    """A region of this node: `lease` while the peer has it, `held` while somebody here writes to it."""

    region: Region
    lease: Lease | None = None
    held: int = 0

    @property
    def is_free(self) -> bool:
        return self.lease is None and self.held == 0


@dataclass(eq=False, slots=True)
class Given:
    """Tensors that lie where the peer can read them.

    Attributes:
        lease: what the peer is told.
        places: and of each tensor.
        copied_bytes: how many had to be put there.
        own: the region.
        tag: empty: whoever could change the bytes can look into this process as well.
    """

    lease: Lease
    places: tuple[Place, ...]
    copied_bytes: int
    own: _Own
    tag: bytes = b""

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
        view = memoryview(self.own.region.map)
        for place in self.places:
            for start in range(place.offset, place.offset + place.length, bytes_max):
                yield view[start : min(start + bytes_max, place.offset + place.length)]


@dataclass(eq=False, slots=True)
class ShmSession:
    """The fabric with one peer, from the moment both local sockets have proved who they are.

    Attributes:
        peer: who is at the other end.
        config: bounds.
        connection: the local socket; its end is the end of the session.
        outbox: this side's ring, whose bell is the peer's.
        inbox: the peer's ring.
        bell: this side's own bell.
        on_closed: told once why the session is over; empty where nothing is wrong.
        idle_bytes_max: of free regions that are kept.
        on_entry: takes entries of the ring that are no releases.
        reads: itself.
        writes: nothing is given here by writing.
    """

    peer: PeerId
    config: FabricConfig
    connection: socket.socket
    outbox: Outbox
    inbox: Inbox
    bell: int
    on_closed: Closed
    idle_bytes_max: int = IDLE_BYTES_MAX
    on_entry: Callable[[Entry], None] | None = None
    closed: bool = False
    kind: ClassVar[Kind] = Kind.SHM
    way: ClassVar[Way] = SHM
    writes: ClassVar[None] = None
    _book: LeaseBook = field(init=False)
    _table: RegionTable = field(init=False)
    _own: dict[int, _Own] = field(init=False, default_factory=dict)
    _mapped: dict[int, mmap.mmap] = field(init=False, default_factory=dict)
    _done: deque[tuple[int, int]] = field(init=False, default_factory=deque)
    _unsaid: deque[Entry] = field(init=False, default_factory=deque)
    _thread: int = field(init=False)
    _token: trio.lowlevel.TrioToken = field(init=False)

    def __post_init__(self) -> None:
        self._book, self._table = LeaseBook(self.config), RegionTable(self.config)
        self._thread, self._token = threading.get_ident(), trio.lowlevel.current_trio_token()
        self.connection.setblocking(False)

    @property
    def reads(self) -> "ShmSession":
        """What the peer leases is read."""
        return self

    # Giving

    def allocate(self, size_bytes: int) -> NDArray[np.uint8] | None:
        """Memory to be filled and then given to this peer without a copy; None where the peer has as much as it may have.

        Nothing else is put there while the array, or anything that views it, is in use.
        """
        number = self._region_for(size_bytes)
        if number is None:
            return None
        own = self._own[number]
        own.held += 1
        array = np.frombuffer(own.region.map, np.uint8, size_bytes)
        weakref.finalize(array, self._let_go, own).atexit = False
        return array

    def give(self, tensors: Sequence[Tensor], lifetime_s: float, now: float) -> Given | None:
        """Put tensors where the peer can read them, and lease it to it; None where it has as much as it may have.

        Raises:
            OSError: the system refuses more memory.
        """
        found = self._lying(tensors)
        copied = 0
        if found is None:
            offsets, total = _layout(tensors)
            number = self._region_for(total)
            if number is None:
                return None
            own = self._own[number]
            view = memoryview(own.region.map)
            for tensor, offset in zip(tensors, offsets, strict=True):
                flat = _flat(tensor.data)
                view[offset : offset + len(flat)] = flat
                copied += len(flat)
        else:
            number, offsets = found
            own = self._own[number]
        end = max((offset + tensor.data.nbytes for offset, tensor in zip(offsets, tensors, strict=True)), default=0)
        lease = self._book.grant(number, 0, max(end, 1), Rights.READ, lifetime_s, now)
        own.lease = lease
        places = tuple(
            Place(tensor.name, tensor.dtype, tensor.shape, offset, tensor.data.nbytes)
            for tensor, offset in zip(tensors, offsets, strict=True)
        )
        return Given(lease, places, copied, own)

    def reuse(self, given: Offered) -> None:
        """The peer is done with a lease, or has never used it."""
        if given.lease is not None:
            self._end(given.lease)

    def retire(self, given: Offered) -> None:
        """Never use the region of a lease again: the peer may still be looking at it."""
        lease = given.lease
        own = None if lease is None else self._own.get(lease.region)
        if lease is not None and own is not None and own.lease == lease:
            self._drop(lease.region)

    def _end(self, lease: Lease) -> None:
        own = self._own.get(lease.region)
        if own is not None and own.lease == lease and self._book.end(lease):
            own.lease = None
            self._trim()

    def handle_timer(self, now: float) -> None:
        """Retire what was not given back in time."""
        for number in self._book.expired(now):
            self._drop(number)

    def _lying(self, tensors: Sequence[Tensor]) -> tuple[int, tuple[int, ...]] | None:
        """The region in which all tensors lie already, and where; None where they lie elsewhere, or somebody has it leased."""
        held = [(number, own) for number, own in self._own.items() if own.held and own.lease is None]
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
        wanted = size_class(size_bytes)
        free = [(own.region.size_bytes, number) for number, own in self._own.items() if own.is_free]
        fitting = min(((size, number) for size, number in free if size >= size_bytes), default=None)
        if fitting is not None and fitting[0] <= 4 * wanted:
            return fitting[1]
        number = self._book.add(wanted)
        while number is None and free:  # too many or too large ones lie idle: they make room
            self._drop(free.pop(free.index(max(free)))[1])
            number = self._book.add(wanted)
        if number is None:
            return None
        try:
            region = make_region(wanted)
            send_packet(self.connection, _PACKET.pack(SHOW, number, wanted), [region.descriptor])
        except OSError:
            self._book.drop(number)
            raise
        region.close()  # the mapping is enough from here on
        self._own[number] = _Own(region)
        return number

    def _drop(self, number: int) -> None:
        """Forget a region, and tell the peer to forget it."""
        self._book.drop(number)
        self._own.pop(number, None)
        with contextlib.suppress(OSError):
            send_packet(self.connection, _PACKET.pack(HIDE, number, 0))

    def _trim(self) -> None:
        free = sorted((own.region.size_bytes, number) for number, own in self._own.items() if own.is_free)
        idle_bytes = sum(size for size, _ in free)
        while free and idle_bytes > self.idle_bytes_max:
            size, number = free.pop()
            idle_bytes -= size
            self._drop(number)

    def _let_go(self, own: _Own) -> None:
        own.held -= 1

    # Taking

    def take(self, lease: Lease, places: Sequence[Place], tag: bytes = b"") -> tuple[Tensor, ...]:
        """View tensors that the peer has leased; the lease comes back when nothing views them any more.

        Raises:
            RemoteProtocolError: STALE_LEASE, OUT_OF_BOUNDS, or whatever is wrong with a region.
        """
        del tag  # whoever could change the bytes is the giver, or can look into this process as well
        self.hear()  # the region may have been passed a moment before the offer
        if self.closed:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "the peer has closed this fabric")
        self._table.take(lease, Rights.READ)
        for place in places:
            if not lease.covers(place.offset, place.length):
                raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, f"a tensor at {place.offset} of a lease of {lease.length}")
        whole = np.frombuffer(self._mapped[lease.region], np.uint8, lease.length, lease.offset)
        weakref.finalize(whole, self._is_done, lease.region, lease.epoch).atexit = False
        view = whole.data
        tensors = []
        for place in places:
            data = view[place.offset : place.offset + place.length]
            if place.dtype[0] in "iub" and place.length <= COPIED_BYTES_MAX:
                data = memoryview(bytes(data))
            tensors.append(Tensor(place.name, place.dtype, place.shape, data))
        return tuple(tensors)

    def say(self, entry: Entry) -> None:
        """Put an entry into the ring, in its turn.

        Raises:
            RemoteProtocolError: the peer does not read its ring.
        """
        self._unsaid.append(entry)
        self._say_what_fits()

    def _say_what_fits(self) -> None:
        while self._unsaid and not self.closed:
            if not self.outbox.put(self._unsaid[0], self.inbox.acknowledged(self.outbox.written)):
                if len(self._unsaid) > 4 * self.config.regions_max:
                    raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "the peer does not read its ring")
                return
            self._unsaid.popleft()

    def _is_done(self, region: int, epoch: int) -> None:
        """Nothing views a lease any more; this may be any thread, and in the middle of anything."""
        self._done.append((region, epoch))
        if threading.get_ident() == self._thread:
            self._give_back()
        else:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._give_back, idempotent=True)

    def _give_back(self) -> None:
        while self._done and not self.closed:
            region, epoch = self._done.popleft()
            try:
                self.say(Entry(Word.RELEASED, region, epoch))
            except RemoteProtocolError as error:
                self.close(str(error))

    # What comes

    async def run(self) -> None:
        """Listens to the ring and the socket until the session is over."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear_bell, nursery.cancel_scope)
            nursery.start_soon(self._hear_socket, nursery.cancel_scope)
        self.close("")

    async def _hear_bell(self, scope: trio.CancelScope) -> None:
        try:
            while not self.closed:
                await trio.lowlevel.wait_readable(self.bell)
                self.hear_ring()
        except (RemoteProtocolError, OSError, ValueError, trio.ClosedResourceError) as error:
            self.close(str(error))
        scope.cancel()

    def hear_ring(self) -> None:
        """Take what the peer has put into its ring.

        Raises:
            RemoteProtocolError: it is what no ring holds.
        """
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.bell)
        for entry in self.inbox.entries():
            self._take_entry(entry)
        self.outbox.acknowledge(self.inbox.read)
        if self._unsaid:
            self._say_what_fits()

    def _take_entry(self, entry: Entry) -> None:
        if entry.word == Word.RELEASED:
            own = self._own.get(entry.region)
            if own is not None and own.lease is not None and own.lease.epoch == entry.epoch:
                self._end(own.lease)
        elif self.on_entry is not None:
            self.on_entry(entry)

    async def _hear_socket(self, scope: trio.CancelScope) -> None:
        try:
            while not self.closed:
                await trio.lowlevel.wait_readable(self.connection)
                self.hear()
        except (RemoteProtocolError, OSError, ValueError, trio.ClosedResourceError) as error:
            self.close(str(error))
        scope.cancel()

    def hear(self) -> None:
        """Take the packets that are there.

        Raises:
            RemoteProtocolError: one that no peer sends, or a region that is none.
        """
        while not self.closed:
            try:
                packet, descriptors = receive_packet(self.connection)
            except BlockingIOError:
                return
            except OSError as error:
                raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, f"the local socket: {error.strerror}") from None
            if not packet:
                close_all(descriptors)
                self.close("")
                return
            try:
                self._take_packet(packet, descriptors)
            finally:
                close_all(descriptors)

    def _take_packet(self, packet: bytes, descriptors: list[int]) -> None:
        word, number = read_packet(packet, len(descriptors))
        if word == HIDE:
            self._table.hide(number)
            self._mapped.pop(number, None)
        else:
            size = sealed_size(descriptors[0])
            self._table.show(number, size)
            self._mapped[number] = map_for_reading(descriptors[0], size)

    # The end

    def close(self, why: str) -> None:
        """End the session; a second call does nothing. What is viewed stays as it is until nothing views it."""
        if self.closed:
            return
        self.closed = True
        trio.lowlevel.notify_closing(self.connection)
        self.connection.close()
        trio.lowlevel.notify_closing(self.bell)
        close_all([self.bell, self.outbox.other_bell])
        self.outbox.region.close()
        self._own.clear()
        self._mapped.clear()
        self.on_closed(self, why)

    def figures(self) -> dict[str, int]:
        """How much is given and mapped, for people."""
        return {
            "regions_given": len(self._own),
            "given_bytes": self._book.size_bytes,
            "regions_mapped": len(self._mapped),
            "mapped_bytes": self._table.size_bytes,
        }


def read_packet(packet: bytes, descriptors: int) -> tuple[bytes, int]:
    """The word of a packet on the local socket, and the region it is about; its size is not believed.

    Args:
        packet: as it came.
        descriptors: how many came with it.

    Raises:
        RemoteProtocolError: MALFORMED, no peer sends that.
    """
    if len(packet) != _PACKET.size:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a packet of {len(packet)} bytes on the local socket")
    word, number, _size = _PACKET.unpack(packet)
    if (word, descriptors) not in ((SHOW, 1), (HIDE, 0)):
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a packet {word!r} with {descriptors} descriptors")
    return word, number


def _layout(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], int]:
    """Where tensors go one behind the other, and how many bytes they take; one byte at the least."""
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += -(-tensor.data.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return tuple(offsets), max(end, 1)


def _flat(data: memoryview) -> memoryview:
    if data.ndim == 1 and data.itemsize == 1:
        return data
    return data.cast("B") if data.nbytes else memoryview(b"")
