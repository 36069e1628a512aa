"""Where nodes stand on the map: as far from the middle as they are in time, and beside those that are near to them.

The distance from the middle is given, so one angle a node is left to choose. Each node by turns takes the angle at which its
distances to the others come nearest to the known ones, in proportion, until none moves; it begins where the coordinates, brought
to the plane, have it, or where classical scaling of the round trips has it, whichever ends better. Nothing is left to chance: the
same facts give the same map.

Source: J. de Leeuw, "Applications of convex analysis to multidimensional scaling", 1977 (stress); T. Kamada, S. Kawai, "An
algorithm for drawing general undirected graphs", 1989 (its weights, 1/d²); W. Torgerson, "Multidimensional scaling: I",
Psychometrika 1952.
"""

import math

import numpy as np
from numpy.typing import NDArray

from mesh.map.facts import MapFacts

Angles = NDArray[np.float64]

ANGLES = 72
"""Angles that a node tries on one of the first turns, a count: five degrees apart."""

COARSE_TURNS = 6
"""Turns of all nodes on which they try angles all round, a count: then nobody finds a better side any more."""

FINE_TURNS = 10
"""Turns on which they try angles beside their own, a count; each half as far as the one before, the last within 0.01 degrees."""

FINE_ANGLES = 11
"""Angles tried on one of those, a count."""

COMPLETE_MAX = 200
"""Nodes up to which the round trips are scaled whole, a count: it takes time by the cube."""

NEAR_MS = 0.5
"""Milliseconds by which a short distance weighs less than its share: under that, estimates are noise."""

_GOLDEN = math.pi * (3.0 - math.sqrt(5.0))
"""Radians between nodes of which nothing but the distance is known: the golden angle puts no two on one line."""


def angles(facts: MapFacts) -> Angles:
    """The angle of each node round the middle, in radians; the first is the middle itself.

    The farthest node stands to the right, and the one that is then the farthest from that line above it.
    """
    radii = np.array(facts.ms_from_middle())
    starts = [_from_coordinates(facts)]
    scaled = _from_round_trips(facts)
    if scaled is not None:
        starts.append(scaled)
    known = _known(facts)
    settled = [_settle(start, radii, known) for start in starts]
    best = min(range(len(settled)), key=lambda number: (round(settled[number][1], 9), number))
    return _turned(settled[best][0], radii)


def points(facts: MapFacts) -> NDArray[np.float64]:
    """Where each node stands, shape (nodes, 2), in milliseconds from the middle, the second upward."""
    turned, radii = angles(facts), np.array(facts.ms_from_middle())
    return np.stack((radii * np.cos(turned), radii * np.sin(turned)), axis=1)


Known = list[tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]]
"""Of each node the others whose distance is known, the distances in ms and their weights."""


def _known(facts: MapFacts) -> Known:
    found: list[list[tuple[int, float]]] = [[] for _ in facts.places]
    for (one, other), apart in facts.apart.items():
        if one != 0:
            found[one].append((other, apart.ms))
            found[other].append((one, apart.ms))
    known: Known = []
    for pairs in found:
        ms = np.array([value for _, value in pairs], dtype=np.float64)
        known.append((np.array([other for other, _ in pairs], dtype=np.intp), ms, 1.0 / (ms + NEAR_MS) ** 2))
    return known


def _from_coordinates(facts: MapFacts) -> Angles:
    """Angles in the plane in which the coordinates differ most from the middle's."""
    count = len(facts.places)
    start: Angles = np.arange(count, dtype=np.float64) * _GOLDEN
    dimensions = len(facts.places[0].vector_ms)
    placed = [number for number, place in enumerate(facts.places) if len(place.vector_ms) == dimensions > 0]
    if len(placed) < 3:  # the middle and two others make a plane
        return start
    away = np.array([facts.places[number].vector_ms for number in placed]) - np.array(facts.places[0].vector_ms)
    values, vectors = np.linalg.eigh(away.T @ away)
    plane = away @ _signed(vectors[:, np.argsort(-values, kind="stable")[:2]])
    start[placed] = np.arctan2(plane[:, 1] if plane.shape[1] > 1 else np.zeros(len(placed)), plane[:, 0])
    return start


