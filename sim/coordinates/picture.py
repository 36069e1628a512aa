"""Pictures of runs as self-contained SVG: distributions and curves with a line for each method, and a map.

The map places nodes by classical scaling of the estimates: the two directions in which the squared distances vary most.

Source: W. S. Torgerson, "Multidimensional scaling: I. Theory and method", Psychometrika 17, 1952.
"""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.coordinates.report import Summary

WIDTH = 720
"""Width of a picture in pixels: half a laptop's screen."""

HEIGHT = 440
"""Height of a picture in pixels."""

MARGIN = 64
"""Pixels round a chart: room for numbers and names."""

SHARE_SHOWN = 0.95
"""Share of a distribution that a chart's axis reaches to: the last twentieth would press the rest together."""

MAPPED_MAX = 600
"""Nodes on a map, a count: its eigenvectors take a tenth of a second."""

COLOURS = ("#2f7d5b", "#b3413a", "#2d6ca2", "#8a6d1c", "#6b4a8e", "#54636f")

STYLE = (
    ":root{color-scheme:light dark}text{font:12px system-ui,sans-serif;fill:#54636f}.title{font-size:14px;font-weight:600;"
    "fill:#1c2733}.axis{stroke:#c9d4de;fill:none}polyline{fill:none;stroke-width:1.8}.back{fill:#fbfcfd}"
    "@media(prefers-color-scheme:dark){text{fill:#a9b7c2}.title{fill:#e6edf2}.axis{stroke:#3c4a56}.back{fill:#141a20}}"
)

Points = Sequence[tuple[float, float]]


def draw_all(folder: Path, title: str, summaries: Sequence[Summary]) -> list[Path]:
    """Writes all pictures of the first seed of each method into `folder`, and says where.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    firsts = [(found.method, found.runs[0]) for found in summaries]
    pictures = {
        "error.svg": chart(
            f"{title}: relative error of pairs",
            "relative error",
            "share of pairs",
            [(name, run.curves.get("error", [])) for name, run in firsts],
        ),
        "nearest-64.svg": chart(
            f"{title}: what the nearest of 64 costs",
            "ms more than the best",
            "share of choices",
            [(name, [(x * 1e3, y) for x, y in run.curves.get("nearest_64", [])]) for name, run in firsts],
        ),
        "error-by-pings.svg": chart(
            f"{title}: relative error, median (90 % broken), over pings per node",
            "pings per node",
            "relative error",
            [(name, run.curves.get("error_p50_by_pings", [])) for name, run in firsts],
            [(name, run.curves.get("error_p90_by_pings", [])) for name, run in firsts],
            whole=True,
        ),
    }
    for name, run in firsts:
        placed = placed_by(run.estimate_s)
        if placed is not None:
            pictures[f"map-{name}.svg"] = map_of(f"{title}: nodes as {name} places them, ms", placed)
    written = []
    for name, text in pictures.items():
        path = folder / name
        path.write_text(text)
        written.append(path)
    return written


def chart(
    title: str,
    across: str,
    upward: str,
    lines: Sequence[tuple[str, Points]],
    broken: Sequence[tuple[str, Points]] = (),
    *,
    whole: bool = False,
) -> str:
    """A chart with both axes from 0, as SVG text; `whole` shows every point, else the last twentieth of each line is cut."""
    drawn = [points if whole else [point for point in points if point[1] <= SHARE_SHOWN] for _, points in (*lines, *broken)]
    right = max((x for points in drawn for x, _ in points), default=1.0) or 1.0
    high = (max((y for points in drawn for _, y in points), default=1.0) or 1.0) if whole else 1.0
    wide, tall = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    parts = [f'<path class="axis" d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}"/>']
    for part in (0.25, 0.5, 0.75, 1.0):
        x, y = MARGIN + part * wide, HEIGHT - MARGIN - part * tall
        parts.append(f'<path class="axis" d="M{x:.1f} {HEIGHT - MARGIN}v4M{MARGIN} {y:.1f}h-4"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{right * part:.3g}</text>')
        parts.append(f'<text x="{MARGIN - 8}" y="{y + 4:.1f}" text-anchor="end">{high * part:.3g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - MARGIN + 40}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text x="{MARGIN}" y="{MARGIN - 12}">{escape(upward)}</text>')
    for index, points in enumerate(drawn):
        colour = COLOURS[index % len(lines) % len(COLOURS)]
        dashes = ' stroke-dasharray="5 4"' if index >= len(lines) else ""
        path = " ".join(
            f"{MARGIN + min(x / right, 1.0) * wide:.1f},{HEIGHT - MARGIN - min(y / high, 1.0) * tall:.1f}" for x, y in points
        )
        if path:
            parts.append(f'<polyline stroke="{colour}"{dashes} points="{path}"/>')
    for index, (name, _) in enumerate(lines):
        y = (MARGIN + 16 if whole else HEIGHT - MARGIN - 18 * len(lines)) + 18 * index  # where no line is
        parts.append(f'<path stroke="{COLOURS[index % len(COLOURS)]}" stroke-width="3" d="M{WIDTH - MARGIN - 96} {y - 4}h18"/>')
        parts.append(f'<text x="{WIDTH - MARGIN - 72}" y="{y}">{escape(name)}</text>')
    return _svg(title, parts)


def placed_by(estimate_s: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Two coordinates for each node in ms, shape (m, 2), m at most `MAPPED_MAX`; None where too little is estimated."""
    known = np.flatnonzero(np.isfinite(estimate_s).sum(axis=1) > 1)[:MAPPED_MAX]
    if len(known) < 3:
        return None
    both = estimate_s[np.ix_(known, known)]
    both = np.where(np.isnan(both), both.T, both)
    both = (both + np.where(np.isnan(both.T), both, both.T)) / 2
    np.fill_diagonal(both, 0.0)
    squares = np.square(np.where(np.isnan(both), np.nanmedian(both), both) * 1e3)
    centred = squares - squares.mean(axis=0) - squares.mean(axis=1)[:, None] + squares.mean()
    values, vectors = np.linalg.eigh(centred / -2.0)
    return np.asarray(vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0.0)))


def map_of(title: str, placed: NDArray[np.float64]) -> str:
    """A map with a dot for each node and a bar for scale, as SVG text."""
    low, high = np.percentile(placed, 1, axis=0), np.percentile(placed, 99, axis=0)
    scale = min((WIDTH - 2 * MARGIN) / max(high[0] - low[0], 1e-9), (HEIGHT - 2 * MARGIN) / max(high[1] - low[1], 1e-9))
    middle = (low + high) / 2
    parts = []
    for x, y in placed.tolist():
        across = min(max(WIDTH / 2 + (x - middle[0]) * scale, 8.0), WIDTH - 8.0)
        down = min(max(HEIGHT / 2 - (y - middle[1]) * scale, 34.0), HEIGHT - 8.0)
        parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.6" fill="{COLOURS[2]}" fill-opacity="0.6"/>')
    bar_ms = 10.0 ** math.floor(math.log10(max((WIDTH - 2 * MARGIN) / scale, 1e-9)))
    parts.append(f'<path class="axis" d="M16 {HEIGHT - 16}h{bar_ms * scale:.1f}"/>')
    parts.append(f'<text x="16" y="{HEIGHT - 22}">{bar_ms:g} ms</text>')
    return _svg(title, parts)


def _svg(title: str, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
            f"<title>{escape(title)}</title><style>{STYLE}</style>",
            f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
            f'<text class="title" x="{WIDTH / 2}" y="24" text-anchor="middle">{escape(title)}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )
