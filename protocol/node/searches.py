"""Requests for a model that nobody serves as far as this node knows: somebody beyond its part of the mesh may.

Where the node holds all of the mesh there is nothing to look for. Where it holds a part, it asks the peers beyond that it is
connected to, and a few near ones, for cards with the model; the request waits until one comes with which it can begin, and is
refused as ever when none comes in time.

Spec: docs/spec/04-gossip.md, section "Scopes"; docs/spec/06-inference.md.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protocol.encoding import Luck
from protocol.forwarding import Forwarding
from protocol.gossip import Gossip
from protocol.gossip.messages import Seek
from protocol.identity import PeerId
from protocol.inference import InferenceRequest
from protocol.membership import Membership
from protocol.node.inquiries import Reranked
from protocol.records import ModelOffer
from protocol.routing import RouteReport


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Bounds of searches."""

    wait_s: float = 1.0
    """Seconds that a request waits for an answer: three round trips between continents."""
    wait_share: float = 0.25
    """And at most this share of its deadline, so that the peer that is found has time to answer."""
    near_asked: int = 3
    """Near peers asked beside those beyond, a count: each knows others from beyond."""
    cards_max: int = 8
    """Cards that each of them may send, a count: as many as attempts are worth making."""
    waiting_max: int = 64
    """Requests that wait at once, a count; more are refused at once, so that nobody can have others asked without end."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: InferenceRequest
    deadline_at: float
    until: float


class Searches:
    """The requests that wait for a card."""

    def __init__(
        self,
        config: SearchConfig,
        own: PeerId,
        gossip: Gossip,
        membership: Membership,
        forwarding: Forwarding,
        rank: Callable[[InferenceRequest, float], RouteReport],
        luck: Luck,
        tell: Callable[[Reranked], None],
    ) -> None:
        """Nobody waits.

        Args:
            config: bounds.
            own: this node.
            gossip: which asks.
            membership: who is connected.
            forwarding: which is given the requests that can begin, or be refused.
            rank: ranks all nodes that may be asked now.
            luck: which near peers are asked.
            tell: hears by which report a request goes out.
        """
        self._config = config
        self._own = own
        self._gossip = gossip
        self._membership = membership
        self._forwarding = forwarding
        self._rank = rank
        self._luck = luck
        self._tell = tell
        self._waiting: dict[bytes, _Waiting] = {}  # by request id

    def begin(self, request: InferenceRequest, now: float) -> bool:
        """Looks for peers that serve a request which nobody known can; False where that is of no use."""
        config, connected = self._config, self._membership.connected()
        if self._gossip.scope is None or request.hops_left <= 0 or len(self._waiting) >= config.waiting_max:
            return False
        beyond = [peer_id for peer_id in self._gossip.beyond() if self._membership.is_connected(peer_id)]
        near = [peer_id for peer_id in connected if peer_id not in beyond]
        asked = beyond + self._luck.sample(near, min(len(near), config.near_asked))
        if not asked or request.request_id in self._waiting:
            return False
        self._gossip.seek(Seek(request.model, config.cards_max), asked, now)
        until = now + min(config.wait_s, config.wait_share * request.deadline_s)
        self._waiting[request.request_id] = _Waiting(request, now + request.deadline_s, until)
        return True

    def handle_card(self, models: Iterable[ModelOffer], now: float) -> None:
        """Begins the requests for these models, of which a card has come."""
        if not self._waiting:
            return
        offered = {offer.model for offer in models}
        for request_id, waiting in list(self._waiting.items()):
            if waiting.request.model in offered:
                report = self._rank(waiting.request, now)
                if report.qualified:
                    self._submit(request_id, report, now)

    def handle_cancelled(self, request_id: bytes) -> None:
        """Forgets a request whose caller is gone."""
        self._waiting.pop(request_id, None)

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called, or None."""
        return min([waiting.until for waiting in self._waiting.values()]) if self._waiting else None

    def handle_timer(self, now: float) -> None:
        """Lets those that have waited long enough begin or be refused."""
        if not self._waiting:
            return
        for request_id in [request_id for request_id, waiting in self._waiting.items() if now >= waiting.until]:
            self._submit(request_id, self._rank(self._waiting[request_id].request, now), now)

    def _submit(self, request_id: bytes, report: RouteReport, now: float) -> None:
        waiting = self._waiting.pop(request_id)
        self._tell(Reranked(request_id, report))
        peers, hops_left = report.qualified, waiting.request.hops_left
        self._forwarding.submit(request_id, peers, self._own, waiting.deadline_at, hops_left, now, report.roundabout)
