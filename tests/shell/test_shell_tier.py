"""The third tier: whole nodes of the trio shell on virtual machines and a clock that jumps."""

import errno
import hashlib
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import trio
from trio.testing import MockClock
from virtual_machines import VirtualNet
from virtual_mesh import ShellMesh, ShellNode, all_know, play, within

from mesh.engines.echo import EchoConfig, EchoEngine
from mesh.transport.udp import UdpSocket
from protocol.errors import ErrorCode, LocalProtocolError
from protocol.membership import MembershipConfig, Standing
from protocol.quic import choose_engine
from sim.network import Matrix

QUIC_ENGINES = [("qh3",), ("aioquic",), ("qh3", "aioquic")]
MIXED = QUIC_ENGINES[2]
GONE = {Standing.SUSPECTED, Standing.GONE}
CLOSED_S = MembershipConfig().gone_after_s + MembershipConfig().linger_s
"""How long after it fell silent a peer's connection is closed, in seconds, less the time that suspecting it takes."""


@pytest.fixture(params=QUIC_ENGINES, ids="-".join)
def quic_engines(request: pytest.FixtureRequest) -> tuple[str, ...]:
    for name in request.param:
        try:
            choose_engine(name)
        except LocalProtocolError as fault:
            pytest.skip(f"the engine {name} cannot be used here: {fault}")
    return request.param


# The machines themselves


def test_a_socket_cuts_joins_and_stamps_as_the_kernel_does() -> None:
    async def main() -> None:
        net = VirtualNet(1)
        one, other = net.add(), net.add()
        sender, receiver = (
            UdpSocket(machine.machine, machine.host, 4001, index=0, buffer_bytes=1 << 20, backlog_max=10)
            for machine in (one, other)
        )
        net.sent = []
        async with trio.open_nursery() as nursery:
            await nursery.start(net.run)
            sizes = [1200, 1200, 700, 1200]
            assert sender.send([(bytes([number]) * size, (other.host, 4001)) for number, size in enumerate(sizes)])
            assert [size for _, _, size in net.sent] == sizes
            with pytest.raises(BlockingIOError):
                receiver.raw.recvmsg(65_536, 64)
            await trio.lowlevel.wait_readable(receiver.raw)
            arrived_at = other.clock()
            await trio.sleep(0.5)
            batch = receiver.receive_batch(64)
            assert sorted(len(received.data) for received in batch) == sorted(sizes)
            assert {received.address for received in batch} == {(one.host, 4001)}
            assert min(received.received_at for received in batch) == pytest.approx(arrived_at, abs=1e-6)
            nursery.cancel_scope.cancel()
        with pytest.raises(OSError, match="in use") as taken:
            UdpSocket(other.machine, other.host, 4001, index=1, buffer_bytes=1, backlog_max=1)
        assert taken.value.errno == errno.EADDRINUSE
        sender.close()
        receiver.close()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_one_seed_has_one_history(tmp_path: Path) -> None:
    def history(name: str, seed: int) -> str:
        async def scenario(mesh: ShellMesh) -> None:
            mesh.net.sent = []
            await mesh.start_many(3)
            await trio.sleep(3.0)

        net = play(scenario, tmp_path / name, seed=seed, quic_engines=("qh3", "aioquic"))
        assert net.sent
        return hashlib.sha256(repr(net.sent).encode()).hexdigest()

    assert history("a", 1) == history("b", 1)
    assert history("c", 1) != history("d", 2)


# Whole nodes


def test_nodes_at_chosen_distances_know_one_another_and_how_far_they_are(tmp_path: Path, quic_engines: tuple[str, ...]) -> None:
    rtt_ms = np.array(
        [[0, 4, 20, 80, 150], [4, 0, 24, 84, 154], [20, 24, 0, 60, 130], [80, 84, 60, 0, 70], [150, 154, 130, 70, 0]]
    )

    async def scenario(mesh: ShellMesh) -> None:
        nodes = await mesh.start_many(5)
        await within(10.0, lambda: all_know(*nodes))
        await trio.sleep(5.0)
        for one in nodes:
            for other in nodes:
                if one is not other:
                    quality = one.service.node.probe.quality(other.peer_id, one.service.transport.now())
                    assert quality is not None
                    true_s = rtt_ms[one.machine.index, other.machine.index] / 1000.0
                    assert true_s <= quality.rtt_s < true_s + 0.005

    play(scenario, tmp_path, delays=Matrix(rtt_ms), quic_engines=quic_engines)


def test_a_killed_node_leaves_every_routing_set(tmp_path: Path) -> None:
    async def scenario(mesh: ShellMesh) -> None:
        *others, dead = await mesh.start_many(5)
        await within(10.0, lambda: all_know(*others, dead))
        await dead.kill()
        await within(3.0, lambda: all(node.standing(dead) in GONE for node in others))
        await within(CLOSED_S + 5.0, lambda: all(dead.peer_id not in node.service.transport.connections for node in others))
        assert all_know(*others)

    play(scenario, tmp_path, quic_engines=MIXED)


