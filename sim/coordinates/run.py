"""Runs: one method over one matrix from one seed, in the steady mode, as a series, or with nodes that join.

Source: docs/coordinates.md, section "What is simulated".
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sim.coordinates import score
from sim.coordinates.engine import Conditions, World
from sim.coordinates.matrices import MatrixError, RttMatrix
from sim.coordinates.method import Kind
from sim.coordinates.methods import METHODS
from sim.luck import Streams

Figures = dict[str, float | None]
Watch = Callable[[float], None]

JOINERS = 32
"""Nodes that join one after another, a count, at most a quarter of all."""

JOIN_GAP_S = 0.1
"""Seconds between the pings of a node that joins."""

SETTLING_TICKS = 2
"""Ticks after the last publications have arrived until estimates are asked, a count: each method has worked with all of them."""

JOIN_TICKS = 3
"""Ticks for which a node that has joined works before it is asked, a count."""

SCORED_SLICES_MAX = 48
"""Slices of a series at which errors and choices are taken, a count: spread evenly over those after the first quarter."""

WARM_SHARE = 0.25
"""Share of a series at its beginning that is not scored: nodes know little there."""

CURVE_POINTS = 200
"""Points of a curve in a picture, a count: more than its pixels show."""

JUDGES_MAX = 200
"""Nodes whose error is taken on the way, a count; at the end it is taken of all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of a run.

    Attributes:
        pings: pings that each node begins; in a series those in each slice.
        conditions: of the network.
        series: whether the slices follow one another.
        ahead: slices whose median is to be foretold, in a series.
        fresh_s: seconds for which a measurement spares a ping at the time of a request.
        joiner: random peers and pings to each of a node that joins; None leaves that out.
        settings: of the methods.
    """

    pings: int = 64
    conditions: Conditions = field(default_factory=Conditions)
    series: bool = False
    ahead: int = 1
    fresh_s: float = 60.0
    joiner: tuple[int, int] | None = None
    settings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one method and one seed.

    Attributes:
        method: its name.
        seed: what all luck followed from.
        figures: by name; seconds of processor time and wall time are among them and differ from run to run.
        curves: for pictures, by name: points (x, y).
        estimate_s: the last estimates, shape (n, n).
        digest: SHA-256 over all measurements and estimates.
    """

    method: str
    seed: int
    figures: Figures
    curves: dict[str, list[tuple[float, float]]]
    estimate_s: NDArray[np.float64]
    digest: str


