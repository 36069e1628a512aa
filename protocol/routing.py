"""Routing: who is able to answer a request, and who of them will answer soonest.

`rank` takes what is known of every candidate and gives each a place and a reason. A candidate qualifies when it serves the model
with the feature, has the memory and the context length, takes work and has room in its queue. The qualified are ordered by
predicted time to the whole answer,

    path (round trip, margin for jitter and loss) + transfer + queue + service,

where the transfer is that of the request's tensors, by a fabric where this node has one with the peer (`fabric`), and over the
bus to its accelerators as far as it tells of it; a streamed answer counts only until its first output, plus what it is
generated slower than it is read. Among those whose predictions differ by less than predictions are worth, this node itself
comes first and the others in random order, weighted against those this node has given work already: if everybody sent
everything to the nearest, the nearest would be the slowest. Those that failed a moment ago come last. The others stay in the
report with a plain reason.

Slow start, where it is on: peers that have not answered this node often enough come after all others, but for a small share of
the requests, and a peer's measured speed counts for no more than it claims: what it shows while it is being tried may be more
than it means to give.

Path: a measured round trip wins over one derived from edges or coordinates, whose own error is added as a margin. Jitter counts
twice, and a lost packet costs one probe timeout of QUIC. A peer that is not connected costs one more round trip for the
handshake.

Where somebody who was not measured may well be sooner than the best, the report says whom to measure first (`shortlist`).

Queue: the wait of an M/M/c queue (`queues`). The requests before this one are those that the peer's beat tells or those that this
node itself has in flight there, whichever are more, because the beat may be older than our last requests. The service time is
that of ordinary requests: how many tokens this one wants says nothing of those before it.

Service: this node's own measurements win over what the peer advertises. Few or old measurements count less: the estimate is drawn
toward the median of all candidates, so that one slow first run does not banish a peer for good, and an unknown peer counts as
ordinary.

Source: RFC 9002 section 6.2.1 (probe timeout); RFC 6298 (smoothing); P. Efraimidis, P. Spirakis, "Weighted random sampling with
a reservoir", 2006 (weighted order).
Spec: docs/spec/06-inference.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import median

from protocol.encoding import Luck
from protocol.errors import ErrorCode
from protocol.fabric import HERE, STREAM, Link, Way
from protocol.identity import PeerId
from protocol.inference import Feature
from protocol.load import Beat, ModelLoad
from protocol.queues import queue_time
from protocol.records import ModelOffer
from protocol.services import ServiceConfig, ServiceEstimate, ServiceEstimates
from protocol.shortlist import Contender, Shortlist, ShortlistConfig, shortlist

ACK_DELAY_S = 0.025
"""Seconds. QUIC's max_ack_delay, a part of its probe timeout: RFC 9002 section 6.2.1."""

GRANULARITY_S = 0.001
"""Seconds. QUIC's timer granularity, the least that jitter counts in a probe timeout: RFC 9002 section 6.1.2."""

HOST_ENGINES = frozenset({"echo", "onnx"})
"""Kinds of engines that compute on the processor, where tensors arrive; others are taken to use an accelerator if they may."""


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """Margins and bounds.

    Attributes:
        jitter_margin: how many times the jitter is added to a measured round trip; two cover most samples.
        coordinate_margin: how many times the coordinate's relative error is added to an estimated round trip.
        rtt_unknown_s: seconds that an unknown path counts for: half round the world, so that any known path is preferred.
        waiting_per_slot_max: a queue this many times longer than the slots is full.
        near_equal_share: predictions that differ by less than this share of the best are equal: the noise of a quiet path.
        near_equal_s: and by less than this many seconds: the noise of a scheduler.
        reading_tokens_per_s: a stream generated faster than this keeps nobody waiting; people read about 7 tokens per second,
            and programs that read ahead are given some room.
        slow_start: whether a peer that has hardly ever served this node gets hardly any of its requests: for networks that
            strangers may join.
        slow_start_share: the share of requests for which such peers count like any other, all of them together, so that many
            invented peers get no more than one.
        slow_start_successes: answers until a peer is such a one no longer.
        report_candidates_max: candidates kept in a report, the best and then the nearest.
        service: how service times are kept.
        shortlist: who is measured before a request goes out.
    """

    jitter_margin: float = 2.0
    coordinate_margin: float = 1.0
    rtt_unknown_s: float = 0.3
    waiting_per_slot_max: int = 16
    near_equal_share: float = 0.05
    near_equal_s: float = 0.0002
    reading_tokens_per_s: float = 30.0
    slow_start: bool = False
    slow_start_share: float = 0.01
    slow_start_successes: int = 20
    report_candidates_max: int = 64
    service: ServiceConfig = field(default_factory=ServiceConfig)
    shortlist: ShortlistConfig = field(default_factory=ShortlistConfig)


