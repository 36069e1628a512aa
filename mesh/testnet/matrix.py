"""A test mesh out of a matrix of round trips: the files that `python -m sim coordinates` reads, npz and csv.

Each pair of nodes gets the median of its slices, half of it each way. Where a file has several slices, a path jitters as its
slices vary, up to a hundredth: slices are moments hours apart, and packets that follow one another differ by less. Of a larger
matrix some nodes are drawn: the same ones that the simulator draws from the same seed.

The simulator and the shell do not know each other, so the format is read here once more; a test holds both to the same answer.

Source: docs/coordinates.md, section "Files".
"""

import csv
import hashlib
import io
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from mesh.config import ConfigError
from mesh.testnet.topology import DELAY_MS_MAX, NODES_MAX, Link, NodeSpec, Topology

NODES_DEFAULT = 12
"""Nodes that are drawn of a larger matrix unless told otherwise, a count: as many processes run well on two cores."""

FILE_BYTES_MAX = 1 << 28
"""Bytes of a matrix file. The largest matrix at hand, PlanetLab's, has 6 MB."""

MATRIX_NODES_MAX = 5_000
"""Nodes of a matrix, a count, as in the simulator."""

ENTRIES_MAX = 64_000_000
"""Round trips of a matrix, a count, as in the simulator: half a gigabyte while they are read."""

RTT_MS_MAX = 10_000.0
"""Milliseconds. What is longer is a stall and no distance, and counts as unknown, as in the simulator."""

DEVIATION = 1.4826
"""Standard deviation over the median deviation from the median, unitless, of a normal distribution."""

JITTER_SHARE_MAX = 0.01
"""Deviation of a way's delay as a share of it, unitless: half of PlanetLab's paths vary by less than 0.009 from day to day."""

_PAIR_COLUMNS = ("a", "b", "rtt_ms")
READ_FAULTS = (
    ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
    NotImplementedError, RuntimeError, SyntaxError, TypeError, MemoryError,
)  # fmt: skip
"""What the libraries raise at bytes that are no archive of arrays, besides our own ValueError."""

Milliseconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Round trips between nodes.

    Attributes:
        name: what it is called.
        rtt_ms: shape (slices, n, n); NaN where nothing is known.
        names: of the nodes.
    """

    name: str
    rtt_ms: Milliseconds
    names: tuple[str, ...]


def matrix_topology(path: Path, nodes: int | None = None, seed: int = 1) -> Topology:
    """Read a matrix and make a mesh of it, or of some of its nodes.

    Args:
        path: an .npz or .csv file; docs/coordinates.md says what may be in it.
        nodes: how many of its nodes; `NODES_DEFAULT`, or all where there are fewer, if None.
        seed: which of them, where they are not all.

    Raises:
        ConfigError: the file cannot be used, or has too few nodes.
    """
    matrix = read_matrix(path)
    held = len(matrix.names)
    count = min(NODES_DEFAULT, held) if nodes is None else nodes
    if not 1 <= count <= min(NODES_MAX, held):
        limit = f"the matrix has {held}" if held < NODES_MAX else f"a test mesh has {NODES_MAX} at most"
        raise ConfigError("--nodes", count, "command line", f"give a number from 1 to {min(NODES_MAX, held)}; {limit}")
    return topology_of(matrix, drawn(held, count, seed), str(path))


def drawn(held: int, count: int, seed: int) -> list[int]:
    """The nodes that `python -m sim coordinates --nodes COUNT --seed SEED` draws of a matrix, in the order of the matrix."""
    if count >= held:
        return list(range(held))
    luck = Random(int.from_bytes(hashlib.sha256(f"{seed}/nodes".encode()).digest(), "big"))  # noqa: S311  # repeatable on purpose
    return sorted(luck.sample(range(held), count))


def topology_of(matrix: Matrix, chosen: Sequence[int], source: str) -> Topology:
    """Make a mesh of the chosen nodes of a matrix.

    Raises:
        ConfigError: the round trip of two of them is unknown.
    """
    part = matrix.rtt_ms[:, chosen][:, :, chosen]
    names = [matrix.names[index] for index in chosen]
    links = [[Link(0.0)] * len(chosen) for _ in chosen]
    for i in range(len(chosen)):
        for j in range(i + 1, len(chosen)):
            known = part[:, i, j]
            known = known[np.isfinite(known)]
            if len(known) == 0:
                advice = "nothing is known of this pair; draw other nodes with --seed, or fewer with --nodes"
                raise ConfigError(f"{names[i]}, {names[j]}", None, source, advice)
            middle_ms = float(np.median(known))
            spread_ms = DEVIATION * float(np.median(np.abs(known - middle_ms)))
            # Both ways vary by themselves, and what varies by s each varies by s times the root of two together.
            jitter_ms = min(spread_ms / math.sqrt(2.0), JITTER_SHARE_MAX * middle_ms / 2)
            links[i][j] = links[j][i] = Link(middle_ms / 2e3, jitter_ms / 1e3)
    called = _folder_names(names)
    nodes = tuple(NodeSpec(folder, region=name) for folder, name in zip(called, names, strict=True))
    return Topology(matrix.name, nodes, tuple(tuple(row) for row in links))


def read_matrix(path: Path) -> Matrix:
    """Read a matrix; what cannot be a round trip is unknown, and one known direction stands for both.

    Raises:
        ConfigError: the file cannot be read or is of no known form.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise _unusable(path, "a matrix is an .npz or a .csv file (docs/coordinates.md)")
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise _unusable(path, f"the file is larger than {FILE_BYTES_MAX} bytes")
        rtt_ms, names = reader(path.read_bytes())
    except OSError as error:
        raise _unusable(path, f"the file cannot be read ({error.strerror})") from error
    except READ_FAULTS as error:
        raise _unusable(path, f"it holds no matrix: {error} (docs/coordinates.md)") from error
    with np.errstate(invalid="ignore"):
        rtt_ms[~((rtt_ms > 0.0) & (rtt_ms <= min(RTT_MS_MAX, 2 * DELAY_MS_MAX)))] = np.nan
    for plane in rtt_ms:
        # Paths are the same from both ends here: where the directions differ, their mean is meant.
        other = plane.T.copy()
        both = np.isfinite(plane) & np.isfinite(other)
        plane[:] = np.where(both, (plane + other) / 2, np.where(np.isfinite(plane), plane, other))
    return Matrix(path.stem, rtt_ms, names)


