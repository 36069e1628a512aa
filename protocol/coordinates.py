"""Network coordinates: where a node is, so that a distance can be told before it is measured.

Every node holds a point in an 8-dimensional Euclidean space plus a height, its access link's share of every round trip. One RTT
sample to a peer whose coordinate is known acts like a spring between the two points: `update` moves this node's point along it
by a share of the difference, larger while this node is less certain than the peer (the adaptive timestep). `Vivaldi` is the
machine round it: it drops what cannot be a round trip, takes the median of a peer's last few samples, limits how far any one
sample may pull, and pulls softly toward the origin so that the whole mesh does not drift.

A peer is free to lie about its coordinate, so a coordinate is a hint for peers never measured; a measured RTT always wins over
it. Three limits keep a liar's force small: a claimed error counts as at least `error_trusted_min`, a sample pulls no further
than what the median of recent samples makes plausible, and never further than `force_s_max`.

Serf's adjustment term is left out: it hides the error of the place in an offset that everyone has to carry.

Source: F. Dabek, R. Cox, F. Kaashoek, R. Morris, "Vivaldi: A Decentralized Network Coordinate System", SIGCOMM 2004 (sections
2.5 and 5.4); J. Ledlie, P. Gardner, M. Seltzer, "Network Coordinates in the Wild", NSDI 2007 (latency filter, gravity);
constants of hashicorp/serf, coordinate/config.go.
Spec: docs/spec/05-coordinates.md.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from protocol.encoding import Luck
from protocol.identity import PeerId

DIMENSIONS = 8
"""Dimensions of the Euclidean part: Serf's choice, and the best of 2, 3, 5 and 8 on PlanetLab data (docs/coordinates.md)."""

RTT_S_MAX = 10.0
"""Seconds. A longer round trip is a stall and no distance; Serf's bound against samples that poison coordinates (serf#488)."""

_TOGETHER_S = 1e-6
"""Seconds. Points nearer than this have no direction between them: Serf's zeroThreshold, a hundredth of a LAN's round trip."""


_TYPICAL_SAMPLES = 64
"""Samples, a count, for which the typical round trip is used before it is worked out again; at first, after as many as peers."""

_LIMIT_SAMPLES = 8
"""Samples, a count, for which the limit on differences is used before it is worked out again: an eighth of its window."""


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


@dataclass(frozen=True, slots=True)
class CoordinateConfig:
    """Bounds and gains.

    Attributes:
        dimensions: components of the Euclidean part.
        error_max: error of a fresh node and upper limit of any error; Serf's 1.5.
        error_gain: share of one sample in the error estimate, c_e; Serf's and the paper's 0.25.
        place_gain: share of the difference that one sample moves the place by, c_c; Serf's and the paper's 0.25.
        error_trusted_min: the smallest error that counts in the timestep, so that nobody gains force by claiming certainty.
        height_s_min: the smallest height, in seconds; Serf's 10 us.
        gravity_s: the distance from the origin at which gravity would pull one second per sample; Serf's 150.
        rtt_s_max: longest plausible round trip, in seconds; also the limit of any component and height.
        force_s_max: the furthest that one sample moves the place, in seconds. A fresh node's honest first sample moves it a
            quarter of the RTT, so that 0.1 leaves every RTT up to 0.4 s untouched.
        filter_samples: how many of a peer's last samples the latency filter takes the median of; Serf's 3.
        residuals_max: how many differences between sample and estimate are kept to judge the next one by.
        residuals_min: how many of them are needed before they limit anything.
        residual_deviations: how many median deviations beyond the median difference a sample may pull. One holds against 30 % of
            liars on PlanetLab data and costs an honest mesh nothing; two holds against 20 %, four against 10 %.
        residual_s_floor: a difference up to this many seconds is never limited: ordinary queueing delay.
        peers_max: how many peers have a latency filter; the one longest unheard makes room.
    """

    dimensions: int = DIMENSIONS
    error_max: float = 1.5
    error_gain: float = 0.25
    place_gain: float = 0.25
    error_trusted_min: float = 0.05
    height_s_min: float = 10e-6
    gravity_s: float = 150.0
    rtt_s_max: float = RTT_S_MAX
    force_s_max: float = 0.1
    filter_samples: int = 3
    residuals_max: int = 64
    residuals_min: int = 16
    residual_deviations: float = 1.0
    residual_s_floor: float = 0.001
    peers_max: int = 1024


class SampleResult(StrEnum):
    """What became of one sample."""

    APPLIED = "applied"
    LIMITED = "limited"
    IMPLAUSIBLE_RTT = "implausible rtt"
    IMPLAUSIBLE_COORDINATE = "implausible coordinate"


