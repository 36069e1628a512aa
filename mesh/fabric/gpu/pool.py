"""Memory of a GPU that is used again: the driver waits for the whole device whenever it takes or gives some.

A block comes back when nobody refers to it any more, in whatever thread that happens to be. What engines have queued may still
read it then, so everything that this process has queued on the device is waited for before it is used again.
"""

import threading
import weakref
from collections import deque

from mesh.fabric.gpu.driver import Device

GRAIN_BYTES = 2 << 20
"""Sizes of blocks are multiples of so many bytes: the driver puts smaller ones side by side into pages of this size, and who is
told a token of one sees the whole page (CUDA C++ Programming Guide, "Interprocess communication")."""

IDLE_BYTES_MAX = 512 << 20
"""Bytes of free blocks that are kept, of each device; past that the largest are given back to the driver."""


def block_size(size_bytes: int) -> int:
    """The size of the block that so many bytes are put into: at least four fifths of it are used where it is large."""
    grain = max(GRAIN_BYTES, 1 << max(size_bytes.bit_length() - 3, 0))
    return max(1, -(-size_bytes // grain)) * grain


class Block:
    """Memory of one device; it goes back into its pool when this is garbage."""

    __slots__ = ("__weakref__", "address", "size_bytes")

    def __init__(self, address: int, size_bytes: int) -> None:
        self.address = address
        self.size_bytes = size_bytes


class Pool:
    """The blocks of one device."""

    def __init__(self, device: Device, idle_bytes_max: int = IDLE_BYTES_MAX) -> None:
        """Begins without any."""
        self._device = device
        self._idle_bytes_max = idle_bytes_max
        self._lock = threading.Lock()
        self._returned: deque[tuple[int, int]] = deque()
        self._free: list[tuple[int, int]] = []
        self.n_blocks = 0

    def take(self, size_bytes: int) -> Block:
        """Take memory; may wait for what was queued on the device.

        Raises:
            CudaError: there is none.
        """
        wanted = block_size(size_bytes)
        with self._lock:
            self._collect()
            fitting = min(((size, address) for size, address in self._free if wanted <= size <= 2 * wanted), default=None)
            if fitting is not None:
                self._free.remove(fitting)
        if fitting is None:
            block = Block(self._device.allocate(wanted), wanted)
            self.n_blocks += 1
        else:
            block = Block(fitting[1], fitting[0])
        weakref.finalize(block, self._returned.append, (block.size_bytes, block.address)).atexit = False
        if fitting is not None:
            self._device.wait()
        return block

    def trim(self) -> None:
        """Give blocks back to the driver that are too much to keep.

        Raises:
            CudaError: the driver fails.
        """
        with self._lock:
            self._collect()
            self._free.sort()
            idle_bytes = sum(size for size, _ in self._free)
            while self._free and idle_bytes > self._idle_bytes_max:
                size, address = self._free.pop()
                idle_bytes -= size
                self.n_blocks -= 1
                self._device.free(address)

    def _collect(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())
