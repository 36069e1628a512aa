"""msgpack with bounds: plain values to bytes and back.

A buffer is accepted only if it is one whole value of nil, booleans, integers, finite floats, text, bytes, arrays and maps with
distinct text keys, within the given size, depth and number of values. Extension types, timestamps, other keys, a key given twice
and bytes left over are refused. Size is checked first, so that the work and the memory spent on a buffer are bounded by it:
msgpack makes up to 73 times its input out of empty arrays.

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
    try:
        value = _unpackb(
            buffer,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_distinct,
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
