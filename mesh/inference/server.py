"""Answers one request of a peer over one stream.

One request is read, handed to whoever answers it, and each reply of a streamed answer goes out before the next is taken, so
that a requester who reads slowly slows the engine down and nothing piles up; the outputs of another go out together. An answer
that is there without waiting for anything leaves in one write. Else
a second task listens to the requester: its reset or the loss of the connection cancels the work at once, even while the engine
is silent. The answer has exactly one end within the deadline; where the work fails without one, a `Failed` is sent in its
place, and where that cannot be sent either the stream is reset.

Spec: docs/spec/06-inference.md, section "Answering".
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Self

import trio

from mesh.inference.stream import ByteStream
from mesh.transport import ConnectionLost, Doing, Stream, StreamReset
from protocol.encoding import FrameDecoder, decode_uvarint
from protocol.errors import ErrorCode, ProtocolError, RemoteProtocolError
from protocol.identity import PeerId
from protocol.inference import (
    Accepted,
    AnswerOrder,
    Failed,
    Finished,
    InferenceRequest,
    JsonDelta,
    Reply,
    TensorsReady,
    TextDelta,
)
from protocol.wire.inference import REQUEST_BYTES_MAX, decode_request, frame_reply

HELD_BYTES_MAX = 64 * 1024
"""Outputs held back of an answer that is not streamed, in bytes: a full answer of text mostly fits, and memory stays bounded."""

AT_ONCE_BYTES_MAX = 128 * 1024
"""Longest answer that is sent within the call that brings its request, in bytes: more than engines give at once."""

Handled = tuple[Reply, ...] | AbstractAsyncContextManager[AsyncIterator[Reply]]
"""An answer: at most one Accepted, outputs, then one Finished or Failed; the whole of it where nothing has to be waited for,
else a context whose leaving stops the work."""

Handle = Callable[[InferenceRequest, PeerId], Handled]
"""Answers a request of a peer."""

Rest = Callable[[], Awaitable["Served"]]
"""Goes on serving a stream."""


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """What a requester may cost.

    Attributes:
        request_bytes_max: the request without its frame.
        request_read_s: how long all of it may take to arrive: 8 MiB at 2 Mbit/s, and no slow loris for hours.
        farewell_s: how long the end of an answer may wait for a requester that does not read, and then for the requester's own.
    """

    request_bytes_max: int = REQUEST_BYTES_MAX
    request_read_s: float = 30.0
    farewell_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Served:
    """How a stream went.

    Attributes:
        request: what was asked; None where it could not be read.
        end: the end that was sent; None where the requester had gone or did not take it.
        fault: how the requester broke the protocol, for its score.
    """

    request: InferenceRequest | None = None
    end: Finished | Failed | None = None
    fault: RemoteProtocolError | None = None


_EXPECTED = (
    ProtocolError,
    StreamReset,
    ConnectionLost,
    OSError,
    EOFError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.EndOfChannel,
    trio.TooSlowError,
)
"""What whoever answers may fail by when what it talks to fails: an engine that dies, a peer that goes."""


def begin_stream(stream: Stream, handle: Handle, limits: ServeLimits | None = None) -> "Served | Rest":
    """Do what `serve_stream` does, as far as that goes without waiting.

    Returns:
        How the stream went, where the request had come whole and its answer was there at once: the answer is sent, and the
        stream is still to be seen off. Else what goes on from where it is.
    """
    serving = _Serving(stream, limits or ServeLimits())
    return serving.answer_now(stream, handle) or partial(_serve, serving, handle)


async def serve_stream(stream: ByteStream, handle: Handle, limits: ServeLimits | None = None) -> Served:
    """Read one request from `stream`, answer it by `handle`, and close the stream.

    Args:
        stream: opened by a peer for the inference protocol; it is this function's from now on.
        handle: answers the request. What it raises becomes `Failed(ENGINE_FAILED)` where it is an expected failure of what
            it talks to (an OSError, a closed resource, a protocol error); anything else is our own fault: the requester gets
            `Failed(INTERNAL)`, and it is raised again.
        limits: what the requester may cost.
    """
    return await _serve(_Serving(stream, limits or ServeLimits()), handle)


async def _serve(serving: "_Serving", handle: Handle) -> Served:
    """Serve a stream from where it is."""
    stream = serving.stream
    try:
        await serving.run(handle)
        await serving.see_off()
    except (StreamReset, ConnectionLost):
        serving.reset_code = ErrorCode.CANCELLED
    finally:
        # A reset now would take back an end that is still on its way.
        if serving.end is None:
            stream.reset(serving.reset_code)
        with suppress(StreamReset, ConnectionLost):
            await stream.aclose()
    return Served(serving.request, serving.end, serving.fault)


class _Serving:
    """One stream being served."""

    __slots__ = (
        "_decoder",
        "_frame",
        "_handled",
        "_limits",
        "_order",
        "_sending",
        "_until",
        "bug",
        "end",
        "fault",
        "gone",
        "request",
        "reset_code",
        "stream",
    )

    def __init__(self, stream: ByteStream, limits: ServeLimits) -> None:
        self.stream = stream
        self._limits = limits
        self._decoder = FrameDecoder(limits.request_bytes_max)
        self._frame: bytes | None = None
        self._handled: Handled | None = None
        self._until = 0.0
        self._order = AnswerOrder()
        self._sending = False
        self.request: InferenceRequest | None = None
        self.end: Finished | Failed | None = None
        self.fault: RemoteProtocolError | None = None
        self.gone = False
        # With what the stream is reset where no end can be sent: this is for the node being stopped.
        self.reset_code = ErrorCode.DRAINING
        self.bug: Exception | None = None

    async def run(self, handle: Handle) -> None:
        """Read the request, answer it, and close this side of the stream.

        Raises:
            StreamReset: the requester has gone.
            ConnectionLost: the requester has gone.
        """
        if self._handled is None:
            try:
                if not self._has_request():
                    self._frame = await self._rest_of_request(self._decoder)
                self._begin(handle)
            except RemoteProtocolError as error:
                self.fault = error
                await self._finish(Failed(error.code, error.detail))
                return
        request, handled = self.request, self._handled
        assert request is not None
        assert handled is not None
        failed: Failed | None = None
        if isinstance(handled, tuple):
            failed = await self._answer(nullcontext(_AtHand(handled)), request, at_hand=True)
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, nursery.cancel_scope)
                failed = await self._answer(handled, request)
                nursery.cancel_scope.cancel()
        if self.fault is not None and self.end is None:
            failed = Failed(self.fault.code, self.fault.detail)
        if self.gone:
            self.reset_code = ErrorCode.CANCELLED
        elif failed is not None:
            await self._finish(failed)
        if self.bug is not None:
            raise self.bug

    async def see_off(self) -> None:
        """Wait until the requester has ended its side, which tells that all of the answer arrived.

        Until then some of it may still be in the send buffer, and would be lost with a connection that is closed now.
        """
        if self.end is not None and self.fault is None:
            with trio.move_on_after(self._limits.farewell_s):
                while await self.stream.receive_some():
                    pass

    def answer_now(self, stream: Stream, handle: Handle) -> Served | None:
        """Read the request, answer it and close this side, all that without waiting; None where the rest is for `run`."""
        try:
            if not self._has_request():
                return None
            self._begin(handle)
        except RemoteProtocolError:
            return None  # `run` finds it again
        replies, frames, order = self._handled, list[bytes](), AnswerOrder()
        if not isinstance(replies, tuple) or not replies or self.bug is not None or _tensor_bytes(replies) > AT_ONCE_BYTES_MAX:
            return None
        try:
            for reply in replies:
                order.take(reply)
                frames.append(b"".join(frame_reply(reply)))
        except ProtocolError:
            return None  # as well
        data, end = b"".join(frames), replies[-1]
        if not isinstance(end, Finished | Failed) or len(data) > AT_ONCE_BYTES_MAX:
            return None
        if stream.is_watched and stream.takes_now(len(data)):
            for frame in frames:
                self._tell_sent(frame)
        if not stream.send_now(data, end=True):
            return None
        self.end = end
        return Served(self.request, end, None)

    def _has_request(self) -> bool:
        """Whether the request's frame has come whole."""
        while self._frame is None:
            self._frame = self._decoder.next_frame()
            if self._frame is None:
                if not (data := self.stream.at_hand()):
                    return False
                self._decoder.receive(data)
        return True

    def _begin(self, handle: Handle) -> None:
        """Decode the request, which is exactly one frame, and have it handled.

        Raises:
            RemoteProtocolError: it is none.
        """
        frame = self._frame
        assert frame is not None
        if self._decoder.buffered_bytes:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "data after the request")
        self.stream.tell(Doing.FRAME, sent=False, data=frame)
        request = self.request = decode_request(frame)
        # From here on, and not from when the answer begins: whoever answers keeps the same deadline, and its word that time is
        # over must not be cut short by ours in the moment it is sent.
        self._until = trio.current_time() + request.deadline_s
        try:
            self._handled = handle(request, self.stream.peer_id)
        except Exception as error:  # noqa: BLE001 -- what is not expected is raised again, once the requester knows
            self._handled = (self._judge(error),)

    async def _rest_of_request(self, decoder: FrameDecoder) -> bytes:
        """Wait for what has not come yet of the request's frame."""
        with trio.move_on_after(self._limits.request_read_s), self.stream.waiting():
            while (frame := decoder.next_frame()) is None:
                data = await self.stream.receive_some()
                if not data:
                    raise RemoteProtocolError(ErrorCode.MALFORMED, "the stream ended before its request did")
                decoder.receive(data)
            return frame
        raise RemoteProtocolError(ErrorCode.IDLE, f"the request did not arrive within {self._limits.request_read_s:g} s")

    async def _listen(self, work: trio.CancelScope) -> None:
        """Cancel `work` when the requester goes, or sends what it may not."""
        try:
            if not await self.stream.receive_some():
                # The requester has closed its side. It may still want the answer; if not, sending will tell.
                return
            self.fault = RemoteProtocolError(ErrorCode.MALFORMED, "data after the request")
        except (StreamReset, ConnectionLost):
            self.gone = True
        work.cancel()

    def _judge(self, error: Exception) -> Failed:
        """What the requester is told of a failure of whoever answers."""
        if _is_expected(error):
            return Failed(ErrorCode.ENGINE_FAILED, str(error))
        self.bug = error
        return Failed(ErrorCode.INTERNAL, f"{type(error).__name__} in the answering node")

    async def _answer(
        self,
        handled: AbstractAsyncContextManager[AsyncIterator[Reply]],
        request: InferenceRequest,
        *,
        at_hand: bool = False,
    ) -> Failed | None:
        """Send the replies as they come; return the failure that is still to be sent, None when the answer has its end."""
        failed: Failed | None = Failed(ErrorCode.DEADLINE_EXCEEDED, f"no complete answer within {request.deadline_s:g} s")
        with trio.move_on_at(self._until):
            try:
                async with handled as replies:
                    rubbish = await self._pass_on(replies, hold=at_hand or not request.stream, at_hand=at_hand)
                failed = None if rubbish is None else Failed(ErrorCode.ENGINE_FAILED, rubbish)
            except Exception as error:  # noqa: BLE001 -- what is not expected is raised again, once the requester knows
                failed = self._judge(error)
        return None if self.end is not None else failed

    async def _pass_on(self, replies: AsyncIterator[Reply], *, hold: bool, at_hand: bool) -> str | None:
        """Send replies until the end; return what was wrong with them, None when nothing was or the requester has gone.

        With `hold` outputs wait for the end, so that a caller who wants the whole anyway is not sent it in a thousand datagrams;
        where the end is at hand, `Accepted` waits with them.
        Nothing is raised but what `replies` raises: an exception of ours would pass through the context of whoever answers.
        """
        held: list[bytes] = []
        held_bytes = 0
        has_accepted = False
        rubbish = "the engine's answer stopped without an end"
        async for reply in replies:
            try:
                self._order.take(reply)
                held.append(self._framed(reply))
            except ProtocolError as error:
                rubbish = f"the engine's answer cannot be sent: {error}"
                break
            held_bytes += len(held[-1])
            waits = isinstance(reply, TextDelta | JsonDelta | TensorsReady) or (at_hand and isinstance(reply, Accepted))
            has_accepted = has_accepted or isinstance(reply, Accepted)
            if hold and waits and held_bytes < HELD_BYTES_MAX:
                continue
            data = held[0] if len(held) == 1 else b"".join(held)
            held.clear()
            has_accepted = False
            held_bytes = 0
            end = reply if isinstance(reply, Finished | Failed) else None
            try:
                # The end at once, before whoever answers has tidied up: the requester may wait for it.
                await self._send(data, end=end is not None, linger=isinstance(reply, Accepted), with_others=not hold)
                if end is not None:
                    self.end = end
                    return None
            except (StreamReset, ConnectionLost):
                self.gone = True
                return None
        if held and has_accepted:  # what was accepted is told; outputs are not, so that another candidate may still be tried
            await self._send(held[0], linger=True)
        return rubbish

    def _framed(self, reply: Reply) -> bytes:
        frame = b"".join(frame_reply(reply))
        self._tell_sent(frame)
        return frame

    def _tell_sent(self, frame: bytes) -> None:
        self.stream.tell(Doing.FRAME, sent=True, data=memoryview(frame)[decode_uvarint(frame)[1] :])

    async def _send(self, frames: bytes, *, end: bool = False, linger: bool = False, with_others: bool = False) -> None:
        """Send whole frames; where a deadline cuts that short, `_sending` stays set."""
        self._sending = True
        await self.stream.send_all(frames, end=end, linger=linger, with_others=with_others)
        self._sending = False

    async def _finish(self, failed: Failed) -> None:
        """Send a failure and close this side; reset the stream where the requester does not take it."""
        if not self._sending:
            with trio.move_on_after(self._limits.farewell_s):
                await self._send(self._framed(failed), end=True)
                self.end = failed
                return
        self.reset_code = failed.code


class _AtHand:
    """Replies that are there already, as those that come are read."""

    def __init__(self, replies: tuple[Reply, ...]) -> None:
        self._replies = iter(replies)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        for reply in self._replies:
            return reply
        raise StopAsyncIteration


def _tensor_bytes(replies: tuple[Reply, ...]) -> int:
    return sum(tensor.size_bytes for reply in replies if isinstance(reply, TensorsReady) for tensor in reply.tensors)


def _is_expected(error: Exception) -> bool:
    """Whether `error`, or every error of a group, is a failure of what the answering side talks to."""
    if isinstance(error, ExceptionGroup):
        return error.split(_EXPECTED)[1] is None
    return isinstance(error, _EXPECTED)
