"""DLPack, by which libraries pass arrays on a device to each other without a copy: its structures, and capsules in and out.

Whoever makes a capsule says where memory is and what lies there. Its numbers are bounded before anything is done with them, and
the producer's deleter is called exactly once: when nobody uses the array any more, or at once where it is refused.

Source: DLPack 1.1 (dlpack.h); the Python array API standard, "Data interchange mechanisms".
"""

import ctypes
import sys
import threading
import weakref
from ctypes import (
    CFUNCTYPE,
    POINTER,
    PYFUNCTYPE,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
    py_object,
    pythonapi,
)
from dataclasses import dataclass
from math import prod
from typing import Any

from protocol.fabric.values import BYTES_MAX, DIMENSIONS_MAX, item_bytes

CPU, CUDA = 1, 2
"""kDLCPU and kDLCUDA."""

MAJOR, MINOR = 1, 1
"""The version that is spoken."""

SHAPE_MAX = 2**32 - 1
"""Largest size of one dimension, unitless: what a tensor of the mesh may have (chapter 6)."""

_READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY
_CODES = {0: "i", 1: "u", 2: "f", 6: "b"}
# Bits of an element by kind, as the data types of chapter 6 have them; a boolean has 8 here and 1 byte there.
_BITS = {"i": (8, 16, 32, 64), "u": (8, 16, 32, 64), "f": (16, 32, 64), "b": (8,)}


class DeviceArrayError(ValueError):
    """Something that was passed as an array on a device is none that can be used; the message says what to do."""


