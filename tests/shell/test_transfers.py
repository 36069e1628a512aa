"""How long a transfer between two transports takes on virtual machines, where nothing takes time but the path."""

import numpy as np
import trio
from trio.testing import MockClock
from virtual_machines import VirtualNet

from mesh.transport import Transport, TransportConfig
from protocol.identity import Identity
from protocol.quic import choose_engine
from sim.network import Matrix, Network, NetworkConfig

ECHO = "/test/echo/1.0.0"
RTT_S = 0.0004
MIB = 1024 * 1024


async def swallow(stream):
    while await stream.receive_some():
        pass
    await stream.send_all(b"all", end=True)


def test_a_sender_whose_window_opens_goes_on_at_once() -> None:
    """Every turn of a megabyte in slow start waits for the path, and for nothing beside it.

    With aioquic: how fast the window of qh3 grows depends on where the traps lie.
    """

    async def main() -> float:
        net = VirtualNet(1)
        rtt_ms = np.array([[0.0, RTT_S * 1000], [RTT_S * 1000, 0.0]])
        net.network = Network(Matrix(rtt_ms), NetworkConfig(0.0, 1e9, 16 * MIB), net.streams)
        transports = [
            Transport(
                Identity.from_seed(bytes([number]) * 32),
                TransportConfig(),
                choose_engine("aioquic"),
                {ECHO: swallow},
                machine=made.machine,
            )
            for number, made in enumerate((net.add(), net.add()), start=1)
        ]
        async with trio.open_nursery() as nursery:
            await nursery.start(net.run)
            for transport, made in zip(transports, net.machines, strict=True):
                await nursery.start(transport.run, [made.address])
            connection = await transports[0].dial(transports[1].addresses[0])
            began_s = trio.current_time()
            async with await connection.open_stream(ECHO) as stream:
                await stream.send_all(bytes(MIB), end=True)
                assert await stream.receive_some() == b"all"
            took_s = trio.current_time() - began_s
            for transport in transports:
                await transport.aclose()
            nursery.cancel_scope.cancel()
        return took_s

    took_s = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert took_s < 27 * RTT_S  # virtual time, some twenty turns; a millisecond of lingering in five of them would be past it
