"""What `isochrone simulate` is asked: sites, the paths between them, their engines, their load, and what goes wrong.

A plan comes from a TOML file. Every mistake in it is a `SitesError` that names the place, the value and what to do; an unknown
key is refused with the known one nearest to it, for a misspelt `requests_per_s` would otherwise simulate another mesh.

Source: docs/simulate.md.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sim.engines import TOKENS_MAX, EngineConfig
from sim.network import LAN_ONE_WAY_S, REGION_RTT_MS

FILE_BYTES_MAX = 1 << 20
"""Bytes of a file; a thousand sites without a matrix need a tenth."""

SITES_MAX = 256
"""Sites of one plan, a count: their matrix still fits a file that a person can read."""

NODES_MAX = 2000
"""Nodes of one plan, a count: what one core simulates in hours at most."""

RTT_MS_MAX = 20_000.0
"""Longest round trip in ms: far beyond two geostationary satellites."""

RATE_MAX = 10_000.0
"""Most requests per second of one entry, and most tokens per second of one answer: beyond it a figure is a slip of the pen."""

SECONDS_MAX = 3600.0
"""Longest deadline in seconds, as on the wire, and latest failure."""

SLOTS_MAX = 4096
"""Most slots and most places in the queue of one node, a count: engines of today batch some hundreds."""

JITTER_MS_DEFAULT = 0.1
"""Mean jitter of a site's line in ms: a quiet fibre."""

REGIONS = ("north-america-east", "north-america-west", "south-america", "europe", "east-asia", "oceania")
"""The places of `sim.network.REGION_RTT_MS`, in its order."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_TOP_KEYS = ("name", "rtt_ms", "sites", "links", "load", "failures")
_SITE_KEYS = ("name", "nodes", "region", "access_ms", "jitter_ms", "loss", "models")
_MODEL_KEYS = ("name", "slots", "waiting_max", "first_token_ms", "tokens_per_s", "spread")
_LINK_KEYS = ("between", "rtt_ms")
_LOAD_KEYS = ("site", "model", "requests_per_s", "tokens", "max_tokens", "deadline_s", "stream")
_FAILURE_KEYS = ("what", "site", "node", "from_s", "to_s")


class SitesError(ValueError):
    """A plan that cannot be used; the text says where, what and what to do."""


class What(StrEnum):
    """What goes wrong."""

    CUT = "cut"
    DOWN = "down"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Site:
    """One site.

    Attributes:
        name: what it is called; its nodes are `name`-1 and so on.
        nodes: how many.
        models: what each of them serves.
        access_s: what its line adds to every round trip that leaves it.
        jitter_s: mean jitter of its line per packet.
        loss: share of packets that its line loses.
    """

    name: str
    nodes: int
    models: tuple[EngineConfig, ...]
    access_s: float
    jitter_s: float
    loss: float


@dataclass(frozen=True, slots=True)
class Load:
    """Who asks what, and how often; `tokens` is the mean length of an answer, `max_tokens` what callers ask for at most, or 0."""

    site: int
    model: str
    requests_per_s: float
    tokens: float
    max_tokens: int
    deadline_s: float
    stream: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """What goes wrong with which nodes, from when to when in seconds of load; `to_s` is None where it stays so."""

    what: What
    name: str
    nodes: tuple[int, ...]
    from_s: float
    to_s: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a simulation is asked; `rtt_s[i][j]` is the round trip between sites, their lines included."""

    name: str
    sites: tuple[Site, ...]
    rtt_s: tuple[tuple[float, ...], ...]
    loads: tuple[Load, ...]
    failures: tuple[Failure, ...]

    @property
    def site_of(self) -> tuple[int, ...]:
        """The site of every node."""
        return tuple(index for index, site in enumerate(self.sites) for _ in range(site.nodes))

    @property
    def node_names(self) -> tuple[str, ...]:
        """The name of every node."""
        return tuple(f"{site.name}-{number}" for site in self.sites for number in range(1, site.nodes + 1))


@dataclass(frozen=True, slots=True)
class SiteDelays:
    """One-way delays between the nodes of a plan."""

    site_of: tuple[int, ...]
    rtt_s: tuple[tuple[float, ...], ...]

    def one_way_s(self, one: int, other: int) -> float:
        """See `sim.network.Delays`."""
        site, other_site = self.site_of[one], self.site_of[other]
        return LAN_ONE_WAY_S if site == other_site else max(LAN_ONE_WAY_S, self.rtt_s[site][other_site] / 2.0)


