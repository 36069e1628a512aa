"""Requests that wait for a few round trips, because those say to whom they go.

A request whose report names a shortlist waits until nobody of it can change the choice any more (`shortlist`), and then goes
out by a ranking with what was measured. Who is connected is sent a probe at once; who is not is dialled, which has to be done
anyway before it can be asked: the handshake tells how far it is, and the connection is there when the request goes out.
Requests at one time share what is being measured. Nobody is measured twice in `again_s`, and no more than a budget allows: a
peer that never answers delays the requests of one moment in that time. Who has not answered is as far as it was held for, or
as it has been waited for where that is more.

Spec: docs/spec/06-inference.md.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from protocol.budget import Budget
from protocol.forwarding import Forwarding
from protocol.identity import PeerId
from protocol.inference import InferenceRequest
from protocol.membership import Membership
from protocol.probe import Probe
from protocol.routing import CandidateInput, Path, RouteReport, RttSource
from protocol.shortlist import DIAL_ROUND_TRIPS, Shortlist


@dataclass(frozen=True, slots=True)
class InquiryConfig:
    """Bounds of what is measured for requests."""

    wait_share: float = 0.05
    """Share of a request's deadline that it waits at most: most of it is for the answer."""
    again_s: float = 10.0
    """Seconds in which no peer is measured twice: by then it is connected and probed, or cannot be reached."""
    waiting_max: int = 64
    """Requests that wait at once, a count; more go out at once. As many as one node works on before it is busy."""
    asked_max: int = 256
    """Peers remembered as measured, a count: more than the budget allows in `again_s`. The oldest makes room."""
    probes_burst: float = 16.0
    """Peers measured at once, a count: two shortlists."""
    probes_per_s: float = 4.0
    """And in the long run: handshakes of some milliseconds of the processor, so a hundredth of it."""


@dataclass(frozen=True, slots=True)
class Reranked:
    """A request that waited begins now, by this report in place of the one it was submitted with."""

    request_id: bytes
    report: RouteReport


@dataclass(slots=True)
class _Asked:
    """A peer that is being measured, or was not long ago.

    Attributes:
        at: since when.
        rtt_s: how long its handshake took, None before.
        over: whether there is nothing to wait for any more.
    """

    at: float
    rtt_s: float | None = None
    over: bool = False


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: InferenceRequest
    from_peer: PeerId | None
    shortlist: Shortlist
    began_at: float
    until: float
    probed: int
    answers: dict[PeerId, float] = field(default_factory=dict[PeerId, float])


