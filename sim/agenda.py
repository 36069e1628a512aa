"""What is to happen, in the order of time: a calendar queue.

Events of one slot of time lie together in no order; a heap knows the slots alone. When a slot's turn comes its events are sorted,
and what is still put into it then is put in its place. In a mesh of a thousand nodes a slot holds dozens of events, so that an
event costs an entry at the end of a list and its share of a sort, and not a way through a heap of thousands.

Source: R. Brown, "Calendar queues: a fast O(1) priority queue implementation for the simulation event set problem" (CACM 1988).
"""

import heapq
from bisect import insort
from collections.abc import Callable

SLOTS_PER_S = 1000.0
"""Slots in a second, a count: a slot of a millisecond holds some forty events of a thousand nodes at rest."""

Event = tuple[float, int, Callable[[], None]]
"""When, the how manieth that was put in, and what is called."""


class Agenda:
    """Events of the same time happen in the order in which they were put in."""

    def __init__(self) -> None:
        """Nothing is to happen."""
        self._slots: dict[int, list[Event]] = {}
        self._order: list[int] = []  # a heap of the slots
        self._now: list[Event] = []  # of the slot whose turn it is, the latest first
        self._now_slot = -1
        self._put = 0

    def __len__(self) -> int:
        """How many events are to come."""
        return len(self._now) + sum(map(len, self._slots.values()))

    def put(self, when: float, event: Callable[[], None]) -> None:
        """Lets something happen at a time, which must not lie before that of an event that was taken."""
        self._put += 1
        slot = int(when * SLOTS_PER_S)
        if slot <= self._now_slot:
            insort(self._now, (when, self._put, event), key=_from_the_latest)
            return
        events = self._slots.get(slot)
        if events is None:
            self._slots[slot] = [(when, self._put, event)]
            heapq.heappush(self._order, slot)
        else:
            events.append((when, self._put, event))

    def take(self, until: float) -> Event | None:
        """The next event that happens by a time, or None."""
        while not self._now:
            if not self._order or self._order[0] > until * SLOTS_PER_S:
                return None
            self._now_slot = heapq.heappop(self._order)
            self._now = self._slots.pop(self._now_slot)
            self._now.sort(reverse=True)
        if self._now[-1][0] > until:
            return None
        return self._now.pop()


def _from_the_latest(event: Event) -> tuple[float, int]:
    """By what the events of a slot are sorted."""
    return -event[0], -event[1]
