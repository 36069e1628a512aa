from pathlib import Path

import pytest

from mesh.config import ConfigError
from mesh.testnet.topology import LAP_ENGINES, NODES_MAX, PRESETS, Link, preset, read_topology, topology_from_mapping

TWO = [{"name": "a"}, {"name": "b", "region": "east", "engines": ["onnx:text", "echo"]}]


def build(**more: object):
    return topology_from_mapping({"nodes": TWO, **more})


@pytest.mark.parametrize(("name", "shortest_ms", "longest_ms"), [("metro", 1, 8), ("continents", 10, 250)])
def test_preset_spans_its_distances(name: str, shortest_ms: float, longest_ms: float) -> None:
    mesh = preset(name)
    distances = [mesh.rtt_ms(i, j) for i in range(5) for j in range(i)]
    assert len(mesh.nodes) == 5
    assert min(distances) == pytest.approx(shortest_ms)
    assert max(distances) == pytest.approx(longest_ms)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("count", [1, 3, 12, NODES_MAX])
def test_preset_has_any_number_of_nodes_at_distinct_names(name: str, count: int) -> None:
    mesh = preset(name, count)
    assert len({node.name for node in mesh.nodes}) == count
    assert all(mesh.rtt_ms(i, j) > 0 for i in range(count) for j in range(count) if i != j)
    assert all(mesh.rtt_ms(i, i) == 0 for i in range(count))


def test_nodes_past_the_preset_share_places() -> None:
    mesh = preset("continents", 7)
    assert [node.name for node in mesh.nodes[5:]] == ["frankfurt-2", "paris-2"]
    assert mesh.nodes[5].engines == LAP_ENGINES
    assert mesh.rtt_ms(0, 5) < mesh.rtt_ms(0, 1)
    assert mesh.rtt_ms(5, 2) == mesh.rtt_ms(0, 2)


def test_round_trips_are_halved_into_both_directions() -> None:
    mesh = build(rtt_ms=[[0, 10], [10, 0]], jitter_ms=0.5, loss=0.01)
    assert mesh.links[0][1] == mesh.links[1][0] == Link(0.005, 0.0005, 0.01)
    assert mesh.links[0][0] == Link(0.0)
    assert mesh.nodes[1].region == "east"
    assert mesh.nodes[1].engines == ("onnx:text", "echo")


def test_one_way_delays_may_differ_by_direction() -> None:
    mesh = build(one_way_ms=[[0, 3], [7, 0]])
    assert (mesh.links[0][1].delay_s, mesh.links[1][0].delay_s) == (0.003, 0.007)
    assert mesh.rtt_ms(0, 1) == pytest.approx(10)


def test_positions_give_distances_with_access_links() -> None:
    nodes = [{"name": "a", "position": [0, 0], "access_ms": 1}, {"name": "b", "position": [3, 4]}]
    assert topology_from_mapping({"nodes": nodes}).rtt_ms(0, 1) == pytest.approx(2 * (5 + 1))


def test_links_overrule_single_pairs_in_both_directions() -> None:
    links = [{"between": ["b", "a"], "rtt_ms": 4, "loss": 0.1}]
    mesh = build(rtt_ms=[[0, 10], [10, 0]], jitter_ms=0.5, links=links)
    assert mesh.links[0][1] == mesh.links[1][0] == Link(0.002, 0.0005, 0.1)


def test_engines_can_be_replaced_on_all_nodes() -> None:
    assert {node.engines for node in build().with_engines(["echo"]).nodes} == {("echo",)}


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({}, "nodes"),
        ({"nodes": []}, "nodes"),
        ({"nodes": [{"name": f"n{i}"} for i in range(NODES_MAX + 1)]}, "1 to 64"),
        ({"nodes": [{"name": "a"}, {"name": "a"}]}, r"nodes\[1\]\.name"),
        ({"nodes": [{"name": "../a"}]}, r"nodes\[0\]\.name"),
        ({"nodes": [{"name": "a", "engine": ["echo"]}]}, 'did you mean "engines"'),
        ({"nodes": [{"name": "a", "engines": ["onxx"]}]}, 'did you mean "onnx"'),
        ({"nodes": [{"name": "a", "engines": "echo"}]}, r'give a list such as \["onnx"\]'),
        ({"nodes": ["a"]}, "table of keys"),
        ({"nodes": TWO, "rtt": 3}, 'did you mean "rtt_ms"'),
        ({"nodes": TWO, "rtt_ms": [[0, 1]]}, "2 rows of 2"),
        ({"nodes": TWO, "rtt_ms": [[0, 1], [2, 0]]}, "same from both ends"),
        ({"nodes": TWO, "rtt_ms": [[0, -1], [-1, 0]]}, r"rtt_ms\[0\]\[1\]"),
        ({"nodes": TWO, "one_way_ms": [[0, float("nan")], [1, 0]]}, r"one_way_ms\[0\]\[1\]"),
        ({"nodes": TWO, "loss": 0.95}, "from 0 to 0.9"),
        ({"nodes": TWO, "jitter_ms": True}, "give a number"),
        ({"nodes": TWO, "links": [{"between": ["a", "c"]}]}, "no such node"),
        ({"nodes": TWO, "links": [{"between": ["a", "a"]}]}, "two nodes"),
        ({"nodes": TWO, "links": [{"between": ["a", "b"], "rtt_ms": 1, "one_way_ms": 1}]}, "not both"),
        ({"nodes": [{"name": "a", "position": [0, 0]}, {"name": "b"}]}, r"nodes\[1\]\.position"),
    ],
)
def test_mistake_is_named_with_its_place(mapping: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        topology_from_mapping(mapping)


def test_file_is_read_and_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "sites.toml"
    path.write_text('rtt_ms = [[0, 3], [3, 0]]\n[[nodes]]\nname = "lab"\nengines = ["none"]\n[[nodes]]\nname = "cloud"\n')
    mesh = read_topology(path)
    assert mesh.name == "sites"
    assert [node.name for node in mesh.nodes] == ["lab", "cloud"]
    assert mesh.rtt_ms(0, 1) == pytest.approx(3)


@pytest.mark.parametrize(("text", "said"), [("[[nodes", "not valid TOML"), ('name = "x"', "sites.toml: nodes")])
def test_unusable_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "sites.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_topology(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_topology(tmp_path / "absent.toml")


def test_unknown_preset_and_count_are_refused() -> None:
    with pytest.raises(ConfigError, match='did you mean "metro"'):
        preset("metros")
    with pytest.raises(ConfigError, match="1 to 64"):
        preset("metro", 0)
