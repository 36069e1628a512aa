"""What breaks: each fault a small class, chosen per seed, begun and ended by a schedule.

Swarm testing: a seed leaves out about half of the kinds of fault, because some bugs only show where another fault does not hide
them. The schedule has two phases as TigerBeetle's VOPR: first things break and only safety is demanded, then everything is mended
and progress is demanded.

Source: Groce et al., "Swarm Testing" (ISSTA 2012); Gilbert (1960) and Elliott (1963) for bursts; TigerBeetle, src/vopr.zig.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from sim.network import Blocked, Lossy
from sim.process import Process
from sim.world import World

LOSS_MAX = 0.5
"""Largest share of packets lost, unitless: beyond it a path is as good as cut."""

CLOCK_OFF_S_MAX = 25.0
"""Seconds that a wall clock is off at most: two such clocks stay within the 60 s that records allow."""


class Fault(Protocol):
    """Something that breaks; `begin` breaks it and `end` mends it, each once."""

    def begin(self, world: World) -> None:
        """Breaks it."""
        ...

    def end(self, world: World) -> None:
        """Mends it."""
        ...


class Loss:
    """Every packet is lost with the same probability."""

    def __init__(self, luck: Random, world: World, share: float | None = None) -> None:
        self.share = luck.uniform(0.01, LOSS_MAX) if share is None else share
        stream = world.streams.of("loss")
        self._lossy: Lossy = lambda _now, _one, _other, _datagram: stream.random() < self.share

    def __str__(self) -> str:
        return f"loss of {self.share:.0%}"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.losses.append(self._lossy)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.network.losses.remove(self._lossy)


class BurstLoss:
    """Gilbert-Elliott: every path is good or bad by turns, and loses most packets while it is bad."""

    def __init__(self, luck: Random, world: World) -> None:
        self.worsens = luck.uniform(0.002, 0.02)  # per packet: a burst every 50 to 500 packets
        self.improves = luck.uniform(0.05, 0.3)  # per packet: bursts of 3 to 20 packets
        self.lost_when_bad = luck.uniform(0.5, 0.95)
        self._bad: dict[tuple[int, int], bool] = {}
        stream = world.streams.of("burst loss")

        def lossy(_now: float, one: int, other: int, _datagram: bool) -> bool:
            bad = self._bad.get((one, other), False)
            if stream.random() < (self.improves if bad else self.worsens):
                bad = not bad
            self._bad[one, other] = bad
            return bad and stream.random() < self.lost_when_bad

        self._lossy: Lossy = lossy

    def __str__(self) -> str:
        return f"bursts of loss, {1 / self.improves:.0f} packets long"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.losses.append(self._lossy)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.network.losses.remove(self._lossy)


class Duplication:
    """Datagrams come twice."""

    def __init__(self, luck: Random, _world: World, share: float | None = None) -> None:
        self.share = luck.uniform(0.01, 0.3) if share is None else share

    def __str__(self) -> str:
        return f"duplication of {self.share:.0%}"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.duplications.append(self.share)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.network.duplications.remove(self.share)


class Reordering:
    """Datagrams are late and overtaken by others."""

    def __init__(self, luck: Random, _world: World) -> None:
        self.rule = (luck.uniform(0.01, 0.5), luck.uniform(0.005, 0.2))

    def __str__(self) -> str:
        return f"reordering of {self.rule[0]:.0%} by up to {self.rule[1] * 1000:.0f} ms"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.reorderings.append(self.rule)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.network.reorderings.remove(self.rule)


@dataclass(eq=False)
class _Cut:
    """Paths over which nothing passes."""

    blocked: Blocked
    text: str

    def __str__(self) -> str:
        return self.text

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.blocks.append(self.blocked)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.network.blocks.remove(self.blocked)


def partition(luck: Random, world: World) -> Fault:
    """Two parts that hear nothing of one another."""
    return split(_some(luck, world))


def split(part: frozenset[int]) -> Fault:
    """The nodes of `part` and all others hear nothing of one another."""
    return _Cut(lambda one, other: (one in part) != (other in part), f"partition of {_listed(part)}")


def one_way(luck: Random, world: World) -> Fault:
    """One part is not heard by the other, and hears it."""
    part = _some(luck, world)
    return _Cut(lambda one, other: one in part and other not in part, f"one-way partition: {_listed(part)} not heard")


def isolation(luck: Random, world: World) -> Fault:
    """One node hears nobody and is heard by nobody."""
    alone = luck.randrange(len(world.processes))
    return _Cut(lambda one, other: (one == alone) != (other == alone), f"isolation of n{alone}")


class Crash:
    """A process dies, and comes back when the fault ends, with its disk or without."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process = luck.choice(world.processes)
        self.keeps_disk = luck.random() < 0.5
        self._did = False

    def __str__(self) -> str:
        return f"crash of n{self.process.index}, {'with' if self.keeps_disk else 'without'} its disk"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        if self.process.running:
            world.kill(self.process, keeps_disk=self.keeps_disk)
            self._did = True

    def end(self, world: World) -> None:
        """See `Fault`."""
        if self._did and not self.process.running:
            world.start(self.process)