class RttSource(StrEnum):
    """Where a round trip is known from."""

    SELF = "self"
    MEASURED = "measured"
    COORDINATE = "coordinate"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Path:
    """What is known of the way to a candidate.

    Attributes:
        source: where `rtt_s` comes from.
        rtt_s: the round trip in seconds; ignored for an unknown path.
        jitter_s: of a measured path, the usual difference between neighbouring samples.
        loss: of a measured path, the share of probes without an echo, 0 to 1, single ones left out.
        error: by how much the round trip may be longer, relative to it; 0 of a path that is probed.
        low_s: how short the round trip may be, in seconds, of a path that was not measured.
        connected: whether a connection is open already.
    """

    source: RttSource
    rtt_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    error: float = 0.0
    low_s: float = 0.0
    connected: bool = True

    @property
    def fresh(self) -> bool:
        """Whether it was measured lately."""
        return self.source is RttSource.MEASURED or self.source is RttSource.SELF


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a request needs.

    Attributes:
        model: the model's id.
        feature: what it is asked for.
        memory_bytes: accelerator or host memory the candidate must have, 0 for any.
        context_tokens: input and output together, 0 when unknown.
        output_tokens: most tokens that are wanted, 0 when unknown.
        stream: whether the answer is read as it comes.
        payload_bytes: of the tensors that go with it.
        excluded: peers that must not be asked: the one the request came from.
    """

    model: str
    feature: Feature
    memory_bytes: int = 0
    context_tokens: int = 0
    output_tokens: int = 0
    stream: bool = False
    payload_bytes: int = 0
    excluded: frozenset[PeerId] = frozenset()


@dataclass(frozen=True, slots=True)
class CandidateInput:
    """What is known of one node when a request is ranked.

    Attributes:
        peer_id: who it is.
        path: the way to it.
        offers: the models it serves.
        beat: its load, None when none was heard.
        unavailable: why it must not be given work ("suspected since 1.2 s"), empty when it may.
        memory_bytes: its largest accelerator's memory, or its host memory where it has none; 0 when unknown.
        in_flight: requests of this node that it has not finished yet.
        via: through whom it is asked, None where it is asked itself; `path` is then the whole way.
        way: the fabric that this node has open with it, None where there is none.
        bus: the bus to its accelerators, None where it has none or that is not known.
    """

    peer_id: PeerId
    path: Path
    offers: tuple[ModelOffer, ...]
    beat: Beat | None = None
    unavailable: str = ""
    memory_bytes: int = 0
    in_flight: int = 0
    via: PeerId | None = None
    way: Way | None = None
    bus: Link | None = None

    @property
    def is_self(self) -> bool:
        """Whether it is this node."""
        return self.path.source is RttSource.SELF


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node's place in a ranking.

    Attributes:
        peer_id: who it is.
        qualified: whether it may be asked.
        reason: why it is not qualified, or what sets it apart ("this node", "failed 0.8 s ago"); may be empty.
        rtt_s: the round trip without margins, None when unknown.
        rtt_source: where it is known from.
        queue_s: expected wait for a slot; None for the unqualified, as the following.
        service_s: expected time in the slot, to the last output.
        predicted_s: expected time until the first output is here: what `RouteReport.measured_s` measures.
        total_s: what the ranking is by: expected time until the answer is here.
        outcome: what came of asking it; empty when it was not asked.
        fabric: by which fabric its tensors went ("shm"), or that they fell back from it; empty where they took the stream.
        refusal: why it is not qualified, as a code; NO_ERROR for the qualified.
        via: through whom it is asked, None where it is asked itself.
    """

    peer_id: PeerId
    qualified: bool
    reason: str
    rtt_s: float | None
    rtt_source: RttSource
    queue_s: float | None = None
    service_s: float | None = None
    predicted_s: float | None = None
    total_s: float | None = None
    outcome: str = ""
    fabric: str = ""
    refusal: ErrorCode = ErrorCode.NO_ERROR
    via: PeerId | None = None


