"""Which nodes a test mesh has and how far apart they are: from a TOML file, a mapping or a named preset.

Distances come as a matrix of round trips (`rtt_ms`), as a matrix of one-way delays (`one_way_ms`, which may differ by
direction), or from
places: each node's `position` on a plane in milliseconds of one-way delay, plus its `access_ms`. `[[links]]` entries then
    overrule single pairs. Every mistake is a `ConfigError` that names the place in the file.

Spec: docs/testnet.md.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

from mesh.config import ConfigError, parse_engine
from mesh.settingvalues import suggestion

NODES_MAX = 64
"""Nodes of one test mesh; each is a process, and the emulator's two addresses per node fit one /24."""
DELAY_MS_MAX = 10_000.0
"""Longest one-way delay in milliseconds: ten times a geostationary satellite's, and packets in flight stay bounded."""
LOSS_MAX = 0.9
"""Highest share of lost packets; above it no handshake ends."""
FILE_BYTES_MAX = 1 << 20
"""Bytes of a topology file; 64 nodes with every pair listed need a third."""
SAME_PLACE_MS = 1.0
"""Round trip in milliseconds between preset nodes that share a place: two data centres of one city."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_TOP_KEYS = ("name", "nodes", "rtt_ms", "one_way_ms", "jitter_ms", "loss", "links")
_NODE_KEYS = ("name", "region", "engines", "position", "access_ms")
_LINK_KEYS = ("between", "rtt_ms", "one_way_ms", "jitter_ms", "loss")


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a path: delay and the standard deviation of its jitter in seconds, and the share of packets lost."""

    delay_s: float
    jitter_s: float = 0.0
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node.

    Attributes:
        name: what it is called; also the name of its folder.
        region: where it pretends to be.
        engines: as `isochrone up --engine` takes them.
    """

    name: str
    region: str = ""
    engines: tuple[str, ...] = ("echo",)


@dataclass(frozen=True, slots=True)
class Topology:
    """A mesh to build: `links[i][j]` leads from node i to node j."""

    name: str
    nodes: tuple[NodeSpec, ...]
    links: tuple[tuple[Link, ...], ...]

    def rtt_ms(self, first: int, second: int) -> float:
        """Return the round trip between two nodes in milliseconds, without jitter."""
        return (self.links[first][second].delay_s + self.links[second][first].delay_s) * 1000

    def with_engines(self, engines: Sequence[str]) -> "Topology":
        """Return the same mesh with these engines on every node."""
        return replace(self, nodes=tuple(replace(node, engines=tuple(engines)) for node in self.nodes))


def read_topology(path: Path) -> Topology:
    """Read a topology file.

    Raises:
        ConfigError: if it cannot be read or says something unusable.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise ConfigError("--topology", str(path), "command line", f"the file is larger than {FILE_BYTES_MAX} bytes")
        mapping = tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError("--topology", str(path), "command line", f"the file cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("--topology", str(path), "command line", f"the file is not valid TOML ({error})") from error
    return topology_from_mapping({"name": path.stem, **mapping}, source=str(path))


def topology_from_mapping(mapping: Mapping[str, object], source: str = "topology") -> Topology:
    """Build a topology from what a file holds.

    Args:
        mapping: the keys of a topology file.
        source: where it stands, for messages.

    Raises:
        ConfigError: if a key is unknown, missing or unusable.
    """
    return _Reader(source).topology(mapping)


def preset(name: str, count: int | None = None) -> Topology:
    """Return a named mesh of `count` nodes; past the preset's own places, further nodes share them in turn.

    Raises:
        ConfigError: if there is no such preset or the number is out of range.
    """
    if name not in PRESETS:
        raise ConfigError("--preset", name, "command line", f"choose one of {', '.join(PRESETS)}{suggestion(name, PRESETS)}")
    places, matrix = PRESETS[name]
    count = len(places) if count is None else count
    if not 1 <= count <= NODES_MAX:
        raise ConfigError("--nodes", count, "command line", f"give a number from 1 to {NODES_MAX}")
    nodes = []
    for index in range(count):
        place, region, engines = places[index % len(places)]
        lap = index // len(places)
        nodes.append(
            {
                "name": f"{place}-{lap + 1}" if lap else place,
                "region": region,
                "engines": list(engines if not lap else LAP_ENGINES),
            }
        )

    def _rtt_ms(first: int, second: int) -> float:
        if first == second:
            return 0.0
        a, b = first % len(places), second % len(places)
        return SAME_PLACE_MS if a == b else float(matrix[a][b])

    return topology_from_mapping(
        {"name": name, "nodes": nodes, "rtt_ms": [[_rtt_ms(i, j) for j in range(count)] for i in range(count)]}
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Checks one mapping; `source` opens every message."""

    source: str

    def topology(self, mapping: Mapping[str, object]) -> Topology:
        """Return the topology of a whole mapping."""
        self._only(mapping, _TOP_KEYS, "")
        raw_nodes = mapping.get("nodes")
        if not isinstance(raw_nodes, list) or not 1 <= len(raw_nodes) <= NODES_MAX:
            raise self._error("nodes", None, f"list 1 to {NODES_MAX} nodes as [[nodes]] tables")
        tables = [self._table(raw, f"nodes[{index}]") for index, raw in enumerate(raw_nodes)]
        nodes = tuple(self._node(table, f"nodes[{index}]") for index, table in enumerate(tables))
        names = [node.name for node in nodes]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise self._error(f"nodes[{index}].name", name, "two nodes have this name; give each its own")
        delays = self._delays(mapping, tables)
        default = Link(
            0.0, self._number(mapping, "jitter_ms", "", DELAY_MS_MAX) / 1000, self._number(mapping, "loss", "", LOSS_MAX)
        )
        links = [
            [Link(0.0) if i == j else replace(default, delay_s=delays[i][j] / 1000) for j in range(len(nodes))]
            for i in range(len(nodes))
        ]
        self._overrule(mapping.get("links", []), names, links)
        return Topology(str(mapping.get("name", "mesh")), nodes, tuple(tuple(row) for row in links))

    def _node(self, table: Mapping[str, object], where: str) -> NodeSpec:
        self._only(table, _NODE_KEYS, f"{where}.")
        name, region, engines = table.get("name"), table.get("region", ""), table.get("engines", ["echo"])
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise self._error(
                f"{where}.name", name, "give a name of 1 to 32 of a-z, 0-9 and '-'; it is also the name of a folder"
            )
        if not isinstance(region, str):
            raise self._error(f"{where}.region", region, "give text in quotes")
        if not isinstance(engines, list) or not all(isinstance(engine, str) for engine in engines):
            raise self._error(f"{where}.engines", engines, 'give a list such as ["onnx"] or ["none"]')
        try:
            return NodeSpec(name, region, tuple(parse_engine(engine) for engine in engines))
        except ValueError as error:
            raise self._error(f"{where}.engines", engines, str(error)) from error

    def _delays(self, mapping: Mapping[str, object], nodes: Sequence[Mapping[str, object]]) -> list[list[float]]:
        """Return one-way delays in milliseconds, from whichever of the three forms is there."""
        count = len(nodes)
        if "rtt_ms" in mapping:
            matrix = self._matrix(mapping["rtt_ms"], "rtt_ms", count)
            for i in range(count):
                for j in range(i):
                    if matrix[i][j] != matrix[j][i]:
                        raise self._error(
                            f"rtt_ms[{i}][{j}]", matrix[i][j], "a round trip is the same from both ends; use one_way_ms else"
                        )
            return [[value / 2 for value in row] for row in matrix]
        if "one_way_ms" in mapping:
            return self._matrix(mapping["one_way_ms"], "one_way_ms", count)
        if any("position" in node for node in nodes):
            return self._from_places(nodes)
        return [[0.0] * count for _ in range(count)]

    def _from_places(self, nodes: Sequence[Mapping[str, object]]) -> list[list[float]]:
        places = []
        for index, node in enumerate(nodes):
            position = node.get("position")
            if (
                not isinstance(position, list)
                or len(position) != 2
                or not all(_is_number(value, DELAY_MS_MAX) for value in position)
            ):
                raise self._error(f"nodes[{index}].position", position, "give [x, y] in milliseconds, at every node or at none")
            places.append(
                (float(position[0]), float(position[1]), self._number(node, "access_ms", f"nodes[{index}].", DELAY_MS_MAX))
            )
        return [
            [0.0 if i == j else math.hypot(a[0] - b[0], a[1] - b[1]) + a[2] + b[2] for j, b in enumerate(places)]
            for i, a in enumerate(places)
        ]

    def _matrix(self, value: object, key: str, count: int) -> list[list[float]]:
        rows = value if isinstance(value, list) else []
        if len(rows) != count or not all(isinstance(row, list) and len(row) == count for row in rows):
            raise self._error(key, None, f"give {count} rows of {count} numbers, in the order of the nodes")
        for i, row in enumerate(rows):
            for j, item in enumerate(row):
                if not _is_number(item, 2 * DELAY_MS_MAX) or item < 0:
                    raise self._error(f"{key}[{i}][{j}]", item, f"give milliseconds from 0 to {2 * DELAY_MS_MAX:g}")
        return [[float(item) for item in row] for row in rows]

    def _overrule(self, raw: object, names: Sequence[str], links: list[list[Link]]) -> None:
        if not isinstance(raw, list):
            raise self._error("links", raw, "write [[links]] tables")
        for index, item in enumerate(raw):
            where = f"links[{index}]"
            table = self._table(item, where)
            self._only(table, _LINK_KEYS, f"{where}.")
            between = table.get("between")
            if not isinstance(between, list) or len(between) != 2 or between[0] == between[1]:
                raise self._error(f"{where}.between", between, "name two nodes")
            for name in between:
                if name not in names:
                    raise self._error(f"{where}.between", name, f"there is no such node{suggestion(str(name), names)}")
            if "rtt_ms" in table and "one_way_ms" in table:
                raise self._error(where, None, "give rtt_ms or one_way_ms, not both")
            first, second = names.index(between[0]), names.index(between[1])
            for a, b in ((first, second), (second, first)):
                old = links[a][b]
                one_way_ms = self._number(table, "one_way_ms", f"{where}.", DELAY_MS_MAX, old.delay_s * 1000)
                rtt_ms = self._number(table, "rtt_ms", f"{where}.", 2 * DELAY_MS_MAX, one_way_ms * 2)
                links[a][b] = Link(
                    rtt_ms / 2000,
                    self._number(table, "jitter_ms", f"{where}.", DELAY_MS_MAX, old.jitter_s * 1000) / 1000,
                    self._number(table, "loss", f"{where}.", LOSS_MAX, old.loss),
                )

    def _number(self, table: Mapping[str, object], key: str, where: str, maximum: float, default: float = 0.0) -> float:
        value = table.get(key, default)
        if not _is_number(value, maximum) or value < 0:
            raise self._error(f"{where}{key}", value, f"give a number from 0 to {maximum:g}")
        return float(value)

    def _table(self, value: object, where: str) -> Mapping[str, object]:
        if not isinstance(value, Mapping):
            raise self._error(where, value, "write a table of keys")
        return value

    def _only(self, table: Mapping[str, object], known: Sequence[str], where: str) -> None:
        for key in table:
            if key not in known:
                raise self._error(
                    f"{where}{key}", table[key], f"there is no such key{suggestion(key, known)}; known are {', '.join(known)}"
                )

    def _error(self, key: str, value: object, advice: str) -> ConfigError:
        return ConfigError(key, value, self.source, advice)


def _is_number(value: object, maximum: float) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= maximum


LAP_ENGINES = ("onnx:text",)
"""Engines of nodes past a preset's own: the text model is a few megabytes, so that many fit one machine."""

PRESETS: Mapping[str, tuple[Sequence[tuple[str, str, Sequence[str]]], Sequence[Sequence[float]]]] = {
    "metro": (
        (
            ("home", "your machine", ("none",)),
            ("north", "same city", ("onnx:text",)),
            ("harbour", "same city", ("onnx:embeddings",)),
            ("airport", "outskirts", ("onnx:text", "onnx:embeddings")),
            ("valley", "next town", ("onnx:text",)),
        ),
        ((0, 1, 2, 4, 8), (1, 0, 1.5, 4.5, 7.5), (2, 1.5, 0, 3, 7), (4, 4.5, 3, 0, 5), (8, 7.5, 7, 5, 0)),
    ),
    "continents": (
        (
            ("frankfurt", "Europe", ("none",)),
            ("paris", "Europe", ("onnx:text",)),
            ("virginia", "North America", ("onnx:text", "onnx:embeddings")),
            ("singapore", "Asia", ("onnx:embeddings",)),
            ("sydney", "Australia", ("onnx:text",)),
        ),
        ((0, 10, 90, 160, 250), (10, 0, 82, 165, 248), (90, 82, 0, 220, 205), (160, 165, 220, 0, 92), (250, 248, 205, 92, 0)),
    ),
}
"""Round trips in milliseconds; the continents' are those that cloud providers publish between such regions, rounded."""
