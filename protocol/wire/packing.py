"""msgpack with bounds: plain values to bytes and back.

A buffer is accepted only if it is one whole value of nil, booleans, integers, finite floats, text, bytes, arrays and maps with
distinct text keys, within the given size, depth and number of values. Extension types, timestamps, other keys, a key given twice
and bytes left over are refused. Size is checked first, so that the work and the memory spent on a buffer are bounded by it; but
msgpack makes up to 73 times its input out of empty arrays and maps, and room for every element of an array when it reads its
header, a thousand arrays deep. So arrays and maps are counted while they are made, and a buffer with many headers of long arrays
is walked first.

Source: the msgpack specification, https://github.com/msgpack/msgpack/blob/master/spec.md.
Spec: docs/spec/03-records.md, section "Plain values".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import msgpack

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError

Plain: TypeAlias = "bool | int | float | str | bytes | list[Plain] | dict[str, Plain] | None"
"""What a buffer can hold."""

INT_MAX = 2**63 - 1
"""Largest integer, a count: what a signed 64-bit field of any language holds."""

_OVER_A_COUNT = " exceeds max_"
"""What msgpack's ValueError says of an array or a map that announces more elements than it was allowed, before it makes any."""

_ROOM_BYTES_MAX = 1 << 20
"""Most room, in bytes, that msgpack may make for arrays before it is seen that there are too many values for it."""

_POINTER_BYTES = 8
"""What one element of an array takes before it is read, in bytes."""

_LONG_ARRAYS = (b"\xdc", b"\xdd")
"""Headers of arrays of 16 or more elements."""

_packb = cast("Callable[..., bytes]", msgpack.packb)  # pyright: ignore[reportUnknownMemberType]
_unpackb = cast("Callable[..., object]", msgpack.unpackb)  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True, slots=True)
class PackingLimits:
    """How much one buffer may hold.

    Attributes:
        size_bytes_max: length of the whole buffer.
        depth_max: how many arrays and maps may stand round a value; a lone scalar has none.
        values_max: values in all, keys not counted.
    """

    size_bytes_max: int
    depth_max: int
    values_max: int


