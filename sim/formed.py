"""A mesh that has been running for a while, without waiting for it to form.

Forming a mesh of N nodes costs N² cards to carry and verify, which is most of the work of a short run and not what such a run
asks about. Here every process starts at its own moment within half a card's lifetime, so that renewals are spread as they are in
a mesh that grew over days; the places are found beforehand by the coordinate machine itself from the true round trips; the cards
are laid into all tables as verified records; and the links are opened as if dials had just succeeded. From then on everything is
the core's own doing. The records are shared by all tables, so memory is to be measured elsewhere. In a mesh of which no node
holds all (`protocol.gossip.horizon`) each is given its scope and the cards of its region only (`sim.regions`).

Source: Dabek et al., "Vivaldi" (SIGCOMM 2004) for the number of samples after which places are good.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.coordinates import Vivaldi
from protocol.encoding import Luck
from protocol.identity import Identity
from protocol.node import Node, NodeConfig
from protocol.records import Card, Record, RecordKind, Sequencer
from protocol.table import record_key
from sim.network import NetworkConfig, delays_named
from sim.process import Process
from sim.regions import Region, links_in, regions_of
from sim.world import World

SAMPLES = 256
"""Round trips that place a node, a count: in 300 nodes on six continents the error is 2 % then, with half of them far ones."""

GREETED_S = 1.5
"""Seconds until all links have been greeted: three times the longest round trip between continents."""

GREETING_STEPS = 30
"""Reports of progress while the links are greeted, a count: most of the work of forming a mesh."""

CANDIDATES_MAX = 2000
"""Peers looked at for the nearest of one node, a count: sorting all of 10,000 for each of them would take minutes."""

DOORS = 3
"""Addresses a process joins by when it is started again, a count: as in `sim.run`."""

Progress = Callable[[float], None]
"""Called with the share that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Formation:
    """What the mesh is like.

    Attributes:
        nodes: how many.
        seed: everything follows from it.
        delays: as `--delays` of `python -m sim`.
        start_within_s: in which all processes start; None for half of a card's lifetime, after which it is renewed.
        config: of every core.
        network: jitter and uplinks.
    """

    nodes: int
    seed: int
    delays: str = "continents"
    start_within_s: float | None = None
    config: NodeConfig = field(default_factory=NodeConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)

    @property
    def is_large(self) -> bool:
        """Whether it is a mesh of which no node holds all."""
        horizon = self.config.gossip.horizon
        return self.nodes - 1 > horizon.peers * (1.0 + horizon.slack)


class _Laid:
    """Whose cards each node is given."""

    def __init__(self, records: list[Record], regions: list[Region]) -> None:
        """Those of everybody where there are no regions."""
        self._records = records
        self._regions = regions
        keys = [record_key(record.peer_id, RecordKind.CARD) for record in records]
        self._order = {number: place for place, number in enumerate(sorted(range(len(keys)), key=keys.__getitem__))}

    def of(self, index: int) -> list[Record]:
        """The cards of one node, in the order of their keys, in which a table takes them fastest."""
        if not self._regions:
            return self._records
        region = self._regions[index]
        return [
            self._records[number] for number in sorted([*region.nearest.tolist(), *region.beyond], key=self._order.__getitem__)
        ]


def formed(
    formation: Formation,
    progress: Progress = lambda _share: None,
    prepare: Callable[[World], object] = lambda _world: None,
) -> World:
    """Makes a mesh in which everybody holds everybody's card, or those of its region, and the links are open.

    Args:
        formation: what it is like.
        progress: called now and then.
        prepare: called with the world while it is empty: for watchers that have to see everything, as `sim.checks.Safety`.
    """
    world = World(formation.seed, network=formation.network)
    prepare(world)
    world.network.delays = delays_named(formation.delays, formation.nodes, world.streams)
    starts = world.streams.of("starts")
    within_s = formation.start_within_s
    within_s = formation.config.announcer.card_lifetime_s / 2 if within_s is None else within_s
    for _ in range(formation.nodes):
        world.add(at=starts.uniform(0.0, within_s), config=formation.config)
    links = choose_links(world, formation)
    places = find_places(world, links, formation.config)

    def make_node(config: NodeConfig, identity: Identity, luck: Luck, sequencer: Sequencer) -> Node:
        node = Node(config, identity, luck, sequencer)
        process = world.by_id[identity.peer_id]
        if process.life == 1 and process.index < formation.nodes:
            node.vivaldi = places[process.index]
        return node

    world.make_node = make_node
    progress(0.1)
    while world.now < within_s:
        world.run(min(world.now + within_s / 20.0, within_s))
        progress(0.1 + 0.4 * world.now / within_s)
    records = [record for process in world.processes if (record := process.node.table.get(process.peer_id, RecordKind.CARD))]
    assert len(records) == formation.nodes, "every process has signed a card"
    regions = regions_of(world, formation.config) if formation.is_large else []
    links = links_in(world, regions, formation.config) if regions else links
    laid = _Laid(records, regions)
    for process in world.processes:
        if regions:
            process.node.gossip.horizon.scope = regions[process.index].scope
        _lay_cards(world, process, laid.of(process.index))
        progress(0.5 + 0.2 * (process.index + 1) / formation.nodes)
    began = world.now
    first = _first(links, formation)
    for number, (one, other) in enumerate(links):
        if number == first:  # who is greeted first is a far link: those of short paths must not overtake them
            world.run(began + GREETED_S / 2.0)
        world.connect(world.processes[one], world.processes[other])
    began = world.now
    for step in range(1, GREETING_STEPS + 1):
        world.run(began + GREETED_S * step / GREETING_STEPS)
        progress(0.7 + 0.2 * step / GREETING_STEPS)
    for process in world.processes:
        _introduce(world, process, laid.of(process.index))
        progress(0.9 + 0.1 * (process.index + 1) / formation.nodes)
    doors = world.streams.of("bootstrap")
    for process in world.processes:
        others = [peer.address for peer in doors.sample(world.processes, min(DOORS + 1, formation.nodes)) if peer is not process]
        process.bootstrap = tuple(others[:DOORS])
    progress(1.0)
    return world


