"""Clients that are wrong, rude, slow or gone: each gets one answer, and costs a bounded amount."""

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from io import StringIO

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import trio
import trio.testing
from gateway_node import LocalDispatcher, ModelEngine, Running, Start, connect, post

from mesh.gateway import Answer, GatewayAddressError, GatewayConfig
from mesh.gateway.server import Gateway, listen
from mesh.telemetry import Telemetry, make_logger
from protocol.inference import InferenceRequest, JsonDelta, Tensor, TensorsReady, TextDelta

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
TALK = {"model": "org/talk", "messages": MESSAGES}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "user@localhost", "localhost:x", ""]
)
async def test_wrong_host_is_misdirected(http: httpx.AsyncClient, host: str) -> None:
    answer = await http.post(CHAT, json=TALK, headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "wrong_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:8642", "[::1]"])
async def test_names_of_the_loopback_are_ours(http: httpx.AsyncClient, host: str) -> None:
    assert (await http.get("/health", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://localhost"])
async def test_page_of_another_origin_is_forbidden(http: httpx.AsyncClient, origin: str) -> None:
    answer = await http.post(CHAT, json=TALK, headers={"origin": origin})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "wrong_origin")
    assert "access-control-allow-origin" not in answer.headers


async def test_page_of_the_loopback_may_call(http: httpx.AsyncClient) -> None:
    assert (await http.post(CHAT, json=TALK, headers={"origin": "http://localhost:3000"})).status_code == 200


async def test_configured_name_is_ours(start: Start) -> None:
    running = await start(allowed_hosts=("mesh.example",))
    async with httpx.AsyncClient(base_url=running.url) as client:
        headers = {"host": "mesh.example", "origin": "https://mesh.example"}
        assert (await client.get("/health", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": "org/talk", "messages": ',
        b'{"model": NaN}',
        b'{"model": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"model": "org/talk", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "org/talk", "messages": [{"role": "user", "content": "hi"}], "metadata": {"x": 1e999}}',
        b'{"model": "org/talk", "messages": [{"role": "user", "content": "hi"}], "metadata": {"x":'
        + b"[" * 80
        + b"]" * 80
        + b"}}",
    ],
    ids=range(12),
)
async def test_junk_is_not_json(running: Running, http: httpx.AsyncClient, content: bytes) -> None:
    answer = await http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert running.engine.requests == []
    assert running.metric("isochrone_gateway_refusals_total", code="invalid_json") == 1


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "hello"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 129}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"tools": {}}, "tools"),
    ],
    ids=str,
)
async def test_wrong_field_is_named(http: httpx.AsyncClient, changes: dict[str, object], param: str) -> None:
    answer = await http.post(CHAT, json={**TALK, **changes})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("given", [[], [[]], [1, "a"], [-1], {"a": 1}, 5, [None]], ids=str)
async def test_wrong_input_is_named(http: httpx.AsyncClient, given: object) -> None:
    answer = await http.post("/v1/embeddings", json={"model": "embed", "input": given})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


async def test_too_many_inputs_are_refused(http: httpx.AsyncClient) -> None:
    bound = GatewayConfig().inputs_max
    assert (await http.post("/v1/embeddings", json={"model": "embed", "input": ["a"] * bound})).status_code == 200
    assert (await http.post("/v1/embeddings", json={"model": "embed", "input": ["a"] * (bound + 1)})).status_code == 400


