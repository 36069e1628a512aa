"""Answers that need no waiting: given within one call, they are in everything what a task of their own would have given."""

import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio
from mesh_nodes import MODEL, MeshNode, Start, eventually

from mesh.engines.base import AtOnce, EngineError, Slots, SlotsConfig
from mesh.engines.echo import AT_ONCE_BYTES_MAX, ECHO_MODEL, EchoEngine
from mesh.inference import request_over
from protocol.errors import ErrorCode
from protocol.inference import (
    Accepted,
    Failed,
    Feature,
    Finished,
    InferenceRequest,
    Reply,
    Tensor,
    TensorsReady,
    TextDelta,
    Timing,
    Usage,
)
from protocol.load import ModelLoad
from protocol.receipts import open_receipt
from protocol.records import ModelOffer
from protocol.wire.inference import PROTOCOL_ID

Output = TextDelta | TensorsReady | Finished
FEATURES = frozenset({Feature.TENSORS, Feature.CHAT})


class Waiting:
    """An engine that answers in a task of its own."""

    kind = "both"

    def __init__(self, answer: Callable[[InferenceRequest], Sequence[Output]], slots: SlotsConfig | None = None) -> None:
        self.answer = answer
        self.slots = Slots(MODEL, slots or SlotsConfig(2, 2))
        self.n_at_once = 0

    async def start(self) -> None:
        pass

    async def watch(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def offers(self) -> tuple[ModelOffer, ...]:
        return (ModelOffer(MODEL, FEATURES, engine=self.kind),)

    def load(self) -> tuple[ModelLoad, ...]:
        return (self.slots.load(),)

    def run(self, request: InferenceRequest) -> AbstractAsyncContextManager[AsyncIterator[Reply]]:
        async def work() -> AsyncGenerator[Output, None]:
            for output in self.answer(request):
                yield output

        return self.slots.run(request, work)


class AtOnceToo(Waiting):
    """The same engine with the face that needs no task."""

    def answer_at_once(self, request: InferenceRequest) -> Iterator[Reply] | None:
        replies = self.slots.answer_at_once(lambda: self.answer(request))
        self.n_at_once += replies is not None
        return replies


def tensors(size: int = 8) -> tuple[Tensor, ...]:
    return (Tensor("x", "u1", (size,), memoryview(bytes(size))),)


def asking(**named) -> InferenceRequest:
    named = {"feature": Feature.TENSORS, "model": MODEL, "tensors": tensors(), "deadline_s": 10.0, "hops_left": 0} | named
    return InferenceRequest(**{"request_id": os.urandom(16), "body": b"", **named})


def gives(*outputs: Output) -> Callable[[InferenceRequest], Sequence[Output]]:
    return lambda _request: outputs


def says(request: InferenceRequest) -> Sequence[Output]:
    return (TensorsReady(tuple(request.tensors)), Finished(("stop",), Usage(3, 2)))


def fails(_request: InferenceRequest) -> Sequence[Output]:
    raise EngineError(ErrorCode.BAD_REQUEST, "not like that", 0.5)


def crashes(_request: InferenceRequest) -> Sequence[Output]:
    raise ZeroDivisionError


CASES = {
    "answered": (says, {}),
    "streamed": (gives(TextDelta("a"), TextDelta("b"), Finished()), {"stream": True}),
    "with a receipt": (says, {"receipt": True}),
    "with hops left": (says, {"hops_left": 1}),
    "an end and nothing else": (gives(Finished()), {}),
    "no end": (gives(TextDelta("a")), {}),
    "nothing": (gives(), {}),
    "an engine that fails": (fails, {}),
    "an engine that crashes": (crashes, {}),
    "no such model": (says, {"model": "other"}),
    "not that way": (says, {"feature": Feature.COMPLETIONS, "tensors": (), "body": b"{}"}),
    "too many hops": (says, {"hops_left": 7}),
}
"""What the engine says, and what is asked."""


def comparable(replies: Sequence[Reply], own_id: bytes = b"") -> list[object]:
    """Replies without what the clock and the key of the node, whose id may be given, put into them."""
    told: list[object] = []
    for reply in replies:
        match reply:
            case Finished(receipt=signed) if signed:
                receipt = open_receipt(signed)
                requester = "the node" if receipt.requester == own_id else receipt.requester
                told.append((receipt.answer_hash, receipt.request_hash, receipt.outputs, requester, receipt.model))
                told.append(replace(reply, receipt=b"", timing=Timing(0.0, 0.0)))
            case Finished():
                told.append(replace(reply, timing=Timing(0.0, 0.0)))
            case TensorsReady(received):
                told.append([(t.name, t.dtype, t.shape, bytes(t.data)) for t in received])
            case Failed(message=message):
                told.append(replace(reply, message=re.sub("…[0-9A-Za-z]{8}", "…", message)))
            case _:
                told.append(reply)
    return told


def counted(node: MeshNode) -> dict[str, float]:
    """The metrics of requests, without how long anything took and what the mesh does by itself."""
    samples = [sample for metric in node.telemetry.registry.collect() for sample in metric.samples]
    kept = ("isochrone_request", "isochrone_engine", "isochrone_peer_faults", "isochrone_forward", "isochrone_tokens")
    return {
        f"{s.name}{sorted(s.labels.items())}": s.value
        for s in samples
        if s.name.startswith(kept) and not s.name.endswith(("_bucket", "_sum", "_created")) and "seconds" not in s.name
    }


async def replies_of(start: Start, node: MeshNode, request: InferenceRequest, seed: int = 77) -> list[Reply]:
    async with start.stranger(seed) as stranger:
        return await over(await stranger.dial(node.address), request)


async def over(connection, request: InferenceRequest) -> list[Reply]:
    stream = await connection.open_stream(PROTOCOL_ID)
    async with request_over(stream, request) as answer:
        return [reply async for reply in answer]


async def own_replies_of(_start: Start, node: MeshNode, request: InferenceRequest) -> list[Reply]:
    """What the node's own client is answered."""
    async with node.service.dispatcher.submit(request) as answer:
        return [reply async for reply in answer.replies()]


ASK = {"a peer": replies_of, "a client": own_replies_of}


async def outcome(start: Start, engine: Waiting, request: InferenceRequest, who: str) -> SimpleNamespace:
    """Everything that can be seen of one request: by who asks, in the report, in the metrics, in the core."""
    node = await start(engine)
    replies = await ASK[who](start, node, request)
    dispatcher, core = node.service.dispatcher, node.service.node
    await eventually(lambda: not dispatcher.status()["requests_open"])
    report = dispatcher.explain(request.request_id.hex())
    seen = SimpleNamespace(
        replies=comparable(replies, core.peer_id),
        outcomes=None if report is None else [(c.qualified, c.refusal, c.outcome) for c in report.candidates],
        hops=None if report is None else report.hops,
        measured=None if report is None else report.measured_s is not None,
        receipt=(dispatcher.receipt(request.request_id.hex(), content=False) or {}).get("checked"),
        metrics=counted(node),
        crashes=len(node.logged("engine_crashed")),
        load=(engine.slots.load().running, engine.slots.load().waiting, engine.slots.load().service_s > 0),
        under_way=core.forwarding.under_way,
    )
    with trio.fail_after(10):
        await node.stop()
    return seen


@pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("who", ASK)
async def test_both_ways_are_the_same_to_everybody(start: Start, name: str, who: str) -> None:
    answer, named = CASES[name]
    request = asking(**named)
    short, long = AtOnceToo(answer), Waiting(answer)
    assert isinstance(short, AtOnce)
    assert not isinstance(long, AtOnce)
    seen, expected = await outcome(start, short, request, who), await outcome(start, long, request, who)
    assert seen == expected
    assert seen.replies
    refused_before = {"no such model", "not that way"} | ({"too many hops"} if who == "a peer" else set())
    assert short.n_at_once == (name not in refused_before)


async def test_an_engine_whose_slots_are_taken_is_waited_for(start: Start) -> None:
    engine = AtOnceToo(says, SlotsConfig(1, 1))
    node = await start(engine)
    async with start.stranger(78) as stranger:
        connection = await stranger.dial(node.address)
        release = trio.Event()

        async def work() -> AsyncGenerator[Output, None]:
            await release.wait()
            yield Finished()

        got: list[Reply] = []
        async with trio.open_nursery() as nursery:

            async def hold() -> None:
                async with engine.slots.run(asking(), work) as taken:
                    assert [type(reply) async for reply in taken] == [Accepted, Finished]

            async def ask() -> None:
                got.extend(await over(connection, asking()))

            nursery.start_soon(hold)
            await eventually(lambda: engine.slots.load().running == 1)
            nursery.start_soon(ask)
            await eventually(lambda: engine.slots.load().waiting == 1)
            late = await over(connection, asking())
            assert isinstance(late[-1], Failed)
            assert late[-1].code is ErrorCode.OVERLOADED
            release.set()
        assert isinstance(got[-1], Finished)
        assert engine.n_at_once == 0
        assert isinstance((await over(connection, asking()))[-1], Finished)
        assert engine.n_at_once == 1


@pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)
async def test_a_node_that_leaves_answers_nothing_at_once(start: Start) -> None:
    engine = AtOnceToo(says)
    node = await start(engine)
    async with start.stranger(79) as stranger:
        connection = await stranger.dial(node.address)
        node.service.dispatcher.draining = True
        replies = await over(connection, asking())
    assert [reply.code for reply in replies] == [ErrorCode.DRAINING]
    assert engine.n_at_once == 0


@pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)
async def test_an_id_that_was_here_is_refused(start: Start) -> None:
    engine = AtOnceToo(says)
    node = await start(engine)
    request = asking()
    async with start.stranger(80) as stranger:
        connection = await stranger.dial(node.address)
        assert isinstance((await over(connection, request))[-1], Finished)
        (refused,) = await over(connection, request)
    assert refused.code is ErrorCode.HOPS_EXCEEDED
    assert engine.n_at_once == 1


async def test_small_tensors_come_back_the_short_way_and_all_come_back() -> None:
    engine = EchoEngine()
    small, large = (asking(model=ECHO_MODEL, tensors=tensors(size)) for size in (AT_ONCE_BYTES_MAX, AT_ONCE_BYTES_MAX + 1))
    replies = engine.answer_at_once(small)
    assert replies is not None
    async with engine.run(small) as run:
        assert comparable(list(replies)) == comparable([reply async for reply in run])
    assert engine.answer_at_once(large) is None
    assert engine.answer_at_once(replace(small, feature=Feature.CHAT)) is None
    assert engine.answer_at_once(replace(small, model="other")) is None
    assert engine.load()[0].running == 0
