"""Where names stand: beside their marks, and never over each other, a mark, or the figure of a ring.

Names are placed one after another, the most important first; each takes the first of eight places round its mark that is free.
One that finds none is left out: who looks for it finds it by pointing, by the keyboard and in the table.

Source: J. Christensen, J. Marks, S. Shieber, "An empirical study of algorithms for point-feature label placement", 1995 (the
greedy baseline and the order of positions).
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

HEIGHT = 15.0
"""Pixels of a line of text of 12 pixels, with its leading."""

NARROW = 7.8
"""Pixels of one character of such text on average, in the widest of the usual system fonts at half-bold weight."""

WIDE = 12.5
"""Pixels of a character that East Asian typography calls wide."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle: its left upper corner and its size, in pixels."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: "Box") -> bool:
        """Whether two rectangles overlap."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


def width_of(text: str) -> float:
    """About how wide a text is, in pixels."""
    return sum(WIDE if unicodedata.east_asian_width(character) in "WF" else NARROW for character in text)


@dataclass(slots=True)
class Board:
    """What stands on a map already, and within which rectangle everything has to be."""

    bounds: Box
    taken: list[Box] = field(default_factory=list)

    def take(self, boxes: Iterable[Box]) -> None:
        """Keep others off these rectangles."""
        self.taken.extend(boxes)

    def place(self, text: str, x: float, y: float, gap: float) -> tuple[Box, str] | None:
        """Find room for a text beside a mark, and say by which end it is held there: whatever its font, it touches the mark not.

        Args:
            text: one line.
            x: the mark's middle.
            y: the same.
            gap: pixels between that and the text.
        """
        width = width_of(text)
        left, middle, right = x - gap - width, x - width / 2, x + gap
        top, level, bottom = y - gap - HEIGHT, y - HEIGHT / 2, y + gap
        for corner_x, corner_y, held in (
            (right, level, "start"), (left, level, "end"), (right, top + 4, "start"), (right, bottom - 4, "start"),
            (left, top + 4, "end"), (left, bottom - 4, "end"), (middle, top, "middle"), (middle, bottom, "middle"),
        ):  # fmt: skip
            box = Box(corner_x, corner_y, width, HEIGHT)
            if self._is_inside(box) and not any(box.meets(other) for other in self.taken):
                self.taken.append(box)
                return box, held
        return None

    def _is_inside(self, box: Box) -> bool:
        bounds = self.bounds
        return (
            bounds.x <= box.x
            and bounds.y <= box.y
            and box.x + box.width <= bounds.x + bounds.width
            and box.y + box.height <= bounds.y + bounds.height
        )
