"""Matrices of round trips from files: npz and csv, one or many slices, in milliseconds.

A file is judged by its headers before anything of its size is held in memory. What cannot be a round trip (NaN, infinity, zero
or less, more than `RTT_S_MAX`) is an unknown pair: it is never measured and never scored. Where only one direction of a pair is
given it stands for both.

Source: docs/coordinates.md, section "Files".
"""

import csv
import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

NODES_MAX = 5_000
"""Nodes of a matrix, a count: the methods keep what they hear of each node at each node, 25 million references at most."""

SLICES_MAX = 10_000
"""Slices of a matrix, a count: a week of minutes."""

ENTRIES_MAX = 64_000_000
"""Round trips of a matrix, a count: 256 MB as 32-bit numbers; 2,000 nodes with 16 slices."""

FILE_BYTES_MAX = 1 << 30
"""Bytes of a file: numbers of `ENTRIES_MAX` written out in csv stay below."""

RTT_S_MAX = 10.0
"""Seconds. A longer round trip is a stall and no distance, as in docs/spec/05-coordinates.md."""

NODES_MIN = 3
"""Nodes of a matrix, a count: with two there is nothing to choose and nothing to place."""

PAIR_COLUMNS = ("a", "b", "rtt_ms")
"""The first columns of a csv of pairs; a fourth, `slice`, may follow."""

_READ_FAULTS = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError)
"""What the libraries raise at bytes that are no archive of arrays."""

Round = NDArray[np.float32]


