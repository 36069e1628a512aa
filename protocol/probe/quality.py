"""What the probes tell of one path: the nonces that were sent over it, and the round trips of those that came back.

A nonce is sent in a probe, or in an echo whose third leg is to return it. Each counts once, and only by the leg that it was drawn
for: an echo returns what a probe carried, a third leg what an echo carried. Both are round trips by this node's own clock, so
both feed the same figures; what does not come back counts as lost, whichever of the two it was.

Source: RFC 3550 section 6.4.1 (jitter).
Spec: docs/spec/05-coordinates.md.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import median

from protocol.probe.config import ProbeConfig

JITTER_GAIN = 1 / 16
"""Share of one sample in the jitter, unitless: RFC 3550 section 6.4.1."""


@dataclass(frozen=True, slots=True)
class PathQuality:
    """What the probes tell of one path.

    Attributes:
        rtt_s: median of the newest samples, in seconds.
        rtt_s_min: smallest sample in the window: the path without queues.
        jitter_s: mean difference between neighbouring samples, smoothed as in RFC 3550.
        loss: share of the window's nonces that did not come back, 0 to 1, the ones still under way left out.
        usual_jitter_s: the jitter, or the median difference between neighbouring samples of the window where that is less: one
            stall of either machine does not move it.
        usual_loss: the loss with one nonce fewer lost: a single one that is missing, of eight or of eighty, makes no rate.
        samples: how many samples the window holds.
        measured_at: monotonic time of the newest sample.
    """

    rtt_s: float
    rtt_s_min: float
    jitter_s: float
    loss: float
    samples: int
    measured_at: float
    usual_jitter_s: float = 0.0
    usual_loss: float = 0.0


class PathWindow:
    """The newest nonces of one path. Its clock is whatever `now` it is given."""

    __slots__ = (
        "_config",
        "_known",
        "_known_since",
        "_known_until",
        "jitter_s",
        "last_rtt_s",
        "measured_at",
        "offered",
        "probed",
        "sent",
    )

    def __init__(self, config: ProbeConfig) -> None:
        """Has sent nothing yet."""
        self._config = config
        self.sent: dict[
            int, float
        ] = {}  # round trips by nonce, the oldest first: 0 before it came back, -1 for an impossible one
        self.probed: dict[int, float] = {}  # when nonces of probes were handed out that have not come back
        self.offered: dict[int, float] = {}  # and those of echoes, the oldest first
        self.jitter_s = 0.0
        self.last_rtt_s: float | None = None
        self.measured_at = 0.0
        self._known: PathQuality | None = None  # what was made of all this; None where it has changed since
        self._known_since, self._known_until = 0.0, 0.0  # while the same nonces count as lost

    def send_probe(self, nonce: int, now: float) -> None:
        """Note a nonce that goes out in a probe."""
        self.sent[nonce] = 0.0
        self.probed[nonce] = now
        self._make_room()

    def send_echo(self, nonce: int, now: float) -> None:
        """Note a nonce that goes out in an echo of three legs; past `offered_max` the oldest of these is forgotten.

        So a peer that asks for many and returns none does not drive out the nonces of probes.
        """
        self.sent[nonce] = 0.0
        self.offered[nonce] = now
        if len(self.offered) > self._config.offered_max:
            oldest = next(iter(self.offered))
            del self.offered[oldest], self.sent[oldest]
        self._make_room()

    def take_echo(self, nonce: int, received_at: float) -> float | None:
        """Take what an echo returns, which was sent in a probe; see `take_third_leg`."""
        return self._take(nonce, self.probed.pop(nonce, None), received_at)

    def take_third_leg(self, nonce: int, received_at: float) -> float | None:
        """Take what a third leg returns, which was sent in an echo.

        Returns:
            The round trip in seconds; -1 where the moment is impossible, for two clocks disagree about it or it took absurdly
            long; None for a nonce that was not sent so, or is forgotten, or has come back already.
        """
        return self._take(nonce, self.offered.pop(nonce, None), received_at)

    def quality(self, now: float) -> PathQuality | None:
        """What is known of the path, or None before the first sample."""
        if self.last_rtt_s is None:
            return None
        if self._known is not None and self._known_since <= now < self._known_until:
            return self._known  # a request asks for it of every peer, and little happens between two requests
        samples = [rtt_s for rtt_s in self.sent.values() if rtt_s > 0.0] or [self.last_rtt_s]
        overdue_at = now - self._config.overdue_s
        waiting = [*self.probed.values(), *self.offered.values()]
        unanswered = sum([sent_at < overdue_at for sent_at in waiting])
        self._known_since = now
        self._known_until = min([sent_at for sent_at in waiting if sent_at >= overdue_at], default=inf) + self._config.overdue_s
        answered = len(self.sent) - len(self.probed) - len(self.offered)
        self._known = PathQuality(
            rtt_s=median(samples[-self._config.median_samples :]),
            rtt_s_min=min(samples),
            jitter_s=self.jitter_s,
            loss=unanswered / max(1, unanswered + answered),
            samples=len(samples),
            measured_at=self.measured_at,
            usual_jitter_s=min(self.jitter_s, median([abs(later - rtt_s) for rtt_s, later in pairwise(samples)] or [0.0])),
            usual_loss=max(0, unanswered - 1) / max(1, unanswered + answered),
        )
        return self._known

    def shortest_s(self) -> float | None:
        """The smallest sample in the window, in seconds; None before the first."""
        if self.last_rtt_s is None:
            return None
        return min([rtt_s for rtt_s in self.sent.values() if rtt_s > 0.0], default=self.last_rtt_s)

    def _make_room(self) -> None:
        self._known = None
        if len(self.sent) > self._config.window_probes:
            oldest = next(iter(self.sent))
            del self.sent[oldest]
            self.probed.pop(oldest, None)
            self.offered.pop(oldest, None)

    def _take(self, nonce: int, sent_at: float | None, received_at: float) -> float | None:
        if sent_at is None:
            return None
        self._known = None
        rtt_s = received_at - sent_at
        if not 0.0 < rtt_s <= self._config.rtt_s_max:
            self.sent[nonce] = -1.0
            return -1.0
        self.sent[nonce] = rtt_s
        if self.last_rtt_s is not None:
            self.jitter_s += (abs(rtt_s - self.last_rtt_s) - self.jitter_s) * JITTER_GAIN
        self.last_rtt_s = rtt_s
        self.measured_at = received_at
        return rtt_s
