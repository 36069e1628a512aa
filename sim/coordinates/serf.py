"""Serf's network coordinates, written anew from the description of the algorithm, to compare with.

Vivaldi in eight dimensions with a height: each round trip to a peer whose coordinate is known pulls the own one along the line
between both by a share of the difference, the larger the less certain this end is. Round trips pass a median of three per peer.
An adjustment, half the mean difference of the last twenty samples, is added to every estimate. Gravity pulls toward the origin
by the square of the distance.

What Serf does and one would not: the height takes part in the force by the ratio of heights to the Euclidean distance alone, so
that a pair almost together throws heights far; the window of the adjustment begins full of zeros; the own measurement of a
peer is not used again.

Source: hashicorp/serf, package coordinate (the algorithm and its constants); F. Dabek et al., "Vivaldi", SIGCOMM 2004; J. Ledlie
et al., "Network Coordinates in the Wild", NSDI 2007; S. Lee et al., "On suitability of Euclidean embedding for host-based
network coordinate systems", IEEE/ACM Transactions on Networking 18.1, 2010 (the adjustment).
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.encoding import Luck
from sim.coordinates.method import Estimates, Place, Seat, anybody, unknown

DIMENSIONS = 8
"""Components of the Euclidean part, a count: Serf's Dimensionality."""

ERROR_MAX = 1.5
"""Error of a fresh node and the largest, unitless: Serf's VivaldiErrorMax."""

ERROR_GAIN = 0.25
"""Share of a sample in the error, unitless: Serf's VivaldiCE, c_e of the paper."""

PLACE_GAIN = 0.25
"""Share of the difference that a sample moves the coordinate by, unitless: Serf's VivaldiCC, c_c of the paper."""

ADJUSTMENT_SAMPLES = 20
"""Differences in the window of the adjustment, a count: Serf's AdjustmentWindowSize."""

HEIGHT_S_MIN = 10e-6
"""Seconds. The smallest height: Serf's HeightMin."""

FILTER_SAMPLES = 3
"""Round trips of a peer that the median is taken of, a count: Serf's LatencyFilterSize."""

GRAVITY_RHO_S = 150.0
"""Seconds. The distance from the origin at which gravity pulls by one second: Serf's GravityRho."""

SMALL = 1e-6
"""Seconds, or the smallest sum of errors: Serf's zeroThreshold in both meanings."""

RTT_S_MAX = 10.0
"""Seconds. Longer round trips are refused, as Serf does."""

TOLD_BYTES = 129
"""Bytes of a coordinate as Serf's msgpack has it: names and eleven 64-bit numbers (arithmetic)."""


@dataclass(frozen=True, slots=True)
class SerfCoordinate:
    """A coordinate, everything in seconds but the error, which has no unit."""

    vector: tuple[float, ...] = (0.0,) * DIMENSIONS
    height: float = HEIGHT_S_MIN
    error: float = ERROR_MAX
    adjustment: float = 0.0


def raw_distance(one: SerfCoordinate, other: SerfCoordinate) -> float:
    """The Euclidean distance and both heights, in seconds."""
    return math.dist(one.vector, other.vector) + one.height + other.height


def distance(one: SerfCoordinate, other: SerfCoordinate) -> float:
    """The estimate of a round trip in seconds: with the adjustments, unless they make it negative."""
    raw = raw_distance(one, other)
    adjusted = raw + one.adjustment + other.adjustment
    return adjusted if adjusted > 0.0 else raw


def pushed(own: SerfCoordinate, other: SerfCoordinate, force: float, luck: Luck) -> tuple[tuple[float, ...], float]:
    """The vector and the height of `own` after a force in seconds away from `other`."""
    parts = [a - b for a, b in zip(own.vector, other.vector, strict=True)]
    length = math.hypot(*parts)
    if length > SMALL:
        scale = force / length
        vector = tuple([place + part * scale for place, part in zip(own.vector, parts, strict=True)])
        return vector, max(HEIGHT_S_MIN, own.height + (own.height + other.height) * scale)
    parts = [luck.random() - 0.5 for _ in parts]
    length = math.hypot(*parts)
    if length <= SMALL:
        parts, length = [1.0] + [0.0] * (len(parts) - 1), 1.0
    return tuple([place + part * force / length for place, part in zip(own.vector, parts, strict=True)]), own.height


_ORIGIN = SerfCoordinate()


