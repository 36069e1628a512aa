"""What the dispatcher keeps of one request: its ticket, its attempts, and the answer as who asked reads it.

Spec: docs/spec/06-inference.md.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, Self

import trio

from mesh.ondevice import signable, unread
from mesh.receipts import Examination
from protocol.errors import ErrorCode
from protocol.forwarding import Forward, Refuse, RunLocally
from protocol.identity import PeerId, peer_id_text
from protocol.inference import Accepted, AnswerOrder, Failed, InferenceRequest, Reply
from protocol.routing import RouteReport

P = ParamSpec("P")

NAME_CHARACTERS = 8
"""Last characters of a peer id that a message names it by: as in the command line, and enough to tell nodes of a mesh apart."""


class Route:
    """Why a request goes where it goes and what has become of it, put into its report when somebody reads that."""

    __slots__ = ("_later", "ranked")

    def __init__(self, ranked: RouteReport) -> None:
        self.ranked = ranked
        """The report with what has been put into it so far: who was ranked, and how."""
        self._later: list[tuple[Callable[..., RouteReport], tuple[object, ...]]] = []

    def note(self, change: Callable[Concatenate[RouteReport, P], RouteReport], *what: P.args, **_: P.kwargs) -> None:
        """Has the report changed by one of its own methods, when it is read."""
        self._later.append((change, what))

    @property
    def report(self) -> RouteReport:
        """The whole report."""
        for change, what in self._later:
            self.ranked = change(self.ranked, *what)
        self._later.clear()
        return self.ranked


@dataclass(slots=True)
class Ticket:
    """One request under way: what the core wants done, and the scope of the attempt being made."""

    request: InferenceRequest
    route: Route
    submitted_at: float
    from_peer: PeerId | None = None
    commands: deque[RunLocally | Forward | Refuse] = field(default_factory=deque)
    changed: trio.Event = field(default_factory=trio.Event)
    attempt: trio.CancelScope | None = None
    retry_after_s: float = 0.0
    accepted: bool = False
    answered: bool = False
    ended: bool = False  # by the core, which knows it no more
    at_hand: list[Reply] = field(default_factory=list)  # what was answered before anybody has read

    @property
    def report(self) -> RouteReport:
        """How it was routed so far."""
        return self.route.report

    def note_via(self, peer: PeerId, relay: PeerId | None) -> None:
        """Notes through whom a peer is asked, None for itself."""
        self.route.note(RouteReport.with_via, peer, relay)

    def note_fabric(self, peer: PeerId, fabric: str) -> None:
        """Notes by which fabric the tensors of a request go."""
        self.route.note(RouteReport.with_fabric, peer, fabric)

    def note_outcome(self, peer: PeerId, outcome: str) -> None:
        """Notes what came of asking a peer."""
        self.route.note(RouteReport.with_outcome, peer, outcome)


@dataclass(slots=True)
class Attempt:
    """One attempt: who was asked, when, and how long its first output took."""

    peer: PeerId
    started_at: float
    first_s: float | None = None
    examination: Examination | None = None
    order: AnswerOrder = field(default_factory=AnswerOrder)
    is_over: bool = False
    failed: Failed | None = None


class ChannelReplies:
    """The events in a request's channel, taken without a task switch where they are there already."""

    def __init__(self, channel: trio.MemoryReceiveChannel[Reply]) -> None:
        self._channel = channel

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            return self._channel.receive_nowait()
        except trio.WouldBlock:
            return await self._channel.__anext__()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


class RepliesAtHand:
    """The events of an answer that was given before anybody read it."""

    def __init__(self, replies: list[Reply]) -> None:
        self._left = iter(replies)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        await trio.lowlevel.checkpoint_if_cancelled()
        for reply in self._left:
            return reply
        raise StopAsyncIteration


class Answer:
    """The events of one answer, with the route that led to it; `route` is complete once the first event has been received."""

    def __init__(self, ticket: Ticket, replies: AsyncIterator[Reply]) -> None:
        """Shows the events of a request as they come."""
        self._ticket = ticket
        self._replies = replies

    @property
    def at_hand(self) -> tuple[Reply, ...]:
        """The events that were there before anybody read; all of them, where the answer was given at once."""
        return tuple(self._ticket.at_hand)

    @property
    def route(self) -> RouteReport:
        """All candidates with their scores, who was chosen, predicted and measured times."""
        return self._ticket.report

    def replies(self) -> AsyncIterator[Reply]:
        """All events, `Accepted` included; ends after `Finished` or `Failed`."""
        return self._replies

    async def __aiter__(self) -> AsyncIterator[Reply]:
        """The outputs and then `Finished` or `Failed`."""
        async for reply in self._replies:
            if not isinstance(reply, Accepted):
                yield reply


@asynccontextmanager
async def replies_of(begun: AbstractAsyncContextManager[Answer]) -> AsyncIterator[AsyncIterator[Reply]]:
    """The events of an answer that has begun."""
    async with begun as answer:
        yield answer.replies()


async def hand_on(send: trio.MemorySendChannel[Reply], reply: Reply) -> None:
    """Hands a reply to the reader, without a task switch while there is room."""
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        send.send_nowait(reply)
    except trio.WouldBlock:
        await send.send(reply)


def unsignable(ticket: Ticket) -> Refuse | None:
    """Brings the tensors to where their bytes can be hashed, where there is to be a receipt; how that is refused if it fails."""
    try:
        ticket.request = signable(ticket.request)
    except OSError as error:
        failed = unread(error)
        return Refuse(ticket.request.request_id, failed.code, failed.message)
    return None


def refusal(ticket: Ticket) -> Failed | None:
    """What the caller of an answer that has begun is told where the core has ended it; nobody else is asked then."""
    if not ticket.commands:
        return None
    command = ticket.commands.popleft()
    assert isinstance(command, Refuse), "another attempt after the first output"
    ticket.answered = True
    return explained(ticket, command.code, command.message)


def explained(ticket: Ticket, code: ErrorCode, message: str) -> Failed:
    """The failure of a request; where nobody can be asked it says what stands in the way at each node that serves the model."""
    if code is not ErrorCode.MODEL_NOT_FOUND or ticket.report.qualified:
        return Failed(code, message, ticket.retry_after_s)
    serving = [c for c in ticket.report.candidates if not c.qualified and c.refusal is not ErrorCode.MODEL_NOT_FOUND]
    if not serving:
        return Failed(code, f"no node of this mesh serves the model {ticket.request.model!r}")
    refusals = {candidate.refusal for candidate in serving}
    hopeful = next((refusal for refusal in _HOPEFUL if refusal in refusals), code)
    nodes_by_reason: dict[str, list[str]] = {}
    for candidate in serving:
        nodes_by_reason.setdefault(candidate.reason, []).append(f"…{peer_id_text(candidate.peer_id)[-NAME_CHARACTERS:]}")
    told = "; ".join(f"{reason} ({', '.join(nodes)})" for reason, nodes in nodes_by_reason.items())
    return Failed(hopeful, f"{message}: {told}")


_HOPEFUL = (
    ErrorCode.OVERLOADED,
    ErrorCode.UNREACHABLE,
    ErrorCode.DRAINING,
    ErrorCode.INSUFFICIENT_MEMORY,
    ErrorCode.BAD_REQUEST,
    ErrorCode.FEATURE_NOT_SUPPORTED,
)
"""What a caller is told when nodes stand back for several reasons: the one that passes soonest."""
