"""Which faults a seed chooses, and when each begins and ends.

Swarm testing: a seed leaves out about half of the kinds of fault, because some bugs only show where another fault does not hide
them. The schedule has two phases as TigerBeetle's VOPR: first things break and only safety is demanded, then everything is mended
and progress is demanded.

Source: Groce et al., "Swarm Testing" (ISSTA 2012); TigerBeetle, src/vopr.zig.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sim.faults import fabrics, hostile, packets, paths, processes, versions
from sim.faults.base import Fault, MakeFault
from sim.world import World

HONEST: dict[str, MakeFault] = {
    "loss": packets.Loss,
    "bursts": packets.BurstLoss,
    "corruption": packets.Corruption,
    "duplication": packets.Duplication,
    "reordering": packets.Reordering,
    "partition": paths.partition,
    "one-way": paths.one_way,
    "isolation": paths.isolation,
    "clogging": paths.Clogging,
    "swizzle": paths.Swizzle,
    "crash": processes.Crash,
    "death": processes.Death,
    "pause": processes.Pause,
    "clock": processes.Clock,
    "clock-jump": processes.ClockJump,
    "clock-rate": processes.ClockRate,
    "address": processes.AddressChange,
    "full-queues": processes.FullQueues,
    "slow": processes.Slowness,
    "old-version": versions.old_version,
    "new-version": versions.new_version,
}
"""Misfortunes, by their names."""

KINDS: dict[str, MakeFault] = {**HONEST, **fabrics.KINDS, **hostile.KINDS}
"""All faults, by their names."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault with its time."""

    begin_s: float
    end_s: float
    fault: Fault


def names_of(text: str) -> tuple[str, ...]:
    """Reads `all`, `honest` (all without hostile peers), `none`, or names with commas between them.

    Raises:
        ValueError: for a name that is no kind of fault.
    """
    if text == "none":
        return ()
    if text in ("all", "honest"):
        return tuple(KINDS if text == "all" else (*HONEST, *fabrics.KINDS))
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in KINDS:
            raise ValueError(f"{name!r} is no fault; there are {', '.join(KINDS)}, all, honest and none")
    return names


def plan(world: World, names: Iterable[str], begin_s: float, end_s: float, *, swarm: bool = True) -> list[Planned]:
    """Draws what breaks from `begin_s` to `end_s`: about half of the kinds when `swarm`, each one to three times."""
    kinds = list(names)
    of_fabrics = [kind for kind in kinds if kind in fabrics.KINDS]
    others = [kind for kind in kinds if kind not in fabrics.KINDS]
    planned = _drawn(world, "faults", others, begin_s, end_s, swarm=swarm)
    return planned + _drawn(world, "faults of fabrics", of_fabrics, begin_s, end_s, swarm=swarm)


def _drawn(world: World, stream: str, kinds: list[str], begin_s: float, end_s: float, *, swarm: bool) -> list[Planned]:
    """Draws from some kinds, by a stream of luck."""
    luck = world.streams.of(stream)
    chosen = [kind for kind in kinds if luck.random() < 0.5] if swarm else kinds
    chosen = chosen or kinds[:1]
    planned: list[Planned] = []
    for kind in chosen:
        for _ in range(1 + luck.randrange(3)):
            began_s = luck.uniform(begin_s, end_s)
            lasts_s = luck.uniform(0.2, max(0.5, (end_s - begin_s) / 2))
            planned.append(Planned(began_s, min(end_s, began_s + lasts_s), KINDS[kind](luck, world)))
    return planned


def install(world: World, planned: Iterable[Planned]) -> None:
    """Lets the planned faults begin and end in time; what is on is told by `world.faults_on`."""
    for number, entry in enumerate(planned):
        world.at(entry.begin_s, lambda number=number, entry=entry: _begin(world, number, entry.fault))  # type: ignore[misc]
        world.at(entry.end_s, lambda number=number, entry=entry: _end(world, number, entry.fault))  # type: ignore[misc]


def _begin(world: World, number: int, fault: Fault) -> None:
    world.journal.note(world.now, -1, f"fault begins: {fault}")
    world.faults_on[number] = str(fault)
    fault.begin(world)


def _end(world: World, number: int, fault: Fault) -> None:
    world.journal.note(world.now, -1, f"fault ends: {fault}")
    world.faults_on.pop(number, None)
    fault.end(world)
