"""64 MiB one way: from the native client to an engine on the next node, beside grpcio and py-libp2p.

Nine requests, two of them under way at a time; grpcio streams messages of 1 MiB over TLS. Two processes of one machine share
memory, which tensors of that size take by themselves; a node without it (`--fabric none`) shows what QUIC does. py-libp2p sends
less, since it needs more than a minute for 64 MiB, and is told in MiB/s as well. All answer with a few bytes.
"""

import statistics
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import trio

from benchmarks.bench_node import PROGRAM, SINK
from benchmarks.grpc_load import GrpcLoad
from benchmarks.harness import Row, alternate, report
from benchmarks.node_process import NodeProcess
from mesh import client

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "interop"))

from foreign import PY, Foreign

RUNS = 5
MIB = 1 << 20
TOTAL_BYTES = 64 * MIB
PARTS = 9
"""Requests, a count: a message of QUIC holds 8 MiB at most, so these are the fewest that hold 64 MiB with their heads."""
AT_ONCE = 2
"""Requests under way at once, so that one travels while another is answered."""
PY_BYTES = 4 * MIB
"""What py-libp2p sends in one run: seconds at its pace; its program gives up after 20 s."""
FABRICS = ("auto", "none")
GOAL_GRPC, GOAL_PY = 0.6, 100.0
ABSENT = "py-libp2p is left out: it is not installed (`make bench-interop` installs it beside the project)"


def ours_mib_s(node: NodeProcess) -> list[float]:
    """MiB a second through a light node."""
    return [trio.run(_ours, node.address)]


async def _ours(address: str) -> float:
    array, left = np.zeros(TOTAL_BYTES // PARTS + 1, "u1"), PARTS

    async def send(mesh: client.AsyncMesh) -> None:
        nonlocal left
        while left:
            left -= 1
            answer = await mesh.infer(SINK, {"x": array})
            assert int(answer["taken"][0]) == array.nbytes

    async with client.connect([address], network="isochrone-main") as mesh:
        await mesh.infer(SINK, {"x": array[:1]})
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(send, mesh)
        return TOTAL_BYTES / MIB / (time.perf_counter() - began)


def grpc_mib_s(grpc_load: GrpcLoad) -> list[float]:
    """MiB a second of a stream of chunks."""
    return [TOTAL_BYTES / MIB / took for took in grpc_load.one_way_s(TOTAL_BYTES)]


def py_mib_s(sender: Foreign, receiver: Foreign) -> list[float]:
    """MiB a second from one py-libp2p program to another."""
    return [trio.run(_py, sender, receiver)]


async def _py(sender: Foreign, receiver: Foreign) -> float:
    async with sender.talking() as talk:
        await talk.ask("dial", address=str(receiver.address))
        began = time.perf_counter()
        await talk.ask("ask", peer=receiver.text_id, protocol="/interop/count/1", bytes=PY_BYTES)
        took = time.perf_counter() - began
        await talk.ask("hang_up", peer=receiver.text_id)
    return PY_BYTES / MIB / took


def main() -> None:
    """Runs the benchmark."""
    work, notes = "64 MiB one way", []
    with ExitStack() as stack:
        node, streaming = (
            stack.enter_context(NodeProcess("--quic-engine", "qh3", "--fabric", fabric, program=PROGRAM)) for fabric in FABRICS
        )
        grpc_load = stack.enter_context(GrpcLoad())
        contestants = [partial(ours_mib_s, node), partial(ours_mib_s, streaming), partial(grpc_mib_s, grpc_load)]
        if PY.is_installed:
            pair = [Foreign(PY), Foreign(PY)]
            for one in pair:
                stack.callback(one.stop)
            contestants.append(partial(py_mib_s, *pair))
        else:
            notes.append(ABSENT)
        shared, streamed, grpc, *py = map(statistics.median, alternate(RUNS, *contestants))
    rows = []
    for way, ours in (("by shared memory, as it is", shared), ("by QUIC alone", streamed)):
        rows.append(
            Row(f"{work}, {way}", ours, "MiB/s", "grpcio sync, TLS, a stream of 1 MiB", grpc, GOAL_GRPC, is_more_better=True)
        )
        if py:
            row = Row(f"{work}, {way}", ours, "MiB/s", f"py-libp2p, {PY_BYTES // MIB} MiB", py[0], GOAL_PY, is_more_better=True)
            rows.append(row)
    report("bulk", "Throughput one way, two processes", rows, ("trio", "qh3", "grpcio"), notes, interop_versions())


def interop_versions() -> dict[str, str]:
    """The version of py-libp2p, as its environment is pinned."""
    pins = (Path(__file__).parents[1] / "tests" / "interop" / "python" / "requirements.txt").read_text().splitlines()
    return {"py-libp2p": next(pin for pin in pins if pin.startswith("libp2p==")).partition("==")[2]}


if __name__ == "__main__":
    main()
