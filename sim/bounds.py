"""How much a core keeps, and how much it may keep.

A generic walk finds every container of every machine: through the attributes of the core's own classes, through dicts, lists and
deques, and not into values that cannot change. Each has a path such as `gossip._peers.*.news`. A limit is looked up by path in
`LIMITS`, which is the one place where private names of the core stand; what has no entry there must stay within the largest count
of any bound of the configuration, so that a container nobody thought of is found all the same.

Source: invariants I6 and I9 of docs/simulation.md.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache

from protocol.distances.chart import ROWS_MIN
from protocol.node import Node, NodeConfig
from protocol.node.survey import VISITS
from protocol.records import RecordKind
from protocol.records.packing import DECODED_MAX, SERVINGS_MAX
from protocol.table import BUCKETS, COMPARED
from protocol.timers import TimerQueue

DEPTH_MAX = 6
"""How deep the walk goes, a count: node, machine, container, entry, its container, and one to spare."""

UNSENT_MAX = 4096
"""What an undrained queue of outputs may hold after a call, a count: the facts and messages of one whole table."""

TIMER_SLACK = 64
"""Outdated entries that a timer queue may hold beside twice the living, as its docstring says, a count."""

SEEN_ELSEWHERE = ("_config", "config", "_gossip", "_table", "_membership", "_probe", "_views", "_scores", "_chart")
"""Attributes by which one machine refers to another, which is looked at where it stands in the core."""

LIMITS: dict[str, Callable[[NodeConfig], int]] = {
    "table._rows.packed": lambda config: (config.table.peers_max + 1) * len(RecordKind),
    "table._rows.peers": lambda config: (config.table.peers_max + 1) * len(RecordKind),
    "table._rows.servings": lambda config: (config.table.peers_max + 1) * len(RecordKind),
    "table._packer._decoded": lambda _config: DECODED_MAX,
    "table._packer._servings": lambda _config: SERVINGS_MAX,
    "table._heard": lambda config: config.table.peers_max + 1,
    "table._tombstones": lambda config: config.table.tombstones_max,
    "table._hashes": lambda _config: BUCKETS,
    "gossip._peers": lambda config: config.gossip.peers_max,
    "gossip._order": lambda config: config.gossip.peers_max,
    "gossip._wants._asked": lambda config: config.gossip.wants_max * config.gossip.peers_max,
    "gossip._wants._under_way": lambda config: config.gossip.peers_max,
    "gossip._refused._hashes": lambda config: config.gossip.refused_max,
    "gossip._spreading._news": lambda config: config.gossip.history_max,
    "gossip._spreading.renewals._items": lambda config: (config.table.peers_max + 1) * len(COMPARED),
    "gossip._peers.*.has": lambda config: config.gossip.history_max,
    "gossip._peers.*.view._seen": lambda _config: BUCKETS,
    "gossip._peers.*.view._hashes": lambda _config: BUCKETS,
    "gossip.overlay._far": lambda config: config.gossip.peers_max,
    "gossip.overlay._backoff": lambda config: config.gossip.peers_max,
    "gossip.overlay._refusing": lambda config: config.gossip.peers_max,
    "gossip.overlay._silent": lambda config: config.gossip.peers_max,
    "gossip.overlay._told_no": lambda config: config.gossip.peers_max,
    "gossip.overlay._dialled": lambda config: config.gossip.peers_max,
    "gossip.overlay._kept": lambda config: config.gossip.peers_max,
    "gossip.overlay._keeping": lambda config: config.gossip.peers_max,
    "gossip.scores._peers": lambda config: config.gossip.peers_max,
    "gossip.scores._faulty": lambda config: config.gossip.peers_max,
    "gossip.scores._origins": lambda config: config.gossip.peers_max,
    "gossip.scores._gone": lambda config: config.gossip.scores.retained_max,
    "gossip._spreading.audits._due": lambda config: config.gossip.audits.pending_max,
    "gossip._spreading.audits._held": lambda config: config.gossip.audits.pending_max + config.gossip.degree_max,
    "gossip.overlay.members": lambda config: config.gossip.degree_max + 1 + config.gossip.displaced_max,
    "membership._peers._entries": lambda config: config.membership.peers_max,
    "membership._under_way": lambda config: config.membership.dials_max,
    "membership._waiting": lambda config: config.membership.peers_max + config.membership.bootstrap_max,
    "membership._unproven": lambda config: config.membership.peers_max + config.membership.bootstrap_max,
    "membership._failures": lambda config: config.membership.peers_max + config.membership.bootstrap_max,
    "membership._connected": lambda config: config.membership.open_max,
    "membership._declining": lambda config: config.membership.peers_max,
    "membership._bootstrap": lambda config: config.membership.bootstrap_max,
    "eligible._chosen": lambda config: config.eligible.models_max,
    "probe._remembered": lambda config: config.probe.remembered_max,
    "probe._peers": lambda config: config.probe.peers_max,
    "probe._peers.*.path.sent": lambda config: config.probe.window_probes,
    "probe._peers.*.path.probed": lambda config: config.probe.window_probes,
    "probe._peers.*.path.offered": lambda config: config.probe.offered_max,
    "suspicion._named": lambda config: config.suspicion.accusers_max,
    "suspicion._accusers": lambda config: config.suspicion.accusers_max * config.suspicion.subjects_max,
    "suspicion._accusers.*": lambda config: config.suspicion.accusers_max,
    "suspicion._credits": lambda config: config.suspicion.accusers_max,
    "suspicion._doubted": lambda config: config.suspicion.accusers_max * config.suspicion.subjects_max,
    "suspicion._mine": lambda config: config.suspicion.subjects_max,
    "strangers._worth": lambda config: config.strangers.pubsub.peers_max,
    "strangers.router._peers": lambda config: config.strangers.pubsub.peers_max,
    "strangers.router._meshes": lambda _config: 1,
    "strangers.router._fanout": lambda _config: 1,
    "strangers.router.scores._peers": lambda config: config.strangers.pubsub.score.retained_max,
    "_beats": lambda config: config.gossip.peers_max,
    "survey.distances.chart._rows": lambda config: config.distances.peers_max,
    "survey.distances.chart._peers": lambda config: max(config.distances.peers_max, ROWS_MIN),
    "survey.distances.chart._free": lambda config: max(config.distances.peers_max, ROWS_MIN),
    "survey._visits": lambda _config: VISITS,
    "survey.distances._paths": lambda config: config.distances.measured_max,
    "relays._edges": lambda config: config.relays.edges_max,
    "telling.pace._told": lambda config: config.announcer.edges_max,
    "telling.pace._answered": lambda config: 4 * config.announcer.edges_max,
    "telling.ring._keys": lambda config: config.table.peers_max,
    "telling.store._slots": lambda config: config.edges.peers_max,
    "telling.store._rows": lambda config: config.edges.peers_max,
    "telling.store._free": lambda config: config.edges.peers_max,
    "telling.store._owners": lambda config: config.edges.peers_max,
    "telling.store._origins": lambda config: config.edges.peers_max,
    "telling.store._changed": lambda config: 2 * config.edges.peers_max,
    "relays._failed": lambda config: config.relays.failed_max,
    "relays._unreached": lambda config: config.relays.failed_max,
    "searches._waiting": lambda config: config.searches.waiting_max,
    "forwarding._seen": lambda config: config.forwarding.seen_max,
}
"""Limits by path; `*` stands for every key."""


def containers(node: Node) -> Iterator[tuple[str, int]]:
    """Every container that a core keeps, as path and size; a path with a `*` comes once for each key."""
    for name, value in variables(node).items():
        if name not in ("config", "conduct"):
            yield from _walk(name, value, 1)


def limit_of(path: str, config: NodeConfig) -> int:
    """How many elements the container at a path may hold."""
    known = LIMITS.get(path)
    if known is not None:
        return known(config)
    return UNSENT_MAX if path.endswith("_outputs") else _largest_count(config)


def excess(node: Node, config: NodeConfig) -> str | None:
    """What a core keeps too much of, as a text, or None."""
    limits: dict[str, int] = {}
    for path, size in containers(node):
        limit = limits.get(path)
        if limit is None:
            limit = limits[path] = limit_of(path, config)
        if size > limit:
            return f"{size} in {path}, {limit} at most"
    return None


def _walk(path: str, value: object, depth: int) -> Iterator[tuple[str, int]]:
    if isinstance(value, TimerQueue):
        yield path, len(value)
        yield f"{path}._heap", max(0, len(value._heap) - 2 * len(value) - TIMER_SLACK)
        return
    if isinstance(value, dict):
        yield path, len(value)
        children = [(f"{path}.*", child) for child in value.values()]
    elif isinstance(value, (list, deque, set)):
        yield path, len(value)
        children = [(f"{path}.*", child) for child in value]
    else:
        children = [(f"{path}.{name}", child) for name, child in _attributes(value)]
    if depth < DEPTH_MAX:
        for child_path, child in children:
            if not isinstance(child, (int, float, bytes, str, tuple, frozenset, Enum, type(None))):
                yield from _walk(child_path, child, depth + 1)


def _attributes(value: object) -> list[tuple[str, object]]:
    """The attributes of an object of the core's that can change."""
    kind = type(value)
    if not kind.__module__.startswith("protocol."):
        return []
    if is_dataclass(kind):
        frozen: bool = kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        return [] if frozen else [(entry.name, getattr(value, entry.name)) for entry in fields(kind)]
    return [(name, child) for name, child in variables(value).items() if name not in SEEN_ELSEWHERE]


def variables(value: object) -> dict[str, object]:
    """What an object holds by name; a compiled class tells the names, having no `__dict__`."""
    names: tuple[str, ...] = getattr(type(value), "__mypyc_attrs__", ())
    compiled = {name: getattr(value, name) for name in names if name != "__dict__" and hasattr(value, name)}
    return {**compiled, **getattr(value, "__dict__", {})}


@lru_cache(maxsize=64)
def _largest_count(config: object) -> int:
    """The largest `*_max` that counts things, in a configuration and those inside it."""
    largest = 0
    for entry in fields(config):  # type: ignore[arg-type]
        value = getattr(config, entry.name)
        if is_dataclass(value):
            largest = max(largest, _largest_count(value))  # type: ignore[arg-type] # mypy takes it for unhashable
        elif isinstance(value, int) and entry.name.endswith("_max") and "bytes" not in entry.name:
            largest = max(largest, value)
    return largest
