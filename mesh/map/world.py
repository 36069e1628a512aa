"""The map of the world: nodes where their owners say they stand, and lines of equal time round the middle.

The projection is equirectangular: a degree is as long everywhere. Times between the nodes are guessed by inverse distance over
the ground, and no line is drawn farther than `REACH_KM` from every node, where a guess would be an invention; geography is not
latency, and the lines say what the nodes there say. The outlines of land are those of Natural Earth's 1:110m map, simplified to
half a degree.

Source: D. Shepard, "A two-dimensional interpolation function for irregularly-spaced data", 1968; W. Lorensen, H. Cline, "Marching
cubes", 1987, in two dimensions; Natural Earth (public domain), naturalearthdata.com.
"""

import math
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from mesh.map.draw import LEGEND, TOP, WIDTH, Drawing, framed, head, layers, legend, mark_radius, title_of
from mesh.map.facts import MapFacts
from mesh.map.labels import Board, Box, width_of
from mesh.map.scale import Scale, scale_for
from mesh.nodefile import ClientError

EARTH_KM = 6371.0
"""Mean radius of the Earth in kilometres."""

REACH_KM = 3000.0
"""Kilometres from the nearest node within which lines are drawn: as far as light in fibre goes and comes back in 30 ms."""

SOFT_KM = 50.0
"""Kilometres added to every distance, so that a node counts within its city as it does in the next street."""

SPAN_MIN = 30.0
"""Fewest degrees of longitude on a map: nodes of one city still have a coast round them."""

MARGIN = 0.18
"""Share of the nodes' own span that is added on each side."""

CELLS = 100
"""Cells of the grid across the map, a count: ten pixels each."""


def draw_world(facts: MapFacts, *, alone: str = "") -> Drawing:
    """Draw the nodes whose owners say where they stand.

    Args:
        facts: what is on it; the middle has to have a place.
        alone: style for an SVG that is not part of a page.

    Raises:
        ClientError: the middle has none.
    """
    if facts.places[0].latitude is None:
        raise ClientError(
            f"{facts.places[0].name} has not told where it stands: set latitude and longitude there (docs/configuration.md), "
            "or choose another middle with --around"
        )
    facts = facts.located()
    where = np.array([(place.longitude, place.latitude) for place in facts.places], dtype=np.float64)
    grid = window(where)
    spots = [
        (grid["left"] + (x - grid["west"]) * grid["pixels"], grid["top"] + (grid["north"] - y) * grid["pixels"]) for x, y in where
    ]
    scale = scale_for(facts.ms_from_middle()[1:])
    height = grid["rows"] * grid["cell"]
    board = Board(Box(4, TOP, WIDTH - 8, height))
    radius = mark_radius(len(facts.places))
    board.take(Box(x - radius, y - radius, 2 * radius, 2 * radius) for x, y in spots)
    lines = isochrones(np.array(facts.ms_from_middle()), where, grid, scale, board)
    note = f"where owners say their nodes stand · no line farther than {REACH_KM:g} km from every node"
    inner = [
        *head(facts, note),
        f'<clipPath id="window"><rect x="0" y="{TOP}" width="{WIDTH}" height="{height:g}"/></clipPath>',
        f'<g clip-path="url(#window)" aria-hidden="true"><path class="land" d="{coast(grid)}"/>',
        f'<path class="grid" d="{meridians(grid)}"/></g>',
        f'<g class="lines" clip-path="url(#window)" aria-hidden="true">{"".join(lines)}</g>',
        *layers(facts, spots, (), board, is_world=True),
        *legend(TOP + height + 8, "lines: equal round-trip time, guessed between nodes", bounds=False),
    ]
    svg = framed(inner, TOP + height + LEGEND, title_of(facts), alone)
    return Drawing(svg, spots, [0.0] * len(spots), scale, grid, note)


def window(where: NDArray[np.float64]) -> dict[str, float]:
    """The part of the world that shows all nodes, as a grid.

    Args:
        where: shape (nodes, 2), longitude and latitude in degrees.
    """
    (west, south), (east, north) = where.min(axis=0), where.max(axis=0)
    span = min(360.0, max(SPAN_MIN, (east - west) * (1 + 2 * MARGIN), (north - south) * (1 + 2 * MARGIN) * 2.0))
    tall = min(180.0, max(span / 2.0, (north - south) * (1 + 2 * MARGIN)))
    west = min(max(-180.0, (west + east - span) / 2.0), 180.0 - span)
    north = max(min(90.0, (south + north + tall) / 2.0), -90.0 + tall)
    step = span / CELLS
    rows = max(1, round(tall / step))
    return {
        "west": float(west), "north": float(north), "step": step, "columns": CELLS, "rows": rows, "left": 0.0, "top": float(TOP),
        "cell": WIDTH / CELLS, "pixels": WIDTH / span, "reachKm": REACH_KM, "softKm": SOFT_KM,
    }  # fmt: skip


