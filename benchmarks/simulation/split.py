"""Two halves that hear nothing of one another for 30 s, and heal: when all tables agree again."""

from statistics import median

from benchmarks.simulation.figures import NEVER, Figure
from benchmarks.simulation.scenario import FORMING_SHARE, Options, rested
from protocol.identity import PeerId
from protocol.membership import Standing
from protocol.records import ModelOffer, RecordKind
from sim.faults import Loss, split
from sim.process import Process
from sim.world import World

NAME = "split"
LOSS = 0.3
SPLIT_S = 30.0
QUICK_SPLIT_S = 5.0
REPEATS = 3
CHANGED_SHARE = 0.1
"""Share of the nodes that make a new card while they are apart, unitless: both halves have news for the other."""
LIMIT_S = 60.0
"""Seconds after which halves that do not agree never will."""
STEP_S = 0.02
"""Seconds between two looks: what the figure is exact to."""
RECOVER_S = 10.0
"""Seconds between two splits."""


def measure(nodes: int, seed: int, options: Options) -> list[Figure]:
    """Splits and heals a few times without loss, and as often with loss."""
    world = rested(nodes, seed, options)
    repeats = 1 if options.quick else REPEATS
    apart_s = QUICK_SPLIT_S if options.quick else SPLIT_S
    middle = (1.0 + FORMING_SHARE) / 2
    calm = _repeated(world, repeats, apart_s, options.part(FORMING_SHARE, middle))
    loss = Loss(world.streams.of("loss share"), world, LOSS)
    loss.begin(world)
    lossy = _repeated(world, repeats, apart_s, options.part(middle, 1.0))
    loss.end(world)
    against = "memberlist's push-pull interval (published)"
    meaning = (
        f"seconds from the end of a split of {apart_s:g} s until every node holds, of every other, the newest card signed before"
        f" that end, and holds nobody for suspected or gone; {{}} of {repeats}."
    )
    goal_nodes = NEVER if options.quick else 100
    return [
        Figure(
            NAME,
            "healed split, no loss, median",
            _whole(calm, worst=False),
            "s",
            nodes,
            meaning.format("median"),
            against,
            30.0,
            2.0,
            goal_nodes,
        ),
        Figure(
            NAME,
            "healed split, no loss, the slowest",
            _whole(calm, worst=True),
            "s",
            nodes,
            meaning.format("the slowest"),
            against,
            30.0,
            2.0,
            goal_nodes,
        ),
        Figure(
            NAME,
            "healed split, 30 % loss, median",
            _whole(lossy, worst=False),
            "s",
            nodes,
            meaning.format("median"),
            against,
            30.0,
            3.0,
            goal_nodes,
        ),
        Figure(
            NAME,
            "healed split, 30 % loss, the slowest",
            _whole(lossy, worst=True),
            "s",
            nodes,
            meaning.format("the slowest"),
            against,
            30.0,
            3.0,
            goal_nodes,
        ),
    ]


def _repeated(world: World, repeats: int, apart_s: float, options: Options) -> list[float | None]:
    found: list[float | None] = []
    for number in range(repeats):
        found.append(_once(world, apart_s))
        world.run(world.now + RECOVER_S)
        options.progress((number + 1) / repeats)
    return found


def _once(world: World, apart_s: float) -> float | None:
    """One split; seconds until the tables agree, or None."""
    luck = world.streams.of("halves")
    indices = list(range(len(world.processes)))
    half = frozenset(luck.sample(indices, len(indices) // 2))
    cut = split(half)
    cut.begin(world)
    world.run(world.now + apart_s / 2)
    for process in luck.sample(world.processes, max(2, round(CHANGED_SHARE * len(indices)))):
        offer = ModelOffer(f"changed {world.now:.0f}", frozenset(), engine="echo")
        process.offers = (*process.offers[:1], offer)
        process.node.handle_offers(process.offers, world.now)
        world.settle(process)
    world.run(world.now + apart_s / 2)
    cut.end(world)
    agreement, began = Agreement(world), world.now
    return world.now - began if world.run_until(agreement.reached, began + LIMIT_S, STEP_S) else None


class Agreement:
    """Whether everybody has caught up with what was signed before it was made, and holds everybody for living.

    Looking at N² pairs at every step would cost more than the mesh, so what a node lacks is kept and only that is looked at.
    """

    def __init__(self, world: World) -> None:
        """Notes what everybody has to hold."""
        self._world = world
        self._wanted: list[tuple[PeerId, int]] = []
        for process in world.working():
            card = process.node.table.get(process.peer_id, RecordKind.CARD)
            if card is not None:
                self._wanted.append((process.peer_id, card.sequence))
        self._lacking = {process.index: self._lacks(process, self._wanted) for process in world.working()}

    def _lacks(self, process: Process, among: list[tuple[PeerId, int]]) -> list[tuple[PeerId, int]]:
        lacking: list[tuple[PeerId, int]] = []
        for peer, sequence in among:
            held = process.node.table.get(peer, RecordKind.CARD)
            standing = Standing.ALIVE
            if peer != process.peer_id:
                standing = process.node.membership.standing(peer, self._world.now)[0]
            if held is None or held.sequence < sequence or standing in (Standing.SUSPECTED, Standing.GONE):
                lacking.append((peer, sequence))
        return lacking

    def reached(self) -> bool:
        """Whether it holds now."""
        living = self._world.working()
        for process in living:
            if self._lacking[process.index]:
                self._lacking[process.index] = self._lacks(process, self._lacking[process.index])
        if any(self._lacking.values()):
            return False
        for process in living:  # what held earlier must hold together, now
            self._lacking[process.index] = self._lacks(process, self._wanted)
        return not any(self._lacking.values())


def _whole(values: list[float | None], *, worst: bool) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return max(known) if worst else median(known)
