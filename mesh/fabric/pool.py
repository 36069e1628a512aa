"""A pool of memory as one process maps it: all of it for reading, and what it owns for writing.

A pool is a device-DAX of CXL memory (`/dev/dax0.0`), or a plain file, which processes of one host share. Everything in it can
change at any time by somebody else's hand, so lines are copied before they are looked at, and what they say is bounded by what
the system says of the file.

Source: Linux Documentation/filesystems/dax.rst, Documentation/ABI/testing/sysfs-bus-dax.
Spec: docs/spec/11-fabric.md, section "Pools".
"""

import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mesh.fabric.flush import Flusher, FlushError, make_flusher
from mesh.fabric.memory import address_of
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.fabric.pools import (
    LINE_BYTES,
    PAGE_BYTES,
    POOL_BYTES_MIN,
    PoolFlags,
    PoolLayout,
    decode_superblock,
    encode_superblock,
    lay_out,
    slab_bytes_for,
)

FILE_MODE = 0o600
"""Permission bits of a new pool: who may write to it can read what all of its owners put there."""


SHARED_FILE_SYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "lustre", "glusterfs", "beegfs", "afs", "gfs2", "ocfs2")
)
"""File systems whose files several hosts map, each by a cache of its own that no flush of cache lines reaches."""


class PoolError(Exception):
    """A pool cannot be made or used; says what to do about it."""


@dataclass(frozen=True, slots=True)
class Backing:
    """What the system says of the file or device.

    Attributes:
        size_bytes: of all of it.
        alignment_bytes: what mappings are multiples of.
        is_device: whether it is a device-DAX, which has its size for good.
    """

    size_bytes: int
    alignment_bytes: int
    is_device: bool


def look_at(descriptor: int, path: Path, sys: Path = Path("/sys")) -> Backing:
    """Ask the system for the size of a file or a device-DAX.

    Raises:
        PoolError: it is neither, or too small for any pool.
    """
    backing = _backing(descriptor, path, sys)
    if not backing.is_device and (kind := file_system_of(os.fstat(descriptor).st_dev)) in SHARED_FILE_SYSTEMS:
        raise PoolError(
            f"{path} lies on {kind}, which hosts cache each for itself; choose a place on this host, such as /dev/shm"
        )
    if backing.size_bytes < POOL_BYTES_MIN:
        raise PoolError(f"{path} has {backing.size_bytes} bytes, and the smallest pool {POOL_BYTES_MIN}; choose another place")
    return backing


