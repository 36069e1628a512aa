"""One new card at a time, without loss and with 30 % loss of every packet: when everybody holds it, and what it costs."""

from statistics import median

from benchmarks.simulation.figures import Figure
from benchmarks.simulation.observe import Markers
from benchmarks.simulation.scenario import FORMING_SHARE, Options, rested
from sim.faults import Loss
from sim.figures import Spread
from sim.world import World

NAME = "spread"
LOSS = 0.3
MARKERS = 10
QUICK_MARKERS = 2
WINDOW_S = 3.0
"""Seconds after a new card in which the messages that name it are counted: a little more than a round of anti-entropy."""
LIMIT_S = 30.0
"""Seconds after which a card that has not reached everybody never does."""


def measure(nodes: int, seed: int, options: Options) -> list[Figure]:
    """Follows new cards of random nodes, first without loss and then with loss."""
    world = rested(nodes, seed, options)
    markers = Markers(world)
    count = QUICK_MARKERS if options.quick else MARKERS
    middle = (1.0 + FORMING_SHARE) / 2
    calm = follow(world, markers, count, options.part(FORMING_SHARE, middle))
    loss = Loss(world.streams.of("loss share"), world, LOSS)
    loss.begin(world)
    lossy = follow(world, markers, count, options.part(middle, 1.0))
    loss.end(world)
    return [*_calm_figures(nodes, calm), *_lossy_figures(nodes, lossy)]


class Followed:
    """What was seen of one card after another."""

    def __init__(self) -> None:
        self.spreads: list[Spread] = []
        self.copies: list[float] = []  # per delivery
        self.control: list[float] = []  # per delivery

    def times(self, share: float) -> list[float | None]:
        """For each card when that share of the nodes held it, in seconds."""
        return [spread.share_s(share) for spread in self.spreads]


def follow(world: World, markers: Markers, count: int, options: Options) -> Followed:
    """Makes `count` cards one after another and follows each until everybody holds it."""
    luck, seen, nodes = world.streams.of("publishers"), Followed(), len(world.processes)
    for number in range(count):
        spread = markers.mark(luck.choice(world.working()))
        began = world.now
        everybody = lambda: len(spread.after_s) >= nodes - 1  # noqa: E731, B023 - used at once
        world.run_until(everybody, began + LIMIT_S, 0.1)
        world.run(max(world.now + 1.0, began + WINDOW_S))
        deliveries = max(1, len(spread.after_s))
        seen.spreads.append(spread)
        seen.copies.append(markers.copies / deliveries)
        seen.control.append(markers.mentions / deliveries)
        options.progress((number + 1) / count)
    return seen


def _ms(values: list[float | None], *, at_worst: bool) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return 1000.0 * (max(known) if at_worst else median(known))


def _calm_figures(nodes: int, seen: Followed) -> list[Figure]:
    published = "gossipsub, its author's simulator (published)"
    cards = len(seen.spreads)
    return [
        Figure(
            NAME,
            "new card to 99 %, no loss",
            _ms(seen.times(0.99), at_worst=False),
            "ms",
            nodes,
            f"time from signing a card until 99 % of the nodes hold it, median of {cards} cards.",
        ),
        Figure(
            NAME,
            "new card to all, no loss",
            _ms(seen.times(1.0), at_worst=False),
            "ms",
            nodes,
            f"time from signing a card until all nodes hold it, median of {cards} cards.",
            published,
            400.0,
            400.0,
            1000,
        ),
        Figure(
            NAME,
            "new card to all, no loss, the slowest card",
            _ms(seen.times(1.0), at_worst=True),
            "ms",
            nodes,
            f"the same of the slowest of {cards} cards.",
            published,
            400.0,
            400.0,
            1000,
        ),
        Figure(
            NAME,
            "copies of a card per delivery, no loss",
            median(seen.copies),
            "",
            nodes,
            "how often a card arrives at a node, the first time included: 1 is the least there can be.",
            "gossipsub (published)",
            6.3,
            4.0,
            1000,
        ),
        Figure(
            NAME,
            "messages per delivery, no loss",
            median(seen.copies) + median(seen.control),
            "",
            nodes,
            "copies of a card and the messages that name it (who holds it, who wants it, who does not), per node that gets it.",
            "gossipsub (published)",
            6.3,
            4.0,
            1000,
            note="names in the 3 s after the card; hashes that differ because of it name nothing and are not counted",
        ),
    ]


def _lossy_figures(nodes: int, seen: Followed) -> list[Figure]:
    cards = len(seen.spreads)
    return [
        Figure(
            NAME,
            "new card to 99 %, 30 % loss",
            _ms(seen.times(0.99), at_worst=False),
            "ms",
            nodes,
            f"time until 99 % hold it while 30 % of all packets are lost, median of {cards} cards.",
            goal=1000.0,
            goal_nodes=1000,
        ),
        Figure(
            NAME,
            "new card to all, 30 % loss",
            _ms(seen.times(1.0), at_worst=False),
            "ms",
            nodes,
            f"time until all hold it while 30 % of all packets are lost, median of {cards} cards.",
            goal=2000.0,
            goal_nodes=1000,
        ),
        Figure(
            NAME,
            "new card to all, 30 % loss, the slowest card",
            _ms(seen.times(1.0), at_worst=True),
            "ms",
            nodes,
            f"the same of the slowest of {cards} cards.",
            goal=2000.0,
            goal_nodes=1000,
        ),
        Figure(
            NAME,
            "messages per delivery, 30 % loss",
            median(seen.copies) + median(seen.control),
            "",
            nodes,
            "copies and messages that name the card per node that gets it, under loss.",
        ),
    ]
