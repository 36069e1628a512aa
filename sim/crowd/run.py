"""One run of an attack: the mesh, the crowd, the cards, and what was seen; and the same mesh undisturbed beside it.

A mesh that has run for days (`sim.formed`) meets the crowd, or forms while the crowd is there already, as the attack says. Before
the attack some cards are published that are not counted, for a mesh in which nothing ever happened has nothing to judge its links
by. Then the sybils dial; when all have, cards of honest nodes are published one after another, and each is followed to all other
honest nodes.
"""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from typing import cast

from protocol.encoding import Luck
from protocol.identity import Identity
from protocol.membership import MembershipConfig
from protocol.node import Node, NodeConfig
from protocol.records import Sequencer
from sim.bounds import excess
from sim.crowd.attacks import ATTACKS, Aim, Attack
from sim.crowd.gate import Gate
from sim.crowd.sybil import Crowd, Sybil
from sim.crowd.watch import LINKS_OUT, Cards, Links, Signs, chosen_share, signs_of
from sim.formed import Formation, formed
from sim.network import delays_named
from sim.process import Process
from sim.world import World

PUBLISHERS = 20
"""Honest nodes that publish, a count."""

WARM_CARDS = 20
"""Cards before the attack, a count; one a second."""

FORM_S = 40.0
"""Seconds after the honest nodes join in which a mesh that forms under attack is not measured yet."""

JOIN_S = 2.0
"""Seconds in which the honest nodes start."""

DRAIN_S = 30.0
"""Seconds after the last card in which it may still arrive."""

SMALL = 200
"""Honest nodes, a count, below which a node is given fewer connections, so that not everybody is connected to everybody."""

DOORS = 3
"""Honest addresses that an honest node joins by, a count."""

GOAL_RATIO = 3.0
"""The goal for the 99th percentile of delivery times against the same mesh undisturbed, unitless."""

Progress = Callable[[str, float], None]
"""Called with what is under way and the share of it that is done."""


@dataclass(frozen=True, slots=True)
class CrowdSettings:
    """What a run is told.

    Attributes:
        attack: one of `ATTACKS`.
        honest: honest nodes.
        sybils: sybils.
        links: connections that each sybil wants.
        seed: everything follows from it.
        connect_s: seconds in which the sybils dial first.
        measure_s: seconds over which the followed cards are published.
        cards: that are followed.
        carded: whether sybils publish cards as members do, so that they may be dialled and kept.
        private: whether a handshake needs a join certificate, which sybils do not have.
        delays: as `--delays` of `python -m sim`.
    """

    attack: str
    honest: int = 1000
    sybils: int = 4000
    links: int = 100
    seed: int = 1
    connect_s: float = 10.0
    measure_s: float = 60.0
    cards: int = 20
    carded: bool = False
    private: bool = False
    delays: str = "continents"

    @property
    def plan(self) -> Attack:
        """The attack."""
        return ATTACKS[self.attack]


@dataclass(frozen=True, slots=True)
class Delivered:
    """How cards reached the honest nodes: pairs of a card and a node that should have it; times in seconds."""

    wanted: int
    came: int
    p50_s: float
    p99_s: float
    longest_s: float

    @property
    def share(self) -> float:
        """Of those wanted, what came."""
        return self.came / max(1, self.wanted)


