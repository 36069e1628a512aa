"""Reads a FlatBuffers message from a peer completely and safely, or refuses it.

FlatBuffers' Python runtime has no verifier: its accessors clamp strings in silence, believe any vector length, and follow shared
tables 2^31 times in 648 bytes. So no accessor is ever used on foreign bytes. `read_message` walks the message once along the
layout that was generated from the schema, checks each offset before it is followed, and hands back the values themselves: scalars
as numbers, strings as text, vectors of bytes as views into the message. Nothing is read a second time, so what was checked is
what is used.

The walk is bounded by what the message holds: tables by `TABLES_MAX`, nesting by `DEPTH_MAX`, each string and vector by the bound
that the schema gives, and the sum of all bytes visited by the length of the message and a little slack, so that parts cannot be
shared to make a small message look large. Positions only grow along an offset, so there are no cycles. Alignment is not required.
Fields that a newer schema adds are not looked at.

Source: FlatBuffers, "FlatBuffer internals"; its C++ verifier (flatbuffers/verifier.h).
Spec: docs/spec/06-inference.md, section "Verification".
"""

from struct import Struct
from typing import Any, NamedTuple

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.wire.layout import FieldLayout, Kind, MessageLayout, TableLayout

TABLES_MAX = 64
"""Tables visited in one message, unitless: a request with all its 32 tensors needs 33."""

DEPTH_MAX = 8
"""Nesting of tables, unitless: the deepest message (reply, event, tensor) needs 3; the rest is room for newer schemas."""

SLACK_BYTES = 4096
"""Bytes visited beyond the length of the message: equal vtables are shared, and `TABLES_MAX` of them with 30 fields fit."""

_U16 = Struct("<H")
_U32 = Struct("<I")
_I32 = Struct("<i")
_VTABLE_HEAD = Struct("<HH")

# Bytes before the root table: the offset to it and the file identifier (FlatBuffers, "FlatBuffer internals").
_HEAD_BYTES = 8

# Where the first field stands in a vtable in bytes, and the smallest vtable: its own size and the table's size come before.
_VTABLE_BYTES_MIN = 4

# Plain names, because a look-up on an enumeration for each field is a fifth of the time of a walk.
_SCALAR = Kind.SCALAR
_STRING = Kind.STRING
_BYTES = Kind.BYTES
_UNION = Kind.UNION


class Visits(NamedTuple):
    """What reading a message cost: tables and bytes visited."""

    tables: int
    bytes: int


def read_message(buffer: bytes | bytearray | memoryview, layout: MessageLayout) -> tuple[Any, ...]:
    """Verify a message and return the values of its root table, one for each field in the order of the schema.

    A scalar is a number, 0 where it is absent; a string is text, empty where absent; a vector of bytes is a read-only view into
    `buffer`; another vector is a tuple; a table is a tuple as this one, None where absent; a union is a pair of its type, from 1,
    and its table.

    Args:
        buffer: the whole message without a length before it; its caller has bounded its length.
        layout: what the message must be.

    Raises:
        RemoteProtocolError: MALFORMED, for anything outside the message or not as the layout says; TOO_LARGE, for a string,
            vector or walk over its bound; UNSUPPORTED, for a union type that the layout does not know.
    """
    return read_and_count(buffer, layout)[0]


def read_and_count(buffer: bytes | bytearray | memoryview, layout: MessageLayout) -> tuple[tuple[Any, ...], Visits]:
    """Do what `read_message` does, and also say how much was visited."""
    walk = _Walk(buffer, layout)
    values = walk.root()
    return values, walk.visits()


