"""Whom a request goes to when nobody was measured: real nodes behind links of known length, all connected to a hub alone.

The node that asks knows the two that serve from their cards alone: only a round trip tells which of them is near.
"""

import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import pytest
import trio
from mesh_nodes import MeshNode, PlannedEngine, Start, eventually, text_of

from mesh.service import Service
from mesh.testnet.link import Emulator, LinkSpec
from protocol.multiaddr import Multiaddr
from protocol.shortlist import ShortlistConfig

RTT_S = [[0.0, 0.1, 0.1, 0.1], [0.1, 0.0, 0.06, 0.18], [0.1, 0.06, 0.0, 0.2], [0.1, 0.18, 0.2, 0.0]]
"""Between the hub, the node that asks, the near and the far one, in seconds."""

ENGINES = pytest.mark.parametrize("quic_engines", [("qh3",), ("aioquic",)], ids="-".join, indirect=True)


def of_a_large_mesh(service: Service) -> None:
    """Has a node behave as where most peers are not connected, and nobody's place is known well enough to say anything."""
    node = service.node
    node.membership._config = replace(node.membership._config, small_mesh=0)
    node._ranking_wait_s = 1e6
    node.views._error_max = 0.0


@contextmanager
def links(count: int) -> Iterator[tuple[list[Multiaddr], list[Multiaddr]]]:
    """Where so many nodes listen, and at which addresses others find them, behind links of `RTT_S`."""
    held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    real = [one.getsockname() for one in held]
    emulator = Emulator(LinkSpec([("127.0.0.1", 0)] * count, real, [[(rtt_s / 2, 0.0, 0.0) for rtt_s in row] for row in RTT_S]))
    stop, stopper = os.pipe()
    thread = threading.Thread(target=emulator.serve, args=(stop,))
    for one in held:
        one.close()
    thread.start()
    try:
        yield [Multiaddr("ip4", *address) for address in real], [Multiaddr("ip4", *address) for address in emulator.addresses]
    finally:
        os.close(stopper)
        thread.join()
        os.close(stop)
        emulator.close()


@asynccontextmanager
async def star(start: Start) -> AsyncIterator[tuple[MeshNode, MeshNode, MeshNode]]:
    """The node that asks, the near and the far one."""
    with links(4) as (real, announced):
        nodes: list[MeshNode] = []
        for number, (listens, found) in enumerate(zip(real, announced, strict=True)):
            engines = [PlannedEngine()] if number >= 2 else []
            node = await start(*engines, listen=listens, announce=[found], tune=of_a_large_mesh, relay=False)
            node.service.node.add_bootstrap(announced[:1] if number else [], node.service.transport.now())
            node.service.driver.settle()
            nodes.append(node)
        _, asker, near, far = nodes
        await eventually(lambda: all(serves(asker, other) for other in (near, far)))
        assert near.peer_id not in asker.service.transport.connections
        yield asker, near, far
        for node in nodes:
            node.scope.cancel()


def serves(node: MeshNode, other: MeshNode) -> bool:
    """Whether a node knows what another serves."""
    return node.service.node.table.serving(other.peer_id) is not None


def counted(node: MeshNode, name: str) -> float:
    """A counter of a node."""
    return node.telemetry.registry.get_sample_value(f"isochrone_{name}_total")


@ENGINES
async def test_requests_of_one_moment_find_the_truly_nearest_by_two_probes(start: Start) -> None:
    async with star(start) as (asker, near, far):
        answers, far_after_s = [], 0.0

        async def ask() -> None:
            answers.append(await asker.chat())

        async def watch() -> None:
            nonlocal far_after_s
            began = trio.current_time()
            await eventually(lambda: far.peer_id in asker.service.transport.connections)
            far_after_s = trio.current_time() - began

        async with trio.open_nursery() as asking:
            asking.start_soon(watch)
            for _ in range(3):
                asking.start_soon(ask)
        routes = [asker.route(answer) for answer in answers]
        assert [text_of(answer) for answer in answers] == ["Time is distance."] * 3
        assert {route.chosen for route in routes} == {near.peer_id}
        assert sum(route.probed for route in routes) == counted(asker, "request_probes") == 2
        longest_s = max(route.probing_s for route in routes)  # who comes later waits for what is left
        assert RTT_S[1][2] < longest_s < 0.75 * far_after_s  # a dial of the near one, none of the far one
        assert counted(asker, "request_probing_seconds") == pytest.approx(sum(route.probing_s for route in routes))

        await eventually(lambda: all(asker.service.node.probe.quality(other.peer_id, 0.0) for other in (near, far)))
        route = asker.route(await asker.chat())  # now both are measured
        assert (route.chosen, route.probed, route.probing_s) == (near.peer_id, 0, 0.0)
        assert counted(asker, "request_probes") == 2


@ENGINES
async def test_a_peer_that_never_answers_delays_a_request_by_the_bound_alone(start: Start) -> None:
    async with star(start) as (asker, near, far):
        await near.kill()
        route = asker.route(await asker.chat())
        assert route.chosen == far.peer_id
        assert route.probed == 2
        assert route.probing_s < ShortlistConfig().wait_s_max + 0.1  # a busy machine wakes late
        assert route.candidates[0].peer_id == far.peer_id