@dataclass(frozen=True, slots=True)
class RouteReport:
    """Why a request went where it went.

    Attributes:
        request_id: in hexadecimal.
        model: what was asked for.
        feature: and how.
        candidates: the qualified, best first, then the others, nearest first.
        chosen: who answers; the best until somebody has answered, None when nobody qualifies.
        predicted_s: expected time to the chosen one's first output.
        measured_s: the time it took, None before.
        hops: how many nodes the request passed after this one; 0 when this node answers.
        probed: how many peers were measured for it before it went out.
        probing_s: seconds that it waited for that.
        shortlist: who is to be measured before it goes out; None where nobody is, or where that is done.
    """

    request_id: str
    model: str
    feature: Feature
    candidates: tuple[Candidate, ...]
    chosen: PeerId | None = None
    predicted_s: float | None = None
    measured_s: float | None = None
    hops: int = 0
    probed: int = 0
    probing_s: float = 0.0
    shortlist: Shortlist | None = None

    @property
    def qualified(self) -> tuple[PeerId, ...]:
        """Those who may be asked, best first."""
        return tuple(candidate.peer_id for candidate in self.candidates if candidate.qualified)

    def with_outcome(self, peer: PeerId, outcome: str) -> "RouteReport":
        """The report with what came of asking `peer`."""
        return replace(
            self,
            candidates=tuple(
                replace(candidate, outcome=outcome) if candidate.peer_id == peer else candidate for candidate in self.candidates
            ),
        )

    @property
    def roundabout(self) -> frozenset[PeerId]:
        """Those who are asked through others."""
        return frozenset(candidate.peer_id for candidate in self.candidates if candidate.via is not None)

    def via(self, peer: PeerId) -> PeerId | None:
        """Through whom a candidate is asked, None where it is asked itself."""
        return next((candidate.via for candidate in self.candidates if candidate.peer_id == peer), None)

    def with_via(self, peer: PeerId, relay: PeerId | None) -> "RouteReport":
        """The report once `peer` was asked through `relay`, or itself."""
        return replace(
            self,
            candidates=tuple(
                replace(candidate, via=relay) if candidate.peer_id == peer else candidate for candidate in self.candidates
            ),
        )

    def with_fabric(self, peer: PeerId, fabric: str) -> "RouteReport":
        """The report once it is known by which fabric the tensors of `peer` go."""
        return replace(
            self,
            candidates=tuple(
                replace(candidate, fabric=fabric) if candidate.peer_id == peer else candidate for candidate in self.candidates
            ),
        )

    def with_first_output(self, peer: PeerId, measured_s: float, hops: int) -> "RouteReport":
        """The report once `peer` has delivered its first output, `measured_s` after the request was submitted."""
        predicted = [candidate.predicted_s for candidate in self.candidates if candidate.peer_id == peer]
        return replace(self, chosen=peer, predicted_s=predicted[0] if predicted else None, measured_s=measured_s, hops=hops)


def rank(
    request_id: bytes,
    requirement: Requirement,
    candidates: Iterable[CandidateInput],
    services: ServiceEstimates,
    config: RoutingConfig,
    luck: Luck,
    now: float,
) -> RouteReport:
    """Order all candidates for one request.

    Args:
        request_id: the request's id, for the report.
        requirement: what it needs.
        candidates: what is known of each node, this one included.
        services: what this node has measured of their service times.
        config: margins and bounds.
        luck: chooses among near-equals.
        now: monotonic time.
    """
    able: list[tuple[CandidateInput, ModelOffer]] = []
    unable: list[Candidate] = []
    for facts in candidates:
        offer = _offer_of(facts, requirement)
        refusal, reason = _disqualification(facts, offer, requirement, config)
        if reason or offer is None:
            rtt_s = None if facts.path.source is RttSource.UNKNOWN else facts.path.rtt_s
            unable.append(Candidate(facts.peer_id, False, reason, rtt_s, facts.path.source, refusal=refusal))
        else:
            able.append((facts, offer))
    estimates = _service_of(able, requirement, services, config, now)
    others = estimates
    if requirement.output_tokens > 0:
        others = _service_of(able, replace(requirement, output_tokens=0), services, config, now)
    held_back = _held_back([facts for facts, _ in able], services, config, luck)
    scored = [
        _Scored(
            _score(facts, requirement, own, ahead, config, services.failed_ago_s(facts.peer_id, requirement.model, now)),
            facts,
            (facts.peer_id in held_back, services.demoted(facts.peer_id, requirement.model, now)),
        )
        for (facts, _), own, ahead in zip(able, estimates, others, strict=True)
    ]
    scored = _in_order(scored, config, luck)
    ordered = [entry.told(held_back) for entry in scored]
    unable.sort(key=lambda candidate: (candidate.rtt_s is None, candidate.rtt_s or 0.0, candidate.peer_id))
    best = ordered[0] if ordered else None
    return RouteReport(
        request_id=request_id.hex(),
        model=requirement.model,
        feature=requirement.feature,
        candidates=tuple((ordered + unable)[: config.report_candidates_max]),
        chosen=best.peer_id if best else None,
        predicted_s=best.predicted_s if best else None,
        shortlist=_shortlist(scored, config, luck),
    )