@dataclass(frozen=True, slots=True)
class CrowdResult:
    """What was seen.

    Attributes:
        attack: its name.
        seed: of the run.
        honest: how many nodes.
        sybils: how many.
        calm: the mesh undisturbed.
        under: the mesh under attack.
        of_victim: the deliveries that the attack is aimed at, where it is aimed at one node: its cards, or what comes to it.
        out_min: the fewest honest links that any node had to peers that it chose, at any second of the attack.
        out_few_share: share of nodes and seconds with fewer than two.
        sybil_links_share: share of the links of honest meshes that led to sybils, the mean over the attack.
        sybil_links_end: the same at the end.
        sybil_chosen_share: share of the connections that honest nodes chose that led to sybils at the end.
        sybil_dials: connections that honest nodes tried to make to sybils.
        sybil_signs: scores of connected sybils at the end.
        honest_below_zero: pairs of honest nodes of which one holds the other for bad, at the end.
        honest_blamed: what honest nodes were blamed for by honest nodes, first of all.
        dials: connections that the sybils tried to make.
        closed: how many were closed to them, by the code.
        connected_max: the most connections of a node; `sybils_max` those of them to sybils.
        messages_per_s: gossip messages that an honest node sent, per second; `calm_messages_per_s` undisturbed.
        refused: handshakes with sybils that failed in a private network, by the code.
        left_behind: what sybils left behind in honest nodes of a private network, as text.
        excess: containers past their bounds, as text.
        memory_mb: the largest resident size of the simulating process.
        took_s: real seconds.
        digest: over all outputs of all nodes under attack.
    """

    attack: str
    seed: int
    honest: int
    sybils: int
    calm: Delivered
    under: Delivered
    of_victim: Delivered | None
    out_min: int
    out_few_share: float
    sybil_links_share: float
    sybil_links_end: float
    sybil_chosen_share: float
    sybil_dials: int
    sybil_signs: Signs
    honest_below_zero: int
    honest_blamed: tuple[str, ...]
    dials: int
    closed: dict[str, int]
    connected_max: int
    sybils_max: int
    messages_per_s: float
    calm_messages_per_s: float
    refused: dict[str, int]
    left_behind: tuple[str, ...]
    excess: tuple[str, ...]
    memory_mb: float
    took_s: float
    digest: str
    out_min_over_time: tuple[tuple[float, int, int], ...] = field(default=(), repr=False)

    @property
    def ratio(self) -> float:
        """The 99th percentile against that of the mesh undisturbed."""
        return self.under.p99_s / self.calm.p99_s

    @property
    def missed(self) -> tuple[str, ...]:
        """The goals that were missed, in words."""
        goals = (
            (self.under.came == self.under.wanted, f"{self.under.share:.4%} of deliveries"),
            (self.ratio <= GOAL_RATIO, f"p99 is {self.ratio:.2f} times the undisturbed one"),
            (self.out_min >= LINKS_OUT, f"a node with {self.out_min} honest links that it chose"),
            (not self.left_behind, "sybils left something behind"),
            (not self.excess, "a bound was passed"),
        )
        return tuple(text for held, text in goals if not held)

    def as_dict(self) -> dict[str, object]:
        """The fields by their names, and what follows from them."""
        return {**asdict(self), "ratio": self.ratio, "missed": self.missed}


def config_for(honest: int) -> NodeConfig:
    """The cores' configuration: the product's, and in a small mesh fewer connections of every kind, in the same proportions."""
    if honest >= SMALL:
        return NodeConfig()
    return NodeConfig(
        membership=MembershipConfig(
            small_mesh=8, near_max=12, far_max=6, connections_max=32, crowded_max=48, open_max=56, surplus_after_s=10.0
        )
    )


