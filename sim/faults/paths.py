"""What happens to whole paths: they are cut, or clogged and unclogged.

A cut path drops what it is given. A clogged one holds it, and delivers it in order once it is free. Swizzling clogs some nodes
one after another and frees them in another order, so that each sees a mesh in which other nodes are missing.

Source: TigerBeetle, src/testing/packet_simulator.zig, clogged paths; W. Wilson, "Testing Distributed Systems w/ Deterministic
Simulation" (Strange Loop 2014), swizzle-clogging.
"""

from dataclasses import dataclass
from random import Random

from sim.faults.base import Fault, listed, some
from sim.network import Blocked, Clog
from sim.world import World

SWIZZLE_S_MAX = 4.0
"""Seconds in which all nodes of a swizzle are clogged and freed, at most: some silences are longer than 2.5 s, some shorter."""


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
    return split(some(luck, world))


def split(part: frozenset[int]) -> Fault:
    """The nodes of `part` and all others hear nothing of one another."""
    return _Cut(lambda one, other: (one in part) != (other in part), f"partition of {listed(part)}")


def one_way(luck: Random, world: World) -> Fault:
    """One part is not heard by the other, and hears it."""
    part = some(luck, world)
    return _Cut(lambda one, other: one in part and other not in part, f"one-way partition: {listed(part)} not heard")


def isolation(luck: Random, world: World) -> Fault:
    """One node hears nobody and is heard by nobody."""
    alone = luck.randrange(len(world.processes))
    return _Cut(lambda one, other: (one == alone) != (other == alone), f"isolation of n{alone}")


class Clogging:
    """The paths from some nodes to one, or both ways, hold what they carry."""

    def __init__(self, luck: Random, world: World) -> None:
        clogged = luck.randrange(len(world.processes))
        others = some(luck, world) - {clogged}
        both = luck.random() < 0.5

        def blocked(one: int, other: int) -> bool:
            return (other == clogged and one in others) or (both and one == clogged and other in others)

        self._clog = Clog(blocked)
        self._text = f"clogging {'between' if both else 'from'} {listed(others)} {'and' if both else 'to'} n{clogged}"

    def __str__(self) -> str:
        return self._text

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.clogs.append(self._clog)

    def end(self, world: World) -> None:
        """See `Fault`."""
        unclog(world, self._clog)


class Swizzle:
    """All paths of some nodes are clogged, one node after another, and freed in another order; the end frees what is left."""

    def __init__(self, luck: Random, world: World) -> None:
        self.nodes = luck.sample(range(len(world.processes)), max(2, luck.randrange(len(world.processes) + 1)))
        self.span_s = luck.uniform(0.5, SWIZZLE_S_MAX)
        self._freed = luck.sample(self.nodes, len(self.nodes))
        self._clogs = {node: Clog(_around(node)) for node in self.nodes}

    def __str__(self) -> str:
        order = ", ".join(f"n{node}" for node in self.nodes)
        freed = ", ".join(f"n{node}" for node in self._freed)
        return f"swizzle of {order}, freed in the order {freed}, within {self.span_s:.1f} s"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        step_s = self.span_s / (2 * len(self.nodes))
        for place, node in enumerate(self.nodes):
            world.at(world.now + place * step_s, lambda node=node: self._clog(world, node))  # type: ignore[misc]
        for place, node in enumerate(self._freed, len(self.nodes)):
            world.at(world.now + place * step_s, lambda node=node: self._free(world, node))  # type: ignore[misc]

    def end(self, world: World) -> None:
        """See `Fault`."""
        for node in self.nodes:
            self._free(world, node)

    def _clog(self, world: World, node: int) -> None:
        if node in self._clogs:
            world.journal.note(world.now, node, "is clogged")
            world.network.clogs.append(self._clogs[node])

    def _free(self, world: World, node: int) -> None:
        clog = self._clogs.pop(node, None)
        if clog in world.network.clogs:
            world.journal.note(world.now, node, "is unclogged")
            unclog(world, clog)


def unclog(world: World, clog: Clog) -> None:
    """Frees clogged paths; what they held arrives now, in order."""
    world.network.clogs.remove(clog)
    while clog.held:
        world.at(world.now, clog.held.popleft())


def _around(node: int) -> Blocked:
    return lambda one, other: (one == node) != (other == node)
