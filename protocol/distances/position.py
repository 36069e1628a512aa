"""This node's own place in its chart, and what follows from it for everybody.

The place is fitted to the measured paths. Their residuals make a field over the chart, as does what the residuals of the others'
edges say of the paths to this place; both are averaged by how sure they are. The field changes slowly and is worked out seldom;
what follows from a new place is worked out at once.

Source: C. Rasmussen, C. Williams, "Gaussian Processes for Machine Learning" (2006), sections 2.2 and 5.4.2 (what a process would
have said of a point without it); conformal intervals: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World"
(2005).
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from protocol.distances.chart import Chart, Rows, is_ordinary, lengths_between, residuals
from protocol.distances.config import COVERAGE, NOISE, PRIOR_COUNT, PRIOR_WIDTH, DistanceConfig
from protocol.distances.solver import Anchors, Floats, cheapest, step

_CALIBRATED_MIN = 12
"""Paths drawn at random, a count, from which intervals are judged by these alone."""

_STEPS = 3
"""Steps of the place at a time, a count: it hardly moves."""

_FIELD_MAX = 2.0
"""Most that residuals make of a path, as a logarithm: seven times what the places say, or a seventh."""

_UNSURE_MIN = 1e-3
"""Least variance of what residuals say, unitless: no path is beside itself."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Measured paths: rows of their ends in the chart, round trips in seconds, and whether the end was drawn at random."""

    rows: Rows
    rtts: Floats
    drawn: NDArray[np.bool_]


@dataclass(slots=True)
class _Learning:
    """A field that is being worked out; `at` is the next row."""

    ends: Floats
    alphas: Floats
    inverse: Floats
    reach: Floats
    field: Floats
    widths: Floats
    at: int = 0


