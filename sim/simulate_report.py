"""What a simulation of sites has shown, for people and programs: tables, JSON, and one self-contained page with a picture.

The map places sites so that their distances resemble the round trips between them; an arrow leads from callers to the site that
answered them, as wide as they were many. Beside it stands the time to first output over the seconds of load, with the failures
of the plan shaded.

Source: Torgerson, "Multidimensional scaling: I. Theory and method" (Psychometrika 1952) for the places on the map.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import escape

import numpy as np
from rich.table import Table

from sim.simulate import Outcome, SiteResult
from sim.sites import Plan

WIDTH = 980
"""Width of the picture in pixels: map and chart side by side on a laptop's screen."""

HEIGHT = 440
"""Height of the picture in pixels."""

MARGIN = 64
"""Pixels round the map and the chart: room for names and numbers."""

ARROW_MAX = 10.0
"""Width in pixels of the arrow of the most frequent way."""

APART = 0.3
"""Least distance of two sites on the map, where half its width is 1: room for two names."""

COLOURS = ("#2456a6", "#2f7d5b", "#b3413a", "#8a5fb0", "#b07a1e", "#3a8f9c")
"""Of the lines of the chart; they begin anew where there are more sites."""

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#1c2733;max-width:1000px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;width:100%;font-size:13px;margin:1em 0}th,td{text-align:left;padding:.35em .6em;"
    "border-bottom:1px solid #dde5ec;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}"
    "text{font:12px system-ui,sans-serif;fill:#54636f}.name{font-size:13px;font-weight:600;fill:#1c2733}"
    ".axis{stroke:#c9d4de;fill:none}.way{stroke:#2f7d5b;opacity:.55;fill:none}.off{fill:#b3413a;opacity:.12}"
)

SITE_COLUMNS = ("callers at", "requests", "answered at", "first output p50 / p95", "prediction off by", "first try", "failed")
ENGINE_COLUMNS = ("engine at", "model", "answered", "slots busy", "wait for a slot p95")

Row = tuple[str, ...]


def site_rows(outcome: Outcome) -> list[Row]:
    """One row per site that asks, in the order of `SITE_COLUMNS`."""
    return [
        (
            result.site,
            f"{result.requests}",
            "\n".join(f"{site} {_percent(count / result.answered)}" for site, count in result.answered_at.items()) or "-",
            f"{_ms(result.first_p50_s)} / {_ms(result.first_p95_s)}",
            _percent(result.error_median),
            _percent(result.found_at_first),
            "\n".join(f"{count} {reason}" for reason, count in result.failures.items()) or "none",
        )
        for result in outcome.sites
    ]


def engine_rows(outcome: Outcome) -> list[Row]:
    """One row per model of a site, in the order of `ENGINE_COLUMNS`."""
    return [
        (result.site, result.model, f"{result.answered}", _percent(result.busy), _ms(result.queue_p95_s))
        for result in outcome.engines
    ]


def tables(outcome: Outcome) -> list[Table]:
    """The tables for a terminal."""
    shown = []
    for columns, rows in ((SITE_COLUMNS, site_rows(outcome)), (ENGINE_COLUMNS, engine_rows(outcome))):
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        shown.append(table)
    return shown


def as_json(outcome: Outcome) -> dict[str, object]:
    """Everything, by the names of the fields."""
    return asdict(outcome)


def page(plan: Plan, outcome: Outcome) -> str:
    """One HTML page that needs nothing else."""
    title = f"{plan.name}: {outcome.load_s:g} s of load, seed {outcome.seed}"
    notes = {
        "interrupt": "Ended early by Ctrl-C; what was seen until then.",
        "check": f"Ended by a broken promise, which is a fault of the mesh: {outcome.failure}",
    }
    note = notes.get(outcome.ended, "")
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>',
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(note)}</p>" if note else "",
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        *_map(plan, outcome),
        *_chart(plan, outcome),
        "</svg>",
        _html_table(SITE_COLUMNS, site_rows(outcome)),
        _html_table(ENGINE_COLUMNS, engine_rows(outcome)),
        "</html>",
    ]
    return "\n".join(parts)