def file_system_of(device: int, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The kind of file system that a device number belongs to; empty where the system does not tell.

    Source: proc(5), "/proc/[pid]/mountinfo".
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        place, _, source = line.partition(" - ")
        if place.split()[2:3] == [wanted]:
            return source.split()[0] if source else ""
    return ""


def _backing(descriptor: int, path: Path, sys: Path) -> Backing:
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return Backing(status.st_size, max(mmap.ALLOCATIONGRANULARITY, PAGE_BYTES), is_device=False)
    if not stat.S_ISCHR(status.st_mode):
        raise PoolError(f"{path} is neither a file nor a device; name a file, or a device-DAX such as /dev/dax0.0")
    device = sys / "dev" / "char" / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    try:
        subsystem = (device / "subsystem").resolve().name
        size_bytes, alignment_bytes = (int((device / name).read_text(), 0) for name in ("size", "align"))
    except (OSError, ValueError):
        raise PoolError(f"{path} is a device whose size the system does not tell; name a device-DAX (daxctl list)") from None
    if subsystem != "dax" or size_bytes <= 0 or alignment_bytes <= 0 or alignment_bytes & (alignment_bytes - 1):
        raise PoolError(f"{path} is no device-DAX; `daxctl list` shows those that are there")
    return Backing(size_bytes, max(alignment_bytes, PAGE_BYTES), is_device=True)


class Window:
    """A part of a pool that this process writes to."""

    __slots__ = ("_flusher", "address", "view")

    def __init__(self, view: memoryview, flusher: Flusher) -> None:
        """Begins.

        Args:
            view: of the part, writable.
            flusher: of the pool.
        """
        self.view = view
        self.address = address_of(view)
        self._flusher = flusher

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there, and have them in memory."""
        self.view[offset : offset + len(data)] = data
        self.write_back(offset, len(data))

    def write_back(self, offset: int, size_bytes: int) -> None:
        """Have in memory what was put there by its view."""
        self._flusher.write_back(self.address + offset, size_bytes)


class Pool:
    """A pool that is open."""

    def __init__(self, path: Path, descriptor: int, backing: Backing, layout: PoolLayout, flusher: Flusher) -> None:
        """Maps it for reading; `open_pool` makes one.

        Args:
            path: where it was found.
            descriptor: the pool's from now on.
            backing: as the system tells it.
            layout: as its superblock tells it, and within that.
            flusher: for its memory.

        Raises:
            OSError: the system refuses.
        """
        self.path, self.backing, self.layout, self.flusher = path, backing, layout, flusher
        self._descriptor = descriptor
        length = _up(layout.size_bytes, backing.alignment_bytes)
        self._read = mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ)
        self._address = address_of(memoryview(self._read))

    def read(self, at: int, size_bytes: int = LINE_BYTES) -> bytes:
        """A copy of what is there now."""
        self.invalidate(at, size_bytes)
        return self._read[at : at + size_bytes]

    def invalidate(self, at: int, size_bytes: int) -> None:
        """Have what is read there afterwards come from memory."""
        self.flusher.invalidate(self._address + at, size_bytes)

    def array(self, at: int, size_bytes: int) -> NDArray[np.uint8]:
        """What is there, not copied and read-only."""
        return np.frombuffer(self._read, np.uint8, size_bytes, at)

    def window(self, at: int, size_bytes: int) -> Window:
        """Map a part for writing: no more of its neighbours than the device's alignment makes necessary.

        Raises:
            OSError: the system refuses.
        """
        step = self.backing.alignment_bytes
        begin, end = at - at % step, _up(at + size_bytes, step)
        mapped = mmap.mmap(self._descriptor, end - begin, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=begin)
        return Window(memoryview(mapped)[at - begin : at - begin + size_bytes], self.flusher)

    def fence(self) -> None:
        """Have what was written before in memory before anything after it is read."""
        self.flusher.fence()

    def check(self) -> None:
        """See that all of it is still there: what is cut off a file would kill whoever looks at it.

        Raises:
            PoolError: it is shorter, or another pool was made in its place.
        """
        if not self.backing.is_device and os.fstat(self._descriptor).st_size < self.layout.size_bytes:
            raise PoolError(f"{self.path} was cut short; make a new pool, and start its nodes again")
        try:
            now = decode_superblock(self.read(0), self.backing.size_bytes)
        except RemoteProtocolError as error:
            raise PoolError(f"{self.path} has lost its superblock ({error.detail}); make a new pool") from None
        if now != self.layout:
            raise PoolError(f"{self.path} was made anew as another pool; start the node again")

    def close(self) -> None:
        """Open no more of it; what is viewed stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_pool(path: Path, *, writes: bool = True) -> Pool:
    """Open a pool.

    Args:
        path: a file or a device-DAX in which one was made.
        writes: whether it is to be owned, and not only looked at.

    Raises:
        PoolError: it cannot be used.
    """
    try:
        descriptor = os.open(path, (os.O_RDWR if writes else os.O_RDONLY) | os.O_CLOEXEC)
    except FileNotFoundError:
        raise PoolError(f"there is no {path}; make a pool there: isochrone pool create {path} --size 1GiB") from None
    except OSError as error:
        raise PoolError(f"{path} cannot be opened ({error.strerror}); its owner must let this user read and write it") from None
    try:
        backing = look_at(descriptor, path)
        with mmap.mmap(descriptor, backing.alignment_bytes, mmap.MAP_SHARED, mmap.PROT_READ) as first:
            # Not flushed yet: how is what is read here. A superblock is written once, before anybody has read it.
            layout = decode_superblock(first[:LINE_BYTES], backing.size_bytes)
        flusher = make_flusher(coherent=bool(layout.flags & PoolFlags.COHERENT))
        return Pool(path, descriptor, backing, layout, flusher)
    except RemoteProtocolError as error:
        os.close(descriptor)
        raise PoolError(f"{path} holds no pool ({error.detail}); make one: isochrone pool create {path}") from None
    except FlushError as error:
        os.close(descriptor)
        raise PoolError(f"{path} is not coherent between hosts, and {error}") from None
    except (OSError, ValueError) as error:
        os.close(descriptor)
        raise PoolError(f"{path} cannot be mapped: {error}") from None
    except BaseException:
        os.close(descriptor)
        raise


@dataclass(frozen=True, slots=True)
class NewPool:
    """What a pool is to be.

    Attributes:
        size_bytes: of a new file; None takes all of a device, or of a file that is there.
        coherent: whether hosts see each other's writes without flushes; None: a file yes, a device no.
        tagged: whether readers copy what they take and check its tag.
        force: whether a pool that is there may be made anew.
    """

    size_bytes: int | None = None
    coherent: bool | None = None
    tagged: bool = False
    force: bool = False


def create_pool(path: Path, wanted: NewPool, pool_id: bytes) -> PoolLayout:
    """Make a pool in a file or a device-DAX.

    Raises:
        PoolError: it cannot be made, or there is one already.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        exists = path.exists()
        descriptor = os.open(path, flags if exists else flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
    except OSError as error:
        raise PoolError(f"{path} cannot be opened ({error.strerror}); choose another place") from None
    try:
        layout = _create_in(descriptor, path, wanted, pool_id, fresh=not exists)
    except BaseException as error:
        if not exists:
            path.unlink(missing_ok=True)
        if isinstance(error, LocalProtocolError):
            raise PoolError(f"{error.detail}; give another --size, 8MiB at the least") from None
        if isinstance(error, OSError | ValueError):
            raise PoolError(f"{path} cannot be made a pool: {error}") from None
        if isinstance(error, FlushError):
            raise PoolError(f"{path} would not be coherent between hosts, and {error}") from None
        raise
    finally:
        os.close(descriptor)
    return layout


def _create_in(descriptor: int, path: Path, wanted: NewPool, pool_id: bytes, *, fresh: bool) -> PoolLayout:
    if fresh:
        if wanted.size_bytes is None:
            raise PoolError(f"there is no {path}; say how large it is to be: --size 1GiB")
        os.posix_fallocate(descriptor, 0, wanted.size_bytes)  # all of it is there, or nobody begins
    backing = look_at(descriptor, path)
    size_bytes = min(wanted.size_bytes or backing.size_bytes, backing.size_bytes)
    if wanted.size_bytes is not None and wanted.size_bytes > backing.size_bytes:
        raise PoolError(f"{path} has {backing.size_bytes} bytes, fewer than --size; leave it out to take all of it")
    coherent = not backing.is_device if wanted.coherent is None else wanted.coherent
    flags = (PoolFlags.COHERENT if coherent else PoolFlags(0)) | (PoolFlags.TAGGED if wanted.tagged else PoolFlags(0))
    layout = lay_out(pool_id, flags, size_bytes, slab_bytes_for(size_bytes, backing.alignment_bytes))
    flusher = make_flusher(coherent=coherent)
    length = _up(layout.slabs_at, backing.alignment_bytes)
    with mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        if not fresh and not wanted.force and any(mapped[:LINE_BYTES]):
            raise PoolError(f"{path} holds something already; --force makes a new pool of it, once no node uses it any more")
        for at in range(0, layout.slabs_at, PAGE_BYTES):
            mapped[at : at + PAGE_BYTES] = bytes(PAGE_BYTES)
        view = memoryview(mapped)
        try:
            address = address_of(view)
            flusher.write_back(address, layout.slabs_at)
            view[:LINE_BYTES] = encode_superblock(layout)  # last, so that nobody finds half a pool
            flusher.write_back(address, LINE_BYTES)
        finally:
            view.release()
    return layout


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
