"""How good estimates are: errors, the cost of choosing by them, what a few pings at the time of a request add, and intervals.

Arrays are matrices of seconds from judge (row) to peer (column); NaN marks pairs that are unknown or not scored. A choice is made
among K candidates drawn without replacement; candidates come shuffled, so that whoever has no estimate chooses at random.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.identity import PeerId
from protocol.routing import RoutingConfig
from protocol.shortlist import Contender, ShortlistConfig, shortlist

Seconds = NDArray[np.floating]
Mask = NDArray[np.bool_]

CANDIDATES = (16, 64, 0)
"""How many candidates there are for a choice; 0 stands for all that are known."""

DRAWS = 8
"""Draws of candidates per judge, a count: 490 judges make 3,920 choices, of which a p90 moves by a few hundredths."""

SHORTLIST = 8
"""Candidates that may be pinged at the time of a request, a count: the goal of the product's ranking."""

UNKNOWN_S = RoutingConfig().rtt_unknown_s
"""Seconds that somebody of whom nothing is known counts for, as in the product."""

WITHIN = 1.1
"""A choice at most so many times as far as the best counts as right, unitless."""

CHANGE_S_MIN = 1e-4
"""Seconds. Estimates below count as so long when changes are taken relative to them."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What estimates are judged against.

    Attributes:
        estimate_s: what the judges say.
        truth_s: what is so; NaN where nobody knows.
        honest: nodes that are judged and that are candidates, shape (n,).
        ping_s: asks for one round trip at the time of a request: seconds, NaN when it is lost.
        fresh: pairs of which the judge has a fresh measurement that it keeps.
        low_s: lower ends of the intervals, and
        high_s: upper ends; None of a method without intervals, which pings all of the shortlist.
    """

    estimate_s: Seconds
    truth_s: Seconds
    honest: Mask
    ping_s: Callable[[int, int], float]
    fresh: Mask
    low_s: Seconds | None = None
    high_s: Seconds | None = None


def error_of(estimate_s: Seconds, truth_s: Seconds, chosen: Mask) -> Seconds:
    """The relative errors of the chosen pairs that are both estimated and known, one after another."""
    chosen = chosen & np.isfinite(estimate_s) & np.isfinite(truth_s)
    truth_s = truth_s[chosen]
    return np.asarray(np.abs(estimate_s[chosen] - truth_s) / truth_s)


def percentiles(values: Seconds, name: str, *ranks: int, scale: float = 1.0) -> dict[str, float | None]:
    """Percentiles by name: `{name}_p50` and so on; None where there are no values."""
    if len(values) == 0:
        return {f"{name}_p{rank}": None for rank in ranks}
    found = np.percentile(values, ranks) * scale
    return {f"{name}_p{rank}": float(value) for rank, value in zip(ranks, found, strict=True)}


def errors(estimate_s: Seconds, truth_s: Seconds, honest: Mask, measured: Mask) -> dict[str, float | None]:
    """The relative error over all pairs of honest nodes, and over those that neither end has measured."""
    pairs = honest[:, None] & honest[None, :]
    unmeasured = pairs & ~(measured | measured.T)
    found = percentiles(error_of(estimate_s, truth_s, pairs), "error", 50, 90, 95)
    found |= percentiles(error_of(estimate_s, truth_s, unmeasured), "error_unmeasured", 50, 90, 95)
    known = pairs & np.isfinite(truth_s)
    found["pairs_measured"] = float(1.0 - (known & unmeasured).sum() / max(1, known.sum()))
    return found


def choices(scene: Scene, luck: np.random.Generator) -> tuple[dict[str, float | None], dict[str, Seconds]]:
    """What choosing the nearest by estimate costs, without and with pings at the time of the request.

    Returns:
        The figures, and the penalties in seconds by name, for a picture.
    """
    figures: dict[str, float | None] = {}
    curves: dict[str, Seconds] = {}
    for count in CANDIDATES:
        name = str(count or "all")
        plain: list[tuple[float, float]] = []
        asked: list[tuple[float, float]] = []
        pings: list[int] = []
        for judge in np.flatnonzero(scene.honest).tolist():
            known = np.flatnonzero(scene.honest & np.isfinite(scene.truth_s[judge]))
            if len(known) < max(2, count):
                continue
            for _ in range(DRAWS if count else 1):
                candidates = luck.permutation(known)[: count or len(known)]
                truth_s = scene.truth_s[judge, candidates]
                best_s = float(truth_s.min())
                plain.append((float(truth_s[first_best(scene.estimate_s[judge, candidates])]), best_s))
                chosen, used = asked_choice(scene, judge, candidates)
                asked.append((float(truth_s[chosen]), best_s))
                pings.append(used)
        figures |= _cost(plain, f"nearest_{name}")
        figures |= _cost(asked, f"request_{name}")
        figures[f"request_{name}_pings"] = float(np.mean(pings)) if pings else None
        curves[f"nearest_{name}"] = np.array([took - best for took, best in plain])
    return figures, curves


def first_best(estimate_s: Seconds) -> int:
    """The candidate with the smallest estimate, the first of equal ones; those without an estimate come last."""
    return int(np.argmin(np.where(np.isnan(estimate_s), np.inf, estimate_s)))


