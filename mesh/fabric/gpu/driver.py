"""CUDA's driver interface, as much of it as tensors need, through ctypes over the library that every NVIDIA driver brings.

No toolkit is needed and nothing is compiled. The library is loaded when somebody asks for it, and where there is none, or no GPU,
`GpuAbsentError` says which. Every call that fails raises `CudaError` with the driver's own name of it. Names end in `_v2` where
the driver has two forms of a function: these are the ones that its header of today means.

Source: the CUDA driver API reference (cuda.h of CUDA 13.0).
"""

import ctypes
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

from mesh.fabric.memory import address_of

LIBRARY = "libcuda.so.1"
"""The name by which every installation of NVIDIA's driver is found."""

DEVICES_MAX = 32
"""GPUs that are looked at, a count: more than one host has (chapter 3 tells as many)."""

TOKEN_BYTES = 64
"""Length of what names memory to another process, in bytes: CU_IPC_HANDLE_SIZE in cuda.h."""

UUID_BYTES = 16
"""Length of the id of a GPU in bytes."""

LEGACY_STREAM = 1
"""The stream that waits for all others of a context and they for it: CU_STREAM_LEGACY in cuda.h."""

_NAME_BYTES = 256  # room for the name of a device; the longest have some 40
_NOT_READY = 600  # CUDA_ERROR_NOT_READY: work is under way, which is no failure
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_DMA_BUF_SUPPORTED = 124  # CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED
_FLUSH_OPTIONS = 117  # CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS
_FLUSH_BY_HOST = 1  # CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST
_WRITES_ORDERING = 118  # CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING
_TO_OWNER = 100  # CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER, and the scope of a flush of the same name
_UNIFIED_ADDRESSING = 41  # CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: without it memory has no ordinal, and tokens do not work
_MEMORY_TYPE = 2  # CU_POINTER_ATTRIBUTE_MEMORY_TYPE
_IS_MANAGED = 8  # CU_POINTER_ATTRIBUTE_IS_MANAGED
_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_RANGE_BEGIN = 11  # CU_POINTER_ATTRIBUTE_RANGE_START_ADDR
_RANGE_SIZE = 12  # CU_POINTER_ATTRIBUTE_RANGE_SIZE
_IN_DEVICE = 2  # CU_MEMORYTYPE_DEVICE
_ENABLE_PEER = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING: such events cost less
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the stream does not wait for what engines have queued
_DMA_BUF = 1  # CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD


class GpuAbsentError(Exception):
    """There is no GPU that can be used; the message says why and what to do about it."""


class CudaError(OSError):
    """A call of the driver failed.

    Attributes:
        function: which.
        name: the driver's own name of the failure, as in cuda.h.
        result: its number.
    """

    def __init__(self, function: str, result: int, name: str, told: str) -> None:
        super().__init__(errno.ENOMEM if result == _OUT_OF_MEMORY else errno.EIO, f"{function}: {name} ({told})")
        self.function = function
        self.name = name
        self.result = result


class _Token(ctypes.Structure):
    _fields_ = (("reserved", c_char * TOKEN_BYTES),)


class _Uuid(ctypes.Structure):
    _fields_ = (("bytes", c_ubyte * UUID_BYTES),)


_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetUuid_v2": (POINTER(_Uuid), c_int),
    "cuDeviceGetPCIBusId": (c_char_p, c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuCtxSynchronize": (),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemGetAddressRange_v2": (POINTER(c_uint64), POINTER(c_size_t), c_uint64),
    "cuMemsetD8_v2": (c_uint64, c_ubyte, c_size_t),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuIpcGetMemHandle": (POINTER(_Token), c_uint64),
    "cuIpcOpenMemHandle_v2": (POINTER(c_uint64), _Token, c_uint),
    "cuIpcCloseMemHandle": (c_uint64,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventQuery": (c_void_p,),
    "cuEventSynchronize": (c_void_p,),
    "cuEventDestroy_v2": (c_void_p,),
}
# Drivers before CUDA 11.7 do not have these.
_LATER_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuMemGetHandleForAddressRange": (c_void_p, c_uint64, c_size_t, c_int, c_uint64),
    "cuFlushGPUDirectRDMAWrites": (c_int, c_int),
}


