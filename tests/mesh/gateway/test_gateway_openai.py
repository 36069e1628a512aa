"""The official client against the gateway, unchanged."""

import json

import httpx
import openai
import pytest
import trio
import trio.testing
from gateway_node import PEER, WORDS, Running

from protocol.identity import peer_id_text

MESSAGES = [{"role": "user", "content": "What is time?"}]


async def test_models_are_listed_and_found(running: Running) -> None:
    models = await running.ask(lambda client: client.models.list())
    assert {"org/talk", "embed"} <= {model.id for model in models.data}
    model = await running.ask(lambda client: client.models.retrieve("org/talk"))
    assert (model.id, model.object, model.created) == ("org/talk", "model", 1_700_000_000)


async def test_unknown_model_is_not_found(running: Running) -> None:
    with pytest.raises(openai.NotFoundError) as looked_up:
        await running.ask(lambda client: client.models.retrieve("nobody/has-it"))
    assert looked_up.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as asked:
        await running.ask(lambda client: client.chat.completions.create(model="nobody/has-it", messages=MESSAGES))
    assert (asked.value.code, asked.value.param) == ("model_not_found", "model")
    assert asked.value.response.headers["x-should-retry"] == "false"
    assert asked.value.request_id
    assert asked.value.response.headers["x-mesh-node"] == "me"  # no peer: the node itself says no


async def test_embeddings_as_base64_and_as_numbers_are_the_same(running: Running) -> None:
    inputs = ["cat", "kitten"]
    by_default = await running.ask(lambda client: client.embeddings.create(model="embed", input=inputs))
    as_numbers = await running.ask(lambda client: client.embeddings.create(model="embed", input=inputs, encoding_format="float"))
    assert [item.embedding[0] for item in as_numbers.data] == [3.0, 6.0]
    assert [item.embedding for item in by_default.data] == [item.embedding for item in as_numbers.data]
    assert [item.index for item in by_default.data] == [0, 1]
    assert (by_default.usage.prompt_tokens, by_default.usage.total_tokens) == (5, 5)


async def test_base64_is_what_the_client_asks_for(running: Running, http: httpx.AsyncClient) -> None:
    body = {"model": "embed", "input": [[1, 2, 3]], "encoding_format": "base64"}
    answer = (await http.post("/v1/embeddings", json=body)).json()
    assert isinstance(answer["data"][0]["embedding"], str)
    assert json.loads(bytes(running.engine.requests[-1].body)) == {"model": "embed", "input": [[1, 2, 3]]}


async def test_chat_in_one_piece(running: Running) -> None:
    answer = await running.ask(
        lambda client: client.chat.completions.with_raw_response.create(model="org/talk", messages=MESSAGES)
    )
    completion = answer.parse()
    assert completion.choices[0].message.content == "".join(WORDS)
    assert completion.choices[0].finish_reason == "stop"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.total_tokens) == (7, 3, 10)
    assert answer.headers["x-mesh-node"] == peer_id_text(PEER)
    route = dict(part.split("=") for part in answer.headers["x-mesh-route"].split(";"))
    assert (route["rtt"], route["queue"], route["predicted"], route["hops"]) == ("12.3ms", "0.0ms", "16.3ms", "1")
    assert float(route["measured"].removesuffix("ms")) >= 0
    assert answer.headers["x-request-id"] == running.engine.requests[-1].request_id.hex()
    assert completion.id == f"chatcmpl-{answer.headers['x-request-id']}"


