"""Reads and writes messages by the shape of one before: one unpacking and one comparison, or one packing, in place of a walk.

Requests and replies come in few shapes. Where two messages have the same vtables, offsets and lengths, everything stands at the
same places in both, and only values differ: scalars, the characters of text, the bytes of data. A `Template` is made of a message
that was verified (or written), and holds all its other bytes as constants.

A message is read by a template only where it has exactly those constants and that length. Each check of the verifier looks at
nothing but constants, beside whether text is UTF-8, which is tried again; so a message that a template reads is one that the
verifier passes, with the same values, and every other goes to the verifier. Padding, which the verifier does not look at, and
fields that only a newer schema knows count as constants too: a difference there costs the detour, no more.

A message that is written has the shape of another where its texts, vectors and data have the same lengths and its unions hold the
same tables; `write_frame` puts all else into the same places then.

How many templates are kept and made is bounded, so that peers and callers with many shapes cost little more than without.

Source: FlatBuffers, "FlatBuffer internals".
Spec: docs/spec/06-inference.md, section "Verification".
"""

from collections.abc import Sequence
from enum import IntEnum
from operator import itemgetter
from struct import Struct
from typing import Any, NamedTuple, TypeVar

from protocol.encoding import decode_uvarint, encode_uvarint
from protocol.wire.layout import FieldLayout, Kind, MessageLayout, TableLayout
from protocol.wire.verifier import read_message
from protocol.wire.writer import PIECE_BYTES_MIN, write_frame

TEMPLATES_MAX = 256
"""Templates that one reader or writer keeps, a count: tokens of each length up to some dozens, requests for many models."""

TEMPLATE_BYTES_MAX = 64 * 1024
"""Longest message in bytes that a template is made of: what a walk costs is nothing beside the bytes of a longer one."""

SIGHTINGS = 2
"""How often a shape must be met before a template is made of it: what comes once is not worth it."""

MISSES_MAX = 8
"""How often a template of some length may fail before another takes its place: making one costs as much as some four walks."""

_U16 = Struct("<H")
_U32 = Struct("<I")
_I32 = Struct("<i")

# Bytes before the root table (FlatBuffers, "FlatBuffer internals").
_HEAD_BYTES = 8

_K = TypeVar("_K")
_V = TypeVar("_V")


class Step(IntEnum):
    """What is done for one value of a message that is read."""

    LEAF = 0
    """It is unpacked."""
    LEAVES = 1
    """It is several that are unpacked, one after the other."""
    TEXT = 2
    """It is unpacked and decoded."""
    VIEW = 3
    """It is a view into the message."""
    CONSTANT = 4
    """It is the same in all."""
    TABLE = 5
    """It is made of others: a table, or a vector of tables or texts."""
    UNION = 6
    """It is a type and a table."""


_Step = tuple[Step, Any, Any]
"""What is done for one value, with two arguments."""

# Plain names, because a look-up on an enumeration for each value takes as long as what is done for it.
_LEAF, _LEAVES, _TEXT, _VIEW, _TABLE, _UNION = Step.LEAF, Step.LEAVES, Step.TEXT, Step.VIEW, Step.TABLE, Step.UNION
_SCALAR, _STRING, _BYTES, _ONE_TABLE = Kind.SCALAR, Kind.STRING, Kind.BYTES, Kind.TABLE
_OF_TYPES, _SCALARS, _STRINGS = Kind.UNION, Kind.SCALARS, Kind.STRINGS


class _Leaf(NamedTuple):
    """One value in a message: where it begins, its bytes, and how it is packed; data have no format."""

    start: int
    size: int
    format: str


