"""The core of one node: gossip, membership, suspicion, probes, coordinates, routing and forwarding, composed.

The machines below this module do not know each other; here they meet. A card that gossip accepts tells membership where a peer
is, a verdict tells suspicion whom others have lost; a round trip that the probe takes moves the coordinate; coordinate,
probes, beats and the outcomes of earlier requests rank the candidates of the next one. The shell hands in what happened
(`handle_*`), asks when to come back (`next_timer`) and carries out what comes out (`next_output`, drained after every call
until it is None).

Time is monotonic seconds; `handle_wall_clock` tells how far the wall clock is from it, which only signed records need.

Source: docs/architecture.md, "The core".
Spec: docs/spec/03-records.md and 04-gossip.md.
"""

from collections import deque
from collections.abc import Iterable
from typing import assert_never

from protocol import forwarding, gossip, membership, probe, suspicion
from protocol.announcer import Announcer
from protocol.coordinates import Coordinate, Vivaldi
from protocol.encoding import Luck
from protocol.errors import ErrorCode
from protocol.fabric import Way
from protocol.forwarding import Forwarding
from protocol.gossip import Gossip
from protocol.identity import Identity, PeerId
from protocol.inference import Failed, Finished, InferenceRequest, are_on_host
from protocol.load import Beat, ModelLoad
from protocol.membership import Membership
from protocol.multiaddr import Multiaddr
from protocol.node.candidates import own_candidate, requirement_of, served_in, with_ways
from protocol.node.config import FALLEN_SILENT, MachineOutput, NodeConfig, Output, PeerFacts, PeerView
from protocol.node.eligible import Eligible
from protocol.node.inquiries import Inquiries
from protocol.node.relays import Relays
from protocol.node.searches import Searches
from protocol.node.signing import Signing
from protocol.node.strangers import Strangers
from protocol.node.survey import Survey
from protocol.node.telling import EdgeTelling
from protocol.node.views import Views
from protocol.probe import THREE_LEGS, Liveness, Probe
from protocol.records import Accusation, Card, Edges, Hardware, ModelOffer, Record, RecordKind, Sequencer, Verdict
from protocol.routing import RouteReport, rank
from protocol.services import ServiceEstimates
from protocol.suspicion import Suspicion
from protocol.table import PeerTable, RecordKey, record_key
from protocol.timers import sooner


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
        self.survey = Survey(config.distances, identity)
        self.forwarding = Forwarding(config.forwarding)
        self.services = ServiceEstimates(config.routing.service)
        self._luck = luck
        self.announcer = Announcer(config.announcer, config.agent)
        self._own_key = record_key(identity.peer_id, RecordKind.CARD)
        self.suspicion = Suspicion(config.suspicion, self._own_key, luck, self._incarnation_of)
        self._outputs: deque[Output] = deque()
        act = self._outputs.append
        self.searches = Searches(
            config.searches, self.peer_id, self.gossip, self.membership, self.forwarding, self.rank, luck, act
        )
        self.inquiries = Inquiries(config.inquiries, self.peer_id, self.membership, self.probe, self.forwarding, self.rank, act)
        self.strangers = Strangers(
            config.strangers, identity, config.network_id, self.table, self.gossip, luck, act, self.wall, self._settle
        )
        self.signing = Signing(config, identity, sequencer, self.gossip, self.strangers, act, self.wall)
        self._queues = (self.gossip.outputs, self.probe.outputs, self.membership.outputs, self.suspicion.outputs)
        self._due: float | None = None  # the next timer but those of requests; None when it has to be worked out anew
        self._wall_offset_s: float | None = None  # until the wall clock was told
        self._beats: dict[PeerId, Beat] = {}  # of connected peers
        self._places: dict[PeerId, Coordinate] = {}  # of connected peers, as their echoes tell them
        error_max = config.coordinates.error_max
        self.views = Views(
            self.peer_id,
            self.table,
            self.membership,
            self.probe,
            self._beats,
            self._places,
            error_max,
            lambda: self.vivaldi,
            self.survey.distances,
        )
        self.eligible = Eligible(config.eligible, self.table, self.membership, self.probe, self.views, luck)
        told_by = (self.survey, self.gossip, self.announcer)
        self.telling = EdgeTelling(config, self.table, self.probe, *told_by, luck, self.wall, lambda: self.vivaldi.coordinate)
        shared = (self.table, self.membership, self.probe, self.views, self.gossip, self.telling.store)
        self.ways: dict[PeerId, Way] = {}  # the fabrics that are open; the shell bounds them
        self.device_ways: dict[PeerId, Way] = {}  # those that carry tensors on a device
        self.relays = Relays(config, *shared, self.wall, self._settle)
        self._ranking_at = float("inf")
        self._ranking_wait_s = config.ranking_min_s
        self._near_within_s = float("-inf")  # the round trip to the farthest of the nearest, when they were last looked for

    # This node's own facts

    def start(
        self, addresses: tuple[Multiaddr, ...], hardware: Hardware, offers: tuple[ModelOffer, ...], wall_s: float, now: float
    ) -> None:
        """Begins to tell others about this node."""
        self.handle_wall_clock(wall_s, now)
        self.announcer.start(addresses, hardware, offers)
        self.gossip.handle_moved(self.vivaldi.coordinate)
        self._ranking_at = now + self._ranking_wait_s * self._luck.uniform(0.5, 1.5)
        self.handle_timer(now)

    def handle_wall_clock(self, wall_s: float, now: float) -> None:
        """Learns what the wall clock shows at `now`; call it again from time to time, for wall clocks step.

        A step of more than records allow has made this node's newest records bad by the clocks of others, or those of others
        by its own. So it tells its own anew, lets in what expired by the wrong clock, and compares with everybody.
        """
        before_s, self._wall_offset_s = self._wall_offset_s, wall_s - now
        if before_s is None or abs(self._wall_offset_s - before_s) <= self.config.table.records.skew_s:
            return
        self.table.readmit_expired()
        self.announcer.refute()
        self.suspicion.handle_forgotten_self(now)
        self.gossip.handle_clock_step(now)
        self.handle_timer(now)

    def handle_addresses(self, addresses: tuple[Multiaddr, ...], now: float) -> None:
        """Takes over where this node can be reached, when that has changed."""
        self.announcer.handle_addresses(addresses)
        self.handle_timer(now)

    def handle_offers(self, offers: tuple[ModelOffer, ...], now: float) -> None:
        """Takes over which models this node serves."""
        self.announcer.handle_offers(offers)
        self.handle_timer(now)

    def handle_load(self, loads: tuple[ModelLoad, ...], bus_free_mbps: int = 0) -> None:
        """Takes over how busy this node's engines are, told soon if that changed much, and what is left of its bus."""
        if loads == self.announcer.loads and bus_free_mbps == self.announcer.bus_free_mbps:
            return
        self._due = None
        self.announcer.handle_load(loads, bus_free_mbps)

    def handle_fabric(self, advert: bytes) -> None:
        """Takes over which fabrics this node has, as its advert says."""
        self._due = None
        self.announcer.handle_fabric(advert)

    def handle_membership(self, shown: bytes) -> None:
        """Takes over what this node shows of its membership."""
        self._due = None
        self.announcer.handle_membership(shown)

    def drain(self, now: float) -> None:
        """Tells everyone, at once, that this node takes no more work."""
        self.announcer.drain()
        self._publish(now)
        self._settle(now)

    def handle_slept(self, slept_s: float, now: float) -> None:
        """Learns that the machine was suspended: others have given this node up meanwhile, and its connections are dead.

        Args:
            slept_s: for how long; the monotonic clock did not count it.
            now: monotonic seconds.
        """
        if slept_s < self.config.membership.gone_after_s:
            return
        self.announcer.refute()
        for peer_id in self.membership.connected():
            self.probe.handle_doubt(peer_id, now)
        self.handle_timer(now)

    def handle_reserved(self, upto: int, now: float) -> None:
        """Learns that sequence numbers below `upto` are safe to use."""
        self.signing.handle_reserved(upto)
        self.handle_timer(now)

    # What the transport heard

    def add_bootstrap(self, addresses: Iterable[Multiaddr], now: float) -> None:
        """Adds addresses to join by."""
        self.membership.add_bootstrap(addresses, now)
        self._settle(now)

    def handle_connected(
        self, peer_id: PeerId, now: float, target: membership.Target | None = None, origin: bytes | None = None
    ) -> None:
        """Notes a connection to a peer that speaks the mesh's protocols; a new stream on it, or a dial that ends on it, again."""
        if self.membership.is_crowded and not self.membership.is_connected(peer_id):
            self.membership.make_room(now, (*self.gossip.mesh(), *self.forwarding.busy()), self.gossip.fed(now))
        self.membership.handle_connected(peer_id, now, target)
        if self.membership.is_connected(peer_id):
            far, dialled = self.membership.is_far(peer_id), self.membership.is_dialled(peer_id)
            self.gossip.handle_connected(peer_id, now, far=far, dialled=dialled, origin=origin)
            self.suspicion.acquit(record_key(peer_id, RecordKind.CARD), now)
            if self.probe.liveness(peer_id) is not Liveness.ALIVE:
                self.probe.handle_connected(peer_id, now)
        self._settle(now)

    def handle_disconnected(self, peer_id: PeerId, code: ErrorCode, now: float) -> None:
        """Notes that a connection has ended."""
        if code in FALLEN_SILENT and self.membership.is_connected(peer_id):
            key = record_key(peer_id, RecordKind.CARD)
            self.suspicion.accuse(key, now, watched=self.gossip.in_mesh(peer_id))
        self._beats.pop(peer_id, None)
        self._places.pop(peer_id, None)
        self.strangers.handle_disconnected(peer_id, now)
        self.gossip.handle_disconnected(peer_id, now)
        self.probe.handle_disconnected(peer_id, now)
        self.membership.handle_disconnected(peer_id, code, now)
        self.inquiries.handle_unanswered(peer_id, now)
        if not self.membership.connected():  # all were closed as surplus, and nobody is left to hear of others from
            self._ranking_at = min(self._ranking_at, now + self.config.ranking_min_s * self._luck.uniform(0.5, 1.5))
        self._settle(now)

    def handle_reached(self, peer_id: PeerId, rtt_s: float, now: float) -> None:
        """Notes that a dial has ended on a connection: its handshake tells the round trip before anything is spoken."""
        self.inquiries.handle_answer(peer_id, rtt_s, now, handshake=True)
        self._settle(now)

    def handle_replaced(self, peer_id: PeerId, now: float) -> None:
        """Notes that a connected peer is connected by another connection now, and begins anew with it.

        Call it once messages to the peer go to the new connection; one that has not been greeted yet is left alone.
        """
        if not self.membership.is_connected(peer_id):
            return
        self.membership.handle_connected(peer_id, now)
        self.gossip.handle_replaced(peer_id, now)
        self.suspicion.acquit(record_key(peer_id, RecordKind.CARD), now)
        self.probe.handle_connected(peer_id, now)
        self._settle(now)

    def handle_dial_failed(self, target: membership.Target, now: float) -> None:
        """Notes that a `Connect` led nowhere."""
        self.membership.handle_dial_failed(target, now)
        if not isinstance(target, str):
            self.inquiries.handle_unanswered(target, now)
        self._settle(now)

    def handle_message(self, peer_id: PeerId, payload: bytes, now: float) -> None:
        """Takes a gossip message."""
        self.gossip.handle_message(peer_id, payload, now, self.wall(now))
        self._settle(now, timers_moved=self.probe.handle_spoken(peer_id, now))

    def handle_datagram(self, peer_id: PeerId, payload: bytes, received_at: float, now: float) -> None:
        """Takes a datagram, which is a probe or an echo; `received_at` is the kernel's time of arrival where it tells."""
        self.probe.handle_datagram(peer_id, payload, received_at, now, self.vivaldi.coordinate)
        self._settle(now)

    # Requests

    def rank(self, request: InferenceRequest, now: float, from_peer: PeerId | None = None) -> RouteReport:
        """Ranks all nodes that may be asked; the report keeps the reasons. `from_peer` forwarded it, and is not asked again."""
        in_flight, own_error = self.forwarding.in_flight, self.vivaldi.coordinate.error
        candidates = [own_candidate(self.peer_id, self.announcer, in_flight(self.peer_id))]
        if request.hops_left > 0:  # otherwise nobody else may be asked
            known = self.eligible.facts(request.model, self.vivaldi.coordinate, now)
            candidates.extend(self.relays.candidates(request, from_peer, known, in_flight, own_error, now))
        requirement = requirement_of(request, from_peer)
        ways = self.ways if are_on_host(request.tensors) else self.ways | self.device_ways
        seen = self.inquiries.seen(with_ways(candidates, ways) if ways else candidates, now)
        return rank(request.request_id, requirement, seen, self.services, self.config.routing, self._luck, now)

    def submit(
        self, request: InferenceRequest, report: RouteReport, from_peer: PeerId | None, now: float
    ) -> forwarding.Refuse | None:
        """Begins a ranked request.

        Returns:
            The refusal of a request that came from a peer and may not begin here; otherwise None, and outputs follow.
        """
        request_id, hops_left = request.request_id, request.hops_left
        if from_peer and (refusal := self.forwarding.admit(request_id, from_peer, hops_left, now)) is not None:
            return refusal
        if from_peer is None and not report.qualified and self.searches.begin(request, now):
            self._settle(now)
            return None
        if report.shortlist is not None and self.inquiries.begin(request, report.shortlist, from_peer, now):
            self._settle(now)
            return None
        peers, deadline_at = report.qualified, now + request.deadline_s
        self.forwarding.submit(request_id, peers, self.peer_id, deadline_at, hops_left, now, report.roundabout)
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

        Args:
            request: what was asked for.
            report: how it was routed.
            peer: who answered.
            end: the last event of the answer.
            took_s: seconds from the attempt's start to its end.
            first_s: seconds from the attempt's start to its first output.
            now: monotonic seconds.
        """
        service_s, first_output_s = served_in(report, peer, end, took_s, first_s)
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
        self.searches.handle_cancelled(request.request_id)
        self.inquiries.handle_cancelled(request.request_id, now)
        self.forwarding.handle_cancelled(request.request_id, now)

    def wall(self, now: float) -> float:
        """The wall clock at `now`, in seconds since 1970."""
        return now + (self._wall_offset_s or 0.0)

    # Views

    def peers(self, now: float) -> list[PeerView]:
        """Everyone this node knows, in the order of their ids; every card is read for it, which `facts` does without."""
        return [self.peer(peer_id, now) for peer_id in self.views.known()]

    def facts(self, now: float) -> list[PeerFacts]:
        """What is known without reading cards of everyone this node knows, in the order of their ids."""
        return [self.views.facts(peer_id, self.vivaldi.coordinate, now) for peer_id in self.views.known()]

    def peer(self, peer_id: PeerId, now: float) -> PeerView:
        """What is known of one peer."""
        return self.views.peer(peer_id, self.vivaldi.coordinate, now)

    # Time and outputs

    def next_timer(self) -> float:
        """When `handle_timer` wants to be called."""
        if self._due is None:
            self._due = self._next_due()
        # What a request moves are timers of these; it asks for the next one four times.
        due = sooner(self._due, self.forwarding.next_timer())
        return sooner(sooner(due, self.inquiries.next_timer()), self.searches.next_timer())

    def _next_due(self) -> float:  # what may change it has to forget `_due`
        due = min(max(self.announcer.next_due(), self.signing.unreserved_until), self._ranking_at)
        due = sooner(sooner(due, self.probe.next_timer()), self.gossip.next_timer())
        due = sooner(due, self.membership.next_timer())
        due = sooner(due, self.suspicion.next_timer())
        return sooner(min(due, self.survey.next_timer()), self.strangers.next_timer())

    def handle_timer(self, now: float) -> None:
        """Does what is due; being much too late for it is a stall of this node's own."""
        planned = sooner(now, self.probe.next_timer())
        planned = sooner(planned, self.gossip.next_timer())  # others may become due in the past, by what was heard
        if now - planned > self.config.probe.lateness_s_max:
            self.membership.handle_stall(now - planned, now)
        self.gossip.handle_timer(now, self.wall(now))
        self.membership.handle_timer(now)
        self.probe.handle_timer(now)
        self.suspicion.handle_timer(now)
        self.forwarding.handle_timer(now)
        self.searches.handle_timer(now)
        self.inquiries.handle_timer(now)
        self.strangers.handle_timer(now)
        self.survey.handle_timer(now)
        self._publish(now)
        if now >= self._ranking_at:
            self._ranking_at = now + self._ranking_wait_s * self._luck.uniform(0.8, 1.2)
            self._ranking_wait_s = min(2.0 * self._ranking_wait_s, self.config.ranking_max_s)
            self.rank_nearest(now)
        else:
            self._settle(now)

    def rank_nearest(self, now: float) -> None:
        """Looks for the nearest peers, as it does by itself from time to time: by measurements, and by coordinates elsewhere."""
        nearest = self.views.nearest(self.vivaldi.coordinate, self.config.membership.near_max, now)
        self._near_within_s = nearest.within_s
        in_use = (*self.gossip.mesh(), *self.forwarding.busy())
        visits = self.survey.visits(self.views.dialable(now), now)
        self.membership.handle_ranking(nearest.seated, in_use, now, self.gossip.beyond(), [*visits, *nearest.seeming])
        for peer in self.membership.connected():
            far, dialled = self.membership.is_far(peer), self.membership.is_dialled(peer)
            self.gossip.overlay.handle_dialled(peer, far=far, dialled=dialled)
        self._settle(now)

    def next_output(self) -> Output | None:
        """The next thing to do or to know, or None."""
        if self._outputs:
            return self._outputs.popleft()
        return self.forwarding.next_output()

    # Publishing

    def _publish(self, now: float) -> None:
        """Signs and spreads what is due."""
        if now < self.announcer.next_due():
            return
        beat = self.announcer.beat(now)
        if beat is not None:
            self.gossip.tell_beat(beat, self.membership.listeners())
        if now < max(self.announcer.next_due(), self.signing.unreserved_until) or not self.signing.may_sign(now):
            return
        card = self.announcer.card(self.vivaldi.coordinate, self.signing.sequencer.upcoming, now)
        if card is not None:
            self.signing.spread(card, self.config.announcer.card_lifetime_s, now)
        if not self.signing.sequencer.is_ready:  # the record before took the last number
            self.signing.unreserved_until = now + self.config.reserve_retry_s
        elif self.announcer.edges_due(now) and (edges := self.telling.turn(now)) is not None:
            self.telling.handle_record(self.signing.spread(edges, self.config.announcer.edges_lifetime_s, now), now)

    def _publish_verdict(self, accused: Iterable[tuple[RecordKey, int]], now: float) -> None:
        """Tells whom this node holds for silent; where that cannot be signed now, others say it."""
        if self.signing.may_sign(now):
            named = tuple(Accusation(subject, incarnation) for subject, incarnation in accused)
            self.signing.spread(Verdict(named), self.config.verdict_lifetime_s, now)

    # Cross-wiring

    def _settle(self, now: float, *, timers_moved: bool = True) -> None:
        """Drains the machines, lets each hear what concerns it, and passes everything on."""
        if timers_moved:  # a message moves a timer by what it tells only, and most are beats, which move none
            self._due = None
        gossip_outputs, probe_outputs, membership_outputs, suspicion_outputs = self._queues
        while queue := gossip_outputs or probe_outputs or membership_outputs or suspicion_outputs:
            output = queue.popleft()
            if isinstance(output, gossip.BeatHeard):  # no `match` for what is frequent: it costs more than all that is done here
                self._take_beat(output.peer_id, output.beat)
            elif isinstance(output, probe.SampleTaken):
                self.membership.handle_heard(output.peer, now)
                self._take_sample(output.peer, output.rtt_s, output.place, now)
            elif not isinstance(output, (gossip.Send, probe.SendDatagram)):
                self._due = None  # whatever is news may move a timer
                self._take(output, now)
            self._outputs.append(output)

    def _take(self, output: MachineOutput, now: float) -> None:
        """Lets the other machines hear what one of them has to say."""
        match output:
            case probe.PeerSuspected() | probe.PeerRecovered():
                self._take_liveness(output, now)
            case membership.KeepLink(peer, keeps):
                self.gossip.tell_kept(peer, now, keeps=keeps, legs=THREE_LEGS)
            case membership.PeerGone(peer):
                self.forwarding.handle_gone(peer, now)
            case membership.PeerLeft(peer):
                self.forwarding.handle_left(peer)
            case membership.PeerJoined(peer):
                self.forwarding.handle_joined(peer)
            case membership.PeerForgotten(peer):
                self.forwarding.handle_joined(peer)
                self.survey.forget(peer)
                self.suspicion.handle_forgotten(record_key(peer, RecordKind.CARD), now)
                for record in self.table.remove(peer, self.wall(now) + self.config.forgotten_s):
                    self._take_gossip(gossip.RecordExpired(record), now)
                    self._outputs.append(gossip.RecordExpired(record))
            case suspicion.Doubted() | suspicion.Cleared() | suspicion.TellVerdict() | suspicion.Refute():
                self._take_suspicion(output, now)
            case membership.Connect() | membership.Disconnect() | probe.Misbehaved() | probe.SendDatagram() | probe.SampleTaken():
                pass
            case _:
                self._take_gossip(output, now)

    def _take_gossip(self, output: gossip.Output, now: float) -> None:
        """Lets the other machines hear what gossip has brought."""
        match output:
            case gossip.RecordAccepted(record, _, replaced):
                self._take_record(record, replaced, now)
                self.strangers.publish(record, now)
            case gossip.RecordExpired(record) | gossip.RecordEvicted(record):
                if record.kind is RecordKind.CARD or self.table.heard_at(record.peer_id) is None:
                    self.membership.forget(record.peer_id)
                if record.kind is RecordKind.EDGES:
                    self.telling.handle_forgotten(record.peer_id, now)
                if record.kind is RecordKind.VERDICT:
                    self.suspicion.handle_expired(record_key(record.peer_id, RecordKind.CARD), now)
            case gossip.OwnRecordHeard(sequence):
                self.signing.sequencer.observe(sequence)
                self.announcer.renew()
                self.suspicion.handle_forgotten_self(now)
            case gossip.LinkKept(peer, keeps, legs):
                self.membership.handle_kept(peer, keeps=keeps)
                self.probe.handle_legs(peer, legs)
                if keeps:
                    self.gossip.tell_beat(self.announcer.whole_beat(), [peer])
            case gossip.Grafted(peer):
                self.probe.handle_watched(peer, now, watched=True)
            case gossip.Pruned(peer):
                self.probe.handle_watched(peer, now, watched=False)
            case _:
                pass

    def _take_liveness(self, output: probe.PeerSuspected | probe.PeerRecovered, now: float) -> None:
        """Lets the other machines know that a connected peer has fallen silent, or answers again."""
        peer, key = output.peer, record_key(output.peer, RecordKind.CARD)
        if isinstance(output, probe.PeerSuspected):
            self.suspicion.accuse(key, now, watched=self.gossip.in_mesh(peer))
            self.membership.handle_suspected(peer, now)
            self.forwarding.handle_suspected(peer, now)
            self.gossip.handle_silent(peer, now)
        else:
            self.membership.handle_recovered(peer, now)
            self.gossip.handle_heard(peer, now)
            self.suspicion.acquit(key, now)

    def _take_suspicion(self, output: suspicion.Output, now: float) -> None:
        """Acts on what is said of peers."""
        match output:
            case suspicion.Doubted(key):
                if (peer := self.table.peer_of(key)) is not None:
                    heard = self.probe.answered_lately(peer, now)
                    self.probe.handle_doubt(peer, now)
                    self.membership.handle_doubted(peer, now, heard=heard)
            case suspicion.Cleared(key, heard):
                if (peer := self.table.peer_of(key)) is not None:
                    self.membership.handle_cleared(peer, now, heard=heard)
            case suspicion.TellVerdict(accused):
                self._publish_verdict(accused, now)
            case suspicion.Refute():
                self.announcer.refute()
                self._publish(now)

    def _take_record(self, record: Record, replaced: Record | None, now: float) -> None:
        """Lets the other machines know what a peer's record says."""
        if record.peer_id == self.peer_id:
            return
        self.membership.handle_signed(record.peer_id, now + record.issued_s - self.wall(now), now)
        match record.payload:
            case Card(addresses=addresses, models=models, incarnation=incarnation):
                key = record_key(record.peer_id, RecordKind.CARD)
                before = replaced.payload.incarnation if replaced and isinstance(replaced.payload, Card) else -1
                self.membership.handle_card(record.peer_id, addresses, now, renewed=incarnation > before)
                self.suspicion.handle_incarnation(key, now)
                if self.suspicion.is_doubted(key):  # the accusations came before the card
                    self.membership.handle_doubted(record.peer_id, now)
                self.searches.handle_card(models, now)
            case Verdict(accused=accused):
                named = ((RecordKey(item.subject), item.incarnation) for item in accused)
                self.suspicion.handle_verdict(record_key(record.peer_id, RecordKind.CARD), named, now)
            case Edges():
                self.relays.handle_edges(record.peer_id, record.payload, now)
                self._outputs.extend(self.telling.handle_record(record, now))
            case _:
                assert_never(record.payload)

    def _take_beat(self, peer: PeerId, beat: Beat) -> None:
        """Keeps how a connected peer is doing."""
        if self.membership.is_connected(peer):
            self._beats[peer] = beat

    def _take_sample(self, peer: PeerId, rtt_s: float, told: Coordinate | None, now: float) -> None:
        """Moves the coordinate by a round trip and the place told with it, and keeps the connection of a peer that is near."""
        self.survey.handle_sample(peer, rtt_s, now)
        self.inquiries.handle_answer(peer, rtt_s, now)
        if rtt_s <= self._near_within_s and self.table.has_card(peer):  # who has no card gets no work, and no seat
            self.membership.handle_near(peer)
        if told is not None and self.membership.is_connected(peer):
            self._places[peer] = told
        place = told or self.views.place_of(peer)
        if place is not None:
            self.vivaldi.handle_sample(peer, rtt_s, place)
            self.announcer.handle_moved(self.vivaldi.coordinate, self.vivaldi.typical_rtt_s, now)
            self.gossip.handle_moved(self.vivaldi.coordinate)

    def _incarnation_of(self, key: RecordKey) -> int | None:
        """The newest incarnation known of the peer whose card has this key."""
        if key == self._own_key:
            return self.announcer.incarnation
        return self.table.incarnation_of(key)
