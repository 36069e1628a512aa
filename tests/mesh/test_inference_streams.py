"""One side asks, the other answers, over a bounded byte stream with resets: each answer ends once, whatever either side does."""

from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
import trio
import trio.testing
from inference_ends import BUFFER_BYTES, GOOD, REQUEST, MemoryStream, Script, converse, read_all, says, speak, stream_pair

from mesh.inference import Served, request_over, serve_stream
from mesh.inference.server import HELD_BYTES_MAX, Handle
from mesh.transport import ConnectionLost
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.inference import Accepted, Failed, Finished, JsonDelta, Reply, TextDelta
from protocol.wire.inference import REPLY_BYTES_MAX, encode_request

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


# Answers that are at hand


AT_HAND = {
    "good": GOOD,
    "a refusal": (Failed(ErrorCode.OVERLOADED, "busy", 1.5),),
    "a failure after outputs": (Accepted(), TextDelta("a"), Failed(ErrorCode.ENGINE_FAILED, "died")),
    "no end": (Accepted(), TextDelta("a")),
    "nothing": (),
    "what cannot be sent": (Accepted(), TextDelta("a"), TextDelta("x" * (REPLY_BYTES_MAX + 1)), Finished()),
    "the wrong order": (TextDelta("a"), Accepted(), Finished()),
    "more than is held": (Accepted(), *(TextDelta(letter * HELD_BYTES_MAX) for letter in "abc"), Finished()),
}


@pytest.mark.parametrize("name", AT_HAND)
async def test_an_answer_at_hand_is_sent_as_one_that_comes(name: str) -> None:
    request = replace(REQUEST, stream=False)
    came = await converse(says(*AT_HAND[name]).handle, request)
    at_hand = await converse(lambda _request, _peer: AT_HAND[name], request)
    assert (at_hand.replies, at_hand.served, at_hand.fault) == (came.replies, came.served, came.fault)


async def test_an_answer_at_hand_leaves_in_one_write() -> None:
    here, there = stream_pair()
    writes: list[bytes] = []
    send_all = there.send_all

    async def noted(data: bytes, *, end: bool = False, **when: bool) -> None:
        writes.append(data)
        await send_all(data, end=end, **when)

    there.send_all = noted
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, there, lambda _request, _peer: GOOD)
        async with request_over(here, REQUEST) as answer:
            assert [reply async for reply in answer] == list(GOOD)
    assert len(writes) == 1


async def test_an_answer_at_hand_that_nobody_takes_ends_with_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    replies = (JsonDelta(b"y" * (BUFFER_BYTES * 2)), Finished())
    for handle in (says(*replies).handle, lambda _request, _peer: replies):
        here, there = stream_pair()
        began_s = trio.current_time()
        await here.send_all(encode_frame(encode_request(replace(REQUEST, deadline_s=2.0, body=b""))))
        served = await serve_stream(there, handle)
        assert served.end is None
        assert there.codes == [ErrorCode.DEADLINE_EXCEEDED]
        assert trio.current_time() - began_s == 2.0


async def test_a_requester_who_goes_before_an_answer_at_hand_is_gone(autojump_clock: trio.testing.MockClock) -> None:
    replies = (JsonDelta(b"y" * (BUFFER_BYTES * 2)), Finished())
    here, there = stream_pair()
    await here.send_all(encode_frame(encode_request(replace(REQUEST, body=b""))))
    async with trio.open_nursery() as nursery:
        served: list[Served] = []

        async def serve() -> None:
            served.append(await serve_stream(there, lambda _request, _peer: replies))

        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        here.reset(ErrorCode.CANCELLED)
    assert served[0].end is None
    assert there.codes == [ErrorCode.CANCELLED]


@pytest.mark.parametrize("error", [OSError("died"), ZeroDivisionError()])
async def test_a_handler_that_fails_at_once_fails_as_another(error: Exception) -> None:
    def at_once(_request: object, _peer: object) -> tuple[Reply, ...]:
        raise error

    async def work() -> AsyncGenerator[Reply, None]:
        raise error
        yield

    replies: list[list[Reply]] = []
    for handle in (at_once, Script(work).handle):
        here, there = stream_pair()
        raised: list[BaseException] = []

        async def serve(there: MemoryStream, handle: Handle, raised: list[BaseException]) -> None:
            try:
                await serve_stream(there, handle)
            except ZeroDivisionError as bug:
                raised.append(bug)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, there, handle, raised)
            async with request_over(here, REQUEST) as answer:
                replies.append([reply async for reply in answer])
        assert raised == ([error] if isinstance(error, ZeroDivisionError) else [])
    assert replies[0] == replies[1]
