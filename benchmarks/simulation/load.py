"""Work that comes and goes: every node is a queue with its own rate, and its load is told to the core as the shell tells it.

Requests come at random times (Poisson), wait for one of the node's slots, and take a random time (exponential): M/M/c, the model
by which routing predicts queues. Nodes differ in how busy they are. What the load truly is at every moment is kept, so that it
can be compared with what others know.

Source: L. Kleinrock, "Queueing Systems", volume 1 (1975), section 3.5; LOAD_INTERVAL_S of mesh/service.py for how often the shell
asks the engines.
"""

import math
from collections.abc import Callable

from protocol.load import ModelLoad
from protocol.queues import turns
from sim.process import Process
from sim.world import World

TOLD_EVERY_S = 0.25
"""Seconds between two looks at the engines, as in the shell."""

SLOTS = 8
"""Requests served at once, a count: a small accelerator's batch."""

SERVICE_S = 2.0
"""Mean seconds of one request: some tens of tokens."""

BUSY = (0.1, 0.9)
"""Share of its slots that a node has busy on average, from the idlest to the busiest, unitless."""

LENGTH_MAX = 64
"""Requests at one node, waiting ones included, a count: more are refused."""


SAME_WAIT = 0.2
"""Service times by which two expected waits may differ and still count as the same: what routing makes of them hardly differs."""


class Load:
    """Drives all processes of a world from the moment it is made."""

    def __init__(self, world: World) -> None:
        """Gives every process its rate and lets work come."""
        self.world = world
        self.history: list[list[tuple[float, tuple[int, int]]]] = []  # per process: since when it had (running, waiting)
        self._luck = world.streams.of("load")
        self._length: list[int] = []
        self._rate: list[float] = []
        self._next: list[tuple[float, bool]] = []
        self._told: list[object] = [None] * len(world.processes)  # the load that each core was told, and in which life
        for process in world.processes:
            busy = self._luck.uniform(*BUSY)
            self._rate.append(busy * SLOTS / SERVICE_S)
            self._length.append(round(busy * SLOTS))
            self.history.append([(world.now, self._pair(process.index))])
            self._next.append(self._drawn(process.index, world.now))
            world.at(world.now + self._luck.uniform(0.0, TOLD_EVERY_S), lambda process=process: self._tell(process))  # type: ignore[misc]

    def _pair(self, index: int) -> tuple[int, int]:
        length = self._length[index]
        return min(length, SLOTS), max(0, length - SLOTS)

    def _drawn(self, index: int, now: float) -> tuple[float, bool]:
        """When the next request comes to a process or leaves it, and whether it comes."""
        leaving = min(self._length[index], SLOTS) / SERVICE_S
        total = self._rate[index] + leaving
        comes = self._luck.random() < self._rate[index] / total
        return now + self._luck.expovariate(total), comes

    def _catch_up(self, index: int) -> None:
        """Lets come and leave what has until now; nobody looks in between, so that it need not be an event each."""
        at, comes = self._next[index]
        while at <= self.world.now:
            self._length[index] = min(LENGTH_MAX, self._length[index] + 1) if comes else self._length[index] - 1
            self.history[index].append((at, self._pair(index)))
            at, comes = self._drawn(index, at)
        self._next[index] = at, comes

    def _tell(self, process: Process) -> None:
        self._catch_up(process.index)
        pair = self._pair(process.index)
        if process.works and (pair, process.life) != self._told[process.index]:
            self._told[process.index] = pair, process.life
            running, waiting = pair
            queue_s = waiting * SERVICE_S / SLOTS
            process.node.handle_load((ModelLoad("echo", running, waiting, SLOTS, queue_s, SERVICE_S),))
            self.world.settle(process)
        looks = max(1, math.ceil((self._next[process.index][0] - self.world.now) / TOLD_EVERY_S))  # those before find nothing new
        self.world.at(self.world.now + looks * TOLD_EVERY_S, lambda: self._tell(process))

    def wrong_for_s(self, index: int, known: tuple[int, int]) -> float | None:
        """For how long the load of a process has not been what is known of it: 0 while it is; None when it never was."""
        return self._since(index, lambda pair: pair == known)

    def misjudged_for_s(self, index: int, known: tuple[int, int]) -> float | None:
        """For how long the wait at a process has been other than what is known of its load says: 0 while it is near enough."""
        wait = _turns(known)
        return self._since(index, lambda pair: abs(_turns(pair) - wait) <= SAME_WAIT)

    def _since(self, index: int, holds: Callable[[tuple[int, int]], bool]) -> float | None:
        self._catch_up(index)
        ends_at = None
        for began_at, pair in reversed(self.history[index]):
            if holds(pair):
                return 0.0 if ends_at is None else self.world.now - ends_at
            ends_at = began_at
        return None


def _turns(pair: tuple[int, int]) -> float:
    """The wait for a slot, in service times."""
    running, waiting = pair
    return turns(ModelLoad("echo", running, waiting, SLOTS, 0.0, SERVICE_S))
