"""The part of a very large mesh that a node holds cards of: the places within a distance of its own.

Two nodes that compare their tables, or push news to one another, must decide alike what concerns both. So a scope is a value
that is told as it is, and whether it covers a place depends on nothing but the numbers of both.

Source: Dabek et al., "Vivaldi" (SIGCOMM 2004), section 5.4, for the distance of places with heights.
Spec: docs/spec/04-gossip.md, section "Scopes".
"""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.coordinates import DIMENSIONS, Coordinate

RADIUS_S_MAX = 60.0
"""Longest radius in seconds, as of a round trip on a record; who would need a longer one covers everything."""

_PLACE = struct.Struct(f"{DIMENSIONS + 1}f")

Place = Sequence[float]
"""The components of a coordinate and its height, rounded to 32-bit floats; what follows does not count."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A ball in latency space.

    Attributes:
        vector: its middle, components in seconds.
        radius_s: how far it reaches, in seconds.
    """

    vector: tuple[float, ...]
    radius_s: float

    def reach_s(self, place: Place) -> float:
        """The radius from which on the scope covers a place, in seconds: the distance to it and its height.

        The own height is left out: it adds the same to every distance.
        """
        return math.dist(self.vector, place[:DIMENSIONS]) + place[DIMENSIONS]

    def covers(self, place: Place) -> bool:
        """Whether a place is in the scope."""
        return math.dist(self.vector, place[:DIMENSIONS]) + place[DIMENSIONS] <= self.radius_s

    def distance_s(self, other: "Scope") -> float:
        """How far apart the middles are, in seconds."""
        return math.dist(self.vector, other.vector)


def place_of(coordinate: Coordinate) -> Place:
    """The place of a coordinate, as scopes see it and tables keep it."""
    return _PLACE.unpack(_PLACE.pack(*coordinate.vector, coordinate.height_s))


def scope_of(vector: tuple[float, ...], places: Iterable[Place], count: int) -> Scope | None:
    """The scope round a point that covers `count` of the places, or a few more that are as far as the last one.

    Returns:
        None where there are no more than `count` places, or the radius would be longer than `RADIUS_S_MAX`: everything.
    """
    scope = Scope(vector, 0.0)
    reaches = sorted(map(scope.reach_s, places))
    if len(reaches) <= count or reaches[count - 1] > RADIUS_S_MAX:
        return None
    return Scope(vector, reaches[count - 1])


def in_common(one: Scope | None, other: Scope | None, places: Iterable[Place]) -> bool:
    """Whether something that concerns these places concerns both ends; a scope of None covers everything, no place included."""
    if one is None and other is None:
        return True
    return any((one is None or one.covers(place)) and (other is None or other.covers(place)) for place in places)
