"""Events of a world that are frequent, as small values that are called when their time has come."""

from typing import TYPE_CHECKING

from sim.process import Lane, Process

if TYPE_CHECKING:
    from sim.world import World


class Datagram:
    """A datagram on its way over a connection."""

    __slots__ = ("lane", "payload")

    def __init__(self, lane: Lane, payload: bytes) -> None:
        self.lane = lane
        self.payload = payload

    def __call__(self) -> None:
        """It arrives."""
        self.lane.world.datagram_arrives(self)


class Alarm:
    """The time at which the core of a process wanted to be woken, in one life of it."""

    __slots__ = ("due", "life", "process", "world")

    def __init__(self, world: "World", process: Process, life: int, due: float) -> None:
        self.world = world
        self.process = process
        self.life = life
        self.due = due

    def __call__(self) -> None:
        """It has come, unless another has been set meanwhile."""
        if self.process.armed_for == self.due:
            self.world.ring(self.process, self.life)
