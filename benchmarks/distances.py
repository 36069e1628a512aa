"""What knowing distances costs: the own place, everybody's distance, and memory; with Vivaldi of the same peers beside it."""

import gc
import random
import time
import tracemalloc

import numpy as np

from benchmarks.harness import Row, alternate, report
from protocol.coordinates import Coordinate, CoordinateConfig, Vivaldi, estimate_rtt
from protocol.distances import Chart, DistanceConfig, Distances
from protocol.distances.position import Position
from protocol.identity import Identity, PeerId

RUNS = 5
REPEATS = 30
KNOWN = 1000
"""Peers of the mesh, a count."""

EDGES = 128
"""Edges of each, a count, and paths that the node has measured: as after 64 pings of each where both ends keep them."""

MANY = 10_000
"""Peers whose distances are predicted at once, a count."""


def mesh(count: int, edges: int, config: DistanceConfig) -> tuple[list[PeerId], Distances]:
    """A node that has measured some of its peers and holds the edges of all."""
    luck, places = random.Random(1), np.random.default_rng(1).uniform(0.0, 0.1, (count, 3))
    peers = [Identity.from_seed(number.to_bytes(4, "big") * 8).peer_id for number in range(count)]
    distances = Distances(config, peers[0], luck, Chart(config, luck))

    def edges_of(row: int) -> list[tuple[PeerId, float]]:
        ends = luck.sample(range(count), edges)
        return [(peers[end], 0.002 + float(np.linalg.norm(places[row] - places[end]))) for end in ends if end != row]

    for row in range(count):
        distances.chart.set_edges(peers[row], edges_of(row))
    for peer, rtt_s in edges_of(0):
        distances.handle_sample(peer, rtt_s, 0.0, drawn=True)
    return peers, distances


def timed(work: object) -> list[float]:
    """Milliseconds of some calls of `work`."""
    assert callable(work)
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        took.append(1e3 * (time.perf_counter() - began))
    return took


def memory_of(count: int) -> int:
    """Bytes that a node holds of so many known peers, their edges and what is worked out of them included."""
    gc.collect()
    tracemalloc.start()
    try:
        peers, distances = mesh(count, EDGES, DistanceConfig())
        distances.chart.finish(0.0)
        distances.resolve(0.0)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        del distances
        gc.collect()
        names, _ = tracemalloc.get_traced_memory()  # the table's, and kept anyway
        assert len(peers) == count
    finally:
        tracemalloc.stop()
    return held - names


def memory_per_peer() -> float:
    """KiB for one more known peer."""
    return (memory_of(2 * KNOWN) - memory_of(KNOWN)) / 1024.0 / KNOWN


def main() -> None:
    """Runs the benchmark."""
    peers, distances = mesh(KNOWN, EDGES, DistanceConfig())
    distances.chart.finish(0.0)
    distances.resolve(0.0)
    paths = distances.paths(0.0)
    position = Position(DistanceConfig(), distances.chart)
    position.work_out(paths, 0.0)
    anchors = distances.chart.anchors(paths.rows[None], paths.rtts[None])
    coordinates = CoordinateConfig()
    vivaldi, luck = Vivaldi(coordinates, random.Random(1)), random.Random(2)
    there = [Coordinate(tuple(luck.uniform(-0.1, 0.1) for _ in range(8)), 0.001, 0.2) for _ in range(EDGES)]

    def samples() -> None:
        for peer, other in zip(peers, there, strict=False):
            vivaldi.handle_sample(peer, 0.05, other)

    solve, moved = alternate(RUNS, lambda: timed(lambda: position.fit(paths, anchors)), lambda: timed(samples))

    crowd = Chart(DistanceConfig(peers_max=MANY), random.Random(1))
    many = [Identity.from_seed(number.to_bytes(4, "big") * 8).peer_id for number in range(MANY)]
    scattered = np.random.default_rng(3)
    for row in range(MANY):
        crowd.set_edges(many[row], [(many[end], 0.01 + 0.0001 * end % 0.1) for end in (row - 1, row - 2, row - 3)])
    crowd.begin(0.0)
    crowd.placed[:] = True
    crowd.places[:] = scattered.uniform(0.0, 0.1, crowd.places.shape)
    crowd.reach_s = 0.02
    everywhere = Position(DistanceConfig(), crowd)
    everywhere.work_out(paths, 0.0)
    own, others = there[0], there * (MANY // len(there))
    predict, one_by_one = alternate(
        RUNS, lambda: timed(everywhere.predict), lambda: timed(lambda: [estimate_rtt(own, other) for other in others])
    )
    _, always = mesh(KNOWN, EDGES, DistanceConfig(field_s=0.0))
    always.chart.finish(0.0)
    always.resolve(0.0)
    whole, most = alternate(RUNS, lambda: timed(lambda: distances.resolve(0.0)), lambda: timed(lambda: always.resolve(0.0)))
    report(
        "distances",
        f"Distances: {EDGES} measured paths, {KNOWN:,} peers with {EDGES} edges each",
        [
            Row("work out the own place", _median(solve), "ms", "a budget", 0.5, 1.0),
            Row("the same", _median(solve), "ms", f"{EDGES} samples of Vivaldi", _median(moved)),
            Row(f"predict {MANY:,} peers from a new place", _median(predict), "ms", "a budget", 1.0, 1.0),
            Row("the same", _median(predict), "ms", "coordinates, one by one", _median(one_by_one)),
            Row(f"place, estimates and whom to measure, of {KNOWN:,}", _median(whole), "ms"),
            Row("the same with what residuals say, once a minute", _median(most), "ms"),
            Row("memory for each known peer", memory_per_peer(), "KiB", "a budget", 1.0, 1.0),
        ],
        ("numpy",),
    )


def _median(values: list[float]) -> float:
    return float(np.median(values))


if __name__ == "__main__":
    main()
