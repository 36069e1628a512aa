"""Arrays as they cross the mesh: a program's own become tensors that view them, received tensors become arrays that view them.

Anything that NumPy can look at without copying is taken: its own arrays, `__array_interface__`, `__dlpack__` of arrays on the
CPU, and the buffer protocol. Only what a message cannot hold as it lies is copied: an array with gaps or of the other byte order.
Arrays on a GPU are taken as they lie as well, by DLPack or `__cuda_array_interface__`; where no fabric takes them so, they are
copied to the host.

Source: NumPy, "The array interface protocol"; Python array API standard, "Data interchange mechanisms" (DLPack).
Spec: docs/spec/06-inference.md, section "Tensor".
"""

import sys
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mesh.native.errors import BadInputError
from protocol.errors import ErrorCode
from protocol.inference import Tensor
from protocol.wire.inference import DATA_TYPES

Array = NDArray[Any]


def to_tensors(arrays: Mapping[str, object]) -> tuple[Tensor, ...]:
    """Inputs as tensors, in their order.

    Raises:
        BadInputError: one is no array that a message can hold.
    """
    return tuple(to_tensor(name, array) for name, array in arrays.items())


def to_tensor(name: str, array: object) -> Tensor:
    """One input as a tensor that views its memory; do not change it before the answer is there.

    Raises:
        BadInputError: it is no array that a message can hold.
    """
    if not isinstance(array, np.ndarray) and (hasattr(array, "__cuda_array_interface__") or hasattr(array, "__dlpack_device__")):
        on_device = _on_device(name, array)
        if on_device is not None:
            return on_device
    viewed = _viewed(name, array)
    dtype = viewed.dtype.str[1:]
    if dtype not in DATA_TYPES:
        raise BadInputError(
            ErrorCode.UNSUPPORTED,
            f"the input {name!r} is of type {viewed.dtype}, which no message holds: convert it with astype to one of "
            f"{', '.join(sorted(DATA_TYPES))}",
        )
    little = viewed.dtype.byteorder in "<|" or (viewed.dtype.byteorder == "=" and sys.byteorder == "little")
    if not little:
        viewed = viewed.astype(viewed.dtype.newbyteorder("<"))
    flat = np.ascontiguousarray(viewed).reshape(-1).view(np.uint8)
    return Tensor(name, dtype, viewed.shape, flat.data)


def to_array(tensor: Tensor) -> Array:
    """An output as an array that views the received message; it cannot be written to.

    One that lies on a device is a `mesh.fabric.gpu.DeviceArray`, which PyTorch, CuPy and others take by DLPack.
    """
    if tensor.device is not None:
        return cast("Array", tensor.device)
    return np.frombuffer(tensor.data, np.dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape)


def _on_device(name: str, array: object) -> Tensor | None:
    """An input that stays on its device; None for one on the CPU."""
    # What reaches a GPU is imported by programs that have one.
    from mesh.fabric.gpu import CudaError, DeviceArrayError, GpuAbsentError, device_tensor, is_on_device

    if not is_on_device(array):
        return None
    try:
        return device_tensor(name, array)
    except (DeviceArrayError, CudaError, GpuAbsentError) as error:
        raise BadInputError(ErrorCode.MALFORMED, f"the input {name!r} on a GPU cannot be sent: {error}") from error


def _viewed(name: str, array: object) -> Array:
    """What was passed, as an array without a copy."""
    if isinstance(array, np.ndarray):
        return array
    try:
        if hasattr(array, "__array_interface__"):
            return np.asarray(array)
        if hasattr(array, "__dlpack__"):
            return np.from_dlpack(array)
        return np.asarray(memoryview(array))  # type: ignore[arg-type]  # what is no buffer is refused below
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise BadInputError(
            ErrorCode.MALFORMED,
            f"the input {name!r} is a {type(array).__name__}, which cannot be sent as it lies ({error}): pass a NumPy array, or "
            "anything on the CPU with __array_interface__, __dlpack__ or a buffer",
        ) from error
