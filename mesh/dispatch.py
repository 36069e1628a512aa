"""The dispatcher: turns the core's decisions about a request into engine runs and streams, and their outcomes into its inputs.

The gateway submits requests here, and so do incoming inference streams. `forwarding` in the core decides what to do next
(`RunLocally`, `Forward`, `Refuse`, `CancelAttempt`); one task per request carries it out and hands every output to whoever reads
the `Answer`, through a small channel, so that a slow reader slows the engine down instead of filling memory. Leaving the `submit`
context cancels the work the whole way down.

Spec: docs/spec/06-inference.md.
"""

import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial

import trio

from mesh.admission.gate import Gate
from mesh.admission.views import gate_json, owner_json, owner_of
from mesh.asking import InPlace
from mesh.distances import Distances
from mesh.driver import Driver
from mesh.engines.base import AtOnce, Engine, refuse
from mesh.fabric import Fabrics
from mesh.gateway.ports import CatalogueEntry
from mesh.inference import request_over
from mesh.inference.server import Handled
from mesh.map.collect import MapCollector
from mesh.ondevice import at_once_on, for_reader, host_request, run_on, unread
from mesh.receipts import AnswerSigner, Examination, ReceiptBook, SignedReplies
from mesh.relay import DIAL_S, Sealing
from mesh.specification import protocols_json
from mesh.streams import stream_to
from mesh.telemetry import Telemetry
from mesh.tickets import Answer, Attempt, ChannelReplies, RepliesAtHand, Route, Ticket, explained, hand_on, replies_of, unsignable
from mesh.trace import Trace, trace_peer
from mesh.transport import ConnectionLost, StreamReset, Transport
from mesh.views import peer_json, status_json
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.forwarding import CancelAttempt, Ended, Forward, Output, Refuse, RunLocally
from protocol.identity import Identity, PeerId
from protocol.inference import Accepted, Failed, Finished, InferenceRequest, Reply
from protocol.membership import Standing
from protocol.node import Node, Reranked
from protocol.records import ModelOffer, peek
from protocol.routing import RouteReport
from protocol.table import record_key

REPLIES_BUFFERED_MAX = 8
"""Replies between the attempt and its reader: enough that neither waits for a task switch per token, little memory."""
REPORTS_MAX = 1024
"""Route reports kept for `explain`: the last few minutes of a busy node; 20 MiB where each names 64 candidates."""
MODELS_SEEN_MAX = 4096
"""Model ids whose first sight is remembered: more than any mesh serves, so that inventing names costs no memory."""

UNFINISHED = "the engine's answer stopped without an end"
"""How an attempt fails whose replies just stop."""


