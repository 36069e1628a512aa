"""Honest peers beside an attack: `python -m benchmarks.hostile_peers ADDRESS ENGINE PEERS PER_SECOND`.

Each has an identity, an address and a QUIC connection of its own, and asks the node's echo engine for a small
answer at a steady pace, whether the answer before has come or not. Every request becomes one line of JSON when it is over:
when it began on the machine's monotonic clock, how long it took, and what it failed with. A peer whose connection is lost dials
again. The process runs until its standard input ends.
"""

import json
import os
import sys
import time

import trio

from benchmarks.hostile_net import honest_host
from mesh.inference import request_over
from mesh.transport import ConnectionLost, StreamReset, Transport, TransportConfig
from protocol.errors import ProtocolError
from protocol.identity import Identity
from protocol.inference import Failed, Feature, InferenceRequest, Tensor
from protocol.multiaddr import Multiaddr, parse_multiaddr
from protocol.quic import choose_engine
from protocol.wire.inference import PROTOCOL_ID

TENSOR_BYTES = 256
"""What one request carries, and what comes back."""

PATIENCE_S = 5.0
"""Deadline of a request: one that takes longer counts as lost."""

OPEN_MAX = 32
"""Requests of one peer under way: what a program that asks four times a second has open when answers take its whole patience."""

DIAL_S = 3.0
"""Longest dial before it is begun again."""


class HonestPeer:
    """One peer."""

    def __init__(self, number: int, address: Multiaddr, engine: str) -> None:
        """Prepares it; each peer lives at an address of a network of its own."""
        self._here = parse_multiaddr(f"/ip4/{honest_host(number)}/udp/0/quic-v1")
        self._address = address
        self._transport = Transport(Identity(os.urandom(32)), TransportConfig(), choose_engine(engine))
        self._open = 0

    async def run(self, pace_s: float, phase_s: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connects, says so, and asks at its pace for ever."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._transport.run, [self._here])
            await self._connected()
            task_status.started()
            due = trio.current_time() + phase_s
            while True:
                await trio.sleep_until(due)
                due += pace_s
                if self._open < OPEN_MAX:
                    nursery.start_soon(self._ask)
                else:
                    tell(time.monotonic(), PATIENCE_S, "too many open")

    async def _connected(self) -> None:
        while True:
            with trio.move_on_after(DIAL_S):
                try:
                    await self._transport.dial(self._address)
                except (ConnectionLost, ProtocolError):
                    await trio.sleep(0.1)
                else:
                    return

    async def _ask(self) -> None:
        self._open += 1
        began = time.monotonic()
        fault = "no answer in time"
        with trio.move_on_after(PATIENCE_S):
            try:
                fault = await self._answer()
            except (ConnectionLost, StreamReset, ProtocolError) as error:
                fault = f"{type(error).__name__}: {error}"
        self._open -= 1
        tell(began, time.monotonic() - began, fault)

    async def _answer(self) -> str:
        connection = await self._transport.dial(self._address)
        tensor = Tensor("x", "u1", (TENSOR_BYTES,), memoryview(bytes(TENSOR_BYTES)))
        request = InferenceRequest(os.urandom(16), Feature.TENSORS, "echo", b"", (tensor,), PATIENCE_S, 0)
        stream = await connection.open_stream(PROTOCOL_ID)
        async with request_over(stream, request) as replies:
            async for reply in replies:
                if isinstance(reply, Failed):
                    return f"{reply.code.name}: {reply.message}"
        return ""


def tell(began_s: float, took_s: float, fault: str) -> None:
    """Writes one line."""
    print(json.dumps({"began": began_s, "took": took_s, "fault": fault}), flush=True)


async def main() -> None:
    """Runs the peers named on the command line."""
    address, engine, count, per_second = parse_multiaddr(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    async with trio.open_nursery() as nursery:
        for number in range(count):
            peer = HonestPeer(number, address, engine)
            await nursery.start(peer.run, 1 / per_second, number / count / per_second)
        print(json.dumps({"ready": count}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
