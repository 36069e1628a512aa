"""One path of this node: its round trip, from samples that are forgotten the sooner the more the path changes.

The round trip is the median of the samples that still count. On a steady path they count for an hour; where samples differ much
from one another, an old one says less than a fresh one of a neighbouring path, and counts for minutes. When three samples in a
row lie on the same side of all before them, the path has changed and the older ones are forgotten.

Source: J. Ledlie, P. Gardner, M. Seltzer, "Network Coordinates in the Wild", NSDI 2007 (filters of few samples).
"""

from collections import deque

from protocol.distances.config import DistanceConfig

_SHIFT_SAMPLES = 3
"""Samples in a row on one side of all others, a count, that make a change of the path: of eight, by chance once in 28 times."""

_SHIFT_RATIO = 1.1
"""How far beyond the others at least, unitless: less is no change that anybody would notice."""


class PathSamples:
    """The samples of one path."""

    __slots__ = ("_samples", "drawn", "rtt_s")

    def __init__(self, samples_max: int) -> None:
        """None yet."""
        self._samples: deque[tuple[float, float]] = deque(maxlen=samples_max)  # (when, seconds), the oldest first
        self.drawn = False
        self.rtt_s = 0.0

    @property
    def newest_at(self) -> float:
        """When the newest sample was taken."""
        return self._samples[-1][0]

    def add(self, rtt_s: float, now: float, config: DistanceConfig) -> None:
        """Takes a sample in."""
        samples = self._samples
        samples.append((now, rtt_s))
        if len(samples) >= 2 * _SHIFT_SAMPLES:
            newest, older = _split(samples)
            if min(newest) > _SHIFT_RATIO * max(older) or _SHIFT_RATIO * max(newest) < min(older):
                for _ in range(len(samples) - _SHIFT_SAMPLES):
                    samples.popleft()
        lasts_s = self.lasts_s(config)
        while len(samples) > 1 and samples[0][0] < now - lasts_s:
            samples.popleft()
        self.rtt_s = _median([rtt for _, rtt in samples])

    def lasts_s(self, config: DistanceConfig) -> float:
        """For how many seconds a sample counts: less where samples differ more."""
        steady = 1.0 / (1.0 + (self.spread() / 0.05) ** 2)
        return config.volatile_s + (config.sample_s - config.volatile_s) * steady

    def is_fresh(self, now: float, config: DistanceConfig) -> bool:
        """Whether the newest sample still counts."""
        return now - self.newest_at <= self.lasts_s(config)

    def spread(self) -> float:
        """The median relative difference of the samples from the round trip, unitless; 0 of a single one."""
        if len(self._samples) < 2:
            return 0.0
        middle = _median([rtt for _, rtt in self._samples])
        return _median([abs(rtt - middle) for _, rtt in self._samples]) / middle

    def __len__(self) -> int:
        """How many samples count."""
        return len(self._samples)


def _split(samples: deque[tuple[float, float]]) -> tuple[list[float], list[float]]:
    rtts = [rtt for _, rtt in samples]
    return rtts[-_SHIFT_SAMPLES:], rtts[:-_SHIFT_SAMPLES]


def _median(values: list[float]) -> float:
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