def _first(links: list[tuple[int, int]], formation: Formation) -> int:
    """How many of the links, which are in order, were drawn as far ones: those before the first node has had all of its own."""
    drawn: dict[int, int] = {}
    for number, (one, _) in enumerate(links):
        drawn[one] = drawn.get(one, 0) + 1
        if drawn[one] > formation.config.membership.far_max:
            return number
    return 0


def choose_links(world: World, formation: Formation) -> list[tuple[int, int]]:
    """Pairs of nodes that are connected: each with a few anywhere, which come first, and with its nearest."""
    nodes = len(world.processes)
    membership = formation.config.membership
    if nodes - 1 <= membership.near_max:
        return [(one, other) for one in range(nodes) for other in range(one + 1, nodes)]
    luck, delays = world.streams.of("links"), world.network.delays
    linked: list[dict[int, None]] = [{} for _ in range(nodes)]
    order = list(range(nodes))
    luck.shuffle(order)
    far: list[tuple[int, int]] = []
    for one in order:
        for other in luck.sample(range(nodes), min(nodes, membership.far_max + 1))[: membership.far_max]:
            if other != one and other not in linked[one]:
                linked[one][other] = linked[other][one] = None
                far.append((one, other))
    near: list[tuple[int, int]] = []
    for one in order:
        others = luck.sample(range(nodes), min(nodes, CANDIDATES_MAX))
        others.sort(key=lambda other: (delays.one_way_s(one, other), other))
        for other in others[: membership.near_max + 1]:
            if other != one and other not in linked[one]:
                linked[one][other] = linked[other][one] = None
                near.append((one, other))
    return far + near


def find_places(world: World, links: list[tuple[int, int]], config: NodeConfig) -> list[Vivaldi]:
    """The coordinates that the nodes find from round trips, by turns to the peers they are linked with and to anybody.

    Who has lived for days has met many; from the nearest alone the shape of the whole takes thousands of samples to find.
    """
    processes, delays = world.processes, world.network.delays
    linked: list[list[int]] = [[] for _ in processes]
    for one, other in links:
        linked[one].append(other)
        linked[other].append(one)
    places = [Vivaldi(config.coordinates, world.streams.of(f"place {process.index}")) for process in processes]
    luck = world.streams.of("places found")
    for number in range(SAMPLES):
        for one, place in enumerate(places):
            other = luck.choice(linked[one]) if number % 2 and linked[one] else luck.randrange(len(places))
            if other != one:
                rtt_s = delays.one_way_s(one, other) + delays.one_way_s(other, one)
                place.handle_sample(processes[other].peer_id, rtt_s, places[other].coordinate)
    return places


def _lay_cards(world: World, process: Process, records: list[Record]) -> None:
    """Gives a node everybody's card, as if gossip had accepted it."""
    table, wall_s = process.node.table, world.wall_s(process)
    for record in records:
        if record.peer_id != process.peer_id:
            table.offer(record, world.now, wall_s)


def _introduce(world: World, process: Process, records: list[Record]) -> None:
    """Tells a node's membership of everybody, now that those it would dial first are connected, and which of them are near.

    A node that has lived for days has looked for its nearest a moment ago; by its own clock it would do so within a minute, and
    until then say to none of those that were connected to it here that it keeps the connection. It has told where it is by turns
    that have become long.
    """
    membership = process.node.membership
    for record in records:
        if record.peer_id != process.peer_id and isinstance(record.payload, Card):
            membership.handle_card(record.peer_id, record.payload.addresses, world.now)
    process.node.announcer.settle()
    process.node.telling.pace.settle(world.now)
    process.node.handle_timer(world.now)
    process.node.rank_nearest(world.now)
    world.settle(process)
