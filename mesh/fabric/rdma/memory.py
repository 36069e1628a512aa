"""Memory that a device may use, kept and used again: registering it pins its pages, which is dear.

There are two sorts. A **source** holds what is to be written to the peer; the device may only read it. A **target** is where
the peer writes: it has a window, which is bound for one transfer, and without a binding the peer reaches nothing of it. Sizes
are few, as with shared memory, so that a few regions serve all tensors. The pages are not shared with child processes, whose
copies would else part them from what the device writes to.

Either may lie on a GPU. Linux binds no window to such memory, so a target there is registered for each transfer, and deregistered
before anybody looks at it; the memory itself stays.

Source: ibv_fork_init(3), madvise(2) "MADV_DONTFORK"; Frey and Alonso, "Minimizing the Hidden Cost of RDMA" (ICDCS 2009).
Spec: docs/spec/11-fabric.md, section "RDMA".
"""

import errno
import mmap
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mesh.fabric.gpu.pool import GRAIN_BYTES
from mesh.fabric.memory import address_of, size_class
from mesh.fabric.numa import NumaError, bind
from mesh.fabric.verbs.objects import Access, Domain, Region, VerbsError, Window
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Lease

if TYPE_CHECKING:
    from mesh.fabric.gpu.driver import Device
    from mesh.fabric.rdma.direct import GpuMemory

STEP_BYTES = 64 * 2**20
"""From this size on regions grow by so many bytes, and not fourfold as smaller ones: what is locked for nothing is dear."""


