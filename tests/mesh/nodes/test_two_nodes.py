"""Two nodes: the model of one answered through the gateway of the other, by the official client."""

import openai
import pytest
from mesh_nodes import MESSAGES, MODEL, TEXT, WORDS, PlannedEngine, Start, introduced, request, text_of

from mesh.inference import request_over
from protocol.errors import ErrorCode
from protocol.identity import peer_id_text
from protocol.inference import Failed
from protocol.wire.inference import PROTOCOL_ID

PAIRS = [("aioquic",), ("qh3",), ("aioquic", "qh3"), ("qh3", "aioquic")]


@pytest.mark.parametrize("quic_engines", PAIRS, ids="-".join, indirect=True)
async def test_the_model_of_one_is_answered_through_the_other(start: Start) -> None:
    engine = PlannedEngine()
    b = await start(engine)
    a = await start(join=(b,))
    await introduced(a, b)

    assert [model.id for model in await a.ask(lambda client: client.models.list().data)] == [MODEL]

    whole = await a.chat()
    assert text_of(whole) == TEXT
    assert whole.headers["x-mesh-node"] == b.name
    for part in ("rtt=", "queue=", "predicted=", "measured="):
        assert part in whole.headers["x-mesh-route"]
    report = a.route(whole)
    assert report.chosen == b.peer_id
    assert report.hops == 1
    assert report.measured_s > 0
    assert {c.peer_id: c.outcome for c in report.candidates} == {a.peer_id: "", b.peer_id: "answered"}

    def stream(client):
        pieces = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        return [choice.delta.content for piece in pieces for choice in piece.choices if choice.delta.content]

    assert await a.ask(stream) == list(WORDS)
    assert len(engine.requests) == 2
    assert engine.n_running == 0


async def test_a_model_nobody_serves_is_unknown_and_a_node_answers_its_own(start: Start) -> None:
    a = await start(PlannedEngine())
    response = await a.chat()
    assert response.headers["x-mesh-node"] == peer_id_text(a.peer_id)
    assert a.route(response).hops == 0
    with pytest.raises(openai.NotFoundError) as caught:
        await a.chat(model="nobody/has-it")
    assert caught.value.code == "model_not_found"


async def test_memory_that_nobody_has_is_told_and_refused_by_the_one_that_is_asked(start: Start) -> None:
    engine = PlannedEngine()
    b = await start(engine)
    a = await start(join=(b,))
    await introduced(a, b)

    def ask(client: openai.OpenAI, needed: str):
        headers = {"x-mesh-min-memory": needed}
        return client.chat.completions.with_raw_response.create(
            model=MODEL, messages=MESSAGES, max_tokens=9, extra_headers=headers
        )

    assert text_of(await a.ask(lambda client: ask(client, "1"))) == TEXT
    assert [(asked.memory_bytes, asked.output_tokens) for asked in engine.requests] == [(1, 9)]
    with pytest.raises(openai.InternalServerError) as caught:
        await a.ask(lambda client: ask(client, "1000000GiB"))
    assert (caught.value.status_code, caught.value.code) == (503, "insufficient_memory")
    assert f"GB of memory, 1073741.8 GB needed (…{b.name[-8:]})" in caught.value.message
    assert a.name[-8:] not in caught.value.message  # it does not serve the model, whatever its memory

    # A peer that knows nothing of b's memory, and asks all the same.
    async with start.stranger(9) as stranger:
        stream = await (await stranger.dial(b.address)).open_stream(PROTOCOL_ID)
        async with request_over(stream, request(memory_bytes=2**50)) as answer:
            (refusal,) = [reply async for reply in answer]
    assert isinstance(refusal, Failed)
    assert refusal.code is ErrorCode.INSUFFICIENT_MEMORY
    assert "GB needed" in refusal.message
    assert len(engine.requests) == 1
