"""Requests asked in the task of who wants the answer: in everything as those that a task of their own carries."""

from types import SimpleNamespace

import pytest
import trio
from mesh_nodes import MeshNode, Plan, PlannedEngine, Start, eventually, hang, introduced, request, say_and_hang, talk
from test_at_once import comparable, counted

from mesh.asking import InPlace
from mesh.transport import Stream
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode
from protocol.inference import Accepted, Failed, Finished, InferenceRequest, Reply, TextDelta
from protocol.wire.inference import PROTOCOL_ID

QH3 = pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)
HELD_BYTES = 70_000
"""More than a peer holds back of an answer that is not streamed, in bytes."""


async def refuse(_request):
    yield Failed(ErrorCode.OVERLOADED, "no room", 0.25)


async def crash(_request):
    raise RuntimeError("the engine has a fault")
    yield


async def blame(_request):
    yield Failed(ErrorCode.BAD_REQUEST, "not like that")


async def just_end(_request):
    yield Accepted()
    yield Finished(("stop",))


async def say_much(_request):
    yield Accepted()
    for number in range(3):
        yield TextDelta(str(number) * HELD_BYTES)
    yield Finished(("stop",))


async def say_much_and_crash(_request):
    yield TextDelta("x" * HELD_BYTES)
    raise RuntimeError("the engine has a fault")


async def say_much_and_hang(_request):
    yield TextDelta("x" * HELD_BYTES)
    await trio.sleep_forever()


CASES = {
    "answered": ((talk,), {}),
    "with a receipt": ((talk,), {"receipt": True}),
    "with two hops": ((talk,), {"hops_left": 2}),
    "an end and nothing else": ((just_end,), {}),
    "in pieces": ((say_much,), {}),
    "the second candidate": ((refuse,), {}),
    "the second after a crash": ((crash,), {}),
    "nobody else may be asked": ((blame,), {}),
    "all refuse": ((refuse, refuse), {}),
    "an end before the answer's own": ((say_much_and_crash,), {}),
    "too late": ((hang, hang), {"deadline_s": 0.4}),
    "too late in the middle": ((say_much_and_hang,), {"deadline_s": 0.4}),
    "the first is too slow": ((hang,), {"deadline_s": 1.0}),
    "what cannot be written": ((talk,), {"output_tokens": -1}),
}
"""What whoever is asked first, and second, does; and what is asked."""


def asks_in_place(node: MeshNode, *, allowed: bool) -> list[bool]:
    """Have a node ask in place or not at all so; returns whether each request began with an answer that was."""
    began: list[bool] = []
    usual = node.service.dispatcher._ask_in_place

    async def noted(ticket) -> InPlace | None:
        in_place = await usual(ticket) if allowed else None
        began.append(in_place is not None)
        return in_place

    node.service.dispatcher._ask_in_place = noted
    return began


async def answered(node: MeshNode, asked: InferenceRequest) -> list[Reply]:
    async with node.service.dispatcher.submit(asked) as answer:
        return [reply async for reply in answer.replies()]


async def outcome(start: Start, name: str, *, in_place: bool) -> tuple[SimpleNamespace, list[bool]]:
    """Everything that can be seen of one request, by who asks and by those who are asked."""
    behaviours, named = CASES[name]
    plan = Plan()
    b = await start(PlannedEngine(plan))
    c = await start(PlannedEngine(plan), join=(b,))
    a = await start(join=(b, c))
    await introduced(a, b, c)
    dispatcher, core = a.service.dispatcher, a.service.node
    await answered(a, request())  # it may wait for probes of the two; none is left to be made then
    before = counted(a)
    plan.next.extend(behaviours)
    for node in (b, c):
        node.engines[0].requests.clear()
    began = asks_in_place(a, allowed=in_place)
    asked = request(**named)
    replies = await answered(a, asked)
    await eventually(lambda: not dispatcher.status()["requests_open"] and not b.engines[0].n_running + c.engines[0].n_running)
    report = dispatcher.explain(asked.request_id.hex())
    assert report is not None
    served = [made for node in (b, c) for made in node.engines[0].requests]
    receipt = dispatcher.receipt(asked.request_id.hex(), content=False)
    seen = SimpleNamespace(
        replies=[one for one in comparable(replies) if not isinstance(one, tuple)],  # a receipt names who signed it
        outcomes=sorted((c.qualified, c.outcome) for c in report.candidates),
        chosen=report.chosen is not None,
        hops=report.hops,
        measured=report.measured_s is not None,
        receipt=None if receipt is None else receipt.get("fault", ""),
        metrics={key: value - before.get(key, 0.0) for key, value in counted(a).items() if value != before.get(key, 0.0)},
        # to the microsecond, as it is told: what is left until a moment of the clock is rounded by how high the clock stands
        served=[(made.hops_left, 0.0 < round(made.deadline_s, 6) <= asked.deadline_s) for made in served],
        under_way=(core.forwarding.under_way, core.forwarding.in_flight(b.peer_id), core.forwarding.in_flight(c.peer_id)),
        ended=[isinstance(reply, Finished | Failed) for reply in replies],
    )
    for node in (a, b, c):
        with trio.fail_after(10):
            await node.stop()
    return seen, began