class _Survey:
    """Finds the values of a message that is known to be valid, in the order of its schema."""

    def __init__(self, message: bytes, layout: MessageLayout) -> None:
        self._message = message
        self._layout = layout
        self.leaves: list[_Leaf] = []
        root: int = _U32.unpack_from(message, 0)[0]
        self.steps = self._table(root, layout.tables[layout.root])

    def _table(self, position: int, layout: TableLayout) -> list[_Step]:
        vtable = position - _I32.unpack_from(self._message, position)[0]
        vtable_bytes: int = _U16.unpack_from(self._message, vtable)[0]
        return [self._field(position, vtable, vtable_bytes, field) for field in layout.fields]

    def _field(self, position: int, vtable: int, vtable_bytes: int, field: FieldLayout) -> _Step:
        offset: int = _U16.unpack_from(self._message, vtable + field.slot)[0] if field.slot + 2 <= vtable_bytes else 0
        place, kind = position + offset, field.kind
        if offset == 0:
            return self._absent(field)
        if kind is Kind.SCALAR:
            return Step.LEAF, self._leaf(place, field.size, field.scalar.format[1:]), None
        start = place + _U32.unpack_from(self._message, place)[0]
        if kind is Kind.TABLE:
            return Step.TABLE, self._table(start, self._layout.tables[field.members[0]]), None
        if kind is Kind.UNION:
            of_type: int = _U16.unpack_from(self._message, vtable + field.slot - 2)[0]
            member = self._message[position + of_type]
            return Step.UNION, member, self._table(start, self._layout.tables[field.members[member - 1]])
        return self._vector(start + 4, _U32.unpack_from(self._message, start)[0], field)

    def _vector(self, start: int, length: int, field: FieldLayout) -> _Step:
        match field.kind:
            case Kind.STRING:
                return Step.TEXT, self._leaf(start, length, f"{length}s"), None
            case Kind.BYTES:
                return Step.VIEW, self._leaf(start, length, ""), None
            case Kind.SCALARS:
                size, scalar = field.scalar.size, field.scalar.format[1:]
                numbers = [self._leaf(start + size * index, size, scalar) for index in range(length)]
                return Step.LEAVES, numbers, None
            case _:
                return Step.TABLE, [self._element(start + 4 * index, field) for index in range(length)], None

    def _element(self, place: int, field: FieldLayout) -> _Step:
        start = place + _U32.unpack_from(self._message, place)[0]
        if field.kind is Kind.STRINGS:
            length: int = _U32.unpack_from(self._message, start)[0]
            return Step.TEXT, self._leaf(start + 4, length, f"{length}s"), None
        return Step.TABLE, self._table(start, self._layout.tables[field.members[0]]), None

    def _absent(self, field: FieldLayout) -> _Step:
        match field.kind:
            case Kind.SCALAR:
                return Step.CONSTANT, False if field.scalar.format == "<?" else 0, None
            case Kind.STRING:
                return Step.CONSTANT, "", None
            case Kind.BYTES:
                return Step.VIEW, self._leaf(0, 0, ""), None
            case Kind.TABLE:
                return Step.CONSTANT, None, None
            case Kind.UNION:
                return Step.CONSTANT, (0, None), None
            case _:
                return Step.CONSTANT, (), None

    def _leaf(self, start: int, size: int, form: str) -> int:
        self.leaves.append(_Leaf(start, size, form))
        return len(self.leaves) - 1


def _in_order(message: bytes, leaves: Sequence[_Leaf]) -> list[bytes | int] | None:
    """The bytes between values, and the numbers of the values, as they follow one another; None where values share bytes."""
    found: list[bytes | int] = []
    at = 0
    for number, leaf in sorted(enumerate(leaves), key=lambda each: (each[1].start, each[1].size)):
        if leaf.size == 0 and not leaf.format:
            continue  # data without a byte
        if leaf.start < at:
            return None
        if leaf.start > at:
            found.append(message[at : leaf.start])
        found.append(number)
        at = leaf.start + leaf.size
    if at < len(message):
        found.append(message[at:])
    return found


class _Reading:
    """Reads messages of one shape."""

    __slots__ = ("_constants", "_constants_of", "_steps", "_struct")

    def __init__(self, survey: _Survey, order: list[bytes | int]) -> None:
        formats, constants, places = ["<"], list[bytes](), list[int]()
        fields: dict[int, int] = {}  # where among what is unpacked a value stands
        count = 0
        for part in order:
            if isinstance(part, bytes):
                constants.append(part)
                places.append(count)
                formats.append(f"{len(part)}s")
            elif form := survey.leaves[part].format:
                fields[part] = count
                formats.append(form)
            else:
                formats.append(f"{survey.leaves[part].size}x")
                continue
            count += 1
        self._struct = Struct("".join(formats))
        self._constants = tuple(constants) if len(constants) > 1 else constants[0]  # as an `itemgetter` gives them
        self._constants_of = itemgetter(*places)
        self._steps = _resolved(survey.steps, survey.leaves, fields)

    def read(self, buffer: bytes | bytearray | memoryview) -> tuple[Any, ...] | None:
        """Return what `read_message` returns for a message of this shape, None for another; it has the length of the shape."""
        fields = self._struct.unpack(buffer)
        if self._constants_of(fields) != self._constants:
            return None
        try:
            return _values(self._steps, fields, memoryview(buffer).toreadonly())
        except UnicodeDecodeError:
            return None


