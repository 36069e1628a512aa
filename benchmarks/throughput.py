"""Work per processor second: small requests and streams of tokens through the native client, beside grpc.aio over TLS.

Processor time is counted, of both processes, and nothing is pinned: so what else the machine does matters only as far as it slows
the processor itself. The native client is a light node: it has a mesh node's core and a QUIC endpoint of its own. A node works
on 32 requests of one peer at a time, so that 64 streams come from two clients, in one process.
"""

import statistics
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial

import numpy as np
import trio

from benchmarks.bench_node import PROGRAM, RUSH, STEP_S, TICKER, TOKEN
from benchmarks.grpc_load import GrpcLoad
from benchmarks.harness import Row, alternate, cpu_s, report
from benchmarks.node_process import NodeProcess
from mesh import client

RUNS = 5
REQUEST_BYTES = 1024
IN_FLIGHT = 32
LOAD_S = 2.0
"""Seconds of one run of requests: some thousand of them."""
STREAMS = 64
CLIENTS = 2
TOKENS = 100
"""Tokens of each stream: two seconds where they are paced."""
GOAL_REQUESTS = 2.0
GOAL_TOKENS = 0.7


class Ours:
    """A native client of one node."""

    def __init__(self, node: NodeProcess) -> None:
        self._node = node

    def requests_per_cpu_s(self) -> list[float]:
        """Echoes for each second of a core that both processes use."""
        return [trio.run(self._requests)]

    def cpu_per_token_s(self, model: str) -> list[float]:
        """Seconds of a core of both processes for each token."""
        return [trio.run(self._tokens, model)]

    async def _requests(self) -> float:
        array, done = np.zeros(REQUEST_BYTES, "u1"), 0

        async def ask(mesh: client.AsyncMesh, until: float) -> None:
            nonlocal done
            while time.perf_counter() < until:
                assert (await mesh.infer("echo", {"x": array}))["x"].nbytes == REQUEST_BYTES
                done += 1

        async def all_for(mesh: client.AsyncMesh, for_s: float) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(IN_FLIGHT):
                    nursery.start_soon(ask, mesh, time.perf_counter() + for_s)

        async with self._client() as mesh:
            await all_for(mesh, LOAD_S / 10)
            done, before = 0, self._cpu_s()
            await all_for(mesh, LOAD_S)
            return done / (self._cpu_s() - before)

    async def _tokens(self, model: str) -> float:
        taken = 0

        async def take(mesh: client.AsyncMesh) -> None:
            nonlocal taken
            async for piece in mesh.generate(model, prompt="x", max_tokens=TOKENS):
                taken += len(piece) // len(TOKEN)

        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(self._client()) for _ in range(CLIENTS)]
            await take(clients[0])
            taken, before = 0, self._cpu_s()
            async with trio.open_nursery() as nursery:
                for number in range(STREAMS):
                    nursery.start_soon(take, clients[number % CLIENTS])
            used = self._cpu_s() - before
        assert taken == STREAMS * TOKENS, taken
        return used / taken

    def _client(self) -> AbstractAsyncContextManager[client.AsyncMesh]:
        return client.connect([self._node.address], network="isochrone-main")

    def _cpu_s(self) -> float:
        return time.process_time() + cpu_s(self._node.process.pid)


def main() -> None:
    """Runs the benchmark."""
    rows = []
    with GrpcLoad() as grpc_load:
        with NodeProcess("--engine", "echo", "--quic-engine", "qh3") as node:
            theirs = partial(grpc_load.requests_per_cpu_s, REQUEST_BYTES, IN_FLIGHT, LOAD_S)
            ours, other = map(statistics.median, alternate(RUNS, Ours(node).requests_per_cpu_s, theirs))
            work = f"1 KiB echo, {IN_FLIGHT} in flight, per CPU second of both ends"
            rows.append(Row(work, ours, "requests", "grpc.aio, TLS", other, GOAL_REQUESTS, is_more_better=True))
        with NodeProcess("--quic-engine", "qh3", program=PROGRAM) as node:
            for model in (TICKER, RUSH):
                is_paced = model == TICKER
                theirs = partial(grpc_load.cpu_per_token_s, STREAMS, TOKENS, is_paced=is_paced)
                ours, other = map(statistics.median, alternate(RUNS, partial(Ours(node).cpu_per_token_s, model), theirs))
                pace = f"{1 / STEP_S:.0f} tokens/s each" if is_paced else "as fast as they are taken"
                goal = GOAL_TOKENS if is_paced else None
                work = f"{STREAMS} streams, {pace}: CPU per token"
                rows.append(Row(work, ours * 1e6, "us", "grpc.aio, TLS", other * 1e6, goal))
    report("throughput", "Work per processor second, two processes", rows, ("trio", "qh3", "grpcio"))


if __name__ == "__main__":
    main()
