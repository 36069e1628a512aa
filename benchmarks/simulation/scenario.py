"""What a scenario is given and what all of them share: options, percentiles, a formed mesh that has come to rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.simulation.figures import Figure
from protocol.node import NodeConfig
from sim.formed import Formation, formed
from sim.garbage import collect_seldom
from sim.world import World

REST_S = 5.0
"""Seconds that a formed mesh is let alone: two rounds of gossip and ten of probes."""

QUICK_REST_S = 1.0
"""The same in a quick run, which asks whether a scenario runs and not how good it is."""

FORMING_SHARE = 0.3
"""Share of a scenario's progress that forming the mesh counts for, unitless."""

Progress = Callable[[float], None]
"""Called with the share that is done, 0 to 1."""


def _silent(_share: float) -> None:
    """No progress to show."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a scenario is run.

    Attributes:
        quick: as short as it can be and still go through everything.
        delays: as `--delays` of `python -m sim`.
        config: of every core.
        progress: hears how far it is.
    """

    quick: bool = False
    delays: str = "continents"
    config: NodeConfig = field(default_factory=NodeConfig)
    progress: Progress = _silent

    def with_horizon(self, peers: int) -> "Options":
        """The same options for nodes that mean to hold so many cards."""
        gossip = self.config.gossip
        return replace(self, config=replace(self.config, gossip=replace(gossip, horizon=replace(gossip.horizon, peers=peers))))

    def part(self, begin: float, end: float) -> "Options":
        """The same options for a part of the work, whose progress counts from `begin` to `end`."""
        whole = self.progress
        return replace(self, progress=lambda share: whole(begin + (end - begin) * min(1.0, max(0.0, share))))


Measure = Callable[[int, int, Options], list[Figure]]
"""A scenario: size, seed and options in, figures out."""


def config_for(nodes: int, config: NodeConfig) -> NodeConfig:
    """The configuration with a table that holds everybody, where the default one does not."""
    table, membership = config.table, config.membership
    if nodes >= table.peers_max:
        table = replace(table, peers_max=nodes)
    if nodes >= membership.peers_max:
        membership = replace(membership, peers_max=nodes)
    return replace(config, table=table, membership=membership)


def rested(nodes: int, seed: int, options: Options) -> World:
    """A formed mesh that has been let alone for a moment."""
    formation = Formation(
        nodes,
        seed,
        delays=options.delays,
        start_within_s=3.0 if options.quick else None,
        config=config_for(nodes, options.config),
    )
    forming = options.part(0.0, FORMING_SHARE)
    world = formed(formation, lambda share: forming.progress(0.7 * share))
    rest_s = QUICK_REST_S if options.quick else REST_S
    world.run(world.now + rest_s)
    collect_seldom()  # what the mesh consists of stays, and is not to be looked through again
    forming.progress(1.0)
    return world


def run_with_progress(world: World, until: float, options: Options, steps: int = 40) -> None:
    """Lets time pass and tells of it."""
    began = world.now
    for step in range(1, steps + 1):
        world.run(began + (until - began) * step / steps)
        options.progress(step / steps)


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least that share of the values does not exceed; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def worst(values: Sequence[float | None]) -> float | None:
    """The largest; None where one is missing or there are none."""
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None
