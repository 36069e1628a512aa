"""Deadlines by key: one due time per key, the earliest first.

A machine with many peers or requests asks after every event when it has to wake next. A heap with lazy deletion answers without
looking at all of them: `set` pushes, an outdated entry is skipped when it surfaces, and the heap is rebuilt when outdated
entries outnumber the living ones, so that its size stays within twice the number of keys plus a constant.

Source: CPython documentation, heapq, "Priority Queue Implementation Notes".
"""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

_SLACK_ENTRIES = 64
"""Outdated entries that are tolerated before a rebuild is considered: a rebuild of so few costs less than the check saves."""


class TimerQueue(Generic[Key]):
    """Due times in seconds of `now`, at most one per key."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._pushed = 0  # breaks ties in order of arrival, so that keys are never compared

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: Key) -> bool:
        return key in self._due

    def set(self, key: Key, due: float) -> None:
        """Let `key` be due at `due`, in place of any earlier time of the same key."""
        self._due[key] = due
        self._pushed += 1
        heapq.heappush(self._heap, (due, self._pushed, key))
        if len(self._heap) > 2 * len(self._due) + _SLACK_ENTRIES:
            self._rebuild()

    def discard(self, key: Key) -> None:
        """Forget `key`; nothing happens when it has no due time."""
        self._due.pop(key, None)
        if len(self._heap) > 2 * len(self._due) + _SLACK_ENTRIES:
            self._rebuild()

    def due_of(self, key: Key) -> float | None:
        """When `key` is due, or None."""
        return self._due.get(key)

    def keys(self) -> list[Key]:
        """The keys that have a due time, in the order in which they were first set."""
        return list(self._due)

    def next_due(self) -> float | None:
        """The earliest due time, or None when there is no key."""
        heap = self._heap
        if not heap:
            return None
        due, _, key = heap[0]
        if self._due.get(key) == due:
            return due
        self._drop_outdated()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> tuple[Key, float] | None:
        """Take the earliest key that is due at `now`, with its due time, or None."""
        if not self._heap or self._heap[0][0] > now:  # what is outdated may only hide what is due later
            return None
        self._drop_outdated()
        if not self._heap or self._heap[0][0] > now:
            return None
        due, _, key = heapq.heappop(self._heap)
        del self._due[key]
        return key, due

    def _drop_outdated(self) -> None:
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)

    def _rebuild(self) -> None:
        living = {key: (due, order, key) for due, order, key in sorted(self._heap) if self._due.get(key) == due}
        self._heap = list(living.values())
        heapq.heapify(self._heap)