def _from_round_trips(facts: MapFacts) -> Angles | None:
    """Angles in the plane that keeps the round trips best; None where they are too many or not all known."""
    count = len(facts.places)
    if count > COMPLETE_MAX or count < 3 or len(facts.apart) != count * (count - 1) // 2:  # as above
        return None
    apart = np.zeros((count, count))
    for (one, other), value in facts.apart.items():
        apart[one, other] = apart[other, one] = value.ms
    centring = np.eye(count) - 1.0 / count
    values, vectors = np.linalg.eigh(-0.5 * centring @ apart**2 @ centring)
    order = np.argsort(-values, kind="stable")[:2]
    plane = _signed(vectors[:, order]) * np.sqrt(np.maximum(values[order], 0.0))
    plane -= plane[0]
    return np.asarray(np.arctan2(plane[:, 1], plane[:, 0]), dtype=np.float64)


def _signed(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns turned so that the largest part of each is positive: a solver may give either sign."""
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return np.asarray(vectors * signs, dtype=np.float64)


def _settle(start: Angles, radii: NDArray[np.float64], known: Known) -> tuple[Angles, float]:
    """Lets each node by turns take its best angle, and tells what is left of the stress."""
    turned = start.copy()
    spots = np.stack((radii * np.cos(turned), radii * np.sin(turned)), axis=1)
    order = np.argsort(-radii, kind="stable")
    width = 2.0 * math.pi / ANGLES
    coarse = np.concatenate(([0.0], np.arange(ANGLES) * width))
    for turn in range(COARSE_TURNS + FINE_TURNS):
        steps = _fine(width * 0.5 ** max(0, turn - COARSE_TURNS))
        for number in order:
            others, ms, weights = known[number]
            if number == 0 or not len(others):
                continue
            tried = turned[number] + steps
            if turn < COARSE_TURNS:
                coarse[0] = turned[number]
                tried = coarse[int(_costs(coarse, radii[number], spots[others], ms, weights).argmin())] + steps
            best = tried[int(_costs(tried, radii[number], spots[others], ms, weights).argmin())]
            turned[number] = best
            spots[number] = radii[number] * math.cos(best), radii[number] * math.sin(best)
    stress = 0.0
    for number, (others, ms, weights) in enumerate(known):
        if len(others):
            stress += float(_costs(turned[number : number + 1], radii[number], spots[others], ms, weights)[0])
    return turned, stress


def _fine(width: float) -> NDArray[np.float64]:
    """Small turns, none of them first, so that of equal ones the node stays."""
    steps = np.linspace(-width / 2, width / 2, FINE_ANGLES)
    return np.asarray(steps[np.argsort(np.abs(steps), kind="stable")], dtype=np.float64)


def _costs(
    tried: NDArray[np.float64],
    radius: float,
    others: NDArray[np.float64],
    ms: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The stress of one node at each angle."""
    x, y = radius * np.cos(tried)[:, None] - others[:, 0], radius * np.sin(tried)[:, None] - others[:, 1]
    return np.asarray(((np.sqrt(x * x + y * y) - ms) ** 2 * weights).sum(axis=1), dtype=np.float64)


def _turned(turned: Angles, radii: NDArray[np.float64]) -> Angles:
    """The whole map turned and mirrored into its one position."""
    if len(turned) < 2:  # there is nothing to turn
        return turned
    farthest = int(np.argmax(radii))
    turned = turned - turned[farthest]
    heights = radii * np.sin(turned)
    if heights[int(np.argmax(np.abs(heights)))] < 0.0:
        turned = -turned
    return np.asarray(np.arctan2(np.sin(turned), np.cos(turned)), dtype=np.float64)