class Cuda:
    """The driver of this machine, loaded and asked for its GPUs."""

    def __init__(self, path: str = LIBRARY) -> None:
        """Load it; a driver that sleeps takes up to seconds to wake.

        Raises:
            GpuAbsentError: there is no driver, an old one, or no GPU.
        """
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            raise GpuAbsentError(f"{path} cannot be loaded ({error}): install NVIDIA's driver") from None
        self._functions: dict[str, Any] = {}
        for name, arguments in (_FUNCTIONS | _LATER_FUNCTIONS).items():
            try:
                function = getattr(library, name)
            except AttributeError:
                if name in _LATER_FUNCTIONS:
                    continue
                raise GpuAbsentError(f"the driver has no {name}: install one of CUDA 11.4 or later") from None
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function
        self._name_of, self._text_of = library.cuGetErrorName, library.cuGetErrorString
        for told in (self._name_of, self._text_of):
            told.argtypes, told.restype = (c_int, POINTER(c_char_p)), c_int
        try:
            self.call("cuInit", 0)
            count = c_int()
            self.call("cuDeviceGetCount", byref(count))
            self.devices = tuple(Device(self, ordinal) for ordinal in range(min(count.value, DEVICES_MAX)))
        except CudaError as error:
            raise GpuAbsentError(f"the driver does not work: {error.strerror}") from None
        if not self.devices:
            raise GpuAbsentError("the driver finds no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES")

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver.

        Raises:
            CudaError: it fails, or the driver does not have it.
        """
        result = self.result_of(name, *arguments)
        if result:
            raise self._error(name, result)

    def result_of(self, name: str, *arguments: object) -> int:
        """Call a function of the driver whose result is more than that it went well.

        Raises:
            CudaError: the driver does not have it.
        """
        function = self._functions.get(name)
        if function is None:
            raise CudaError(name, 500, "CUDA_ERROR_NOT_FOUND", "this driver is older than the function")
        return int(function(*arguments))

    def has(self, name: str) -> bool:
        """Whether the driver has a function of later versions."""
        return name in self._functions

    def _error(self, function: str, result: int) -> CudaError:
        told = []
        for say in (self._name_of, self._text_of):
            text = c_char_p()
            say(result, byref(text))
            told.append((text.value or b"").decode("utf-8", "replace") or f"error {result}")
        return CudaError(function, result, *told)

    @property
    def version(self) -> str:
        """The newest CUDA that the driver serves, as people write it."""
        version = c_int()
        self.call("cuDriverGetVersion", byref(version))
        return f"{version.value // 1000}.{version.value % 1000 // 10}"

    def allocation_of(self, address: int) -> "Allocation | None":
        """The memory of a GPU's own in which an address lies; None for the host's, for managed memory, and for none of CUDA's."""
        if not 0 < address < 2**64:
            return None
        kind, is_managed, ordinal, begin, size = c_uint(), c_uint(), c_int(-1), c_uint64(), c_size_t()
        told = ((_MEMORY_TYPE, kind), (_IS_MANAGED, is_managed), (_ORDINAL, ordinal), (_RANGE_BEGIN, begin), (_RANGE_SIZE, size))
        for attribute, value in told:
            if self.result_of("cuPointerGetAttribute", byref(value), attribute, address):
                return None
        if kind.value != _IN_DEVICE or is_managed.value or not 0 <= ordinal.value < len(self.devices):
            return None
        return Allocation(ordinal.value, begin.value, size.value)


@dataclass(frozen=True, slots=True)
class Allocation:
    """Memory of a GPU, as the driver tells it: of which, where it begins, and how long it is."""

    ordinal: int
    begin: int
    size_bytes: int