@QH3
@pytest.mark.parametrize("name", CASES)
async def test_both_ways_of_asking_are_the_same_to_everybody(start: Start, name: str) -> None:
    seen, began = await outcome(start, name, in_place=True)
    expected, began_not = await outcome(start, name, in_place=False)
    assert seen == expected
    assert (seen.receipt is not None) == (name == "with a receipt")
    assert seen.ended[-1]
    assert not any(seen.ended[:-1])
    answered_by_the_first = {"answered", "with a receipt", "with two hops", "an end and nothing else", "in pieces"}
    broken = {"an end before the answer's own", "too late in the middle"}
    assert (began, began_not) == ([name in answered_by_the_first | broken], [False])


@QH3
@pytest.mark.parametrize("behaviour", [hang, say_much_and_hang, say_and_hang])
async def test_who_leaves_stops_the_engine_of_the_peer(start: Start, behaviour) -> None:
    b = await start(PlannedEngine(Plan(behaviour)))
    a = await start(join=(b,))
    await introduced(a, b)
    with trio.move_on_after(0.5) as patience:
        async with a.service.dispatcher.submit(request(deadline_s=30.0)) as answer:
            async for _ in answer.replies():
                pass
    assert patience.cancelled_caught
    await eventually(lambda: b.engines[0].requests and not b.engines[0].n_running)
    assert not a.service.node.forwarding.under_way
    assert not a.service.dispatcher.status()["requests_open"]


@QH3
async def test_a_reader_that_breaks_off_stops_the_engine_of_the_peer(start: Start) -> None:
    b = await start(PlannedEngine(Plan(say_much_and_hang)))
    a = await start(join=(b,))
    await introduced(a, b)
    began = asks_in_place(a, allowed=True)
    async with a.service.dispatcher.submit(request(deadline_s=30.0)) as answer:
        async for reply in answer.replies():
            if isinstance(reply, TextDelta):
                break
    assert began == [True]
    await eventually(lambda: not b.engines[0].n_running)
    assert not a.service.node.forwarding.under_way


@QH3
async def test_a_peer_that_vanishes_in_the_middle_fails_the_answer_once(start: Start) -> None:
    b = await start(PlannedEngine(Plan(say_much_and_hang)))
    a = await start(join=(b,))
    await introduced(a, b)
    began = asks_in_place(a, allowed=True)
    replies: list[Reply] = []
    with trio.fail_after(10):
        async with a.service.dispatcher.submit(request(deadline_s=30.0)) as answer:
            async for reply in answer.replies():
                replies.append(reply)
                if isinstance(reply, TextDelta):
                    await b.kill()
    assert began == [True]
    assert isinstance(replies[-1], Failed)
    assert replies[-1].code in {ErrorCode.UNREACHABLE, ErrorCode.ENGINE_FAILED, ErrorCode.DRAINING}
    assert sum(isinstance(reply, Failed | Finished) for reply in replies) == 1


@QH3
@pytest.mark.parametrize("in_place", [True, False])
async def test_a_peer_that_answers_rubbish_is_blamed(start: Start, in_place: bool) -> None:
    b = await start(PlannedEngine(Plan()))
    a = await start(join=(b,))
    await introduced(a, b)
    await answered(a, request())
    before = counted(a)

    async def babble(stream: Stream) -> None:
        await stream.send_all(encode_frame(b"no reply at all"), end=True)

    b.service.transport.add_handler(PROTOCOL_ID, babble)
    asks_in_place(a, allowed=in_place)
    replies = await answered(a, request())
    assert [type(reply) for reply in replies] == [Failed]
    blamed = {key: value - before.get(key, 0.0) for key, value in counted(a).items() if "fault" in key}
    assert sum(blamed.values()) == 1.0, blamed