class MatrixError(ValueError):
    """A matrix that cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class RttMatrix:
    """Round trips between nodes.

    Attributes:
        name: what it is called in reports.
        rtt_s: seconds, shape (slices, n, n); NaN where nothing is known and on the diagonal. From row to column.
        names: of the nodes.
    """

    name: str
    rtt_s: Round
    names: tuple[str, ...]

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return int(self.rtt_s.shape[1])

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return int(self.rtt_s.shape[0])

    def middle(self, first: int = 0, count: int | None = None) -> Round:
        """The median of `count` slices from `first` on (of all): shape (n, n), NaN where a pair is in none of them."""
        chosen = self.rtt_s[first : None if count is None else first + count]
        if len(chosen) == 1:
            return np.asarray(chosen[0])
        order = np.sort(chosen, axis=0)  # NaN is sorted to the end
        known = np.isfinite(chosen).sum(axis=0)
        low, high = np.maximum(known - 1, 0) // 2, known // 2
        high = np.minimum(high, len(chosen) - 1)
        picked = (np.take_along_axis(order, low[None], 0)[0] + np.take_along_axis(order, high[None], 0)[0]) / 2
        return np.asarray(np.where(known > 0, picked, np.nan), dtype=np.float32)

    def some(self, count: int, luck: Random) -> "RttMatrix":
        """A matrix of `count` of the nodes, drawn; the whole where there are no more."""
        if count >= self.nodes:
            return self
        chosen = sorted(luck.sample(range(self.nodes), count))
        rtt_s = np.ascontiguousarray(self.rtt_s[:, chosen][:, :, chosen])
        return checked(RttMatrix(f"{self.name}, {count} of its nodes", rtt_s, tuple(self.names[index] for index in chosen)))


def load(path: Path) -> RttMatrix:
    """Reads a matrix.

    Raises:
        MatrixError: the file cannot be read, is of no known form, holds nothing to measure, or is too large.
    """
    kinds: dict[str, Callable[[str, bytes], RttMatrix]] = {".npz": read_npz, ".csv": read_csv}
    reader = kinds.get(path.suffix.lower())
    if reader is None:
        raise MatrixError(f"{path}: a matrix is an .npz or a .csv file, or synthetic-N or volatile-N without a file")
    try:
        size = path.stat().st_size
        if size > FILE_BYTES_MAX:
            raise MatrixError(f"{path}: {size} bytes are more than {FILE_BYTES_MAX}")
        data = path.read_bytes()
    except OSError as error:
        raise MatrixError(f"{path}: {error.strerror or error}") from error
    return reader(path.name, data)


def read_npz(name: str, data: bytes) -> RttMatrix:
    """A matrix out of the bytes of an npz archive: `upper` with `n`, or `rtt`, both in ms, or `rtt10ms`, in units of 10 ms.

    Raises:
        MatrixError: see `load`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            held = set(archive.namelist())
            if "upper.npy" in held and "n.npy" in held:
                return checked(RttMatrix(name, *_from_upper(_array(archive, "upper"), _number(archive, "n"))))
            for key, unit_s in (("rtt", 1e-3), ("rtt10ms", 1e-2)):
                if f"{key}.npy" in held:
                    return checked(RttMatrix(name, *_from_square(_array(archive, key), unit_s)))
    except MatrixError as error:
        raise MatrixError(f"{name}: {error}") from error
    except (*_READ_FAULTS, RuntimeError, SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise MatrixError(f"{name}: no archive of arrays ({error})") from error
    raise MatrixError(f"{name}: it has neither `upper` and `n`, nor `rtt`, nor `rtt10ms`; docs/coordinates.md says what they are")


def read_csv(name: str, data: bytes) -> RttMatrix:
    """A matrix out of the bytes of a csv: n lines of n numbers, or a header `a,b,rtt_ms[,slice]` and a pair a line; ms.

    Raises:
        MatrixError: see `load`.
    """
    try:
        text = data.decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise MatrixError(f"{name}: no csv ({error})") from error
    if not rows:
        raise MatrixError(f"{name}: it is empty")
    header = tuple(cell.strip().lower() for cell in rows[0])
    try:
        if header[:3] == PAIR_COLUMNS:
            return checked(RttMatrix(name, *_from_pairs(rows[1:], header)))
        return checked(RttMatrix(name, *_from_square(_numbers(rows), 1e-3)))
    except MatrixError as error:
        raise MatrixError(f"{name}: {error}") from error


def checked(matrix: RttMatrix) -> RttMatrix:
    """The matrix with what cannot be a round trip made unknown, and single directions mirrored.

    Raises:
        MatrixError: too few nodes, or no pair is known.
    """
    if matrix.nodes < NODES_MIN:
        raise MatrixError(f"{matrix.nodes} nodes; at least {NODES_MIN} are needed")
    rtt_s = matrix.rtt_s
    with np.errstate(invalid="ignore"):
        rtt_s[~((rtt_s > 0.0) & (rtt_s <= RTT_S_MAX))] = np.nan
    every = np.arange(matrix.nodes)
    for plane in rtt_s:
        plane[every, every] = np.nan
        missing = np.isnan(plane)
        plane[missing] = plane.T[missing]
    if not np.isfinite(rtt_s).any():
        raise MatrixError("no pair has a round trip above 0 and at most 10,000 ms")
    return matrix


def _bounded(slices: int, nodes: int) -> None:
    if nodes > NODES_MAX or slices > SLICES_MAX or slices * nodes * nodes > ENTRIES_MAX:
        limits = f"{NODES_MAX} nodes, {SLICES_MAX} slices and {ENTRIES_MAX} round trips"
        raise MatrixError(f"{slices} slices of {nodes} nodes; the most are {limits}")
    if nodes < NODES_MIN or slices < 1:
        raise MatrixError(f"{slices} slices of {nodes} nodes; at least {NODES_MIN} nodes are needed")


def _array(archive: zipfile.ZipFile, key: str) -> NDArray[np.float64]:
    """An array of numbers of the archive; its header is judged first, so that a small file cannot ask for much memory."""
    with archive.open(f"{key}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise MatrixError(f"`{key}` has the format {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member, max_header_size=4096)
        entries = 1
        for length in shape:
            entries *= length
        if dtype.kind not in "fiu" or dtype.itemsize > 8:
            raise MatrixError(f"`{key}` holds {dtype}, not numbers of at most 64 bits")
        if len(shape) > 3 or entries > ENTRIES_MAX or any(length < 0 for length in shape):
            raise MatrixError(f"`{key}` has the shape {shape}; at most 3 dimensions and {ENTRIES_MAX} numbers")
    with archive.open(f"{key}.npy") as member:
        found: NDArray[np.float64] = np.lib.format.read_array(member, allow_pickle=False)
    return found


def _number(archive: zipfile.ZipFile, key: str) -> int:
    found = _array(archive, key)
    if found.size != 1 or not np.isfinite(found).all():
        raise MatrixError(f"`{key}` is not one number")
    return int(found.reshape(())[()])


def _numbered(nodes: int) -> tuple[str, ...]:
    return tuple(str(index) for index in range(nodes))


def _from_upper(upper: NDArray[np.float64], nodes: int) -> tuple[Round, tuple[str, ...]]:
    planes = np.atleast_2d(upper)
    _bounded(len(planes), nodes)
    if planes.ndim != 2 or planes.shape[1] != nodes * (nodes - 1) // 2:
        raise MatrixError(f"`upper` has the shape {upper.shape}; {nodes} nodes make {nodes * (nodes - 1) // 2} pairs a slice")
    rtt_s = np.full((len(planes), nodes, nodes), np.nan, dtype=np.float32)
    rows, columns = np.triu_indices(nodes, 1)
    with np.errstate(over="ignore"):  # absurdly large ones become infinite, and unknown
        rtt_s[:, rows, columns] = planes * 1e-3
    return rtt_s, _numbered(nodes)


def _from_square(square: NDArray[np.float64], unit_s: float) -> tuple[Round, tuple[str, ...]]:
    planes = square[None] if square.ndim == 2 else square
    if planes.ndim != 3 or planes.shape[1] != planes.shape[2]:
        raise MatrixError(f"the shape {square.shape} is no square and no series of squares")
    _bounded(len(planes), planes.shape[1])
    with np.errstate(over="ignore"):
        rtt_s = planes.astype(np.float32) * np.float32(unit_s)
    return rtt_s, _numbered(planes.shape[1])


def _number_of(cell: str) -> float:
    cell = cell.strip()
    return float(cell) if cell and cell != "-" else np.nan


def _numbers(rows: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    nodes = len(rows)
    _bounded(1, nodes)
    found = np.empty((nodes, nodes))
    for number, row in enumerate(rows):
        if len(row) != nodes:
            raise MatrixError(f"line {number + 1} has {len(row)} numbers, and there are {nodes} lines; or begin with a,b,rtt_ms")
        try:
            found[number] = [_number_of(cell) for cell in row]
        except ValueError as error:
            raise MatrixError(f"line {number + 1}: {error}; or begin with the header a,b,rtt_ms") from error
    return found


def _from_pairs(rows: Sequence[Sequence[str]], header: tuple[str, ...]) -> tuple[Round, tuple[str, ...]]:
    sliced = header == (*PAIR_COLUMNS, "slice")
    if not sliced and header != PAIR_COLUMNS:
        raise MatrixError(f"the header is {','.join(header)}; it is a,b,rtt_ms or a,b,rtt_ms,slice")
    names: dict[str, int] = {}
    found: dict[tuple[int, int, int], float] = {}
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise MatrixError(f"line {number} has {len(row)} columns, the header {len(header)}")
        try:
            place = int(row[3]) if sliced else 0
            rtt_ms = _number_of(row[2])
        except ValueError as error:
            raise MatrixError(f"line {number}: {error}") from error
        if not 0 <= place < SLICES_MAX:
            raise MatrixError(f"line {number}: slice {place}; they are counted from 0 to {SLICES_MAX - 1} at most")
        one, other = (names.setdefault(cell.strip(), len(names)) for cell in row[:2])
        if (place, one, other) in found:
            raise MatrixError(f"line {number}: {row[0]},{row[1]} stands twice in slice {place}")
        found[place, one, other] = rtt_ms
    slices = 1 + max((place for place, _, _ in found), default=0)
    _bounded(slices, len(names))
    rtt_s = np.full((slices, len(names), len(names)), np.nan, dtype=np.float32)
    with np.errstate(over="ignore"):
        for at, rtt_ms in found.items():
            rtt_s[at] = rtt_ms * 1e-3
    return rtt_s, tuple(names)
