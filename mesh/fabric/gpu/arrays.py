"""Arrays that stay on a GPU: taken from any library by DLPack or `__cuda_array_interface__`, and handed on by the same two.

Where an array lies is asked of the driver, not believed: it must be memory of a GPU, of the one that was said, and whole. What a
library has queued that is still to fill it is waited for (`ready`) before anybody else reads it.

Source: Numba, "CUDA Array Interface", version 3; the Python array API standard, "Data interchange mechanisms".
"""

from collections.abc import Iterable
from math import prod
from typing import Any, Self

import trio

from mesh.fabric.gpu.dlpack import CUDA, DeviceArrayError, check_layout, make_capsule, take_capsule
from mesh.fabric.gpu.driver import LEGACY_STREAM, Cuda, Device, Mark, driver
from mesh.fabric.gpu.pool import Pool
from protocol.fabric.values import item_bytes
from protocol.inference import Tensor
from protocol.wire.inference import DATA_TYPES

SPINS_MAX = 20
"""How often it is looked whether the device is ready before anybody sleeps, a count: most copies take some microseconds."""

PAUSE_S = 100e-6
"""How long is slept between looks after that, in seconds; kernels of engines take milliseconds."""


class DeviceArray:
    """One array without gaps in the memory of a GPU, which keeps whoever owns the memory alive.

    Attributes:
        device: where it lies.
        address: and there.
        dtype: by the names of chapter 6.
        shape: the dimensions.
    """

    __slots__ = ("__weakref__", "_mark", "_owner", "address", "device", "dtype", "shape")

    def __init__(
        self, device: Device, address: int, dtype: str, shape: tuple[int, ...], owner: object, mark: Mark | None = None
    ) -> None:
        """Shows memory as an array.

        Args:
            device: where it lies.
            address: and there.
            dtype: by the names of chapter 6.
            shape: the dimensions.
            owner: kept alive as long as this is.
            mark: what fills it is done when this is reached; None where it is filled.
        """
        self.device = device
        self.address = address
        self.dtype = dtype
        self.shape = shape
        self._owner = owner
        self._mark = mark

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return prod(self.shape) * item_bytes(self.dtype)

    async def ready(self) -> Self:
        """Wait until it is filled, without holding anybody up.

        Raises:
            CudaError: what was to fill it has failed.
        """
        n_looks = 0
        while self._mark is not None and not self._mark.is_reached():
            n_looks += 1
            await trio.sleep(0.0 if n_looks < SPINS_MAX else PAUSE_S)
        self._mark = None
        return self

    def settle(self) -> None:
        """The same in this thread.

        Raises:
            CudaError: what was to fill it has failed.
        """
        if self._mark is not None:
            self._mark.wait()
            self._mark = None

    def to_host(self) -> memoryview:
        """Copy it to the host, and count that.

        Raises:
            CudaError: the driver fails.
        """
        self.settle()
        data = memoryview(bytearray(self.size_bytes))
        self.device.read(self.address, data)
        self.device.count_copy(data.nbytes)
        return data.toreadonly()

    # For other libraries

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """The array as Numba, CuPy and PyTorch read it."""
        self.settle()
        order = "|" if item_bytes(self.dtype) == 1 else "<"
        place = (self.address if self.size_bytes else 0, False)
        return {"shape": self.shape, "typestr": order + self.dtype, "data": place, "version": 3, "strides": None, "stream": None}

    def __dlpack_device__(self) -> tuple[int, int]:
        """Where it is, as DLPack numbers devices."""
        return CUDA, self.device.ordinal

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule for whoever takes arrays by DLPack; whatever stream they use, it is filled.

        Raises:
            BufferError: it is wanted on another device, or as a copy.
        """
        del stream
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("this array is handed on where it lies, and not copied")
        self.settle()
        versioned = max_version is not None and max_version[0] >= 1
        return make_capsule(self.__dlpack_device__(), self.address, self.dtype, self.shape, self, versioned=versioned)


def is_on_device(array: object) -> bool:
    """Whether something is an array on a GPU, by what it says itself."""
    if isinstance(array, DeviceArray):
        return True
    if hasattr(array, "__dlpack_device__"):
        try:
            return int(array.__dlpack_device__()[0]) == CUDA
        except (TypeError, ValueError, IndexError, BufferError, RuntimeError):
            return False
    return hasattr(array, "__cuda_array_interface__")


def device_array(array: object, cuda: Cuda | None = None) -> DeviceArray:
    """Take an array on a GPU as it lies.

    Args:
        array: what has `__dlpack__` or `__cuda_array_interface__`: a tensor of PyTorch, an array of CuPy, Numba or JAX.
        cuda: the driver; None for that of this machine.

    Raises:
        DeviceArrayError: it is none, or one that no message holds.
        CudaError: the driver fails.
        GpuAbsentError: there is no driver.
    """
    if isinstance(array, DeviceArray):
        return array
    cuda = driver() if cuda is None else cuda
    if hasattr(array, "__dlpack_device__") and hasattr(array, "__dlpack__"):
        return _by_dlpack(array, cuda)
    if hasattr(array, "__cuda_array_interface__"):
        return _by_interface(array, cuda)
    raise DeviceArrayError(f"a {type(array).__name__} has neither __dlpack__ nor __cuda_array_interface__")


def _by_dlpack(array: Any, cuda: Cuda) -> DeviceArray:
    """By DLPack; the producer is told that the array is used on the stream that waits for all others."""
    try:
        device_type = int(array.__dlpack_device__()[0])
        if device_type != CUDA:
            raise DeviceArrayError(f"an array on a device of type {device_type}; {CUDA} is CUDA")
        try:
            capsule = array.__dlpack__(stream=LEGACY_STREAM, max_version=(1, 1))
        except TypeError:  # one that knows no versions
            capsule = array.__dlpack__(stream=LEGACY_STREAM)
    except (BufferError, RuntimeError, TypeError) as error:
        raise DeviceArrayError(f"a {type(array).__name__} does not hand over its memory: {error}") from error
    told = take_capsule(capsule)
    if told.device_type != CUDA:
        raise DeviceArrayError(f"a capsule for a device of type {told.device_type}; {CUDA} is CUDA")
    device = _device_of(cuda, told.address, told.dtype, told.shape, told.device_id)
    return DeviceArray(device, told.address, told.dtype, told.shape, told.held, device.mark())


def _by_interface(array: Any, cuda: Cuda) -> DeviceArray:
    told = array.__cuda_array_interface__
    match told:
        case {"shape": tuple(shape), "typestr": str(typestr), "data": (int(address), _)} if all(
            isinstance(size, int) for size in shape
        ):
            strides, stream, mask = told.get("strides"), told.get("stream"), told.get("mask")
        case _:
            raise DeviceArrayError(f"a {type(array).__name__} whose __cuda_array_interface__ is none")
    dtype = typestr[1:]
    if dtype not in DATA_TYPES or (typestr[0] == ">" and item_bytes(dtype) > 1):
        raise DeviceArrayError(f"a data type {typestr!r} that no message holds: convert it")
    if mask is not None:
        raise DeviceArrayError("an array with a mask")
    if strides is not None and not (isinstance(strides, tuple) and all(isinstance(stride, int) for stride in strides)):
        raise DeviceArrayError("strides that are no tuple of integers")
    check_layout(dtype, shape, strides, item_bytes(dtype))
    device = _device_of(cuda, address, dtype, shape, None)
    if stream is not None and (not isinstance(stream, int) or stream <= 0):
        raise DeviceArrayError(f"a stream {stream!r}: 1, 2, or that of a library")
    mark = None if stream is None else device.mark(stream)
    return DeviceArray(device, address, dtype, shape, array, mark)


def _device_of(cuda: Cuda, address: int, dtype: str, shape: tuple[int, ...], said: int | None) -> Device:
    """The device in whose memory an array lies, the whole of it.

    Raises:
        DeviceArrayError: it lies nowhere, elsewhere than was said, or not all of it.
    """
    size = prod(shape) * item_bytes(dtype)
    if size == 0:
        if not 0 <= (said or 0) < len(cuda.devices):
            raise DeviceArrayError(f"there is no GPU {said}")
        return cuda.devices[said or 0]
    lies = cuda.allocation_of(address)
    if lies is None:
        raise DeviceArrayError("an array that lies in no memory of a GPU's own: managed and pinned memory are not taken")
    if said is not None and said != lies.ordinal:
        raise DeviceArrayError(f"an array that is said to be on GPU {said} and lies on GPU {lies.ordinal}")
    if address + size > lies.begin + lies.size_bytes:
        raise DeviceArrayError(f"an array of {size} bytes that reaches out of its memory")
    return cuda.devices[lies.ordinal]


def device_tensor(name: str, array: object, cuda: Cuda | None = None) -> Tensor:
    """A tensor that stays on its device; raises as `device_array`."""
    taken = device_array(array, cuda)
    return Tensor(name, taken.dtype, taken.shape, memoryview(b""), taken)


def array_of(tensor: Tensor) -> DeviceArray | None:
    """The array of a tensor that lies on a device; None for one on the host."""
    assert tensor.device is None or isinstance(tensor.device, DeviceArray)
    return tensor.device


def to_device(tensor: Tensor, device: Device, pool: Pool) -> DeviceArray:
    """The array of a tensor, brought to the device where it lies on the host.

    Raises:
        CudaError: the driver fails.
    """
    taken = array_of(tensor)
    if taken is not None:
        return taken
    block = pool.take(max(1, tensor.data.nbytes))
    device.write(block.address, tensor.data)
    return DeviceArray(device, block.address, tensor.dtype, tensor.shape, block)


async def all_ready(tensors: Iterable[Tensor]) -> None:
    """Wait until all tensors that lie on devices are filled.

    Raises:
        CudaError: what was to fill one has failed.
    """
    for tensor in tensors:
        if (taken := array_of(tensor)) is not None:
            await taken.ready()