class Device:
    """One GPU; its context is the process's own primary one, which engines in this process use as well.

    Attributes:
        ordinal: its place among those that this process sees.
        uuid: its id, which it keeps for life; of a part of a GPU (MIG) that of the part.
        bus_id: where it is on the PCI bus, as in /sys/bus/pci/devices, but for the length of the domain.
        name: as the driver tells it.
        memory_bytes: of all of it.
        has_dma_buf: whether it gives its memory out for network cards.
        sees_writes: whether what such a card has written can be made sure to be seen by the device.
        host_copies: how often something was brought to the host because whoever wanted it could not use it on the device.
        host_copied_bytes: and how much.
    """

    def __init__(self, cuda: Cuda, ordinal: int) -> None:
        """Ask the driver what it is; nothing is allocated.

        Raises:
            CudaError: the driver fails.
        """
        self._cuda = cuda
        self.ordinal = ordinal
        handle, uuid, size = c_int(), _Uuid(), c_size_t()
        text = ctypes.create_string_buffer(_NAME_BYTES)
        cuda.call("cuDeviceGet", byref(handle), ordinal)
        self._handle = handle.value
        cuda.call("cuDeviceGetUuid_v2", byref(uuid), self._handle)
        self.uuid = bytes(uuid.bytes)
        cuda.call("cuDeviceGetPCIBusId", text, _NAME_BYTES, self._handle)
        self.bus_id = text.value.decode("ascii", "replace").lower()
        cuda.call("cuDeviceGetName", text, _NAME_BYTES, self._handle)
        self.name = text.value.decode("utf-8", "replace")
        cuda.call("cuDeviceTotalMem_v2", byref(size), self._handle)
        self.memory_bytes = size.value
        self.passes_tokens = self._attribute(_UNIFIED_ADDRESSING) != 0
        self.has_dma_buf = cuda.has("cuMemGetHandleForAddressRange") and self._attribute(_DMA_BUF_SUPPORTED) != 0
        self._needs_flush = self._attribute(_WRITES_ORDERING) < _TO_OWNER
        can_flush = cuda.has("cuFlushGPUDirectRDMAWrites") and self._attribute(_FLUSH_OPTIONS) & _FLUSH_BY_HOST != 0
        self.sees_writes = can_flush or not self._needs_flush
        self.host_copies = 0
        self.host_copied_bytes = 0
        self._lock = threading.Lock()
        self._context: int | None = None
        self._stream = 0

    def _attribute(self, attribute: int) -> int:
        told = c_int()
        self._cuda.call("cuDeviceGetAttribute", byref(told), attribute, self._handle)
        return told.value

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make its context that of this thread, until left; the first time the driver makes the context, which takes a while.

        Raises:
            CudaError: the driver fails.
        """
        with self._lock:
            if self._context is None:
                context = c_void_p()
                self._cuda.call("cuDevicePrimaryCtxRetain", byref(context), self._handle)
                self._context = context.value
        self._cuda.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._cuda.call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def allocate(self, size_bytes: int) -> int:
        """Take memory; return its address.

        Raises:
            CudaError: there is none.
        """
        address = c_uint64()
        with self.current():
            self._cuda.call("cuMemAlloc_v2", byref(address), size_bytes)
        return address.value

    def free(self, address: int) -> None:
        """Give memory back; what was queued that uses it is waited for.

        Raises:
            CudaError: it is none of `allocate`.
        """
        with self.current():
            self._cuda.call("cuMemFree_v2", address)

    def range_of(self, address: int) -> tuple[int, int]:
        """Where the allocation begins in which an address lies, and its size in bytes.

        Raises:
            CudaError: it lies in none.
        """
        base, size = c_uint64(), c_size_t()
        with self.current():
            self._cuda.call("cuMemGetAddressRange_v2", byref(base), byref(size), address)
        return base.value, size.value

    def clear(self, address: int, size_bytes: int) -> None:
        """Fill memory with zeros, and wait until that is done.

        Raises:
            CudaError: the driver fails.
        """
        with self.current():
            self._cuda.call("cuMemsetD8_v2", address, 0, size_bytes)
            self._cuda.call("cuCtxSynchronize")

    def flush_writes(self) -> None:
        """See to it that the device sees what a network card has written into its memory and has told to be there.

        Raises:
            CudaError: the driver fails.
        """
        if self._needs_flush:
            with self.current():
                self._cuda.call("cuFlushGPUDirectRDMAWrites", 0, _TO_OWNER)

    def write(self, address: int, data: memoryview) -> None:
        """Copy bytes of the host to the device; they may be changed when it returns.

        Raises:
            CudaError: the driver fails.
        """
        if data.nbytes:
            with self.current():
                self._cuda.call("cuMemcpyHtoD_v2", address, address_of(data), data.nbytes)

    def read(self, address: int, into: memoryview) -> None:
        """Copy bytes of the device to the host, behind all that was queued before.

        Raises:
            CudaError: the driver fails.
        """
        if into.nbytes:
            view = (c_char * into.nbytes).from_buffer(into)
            with self.current():
                self._cuda.call("cuMemcpyDtoH_v2", ctypes.addressof(view), address, into.nbytes)

    def count_copy(self, size_bytes: int) -> None:
        """Something was brought to the host."""
        with self._lock:
            self.host_copies += 1
            self.host_copied_bytes += size_bytes

    def copy(self, pieces: list[tuple[int, int, int]]) -> None:
        """Copy within the device, and from others, and wait until it is done.

        What is read must be ready: this does not wait for what engines have queued.

        Args:
            pieces: of each where to, where from, and how many bytes.

        Raises:
            CudaError: the driver fails.
        """
        with self.current():
            stream = self._own_stream()
            for target, source, size in pieces:
                if size:
                    self._cuda.call("cuMemcpyDtoDAsync_v2", target, source, size, stream)
            self._cuda.call("cuStreamSynchronize", stream)

    def _own_stream(self) -> int:
        with self._lock:
            if not self._stream:
                stream = c_void_p()
                self._cuda.call("cuStreamCreate", byref(stream), _NON_BLOCKING)
                self._stream = stream.value or 0
        return self._stream

    def wait(self, stream: int | None = None) -> None:
        """Wait until a stream of this process has done what was queued; None for all of them.

        Raises:
            CudaError: what was queued has failed.
        """
        with self.current():
            if stream is None:
                self._cuda.call("cuCtxSynchronize")
            else:
                self._cuda.call("cuStreamSynchronize", stream)

    def mark(self, stream: int = LEGACY_STREAM) -> "Mark":
        """Remember how much is queued on a stream.

        Raises:
            CudaError: the driver fails.
        """
        return Mark(self, self._cuda, stream)

    def token(self, address: int) -> bytes:
        """What another process on the same GPU opens to use the allocation that begins here.

        Raises:
            CudaError: it is none that can be passed.
        """
        token = _Token()
        with self.current():
            self._cuda.call("cuIpcGetMemHandle", byref(token), address)
        return ctypes.string_at(byref(token), TOKEN_BYTES)

    def open(self, token: bytes) -> int:
        """Map what another process has told a token of; return its address here.

        Raises:
            CudaError: it is no such token, or of memory that is gone, or that cannot be reached from here.
        """
        address = c_uint64()
        with self.current():
            self._cuda.call("cuIpcOpenMemHandle_v2", byref(address), _Token.from_buffer_copy(token), _ENABLE_PEER)
        return address.value

    def close(self, address: int) -> None:
        """Let go of what was opened.

        Raises:
            CudaError: it is not open.
        """
        with self.current():
            self._cuda.call("cuIpcCloseMemHandle", address)

    def dma_buf(self, address: int, size_bytes: int) -> int:
        """A descriptor of memory of the device, for a network card that reads and writes it (GPUDirect RDMA); close it.

        Args:
            address: of the memory; a multiple of the host's page size.
            size_bytes: likewise.

        Raises:
            CudaError: the driver or the device has no such descriptors, or the range is none.
        """
        descriptor = c_int(-1)
        with self.current():
            self._cuda.call("cuMemGetHandleForAddressRange", byref(descriptor), address, size_bytes, _DMA_BUF, 0)
        os.set_inheritable(descriptor.value, False)
        return descriptor.value


class Mark:
    """A point in what is queued on a stream."""

    __slots__ = ("_cuda", "_device", "_event")

    def __init__(self, device: Device, cuda: Cuda, stream: int) -> None:
        event = c_void_p()
        with device.current():
            cuda.call("cuEventCreate", byref(event), _NO_TIMING)
            self._device, self._cuda, self._event = device, cuda, event.value
            cuda.call("cuEventRecord", self._event, stream)

    def is_reached(self) -> bool:
        """Whether everything before it is done.

        Raises:
            CudaError: some of it has failed.
        """
        with self._device.current():
            result = self._cuda.result_of("cuEventQuery", self._event)
            if result not in (0, _NOT_READY):
                raise self._cuda._error("cuEventQuery", result)  # noqa: SLF001 -- of this module
        return result == 0

    def wait(self) -> None:
        """Wait for it in this thread.

        Raises:
            CudaError: some of what came before has failed.
        """
        with self._device.current():
            self._cuda.call("cuEventSynchronize", self._event)

    def __del__(self) -> None:
        event = getattr(self, "_event", None)
        if event is not None:
            with suppress(CudaError), self._device.current():
                self._cuda.call("cuEventDestroy_v2", event)


def driver(path: str = LIBRARY) -> Cuda:
    """The driver, loaded once for a process, whichever threads ask for it.

    Raises:
        GpuAbsentError: there is none that works; the next call looks again.
    """
    with _loading:
        return _loaded(path)


_loading = threading.Lock()


@cache
def _loaded(path: str) -> Cuda:
    return Cuda(path)