def coast(grid: dict[str, float]) -> str:
    """The outlines of land as one path."""
    parts: list[str] = []
    for line in files("mesh.map").joinpath("data/coast.txt").read_text("ascii").splitlines():
        if line.startswith("#"):
            continue
        steps = np.array([[int(number) for number in corner.split(",")] for corner in line.split()])
        ring = np.cumsum(steps, axis=0) / 2.0
        for shift in (0.0, -360.0, 360.0):  # a ring that crosses the antimeridian is drawn on both sides
            shifted = ring + np.array((shift, 0.0))
            if shifted[:, 0].max() > -180.0 and shifted[:, 0].min() < 180.0:
                x = grid["left"] + (shifted[:, 0] - grid["west"]) * grid["pixels"]
                y = grid["top"] + (grid["north"] - shifted[:, 1]) * grid["pixels"]
                parts.append("M" + "L".join(f"{a:.0f} {b:.0f}" for a, b in zip(x, y, strict=True)) + "Z")
    return "".join(parts)


def meridians(grid: dict[str, float]) -> str:
    """Meridians and parallels, ten or thirty degrees apart."""
    step = 30 if grid["columns"] * grid["step"] > 120.0 else 10
    parts = [f"M{(x - grid['west']) * grid['pixels']:.1f} {TOP}v{WIDTH}" for x in range(-180, 181, step)]
    return "".join(
        [*parts, *(f"M0 {grid['top'] + (grid['north'] - y) * grid['pixels']:.1f}h{WIDTH}" for y in range(-90, 91, step))]
    )


def field(ms: NDArray[np.float64], where: NDArray[np.float64], grid: dict[str, float]) -> NDArray[np.float64]:
    """The guessed round trip at every corner of the grid; NaN where no node is near.

    Args:
        ms: shape (nodes,), the round trips of the nodes from the middle.
        where: shape (nodes, 2), degrees.
        grid: of `window`.
    """
    longitudes = grid["west"] + np.arange(int(grid["columns"]) + 1) * grid["step"]
    latitudes = grid["north"] - np.arange(int(grid["rows"]) + 1) * grid["step"]
    corners = _units(np.stack(np.meshgrid(longitudes, latitudes), axis=-1))
    km = EARTH_KM * np.arccos(np.clip(corners @ _units(where).T, -1.0, 1.0))
    weights = 1.0 / (km + SOFT_KM) ** 2
    guessed = (weights * ms).sum(axis=-1) / weights.sum(axis=-1)
    return np.asarray(np.where(km.min(axis=-1) > REACH_KM, np.nan, guessed), dtype=np.float64)


def _units(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes and latitudes as unit vectors."""
    longitude, latitude = np.radians(degrees[..., 0]), np.radians(degrees[..., 1])
    return np.stack((np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)), axis=-1)


def isochrones(
    ms: NDArray[np.float64], where: NDArray[np.float64], grid: dict[str, float], scale: Scale, board: Board
) -> list[str]:
    """Lines at the round numbers of the scale, each with its figure once."""
    values = field(ms, where, grid)
    parts: list[str] = []
    for ring in scale.rings():
        lines = crossings(values, ring, grid)
        if not lines:
            continue
        drawn = "".join(f"M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}" for a, b in lines)
        parts.append(f'<path class="line" data-ms="{ring:g}" d="{drawn}"/>')
        text = f"{ring:g} ms"
        half = width_of(text) / 2
        for (x, y), _ in lines:
            box = Box(x - half, y - 7, 2 * half, 14)
            if 4 < box.x < WIDTH - 4 - 2 * half and not any(box.meets(other) for other in board.taken):
                board.take([box])
                parts.append(f'<text class="ms" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{text}</text>')
                break
    return parts


Corner = tuple[float, float]


def crossings(values: NDArray[np.float64], ms: float, grid: dict[str, float]) -> list[tuple[Corner, Corner]]:
    """The pieces of the line at which the guessed round trip is `ms`, cell by cell, in pixels."""
    pieces: list[tuple[Corner, Corner]] = []
    below = values < ms
    around = np.stack((values[:-1, :-1], values[:-1, 1:], values[1:, 1:], values[1:, :-1]))
    mixed = np.stack((below[:-1, :-1], below[:-1, 1:], below[1:, 1:], below[1:, :-1])).sum(axis=0)
    for row, column in np.argwhere((mixed > 0) & (mixed < len(around)) & ~np.isnan(around).any(axis=0)):
        corners: Sequence[tuple[int, int]] = ((column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1))
        found: list[Corner] = []
        for side, (x, y) in enumerate(corners):
            u, v = corners[(side + 1) % 4]
            here, there = float(values[y, x]), float(values[v, u])
            if (here < ms) != (there < ms):
                share = (ms - here) / (there - here)
                found.append(
                    (grid["left"] + (x + (u - x) * share) * grid["cell"], grid["top"] + (y + (v - y) * share) * grid["cell"])
                )
        pieces += zip(found[::2], found[1::2], strict=True)
    assert all(math.isfinite(x) for piece in pieces for corner in piece for x in corner)
    return pieces