class Inquiries:
    """The requests that wait, and who is being measured for them."""

    def __init__(
        self,
        config: InquiryConfig,
        own: PeerId,
        membership: Membership,
        probe: Probe,
        forwarding: Forwarding,
        rank: Callable[[InferenceRequest, float, PeerId | None], RouteReport],
        tell: Callable[[Reranked], None],
    ) -> None:
        """Nobody waits.

        Args:
            config: bounds.
            own: this node.
            membership: which has peers dialled.
            probe: which probes those that are connected.
            forwarding: which is given the requests that have waited.
            rank: ranks all nodes that may be asked now for a request, which a peer may have sent.
            tell: hears by which report a request goes out.
        """
        self._config = config
        self._own = own
        self._membership = membership
        self._probe = probe
        self._forwarding = forwarding
        self._rank = rank
        self._tell = tell
        self._asked: OrderedDict[PeerId, _Asked] = OrderedDict()  # the longest ago first
        self._waiting: dict[bytes, _Waiting] = {}  # by request id
        self._budget = Budget(config.probes_per_s, config.probes_burst, 0.0, 0.0)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def begin(self, request: InferenceRequest, wanted: Shortlist, from_peer: PeerId | None, now: float) -> bool:
        """Has the shortlisted measured and the request wait for it; False where there is nothing to wait for, or no time."""
        config = self._config
        wait_s = min(wanted.wait_s, config.wait_share * request.deadline_s)
        if wait_s < wanted.least_s or len(self._waiting) >= config.waiting_max or request.request_id in self._waiting:
            return False
        self._forget_old(now)
        probed = sum([self._ask(contender.peer_id, now) for contender in wanted.asked])
        until = min(now + wait_s, wanted.until(self._open_since(wanted), {}))
        if until <= now:
            return False
        self._waiting[request.request_id] = _Waiting(request, from_peer, wanted, now, until, probed)
        return True

    def seen(self, candidates: Iterable[CandidateInput], now: float) -> Iterable[CandidateInput]:
        """Candidates with what being measured tells of their paths; whoever has not answered is as far as was waited for."""
        if not self._asked:
            return candidates
        self._forget_old(now)
        return [self._seen(candidate, now) for candidate in candidates]

    # What happened

    def handle_answer(self, peer: PeerId, rtt_s: float, now: float, *, handshake: bool = False) -> None:
        """Notes a round trip that was measured, by an echo or by a handshake."""
        asked = self._asked.get(peer)
        if asked is None:
            return
        if handshake:
            asked.rtt_s = rtt_s
        asked.over = True
        for waiting in self._waiting.values():
            waiting.answers[peer] = rtt_s
        self._look(now)

    def handle_unanswered(self, peer: PeerId, now: float) -> None:
        """Notes that a dial has failed or a connection has ended: nobody waits for that peer."""
        asked = self._asked.get(peer)
        if asked is not None:
            asked.rtt_s, asked.over = None, True
            self._look(now)

    def handle_cancelled(self, request_id: bytes, now: float) -> None:
        """Forgets a request whose caller is gone."""
        if self._waiting.pop(request_id, None) is not None:
            self._forwarding.release(request_id, now)

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called, or None."""
        return min([waiting.until for waiting in self._waiting.values()]) if self._waiting else None

    def handle_timer(self, now: float) -> None:
        """Lets those go that have waited long enough."""
        if self._waiting:
            self._look(now)

    # Helpers

    def _seen(self, candidate: CandidateInput, now: float) -> CandidateInput:
        asked, path = self._asked.get(candidate.peer_id), candidate.path
        if asked is None or candidate.via is not None or (path.fresh and path.connected):
            return candidate
        if asked.rtt_s is not None:
            return replace(candidate, path=Path(RttSource.MEASURED, asked.rtt_s))
        waited_s = (now - asked.at) / (1 if path.connected else DIAL_ROUND_TRIPS)
        if asked.over or path.fresh or waited_s <= path.low_s:
            return candidate
        rtt_s, high_s = max(path.rtt_s, waited_s), max(path.rtt_s * (1.0 + path.error), waited_s)
        return replace(candidate, path=replace(path, rtt_s=rtt_s, low_s=waited_s, error=high_s / rtt_s - 1.0))

    def _ask(self, peer: PeerId, now: float) -> bool:
        """Has a peer measured, unless it is being, or was lately; whether that is something new."""
        if peer in self._asked or self._budget.left(now) < 1.0:
            return False
        machine = self._probe if self._membership.is_connected(peer) else self._membership
        if not machine.handle_sought(peer, now):
            return False
        self._budget.take(1.0, now)
        self._asked[peer] = _Asked(now)
        if len(self._asked) > self._config.asked_max:
            self._asked.popitem(last=False)
        return True

    def _open_since(self, wanted: Shortlist) -> dict[PeerId, float]:
        """Who of a shortlist is being measured, and since when."""
        peers = [contender.peer_id for contender in wanted.asked]
        return {peer: asked.at for peer in peers if (asked := self._asked.get(peer)) is not None and not asked.over}

    def _look(self, now: float) -> None:
        """Lets those go for which nothing can change any more, or that have waited long enough."""
        for request_id, waiting in list(self._waiting.items()):
            wanted = waiting.shortlist
            until = min(waiting.until, wanted.until(self._open_since(wanted), waiting.answers))
            if until <= now:
                del self._waiting[request_id]
                self._submit(waiting, now)
            elif until < waiting.until:
                self._waiting[request_id] = replace(waiting, until=until)

    def _submit(self, waiting: _Waiting, now: float) -> None:
        """Begins a request by what is known now."""
        request, began_at = waiting.request, waiting.began_at
        report = self._rank(request, now, waiting.from_peer)
        report = replace(report, probed=waiting.probed, probing_s=now - began_at, shortlist=None)
        self._tell(Reranked(request.request_id, report))
        peers, deadline_at, hops = report.qualified, began_at + request.deadline_s, request.hops_left
        self._forwarding.submit(request.request_id, peers, self._own, deadline_at, hops, now, report.roundabout)

    def _forget_old(self, now: float) -> None:
        while self._asked and next(iter(self._asked.values())).at <= now - self._config.again_s:
            self._asked.popitem(last=False)