class _Device(ctypes.Structure):
    _fields_ = (("type", c_int32), ("id", c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device", _Device),
        ("ndim", c_int32),
        ("dtype", _DataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


_DELETER = CFUNCTYPE(None, c_void_p)


class _Managed(ctypes.Structure):
    """DLManagedTensor, of versions before 1.0."""

    _fields_ = (("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p))


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    )


# Names of capsules: these very objects are never freed, since a capsule keeps a pointer to its name.
_OLD, _VERSIONED = b"dltensor", b"dltensor_versioned"
_KINDS: dict[bytes, type[_Managed] | type[_Versioned]] = {_OLD: _Managed, _VERSIONED: _Versioned}
_USED = {_OLD: b"used_dltensor", _VERSIONED: b"used_dltensor_versioned"}
_is_valid = PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", pythonapi))
_pointer_of = PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", pythonapi))
_set_name = PYFUNCTYPE(c_int, py_object, c_char_p)(("PyCapsule_SetName", pythonapi))
_new = PYFUNCTYPE(py_object, c_void_p, c_char_p, c_void_p)(("PyCapsule_New", pythonapi))


class Held:
    """The producer's memory; it is told that nobody uses it any more when this is garbage."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, slots=True)
class Described:
    """What a capsule says of an array.

    Attributes:
        device_type: `CPU`, `CUDA` and so on.
        device_id: which one of them.
        address: where it begins.
        dtype: by the names of chapter 6.
        shape: the dimensions.
        is_read_only: whether the producer wants it left as it is.
        held: keeps the memory.
    """

    device_type: int
    device_id: int
    address: int
    dtype: str
    shape: tuple[int, ...]
    is_read_only: bool
    held: Held


def take_capsule(capsule: Any) -> Described:
    """Take the array of a capsule, which can be taken once.

    Args:
        capsule: as `__dlpack__` returns it.

    Raises:
        DeviceArrayError: it is no such capsule, was taken already, or its array is past a bound or has gaps.
    """
    name = next((name for name in _KINDS if _is_valid(id(capsule), name)), None)
    if name is None:
        raise DeviceArrayError(f"{type(capsule).__name__} is no DLPack capsule, or one that was taken already")
    address = _pointer_of(id(capsule), name)
    managed = _KINDS[name].from_address(address)
    if isinstance(managed, _Versioned) and managed.major != MAJOR:
        raise DeviceArrayError(f"DLPack {managed.major}.{managed.minor}; {MAJOR} is spoken")  # its own destructor frees it
    _set_name(capsule, _USED[name])
    held = Held()
    if managed.deleter:
        weakref.finalize(held, _DELETER(managed.deleter), address).atexit = False
    flags = managed.flags if isinstance(managed, _Versioned) else 0
    return _described(managed.tensor, bool(flags & _READ_ONLY), held)


def _described(tensor: _Tensor, is_read_only: bool, held: Held) -> Described:
    """Read the fields of an array, bounded."""
    ndim, dtype = tensor.ndim, _dtype(tensor.dtype)
    if not 0 <= ndim <= DIMENSIONS_MAX:
        raise DeviceArrayError(f"an array of {ndim} dimensions; {DIMENSIONS_MAX} are allowed")
    if ndim and not tensor.shape:
        raise DeviceArrayError("an array without a shape")
    shape = tuple(tensor.shape[index] for index in range(ndim))
    strides = tuple(tensor.strides[index] for index in range(ndim)) if tensor.strides else None
    check_layout(dtype, shape, strides, 1)
    if tensor.byte_offset > BYTES_MAX:
        raise DeviceArrayError(f"an array {tensor.byte_offset} bytes behind its own beginning")
    address = (tensor.data or 0) + tensor.byte_offset
    return Described(tensor.device.type, tensor.device.id, address, dtype, shape, is_read_only, held)


def _dtype(told: _DataType) -> str:
    kind = _CODES.get(told.code)
    if kind is None or told.lanes != 1 or told.bits not in _BITS[kind]:
        raise DeviceArrayError(
            f"a data type of DLPack (code {told.code}, {told.bits} bits, {told.lanes} lanes) that no message holds: "
            "convert it to whole numbers, floats of 16 to 64 bits, or booleans"
        )
    return f"{kind}{told.bits // 8}"


def check_layout(dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None, unit: int) -> None:
    """See that an array is within bounds and lies without gaps, the last dimension first.

    Args:
        dtype: by the names of chapter 6.
        shape: the dimensions.
        strides: from one element of each dimension to the next; None where there are no gaps.
        unit: what strides are counted in: 1 for elements, the size of one for bytes.

    Raises:
        DeviceArrayError: it is not.
    """
    if len(shape) > DIMENSIONS_MAX or not all(0 <= size <= SHAPE_MAX for size in shape):
        raise DeviceArrayError(f"an array of shape {shape}; {DIMENSIONS_MAX} dimensions of at most {SHAPE_MAX} are allowed")
    if prod(shape) * item_bytes(dtype) > BYTES_MAX:
        raise DeviceArrayError(f"an array of shape {shape} and type {dtype} is larger than any")
    if strides is None or not prod(shape):
        return
    if len(strides) != len(shape):
        raise DeviceArrayError(f"{len(strides)} strides for {len(shape)} dimensions")
    expected = unit
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            raise DeviceArrayError(f"an array with gaps (strides {strides}): make it contiguous first")
        expected *= size


# What capsules that were made point to, by the address of their structure, until their deleter is called.
_alive: dict[int, tuple[object, ...]] = {}


def _forget(address: int) -> None:
    _alive.pop(address, None)


_forgetter = _DELETER(_forget)
# Capsules that nobody has taken the array of yet, by the same addresses. They have no destructor: it would be called while an
# exception is under way (whoever was to take the array has raised it), in which no Python code can run.
_unclaimed: dict[int, Any] = {}
_lock = threading.Lock()


def _counted(capsules: dict[int, Any]) -> list[tuple[int, Any, int]]:
    """Each capsule with its address, and how many refer to it."""
    return [(place, capsule, sys.getrefcount(capsule)) for place, capsule in capsules.items()]


# What is counted where nobody else refers to it; that depends on the version of Python.
((_, _, _OURS),) = _counted({0: object()})


def _sweep() -> None:
    """Let go of arrays whose capsules are garbage and were never taken."""
    with _lock:
        for place, capsule, references in _counted(_unclaimed):
            is_claimed = not any(_is_valid(id(capsule), name) for name in _KINDS)
            if is_claimed or references <= _OURS:
                del _unclaimed[place]
                if not is_claimed:
                    _alive.pop(place, None)


def make_capsule(
    device: tuple[int, int], address: int, dtype: str, shape: tuple[int, ...], owner: object, *, versioned: bool
) -> Any:
    """A capsule that shows an array without gaps.

    Args:
        device: its type and number.
        address: where it lies.
        dtype: by the names of chapter 6.
        shape: the dimensions.
        owner: kept alive until whoever takes the array lets go of it.
        versioned: for those who know DLPack 1.0.
    """
    _sweep()
    n_dims = len(shape)
    sizes, strides, step = (c_int64 * max(n_dims, 1))(*shape), (c_int64 * max(n_dims, 1))(), 1
    for index in reversed(range(n_dims)):
        strides[index] = step
        step *= shape[index]
    code = next(code for code, kind in _CODES.items() if kind == dtype[0])
    told = _DataType(code, item_bytes(dtype) * 8, 1)
    pointers = (ctypes.cast(numbers, POINTER(c_int64)) for numbers in (sizes, strides))
    tensor = _Tensor(address, _Device(*device), n_dims, told, *pointers, 0)
    deleter = ctypes.cast(_forgetter, c_void_p)
    managed = _Versioned(MAJOR, MINOR, None, deleter, 0, tensor) if versioned else _Managed(tensor, None, deleter)
    place = ctypes.addressof(managed)
    _alive[place] = (managed, sizes, strides, owner)
    try:
        capsule = _unclaimed[place] = _new(place, _VERSIONED if versioned else _OLD, None)
    except BaseException:
        _forget(place)
        raise
    return capsule
