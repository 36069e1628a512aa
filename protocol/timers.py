"""Deadlines by key: one due time per key, the earliest first.

A machine with many peers or requests asks after every event when it has to wake next. A heap with lazy deletion answers without
looking at all of them. Most due times are moved to later ones before they come, as a peer is heard again and again: then nothing
is pushed, and the entry takes its place anew when it surfaces. A move to an earlier time pushes; what is outdated is skipped
when it surfaces, and the heap is rebuilt when outdated entries outnumber the living ones, so that its size stays within twice the
number of keys plus a constant.

Source: CPython documentation, heapq, "Priority Queue Implementation Notes".
"""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

_SLACK_ENTRIES = 64
"""Outdated entries that are tolerated before a rebuild is considered: a rebuild of so few costs less than the check saves."""

_NOWHERE = float("-inf")
"""Where the entry of a key that is forgotten stands in the heap: no due time is as early."""


class _Entry(Generic[Key]):
    """One key: when it is due, and at which earlier or equal time it stands in the heap; other places there are outdated."""

    __slots__ = ("due", "key", "stands_at")

    def __init__(self, key: Key, due: float) -> None:
        self.key = key
        self.due = due
        self.stands_at = due


class TimerQueue(Generic[Key]):
    """Due times in seconds of `now`, at most one per key."""

    def __init__(self) -> None:
        self._due: dict[Key, _Entry[Key]] = {}
        self._heap: list[tuple[float, int, _Entry[Key]]] = []
        self._pushed = 0  # breaks ties in order of arrival, so that entries are never compared

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: Key) -> bool:
        return key in self._due

    def set(self, key: Key, due: float) -> None:
        """Let `key` be due at `due`, in place of any earlier time of the same key."""
        entry = self._due.get(key)
        if entry is None:
            entry = self._due[key] = _Entry(key, due)
        else:
            entry.due = due
            if entry.stands_at <= due:
                return
            entry.stands_at = due
        self._pushed += 1
        heapq.heappush(self._heap, (due, self._pushed, entry))
        if len(self._heap) > 2 * len(self._due) + _SLACK_ENTRIES:
            self._rebuild()

    def discard(self, key: Key) -> None:
        """Forget `key`; nothing happens when it has no due time."""
        entry = self._due.pop(key, None)
        if entry is not None:
            entry.stands_at = _NOWHERE
        if len(self._heap) > 2 * len(self._due) + _SLACK_ENTRIES:
            self._rebuild()

    def due_of(self, key: Key) -> float | None:
        """When `key` is due, or None."""
        entry = self._due.get(key)
        return None if entry is None else entry.due

    def keys(self) -> list[Key]:
        """The keys that have a due time, in the order in which they were first set."""
        return list(self._due)

    def next_due(self) -> float | None:
        """The earliest due time, or None when there is no key."""
        heap = self._heap
        while heap:
            at, _, entry = heap[0]
            if entry.stands_at == at:
                if entry.due == at:
                    return at
                self._pushed += 1
                entry.stands_at = entry.due
                heapq.heapreplace(heap, (entry.due, self._pushed, entry))
            else:
                heapq.heappop(heap)
        return None

    def pop_due(self, now: float) -> tuple[Key, float] | None:
        """Take the earliest key that is due at `now`, with its due time, or None."""
        if not self._heap or self._heap[0][0] > now:  # what is outdated may only hide what is due later
            return None
        due = self.next_due()
        if due is None or due > now:
            return None
        _, _, entry = heapq.heappop(self._heap)
        entry.stands_at = _NOWHERE
        del self._due[entry.key]
        return entry.key, due

    def _rebuild(self) -> None:
        living = {entry.key: (at, order, entry) for at, order, entry in sorted(self._heap) if entry.stands_at == at}
        self._heap = list(living.values())
        heapq.heapify(self._heap)


def sooner(due: float, timer: float | None) -> float:
    """The earlier of two times, one of which may be missing."""
    return due if timer is None or timer >= due else timer
