"""Events of a world that are frequent, as small values that are called when their time has come."""

from typing import TYPE_CHECKING

from sim.process import Link, Process

if TYPE_CHECKING:
    from sim.world import World


class Datagram:
    """A datagram on its way over a connection."""

    __slots__ = ("link", "payload", "receiver", "sender", "world")

    def __init__(self, world: "World", link: Link, sender: Process, receiver: Process, payload: bytes) -> None:
        self.world = world
        self.link = link
        self.sender = sender
        self.receiver = receiver
        self.payload = payload

    def __call__(self) -> None:
        """It arrives."""
        self.world.datagram_arrives(self)


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
