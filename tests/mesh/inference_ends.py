"""Both ends of an inference stream over a bounded byte stream in memory, with resets."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field

import trio
import trio.testing

from mesh.inference import AnswerLimits, Served, request_over, serve_stream
from mesh.inference.server import Handle
from mesh.transport import ConnectionLost, Doing, StreamReset
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId
from protocol.inference import Accepted, Feature, Finished, InferenceRequest, Reply, TextDelta
from protocol.wire.inference import PROTOCOL_ID, decode_reply, encode_reply

PEER = PeerId(b"peer")
REQUEST = InferenceRequest(bytes(16), Feature.CHAT, "model", b"{}", (), 10.0, 1, True)
GOOD = (Accepted(0.5), TextDelta("a"), TextDelta("b"), Finished(("stop",)))
BUFFER_BYTES = 1000


@dataclass
class Direction:
    """Bytes on their way, at most `BUFFER_BYTES` of them."""

    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    broken: Exception | None = None
    changed: trio.Condition = field(default_factory=trio.Condition)
    bytes_max: int = 0


class MemoryStream:
    """One end of a bounded stream in memory, with the resets of QUIC."""

    peer_id = PEER
    protocol_id = PROTOCOL_ID

    def __init__(self, incoming: Direction, outgoing: Direction) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.codes: list[int] = []
        self.told: list[tuple[bool, bytes]] = []  # frames told to watchers: whether sent, and what

    def tell(self, doing: Doing, *, sent: bool, data: bytes = b"", code: int = 0) -> None:
        assert doing is Doing.FRAME
        self.told.append((sent, data))

    def waiting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def at_hand(self) -> bytes:
        if self.incoming.broken:
            return b""
        data = bytes(self.incoming.data)
        self.incoming.data.clear()
        if data:
            trio.lowlevel.spawn_system_task(self.notify, self.incoming)
        return data

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        async with self.incoming.changed:
            while not (self.incoming.data or self.incoming.ended or self.incoming.broken):
                await self.incoming.changed.wait()
            if self.incoming.broken:
                raise self.incoming.broken
            data = bytes(self.incoming.data[:max_bytes])
            del self.incoming.data[:max_bytes]
            self.incoming.changed.notify_all()
            return data

    async def send_all(self, data: bytes, *, end: bool = False, linger: bool = False, with_others: bool = False) -> None:
        view = memoryview(data)
        async with self.outgoing.changed:
            while view:
                while len(self.outgoing.data) >= BUFFER_BYTES and not self.outgoing.broken:
                    await self.outgoing.changed.wait()
                if self.outgoing.broken:
                    raise self.outgoing.broken
                assert not self.outgoing.ended
                room = BUFFER_BYTES - len(self.outgoing.data)
                self.outgoing.data += view[:room]
                view = view[room:]
                self.outgoing.bytes_max = max(self.outgoing.bytes_max, len(self.outgoing.data))
                self.outgoing.changed.notify_all()
            if end:
                self.outgoing.ended = True
                self.outgoing.changed.notify_all()

    async def send_eof(self) -> None:
        async with self.outgoing.changed:
            if self.outgoing.broken:
                raise self.outgoing.broken
            self.outgoing.ended = True
            self.outgoing.changed.notify_all()

    def reset(self, code: int) -> None:
        self.codes.append(code)
        for direction in (self.incoming, self.outgoing):
            if not direction.ended:
                self.break_with(direction, StreamReset(code))

    def lose(self) -> None:
        for direction in (self.incoming, self.outgoing):
            self.break_with(direction, ConnectionLost(ErrorCode.IDLE))

    def break_with(self, direction: Direction, error: Exception) -> None:
        direction.broken = direction.broken or error
        direction.data.clear()
        trio.lowlevel.spawn_system_task(self.notify, direction)

    async def notify(self, direction: Direction) -> None:
        async with direction.changed:
            direction.changed.notify_all()

    async def aclose(self) -> None:
        if not (self.outgoing.ended or self.outgoing.broken):
            await self.send_eof()


def stream_pair() -> tuple[MemoryStream, MemoryStream]:
    first, second = Direction(), Direction()
    return MemoryStream(first, second), MemoryStream(second, first)


@dataclass
class Script:
    """Answers requests by what it was told, and notes how that went."""

    work: Callable[[], AsyncGenerator[Reply, None]]
    requests: list[InferenceRequest] = field(default_factory=list)
    left: trio.Event = field(default_factory=trio.Event)

    @asynccontextmanager
    async def handle(self, request: InferenceRequest, peer_id: PeerId) -> AsyncIterator[AsyncIterator[Reply]]:
        assert peer_id == PEER
        self.requests.append(request)
        try:
            async with aclosing(self.work()) as replies:
                yield replies
        finally:
            self.left.set()


def says(*replies: Reply) -> Script:
    async def work() -> AsyncGenerator[Reply, None]:
        for reply in replies:
            await trio.lowlevel.checkpoint()
            yield reply

    return Script(work)


@dataclass
class Outcome:
    replies: list[Reply] = field(default_factory=list)
    served: Served | None = None
    fault: RemoteProtocolError | None = None


async def converse(handle: Handle, request: InferenceRequest = REQUEST, limits: AnswerLimits | None = None) -> Outcome:
    """Ask and answer over a fresh stream, and read to the end."""
    here, there = stream_pair()
    outcome = Outcome()

    async def serve() -> None:
        outcome.served = await serve_stream(there, handle)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with request_over(here, request, limits) as answer:
            outcome.replies = [reply async for reply in answer]
            outcome.fault = answer.fault
    return outcome


async def speak(there: MemoryStream, *frames: bytes, eof: bool = True) -> None:
    """Play a peer that sends these bytes whatever it is asked, until it is reset."""
    with suppress(StreamReset):
        for frame in frames:
            await there.send_all(frame)
        if eof:
            await there.send_eof()


def framed(*replies: Reply) -> bytes:
    return b"".join(encode_frame(encode_reply(reply)) for reply in replies)


async def hear(*frames: bytes, eof: bool = True, limits: AnswerLimits | None = None) -> tuple[Outcome, list[int]]:
    """Ask a peer that sends these bytes; return what came of it and the resets it saw."""
    here, there = stream_pair()
    outcome = Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: speak(there, *frames, eof=eof))
        async with request_over(here, REQUEST, limits) as answer:
            outcome.replies = [reply async for reply in answer]
            outcome.fault = answer.fault
        nursery.cancel_scope.cancel()
    return outcome, here.codes


async def read_all(here: MemoryStream) -> list[Reply]:
    """Read what a node answers, by hand."""
    decoder = FrameDecoder(1 << 20)
    replies: list[Reply] = []
    while data := await here.receive_some():
        decoder.receive(data)
        while (frame := decoder.next_frame()) is not None:
            replies.append(decode_reply(frame))
    decoder.finish()
    return replies