def _resolved(steps: list[_Step], leaves: Sequence[_Leaf], fields: dict[int, int]) -> tuple[_Step, ...]:
    """Steps that name values by where they stand among what is unpacked, and data by their bytes."""
    resolved: list[_Step] = []
    for step, what, more in steps:
        match step:
            case Step.LEAF | Step.TEXT:
                resolved.append((step, fields[what], None))
            case Step.LEAVES:
                resolved.append((step, fields[what[0]] if what else 0, fields[what[-1]] + 1 if what else 0))
            case Step.VIEW:
                number: int = what
                leaf = leaves[number]
                resolved.append((step, leaf.start, leaf.start + leaf.size))
            case Step.TABLE:
                resolved.append((step, _resolved(what, leaves, fields), None))
            case Step.UNION:
                resolved.append((step, what, _resolved(more, leaves, fields)))
            case _:
                resolved.append((step, what, None))
    return tuple(resolved)


def _values(steps: tuple[_Step, ...], fields: tuple[Any, ...], view: memoryview) -> tuple[Any, ...]:
    """The values of a table, or the elements of a vector."""
    values: list[Any] = []
    for step, what, more in steps:
        if step is _LEAF:
            values.append(fields[what])
        elif step is _VIEW:
            values.append(view[what:more])
        elif step is _TEXT:
            values.append(str(fields[what], "utf-8"))
        elif step is _LEAVES:
            values.append(fields[what:more])
        elif step is _TABLE:
            values.append(_values(what, fields, view))
        elif step is _UNION:
            values.append((what, _values(more, fields, view)))
        else:
            values.append(what)
    return tuple(values)


class Reader:
    """Reads messages of one layout, those of a shape that it has met by a template."""

    __slots__ = ("_layout", "_misses", "_templates")

    def __init__(self, layout: MessageLayout) -> None:
        """Begin without any template."""
        self._layout = layout
        self._templates: dict[int, _Reading] = {}
        self._misses: dict[int, int] = {}

    def read(self, buffer: bytes | bytearray | memoryview) -> tuple[Any, ...]:
        """Do what `read_message` does: the same values, the same errors."""
        size = len(buffer)
        template = self._templates.get(size)
        if template is not None and (values := template.read(buffer)) is not None:
            return values
        values = read_message(buffer, self._layout)
        if size <= TEMPLATE_BYTES_MAX:
            self._note(buffer, MISSES_MAX if template is not None else SIGHTINGS)
        return values

    def _note(self, buffer: bytes | bytearray | memoryview, misses_max: int) -> None:
        """Note a message that no template reads; make one of it where that has happened often enough."""
        size = len(buffer)
        misses = self._misses.pop(size, 0) + 1
        if misses < misses_max:
            _put(self._misses, size, misses)
            return
        message = bytes(buffer)
        survey = _Survey(message, self._layout)
        order = _in_order(message, survey.leaves)
        if order is not None:
            _put(self._templates, size, _Reading(survey, order))


class _Writing:
    """Writes messages of one shape, each as a frame."""

    __slots__ = ("_runs",)

    def __init__(self, survey: _Survey, order: list[bytes | int], size_bytes: int) -> None:
        self._runs: list[tuple[Struct, list[Any], list[tuple[int, int]], int | None]] = []
        formats, constants, places = ["<"], list[Any](), list[tuple[int, int]]()
        for part in [encode_uvarint(size_bytes), *order]:
            if isinstance(part, int) and not survey.leaves[part].format and survey.leaves[part].size >= PIECE_BYTES_MIN:
                self._runs.append((Struct("".join(formats)), constants, places, part))
                formats, constants, places = ["<"], [], []
            elif isinstance(part, int):
                places.append((len(constants), part))
                constants.append(None)
                formats.append(survey.leaves[part].format or f"{survey.leaves[part].size}s")
            else:
                constants.append(part)
                formats.append(f"{len(part)}s")
        if constants:
            self._runs.append((Struct("".join(formats)), constants, places, None))

    def write(self, leaves: list[Any]) -> list[bytes | memoryview]:
        """Return the frame in pieces, of the values in the order of the schema."""
        pieces: list[bytes | memoryview] = []
        for struct, constants, places, data in self._runs:
            fields = constants.copy()
            for place, number in places:
                fields[place] = leaves[number]
            pieces.append(struct.pack(*fields))
            if data is not None:
                pieces.append(leaves[data])
        return pieces


