"""Memory of GPUs that a network card reads and writes itself (GPUDirect RDMA): which GPUs there are, and what a card has of them.

Regions are blocks of this node's own, of which the driver gives a dma-buf to the card. Memory of an engine is never registered:
nobody says when it is freed, and to register it for one transfer takes longer than to copy it within the device. A block that a
peer is to write to is filled with zeros when it is made and never serves another peer, so that what nobody has written shows
nothing of anybody.

Whether a card takes a GPU's memory is known once it was tried. Where it does not, that is remembered until the node ends, and
told; tensors then go by memory of the host, in the same transfer.

Source: NVIDIA, "Developing a Linux Kernel Module using GPUDirect RDMA"; ibv_reg_dmabuf_mr(3).
Spec: docs/spec/11-fabric.md, section "RDMA".
"""

import errno
import os
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from mesh.fabric.gpu.arrays import DeviceArray
from mesh.fabric.gpu.driver import LIBRARY, CudaError, Device, GpuAbsentError, driver
from mesh.fabric.rdma.memory import Locked
from protocol.fabric import Place
from protocol.inference import Tensor

SHARE = 0.25
"""Share of a GPU's memory that all peers together may have for RDMA, unitless: engines fill the rest."""


class GpuMemory:
    """Memory of a GPU, with its dma-buf; the driver gets it back when this is garbage and somebody sweeps."""

    __slots__ = ("__weakref__", "address", "descriptor", "device", "size_bytes")

    def __init__(self, device: Device, address: int, descriptor: int, size_bytes: int) -> None:
        """Shows what was allocated."""
        self.device = device
        self.address = address
        self.descriptor = descriptor
        self.size_bytes = size_bytes


class _Shown:
    """Memory that tensors look at, for as long as any does."""

    __slots__ = ("__weakref__", "memory")

    def __init__(self, memory: GpuMemory) -> None:
        self.memory = memory


def show(memory: GpuMemory, places: Sequence[Place], done: Callable[[], None]) -> tuple[Tensor, ...]:
    """Tensors that lie in memory of a GPU.

    Args:
        memory: kept for as long as anybody looks at one of them.
        places: of each in it.
        done: called when nobody does any more, in whatever thread that happens to be.
    """
    shown = _Shown(memory)
    weakref.finalize(shown, done).atexit = False
    arrays = (DeviceArray(memory.device, memory.address + p.offset, p.dtype, p.shape, shown) for p in places)
    return tuple(Tensor(p.name, p.dtype, p.shape, memoryview(b""), array) for p, array in zip(places, arrays, strict=True))


class Direct:
    """The GPUs of this process as network cards may reach them."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Begins without any; `find` looks.

        Args:
            library: of NVIDIA's driver.
        """
        self._library = library
        self._locked: dict[Device, Locked] = {}
        self._tried: dict[tuple[str, str], str] = {}
        self._freed: deque[tuple[Device, int, int, int]] = deque()
        self.absent = "GPUs are not looked for yet"
        """Why no GPU can be reached by any card; empty where one may be."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """The GPUs whose memory a card may have."""
        return tuple(self._locked)

    def find(self) -> None:
        """Look for GPUs; blocks while the driver wakes, and in a worker thread."""
        try:
            cuda = driver(self._library)
        except GpuAbsentError as error:
            self.absent = str(error)
            return
        found = [device for device in cuda.devices if device.has_dma_buf and device.sees_writes]
        self._locked = {device: Locked(int(device.memory_bytes * SHARE)) for device in found}
        self.absent = (
            "" if found else "no GPU here gives its memory out (a dma-buf takes CUDA 11.7 and NVIDIA's open kernel modules)"
        )

    def works(self, card: str, device: Device) -> bool:
        """Whether a card may take a GPU's memory, as far as it is known."""
        return device in self._locked and not self._tried.get((card, device.bus_id))

    def told(self, card: str, device: Device, error: OSError | None) -> None:
        """A card has taken a GPU's memory, or has not; where only memory is short nothing is said of the two."""
        if error is None:
            self._tried.setdefault((card, device.bus_id), "")
        elif error.errno not in (errno.ENOMEM, errno.EAGAIN):
            self._tried[card, device.bus_id] = str(error.strerror)

    def make(self, device: Device, size_bytes: int) -> GpuMemory:
        """Take memory of a GPU that holds zeros, and its dma-buf; blocks, and belongs in a worker thread.

        Args:
            device: the GPU.
            size_bytes: one of `device_class`.

        Raises:
            RemoteProtocolError: OVERLOADED, peers have as much of this GPU as they may have.
            CudaError: there is none, or the driver gives no dma-buf of it.
        """
        locked = self._locked[device]
        locked.take(size_bytes)
        address = 0
        try:
            address = device.allocate(size_bytes)
            device.clear(address, size_bytes)
            descriptor = device.dma_buf(address, size_bytes)
        except BaseException:
            locked.give_back(size_bytes)
            if address:
                with suppress(CudaError):
                    device.free(address)
            raise
        memory = GpuMemory(device, address, descriptor, size_bytes)
        weakref.finalize(memory, self._freed.append, (device, address, descriptor, size_bytes)).atexit = False
        return memory

    def sweep(self) -> None:
        """Give memory back that nobody has any more; the driver waits for the device, so this belongs in a worker thread."""
        while True:
            try:
                device, address, descriptor, size = self._freed.popleft()
            except IndexError:
                return
            os.close(descriptor)
            with suppress(CudaError):
                device.free(address)
            self._locked[device].give_back(size)

    def figures(self) -> dict[str, object]:
        """The GPUs, which cards have taken their memory, and what had to be copied to the host."""
        if self.absent:
            return {"absent": self.absent}
        tried = {
            f"{card} and the GPU at {bus_id}": f"not possible: {why}" if why else "used"
            for (card, bus_id), why in sorted(self._tried.items())
        }
        return {
            "devices": [f"{device.name} at {device.bus_id}" for device in self.devices],
            "cards": tried,
            "held_bytes": sum(locked.n_bytes for locked in self._locked.values()),
            "copied_to_host": sum(device.host_copies for device in self.devices),
            "copied_to_host_bytes": sum(device.host_copied_bytes for device in self.devices),
        }
