"""One path of this node: its round trip, from the last samples of an hour.

On a steady path it is their median. Where samples differ much from one another the path has queues: what it will take next is
then nearer to the least of the samples than to their median, and the more they differ, the more so. When three samples in a row
lie on the same side of all before them, the path has changed and the older ones are forgotten.

Source: J. Ledlie, P. Gardner, M. Seltzer, "Network Coordinates in the Wild", NSDI 2007 (filters of few samples, low percentiles).
"""

import math
from array import array
from statistics import median

from protocol.distances.config import DistanceConfig

_SHIFT_SAMPLES = 3
"""Samples in a row on one side of all others, a count, that make a change of the path: of eight, by chance once in 28 times."""

_SHIFT_RATIO = 1.1
"""How far beyond the others at least, unitless: less is no change that anybody would notice."""

_STEADY_SPREAD = 0.05
"""Median difference of the samples, relative to their median, at which a path is half steady: nine of ten PlanetLab paths stay
below 0.02; of the Seattle paths half lie above 0.05 and a tenth above 0.47."""


class PathSamples:
    """The samples of one path."""

    __slots__ = ("_samples", "drawn", "fresh_until", "rtt_s", "steadiness")

    def __init__(self) -> None:
        """None yet."""
        self._samples = array("d")  # when and how many seconds, by turns, the oldest first
        self.drawn = False
        self.rtt_s = 0.0
        self.steadiness = 1.0  # 1 where the samples agree, towards 0 the more they differ
        self.fresh_until = -math.inf  # monotonic seconds until which the newest sample counts

    def add(self, rtt_s: float, now: float, config: DistanceConfig) -> None:
        """Takes a sample in."""
        samples = self._samples
        samples.extend((now, rtt_s))
        if len(self) > config.samples_max:
            del samples[:2]
        newest, older = samples[1::2][-_SHIFT_SAMPLES:], samples[1::2][:-_SHIFT_SAMPLES]
        if len(older) >= _SHIFT_SAMPLES and (min(newest) > _SHIFT_RATIO * max(older) or _SHIFT_RATIO * max(newest) < min(older)):
            del samples[: -2 * _SHIFT_SAMPLES]
        while samples[0] < now - config.sample_s:
            del samples[:2]
        self.steadiness = 1.0 / (1.0 + (self.spread() / _STEADY_SPREAD) ** 2)
        self.rtt_s = self._at(0.5 * self.steadiness)
        self.fresh_until = now + config.sample_s

    def newest_at(self) -> float:
        """When the newest sample was taken, in monotonic seconds."""
        return self._samples[-2]

    def is_fresh(self, now: float) -> bool:
        """Whether the newest sample still counts."""
        return now <= self.fresh_until

    def spread(self) -> float:
        """The median relative difference of the samples from their median, unitless; 0 of a single one."""
        rtts = self._samples[1::2]
        if len(rtts) < 2:
            return 0.0
        middle = median(rtts)
        return median([abs(rtt - middle) for rtt in rtts]) / middle

    def __len__(self) -> int:
        """How many samples count."""
        return len(self._samples) // 2

    def _at(self, share: float) -> float:
        """The sample, in seconds, that this share of them lies below; between two of them a mean of both."""
        rtts = sorted(self._samples[1::2])
        place = share * (len(rtts) - 1)
        below = int(place)
        if below + 1 == len(rtts):
            return rtts[below]
        return min(rtts[below] + (place - below) * (rtts[below + 1] - rtts[below]), rtts[below + 1])