class Serf:
    """One node's coordinate, and what others have published of theirs."""

    def __init__(self, seat: Seat) -> None:
        self._own = seat.index
        self._luck = seat.luck
        self._filters: dict[int, list[float]] = {}
        self._differences: deque[float] = deque([0.0] * ADJUSTMENT_SAMPLES, maxlen=ADJUSTMENT_SAMPLES)
        self._published: list[SerfCoordinate | None] = [None] * seat.nodes
        self.coordinate = SerfCoordinate()

    def whom(self, alive: Sequence[int], now_s: float) -> int | None:  # noqa: ARG002 - see `Method`
        """Anybody, as memberlist's round of probes comes to everybody."""
        return anybody(alive, self._own, self._luck)

    def handle_rtt(self, peer: int, rtt_s: float, now_s: float, told: object | None) -> None:  # noqa: ARG002
        """See `Method`; a round trip without a coordinate, or an impossible one, is dropped."""
        if not isinstance(told, SerfCoordinate) or not 0.0 <= rtt_s <= RTT_S_MAX:
            return
        if not all(map(math.isfinite, (*told.vector, told.height, told.error, told.adjustment))):
            return
        samples = self._filters.setdefault(peer, [])
        samples.append(rtt_s)
        del samples[:-FILTER_SAMPLES]
        self.update(told, sorted(samples)[len(samples) // 2])

    def update(self, other: SerfCoordinate, rtt_s: float) -> None:
        """Moves the coordinate by one filtered round trip."""
        own, rtt_s = self.coordinate, max(rtt_s, SMALL)
        predicted_s = distance(own, other)
        weight = own.error / max(own.error + other.error, SMALL)
        blend = ERROR_GAIN * weight
        error = min(ERROR_MAX, blend * abs(predicted_s - rtt_s) / rtt_s + own.error * (1.0 - blend))
        vector, height = pushed(own, other, PLACE_GAIN * weight * (rtt_s - predicted_s), self._luck)
        moved = SerfCoordinate(vector, height, error, own.adjustment)
        self._differences.append(rtt_s - raw_distance(moved, other))
        adjustment = sum(self._differences) / (2.0 * ADJUSTMENT_SAMPLES)
        moved = SerfCoordinate(vector, height, error, adjustment)
        away = distance(_ORIGIN, moved) / GRAVITY_RHO_S
        vector, height = pushed(moved, _ORIGIN, -away * away, self._luck)
        finite = all(map(math.isfinite, (*vector, height, error, adjustment)))
        self.coordinate = SerfCoordinate(vector, height, error, adjustment) if finite else SerfCoordinate()

    def handle_lost(self, peer: int, now_s: float) -> None:
        """Serf's coordinates do not use losses."""

    def handle_told(self, peer: int, told: object, now_s: float) -> None:  # noqa: ARG002
        """Keeps the newest published coordinate of a peer."""
        if isinstance(told, SerfCoordinate):
            self._published[peer] = told

    def told(self, now_s: float, *, echoed: bool) -> tuple[object, int] | None:  # noqa: ARG002
        """The coordinate."""
        return self.coordinate, TOLD_BYTES

    def tick(self, now_s: float) -> None:
        """Nothing is worked out again."""

    def estimate(self, peers: NDArray[np.int64], now_s: float) -> Estimates:  # noqa: ARG002
        """The distances to published coordinates; there are no intervals."""
        own = self.coordinate
        nowhere = SerfCoordinate((math.nan,) * DIMENSIONS)
        known = [self._published[peer] or nowhere for peer in peers.tolist()]
        vectors = np.array([place.vector for place in known]).reshape(len(known), DIMENSIONS)
        raw = np.sqrt(np.square(vectors - np.array(own.vector)).sum(axis=1))
        raw += np.array([place.height for place in known]) + own.height
        adjusted = raw + np.array([place.adjustment for place in known]) + own.adjustment
        return np.where(adjusted > 0.0, adjusted, raw), unknown(len(known)), unknown(len(known))


def place_of(told: object) -> Place | None:
    """The place in what a node of Serf's tells."""
    return Place(told.vector, told.height, told.error) if isinstance(told, SerfCoordinate) else None


def forged(told: object, place: Place) -> object:  # noqa: ARG001 - nothing of the truth is left
    """What a liar of Serf's tells."""
    return SerfCoordinate(place.vector_s, place.height_s, place.error, 0.0)
