"""What waits to be said to one peer."""

import trio
from mesh_nodes import PlannedEngine, Start, eventually

from mesh.driver import OUTBOX_MESSAGES_MAX
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
