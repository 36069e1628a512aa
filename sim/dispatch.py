"""The dispatcher of one process of a world: carries out what its core wants done with requests.

It stands where `mesh/dispatch.py` stands and is told by the core the same things in the same order: one attempt at a time per
request; an attempt that fails is told with its code; one that the core takes back is stopped and told as given up; an output
reaches the reader only if the core lets it; whoever leaves early cancels the work the whole way down. What the shell waits for in
a task is here an event of the world, never an action within a call of the core. A reader takes everything at once, so there is
no back-pressure.

Source: mesh/dispatch.py.
Spec: docs/spec/06-inference.md.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.forwarding import CancelAttempt, Ended, Forward, Output, Refuse, RunLocally
from protocol.identity import PeerId
from protocol.inference import Accepted, AnswerOrder, Failed, Finished, InferenceRequest, Reply
from protocol.node import Reranked
from protocol.routing import RouteReport
from sim.asking import Asking
from sim.engines import EngineConfig, VirtualEngine
from sim.process import Link, Process
from sim.streams import Streams
from sim.world import World

TENSORS = "tensors"
"""Name of streams whose tensors may take a fabric."""

LOAD_INTERVAL_S = 0.25
"""Seconds between two looks at the engines, as in the shell; the core is told when something has changed since."""


@dataclass(frozen=True, slots=True)
class AttemptBegan:
    """A process has begun to ask `peer`, which may be itself."""

    request_id: bytes
    peer: PeerId


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt is over: answered, failed with `failed`, or given up; `delivered` says whether the reader had any of it."""

    request_id: bytes
    peer: PeerId
    failed: Failed | None
    delivered: bool


@dataclass(frozen=True, slots=True)
class ExecutionBegan:
    """An engine of a process has begun to work on a request."""

    request_id: bytes


Step = AttemptBegan | AttemptEnded | ExecutionBegan
"""What checks and figures hear of."""

Note = Callable[[Process, Step], None]
"""Who hears of a process's steps."""


@dataclass(eq=False, slots=True)
class Attempt:
    """One attempt: who was asked, when, how it is stopped, and how long its first output took."""

    peer: PeerId
    began_at: float
    order: AnswerOrder = field(default_factory=AnswerOrder)
    stop: Callable[[], None] = field(default=lambda: None)
    first_s: float | None = None
    over: bool = False


@dataclass(eq=False, slots=True)
class Ticket:
    """One request under way in one process."""

    dispatcher: "Dispatcher"
    request: InferenceRequest
    report: RouteReport
    submitted_at: float
    reply: Callable[[Reply], None]
    commands: deque[RunLocally | Forward | Refuse] = field(default_factory=deque[RunLocally | Forward | Refuse])
    attempt: Attempt | None = None
    attempts: int = 0
    accepted: bool = False
    answered: bool = False

    def leave(self) -> None:
        """Gives the request up; nothing happens when it has ended."""
        self.dispatcher.leave(self)


