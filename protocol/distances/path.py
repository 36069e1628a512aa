"""One path of this node: its round trip, from samples that are forgotten the sooner the more the path changes.

The round trip is the median of the samples that still count. On a steady path they count for an hour; where samples differ much
from one another, an old one says less than a fresh one of a neighbouring path, and counts for minutes. When three samples in a
row lie on the same side of all before them, the path has changed and the older ones are forgotten.

Source: J. Ledlie, P. Gardner, M. Seltzer, "Network Coordinates in the Wild", NSDI 2007 (filters of few samples).
"""

import math
from array import array
from statistics import median

from protocol.distances.config import DistanceConfig

_SHIFT_SAMPLES = 3
"""Samples in a row on one side of all others, a count, that make a change of the path: of eight, by chance once in 28 times."""

_SHIFT_RATIO = 1.1
"""How far beyond the others at least, unitless: less is no change that anybody would notice."""


class PathSamples:
    """The samples of one path."""

    __slots__ = ("_samples", "drawn", "fresh_until", "rtt_s")

    def __init__(self) -> None:
        """None yet."""
        self._samples = array("d")  # when and how many seconds, by turns, the oldest first
        self.drawn = False
        self.rtt_s = 0.0
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
        lasts_s = self.lasts_s(config)
        while len(self) > 1 and samples[0] < now - lasts_s:
            del samples[:2]
        self.rtt_s = median(samples[1::2])
        self.fresh_until = now + lasts_s

    def lasts_s(self, config: DistanceConfig) -> float:
        """For how many seconds a sample counts: less where samples differ more."""
        steady = 1.0 / (1.0 + (self.spread() / 0.05) ** 2)
        return config.volatile_s + (config.sample_s - config.volatile_s) * steady

    def is_fresh(self, now: float) -> bool:
        """Whether the newest sample still counts."""
        return now <= self.fresh_until

    def spread(self) -> float:
        """The median relative difference of the samples from the round trip, unitless; 0 of a single one."""
        rtts = self._samples[1::2]
        if len(rtts) < 2:
            return 0.0
        middle = median(rtts)
        return median([abs(rtt - middle) for rtt in rtts]) / middle

    def __len__(self) -> int:
        """How many samples count."""
        return len(self._samples) // 2