def path_time(path: Path, config: RoutingConfig) -> float:
    """The time a request and its first output spend under way, in seconds, margins included.

    Source: RFC 9002 section 6.2.1 for the cost of a lost packet.
    """
    match path.source:
        case RttSource.SELF:
            return 0.0
        case RttSource.UNKNOWN:
            under_way_s = config.rtt_unknown_s
        case RttSource.COORDINATE:
            under_way_s = path.rtt_s * (1.0 + config.coordinate_margin * path.error)
        case RttSource.MEASURED:
            timeout_s = path.rtt_s + max(4.0 * path.jitter_s, GRANULARITY_S) + ACK_DELAY_S
            under_way_s = path.rtt_s * (1.0 + config.coordinate_margin * path.error)
            under_way_s += config.jitter_margin * path.jitter_s + path.loss * timeout_s
    return under_way_s if path.connected else 2.0 * under_way_s


def transfer_time(facts: CandidateInput, payload_bytes: int, engine: str = "") -> float:
    """The time in which a request's tensors reach an engine, in seconds: by the fabric or the stream, and over the bus."""
    if payload_bytes == 0:
        return 0.0
    ways = [HERE] if facts.is_self else [STREAM] if facts.way is None else [STREAM, facts.way]
    if facts.bus is not None and engine not in HOST_ENGINES:
        ways = [way.and_then(facts.bus) for way in ways]
    return min(way.transfer_s(payload_bytes) for way in ways)


def _offer_of(facts: CandidateInput, requirement: Requirement) -> ModelOffer | None:
    """The offer that fits best: the one with the feature, else any of the model."""
    offers = [offer for offer in facts.offers if offer.model == requirement.model]
    fitting = [offer for offer in offers if requirement.feature in offer.features]
    return next(iter(fitting or offers), None)


def _load_of(facts: CandidateInput, model: str) -> ModelLoad | None:
    loads = facts.beat.loads if facts.beat else ()
    return next((load for load in loads if load.model == model), None)


def _disqualification(
    facts: CandidateInput, offer: ModelOffer | None, requirement: Requirement, config: RoutingConfig
) -> tuple[ErrorCode, str]:
    """Why a candidate must not be asked, or NO_ERROR and an empty string."""
    if offer is None:
        return ErrorCode.MODEL_NOT_FOUND, f"does not serve {requirement.model}"
    if requirement.feature not in offer.features:
        return ErrorCode.FEATURE_NOT_SUPPORTED, f"serves {requirement.model} without {requirement.feature}"
    if facts.peer_id in requirement.excluded:
        return ErrorCode.HOPS_EXCEEDED, "the request came from it"
    if facts.unavailable:
        return ErrorCode.UNREACHABLE, facts.unavailable
    if facts.beat is not None and facts.beat.draining:
        return ErrorCode.DRAINING, "draining"
    if 0 < facts.memory_bytes < requirement.memory_bytes:
        needed = f"{requirement.memory_bytes / 1e9:.1f} GB needed"
        return ErrorCode.INSUFFICIENT_MEMORY, f"has {facts.memory_bytes / 1e9:.1f} GB of memory, {needed}"
    if 0 < offer.context_length < requirement.context_tokens:
        return ErrorCode.BAD_REQUEST, f"takes {offer.context_length} tokens, {requirement.context_tokens} needed"
    load = _load_of(facts, requirement.model)
    if load is not None and load.waiting >= config.waiting_per_slot_max * max(1, load.slots):
        return ErrorCode.OVERLOADED, f"queue full: {load.waiting} waiting for {load.slots} slots"
    return ErrorCode.NO_ERROR, ""