async def test_engine_sees_no_target_of_the_clients(running: Running, http: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"base_url": {"type": "string"}}}
    body = {
        **TALK,
        "api_base": "http://evil.example",
        "user_config": {"api_base": "http://evil.example"},
        "lora_path": "/etc",
        "metadata": {"deep": [{"Base_URL": "http://evil.example", "kept": 1}]},
        "tools": [{"type": "function", "function": {"name": "open", "parameters": schema}}],
        "top_k": 5,
        "temperature": None,
    }
    answer = await http.post(CHAT, json=body)
    assert answer.status_code == 200
    assert answer.headers["x-mesh-dropped"] == "Base_URL, api_base, lora_path, user_config"
    seen = json.loads(bytes(running.engine.requests[-1].body))
    assert seen == {
        **TALK,
        "metadata": {"deep": [{"kept": 1}]},
        "tools": [{"type": "function", "function": {"name": "open", "parameters": schema}}],
        "top_k": 5,
    }


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": "https://evil.example/x.png"},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "image", "image": " FILE:///etc/passwd"},
        {"type": "video_url", "video_url": {"url": "s3://bucket/x"}},
        {"type": "image", "image": [[[[["http://evil.example"]]]]]},
    ],
    ids=str,
)
async def test_remote_media_is_refused(http: httpx.AsyncClient, part: dict[str, object]) -> None:
    content = [{"type": "text", "text": "see https://example.com"}, part]
    answer = await http.post(CHAT, json={"model": "org/talk", "messages": [{"role": "user", "content": content}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "remote_content_refused")
    assert answer.json()["error"]["param"].startswith("messages[0].content[1].")


async def test_data_url_and_prose_pass(http: httpx.AsyncClient) -> None:
    content = [
        {"type": "text", "text": "see https://example.com"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    answer = await http.post(CHAT, json={"model": "org/talk", "messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 200


async def test_form_is_no_json(http: httpx.AsyncClient) -> None:
    answer = await http.post(CHAT, data={"model": "org/talk"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_unknown_path_and_method_have_the_same_shape(http: httpx.AsyncClient) -> None:
    unknown = await http.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    wrong = await http.get(CHAT)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert len(wrong.headers["x-request-id"]) == 32
    slash = await http.post(f"{CHAT}/", json=TALK)
    assert slash.status_code == 404


async def chunks_of(size: int) -> object:
    for _ in range(size // 65536):
        yield b" " * 65536
    yield b" "


@pytest.mark.parametrize("announced", [True, False])
async def test_body_over_the_limit_is_refused_and_the_next_is_served(
    running: Running, http: httpx.AsyncClient, announced: bool
) -> None:
    size = GatewayConfig().body_bytes_max
    content = b" " * (size + 1) if announced else chunks_of(size)
    answer = await http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert (await http.post(CHAT, json=TALK)).status_code == 200
    assert running.engine.requests[0].model == "org/talk"


async def test_body_at_the_limit_is_served(start: Start) -> None:
    running = await start(body_bytes_max=1000)
    async with httpx.AsyncClient(base_url=running.url) as client:
        content = json.dumps(TALK).encode().ljust(1000)
        headers = {"content-type": "application/json"}
        assert (await client.post(CHAT, content=content, headers=headers)).status_code == 200
        assert (await client.post(CHAT, content=content + b" ", headers=headers)).status_code == 413


async def test_endless_body_gets_an_answer_and_an_end(start: Start) -> None:
    running = await start(body_bytes_max=1000, drain_bytes_max=100_000)
    stream = await running.connect()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100000000000\r\n\r\n"
    heard = bytearray()

    async def pour() -> None:
        await stream.send_all(head.encode())
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await stream.send_all(bytes(65536))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, stream:
            nursery.start_soon(pour)
            try:
                while part := await stream.receive_some():
                    heard += part
            except trio.BrokenResourceError:
                pass  # reset, because what it still sent was not read
    assert not heard or heard.startswith(b"HTTP/1.1 413")
    assert running.metric("isochrone_gateway_refusals_total", code="too_large") == 1


async def test_slow_body_times_out(start: Start) -> None:
    running = await start(body_timeout_s=0.1)
    async with await running.connect() as stream:
        await stream.send_all(post(CHAT, TALK)[:-5])
        with trio.fail_after(20):
            answer = b"".join([part async for part in stream])
    assert answer.startswith(b"HTTP/1.1 408")


async def test_slow_headers_are_cut(start: Start) -> None:
    running = await start(idle_timeout_s=0.1)
    async with await running.connect() as stream:
        await stream.send_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127")
        with trio.fail_after(20):
            assert b"".join([part async for part in stream]) == b""


async def test_headers_over_the_limit_are_refused(running: Running) -> None:
    async with await running.connect() as stream:
        await stream.send_all(post(CHAT, TALK, f"x-long: {'a' * 20_000}\r\n"))
        with trio.fail_after(20):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 431")


async def test_junk_instead_of_http_is_refused(running: Running) -> None:
    async with await running.connect() as stream:
        await stream.send_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        with trio.fail_after(20):
            answer = b"".join([part async for part in stream])
    assert answer.startswith(b"HTTP/1.1 400")


async def test_http2_and_websockets_are_not_spoken(running: Running) -> None:
    async with await running.connect() as stream:
        key = "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        upgrade = f"connection: upgrade\r\nupgrade: websocket\r\n{key}"
        await stream.send_all(f"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n{upgrade}\r\n".encode())
        with trio.fail_after(20):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 403")
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.send_headers(
        1, [(":method", "GET"), (":path", "/health"), (":scheme", "http"), (":authority", "127.0.0.1")], end_stream=True
    )
    async with await running.connect() as stream:
        await stream.send_all(client.data_to_send())
        with trio.fail_after(20):
            async for part in stream:
                responses = [event for event in client.receive_data(bytes(part)) if isinstance(event, h2.events.ResponseReceived)]
                if responses:
                    assert dict(responses[0].headers)[b":status"] == b"505"
                    break


async def test_too_many_large_bodies_at_once_are_refused(start: Start) -> None:
    running = await start(bodies_bytes_max=1000)
    async with await running.connect() as holder:
        await holder.send_all(f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 901\r\n\r\n".encode() + b" " * 900)
        async with httpx.AsyncClient(base_url=running.url) as client:
            answer = await client.post(CHAT, content=b" " * 101, headers={"content-type": "application/json"})
            while answer.status_code != 429:  # until the first body has arrived
                answer = await client.post(CHAT, content=b" " * 101, headers={"content-type": "application/json"})
    assert answer.json()["error"]["code"] == "overloaded"
    assert answer.headers["retry-after-ms"] == "1000"


async def test_client_that_goes_while_the_engine_is_silent_frees_the_slot(running: Running) -> None:
    stream = await running.connect()
    await stream.send_all(post(CHAT, {"model": "silent", "messages": MESSAGES}))
    with trio.fail_after(10):
        await running.engine.started.wait()
        assert running.engine.slots["silent"].load().running == 1
        await stream.aclose()
        await running.engine.ended.wait()
        await trio.testing.wait_all_tasks_blocked()
    assert running.engine.slots["silent"].load().running == 0
    assert '"outcome": "client_gone"' in running.log.getvalue()


async def test_client_that_never_reads_is_cut_and_costs_little(start: Start) -> None:
    running = await start(write_timeout_s=0.3)
    async with await running.connect(receive_bytes=4096) as stream:
        await stream.send_all(post(CHAT, {"model": "flood", "messages": MESSAGES, "stream": True}))
        with trio.fail_after(20):
            await running.engine.ended.wait()
        assert running.engine.produced_bytes < 4 * 1024 * 1024
        assert running.metric("isochrone_gateway_connections_cut_total") == 1
    assert "client cut" in running.log.getvalue()


async def test_deadline_is_the_clients(start: Start) -> None:
    running = await start(deadline_slack_s=0.0, deadline_max_s=300.0)
    async with httpx.AsyncClient(base_url=running.url, timeout=20) as client:
        for header, stream, deadline_s in [
            ({}, False, 120.0),
            ({"x-request-timeout": "7"}, True, 7.0),
            ({"x-request-timeout": "7", "x-stainless-read-timeout": "9"}, False, 7.0),
            ({"x-stainless-read-timeout": "9"}, False, 9.0),
            ({"x-stainless-read-timeout": "9"}, True, 120.0),
            ({"x-request-timeout": "600"}, False, 300.0),
            ({"x-request-timeout": "-1"}, False, 120.0),
            ({"x-request-timeout": "nan"}, False, 120.0),
            ({"x-request-timeout": "0.000001"}, False, 0.05),
        ]:
            await client.post(CHAT, json={**TALK, "stream": stream}, headers=header)
            assert running.engine.requests[-1].deadline_s == deadline_s
        answer = await client.post(CHAT, json={"model": "silent", "messages": MESSAGES}, headers={"x-request-timeout": "0.1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert running.engine.ended.is_set()


@pytest.mark.parametrize(
    ("told", "memory_bytes"),
    [
        (None, 0),
        ("0", 0),
        ("16000000001", 16_000_000_001),
        ("16GB", 16 * 10**9),
        ("16 GiB", 16 * 2**30),
        ("0.5GiB", 2**29),
        ("0.0000000001GB", None),
        ("0.1GiB", 107_374_183),
        ("1048576GiB", 2**50),
        ("1048577GiB", None),
        (str(2**50 + 1), None),
        ("", None),
        ("16.5", None),
        ("16MB", None),
        ("16gb", None),
        ("-1", None),
        ("1e9", None),
        ("16GB, 32GB", None),
        ("9" * 5000, None),
    ],
)
async def test_memory_needed_is_a_size_or_refused(
    running: Running, http: httpx.AsyncClient, told: str | None, memory_bytes
) -> None:
    answer = await http.post(CHAT, json=TALK, headers={} if told is None else {"x-mesh-min-memory": told})
    if memory_bytes is not None:
        assert answer.status_code == 200
        assert running.engine.requests[-1].memory_bytes == memory_bytes
        return
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "x-mesh-min-memory")
    assert "x-mesh-min-memory" in error["message"]
    assert running.engine.requests == []


async def test_memory_needed_may_be_told_once(running: Running, http: httpx.AsyncClient) -> None:
    answer = await http.post(CHAT, json=TALK, headers=[("x-mesh-min-memory", "1GB"), ("x-mesh-min-memory", "2GB")])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-mesh-min-memory")


async def test_tokens_wanted_are_those_the_body_allows(running: Running, http: httpx.AsyncClient) -> None:
    for fields, output_tokens in [
        ({}, 0),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
        ({"max_tokens": 2**31 - 1}, 2**31 - 1),
    ]:
        assert (await http.post(CHAT, json={**TALK, **fields})).status_code == 200
        assert running.engine.requests[-1].output_tokens == output_tokens
    await http.post("/v1/completions", json={"model": "org/talk", "prompt": "x", "max_tokens": 3})
    assert running.engine.requests[-1].output_tokens == 3


@pytest.mark.parametrize(
    "rubbish",
    [
        TextDelta("x", index=1),
        TextDelta("x", index=-1),
        JsonDelta(b"{"),
        JsonDelta(b"[]"),
        JsonDelta(b'{"index": true}'),
        JsonDelta(b'{"index": "0"}'),
        JsonDelta(b'{"index": 0, "delta": 5}'),
        JsonDelta(b'{"index": 0, "delta": {"content": NaN}}'),
        JsonDelta(b'{"index": 0, "delta": {"x": 1e999}}'),
        JsonDelta(b'{"index": 0, "delta": {}, "finish_reason": 5}'),
        TensorsReady(()),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [True, False])
async def test_rubbish_of_an_engine_is_its_failure(
    running: Running, http: httpx.AsyncClient, rubbish: TextDelta | JsonDelta | TensorsReady, stream: bool
) -> None:
    running.engine.rubbish = rubbish
    answer = await http.post(CHAT, json={"model": "rubbish", "messages": MESSAGES, "stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_failed")
    assert running.engine.slots["rubbish"].load().running == 0


@pytest.mark.parametrize(
    "tensors",
    [
        (),
        (Tensor("embedding", "f8", (1, 1), memoryview(bytes(8))),),
        (Tensor("embedding", "f4", (2, 1), memoryview(bytes(8))),),
        (Tensor("embedding", "f4", (1,), memoryview(bytes(4))),),
        (Tensor("embedding", "f4", (1, 3), memoryview(bytes(8))),),
        (Tensor("embedding", "f4", (1, 0), memoryview(b"")),),
        (Tensor("embedding", "f4", (1, -1), memoryview(bytes(4))),),
        (Tensor("embedding", "f4", (1, 1), memoryview(b"\x00\x00\xc0\x7f")),),
    ],
    ids=range(8),
)
async def test_wrong_embeddings_are_the_engines_failure(
    running: Running, http: httpx.AsyncClient, tensors: tuple[Tensor, ...]
) -> None:
    running.engine.rubbish = TensorsReady(tensors)
    answer = await http.post("/v1/embeddings", json={"model": "rubbish", "input": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_failed")


async def test_whole_answer_has_a_bound(start: Start) -> None:
    running = await start(answer_bytes_max=100_000)
    async with httpx.AsyncClient(base_url=running.url) as client:
        answer = await client.post(CHAT, json={"model": "flood", "messages": MESSAGES})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_failed")
    assert running.engine.produced_bytes < 200_000


async def test_connections_over_the_limit_wait(start: Start) -> None:
    running = await start(connections_max=1)
    first = await running.connect()
    await first.send_all(post(CHAT, {"model": "silent", "messages": MESSAGES}))
    with trio.fail_after(20):
        await running.engine.started.wait()
        async with await running.connect() as second:
            await second.send_all(post(CHAT, TALK))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert running.gateway.connections == 1
            await first.aclose()
            assert (await second.receive_some()).startswith(b"HTTP/1.1 200")


async def test_stop_finishes_answers_and_refuses_new_ones(nursery: trio.Nursery, start: Start) -> None:
    running = await start(grace_s=20.0)
    async with await running.connect() as busy, await running.connect() as late:
        await busy.send_all(post(CHAT, {"model": "flood", "messages": MESSAGES, "stream": True}))
        head = await busy.receive_some()
        assert head.startswith(b"HTTP/1.1 200")
        await late.send_all(post(CHAT, TALK)[:-1])
        with trio.fail_after(20):
            while running.gateway.connections < 2:
                await busy.receive_some()
            running.gateway.stop()
            await late.send_all(b"}")
            answer = b"".join([part async for part in late])
            assert answer.startswith(b"HTTP/1.1 503")
            assert b'"draining"' in answer
            assert len(await busy.receive_some()) > 0
            await busy.aclose()
            await running.engine.ended.wait()


async def test_stop_cuts_what_outlasts_the_grace(nursery: trio.Nursery, start: Start) -> None:
    running = await start(grace_s=0.1)
    async with await running.connect() as busy:
        await busy.send_all(post(CHAT, {"model": "silent", "messages": MESSAGES}))
        with trio.fail_after(20):
            await running.engine.started.wait()
            running.gateway.stop()
            with pytest.raises(trio.BrokenResourceError):
                await busy.receive_some()
            await running.engine.ended.wait()


async def test_cancelling_cuts_at_once_even_a_client_that_never_reads() -> None:
    engine = ModelEngine()
    gateway = Gateway(
        GatewayConfig(port=0, write_timeout_s=1000.0), LocalDispatcher(engine), Telemetry(make_logger(file=StringIO()))
    )
    async with AsyncExitStack() as clients:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                url = await nursery.start(gateway.serve)
                stream = await clients.enter_async_context(await connect(url, receive_bytes=4096))
                await stream.send_all(post(CHAT, {"model": "flood", "messages": MESSAGES, "stream": True}))
                await engine.started.wait()
                await trio.testing.wait_all_tasks_blocked(0.05)
                nursery.cancel_scope.cancel()
    assert engine.ended.is_set()
    assert gateway.connections == 0


async def test_only_the_loopback_without_a_word() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(GatewayAddressError, match="insecure_remote"):
            listen(GatewayConfig(host=host, port=0))
    with pytest.raises(GatewayAddressError, match="no IP address"):
        listen(GatewayConfig(host="gateway.example", port=0))
    with pytest.raises(GatewayAddressError, match="cannot listen"):
        listen(GatewayConfig(port=70_000))
    listen(GatewayConfig(host="0.0.0.0", port=0, insecure_remote=True)).close()


async def test_taken_port_is_told(running: Running) -> None:
    with pytest.raises(GatewayAddressError, match=str(running.port)):
        listen(GatewayConfig(port=running.port))


async def test_ipv6_loopback_is_served(start: Start) -> None:
    running = await start(host="::1")
    async with httpx.AsyncClient(base_url=running.url) as client:
        assert running.url.startswith("http://[::1]:")
        assert (await client.get("/health")).status_code == 200


async def test_dispatcher_that_never_begins_is_given_up(nursery: trio.Nursery) -> None:
    class StuckDispatcher(LocalDispatcher):
        @asynccontextmanager
        async def submit(self, request: InferenceRequest) -> AsyncIterator[Answer]:
            await trio.sleep_forever()
            yield

    config = GatewayConfig(port=0, deadline_slack_s=0.0)
    gateway = Gateway(config, StuckDispatcher(ModelEngine()), Telemetry(make_logger(file=StringIO())))
    url = await nursery.start(gateway.serve)
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.post(CHAT, json=TALK, headers={"x-request-timeout": "0.1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_our_own_fault_is_a_500_in_the_log_and_the_gateway_lives(nursery: trio.Nursery) -> None:
    class FaultyDispatcher(LocalDispatcher):
        def submit(self, request: InferenceRequest) -> AbstractAsyncContextManager[Answer]:
            raise LookupError("a fault of ours")

    log = StringIO()
    gateway = Gateway(GatewayConfig(port=0), FaultyDispatcher(ModelEngine()), Telemetry(make_logger("json", file=log)))
    url = await nursery.start(gateway.serve)
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.post(CHAT, json=TALK)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert "a fault of ours" not in answer.text
        assert (await client.get("/health")).status_code == 200
    await trio.testing.wait_all_tasks_blocked()
    assert "a fault of ours" in log.getvalue()
    assert '"outcome": "aborted"' in log.getvalue()
