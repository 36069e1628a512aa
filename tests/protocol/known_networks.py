"""Networks whose round trips are known exactly, and a mesh of Vivaldi nodes that measures them."""

import math
import random
from collections.abc import Sequence

from protocol.coordinates import CoordinateConfig, Vivaldi, estimate_rtt
from protocol.identity import PeerId

Matrix = list[list[float]]


def peer(index: int) -> PeerId:
    return PeerId(b"peer-%d" % index)


def from_points(points: Sequence[tuple[float, ...]], heights: Sequence[float] | None = None) -> Matrix:
    heights = heights or [0.0] * len(points)
    return [
        [0.0 if i == j else math.dist(a, b) + heights[i] + heights[j] for j, b in enumerate(points)] for i, a in enumerate(points)
    ]


def line(nodes: int, spacing_s: float) -> Matrix:
    return from_points([(i * spacing_s,) for i in range(nodes)])


def grid(nodes: int, spacing_s: float) -> Matrix:
    side = math.isqrt(nodes)
    return from_points([(i % side * spacing_s, i // side * spacing_s) for i in range(nodes)])


def split(nodes: int, lan_s: float, wan_s: float) -> Matrix:
    """Two sites: `lan_s` within each, `lan_s + wan_s` between them."""
    half = nodes // 2
    return [[0.0 if i == j else lan_s if (i < half) == (j < half) else lan_s + wan_s for j in range(nodes)] for i in range(nodes)]


def circle(nodes: int, radius_s: float) -> Matrix:
    """Node 0 is at the centre behind an access link as long as the radius; the others stand on the circle."""
    angles = [2.0 * math.pi * i / nodes for i in range(1, nodes)]
    points = [(0.0, 0.0)] + [(radius_s * math.cos(angle), radius_s * math.sin(angle)) for angle in angles]
    return from_points(points, [radius_s] + [0.0] * (nodes - 1))


def scattered(nodes: int, spread_s: float, height_s: float, luck: random.Random) -> Matrix:
    """Random places in a plane, each behind a random access link."""
    points = [(luck.uniform(0.0, spread_s), luck.uniform(0.0, spread_s)) for _ in range(nodes)]
    return from_points(points, [luck.uniform(0.0, height_s) for _ in range(nodes)])


def settle(truth: Matrix, cycles: int, config: CoordinateConfig, luck: random.Random) -> list[Vivaldi]:
    nodes = [Vivaldi(config, luck) for _ in truth]
    measure(nodes, truth, cycles, luck)
    return nodes


def measure(nodes: list[Vivaldi], truth: Matrix, cycles: int, luck: random.Random) -> None:
    for _ in range(cycles):
        for i, node in enumerate(nodes):
            j = luck.randrange(len(nodes))
            if i != j:
                node.handle_sample(peer(j), truth[i][j], nodes[j].coordinate)


def errors(nodes: list[Vivaldi], truth: Matrix) -> list[float]:
    """The relative error of every pair, smallest first."""
    return sorted(
        abs(estimate_rtt(nodes[i].coordinate, nodes[j].coordinate) - truth[i][j]) / truth[i][j]
        for i in range(len(nodes))
        for j in range(i)
    )
