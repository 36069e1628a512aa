"""Distances as a person asks for them: the commands, at the gateway of a real node among real nodes."""

import csv
import io
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import trio
from mesh_nodes import MODEL, MeshNode, PlannedEngine, Start, eventually, introduced

from mesh import cli
from protocol.estimate import Source
from protocol.identity import PeerId


def measures(node: MeshNode, *others: PeerId) -> bool:
    """Whether a node has measured the paths to others."""
    views, now = node.service.node.views, node.service.transport.now()
    return all(views.estimate(peer_id, now).source is Source.MEASURED for peer_id in others)


@pytest.mark.parametrize("quic_engines", [("qh3", "aioquic")], ids="-".join, indirect=True)
async def test_distance_near_and_coordinates_of_three_nodes(
    start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")

    async def said(*tokens: str, code: int = 0) -> str:
        """What a command prints."""
        assert await trio.to_thread.run_sync(cli.run, [*tokens, "--gateway", a.ready.gateway]) == code
        output = capsys.readouterr()
        return output.err if code else output.out

    b = await start(PlannedEngine())
    c = await start(join=(b,))
    a = await start(join=(b, c))
    await introduced(a, b, c)
    await eventually(lambda: measures(a, b.peer_id, c.peer_id), 10)

    measured = json.loads(await said("distance", b.name[-8:], "--json"))
    assert (measured["from"], measured["to"], measured["source"]) == (a.name, b.name, "measured")
    assert 0.0 < measured["low_s"] < measured["rtt_s"] < measured["high_s"] < 1.0
    assert measured["loss"] == 0.0
    between = json.loads(await said("distance", b.name, c.name, "--json"))
    assert (between["from"], between["to"], between["source"]) == (b.name, c.name, "coordinate")
    assert 0.0 <= between["low_s"] <= between["rtt_s"] <= between["high_s"]

    near = json.loads(await said("near", "--within", "1s", "--json"))["peers"]
    assert sorted(row["peer_id"] for row in near) == sorted([b.name, c.name])
    assert near == sorted(near, key=lambda row: (row["rtt_s"], row["peer_id"]))
    serving = json.loads(await said("near", "--model", MODEL, "--json"))["peers"]
    assert [row["peer_id"] for row in serving] == [b.name]
    round_b = json.loads(await said("near", b.name, "--limit", "5", "--json"))["peers"]
    assert sorted(row["peer_id"] for row in round_b) == sorted([a.name, c.name])
    table = await said("near", "--within", "1s")
    assert "measured" in table
    assert b.name[-8:] in table

    rows = list(csv.DictReader(io.StringIO(await said("coordinates", "--csv"))))
    assert [row["peer_id"] for row in rows] == [
        row["peer_id"] for row in json.loads(await said("coordinates", "--json"))["coordinates"]
    ]
    assert {a.name, b.name, c.name} == {row["peer_id"] for row in rows}
    assert all(float(row["x8_ms"]) < 1000.0 for row in rows)

    assert "isochrone peers" in await said("distance", "nobody00", code=cli.EXIT_FAILED)
    assert "the unit is missing" in await said("near", "--within", "10", code=cli.EXIT_USAGE)


@pytest.mark.parametrize("quic_engines", [("qh3", "aioquic")], ids="-".join, indirect=True)
async def test_a_map_of_three_nodes(start: Start, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async def said(*tokens: str, code: int = 0) -> str:
        """What a command prints."""
        assert await trio.to_thread.run_sync(cli.run, ["map", *tokens, "--gateway", a.ready.gateway]) == code
        output = capsys.readouterr()
        return output.err if code else output.out

    b = await start(PlannedEngine(), place=(48.1371, 11.5754))
    c = await start(join=(b,))
    a = await start(join=(b, c))
    await introduced(a, b, c)
    await eventually(lambda: measures(a, b.peer_id, c.peer_id), 10)
    told = json.loads(await said("--json"))
    assert {row["peer_id"]: row.get("latitude") for row in told["nodes"]} == {a.name: None, b.name: 48.1, c.name: None}

    drawn, paged, world = tmp_path / "map.svg", tmp_path / "map.html", tmp_path / "world.html"
    assert "3 nodes" in await said("--output", str(drawn), "--scale", "linear")
    nodes = ET.fromstring(drawn.read_text()).findall(".//{http://www.w3.org/2000/svg}g[@data-node]")
    assert len(nodes) == 3
    assert nodes[0].attrib["aria-label"].startswith(f"…{a.name[-8:]} (the node asked)")
    await said("--around", c.name[-8:], "--output", str(paged))
    assert f"Round trips from …{c.name[-8:]}" in paged.read_text()
    assert MODEL in paged.read_text()

    await said("--geographic", "--around", b.name, "--output", str(world))
    assert 'data-node="0"' in world.read_text()
    assert 'data-node="1"' not in world.read_text()
    assert "latitude" in await said("--geographic", "--output", str(world), code=cli.EXIT_FAILED)
    assert "isochrone peers" in await said("--around", "nobody00", "--output", str(world), code=cli.EXIT_FAILED)
    assert "--output" in await said("--output", str(tmp_path / "nowhere" / "map.svg"), code=cli.EXIT_FAILED)
