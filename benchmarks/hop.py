"""One mesh hop: a native call to an echo engine on a second node, beside grpcio doing the same over TLS in the same run."""

import os
import statistics
import time

import trio

from benchmarks.grpc_echo import GrpcEcho
from benchmarks.harness import Row, alternate, report, worst_of_hundred
from benchmarks.node_process import NodeProcess
from mesh.inference import request_over
from mesh.receipts import Examination
from mesh.transport import Transport, TransportConfig
from protocol.identity import Identity
from protocol.inference import Failed, Feature, Finished, InferenceRequest, Tensor, TensorsReady
from protocol.multiaddr import parse_multiaddr
from protocol.quic import choose_engine
from protocol.wire.inference import PROTOCOL_ID

RUNS = 7
MIB = 1024 * 1024
CALLS = {1024: 200, 16 * 1024: 200, MIB: 20}
"""Calls of one run by the size of what goes each way, in bytes."""
GOALS = {1024: 0.35, 16 * 1024: 0.5, MIB: 1.5}
"""Ratios that the fast path is to reach; this table shows how far the way is."""
GOAL_P99 = 0.5
"""The same for the 99th percentile of 1 KiB."""


class Hop:
    """A light peer that calls the echo engine of a node."""

    def __init__(self, quic_engine: str, address: str) -> None:
        """Names the engine and the node."""
        self._quic_engine = quic_engine
        self._address = parse_multiaddr(address)

    def measure(self, size: int, count: int, *, receipt: bool = False) -> list[float]:
        """Round trips in seconds of `count` calls with `size` bytes each way; a receipt that ends each is checked."""
        return trio.run(self._measure, size, count, receipt)

    async def _measure(self, size: int, count: int, receipt: bool) -> list[float]:
        transport = Transport(Identity.from_seed(os.urandom(32)), TransportConfig(), choose_engine(self._quic_engine))
        tensor = Tensor("x", "u1", (size,), memoryview(os.urandom(size)))
        took: list[float] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run, [parse_multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")])
            connection = await transport.dial(self._address)
            for number in range(count + count // 10):
                request = InferenceRequest(os.urandom(16), Feature.TENSORS, "echo", b"", (tensor,), 10.0, 0, receipt=receipt)
                started = time.perf_counter()
                examination = Examination(request, (transport.identity.peer_id,), connection.peer_id)
                stream = await connection.open_stream(PROTOCOL_ID)
                async with request_over(stream, request) as replies:
                    async for reply in replies:
                        assert not isinstance(reply, Failed), reply
                        if isinstance(reply, TensorsReady):
                            assert reply.tensors[0].data.nbytes == size
                            if receipt:
                                examination.add(reply)
                        if receipt and isinstance(reply, Finished):
                            assert examination.judge(reply.receipt) is None
                if number >= count // 10:  # the first tenth warms up
                    took.append(time.perf_counter() - started)
            await transport.aclose()
            nursery.cancel_scope.cancel()
        return took


def _beside_grpc(work: str, taken: list[list[float]], goal: float | None) -> Row:
    """The row of what alternating runs have taken, in seconds."""
    ours, theirs = (statistics.median(each) * 1e6 for each in taken)
    return Row(work, ours, "us", "grpcio sync, TLS", theirs, goal)


def main() -> None:
    """Runs the benchmark."""
    rows = []
    for quic_engine in ("qh3", "aioquic"):
        with NodeProcess("--engine", "echo", "--quic-engine", quic_engine) as node, GrpcEcho() as grpc_echo:
            hop = Hop(quic_engine, node.address)
            for size, calls in CALLS.items():
                payload, is_fast = os.urandom(size), quic_engine == "qh3"
                ways = (lambda h=hop, s=size, n=calls: h.measure(s, n), lambda g=grpc_echo, p=payload, n=calls: g.measure(p, n))
                work = f"{size // 1024} KiB echo on the next node, {quic_engine}"
                rows.append(_beside_grpc(f"{work}, p50", alternate(RUNS, *ways), GOALS[size] if is_fast else None))
                if size == MIB:
                    continue
                if size == min(CALLS):
                    worst = alternate(RUNS, *ways, of=worst_of_hundred)
                    rows.append(_beside_grpc(f"{work}, p99", worst, GOAL_P99 if is_fast else None))
                signed, bare = alternate(
                    RUNS,
                    lambda h=hop, s=size, n=calls: h.measure(s, n, receipt=True),
                    lambda h=hop, s=size, n=calls: h.measure(s, n),
                )
                rows.append(
                    Row(
                        f"the same with a receipt, signed and checked, {quic_engine}, p50",
                        statistics.median(signed) * 1e6,
                        "us",
                        "without",
                        statistics.median(bare) * 1e6,
                        None,
                    )
                )
    report("hop", "One mesh hop, two processes on one machine", rows, ("trio", "qh3", "aioquic", "grpcio"))


if __name__ == "__main__":
    main()