class _UnacceptableError(Exception):
    """A value outside the bounds, before it is known whose fault that is."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def pack(value: object, limits: PackingLimits) -> bytes:
    """Encode a plain value; tuples count as arrays.

    Args:
        value: nil, bool, int, float, str, bytes, or arrays and maps of these.
        limits: what the receiver will accept.

    Returns:
        The msgpack bytes, at most `limits.size_bytes_max` of them.

    Raises:
        LocalProtocolError: MALFORMED or TOO_LARGE when the receiver would refuse the value.
    """
    try:
        _check(value, limits)
    except _UnacceptableError as error:
        raise LocalProtocolError(error.code, error.detail) from None
    try:
        packed = _packb(value, use_bin_type=True)
    except UnicodeEncodeError as error:
        raise LocalProtocolError(ErrorCode.MALFORMED, f"text with {error.reason}") from None
    if len(packed) > limits.size_bytes_max:
        raise LocalProtocolError(ErrorCode.TOO_LARGE, f"{len(packed)} bytes where {limits.size_bytes_max} are allowed")
    return packed


def unpack(buffer: bytes | memoryview, limits: PackingLimits) -> Plain:
    """Decode one whole value from bytes that nobody vouches for.

    Args:
        buffer: the bytes, as they came.
        limits: what is accepted.

    Returns:
        The value; every float in it is finite and every map key is text.

    Raises:
        RemoteProtocolError: TOO_LARGE for a buffer over its limits, MALFORMED for everything else that is not acceptable.
    """
    if len(buffer) > limits.size_bytes_max:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{len(buffer)} bytes where {limits.size_bytes_max} are allowed")
    containers_left = limits.values_max

    def array_of(elements: list[Any]) -> list[Any]:
        nonlocal containers_left
        containers_left -= 1
        if containers_left < 0:
            raise _UnacceptableError(ErrorCode.TOO_LARGE, f"more than {limits.values_max} values")
        return elements

    def map_of(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        return _distinct(array_of(pairs))

    try:
        packed = bytes(buffer)
        if sum(map(packed.count, _LONG_ARRAYS)) * limits.values_max * _POINTER_BYTES > _ROOM_BYTES_MAX:
            _walk(packed, limits)
        value = _unpackb(
            packed,
            raw=False,
            strict_map_key=True,
            list_hook=array_of,
            object_pairs_hook=map_of,
            ext_hook=_no_extension,
            max_array_len=limits.values_max,
            max_map_len=limits.values_max,
        )
        _check(value, limits)
    except _UnacceptableError as error:
        raise RemoteProtocolError(error.code, error.detail) from None
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        if _OVER_A_COUNT in str(error):
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"more than {limits.values_max} values") from None
        # msgpack's own errors (ExtraData, FormatError, StackError, UnicodeDecodeError) are ValueErrors; OutOfData is not
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"not msgpack: {type(error).__name__}") from None
    return cast("Plain", value)


def _walk(packed: bytes, limits: PackingLimits) -> None:
    """Look at the headers alone, and refuse what announces too many values or levels; what ends early is left to msgpack."""
    left = [1]  # values to come, of each array and map round this place
    values, position, end = 1, 0, len(packed)
    while left and position < end:
        if left[-1] == 0:
            left.pop()
            continue
        left[-1] -= 1
        size, count, is_map = _header(packed, position)
        position += size
        if count:
            values += count
            if values > limits.values_max:
                raise _UnacceptableError(ErrorCode.TOO_LARGE, f"more than {limits.values_max} values")
            if len(left) > limits.depth_max:
                raise _UnacceptableError(ErrorCode.TOO_LARGE, f"more than {limits.depth_max} levels")
            left.append(2 * count if is_map else count)


def _header(packed: bytes, position: int) -> tuple[int, int, bool]:
    """What begins here: how many bytes of it are no values of their own, how many values are in it, and whether it is a map."""
    byte = packed[position]
    if byte < 0x80 or byte >= 0xE0 or byte in (0xC0, 0xC1, 0xC2, 0xC3):
        return 1, 0, False
    if byte < 0xA0:
        return 1, byte & 0x0F, byte < 0x90
    if byte < 0xC0:
        return 1 + (byte & 0x1F), 0, False
    if byte in _FIXED_BYTES:
        return _FIXED_BYTES[byte], 0, False
    width, more, is_container = _LENGTHS[byte]
    length = int.from_bytes(packed[position + 1 : position + 1 + width], "big")
    if is_container:
        return 1 + width, length, byte >= 0xDE
    return 1 + width + more + length, 0, False


# Bytes of a number or a fixed extension with its header (the msgpack specification, "Formats").
_FIXED_BYTES = {
    0xCA: 5,
    0xCB: 9,
    0xCC: 2,
    0xCD: 3,
    0xCE: 5,
    0xCF: 9,
    0xD0: 2,
    0xD1: 3,
    0xD2: 5,
    0xD3: 9,
    0xD4: 3,
    0xD5: 4,
    0xD6: 6,
    0xD7: 10,
    0xD8: 18,
}

# Bytes of the length, bytes more behind it, and whether it counts values (the same).
_LENGTHS = {
    0xC4: (1, 0, False),
    0xC5: (2, 0, False),
    0xC6: (4, 0, False),
    0xC7: (1, 1, False),
    0xC8: (2, 1, False),
    0xC9: (4, 1, False),
    0xD9: (1, 0, False),
    0xDA: (2, 0, False),
    0xDB: (4, 0, False),
    0xDC: (2, 0, True),
    0xDD: (4, 0, True),
    0xDE: (2, 0, True),
    0xDF: (4, 0, True),
}


def _distinct(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A map whose keys are all different: two readers must not see two values under one signature."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _UnacceptableError(ErrorCode.MALFORMED, "a map gives one key twice")
    return found


def _no_extension(code: int, _data: bytes) -> object:
    raise _UnacceptableError(ErrorCode.MALFORMED, f"extension type {code}")


def _check(value: object, limits: PackingLimits) -> None:
    """Refuse what the other side could not read, or could read in two ways.

    Level by level and without a call for each value: every message passes here.
    """
    level: list[object] = [value]
    count = 1
    for _depth in range(limits.depth_max + 1):
        below: list[object] = []
        for item in level:
            kind = type(item)  # pyright: ignore[reportUnknownVariableType] - of Any nothing is known yet
            if kind is bytes or kind is str or kind is bool or item is None:
                continue
            if kind is int:
                if not -INT_MAX <= cast("int", item) <= INT_MAX:
                    raise _UnacceptableError(ErrorCode.MALFORMED, "an integer beyond 63 bits")
            elif kind is float:
                if not math.isfinite(cast("float", item)):
                    raise _UnacceptableError(ErrorCode.MALFORMED, "a float that is no number")
            else:
                below.extend(_children(item))
                if count + len(below) > limits.values_max:
                    raise _UnacceptableError(ErrorCode.TOO_LARGE, f"more than {limits.values_max} values")
        if not below:
            return
        count += len(below)
        level = below
    raise _UnacceptableError(ErrorCode.TOO_LARGE, f"more than {limits.depth_max} levels")


def _children(item: Any) -> list[Any]:
    """The values directly inside `item`; refuses `item` itself when it is of no plain kind."""
    if isinstance(item, list | tuple):
        return list(cast("list[Any]", item))
    if isinstance(item, dict):
        fields = cast("dict[object, object]", item)
        if not all(isinstance(key, str) for key in fields):
            raise _UnacceptableError(ErrorCode.MALFORMED, "a map key that is not text")
        return list(fields.values())
    if isinstance(item, str | bytes):  # an enumeration of text
        return []
    raise _UnacceptableError(ErrorCode.MALFORMED, f"a value of type {type(item).__name__}")
