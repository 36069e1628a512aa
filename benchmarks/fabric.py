"""Tensors between two processes of one host: by shared memory, beside a unix socket, grpcio, NIXL, QUIC and a copy in memory.

`python -m benchmarks fabric`. A hand-over is a round trip: the tensor lies in a region, the other process views it,
looks at its first and last byte, lets it go and says so. Echoes go from a light node here to the echo engine of a node in
another process and back. NIXL is measured where it is installed, which `scripts/bench_nixl.sh` does.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Self

import numpy as np

from benchmarks.grpc_echo import GrpcEcho
from benchmarks.harness import Row, alternate, report
from benchmarks.native import wait_for_peer
from benchmarks.nixl_pair import nixl_is_there
from benchmarks.node_process import NodeProcess
from mesh import client

RUNS = 5
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HANDED_OVER = {KIB: 400, MIB: 400, GIB: 200}
"""Round trips of one run, by the bytes that are handed over."""
COPIED = {KIB: 400, MIB: 40, GIB: 1}
"""The same, for ways that copy."""
ECHOED = {16 * KIB: 100, 64 * KIB: 60, 256 * KIB: 40, MIB: 30, 4 * MIB: 8}
BULK = 64 * MIB
NIXL_TRANSPORTS = ("shm,tcp", "tcp")
"""Of UCX; shared memory needs tcp to find the other side."""
LEFT_OUT = "NIXL is not installed (scripts/bench_nixl.sh), so its rows are left out"


def hand_over(size: int, count: int) -> list[float]:
    """Seconds of each of `count` hand-overs of `size` bytes that lie in a region; the first ones, which map it, left out."""
    command = [sys.executable, "-m", "benchmarks.fabric_pair", str(size), str(count)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    took: list[float] = json.loads(told)
    return took[count // 10 :]


class Copied:
    """A child that reads bytes from a unix socket into a buffer and answers with one byte; use as a context manager."""

    def __enter__(self) -> Self:
        """Forks the child."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._child = os.fork()
        if self._child == 0:
            self._socket.close()
            try:
                _read_all(theirs)
            finally:
                os._exit(0)
        theirs.close()
        return self

    def measure(self, size: int, count: int) -> list[float]:
        """Seconds of each of `count` tensors of `size` bytes."""
        data, took = np.ones(size, np.uint8).data, []
        for _ in range(count):
            began = perf_counter()
            self._socket.sendall(size.to_bytes(8, "big"))
            self._socket.sendall(data)
            self._socket.recv(1)
            took.append(perf_counter() - began)
        return took

    def __exit__(self, *args: object) -> None:
        """Ends the child."""
        self._socket.close()
        os.waitpid(self._child, 0)


def _read_all(theirs: socket.socket) -> None:
    buffer = memoryview(bytearray(GIB))
    while head := theirs.recv(8, socket.MSG_WAITALL):
        left = buffer[: int.from_bytes(head, "big")]
        while left:
            left = left[theirs.recv_into(left) :]
        theirs.sendall(b"k")


