"""How well a running mesh knows distances and picks the nearest, out of what its nodes answer and what the emulator was told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAR_EQUAL_SHARE = 0.05
"""Paths that differ by less than this share of the best are chosen from at random: `RoutingConfig.near_equal_share`."""

NEAR_EQUAL_S = 0.0002
"""And by less than this many seconds: `RoutingConfig.near_equal_s`."""

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answers:
    """What every node says of every pair.

    Attributes:
        rtt_s: shape (n, n, n): what a node says of two nodes; NaN where it says nothing.
        source: what that rests on, of the same shape; empty where it says nothing.
    """

    rtt_s: Seconds
    source: NDArray[np.str_]

    def own(self) -> tuple[Seconds, NDArray[np.str_]]:
        """What each node says of its own distance to each other, and what that rests on: shape (n, n)."""
        every = np.arange(len(self.rtt_s))
        return self.rtt_s[every, every], self.source[every, every]

    def of_others(self) -> tuple[Seconds, NDArray[np.str_]]:
        """What nodes say of two others: shape (n, n, n), with nothing where a node itself is one of the two."""
        rtt_s, source = self.rtt_s.copy(), self.source.copy()
        every = np.arange(len(rtt_s))
        rtt_s[every, every], rtt_s[every, :, every] = np.nan, np.nan
        source[every, every], source[every, :, every] = "", ""
        return rtt_s, source

    def measured_share(self) -> float:
        """The share of pairs that either end has measured."""
        _, source = self.own()
        measured = (source == "measured") | (source == "measured").T
        above = np.triu_indices(len(measured), 1)
        return float(measured[above].mean())


@dataclass(frozen=True, slots=True)
class Asked:
    """One answered request, by places in the topology.

    Attributes:
        asker: who asked.
        answerer: who answered, or None where nobody did.
        qualified: who serves what was asked for, the asker left out.
        why: what the asker's report says of the one that answered and of the nearest, for whoever looks into a wrong choice.
    """

    asker: int
    answerer: int | None
    qualified: tuple[int, ...]
    why: Sequence[Mapping[str, object]] = ()


def errors(estimate_s: Seconds, truth_s: Seconds) -> Seconds:
    """Relative errors, one after another, of all that is estimated; the truth is repeated along the first axes."""
    truth_s = np.broadcast_to(truth_s, estimate_s.shape)
    known = np.isfinite(estimate_s) & (truth_s > 0)
    return np.asarray(np.abs(estimate_s[known] - truth_s[known]) / truth_s[known])


def excess_s(estimate_s: Seconds, truth_s: Seconds) -> Seconds:
    """How much longer measurements are than what the emulator was told, in seconds."""
    known = np.isfinite(estimate_s) & (truth_s > 0)
    return np.asarray(estimate_s[known] - truth_s[known])


def percentiles(values: Seconds) -> tuple[float, float, float]:
    """The 50th, 90th and 95th percentile; NaN where there are no values."""
    if len(values) == 0:
        return np.nan, np.nan, np.nan
    p50, p90, p95 = np.percentile(values, (50, 90, 95))
    return float(p50), float(p90), float(p95)


def is_nearest(asked: Asked, truth_s: Seconds) -> bool:
    """Whether the qualified peer with the shortest emulated round trip answered."""
    return asked.answerer == min(asked.qualified, key=lambda peer: truth_s[asked.asker, peer])


def is_near_equal(asked: Asked, truth_s: Seconds) -> bool:
    """Whether one answered that is as near as the nearest, within the margin in which the ranking chooses at random."""
    if asked.answerer is None:
        return False
    best_s = min(truth_s[asked.asker, peer] for peer in asked.qualified)
    limit_s = best_s + max(NEAR_EQUAL_SHARE * best_s, NEAR_EQUAL_S)
    return asked.answerer in asked.qualified and bool(truth_s[asked.asker, asked.answerer] <= limit_s)


def cost_s(asked: Sequence[Asked], truth_s: Seconds) -> list[float]:
    """How much longer the emulated round trip to who answered is than to the nearest, in seconds, of all that were answered."""
    nearest = [min(truth_s[one.asker, peer] for peer in one.qualified) for one in asked]
    return [
        float(truth_s[one.asker, one.answerer] - best_s)
        for one, best_s in zip(asked, nearest, strict=True)
        if one.answerer is not None
    ]


def missed_percent(right: Sequence[bool]) -> float:
    """How many of a hundred requests were answered by another than the right one; a hundred where none was asked."""
    return 100.0 * (1.0 - sum(right) / len(right)) if right else 100.0
