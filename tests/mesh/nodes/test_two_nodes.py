"""Two nodes: the model of one answered through the gateway of the other, by the official client."""

import openai
import pytest
from mesh_nodes import MESSAGES, MODEL, TEXT, WORDS, PlannedEngine, Start, introduced, text_of

from protocol.identity import peer_id_text

PAIRS = [("aioquic", "aioquic"), ("qh3", "qh3"), ("aioquic", "qh3"), ("qh3", "aioquic")]


@pytest.mark.parametrize(("first", "second"), PAIRS)
async def test_the_model_of_one_is_answered_through_the_other(start: Start, first: str, second: str) -> None:
    engine = PlannedEngine()
    b = await start(engine, quic_engine=second)
    a = await start(join=(b,), quic_engine=first)
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
