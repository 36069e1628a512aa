"""The OpenAI engine against a real server on loopback, well-behaved and not."""

import json

import numpy as np
import pytest
import trio
from engine_server import CHAT_MODELS, OpenAIServer, chat, collect, make_request

from mesh.engines.openai import OpenAIConfig, OpenAIEngine
from protocol.errors import ErrorCode
from protocol.inference import Accepted, Failed, Feature, Finished, JsonDelta, TensorsReady, TextDelta, Usage


async def failure_of(engine, model: str, feature: Feature = Feature.CHAT, **body) -> Failed:
    request = chat(model, **body) if feature is Feature.CHAT else make_request(feature, model, **body)
    last = (await collect(engine, request))[-1]
    assert isinstance(last, Failed)
    assert engine.load()[0].running == 0
    return last


async def test_models_of_the_server_are_offered_with_what_they_can_do(openai_engine, openai_server):
    openai_server.models = [
        {"id": "llama", "max_model_len": 4096},
        {"id": "bge-small", "meta": {"n_ctx_train": 512}},
        {"id": 7},
        "x",
    ]
    await openai_engine.refresh()
    offers = {offer.model: offer for offer in openai_engine.offers()}
    assert offers.keys() == {"llama", "bge-small"}
    assert offers["llama"].features == {Feature.CHAT, Feature.COMPLETIONS}
    assert offers["llama"].context_length == 4096
    assert offers["bge-small"].features == {Feature.EMBEDDINGS}
    assert offers["bge-small"].context_length == 512


async def test_chat_is_streamed_as_text_and_ends_with_usage_and_timing(openai_engine, openai_server):
    replies = await collect(openai_engine, chat("good", temperature=0.5))
    assert replies[:3] == [Accepted(0.0), TextDelta("Grüße"), TextDelta(" aus Köln")]
    finished = replies[3]
    assert isinstance(finished, Finished)
    assert finished.finish_reasons == ("stop",)
    assert finished.usage == Usage(7, 2)
    assert finished.timing.service_s > 0
    sent = openai_server.bodies[-1]
    assert sent["model"] == "good"
    assert sent["stream"] is True
    assert sent["stream_options"] == {"include_usage": True}
    assert sent["temperature"] == 0.5
    assert openai_server.headers[-1]["authorization"] == "Bearer secret"


async def test_connection_is_used_again_after_a_whole_answer_and_not_after_half_of_one(openai_engine, openai_server):
    for model in ("good", "good", "rubbish", "good"):
        await collect(openai_engine, chat(model))
    first, second, third, fourth = openai_server.ports
    assert first == second == third
    assert fourth != third


async def test_server_with_a_costly_health_check_is_not_asked_for_it(openai_engine, openai_server):
    openai_server.health = 500
    openai_server.models = [{"id": "good", "owned_by": "a-proxy"}]
    await openai_engine.refresh()
    assert [offer.model for offer in openai_engine.offers()] == ["good"]


async def test_completions_are_streamed_as_text(openai_engine):
    replies = await collect(openai_engine, make_request(Feature.COMPLETIONS, "good", prompt="hello"))
    assert replies[1:3] == [TextDelta("Grüße"), TextDelta(" aus Köln")]


async def test_tool_calls_are_handed_on_as_they_came(openai_engine):
    replies = await collect(openai_engine, chat("tools"))
    deltas = [json.loads(reply.payload) for reply in replies if isinstance(reply, JsonDelta)]
    assert [delta["delta"]["tool_calls"][0]["function"]["name"] for delta in deltas] == ["f"]


async def test_answer_without_done_counts_when_every_choice_was_finished(openai_engine):
    assert isinstance((await collect(openai_engine, chat("no-done")))[-1], Finished)


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("rubbish", ErrorCode.ENGINE_FAILED),
        ("no-events", ErrorCode.ENGINE_FAILED),
        ("compressed", ErrorCode.ENGINE_FAILED),
        ("long-line", ErrorCode.ENGINE_FAILED),
        ("dies", ErrorCode.ENGINE_FAILED),
        ("ends-early", ErrorCode.ENGINE_FAILED),
        ("error-chunk", ErrorCode.ENGINE_FAILED),
        ("broken", ErrorCode.ENGINE_FAILED),
        ("redirects", ErrorCode.ENGINE_FAILED),
        ("forbidden", ErrorCode.ENGINE_FAILED),
        ("hangs", ErrorCode.ENGINE_FAILED),
        ("hangs-midway", ErrorCode.ENGINE_FAILED),
        ("picky", ErrorCode.BAD_REQUEST),
        ("absent", ErrorCode.MODEL_NOT_FOUND),
        ("unheard-of", ErrorCode.MODEL_NOT_FOUND),
        ("busy", ErrorCode.OVERLOADED),
        ("loading", ErrorCode.OVERLOADED),
    ],
)
async def test_each_misbehaviour_is_one_declared_failure(openai_engine, model, code):
    assert (await failure_of(openai_engine, model)).code is code


