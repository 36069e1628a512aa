"""Inference requests over streams of a world: one end asks and reads the answer, the other serves it.

Requests and replies pass through the real codec, framed as on the wire, so that their sizes are true. What the shell does in
tasks is done here in callbacks, with the same ends: an answer has exactly one `Finished` or `Failed` for whoever reads it, what
the peer does not say itself is said in its place, and giving up resets the stream, which stops the peer's engine.

Source: mesh/inference, which this stands for.
Spec: docs/spec/06-inference.md, sections "Asking" and "Answering".
"""

from collections.abc import Callable
from typing import Protocol

from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId
from protocol.inference import Accepted, Failed, Finished, InferenceRequest, Reply
from protocol.wire.inference import (
    REPLY_BYTES_MAX,
    REQUEST_BYTES_MAX,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from sim.fabric.tensors import TensorStream
from sim.streams import Broken, StreamEnd
from sim.world import World

GRACE_S = 0.1
"""Seconds past the deadline that a peer's own end is waited for: as in the shell."""

HELD_BYTES_MAX = 64 * 1024
"""Outputs held back of an answer that is not streamed, in bytes: as in the shell."""


End = StreamEnd | TensorStream
"""One end of a stream, with fabrics beside it or without."""


class Asking:
    """One request over one fresh stream; `reply` takes the answer."""

    def __init__(self, world: World, stream: End, request: InferenceRequest, reply: Callable[[Reply], None]) -> None:
        self._stream = stream
        self._reply = reply
        self._over = False
        self._decoder = FrameDecoder(REPLY_BYTES_MAX)
        stream.on_data = self._receive
        stream.on_broken = self._broken
        stream.send(encode_frame(encode_request(request)))
        world.later(stream.process, request.deadline_s + GRACE_S, self._late)

    def stop(self) -> None:
        """Gives up an answer that has not ended."""
        if not self._over:
            self._over = True
            self._stream.reset(ErrorCode.CANCELLED)

    def _receive(self, data: bytes) -> None:
        self._decoder.receive(data)
        try:
            while not self._over and (frame := self._decoder.next_frame()) is not None:
                reply = decode_reply(frame)
                if isinstance(reply, Finished | Failed):
                    self._over = True
                    self._stream.close()
                self._reply(reply)
        except RemoteProtocolError as error:
            self._stream.reset(error.code)
            self._fail(Failed(ErrorCode.ENGINE_FAILED, f"the peer broke the protocol: {error}"))

    def _broken(self, broken: Broken) -> None:
        if broken.was_reset:
            self._fail(Failed(_failure_of(broken.code), f"the answer broke off: {broken.code.name.lower()}"))
        else:
            self._fail(Failed(ErrorCode.UNREACHABLE, "lost the connection to the peer"))

    def _late(self) -> None:
        if not self._over:
            self._stream.reset(ErrorCode.DEADLINE_EXCEEDED)
            self._fail(Failed(ErrorCode.DEADLINE_EXCEEDED, "the peer did not answer in time"))

    def _fail(self, failed: Failed) -> None:
        if not self._over:
            self._over = True
            self._reply(failed)


class Leaver(Protocol):
    """A request under way that can be given up."""

    def leave(self) -> None:
        """Gives it up; nothing happens when it has ended."""
        ...


Serve = Callable[[InferenceRequest, PeerId, Callable[[Reply], None]], Leaver]
"""Begins to answer a peer's request; the replies come later."""


class Serving:
    """One stream being served; `serve` answers the request that is its first piece."""

    def __init__(self, world: World, stream: End, serve: Serve) -> None:
        self._world = world
        self._stream = stream
        self._serve = serve
        self._work: Leaver | None = None
        self._hold = False
        self._held = b""
        self._over = False
        self._decoder = FrameDecoder(REQUEST_BYTES_MAX)
        stream.on_data = self._receive
        stream.on_broken = lambda _broken: self._gone()

    def _receive(self, data: bytes) -> None:
        self._decoder.receive(data)
        frame = self._decoder.next_frame()
        assert frame is not None
        assert self._work is None, "an asker sends one piece"
        request = decode_request(frame)
        self._hold = not request.stream
        self._world.later(self._stream.process, request.deadline_s, lambda: self._late(request))
        self._work = self._serve(request, self._stream.peer.peer_id, self._pass_on)

    def _pass_on(self, reply: Reply) -> None:
        """Sends a reply; with `_hold` outputs wait for the end."""
        if self._over:
            return
        self._held += encode_frame(encode_reply(reply))
        end = isinstance(reply, Finished | Failed)
        if self._hold and len(self._held) < HELD_BYTES_MAX and not end and not isinstance(reply, Accepted):
            return
        self._stream.send(self._held)
        self._held = b""
        if end:
            self._over = True
            self._stream.close()

    def _late(self, request: InferenceRequest) -> None:
        if not self._over:
            self._held = b""
            self._pass_on(Failed(ErrorCode.DEADLINE_EXCEEDED, f"no complete answer within {request.deadline_s:g} s"))
            self._leave()

    def _gone(self) -> None:
        self._over = True
        self._leave()

    def _leave(self) -> None:
        if self._work is not None:
            self._work.leave()


def _failure_of(code: ErrorCode) -> ErrorCode:
    """The error that a reset by the peer stands for: another peer may do better, unless it says something of the request."""
    of_the_request = code > ErrorCode.CANCELLED or code in (ErrorCode.INTERNAL, ErrorCode.TOO_LARGE)
    return code if of_the_request else ErrorCode.ENGINE_FAILED
