"""Asks a peer over one stream, and reads its answer.

The request goes out as one frame and this side of the stream stays open: it says that the answer is still wanted, and a reset
of it reaches a peer whose engine is silent. An answer always ends with exactly one `Finished` or `Failed`: what the peer does
not say itself (it vanished, it fell silent past the deadline, it sent rubbish) is said in its place here, so whoever reads
needs no other error path.

Spec: docs/spec/06-inference.md, section "Asking".
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

import trio

from mesh.inference.stream import ByteStream
from mesh.transport import ConnectionLost, Doing, Stream, StreamReset
from protocol.encoding import FrameDecoder, decode_uvarint
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.inference import AnswerOrder, Failed, InferenceRequest, Reply
from protocol.wire.inference import REPLY_BYTES_MAX, decode_reply, frame_request


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """What an answer may cost.

    Attributes:
        reply_bytes_max: one reply without its frame.
        answer_bytes_max: all replies together; room for hours of text, or for tensors of eight full replies.
        grace_s: how long past the request's deadline the peer's own end is waited for; a caller waits no longer than that.
    """

    reply_bytes_max: int = REPLY_BYTES_MAX
    answer_bytes_max: int = 64 * 1024 * 1024
    grace_s: float = 0.1


@asynccontextmanager
async def request_over(
    stream: ByteStream, request: InferenceRequest, limits: AnswerLimits | None = None
) -> AsyncIterator["Answer"]:
    """Send `request` over a fresh stream and hand out its answer; the stream is this function's from now on.

    Leaving the context before the answer has ended resets the stream with CANCELLED, which stops the peer's engine.

    Args:
        stream: negotiated for the inference protocol, nothing sent or received on it yet.
        request: what to ask; its deadline counts from now. One that cannot be encoded fails without being sent.
        limits: what the answer may cost.
    """
    answer = Answer(stream, request, limits or AnswerLimits())
    try:
        await answer.ask(request)
        yield answer
    finally:
        await answer.aclose()


class Answer:
    """The replies of a peer, in order; the last one is `Finished` or `Failed`."""

    __slots__ = ("_bytes", "_decoder", "_ends_at", "_limits", "_order", "_refusal", "_stream", "fault")

    def __init__(self, stream: ByteStream, request: InferenceRequest, limits: AnswerLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._ends_at = trio.current_time() + request.deadline_s + limits.grace_s
        self._decoder = FrameDecoder(limits.reply_bytes_max)
        self._order = AnswerOrder()
        self._bytes = 0
        self._refusal: Failed | None = None
        self.fault: RemoteProtocolError | None = None
        """How the peer broke the protocol, for its score; None while it did not."""

    @property
    def ended(self) -> bool:
        """Whether `Finished` or `Failed` was handed out."""
        return self._order.ended

    @property
    def refused(self) -> bool:
        """Whether the request could not be encoded, so that nothing was sent."""
        return self._refusal is not None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        if self._order.ended:
            raise StopAsyncIteration
        if (reply := self.at_hand()) is not None:
            return reply
        with trio.move_on_at(self._ends_at):
            return await self.next_reply()
        return self.too_late()

    async def next_reply(self) -> Reply:
        """The next reply, to be asked for until there was an end, by whoever sees to it that no answer is waited for too long."""
        reply = self.at_hand() or await self._next()
        if isinstance(reply, Failed) and not self._order.ended:
            # Said here in the peer's place.
            self._order.take(reply)
        return reply

    def too_late(self) -> Failed:
        """The end of an answer that was waited for long enough."""
        self._stream.reset(ErrorCode.DEADLINE_EXCEEDED)
        failed = Failed(ErrorCode.DEADLINE_EXCEEDED, "the peer did not answer in time")
        if not self._order.ended:
            self._order.take(failed)
        return failed

    def at_hand(self) -> Reply | None:
        """The next reply where all of it has come already; an end that is not the peer's is left to be waited for."""
        if self._order.ended or self._refusal is not None:
            return None
        try:
            frame = self._decoder.next_frame()
            while frame is None and (data := self._stream.at_hand()):
                frame = self._receive_at_hand(data)
            return None if frame is None else self._take(frame)
        except RemoteProtocolError as error:
            return self._blame(error)

    def _blame(self, error: RemoteProtocolError) -> Failed:
        """The end of an answer by which the peer broke the protocol."""
        self.fault = error
        failed = Failed(ErrorCode.ENGINE_FAILED, f"the peer broke the protocol: {error}")
        if not self._order.ended:
            self._order.take(failed)
        return failed

    async def aclose(self) -> None:
        """Let go of the stream; an answer that has not ended is cancelled."""
        if self.fault is not None:
            self._stream.reset(self.fault.code)
        elif not self.ended or self.refused:
            self._stream.reset(ErrorCode.CANCELLED)
        elif isinstance(self._stream, Stream):
            self._stream.let_go()
            return
        with suppress(StreamReset, ConnectionLost):
            await self._stream.aclose()

    async def ask(self, request: InferenceRequest) -> None:
        """Send the request; where that fails, the first reply says how."""
        try:
            frame = b"".join(frame_request(request))
        except LocalProtocolError as error:
            self._refusal = Failed(error.code, error.detail)
            return
        stream = self._stream
        stream.tell(Doing.FRAME, sent=True, data=memoryview(frame)[decode_uvarint(frame)[1] :])
        if isinstance(stream, Stream) and stream.send_now(frame, end=False):
            return
        # A peer may refuse before it has read everything: its reason, or the lost connection, is found by reading.
        with trio.move_on_at(self._ends_at), suppress(StreamReset, ConnectionLost):
            await stream.send_all(frame)

    async def _next(self) -> Reply:
        """Return the peer's next reply, or the `Failed` that stands for it."""
        if self._refusal is not None:
            return self._refusal
        try:
            return self._take(await self._receive())
        except RemoteProtocolError as error:
            return self._blame(error)
        except StreamReset as error:
            return Failed(_FAILURES.get(error.code, ErrorCode.INTERNAL), f"the answer broke off: {error}")
        except ConnectionLost as error:
            return Failed(ErrorCode.UNREACHABLE, f"lost the connection to the peer: {error}")

    async def _receive(self) -> bytes:
        """Wait for the next whole frame."""
        while True:
            data = await self._stream.receive_some()
            if not data:
                raise RemoteProtocolError(ErrorCode.MALFORMED, "the answer stopped without an end")
            if (frame := self._receive_at_hand(data)) is not None:
                return frame

    def _receive_at_hand(self, data: bytes) -> bytes | None:
        """Take bytes of the peer; the next whole frame, if there is one now."""
        self._bytes += len(data)
        if self._bytes > self._limits.answer_bytes_max:
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"an answer of more than {self._limits.answer_bytes_max} bytes")
        self._decoder.receive(data)
        return self._decoder.next_frame()

    def _take(self, frame: bytes) -> Reply:
        self._stream.tell(Doing.FRAME, sent=False, data=frame)
        reply = decode_reply(frame)
        self._order.take(reply)
        if self._order.ended and self._decoder.buffered_bytes:
            # The end stands; the peer answers for what follows it.
            self.fault = RemoteProtocolError(ErrorCode.MALFORMED, "data after the end of the answer")
        return reply


_OF_THE_REQUEST = (ErrorCode.INTERNAL, ErrorCode.TOO_LARGE)
"""Codes below 0x100 that say something of the request; all others say that this peer and this node do not get on."""

_FAILURES = {
    code.value: code if code >= ErrorCode.CANCELLED or code in _OF_THE_REQUEST else ErrorCode.ENGINE_FAILED for code in ErrorCode
} | {ErrorCode.CANCELLED.value: ErrorCode.ENGINE_FAILED}
"""The error that a reset by the peer stands for.

We did not cancel, an answer without an end is no answer, and a peer that does not speak the protocol leaves it to others:
`ENGINE_FAILED` lets the next candidate be asked."""
