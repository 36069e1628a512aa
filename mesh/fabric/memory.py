"""Regions of shared memory: made and sealed by their owner, checked and mapped for reading by whoever is passed one.

A region is a memfd. Its owner maps it for writing and then seals it: it can never shrink or grow, so that nobody who maps it is
killed by a missing page, and nobody else can ever map it for writing. What the owner's own mapping still can do is written in the
specification (ISO-FAB-013).

Source: memfd_create(2); fcntl(2), "File Sealing"; Linux commit ab3948f58ff8 (F_SEAL_FUTURE_WRITE).
Spec: docs/spec/11-fabric.md, section "Shared memory".
"""

import errno
import fcntl
import mmap
import os
import stat
from dataclasses import dataclass, field

import numpy as np

from mesh.fabric.numa import NumaError, bind
from protocol.errors import ErrorCode, RemoteProtocolError

F_SEAL_FUTURE_WRITE = 0x0010
"""No mapping or write after this one changes the file; linux/fcntl.h, not in Python's module before 3.13."""

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | F_SEAL_FUTURE_WRITE
"""What a region is sealed against."""

REGION_BYTES_MIN = 64 * 1024
"""Smallest region in bytes: so that a few sizes serve all tensors, each size four times the one before."""


@dataclass(eq=False, slots=True)
class Region:
    """Memory of this process that a peer may be passed.

    Attributes:
        descriptor: of the memfd; closed by `close`.
        size_bytes: of all of it.
        map: the owner's mapping, to be written to.
        address: where it lies in this process.
    """

    descriptor: int
    size_bytes: int
    map: mmap.mmap
    address: int = field(init=False)

    def __post_init__(self) -> None:
        self.address = address_of(memoryview(self.map))

    @property
    def writable(self) -> memoryview:
        """All of it, to be written to."""
        return memoryview(self.map)

    @property
    def key(self) -> bytes:
        """Nothing: the descriptor says it all."""
        return b""

    def close(self) -> None:
        """Let go of it; what still looks at the mapping keeps it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def make_region(size_bytes: int, node: int | None = None) -> Region:
    """Make a region and seal it.

    Args:
        size_bytes: of it.
        node: the NUMA node of which its pages are to be; None leaves that to the system.

    Raises:
        OSError: the system refuses: no memfd, or no memory of that node.
    """
    descriptor = os.memfd_create("isochrone-region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        mapped = mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        if node is not None:
            bind(address_of(memoryview(mapped)), size_bytes, node)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    except NumaError as error:
        os.close(descriptor)
        raise OSError(errno.ENOMEM, str(error)) from None
    except BaseException:
        os.close(descriptor)
        raise
    return Region(descriptor, size_bytes, mapped)


def size_class(size_bytes: int) -> int:
    """The size of the region that so many bytes are put into: they fill at least a quarter of it."""
    size = REGION_BYTES_MIN
    while size < size_bytes:
        size *= 4
    return size


def sealed_size(descriptor: int, seals: int = SEALS) -> int:
    """The size of a memfd that somebody has passed, as the kernel tells it, once all seals are found on it.

    Raises:
        RemoteProtocolError: MALFORMED, it is no memfd, or a seal is missing.
    """
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        status = os.fstat(descriptor)
    except OSError as error:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a descriptor that cannot be sealed ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode) or found & seals != seals:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a region with the seals {found:#x}; {seals:#x} are needed")
    return status.st_size


def map_for_reading(descriptor: int, size_bytes: int) -> mmap.mmap:
    """Map what was passed; the descriptor may be closed afterwards.

    Raises:
        RemoteProtocolError: FABRIC_FAILED, the system refuses.
    """
    try:
        return mmap.mmap(descriptor, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, f"a region of {size_bytes} bytes cannot be mapped: {error}") from None


def address_of(view: memoryview) -> int:
    """Where a buffer lies in this process; 0 for an empty one."""
    if view.nbytes == 0:
        return 0
    return int(np.frombuffer(view, np.uint8).ctypes.data)
