"""Asks a connected peer in the task of whoever wants the answer: no task, no channel and no nursery for one request.

What decides, judges, reports and counts is the dispatcher's, as for an attempt that has a task of its own; this is the way there
and back alone. It goes as far as the first output, before which another candidate may have to be asked, and takes along
what has come by then, mostly the whole answer. What follows is taken as it is read: once something was delivered nobody else
is asked.

Spec: docs/spec/06-inference.md, section "Asking".
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol, Self

import trio

from mesh.fabric import Fabrics
from mesh.fabric.answers import FilledAnswer
from mesh.inference.client import Answer, AnswerLimits
from mesh.ondevice import host_request, unread
from mesh.tickets import Attempt, Ticket, refusal
from mesh.transport import Connection
from protocol.errors import RemoteProtocolError
from protocol.identity import PeerId
from protocol.inference import InferenceRequest, Reply
from protocol.wire.inference import PROTOCOL_ID

LIMITS = AnswerLimits()
"""What an answer may cost, as on the other way."""


class Carrier(Protocol):
    """What the dispatcher does for every attempt."""

    def take(self, ticket: Ticket, attempt: Attempt, reply: object) -> Reply | None:
        """Take one reply, and return what the caller is to have of it."""

    def conclude(self, ticket: Ticket, attempt: Attempt) -> None:
        """Tell the core how an attempt ended that did not answer."""


class InPlace:
    """The replies of one attempt, taken by who reads them."""

    def __init__(
        self, carrier: Carrier, ticket: Ticket, attempt: Attempt, on_fault: Callable[[PeerId, RemoteProtocolError], None]
    ) -> None:
        """Begin with nothing.

        Args:
            carrier: the dispatcher.
            ticket: of the request.
            attempt: the one that is made.
            on_fault: hears of a peer that breaks the protocol.
        """
        self._carrier = carrier
        self._ticket = ticket
        self._attempt = attempt
        self._on_fault = on_fault
        self._replies = deque(ticket.at_hand)  # what an attempt before has told the caller
        ticket.at_hand.clear()
        self._answer: Answer | FilledAnswer | None = None
        self._ends_at = 0.0  # of trio's clock

    async def begin(self, connection: Connection, request: InferenceRequest, fabrics: Fabrics | None) -> bool:
        """Ask, and take replies until the first output is there; whether it is. Large tensors take a fabric, where there is one.

        Where it is not, the attempt is over, the ticket holds what the caller has been told by then, and its commands say what
        the core wants next. Nothing has happened where `ConnectionLost` or `StreamReset` is raised: the peer opens no stream.
        """
        ticket, attempt = self._ticket, self._attempt
        self._ends_at = trio.current_time() + request.deadline_s + LIMITS.grace_s
        try:
            with trio.CancelScope(deadline=self._ends_at) as ticket.attempt:
                try:
                    await self._ask(connection, request, fabrics)
                except OSError as error:
                    self._fail(error)
                while attempt.first_s is None and not attempt.is_over:
                    await self._wait()
            if ticket.attempt.cancelled_caught:
                self._note_late()
        except BaseException:
            await self.aclose()
            raise
        finally:
            ticket.attempt = None
        if attempt.is_over or attempt.first_s is None:
            await self.aclose()
        if attempt.first_s is not None:
            return True
        ticket.at_hand.extend(self._replies)
        self._carrier.conclude(ticket, attempt)
        return False

    async def _ask(self, connection: Connection, request: InferenceRequest, fabrics: Fabrics | None) -> None:
        peer = self._attempt.peer
        way = None if fabrics is None else await fabrics.way_to(peer, request)
        if fabrics is None or way is None:
            request = host_request(request)
            self._answer = Answer(await connection.open_stream(PROTOCOL_ID), request, LIMITS)
        else:
            on_way = partial(self._ticket.note_fabric, peer)
            self._answer, request = await fabrics.answer_over(*way, request, LIMITS, on_way)
        await self._answer.ask(request)

    async def _wait(self) -> None:
        """Take the next reply, and those that have come with it."""
        assert self._answer is not None, "nothing was asked"
        try:
            reply: Reply | None = await self._answer.next_reply()
            while reply is not None:
                if (passed := self._carrier.take(self._ticket, self._attempt, reply)) is not None:
                    self._replies.append(passed)
                reply = None if self._attempt.is_over else self._answer.at_hand()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Nothing more is wanted of this attempt: tensors cannot be brought from a device."""
        self._attempt.failed, self._attempt.is_over = unread(error), True

    def _note_late(self) -> None:
        """End an answer that nobody waits for any longer; the core may have ended it before."""
        if self._answer is not None and trio.current_time() >= self._ends_at:
            self._carrier.take(self._ticket, self._attempt, self._answer.too_late())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        await trio.lowlevel.checkpoint_if_cancelled()
        ticket, attempt = self._ticket, self._attempt
        while not self._replies:
            if ticket.answered:
                raise StopAsyncIteration
            with trio.CancelScope(deadline=self._ends_at) as ticket.attempt:
                while not self._replies and not attempt.is_over:
                    await self._wait()
            cancelled, ticket.attempt = ticket.attempt.cancelled_caught, None
            if cancelled:
                self._note_late()
            if attempt.is_over or cancelled:
                await self.aclose()
                self._carrier.conclude(ticket, attempt)
                if (failed := refusal(ticket)) is not None:
                    self._replies.append(failed)
        return self._replies.popleft()

    async def aclose(self) -> None:
        """Let go of the stream; an answer that has not ended is cancelled at the peer."""
        answer, self._answer = self._answer, None
        if answer is not None:
            try:
                await answer.aclose()
            finally:
                if answer.fault is not None:
                    self._on_fault(self._attempt.peer, answer.fault)
