"""Who is stopped when: at any time a share of the processes is, each for 0.5 to 5 s; the same plan for every contestant."""

import heapq
from bisect import bisect_right
from dataclasses import dataclass
from operator import attrgetter
from random import Random

SHARE = 0.1
"""Share of the processes that are stopped at any time, unitless."""

SHORTEST_S = 0.5
"""Seconds of the shortest stall."""

LONGEST_S = 5.0
"""Seconds of the longest stall."""

REST_S = 10.0
"""Seconds between two stalls of one process, so that what follows a stall can be told to be its doing."""

BLAME_S = 30.0
"""Seconds after a stall within which a death of the process that was stopped is put down to it: longer than SWIM's suspicion at
100 nodes, which is 10 s."""


@dataclass(frozen=True, slots=True)
class Stall:
    """One process stopped from `begin_s` to `end_s`."""

    index: int
    begin_s: float
    end_s: float

    @property
    def lasts_s(self) -> float:
        """How long it is stopped."""
        return self.end_s - self.begin_s


class StallPlan:
    """All stalls of a run, in order of their beginnings."""

    def __init__(self, nodes: int, begin_s: float, end_s: float, luck: Random) -> None:
        """Draws them.

        Args:
            nodes: how many processes there are.
            begin_s: when the first ones are stopped.
            end_s: after this none begins.
            luck: what they are drawn from.
        """
        self.stalls: list[Stall] = []
        slots = [begin_s + luck.uniform(0.0, LONGEST_S) for _ in range(max(1, round(SHARE * nodes)))]
        heapq.heapify(slots)
        free_at = [begin_s] * nodes
        while slots and slots[0] < end_s:
            now = heapq.heappop(slots)
            able = [index for index in range(nodes) if free_at[index] <= now]
            if not able:
                heapq.heappush(slots, min(free_at))
                continue
            stall = Stall(luck.choice(able), now, now + luck.uniform(SHORTEST_S, LONGEST_S))
            free_at[stall.index] = stall.end_s + REST_S
            self.stalls.append(stall)
            heapq.heappush(slots, stall.end_s)
        self._of: list[list[Stall]] = [[] for _ in range(nodes)]
        for stall in sorted(self.stalls, key=attrgetter("begin_s")):
            self._of[stall.index].append(stall)

    def blamed(self, index: int, at: float) -> Stall | None:
        """The stall that a death of the process at that time is put down to; None when it was not stopped lately."""
        stalls = self._of[index]
        place = bisect_right(stalls, at, key=attrgetter("begin_s")) - 1
        return stalls[place] if place >= 0 and at < stalls[place].end_s + BLAME_S else None
