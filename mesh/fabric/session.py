"""One shared-memory fabric with one peer: regions given, regions taken, and the ring by which leases come back.

What is given lies in regions that only this peer is ever shown (`mesh.fabric.shelf`). The peer's views are read-only, and tell by
being garbage that they are done with; the lease then comes back by the ring, and the region is used again.

Spec: docs/spec/11-fabric.md, section "Shared memory".
"""

import contextlib
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import trio
from numpy.typing import NDArray

from mesh.fabric.base import Closed
from mesh.fabric.base import Given as Offered
from mesh.fabric.door import close_all, receive_packet, send_packet
from mesh.fabric.memory import Region, make_region, map_for_reading, sealed_size, size_class
from mesh.fabric.ring import Entry, Inbox, Outbox, Word
from mesh.fabric.shelf import IDLE_BYTES_MAX, Given, Own, Shelf
from mesh.fabric.views import Returns, check_places, view_tensors
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import SHM, FabricConfig, Kind, Lease, Place, RegionTable, Rights, Way
from protocol.identity import PeerId
from protocol.inference import Tensor

SHOW, HIDE = b"S", b"H"
"""Words on the local socket: a region is passed, a region is gone."""

_PACKET = struct.Struct("<cIQ")


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
        memory_node: the NUMA node of regions given; None leaves it to the system.
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
    memory_node: int | None = None
    on_entry: Callable[[Entry], None] | None = None
    closed: bool = False
    kind: ClassVar[Kind] = Kind.SHM
    way: ClassVar[Way] = SHM
    writes: ClassVar[None] = None
    title: ClassVar[str] = "shm"
    takes_devices: ClassVar[bool] = False
    _shelf: Shelf = field(init=False)
    _table: RegionTable = field(init=False)
    _mapped: dict[int, mmap.mmap] = field(init=False, default_factory=dict)
    _unsaid: deque[Entry] = field(init=False, default_factory=deque)
    _returns: Returns = field(init=False)

    def __post_init__(self) -> None:
        self._shelf = Shelf(self.config, self._make, self._gone, size_class, self.idle_bytes_max)
        self._table = RegionTable(self.config)
        self._returns = Returns(self._give_back)
        self.connection.setblocking(False)

    @property
    def reads(self) -> "ShmSession":
        """What the peer leases is read."""
        return self

    # Giving

    @property
    def _own(self) -> dict[int, Own]:
        return self._shelf.own

    def allocate(self, size_bytes: int) -> NDArray[np.uint8] | None:
        """Memory to be filled and then given to this peer without a copy; see `Shelf.allocate`."""
        return self._shelf.allocate(size_bytes)

    def give(self, tensors: Sequence[Tensor], lifetime_s: float, now: float) -> Given | None:
        """Put tensors where the peer can read them, and lease it to it; None where it has as much as it may have.

        Raises:
            OSError: the system refuses more memory.
        """
        return self._shelf.give(tensors, lifetime_s, now)

    def reuse(self, given: Offered) -> None:
        """The peer is done with a lease, or has never used it."""
        self._shelf.end(given.lease)

    def retire(self, given: Offered) -> None:
        """Never use the region of a lease again: the peer may still be looking at it."""
        self._shelf.retire(given)

    def handle_timer(self, now: float) -> None:
        """Retire what was not given back in time."""
        self._shelf.handle_timer(now)

    def _make(self, number: int, size_bytes: int) -> Region:
        """A region that the peer is shown."""
        region = make_region(size_bytes, self.memory_node)
        try:
            send_packet(self.connection, _PACKET.pack(SHOW, number, size_bytes), [region.descriptor])
        finally:
            region.close()  # the mapping is enough from here on
        return region

    def _gone(self, number: int, own: Own) -> None:
        del own  # its pages live for as long as anybody maps them
        with contextlib.suppress(OSError):
            send_packet(self.connection, _PACKET.pack(HIDE, number, 0))

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
        check_places(lease, places)
        whole = np.frombuffer(self._mapped[lease.region], np.uint8, lease.length, lease.offset)
        self._returns.watch(whole, lease.region, lease.epoch)
        return view_tensors(whole, places)

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

    def _give_back(self, region: int, epoch: int) -> None:
        if not self.closed:
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
            self._shelf.end_by(entry.region, entry.epoch)
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
        self._shelf.close()
        self._mapped.clear()
        self.on_closed(self, why)

    def figures(self) -> dict[str, int]:
        """How much is given and mapped, for people."""
        return {
            "regions_given": len(self._own),
            "given_bytes": self._shelf.book.size_bytes,
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