class Dispatcher:
    """Carries out requests for the gateway and for peers."""

    def __init__(
        self, node: Node, transport: Transport, engines: Sequence[Engine], telemetry: Telemetry, identity: Identity
    ) -> None:
        """Connects the parts; `attach` completes it.

        Args:
            node: the core.
            transport: for streams to peers.
            engines: this node's own.
            telemetry: hears of faults of peers and engines.
            identity: this node's key, which signs receipts.
        """
        self._node = node
        self._transport = transport
        self._engines = engines
        self._engines_at_once = tuple(engine for engine in engines if isinstance(engine, AtOnce))
        self._telemetry = telemetry
        self._identity = identity
        self._receipts = ReceiptBook()
        self._settle: Callable[[], None] = lambda: None
        self._sealing: Sealing | None = None
        self._tickets: dict[bytes, Ticket] = {}
        self._routes: OrderedDict[str, Route] = OrderedDict()
        self._first_seen_s: dict[str, float] = {}
        self._traces: list[Trace] = []
        self._started_s = time.time()
        self._became_idle = trio.Event()
        self.draining = False
        self.gate: Gate | None = None
        self.fabrics: Fabrics | None = None
        self.client_socket: str | None = None  # where the door for programs of the same user is
        self.distances = Distances(node, transport.now, self._own_models, self._owner)
        self.map = MapCollector(node, self.distances)

    def attach(self, driver: Driver, sealing: Sealing) -> None:
        """Learns how the core's outputs are drained, and how peers are asked that cannot be reached."""
        self._settle = driver.settle
        self._sealing = sealing

    @asynccontextmanager
    async def submit(self, request: InferenceRequest, from_peer: PeerId | None = None) -> AsyncIterator[Answer]:
        """Starts a request; leaving the context cancels whatever is left of it.

        Args:
            request: what is asked for; `deadline_s` counts from now.
            from_peer: the peer that forwarded it, None when it comes from this node's own clients.
        """
        begun = self.begin(request, from_peer)
        if isinstance(begun, Answer):
            yield begun
            return
        async with begun as answer:
            yield answer

    def begin(self, request: InferenceRequest, from_peer: PeerId | None = None) -> Answer | AbstractAsyncContextManager[Answer]:
        """Starts a request, and answers it within this call where an engine of this node need not wait.

        Returns:
            The whole answer, at hand; else what is left to be done, which is to be entered at once and left as `submit` is.
        """
        now = self._transport.now()
        ticket = Ticket(request, Route(self._node.rank(request, now, from_peer)), now, from_peer)
        left = False
        try:
            self._admit(ticket, from_peer, now)
            self._answer_at_once(ticket)
            left = not ticket.answered
        finally:
            if not left:
                self._leave(ticket, from_peer)
        return self._begun(ticket) if left else Answer(ticket, RepliesAtHand(ticket.at_hand))

    @asynccontextmanager
    async def _begun(self, ticket: Ticket) -> AsyncIterator[Answer]:
        """Carries a request out that has begun."""
        try:
            replies = await self._ask_in_place(ticket)
            if replies is None:
                async with self._carried(ticket) as answer:
                    yield answer
                return
            try:
                yield Answer(ticket, replies)
            finally:
                await replies.aclose()
        finally:
            self._leave(ticket, ticket.from_peer)

    async def _ask_in_place(self, ticket: Ticket) -> InPlace | None:
        """Makes the first attempt of a request that is not streamed in the task of who asks, where it goes to a connected peer.

        Returns its answer, whose first output has come, or None: what is to follow stands among the commands then.
        """
        match list(ticket.commands):
            case [Forward(_, peer, deadline_s, hops_left) as command] if not ticket.request.stream:
                connection = self._transport.connections.get(peer)
            case _:
                return None
        if connection is None:
            return None
        ticket.commands.clear()
        if ticket.report.via(peer) is not None:
            ticket.note_via(peer, None)
        attempt = Attempt(peer, self._transport.now(), examination=self._examination(ticket, peer))
        in_place = InPlace(self, ticket, attempt, self._note_fault)
        try:
            request = ticket.request.within(deadline_s, hops_left)
            return in_place if await in_place.begin(connection, request, self.fabrics) else None
        except (StreamReset, ConnectionLost):
            ticket.commands.append(command)  # it may be dialled, or asked through another
            return None

    def _note_fault(self, peer: PeerId, fault: RemoteProtocolError | None) -> None:
        if fault is not None:
            self._telemetry.peer_faulted(peer, fault.code, fault.detail)

    def serve(self, request: InferenceRequest, from_peer: PeerId) -> Handled:
        """Answers a request that a peer has forwarded, as `serve_stream` wants it.

        One that goes no further, to an engine that need not wait, is answered within this call: it has the same outcomes, and
        tells core, report and telemetry the same.
        """
        begun = self.begin(request, from_peer)
        return begun.at_hand if isinstance(begun, Answer) else replies_of(begun)

    @asynccontextmanager
    async def _carried(self, ticket: Ticket) -> AsyncIterator[Answer]:
        """A task of its own carries a request out while its answer is read."""
        send, receive = trio.open_memory_channel[Reply](REPLIES_BUFFERED_MAX)
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry, ticket, send)
                try:
                    yield Answer(ticket, ChannelReplies(receive))
                except Exception as error:  # noqa: BLE001 -- raised again below: the nursery would wrap it in a group
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            receive.close()
        if failure is not None:
            raise failure

    async def idle(self) -> None:
        """Returns once no request is under way."""
        while self._tickets:
            self._became_idle = trio.Event()
            await self._became_idle.wait()

    def handle_output(self, output: Output | Reranked) -> None:
        """Takes what the core wants done with a request, or by which report it goes out after it has waited."""
        ticket = self._tickets.get(output.request_id)
        if ticket is None:
            return
        match output:
            case Reranked(report=report):
                ticket.route = Route(report)
            case CancelAttempt():
                if ticket.commands:  # the attempt has not begun yet
                    ticket.commands.pop()
                elif ticket.attempt is not None:
                    ticket.attempt.cancel()
            case RunLocally() | Forward() | Refuse():
                ticket.commands.append(output)
                ticket.changed.set()
            case Ended(code=code, message=message):
                ticket.ended = True
                if not ticket.answered:
                    ticket.commands.append(Refuse(output.request_id, code, message))
                    ticket.changed.set()

    # Views

    def catalogue(self) -> list[CatalogueEntry]:
        """Every model that can be asked for now, in the order of their ids."""
        now = self._transport.now()
        serving: dict[str, list[tuple[float, PeerId, ModelOffer]]] = {}
        for offer in (offer for engine in self._engines for offer in engine.offers()):
            serving.setdefault(offer.model, []).append((0.0, self._node.peer_id, offer))
        for facts in self._node.facts(now):
            if facts.standing is Standing.ALIVE and facts.serving is not None:
                rtt_s = facts.quality.rtt_s if facts.quality is not None else facts.coordinate_rtt_s
                for offer in facts.serving.models:
                    serving.setdefault(offer.model, []).append((1.0 if rtt_s is None else rtt_s, facts.peer_id, offer))
        entries = []
        for model, places in sorted(serving.items()):
            places.sort(key=lambda place: place[:2])
            if model not in self._first_seen_s and len(self._first_seen_s) < MODELS_SEEN_MAX:
                self._first_seen_s[model] = time.time()
            peer_ids = tuple(dict.fromkeys(peer_id for _, peer_id, _ in places))
            entries.append(CatalogueEntry(places[0][2], peer_ids, self._first_seen_s.get(model, self._started_s)))
        return entries

    def explain(self, request_id: str) -> RouteReport | None:
        """How a request under way or a recent one was routed, or None when it is not known (any more)."""
        under_way = next((ticket for key, ticket in self._tickets.items() if key.hex() == request_id), None)
        route = self._routes.get(request_id) if under_way is None else under_way.route
        return None if route is None else route.report

    def receipt(self, request_id: str, *, content: bool) -> dict[str, object] | None:
        """The receipt of a recent answer to a client of this node, as its file, or None when there is none (any more)."""
        return self._receipts.show(request_id, content=content)

    def status(self) -> dict[str, object]:
        """How the node is doing."""
        now = self._transport.now()
        status = status_json(self._node, self._transport, now)
        loads = [load for engine in self._engines for load in engine.load()]
        status["uptime_s"] = round(time.time() - self._started_s, 1)
        status["draining"] = self.draining
        status["client_socket"] = self.client_socket
        status["fabrics"] = None if self.fabrics is None else self.fabrics.status()
        status["requests_open"] = len(self._tickets)
        if self.gate is not None:
            status["membership"] = gate_json(self.gate, self._node.peer_id, self._transport.machine.wall())
        status["models"] = {load.model: f"{load.running} of {load.slots} slots busy, {load.waiting} waiting" for load in loads}
        return status

    def protocols(self) -> dict[str, object]:
        """What this node speaks, and where that is specified."""
        return protocols_json(self._transport.protocols)

    def trace(self, peer: str, *, content: bool) -> AbstractContextManager[Trace]:
        """Watches the connections of a peer; raises `TraceRefusedError` on entering."""
        known = [*self._transport.connections, *(view.peer_id for view in self._node.peers(self._transport.now()))]
        return trace_peer(self._transport, peer, known, self._traces, content=content, judge=self._staleness)

    def _staleness(self, envelope: bytes) -> str | None:
        """Why a record that has just come is no news; what cannot be read is no record."""
        try:
            header = peek(envelope)
        except RemoteProtocolError:
            return None
        code = self._node.table.staleness(record_key(header.peer_id, header.kind), header.sequence, envelope)
        return None if code is None else code.name

    def peers(self) -> list[dict[str, object]]:
        """The peers this node knows, nearest first."""
        rows = [peer_json(view) for view in self._node.peers(self._transport.now())]
        if self.gate is not None:
            for row, peer_id in zip(rows, self._node.views.known(), strict=True):
                row.update(owner_json(self.gate, peer_id, self._transport.machine.wall()))
        return sorted(rows, key=lambda row: (row["rtt_s"] is None, row["rtt_s"] or 0.0, row["peer_id"]))

    def _own_models(self) -> Iterator[str]:
        """What this node's engines serve."""
        return (offer.model for engine in self._engines for offer in engine.offers())

    def _owner(self, peer_id: PeerId) -> str:
        """Whose a node is; empty in an open network."""
        return "" if self.gate is None else owner_of(self.gate, peer_id, self._transport.machine.wall())

    # Attempts

    def _admit(self, ticket: Ticket, from_peer: PeerId | None, now: float) -> None:
        """Hands a request to the core, or refuses it before it has begun."""
        request = ticket.request
        if self.draining:
            refusal: Refuse | None = Refuse(request.request_id, ErrorCode.DRAINING, "this node is leaving the mesh")
        elif request.request_id in self._tickets:
            refusal = Refuse(request.request_id, ErrorCode.HOPS_EXCEEDED, "the request is under way here already")
        elif (refusal := unsignable(ticket)) is None:
            self._tickets[request.request_id] = ticket
            refusal = self._node.submit(ticket.request, ticket.report, from_peer, now)
            self._settle()
        if refusal is not None:
            ticket.commands.append(refusal)

    def _leave(self, ticket: Ticket, from_peer: PeerId | None) -> None:
        """Ends a request whose reader is gone, and keeps its report; not that of a peer's request that was refused at once."""
        request_id = ticket.request.request_id
        begun = self._tickets.get(request_id) is ticket
        if begun:
            if not ticket.ended:
                ticket.answered = True
                self._node.handle_cancelled(ticket.request, self._transport.now())
                self._settle()
            del self._tickets[request_id]
        if begun or from_peer is None:
            self._routes[request_id.hex()] = ticket.route
        if len(self._routes) > REPORTS_MAX:
            self._routes.popitem(last=False)
        if not self._tickets:
            self._became_idle.set()

    def _answer_at_once(self, ticket: Ticket) -> None:
        """Answers a request as far as that needs no waiting; `answered` tells whether that was all.

        What follows stays among the commands for `_carry`.
        """
        while not ticket.answered and ticket.commands:
            match ticket.commands[0]:
                case Refuse(_, code, message):
                    ticket.answered = True
                    ticket.at_hand.append(explained(ticket, code, message))
                case RunLocally(_, deadline_s):
                    if not self._run_at_once(ticket, ticket.request.within(deadline_s, ticket.request.hops_left)):
                        return
                case Forward():
                    return

    def _run_at_once(self, ticket: Ticket, request: InferenceRequest) -> bool:
        """Makes the next attempt by an engine that does not wait; False where there is none."""
        engine, offer = self._engine_for(request)
        at_once = next((other for other in self._engines_at_once if other is engine), None)
        if at_once is None or offer is None:
            return False
        own_id = self._node.peer_id
        attempt = Attempt(own_id, self._transport.now(), examination=self._examination(ticket, own_id))
        wall, requester = self._transport.machine.wall, ticket.from_peer or own_id
        try:
            signer = AnswerSigner(request, requester, self._identity, offer.digest, wall) if request.receipt else None
            replies = at_once_on(at_once, request)
            if replies is None:
                return False
            ticket.commands.popleft()
            for reply in replies if signer is None else map(signer.take, replies):
                if (passed := self.take(ticket, attempt, reply)) is not None:
                    ticket.at_hand.append(passed)
                if attempt.is_over:
                    break
            else:
                attempt.failed = Failed(ErrorCode.ENGINE_FAILED, UNFINISHED)
        except Exception as error:  # noqa: BLE001 -- an engine is foreign code: what it raises ends this attempt alone
            attempt.failed = self._crashed(request, error)
        self.conclude(ticket, attempt)
        return True

    def _engine_for(self, request: InferenceRequest) -> tuple[Engine, ModelOffer] | tuple[None, None]:
        """This node's own engine that serves the model, and its offer."""
        for engine in self._engines:
            for offer in engine.offers():
                if offer.model == request.model and request.feature in offer.features:
                    return engine, offer
        return None, None

    def _crashed(self, request: InferenceRequest, error: Exception) -> Failed:
        """Tells that an engine has raised what it may not, and how that fails the attempt."""
        self._telemetry.engine_crashed(request.model, error)
        return Failed(ErrorCode.ENGINE_FAILED, f"{type(error).__name__} in the engine")

    async def _carry(self, ticket: Ticket, send: trio.MemorySendChannel[Reply]) -> None:
        """Carries out what the core wants for one request until the answer has ended."""
        with send:
            for reply in ticket.at_hand:
                await hand_on(send, reply)
            while not ticket.answered:
                while not ticket.commands:
                    ticket.changed = trio.Event()
                    await ticket.changed.wait()
                match ticket.commands.popleft():
                    case Refuse(_, code, message):
                        ticket.answered = True
                        await hand_on(send, explained(ticket, code, message))
                    case RunLocally(_, deadline_s):
                        request = ticket.request.within(deadline_s, ticket.request.hops_left)
                        source = self._run_locally(request, ticket.from_peer or self._node.peer_id)
                        await self._attempt(ticket, self._node.peer_id, source, send)
                    case Forward(_, peer, deadline_s, hops_left):
                        request = ticket.request.within(deadline_s, hops_left)
                        await self._attempt(ticket, peer, self._forward(ticket, peer, request), send)

    async def _attempt(
        self,
        ticket: Ticket,
        peer: PeerId,
        source: AbstractAsyncContextManager[AsyncIterator[object]],
        send: trio.MemorySendChannel[Reply],
    ) -> None:
        """Makes one attempt and tells the core how it went; what the core wants next stands in the ticket afterwards."""
        attempt = Attempt(peer, self._transport.now(), examination=self._examination(ticket, peer))
        with trio.CancelScope() as ticket.attempt:
            try:
                async with source as replies:
                    async for reply in replies:
                        if (passed := self.take(ticket, attempt, reply)) is not None:
                            await hand_on(send, passed)
                        if attempt.is_over:
                            break
                    else:
                        attempt.failed = Failed(ErrorCode.ENGINE_FAILED, UNFINISHED)
            except Exception as error:  # noqa: BLE001 -- an engine is foreign code: what it raises ends this attempt alone
                is_peer = peer != self._node.peer_id
                attempt.failed = unread(error) if is_peer and isinstance(error, OSError) else self._crashed(ticket.request, error)
        ticket.attempt = None
        self.conclude(ticket, attempt)

    def conclude(self, ticket: Ticket, attempt: Attempt) -> None:
        """Tells the core how an attempt ended that did not answer."""
        if ticket.answered:
            return
        peer, failed = attempt.peer, attempt.failed
        if failed is not None:
            ticket.retry_after_s = failed.retry_after_s
            ticket.note_outcome(peer, f"{failed.code.name.lower()}: {failed.message}")
            self._node.handle_failed(ticket.request, peer, failed, self._transport.now())
            self._settle()
        else:
            ticket.note_outcome(peer, "given up: no answer in time")
            self._node.handle_given_up(ticket.request, peer, self._transport.now())

    def take(self, ticket: Ticket, attempt: Attempt, reply: object) -> Reply | None:
        """Takes one reply of an attempt, holds it to its order, and returns what the caller is to have of it.

        `is_over` of the attempt tells that nothing more is wanted of it, and `failed` how it failed; it stays None when the
        request was answered, or when the core has moved on to another candidate.
        """
        if not isinstance(reply, Reply):
            attempt.failed = Failed(ErrorCode.ENGINE_FAILED, f"the engine answered with a {type(reply).__name__}")
            attempt.is_over = True
            return None
        try:
            attempt.order.take(reply)
        except RemoteProtocolError as error:
            attempt.failed = Failed(ErrorCode.ENGINE_FAILED, error.detail)
            attempt.is_over = True
            return None
        match reply:
            case Failed():
                attempt.failed = reply
                attempt.is_over = True
                return None
            case Accepted():
                is_first, ticket.accepted = not ticket.accepted, True  # one answer has one, however many attempts it takes
                return reply if is_first else None
            case Finished():
                attempt.is_over = True
                if not self._deliver(ticket, attempt):
                    return None
                self._finish(ticket, attempt, reply)
                self._examine(ticket, attempt, reply)
                return reply
            case _:
                attempt.is_over = not self._deliver(ticket, attempt)
                if attempt.is_over:
                    return None
                reply = for_reader(ticket.request, reply)
                if attempt.examination is not None:
                    attempt.examination.add(reply)
                return reply

    def _deliver(self, ticket: Ticket, attempt: Attempt) -> bool:
        """Whether an output is to reach the caller; the first one is told to the core and to the report."""
        if attempt.first_s is not None:
            # The core lets go of an attempt that has delivered only by ending the request, and then nothing more is sent.
            return True
        now = self._transport.now()
        if not self._node.handle_first_output(ticket.request, attempt.peer, now):  # nothing follows from it, and nothing is due
            return False
        attempt.first_s = now - attempt.started_at
        hops = 0 if attempt.peer == self._node.peer_id else 1 if ticket.report.via(attempt.peer) is None else 2
        ticket.route.note(RouteReport.with_first_output, attempt.peer, now - ticket.submitted_at, hops)
        return True

    def _finish(self, ticket: Ticket, attempt: Attempt, end: Finished) -> None:
        """Tells the core and the report that the answer is complete."""
        now = self._transport.now()
        took_s = now - attempt.started_at
        first_s = took_s if attempt.first_s is None else attempt.first_s
        ticket.answered = True
        ticket.note_outcome(attempt.peer, "answered")
        self._node.handle_finished(ticket.request, ticket.route.ranked, attempt.peer, end, took_s, first_s, now)
        self._settle()

    def _examination(self, ticket: Ticket, peer: PeerId) -> Examination | None:
        """What follows an answer to one of this node's clients, and compares its receipt with it."""
        request = ticket.request
        if not request.receipt or ticket.from_peer is not None:
            return None
        # Who may pass the request on is a requester too, and somebody else may then have answered.
        return Examination(request, (self._node.peer_id, peer), None if request.hops_left > 1 else peer)

    def _examine(self, ticket: Ticket, attempt: Attempt, end: Finished) -> None:
        """Compares the receipt that ends an answer with the answer, and keeps it; a wrong one is the peer's fault."""
        examination = attempt.examination
        if examination is None or not end.receipt:  # an older version signs none
            return
        fault = examination.judge(end.receipt)
        if fault is not None:
            self._telemetry.peer_faulted(attempt.peer, fault.code, fault.detail)
            if examination.is_of_peer:  # else the peer may have passed on in good faith what another signed
                self._transport.fault(attempt.peer, fault.code)
            ticket.note_outcome(attempt.peer, f"answered, and its receipt is wrong: {fault.detail}")
        self._receipts.keep(end.receipt, "" if fault is None else fault.detail, examination)

    @asynccontextmanager
    async def _run_locally(self, request: InferenceRequest, requester: PeerId) -> AsyncIterator[AsyncIterator[Reply]]:
        """Runs a request on this node's own engine that serves the model."""
        engine, offer = self._engine_for(request)
        if engine is not None and offer is not None:
            async with run_on(engine, request) as replies:
                if request.receipt:
                    wall = self._transport.machine.wall
                    yield SignedReplies(replies, AnswerSigner(request, requester, self._identity, offer.digest, wall))
                else:
                    yield replies
            return
        async with refuse(ErrorCode.MODEL_NOT_FOUND, f"no engine here serves {request.model}") as refusal:
            yield refusal

    @asynccontextmanager
    async def _forward(self, ticket: Ticket, peer: PeerId, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Reply]]:
        """Sends a request to a peer, dialling it when it is not connected; whom nothing reaches is asked through another."""
        if self.fabrics is not None and (way := await self.fabrics.way_to(peer, request)) is not None:
            async with self.fabrics.request_over(*way, request, partial(ticket.note_fabric, peer)) as filled:
                try:
                    yield filled
                finally:
                    self._note_fault(peer, filled.fault)
            return
        now, failed, stream = self._transport.now(), "it cannot be reached", None
        may_relay = self._sealing is not None and ticket.from_peer is None and peer not in self._transport.connections
        ways = self._node.relays.ways(peer, now) if may_relay else []
        if not ways or ticket.report.via(peer) is None:
            try:
                stream = await stream_to(peer, self._node, self._transport, DIAL_S if ways else math.inf)
            except (StreamReset, ConnectionLost) as error:
                failed = str(error)
                self._node.relays.handle_unreached(peer, self._transport.now())
        if stream is not None:
            if ticket.report.via(peer) is not None:
                ticket.note_via(peer, None)
            async with request_over(stream, host_request(request)) as answer:
                try:
                    yield answer
                finally:
                    self._note_fault(peer, answer.fault)
        elif self._sealing is not None and ways:
            left = replace(host_request(request), deadline_s=max(0.001, request.deadline_s - (self._transport.now() - now)))
            async with self._sealing.ask(peer, left, partial(ticket.note_via, peer)) as replies:
                yield replies
        else:
            async with refuse(ErrorCode.UNREACHABLE, failed) as refusal:
                yield refusal
