"""Streams that are answered within the call that brings their request: how they end, and how many of them at a time."""

import pytest
import trio
from mesh_nodes import MeshNode, Start, eventually
from test_at_once import AtOnceToo, asking, over, says

from mesh.inference import request_over
from mesh.transport import Stream, StreamReset
from mesh.transport.reception import AT_ONCE_MAX
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode
from protocol.inference import Finished
from protocol.wire.inference import PROTOCOL_ID, encode_request

pytestmark = pytest.mark.parametrize("quic_engines", [("qh3",), ("aioquic",)], indirect=True, ids="-".join)


class Begun:
    """What a node began without a task: for each stream its batch, and whether it was done with."""

    def __init__(self, node: MeshNode) -> None:
        reception = node.service.transport._reception
        begin, turn = reception._at_once[PROTOCOL_ID], reception.turn
        self.batch = 0
        self.streams: list[tuple[int, bool]] = []

        def noted(stream, over):
            rest = begin(stream, over)
            self.streams.append((self.batch, rest is None))
            return rest

        def turned() -> None:
            self.batch += 1
            turn()

        reception._at_once[PROTOCOL_ID] = noted
        reception.turn = turned

    @property
    def done(self) -> list[bool]:
        return [is_done for _, is_done in self.streams]


def under_way(node: MeshNode) -> tuple[int, int]:
    """Streams that the node still serves, by the service and by the transport."""
    return node.service._n_serving, sum(node.service.transport._reception._serving.values())


async def says_more(stream: Stream) -> None:
    """Write until the other side stops it."""
    with trio.fail_after(5):
        while True:
            await stream.send_all(bytes(100))
            await trio.lowlevel.checkpoint()


async def test_a_stream_is_over_when_its_peer_has_the_answer(start: Start) -> None:
    node = await start(AtOnceToo(says))
    begun = Begun(node)
    async with start.stranger(77) as stranger:
        connection = await stranger.dial(node.address)
        stream = await connection.open_stream(PROTOCOL_ID)
        request = asking()
        async with request_over(stream, request) as answer:
            replies = [reply async for reply in answer]
            assert isinstance(replies[-1], Finished)
            assert under_way(node) == (1, 1)  # what it was charged comes back when it has ended its side
        await eventually(lambda: under_way(node) == (0, 0))
        await eventually(lambda: not node.service.transport.connections[stranger.identity.peer_id].streams)
    assert begun.done == [True]


@pytest.mark.parametrize("leaves", ["resets the stream", "closes the connection", "says more"])
async def test_a_peer_that_does_not_end_its_side_is_let_go(start: Start, leaves: str) -> None:
    node = await start(AtOnceToo(says))
    begun = Begun(node)
    async with start.stranger(77) as stranger:
        connection = await stranger.dial(node.address)
        stream = await connection.open_stream(PROTOCOL_ID)
        await stream.send_all(encode_frame(encode_request(asking())))
        while await stream.receive_some():
            pass
        assert under_way(node) == (1, 1)
        match leaves:
            case "resets the stream":
                stream.reset(ErrorCode.CANCELLED)
            case "closes the connection":
                await connection.close()
            case _:
                with pytest.raises(StreamReset) as stopped:
                    await says_more(stream)
                assert stopped.value.code == ErrorCode.NO_ERROR
        await eventually(lambda: under_way(node) == (0, 0))
    assert begun.done == [True]


async def test_a_peer_that_keeps_its_side_open_holds_no_stop_up(start: Start) -> None:
    node = await start(AtOnceToo(says))
    async with start.stranger(77) as stranger:
        connection = await stranger.dial(node.address)
        stream = await connection.open_stream(PROTOCOL_ID)
        await stream.send_all(encode_frame(encode_request(asking())))
        while await stream.receive_some():
            pass
        with trio.fail_after(4):
            await node.stop()


async def test_a_request_in_two_pieces_goes_on_in_a_task(start: Start) -> None:
    node = await start(AtOnceToo(says))
    begun = Begun(node)
    async with start.stranger(77) as stranger:
        connection = await stranger.dial(node.address)
        stream = await connection.open_stream(PROTOCOL_ID)
        frame = encode_frame(encode_request(asking()))
        await stream.send_all(frame[:20])
        await eventually(lambda: begun.streams)
        await stream.send_all(frame[20:])
        with trio.fail_after(5):
            assert await stream.receive_some()
    assert begun.done == [False]


async def test_many_requests_of_one_moment_leave_the_loop_to_others(start: Start) -> None:
    node = await start(AtOnceToo(says))
    begun = Begun(node)
    n_requests = 3 * AT_ONCE_MAX
    async with start.stranger(77) as stranger:
        connection = await stranger.dial(node.address)
        await over(connection, asking())
        begun.streams.clear()
        streams = [await connection.open_stream(PROTOCOL_ID) for _ in range(n_requests)]
        for stream in streams:  # they leave together
            await stream.send_all(encode_frame(encode_request(asking())), linger=True)
        with trio.fail_after(20):
            for stream in streams:
                while await stream.receive_some():
                    pass
        by_batch = [sum(batch == one for batch, _ in begun.streams) for one in {batch for batch, _ in begun.streams}]
        assert max(by_batch) <= AT_ONCE_MAX
        assert len(begun.streams) < n_requests  # the others had tasks
        assert any(begun.done)
