"""The yardsticks of streams and of load: grpc.aio over TLS between two processes, and a stream of chunks one way.

Run as a module it is the server; it prints its port and the certificate's path, and serves until its standard input ends.
Messages are bare bytes: what protobuf would cost a user is not counted. The server's tokens come in the steps of `bench_node`.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from benchmarks.grpc_echo import make_certificate
from benchmarks.harness import cpu_s

STEP_S = 0.02
"""Seconds between two steps, as in `bench_node`."""
TOKEN = b" token"
CHUNK_BYTES = 1 << 20
"""One message of the stream one way: below the 4 MiB that grpcio takes unless told otherwise."""


class Steps:
    """The clock of the paced tokens."""

    def __init__(self) -> None:
        self._step = asyncio.Event()

    async def run(self) -> None:
        """Lets one step follow the other."""
        due_s = time.monotonic()
        while True:
            due_s = max(due_s + STEP_S, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())
            step, self._step = self._step, asyncio.Event()
            step.set()

    async def next(self) -> None:
        """Waits for the next step."""
        await self._step.wait()


async def serve() -> None:
    """Serves until standard input ends."""
    key, certificate = make_certificate()
    steps = Steps()

    async def echo(data: bytes, _: Any) -> bytes:
        return data

    async def paced(data: bytes, _: Any) -> AsyncIterator[bytes]:
        for _ in range(int(data)):
            await steps.next()
            yield TOKEN

    async def rush(data: bytes, _: Any) -> AsyncIterator[bytes]:
        for _ in range(int(data)):
            yield TOKEN

    async def take(chunks: AsyncIterator[bytes], _: Any) -> bytes:
        taken = 0
        async for chunk in chunks:
            taken += len(chunk)
        return str(taken).encode()

    server = grpc.aio.server()
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Paced": grpc.unary_stream_rpc_method_handler(paced),
        "Rush": grpc.unary_stream_rpc_method_handler(rush),
        "Take": grpc.stream_unary_rpc_method_handler(take),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Load", handlers),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    ticking = asyncio.create_task(steps.run())
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(certificate)
        file.flush()
        print(port, file.name, flush=True)
        await asyncio.to_thread(sys.stdin.read)
    ticking.cancel()
    await server.stop(0)


class GrpcLoad:
    """The server in another process, and clients of it; use as a context manager."""

    def __enter__(self) -> Self:
        """Starts the server."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.grpc_load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        port, path = self._process.stdout.readline().split()
        self._target = f"127.0.0.1:{port}"
        self._credentials = grpc.ssl_channel_credentials(Path(path).read_bytes())
        return self

    def requests_per_cpu_s(self, size: int, in_flight: int, for_s: float) -> list[float]:
        """Echoes of `size` bytes for each second of a core that both processes use."""
        return [asyncio.run(self._requests(size, in_flight, for_s))]

    def cpu_per_token_s(self, streams: int, count: int, *, is_paced: bool) -> list[float]:
        """Seconds of a core of both processes for each token, with so many streams at once of so many tokens."""
        return [asyncio.run(self._tokens(streams, count, "Paced" if is_paced else "Rush"))]

    def one_way_s(self, size: int) -> list[float]:
        """Seconds until the server has all of `size` bytes, by a synchronous client."""
        chunk = bytes(CHUNK_BYTES)

        def chunks() -> Iterator[bytes]:
            for _ in range(size // CHUNK_BYTES):
                yield chunk

        with grpc.secure_channel(self._target, self._credentials) as channel:
            take = channel.stream_unary("/bench.Load/Take")
            take(iter([b"warm"]))
            began = time.perf_counter()
            taken = take(chunks())
            took = time.perf_counter() - began
        assert int(taken) == size
        return [took]

    async def _requests(self, size: int, in_flight: int, for_s: float) -> float:
        payload, done = bytes(size), 0

        async def ask(echo: Any, until: float) -> None:
            nonlocal done
            while time.perf_counter() < until:
                assert len(await echo(payload)) == size
                done += 1

        async with grpc.aio.secure_channel(self._target, self._credentials) as channel:
            echo = channel.unary_unary("/bench.Load/Echo")
            await asyncio.gather(*(ask(echo, time.perf_counter() + for_s / 10) for _ in range(in_flight)))
            done, before = 0, self._cpu_s()
            await asyncio.gather(*(ask(echo, time.perf_counter() + for_s) for _ in range(in_flight)))
            return done / (self._cpu_s() - before)

    async def _tokens(self, streams: int, count: int, method: str) -> float:
        async def take(stream: Any) -> int:
            return sum([1 async for token in stream(str(count).encode()) if token == TOKEN])

        async with grpc.aio.secure_channel(self._target, self._credentials) as channel:
            stream = channel.unary_stream(f"/bench.Load/{method}")
            await take(stream)
            before = self._cpu_s()
            taken = await asyncio.gather(*(take(stream) for _ in range(streams)))
            used = self._cpu_s() - before
        assert sum(taken) == streams * count
        return used / sum(taken)

    def _cpu_s(self) -> float:
        return time.process_time() + cpu_s(self._process.pid)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the server."""
        self._process.communicate(timeout=10)


if __name__ == "__main__":
    asyncio.run(serve())
