"""What a fault is, and how one of a kind is drawn."""

from random import Random
from typing import Protocol

from sim.world import World


class Fault(Protocol):
    """Something that breaks; `begin` breaks it and `end` mends it, each once. Its text says what it is."""

    def begin(self, world: World) -> None:
        """Breaks it."""
        ...

    def end(self, world: World) -> None:
        """Mends it."""
        ...


class MakeFault(Protocol):
    """How a fault of a kind is drawn."""

    def __call__(self, luck: Random, world: World, /) -> Fault:
        """Draws one."""
        ...


def some(luck: Random, world: World) -> frozenset[int]:
    """At least one and at most half of the nodes."""
    nodes = len(world.processes)
    return frozenset(luck.sample(range(nodes), max(1, luck.randrange(max(2, nodes // 2 + 1)))))


def listed(part: frozenset[int]) -> str:
    """Nodes as a text."""
    shown = ", ".join(f"n{index}" for index in sorted(part)[:6])
    return f"{shown} and {len(part) - 6} more" if len(part) > 6 else shown
