"""Rows of the peer table: parallel columns of numbers and references, sorted by key.

A table of ten thousand records that were one object each, with their numbers as objects of Python, would take a kilobyte a
record beside the record itself. In columns it is about a hundred bytes. A row is found by bisection and put in its place by
moving what stands behind it, which for ten thousand rows is a few microseconds a column.

Keys are eight bytes, kept as numbers: their order as numbers is that of the bytes, and rows of one bucket, the first byte of the
key, stand together.
"""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import NewType

from protocol.coordinates import DIMENSIONS, Coordinate
from protocol.identity import PeerId
from protocol.records import RecordKind, Serving

RecordKey = NewType("RecordKey", bytes)
"""What a digest calls the records of one peer and kind: `RECORD_KEY_BYTES` bytes of a hash."""

RECORD_KEY_BYTES = 8
"""Length of a record key in bytes: among 4,096 keys two are equal by chance once in 10^12, and no harm is done."""

PLACE_NUMBERS = DIMENSIONS + 2
"""Numbers of a place, a count: its components, its height and its error, as 32-bit floats, which round off a ten-millionth."""

_NOWHERE = array("f", [float("nan")] * PLACE_NUMBERS)
_PLACE = struct.Struct(f"{PLACE_NUMBERS}f")

KINDS = tuple(sorted(RecordKind))
"""The kinds in their order, by which a row says its kind."""

_KIND_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}

Place = tuple[float, ...]
"""Components, height and error of a coordinate, `PLACE_NUMBERS` of them."""


class Rows:
    """The columns; a row is named by its number, which holds until the next row is put in or taken out.

    Attributes:
        keys: sorted, as numbers.
        sequences: of the records.
        expires_s: wall-clock times at which they expire.
        forget_s: wall-clock times from which on no record that they made stale is valid.
        packed: the records as a `RecordPacker` keeps them.
        peers: whose they are.
        kinds: places in `KINDS`.
        servings: of cards; None for all others.
        incarnations: of cards; 0 for all others.
    """

    def __init__(self) -> None:
        """No rows."""
        self.keys = array("Q")
        self.sequences = array("q")
        self.expires_s = array("d")
        self.forget_s = array("d")
        self.packed: list[bytes] = []
        self.peers: list[PeerId] = []
        self.kinds = bytearray()
        self.servings: list[Serving | None] = []
        self.incarnations = array("q")
        self._places = array("f")

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.keys)

    def find(self, key: RecordKey) -> int | None:
        """The row of a key."""
        number = int.from_bytes(key, "big")
        row = bisect_left(self.keys, number)
        return row if row < len(self.keys) and self.keys[row] == number else None

    def insert(self, key: RecordKey, peer_id: PeerId, kind: RecordKind) -> int:
        """Makes an empty row for a key that has none, and returns it; the rows from there on move up."""
        number = int.from_bytes(key, "big")
        row = bisect_left(self.keys, number)
        self.keys.insert(row, number)
        self.sequences.insert(row, 0)
        self.expires_s.insert(row, 0.0)
        self.forget_s.insert(row, 0.0)
        self.packed.insert(row, b"")
        self.peers.insert(row, peer_id)
        self.kinds.insert(row, _KIND_NUMBERS[kind])
        self.servings.insert(row, None)
        self.incarnations.insert(row, 0)
        self._places[row * PLACE_NUMBERS : row * PLACE_NUMBERS] = _NOWHERE
        return row

    def delete(self, row: int) -> None:
        """Takes a row out; those behind it move down."""
        for column in (self.keys, self.sequences, self.expires_s, self.forget_s, self.packed, self.peers, self.kinds):
            del column[row]
        del self.servings[row], self.incarnations[row]
        del self._places[row * PLACE_NUMBERS : (row + 1) * PLACE_NUMBERS]

    def key(self, row: int) -> RecordKey:
        """The key of a row, as bytes."""
        return RecordKey(self.keys[row].to_bytes(RECORD_KEY_BYTES, "big"))

    def kind(self, row: int) -> RecordKind:
        """The kind of a row's record."""
        return KINDS[self.kinds[row]]

    def of_bucket(self, bucket: int) -> range:
        """The rows whose keys begin with this byte."""
        shift = 8 * (RECORD_KEY_BYTES - 1)
        begin = bisect_left(self.keys, bucket << shift)
        return range(begin, bisect_left(self.keys, (bucket + 1) << shift, begin))

    def ordered(self) -> list[int]:
        """The rows in the order of peer ids, then kinds."""
        return sorted(range(len(self)), key=lambda row: (self.peers[row], self.kinds[row]))

    def set_place(self, row: int, place: Coordinate | None) -> None:
        """Notes where a card says its node is."""
        numbers = _NOWHERE if place is None else array("f", (*place.vector, place.height_s, place.error))
        assert len(numbers) == PLACE_NUMBERS
        self._places[row * PLACE_NUMBERS : (row + 1) * PLACE_NUMBERS] = numbers

    def place(self, row: int) -> Place | None:
        """Where a card says its node is, or None."""
        place = _PLACE.unpack_from(self._places, row * _PLACE.size)
        return place if place[-1] == place[-1] else None

    def places(self) -> Iterator[tuple[PeerId, Place]]:
        """Everybody whose card tells a place, in the order of the keys."""
        for peer_id, place in zip(self.peers, _PLACE.iter_unpack(self._places), strict=True):
            if place[-1] == place[-1]:  # a NaN is not itself: no place
                yield peer_id, place
