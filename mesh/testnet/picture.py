"""A map of the mesh as one self-contained SVG: the asking node in the middle, everyone else at the measured distance.

The radius is the round trip from the middle on a logarithmic scale, and the rings are isochrones: lines of equal round-trip
time. The angle comes from classical multidimensional scaling of the whole matrix of measured round trips, so that nodes that
are near one another stand near one another as far as one free coordinate allows.

Source: Torgerson, "Multidimensional scaling: I. Theory and method" (Psychometrika 1952).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mesh.plain import markup

RINGS_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Round-trip times in milliseconds at which rings are drawn: the usual 1-2-5 series, from a rack to another continent."""

SIZE = 760
"""Edge of the picture in pixels: fits a laptop's screen beside a table."""

MARGIN = 90
"""Pixels between the outermost ring and the edge: room for names."""


MAP_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1c2733;paint-order:stroke;stroke:#fbfcfd;stroke-width:4px}"
    ".ring{fill:none;stroke:#c9d4de;stroke-dasharray:3 4}"
    ".ms{font-size:11px;fill:#7b8b99}.note{font-size:11px;fill:#54636f}.line{stroke:#2f7d5b;stroke-linecap:round}"
    ".gone{stroke:#b3413a;stroke-width:3}"
)


PAGE_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#1c2733;max-width:900px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;width:100%;font-size:13px}th,td{text-align:left;padding:.35em .6em;"
    "border-bottom:1px solid #dde5ec;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}"
)


@dataclass(frozen=True, slots=True)
class Place:
    """One node on the map.

    Attributes:
        name: what the operator calls it.
        rtt_ms: measured round trip from the middle; 0 for the middle itself.
        answered: how many requests it answered.
        alive: whether it was alive at the end.
        note: a short second line, such as its models.
    """

    name: str
    rtt_ms: float
    answered: int
    alive: bool
    note: str = ""


def scale_to_plane(rtt_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places points in the plane so that their distances resemble a symmetric matrix.

    Args:
        rtt_ms: shape (n, n), milliseconds, zero diagonal; NaN where nothing was measured.

    Returns:
        Shape (n, 2); the centroid is the origin.
    """
    known = np.where(np.isnan(rtt_ms), np.nanmax(rtt_ms, initial=1.0), rtt_ms)
    symmetric = (known + known.T) / 2
    count = len(symmetric)
    centring = np.eye(count) - np.ones((count, count)) / count
    gram = -0.5 * centring @ (symmetric**2) @ centring
    values, vectors = np.linalg.eigh(gram)
    best = np.argsort(values)[::-1][:2]
    return np.asarray(vectors[:, best] * np.sqrt(np.maximum(values[best], 0.0)), dtype=np.float64)


def draw_map(places: Sequence[Place], rtt_ms: NDArray[np.float64], title: str) -> str:
    """Draws the map as SVG text.

    Args:
        places: the nodes; `places[0]` is the middle.
        rtt_ms: shape (n, n), measured round trips in milliseconds in the order of `places`, NaN where unknown.
        title: one line above the map.
    """
    centre = SIZE / 2
    reach = centre - MARGIN
    shown = [place.rtt_ms for place in places[1:] if place.rtt_ms > 0]
    low = max(min(shown, default=1.0) / 4, 0.05)
    high = max(max(shown, default=1.0) * 1.3, low * 4)

    def radius(ms: float) -> float:
        return reach * max(0.0, math.log(ms / low)) / math.log(high / low) if ms > low else 0.0

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}" role="img">',
        f"<title>{markup(title)}</title>",
        f"<style>{MAP_STYLE}</style>",
        f'<rect width="{SIZE}" height="{SIZE}" fill="#fbfcfd"/>',
        f'<text x="{centre}" y="28" text-anchor="middle" font-size="15" font-weight="600">{markup(title)}</text>',
    ]
    for ring in RINGS_MS:
        if low < ring <= high:
            r = radius(ring)
            parts.append(f'<circle class="ring" cx="{centre}" cy="{centre}" r="{r:.1f}"/>')
            parts.append(f'<text class="ms" x="{centre + 4}" y="{centre - r - 3:.1f}">{ring:g} ms</text>')
    plane = scale_to_plane(rtt_ms)
    plane = plane - plane[0]
    spots = []
    for place, (x, y) in zip(places, plane, strict=True):
        angle = math.atan2(y, x)
        spots.append((centre + radius(place.rtt_ms) * math.cos(angle), centre + radius(place.rtt_ms) * math.sin(angle)))
    for place, (x, y) in zip(places[1:], spots[1:], strict=True):
        if place.answered:
            width = 1.5 + min(place.answered, 12) / 2
            ends = f'x1="{centre}" y1="{centre}" x2="{x:.1f}" y2="{y:.1f}"'
            parts.append(f'<line class="line" {ends} stroke-width="{width:.1f}" opacity="0.6"/>')
    parts.extend(_spot(place, x, y, middle=index == 0) for index, (place, (x, y)) in enumerate(zip(places, spots, strict=True)))
    parts.append("</svg>")
    return "\n".join(parts)


def _spot(place: Place, x: float, y: float, *, middle: bool) -> str:
    """Draws one node with its name, distance and answers."""
    colour = "#2456a6" if middle else "#2f7d5b" if place.answered else "#9fb0bd"
    right = x >= SIZE / 2
    anchor, dx = ("start", 14) if right else ("end", -14)
    lines = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{9 if middle else 8}" fill="{colour}" stroke="#fff" stroke-width="2"/>']
    if not place.alive:
        lines.append(f'<path class="gone" d="M{x - 8:.1f} {y - 8:.1f}l16 16m0 -16l-16 16"/>')
    what = "asks" if middle else f"{place.rtt_ms:.1f} ms"
    if place.answered:
        what += f", answered {place.answered}"
    if not place.alive:
        what += ", killed"
    lines.append(f'<text x="{x + dx:.1f}" y="{y - 1:.1f}" text-anchor="{anchor}" font-weight="600">{markup(place.name)}</text>')
    lines.append(f'<text class="note" x="{x + dx:.1f}" y="{y + 13:.1f}" text-anchor="{anchor}">{markup(what)}</text>')
    if place.note:
        lines.append(f'<text class="note" x="{x + dx:.1f}" y="{y + 26:.1f}" text-anchor="{anchor}">{markup(place.note)}</text>')
    return "".join(lines)


def page(svg: str, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], lead: str) -> str:
    """Wraps the map and a table into one HTML page that needs nothing else."""
    head = "".join(f"<th>{markup(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{markup(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{markup(title)}</title><style>{PAGE_STYLE}</style><h1>{markup(title)}</h1><p>{markup(lead)}</p>{svg}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></html>\n"
    )
