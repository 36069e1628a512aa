"""How far everyone is: "Vivaldi with memory".

This node keeps the round trip of every path that it measured. From those and from a chart of where the others are (`chart`) it
works out its own place, again and again, by a robust fit; what the fit cannot explain it carries over to peers beside those it
measured, from its own residuals and from theirs. Every estimate has an interval that holds the truth nine times in ten: how wide
it is is learnt from what the node would have said of the paths that it measured, had it not measured them, and of those only
that were drawn at random, for those chosen for being near are easier.

An own fresh measurement wins over everything. Nothing that a peer says of its own place is used.

Source: Dabek et al., "Vivaldi" (SIGCOMM 2004); Rasmussen, Williams, "Gaussian Processes for Machine Learning" (2006), sections
2.2 and 5.4.2 (what a process would have said without a point); conformal intervals: V. Vovk et al., "Algorithmic Learning in a
Random World" (2005).
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import numpy as np

from protocol.distances.chart import Chart, lengths_between
from protocol.distances.config import COVERAGE, PRIOR_COUNT, PRIOR_WIDTH, DistanceConfig
from protocol.distances.draws import Draws
from protocol.distances.path import PathSamples
from protocol.distances.position import Paths, Position, both_say, unsure_by
from protocol.distances.solver import Floats
from protocol.estimate import Estimate, Source
from protocol.identity import PeerId

_DEVIATIONS_MAX = 256
"""Differences between samples of one path that are kept, of all paths together, a count."""

_PLACED_PATHS = 3
"""Measured paths to placed peers, a count, from which this node has a place."""


class Distances:
    """The machine; see the module's docstring."""

    def __init__(self, config: DistanceConfig, own: PeerId, draws: Draws, chart: Chart | None = None) -> None:
        """Nothing measured yet.

        Args:
            config: bounds.
            own: this node.
            draws: whom to measure, and what shakes the chart.
            chart: where the others are, when several nodes of one process hold the same edges and share it; then whoever made
                it does its work. Its own where none is given.
        """
        self._config = config
        self._own_id = own
        self._draws = draws
        self._shares_chart = chart is not None
        self.chart = Chart(config, draws) if chart is None else chart
        self._paths: OrderedDict[PeerId, PathSamples] = OrderedDict()  # the longest unmeasured first
        self._deviations: deque[float] = deque(maxlen=_DEVIATIONS_MAX)
        self._width_of_one = PRIOR_WIDTH
        self._own: Position | None = None
        self._due = math.inf
        self._wait_s = config.resolve_s
        self._drawn = 0

    # What was measured, and what others told

    def handle_sample(self, peer: PeerId, rtt_s: float, now: float, *, drawn: bool = False) -> None:
        """Takes in a round trip that this node has measured.

        Args:
            peer: to whom.
            rtt_s: in seconds; what can be no round trip is dropped.
            now: monotonic seconds.
            drawn: whether the peer was drawn at random, and not chosen for seeming near.
        """
        if not 0.0 < rtt_s <= self._config.rtt_s_max or peer == self._own_id:  # NaN compares false
            return
        rtt_s = max(rtt_s, self._config.rtt_s_min)
        path = self._paths.pop(peer, None)
        if path is None:
            path = PathSamples()
            if len(self._paths) >= self._config.measured_max:
                self._paths.popitem(last=False)
        elif path.is_fresh(now):
            self._deviations.append(abs(math.log(rtt_s / path.rtt_s)))
        path.drawn = path.drawn or drawn
        path.add(rtt_s, now, self._config)
        self._paths[peer] = path
        self.wake(now)

    def handle_edges(self, peer: PeerId, edges: Sequence[tuple[PeerId, float]], now: float) -> None:
        """Takes in all edges of a peer that count, because both ends tell them: other ends and round trips in seconds."""
        self.chart.set_edges(peer, edges, whole=True)
        self.wake(now)

    def wake(self, now: float) -> None:
        """Has the place worked out again in a while, because something is new: soon at first, then ever less often."""
        self._due = min(self._due, now + self._wait_s)

    def forget(self, peer: PeerId) -> None:
        """Drops a peer that is gone for good."""
        self._paths.pop(peer, None)
        self.chart.forget(peer)

    # Time

    def next_timer(self) -> float:
        """When `handle_timer` wants to be called; infinite while nothing is new."""
        return self._due

    def handle_timer(self, now: float) -> None:
        """Does a slice of the work that is due: some milliseconds."""
        if now < self._due:
            return
        self._due = now + self._config.slice_s
        if not self._shares_chart:
            self.chart.begin(now)
            if self.chart.is_busy:
                self.chart.work()
                return
        if self._own is not None and self._own.is_busy:
            self._own.work()
        else:
            self._begin(now)
        if self._own is None or not self._own.is_busy:
            self._due = math.inf
            self._wait_s = min(2.0 * self._wait_s, self._config.chart_s_max)

    def resolve(self, now: float) -> None:
        """Works out this node's own place, and what follows from it, at once."""
        self._begin(now)
        while self._own is not None and self._own.is_busy:
            self._own.work()

    def _begin(self, now: float) -> None:
        paths = self.paths(now)
        if len(paths.rows) < _PLACED_PATHS or self.chart.typical_s == 0.0:
            self._own = None
            return
        self._learn_width()
        if self._own is None:
            self._own = Position(self._config, self.chart)
        self._own.begin(paths, now)

    # What is asked

    def measured(self, peer: PeerId, now: float) -> Estimate | None:
        """What this node's own samples say, while they count."""
        path = self._paths.get(peer)
        if path is None or not path.is_fresh(now):
            return None
        width = self._width_of(path)
        return _estimate(path.rtt_s, width, Source.MEASURED)

    def estimate(self, peer: PeerId, now: float) -> Estimate | None:
        """How far a peer is: an own fresh measurement, else what its edges say; None where it has none."""
        known = self.measured(peer, now)
        if known is not None or self._own is None:
            return known
        row = self.chart.row(peer)
        if row is None or row >= len(self._own.rtts) or not math.isfinite(self._own.rtts[row]):
            return None
        rtt_s, width = float(self._own.rtts[row]), float(self._own.widths[row])
        return _estimate(rtt_s, width, Source.EDGES)

    def estimates(self, peers: Sequence[PeerId], now: float) -> tuple[Floats, Floats, Floats]:
        """The same of many: round trips and the ends of their intervals, seconds, NaN where nothing is known."""
        row_of, own = self.chart.row, self._own
        rows = np.array([-1 if (row := row_of(peer)) is None else row for peer in peers], np.int64)
        rtts, widths = np.full(len(peers), np.nan), np.full(len(peers), np.nan)
        if own is not None:
            there = (rows >= 0) & (rows < len(own.rtts))
            rtts[there], widths[there] = own.rtts[rows[there]], own.widths[rows[there]]
        for number, peer in enumerate(peers):
            path = self._paths.get(peer)
            if path is not None and path.is_fresh(now):
                rtts[number], widths[number] = path.rtt_s, self._width_of(path)
        return rtts, rtts * np.exp(-widths), rtts * np.exp(widths)

    def between(self, first: PeerId, second: PeerId, now: float) -> Estimate | None:
        """How far two peers are from one another, by their edges; None where one of them has no place."""
        if first == self._own_id or second == self._own_id:
            return self.estimate(second if first == self._own_id else first, now)
        chart = self.chart
        a, b = chart.row(first), chart.row(second)
        if a is None or b is None or not (chart.placed[a] and chart.placed[b]):
            return None
        told_s = self._told(a, b) or self._told(b, a)
        rtt_s, width = (told_s, self._width_of_one) if told_s is not None else self._carried_between(a, b)
        return _estimate(rtt_s, width, Source.EDGES)

    # What is told, and who is measured next

    def edges(self, count: int, now: float) -> list[tuple[PeerId, float]]:
        """The paths to tell others of: the nearest half, and of the rest the newest; peers and seconds, nearest first."""
        fresh = [(path.rtt_s, peer) for peer, path in reversed(self._paths.items()) if path.is_fresh(now)]
        if len(fresh) > count:
            near = sorted(fresh)[: count // 2]
            chosen = set(near)
            fresh = near + [edge for edge in fresh if edge not in chosen][: count - len(near)]
        return [(peer, rtt_s) for rtt_s, peer in sorted(fresh)]

    def measured_at(self, peer: PeerId) -> float:
        """When a path was measured last, in monotonic seconds; minus infinity for one that is not known."""
        path = self._paths.get(peer)
        return float("-inf") if path is None else path.newest_at()

    def whom_to_measure(
        self, candidates: Sequence[PeerId], now: float, may: Callable[[PeerId], bool]
    ) -> tuple[PeerId, bool] | None:
        """A peer to measure next that was not measured lately: by turns one drawn at random and one that seems near.

        Args:
            candidates: those known, one entry each, in an order that no peer chooses; the draw is even among them.
            now: monotonic seconds.
            may: whether a peer can be measured now.

        Returns:
            The peer, and whether it was drawn at random; None where none is left.
        """
        self._drawn += 1
        if self._drawn > self._config.drawn_first and self._drawn % 2 == 0:
            near = self._near(now, may)
            if near is not None:
                return near, False
        drawn = self._draw(candidates, now, may)
        if drawn is not None:
            return drawn, True
        near = self._near(now, may)
        return None if near is None else (near, False)

    # Helpers

    def _is_fresh(self, peer: PeerId, now: float) -> bool:
        path = self._paths.get(peer)
        return path is not None and path.is_fresh(now)

    def _draw(self, candidates: Sequence[PeerId], now: float, may: Callable[[PeerId], bool]) -> PeerId | None:
        """One drawn at random: by trying, and by looking through all of them where most were measured."""
        if not candidates:
            return None
        for _ in range(8):
            peer = self._draws.choice(candidates)
            if peer != self._own_id and not self._is_fresh(peer, now) and may(peer):
                return peer
        left = [peer for peer in candidates if peer != self._own_id and not self._is_fresh(peer, now) and may(peer)]
        return self._draws.choice(left) if left else None

    def _near(self, now: float, may: Callable[[PeerId], bool]) -> PeerId | None:
        """One that seems near: by turns over the edges of the nearest measured peers, and by the estimate."""
        own = self._own
        if own is None:
            return None
        order = (own.over, own.near) if self._drawn % 4 == 0 else (own.near, own.over)
        for reckoned in order:
            while len(reckoned) and math.isfinite(reckoned[row := int(np.argmin(reckoned))]):
                own.near[row] = own.over[row] = math.inf  # until the place is worked out again
                peer = self.chart.peer(row)
                if peer is not None and peer != self._own_id and not self._is_fresh(peer, now) and may(peer):
                    return peer
        return None

    def paths(self, now: float) -> Paths:
        """The measured paths to placed peers: the nearest half of as many as are used, and the newest others."""
        found: list[tuple[int, float, bool]] = []
        for peer, path in reversed(self._paths.items()):
            row = self.chart.row(peer)
            if row is not None and self.chart.placed[row] and path.is_fresh(now):
                found.append((row, path.rtt_s, path.drawn))
        if len(found) > self._config.paths_max:
            room = self._config.paths_max
            near = sorted(found, key=lambda path: path[1])[: room // 2]
            chosen = {row for row, _, _ in near}
            found = near + [path for path in found if path[0] not in chosen][: room - len(near)]
        rows, rtts, drawn = ([path[part] for path in found] for part in range(3))
        return Paths(np.array(rows, np.int64), np.array(rtts, np.float64), np.array(drawn, np.bool_))

    def _learn_width(self) -> None:
        """How far a single sample is from its path's round trip, nine times in ten."""
        told = np.fromiter(self._deviations, np.float64, len(self._deviations))
        prior = np.linspace(0.0, PRIOR_WIDTH / COVERAGE, PRIOR_COUNT)
        self._width_of_one = float(np.quantile(np.concatenate([told, prior]), COVERAGE))

    def _width_of(self, path: PathSamples) -> float:
        """Half the width of a measured path's interval: on a steady path the median of more samples is surer."""
        return self._width_of_one / (1.0 + (math.sqrt(min(len(path), 4)) - 1.0) * path.steadiness)

    def _told(self, row: int, end: int) -> float | None:
        """The round trip of an edge in seconds, None where there is none."""
        ends, rtts = self.chart.edges_of(row)
        found = np.nonzero(ends == end)[0]
        return float(rtts[found[0]]) if len(found) else None

    def _carried_between(self, a: int, b: int) -> tuple[float, float]:
        """The round trip between two rows as their places and residuals say, and half the width of the interval."""
        chart = self.chart
        mine, near_a = chart.carried_to(a, chart.nearness(lengths_between(chart.places[b][None], chart.places)[0]))
        theirs, near_b = chart.carried_to(b, chart.nearness(lengths_between(chart.places[a][None], chart.places)[0]))
        unsure_a, unsure_b = unsure_by(np.array([near_a])), unsure_by(np.array([near_b]))
        field, spread = both_say(np.array([mine]), unsure_a, np.array([theirs]), unsure_b)
        plain_s = float(np.linalg.norm(chart.places[a] - chart.places[b])) + float(chart.heights[a] + chart.heights[b])
        calibration = 1.0 if self._own is None else self._own.calibration
        return plain_s * math.exp(float(field[0])), calibration * float(spread[0])


def _estimate(rtt_s: float, width: float, source: Source) -> Estimate:
    """An estimate whose interval is as wide on both sides, as a ratio; `width` is half of it as a logarithm."""
    return Estimate(rtt_s, rtt_s * math.exp(-width), rtt_s * math.exp(width), source)