class Dispatcher:
    """Carries out the requests of one life of one process."""

    def __init__(self, world: World, process: Process, engines: Sequence[EngineConfig], streams: Streams, note: Note) -> None:
        """Makes the engines and tells the core how busy they are.

        Args:
            world: for time.
            process: running.
            engines: what answers here.
            streams: the way to peers.
            note: hears of what happens.
        """
        self._world = world
        self._process = process
        self._streams = streams
        self._note = note
        self._tickets: dict[bytes, Ticket] = {}
        self._telling = False
        self.draining = False
        self.engines = {
            config.model: VirtualEngine(world, process, config, self._load_changed, self._executes) for config in engines
        }
        self._tell_load()

    @property
    def under_way(self) -> int:
        """How many requests are under way."""
        return len(self._tickets)

    def submit(self, request: InferenceRequest, from_peer: PeerId | None, reply: Callable[[Reply], None]) -> Ticket:
        """Begins a request; its replies come later, the last one is `Finished` or `Failed`.

        Args:
            request: what is asked for; `deadline_s` counts from now.
            from_peer: the peer that forwarded it, None when it comes from a caller here.
            reply: takes the answer.
        """
        now, node = self._world.now, self._process.node
        ticket = Ticket(self, request, node.rank(request, now, from_peer), now, reply)
        refusal: Refuse | None
        if self.draining:
            refusal = Refuse(request.request_id, ErrorCode.DRAINING, "this node is leaving the mesh")
        elif request.request_id in self._tickets:
            refusal = Refuse(request.request_id, ErrorCode.HOPS_EXCEEDED, "the request is under way here already")
        else:
            self._tickets[request.request_id] = ticket
            refusal = node.submit(request, ticket.report, from_peer, now)
            self._world.settle(self._process)
        if refusal is not None:
            ticket.commands.append(refusal)
            self._go_on(ticket)
        return ticket

    def handle_output(self, output: Output | Reranked) -> None:
        """Takes what the core wants done with a request, or by which report it goes out after it has waited."""
        ticket = self._tickets.get(output.request_id)
        if ticket is None:
            return
        match output:
            case Reranked(report=report):
                ticket.report = report
            case CancelAttempt():
                if ticket.commands:  # the attempt has not begun yet
                    ticket.commands.pop()
                elif ticket.attempt is not None:
                    self._give_up(ticket, ticket.attempt)
            case RunLocally() | Forward() | Refuse():
                ticket.commands.append(output)
                self._go_on(ticket)
            case Ended(code=code, message=message):
                if not ticket.answered:
                    ticket.commands.append(Refuse(output.request_id, code, message))
                    self._go_on(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Ends a request whose reader has all of it, or is gone."""
        request_id = ticket.request.request_id
        if self._tickets.get(request_id) is ticket:
            del self._tickets[request_id]
            self._process.node.handle_cancelled(ticket.request, self._world.now)
            self._world.settle(self._process)
        ticket.answered = True
        attempt = ticket.attempt
        if attempt is not None and not attempt.over:
            self._over(ticket, attempt, None)
            attempt.stop()

    # Attempts

    def _go_on(self, ticket: Ticket) -> None:
        """Lets the next command be carried out, once the call of the core that has made it is over."""
        self._world.later(self._process, 0.0, lambda: self._carry(ticket))

    def _carry(self, ticket: Ticket) -> None:
        """Carries out the next command, unless an attempt is under way or the answer has ended."""
        if ticket.answered or ticket.attempt is not None or not ticket.commands:
            return
        match ticket.commands.popleft():
            case Refuse(_, code, message):
                self._end(ticket, Failed(_explained(ticket.report, code), message))
            case RunLocally(_, deadline_s):
                self._attempt(ticket, self._process.peer_id, replace(ticket.request, deadline_s=deadline_s))
            case Forward(_, peer, deadline_s, hops_left):
                self._attempt(ticket, peer, replace(ticket.request, deadline_s=deadline_s, hops_left=hops_left))

    def _attempt(self, ticket: Ticket, peer: PeerId, request: InferenceRequest) -> None:
        attempt = ticket.attempt = Attempt(peer, self._world.now)
        ticket.attempts += 1
        self._note(self._process, AttemptBegan(request.request_id, peer))

        def reply(reply: Reply) -> None:
            self._take(ticket, attempt, reply)

        if peer == self._process.peer_id:
            engine = self.engines.get(request.model)
            if engine is None:
                self._failed(ticket, attempt, Failed(ErrorCode.MODEL_NOT_FOUND, f"no engine here serves {request.model}"))
            else:
                attempt.stop = engine.run(request, reply)
            return

        def connected(link: Link | None) -> None:
            if attempt.over:
                return
            if link is None:
                self._failed(ticket, attempt, Failed(ErrorCode.UNREACHABLE, "no connection to the peer could be had"))
            else:
                self._ask(attempt, link, request, reply)

        card = self._process.node.peer(peer, self._world.now).card
        self._streams.connect(self._process, peer, () if card is None else card.addresses, connected)

    def _ask(self, attempt: Attempt, link: Link, request: InferenceRequest, reply: Callable[[Reply], None]) -> None:
        """Sends a request to a connected peer, its tensors by a fabric if there is one."""
        world, other = self._world, self._world.by_id[attempt.peer]
        own = None if world.fabrics is None else world.fabrics.nodes.get(self._process.index)
        if own is None or not own.wants(attempt.peer, request):
            attempt.stop = Asking(world, self._streams.open(link, self._process, other), request, reply).stop
            return

        def opened(found: bool) -> None:
            assert own is not None
            stream = self._streams.open(link, self._process, other, TENSORS if found else "")
            if not found:
                attempt.stop = Asking(world, stream, request, reply).stop
            elif not attempt.over:
                end = own.stream(stream, request.deadline_s)
                attempt.stop = Asking(world, end, end.asks(request), lambda said: reply(end.answered(said))).stop

        own.way_to(link, other, request, lambda found: None if attempt.over else opened(found))

    def _take(self, ticket: Ticket, attempt: Attempt, reply: Reply) -> None:
        """Takes one reply of an attempt, and holds the attempt to the order of answers."""
        if attempt.over:
            return
        try:
            attempt.order.take(reply)
        except RemoteProtocolError as error:
            attempt.stop()
            self._failed(ticket, attempt, Failed(ErrorCode.ENGINE_FAILED, error.detail))
            return
        match reply:
            case Failed():
                self._failed(ticket, attempt, reply)
            case Accepted():
                if not ticket.accepted:  # one answer has one, however many attempts it takes
                    ticket.accepted = True
                    ticket.reply(reply)
            case Finished():
                if self._deliver(ticket, attempt):
                    self._finish(ticket, attempt, reply)
            case _:
                if self._deliver(ticket, attempt):
                    ticket.reply(reply)

    def _deliver(self, ticket: Ticket, attempt: Attempt) -> bool:
        """Whether an output is to reach the reader; the first one is told to the core and to the report."""
        if attempt.first_s is not None:
            return True
        now = self._world.now
        if not self._process.node.handle_first_output(ticket.request, attempt.peer, now):
            self._give_up(ticket, attempt)
            return False
        self._world.settle(self._process)
        attempt.first_s = now - attempt.began_at
        hops = 0 if attempt.peer == self._process.peer_id else 1
        ticket.report = ticket.report.with_first_output(attempt.peer, now - ticket.submitted_at, hops)
        return True

    def _finish(self, ticket: Ticket, attempt: Attempt, end: Finished) -> None:
        """Tells the core that the answer is complete."""
        now = self._world.now
        took_s = now - attempt.began_at
        first_s = took_s if attempt.first_s is None else attempt.first_s
        ticket.answered = True
        self._over(ticket, attempt, None)
        self._process.node.handle_finished(ticket.request, ticket.report, attempt.peer, end, took_s, first_s, now)
        self._world.settle(self._process)
        self._end(ticket, end)

    def _failed(self, ticket: Ticket, attempt: Attempt, failed: Failed) -> None:
        """Tells the core that an attempt has failed; what it wants next stands in the ticket afterwards."""
        self._over(ticket, attempt, failed)
        ticket.attempt = None
        self._process.node.handle_failed(ticket.request, attempt.peer, failed, self._world.now)
        self._world.settle(self._process)
        self._go_on(ticket)

    def _give_up(self, ticket: Ticket, attempt: Attempt) -> None:
        """Stops an attempt that the core has taken back, and tells it so once the call that did it is over."""
        if attempt.over:
            return
        self._over(ticket, attempt, None)
        attempt.stop()

        def tell() -> None:
            ticket.attempt = None
            if not ticket.answered:
                self._process.node.handle_given_up(ticket.request, attempt.peer, self._world.now)
                self._carry(ticket)

        self._world.later(self._process, 0.0, tell)

    def _over(self, ticket: Ticket, attempt: Attempt, failed: Failed | None) -> None:
        attempt.over = True
        step = AttemptEnded(ticket.request.request_id, attempt.peer, failed, delivered=attempt.first_s is not None)
        self._note(self._process, step)

    def _end(self, ticket: Ticket, end: Finished | Failed) -> None:
        """Hands the end to the reader, who leaves."""
        ticket.answered = True
        ticket.reply(end)
        self.leave(ticket)

    # Engines

    def _executes(self, request: InferenceRequest) -> None:
        self._note(self._process, ExecutionBegan(request.request_id))

    def _load_changed(self) -> None:
        """Tells the core at the next look at the engines, which are as regular as in the shell."""
        if self._telling:
            return
        self._telling = True
        looks = (self._world.now - self._process.started_at) // LOAD_INTERVAL_S + 1.0
        wait_s = max(0.0, self._process.started_at + looks * LOAD_INTERVAL_S - self._world.now)
        self._world.later(self._process, wait_s, self._tell_load)

    def _tell_load(self) -> None:
        self._telling = False
        self._process.node.handle_load(tuple(engine.load() for engine in self.engines.values()))
        self._world.settle(self._process)


def _explained(report: RouteReport, code: ErrorCode) -> ErrorCode:
    """What a refusal says; where nobody can be asked, what stands in the way at those who serve the model."""
    if code is not ErrorCode.MODEL_NOT_FOUND or report.qualified:
        return code
    refusals = [candidate.refusal for candidate in report.candidates if not candidate.qualified]
    return next((refusal for refusal in _HOPEFUL if refusal in refusals), code)


_HOPEFUL = (
    ErrorCode.OVERLOADED,
    ErrorCode.UNREACHABLE,
    ErrorCode.DRAINING,
    ErrorCode.INSUFFICIENT_MEMORY,
    ErrorCode.BAD_REQUEST,
    ErrorCode.FEATURE_NOT_SUPPORTED,
)
"""What a caller is told when nodes stand back for several reasons: the one that passes soonest, as in the shell."""