def asked_choice(scene: Scene, judge: int, candidates: NDArray[np.int64]) -> tuple[int, int]:
    """The choice of a judge that pings the shortlisted candidates of which it has no fresh measurement.

    Returns:
        The index of the chosen one among `candidates`, and how many pings that took.
    """
    if scene.low_s is not None and scene.high_s is not None:
        return _product_choice(scene, judge, candidates)
    estimate_s = scene.estimate_s[judge, candidates]
    order = np.argsort(np.where(np.isnan(estimate_s), np.inf, estimate_s), kind="stable")[:SHORTLIST]
    seen_s = []
    used = 0
    for index in order.tolist():
        peer = int(candidates[index])
        if scene.fresh[judge, peer]:
            seen_s.append(float(estimate_s[index]))
            continue
        used += 1
        seen_s.append(scene.ping_s(judge, peer))
    found = np.array(seen_s)
    return int(order[first_best(found)]), used


def _product_choice(scene: Scene, judge: int, candidates: NDArray[np.int64]) -> tuple[int, int]:
    """The same by the product's own decision whom to ping, which weighs intervals; nobody is connected, and all serve as fast."""
    assert scene.low_s is not None
    assert scene.high_s is not None
    estimate_s = scene.estimate_s[judge, candidates]
    known = np.isfinite(estimate_s)
    rtts = np.where(known, estimate_s, UNKNOWN_S)
    lows = np.where(known, scene.low_s[judge, candidates], 0.0)
    highs = np.where(known, scene.high_s[judge, candidates], UNKNOWN_S)
    fresh = scene.fresh[judge, candidates]
    highs = np.where(fresh, rtts, highs)
    order = np.argsort(highs, kind="stable").tolist()
    contenders = [
        Contender(PeerId(b"%d" % index), 0.0, float(lows[index]), float(rtts[index]), float(highs[index]), 2, bool(fresh[index]))
        for index in order
    ]
    found = shortlist(contenders[0], contenders[1:], ShortlistConfig(probes_max=SHORTLIST), lambda: 0.0)
    if found is None:
        return order[0], 0
    seen_s = dict(zip(order, (contender.high_s for contender in contenders), strict=True))
    for contender in found.asked:
        ping_s = scene.ping_s(judge, int(candidates[index := int(contender.peer_id)]))
        if np.isfinite(ping_s):
            seen_s[index] = ping_s
    return min(seen_s, key=lambda index: (seen_s[index], order.index(index))), len(found.asked)


def _cost(pairs: list[tuple[float, float]], name: str) -> dict[str, float | None]:
    """Ratio, penalty in ms and share of right ones, over pairs of chosen and best round trips."""
    table = np.array(pairs).reshape(len(pairs), 2)
    ratio, penalty_s = table[:, 0] / table[:, 1], table[:, 0] - table[:, 1]
    found = percentiles(ratio, f"{name}_ratio", 50, 90)
    found |= percentiles(penalty_s, f"{name}_penalty_ms", 50, 90, scale=1e3)
    found[f"{name}_within_10"] = float((ratio <= WITHIN).mean()) if len(pairs) else None
    return found


def intervals(low_s: Seconds, high_s: Seconds, estimate_s: Seconds, truth_s: Seconds, chosen: Mask) -> dict[str, float | None]:
    """How many truths the intervals hold, and how wide they are: relative to the estimate, and in ms."""
    chosen = chosen & np.isfinite(low_s) & np.isfinite(high_s) & np.isfinite(truth_s)
    if not chosen.any():
        return {"coverage": None, "width_p50": None, "width_ms_p50": None}
    low_s, high_s, truth_s, estimate_s = (values[chosen] for values in (low_s, high_s, truth_s, estimate_s))
    return {
        "coverage": float(((low_s <= truth_s) & (truth_s <= high_s)).mean()),
        "width_p50": float(np.median((high_s - low_s) / np.maximum(estimate_s, CHANGE_S_MIN))),
        "width_ms_p50": float(np.median(high_s - low_s) * 1e3),
    }


def liars_chosen(estimate_s: Seconds, truth_s: Seconds, honest: Mask, luck: np.random.Generator) -> dict[str, float | None]:
    """How often an honest judge's nearest of 64, or of all when there are fewer, is a liar, and how often a liar truly is."""
    if honest.all():
        return {"liars_share": None, "liars_chosen": None, "liars_nearest": None}
    taken, right = [], []
    for judge in np.flatnonzero(honest).tolist():
        known = np.flatnonzero(np.isfinite(truth_s[judge]))
        for _ in range(DRAWS if len(known) > 1 else 0):
            candidates = luck.permutation(known)[:64]
            taken.append(not honest[candidates[first_best(estimate_s[judge, candidates])]])
            right.append(not honest[candidates[int(np.argmin(truth_s[judge, candidates]))]])
    return {
        "liars_share": float(1.0 - honest.mean()),
        "liars_chosen": float(np.mean(taken)) if taken else None,
        "liars_nearest": float(np.mean(right)) if right else None,
    }


def change(before_s: Seconds, after_s: Seconds, honest: Mask) -> float | None:
    """By how much the middle one of all estimates has changed, relative to what it was."""
    chosen = honest[:, None] & honest[None, :] & np.isfinite(before_s) & np.isfinite(after_s)
    if not chosen.any():
        return None
    return float(np.median(np.abs(after_s[chosen] - before_s[chosen]) / np.maximum(before_s[chosen], CHANGE_S_MIN)))