def test_a_node_that_leaves_is_gone_at_once(tmp_path: Path) -> None:
    async def scenario(mesh: ShellMesh) -> None:
        *others, leaver = await mesh.start_many(3)
        await within(10.0, lambda: all_know(*others, leaver))
        await leaver.leave()
        await within(0.5, lambda: all(leaver.peer_id not in node.service.transport.connections for node in others))
        assert not any(node.knows(leaver) for node in others)

    play(scenario, tmp_path)


def test_a_mesh_forms_where_every_third_datagram_is_lost(tmp_path: Path, quic_engines: tuple[str, ...]) -> None:
    async def scenario(mesh: ShellMesh) -> None:
        luck = mesh.net.luck("loss")
        mesh.net.network.losses.append(lambda *_: luck.random() < 0.3)
        nodes = await mesh.start_many(5)
        await within(30.0, lambda: all_know(*nodes))
        assert mesh.net.network.tally.lost > 100

    play(scenario, tmp_path, quic_engines=quic_engines)


def test_parts_that_were_cut_apart_find_one_another_again(tmp_path: Path) -> None:
    async def scenario(mesh: ShellMesh) -> None:
        nodes = await mesh.start_many(4)
        await within(10.0, lambda: all_know(*nodes))

        def cut(one: int, other: int) -> bool:
            return (one < 2) != (other < 2)

        mesh.net.network.blocks.append(cut)
        await within(3.0, lambda: nodes[0].standing(nodes[2]) in GONE and nodes[3].standing(nodes[1]) in GONE)
        await trio.sleep(CLOSED_S + 5.0)
        assert list(nodes[0].service.transport.connections) == [nodes[1].peer_id]
        mesh.net.network.blocks.remove(cut)
        await within(60.0, lambda: all_know(*nodes))

    play(scenario, tmp_path)


def test_parts_that_were_cut_apart_for_a_while_know_one_another_again_within_seconds(tmp_path: Path) -> None:
    async def scenario(mesh: ShellMesh) -> None:
        nodes = await mesh.start_many(4)
        await within(10.0, lambda: all_know(*nodes))

        def cut(one: int, other: int) -> bool:
            return (one < 2) != (other < 2)

        mesh.net.network.blocks.append(cut)
        await trio.sleep(20.0)
        assert nodes[0].standing(nodes[2]) is Standing.GONE
        mesh.net.network.blocks.remove(cut)
        await within(5.0, lambda: all_know(*nodes))

    play(scenario, tmp_path)


def test_a_node_that_was_started_again_is_taken_for_a_new_one_and_told_once(
    tmp_path: Path, quic_engines: tuple[str, ...]
) -> None:
    async def scenario(mesh: ShellMesh) -> None:
        first, second = await mesh.start_many(2)
        await within(10.0, lambda: all_know(first, second))
        await trio.sleep(2.0)
        replaced: list[float] = []
        tell = first.service.transport.on_replaced
        assert tell is not None

        def told(connection: object) -> None:
            replaced.append(trio.current_time())
            tell(connection)  # type: ignore[arg-type]

        first.service.transport.on_replaced = told
        await second.kill()
        again = await mesh.start(join=[first], machine=second.machine)
        assert again.peer_id == second.peer_id
        await within(3.0, lambda: len(replaced) > 0 and all_know(first, again))
        await trio.sleep(3.0)
        assert len(replaced) == 1
        assert first.counts().connections == 1

    play(scenario, tmp_path, quic_engines=quic_engines)


async def crossed(mesh: ShellMesh) -> list[ShellNode]:
    """Two nodes that dialled each other at once, at the moment when both connections stand and one of them is retired."""
    machines = [mesh.net.add(), mesh.net.add()]
    async with trio.open_nursery() as starting:
        for machine, other in zip(machines, reversed(machines), strict=True):
            starting.start_soon(partial(mesh.start, machine=machine, join=[other]))
    await within(0.9, lambda: all(len(node.service.transport._by_handle) == 2 for node in mesh.nodes))
    return mesh.nodes


@pytest.mark.parametrize("seed", [1, 2, 3, 6])  # in about half of the seeds the driver's nursery ends before the transport's
def test_a_node_that_is_cancelled_while_a_duplicate_connection_stands_ends_quietly(seed: int, tmp_path: Path) -> None:
    async def scenario(mesh: ShellMesh) -> None:
        one, other = await crossed(mesh)
        one.cancel()
        await one.ended.wait()
        assert list(other.service.transport.connections) in ([], [one.peer_id])

    play(scenario, tmp_path, seed=seed)


