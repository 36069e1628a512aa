"""Inference streams with a seal round them: the requester's end, and the executor's.

Either looks to `mesh.inference` like any stream. What the requester's end sends is sealed to the executor, and what it reads is
opened chunk by chunk; the executor's end is given the opened request and seals what it is told to send. What is done to a stream
on its way through a relay appears at the requester as the peer breaking the protocol, with words that say what.

Nothing that a relay can do by itself (refusing, resetting) is believed more than that this way is closed.

Spec: docs/spec/10-sealing.md.
"""

from contextlib import AbstractContextManager, nullcontext

from mesh.transport import Doing, Stream, StreamReset
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import SEALING_KEY_BYTES, Identity, PeerId
from protocol.sealing import (
    ANSWER_FRAME_BYTES_MAX,
    AnswerOpener,
    AnswerSealer,
    Header,
    Refused,
    Route,
    encode_header,
    seal_request,
)
from protocol.wire.inference import REQUEST_BYTES_MAX

BELIEVED = frozenset(
    {
        ErrorCode.SEAL_REFUSED,
        ErrorCode.RELAY_REFUSED,
        ErrorCode.UNREACHABLE,
        ErrorCode.OVERLOADED,
        ErrorCode.DRAINING,
    }
)
"""Refusals that are told as they are: another way or another peer may do. Anything else of unknown origin is `UNREACHABLE`."""

BROKEN = ErrorCode.UNREACHABLE
"""What a reset stands for that anybody on the way may have made."""


class AskingStream:
    """The requester's end of a sealed request, over a stream to the relay."""

    def __init__(
        self, stream: Stream, identity: Identity, route: Route, sealing_key: bytes, deadline_s: float, entropy: bytes
    ) -> None:
        """Wraps a fresh stream of the relay protocol.

        Args:
            stream: to the relay.
            identity: this node's, which signs the request.
            route: the way it goes.
            sealing_key: the executor's.
            deadline_s: seconds left, as the relay is told.
            entropy: `SEALING_KEY_BYTES` secret bytes for this request alone.
        """
        assert len(entropy) == SEALING_KEY_BYTES, "a sealed request needs 32 bytes of entropy"
        self._stream = stream
        self._identity = identity
        self._route = route
        self._sealing_key = sealing_key
        self._deadline_s = deadline_s
        self._entropy = entropy
        self._decoder = FrameDecoder(ANSWER_FRAME_BYTES_MAX)
        self._opener: AnswerOpener | None = None
        self.refused: Refused | None = None
        """The refusal that came in the answer's place."""

    @property
    def peer_id(self) -> PeerId:
        """The relay, which is at the other end of the stream."""
        return self._stream.peer_id

    def waiting(self) -> AbstractContextManager[None]:
        """Enter while the relay is to finish what it began."""
        return self._stream.waiting()

    def tell(self, doing: Doing, *, sent: bool, data: bytes | memoryview = b"", code: int = 0) -> None:
        """What is sealed is not told to who watches the connection to the relay."""

    async def send_all(self, data: bytes, *, end: bool = False, linger: bool = False, with_others: bool = False) -> None:
        """Seals and sends the one frame of the request."""
        del end, linger, with_others
        frames = FrameDecoder(REQUEST_BYTES_MAX)
        frames.receive(data)
        request = frames.next_frame()
        assert request is not None, "a request is one whole frame"
        try:
            sealed, self._opener = seal_request(self._identity, self._route, request, self._sealing_key, self._entropy)
        except RemoteProtocolError as error:
            raise StreamReset(error.code, error.detail) from error
        header = encode_header(Header(self._route.request_id, self._deadline_s, 1, self._route.executor))
        for frame in (header, sealed):
            self._stream.tell(Doing.FRAME, sent=True, data=frame)
        await self._stream.send_all(encode_frame(header) + encode_frame(sealed))

    def at_hand(self) -> bytes:
        """Nothing: an answer is waited for."""
        return b""

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """The next opened piece of the answer, empty at its end.

        Raises:
            RemoteProtocolError: what came is not the executor's answer, whole and in its order.
            StreamReset: this way is closed.
            ConnectionLost: the relay is gone.
        """
        opener = self._opener
        if opener is None:
            raise StreamReset(ErrorCode.SEAL_REFUSED, "nothing can be sealed to the peer")
        while True:
            while (frame := self._decoder.next_frame()) is not None:
                self._stream.tell(Doing.FRAME, sent=False, data=frame)
                piece = opener.receive(frame)
                if isinstance(piece, Refused):
                    self.refused = piece
                    code = piece.code if piece.code in BELIEVED else BROKEN
                    raise StreamReset(code, f"refused on the way or by the executor: {piece.code.name.lower()}")
                if piece:
                    return piece
            if opener.ended and not self._decoder.buffered_bytes:
                return b""
            try:
                data = await self._stream.receive_some(max_bytes)
            except StreamReset as error:
                raise StreamReset(BROKEN, f"broken off on the way or by the executor: {error}") from error
            if not data:
                self._decoder.finish()
                opener.finish()
                return b""
            self._decoder.receive(data)

    def reset(self, code: int) -> None:
        """Abandons the stream."""
        self._stream.reset(code)

    async def aclose(self) -> None:
        """Finishes this side."""
        await self._stream.aclose()


class AnsweringStream:
    """The executor's end of a sealed request, over a stream from the relay."""

    def __init__(self, stream: Stream, requester: PeerId, request: bytes, sealer: AnswerSealer) -> None:
        """Wraps a stream whose request has been opened.

        Args:
            stream: from the relay, nothing of the answer sent yet.
            requester: who has signed the request.
            request: its message.
            sealer: seals the answer.
        """
        self._stream = stream
        self._requester = requester
        self._request = encode_frame(request)
        self._sealer = sealer

    @property
    def peer_id(self) -> PeerId:
        """The requester, as its signature has proven it."""
        return self._requester

    def waiting(self) -> AbstractContextManager[None]:
        """Enter while the request is read, which has come already."""
        return nullcontext()

    def tell(self, doing: Doing, *, sent: bool, data: bytes | memoryview = b"", code: int = 0) -> None:
        """What is sealed is not told to who watches the connection to the relay."""

    def at_hand(self) -> bytes:
        """The request, once."""
        request, self._request = self._request, b""
        return request

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """The request, and then whatever the requester still sends.

        Raises:
            StreamReset: the requester or the relay has given up.
            ConnectionLost: the relay is gone.
        """
        if self._request:
            request, self._request = self._request, b""
            return request
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes, *, end: bool = False, linger: bool = False, with_others: bool = False) -> None:
        """Seals and sends a piece of the answer."""
        frames = self._sealer.seal(data, is_final=end)
        for frame in frames:
            self._stream.tell(Doing.FRAME, sent=True, data=frame)
        sealed = b"".join(map(encode_frame, frames))
        await self._stream.send_all(sealed, end=end, linger=linger, with_others=with_others)

    def reset(self, code: int) -> None:
        """Abandons the stream."""
        self._stream.reset(code)

    async def aclose(self) -> None:
        """Finishes this side."""
        await self._stream.aclose()
