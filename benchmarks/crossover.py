"""Whole requests of every size by shared memory and by QUIC in turn: from which size on shared memory is quicker.

`python -m benchmarks crossover`. Both ends are told to use shared memory whatever the size, which a node does not do by itself
below the size that follows from the figures of `protocol.fabric.cost`: those are what this measures. All sizes are gone through
again and again, both ways in turn, and the least median counts, which other programs have disturbed least. A straight line is
laid through those of each way; where the lines cross is told beside the size at which a node changes over.
"""

import statistics
from collections.abc import Mapping
from time import perf_counter

import numpy as np

from benchmarks.harness import Row, report
from benchmarks.native import wait_for_peer
from benchmarks.node_process import NodeProcess
from mesh import client
from mesh.fabric import shm
from mesh.fabric.session import ShmSession
from protocol.fabric import SHM, STREAM, Way, crossover_bytes
from protocol.fabric.cost import COPY

RUNS = 12
KIB = 1 << 10
SIZES = {16: 20, 32: 20, 64: 20, 128: 16, 256: 16, 512: 12, 1024: 10, 2048: 8, 4096: 6}
"""Requests of one run, by the KiB that go each way."""
PROGRAM = ("-m", "benchmarks.crossover")
"""What Python runs for a node that uses shared memory for tensors of every size."""


def use_always() -> None:
    """Has this process use shared memory for tensors of every size."""
    always = Way((COPY,))
    ShmSession.way = always
    shm.SHM = always  # type: ignore[misc]  # which is what a session is weighed by before it is open


def echoes(mesh: client.Mesh, size: int, count: int) -> list[float]:
    """Seconds of each of `count` echoes of `size` bytes."""
    array, took = np.ones(size // 4, "f4"), []
    for _ in range(count):
        began = perf_counter()
        answer = mesh.infer("echo", {"x": array})
        took.append(perf_counter() - began)
        del answer
    return took


def line_through(points: Mapping[int, float]) -> tuple[float, float]:
    """Least squares of the relative errors: what a request takes whatever its size, in seconds, and for each KiB.

    Args:
        points: seconds by KiB.
    """
    sizes, times = np.array(list(points)), np.array(list(points.values()))
    rows = np.stack([np.ones(len(sizes)), sizes]).T / times[:, None]
    fixed_s, each_s = np.linalg.lstsq(rows, np.ones(len(sizes)), rcond=None)[0]
    return float(fixed_s), float(each_s)


def main() -> None:
    """Runs the benchmark."""
    use_always()
    node = ("--engine", "echo", "--quic-engine", "qh3")
    by_shm, by_stream = dict.fromkeys(SIZES, float("inf")), dict.fromkeys(SIZES, float("inf"))
    with (
        NodeProcess(*node, program=PROGRAM) as near,
        NodeProcess(*node, "--fabric", "none") as plain,
        client.sync.connect([near.address], network="isochrone-main") as one,
        client.sync.connect([plain.address], network="isochrone-main") as other,
    ):
        for mesh in (one, other):
            wait_for_peer(mesh)
            echoes(mesh, 1024 * KIB, 5)
        for _ in range(RUNS):
            for kib, count in SIZES.items():
                for mesh, least in ((one, by_shm), (other, by_stream)):
                    least[kib] = min(least[kib], statistics.median(echoes(mesh, kib * KIB, count)))
    rows = [
        Row(f"{kib} KiB to an engine and back by shared memory", took * 1e6, "us", "the same by QUIC", by_stream[kib] * 1e6)
        for kib, took in by_shm.items()
    ]
    (shm_s, shm_each_s), (quic_s, quic_each_s) = line_through(by_shm), line_through(by_stream)
    meet_kib = (shm_s - quic_s) / (quic_each_s - shm_each_s)
    notes = [
        f"{name}: {fixed_s * 1e6:.0f} us a request and {each_s * 2**10 * 1e6:.0f} us a MiB there and back"
        for name, fixed_s, each_s in (("shared memory", shm_s, shm_each_s), ("QUIC", quic_s, quic_each_s))
    ]
    notes.append(f"the lines cross at {meet_kib:.0f} KiB; a node changes over at {crossover_bytes(SHM, STREAM) / KIB:.0f} KiB")
    report("crossover", "Whole requests by shared memory and by QUIC, least medians", rows, ("trio", "qh3", "numpy"), notes)


if __name__ == "__main__":
    import sys

    from mesh.cli import run as run_node

    use_always()
    sys.exit(run_node(sys.argv[1:]))
