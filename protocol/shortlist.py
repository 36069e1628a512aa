"""Whom to measure before a request goes out: the few of whom it is not clear who would answer soonest.

Every candidate has an interval of times in which its answer may be here. Where nobody's interval reaches below the best one's
time there is nothing to find out. Otherwise those that reach below it and were not measured lately may be measured now, the most
likely first, `probes_max` of them, as long as what that is likely to save is more than what it is likely to cost:

    saving = E[max(0, the best one's time - its time)],    cost = P(nobody is sooner) x the wait,

with each time spread evenly over its interval. Where the best itself was not measured it has to be dialled anyway, so that the
wait costs nothing.

Nobody waits for what cannot change the choice any more. Whoever has not answered after t seconds is at least t away, or half of
that where it is dialled; so the wait ends when even an answer that came at once would not have been worth it.

Source: H. Raiffa, R. Schlaifer, "Applied Statistical Decision Theory", 1961, part I (the value of information, the cost of a
sample); RFC 8305 section 5 (a race with an upper bound).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from protocol.identity import PeerId

DIAL_ROUND_TRIPS = 2
"""Round trips, a count, until a dial has ended: who dials knows that it was let in when the handshake is confirmed, which comes
after the flight that proves who it is (RFC 9001 section 4.1.2)."""

_POINT_S = 1e-6
"""Seconds: the shortest interval that is reckoned with; shorter than any that matters."""


@dataclass(frozen=True, slots=True)
class ShortlistConfig:
    """Bounds.

    Attributes:
        probes_max: peers measured for one request, a count: with eight the nearest of 64 is found in more than nine of ten cases
            where estimates are as good as this mesh's (docs/measurements.md, "Distances").
        wait_s_max: seconds that a request waits at most: a dial half round the world, twice `RoutingConfig.rtt_unknown_s`.
        worth_s: seconds that each must win on average: a handshake costs either end some three milliseconds of its processor
            (docs/measurements.md, "Other libp2p programs"), and what it tells serves for many requests.
    """

    probes_max: int = 8
    wait_s_max: float = 0.6
    worth_s: float = 0.001


@dataclass(frozen=True, slots=True)
class Contender:
    """A candidate with the bounds of its answer; seconds.

    Attributes:
        peer_id: who.
        rest_s: what of its time is no path: queue and service.
        low_s: shortest round trip that is plausible.
        rtt_s: the likely one.
        high_s: longest one that is plausible.
        turns: round trips until its answer is here: 1 where it is connected, 2 where it has to be dialled first.
        fresh: whether its path was measured lately; its bounds are then the round trip, margins included.
    """

    peer_id: PeerId
    rest_s: float
    low_s: float
    rtt_s: float
    high_s: float
    turns: int = 1
    fresh: bool = False

    def after(self, rtt_s: float) -> float:
        """Its time when the round trip is so long."""
        return self.rest_s + self.turns * rtt_s

    @property
    def tells_after(self) -> int:
        """Round trips, a count, until measuring it tells something."""
        return 1 if self.turns == 1 else DIAL_ROUND_TRIPS

    def patience_s(self, limit_s: float) -> float:
        """For how long to wait for it at most where the other way takes so long: what it waits for, it has no more."""
        left_s = limit_s - self.rest_s
        return left_s if self.turns == 1 else left_s / (1.0 + 1.0 / DIAL_ROUND_TRIPS)


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Who is to be measured.

    Attributes:
        asked: those to be measured, the most likely first; the best is among them unless it was measured lately.
        known_s: the best one's time where it was measured lately, else infinite.
        wait_s: seconds after which the request goes out whoever has answered.
        worth_s: seconds below which a difference is none.
    """

    asked: tuple[Contender, ...]
    known_s: float
    wait_s: float
    worth_s: float

    @property
    def least_s(self) -> float:
        """After how many seconds an answer is likely at the earliest; with less time there is no use in asking."""
        return min(contender.tells_after * contender.rtt_s for contender in self.asked)

    def until(self, open_since: Mapping[PeerId, float], answers: Mapping[PeerId, float]) -> float:
        """Until when an answer that is still to come may change the choice, as monotonic time; in the past where none may.

        Args:
            open_since: those that have not answered yet, and since when they are being measured.
            answers: measured round trips in seconds. Who was dialled for it is connected now.
        """
        found = [contender.rest_s + answers[contender.peer_id] for contender in self.asked if contender.peer_id in answers]
        limit_s = min([self.known_s, *found]) - self.worth_s
        until = float("-inf")
        for contender in self.asked:
            since = open_since.get(contender.peer_id)
            if since is not None and contender.after(contender.low_s) < limit_s:
                until = max(until, since + contender.patience_s(limit_s))
        return until