class Pause:
    """A process is stopped (SIGSTOP) and goes on when the fault ends."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process = luck.choice(world.processes)

    def __str__(self) -> str:
        return f"n{self.process.index} stopped"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.pause(self.process)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.resume(self.process)


class Clock:
    """A process's wall clock jumps away, and back when the fault ends."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process = luck.choice(world.processes)
        self.off_s = luck.uniform(-CLOCK_OFF_S_MAX, CLOCK_OFF_S_MAX)

    def __str__(self) -> str:
        return f"clock of n{self.process.index} {self.off_s:+.1f} s off"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.shift_clock(self.process, self.off_s)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.shift_clock(self.process, 0.0)


class Slowness:
    """A process takes a while for each event, and its uplink is narrow."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process: Process = luck.choice(world.processes)
        self.slow_s = luck.uniform(0.0001, 0.002)
        self.rate = luck.uniform(50_000.0, 500_000.0)

    def __str__(self) -> str:
        return f"n{self.process.index} slow: {self.slow_s * 1000:.1f} ms per event, {self.rate / 1000:.0f} kB/s"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        self.process.slow_s = self.slow_s
        world.network.rates[self.process.index] = self.rate

    def end(self, world: World) -> None:
        """See `Fault`."""
        self.process.slow_s = 0.0
        world.network.rates.pop(self.process.index, None)


class MakeFault(Protocol):
    """How a fault of a kind is drawn."""

    def __call__(self, luck: Random, world: World, /) -> Fault:
        """Draws one."""
        ...


KINDS: dict[str, MakeFault] = {
    "loss": Loss,
    "bursts": BurstLoss,
    "duplication": Duplication,
    "reordering": Reordering,
    "partition": partition,
    "one-way": one_way,
    "isolation": isolation,
    "crash": Crash,
    "pause": Pause,
    "clock": Clock,
    "slow": Slowness,
}


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault with its time."""

    begin_s: float
    end_s: float
    fault: Fault


def names_of(text: str) -> tuple[str, ...]:
    """Reads `all`, `none` or names with commas between them.

    Raises:
        ValueError: for a name that is no kind of fault.
    """
    if text in ("all", "none"):
        return tuple(KINDS) if text == "all" else ()
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in KINDS:
            raise ValueError(f"{name!r} is no fault; there are {', '.join(KINDS)}, all and none")
    return names


def plan(world: World, names: Iterable[str], begin_s: float, end_s: float, *, swarm: bool = True) -> list[Planned]:
    """Draws what breaks from `begin_s` to `end_s`: about half of the kinds when `swarm`, each one to three times."""
    luck = world.streams.of("faults")
    kinds = list(names)
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


def _some(luck: Random, world: World) -> frozenset[int]:
    nodes = len(world.processes)
    return frozenset(luck.sample(range(nodes), max(1, luck.randrange(max(2, nodes // 2 + 1)))))


def _listed(part: frozenset[int]) -> str:
    shown = ", ".join(f"n{index}" for index in sorted(part)[:6])
    return f"{shown} and {len(part) - 6} more" if len(part) > 6 else shown