def origin(config: CoordinateConfig) -> Coordinate:
    """The coordinate of a node that has measured nothing yet."""
    return Coordinate((0.0,) * config.dimensions, config.height_s_min, config.error_max)


def plausible_rtt(rtt_s: float, config: CoordinateConfig) -> bool:
    """Whether `rtt_s` can be a round trip: a number, more than nothing and at most `rtt_s_max`."""
    return 0.0 < rtt_s <= config.rtt_s_max  # NaN compares false


def plausible_coordinate(coordinate: Coordinate, config: CoordinateConfig) -> bool:
    """Whether every part of `coordinate` is finite and within its range, and the number of dimensions fits."""
    vector = coordinate.vector
    return (
        len(vector) == config.dimensions
        and -config.rtt_s_max <= min(vector)
        and max(vector) <= config.rtt_s_max
        and not math.isnan(sum(vector))  # min and max may overlook it
        and 0.0 <= coordinate.height_s <= config.rtt_s_max
        and 0.0 <= coordinate.error <= config.error_max
    )


def estimate_rtt(a: Coordinate, b: Coordinate) -> float:
    """Predict the round trip between two places, in seconds.

    Args:
        a: one place.
        b: the other, of as many dimensions.

    Returns:
        The Euclidean distance plus both heights.

    Source: Vivaldi, section 5.4, the norm of height vectors.
    """
    return math.dist(a.vector, b.vector) + a.height_s + b.height_s


def estimate_rtt_to(a: Coordinate, place: Sequence[float]) -> float:
    """The same to a place that is written as its components, its height and its error, in this order."""
    return math.dist(a.vector, place[:-2]) + a.height_s + place[-2]


def distance(a: Coordinate, b: Coordinate) -> float:
    """How far apart two places of one node are, in seconds: what an estimate can have changed by at most."""
    return math.dist(a.vector, b.vector) + abs(a.height_s - b.height_s)


def update(own: Coordinate, other: Coordinate, rtt_s: float, config: CoordinateConfig, luck: Luck) -> Coordinate:
    """Move `own` toward the place that would explain one RTT sample.

    Args:
        own: this node's coordinate.
        other: the remote node's coordinate, of as many dimensions; both plausible.
        rtt_s: the filtered round trip in seconds, 0 < rtt_s <= config.rtt_s_max.
        config: gains and bounds.
        luck: chooses a direction when both places are the same.

    Returns:
        A new coordinate that is plausible too; its place moves by at most `config.force_s_max` seconds, height included.

    Source: Vivaldi, figure 3 (adaptive timestep) and section 5.4 (height vectors).
    """
    assert plausible_rtt(rtt_s, config), rtt_s
    predicted_s = estimate_rtt(own, other)
    own_error = max(own.error, config.error_trusted_min)
    weight = own_error / (own_error + max(other.error, config.error_trusted_min))
    blend = config.error_gain * weight
    error = own.error * (1.0 - blend) + blend * abs(predicted_s - rtt_s) / rtt_s
    force_s = config.place_gain * weight * (rtt_s - predicted_s)
    force_s = max(-config.force_s_max, min(config.force_s_max, force_s))
    direction, distance_s = _direction(other.vector, own.vector, luck)
    flat = distance_s / predicted_s if distance_s > 0.0 else 1.0  # the part of the force that stays in the Euclidean space
    pull_s = force_s * flat
    vector = tuple([place + pull_s * part for place, part in zip(own.vector, direction, strict=True)])
    height_s = max(own.height_s + force_s * (1.0 - flat), config.height_s_min)
    moved = Coordinate(vector, height_s, min(error, config.error_max))
    return moved if plausible_coordinate(moved, config) else origin(config)


def attract(own: Coordinate, config: CoordinateConfig) -> Coordinate:
    """Pull `own` toward the origin by the square of its distance, so that a mesh does not drift as a whole.

    Source: Ledlie et al., "Network Coordinates in the Wild", on gravity.
    """
    distance_s = math.hypot(*own.vector)
    if distance_s <= _TOGETHER_S:
        return own
    keep = 1.0 - min(1.0, (distance_s / config.gravity_s) ** 2 / distance_s)
    return Coordinate(tuple([place * keep for place in own.vector]), own.height_s, own.error)


class LatencyFilter:
    """The median of the last few samples of one peer: one late packet changes nothing.

    Source: Ledlie et al., on latency filters (a moving percentile over few samples); three samples and their median as in Serf.
    """

    __slots__ = ("_samples",)

    def __init__(self, samples_max: int) -> None:
        self._samples: deque[float] = deque(maxlen=samples_max)

    @property
    def newest_s(self) -> float:
        """The newest sample in seconds; there is one."""
        return self._samples[-1]

    def add(self, rtt_s: float) -> float:
        """Take one sample in and return the filtered round trip, both in seconds."""
        self._samples.append(rtt_s)
        return _median(list(self._samples))


