"""Start, rest and loss: how soon a node listens and answers, its memory, how soon five know one another and miss a killed one.

Every start finds the program's bytecode, as an installed program does from its second start on.
"""

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx

from benchmarks.harness import Row, cpu_s, report
from benchmarks.node_process import NodeProcess, environment

RUNS = 5
NODES = 5
WAIT_S_MAX = 30.0
"""Longest wait in seconds for anything; past it the benchmark fails instead of hanging."""


GOAL_LISTENING_S = 0.5
GOAL_ANSWER_S = 1.5
LOOK_S = 0.001
"""Seconds between two looks whether the port is bound."""


def start_once() -> tuple[float, float, float]:
    """Seconds from a node's start until its UDP port is bound, of a core until then, and until it has answered a client."""
    port = _free_udp_port()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="isochrone-bench-") as folder:
        command = [
            sys.executable, "node.py", "up", "--json", "--open", "--engine", "echo", "--state-dir", folder,
            "--listen", f"/ip4/127.0.0.1/udp/{port}/quic-v1", "--gateway", "127.0.0.1:0", "--log-level", "error",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        try:
            bound = f":{port:04X} "  # as /proc/net/udp writes it
            while bound not in Path("/proc/net/udp").read_text():
                if time.perf_counter() - began > WAIT_S_MAX or process.poll() is not None:
                    raise RuntimeError("the node does not listen")
                time.sleep(LOOK_S)
            listening_s, used_s = time.perf_counter() - began, cpu_s(process.pid)
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["gateway"]
            body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
            httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=10).raise_for_status()
            return listening_s, used_s, time.perf_counter() - began
        finally:
            process.terminate()
            process.communicate(timeout=30)


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


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
    start_once()  # so that the bytecode is there
    starts = [start_once() for _ in range(RUNS)]
    listening, used, answered = (statistics.median(took) for took in zip(*starts, strict=True))
    ready, floor, rest = [], [], []
    for _ in range(RUNS):
        floor.append(bare_interpreter_s())
        with NodeProcess("--engine", "none") as node:
            ready.append(node.ready_s)
            rest.append(node.memory_mib())
    meshes = [mesh_once() for _ in range(3)]
    rows = [
        Row("start to listening", listening, "s", "the goal", GOAL_LISTENING_S, 1.0),
        Row("processor time until listening", used, "s"),
        Row("start to first answer, echo engine", answered, "s", "the goal", GOAL_ANSWER_S, 1.0),
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