def _unusable(path: Path, advice: str) -> ConfigError:
    return ConfigError("--matrix", str(path), "command line", advice)


def _folder_names(names: Sequence[str]) -> list[str]:
    """Names that nodes and their folders may have: as in the matrix where that will do, else numbered."""
    slugs = [re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32] for name in names]
    slugs = [f"node-{slug}" if slug.isdigit() else slug for slug in slugs]
    return slugs if all(slugs) and len(set(slugs)) == len(slugs) else [f"node-{index}" for index in range(len(names))]


def _bounded(slices: int, nodes: int) -> None:
    if not 1 <= nodes <= MATRIX_NODES_MAX or slices < 1 or slices * nodes * nodes > ENTRIES_MAX:
        raise ValueError(f"{slices} slices of {nodes} nodes; at most {MATRIX_NODES_MAX} nodes and {ENTRIES_MAX} round trips")


def _numbered(nodes: int) -> tuple[str, ...]:
    return tuple(str(index) for index in range(nodes))


def _read_npz(data: bytes) -> tuple[Milliseconds, tuple[str, ...]]:
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        if sum(member.file_size for member in whole.infolist()) > 8 * ENTRIES_MAX + FILE_BYTES_MAX:
            raise ValueError("unpacked it is larger than any matrix that is read")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        if "upper" in archive and "n" in archive:
            nodes, upper = int(archive["n"]), np.atleast_2d(np.asarray(archive["upper"], dtype=np.float64))
            _bounded(len(upper), nodes)
            if upper.shape[1] != nodes * (nodes - 1) // 2:
                raise ValueError(f"`upper` has the shape {upper.shape}, which is not that of {nodes} nodes")
            rtt_ms = np.full((len(upper), nodes, nodes), np.nan)
            rows, columns = np.triu_indices(nodes, 1)
            rtt_ms[:, rows, columns] = upper
            return rtt_ms, _numbered(nodes)
        for key, unit_ms in (("rtt", 1.0), ("rtt10ms", 10.0)):
            if key in archive:
                return _square(np.asarray(archive[key], dtype=np.float64) * unit_ms)
    raise ValueError("neither `upper` and `n`, nor `rtt`, nor `rtt10ms` are in it")


def _square(found: Milliseconds) -> tuple[Milliseconds, tuple[str, ...]]:
    planes = found[None] if found.ndim == 2 else found
    if planes.ndim != 3 or planes.shape[1] != planes.shape[2]:
        raise ValueError(f"the shape {found.shape} is no square and no series of squares")
    _bounded(len(planes), planes.shape[1])
    return planes, _numbered(planes.shape[1])


def _read_csv(data: bytes) -> tuple[Milliseconds, tuple[str, ...]]:
    text = data.decode("utf-8-sig")
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    header = tuple(cell.strip().lower() for cell in rows[0]) if rows else ()
    if header in (_PAIR_COLUMNS, (*_PAIR_COLUMNS, "slice")):
        return _pairs(rows[1:], len(header))
    _bounded(1, len(rows))
    if any(len(row) != len(rows) for row in rows):
        raise ValueError(f"{len(rows)} lines, and not as many numbers in each; or begin with the header a,b,rtt_ms")
    return _square(np.array([[_number(cell) for cell in row] for row in rows], dtype=np.float64))


def _pairs(rows: Sequence[Sequence[str]], width: int) -> tuple[Milliseconds, tuple[str, ...]]:
    names: dict[str, int] = {}
    found: dict[tuple[int, int, int], float] = {}
    for number, row in enumerate(rows, 2):
        if len(row) != width:
            raise ValueError(f"line {number} has {len(row)} columns, the header {width}")
        one, other = (names.setdefault(cell.strip(), len(names)) for cell in row[:2])
        at = (int(row[3]) if width > len(_PAIR_COLUMNS) else 0, one, other)
        if at[0] < 0 or at in found:
            raise ValueError(f"line {number}: {','.join(row)} has a slice below 0, or stands there twice")
        found[at] = _number(row[2])
    slices = 1 + max((at[0] for at in found), default=0)
    _bounded(slices, len(names))
    rtt_ms = np.full((slices, len(names), len(names)), np.nan)
    for at, value in found.items():
        rtt_ms[at] = value
    return rtt_ms, tuple(names)


def _number(cell: str) -> float:
    cell = cell.strip()
    return float(cell) if cell and cell != "-" else math.nan


READERS = {".npz": _read_npz, ".csv": _read_csv}
"""By the ending of the file's name."""
