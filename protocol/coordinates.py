"""Network coordinates: where a node is, so that a distance can be told before it is measured."""

from dataclasses import dataclass

DIMENSIONS = 8
"""Dimensions of the Euclidean part: Serf's choice, and the best of 2, 3, 5 and 8 on PlanetLab data (docs/coordinates.md)."""


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A place in latency space.

    Attributes:
        vector: `DIMENSIONS` components in seconds.
        height_s: the access link's share of every round trip, in seconds.
        error: the relative error estimate, 0 (certain) to 1.5 (fresh).
    """

    vector: tuple[float, ...]
    height_s: float
    error: float
