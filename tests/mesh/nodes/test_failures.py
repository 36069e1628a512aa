"""Engines and nodes that fail: the next candidate answers, the deadline holds, and nothing is said twice."""

import openai
import pytest
import trio
from mesh_nodes import (
    MESSAGES,
    MODEL,
    TEXT,
    WORDS,
    MeshNode,
    Plan,
    PlannedEngine,
    SlottedEngine,
    Start,
    eventually,
    hang,
    introduced,
    request,
    say_and_hang,
    text_of,
)

from mesh.engines.base import SlotsConfig
from mesh.tickets import Route, Ticket
from protocol.errors import ErrorCode
from protocol.inference import Accepted, Failed, Finished, TextDelta


async def refuse(_request):
    yield Failed(ErrorCode.OVERLOADED, "no room", 0.25)


async def crash(_request):
    raise RuntimeError("the engine has a fault")
    yield


async def lose_its_server(_request):
    yield Accepted()
    raise trio.BrokenResourceError


async def stop_without_an_end(_request):
    yield Accepted()


async def answer_with_an_object(_request):
    yield {"choices": []}


async def accept_twice(_request):
    yield Accepted()
    yield Accepted()
    yield Finished(("stop",))


async def say_and_crash(_request):
    yield TextDelta(WORDS[0])
    raise RuntimeError("the engine has a fault")


async def say_and_stop(_request):
    yield TextDelta(WORDS[0])


async def accept_late(_request):
    yield TextDelta(WORDS[0])
    yield Accepted()


async def three(start: Start, *behaviours) -> tuple[MeshNode, MeshNode, MeshNode]:
    """One node that only asks, and two that serve the model; whoever is asked first does the first of `behaviours`."""
    plan = Plan(*behaviours)
    b = await start(PlannedEngine(plan))
    c = await start(PlannedEngine(plan), join=(b,))
    a = await start(join=(b, c))
    await introduced(a, b, c)
    return a, b, c


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (refuse, "overloaded: no room"),
        (crash, "engine_failed: RuntimeError in the engine"),
        (lose_its_server, "engine_failed: BrokenResourceError in the engine"),
        (stop_without_an_end, "engine_failed: the engine's answer stopped without an end"),
        (answer_with_an_object, "engine_failed: the engine answered with a dict"),
        (accept_twice, "engine_failed: Accepted came after the answer had begun"),
    ],
)
async def test_a_failure_before_the_first_output_goes_to_the_next(start: Start, behaviour, why: str) -> None:
    a, *_ = await three(start, behaviour)
    response = await a.chat(deadline_s=10)
    assert text_of(response) == TEXT
    outcomes = {c.peer_id: c.outcome for c in a.route(response).candidates if c.qualified}
    assert sorted(outcomes.values()) == sorted(["answered", why])
    assert outcomes[a.route(response).chosen] == "answered"


async def test_an_engine_of_this_node_that_fails_is_replaced_by_a_peer(start: Start) -> None:
    b = await start(PlannedEngine())
    a = await start(PlannedEngine(Plan(crash)), join=(b,))
    await introduced(a, b)
    for _ in range(2):  # the second goes to the peer at once or to this node again; the answer is the same
        assert text_of(await a.chat()) == TEXT
    assert len(a.logged("engine crashed")) == 1


async def test_an_engine_that_hangs_is_left_for_the_next_within_the_deadline(start: Start) -> None:
    a, *_ = await three(start, hang)
    response = await a.chat(deadline_s=2)
    assert text_of(response) == TEXT
    outcomes = sorted(c.outcome for c in a.route(response).candidates if c.qualified)
    assert outcomes == ["answered", "given up: no answer in time"]


async def test_engines_that_all_hang_end_with_504_and_are_free_again(start: Start) -> None:
    a, b, c = await three(start, hang, hang, hang)
    with trio.fail_after(5), pytest.raises(openai.APIStatusError) as caught:
        await a.chat(deadline_s=1)
    assert caught.value.status_code == 504
    await eventually(lambda: b.engines[0].n_running == c.engines[0].n_running == 0)


@pytest.mark.parametrize("behaviour", [say_and_crash, say_and_stop, accept_late])
async def test_an_engine_that_dies_in_mid_stream_gives_one_error_and_no_second_answer(start: Start, behaviour) -> None:
    a, b, c = await three(start, behaviour)
    said: list[str] = []

    def stream(client):
        for piece in client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
            said.extend(choice.delta.content for choice in piece.choices if choice.delta.content)

    with pytest.raises(openai.APIError):
        await a.ask(stream, retries=2)
    assert said == [WORDS[0]]
    assert len(b.engines[0].requests) + len(c.engines[0].requests) == 1
    assert text_of(await a.chat()) == TEXT


async def test_an_overloaded_node_is_passed_over(start: Start) -> None:
    plan = Plan(say_and_hang)
    b = await start(SlottedEngine(plan, slots=SlotsConfig(1, 0)))
    c = await start(SlottedEngine(plan, slots=SlotsConfig(1, 0)), join=(b,))
    a = await start(join=(b, c))
    await introduced(a, b, c)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first_words, a)
        await eventually(lambda: any(node.engines[0].slots.load().running for node in (b, c)))
        busy, free = (b, c) if b.engines[0].slots.load().running else (c, b)
        response = await a.chat()
        assert response.headers["x-mesh-node"] == free.name
        nursery.cancel_scope.cancel()
    await eventually(lambda: busy.engines[0].slots.load().running == 0)


async def first_words(node: MeshNode) -> None:
    """Ask over the node's own dispatcher for a stream that does not end."""
    async with node.service.dispatcher.submit(request(stream=True)) as answer:
        async for _ in answer:
            pass


async def test_a_full_mesh_says_so_and_when_to_come_back(start: Start) -> None:
    a, *_ = await three(start, refuse, refuse)
    with pytest.raises(openai.RateLimitError) as caught:
        await a.chat()
    assert caught.value.code == "overloaded"
    assert caught.value.response.headers["retry-after-ms"] == "250"


async def test_a_second_attempt_of_a_peer_is_still_one_answer(start: Start) -> None:
    """The peer that was asked runs it itself, fails after it accepted, and asks a third node, which accepts too."""
    c = await start(PlannedEngine())
    b = await start(PlannedEngine(Plan(lose_its_server)), join=(c,))
    a = await start(join=(b,))
    await introduced(b, c)
    await introduced(a, b, c)
    asked = request(hops_left=2)
    route, now = a.service.dispatcher, a.service.transport.now()
    ticket = Ticket(asked, Route(a.service.node.rank(asked, now)), now)
    async with route._forward(ticket, b.peer_id, asked) as replies:
        got = [reply async for reply in replies]
    assert [type(reply) for reply in got] == [Accepted, TextDelta, TextDelta, TextDelta, Finished]
    assert len(b.engines[0].requests) == len(c.engines[0].requests) == 1
