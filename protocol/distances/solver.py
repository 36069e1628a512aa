"""Where a peer is, from measured round trips to peers whose places are known: robust relative least squares.

A place is a point in Euclidean space and a height. The round trip that a place predicts is the distance of the points and both
heights; its error counts relative to the round trip measured, squared while it is small and linearly beyond (Huber), so that no
single edge can drag a place away; and what is out of all proportion pulls ever less, so that not even a third of all can,
whatever they agree on among themselves. Heights move by their logarithm and so stay positive. Steps are Levenberg and
Marquardt's, for many peers at once.

Source: P. Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35 (1964); F. Hampel, E.
Ronchetti, P. Rousseeuw, W. Stahel, "Robust Statistics" (1986), section 2.6 (estimators that redescend); D. Marquardt, "An
Algorithm for Least-Squares Estimation of Nonlinear Parameters", SIAM J. 11 (1963); height vectors: Dabek et al., "Vivaldi"
(SIGCOMM 2004), section 5.4.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

_TINY = 1e-12
"""Square seconds, added under the root: two peers in one place have no direction between them."""

_HEIGHT_DAMPING = 0.02
"""Added to the curvature along the logarithm of the height, unitless, so that a height nothing speaks of stays as it is."""

_HEIGHT_STEP_MAX = 0.7
"""Longest step of the logarithm of a height, unitless: a factor of two."""


@dataclass(frozen=True, slots=True)
class Anchors:
    """What places are worked out from, for `b` peers with up to `w` edges each.

    Attributes:
        places: points of the other ends, (b, w, d) in seconds.
        heights: their heights, (b, w) in seconds.
        rtts: measured round trips, (b, w) in seconds.
        weights: what each edge counts, (b, w), 0 for none.
    """

    places: Floats
    heights: Floats
    rtts: Floats
    weights: Floats


@dataclass(frozen=True, slots=True)
class Fit:
    """How places are fitted; times in seconds.

    Attributes:
        relative_s: errors count relative to the round trip, or to this where it is shorter.
        huber: relative error past which an edge pulls no harder.
        cut: and past which it pulls ever less.
        damping: Levenberg-Marquardt's.
        gain: share of each step that is made.
        step_s_max: longest step.
        height_s_min: smallest height.
    """

    relative_s: float
    huber: float
    cut: float
    damping: float
    gain: float
    step_s_max: float
    height_s_min: float


def solved(matrices: Floats, sides: Floats) -> Floats:
    """The solutions of systems of linear equations, (b, n, n) and (b, n), as (b, n)."""
    return cast("Floats", np.linalg.solve(matrices, sides[..., None]))[..., 0]


def step(places: Floats, heights: Floats, anchors: Anchors, fit: Fit) -> tuple[Floats, Floats, Floats]:
    """Make one step.

    Args:
        places: (b, d) in seconds.
        heights: (b,) in seconds.
        anchors: what they are worked out from.
        fit: gains and bounds.

    Returns:
        The new places and heights, and the mean cost of the edges at the old ones, (b,), unitless.
    """
    dimensions = int(places.shape[1])
    apart = places[:, None, :] - anchors.places
    lengths = np.sqrt(np.einsum("bwd,bwd->bw", apart, apart) + _TINY)
    scale = 1.0 / np.maximum(anchors.rtts, fit.relative_s)
    errors: Floats = (lengths + heights[:, None] + anchors.heights - anchors.rtts) * scale
    sizes: Floats = np.abs(errors)
    pull = np.where(sizes < fit.huber, 1.0, fit.huber / np.maximum(sizes, _TINY)) * anchors.weights
    pull *= np.minimum(1.0, fit.cut / np.maximum(sizes, _TINY)) ** 2  # out of all proportion
    slopes = np.empty((*errors.shape, dimensions + 1))
    np.multiply(apart, (scale / lengths)[..., None], out=slopes[..., :dimensions])
    slopes[..., dimensions] = scale * heights[:, None]
    weighted = slopes * pull[..., None]
    curvature = weighted.transpose(0, 2, 1) @ slopes
    gradient = np.einsum("bwp,bw->bp", weighted, errors)
    diagonal = np.arange(dimensions + 1)
    curvature[:, diagonal, diagonal] = curvature[:, diagonal, diagonal] * (1.0 + fit.damping) + 1e-9
    curvature[:, dimensions, dimensions] += _HEIGHT_DAMPING
    moves = solved(curvature, gradient)
    lengths_moved = np.sqrt(np.einsum("bd,bd->b", moves[:, :dimensions], moves[:, :dimensions]) + _TINY)
    share = fit.gain * np.minimum(1.0, fit.step_s_max / lengths_moved)
    moved = places - moves[:, :dimensions] * share[:, None]
    risen = heights * np.exp(-fit.gain * np.clip(moves[:, dimensions], -_HEIGHT_STEP_MAX, _HEIGHT_STEP_MAX))
    costs: Floats = costs_of(sizes, fit) * anchors.weights
    counts = np.maximum(anchors.weights.sum(axis=1), _TINY)
    return moved, np.maximum(risen, fit.height_s_min), costs.sum(axis=1) / counts


def costs_of(sizes: Floats, fit: Fit) -> Floats:
    """What errors of these sizes cost: that whose slope is the pull, so it is bounded where the pull falls."""
    plain = np.minimum(sizes, max(fit.huber, fit.cut))
    huber: Floats = np.where(plain < fit.huber, plain * plain, fit.huber * (2.0 * plain - fit.huber))
    if fit.cut < math.inf:
        huber += 2.0 * fit.huber * fit.cut**2 * (1.0 / fit.cut - 1.0 / np.maximum(sizes, fit.cut))
    return huber


def cheapest(starts: Floats, heights: Floats, anchors: Anchors, fit: Fit, steps: int) -> tuple[Floats, float, float]:
    """Tries one peer from several places; a third of them, the cheapest by then, is followed to the end.

    Args:
        starts: (s, d) in seconds.
        heights: (s,) in seconds.
        anchors: those of the one peer, (1, w, ...).
        fit: gains and bounds.
        steps: how many from each start.

    Returns:
        The place, height and mean cost of the cheapest.
    """
    first = steps // 3
    for left, kept in ((first, max(2, len(starts) // 3)), (steps - first, 1)):
        many = _repeated(anchors, len(starts))
        for _ in range(left):
            starts, heights, _ = step(starts, heights, many, fit)
        _, _, costs = step(starts, heights, many, fit)
        best = np.argsort(costs, kind="stable")[:kept]
        starts, heights, costs = starts[best], heights[best], costs[best]
    return starts[0], float(heights[0]), float(costs[0])


def _repeated(anchors: Anchors, count: int) -> Anchors:
    """The anchors of one peer, for several places of it."""
    return Anchors(*(np.repeat(part, count, axis=0) for part in (anchors.places, anchors.heights, anchors.rtts, anchors.weights)))