class Vivaldi:
    """This node's place, moved by its samples."""

    def __init__(self, config: CoordinateConfig, luck: Luck) -> None:
        self._config = config
        self._luck = luck
        self._coordinate = origin(config)
        self._filters: dict[PeerId, LatencyFilter] = {}  # the longest unheard first
        self._residuals: deque[float] = deque(maxlen=config.residuals_max)
        self._typical_rtt_s = 0.0
        self._typical_left = 0  # samples until it is worked out again
        self._limit_s = math.inf
        self._limit_age = 0  # samples since it was worked out

    @property
    def coordinate(self) -> Coordinate:
        """Where this node is now."""
        return self._coordinate

    @property
    def typical_rtt_s(self) -> float:
        """The median of the round trips to all peers measured, in seconds; 0 before the first. It scales what a move means."""
        if self._typical_left <= 0 and self._filters:
            self._typical_left = min(len(self._filters), _TYPICAL_SAMPLES)
            self._typical_rtt_s = _median([samples.newest_s for samples in self._filters.values()])
        return self._typical_rtt_s

    @property
    def peers_tracked(self) -> int:
        """How many peers have a latency filter."""
        return len(self._filters)

    def handle_sample(self, peer: PeerId, rtt_s: float, other: Coordinate) -> SampleResult:
        """Take in one measured round trip to a peer whose coordinate is known.

        Args:
            peer: whom it was measured to.
            rtt_s: the raw round trip in seconds; anything that is no plausible one is dropped.
            other: the coordinate the peer publishes; anything implausible is dropped.
        """
        config = self._config
        if not plausible_rtt(rtt_s, config):
            return SampleResult.IMPLAUSIBLE_RTT
        filtered_s = self._filter_of(peer).add(rtt_s)
        if not plausible_coordinate(other, config):
            return SampleResult.IMPLAUSIBLE_COORDINATE
        predicted_s = estimate_rtt(self._coordinate, other)
        limit_s = self._residual_limit_s()
        self._residuals.append(abs(filtered_s - predicted_s))
        self._typical_left -= 1
        believed_s = max(predicted_s - limit_s, min(predicted_s + limit_s, filtered_s))
        moved = update(self._coordinate, other, min(believed_s, config.rtt_s_max), config, self._luck)
        self._coordinate = attract(moved, config)
        return SampleResult.APPLIED if believed_s == filtered_s else SampleResult.LIMITED

    def forget(self, peer: PeerId) -> None:
        """Drop the samples of a peer that is gone."""
        self._filters.pop(peer, None)

    def _filter_of(self, peer: PeerId) -> LatencyFilter:
        known = self._filters.pop(peer, None)
        if known is not None:
            self._filters[peer] = known  # moved to the end
            return known
        if len(self._filters) >= self._config.peers_max:
            del self._filters[next(iter(self._filters))]
        fresh = self._filters[peer] = LatencyFilter(self._config.filter_samples)
        return fresh

    def _residual_limit_s(self) -> float:
        """How far a sample may differ from the estimate and still pull with its whole difference.

        Every difference enters the window, a limited one too: when the network itself changes, half a window of samples is
        enough to make the new differences ordinary.

        Source: the rejection rule of J. Seibert, S. Becker, C. Nita-Rotaru, R. State, "Newton: Securing Virtual Coordinates by
        Enforcing Physical Laws", ICDCS 2012, as a limit in place of a rejection: a rejection also starves honest updates.
        """
        config = self._config
        if len(self._residuals) < config.residuals_min:
            return math.inf
        self._limit_age += 1
        if self._limit_s < math.inf and self._limit_age < _LIMIT_SAMPLES:
            return self._limit_s
        self._limit_age = 0
        middle = _median(list(self._residuals))
        deviation = _median([abs(residual - middle) for residual in self._residuals])
        self._limit_s = max(config.residual_s_floor, middle + config.residual_deviations * deviation)
        return self._limit_s


def _median(values: list[float]) -> float:
    """The middle one of values, of which there is one, or the mean of the two in the middle: as `statistics`, which is slower."""
    values.sort()
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def _direction(start: tuple[float, ...], end: tuple[float, ...], luck: Luck) -> tuple[list[float], float]:
    """The unit vector from `start` to `end` and the distance in seconds; a random direction and 0 when they are together."""
    parts = [b - a for a, b in zip(start, end, strict=True)]
    length = math.hypot(*parts)
    if length > _TOGETHER_S:
        return [part / length for part in parts], length
    parts = [luck.random() - 0.5 for _ in parts]
    length = math.hypot(*parts)
    if length > _TOGETHER_S:
        return [part / length for part in parts], 0.0
    return [1.0] + [0.0] * (len(parts) - 1), 0.0
