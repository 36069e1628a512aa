"""Two real transports on loopback sockets."""

from contextlib import asynccontextmanager

import pytest
import trio

from mesh.transport import Transport, TransportConfig
from protocol.errors import LocalProtocolError
from protocol.identity import Identity
from protocol.multiaddr import Multiaddr, parse_multiaddr
from protocol.quic import choose_engine

COMBOS = [("qh3", "qh3"), ("aioquic", "aioquic"), ("aioquic", "qh3"), ("qh3", "aioquic")]
LOOPBACK = parse_multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")
ECHO = "/test/echo/1.0.0"


def engine_of(name):
    try:
        return choose_engine(name)
    except LocalProtocolError as fault:
        pytest.skip(f"the engine {name} cannot be used here: {fault}")


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


class Node:
    """A transport and everything it said."""

    def __init__(self, number, engine, handlers=None, config=None, **named):
        self.connected, self.disconnected, self.datagrams, self.crashes = [], [], [], []
        self.changed = trio.Condition()
        self.transport = Transport(
            Identity.from_seed(bytes([number]) * 32),
            config or TransportConfig(),
            engine_of(engine),
            {ECHO: echo, **(handlers or {})},
            on_connected=self.connected.append,
            on_disconnected=lambda connection, code: self.disconnected.append((connection.peer_id, code)),
            on_datagram=lambda *datagram: self.datagrams.append(datagram),
            on_crash=lambda stream, fault: self.crashes.append((stream.protocol_id, fault)),
            **named,
        )

    @property
    def address(self) -> Multiaddr:
        return self.transport.addresses[0]

    @property
    def peer_id(self):
        return self.transport.identity.peer_id


async def until(condition, seconds=10.0):
    """Wait for something that other tasks bring about."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def running(*nodes, listen=(LOOPBACK,)):
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.transport.run, listen)
        try:
            with trio.fail_after(60):
                yield
        finally:
            for node in nodes:
                with trio.CancelScope(shield=True):
                    await node.transport.aclose()


class Relay:
    """A wire in user space: what a stranger sends to its address reaches the target and comes back, until it is cut."""

    def __init__(self, target: Multiaddr):
        self.target = target
        self.cut = False
        self._front = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        self._back = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        self._client = None

    @property
    def address(self) -> Multiaddr:
        return self.target.with_port(self._front.getsockname()[1])

    async def run(self, *, task_status):
        with self._front, self._back:
            await self._front.bind(("127.0.0.1", 0))
            await self._back.bind(("127.0.0.1", 0))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, self._front, self._back)
                nursery.start_soon(self._forward, self._back, self._front)
                task_status.started()

    async def _forward(self, source, sink):
        while True:
            data, address = await source.recvfrom(65536)
            if source is self._front:
                self._client = address
            if not self.cut:
                await sink.sendto(data, (self.target.host, self.target.port) if source is self._front else self._client)


@asynccontextmanager
async def relay_to(target: Multiaddr):
    async with trio.open_nursery() as nursery:
        relay = Relay(target)
        await nursery.start(relay.run)
        yield relay
        nursery.cancel_scope.cancel()


async def read_all(stream) -> bytes:
    data = bytearray()
    while chunk := await stream.receive_some():
        data += chunk
    return bytes(data)
