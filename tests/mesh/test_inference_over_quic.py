"""The inference protocol over real QUIC connections on loopback, on each engine and between the two."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import product

import pytest
import trio

from mesh.inference import Served, request_over, serve_stream
from mesh.transport import Connection, Stream, Transport
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode
from protocol.identity import Identity, PeerId
from protocol.inference import Failed, Feature, Finished, InferenceRequest, Reply, Tensor, TensorsReady, TextDelta
from protocol.multiaddr import parse_multiaddr
from protocol.quic import ENGINE_NAMES, choose_engine
from protocol.wire.inference import PROTOCOL_ID, encode_request

REQUEST = InferenceRequest(bytes(16), Feature.CHAT, "m", b"hello", (), 10.0, 1, True)
LISTEN = parse_multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")
Work = Callable[[InferenceRequest], AsyncGenerator[Reply, None]]
PAIRS = list(product(ENGINE_NAMES, repeat=2))
"""The engine of the node that asks and that of the one that answers."""


@dataclass
class Pair:
    """A node that answers by `work`, and one connected to it."""

    work: Work
    asking: Transport
    answering: Transport
    connection: Connection
    served: list[Served] = field(default_factory=list)
    left: trio.Event = field(default_factory=trio.Event)

    async def open(self) -> Stream:
        return await self.connection.open_stream(PROTOCOL_ID)


@asynccontextmanager
async def connected(engines: tuple[str, str], work: Work) -> AsyncIterator[Pair]:
    @asynccontextmanager
    async def handle(request: InferenceRequest, peer_id: PeerId) -> AsyncIterator[AsyncIterator[Reply]]:
        assert peer_id == asking.identity.peer_id
        try:
            async with aclosing(work(request)) as replies:
                yield replies
        finally:
            pair.left.set()

    async def serve(stream: Stream) -> None:
        pair.served.append(await serve_stream(stream, handle))

    asking_engine, answering_engine = map(choose_engine, engines)
    answering = Transport(Identity.from_seed(bytes(32)), engine=answering_engine, handlers={PROTOCOL_ID: serve})
    asking = Transport(Identity.from_seed(bytes([1] * 32)), engine=asking_engine)
    async with trio.open_nursery() as nursery:
        (address, *_) = await nursery.start(answering.run, [LISTEN])
        await nursery.start(asking.run, [LISTEN])
        pair = Pair(work, asking, answering, await asking.dial(address))
        yield pair
        await asking.aclose()
        await answering.aclose()


async def echo(request: InferenceRequest) -> AsyncGenerator[Reply, None]:
    if request.tensors:
        yield TensorsReady(tuple(request.tensors))
    else:
        yield TextDelta(bytes(request.body).decode())
    yield Finished(("stop",))


async def says_and_hangs(request: InferenceRequest) -> AsyncGenerator[Reply, None]:
    yield TextDelta("a")
    await trio.sleep_forever()


async def never_ends(request: InferenceRequest) -> AsyncGenerator[Reply, None]:
    while True:
        yield TextDelta("x" * 60_000)


@pytest.mark.parametrize("engines", PAIRS, ids="-".join)
async def test_text_and_tensors_travel(engines: tuple[str, str]) -> None:
    async with connected(engines, echo) as pair:
        async with request_over(await pair.open(), REQUEST) as answer:
            assert [reply async for reply in answer] == [TextDelta("hello"), Finished(("stop",))]
        tensor = Tensor("x", "f4", (512, 512), memoryview(bytes(range(256)) * 4096))
        request = InferenceRequest(bytes(16), Feature.TENSORS, "m", b"", (tensor,))
        async with request_over(await pair.open(), request) as answer:
            assert [reply async for reply in answer] == [TensorsReady((tensor,)), Finished(("stop",))]
            assert answer.fault is None


@pytest.mark.parametrize("engines", PAIRS, ids="-".join)
async def test_leaving_early_stops_a_silent_engine(engines: tuple[str, str]) -> None:
    async with connected(engines, says_and_hangs) as pair:
        async with request_over(await pair.open(), REQUEST) as answer:
            assert await anext(answer) == TextDelta("a")
            assert not pair.left.is_set()
        with trio.fail_after(5):
            await pair.left.wait()


@pytest.mark.parametrize("engines", PAIRS, ids="-".join)
async def test_a_requester_that_vanishes_stops_a_silent_engine(engines: tuple[str, str]) -> None:
    async with connected(engines, says_and_hangs) as pair, request_over(await pair.open(), REQUEST) as answer:
        assert await anext(answer) == TextDelta("a")
        await pair.connection.close()
        with trio.fail_after(5):
            await pair.left.wait()
        last = await anext(answer)
    assert isinstance(last, Failed)
    assert last.code is ErrorCode.UNREACHABLE


@pytest.mark.parametrize("engines", PAIRS, ids="-".join)
async def test_an_answering_node_that_leaves_fails_the_answer(engines: tuple[str, str]) -> None:
    async with connected(engines, says_and_hangs) as pair, request_over(await pair.open(), REQUEST) as answer:
        assert await anext(answer) == TextDelta("a")
        await pair.answering.aclose()
        with trio.fail_after(5):
            last = await anext(answer)
    assert isinstance(last, Failed)
    assert last.code in {ErrorCode.UNREACHABLE, ErrorCode.DRAINING}


@pytest.mark.parametrize("engines", PAIRS, ids="-".join)
async def test_a_requester_that_never_reads_costs_bounded_memory_and_time(engines: tuple[str, str]) -> None:
    async with connected(engines, never_ends) as pair:
        stream = await pair.open()
        await stream.send_all(encode_frame(encode_request(replace(REQUEST, deadline_s=0.5))))
        with trio.fail_after(10):
            await pair.left.wait()
        stream.reset(ErrorCode.CANCELLED)
        # Whoever has given the stream up is served again.
        async with request_over(await pair.open(), REQUEST) as answer:
            assert await anext(answer) == TextDelta("x" * 60_000)
    assert all(served.end is None for served in pair.served)


@pytest.mark.parametrize("engines", PAIRS, ids="-".join)
async def test_junk_gets_one_error_and_disturbs_nobody(engines: tuple[str, str]) -> None:
    async with connected(engines, echo) as pair:
        junk = await pair.open()
        await junk.send_all(encode_frame(b"\xff" * 1000))
        async with request_over(await pair.open(), REQUEST) as answer:
            assert [reply async for reply in answer] == [TextDelta("hello"), Finished(("stop",))]
        while await junk.receive_some():
            pass
        await junk.aclose()
    faults = [served.fault.code for served in pair.served if served.fault is not None]
    assert faults == [ErrorCode.MALFORMED]
