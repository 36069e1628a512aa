"""The page round the map: one file of HTML that asks nobody for anything, can be read without a script, and has keys with it.

What peers have chosen stands in it as text: in the drawing and the table escaped, in the script's data as JSON in which no `<` is
left, and the script puts it in as text. The page's policy lets nothing run but the one script whose hash it names, and nothing
load.

Source: WHATWG HTML, section 4.12.1.3 (restrictions for contents of script elements); W3C Content Security Policy 3, section 2.3.1
(hashes); WAI-ARIA 1.2.
"""

import base64
import hashlib
import json
from importlib.resources import files

from mesh.map.draw import (
    CROWD,
    EDGES_MAX,
    HEIGHT,
    MARK,
    TOP,
    TOUCH,
    WIDTH,
    Drawing,
    figure_of,
    title_of,
)
from mesh.map.facts import MapFacts
from mesh.map.scale import CORE, REACH, RINGS_MAX
from mesh.map.style import DRAWING, PAGE, PALETTE
from mesh.plain import markup, printable

SCRIPT = files("mesh.map").joinpath("data/map.js").read_text("utf-8")
"""The page's script."""

UNIT_MS = 0.01
"""Milliseconds of one unit in which the page holds round trips: as the gateway tells them."""

KEYS = (
    ("Tab", "to the next node, in the order of distance"),
    ("← ↑ → ↓", "to the neighbour in that direction"),
    ("Enter", "make this node the middle (or a double click)"),
    ("Home", "to the middle"),
    ("0", "back to the first middle"),
    ("l", "linear or logarithmic scale"),
    ("Esc", "leave the map"),
    ("?", "show or hide these keys"),
)
"""What the keyboard does."""

COLUMNS = (
    ("node", False), ("round trip", True), ("nine of ten", True), ("known by", False), ("jitter", True), ("loss", True),
    ("models", False), ("standing", False),
)  # fmt: skip
"""The columns of the table, and whether they hold figures."""


def page(facts: MapFacts, drawing: Drawing) -> str:
    """The whole page.

    Args:
        facts: what the map shows; of a map of the world those that are on it.
        drawing: the map as it is drawn of them.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    keys = "".join(f"<dt><kbd>{markup(key)}</kbd></dt><dd>{markup(what)}</dd>" for key, what in KEYS)
    title = markup(f"{title_of(facts)} — isochrone map")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"/><meta name="color-scheme" content="light dark"/>'
        f"<title>{title}</title><style>{PALETTE}{DRAWING}{PAGE}</style></head>\n<body><main><figure>{drawing.svg}</figure>\n<aside>"
        '<section id="about" aria-live="polite"><h2>The map</h2>'
        '<p class="muted">Each node has its figures in the table below.</p>'
        "</section>"
        '<section class="hint"><p>Point at a node, or press <kbd>Tab</kbd>. <kbd>?</kbd> shows all keys.</p></section>'
        f'<section id="keys" hidden="hidden"><h2>Keys</h2><dl>{keys}</dl></section></aside></main>\n'
        f'<details open="open"><summary>All nodes by distance</summary>{_table(facts)}</details>\n'
        f'<script type="application/json" id="facts">{_facts(facts, drawing)}</script>\n<script>{SCRIPT}</script></body></html>\n'
    )


def _table(facts: MapFacts) -> str:
    """The same as a table."""
    rows: list[str] = []
    for number, place in enumerate(facts.places):
        apart = facts.between(0, number)
        assert apart is not None, "the middle is known to everybody on the map"
        times = "<td></td><td></td>"
        if number:
            bounds = f"{figure_of(apart.low_ms)} to {figure_of(apart.high_ms)}"
            times = f'<td class="n">{figure_of(apart.ms)}</td><td class="n">{bounds}</td>'
        loss = "" if place.loss is None else f"{place.loss:.1%}"
        jitter = "" if place.jitter_s is None else figure_of(place.jitter_s * 1000.0)
        known = "the middle" if number == 0 else apart.source
        rows.append(
            f"<tr><td>{markup(place.name)}</td>{times}<td>{markup(known)}</td>"
            f'<td class="n">{jitter}</td><td class="n">{loss}</td>'
            f"<td>{markup(', '.join(place.models))}</td><td>{markup(place.standing)}</td></tr>"
        )
    heads = "".join(f'<th scope="col" class="{"n" if is_figure else "t"}">{name}</th>' for name, is_figure in COLUMNS)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _facts(facts: MapFacts, drawing: Drawing) -> str:
    """What the script reads, as JSON that ends no element."""
    sources = sorted({apart.source for apart in facts.apart.values()})
    pairs: list[list[int]] = [[] for _ in facts.places]
    for (one, other), apart in sorted(facts.apart.items()):
        figures = (round(ms / UNIT_MS) for ms in (apart.ms, apart.low_ms, apart.high_ms))
        pairs[one] += [other, *figures, sources.index(apart.source)]
    nodes = [
        {
            "name": printable(place.name),
            "peer_id": printable(place.peer_id),
            "owner": printable(place.owner),
            "standing": printable(place.standing),
            "models": [printable(model) for model in place.models],
            "jitter": None if place.jitter_s is None else place.jitter_s * 1000.0,
            "loss": place.loss,
            "x": round(x, 2),
            "y": round(y, 2),
            "angle": round(angle, 5),
            "latitude": place.latitude,
            "longitude": place.longitude,
        }
        for place, (x, y), angle in zip(facts.places, drawing.spots, drawing.turned, strict=True)
    ]
    data = {
        "nodes": nodes, "pairs": pairs, "sources": sources, "own": facts.own, "unit": UNIT_MS, "x": WIDTH / 2,
        "y": TOP + HEIGHT / 2, "reach": REACH, "core": CORE, "logarithmic": drawing.scale.is_logarithmic, "ringsMax": RINGS_MAX,
        "mark": MARK, "touch": TOUCH, "crowd": CROWD, "edgesMax": EDGES_MAX, "width": WIDTH, "top": TOP,
        "height": HEIGHT if drawing.grid is None else drawing.grid["rows"] * drawing.grid["cell"],
        "geographic": drawing.grid is not None, "grid": drawing.grid, "note": drawing.note,
    }  # fmt: skip
    told = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return told.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