def _service_of(
    able: list[tuple[CandidateInput, ModelOffer]],
    requirement: Requirement,
    services: ServiceEstimates,
    routing: RoutingConfig,
    now: float,
) -> list[ServiceEstimate]:
    """The service times of all able candidates, each drawn toward their median as far as it is poorly known."""
    config = routing.service
    known: list[ServiceEstimate | None] = []
    for facts, _ in able:
        own = services.estimate(facts.peer_id, requirement.model, requirement.feature, requirement.output_tokens, now)
        claim = _advertised(_load_of(facts, requirement.model), requirement.output_tokens, config) if own is None else None
        if own is not None and routing.slow_start and not facts.is_self:
            capped_by = _advertised(_load_of(facts, requirement.model), requirement.output_tokens, config)
            own = own if capped_by is None else replace(own, service_s=max(own.service_s, capped_by.service_s))
        known.append(own or claim)
    certain = [estimate for estimate in known if estimate is not None]
    if not certain:
        ordinary = ServiceEstimate(config.service_s_default, config.service_s_default, 0.0)
    elif len(certain) == 1:
        ordinary = ServiceEstimate(own_s := certain[0].service_s, min(own_s, certain[0].first_output_s), 0.0)
    else:
        service_s = median(estimate.service_s for estimate in certain)
        ordinary = ServiceEstimate(service_s, min(service_s, median(estimate.first_output_s for estimate in certain)), 0.0)
    return [ordinary if estimate is None else estimate.drawn_toward(ordinary, config.prior_samples) for estimate in known]


def _advertised(load: ModelLoad | None, output_tokens: int, config: ServiceConfig) -> ServiceEstimate | None:
    """What a candidate says of its own speed, capped, and worth a few measurements."""
    if load is None:
        return None
    if output_tokens > 0 and load.tokens_per_s > 0.0:
        mean_s = load.service_s if load.service_s > 0.0 else config.service_s_max
        service_s = min(output_tokens / load.tokens_per_s, mean_s, config.service_s_max)
        return ServiceEstimate(service_s, min(1.0 / load.tokens_per_s, service_s), config.claim_samples)
    if load.service_s > 0.0:
        service_s = min(load.service_s, config.service_s_max)
        return ServiceEstimate(service_s, service_s, config.claim_samples)
    return None


def _held_back(able: list[CandidateInput], services: ServiceEstimates, config: RoutingConfig, luck: Luck) -> dict[PeerId, str]:
    """Who comes after all others for having hardly ever served this node, and how that is said; luck lets some requests try."""
    if not config.slow_start or len(able) < 2:
        return {}
    served = {facts.peer_id: services.successes(facts.peer_id) for facts in able if not facts.is_self}
    unproven = {peer: count for peer, count in served.items() if count < config.slow_start_successes}
    if not unproven or len(unproven) == len(able) or luck.random() < config.slow_start_share:
        return {}
    return {peer: f"new here: {count} of {config.slow_start_successes} answers" for peer, count in unproven.items()}


def _score(
    facts: CandidateInput,
    requirement: Requirement,
    service: ServiceEstimate,
    ahead: ServiceEstimate,
    config: RoutingConfig,
    failed_ago_s: float | None,
) -> Candidate:
    """Predict one able candidate's time to answer; `service` is that of this request, `ahead` that of those before it."""
    offer = _offer_of(facts, requirement) if requirement.payload_bytes else None
    path_s = path_time(facts.path, config) + transfer_time(facts, requirement.payload_bytes, offer.engine if offer else "")
    queue_s = queue_time(_load_of(facts, requirement.model), facts.in_flight, ahead.service_s)
    predicted_s = path_s + queue_s + service.first_output_s
    total_s = path_s + queue_s + service.service_s
    if requirement.stream:
        unread_s = service.service_s - service.first_output_s - requirement.output_tokens / config.reading_tokens_per_s
        total_s = predicted_s + (max(0.0, unread_s) if requirement.output_tokens > 0 else 0.0)
    reason = "this node" if facts.is_self else ""
    if failed_ago_s is not None:
        reason = f"failed {failed_ago_s:.1f} s ago"
    rtt_s = None if facts.path.source is RttSource.UNKNOWN else facts.path.rtt_s
    return Candidate(
        peer_id=facts.peer_id,
        qualified=True,
        reason=reason,
        rtt_s=rtt_s,
        rtt_source=facts.path.source,
        queue_s=queue_s,
        service_s=service.service_s,
        predicted_s=predicted_s,
        total_s=total_s,
        via=facts.via,
    )


