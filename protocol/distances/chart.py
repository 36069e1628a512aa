"""Where everybody is, worked out by this node alone from edges that both ends have signed.

Nobody's word for its own place is used: a peer is where its edges to others put it, and a liar's edges can be long and never
short. So the places of a chart mean something to the node that holds it and to nobody else: only the distances between them do.

A new chart begins anywhere and is shaken, ever less, while all places are moved toward what the edges say; a peer that comes
later is tried from several places. What the places cannot explain is kept as residuals: detours and short cuts concern
neighbours alike, so the residuals of a peer's edges say something of its paths that nobody measured (`carried`). The work is
done in slices of some milliseconds, so that a node's loop is never held for long.

Source: Dabek et al., "Vivaldi" (SIGCOMM 2004), for height vectors; S. Kirkpatrick, C. Gelatt, M. Vecchi, "Optimization by
Simulated Annealing", Science 220 (1983); Gaussian processes: C. Rasmussen, C. Williams, "Gaussian Processes for Machine
Learning" (2006), section 2.2.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.coordinates import DIMENSIONS
from protocol.distances.config import NOISE, REACH_SHARE, DistanceConfig
from protocol.distances.draws import Draws
from protocol.distances.solver import Anchors, Fit, Floats, cheapest, costs_of, solved, step
from protocol.identity import PeerId

Rows: TypeAlias = NDArray[np.int64]
_Scalar = TypeVar("_Scalar", bound=np.generic)

_CODES = 1 << 16
"""How many round trips a packed one tells apart, a count: with 10 us to 10 s they are 0.02 % apart."""

ROWS_MIN = 32
"""Rows that a new chart has room for, a count; it doubles when it is full."""

_REACH_ROWS = 256
"""Peers whose pairs say how far residuals reach, a count."""

_ALIKE_ROWS = 512
"""Peers whose places are tried, a count: some 2 ms with 256 round trips."""

_ORDINARY = 0.3
"""A residual, as a logarithm, that is always ordinary: a third longer than the places say."""

_ORDINARY_TIMES = 4.0
"""How many times the median residual is still ordinary, unitless: one in 140 of a normal distribution is beyond."""

_PLACED_EDGES = 3
"""Edges to placed peers, a count, from which a peer can be placed at all."""


class Chart:
    """The places of peers, by rows of arrays; see the module's docstring.

    Attributes:
        shaken: how often all places were worked out anew; they have nothing to do with those before.
        places: (rows, dimensions), seconds.
        heights: (rows,), seconds.
        placed: (rows,), whether a place was worked out.
    """

    def __init__(self, config: DistanceConfig, draws: Draws) -> None:
        """Nobody yet; draws shake."""
        self._config = config
        self._shaker = np.random.default_rng(int(draws.random() * 2**53))
        self._rows: dict[PeerId, int] = {}
        self._peers: list[PeerId | None] = []
        self._free: list[int] = []
        width = config.edges_max
        self._others: NDArray[np.int16] = np.zeros((0, width), np.int16)  # rows at the other ends
        self._codes: NDArray[np.uint16] = np.zeros((0, width), np.uint16)  # round trips, packed
        self._alphas: NDArray[np.float16] = np.zeros((0, width), np.float16)  # what an edge's residual adds to paths beside it
        self._degrees: NDArray[np.int32] = np.zeros(0, np.int32)
        self._stale: NDArray[np.bool_] = np.zeros(0, np.bool_)  # whose residuals are to be worked out
        self._code_step = math.log(config.rtt_s_max / config.rtt_s_min) / (
            _CODES - 1
        )  # of the logarithm, from one code to the next
        self.places: Floats = np.zeros((0, DIMENSIONS))
        self.heights: Floats = np.zeros(0)
        self.placed: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.shaken = 0
        self._typical_s = 0.0
        self.reach_s = math.inf
        self._order: Rows = np.zeros(0, np.int64)  # rows of this sweep
        self._at = self._sweep = self._sweeps = self._anneal = self._least = 0
        self._residuals_at = -1  # -1: not begun
        self._residual_order: Rows = np.zeros(0, np.int64)
        self._moved_s = 0.0  # how far all places were moved in this sweep
        self._shaken_rows = 0
        self._begins_at = self._residuals_due = -math.inf
        self._wait_s = config.resolve_s
        self._changed = False

    # Who and what

    def __len__(self) -> int:
        """How many peers have a row."""
        return len(self._rows)

    def row(self, peer: PeerId) -> int | None:
        """The row of a peer, None where it has none."""
        return self._rows.get(peer)

    def peer(self, row: int) -> PeerId | None:
        """Whose row it is, None for a free one."""
        return self._peers[row]

    def edges_of(self, row: int) -> tuple[Rows, Floats]:
        """The rows at the other ends of a peer's edges, and their round trips in seconds."""
        degree = int(self._degrees[row])
        return self._others[row, :degree].astype(np.int64), self._rtts_of(self._codes[row, :degree])

    def set_edges(self, peer: PeerId, edges: Sequence[tuple[PeerId, float]], *, whole: bool = False) -> None:
        """Takes over the edges of a peer that count, in place of those before; the other ends learn of new ones.

        Args:
            peer: whose they are.
            edges: other ends and round trips in seconds, in any order; where there are too many the nearest half of what has
                room is kept, and of the others some that are spread evenly. Of one that is given twice the longer counts.
            whole: whether these are all that lead to the peer, so that no other end has one that is not among them.
        """
        row = self._row_of(peer)
        if row is None:
            return
        longest: dict[PeerId, float] = {}
        for other, rtt_s in edges:
            if other != peer and 0.0 < rtt_s <= self._config.rtt_s_max:
                longest[other] = max(rtt_s, longest.get(other, 0.0))
        kept = self._kept([(rtt_s, other) for other, rtt_s in longest.items()])
        before = int(self._degrees[row])
        gone = dict.fromkeys(self._others[row, :before].tolist())
        said = dict(zip(self._others[row, :before].tolist(), self._alphas[row, :before].tolist(), strict=True))
        degree = 0
        for rtt_s, other in kept:
            end = self._row_of(other)
            if end is not None:
                code = self._code(rtt_s)
                self._others[row, degree], self._codes[row, degree] = end, code
                self._alphas[row, degree] = said.get(end, 0.0)
                degree += 1
                gone.pop(end, None)
                self._note(end, row, code)
        self._degrees[row] = degree
        for end in gone if whole else ():
            self._remove(end, row)
        self._stale[row] = self._changed = True

    def forget(self, peer: PeerId) -> None:
        """Drops a peer and all edges to it."""
        row = self._rows.pop(peer, None)
        if row is None:
            return
        for end in np.nonzero((self._others == row).any(axis=1))[0]:
            self._remove(int(end), row)
        self._peers[row] = None
        self._free.append(row)
        self._degrees[row] = 0
        self.placed[row] = False
        self._changed = True

    # Work

    @property
    def is_busy(self) -> bool:
        """Whether `work` has something to do."""
        return self._sweep < self._sweeps or self._residuals_at >= 0

    def begin(self, now: float) -> None:
        """Begins to work out what has changed since the last time, if it is time; nothing where nothing did.

        While a mesh forms that is often, each time after twice as long; what residuals say changes slowly, and takes the most.
        """
        if not self._changed or self.is_busy or now < self._begins_at:
            return
        self._changed = False
        self._order = np.nonzero(self._degrees >= 1)[0]
        if len(self._order) == 0:
            return
        used = self._codes[self._order][np.arange(self._config.edges_max) < self._degrees[self._order, None]]
        self._typical_s = float(self._rtts_of(np.median(used)))
        self._at = self._sweep = self._anneal = 0
        self._least = 1
        self._sweeps = self._config.settle_sweeps
        if len(self._order) >= self._config.grown * self._shaken_rows:
            self._shake_up()
            self._wait_s, self._residuals_due = self._config.resolve_s, now
        if now >= self._residuals_due:
            self._stale[self._order] = True
            self._residuals_due = now + self._config.residuals_s
        self._residuals_at = 0
        self._begins_at = now + self._wait_s
        self._wait_s = min(2.0 * self._wait_s, self._config.chart_s_max)

    def work(self) -> None:
        """Does one slice."""
        if self._sweep < self._sweeps:
            rows = self._order[self._at : self._at + self._config.rows_at_once]
            if self._at == 0 and self._sweep < self._anneal:
                left = 1.0 - self._sweep / self._anneal
                shake_s = self._config.shake_typical * self._typical_s * left
                self.places[self._order] += self._shaker.normal(0.0, shake_s, (len(self._order), DIMENSIONS))
            self._move(rows)
            self._at += len(rows)
            if self._at >= len(self._order):
                self._at, self._sweep = 0, self._sweep + 1
                if self._sweep >= self._least and self._moved_s < self._config.settled_share * self._typical_s * len(self._order):
                    self._sweeps = self._sweep
                self._moved_s = 0.0
        elif self._residuals_at >= 0:
            if self._residuals_at == 0:
                self.reach_s = self._reach_s()
                self._residual_order = self._order[self._stale[self._order]]
            rows = self._residual_order[self._residuals_at : self._residuals_at + self._config.residual_rows_at_once]
            self._work_out_residuals(rows)
            self._stale[rows] = False
            self._residuals_at += len(rows)
            if self._residuals_at >= len(self._residual_order):
                self._residuals_at = -1

    def finish(self, now: float) -> None:
        """Does all that is to be done by now, at once."""
        self.begin(now)
        while self.is_busy:
            self.work()

    @property
    def fit(self) -> Fit:
        """Gains and bounds of the scale that the edges have."""
        config, typical_s = self._config, max(self._typical_s, self._config.rtt_s_min)
        relative_s = min(config.relative_s_min, config.relative_share * typical_s)
        step_s = config.step_typical_max * typical_s
        cut = config.cut if self._sweep >= self._anneal else math.inf  # nothing is out of proportion while all is shaken
        return Fit(relative_s, config.huber, cut, config.damping, config.gain, step_s, config.height_s_min)

    @property
    def typical_s(self) -> float:
        """The median round trip of all edges in seconds, 0 before the first."""
        return self._typical_s

    def anchors(self, others: Rows, rtts: Floats, weights: Floats | None = None) -> Anchors:
        """Edges as what places are worked out from; those to peers without a place count nothing.

        Args:
            others: rows at the other ends, (b, w).
            rtts: round trips in seconds, (b, w).
            weights: what each edge counts, (b, w); 1 where nothing is said.
        """
        known = self.placed[others].astype(np.float64)
        counts = known if weights is None else known * weights
        return Anchors(self.places[others], self.heights[others], rtts, counts)

    def starts(self, others: Rows, rtts: Floats) -> tuple[Floats, Floats]:
        """Places to try a peer from, and heights: round its nearest placed ends, and where the peers are that would fit best."""
        config = self._config
        count = config.starts
        near = others[np.argsort(rtts, kind="stable")][: max(1, count // 2)]
        spread_s = max(float(np.median(rtts)), config.rtt_s_min) * 0.5
        beside = self.places[near] + self._shaker.normal(0.0, spread_s, (len(near), DIMENSIONS))
        low = np.full(len(near), max(config.height_s_min, 0.02 * self._typical_s))
        alike = self._alike(others, rtts, count - len(near))
        return np.concatenate([beside, self.places[alike]]), np.concatenate([low, self.heights[alike]])

    # What residuals say

    def carried(self, reach: Floats, rows: slice) -> tuple[Floats, Floats]:
        """What the residuals of some peers' edges say of their paths to one place.

        Args:
            reach: how near each row is to that place, (all rows,), 1 in the same place and 0 far away (`nearness`).
            rows: whose, `n` of them.

        Returns:
            The logarithm by which the path is longer than the places say, (n,), and how near the nearest end of an edge is,
            (n,).
        """
        used = np.arange(self._config.edges_max) < self._degrees[rows, None]
        beside = np.where(used, reach[self._others[rows]], 0.0)
        return np.einsum("rw,rw->r", beside, self._alphas[rows].astype(np.float64)), beside.max(axis=1, initial=0.0)

    def carried_to(self, row: int, reach: Floats) -> tuple[float, float]:
        """The same of one peer's edges."""
        degree = int(self._degrees[row])
        beside = reach[self._others[row, :degree]]
        return float(beside @ self._alphas[row, :degree].astype(np.float64)), float(beside.max(initial=0.0))

    def nearness(self, lengths: Floats) -> Floats:
        """How much paths to two places have in common that are `lengths` seconds apart, 0 to 1."""
        return np.exp(-lengths / self.reach_s) if self.reach_s < math.inf else np.zeros_like(lengths)

    # Helpers

    def _row_of(self, peer: PeerId) -> int | None:
        """Finds or makes the row of a peer; None where there is no more room."""
        row = self._rows.get(peer)
        if row is not None:
            return row
        if len(self._rows) >= self._config.peers_max:
            return None
        if not self._free:
            self._grow()
        row = self._rows[peer] = self._free.pop()
        self._peers[row] = peer
        self._degrees[row] = 0
        self.placed[row] = False
        return row

    def _grow(self) -> None:
        old = len(self._peers)
        new = min(max(ROWS_MIN, 2 * old), max(self._config.peers_max, ROWS_MIN))
        more = new - old
        self._peers += [None] * more
        self._free += range(new - 1, old - 1, -1)
        self._others = _longer(self._others, more)
        self._codes = _longer(self._codes, more)
        self._alphas = _longer(self._alphas, more)
        self._degrees = _longer(self._degrees, more)
        self._stale = _longer(self._stale, more)
        self.places = _longer(self.places, more)
        self.heights = _longer(self.heights, more)
        self.placed = _longer(self.placed, more)

    def _code(self, rtt_s: float) -> int:
        """A round trip in seconds, packed."""
        return round(math.log(max(rtt_s, self._config.rtt_s_min) / self._config.rtt_s_min) / self._code_step)

    def _rtts_of(self, codes: NDArray[np.uint16] | np.float64) -> Floats:
        """Packed round trips in seconds."""
        return self._config.rtt_s_min * np.exp(codes * self._code_step)

    def _kept(self, edges: list[tuple[float, PeerId]]) -> list[tuple[float, PeerId]]:
        edges.sort()
        room = self._config.edges_max
        if len(edges) <= room:
            return edges
        near, far = edges[: room // 2], edges[room // 2 :]
        wanted = room - len(near)
        return near + [far[number * len(far) // wanted] for number in range(wanted)]

    def _note(self, row: int, end: int, code: int) -> None:
        """Has a peer know of an edge that the other end has just told."""
        degree = int(self._degrees[row])
        found = np.nonzero(self._others[row, :degree] == end)[0]
        if len(found):
            self._codes[row, found[0]] = code
        elif degree < self._config.edges_max:
            self._others[row, degree], self._codes[row, degree], self._alphas[row, degree] = end, code, 0.0
            self._degrees[row] = degree + 1

    def _remove(self, row: int, end: int) -> None:
        degree = int(self._degrees[row])
        found = np.nonzero(self._others[row, :degree] == end)[0]
        if len(found):
            last = degree - 1
            for part in (self._others, self._codes, self._alphas):
                part[row, found[0]] = part[row, last]
            self._degrees[row] = last

    def _shake_up(self) -> None:
        """Begins anew from anywhere."""
        order, typical_s = self._order, self._typical_s
        fresh = order[~self.placed[order]]
        self.places[fresh] = self._shaker.normal(0.0, typical_s / 4.0, (len(fresh), DIMENSIONS))
        self.heights[fresh] = max(self._config.height_s_min, 0.02 * typical_s)
        self.placed[order] = True
        self._anneal = self._config.anneal_sweeps
        self._sweeps = self._least = self._anneal + self._config.settle_sweeps
        self._shaken_rows = len(order)
        self.shaken += 1

    def _edges(self, rows: Rows) -> tuple[Rows, Floats, Floats]:
        """The edges of some peers, as wide as the one with the most needs: other ends, round trips, 1 where there is one."""
        degrees = self._degrees[rows]
        width = max(1, int(degrees.max(initial=1)))
        used = (np.arange(width) < degrees[:, None]).astype(np.float64)
        return self._others[rows, :width].astype(np.int64), self._rtts_of(self._codes[rows, :width]), used

    def _move(self, rows: Rows) -> None:
        """Moves some peers by one step, and places those that were never placed."""
        settled = rows[self.placed[rows]]
        if len(settled):
            others, rtts, used = self._edges(settled)
            anchors = self.anchors(others, rtts, used)
            before: Floats = self.places[settled]
            self.places[settled], self.heights[settled], _ = step(before, self.heights[settled], anchors, self.fit)
            self._moved_s += float(np.sqrt(((self.places[settled] - before) ** 2).sum(axis=1)).sum())
        for row in rows[~self.placed[rows]]:
            ends, rtts = self.edges_of(int(row))
            known = self.placed[ends]
            if known.sum() >= _PLACED_EDGES:
                ends, rtts = ends[known], rtts[known]
                starts, heights = self.starts(ends, rtts)
                anchors = self.anchors(ends[None], rtts[None])
                self.places[row], self.heights[row], _ = cheapest(starts, heights, anchors, self.fit, self._config.start_steps)
                self.placed[row] = True

    def _alike(self, others: Rows, rtts: Floats, count: int) -> Rows:
        """The placed peers in whose places one with these round trips would fit best."""
        rows = np.nonzero(self.placed)[0]
        rows = rows[:: max(1, len(rows) // _ALIKE_ROWS)]
        predicted = lengths_between(self.places[rows], self.places[others]) + self.heights[rows, None] + self.heights[others]
        sizes = np.abs(predicted - rtts) / np.maximum(rtts, self.fit.relative_s)
        return rows[np.argsort(costs_of(sizes, self.fit).mean(axis=1), kind="stable")[:count]]

    def _reach_s(self) -> float:
        """How far residuals reach: the distance within which a tenth of all pairs are."""
        rows = self._order[self.placed[self._order]]
        rows = rows[:: max(1, len(rows) // _REACH_ROWS)]
        if len(rows) < 2:
            return math.inf
        lengths = lengths_between(self.places[rows], self.places[rows])
        return max(float(np.quantile(lengths[np.triu_indices(len(rows), 1)], REACH_SHARE)), self._config.rtt_s_min)

    def _work_out_residuals(self, rows: Rows) -> None:
        rows = rows[self.placed[rows]]
        if not len(rows) or self.reach_s == math.inf:
            return
        others, rtts, used = self._edges(rows)
        used = used * self.placed[others]
        ends = self.places[others]
        predicted = (
            np.sqrt(((ends - self.places[rows, None, :]) ** 2).sum(axis=2)) + self.heights[rows, None] + self.heights[others]
        )
        residual = residuals(rtts, predicted, self.fit)
        used = used * is_ordinary(residual, used)
        alphas = solved(self._covariances(ends, used), residual * used)
        self._alphas[rows, : others.shape[1]] = alphas * used

    def _covariances(self, ends: Floats, used: Floats) -> Floats:
        """The covariances of edges with noise, (b, w, w); edges that are none stand alone."""
        square = np.einsum("bwd,bwd->bw", ends, ends)
        lengths = np.sqrt(np.maximum(square[:, :, None] + square[:, None, :] - 2.0 * (ends @ ends.transpose(0, 2, 1)), 0.0))
        shared = self.nearness(lengths) * used[:, :, None] * used[:, None, :]
        diagonal = np.arange(int(ends.shape[1]))
        shared[:, diagonal, diagonal] = 1.0 + NOISE
        return shared


def _longer(part: NDArray[_Scalar], rows: int) -> NDArray[_Scalar]:
    """An array with some more rows of zeros."""
    return np.concatenate([part, np.zeros((rows, *part.shape[1:]), part.dtype)])


def residuals(rtts: Floats, predicted: Floats, fit: Fit) -> Floats:
    """By how much, as logarithms, round trips are longer than places say; both in seconds, those of no length taken as some."""
    least_s = 0.1 * fit.relative_s
    return np.log(np.maximum(rtts, least_s) / np.maximum(predicted, least_s))


def is_ordinary(residual: Floats, used: Floats) -> Floats:
    """Which edges may say something of paths beside them: 1, and 0 for those that are out of all proportion, (b, w).

    An edge that is far longer than all places say is one that somebody delays, or a detour of its own.
    """
    sizes = np.where(used > 0.0, np.abs(residual), np.nan)
    sizes[~(used > 0.0).any(axis=-1)] = 0.0  # a row without edges
    usual: Floats = np.nanmedian(sizes, axis=-1, keepdims=True)
    return (np.abs(residual) <= np.maximum(_ORDINARY, _ORDINARY_TIMES * usual)).astype(np.float64)


def lengths_between(first: Floats, second: Floats) -> Floats:
    """The distances of points, (a, d) and (b, d) in seconds, as (a, b) in seconds."""
    squares: Floats = np.einsum("ad,ad->a", first, first)[:, None] + np.einsum("bd,bd->b", second, second)[None]
    lengths: Floats = np.sqrt(np.maximum(squares - 2.0 * (first @ second.T), 0.0))
    return lengths
