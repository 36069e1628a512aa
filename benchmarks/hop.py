"""One mesh hop: a native call to an echo engine on a second node, beside grpcio doing the same over TLS in the same run."""

import os
import statistics
import time

import trio

from benchmarks.grpc_echo import GrpcEcho
from benchmarks.harness import Row, alternate, report
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
CALLS = 200
SIZES = (1024, 16 * 1024)
GOALS = {1024: 0.35, 16 * 1024: 0.5}
"""Ratios that the fast path is to reach; this table shows how far the way is."""


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


def main() -> None:
    """Runs the benchmark."""
    rows = []
    for quic_engine in ("qh3", "aioquic"):
        with NodeProcess("--engine", "echo", "--quic-engine", quic_engine) as node, GrpcEcho() as grpc_echo:
            hop = Hop(quic_engine, node.address)
            for size in SIZES:
                payload = os.urandom(size)
                ours, theirs = alternate(
                    RUNS, lambda h=hop, s=size: h.measure(s, CALLS), lambda g=grpc_echo, p=payload: g.measure(p, CALLS)
                )
                rows.append(
                    Row(
                        f"{size // 1024} KiB echo on the next node, {quic_engine}, p50",
                        statistics.median(ours) * 1e6,
                        "us",
                        "grpcio sync, TLS",
                        statistics.median(theirs) * 1e6,
                        GOALS[size] if quic_engine == "qh3" else None,
                    )
                )
                signed, bare = alternate(
                    RUNS, lambda h=hop, s=size: h.measure(s, CALLS, receipt=True), lambda h=hop, s=size: h.measure(s, CALLS)
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
