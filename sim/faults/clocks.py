"""A core whose monotonic clock runs fast or slow.

The world knows one time. A `RatedNode` stands between it and a core: every time that goes in is turned into that of the process's
own clock, and the time of the next timer is turned back. It finds the arguments by their names, `now` and `received_at`, so that
it needs no list of the core's methods.
"""

import inspect
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

from protocol.node import Node
from sim.process import Process

TIMES = ("now", "received_at")
"""Names of the arguments that hold a monotonic time."""

ROUNDING_S = 1e-6
"""Seconds by which a timer may seem not yet due only because two conversions were rounded."""


class RatedNode:
    """Behaves as the core it wraps, on a clock of its own."""

    def __init__(self, node: Node, rate: float, now: float) -> None:
        """Wraps a core that has lived by the world's time until now."""
        self.node = node
        self._rate = rate
        self._since = self._seen = now
        self._local = now

    @classmethod
    def wrap(cls, process: Process, rate: float, now: float) -> "RatedNode":
        """Lets a process's clock run at a rate from now on; one that is wrapped already is given the new rate."""
        if isinstance(process.node, cls):
            process.node.set_rate(rate, now)
            return process.node
        rated = cls(process.node, rate, now)
        process.node = cast("Node", rated)
        return rated

    def set_rate(self, rate: float, now: float) -> None:
        """Changes how many of its seconds pass in one of the world's."""
        self._local = self.local(now)
        self._since, self._rate = now, rate

    def local(self, now: float) -> float:
        """The world's time on this clock."""
        return self._local + (now - self._since) * self._rate

    def next_timer(self) -> float:
        """When the core wants to be woken, in the world's time."""
        due = self.node.next_timer()
        if math.isinf(due):
            return due
        when = self._since + (due - self._local) / self._rate
        return max(when, math.nextafter(self._seen, math.inf)) if due > self.local(self._seen) else when

    def handle_timer(self, now: float) -> None:
        """Wakes the core."""
        self._seen = now
        local, due = self.local(now), self.node.next_timer()
        self.node.handle_timer(due if local < due < local + ROUNDING_S else local)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.node, name)
        places = _times_of(type(self.node), name)  # type: ignore[arg-type] # mypy takes a class for unhashable
        return self._translated(attribute, places) if places else attribute

    def _translated(self, method: Callable[..., Any], places: tuple[int, ...]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            given = [self._in(value) if place in places else value for place, value in enumerate(arguments)]
            return method(*given, **{name: self._in(value) if name in TIMES else value for name, value in named.items()})

        return call

    def _in(self, now: float) -> float:
        self._seen = max(self._seen, now)
        return self.local(now)


@lru_cache(maxsize=256)
def _times_of(kind: type[Node], name: str) -> tuple[int, ...]:
    """At which places a method takes a time."""
    method = inspect.getattr_static(kind, name, None)
    if not inspect.isroutine(method):  # compiled methods are no functions, and have signatures all the same
        return ()
    names = list(inspect.signature(method).parameters)[1:]
    return tuple(place for place, parameter in enumerate(names) if parameter in TIMES)
