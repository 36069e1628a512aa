"""What waits to be said to one peer."""

import itertools

import trio
from mesh_nodes import PlannedEngine, Start, eventually

from mesh.driver import OUTBOX_MESSAGES_MAX
from mesh.outbox import MESSAGES_PER_TURN, read_frames
from protocol.encoding import encode_frame
from protocol.gossip import GOSSIP_PROTOCOL


async def test_what_waits_for_a_peer_is_bounded_and_the_oldest_goes(start: Start) -> None:
    node = await start(PlannedEngine())

    async def read_nothing(_stream) -> None:
        await trio.sleep_forever()

    async with start.stranger(9, **{GOSSIP_PROTOCOL: read_nothing}) as stranger:
        await stranger.dial(node.address)
        peer_id = stranger.identity.peer_id
        await eventually(lambda: peer_id in node.service.driver._outboxes)
        outbox = node.service.driver._outboxes[peer_id]
        for number in range(3 * OUTBOX_MESSAGES_MAX):  # nothing else runs meanwhile
            node.service.driver._post(peer_id, b"message %d" % number)
        assert len(outbox.messages) == OUTBOX_MESSAGES_MAX
        assert outbox.messages[-1] == b"message %d" % (3 * OUTBOX_MESSAGES_MAX - 1)
        outbox.messages.clear()


class Chunks:
    """A stream that has everything at once."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)

    async def receive_some(self) -> bytes:
        return self.chunks.pop(0) if self.chunks else b""

    def tell(self, doing: object, *, sent: bool, data: bytes) -> None: ...


async def test_others_get_their_turn_while_one_peer_says_thousands_of_short_messages() -> None:
    taken: list[bytes] = []
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(len(taken))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await read_frames(Chunks(encode_frame(b"x") * (10 * MESSAGES_PER_TURN)), 16, taken.append, lambda: 0.0)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()
    assert len(taken) == 10 * MESSAGES_PER_TURN
    assert len(set(seen)) >= 4
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 4 * MESSAGES_PER_TURN


async def test_a_turn_is_over_after_its_time_however_few_messages_were_taken() -> None:
    """Each piece takes a millisecond by this clock: a turn has three, and between two looks there are two turns at most."""
    taken: list[bytes] = []
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(len(taken))
            await trio.lowlevel.checkpoint()

    def in_pieces(message: bytes) -> list[bytes]:
        return [message[at : at + 1] for at in range(len(message))]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        chunks = Chunks(encode_frame(b"abcdefgh") + encode_frame(b"ijklmnop"))
        await read_frames(chunks, 16, taken.append, lambda: len(taken) * 0.001, in_pieces)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()
    assert b"".join(taken) == b"abcdefghijklmnop"
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 6
