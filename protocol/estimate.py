"""Estimates of a round trip: how long, between which bounds, and what that rests on.

The bounds are meant to hold the true round trip, the median of the path as it is now, in nine of ten cases. A figure without
bounds leads astray where it matters most: two peers whose bounds overlap are as near as each other, as far as anybody knows.

Two sources are judged here. A path that was probed is known as well as the median of its samples is; how much they vary is read
from the jitter, since neighbouring samples of a steady path differ by a known multiple of their spread. Two places tell a round
trip as well as they have told earlier ones, which is their error, and never better than the map as a whole was laid out: near
pairs are wrong by more than their share, since every place is pulled at by far ones.

Source: H. Cramér, "Mathematical Methods of Statistics", 1946, section 28.5 (the error of a median); RFC 3550 section 6.4.1
(jitter).
Spec: docs/spec/05-coordinates.md.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

_JITTER_GAIN = 1 / 16
"""Share of one difference in the jitter, unitless: RFC 3550 section 6.4.1. It starts at zero and tells too little at first."""

_MEDIAN_SAMPLES = 8
"""The newest samples that a measured round trip is the median of, a count: `ProbeConfig.median_samples`."""

_SUPPOSED_SPREAD = 0.05
"""Mean difference of neighbouring samples, as a share of the round trip, that counts as one sample before there are any: nine of
ten paths of PlanetLab vary by less than 0.066 from one day to another, half of them by less than 0.009."""

_MEDIAN_BOUND = 1.83
"""Half the width of the bounds for a mean difference of 1 and one sample, unitless: 1.645 (90 % of a normal distribution) times
1.253 (the error of a median over that of a mean) times 0.886 (a deviation over the mean difference of two samples)."""

_PLACE_BOUND = 1.1
"""Half the width of the bounds per relative error of both places, unitless. In meshes of 40 to 120 nodes that have formed
(continents, grid, line, PlanetLab; two seeds each) 0.86 to 0.95 of the true round trips between other nodes lie within; with 1.0
it is 0.84 to 0.94, with 1.4 0.91 to 0.96."""

_PLACE_REACH = 0.2
"""How much of both distances from the origin is added to an estimate before errors are taken of it, unitless. Without it the
bounds of the nearest quarter of all pairs hold 0.3 to 0.7 of the true round trips; with it 0.66 to 0.91."""


class Source(StrEnum):
    """What an estimate rests on."""

    SELF = "self"
    MEASURED = "measured"
    EDGES = "edges"
    COORDINATE = "coordinate"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A round trip as far as it is known.

    Attributes:
        rtt_s: in seconds; infinite where nothing is known, so that it sorts last and lies within no limit.
        low_s: lower bound in seconds.
        high_s: upper bound in seconds; nine of ten true round trips lie between the two.
        source: what it rests on.
    """

    rtt_s: float
    low_s: float
    high_s: float
    source: Source


ITSELF = Estimate(0.0, 0.0, 0.0, Source.SELF)
"""From a node to itself."""

UNKNOWN = Estimate(math.inf, 0.0, math.inf, Source.UNKNOWN)
"""Nothing is known."""


def of_samples(rtt_s: float, jitter_s: float, samples: int) -> Estimate:
    """Judge a path that was probed.

    Args:
        rtt_s: the median of the newest samples, in seconds.
        jitter_s: mean difference of neighbouring samples, smoothed as in RFC 3550, in seconds.
        samples: how many were taken, at least one.
    """
    differences = samples - 1
    told_s = jitter_s / (1.0 - (1.0 - _JITTER_GAIN) ** differences) if differences else 0.0
    spread_s = (differences * told_s + _SUPPOSED_SPREAD * rtt_s) / (differences + 1)
    return _between(rtt_s, _MEDIAN_BOUND * spread_s / math.sqrt(min(samples, _MEDIAN_SAMPLES)), Source.MEASURED)


def of_places(rtt_s: float, errors: float, reach_s: float) -> Estimate:
    """Judge what two places tell.

    Args:
        rtt_s: the round trip between them, in seconds.
        errors: the sum of their relative errors, unitless.
        reach_s: the sum of their round trips to the origin, in seconds: how large the map is where they stand.
    """
    return _between(rtt_s, _PLACE_BOUND * errors * (rtt_s + _PLACE_REACH * reach_s), Source.COORDINATE)


def _between(rtt_s: float, half_s: float, source: Source) -> Estimate:
    return Estimate(rtt_s, max(0.0, rtt_s - half_s), rtt_s + half_s, source)
