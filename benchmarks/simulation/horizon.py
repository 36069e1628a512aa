"""A mesh of which no node holds all: what each receives and holds, how old that is, and whether news reaches all it concerns.

Whole meshes of several sizes with one horizon show whether anything grows with the mesh; `steady` shows what a mesh costs of
which everybody holds all.
"""

from dataclasses import dataclass, field
from statistics import median

from benchmarks.simulation.figures import NEVER, Figure
from benchmarks.simulation.load import Load
from benchmarks.simulation.memory import MIB, bytes_alone
from benchmarks.simulation.observe import Markers, Traffic
from benchmarks.simulation.scenario import FORMING_SHARE, Options, quantile, rested
from benchmarks.simulation.staleness import SealedCards
from benchmarks.simulation.steady import received
from protocol.records import RecordKind
from sim.checks import concerns
from sim.world import World

NAME = "horizon"
WINDOW_S = 30.0
"""Seconds for which traffic is counted."""
QUICK_SHARE = 0.1
"""Share of these times that a quick run takes, unitless."""
MARKERS = 5
"""New cards that are followed, a count."""
FOLLOWED_S = 10.0
"""Seconds for which each is followed: five rounds of comparison."""
HELD_LOOKED_AT = 400
"""Cards held that are looked at each time, a count."""
PAIRS_LOOKED_AT = 20_000
"""Pairs of nodes of which it is asked each time whether one's scope covers the other, a count: with 30,000 nodes and a horizon of
256 it covers 170 of them."""
CORES_MEASURED = 3
"""Cores whose memory is counted, a count; they differ by a few percent."""


@dataclass
class Held:
    """Whether nodes hold the cards that their scopes cover, and how old those are that they hold."""

    world: World
    wrong_s: list[float] = field(default_factory=list[float])
    covered: int = 0
    missing: int = 0

    def __post_init__(self) -> None:
        self._luck = self.world.streams.of("held")
        self._cards = SealedCards(self.world)

    def look(self) -> None:
        """Takes one sample of everything."""
        for _ in range(HELD_LOOKED_AT):
            observer = self._luck.choice(self.world.processes)
            subject = self.world.by_id[self._luck.choice(observer.node.table.known())]
            wrong_s = self._cards.wrong_for_s(observer, subject)
            assert wrong_s is not None
            self.wrong_s.append(wrong_s)
        for _ in range(PAIRS_LOOKED_AT):
            observer, subject = self._luck.sample(self.world.processes, 2)
            scope, known = observer.node.gossip.scope, subject.node.table.serving(subject.peer_id)
            if known is not None and known[1] is not None and (scope is None or scope.covers(known[1])):
                self.covered += 1
                self.missing += observer.node.table.serving(subject.peer_id) is None


@dataclass
class Reached:
    """What became of new cards: per card the share of those it concerns that it reached, when, and copies per delivery."""

    shares: list[float] = field(default_factory=list[float])
    times_s: list[float] = field(default_factory=list[float])
    copies: list[float] = field(default_factory=list[float])


def measure(nodes: int, seed: int, options: Options) -> list[Figure]:
    """Runs one mesh for a while and looks at it from all sides."""
    scale = QUICK_SHARE if options.quick else 1.0
    world = rested(nodes, seed, options)
    Load(world)
    world.run(world.now + 5.0 * scale)
    traffic, held = Traffic(world), Held(world)
    watched = options.part(FORMING_SHARE, 0.8)
    window_s, looks = WINDOW_S * scale, 3
    began = world.now
    for number in range(looks):
        world.run(began + window_s * (number + 1) / looks)
        held.look()
        watched.progress((number + 1) / looks)
    rows = received(nodes, traffic, window_s, quick=True, scenario=NAME)
    reached = _follow(world, 1 if options.quick else MARKERS, FOLLOWED_S * scale, options.part(0.8, 1.0))
    return [
        *rows,
        *_held_figures(nodes, world, held, quick=options.quick),
        *_reached_figures(nodes, reached),
        _memory(nodes, world),
    ]


def _follow(world: World, count: int, followed_s: float, options: Options) -> Reached:
    """Makes new cards, one after another, and looks who of those they concern has them."""
    luck, markers, reached = world.streams.of("publishers"), Markers(world), Reached()
    for number in range(count):
        publisher = luck.choice(world.working())
        spread = markers.mark(publisher)
        card = publisher.node.table.get(publisher.peer_id, RecordKind.CARD)
        assert card is not None
        concerned = {process.index for process in world.working() if process is not publisher and concerns(process, card)}
        world.run(world.now + followed_s)
        arrived = dict(zip(spread.reached, spread.after_s, strict=True))
        there = sorted(after_s for index, after_s in arrived.items() if index in concerned)
        reached.shares.append(len(there) / max(1, len(concerned)))
        reached.times_s.extend(there)
        reached.copies.append(markers.copies / max(1, len(arrived)))
        options.progress((number + 1) / count)
    return reached


def _held_figures(nodes: int, world: World, held: Held, *, quick: bool) -> list[Figure]:
    cards = [float(len(process.node.table.known())) for process in world.processes[:100]]
    return [
        Figure(NAME, "cards held", median(cards), "", nodes, "cards in the table of a node, its own included."),
        Figure(
            NAME,
            "cards covered by the scope that are not held",
            100.0 * held.missing / max(1, held.covered),
            "%",
            nodes,
            "of pairs of nodes of which one's scope covers the place on the other's card.",
            note=f"{held.covered} pairs",
        ),
        Figure(
            NAME,
            "staleness of a card held, p99",
            quantile(held.wrong_s, 0.99),
            "s",
            nodes,
            "for how long the card that a node holds of any other, far ones included, has been replaced by a newer one.",
            goal=90.0,
            goal_nodes=NEVER if quick else None,
        ),
    ]


def _reached_figures(nodes: int, reached: Reached) -> list[Figure]:
    slowest = quantile(reached.times_s, 0.99)
    return [
        Figure(
            NAME,
            "a new card: reached of those it concerns",
            100.0 * median(reached.shares),
            "%",
            nodes,
            "those whose scope covers the place on it, within ten seconds; median over the cards.",
        ),
        Figure(NAME, "a new card: median", 1000.0 * (quantile(reached.times_s, 0.5) or 0.0), "ms", nodes, "until they hold it."),
        Figure(NAME, "a new card: p99", None if slowest is None else 1000.0 * slowest, "ms", nodes, "until they hold it."),
        Figure(
            NAME, "a new card: copies per delivery", median(reached.copies), "", nodes, "copies that arrive for each that is new."
        ),
    ]


def _memory(nodes: int, world: World) -> Figure:
    cores = [bytes_alone(process) for process in world.processes[:CORES_MEASURED]]
    meaning = "bytes reachable from one core, records counted as if nobody shared them, without QUIC."
    return Figure(NAME, "memory of a core", median(cores) / MIB, "MiB", nodes, meaning)