@dataclass(frozen=True, slots=True)
class _Scored:
    """A qualified candidate with what orders it; `late` says whether it is held back as new, and whether it failed just now."""

    candidate: Candidate
    facts: CandidateInput
    late: tuple[bool, bool]

    def told(self, held_back: Mapping[PeerId, str]) -> Candidate:
        """The candidate, with why it is held back."""
        reason = held_back.get(self.candidate.peer_id)
        return self.candidate if reason is None or self.candidate.reason else replace(self.candidate, reason=reason)


def _in_order(scored: list[_Scored], config: RoutingConfig, luck: Luck) -> list[_Scored]:
    """By predicted time; the near-equals of the best in a random order that spares the busy; the demoted and the new last."""
    scored.sort(key=lambda entry: (entry.late, entry.candidate.total_s or 0.0, entry.candidate.peer_id))
    if not scored or scored[0].late[1]:
        return scored
    best_s = scored[0].candidate.total_s or 0.0
    limit_s = best_s + max(config.near_equal_share * best_s, config.near_equal_s)
    equal = [entry for entry in scored if entry.late == scored[0].late and (entry.candidate.total_s or 0.0) <= limit_s]
    rest = scored[len(equal) :]
    # Efraimidis and Spirakis: u ** (1 / weight), largest first, with weight 1 / (1 + in flight)
    lots = {entry.candidate.peer_id: luck.random() ** (1 + entry.facts.in_flight) for entry in equal}
    equal.sort(
        key=lambda entry: (
            not entry.facts.is_self,
            entry.facts.via is not None,  # who is asked through another, and so costs two, comes after those as near
            -lots[entry.candidate.peer_id],
            entry.candidate.peer_id,
        )
    )
    return equal + rest


def _shortlist(ordered: list[_Scored], config: RoutingConfig, luck: Luck) -> Shortlist | None:
    """Who is to be measured before the first is asked: none of those that come after all others whatever their path."""
    if len(ordered) < 2 or ordered[0].late[1]:
        return None
    others = [entry for entry in ordered if not entry.facts.path.fresh and entry.facts.via is None]
    if not others:
        return None
    first = ordered[0]
    best = min((entry for entry in ordered if entry.late == first.late), key=lambda entry: entry.candidate.total_s or 0.0)
    if best.facts.via is not None:  # whoever is asked through another is not to be reached by dialling
        return None
    rivals = [_contender(entry, config) for entry in others if entry.late == first.late and entry is not best]
    return shortlist(_contender(best, config), rivals, config.shortlist, luck.random)


def _contender(entry: _Scored, config: RoutingConfig) -> Contender:
    """A scored candidate with the bounds of its path."""
    path, turns = entry.facts.path, 1 if entry.facts.path.connected else 2
    path_s = path_time(path, config)
    rest_s, high_s = (entry.candidate.total_s or 0.0) - path_s, path_s / turns
    if path.fresh:
        return Contender(entry.candidate.peer_id, rest_s, high_s, high_s, high_s, turns, fresh=True)
    rtt_s = high_s if path.source is RttSource.UNKNOWN else path.rtt_s
    return Contender(entry.candidate.peer_id, rest_s, min(path.low_s, rtt_s), rtt_s, high_s, turns)


__all__ = [
    "Candidate",
    "CandidateInput",
    "Path",
    "Requirement",
    "RouteReport",
    "RoutingConfig",
    "RttSource",
    "ServiceConfig",
    "ServiceEstimate",
    "ServiceEstimates",
    "path_time",
    "queue_time",
    "rank",
    "transfer_time",
]
