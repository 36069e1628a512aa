"""The program as its users run it: real processes, started by the command line, with distances between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trio

from mesh.testnet import runner
from mesh.testnet.topology import Topology, topology_from_mapping

ROOT = Path(__file__).parent.parent.parent
SAMPLES, JITTER_S = 16, 0.02  # twice what a path's median is taken over; a quarter of what sets the two paths apart
LOOK_S = 0.05  # between two looks, which would keep a core from the processes
ASKED = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture
def topology() -> Topology:
    """The far node is ten times as far as the near one: no scheduler's noise makes up for that."""
    return topology_from_mapping(
        {
            "nodes": [
                {"name": "home", "engines": ["none"]},
                {"name": "near", "engines": ["echo"]},
                {"name": "far", "engines": ["echo"]},
            ],
            "rtt_ms": [[0, 8, 80], [8, 0, 80], [80, 80, 0]],
        }
    )


async def ask(node: runner.RunningNode) -> httpx.Response:
    async with httpx.AsyncClient(base_url=node.gateway, trust_env=False, timeout=30) as client:
        response = await client.post("/v1/chat/completions", json=ASKED)
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["message"]["content"] == "one two three"
        return response


async def explain(node: runner.RunningNode, response: httpx.Response) -> dict[str, dict[str, object]]:
    """The candidates of an answered request, by peer id."""
    async with httpx.AsyncClient(base_url=node.gateway, trust_env=False, timeout=30) as client:
        report = (await client.get(f"/mesh/explain/{response.headers['x-request-id']}")).raise_for_status().json()
    return {candidate["peer_id"]: candidate for candidate in report["candidates"]}


async def test_nearest_process_answers_and_the_next_takes_over_when_it_is_killed(topology: Topology, tmp_path: Path) -> None:
    async with runner.testnet(topology, folder=tmp_path) as net:
        home, near, far = net.nodes
        await distances_known(net)
        first = await ask(home)
        assert first.headers["x-mesh-node"] == near.peer_id
        candidates = await explain(home, first)
        assert candidates[near.peer_id]["outcome"] == "answered"
        assert candidates[far.peer_id]["qualified"]
        assert not candidates[home.peer_id]["qualified"]
        assert candidates[near.peer_id]["rtt_s"] < candidates[far.peer_id]["rtt_s"]
        assert 'isochrone_peers{state="alive"} 2.0' in await metrics(home)
        await near.kill()
        second = await ask(home)  # on its way before anybody can know
        assert second.headers["x-mesh-node"] == far.peer_id
        assert await near_is_gone(net, home, near)
        third = await ask(home)
        assert third.headers["x-mesh-node"] == far.peer_id
        assert "gone" in str((await explain(home, third))[near.peer_id]["reason"])
        assert await far.terminate() == 0


async def metrics(node: runner.RunningNode) -> str:
    async with httpx.AsyncClient(base_url=node.gateway, trust_env=False, timeout=30) as client:
        return (await client.get("/metrics")).raise_for_status().text


async def distances_known(net: runner.Testnet) -> None:
    """Waits until the first node has measured the others often enough that the bustle of the start no longer shows."""
    while True:
        rows = await net.peers(net.nodes[0])
        if len(rows) == len(net.nodes) - 1 and all(row["samples"] >= SAMPLES and row["jitter_s"] < JITTER_S for row in rows):
            return
        await trio.sleep(LOOK_S)


async def near_is_gone(net: runner.Testnet, home: runner.RunningNode, near: runner.RunningNode) -> bool:
    """Waits until the killed node is out of the routing set."""
    while True:
        rows = {row["peer_id"]: row for row in await net.peers(home)}
        if rows[near.peer_id]["standing"] == "gone":
            return True
        await trio.sleep(LOOK_S)


def test_python_node_py_is_the_same_program() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "node.py"), "version", "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=60)
    assert "isochrone" in json.loads(answer.stdout)
