"""Writes a FlatBuffers message from plain values, front to back, with one copy of the data or none.

The values have the form in which `protocol.wire.verifier.read_message` returns them. FlatBuffers' own builder grows a message
from its end, field by field, which in Python takes longer than the network; here every table has all its fields at fixed places,
so a table is one `struct` call, and the parts are joined once, or sent as they are. Readers of any language take the result:
tests hold it against the code that flatc generates.

Source: FlatBuffers, "FlatBuffer internals".
Spec: docs/spec/06-inference.md, section "Messages".
"""

from collections.abc import Sequence
from struct import Struct
from typing import Any

from protocol.encoding import encode_uvarint
from protocol.errors import ErrorCode, LocalProtocolError
from protocol.wire.layout import FieldLayout, Kind, MessageLayout, TableLayout

_U32 = Struct("<I")

# Padding of every length that is needed: up to 15 bytes before data that is aligned to 16.
_ZEROS = tuple(bytes(count) for count in range(64))

# The offset to the root table and the file identifier, in bytes (FlatBuffers, "FlatBuffer internals").
_HEAD_BYTES = 8


PIECE_BYTES_MIN = 512
"""Bytes from which data are a piece of their own: copying fewer costs less than one more piece of a vectored write."""


def write_message(layout: MessageLayout, values: Sequence[Any], bytes_max: int | None = None) -> bytes:
    """Write one message without a frame, joined; arguments and errors are those of `write_frame`, no bound where it is None."""
    return b"".join(_parts(layout, values, bytes_max)[0])


def write_frame(layout: MessageLayout, values: Sequence[Any], bytes_max: int) -> list[bytes | memoryview]:
    """Write one message as a frame in pieces, among them the large data of `values` themselves: they are not copied.

    Args:
        layout: what the message is.
        values: one value for each field of its root table, in the form that `read_message` returns.
        bytes_max: the longest message without its frame.

    Returns:
        The length of the message and the message, small neighbours joined.

    Raises:
        LocalProtocolError: TOO_LARGE, for a string or vector over its bound, or the whole; MALFORMED, for text that UTF-8 cannot
            hold.
    """
    parts, size_bytes = _parts(layout, values, bytes_max)
    pieces: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = [encode_uvarint(size_bytes)]
    for part in parts:
        if len(part) < PIECE_BYTES_MIN:
            small.append(part)
        else:
            pieces.append(b"".join(small))
            pieces.append(part)
            small.clear()
    if small:
        pieces.append(b"".join(small))
    return pieces


def _parts(layout: MessageLayout, values: Sequence[Any], bytes_max: int | None) -> tuple[list[bytes | memoryview], int]:
    """The parts of a message in order, and how many bytes they have together."""
    message = _Message(layout)
    root = message.table(layout.tables[layout.root], values)
    message.parts[0] = _U32.pack(root) + layout.identifier
    if bytes_max is not None and message.size_bytes > bytes_max:
        detail = f"a message of {message.size_bytes} bytes; the limit is {bytes_max}"
        raise LocalProtocolError(ErrorCode.TOO_LARGE, detail)
    return message.parts, message.size_bytes


class _Message:
    """A message in the making: its parts so far and the bytes they have."""

    __slots__ = ("_at", "_layout", "_vtables", "parts")

    def __init__(self, layout: MessageLayout) -> None:
        self._layout = layout
        self._at = _HEAD_BYTES
        self._vtables: dict[str, int] = {}
        # The head is filled in last.
        self.parts: list[bytes | memoryview] = [b""]

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return self._at

    def table(self, layout: TableLayout, values: Sequence[Any]) -> int:
        """Append a table, and behind it what its fields hold; return its position."""
        vtable = self._vtables.get(layout.name)
        if vtable is None:
            self._align(len(layout.vtable), layout.alignment)
            vtable = self._vtables[layout.name] = self._append(layout.vtable)
        else:
            self._align(0, layout.alignment)
        position = self._at
        index = len(self.parts)
        self.parts.append(b"")
        self._at += layout.inline.size
        inline: list[Any] = [position - vtable]
        for field, value in zip(layout.fields, values, strict=True):
            if field.kind is _SCALAR:
                inline.append(value)
            elif field.kind is _UNION:
                kind: int = value[0]
                inline.append(kind)
                inline.append(self.table(self._layout.tables[field.members[kind - 1]], value[1]) - position - field.place)
            else:
                inline.append(self._child(field, value) - position - field.place)
        self.parts[index] = layout.inline.pack(*inline)
        return position

    def _child(self, field: FieldLayout, value: Any) -> int:
        """Append what a field that is neither scalar nor union points to; return its position."""
        match field.kind:
            case Kind.STRING:
                return self._string(field.name, value, field.length_max)
            case Kind.BYTES:
                _check_length(field.name, len(value), field.length_max)
                self._align(4, field.alignment)
                position = self._append(_U32.pack(len(value)))
                self._append(value)
                return position
            case Kind.TABLE:
                return self.table(self._layout.tables[field.members[0]], value)
            case Kind.SCALARS:
                _check_length(field.name, len(value), field.length_max)
                self._align(4, field.alignment)
                position = self._append(_U32.pack(len(value)))
                for element in value:
                    self._append(field.scalar.pack(element))
                return position
            case _:
                return self._children(field, value)

    def _children(self, field: FieldLayout, values: Sequence[Any]) -> int:
        """Append a vector of strings or tables, and the strings or tables behind it; return its position."""
        _check_length(field.name, len(values), field.length_max)
        self._align(0, 4)
        position = self._append(_U32.pack(len(values)))
        index = len(self.parts)
        self.parts.append(b"")
        start = self._at
        self._at += 4 * len(values)
        offsets: list[int] = []
        for number, value in enumerate(values):
            if field.kind is Kind.STRINGS:
                child = self._string(field.name, value, field.item_length_max)
            else:
                child = self.table(self._layout.tables[field.members[0]], value)
            offsets.append(child - start - 4 * number)
        self.parts[index] = b"".join([_U32.pack(offset) for offset in offsets])
        return position

    def _string(self, name: str, text: str, length_max: int) -> int:
        try:
            encoded = text.encode()
        except UnicodeEncodeError as fault:
            raise LocalProtocolError(ErrorCode.MALFORMED, f"{name} holds half of a surrogate pair") from fault
        _check_length(name, len(encoded), length_max)
        self._align(0, 4)
        return self._append(_U32.pack(len(encoded)) + encoded + b"\x00")

    def _align(self, ahead: int, alignment: int) -> None:
        """Pad so that what comes `ahead` bytes later is aligned."""
        padding = -(self._at + ahead) % alignment
        if padding:
            self._append(_ZEROS[padding])

    def _append(self, part: bytes | memoryview) -> int:
        """Append a part and return its position."""
        position = self._at
        self.parts.append(part)
        self._at = position + len(part)
        return position


# Plain names, because a look-up on an enumeration for each field takes as long as packing it.
_SCALAR = Kind.SCALAR
_UNION = Kind.UNION


def _check_length(name: str, length: int, length_max: int) -> None:
    if length > length_max:
        raise LocalProtocolError(ErrorCode.TOO_LARGE, f"{name} has {length} bytes or elements; the limit is {length_max}")
