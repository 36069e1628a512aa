"""One side asks, the other answers, over a bounded byte stream with resets: each answer ends once, whatever either side does."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import pytest
import trio
import trio.testing

from mesh.inference import AnswerLimits, Served, ServeLimits, request_over, serve_stream
from mesh.inference.server import HELD_BYTES_MAX, Handle
from mesh.transport import ConnectionLost, StreamReset
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId
from protocol.inference import Accepted, Failed, Feature, Finished, InferenceRequest, JsonDelta, Reply, TextDelta
from protocol.wire.inference import PROTOCOL_ID, decode_reply, encode_reply, encode_request

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

    async def send_all(self, data: bytes, *, end: bool = False, linger: bool = False) -> None:
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


# A request and its answer


async def test_an_answer_travels_in_order() -> None:
    script = says(*GOOD)
    outcome = await converse(script.handle)
    assert outcome.replies == list(GOOD)
    assert script.requests == [REQUEST]
    assert outcome.served == Served(REQUEST, GOOD[-1])
    assert outcome.fault is None


async def test_messages_larger_than_any_buffer_travel() -> None:
    request = replace(REQUEST, body=b"x" * 100_000)
    payload = JsonDelta(b"y" * 100_000)
    script = says(payload, Finished())
    outcome = await converse(script.handle, request)
    assert outcome.replies == [payload, Finished()]
    assert bytes(script.requests[0].body) == request.body


async def test_outputs_of_an_answer_that_is_not_streamed_go_out_together(autojump_clock: trio.testing.MockClock) -> None:
    """`Accepted` comes at once, all else with the end; only what is more than `HELD_BYTES_MAX` comes before."""

    async def work() -> AsyncGenerator[Reply, None]:
        yield Accepted()
        for number in range(3):
            await trio.sleep(1)
            yield TextDelta("x" * (HELD_BYTES_MAX if number == 1 else 1))
        await trio.sleep(1)
        yield Finished()

    for stream, expected in ((False, [0, 2, 2, 4, 4]), (True, [0, 1, 2, 3, 4])):
        here, there = stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, there, Script(work).handle)
            began_s = trio.current_time()
            async with request_over(here, replace(REQUEST, stream=stream)) as answer:
                came_s = [trio.current_time() - began_s async for _ in answer]
        assert came_s == expected


async def test_outputs_held_back_are_not_sent_before_a_failure() -> None:
    """So that another candidate may still be tried."""

    async def work() -> AsyncGenerator[Reply, None]:
        yield TextDelta("a")
        raise OSError("died")

    outcome = await converse(Script(work).handle, replace(REQUEST, stream=False))
    (only,) = outcome.replies
    assert only == Failed(ErrorCode.ENGINE_FAILED, "died")


async def test_a_refusal_is_an_answer() -> None:
    refusal = Failed(ErrorCode.OVERLOADED, "busy", 1.5)
    assert (await converse(says(refusal).handle)).replies == [refusal]


async def test_a_request_that_cannot_be_encoded_fails_unsent() -> None:
    here, there = stream_pair()
    async with request_over(here, replace(REQUEST, model="")) as answer:
        (reply,) = [reply async for reply in answer]
    assert isinstance(reply, Failed)
    assert (reply.code, reply.retryable) == (ErrorCode.MALFORMED, False)
    assert here.codes == [ErrorCode.CANCELLED]
    assert not there.incoming.data


# The requester goes


@pytest.mark.parametrize("way", ["leave", "cancel", "lose", "reset"])
async def test_a_requester_that_goes_stops_a_silent_engine(way: str, autojump_clock: trio.testing.MockClock) -> None:
    async def work() -> AsyncGenerator[Reply, None]:
        yield TextDelta("a")
        await trio.sleep_forever()

    script = Script(work)
    here, there = stream_pair()
    served: list[Served] = []
    began_s = trio.current_time()

    async def serve() -> None:
        served.append(await serve_stream(there, script.handle))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with trio.CancelScope() as scope:
            async with request_over(here, REQUEST) as answer:
                assert await anext(answer) == TextDelta("a")
                match way:
                    case "cancel":
                        scope.cancel()
                        await trio.sleep_forever()
                    case "lose":
                        here.lose()
                    case "reset":
                        here.reset(ErrorCode.CANCELLED)
                    case _:
                        pass
        await script.left.wait()
    assert trio.current_time() == began_s
    assert served == [Served(REQUEST, None)]
    if way in {"leave", "cancel"}:
        assert here.codes == [ErrorCode.CANCELLED]


async def test_a_requester_that_closes_its_side_is_answered_all_the_same() -> None:
    here, there = stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, there, says(*GOOD).handle)
        await speak(here, encode_frame(encode_request(REQUEST)))
        assert await read_all(here) == list(GOOD)


async def test_a_requester_that_never_reads_holds_the_engine_back(autojump_clock: trio.testing.MockClock) -> None:
    made = 0

    async def work() -> AsyncGenerator[Reply, None]:
        nonlocal made
        while True:
            made += 1
            yield TextDelta("x" * 100)
            await trio.lowlevel.checkpoint()

    script = Script(work)
    here, there = stream_pair()
    began_s = trio.current_time()
    await here.send_all(encode_frame(encode_request(REQUEST)))
    served = await serve_stream(there, script.handle)
    assert there.outgoing.bytes_max <= BUFFER_BYTES
    assert made <= 2 + BUFFER_BYTES // 100
    assert script.left.is_set()
    assert served.end is None
    assert there.codes == [ErrorCode.DEADLINE_EXCEEDED]
    assert trio.current_time() - began_s == REQUEST.deadline_s


# The engine misbehaves


async def test_an_engine_that_hangs_ends_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async def work() -> AsyncGenerator[Reply, None]:
        yield TextDelta("a")
        await trio.sleep_forever()

    script = Script(work)
    began_s = trio.current_time()
    outcome = await converse(script.handle)
    assert trio.current_time() - began_s == REQUEST.deadline_s
    first, last = outcome.replies
    assert first == TextDelta("a")
    assert isinstance(last, Failed)
    assert last.code is ErrorCode.DEADLINE_EXCEEDED
    assert script.left.is_set()


@pytest.mark.parametrize(
    "error",
    [OSError("refused"), trio.BrokenResourceError("gone"), RemoteProtocolError(ErrorCode.MALFORMED, "x"), ConnectionLost(0x0C)],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("grouped", [False, True])
async def test_an_engine_that_dies_in_mid_stream_fails_the_answer(error: Exception, *, grouped: bool) -> None:
    async def work() -> AsyncGenerator[Reply, None]:
        yield TextDelta("a")
        await trio.lowlevel.checkpoint()
        raise ExceptionGroup("tasks", [error, ExceptionGroup("more", [error])]) if grouped else error

    outcome = await converse(Script(work).handle)
    first, last = outcome.replies
    assert first == TextDelta("a")
    assert isinstance(last, Failed)
    assert (last.code, last.retryable) == (ErrorCode.ENGINE_FAILED, True)


@pytest.mark.parametrize(
    ("replies", "heard"),
    [
        ((), ()),
        ((TextDelta("a"),), (TextDelta("a"),)),
        ((TextDelta("a"), Accepted()), (TextDelta("a"),)),
        ((Accepted(), Accepted(), Finished()), (Accepted(),)),
        ((TextDelta("a", -1), Finished()), ()),
        ((JsonDelta(bytes(9 << 20)), Finished()), ()),
    ],
    ids=["nothing", "no end", "accepted late", "accepted twice", "bad index", "too large"],
)
async def test_an_engine_that_answers_rubbish_fails_the_answer(replies: tuple[Reply, ...], heard: tuple[Reply, ...]) -> None:
    script = says(*replies)
    outcome = await converse(script.handle)
    assert outcome.replies[:-1] == list(heard)
    last = outcome.replies[-1]
    assert isinstance(last, Failed)
    assert last.code is ErrorCode.ENGINE_FAILED
    assert outcome.fault is None, "the rubbish reached the requester"
    assert script.left.is_set()


async def test_what_an_engine_says_after_the_end_is_not_sent() -> None:
    outcome = await converse(says(*GOOD, TextDelta("more"), Failed(ErrorCode.INTERNAL, "")).handle)
    assert outcome.replies == list(GOOD)
    assert outcome.fault is None


async def test_a_fault_of_our_own_is_told_and_raised() -> None:
    async def work() -> AsyncGenerator[Reply, None]:
        yield TextDelta("a")
        raise ZeroDivisionError

    here, there = stream_pair()
    heard: list[Reply] = []

    async def ask() -> None:
        async with request_over(here, REQUEST) as answer:
            heard.extend([reply async for reply in answer])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        with pytest.raises(ZeroDivisionError):
            await serve_stream(there, Script(work).handle)
    last = heard[-1]
    assert isinstance(last, Failed)
    assert last.code is ErrorCode.INTERNAL


async def test_a_node_that_stops_resets_its_streams() -> None:
    here, there = stream_pair()
    heard: list[Reply] = []

    async def work() -> AsyncGenerator[Reply, None]:
        await trio.sleep_forever()
        yield Accepted()

    script = Script(work)

    async def ask() -> None:
        async with request_over(here, REQUEST) as answer:
            heard.extend([reply async for reply in answer])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as node:
                node.start_soon(serve_stream, there, script.handle)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    (last,) = heard
    assert isinstance(last, Failed)
    assert (last.code, last.retryable) == (ErrorCode.DRAINING, True)


# The requester misbehaves


@pytest.mark.parametrize(
    ("sent", "eof", "code"),
    [
        (b"", True, ErrorCode.MALFORMED),
        (b"\x05abc", True, ErrorCode.MALFORMED),
        (b"\x03abc", True, ErrorCode.MALFORMED),
        (b"\xff" * 10, False, ErrorCode.MALFORMED),
        (b"\xff\xff\xff\x7f", False, ErrorCode.TOO_LARGE),
        (encode_frame(encode_request(REQUEST)) + b"x", True, ErrorCode.MALFORMED),
        (encode_frame(encode_reply(Accepted())), True, ErrorCode.MALFORMED),
        (b"\x05ab", False, ErrorCode.IDLE),
        (b"", False, ErrorCode.IDLE),
    ],
)
async def test_a_bad_request_gets_one_error(
    sent: bytes, code: ErrorCode, autojump_clock: trio.testing.MockClock, *, eof: bool
) -> None:
    here, there = stream_pair()
    script = says(*GOOD)
    served: list[Served] = []
    began_s = trio.current_time()

    async def serve() -> None:
        served.append(await serve_stream(there, script.handle, ServeLimits(request_read_s=3.0)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await speak(here, sent, eof=eof)
        (reply,) = await read_all(here)
    assert trio.current_time() - began_s == (3.0 if code is ErrorCode.IDLE else 0.0)
    assert isinstance(reply, Failed)
    assert reply.code is code
    assert script.requests == []
    assert served[0].fault is not None
    assert (served[0].request, served[0].end, served[0].fault.code) == (None, reply, code)


async def test_data_after_the_request_stops_the_work() -> None:
    async def work() -> AsyncGenerator[Reply, None]:
        yield TextDelta("a")
        await trio.sleep_forever()

    script = Script(work)
    here, there = stream_pair()
    served: list[Served] = []

    async def serve() -> None:
        served.append(await serve_stream(there, script.handle))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await here.send_all(encode_frame(encode_request(REQUEST)))
        await trio.testing.wait_all_tasks_blocked()
        await here.send_all(b"x")
        first, last = await read_all(here)
    assert first == TextDelta("a")
    assert isinstance(last, Failed)
    assert last.code is ErrorCode.MALFORMED
    assert script.left.is_set()
    assert served[0].fault is not None


async def test_a_requester_that_never_reads_its_refusal_is_reset(autojump_clock: trio.testing.MockClock) -> None:
    here, there = stream_pair()
    there.outgoing.data += bytes(BUFFER_BYTES)
    await speak(here, b"")
    began_s = trio.current_time()
    served = await serve_stream(there, says().handle, ServeLimits(farewell_s=2.0))
    assert trio.current_time() - began_s == 2.0
    assert served.end is None
    assert there.codes == [ErrorCode.MALFORMED]
    assert here.incoming.broken is not None


# The answering peer misbehaves


@pytest.mark.parametrize(
    ("frames", "heard", "code"),
    [
        ((b"",), (), ErrorCode.MALFORMED),
        ((framed(*GOOD[:2]),), GOOD[:2], ErrorCode.MALFORMED),
        ((framed(GOOD[0]), framed(GOOD[1])[:-1]), GOOD[:1], ErrorCode.MALFORMED),
        ((b"\x00",), (), ErrorCode.MALFORMED),
        ((b"\x03abc",), (), ErrorCode.MALFORMED),
        ((framed(GOOD[1], GOOD[0]),), GOOD[1:2], ErrorCode.MALFORMED),
        ((framed(GOOD[0], GOOD[0]),), GOOD[:1], ErrorCode.MALFORMED),
        ((encode_frame(encode_request(REQUEST)),), (), ErrorCode.MALFORMED),
        ((b"\xff\xff\xff\x7f",), (), ErrorCode.TOO_LARGE),
        ((framed(*[TextDelta("x" * 500)] * 10),), (TextDelta("x" * 500),) * 7, ErrorCode.TOO_LARGE),
    ],
    ids=["nothing", "no end", "cut", "empty", "junk", "late accepted", "accepted twice", "a request", "frame", "answer"],
)
async def test_a_peer_that_answers_rubbish_fails_the_answer(
    frames: tuple[bytes, ...], heard: tuple[Reply, ...], code: ErrorCode
) -> None:
    outcome, codes = await hear(*frames, limits=AnswerLimits(answer_bytes_max=4000))
    last = outcome.replies.pop()
    assert outcome.replies == list(heard)[: len(outcome.replies)]
    assert len(outcome.replies) >= len(heard) - 2
    assert isinstance(last, Failed)
    assert (last.code, last.retryable) == (ErrorCode.ENGINE_FAILED, True)
    assert outcome.fault is not None
    assert outcome.fault.code is code
    assert codes == [code]


async def test_what_follows_the_end_is_not_heard_and_scored() -> None:
    outcome, codes = await hear(framed(*GOOD, TextDelta("more")))
    assert outcome.replies == list(GOOD)
    assert outcome.fault is not None
    assert codes == [ErrorCode.MALFORMED]


async def test_a_peer_that_falls_silent_fails_the_answer_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    began_s = trio.current_time()
    outcome, codes = await hear(framed(*GOOD[:2]), eof=False, limits=AnswerLimits(grace_s=0.5))
    assert trio.current_time() - began_s == REQUEST.deadline_s + 0.5
    last = outcome.replies[-1]
    assert isinstance(last, Failed)
    assert last.code is ErrorCode.DEADLINE_EXCEEDED
    assert codes == [ErrorCode.DEADLINE_EXCEEDED]


async def test_a_peer_that_takes_no_request_fails_the_answer_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    here, _ = stream_pair()
    async with request_over(here, replace(REQUEST, body=bytes(100_000)), AnswerLimits(grace_s=0.5)) as answer:
        (reply,) = [reply async for reply in answer]
    assert isinstance(reply, Failed)
    assert reply.code is ErrorCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (ErrorCode.DRAINING, ErrorCode.DRAINING),
        (ErrorCode.TOO_LARGE, ErrorCode.TOO_LARGE),
        (ErrorCode.NO_ERROR, ErrorCode.ENGINE_FAILED),
        (ErrorCode.CANCELLED, ErrorCode.ENGINE_FAILED),
        (ErrorCode.UNSUPPORTED, ErrorCode.ENGINE_FAILED),
        (ErrorCode.MALFORMED, ErrorCode.ENGINE_FAILED),
        (0xFFFF, ErrorCode.INTERNAL),
    ],
)
async def test_a_reset_by_the_peer_fails_the_answer(code: int, told: ErrorCode) -> None:
    here, there = stream_pair()
    async with request_over(here, REQUEST) as answer:
        there.reset(code)
        (reply,) = [reply async for reply in answer]
    assert isinstance(reply, Failed)
    assert reply.code is told


async def test_a_lost_connection_fails_the_answer() -> None:
    here, there = stream_pair()
    async with request_over(here, REQUEST) as answer:
        await there.send_all(framed(TextDelta("a")))
        assert await anext(answer) == TextDelta("a")
        there.lose()
        (reply,) = [reply async for reply in answer]
    assert isinstance(reply, Failed)
    assert (reply.code, reply.retryable) == (ErrorCode.UNREACHABLE, True)


async def test_a_refusal_before_the_request_was_taken_is_heard() -> None:
    """The peer refuses a request by its length and reads no more of it."""
    here, there = stream_pair()

    async def refuse() -> None:
        await there.receive_some(10)
        await there.send_all(framed(Failed(ErrorCode.TOO_LARGE, "no")))
        there.break_with(there.incoming, StreamReset(ErrorCode.NO_ERROR))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        async with request_over(here, replace(REQUEST, body=bytes(100_000))) as answer:
            assert [reply async for reply in answer] == [Failed(ErrorCode.TOO_LARGE, "no")]
