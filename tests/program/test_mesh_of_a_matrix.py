"""Processes as far apart as a matrix says know it, and ask the nearest that serves what they want.

The larger run, beside the simulator, is `python -m benchmarks mesh_distances`.
"""

from pathlib import Path

import httpx
import trio

from mesh.testnet import runner
from mesh.testnet.command import Wish, choose_topology
from mesh.testnet.topology import Topology

RTT_MS = "a,b,rtt_ms\nGhent,Lyon,40\nGhent,Oslo,90\nGhent,Rome,200\nLyon,Oslo,100\nLyon,Rome,45\nOslo,Rome,180\n"
ENGINES = {"ghent": "none", "lyon": "none", "oslo": "echo", "rome": "echo"}
WITHIN = 0.25  # of the emulated round trip: ten milliseconds of the shortest, and half of what sets the two apart for each asker
LOOK_S = 0.05  # between two looks, which would keep a core from the processes
ASKED = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}


def topology(folder: Path) -> Topology:
    path = folder / "rtt.csv"
    path.write_text(RTT_MS)
    made = choose_topology(Wish(matrix=path))
    nodes = tuple(runner.NodeSpec(node.name, node.region, (ENGINES[node.name],)) for node in made.nodes)
    return Topology(made.name, nodes, made.links)


async def known(net: runner.Testnet, place: int) -> dict[str, tuple[float, str]]:
    """What a node says of its distances to the others: in milliseconds, and what that rests on."""
    async with httpx.AsyncClient(base_url=net.nodes[place].gateway, trust_env=False, timeout=30) as client:
        rows = (await client.get("/mesh/near")).raise_for_status().json()["peers"]
    return {row["peer_id"]: (1e3 * row["rtt_s"], row["source"]) for row in rows}


async def distances_known(net: runner.Testnet) -> None:
    """Waits until every node has measured every other, and the middle of what it measured is what is emulated."""
    for place in range(len(net.nodes)):
        while True:
            found = await known(net, place)
            if all(
                node.peer_id in found
                and found[node.peer_id][1] == "measured"
                and abs(found[node.peer_id][0] / net.topology.rtt_ms(place, other) - 1.0) < WITHIN
                for other, node in enumerate(net.nodes)
                if other != place
            ):
                break
            await trio.sleep(LOOK_S)


async def test_processes_of_a_matrix_know_it_and_ask_the_nearest_that_is_qualified(tmp_path: Path) -> None:
    async with runner.testnet(topology(tmp_path), folder=tmp_path / "nodes") as net:
        await distances_known(net)
        for asker, nearest in (("ghent", "oslo"), ("lyon", "rome")):
            async with httpx.AsyncClient(base_url=net.node(asker).gateway, trust_env=False, timeout=30) as client:
                answer = (await client.post("/v1/chat/completions", json=ASKED)).raise_for_status()
            assert answer.headers["x-mesh-node"] == net.node(nearest).peer_id