def read_plan(path: Path) -> Plan:
    """Reads a plan from a TOML file.

    Raises:
        SitesError: if it cannot be read or says something unusable.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise SitesError(f"{path}: the file is larger than {FILE_BYTES_MAX} bytes")
        mapping = tomllib.loads(content.decode())
    except OSError as error:
        raise SitesError(f"{path}: the file cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SitesError(f"{path}: the file is not valid TOML ({error})") from error
    return plan_of({"name": path.stem, **mapping}, str(path))


def plan_of(mapping: Mapping[str, object], source: str = "plan") -> Plan:
    """Makes a plan of what a file holds.

    Args:
        mapping: the keys of the file.
        source: where it stands, for messages.

    Raises:
        SitesError: if a key is unknown, missing or unusable.
    """
    return _Reader(source).plan(_Table(source, "", mapping))


@dataclass(frozen=True, slots=True)
class _Table:
    """One table of the file; `where` is its place, such as "sites[2].", and `source` opens every message."""

    source: str
    where: str
    keys: Mapping[str, object]

    def only(self, known: Sequence[str]) -> None:
        """Refuses keys that are not known."""
        for key, value in self.keys.items():
            if key not in known:
                raise self.error(key, value, f"there is no such key{_suggestion(key, known)}; known are {', '.join(known)}")

    def error(self, key: str, value: object, advice: str) -> SitesError:
        """What is wrong with a key."""
        shown = "" if value is None else f" = {value!r}"
        return SitesError(f"{self.source}: {self.where}{key}{shown}: {advice}")

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number within bounds; required where there is no default."""
        value = self.keys.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, value, f"give a number from {low:g} to {high:g}")
        return float(value)

    def count(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number within bounds."""
        value = self.keys.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, value, f"give a whole number from {low} to {high}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text that is not empty."""
        value = self.keys.get(key, default)
        if not isinstance(value, str) or not value:
            raise self.error(key, value, "give text in quotes")
        return value

    def name(self, key: str) -> str:
        """A name that can stand in a table and in a file name."""
        value = self.text(key)
        if not _NAME.fullmatch(value):
            raise self.error(key, value, "give a name of 1 to 32 of a-z, 0-9 and '-'")
        return value

    def one_of(self, key: str, known: Sequence[str]) -> str:
        """One of the known words."""
        value = self.text(key)
        if value not in known:
            raise self.error(key, value, f"there is none of that name{_suggestion(value, known)}; known are {', '.join(known)}")
        return value

    def tables(self, key: str) -> "list[_Table]":
        """A list of tables, empty where the key is missing."""
        value = self.keys.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(key, value, f"write [[{key}]] tables")
        return [_Table(self.source, f"{self.where}{key}[{index}].", item) for index, item in enumerate(value)]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the parts of a plan."""

    source: str

    def plan(self, top: _Table) -> Plan:
        """The whole plan."""
        top.only(_TOP_KEYS)
        tables = top.tables("sites")
        if not 1 <= len(tables) <= SITES_MAX:
            raise top.error("sites", None, f"list 1 to {SITES_MAX} sites as [[sites]] tables")
        sites = tuple(self.site(table) for table in tables)
        names = [site.name for site in sites]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise tables[index].error("name", name, "two sites have this name; give each its own")
        if sum(site.nodes for site in sites) > NODES_MAX:
            raise top.error("sites", None, f"all sites together have more than {NODES_MAX} nodes")
        rtt_s = self.distances(top, tables, sites)
        models = sorted({model.model for site in sites for model in site.models})
        loads = tuple(self.load(table, names, models) for table in top.tables("load"))
        if not loads:
            raise top.error("load", None, "say who asks what in [[load]] tables")
        plan = Plan(top.text("name", "sites"), sites, rtt_s, loads, ())
        failures = tuple(self.failure(table, plan) for table in top.tables("failures"))
        return Plan(plan.name, sites, rtt_s, loads, failures)

    def site(self, table: _Table) -> Site:
        """One site."""
        table.only(_SITE_KEYS)
        models = tuple(self.model(model) for model in table.tables("models"))
        if len({model.model for model in models}) < len(models):
            raise table.error("models", None, "two models of the site have one name; give the slots of both together")
        return Site(
            name=table.name("name"),
            nodes=table.count("nodes", 1, NODES_MAX, 1),
            models=models,
            access_s=table.number("access_ms", 0.0, RTT_MS_MAX, 0.0) / 1000.0,
            jitter_s=table.number("jitter_ms", 0.0, RTT_MS_MAX, JITTER_MS_DEFAULT) / 1000.0,
            loss=table.number("loss", 0.0, 0.5, 0.0),
        )

    def model(self, table: _Table) -> EngineConfig:
        """One model of a site."""
        table.only(_MODEL_KEYS)
        return EngineConfig(
            model=table.text("name"),
            slots=table.count("slots", 1, SLOTS_MAX, 2),
            waiting_max=table.count("waiting_max", 0, SLOTS_MAX, 64),
            first_token_s=table.number("first_token_ms", 0.01, 1000.0 * SECONDS_MAX) / 1000.0,
            tokens_per_s=table.number("tokens_per_s", 0.01, RATE_MAX),
            spread=table.number("spread", 0.0, 2.0, 0.1),
        )

    def distances(self, top: _Table, tables: Sequence[_Table], sites: Sequence[Site]) -> tuple[tuple[float, ...], ...]:
        """Round trips between sites in seconds, from the matrix or the regions, overruled by links, with the lines added."""
        names, count = [site.name for site in sites], len(sites)
        rtt_ms = self.matrix(top, count) if "rtt_ms" in top.keys else self.from_regions(tables)
        for link in top.tables("links"):
            link.only(_LINK_KEYS)
            between = link.keys.get("between")
            if not isinstance(between, list) or len(between) != 2 or between[0] == between[1]:
                raise link.error("between", between, "name two sites")
            for name in between:
                if name not in names:
                    raise link.error("between", name, f"there is no such site{_suggestion(str(name), names)}")
            one, other = names.index(between[0]), names.index(between[1])
            rtt_ms[one][other] = rtt_ms[other][one] = link.number("rtt_ms", 0.0, RTT_MS_MAX)
        rows = []
        for one, row in enumerate(rtt_ms):
            for other, value in enumerate(row):
                if value is None and one != other:
                    message = "say how far apart they are: by rtt_ms, by a region for both, or by [[links]]"
                    raise top.error(f"the sites {names[one]} and {names[other]}", None, message)
            lines = [sites[one].access_s + site.access_s for site in sites]
            rows.append(tuple((value or 0.0) / 1000.0 + line for value, line in zip(row, lines, strict=True)))
        return tuple(rows)

    def matrix(self, top: _Table, count: int) -> list[list[float | None]]:
        """The matrix of the file."""
        value = top.keys["rtt_ms"]
        rows = value if isinstance(value, list) else []
        if len(rows) != count or not all(isinstance(row, list) and len(row) == count for row in rows):
            raise top.error("rtt_ms", None, f"give {count} rows of {count} numbers, in the order of the sites")
        for one, row in enumerate(rows):
            cells = _Table(self.source, "", {f"rtt_ms[{one}][{other}]": cell for other, cell in enumerate(row)})
            for other in range(count):
                if cells.number(f"rtt_ms[{one}][{other}]", 0.0, RTT_MS_MAX) != rows[other][one]:
                    raise cells.error(f"rtt_ms[{one}][{other}]", row[other], "a round trip is the same from both ends")
        return [[float(cell) for cell in row] for row in rows]

    def from_regions(self, tables: Sequence[_Table]) -> list[list[float | None]]:
        """Round trips between the regions of the sites; None where a site has none."""
        regions = [REGIONS.index(table.one_of("region", REGIONS)) if "region" in table.keys else None for table in tables]
        return [
            [None if one is None or other is None else float(REGION_RTT_MS[one][other]) for other in regions] for one in regions
        ]

    def load(self, table: _Table, names: Sequence[str], models: Sequence[str]) -> Load:
        """Who asks what."""
        table.only(_LOAD_KEYS)
        stream = table.keys.get("stream", True)
        if not isinstance(stream, bool):
            raise table.error("stream", stream, "give true or false")
        return Load(
            site=names.index(table.one_of("site", names)),
            model=table.one_of("model", models),
            requests_per_s=table.number("requests_per_s", 0.001, RATE_MAX),
            tokens=table.number("tokens", 1.0, TOKENS_MAX / 4),
            max_tokens=table.count("max_tokens", 0, TOKENS_MAX, 0),
            deadline_s=table.number("deadline_s", 0.01, SECONDS_MAX, 30.0),
            stream=stream,
        )

    def failure(self, table: _Table, plan: Plan) -> Failure:
        """One thing that goes wrong."""
        table.only(_FAILURE_KEYS)
        what = What(table.one_of("what", [str(what) for what in What]))
        if ("site" in table.keys) == ("node" in table.keys):
            raise table.error("site", None, "name a site or a node")
        if "node" in table.keys:
            name = table.one_of("node", plan.node_names)
            nodes: Iterable[int] = (plan.node_names.index(name),)
        else:
            name = table.one_of("site", [site.name for site in plan.sites])
            nodes = (index for index, site in enumerate(plan.site_of) if plan.sites[site].name == name)
        from_s = table.number("from_s", 0.0, SECONDS_MAX)
        to_s = table.number("to_s", 0.0, SECONDS_MAX) if "to_s" in table.keys else None
        if to_s is not None and to_s <= from_s:
            raise table.error("to_s", to_s, f"give a time after from_s, which is {from_s:g}")
        return Failure(what, name, tuple(nodes), from_s, to_s)


def _suggestion(word: str, known: Sequence[str]) -> str:
    """` (did you mean "…"?)` for the known word nearest to `word`, or an empty string."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f' (did you mean "{near[0]}"?)' if near else ""
