"""The core of one node: gossip, membership, probes, coordinates, routing and forwarding, composed.

The machines below this module do not know each other; here they meet. A record that gossip accepts tells membership where a
peer is and that it lives; a round trip that the probe takes moves the coordinate; coordinate, probes, beats and the outcomes of
earlier requests rank the candidates of the next one. The shell hands in what happened (`handle_*`), asks when to come back
(`next_timer`) and carries out what comes out (`next_output`, drained after every call until it is None).

Time is monotonic seconds; `handle_wall_clock` tells how far the wall clock is from it, which only signed records need.

Source: docs/architecture.md, "The core".
Spec: docs/spec/03-records.md and 04-gossip.md.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from protocol import forwarding, gossip, membership, probe
from protocol.coordinates import Coordinate, CoordinateConfig, Vivaldi, distance, estimate_rtt
from protocol.encoding import Luck
from protocol.errors import ErrorCode
from protocol.forwarding import Forwarding, ForwardingConfig
from protocol.gossip import Gossip, GossipConfig
from protocol.identity import Identity, PeerId
from protocol.inference import Failed, Finished, InferenceRequest
from protocol.membership import Membership, MembershipConfig, Standing
from protocol.multiaddr import Multiaddr
from protocol.probe import Liveness, PathQuality, Probe, ProbeConfig
from protocol.records import (
    Beat,
    Card,
    Edge,
    Edges,
    Hardware,
    ModelLoad,
    ModelOffer,
    Payload,
    Record,
    RecordKind,
    Sequencer,
    fit,
    seal,
)
from protocol.routing import CandidateInput, Path, Requirement, RouteReport, RoutingConfig, RttSource, rank
from protocol.services import ServiceEstimates
from protocol.table import PeerTable, TableConfig


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything a core can be told; seconds unless the name says otherwise."""

    network_id: str = "isochrone"
    agent: str = "isochrone/0.1.0"
    card_lifetime_s: float = 600.0
    """A capability claim is good for ten minutes (security: claims expire soon) and renewed at half of that."""
    card_interval_min_s: float = 2.0
    """Shortest time between two cards, however fast things change: a card reaches everyone."""
    coordinate_moved_s: float = 0.001
    coordinate_moved_share: float = 0.1
    """A coordinate that moved less than a millisecond, or less than a tenth of the round trip that moved it, is no news."""
    coordinate_error_changed: float = 0.2
    """An error estimate that changed by less is no news: peers weigh this node by it, and a fresh one (1.5) counts for little."""
    beat_interval_s: float = 1.0
    """Load is told this often; three missed beats take a peer out that is not connected."""
    beat_lifetime_s: float = 30.0
    """Slack for clocks that disagree; freshness is judged by the receiver's own clock."""
    edges_interval_s: float = 30.0
    edges_lifetime_s: float = 300.0
    reserve_retry_s: float = 1.0
    """A disk that refused to keep a reservation is asked again after this long; until then nothing is signed."""
    edges_max: int = 64
    """Measured paths told to others, nearest first."""
    membership: MembershipConfig = field(default_factory=MembershipConfig)
    gossip: GossipConfig = field(default_factory=GossipConfig)
    table: TableConfig = field(default_factory=TableConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    coordinates: CoordinateConfig = field(default_factory=CoordinateConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    forwarding: ForwardingConfig = field(default_factory=ForwardingConfig)


@dataclass(frozen=True, slots=True)
class ReserveSequences:
    """Persist that sequence numbers below `upto` may have been used, then call `handle_reserved`."""

    upto: int


@dataclass(frozen=True, slots=True)
class PeerView:
    """What a node knows of one peer, for people and programs.

    `rtt_s` is the best estimate; `rtt_source` says whether it was measured, derived from coordinates, or is unknown.
    """

    peer_id: PeerId
    standing: Standing
    why: str
    connected: bool
    card: Card | None
    beat: Beat | None
    quality: PathQuality | None
    coordinate_rtt_s: float | None


Output = (
    gossip.Output | membership.Output | probe.Output | forwarding.Output | ReserveSequences
)  # the commands and facts of every machine, as they are


class Node:
    """The core; see the module's docstring."""

    def __init__(self, config: NodeConfig, identity: Identity, luck: Luck, sequencer: Sequencer) -> None:
        """Composes the machines; nothing happens before `start`.

        Args:
            config: every bound and interval.
            identity: the key that signs this node's records.
            luck: all randomness of the core.
            sequencer: sequence numbers, resumed from what was reserved before the last stop.
        """
        self.config = config
        self.peer_id = identity.peer_id
        self.table = PeerTable(identity.peer_id, config.table)
        self.gossip = Gossip(config.gossip, self.table, config.network_id, luck)
        self.membership = Membership(config.membership, identity.peer_id, luck)
        self.probe = Probe(config.probe, luck)
        self.vivaldi = Vivaldi(config.coordinates, luck)
        self.forwarding = Forwarding(config.forwarding)
        self.services = ServiceEstimates(config.routing.service)
        self._identity = identity
        self._luck = luck
        self._sequencer = sequencer
        self._wall_offset_s = 0.0
        self._outputs: deque[Output] = deque()
        self._addresses: tuple[Multiaddr, ...] = ()
        self._hardware: Hardware | None = None
        self._offers: tuple[ModelOffer, ...] = ()
        self._loads: tuple[ModelLoad, ...] = ()
        self._draining = False
        self._card_changed = False
        self._told_coordinate: Coordinate | None = None
        self._card_at = self._beat_at = self._edges_at = self._unreserved_until = float("-inf")
        self._started = False

    # This node's own facts

    def start(
        self, addresses: tuple[Multiaddr, ...], hardware: Hardware, offers: tuple[ModelOffer, ...], wall_s: float, now: float
    ) -> None:
        """Begins to tell others about this node."""
        self._addresses, self._hardware, self._offers = addresses, hardware, offers
        self._started = True
        self._card_changed = True
        self.handle_wall_clock(wall_s, now)
        self.handle_timer(now)

    def handle_wall_clock(self, wall_s: float, now: float) -> None:
        """Learns what the wall clock shows at `now`; call it again from time to time, for wall clocks step."""
        self._wall_offset_s = wall_s - now

    def handle_offers(self, offers: tuple[ModelOffer, ...], now: float) -> None:
        """Takes over which models this node serves."""
        if offers != self._offers:
            self._offers = offers
            self._card_changed = True
            self.handle_timer(now)

    def handle_load(self, loads: tuple[ModelLoad, ...]) -> None:
        """Takes over how busy this node's engines are; told with the next beat."""
        self._loads = loads

    def drain(self, now: float) -> None:
        """Tells everyone, at once, that this node takes no more work."""
        self._draining = True
        if self._started and self._may_sign(now):
            self._publish_beat(now)
            self._settle(now)

    def handle_reserved(self, upto: int, now: float) -> None:
        """Learns that sequence numbers below `upto` are safe to use."""
        self._sequencer.reserve(upto)
        self._unreserved_until = float("-inf")
        self.handle_timer(now)

    # What the transport heard

    def add_bootstrap(self, addresses: Iterable[Multiaddr], now: float) -> None:
        """Adds addresses to join by."""
        self.membership.add_bootstrap(addresses, now)
        self._settle(now)

    def handle_connected(self, peer_id: PeerId, now: float, target: membership.Target | None = None) -> None:
        """Notes a connection to a peer that speaks the mesh's protocols; a new stream on it, or a dial that ends on it, again."""
        self.membership.handle_connected(peer_id, now, target)
        if peer_id != self.peer_id:
            self.gossip.handle_connected(peer_id, now)
            if self.probe.liveness(peer_id) is not Liveness.ALIVE:
                self.probe.handle_connected(peer_id, now)
        self._settle(now)

    def handle_disconnected(self, peer_id: PeerId, code: ErrorCode, now: float) -> None:
        """Notes that a connection has ended."""
        self.gossip.handle_disconnected(peer_id, now)
        self.probe.handle_disconnected(peer_id, now)
        self.membership.handle_disconnected(peer_id, code, now)
        self._settle(now)

    def handle_replaced(self, peer_id: PeerId, now: float) -> None:
        """Notes that a connected peer is connected by another connection now, and begins anew with it.

        Call it once messages to the peer go to the new connection; one that has not been greeted yet is left alone.
        """
        if not self.membership.is_connected(peer_id):
            return
        self.membership.handle_connected(peer_id, now)
        self.gossip.handle_disconnected(peer_id, now)
        self.gossip.handle_connected(peer_id, now)
        self.probe.handle_connected(peer_id, now)
        self._settle(now)

    def handle_dial_failed(self, target: membership.Target, now: float) -> None:
        """Notes that a `Connect` led nowhere."""
        self.membership.handle_dial_failed(target, now)
        self._settle(now)

    def handle_message(self, peer_id: PeerId, payload: bytes, now: float) -> None:
        """Takes a gossip message."""
        self.gossip.handle_message(peer_id, payload, now, self.wall(now))
        self._settle(now)

    def handle_datagram(self, peer_id: PeerId, payload: bytes, received_at: float, now: float) -> None:
        """Takes a datagram, which is a probe or an echo; `received_at` is the kernel's time of arrival where it tells."""
        self.probe.handle_datagram(peer_id, payload, received_at, now)
        self._settle(now)

    # Requests

    def rank(self, request: InferenceRequest, now: float, from_peer: PeerId | None = None) -> RouteReport:
        """Ranks all nodes that may be asked; the report keeps the reasons.

        Args:
            request: what is asked for.
            now: monotonic seconds.
            from_peer: the peer that forwarded it, who is not asked again.
        """
        excluded: frozenset[PeerId] = frozenset() if from_peer is None else frozenset({from_peer})
        requirement = Requirement(
            model=request.model,
            feature=request.feature,
            memory_bytes=request.memory_bytes,
            output_tokens=request.output_tokens,
            stream=request.stream,
            excluded=excluded,
        )
        candidates = [self._own_candidate()]
        if request.hops_left > 0:  # otherwise nobody else may be asked
            candidates.extend(self._candidate(view) for view in self.peers(now))
        return rank(request.request_id, requirement, candidates, self.services, self.config.routing, self._luck, now)

    def submit(
        self, request: InferenceRequest, report: RouteReport, from_peer: PeerId | None, now: float
    ) -> forwarding.Refuse | None:
        """Begins a ranked request.

        Returns:
            The refusal of a request that came from a peer and may not begin here; otherwise None, and outputs follow.
        """
        if from_peer is not None:
            refusal = self.forwarding.admit(request.request_id, from_peer, request.hops_left, now)
            if refusal is not None:
                return refusal
        self.forwarding.submit(
            request.request_id, report.qualified, self.peer_id, now + request.deadline_s, request.hops_left, now
        )
        return None

    def handle_first_output(self, request: InferenceRequest, peer: PeerId, now: float) -> bool:
        """Notes that an attempt has delivered; whether the output is to reach the caller."""
        return self.forwarding.handle_first_output(request.request_id, peer, now)

    def handle_finished(
        self,
        request: InferenceRequest,
        report: RouteReport,
        peer: PeerId,
        end: Finished,
        took_s: float,
        first_s: float,
        now: float,
    ) -> None:
        """Notes a complete answer, and learns from it how fast the peer serves.

        What is learnt is this node's own measurement less the path; the peer's word is believed only for the time in its queue,
        and that only makes it look better for a moment: the next request is measured again.

        Args:
            request: what was asked for.
            report: how it was routed.
            peer: who answered.
            end: the last event of the answer.
            took_s: seconds from the attempt's start to its end.
            first_s: seconds from the attempt's start to its first output.
            now: monotonic seconds.
        """
        path_s = next((c.rtt_s or 0.0 for c in report.candidates if c.peer_id == peer), 0.0)
        waited_s = path_s + min(max(end.timing.queue_s, 0.0), first_s)
        service_s, first_output_s = max(0.0, took_s - waited_s), max(0.0, first_s - waited_s)
        tokens = end.usage.completion_tokens
        self.services.record(peer, request.model, request.feature, now, service_s, first_output_s, tokens)
        self.forwarding.handle_finished(request.request_id, peer, now)

    def handle_failed(self, request: InferenceRequest, peer: PeerId, failed: Failed, now: float) -> None:
        """Notes a failed attempt; the next candidate is asked when there is one and nothing was delivered yet."""
        self.services.record_failure(peer, request.model, failed.code, now)
        self.forwarding.handle_failed(request.request_id, peer, failed.code, failed.message, now)

    def handle_given_up(self, request: InferenceRequest, peer: PeerId, now: float) -> None:
        """Notes that a peer let its share of the time pass without a word, so that others are asked before it for a while."""
        self.services.record_failure(peer, request.model, ErrorCode.DEADLINE_EXCEEDED, now)

    def handle_cancelled(self, request: InferenceRequest, now: float) -> None:
        """Notes that the caller is gone; nothing happens when the request has ended already."""
        self.forwarding.handle_cancelled(request.request_id, now)

    def _own_candidate(self) -> CandidateInput:
        """This node as a candidate: no path, its own load."""
        return CandidateInput(
            peer_id=self.peer_id,
            path=Path(RttSource.SELF),
            offers=self._offers,
            beat=Beat(self._draining, self._loads),
            memory_bytes=_memory_bytes(self._hardware),
            in_flight=self.forwarding.in_flight(self.peer_id),
        )

    def _candidate(self, view: PeerView) -> CandidateInput:
        """A peer as a candidate: the best that is known of the path, its own word on the rest."""
        card, quality = view.card, view.quality
        if quality is not None:
            path = Path(RttSource.MEASURED, quality.rtt_s, quality.jitter_s, quality.loss, connected=view.connected)
        elif view.coordinate_rtt_s is not None and card is not None and card.coordinate is not None:
            error = max(card.coordinate.error, self.vivaldi.coordinate.error)
            path = Path(RttSource.COORDINATE, view.coordinate_rtt_s, error=error, connected=view.connected)
        else:
            path = Path(RttSource.UNKNOWN, connected=view.connected)
        return CandidateInput(
            peer_id=view.peer_id,
            path=path,
            offers=() if card is None else card.models,
            beat=view.beat,
            unavailable="" if view.standing is Standing.ALIVE else f"{view.standing}: {view.why}",
            memory_bytes=_memory_bytes(None if card is None else card.hardware),
            in_flight=self.forwarding.in_flight(view.peer_id),
        )

    def wall(self, now: float) -> float:
        """The wall clock at `now`, in seconds since 1970."""
        return now + self._wall_offset_s

    # Views

    def peers(self, now: float) -> list[PeerView]:
        """Everyone this node knows, in the order of their ids."""
        known = {record.peer_id for record in self.table.cards()} | set(self.membership.connected())
        return [self.peer(peer_id, now) for peer_id in sorted(known - {self.peer_id})]

    def peer(self, peer_id: PeerId, now: float) -> PeerView:
        """What is known of one peer."""
        standing, why = self.membership.standing(peer_id, now)
        card = self._payload(peer_id, RecordKind.CARD)
        beat = self._payload(peer_id, RecordKind.BEAT)
        assert card is None or isinstance(card, Card)
        assert beat is None or isinstance(beat, Beat)
        place = None if card is None else card.coordinate
        return PeerView(
            peer_id=peer_id,
            standing=standing,
            why=why,
            connected=self.membership.is_connected(peer_id),
            card=card,
            beat=beat,
            quality=self.probe.quality(peer_id, now),
            coordinate_rtt_s=None if place is None else estimate_rtt(self.vivaldi.coordinate, place),
        )

    # Time and outputs

    def next_timer(self) -> float:
        """When `handle_timer` wants to be called."""
        timers = [self.gossip.next_timer(), self.membership.next_timer(), self.probe.next_timer(), self.forwarding.next_timer()]
        return min([self._next_publication(), *(timer for timer in timers if timer is not None)])

    def handle_timer(self, now: float) -> None:
        """Does what is due."""
        self.gossip.handle_timer(now, self.wall(now))
        self.membership.handle_timer(now)
        self.probe.handle_timer(now)
        self.forwarding.handle_timer(now)
        self._publish(now)
        self._settle(now)

    def next_output(self) -> Output | None:
        """The next thing to do or to know, or None."""
        if self._outputs:
            return self._outputs.popleft()
        return self.forwarding.next_output()

    # Publishing

    def _next_publication(self) -> float:
        """When the next record of this node's own is due."""
        if not self._started:
            return float("inf")
        config = self.config
        card_at = self._card_at + (config.card_interval_min_s if self._card_changed else config.card_lifetime_s / 2)
        due = min(card_at, self._beat_at + config.beat_interval_s, self._edges_at + config.edges_interval_s)
        return max(due, self._unreserved_until)

    def _publish(self, now: float) -> None:
        """Signs and spreads what is due."""
        if not self._started or now < self._next_publication() or not self._may_sign(now):
            return
        config = self.config
        card_interval_s = config.card_interval_min_s if self._card_changed else config.card_lifetime_s / 2
        for due, publish in (
            (self._card_at + card_interval_s, self._publish_card),
            (self._beat_at + config.beat_interval_s, self._publish_beat),
            (self._edges_at + config.edges_interval_s, self._publish_edges),
        ):
            if now < due:
                continue
            if not self._sequencer.is_ready:  # the record before took the last number
                self._unreserved_until = now + config.reserve_retry_s
                return
            publish(now)

    def _may_sign(self, now: float) -> bool:
        """Whether a sequence number is safe to use; asks for more in good time, and again when the disk refused."""
        if (upto := self._sequencer.needs_reservation()) is not None:
            self._outputs.append(ReserveSequences(upto))
        if self._sequencer.is_ready:
            return True
        self._unreserved_until = now + self.config.reserve_retry_s
        return False

    def _publish_card(self, now: float) -> None:
        """Tells who this node is."""
        assert self._hardware is not None
        self._card_at, self._card_changed = now, False
        self._told_coordinate = self.vivaldi.coordinate
        card = Card(self._addresses, self._hardware, self._offers, self._told_coordinate, self.config.agent)
        self._spread(card, self.config.card_lifetime_s, now)

    def _publish_beat(self, now: float) -> None:
        """Tells how this node is doing."""
        self._beat_at = now
        self._spread(Beat(self._draining, self._loads), self.config.beat_lifetime_s, now)

    def _publish_edges(self, now: float) -> None:
        """Tells what this node has measured, nearest first."""
        self._edges_at = now
        measured = [(peer_id, self.probe.quality(peer_id, now)) for peer_id in self.membership.connected()]
        edges = [Edge(peer_id, q.rtt_s, q.jitter_s, q.samples) for peer_id, q in measured if q is not None]
        edges.sort(key=lambda edge: (edge.rtt_s, edge.peer_id))
        if edges:
            self._spread(Edges(tuple(edges[: self.config.edges_max])), self.config.edges_lifetime_s, now)

    def _spread(self, payload: Payload, lifetime_s: float, now: float) -> None:
        """Seals a record and gives it to gossip."""
        wall_s = self.wall(now)
        record = seal(
            self._identity,
            self.config.network_id,
            fit(payload, self.config.table.records),
            self._sequencer.next(),
            wall_s,
            wall_s + lifetime_s,
            self.config.table.records,
        )
        self.gossip.publish(record, now)

    # Cross-wiring

    def _settle(self, now: float) -> None:
        """Drains the machines, lets each hear what concerns it, and passes everything on."""
        while True:
            output = self.gossip.next_output() or self.probe.next_output() or self.membership.next_output()
            if output is None:
                return
            match output:
                case gossip.RecordAccepted(record):
                    self._take_record(record, now)
                case gossip.RecordExpired(record):
                    if record.kind is RecordKind.CARD or self.table.heard_at(record.peer_id) is None:
                        self.membership.forget(record.peer_id)
                case gossip.OwnRecordHeard(sequence):
                    self._sequencer.observe(sequence)
                    self._card_changed = True
                case probe.SampleTaken(peer, rtt_s):
                    self._take_sample(peer, rtt_s)
                case probe.PeerSuspected(peer):
                    self.membership.handle_suspected(peer, now)
                    self.forwarding.handle_suspected(peer, now)
                case probe.PeerRecovered(peer):
                    self.membership.handle_recovered(peer, now)
                case probe.PeerLost(peer):
                    self.membership.handle_lost(peer, now)
                case _:
                    pass
            self._outputs.append(output)

    def _take_record(self, record: Record, now: float) -> None:
        """Lets membership know what a peer's record says."""
        if record.peer_id == self.peer_id:
            return
        match record.payload:
            case Card(addresses=addresses):
                self.membership.handle_card(record.peer_id, addresses, now)
            case Beat():
                self.membership.handle_beat(record.peer_id, now)
            case Edges():
                pass
            case _:
                assert_never(record.payload)

    def _take_sample(self, peer: PeerId, rtt_s: float) -> None:
        """Moves the coordinate, and has a new card made when it has moved far enough to matter."""
        card = self._payload(peer, RecordKind.CARD)
        if not isinstance(card, Card) or card.coordinate is None:
            return
        self.vivaldi.handle_sample(peer, rtt_s, card.coordinate)
        told = self._told_coordinate
        if told is not None and not self._card_changed:
            own = self.vivaldi.coordinate
            moved_s = distance(told, own)
            moved = moved_s > max(self.config.coordinate_moved_s, self.config.coordinate_moved_share * rtt_s)
            self._card_changed = moved or abs(told.error - own.error) > self.config.coordinate_error_changed

    def _payload(self, peer_id: PeerId, kind: RecordKind) -> Payload | None:
        """What a peer's newest record of a kind says."""
        record = self.table.get(peer_id, kind)
        return None if record is None else record.payload


def _memory_bytes(hardware: Hardware | None) -> int:
    """The memory that models live in: that of the largest accelerator, or the host's where there is none."""
    if hardware is None:
        return 0
    return max((gpu.memory_bytes for gpu in hardware.gpus), default=hardware.memory_bytes)