async def test_advice_and_words_of_the_server_are_passed_on(openai_engine):
    assert (await failure_of(openai_engine, "busy")).retry_after_s == 3
    assert (await failure_of(openai_engine, "loading")).retry_after_s == 1.5
    assert (await failure_of(openai_engine, "picky")).message == "the engine's own words"
    assert (await failure_of(openai_engine, "error-chunk")).message == "out of memory"


async def test_deadline_ends_an_answer_that_goes_on(openai_engine, openai_server):
    failed = await failure_of(openai_engine, "endless", deadline_s=0.2)
    assert failed.code is ErrorCode.DEADLINE_EXCEEDED
    await openai_server.stopped.wait()


async def test_leaving_an_answer_stops_the_server_and_frees_the_slot(openai_engine, openai_server):
    async with openai_engine.run(chat("endless")) as replies:
        async for reply in replies:
            if reply == TextDelta("more "):
                assert openai_engine.load()[CHAT_MODELS.index("endless")].running == 1
                break
    assert openai_engine.load()[CHAT_MODELS.index("endless")].running == 0
    await openai_server.stopped.wait()


async def test_cancelling_the_caller_stops_the_server_and_frees_the_slot(openai_engine, openai_server):
    with trio.CancelScope() as scope:
        async with openai_engine.run(chat("endless")) as replies:
            async for reply in replies:
                if reply == TextDelta("more "):
                    scope.cancel()
    assert scope.cancelled_caught
    assert openai_engine.load()[CHAT_MODELS.index("endless")].running == 0
    await openai_server.stopped.wait()


async def test_embeddings_come_in_the_order_of_their_inputs(openai_engine):
    replies = await collect(openai_engine, make_request(Feature.EMBEDDINGS, "embed-good", input=["a", "b"]))
    ready = replies[1]
    assert isinstance(ready, TensorsReady)
    assert ready.tensors[0].shape == (2, 3)
    assert np.frombuffer(ready.tensors[0].data, "<f4").tolist() == [0, 1, 2, 1, 1, 2]
    assert isinstance(replies[2], Finished)
    assert replies[2].usage == Usage(5, 0)


async def test_embeddings_in_base64_are_understood(openai_engine):
    replies = await collect(openai_engine, make_request(Feature.EMBEDDINGS, "embed-base64", input=[1, 2, 3]))
    assert np.frombuffer(replies[1].tensors[0].data, "<f4").tolist() == [1, 2, 3]


@pytest.mark.parametrize("model", ["embed-short", "embed-text", "embed-huge"])
async def test_wrong_embeddings_are_a_failure_of_the_engine(openai_engine, model):
    failed = await failure_of(openai_engine, model, Feature.EMBEDDINGS, input=["a", "b"])
    assert failed.code is ErrorCode.ENGINE_FAILED


async def test_tensors_are_not_supported(openai_engine):
    assert (await failure_of(openai_engine, "good", Feature.TENSORS)).code is ErrorCode.FEATURE_NOT_SUPPORTED


async def test_server_that_is_not_well_offers_nothing_until_it_is(openai_engine, openai_server):
    openai_server.health = 503
    await openai_engine.refresh()
    assert openai_engine.offers() == ()
    assert "503" in openai_engine.problem
    openai_server.health = 200
    await openai_engine.refresh()
    assert openai_engine.offers()


async def test_watch_finds_a_server_that_comes_up_later(openai_server, nursery):
    openai_server.health = 503
    engine = OpenAIEngine(openai_server.url, OpenAIConfig(refresh_interval_s=0.01))
    await engine.start()
    assert engine.offers() == ()
    openai_server.health = 200
    nursery.start_soon(engine.watch)
    with trio.fail_after(10):
        while not engine.offers():
            await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await engine.aclose()


async def test_server_that_is_gone_fails_the_request_and_offers_nothing_more():
    server = OpenAIServer()
    async with trio.open_nursery() as life:
        await server.serve(life)
        engine = OpenAIEngine(server.url)
        await engine.start()
        assert engine.offers()
        life.cancel_scope.cancel()
    async with engine.run(chat("good")) as replies:
        failed = [reply async for reply in replies][-1]
    assert failed.code is ErrorCode.ENGINE_FAILED
    assert engine.offers() == ()
    assert server.url in engine.problem
    await engine.aclose()


async def test_gateway_of_a_node_is_not_fronted(openai_server):
    openai_server.node_header = True
    engine = OpenAIEngine(openai_server.url)
    await engine.start()
    assert engine.offers() == ()
    assert "mesh node" in engine.problem
    await engine.aclose()


async def test_reported_load_counts_the_requests_of_others(openai_engine, openai_server):
    openai_server.metrics = 'vllm:num_requests_running{model_name="good"} 5.0\nvllm:num_requests_waiting{model_name="good"} 2.0\n'
    openai_server.models = [{"id": "good"}]
    engine = OpenAIEngine(openai_server.url)
    await engine.start()
    await collect(engine, chat("good"))
    load = engine.load()[0]
    assert (load.running, load.waiting) == (5, 2)
    assert load.queue_s == pytest.approx(2 * load.service_s / 5)
    assert load.tokens_per_s > 0
    await engine.aclose()
