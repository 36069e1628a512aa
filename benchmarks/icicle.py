"""Draws sampled call stacks as an SVG: callers above, what they call below, each as wide as its share of the time."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TypeAlias

Stacks: TypeAlias = Counter[tuple[str, ...]]
"""How often each stack was seen, the outermost function first; a function is written `name (file`."""

WIDTH_PX, ROW_PX, TITLE_PX = 1200, 16, 26
LEAST_SHARE = 0.004
"""Smallest share that is drawn: five pixels, and a picture that stays below 200 KB."""
LETTER_PX = 6.2
"""Width of a letter of 10 px, about."""
COLOURS = {"mesh/": "#f2a65a", "protocol/": "#e8743b", "trio/": "#7fb3d5", "": "#b8c4bb"}
"""By what a file begins with: the shell, the core, the event loop, other libraries."""


@dataclass(slots=True)
class Frame:
    """A function where it was called, how often it was seen there, and what it called."""

    count: int = 0
    inner: dict[str, "Frame"] = field(default_factory=dict)


def tree_of(stacks: Stacks) -> Frame:
    """The stacks as one tree, which begins where they part."""
    root = Frame()
    for frames, count in sorted(stacks.items()):
        at = root
        at.count += count
        for name in frames:
            at = at.inner.setdefault(name, Frame())
            at.count += count
    while len(root.inner) == 1 and (only := next(iter(root.inner.values()))).count == root.count and only.inner:
        root = only
    return root


def draw(pictures: Mapping[str, Stacks]) -> str:
    """One SVG with a picture under each title."""
    parts, y = [], 0
    for title, stacks in pictures.items():
        tree = tree_of(stacks)
        parts.append(f'<text x="4" y="{y + 18}" font-size="13">{escape(title)}, {tree.count} samples</text>')
        y += TITLE_PX
        boxes = list(_boxes(tree, tree.count or 1, 0.0, 0))
        parts += [_box(name, share, x, y + depth * ROW_PX) for name, share, x, depth in boxes]
        y += (1 + max((depth for *_, depth in boxes), default=0)) * ROW_PX + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {y}" font-family="monospace" font-size="10">'
    return "\n".join([head, f'<rect width="{WIDTH_PX}" height="{y}" fill="#ffffff"/>', *parts, "</svg>\n"])


def _boxes(frame: Frame, total: int, x: float, depth: int) -> Iterator[tuple[str, float, float, int]]:
    for name, inner in sorted(frame.inner.items(), key=lambda item: -item[1].count):
        share = inner.count / total
        if share >= LEAST_SHARE:
            yield name, share, x, depth
            yield from _boxes(inner, total, x, depth + 1)
        x += share * WIDTH_PX


def _box(name: str, share: float, x: float, y: int) -> str:
    function, _, file = name.partition(" (")
    colour = next(colour for start, colour in COLOURS.items() if file.startswith(start))
    width = share * WIDTH_PX
    letters = int((width - 4) / LETTER_PX)
    text = escape(function[:letters]) if letters >= 3 else ""
    label = f'<text x="{x + 2:.1f}" y="{y + 12}">{text}</text>' if text else ""
    box = f'<rect x="{x:.1f}" y="{y}" width="{max(width - 0.5, 0.5):.1f}" height="{ROW_PX - 1}" fill="{colour}"/>'
    return f"<g><title>{escape(function)} ({escape(file)}): {100 * share:.1f} %</title>{box}{label}</g>"