def shortlist(
    best: Contender, others: Sequence[Contender], config: ShortlistConfig, toss: Callable[[], float]
) -> Shortlist | None:
    """Whom to measure before the best is asked, None where that is not worth it.

    Args:
        best: who would be asked now.
        others: those that would be asked in its place if they were sooner.
        config: bounds.
        toss: chance between 0 and 1, so that not all nodes measure the same of many that seem as near.
    """
    limit_s, gaps = best.after(best.high_s), dict[PeerId, float]()
    for other in others:
        if not other.fresh and other.tells_after * other.rtt_s <= config.wait_s_max and other.after(other.low_s) < limit_s:
            gap_s = expected_gap(best, other)
            if gap_s > config.worth_s:
                gaps[other.peer_id] = gap_s
    if not gaps:
        return None
    able = [contender for contender in (best, *others) if contender.peer_id in gaps or (contender is best and not best.fresh)]
    drawn = sorted((contender.after(contender.rtt_s), toss(), number) for number, contender in enumerate(able))
    asked = tuple(able[number] for _, _, number in drawn[: config.probes_max])
    rivals = [contender for contender in asked if contender is not best]
    for_best_s = 0.0 if best.fresh else best.tells_after * best.high_s  # it has to be dialled anyway
    wait_s = min(config.wait_s_max, max([for_best_s, *(rival.patience_s(limit_s) for rival in rivals)]))
    cost_s = chance_of_none(limit_s, rivals) * wait_s if best.fresh else 0.0
    if max([gaps[rival.peer_id] for rival in rivals], default=0.0) <= cost_s:
        return None
    return Shortlist(asked, limit_s if best.fresh else float("inf"), wait_s, config.worth_s)


def expected_gap(one: Contender, other: Contender) -> float:
    """By how many seconds the other is sooner on average, where it is, and 0 where it is not: E[max(0, one - other)].

    Source: both times are spread evenly, so it is a second integral of max(0, z) over the corners of their rectangle.
    """
    first_s, last_s = one.after(one.low_s), one.after(one.high_s)
    soonest_s, latest_s = other.after(other.low_s), other.after(other.high_s)
    first_s, soonest_s = min(first_s, last_s - _POINT_S), min(soonest_s, latest_s - _POINT_S)  # a point is a short interval
    corners = _cube(last_s - soonest_s) - _cube(last_s - latest_s) - _cube(first_s - soonest_s) + _cube(first_s - latest_s)
    return max(0.0, corners / (6.0 * (last_s - first_s) * (latest_s - soonest_s)))


def chance_of_none(limit_s: float, rivals: Sequence[Contender]) -> float:
    """The chance that none of them is there within so many seconds."""
    none = 1.0
    for rival in rivals:
        soonest_s, latest_s = rival.after(rival.low_s), rival.after(rival.high_s)
        none *= 0.0 if latest_s <= limit_s else min(1.0, (latest_s - limit_s) / max(latest_s - soonest_s, _POINT_S))
    return none


def _cube(gap_s: float) -> float:
    return max(0.0, gap_s) ** 3
