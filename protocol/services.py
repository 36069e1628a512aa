"""Service times: how long each peer took for each model, as this node measured it.

One entry per peer, model and feature holds exponentially weighted means of the time to the first output, of the time per output
token, and of the whole service. How much an entry is worth falls by half every `half_life_s`: a peer that was slow once and was
therefore not asked again becomes ordinary with time and gets another chance. Failures are kept per peer and model: after one, a
peer is demoted for a time that doubles with each further failure and ends with the next success.

The table is bounded; the entry longest unused makes room.

Source: RFC 6298 (smoothing by an exponentially weighted mean); M. Nygard, "Release It!" (2007), circuit breaker.
Spec: docs/spec/06-inference.md.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.inference import Feature

DEMOTING = frozenset(
    {ErrorCode.INTERNAL, ErrorCode.OVERLOADED, ErrorCode.ENGINE_FAILED, ErrorCode.UNREACHABLE, ErrorCode.DEADLINE_EXCEEDED}
)
"""Failures that are the peer's: after one, others are asked first. What is wrong with the request itself demotes nobody."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Weights and bounds.

    Attributes:
        gain: share of the newest measurement in the means; 0.2 follows a change within some five requests.
        samples_max: an entry is never worth more measurements than its mean holds, about 2 / gain - 1.
        half_life_s: seconds until an entry is worth half.
        prior_samples: an estimate of that many measurements counts as much as what is ordinary.
        claim_samples: how many measurements a peer's own claim is worth.
        service_s_default: service time in seconds when nobody knows anything; it is the same for all, so it orders nobody.
        service_s_max: seconds; a longer measurement or claim counts as this: one hung request says nothing about the next.
        entries_max: entries of either kind.
        demotion_s: seconds that the first failure demotes for.
        demotion_s_max: and the longest.
    """

    gain: float = 0.2
    samples_max: float = 9.0
    half_life_s: float = 30.0
    prior_samples: float = 4.0
    claim_samples: float = 4.0
    service_s_default: float = 0.1
    service_s_max: float = 120.0
    entries_max: int = 4096
    demotion_s: float = 1.0
    demotion_s_max: float = 30.0


@dataclass(frozen=True, slots=True)
class ServiceEstimate:
    """Expected times in the slot, in seconds, and how many measurements they are worth."""

    service_s: float
    first_output_s: float
    samples: float

    def drawn_toward(self, ordinary: "ServiceEstimate", prior_samples: float) -> "ServiceEstimate":
        """The mean of this estimate and the ordinary one, weighted by this one's samples against `prior_samples`."""
        share = self.samples / (self.samples + prior_samples)
        return ServiceEstimate(
            ordinary.service_s + share * (self.service_s - ordinary.service_s),
            ordinary.first_output_s + share * (self.first_output_s - ordinary.first_output_s),
            self.samples,
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    """Means of one peer, model and feature; `per_token_s` is None before any tokens were counted."""

    service_s: float
    first_output_s: float
    per_token_s: float | None
    samples: float
    measured_at: float


@dataclass(frozen=True, slots=True)
class _Failures:
    """The run of failures since the last success."""

    count: int
    failed_at: float


class ServiceEstimates:
    """The table; see the module's docstring."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._entries: OrderedDict[tuple[PeerId, str, Feature], _Entry] = OrderedDict()
        self._failures: OrderedDict[tuple[PeerId, str], _Failures] = OrderedDict()
        self._successes: OrderedDict[PeerId, int] = OrderedDict()

    @property
    def entries(self) -> int:
        """How many peers, models and features have been measured."""
        return len(self._entries)

    def record(
        self,
        peer: PeerId,
        model: str,
        feature: Feature,
        now: float,
        service_s: float,
        first_output_s: float | None = None,
        output_tokens: int = 0,
    ) -> None:
        """Take in one finished request; any earlier failures of the peer with the model are forgiven.

        Args:
            peer: who answered, this node included.
            model: the model's id.
            feature: what it was asked for.
            now: monotonic time.
            service_s: from the slot to the last output, the path and the queue taken off. What is no positive number is dropped.
            first_output_s: from the slot to the first output; the whole service when None.
            output_tokens: tokens that were generated, 0 when not counted.
        """
        self._failures.pop((peer, model), None)
        config = self._config
        self._successes[peer] = self._successes.pop(peer, 0) + 1
        if len(self._successes) > config.entries_max:
            self._successes.popitem(last=False)
        if not 0.0 <= service_s < math.inf:
            return
        service_s = min(service_s, config.service_s_max)
        first_s = service_s if first_output_s is None or not first_output_s >= 0.0 else min(first_output_s, service_s)
        per_token_s = (service_s - first_s) / (output_tokens - 1) if output_tokens > 1 else None
        key = (peer, model, feature)
        old = self._entries.pop(key, None)
        if old is None:
            fresh = _Entry(service_s, first_s, per_token_s, 1.0, now)
        else:
            fresh = _Entry(
                self._blend(old.service_s, service_s),
                self._blend(old.first_output_s, first_s),
                old.per_token_s if per_token_s is None else self._blend(old.per_token_s, per_token_s),
                min(self._worth(old, now) + 1.0, config.samples_max),
                now,
            )
        self._entries[key] = fresh
        if len(self._entries) > config.entries_max:
            self._entries.popitem(last=False)

    def successes(self, peer: PeerId) -> int:
        """How many answers this node has had from a peer, whatever the model."""
        return self._successes.get(peer, 0)

    def record_failure(self, peer: PeerId, model: str, code: ErrorCode, now: float) -> None:
        """Take in one failed attempt; only the codes in `DEMOTING` count."""
        if code not in DEMOTING:
            return
        old = self._failures.pop((peer, model), None)
        self._failures[peer, model] = _Failures((old.count if old else 0) + 1, now)
        if len(self._failures) > self._config.entries_max:
            self._failures.popitem(last=False)

    def estimate(self, peer: PeerId, model: str, feature: Feature, output_tokens: int, now: float) -> ServiceEstimate | None:
        """What this node has measured of a peer, or None.

        Args:
            peer: whom.
            model: the model's id.
            feature: what it is asked for.
            output_tokens: most tokens that are wanted, 0 when unknown. Answers end by themselves too, so that it can only lower
                the estimate: the mean of past requests stands where they were shorter.
            now: monotonic time.
        """
        entry = self._entries.get((peer, model, feature))
        if entry is None:
            return None
        service_s = entry.service_s
        if output_tokens > 0 and entry.per_token_s is not None:
            service_s = min(service_s, entry.first_output_s + (output_tokens - 1) * entry.per_token_s)
        return ServiceEstimate(service_s, min(entry.first_output_s, service_s), self._worth(entry, now))

    def demoted(self, peer: PeerId, model: str, now: float) -> bool:
        """Whether the peer's last attempts with the model failed so recently that others are to be asked first."""
        failures = self._failures.get((peer, model))
        if failures is None:
            return False
        config = self._config
        lasts_s = min(config.demotion_s * 2.0 ** min(failures.count - 1, 32), config.demotion_s_max)
        return now < failures.failed_at + lasts_s

    def failed_ago_s(self, peer: PeerId, model: str, now: float) -> float | None:
        """Seconds since the failure a demoted peer is demoted for, None for all others."""
        return now - self._failures[peer, model].failed_at if self.demoted(peer, model, now) else None

    def forget(self, peer: PeerId) -> None:
        """Drop everything about a peer that is gone for good."""
        for key in [key for key in self._entries if key[0] == peer]:
            del self._entries[key]
        self._successes.pop(peer, None)
        for failed in [failed for failed in self._failures if failed[0] == peer]:
            del self._failures[failed]

    def _blend(self, old: float | None, new: float) -> float:
        return new if old is None else old + self._config.gain * (new - old)

    def _worth(self, entry: _Entry, now: float) -> float:
        return entry.samples * math.exp2(-max(0.0, now - entry.measured_at) / self._config.half_life_s)