class Writer:
    """Writes messages of one layout as frames, those of a shape that it has met by a template."""

    __slots__ = ("_layout", "_message_bytes_max", "_sightings", "_templates")

    def __init__(self, layout: MessageLayout, message_bytes_max: int) -> None:
        """Begin without any template.

        Args:
            layout: what is written.
            message_bytes_max: the longest message without its frame.
        """
        self._layout = layout
        self._message_bytes_max = message_bytes_max
        self._templates: dict[tuple[int, ...], _Writing] = {}
        self._sightings: dict[tuple[int, ...], int] = {}

    def frame(self, values: Sequence[Any]) -> list[bytes | memoryview]:
        """Do what `write_frame` does: the same bytes, the same errors."""
        leaves: list[Any] = []
        lengths: list[int] = []
        try:
            _take_apart(self._layout, self._layout.tables[self._layout.root], values, leaves, lengths)
        except UnicodeEncodeError:
            return write_frame(self._layout, values, self._message_bytes_max)  # which says what is wrong
        shape = tuple(lengths)
        template = self._templates.get(shape)
        if template is not None:
            return template.write(leaves)
        pieces = write_frame(self._layout, values, self._message_bytes_max)
        self._note(shape, pieces)
        return pieces

    def _note(self, shape: tuple[int, ...], pieces: list[bytes | memoryview]) -> None:
        """Note a shape that has no template; make one where it was met often enough."""
        sightings = self._sightings.pop(shape, 0) + 1
        if sightings < SIGHTINGS:
            _put(self._sightings, shape, sightings)
            return
        if sum(map(len, pieces)) > TEMPLATE_BYTES_MAX:
            return
        frame = b"".join(pieces)
        message = frame[decode_uvarint(frame)[1] :]
        survey = _Survey(message, self._layout)
        order = _in_order(message, survey.leaves)
        assert order is not None, "what is written shares no bytes"
        _put(self._templates, shape, _Writing(survey, order, len(message)))


def _take_apart(layout: MessageLayout, table: TableLayout, values: Sequence[Any], leaves: list[Any], lengths: list[int]) -> None:
    """Append the values of a table as they are packed, and the lengths and types that make its shape."""
    for field, value in zip(table.fields, values, strict=True):
        kind = field.kind
        if kind is _SCALAR:
            leaves.append(value)
        elif kind is _STRING:
            encoded = value.encode()
            lengths.append(len(encoded))
            leaves.append(encoded)
        elif kind is _BYTES:
            length = len(value)
            lengths.append(length)
            leaves.append(value if length >= PIECE_BYTES_MIN else bytes(value))
        elif kind is _OF_TYPES:
            member: int = value[0]
            lengths.append(member)
            _take_apart(layout, layout.tables[field.members[member - 1]], value[1], leaves, lengths)
        elif kind is _ONE_TABLE:
            _take_apart(layout, layout.tables[field.members[0]], value, leaves, lengths)
        else:
            lengths.append(len(value))
            if kind is _SCALARS:
                leaves += value
            elif kind is _STRINGS:
                for text in value:
                    encoded = text.encode()
                    lengths.append(len(encoded))
                    leaves.append(encoded)
            else:
                member_table = layout.tables[field.members[0]]
                for inner in value:
                    _take_apart(layout, member_table, inner, leaves, lengths)


def _put(kept: dict[_K, _V], key: _K, value: _V) -> None:
    """Keep a value; the one that was put longest ago goes where there are too many."""
    if len(kept) >= TEMPLATES_MAX and key not in kept:
        del kept[next(iter(kept))]
    kept[key] = value
