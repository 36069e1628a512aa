"""Ways round a peer that cannot be reached: through whom its sealed requests go, and what that costs.

A peer behind a firewall dials out and is connected to some; this node asks it through one of them. Who is connected to whom is
known from the edges that connected peers tell, and otherwise supposed: of those that pass requests on, the nearest to the
executor by their coordinates is the likeliest to know it. The round trip of a way is that to the relay and that from it, so that
a candidate that is reached so stands where it belongs in the ranking.

A way that failed is left out for a while, and a peer that this node could not dial counts as unreachable for as long.

Spec: docs/spec/10-sealing.md, section "Ways".
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from protocol.coordinates import Coordinate, estimate_rtt
from protocol.edges import EdgeStore
from protocol.errors import RemoteProtocolError
from protocol.gossip import Gossip
from protocol.identity import PeerId
from protocol.inference import InferenceRequest
from protocol.membership import NO_ADDRESS, UNREACHED, Membership, Standing
from protocol.node.candidates import peer_candidate
from protocol.node.config import NodeConfig, PeerFacts
from protocol.node.views import Views
from protocol.probe import Probe
from protocol.records import Card, Edge, Edges, Measured, RecordKind
from protocol.routing import CandidateInput, Path, RttSource
from protocol.table import PeerTable

_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Way:
    """A way to a peer through another.

    Attributes:
        relay: through whom.
        path: round trip to the relay and on from it; measured where both parts were.
    """

    relay: PeerId
    path: Path


class Relays:
    """What this node knows of ways through others."""

    def __init__(
        self,
        config: NodeConfig,
        table: PeerTable,
        membership: Membership,
        probe: Probe,
        views: Views,
        gossip: Gossip,
        told: EdgeStore,
        wall: Callable[[float], float],
        settle: Callable[[float], None],
    ) -> None:
        """Knows no edges yet.

        Args:
            config: bounds and times, and whose cards are taken.
            table: the peers' cards.
            membership: who is connected.
            probe: measured paths.
            views: where peers are.
            gossip: takes cards that came with a refusal.
            told: edges that others tell in the compact form.
            wall: the wall clock at a monotonic time.
            settle: drains the machines after something was given to one of them.
        """
        self._config = config.relays
        self._network_id = config.network_id
        self._table = table
        self._membership = membership
        self._probe = probe
        self._views = views
        self._gossip = gossip
        self._told = told
        self._wall = wall
        self._settle = settle
        self._edges: OrderedDict[PeerId, tuple[float, dict[PeerId, Edge]]] = OrderedDict()
        self._failed: OrderedDict[tuple[PeerId, PeerId], float] = OrderedDict()  # by relay and executor, until when
        self._unreached: OrderedDict[PeerId, float] = OrderedDict()  # until when

    # What happened

    def handle_edges(self, peer_id: PeerId, edges: Edges, now: float) -> None:
        """Takes over whom a peer says it is connected to, where it says so in the form of version 0.1.0."""
        self._edges.pop(peer_id, None)
        if not edges.edges:
            return
        self._edges[peer_id] = (now, {edge.peer_id: edge for edge in edges.edges})
        if len(self._edges) > self._config.edges_max:
            self._edges.popitem(last=False)

    def handle_failed(self, relay: PeerId, executor: PeerId, now: float) -> None:
        """Notes that a way has failed, whoever is to blame."""
        self._remember(self._failed, (relay, executor), now)

    def handle_unreached(self, peer_id: PeerId, now: float) -> None:
        """Notes that a peer could not be dialled for a request."""
        self._remember(self._unreached, peer_id, now)

    def handle_card(self, envelope: bytes, executor: PeerId, relay: PeerId, now: float) -> bool:
        """Takes a card that came with a refusal, if it is the executor's and verifies.

        Returns:
            Whether the executor is sealed to by another key now.
        """
        reader, config, wall_s = self._gossip.reader, self._table.config.records, self._wall(now)
        before = self.sealing_key(executor)
        try:
            header = reader.peek(envelope, config)
            if header.peer_id != executor or header.kind is not RecordKind.CARD:
                return False
            reader.check(header, self._network_id, wall_s, config)
            record = reader.open(envelope, self._network_id, wall_s, config)
        except RemoteProtocolError:
            return False
        self._gossip.take(record, relay, now, wall_s)
        self._settle(now)
        return self.sealing_key(executor) not in (before, b"")

    # What is known

    def sealing_key(self, peer_id: PeerId) -> bytes:
        """The key that requests to a peer are sealed to, empty where its card tells none."""
        card = self._card(peer_id)
        return b"" if card is None else card.seal_key

    def candidates(
        self,
        request: InferenceRequest,
        from_peer: PeerId | None,
        facts: Iterable[PeerFacts],
        in_flight: Callable[[PeerId], int],
        own_error: float,
        now: float,
    ) -> Iterator[CandidateInput]:
        """The peers as candidates, those that cannot be reached by the best way round where there is one.

        Args:
            request: what is asked for.
            from_peer: the peer it came from; it has then passed one already, and passes no other.
            facts: what is known of the peers.
            in_flight: how many requests of this node a peer works on.
            own_error: the error estimate of this node's coordinate, unitless.
            now: monotonic seconds.
        """
        for known in facts:
            candidate = peer_candidate(known, own_error, in_flight(known.peer_id))
            if from_peer is None and not known.connected and self._is_wanted(known, request, now):
                way = next(iter(self.ways(known.peer_id, now)), None)
                if way is not None:
                    candidate = replace(candidate, path=way.path, via=way.relay, unavailable="")
            yield candidate

    def ways(self, executor: PeerId, now: float) -> list[Way]:
        """The ways round to a peer, the shortest first; those that its relay has told before those that are supposed."""
        card = self._card(executor)
        if card is None or not card.seal_key:
            return []
        found: list[tuple[bool, float, Way]] = []
        for relay in self._membership.connected():
            if relay == executor or self._is_remembered(self._failed, (relay, executor), now):
                continue
            passing = self._card(relay)
            if passing is None or not passing.relays or self._membership.standing(relay, now)[0] is not Standing.ALIVE:
                continue
            way = self._way(relay, executor, card.coordinate, now)
            found.append((way.path.source is not RttSource.MEASURED, way.path.rtt_s, way))
        found.sort(key=lambda entry: (entry[0], entry[1], entry[2].relay))
        return [way for _, _, way in found[: self._config.ways_max]]

    def _way(self, relay: PeerId, executor: PeerId, place: Coordinate | None, now: float) -> Way:
        """The way through one relay: measured at both ends, or estimated from places, or of unknown length."""
        quality = self._probe.quality(relay, now)
        told_at, edges = self._edges.get(relay, (float("-inf"), {}))
        told = self._told.told(relay, executor, now) or edges.get(executor)
        edge = told if isinstance(told, Measured) or now - told_at < self._config.edges_s else None
        if quality is not None and edge is not None:
            path = Path(RttSource.MEASURED, quality.rtt_s + edge.rtt_s, quality.jitter_s + edge.jitter_s, quality.loss)
            return Way(relay, path)
        between = self._views.place_of(relay)
        if quality is None or between is None or place is None:
            return Way(relay, Path(RttSource.UNKNOWN))
        error = max(between.error, place.error)
        return Way(relay, Path(RttSource.COORDINATE, quality.rtt_s + estimate_rtt(between, place), error=error))

    def _is_wanted(self, facts: PeerFacts, request: InferenceRequest, now: float) -> bool:
        """Whether a peer serves what is asked for and cannot be reached, as far as this node knows, while it lives."""
        if facts.serving is None or all(offer.model != request.model for offer in facts.serving.models):
            return False
        return facts.why in (UNREACHED, NO_ADDRESS) or (
            facts.standing is Standing.ALIVE and self._is_remembered(self._unreached, facts.peer_id, now)
        )

    def _card(self, peer_id: PeerId) -> Card | None:
        record = self._table.get(peer_id, RecordKind.CARD)
        return record.payload if record is not None and isinstance(record.payload, Card) else None

    def _remember(self, remembered: OrderedDict[_Key, float], key: _Key, now: float) -> None:
        remembered.pop(key, None)
        remembered[key] = now + self._config.failed_s
        if len(remembered) > self._config.failed_max:
            remembered.popitem(last=False)

    @staticmethod
    def _is_remembered(remembered: OrderedDict[_Key, float], key: _Key, now: float) -> bool:
        return now < remembered.get(key, float("-inf"))
