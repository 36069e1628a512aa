"""What this node tells of its edges, and what it makes of those that others tell.

When it tells them, and which, its `pace` says; of whom it holds them, its `ring`. What others tell goes into one store, in which
an edge counts that both ends tell; edges in the form of version 0.1.0 are written in the compact form first, so that it makes no
difference which form either end speaks. Whatever counts otherwise than before goes on to the chart.

Spec: docs/spec/05-coordinates.md, section "Edges"; docs/spec/03-records.md, section "When records are told".
"""

from collections.abc import Callable

from protocol.announcer import Announcer
from protocol.conduct.prefixes import prefix_of
from protocol.coordinates import Coordinate
from protocol.edges import EdgeDisputed, EdgeStore
from protocol.encoding import Luck
from protocol.gossip import Gossip
from protocol.gossip.messages import Want
from protocol.identity import PeerId
from protocol.node.config import NodeConfig
from protocol.node.pace import Pace
from protocol.node.ring import EdgeRing
from protocol.node.survey import Survey
from protocol.probe import Probe
from protocol.records import Card, Edges, Measured, Record, RecordKind, Way, edge_tag, encode_measured
from protocol.table import PeerTable, record_key

_IPV4_BYTES, _ORIGIN_IPV4_BYTES, _ORIGIN_IPV6_BYTES = 4, 3, 6  # of a prefix; of a /24; of a /48


class EdgeTelling:
    """The edges of one node and those it has heard of."""

    def __init__(
        self,
        config: NodeConfig,
        table: PeerTable,
        probe: Probe,
        survey: Survey,
        gossip: Gossip,
        announcer: Announcer,
        luck: Luck,
        wall: Callable[[float], float],
        place: Callable[[], Coordinate],
    ) -> None:
        """Has told and heard nothing.

        Args:
            config: bounds and intervals.
            table: cards, which say where peers are in the network.
            probe: jitter and loss of the paths that are probed.
            survey: round trips of all measured paths; learns which edges count.
            gossip: whose reader knows owners, and which sees where connections come from.
            announcer: counts the time.
            luck: draws whom to tell of.
            wall: the wall clock at a monotonic time.
            place: where this node is.
        """
        self.store = EdgeStore(config.edges)
        self.pace = Pace(config.announcer, luck)
        self.ring = EdgeRing(config.ring, table, luck)
        self._lifetime_s = config.edges.lifetime_s
        self._measured_max = config.distances.measured_max
        self._table = table
        self._probe = probe
        self._survey = survey
        self._gossip = gossip
        self._announcer = announcer
        self._wall = wall
        self._place = place

    def turn(self, now: float) -> Edges | None:
        """What to tell now, for edges are due; plans the next turn, and sees of whom edges are held and which are missing."""
        self._look(now)
        measured = self._survey.distances.edges(self._measured_max, now)
        told, wait_s = self.pace.turn(measured, self._named, now)
        self._announcer.plan_edges(now + wait_s)
        return Edges((), encode_measured(self._edge(peer_id, rtt_s, now) for peer_id, rtt_s in told)) if told else None

    def handle_record(self, record: Record, now: float) -> list[EdgeDisputed]:
        """Takes over what a node tells, this one too; returns what is disputed by it."""
        edges, peer_id = record.payload, record.peer_id
        if not isinstance(edges, Edges):
            return []
        wall_s = self._wall(now)
        told_at = now - min(max(0.0, wall_s - record.issued_s), self._lifetime_s)
        owner = self._gossip.reader.owner(peer_id, wall_s)
        disputed = self.store.handle_told(peer_id, compact(peer_id, edges), told_at, owner, self._origin_of(peer_id))
        self.expire(now)
        return disputed

    def handle_forgotten(self, peer_id: PeerId, now: float) -> None:
        """Forgets what a peer told whose record is gone."""
        self.store.remove(peer_id)
        self.expire(now)

    def expire(self, now: float) -> None:
        """Forgets what was told too long ago, and has the chart know what counts."""
        self.store.expire(now)
        for peer_id in self.store.taken_changes():
            if peer_id in self.store:
                self._survey.distances.handle_edges(peer_id, self.store.edges_of(peer_id, now), now)
            else:
                self._survey.distances.chart.forget(peer_id)

    # Helpers

    def _look(self, now: float) -> None:
        """Takes over who belongs to the ring now, and asks for the edges that are missing of them."""
        self._gossip.horizon.edges_beyond = beyond = self.ring.look(
            self._place(), dict(self._survey.distances.edges(self._measured_max, now))
        )
        for peer_id in [peer_id for peer_id in self.store.peers() if record_key(peer_id, RecordKind.EDGES) in beyond]:
            self.store.remove(peer_id)
        self.expire(now)
        for peer_id in self.ring.members:
            if peer_id not in self.store and (record := self._table.get(peer_id, RecordKind.EDGES)) is not None:
                self.handle_record(record, now)  # it is near again, or there is room again
        connected = [peer_id for peer_id in self.ring.members if self._probe.quality(peer_id, now) is not None]
        for peer_id, keys in self.ring.asked(self.ring.missing(self._wall(now)), connected):
            self._gossip.seek(Want(keys), [peer_id], now)

    def _named(self, peer_id: PeerId) -> int | None:
        return self.store.standing(peer_id)[0] if self.store.tells_of(peer_id, self._table.own) else None

    def _edge(self, peer_id: PeerId, rtt_s: float, now: float) -> Measured:
        origin = self._gossip.scores.origin_of(peer_id)
        way = Way.UNKNOWN if origin is None else Way.IPV4 if len(origin) == _IPV4_BYTES else Way.IPV6
        quality = self._probe.quality(peer_id, now)
        jitter_s, loss = (0.0, 0.0) if quality is None else (quality.jitter_s, quality.loss)
        age_s = max(0.0, now - self._survey.distances.measured_at(peer_id))
        return Measured(edge_tag(self._table.own, peer_id), rtt_s, age_s, jitter_s, loss, way)

    def _origin_of(self, peer_id: PeerId) -> bytes | None:
        """The /24 or /48 of the first address that a peer's card names; None where that is the owner's own, or a name."""
        record = self._table.get(peer_id, RecordKind.CARD)
        addresses = record.payload.addresses if record is not None and isinstance(record.payload, Card) else ()
        if not addresses or addresses[0].protocol not in ("ip4", "ip6"):
            return None
        prefix = prefix_of(addresses[0].host)
        if prefix is None:
            return None
        return prefix[:_ORIGIN_IPV4_BYTES] if len(prefix) == _IPV4_BYTES else prefix[:_ORIGIN_IPV6_BYTES]


def compact(peer_id: PeerId, edges: Edges) -> bytes:
    """What a peer tells in the compact form, also where it speaks that of version 0.1.0; their samples are as new as can be."""
    return edges.measured or encode_measured(
        Measured(edge_tag(peer_id, edge.peer_id), edge.rtt_s, jitter_s=edge.jitter_s)
        for edge in edges.edges
        if edge.peer_id != peer_id
    )