class _Run:
    """One run under way."""

    def __init__(self, matrix: RttMatrix, method: str, plan: Plan, seed: int, watch: Watch) -> None:
        self.matrix, self.plan, self.seed, self.watch = matrix, plan, seed, watch
        self.kind: Kind = METHODS[method]
        self.joiners = self._joiners()
        conditions, slices = plan.conditions, matrix.slices - plan.ahead
        self.slice_s = plan.pings * conditions.ping_s
        self.until_s = self.slice_s * (slices if plan.series else 1)
        if plan.series:
            conditions = replace(conditions, slice_s=self.slice_s)
        self.world = World(matrix, self.kind, conditions, seed, settings=plan.settings, absent=self.joiners, until_s=self.until_s)
        self.luck = np.random.default_rng(Streams(seed).of("scores").getrandbits(64))
        self.luck_of_pings = Streams(seed).of("pings at requests")
        self.hash = hashlib.sha256()

    def _joiners(self) -> tuple[int, ...]:
        if self.plan.joiner is None:
            return ()
        count = min(JOINERS, self.matrix.nodes // 4)
        return tuple(Streams(self.seed).of("joiners").sample(range(self.matrix.nodes), count))

    def honest(self) -> NDArray[np.bool_]:
        """Nodes that are there, do not lie and do not join later."""
        world = self.world
        return np.array([world.up[index] and index not in world.liars for index in range(world.nodes)])

    def ask(self, judges: NDArray[np.int64]) -> NDArray[np.float64]:
        """Estimates and both ends of the intervals of some judges: shape (3, n, n), NaN in the rows of the others."""
        nodes = self.world.nodes
        found = np.full((3, nodes, nodes), np.nan, dtype=np.float32)
        every = np.arange(nodes)
        for judge in judges.tolist():
            found[:, judge] = self.world.estimates(judge, every)
        found[:, every, every] = np.nan
        self.hash.update(np.ascontiguousarray(found).tobytes())
        return np.asarray(found)

    def ping_s(self, judge: int, peer: int) -> float:
        """A ping at the time of a request."""
        conditions = self.plan.conditions
        if conditions.loss and self.luck_of_pings.random() < 1.0 - (1.0 - conditions.loss) ** 2:
            return float("nan")
        queued_s = self.luck_of_pings.expovariate(1.0 / conditions.jitter_s) if conditions.jitter_s else 0.0
        liar = self.world.liars.get(peer)
        return self.world.rtt_now_s(judge, peer) + queued_s + (liar.hold_s(self.world.now_s) if liar else 0.0)

    def scored(self, asked: NDArray[np.float64], truth_s: NDArray[np.float32]) -> tuple[Figures, dict[str, score.Seconds]]:
        """All figures that follow from estimates and a truth."""
        world, honest = self.world, self.honest()
        measured = world.measured_s > -np.inf
        fresh = world.measured_s >= world.now_s - self.plan.fresh_s if self.kind.keeps_rtt else np.zeros_like(measured)
        pairs = honest[:, None] & honest[None, :]
        figures = score.errors(asked[0], truth_s, honest, measured)
        low_s, high_s = (asked[1], asked[2]) if self.kind.keeps_rtt and np.isfinite(asked[1]).any() else (None, None)
        chosen, curves = score.choices(score.Scene(asked[0], truth_s, honest, self.ping_s, fresh, low_s, high_s), self.luck)
        figures |= chosen
        figures |= score.intervals(asked[1], asked[2], asked[0], truth_s, pairs)
        unmeasured = pairs & ~(measured | measured.T)
        held = score.intervals(asked[1], asked[2], asked[0], truth_s, unmeasured)
        figures["coverage_unmeasured"] = held["coverage"]
        there = np.array(world.up)
        seen_s = np.where(there[None, :], truth_s, np.nan)
        figures |= score.liars_chosen(asked[0], seen_s, np.where(there, honest, True), self.luck) if world.liars else {}
        curves["error"] = score.error_of(asked[0], truth_s, pairs)
        return figures, curves


def simulate(matrix: RttMatrix, method: str, plan: Plan, seed: int, watch: Watch = lambda _: None) -> Outcome:
    """Runs one method.

    Args:
        matrix: what is so.
        method: a name in `METHODS`.
        plan: what is asked.
        seed: what all luck follows from.
        watch: told the share that is done.

    Raises:
        MatrixError: a series of too few slices.
    """
    if plan.series and matrix.slices < plan.ahead + 2:
        raise MatrixError(f"{matrix.name}: {matrix.slices} slices; a series needs at least {plan.ahead + 2}")
    began_s, worked_s = time.perf_counter(), time.process_time()
    run = _Run(matrix, method, plan, seed, watch)
    asked, figures, curves = _series(run) if plan.series else _steady(run)
    figures |= _spent(run)
    if plan.joiner is not None:
        figures |= _joined(run, plan.joiner)
    figures["took_s"] = time.perf_counter() - began_s
    figures["cpu_s"] = time.process_time() - worked_s
    digest = hashlib.sha256(run.world.digest().encode() + run.hash.digest()).hexdigest()
    return Outcome(method, seed, figures, curves, np.asarray(asked[0], dtype=np.float64), digest)


def _steady(run: _Run) -> tuple[NDArray[np.float64], Figures, dict[str, list[tuple[float, float]]]]:
    """Pings with slices drawn for each, and estimates when the last publications have arrived."""
    world, plan, conditions = run.world, run.plan, run.plan.conditions
    truth_s = run.matrix.middle()
    judges = np.arange(run.matrix.nodes)[:JUDGES_MAX]
    middle: list[tuple[float, float]] = []
    high: list[tuple[float, float]] = []
    pings = 8
    while pings < plan.pings:
        world.run(pings * conditions.ping_s)
        run.watch(pings / plan.pings)
        honest = run.honest()
        asked = run.ask(judges[honest[judges]])
        found = score.error_of(asked[0], truth_s, honest[:, None] & honest[None, :])
        if len(found):
            middle.append((pings, float(np.median(found))))
            high.append((pings, float(np.percentile(found, 90))))
        pings *= 2
    for share in np.linspace(pings / 2 / plan.pings, 1.0, 16).tolist():
        world.run(max(world.now_s, share * run.until_s))
        run.watch(share)
    arrived_s = run.until_s + conditions.gossip_s + conditions.gossip_delay_s + float(np.nanmax(truth_s))
    world.run(arrived_s + SETTLING_TICKS * conditions.tick_s)
    asked = run.ask(np.flatnonzero(run.honest()))
    figures, curves = run.scored(asked, truth_s)
    if figures["error_p50"] is not None and figures["error_p90"] is not None:
        middle.append((plan.pings, figures["error_p50"]))
        high.append((plan.pings, figures["error_p90"]))
    shown = {name: _distribution(values) for name, values in curves.items()}
    return asked, figures, {**shown, "error_p50_by_pings": middle, "error_p90_by_pings": high}


def _series(run: _Run) -> tuple[NDArray[np.float64], Figures, dict[str, list[tuple[float, float]]]]:
    """Slices that follow one another, each foretold from what came before."""
    world, plan, matrix = run.world, run.plan, run.matrix
    last = matrix.slices - plan.ahead
    first = max(1, int(last * WARM_SHARE))
    wanted = sorted({int(number) for number in np.linspace(first, last, min(SCORED_SLICES_MAX, last - first + 1))})
    judges = np.arange(matrix.nodes)
    each: list[Figures] = []
    changes: list[float] = []
    found: dict[str, list[score.Seconds]] = {}
    by_pings: dict[str, list[tuple[float, float]]] = {"error_p50_by_pings": [], "error_p90_by_pings": []}
    asked = np.full((3, matrix.nodes, matrix.nodes), np.nan)
    for number in range(1, last + 1):
        world.run(number * run.slice_s - run.plan.conditions.ping_s * 1e-6)
        run.watch(number / last)
        if number not in wanted and number + 1 not in wanted:
            continue
        before_s, honest = asked[0], run.honest()
        asked = run.ask(judges[honest])
        if number not in wanted:
            continue
        figures, curves = run.scored(asked, matrix.middle(number, plan.ahead))
        each.append(figures)
        moved = score.change(before_s, asked[0], honest)
        changes += [] if moved is None else [moved]
        for name, values in curves.items():
            found.setdefault(name, []).append(values)
        for name in by_pings:
            value = figures[name.removesuffix("_by_pings")]
            by_pings[name] += [] if value is None else [(number * plan.pings, value)]
    figures = mean(each)
    figures["change_per_slice"] = float(np.median(changes)) if changes else None
    shown = {name: _distribution(np.concatenate(values)) for name, values in found.items()}
    return asked, figures, {**shown, **by_pings}


def _joined(run: _Run, joiner: tuple[int, int]) -> Figures:
    """Nodes join, each pings a few random peers a few times, and each is asked about everybody else.

    They join at one moment, as the others have measured their last: one after another would have what is known grow old
    meanwhile, for nobody measures any more.
    """
    world, conditions, (peers, pings) = run.world, run.plan.conditions, joiner
    luck = Streams(run.seed).of("whom joiners ping")
    truth_s = run.matrix.middle(max(0, run.matrix.slices - run.plan.ahead)) if run.plan.series else run.matrix.middle()
    asked = np.full((3, world.nodes, world.nodes), np.nan)
    every = np.arange(world.nodes)
    there = min(peers, len(world.reachable))
    chosen = {index: luck.sample(world.reachable, there) * pings for index in run.joiners}
    for index in run.joiners:
        world.join(index)
    for number in range(there * pings):
        for index in run.joiners:
            world.ping(index, chosen[index][number])
        world.run(world.now_s + JOIN_GAP_S)
    for _ in range(JOIN_TICKS):
        world.run(world.now_s + conditions.tick_s)
        for index in run.joiners if run.kind.ticks else ():
            world.methods[index].tick(world.now_s)
    for index in run.joiners:
        asked[:, index] = world.estimates(index, every)
    for index in run.joiners:
        world.leave(index)
    run.hash.update(asked.tobytes())
    rows = np.zeros((world.nodes, 1), dtype=bool)
    rows[list(run.joiners)] = True
    shown_s = np.where(rows & run.honest()[None, :], truth_s, np.nan)
    figures = score.percentiles(score.error_of(asked[0], shown_s, np.isfinite(shown_s)), "joiner_error", 50, 90, 95)
    everybody, nothing = np.ones(world.nodes, dtype=bool), np.zeros(shown_s.shape, dtype=bool)
    costs, _ = score.choices(score.Scene(asked[0], shown_s, everybody, run.ping_s, nothing), run.luck)
    return figures | {f"joiner_{name}": value for name, value in costs.items() if name.startswith("nearest")}


def _spent(run: _Run) -> Figures:
    """Bytes and processor time per node."""
    world, spent, nodes = run.world, run.world.spent, run.matrix.nodes
    per_node_s = 1.0 / (nodes * max(world.now_s, 1e-9))
    shared_s = 0.0 if world.shared is None else world.shared.worked_s
    alone_s = spent.choosing_s + spent.learning_s + max(0.0, spent.ticking_s - shared_s)
    working_s = alone_s + shared_s * nodes  # each would have to work out by itself what they share here
    return {
        "pings": float(spent.pings),
        "lost": float(spent.lost),
        "ping_bytes_per_s": spent.ping_bytes * per_node_s,
        "gossip_bytes_per_s": spent.gossip_bytes * per_node_s,
        "cpu_us_per_node_s": working_s * per_node_s * 1e6,
        "shared_us_per_node_s": shared_s * 1e6 / max(world.now_s, 1e-9),
        "tick_ms": max(0.0, spent.ticking_s - shared_s) * 1e3 / max(1.0, nodes * world.now_s / run.plan.conditions.tick_s),
        "estimate_10k_ms": spent.estimating_s * 1e7 / max(1, spent.estimates),
    }


def _distribution(values: score.Seconds) -> list[tuple[float, float]]:
    """The cumulated distribution in a few points: value, share."""
    if len(values) == 0:
        return []
    shares = np.linspace(0.0, 100.0, CURVE_POINTS)
    return [(float(x), float(y) / 100.0) for x, y in zip(np.percentile(values, shares), shares, strict=True)]


def mean(each: list[Figures]) -> Figures:
    """The mean of every figure over runs or slices; None where no one has it."""
    found: Figures = {}
    for name in each[0] if each else ():
        values = [value for one in each if (value := one.get(name)) is not None]
        found[name] = float(np.mean(values)) if values else None
    return found