class _Walk:
    """One walk over one message."""

    __slots__ = ("_budget", "_end", "_layout", "_start_budget", "_tables", "_view")

    def __init__(self, buffer: bytes | bytearray | memoryview, layout: MessageLayout) -> None:
        self._view = memoryview(buffer).toreadonly()
        self._end = self._view.nbytes
        self._layout = layout
        self._tables = 0
        self._start_budget = self._budget = self._end + SLACK_BYTES

    def visits(self) -> Visits:
        """Say how much was visited so far."""
        return Visits(self._tables, self._start_budget - self._budget)

    def root(self) -> tuple[Any, ...]:
        """Check the head of the message and read the root table."""
        if self._end < _HEAD_BYTES + _I32.size:
            raise _malformed(f"a {self._layout.name} of {self._end} bytes is shorter than its head")
        if bytes(self._view[4:8]) != self._layout.identifier:
            raise _malformed(f"the message is no {self._layout.name}: its file identifier is {bytes(self._view[4:8])!r}")
        self._budget -= _HEAD_BYTES
        return self._table(_U32.unpack_from(self._view, 0)[0], self._layout.tables[self._layout.root], 1)

    def _table(self, position: int, layout: TableLayout, depth: int) -> tuple[Any, ...]:
        """Read the table that starts at `position`."""
        view, end = self._view, self._end
        self._tables += 1
        if self._tables > TABLES_MAX or depth > DEPTH_MAX:
            raise _too_large(f"more than {TABLES_MAX} tables, or nested more than {DEPTH_MAX} deep")
        if position + 4 > end:
            raise _malformed(f"a {layout.name} lies outside the message")
        vtable = position - _I32.unpack_from(view, position)[0]
        if vtable < 0 or vtable + _VTABLE_BYTES_MIN > end:
            raise _malformed(f"the vtable of a {layout.name} lies outside the message")
        vtable_bytes, table_bytes = _VTABLE_HEAD.unpack_from(view, vtable)
        if vtable_bytes < _VTABLE_BYTES_MIN or vtable_bytes % 2 or vtable + vtable_bytes > end:
            raise _malformed(f"the vtable of a {layout.name} has {vtable_bytes} bytes")
        if table_bytes < 4 or position + table_bytes > end:
            raise _malformed(f"a {layout.name} of {table_bytes} bytes does not fit into the message")
        self._visit(table_bytes + min(vtable_bytes, _VTABLE_BYTES_MIN + 2 * len(layout.fields)))
        values: list[Any] = []
        for field in layout.fields:
            name, slot, kind, size, scalar, length_max = field[:6]
            offset: int = _U16.unpack_from(view, vtable + slot)[0] if slot + 2 <= vtable_bytes else 0
            if offset == 0:
                values.append(self._absent(field))
                continue
            if offset < 4 or offset + size > table_bytes:
                raise _malformed(f"{layout.name}.{name} lies outside its table")
            place = position + offset
            if kind is _SCALAR:
                values.append(scalar.unpack_from(view, place)[0])
            elif kind is _STRING:
                values.append(self._string(place, field, length_max))
            elif kind is _BYTES:
                start, length = self._vector(place, field, 1)
                values.append(view[start : start + length])
            elif kind is _UNION:
                values.append(self._union(place, field, position, vtable, table_bytes, depth))
            else:
                values.append(self._nested(place, field, depth))
        return tuple(values)

    def _nested(self, place: int, field: FieldLayout, depth: int) -> Any:
        """Read the rarer kinds of field: a table, and vectors of tables, scalars and strings."""
        tables = self._layout.tables
        match field.kind:
            case Kind.TABLE:
                return self._table(self._follow(place, field), tables[field.members[0]], depth + 1)
            case Kind.TABLES:
                start, length = self._vector(place, field, 4)
                member = tables[field.members[0]]
                return tuple(self._table(self._follow(start + 4 * index, field), member, depth + 1) for index in range(length))
            case Kind.STRINGS:
                start, length = self._vector(place, field, 4)
                return tuple(self._string(start + 4 * index, field, field.item_length_max) for index in range(length))
            case _:
                scalar = field.scalar
                start, length = self._vector(place, field, scalar.size)
                return tuple(scalar.unpack_from(self._view, start + scalar.size * index)[0] for index in range(length))

    def _union(self, place: int, field: FieldLayout, position: int, vtable: int, table_bytes: int, depth: int) -> tuple[int, Any]:
        """Read a union whose value's offset stands at `place`; its type stands one slot before."""
        offset: int = _U16.unpack_from(self._view, vtable + field.slot - 2)[0]
        if offset != 0 and (offset < 4 or offset + 1 > table_bytes):
            raise _malformed(f"the type of {field.name} lies outside its table")
        kind = self._view[position + offset] if offset else 0
        if kind == 0:
            raise _malformed(f"{field.name} has a value and no type")
        if kind > len(field.members):
            raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"{field.name} is of type {kind}, which this version does not know")
        return kind, self._table(self._follow(place, field), self._layout.tables[field.members[kind - 1]], depth + 1)

    def _absent(self, field: FieldLayout) -> Any:
        """Return the value of a field that is not there."""
        if field.required:
            raise _malformed(f"{field.name} is missing")
        match field.kind:
            case Kind.SCALAR:
                return False if field.scalar.format == "<?" else 0
            case Kind.STRING:
                return ""
            case Kind.BYTES:
                return self._view[:0]
            case Kind.TABLE:
                return None
            case Kind.UNION:
                return 0, None
            case _:
                return ()

    def _follow(self, place: int, field: FieldLayout) -> int:
        """Follow the offset at `place`, which lies inside the message; where it leads is for the caller to check."""
        offset: int = _U32.unpack_from(self._view, place)[0]
        if offset == 0:
            raise _malformed(f"{field.name} has an offset of zero")
        return place + offset

    def _vector(self, place: int, field: FieldLayout, size: int) -> tuple[int, int]:
        """Check the vector that the offset at `place` leads to; return where its elements start and how many there are."""
        position = self._follow(place, field)
        if position + 4 > self._end:
            raise _malformed(f"{field.name} lies outside the message")
        length: int = _U32.unpack_from(self._view, position)[0]
        if length > field.length_max:
            raise _too_large(f"{field.name} has {length} elements; the limit is {field.length_max}")
        if position + 4 + length * size > self._end:
            raise _malformed(f"{field.name} of {length} elements does not fit into the message")
        self._visit(4 + length * size)
        return position + 4, length

    def _string(self, place: int, field: FieldLayout, length_max: int) -> str:
        """Read the string that the offset at `place` leads to."""
        position = self._follow(place, field) + 4
        if position > self._end:
            raise _malformed(f"{field.name} lies outside the message")
        length: int = _U32.unpack_from(self._view, position - 4)[0]
        if length > length_max:
            raise _too_large(f"{field.name} has {length} bytes; the limit is {length_max}")
        end = position + length
        if end >= self._end or self._view[end] != 0:
            raise _malformed(f"{field.name} of {length} bytes does not end with a zero inside the message")
        self._visit(length + 5)
        try:
            return str(self._view[position:end], "utf-8")
        except UnicodeDecodeError as fault:
            raise _malformed(f"{field.name} is not UTF-8") from fault

    def _visit(self, length: int) -> None:
        """Charge `length` bytes to the budget."""
        self._budget -= length
        if self._budget < 0:
            raise _too_large(f"the parts of a {self._layout.name} add up to more than the message")


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.MALFORMED, detail)


def _too_large(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.TOO_LARGE, detail)
