"""Programs that join the mesh as light nodes: both faces, open and private networks, cancelled, refused."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import trio
from mesh_nodes import MESSAGES, MODEL, WORDS, Plan, PlannedEngine, Start, eventually, say_and_hang

from benchmarks.node_process import NodeProcess
from mesh import client
from mesh.admission.entering import enter
from mesh.engines.echo import EchoEngine
from protocol.identity import Identity


def told(x, mesh) -> list[object]:
    answer = mesh.infer("echo", {"x": x})
    return [answer["x"].tolist(), answer.route().node, answer.route().hops, list(mesh.generate(MODEL, MESSAGES))]


@pytest.mark.parametrize("quic_engines", [("qh3",), ("aioquic",)], ids="-".join, indirect=True)
async def test_a_light_node_asks_and_is_not_asked(start: Start) -> None:
    a = await start(EchoEngine(), PlannedEngine(Plan(say_and_hang)), fabric="none")  # a fabric holds more than a message
    x = np.arange(5000.0)
    async with client.connect([str(a.address)], network="test") as mesh:
        text = mesh.generate(MODEL, MESSAGES)
        assert await anext(text) == WORDS[0]
        await text.aclose()
        await eventually(lambda: a.engines[1].n_running == 0)
        answer = await mesh.infer("echo", {"x": x})
        assert np.array_equal(answer["x"], x)
        route = await answer.route()
        assert (route.node, route.hops) == (a.name, 1)
        with pytest.raises(client.RequestError, match="serves the model 'nobody'"):
            await mesh.infer("nobody", {"x": x})
        with pytest.raises(client.BadInputError):
            await mesh.infer("echo", {"x": np.zeros(9 << 20, "u1")})
        me = (await mesh.status())["peer_id"]
        row = next(row for row in a.service.dispatcher.peers() if row["peer_id"] == me)
        assert (row["models"], row["addresses"], row["agent"]) == ([], [], "isochrone-client")
        assert row["hardware"]["cpu"] == ""

    def plain() -> list[object]:
        with client.sync.connect([str(a.address)], network="test") as mesh:
            return told(x, mesh)

    assert await trio.to_thread.run_sync(plain) == [x.tolist(), a.name, 1, list(WORDS)]
    await eventually(lambda: not a.service.transport.connections)


def test_a_light_node_of_a_private_network_shows_its_certificate(tmp_path: Path) -> None:
    network = tmp_path / "network"
    with NodeProcess("--engine", "echo", "--network-dir", str(network), is_open=False) as node:
        with client.sync.connect([node.address], network_dir=network) as mesh:
            answer = mesh.infer("echo", {"x": np.ones(3)})
            assert answer.route().node == node.peer_id
        with pytest.raises(client.NotConnectedError, match="isochrone join TOKEN"):
            client.sync.connect([node.address], network_dir=tmp_path / "nowhere").__enter__()


async def test_nobody_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.native.light.JOIN_S_MAX", 0.5)
    with pytest.raises(client.NotConnectedError, match="nobody lets this program in"):
        async with client.connect(["/ip4/127.0.0.1/udp/9/quic-v1"], network="test"):
            pass
    with pytest.raises(client.BadInputError, match="is no address"):
        async with client.connect(["nonsense"], network="test"):
            pass


async def test_a_member_of_another_network_is_not_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.native.light.JOIN_S_MAX", 2.0)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with NodeProcess("--engine", "echo", "--network-dir", str(ours), is_open=False) as node:
        (tmp_path / "state").mkdir()
        enter(tmp_path / "state", theirs, Identity.from_seed(bytes([8]) * 32), time.time(), os.urandom)
        with pytest.raises(client.NotConnectedError, match="is it a member of their network"):
            async with client.connect([node.address], network_dir=theirs):
                pass
