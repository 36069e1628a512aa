"""Traces and protocols over a node's gateway: what a person sees of a connection between two nodes."""

import json

import httpx
import pytest
import trio
from mesh_nodes import MESSAGES, WORDS, MeshNode, PlannedEngine, Start, eventually, introduced

QUESTION = MESSAGES[0]["content"]


async def traced(node: MeshNode, peer: str, query: str, work) -> list[dict]:
    """The events of a trace of two seconds, during which `work` is done."""
    url = f"{node.ready.gateway}/mesh/trace/{peer}?for=2&{query}"
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client, client.stream("GET", url) as answer:
        assert answer.status_code == 200
        await work()
        found = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line.startswith("data: ")]
    assert found[-1] == "[DONE]"
    return [json.loads(line) for line in found[:-1]]


@pytest.mark.parametrize("quic_engines", [("qh3", "aioquic")], ids="-".join, indirect=True)
async def test_a_request_is_seen_at_both_ends_without_what_was_said(start: Start) -> None:
    b = await start(PlannedEngine())
    a = await start(join=(b,))
    await introduced(a, b)
    for node, other in ((a, b), (b, a)):
        events = await traced(node, other.name[-8:], "", a.chat)
        types = [event["frame"]["type"] for event in events if event.get("protocol", "").startswith("/isochrone/infer/")
                 and event["what"] == "frame"]  # fmt: skip
        assert types == ["request", "accepted", *["text"] * len(WORDS), "finished"]
        assert events[0]["what"] == "connected"
        assert QUESTION not in json.dumps(events)
        assert WORDS[-1] not in json.dumps(events)
    told = json.dumps(await traced(a, b.name, "content=1", a.chat))
    assert QUESTION in told
    assert all(word in told for word in WORDS)
    await eventually(lambda: not a.service.dispatcher._traces)


@pytest.mark.parametrize("quic_engines", [("qh3",)], ids="-".join, indirect=True)
async def test_a_trace_ends_with_its_client_and_with_the_node(start: Start) -> None:
    b = await start(PlannedEngine())
    a = await start(join=(b,))
    await introduced(a, b)
    url = httpx.URL(f"{a.ready.gateway}/mesh/trace/{b.name}")
    async with await trio.open_tcp_stream(url.host, url.port) as client:
        await client.send_all(f"GET {url.path} HTTP/1.1\r\nhost: {url.host}\r\n\r\n".encode())
        await client.receive_some()
        await eventually(lambda: len(a.service.dispatcher._traces) == 1)
    await eventually(lambda: not a.service.dispatcher._traces)
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client, client.stream("GET", url) as answer:
        a.shutdown.set()
        assert "data: [DONE]" in [line async for line in answer.aiter_lines()]
    with trio.fail_after(a.config.grace_s):
        await a.ended.wait()


@pytest.mark.parametrize("quic_engines", [("qh3",)], ids="-".join, indirect=True)
async def test_who_is_not_known_is_refused_and_protocols_are_told(start: Start) -> None:
    a = await start()
    async with httpx.AsyncClient(base_url=a.ready.gateway, trust_env=False) as client:
        refused = await client.get("/mesh/trace/nobody00")
        assert refused.status_code == 404
        assert "isochrone peers" in refused.json()["error"]["message"]
        assert (await client.get("/mesh/trace/nobody00?for=x")).status_code == 400
        told = (await client.get("/mesh/protocols")).json()
    chapters = {row["protocol"]: row["chapter"] for row in told["protocols"]}
    assert chapters["/isochrone/infer/1.0.0"] == "06-inference.md"
    assert chapters["/ipfs/ping/1.0.0"] == "02-transport.md"
    assert set(chapters) > set(a.service.transport.protocols)
