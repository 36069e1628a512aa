"""A picture of a run as one self-contained SVG: on the left how cards spread, on the right how coordinates get better."""

from collections.abc import Sequence
from html import escape

from sim.figures import Figures

WIDTH = 920
"""Width of the picture in pixels: two charts side by side on a laptop's screen."""

HEIGHT = 360
"""Height of the picture in pixels."""

MARGIN = 56
"""Pixels round each chart: room for numbers and names."""

STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#54636f}.title{font-size:14px;font-weight:600;fill:#1c2733}"
    ".axis{stroke:#c9d4de;fill:none}.one{stroke:#2f7d5b;fill:none;stroke-width:1.6}"
    ".two{stroke:#b3413a;fill:none;stroke-width:1.6}"
)

Points = Sequence[tuple[float, float]]


def draw(figures: Figures, title: str) -> str:
    """Draws the spread of the followed cards and the error of the coordinates over time, as SVG text."""
    others = max(1, len(figures.world.processes) - 1)
    spreads = [
        ("one", [(0.0, 0.0), *((after_s, (rank + 1) / others) for rank, after_s in enumerate(spread.after_s))])
        for spread in figures.spreads
    ]
    errors = [
        ("one", [(at, middle) for at, middle, _ in figures.errors]),
        ("two", [(at, high) for at, _, high in figures.errors]),
    ]
    half = WIDTH / 2
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
            f"<title>{escape(title)}</title><style>{STYLE}</style>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fbfcfd"/>',
            f'<text class="title" x="{half}" y="22" text-anchor="middle">{escape(title)}</text>',
            *_chart(0.0, "share of nodes that hold a new card, over seconds since it was signed", spreads, 1.0),
            *_chart(half, "relative error of coordinates over virtual seconds: median, 90 %", errors, None),
            "</svg>",
        ]
    )


def _chart(left: float, name: str, lines: Sequence[tuple[str, Points]], top: float | None) -> list[str]:
    """One chart with its axes from 0 to the largest value."""
    points = [point for _, line in lines for point in line]
    right = max((x for x, _ in points), default=1.0) or 1.0
    high = top or max((y for _, y in points), default=1.0) or 1.0
    x0, y0, wide, tall = left + MARGIN, HEIGHT - MARGIN, WIDTH / 2 - 1.5 * MARGIN, HEIGHT - 2 * MARGIN
    parts = [
        f'<path class="axis" d="M{x0} {y0 - tall}V{y0}H{x0 + wide}"/>',
        f'<text x="{x0 - 6}" y="{y0 - tall + 4}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{x0 - 6}" y="{y0}" text-anchor="end">0</text>',
        f'<text x="{x0 + wide}" y="{y0 + 18}" text-anchor="end">{right:.3g} s</text>',
        f'<text x="{x0 + wide / 2}" y="{y0 + 36}" text-anchor="middle">{escape(name)}</text>',
    ]
    for style, line in lines:
        if line:
            path = " ".join(f"{x0 + x / right * wide:.1f},{y0 - min(y / high, 1.0) * tall:.1f}" for x, y in line)
            parts.append(f'<polyline class="{style}" points="{path}"/>')
    return parts
