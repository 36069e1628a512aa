"""How FlatBuffers messages are laid out: what the reader and the writer need to know of a schema.

scripts/schemas.sh derives one `MessageLayout` for each message from protocol/schemas into protocol/wire/generated/layouts.py. The
reader allows any valid arrangement of a table; the writer always puts every field at the same place, so that the vtable of a
table and the packing of its inline part are constants.

Source: FlatBuffers, "FlatBuffer internals".
Spec: docs/spec/06-inference.md, section "Messages".
"""

from enum import IntEnum, unique
from struct import Struct
from typing import NamedTuple


@unique
class Kind(IntEnum):
    """How the value of a field is laid out."""

    SCALAR = 0
    STRING = 1
    BYTES = 2
    TABLE = 3
    TABLES = 4
    UNION = 5
    SCALARS = 6
    STRINGS = 7


class FieldLayout(NamedTuple):
    """One field of a table.

    Attributes:
        name: its name in the schema.
        slot: where its offset stands in the vtable, in bytes; for a union that of its value, its type standing before.
        kind: how it is laid out.
        size: bytes of the inline part: those of a scalar, else 4 for an offset.
        scalar: how one scalar is packed, in a field or as an element of a vector.
        length_max: bytes of a string or vector of bytes, elements of another vector.
        item_length_max: bytes of each string in a vector of strings.
        required: whether its absence makes the message malformed.
        members: indices of the tables it can hold, for a union in the order of its types from 1.
        place: where the writer puts the inline part, in bytes from the start of the table.
        alignment: the writer aligns the first element of a vector to this many bytes of the message.
    """

    name: str
    slot: int
    kind: Kind
    size: int
    scalar: Struct
    length_max: int
    item_length_max: int
    required: bool
    members: tuple[int, ...]
    place: int
    alignment: int


class TableLayout(NamedTuple):
    """A table and its fields in the order of the schema.

    Attributes:
        name: its name in the schema.
        vtable: what the writer puts before the first table of this kind.
        inline: how the writer packs the table itself.
        alignment: to how many bytes of the message the writer aligns it: the size of its widest scalar, at least 4.
        fields: in the order of the schema.
    """

    name: str
    vtable: bytes
    inline: Struct
    alignment: int
    fields: tuple[FieldLayout, ...]


class MessageLayout(NamedTuple):
    """A message: its file identifier, and its tables, of which `root` is the index of the outermost."""

    name: str
    identifier: bytes
    root: int
    tables: tuple[TableLayout, ...]
