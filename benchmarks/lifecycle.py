"""Start, rest and loss: time to ready, memory at rest, five nodes knowing one another, a killed node leaving the routing set."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.harness import Row, report
from benchmarks.node_process import NodeProcess

RUNS = 5
NODES = 5
WAIT_S_MAX = 30.0
"""Longest wait in seconds for anything; past it the benchmark fails instead of hanging."""


def until(condition: Callable[[], bool], what: str) -> float:
    """Polls until `condition()` holds and returns the seconds it took."""
    started = time.perf_counter()
    while not condition():
        if time.perf_counter() - started > WAIT_S_MAX:
            raise RuntimeError(f"waited {WAIT_S_MAX} s in vain until {what}")
        time.sleep(0.01)
    return time.perf_counter() - started


def alive(node: NodeProcess) -> set[object]:
    """The peers that the node would send work to."""
    return {peer["peer_id"] for peer in node.peers() if peer["standing"] == "alive"}


def mesh_once() -> tuple[float, float, float]:
    """Starts five nodes; returns seconds until all know all, seconds until a killed one has left, MiB of a connected node."""
    with ExitStack() as stack:
        first = stack.enter_context(NodeProcess("--engine", "none"))
        join = ("--engine", "none", "--bootstrap", first.address)
        nodes = [first, *(stack.enter_context(NodeProcess(*join)) for _ in range(NODES - 1))]
        know = until(lambda: all(len(alive(node)) == NODES - 1 for node in nodes), "all know all")
        time.sleep(2.0)
        memory = statistics.median(node.memory_mib() for node in nodes)
        victim = nodes[-1]
        victim.process.kill()
        left = until(lambda: not any(victim.peer_id in alive(node) for node in nodes[:-1]), "the killed node has left")
        return know, left, memory


def bare_interpreter_s() -> float:
    """Seconds to start Python and import what a node cannot do without: the floor of every start."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import trio, httpx, starlette, cryptography.x509, numpy"], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Runs the benchmark."""
    ready, floor, rest = [], [], []
    for _ in range(RUNS):
        floor.append(bare_interpreter_s())
        with NodeProcess("--engine", "none") as node:
            ready.append(node.ready_s)
            rest.append(node.memory_mib())
    meshes = [mesh_once() for _ in range(3)]
    rows = [
        Row(
            "start to ready, no engine", statistics.median(ready), "s", "importing the libraries alone", statistics.median(floor)
        ),
        Row("memory at rest, alone", statistics.median(rest), "MiB"),
        Row("memory at rest, four peers", statistics.median(mesh[2] for mesh in meshes), "MiB"),
        Row("last of five ready until all know all", statistics.median(mesh[0] for mesh in meshes), "s"),
        Row("kill -9 until out of every routing set", statistics.median(mesh[1] for mesh in meshes), "s", "the goal", 3.0, 1.0),
    ]
    report("lifecycle", "Start, rest and loss", rows, ("trio", "qh3", "hypercorn"))


if __name__ == "__main__":
    main()