class Stage:
    """A world with its honest nodes, ready for an attack or for calm."""

    def __init__(self, settings: CrowdSettings, progress: Progress) -> None:
        """Makes the world and its honest nodes."""
        self.settings = settings
        self.progress = progress
        self.name = "undisturbed"
        self.messages_per_s = 0.0
        plan = settings.plan
        config = config_for(settings.honest)
        if plan.forms:
            self.world = World(settings.seed)
            self.world.network.delays = delays_named(settings.delays, settings.honest, self.world.streams)
            starts = self.world.streams.of("starts")
            for _ in range(settings.honest):
                self.world.add(at=starts.uniform(0.0, JOIN_S), config=config)
            self.joins_at = JOIN_S + plan.honest_late_s
        else:
            formation = Formation(settings.honest, settings.seed, delays=settings.delays, config=config)
            self.world = formed(formation, lambda share: progress("forming", share))
        self.honest = list(self.world.processes)
        for process in self.honest:
            process.origin = b"honest %d" % process.index
        self.began_at = self.world.now
        luck = self.world.streams.of("publishers")
        self.publishers = luck.sample(self.honest, min(PUBLISHERS, len(self.honest)))
        self.victim = self.publishers[0]
        self.gate = Gate(self.world, self.honest) if settings.private else None
        self.cards = Cards(self.world, self.honest, self.victim)
        self.links = Links(self.world, self.honest)

    def join(self) -> None:
        """Has the honest nodes join by some of them, those of an attack on a mesh that forms."""
        luck = self.world.streams.of("bootstrap")
        doors = self.honest[: max(DOORS, len(self.honest) // 10)]
        for process in self.honest:
            process.bootstrap = tuple(peer.address for peer in luck.sample(doors, DOORS) if peer is not process)
            self.world.at(self.joins_at + luck.uniform(0.0, JOIN_S), lambda process=process: self._joins(process))  # type: ignore[misc]

    def _joins(self, process: Process) -> None:
        process.node.add_bootstrap(process.bootstrap, self.world.now)
        self.world.settle(process)

    def run(self, until: float, what: str, steps: int = 20) -> None:
        """Lets time pass and tells of it."""
        began = self.world.now
        for step in range(1, steps + 1):
            self.world.run(began + (until - began) * step / steps)
            self.progress(f"{self.name}: {what}", step / steps)

    def warm(self) -> None:
        """Publishes cards that are not counted."""
        luck = self.world.streams.of("warm")
        for number in range(WARM_CARDS):
            process = luck.choice(self.honest)
            self.world.at(self.world.now + number * 1.0, lambda process=process: self.cards.publish(process, follow=False))  # type: ignore[misc]
        self.run(self.world.now + WARM_CARDS + 2.0, "warming up")

    def send_in(self) -> Crowd:
        """Has the sybils start and dial."""
        settings, plan, world = self.settings, self.settings.plan, self.world
        crowd = Crowd(plan.swallow, self.victim.peer_id, world.reader, has_cards=settings.carded)
        crowd.attacking = plan.covert_s == 0.0
        targets = {Aim.EVERYBODY: self.honest, Aim.VICTIM: [self.victim], Aim.PUBLISHERS: self.publishers}[plan.aim]
        links = min(settings.links, len(targets))
        for number in range(settings.sybils):
            process = world.add(at=world.now)
            process.hostile = True
            if self.gate is not None:
                self.gate.equip(process, number)
            process.origin = b"sybil %d" % (number // plan.per_machine)

            def make(_config: NodeConfig, identity: Identity, luck: Luck, _sequencer: Sequencer) -> Node:
                return cast("Node", Sybil(crowd, identity, cast("Random", luck), targets, links, settings.connect_s))

            process.make_node = make
        return crowd

    def measure(self) -> float:
        """Publishes the followed cards and lets them arrive; returns when the first was published."""
        settings, world, began = self.settings, self.world, self.world.now
        step_s = settings.measure_s / settings.cards
        censored = settings.attack == "censoring"
        for number in range(settings.cards):
            process = self.victim if censored and number % 2 == 0 else self.publishers[number % len(self.publishers)]
            world.at(began + number * step_s, lambda process=process: self.cards.publish(process, follow=True))  # type: ignore[misc]
        self.links.messages = self.links.message_bytes = 0
        self.links.look_until(began + settings.measure_s)
        self.run(began + settings.measure_s, "cards")
        self.messages_per_s = self.links.messages / settings.measure_s / len(self.honest)
        wanted = len(self.honest) - 1
        world.run_until(lambda: all(len(card.after_s) == wanted for card in self.cards.followed), world.now + DRAIN_S, 1.0)
        return began


def prepare(settings: CrowdSettings, progress: Progress = lambda _what, _share: None) -> "Stage":
    """Makes the mesh of an attack: one that has run for days and has carried some cards, or one that is about to form."""
    stage = Stage(settings, progress)
    if not settings.plan.forms:
        stage.warm()
    return stage


def run_crowd(
    settings: CrowdSettings, progress: Progress = lambda _what, _share: None, calm: "Calm | None" = None
) -> CrowdResult:
    """Runs one attack.

    Args:
        settings: what the run is told.
        progress: hears what is under way.
        calm: the same mesh undisturbed, where that was run already.
    """
    return attacked(prepare(settings, progress), settings, calm or run_calm(settings, progress))


def attacked(stage: "Stage", settings: CrowdSettings, calm: "Calm") -> CrowdResult:
    """Lets the crowd of an attack into a mesh that was prepared for one of its kind."""
    began = time.perf_counter()
    stage.settings, stage.name = settings, settings.attack
    plan = settings.plan
    if plan.forms:
        crowd = stage.send_in()
        stage.join()
        stage.run(stage.joins_at + FORM_S, "forming among sybils")
    else:
        crowd = stage.send_in()
        stage.run(stage.world.now + settings.connect_s + 5.0, "sybils connect")
        if plan.covert_s:
            luck = stage.world.streams.of("covert")
            for number in range(int(plan.covert_s / 3.0)):
                process = luck.choice(stage.honest)
                stage.world.at(
                    stage.world.now + 3.0 * number,
                    lambda process=process: stage.cards.publish(process, follow=False),  # type: ignore[misc]
                )
            stage.run(stage.world.now + plan.covert_s, "sybils behave")
            crowd.attacking = True
    stage.measure()
    world, honest, links = stage.world, stage.honest, stage.links
    ids = {process.peer_id for process in honest}
    sybils = {process.peer_id for process in world.processes} - ids
    share = [(sybil / max(1, every)) for _, sybil, every in links.sybil_links]
    excesses = [f"n{process.index}: {text}" for process in honest if (text := excess(process.node, process.config)) is not None]
    return CrowdResult(
        attack=settings.attack,
        seed=settings.seed,
        honest=settings.honest,
        sybils=settings.sybils,
        calm=calm.delivered,
        under=delivered(stage),
        of_victim=aimed_at(stage),
        out_min=min(fewest for _, fewest, _ in links.out_min),
        out_few_share=sum(few for _, _, few in links.out_min) / len(links.out_min) / len(honest),
        sybil_links_share=sum(share) / len(share),
        sybil_links_end=share[-1],
        sybil_chosen_share=chosen_share(honest, sybils),
        sybil_dials=links.sybil_dials,
        sybil_signs=signs_of(honest, sybils, world.now),
        honest_below_zero=signs_of(honest, ids, world.now).below,
        honest_blamed=tuple(links.below_zero[:5]),
        dials=crowd.dials,
        closed={code.name: number for code, number in sorted(links.refused.items())},
        connected_max=links.connected_max,
        sybils_max=links.sybils_max,
        messages_per_s=stage.messages_per_s,
        calm_messages_per_s=calm.messages_per_s,
        refused=dict(sorted(stage.gate.refused.items())) if stage.gate is not None else {},
        left_behind=tuple(stage.gate.left_behind(honest, sybils)[:5]) if stage.gate is not None else (),
        excess=tuple(excesses[:5]),
        memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024.0 if sys.platform != "darwin" else 1024.0**2),
        took_s=time.perf_counter() - began,
        digest=world.journal.digest(),
        out_min_over_time=tuple(links.out_min),
    )


@dataclass(frozen=True, slots=True)
class Calm:
    """What the mesh does undisturbed."""

    delivered: Delivered
    messages_per_s: float


def run_calm(settings: CrowdSettings, progress: Progress = lambda _what, _share: None) -> Calm:
    """Runs the mesh of an attack without the crowd."""
    return undisturbed(prepare(settings, progress), settings)


def undisturbed(stage: Stage, settings: CrowdSettings) -> Calm:
    """Leaves a mesh that was prepared for an attack alone."""
    stage.settings = settings
    if settings.plan.forms:
        stage.join()
        stage.run(stage.joins_at + FORM_S, "forming")
    else:
        stage.run(stage.world.now + settings.connect_s + 5.0, "at rest")
    stage.measure()
    return Calm(delivered(stage), stage.messages_per_s)


def delivered(stage: Stage) -> Delivered:
    """How all followed cards reached everybody."""
    return _delivered([list(card.after_s.values()) for card in stage.cards.followed], len(stage.honest) - 1)


def aimed_at(stage: Stage) -> Delivered | None:
    """What an attack on one node is aimed at: its cards where it is censored, what comes to it where it is crowded round."""
    plan, cards = stage.settings.plan, stage.cards.followed
    if stage.settings.attack == "censoring":
        return _delivered([list(card.after_s.values()) for card in cards if card.by_victim], len(stage.honest) - 1)
    if plan.aim is Aim.VICTIM:
        index = stage.victim.index
        return _delivered([[card.after_s[index]] if index in card.after_s else [] for card in cards if not card.by_victim], 1)
    return None


def _delivered(times: list[list[float]], wanted_each: int) -> Delivered:
    ordered = sorted(time_s for card in times for time_s in card)
    if not ordered:
        return Delivered(len(times) * wanted_each, 0, float("inf"), float("inf"), float("inf"))
    p50_s, p99_s = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    return Delivered(len(times) * wanted_each, len(ordered), p50_s, p99_s, ordered[-1])
