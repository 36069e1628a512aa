"""A requester or a peer that breaks the protocol of an inference stream: one error, and an end."""

from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
import trio
import trio.testing
from inference_ends import BUFFER_BYTES, GOOD, REQUEST, Script, framed, hear, read_all, says, speak, stream_pair

from mesh.inference import AnswerLimits, Served, ServeLimits, request_over, serve_stream
from mesh.transport import StreamReset
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode
from protocol.inference import Accepted, Failed, Reply, TextDelta
from protocol.wire.inference import encode_reply, encode_request

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
