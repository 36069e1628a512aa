"""Replies and answers whose tensors take a fabric: put in on their way out, and filled in where they arrive."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Self

from mesh.fabric.lane import Lane
from mesh.inference import Answer
from protocol.errors import RemoteProtocolError
from protocol.inference import Failed, InferenceRequest, Reply, TensorsReady


class FilledAnswer:
    """The answer of a peer, with the tensors that took the fabric where they belong."""

    __slots__ = ("_answer", "_lane")

    def __init__(self, answer: Answer, lane: Lane) -> None:
        """Begins.

        Args:
            answer: as the peer gives it.
            lane: the stream it comes by.
        """
        self._answer = answer
        self._lane = lane

    @property
    def fault(self) -> RemoteProtocolError | None:
        """How the peer broke the protocol; None while it did not."""
        return self._answer.fault

    def __aiter__(self) -> Self:
        return self

    async def ask(self, request: InferenceRequest) -> None:
        """Send the request; where that fails, the first reply says how."""
        await self._answer.ask(request)

    async def __anext__(self) -> Reply:
        return self._filled(await self._answer.__anext__())

    async def next_reply(self) -> Reply:
        """The next reply, as `Answer.next_reply`."""
        return self._filled(await self._answer.next_reply())

    def too_late(self) -> Failed:
        """The end of an answer that was waited for long enough."""
        return self._answer.too_late()

    def at_hand(self) -> Reply | None:
        """The next reply where all of it, and its tensors, have come already."""
        reply = self._answer.at_hand()
        return None if reply is None else self._filled(reply)

    async def aclose(self) -> None:
        """Let go of the stream; an answer that has not ended is cancelled."""
        await self._answer.aclose()

    def _filled(self, reply: Reply) -> Reply:
        if isinstance(reply, TensorsReady) and not reply.tensors:
            tensors = self._lane.next_tensors()
            return reply if tensors is None else TensorsReady(tensors)
        return reply


class GivenReplies:
    """Replies, each as it goes out."""

    __slots__ = ("_given", "_replies")

    def __init__(self, replies: AsyncIterator[Reply], given: Callable[[Reply], Reply]) -> None:
        """Begins.

        Args:
            replies: of an engine.
            given: makes of each what goes out.
        """
        self._replies = replies
        self._given = given

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        return self._given(await self._replies.__anext__())


def given_reply(lane: Lane, reply: Reply) -> Reply:
    """The reply as it goes out: large tensors take the fabric."""
    return TensorsReady(lane.carry(reply.tensors)) if isinstance(reply, TensorsReady) else reply


@asynccontextmanager
async def given_later(
    lane: Lane, handled: AbstractAsyncContextManager[AsyncIterator[Reply]]
) -> AsyncIterator[AsyncIterator[Reply]]:
    """Replies that go out as `given_reply` makes them, while they come."""
    async with handled as replies:
        yield GivenReplies(replies, lambda reply: given_reply(lane, reply))