def test_a_duplicate_that_took_its_successors_place_again_stays(tmp_path: Path, quic_engines: tuple[str, ...]) -> None:
    async def scenario(mesh: ShellMesh) -> None:
        one, other = await crossed(mesh)
        transport = one.service.transport
        kept = transport.connections[other.peer_id]
        (duplicate,) = (connection for connection in transport._by_handle.values() if connection is not kept)
        transport.endpoint.close(kept.handle, ErrorCode.NO_ERROR, "lost, say", transport.now())
        transport.pump()
        assert transport.connections[other.peer_id] is duplicate
        await trio.sleep(40.0)
        assert transport.connections[other.peer_id] is duplicate
        assert all_know(one, other)

    play(scenario, tmp_path, quic_engines=quic_engines)


@pytest.mark.parametrize(("seconds", "sleeps"), [(1.5, False), (10.0, False), (40.0, True)])
def test_a_node_that_was_stopped_comes_back(seconds: float, sleeps: bool, tmp_path: Path) -> None:
    """SIGSTOP for a moment and for longer than peers have patience; and a machine that sleeps, whose clock stood meanwhile."""

    async def scenario(mesh: ShellMesh) -> None:
        nodes = await mesh.start_many(3)
        await within(10.0, lambda: all_know(*nodes))
        sleeper, awake = nodes[2], nodes[:2]
        sleeper.stop(sleeps=sleeps)
        await trio.sleep(seconds)
        assert seconds < 2.0 or all(node.standing(sleeper) in GONE for node in awake)
        sleeper.go_on()
        await within(30.0, lambda: all_know(*nodes))
        await trio.sleep(5.0)
        assert all_know(*nodes)

    play(scenario, tmp_path)


def test_a_request_goes_to_the_peer_that_has_the_model_at_the_pace_of_virtual_time(
    tmp_path: Path, quic_engines: tuple[str, ...]
) -> None:
    async def scenario(mesh: ShellMesh) -> None:
        peer = await mesh.start()
        peer.engines[0]._config = EchoConfig(word_interval_s=2.0)  # type: ignore[attr-defined]
        asker = await mesh.start(join=[peer])
        asker.service._engines = asker.service.dispatcher._engines = ()  # type: ignore[assignment]
        await within(10.0, lambda: all_know(peer, asker))
        began = trio.current_time()
        body = {"model": EchoEngine.kind, "messages": [{"role": "user", "content": "one two three four five"}]}
        async with httpx.AsyncClient(timeout=60.0) as client:
            answer = await client.post(f"{asker.ready.gateway}/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert "five" in answer.json()["choices"][0]["message"]["content"]
        assert 10.0 <= trio.current_time() - began < 11.0

    play(scenario, tmp_path, quic_engines=quic_engines)


async def rest(mesh: ShellMesh, size: int, seconds: float) -> None:
    """Nothing grows in a mesh at rest."""
    nodes = await mesh.start_many(size)
    await within(10.0, lambda: all_know(*nodes))
    await trio.sleep(31.0)  # by then a duplicate connection is closed
    before, tasks_before = [sizes(node) for node in nodes], trio.lowlevel.current_statistics().tasks_living
    await trio.sleep(seconds)
    assert all_know(*nodes)
    for node, earlier in zip(nodes, before, strict=True):
        counts = node.counts()
        assert (counts.connections, counts.streams, counts.dials) == (size - 1, 2 * (size - 1), 0)
        assert counts.waiting_messages <= size
        assert [now <= 2 * then + 16 for now, then in zip(sizes(node), earlier, strict=True)] == [True] * len(earlier)
        faults = [line for line in node.log.getvalue().splitlines() if "error" in line or "crash" in line]
        assert faults == []
    assert trio.lowlevel.current_statistics().tasks_living == tasks_before
    assert mesh.net.overflowed == 0


def sizes(node: ShellNode) -> list[int]:
    """How much stands in everything of the shell and the endpoint that could grow."""
    transport, driver = node.service.transport, node.service.driver
    endpoint = transport.endpoint
    connections = endpoint._connections.values()
    return [
        len(endpoint._timers),
        len(endpoint._routes),
        len(endpoint._farewells),
        sum(len(connection.cids) for connection in connections),
        sum(connection.open_streams for connection in connections),
        len(transport._by_handle),
        len(transport._dial_of),
        len(driver._outboxes),
        len(driver._targets),
        len(driver._unreached),
    ]


def test_nothing_grows_in_a_minute_at_rest(tmp_path: Path) -> None:
    async def scenario(mesh: ShellMesh) -> None:
        await rest(mesh, 2, 29.0)

    play(scenario, tmp_path, quic_engines=MIXED)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_nothing_grows_in_an_hour_at_rest(tmp_path: Path, quic_engines: tuple[str, ...]) -> None:
    async def scenario(mesh: ShellMesh) -> None:
        await rest(mesh, 3, 3600.0)

    play(scenario, tmp_path, quic_engines=quic_engines)