def by_nixl(transport: str) -> dict[int, float]:
    """Seconds of a write by NIXL, by its bytes: the least median. Nothing else is measured meanwhile."""
    command = [sys.executable, "-m", "benchmarks.nixl_pair", transport, str(RUNS), json.dumps(COPIED)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    took: dict[str, float] = json.loads(told.splitlines()[-1])
    return {int(size): seconds for size, seconds in took.items()}


def memcpy(size: int, count: int) -> list[float]:
    """Seconds of a copy of `size` bytes within this process: the limit of whoever copies once."""
    source, target, took = np.ones(size, np.uint8), np.zeros(size, np.uint8), []
    np.copyto(target, source)  # which makes the pages be there
    for _ in range(count):
        began = perf_counter()
        np.copyto(target, source)
        took.append(perf_counter() - began)
    return took


def echoes(mesh: client.Mesh, size: int, count: int) -> list[float]:
    """Seconds of each of `count` echoes of `size` bytes."""
    array, took = np.ones(size // 4, "f4"), []
    for _ in range(count):
        began = perf_counter()
        answer = mesh.infer("echo", {"x": array})
        took.append(perf_counter() - began)
        assert answer["x"].nbytes == size
        del answer
    return took


def hand_over_rows(grpc_echo: GrpcEcho, copied: Copied) -> list[Row]:
    """Hand-overs beside ways that copy."""
    rows, p50 = [], {}
    for size, count in HANDED_OVER.items():
        few = COPIED[size]
        mine, by_socket, by_copy = alternate(
            RUNS, partial(hand_over, size, count), partial(copied.measure, size, few), partial(memcpy, size, few)
        )
        p50[size] = statistics.median(mine) * 1e6
        label = f"{_name(size)} handed over by shm, p50"
        rows.append(Row(label, p50[size], "us", "unix socket, copied", statistics.median(by_socket) * 1e6))
        rows.append(Row(label, p50[size], "us", "memcpy in one process", statistics.median(by_copy) * 1e6))
    for transport in NIXL_TRANSPORTS if nixl_is_there() else ():
        for size, took in by_nixl(transport).items():
            label = f"{_name(size)} handed over by shm, p50"
            rows.append(Row(label, p50[size], "us", f"NIXL write, {transport}, least", took * 1e6))
    theirs = [statistics.median(grpc_echo.measure(os.urandom(KIB), 200)) for _ in range(RUNS)]
    rows.append(
        Row("1 KiB handed over by shm, p50", p50[KIB], "us", "grpcio sync, TLS, echo", statistics.median(theirs) * 1e6, 0.3)
    )
    rows.append(Row("1 GiB handed over by shm, p50", p50[GIB], "us", "1 KiB handed over", p50[KIB], 2.0))
    return rows


def echo_rows(grpc_echo: GrpcEcho) -> list[Row]:
    """Echoes of whole requests: by the fabric, by the stream of a node without one, by grpcio."""
    rows = []
    flags = ("--engine", "echo", "--quic-engine", "qh3")
    with (
        NodeProcess(*flags) as near,
        NodeProcess(*flags, "--fabric", "none") as plain,
        client.sync.connect([near.address], network="isochrone-main") as by_shm,
        client.sync.connect([plain.address], network="isochrone-main") as by_stream,
    ):
        for mesh in (by_shm, by_stream):
            wait_for_peer(mesh)
            echoes(mesh, MIB, 3)
        for size, count in ECHOED.items():
            ours: Callable[[], list[float]] = partial(echoes, by_shm, size, count)
            stream: Callable[[], list[float]] = partial(echoes, by_stream, size, count)
            payload = os.urandom(size)
            mine, theirs, grpc = alternate(RUNS, ours, stream, partial(grpc_echo.measure, payload, count))
            label = f"{_name(size)} to an engine and back, p50"
            took = statistics.median(mine) * 1e6
            rows.append(Row(label, took, "us", "the same by QUIC", statistics.median(theirs) * 1e6, 1.0))
            rows.append(Row(label, took, "us", "grpcio sync, TLS", statistics.median(grpc) * 1e6))
        payload = os.urandom(BULK)
        mine, grpc = alternate(RUNS, partial(echoes, by_shm, BULK, 3), partial(grpc_echo.measure, payload, 2))
        label = "64 MiB to an engine and back"
        took = statistics.median(mine) * 1e3
        rows.append(Row(label, took, "ms", "grpcio sync, TLS", statistics.median(grpc) * 1e3, 0.1))
    return rows


def _name(size: int) -> str:
    return f"{size // GIB} GiB" if size >= GIB else f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def main() -> None:
    """Runs the benchmark."""
    with Copied() as copied, GrpcEcho() as grpc_echo:
        rows = hand_over_rows(grpc_echo, copied)
        rows += echo_rows(grpc_echo)
    packages, notes = ("trio", "qh3", "grpcio", "nixl-cu12", "numpy"), [] if nixl_is_there() else [LEFT_OUT]
    report("fabric", "Tensors between two processes of one host", rows, packages, notes)


if __name__ == "__main__":
    main()