def places(rtt_s: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Points in the plane whose distances resemble a symmetric matrix; the widest spread is 1."""
    squared = np.asarray(rtt_s, dtype=np.float64) ** 2
    count = len(squared)
    np.fill_diagonal(squared, 0.0)
    centring = np.eye(count) - np.ones((count, count)) / count
    values, vectors = np.linalg.eigh(-0.5 * centring @ squared @ centring)
    best = np.argsort(values)[::-1][:2]
    points = np.zeros((count, 2))
    points[:, : len(best)] = vectors[:, best] * np.sqrt(np.maximum(values[best], 0.0))
    spread = float(np.abs(points).max()) or 1.0
    return [(float(x) / spread, float(y) / spread) for x, y in points]


def _map(plan: Plan, outcome: Outcome) -> list[str]:
    """The left half: sites, and who answered whom."""
    half = WIDTH / 2
    spots = [(half / 2 + x * (half / 2 - MARGIN), HEIGHT / 2 + y * (HEIGHT / 2 - MARGIN)) for x, y in _apart(places(plan.rtt_s))]
    names = [site.name for site in plan.sites]
    ways = [(names.index(r.site), names.index(to), count) for r in outcome.sites for to, count in r.answered_at.items()]
    most = max((count for _, _, count in ways), default=1)
    parts = []
    for one, other, count in ways:
        (x, y), (to_x, to_y) = spots[one], spots[other]
        width = max(1.0, ARROW_MAX * count / most)
        told = f"<title>{count} requests of {escape(names[one])} answered at {escape(names[other])}</title>"
        if one == other:
            parts.append(f'<circle class="way" cx="{x:.1f}" cy="{y:.1f}" r="16" stroke-width="{width:.1f}">{told}</circle>')
        else:
            # A bow to the right, so that the ways there and back stand apart.
            bow_x, bow_y = (x + to_x) / 2 + (to_y - y) * 0.15, (y + to_y) / 2 - (to_x - x) * 0.15
            path = f"M{x:.1f} {y:.1f}Q{bow_x:.1f} {bow_y:.1f} {to_x:.1f} {to_y:.1f}"
            parts.append(f'<path class="way" d="{path}" stroke-width="{width:.1f}">{told}</path>')
    for (x, y), site in zip(spots, plan.sites, strict=True):
        colour = COLOURS[1] if site.models else COLOURS[0]
        slots = sum(site.nodes * model.slots for model in site.models)
        note = f"{site.nodes} nodes, {slots} slots" if slots else f"{site.nodes} nodes, none serves"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="{colour}" stroke="#fff" stroke-width="2"/>')
        parts.append(f'<text class="name" x="{x:.1f}" y="{y - 20:.1f}" text-anchor="middle">{escape(site.name)}</text>')
        parts.append(f'<text x="{x:.1f}" y="{y + 32:.1f}" text-anchor="middle">{note}</text>')
    return parts


def _apart(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, each pushed away from earlier ones that it would hide; the map is for reading, not for measuring."""
    placed: list[tuple[float, float]] = []
    for x, y in points:
        turns = 0
        spot = (x, y)
        while any(math.hypot(spot[0] - px, spot[1] - py) < APART for px, py in placed) and turns < 64:
            turns += 1
            angle, reach = turns * 2.4, 0.05 * turns  # a spiral of golden angles
            spot = (max(-1.0, min(1.0, x + reach * math.cos(angle))), max(-1.0, min(1.0, y + reach * math.sin(angle))))
        placed.append(spot)
    return placed


def _chart(plan: Plan, outcome: Outcome) -> list[str]:
    """The right half: the time to first output over time, on a logarithmic scale, with the failures shaded."""
    x0, y0, wide, tall = WIDTH / 2 + MARGIN, HEIGHT - MARGIN, WIDTH / 2 - 1.5 * MARGIN, HEIGHT - 2 * MARGIN
    values = [value for result in outcome.sites for _, *both in result.series for value in both if value > 0.0]
    low, high = min(values, default=0.01), max(values, default=1.0)
    low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high * 1.001))
    load_s = outcome.load_s or 1.0

    def place(at: float, value: float) -> str:
        share = math.log(max(value, low) / low) / math.log(high / low)
        return f"{x0 + min(at / load_s, 1.0) * wide:.1f},{y0 - share * tall:.1f}"

    parts = []
    for failure in plan.failures:
        from_x = x0 + min(failure.from_s / load_s, 1.0) * wide
        to_x = x0 + (1.0 if failure.to_s is None else min(failure.to_s / load_s, 1.0)) * wide
        told = f"<title>{escape(failure.name)} {failure.what} from {failure.from_s:g} s</title>"
        box = f'x="{from_x:.1f}" y="{y0 - tall}" width="{to_x - from_x:.1f}" height="{tall}"'
        parts.append(f'<rect class="off" {box}>{told}</rect>')
        parts.append(f'<text x="{from_x + 3:.1f}" y="{y0 - tall + 12}">{escape(failure.name)} {failure.what}</text>')
    decade = low
    while decade <= high * 1.001:
        y = place(0.0, decade).split(",")[1]
        parts.append(f'<path class="axis" d="M{x0} {y}H{x0 + wide}"/><text x="{x0 - 6}" y="{y}" text-anchor="end">')
        parts.append(f"{_ms(decade)}</text>")
        decade *= 10.0
    parts.append(f'<text x="{x0 + wide}" y="{y0 + 18}" text-anchor="end">{load_s:g} s</text>')
    parts.append(f'<text x="{x0 + wide / 2}" y="{y0 + 36}" text-anchor="middle">time to first output: median, 95 % dashed</text>')
    for number, result in enumerate(outcome.sites):
        parts.extend(_lines(result, COLOURS[number % len(COLOURS)], place))
        legend_x = x0 + number * wide / len(outcome.sites)
        parts.append(f'<text x="{legend_x:.0f}" y="{y0 + 52}" style="fill:{COLOURS[number % len(COLOURS)]}">{result.site}</text>')
    return parts


def _lines(result: SiteResult, colour: str, place: Callable[[float, float], str]) -> list[str]:
    """The two lines of one site."""
    middles = " ".join(place(at, middle) for at, middle, _ in result.series)
    highs = " ".join(place(at, high) for at, _, high in result.series)
    style = f'fill="none" stroke="{colour}"'
    return [
        f'<polyline {style} stroke-width="1.8" points="{middles}"/>',
        f'<polyline {style} stroke-dasharray="3 3" points="{highs}"/>',
    ]


def _html_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2g} s" if seconds >= 1.0 else f"{seconds * 1000.0:.3g} ms"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}" if share < 0.9995 else f"{share:.0%}"
