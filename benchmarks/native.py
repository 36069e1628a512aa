"""The native client beside grpcio, synchronous and with TLS: echoes here, on another node, and from a light node.

From 411 KiB on tensors take shared memory between processes of one machine; "by QUIC" is a node that has none.
"""

import os
import statistics
from collections.abc import Callable
from functools import partial
from time import monotonic, perf_counter, sleep

import numpy as np

from benchmarks.grpc_echo import GrpcEcho
from benchmarks.harness import Row, alternate, report
from benchmarks.node_process import NodeProcess
from mesh import client

RUNS = 5
SIZES = {1024: (200, 0.35), 16 * 1024: (200, 0.5), 1 << 20: (30, 1.5)}
"""Calls of one run, and the ratio aimed at, by the bytes that go each way."""
BULK_BYTES = 64 << 20
PART_BYTES = 4 << 20
"""A request holds 8 MiB at most, so that 64 MiB are sixteen of these."""
PEERS_S_MAX = 20.0


def calls(mesh: client.Mesh, size: int, count: int) -> list[float]:
    """Seconds of each of `count` echoes of `size` bytes."""
    array, took = np.frombuffer(os.urandom(size), "u1"), []
    for _ in range(count):
        began = perf_counter()
        answer = mesh.infer("echo", {"x": array})
        took.append(perf_counter() - began)
        assert answer["x"].nbytes == size
    return took


def bulk(mesh: client.Mesh) -> list[float]:
    """Seconds of 64 MiB there and back, in parts one after another."""
    began = perf_counter()
    calls(mesh, PART_BYTES, BULK_BYTES // PART_BYTES)
    return [perf_counter() - began]


def wait_for_peer(mesh: client.Mesh) -> None:
    """Waits until the node knows who serves the model."""
    until = monotonic() + PEERS_S_MAX
    while not mesh.models():
        assert monotonic() < until, "the nodes do not find each other"
        sleep(0.1)


def rows_of(name: str, mesh: client.Mesh, grpc_echo: GrpcEcho) -> list[Row]:
    """The table of one way to the model."""
    rows = []
    for size, (count, goal) in SIZES.items():
        payload = os.urandom(size)
        ours: Callable[[], list[float]] = partial(calls, mesh, size, count)
        mine, theirs = alternate(RUNS, ours, partial(grpc_echo.measure, payload, count))
        label = f"{size // 1024} KiB echo, {name}, p50"
        rows.append(Row(label, statistics.median(mine) * 1e6, "us", "grpcio sync, TLS", statistics.median(theirs) * 1e6, goal))
    part = os.urandom(PART_BYTES)
    mine, theirs = alternate(RUNS, partial(bulk, mesh), lambda: [sum(grpc_echo.measure(part, BULK_BYTES // PART_BYTES))])
    label = f"64 MiB there and back in parts of 4 MiB, {name}"
    rows.append(Row(label, statistics.median(mine) * 1e3, "ms", "grpcio sync, TLS", statistics.median(theirs) * 1e3))
    return rows


def main() -> None:
    """Runs the benchmark."""
    rows = []
    with NodeProcess("--engine", "echo", "--quic-engine", "qh3") as far, GrpcEcho() as grpc_echo:
        with client.sync.attach(far.state_dir / "client.sock") as mesh:
            rows += rows_of("the node here", mesh, grpc_echo)
        near_flags = ("--engine", "none", "--quic-engine", "qh3", "--bootstrap", far.address)
        with NodeProcess(*near_flags) as near, client.sync.attach(near.state_dir / "client.sock") as mesh:
            wait_for_peer(mesh)
            rows += rows_of("another node, attached", mesh, grpc_echo)
        with client.sync.connect([far.address], network="isochrone-main") as mesh:
            rows += rows_of("another node, light", mesh, grpc_echo)
        with (
            NodeProcess("--engine", "echo", "--quic-engine", "qh3", "--fabric", "none") as streaming,
            client.sync.connect([streaming.address], network="isochrone-main") as mesh,
        ):
            rows += rows_of("another node, light, by QUIC", mesh, grpc_echo)
    report("native", "The native client, processes on one machine", rows, ("trio", "qh3", "grpcio"))


if __name__ == "__main__":
    main()