def locked_class(size_bytes: int) -> int:
    """The size of the region that so many bytes are put into."""
    return size_class(size_bytes) if size_bytes <= STEP_BYTES else -(-size_bytes // STEP_BYTES) * STEP_BYTES


def device_class(size_bytes: int) -> int:
    """The size of the region on a GPU that so many bytes are put into: as on the host, and a multiple of what the driver maps."""
    return -(-locked_class(size_bytes) // GRAIN_BYTES) * GRAIN_BYTES


class Use(Enum):
    """What a region is used for at the moment."""

    FREE = auto()
    TAKEN = auto()  # somebody here fills it, or it is being bound
    LEASED = auto()  # the peer may write to it
    ENDING = auto()  # its key is being taken back
    VIEWED = auto()  # tensors that lie in it are in use
    SPENT = auto()  # the device has forgotten it


class Locked:
    """How much memory all sessions of a node together lock; regions are registered in worker threads."""

    def __init__(self, bytes_max: int) -> None:
        """Begins with none."""
        self.bytes_max = bytes_max
        self.n_bytes = 0
        self._guard = threading.Lock()

    def take(self, size_bytes: int) -> None:
        """Charge for a region, before it is registered.

        Raises:
            RemoteProtocolError: OVERLOADED, there is no more.
        """
        with self._guard:
            if self.n_bytes + size_bytes > self.bytes_max:
                raise RemoteProtocolError(ErrorCode.OVERLOADED, f"{self.n_bytes} of {self.bytes_max} bytes are locked for RDMA")
            self.n_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """A region is locked no more."""
        with self._guard:
            self.n_bytes -= size_bytes


@dataclass(eq=False, slots=True)
class Registered:
    """A region of this process that a device may use.

    Attributes:
        number: by which leases name it.
        map: its memory on the host, None where it lies on a GPU; what still looks at it keeps it.
        region: as the device knows it; None where it does not at the moment.
        window: of a target, None of a source, on a GPU, and where the device has no windows.
        locked: what it is charged to; None of memory of a GPU, which is charged where it was made.
        gpu: its memory on a GPU; what still looks at it keeps it.
        use: what for.
        lease: the peer's, of a target.
        key: the remote key that is bound, 0 for none.
        written: how often the peer has said, since the lease was granted, that it has written.
        held: of a source, how many arrays of whoever allocated it are there.
    """

    number: int
    map: mmap.mmap | None
    region: Region | None
    window: Window | None
    locked: Locked | None
    gpu: "GpuMemory | None" = None
    use: Use = Use.FREE
    lease: Lease | None = None
    key: int = 0
    written: int = 0
    held: int = 0
    size_bytes: int = field(init=False)
    address: int = field(init=False)
    _closed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        memory = self.region if self.gpu is None else self.gpu
        assert memory is not None
        self.size_bytes, self.address = memory.size_bytes, memory.address

    @property
    def device(self) -> "Device | None":
        """The GPU on which it lies."""
        return None if self.gpu is None else self.gpu.device

    @property
    def local_key(self) -> int:
        """By which this side's requests name it."""
        assert self.region is not None
        return self.region.local_key

    def array(self, size_bytes: int, offset: int = 0) -> NDArray[np.uint8]:
        """A view of a part of it, where it lies on the host."""
        assert self.map is not None
        return np.frombuffer(self.map, np.uint8, size_bytes, offset)

    def open(self, domain: Domain, access: Access) -> None:
        """Have the device know it again. Blocks for as long as it takes to map its pages.

        Raises:
            VerbsError: the device does not take memory of this GPU, or has no more.
        """
        assert self.region is None
        assert self.gpu is not None
        self.region = Region(domain, self.address, self.size_bytes, access, dmabuf=self.gpu.descriptor)

    def shut(self) -> None:
        """Have the device forget it: what has been leased of it is worth nothing any more.

        Raises:
            VerbsError: the device still uses it.
        """
        if self.region is not None:
            self.region.close()
            if self.gpu is not None:
                self.region = None

    def close(self) -> None:
        """Have the device forget it; the memory goes when nothing looks at it any more."""
        if self.window is not None:
            with suppress(VerbsError):
                self.window.close()
        try:
            self.shut()
        except VerbsError:
            _stuck.append(self)  # the device may still write to it: it is nobody else's until the process ends
            return
        self.gpu = None
        if not self._closed and self.locked is not None:
            self._closed = True
            self.locked.give_back(self.size_bytes)


_stuck: list[Registered] = []


def let_go(own: Registered) -> None:
    """An array of whoever allocated a source is there no more."""
    own.held -= 1


def are_free(sources: Iterable[Registered | None]) -> None:
    """Whoever filled sources does not need them any more."""
    for own in sources:
        if own is not None:
            own.use = Use.FREE


@dataclass(frozen=True, slots=True)
class Sort:
    """What is wanted of memory that is to be made.

    Attributes:
        is_target: whether the peer is to write to it; else it is a source.
        has_windows: whether the device has any.
        node: the NUMA node that it is to be of, where that can be had; None leaves it to the system.
    """

    is_target: bool = False
    has_windows: bool = False
    node: int | None = None


def register(domain: Domain, number: int, size_bytes: int, locked: Locked, sort: Sort) -> Registered:
    """Make memory of a size and register it. Blocks for as long as it takes to pin its pages.

    Raises:
        RemoteProtocolError: OVERLOADED, this node locks as much as it may.
        VerbsError: the limit of locked memory, or the device has no more.
    """
    locked.take(size_bytes)
    try:
        memory, region, window = _made(domain, size_bytes, sort)
    except BaseException:
        locked.give_back(size_bytes)
        raise
    return Registered(number, memory, region, window, locked)


def _made(domain: Domain, size_bytes: int, sort: Sort) -> tuple[mmap.mmap, Region, Window | None]:
    memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK)
    begins = address_of(memoryview(memory))
    if sort.node is not None:
        with suppress(NumaError):  # it is slower from another node, and as good
            bind(begins, size_bytes, sort.node)
    access = Access.LOCAL_READ
    if sort.is_target:
        access = Access.LOCAL_WRITE | (Access.BIND if sort.has_windows else Access.REMOTE_WRITE)
    try:
        region = Region(domain, begins, size_bytes, access)
    except VerbsError as error:
        if error.errno in (errno.ENOMEM, errno.EPERM, errno.EAGAIN):
            raise VerbsError(error.errno, f"{size_bytes} bytes cannot be locked in memory (see `ulimit -l`)") from None
        raise
    try:
        window = Window(domain) if sort.is_target and sort.has_windows else None
    except VerbsError:
        region.close()
        raise
    return memory, region, window


class Pool:
    """The regions of one sort and one peer, by their sizes."""

    def __init__(self, idle_bytes_max: int) -> None:
        """Begins without any.

        Args:
            idle_bytes_max: of free regions that are kept.
        """
        self._idle_bytes_max = idle_bytes_max
        self.regions: dict[int, Registered] = {}

    def find(self, size_bytes: int, device: "Device | None" = None) -> Registered | None:
        """The smallest free region that is large enough, and is not far too large; on a GPU, or on the host."""
        free = ((own.size_bytes, own.number) for own in self._free() if own.device is device)
        fitting = min(((size, number) for size, number in free if size >= size_bytes), default=None)
        usual = locked_class(size_bytes) if device is None else device_class(size_bytes)
        if fitting is None or fitting[0] > 4 * usual:
            return None
        return self.regions[fitting[1]]

    def largest_free(self) -> Registered | None:
        """The largest region that nobody uses: it makes room when there is none."""
        return max(self._free(), key=lambda own: (own.size_bytes, own.number), default=None)

    def surplus(self) -> list[Registered]:
        """The free regions that are more than are kept, the largest of them; they are in the pool no more."""
        free = sorted(self._free(), key=lambda own: (own.size_bytes, own.number))
        idle_bytes, found = sum(own.size_bytes for own in free), []
        while free and idle_bytes > self._idle_bytes_max:
            own = free.pop()
            idle_bytes -= own.size_bytes
            found.append(self.regions.pop(own.number))
        return found

    @property
    def size_bytes(self) -> int:
        """Bytes of all regions."""
        return sum(own.size_bytes for own in self.regions.values())

    def _free(self) -> list[Registered]:
        return [own for own in self.regions.values() if own.use is Use.FREE and own.held == 0]