class Position:
    """The own place; arrays are by the rows of the chart.

    Attributes:
        calibration: how many deviations of a residual hold the truth nine times in ten.
        rtts: (rows,) in seconds, NaN for who has no place.
        widths: (rows,) half the width of the interval, as a logarithm.
        near: (rows,) as `rtts`, infinite for who was measured or is not to be measured next.
        over: (rows,) how long the way is over one of the nearest measured peers, in seconds; infinite as above.
    """

    def __init__(self, config: DistanceConfig, chart: Chart) -> None:
        """Nowhere yet."""
        self._config = config
        self._chart = chart
        self._shaken = -1  # which of the chart's places it belongs to
        self._place: Floats = np.zeros(0)
        self._height_s = 0.0
        self._field: Floats = np.zeros(0)  # (rows,) by how much paths are longer than places say, as a logarithm
        self._field_at = -math.inf
        self._field_paths = 0
        self._paths = Paths(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_))
        self._learning: _Learning | None = None
        self.calibration = 1.0
        self.rtts: Floats = np.zeros(0)
        self.widths: Floats = np.zeros(0)
        self.near: Floats = np.zeros(0)
        self.over: Floats = np.zeros(0)

    @property
    def is_busy(self) -> bool:
        """Whether `work` has something to do."""
        return self._learning is not None

    def work_out(self, paths: Paths, now: float) -> None:
        """Fits the place, and works out what follows, all at once; see `begin`."""
        self.begin(paths, now)
        while self.is_busy:
            self.work()

    def begin(self, paths: Paths, now: float) -> None:
        """Fits the place, and works out what follows; what residuals say is left to `work`, where it is due.

        Args:
            paths: what was measured to placed peers, three paths at least.
            now: monotonic seconds.
        """
        chart, config = self._chart, self._config
        anchors = chart.anchors(paths.rows[None], paths.rtts[None])
        anew = self._shaken != chart.shaken
        grown = len(paths.rows) >= config.field_grown * self._field_paths
        self.fit(paths, anchors, anew=anew, widely=grown or now - self._field_at >= config.field_s)
        self._paths = paths
        fits = len(self._field) == len(chart.placed) and not anew
        if not fits:
            self._field, self.widths = np.zeros(len(chart.placed)), np.full(len(chart.placed), PRIOR_WIDTH)
        if not fits or grown or now - self._field_at >= config.field_s:
            self._field_at, self._field_paths = now, len(paths.rows)
            self._learning = self._learn(anchors, paths.drawn)
        self._follow()

    def work(self) -> None:
        """Works out what residuals say of some more peers; when it is known of all, what follows."""
        learning = self._learning
        if learning is None:
            return
        rows = slice(learning.at, learning.at + self._config.field_rows_at_once)
        if len(learning.field) == len(self._chart.placed):
            learning.field[rows], learning.widths[rows] = self._said_of(rows, learning)
        learning.at += self._config.field_rows_at_once
        if learning.at >= len(learning.field):
            self._learning = None
            self._field, self.widths = learning.field, learning.widths
            if len(self._field) == len(self._chart.placed):  # the chart has not grown meanwhile
                self._follow()

    def fit(self, paths: Paths, anchors: Anchors, *, anew: bool = False, widely: bool = False) -> None:
        """Moves the place toward what was measured.

        Args:
            paths: what was measured.
            anchors: the same, as what a place is worked out from.
            anew: begins at several other places, where the chart was made anew.
            widely: and at the present one besides: what pulls ever less when it is out of proportion holds a place where it is
                right with a few and wrong with most, as among liars who agree.
        """
        chart = self._chart
        if anew or widely:
            starts, heights = chart.starts(paths.rows, paths.rtts)
            if not anew:
                starts, heights = np.concatenate([starts, self._place[None]]), np.append(heights, self._height_s)
            steps = 2 * self._config.start_steps if anew else self._config.start_steps
            self._place, self._height_s, _ = cheapest(starts, heights, anchors, chart.fit, steps)
            self._shaken = chart.shaken
            return
        places, heights = self._place[None], np.array([self._height_s])
        for _ in range(_STEPS):
            places, heights, _ = step(places, heights, anchors, chart.fit)
        self._place, self._height_s = places[0], float(heights[0])

    def predict(self) -> None:
        """Works out the round trips to everybody from the place and the field."""
        chart = self._chart
        plain = lengths_between(self._place[None], chart.places)[0] + self._height_s + chart.heights
        self.rtts = np.where(chart.placed, plain * np.exp(self._field), np.nan)

    def _follow(self) -> None:
        """Works out everybody's round trip, and whom to measure next."""
        self.predict()
        paths = self._paths
        self.near = np.where(np.isfinite(self.rtts), self.rtts, np.inf)
        self.over = self._over_edges(paths)
        self.near[paths.rows] = self.over[paths.rows] = np.inf

    def _learn(self, anchors: Anchors, drawn: NDArray[np.bool_]) -> "_Learning":
        """What the own residuals are worth."""
        chart = self._chart
        ends, rtts = anchors.places[0], anchors.rtts[0]
        to_ends = np.sqrt(((ends - self._place) ** 2).sum(axis=1)) + self._height_s + anchors.heights[0]
        residual = residuals(rtts, to_ends, chart.fit)
        kept = is_ordinary(residual[None], anchors.weights)[0] > 0.0
        ends, residual = ends[kept], residual[kept]
        shared = chart.nearness(lengths_between(ends, ends))
        shared[np.diag_indices(len(ends))] = 1.0 + NOISE
        inverse = cast("Floats", np.linalg.inv(shared))
        alphas = inverse @ residual
        self._calibrate(alphas, inverse, drawn[kept])
        reach = chart.nearness(lengths_between(self._place[None], chart.places)[0])
        count = len(chart.placed)
        return _Learning(ends, alphas, inverse, reach, np.zeros(count), np.full(count, PRIOR_WIDTH))

    def _said_of(self, rows: slice, learning: "_Learning") -> tuple[Floats, Floats]:
        """What residuals say of some peers, as a logarithm, and half the width of the interval."""
        chart = self._chart
        beside = chart.nearness(lengths_between(chart.places[rows], learning.ends))
        mine = beside @ learning.alphas
        unsure: Floats = 1.0 - np.einsum("rw,rw->r", beside @ learning.inverse, beside)
        theirs, nearest = chart.carried(learning.reach, rows)
        field, spread = both_say(mine, unsure, theirs, unsure_by(nearest))
        return field, self.calibration * spread

    def _calibrate(self, alphas: Floats, inverse: Floats, drawn: NDArray[np.bool_]) -> None:
        """How many deviations hold the truth nine times in ten: by what would have been said of each measured path without it."""
        variances = 1.0 / np.diag(inverse)
        off = np.abs(alphas) * np.sqrt(variances)
        chosen = off[drawn]
        told = chosen if len(chosen) >= _CALIBRATED_MIN else off
        if len(told) < _CALIBRATED_MIN:
            told = np.concatenate([told, np.full(PRIOR_COUNT, PRIOR_WIDTH / math.sqrt(0.5 + NOISE))])
        self.calibration = float(np.quantile(told, min(1.0, COVERAGE * (len(told) + 1) / len(told))))

    def _over_edges(self, paths: Paths) -> Floats:
        """How long the way is at most that leads over one of the nearest measured peers, (rows,) in seconds."""
        bound = np.full(len(self.rtts), np.inf)
        for number in np.argsort(paths.rtts, kind="stable")[: self._config.hops]:
            ends, lengths = self._chart.edges_of(int(paths.rows[number]))
            np.minimum.at(bound, ends, paths.rtts[number] + lengths)
        return bound


def unsure_by(nearest: Floats) -> Floats:
    """The variance of what one edge's residual says of a path, by how near its end is, 0 to 1: a bound where there are more."""
    return 1.0 - nearest**2 / (1.0 + NOISE)


def both_say(mine: Floats, unsure: Floats, theirs: Floats, unsure_theirs: Floats) -> tuple[Floats, Floats]:
    """What the residuals of both ends say of paths, each as far as it is sure.

    Args:
        mine: what one end says, logarithms.
        unsure: the variance of that, unitless.
        theirs: what the other says.
        unsure_theirs: and its variance.

    Returns:
        By how much the paths are longer than places say, as logarithms, and the deviation of that, unitless.
    """
    sure, sure_theirs = 1.0 / np.maximum(unsure, _UNSURE_MIN), 1.0 / np.maximum(unsure_theirs, _UNSURE_MIN)
    both = (mine * sure + theirs * sure_theirs) / (sure + sure_theirs)
    return np.clip(both, -_FIELD_MAX, _FIELD_MAX), np.sqrt(2.0 / (sure + sure_theirs) + NOISE)
