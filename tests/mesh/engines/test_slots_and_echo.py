"""Slots bound what an engine does at once; the echo engine shows it."""

import json

import pytest
import trio
import trio.testing
from engine_server import chat, collect, make_request

from mesh.engines.base import EngineError, Slots, SlotsConfig
from mesh.engines.echo import EchoConfig, EchoEngine
from protocol.errors import ErrorCode
from protocol.inference import (
    Accepted,
    Failed,
    Feature,
    Finished,
    InferenceRequest,
    Tensor,
    TensorsReady,
    TextDelta,
    Timing,
    Usage,
)


async def test_echo_gives_the_words_back_at_its_pace(autojump_clock):
    engine = EchoEngine(EchoConfig(word_interval_s=0.5))
    replies = await collect(engine, chat("echo", "one two  three\n"))
    assert "".join(reply.text for reply in replies if isinstance(reply, TextDelta)) == "one two  three\n"
    assert len([reply for reply in replies if isinstance(reply, TextDelta)]) == 4
    assert replies[-1] == Finished(("stop",), Usage(4, 4), Timing(0.0, 2.0))
    assert engine.load()[0].service_s == 2.0
    assert engine.load()[0].tokens_per_s == 2.0


async def test_echo_heeds_the_token_limit():
    replies = await collect(EchoEngine(), make_request(Feature.COMPLETIONS, "echo", prompt="a b c", max_tokens=2))
    assert replies[1:3] == [TextDelta("a"), TextDelta(" b")]
    assert replies[3].finish_reasons == ("length",)


async def test_echo_gives_tensors_back():
    tensor = Tensor("x", "u1", (3,), memoryview(b"abc"))
    request = InferenceRequest(bytes(16), Feature.TENSORS, "echo", b"", (tensor,))
    assert (await collect(EchoEngine(), request))[1] == TensorsReady((tensor,))


@pytest.mark.parametrize(
    ("model", "feature", "code"),
    [("other", Feature.CHAT, ErrorCode.MODEL_NOT_FOUND), ("echo", Feature.EMBEDDINGS, ErrorCode.FEATURE_NOT_SUPPORTED)],
)
async def test_what_is_not_offered_is_refused(model, feature, code):
    (failed,) = await collect(EchoEngine(), make_request(feature, model))
    assert failed.code is code


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "JSON"),
        (b"[]", "object"),
        (b"[" * 100_000, "JSON"),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x"}], "n": 2}, "'n'"),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": 3}, "temperature"),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}, "temperature"),
        ({"messages": [{"role": "user", "content": "x"}], "top_p": -1}, "top_p"),
        ({"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "x"}], "max_tokens": True}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "x"}], "stop": ["a"] * 5}, "stop"),
        ({"messages": [{"role": "user", "content": "x"}], "stop": 5}, "stop"),
        ({"messages": [{"role": "user", "content": "x"}], "seed": 1.5}, "seed"),
    ],
)
async def test_wrong_body_is_the_callers_fault_and_names_the_field(body, named):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    last = (await collect(EchoEngine(), InferenceRequest(bytes(16), Feature.CHAT, "echo", raw)))[-1]
    assert isinstance(last, Failed)
    assert last.code is ErrorCode.BAD_REQUEST
    assert named in last.message


async def test_last_user_message_is_the_prompt():
    messages = [
        {"role": "user", "content": "first"},
        {"role": "user", "content": [{"type": "text", "text": "se"}, {"type": "text", "text": "cond"}]},
        {"role": "assistant", "content": None},
    ]
    assert (await collect(EchoEngine(), make_request(Feature.CHAT, "echo", messages=messages)))[1] == TextDelta("second")


async def test_queue_is_bounded_and_served_in_order(autojump_clock):
    engine = EchoEngine(EchoConfig(word_interval_s=1.0, slots=SlotsConfig(slots_max=1, waiting_max=2)))
    await collect(engine, chat("echo", "warm"))
    order: list[str] = []

    async def ask(name: str) -> None:
        replies = await collect(engine, chat("echo", name))
        order.append(name if isinstance(replies[-1], Finished) else f"{name} refused, {replies[-1].retry_after_s:.0f}")

    async with trio.open_nursery() as nursery:
        for name in ("a", "b", "c", "d"):
            nursery.start_soon(ask, name)
            await trio.testing.wait_all_tasks_blocked()
        load = engine.load()[0]
        assert (load.running, load.waiting, load.slots, load.queue_s) == (1, 2, 1, 3.0)
    assert order == ["d refused, 3", "a", "b", "c"]
    assert (engine.load()[0].running, engine.load()[0].waiting) == (0, 0)


async def test_accepted_tells_the_expected_wait(autojump_clock):
    engine = EchoEngine(EchoConfig(word_interval_s=1.0, slots=SlotsConfig(slots_max=1)))
    await collect(engine, chat("echo", "warm"))
    async with engine.run(chat("echo", "first")) as first:
        assert await anext(first) == Accepted(0.0)
        async with engine.run(chat("echo", "second")) as second:
            assert await anext(second) == Accepted(1.0)
    assert (engine.load()[0].running, engine.load()[0].waiting) == (0, 0)


async def test_waiting_past_the_deadline_fails_and_leaves_the_queue(autojump_clock):
    engine = EchoEngine(EchoConfig(word_interval_s=100.0, slots=SlotsConfig(slots_max=1)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, engine, chat("echo", "long", deadline_s=1000))
        await trio.testing.wait_all_tasks_blocked()
        assert (await collect(engine, chat("echo", "late", deadline_s=5)))[-1].code is ErrorCode.DEADLINE_EXCEEDED
        assert engine.load()[0].waiting == 0
        nursery.cancel_scope.cancel()
    assert engine.load()[0].running == 0


async def test_deadline_ends_an_answer_in_the_making(autojump_clock):
    engine = EchoEngine(EchoConfig(word_interval_s=1.0))
    replies = await collect(engine, chat("echo", "a b c d", deadline_s=2.5))
    assert [reply.text for reply in replies[1:3]] == ["a", " b"]
    assert replies[3].code is ErrorCode.DEADLINE_EXCEEDED
    assert len(replies) == 4


async def test_work_that_just_stops_or_raises_is_one_failure():
    slots = Slots("m", SlotsConfig())

    async def stops():
        yield TextDelta("x")

    async def fails():
        yield TextDelta("x")
        raise EngineError(ErrorCode.OVERLOADED, "busy", 2.0)

    for work, expected in ((stops, ErrorCode.ENGINE_FAILED), (fails, ErrorCode.OVERLOADED)):
        async with slots.run(chat("m"), work) as replies:
            got = [reply async for reply in replies]
        assert got[1] == TextDelta("x")
        assert got[2].code is expected
        assert len(got) == 3
    assert slots.load().running == 0
