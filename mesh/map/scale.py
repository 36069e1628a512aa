"""How milliseconds become pixels on the map, and at which of them isochrones are drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

REACH = 400.0
"""Pixels from the middle to the edge of the scale: the map is 1000 wide, and names need room outside."""

CORE = 16.0
"""Pixels from the middle at which a logarithmic scale begins: outside the mark of the middle itself."""

SPREAD_MAX = 12.0
"""From how many times the distance of the nearest tenth of all nodes the farthest is, a scale is logarithmic: on a linear one
they would stand in the outermost thirty pixels, or in the innermost."""

RINGS_MAX = 7
"""Most isochrones on a map, a count: more are hatching."""

_STEPS = (1.0, 2.0, 5.0)
"""The usual series of round numbers."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Pixels for milliseconds.

    Attributes:
        low_ms: where a logarithmic scale begins; below it nodes stand at its beginning. Of a linear one 0.
        high_ms: the round trip at `REACH`.
    """

    low_ms: float
    high_ms: float

    @property
    def is_logarithmic(self) -> bool:
        """Whether it is; otherwise pixels are in proportion to milliseconds."""
        return self.low_ms > 0.0

    def pixels(self, ms: float) -> float:
        """How far from the middle a round trip stands."""
        if not self.is_logarithmic:
            return REACH * ms / self.high_ms
        if ms <= 0.0:
            return 0.0
        share = max(0.0, math.log(ms / self.low_ms)) / math.log(self.high_ms / self.low_ms)
        return CORE + (REACH - CORE) * share

    def rings(self) -> list[float]:
        """The milliseconds at which isochrones are drawn, ascending."""
        if not self.is_logarithmic:
            step = next(
                step * 10.0**power for power in range(-4, 6) for step in _STEPS if self.high_ms / (step * 10.0**power) < RINGS_MAX
            )
            return [step * number for number in range(1, int(self.high_ms / step + 1e-9) + 1)]
        rings = [step * 10.0**power for power in range(-4, 6) for step in _STEPS]
        rings = [ring for ring in rings if self.low_ms < ring <= self.high_ms]
        decades = [ring for ring in rings if abs(math.log10(ring) % 1.0) < 1e-6 or abs(math.log10(ring) % 1.0) > 1.0 - 1e-6]
        return rings if len(rings) <= RINGS_MAX or len(decades) < 2 else decades  # one ring is no scale


def scale_for(ms: Sequence[float], *, logarithmic: bool | None = None) -> Scale:
    """The scale for nodes at these round trips.

    Args:
        ms: finite, the middle's 0 left out.
        logarithmic: which kind; None chooses by how far apart they are.
    """
    shown = sorted(value for value in ms if value > 0.0)
    if not shown:
        return Scale(0.0, 1.0)
    high_ms = shown[-1] * 1.05
    if logarithmic is None:
        logarithmic = high_ms > SPREAD_MAX * shown[len(shown) // 10]
    return Scale(max(shown[0] * 0.8, high_ms / 1e5), high_ms) if logarithmic else Scale(0.0, high_ms)
