"""The map as SVG that stands by itself: isochrones round the middle, the nodes, what was measured, names where there is room.

The distance of a mark from the middle is the estimated round trip, on the scale that the rings show. A filled mark rests on a
measurement, a hollow one on coordinates. Lines are paths that were measured, by quality.

Spec: docs/map.md.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mesh.map.facts import Apart, MapFacts, Place
from mesh.map.labels import Board, Box, width_of
from mesh.map.layout import angles
from mesh.map.scale import REACH, Scale, scale_for
from mesh.plain import markup, printable

WIDTH = 1000
"""Width of the drawing in pixels."""

HEIGHT = 900
"""Height of the map in pixels: the outermost isochrone fits, and names stand beside it."""

LEGEND = 64
"""Pixels below the map for the legend."""

TOP = 58
"""Pixels above for the title."""

MARK = 6.5
"""Radius of a node's mark in pixels; a thumb's worth of room round it answers to touch."""

TOUCH = 14
"""Radius of that room in pixels: WCAG 2.2, 2.5.8 asks for 24 across."""

CROWD = 60
"""Nodes from which marks are drawn smaller and bounds are left out, a count."""

EDGES_MAX = 200
"""Most lines of measured paths, a count, the shortest first."""

BOUNDS_SHARE_MIN = 0.02
"""Width of bounds, as a share of the scale, from which they are drawn: narrower ones lie under the mark."""

MEASURED = ("measured", "edges")
"""Sources that rest on probes."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A map that is drawn, and what a page needs to draw it anew.

    Attributes:
        svg: the whole element.
        spots: where each node stands, in pixels.
        turned: the angle of each node round the middle in radians, none on a map of the world.
        scale: pixels for milliseconds.
        grid: how the world lies in the drawing; None where the map is of time alone.
        note: what is said below its title besides.
    """

    svg: str
    spots: list[tuple[float, float]]
    turned: list[float]
    scale: Scale
    grid: Mapping[str, float] | None = None
    note: str = ""


def draw(facts: MapFacts, *, logarithmic: bool | None = None, alone: str = "") -> Drawing:
    """Draw the map.

    Args:
        facts: what is on it.
        logarithmic: the kind of scale; None chooses.
        alone: style for an SVG that is not part of a page.
    """
    scale = scale_for(facts.ms_from_middle()[1:], logarithmic=logarithmic)
    turned = [float(angle) for angle in angles(facts)]
    spots = spots_of(facts, scale, turned)
    centre = WIDTH / 2, TOP + HEIGHT / 2
    board = Board(Box(4, TOP, WIDTH - 8, HEIGHT - 4))
    radius = mark_radius(len(facts.places))
    board.take(Box(x - radius, y - radius, 2 * radius, 2 * radius) for x, y in spots)
    rings = _rings(scale, centre, board)
    bounds = [] if len(facts.places) > CROWD else list(_bounds(facts, scale, spots, centre))
    inner = [
        *head(facts, "logarithmic scale" if scale.is_logarithmic else "linear scale"),
        f'<g class="rings" aria-hidden="true">{"".join(rings)}</g>',
        *layers(facts, spots, bounds, board),
        *legend(TOP + HEIGHT + 8, "rings: equal round-trip time", bounds=True),
    ]
    return Drawing(framed(inner, TOP + HEIGHT + LEGEND, title_of(facts), alone), spots, turned, scale)


def layers(
    facts: MapFacts, spots: Sequence[tuple[float, float]], bounds: Sequence[str], board: Board, *, is_world: bool = False
) -> list[str]:
    """What stands above the isochrones: measured paths, bounds, nodes with their names."""
    crowded = is_world or len(facts.places) > CROWD
    return [
        f'<g class="edges{" many" if crowded else ""}" aria-hidden="true">{"".join(edges(facts, spots))}</g>',
        f'<g class="whiskers" aria-hidden="true">{"".join(bounds)}</g>',
        f'<g class="nodes" role="list">{"".join(marks(facts, spots, board, mark_radius(len(facts.places))))}</g>',
    ]


def framed(inner: Iterable[str], height: float, title: str, alone: str) -> str:
    """The SVG element round a drawing."""
    style = f"<style>{alone}</style>" if alone else ""
    return (
        f'<svg class="map" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" role="group" aria-label="{markup(title)}">{style}<title>{markup(title)}</title>'
        f'<rect class="ground" width="{WIDTH}" height="{height:g}"/>' + "\n".join(inner) + "</svg>"
    )


def title_of(facts: MapFacts) -> str:
    """What the drawing is."""
    return f"Round trips from {facts.places[0].name}"


def spots_of(facts: MapFacts, scale: Scale, turned: Sequence[float]) -> list[tuple[float, float]]:
    """Where each node stands, in pixels: at its angle, as far from the middle as its round trip."""
    found: list[tuple[float, float]] = []
    for ms, angle in zip(facts.ms_from_middle(), turned, strict=True):
        pixels = scale.pixels(ms)
        found.append((WIDTH / 2 + pixels * math.cos(angle), TOP + HEIGHT / 2 - pixels * math.sin(angle)))
    return found


def mark_radius(count: int) -> float:
    """Pixels of a mark, smaller in a crowd."""
    return MARK if count <= CROWD else MARK * 0.7


def head(facts: MapFacts, *notes: str) -> list[str]:
    """The title, and in small what is not on the map."""
    said = [f"{len(facts.places)} nodes", *notes]
    said += [f"{facts.left_off} farther ones left off"] if facts.left_off else []
    said += [f"of {facts.unknown} no distance is known"] if facts.unknown else []
    return [
        f'<text class="title" x="{WIDTH / 2:g}" y="26" text-anchor="middle">{markup(title_of(facts))}</text>',
        f'<text class="small" x="{WIDTH / 2:g}" y="45" text-anchor="middle">{markup(" · ".join(said))}</text>',
    ]


def _rings(scale: Scale, centre: tuple[float, float], board: Board) -> list[str]:
    """The isochrones with their figures, which stand where no mark is in the way."""
    x, y = centre
    parts: list[str] = []
    for ms in scale.rings():
        pixels, text = scale.pixels(ms), f"{ms:g} ms"
        parts.append(f'<circle class="ring" cx="{x:g}" cy="{y:g}" r="{pixels:.2f}" data-ms="{ms:g}"/>')
        for degrees in (90, 75, 105, 60, 120, 45, 135, 270, 255, 285, 0, 180):
            angle, half = math.radians(degrees), width_of(text) / 2
            left, top = x + pixels * math.cos(angle) - half, y - pixels * math.sin(angle) - 7
            box = Box(left, top, 2 * half, 14)
            if not any(box.meets(other) for other in board.taken):
                board.take([box])
                parts.append(f'<text class="ms" x="{left + half:.1f}" y="{top + 11:.1f}" text-anchor="middle">{text}</text>')
                break
    return parts


def quality_of(apart: Apart, place: Place) -> str:
    """How good a measured path is: by its loss, and by its jitter against its length."""
    loss, jitter_ms = place.loss or 0.0, (place.jitter_s or 0.0) * 1000.0
    if loss > 0.05 or jitter_ms > max(2.0, 0.5 * apart.ms):
        return "poor"
    return "fair" if loss > 0.01 or jitter_ms > max(1.0, 0.15 * apart.ms) else "good"


QUALITY = (
    ("good", "good: loss ≤ 1 %, jitter ≤ 15 % of the round trip or 1 ms"),
    ("fair", "fair"),
    ("poor", "poor: loss > 5 %, or jitter > half of it and 2 ms"),
)
"""What the lines say, as `quality_of` tells it."""


def edges(facts: MapFacts, spots: Sequence[tuple[float, float]]) -> Iterable[str]:
    """Lines for paths that were measured, the shortest ones."""
    measured = [(apart.ms, pair) for pair, apart in facts.apart.items() if apart.source in MEASURED]
    for _, (one, other) in sorted(measured)[:EDGES_MAX]:
        far = facts.places[one if other == facts.own else other]
        quality = quality_of(facts.apart[one, other], far) if facts.own in (one, other) else "good"
        (x, y), (u, v) = spots[one], spots[other]
        yield f'<path class="edge {quality}" d="M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}"/>'


def _bounds(facts: MapFacts, scale: Scale, spots: Sequence[tuple[float, float]], centre: tuple[float, float]) -> Iterable[str]:
    """A line through each mark from its lower to its upper bound."""
    for number, (x, y) in enumerate(spots):
        apart = facts.between(0, number)
        length = math.dist((x, y), centre)
        if apart is None or length == 0.0:
            continue
        low, high = scale.pixels(apart.low_ms), min(scale.pixels(apart.high_ms), HEIGHT / 2 - 8)
        if high - low > BOUNDS_SHARE_MIN * REACH:
            ux, uy = (x - centre[0]) / length, (y - centre[1]) / length
            start, end = (centre[0] + low * ux, centre[1] + low * uy), (centre[0] + high * ux, centre[1] + high * uy)
            yield f'<path class="bounds" d="M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"/>'


def marks(facts: MapFacts, spots: Sequence[tuple[float, float]], board: Board, radius: float) -> Iterable[str]:
    """The nodes, nearest first, which is the order of the keyboard; names where there is room."""
    for number, (place, (x, y)) in enumerate(zip(facts.places, spots, strict=True)):
        apart = facts.between(0, number)
        assert apart is not None, "the middle is known to everybody on the map"
        figure = "" if number == 0 else f" {figure_of(apart.ms)}"
        label = ""
        if (found := board.place(printable(place.name) + figure, x, y, radius + 3)) is not None:
            label = text_at(*found, f"{markup(place.name)}<tspan>{figure}</tspan>")
        classes = ["node"]
        classes += ["middle"] if number == 0 else ["measured"] if apart.source in MEASURED else []
        classes += ["own"] if number == facts.own else []
        classes += ["away"] if place.standing not in ("alive", "self", "") else []
        yield (
            f'<g class="{" ".join(classes)}" role="listitem" tabindex="0" data-node="{number}" data-ms="{apart.ms:.6g}" '
            f'aria-label="{markup(describe(place, apart, is_own=number == facts.own))}">'
            f"<title>{markup(describe(place, apart, is_own=number == facts.own))}</title>"
            f'<circle class="spot" cx="{x:.2f}" cy="{y:.2f}" r="{TOUCH}"/>'
            f'<circle class="halo" cx="{x:.2f}" cy="{y:.2f}" r="{radius + 4:g}"/>'
            f'<circle class="mark" cx="{x:.2f}" cy="{y:.2f}" r="{radius:g}"/>{label}</g>'
        )


def text_at(box: Box, held: str, text: str) -> str:
    """A name at its place."""
    x = box.x + {"start": 0.0, "middle": box.width / 2, "end": box.width}[held]
    return f'<text class="name" x="{x:.1f}" y="{box.y + 11.5:.1f}" text-anchor="{held}">{text}</text>'


def figure_of(ms: float) -> str:
    """Milliseconds with as many digits as are read."""
    return f"{ms:.2f} ms" if ms < 1.0 else f"{ms:.1f} ms" if ms < 100.0 else f"{ms:.0f} ms"


def describe(place: Place, apart: Apart, *, is_own: bool) -> str:
    """A node in one sentence, for who points at it and for who hears the map read."""
    said = [printable(place.name) + (" (the node asked)" if is_own else "")]
    if apart.source == "self":
        said.append("the middle")
    else:
        said.append(f"{figure_of(apart.ms)}, between {figure_of(apart.low_ms)} and {figure_of(apart.high_ms)} ({apart.source})")
    if place.jitter_s is not None:
        said.append(f"jitter {figure_of(place.jitter_s * 1000.0)}")
    if place.loss is not None:
        said.append(f"loss {place.loss:.1%}")
    said.append("serves " + printable(", ".join(place.models)) if place.models else "serves no model")
    if place.standing not in ("alive", "self", ""):
        said.append(place.standing)
    return "; ".join(said)


def legend(y: float, rings: str, *, bounds: bool) -> list[str]:
    """What marks and lines mean."""
    parts = ['<g class="legend" aria-hidden="true">']
    x = 20.0
    for classes, text in (("node measured", "measured"), ("node", "estimated from coordinates"), ("node own", "the node asked")):
        parts.append(
            f'<g class="{classes}"><circle class="halo" cx="{x + 6:g}" cy="{y + 8:g}" r="9"/>'
            f'<circle class="mark" cx="{x + 6:g}" cy="{y + 8:g}" r="5"/></g>'
            f'<text class="small" x="{x + 20:g}" y="{y + 12:g}">{text}</text>'
        )
        x += 44 + 6.2 * len(text)
    if bounds:
        parts.append(f'<path class="bounds" d="M{x:g} {y + 8:g}h26"/>')
        parts.append(f'<text class="small" x="{x + 34:g}" y="{y + 12:g}">bounds: nine of ten true ones lie within</text>')
    parts.append(f'<text class="small" x="{WIDTH - 20}" y="{y + 12:g}" text-anchor="end">{markup(rings)}</text>')
    x = 20.0
    for quality, text in QUALITY:
        parts.append(f'<path class="edge {quality}" d="M{x:g} {y + 32:g}h34"/>')
        parts.append(f'<text class="small" x="{x + 42:g}" y="{y + 36:g}">{text}</text>')
        x += 70 + 6.0 * len(text)
    return [*parts, "</g>"]