async def test_chat_as_a_stream_with_usage(running: Running) -> None:
    def stream(client: openai.OpenAI) -> list[object]:
        options = {"include_usage": True}
        return list(client.chat.completions.create(model="org/talk", messages=MESSAGES, stream=True, stream_options=options))

    chunks = await running.ask(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "".join(WORDS)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 4 + ["stop"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 10)
    assert running.engine.requests[-1].stream


async def test_stream_without_usage_has_no_usage_chunk(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json={"model": "org/talk", "messages": MESSAGES, "stream": True})
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert "usage" not in answer.text
    assert json.loads(events[-3].removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-mesh-node"] == peer_id_text(PEER)


async def test_completions_whole_and_streamed(running: Running) -> None:
    whole = await running.ask(lambda client: client.completions.create(model="org/talk", prompt="What is time?"))
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("".join(WORDS), "stop")

    def stream(client: openai.OpenAI) -> list[object]:
        return list(client.completions.create(model="org/talk", prompt="What is time?", stream=True))

    chunks = await running.ask(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "".join(WORDS)
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_tool_calls_pass_whole_and_streamed(running: Running) -> None:
    whole = await running.ask(lambda client: client.chat.completions.create(model="tools", messages=MESSAGES))
    choice = whole.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    call = choice.message.tool_calls[0]
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == ("call_1", "near", {"place": "Oslo"})

    def stream(client: openai.OpenAI) -> str:
        chunks = client.chat.completions.create(model="tools", messages=MESSAGES, stream=True)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        return "".join(call.function.arguments for call in calls)

    assert json.loads(await running.ask(stream)) == {"place": "Oslo"}


async def test_overload_is_429_with_advice(running: Running) -> None:
    with pytest.raises(openai.RateLimitError) as error:
        await running.ask(lambda client: client.chat.completions.create(model="full", messages=MESSAGES))
    assert error.value.code == "overloaded"
    assert int(error.value.response.headers["retry-after-ms"]) > 0


@pytest.mark.parametrize(
    ("code", "status", "retry"),
    [
        ("BAD_REQUEST", 400, "false"),
        ("FEATURE_NOT_SUPPORTED", 400, "false"),
        ("DEADLINE_EXCEEDED", 504, "false"),
        ("DRAINING", 503, None),
        ("UNREACHABLE", 503, None),
        ("INSUFFICIENT_MEMORY", 503, "false"),
        ("ENGINE_FAILED", 502, None),
        ("INTERNAL", 500, None),
        ("BAD_SIGNATURE", 502, None),
    ],
)
async def test_failure_keeps_its_code(running: Running, code: str, status: int, retry: str | None) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        await running.ask(
            lambda client: client.chat.completions.create(model="refuses", messages=MESSAGES, user=code, stream=True)
        )
    assert (error.value.status_code, error.value.code) == (status, code.lower())
    assert error.value.response.headers.get("x-should-retry") == retry
    assert error.value.response.headers["retry-after-ms"] == "250"
    assert error.value.response.headers["x-mesh-node"] == "me"
    assert "x-mesh-route" not in error.value.response.headers


async def test_failure_in_mid_stream_reaches_the_client(running: Running) -> None:
    heard: list[str] = []

    def stream(client: openai.OpenAI) -> None:
        chunks = client.chat.completions.create(model="breaks", messages=MESSAGES, stream=True)
        heard.extend(chunk.choices[0].delta.content or "" for chunk in chunks)

    with pytest.raises(openai.APIError) as error:
        await running.ask(stream)
    assert "".join(heard) == WORDS[0]
    assert error.value.code == "engine_failed"
    with trio.fail_after(5):  # the client hears of it before the gateway has counted it
        while running.metric("isochrone_requests_total", model="breaks", feature="chat", outcome="engine_failed") != 1:
            await trio.lowlevel.checkpoint()


async def test_stopped_client_frees_the_slot(running: Running) -> None:
    def stop_early(client: openai.OpenAI) -> None:
        with client.chat.completions.create(model="flood", messages=MESSAGES, stream=True) as stream:
            next(iter(stream))

    await running.ask(stop_early)
    with trio.fail_after(10):
        await running.engine.ended.wait()
        await trio.testing.wait_all_tasks_blocked()
    assert running.engine.slots["flood"].load().running == 0
    assert running.metric("isochrone_requests_open", feature="chat") == 0


async def test_request_can_be_explained(running: Running, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json={"model": "org/talk", "messages": MESSAGES})
    report = (await http.get(f"/mesh/explain/{answer.headers['x-request-id']}")).json()
    assert (report["chosen"], report["candidates"][0]["rtt_s"]) == (peer_id_text(PEER), 0.0123)
    unknown = await http.get("/mesh/explain/0000")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "request_not_found")


async def test_operators_see_the_mesh(http: httpx.AsyncClient) -> None:
    health = await http.get("/health")
    assert (health.json(), health.headers["x-mesh-node"]) == ({"status": "ok"}, "me")
    assert (await http.get("/mesh/status")).json()["peer_id"] == "me"
    assert (await http.get("/mesh/peers")).json() == {"peers": [{"peer_id": "you", "state": "alive"}]}
    models = {model["model"]: model for model in (await http.get("/mesh/models")).json()["models"]}
    assert models["embed"]["features"] == ["embeddings"]
    assert models["embed"]["peer_ids"] == [peer_id_text(PEER)]


async def test_metrics_count_the_request(running: Running, http: httpx.AsyncClient) -> None:
    await http.post("/v1/chat/completions", json={"model": "org/talk", "messages": MESSAGES})
    text = (await http.get("/metrics")).text
    assert 'isochrone_requests_total{feature="chat",model="org/talk",outcome="ok"} 1.0' in text
    assert 'isochrone_tokens_total{direction="completion",model="org/talk"} 3.0' in text
    assert 'isochrone_first_output_seconds_count{feature="chat"} 1.0' in text
