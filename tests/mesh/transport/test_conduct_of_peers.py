"""Peers at the fastest honest pace are never cut off; those that keep tasks waiting are, over real sockets."""

from collections import Counter

import pytest
import trio
from transport_nodes import COMBOS, Node, running, until

from mesh.transport import ConnectionLost
from protocol.conduct import Account
from protocol.errors import ErrorCode

SINK = "/test/sink/1.0.0"
MIB = 1024 * 1024
BULK_BYTES = 16 * MIB
BULK_S = 2.0
DRIP_S = 0.2


@pytest.fixture(params=COMBOS, ids="-".join)
def engines(request):
    return request.param


async def sink(stream):
    while await stream.receive_some():
        pass


async def test_a_bulk_transfer_at_full_speed_uses_up_no_account(engines):
    a, b = Node(1, engines[0]), Node(2, engines[1], {SINK: sink})
    async with running(a, b):
        connection = await a.transport.dial(b.address)
        stream = await connection.open_stream(SINK)
        for _ in range(BULK_BYTES // MIB):
            await stream.send_all(bytes(MIB))
        await stream.aclose()
        conduct, now = b.transport.endpoint.conduct, b.transport.now()
        for account in Account:
            full = conduct.config.allowance(account).burst
            assert conduct.left(a.peer_id, account, now) > 0.7 * full, account
        sender = a.transport.endpoint.conduct  # whose peer sends acknowledgements alone
        for account in Account:
            assert sender.left(b.peer_id, account, now) > 0.5 * sender.config.allowance(account).burst, account
        assert a.disconnected == b.disconnected == []


async def test_small_messages_at_full_speed_use_up_no_account(engines):
    """Tokens: pieces of forty bytes, as fast as one stream takes them, with the loop's turn between."""
    a, b = Node(1, engines[0]), Node(2, engines[1], {SINK: sink})
    async with running(a, b):
        connection = await a.transport.dial(b.address)
        stream = await connection.open_stream(SINK)
        began = trio.current_time()
        while trio.current_time() < began + BULK_S:
            for _ in range(4):
                await stream.send_all(bytes(40))
            await trio.sleep(0.002)
        await stream.aclose()
        conduct, now = b.transport.endpoint.conduct, b.transport.now()
        assert conduct.left(a.peer_id, Account.FRAMES, now) > 0
        assert a.disconnected == b.disconnected == []


@pytest.mark.parametrize("engine", ["qh3", "aioquic"])
async def test_a_peer_with_many_unfinished_streams_is_cut_off_within_five_seconds_and_one_with_few_is_not(engine):
    slow, patient, b = Node(1, engine), Node(3, engine), Node(2, engine)
    async with running(slow, patient, b):
        lost, codes, rounds = trio.Event(), [], Counter()

        async def drip(node, count):
            connection = await node.transport.dial(b.address)
            streams = [await connection.open_stream("/x/" * 100) for _ in range(count)]
            for stream in streams:
                stream._unsent = stream._unsent[:-50]
            try:
                while True:
                    for stream in streams:
                        stream.connection.write(stream._id, memoryview(stream._unsent[:1]), end=False, linger=False)
                        stream._unsent = stream._unsent[1:]
                    rounds[node] += 1
                    await trio.sleep(DRIP_S)
            except ConnectionLost:
                codes.append(connection.lost.code)
                lost.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, slow, 100)
            nursery.start_soon(drip, patient, 20)
            with trio.fail_after(30):
                await lost.wait()
            nursery.cancel_scope.cancel()
        assert rounds[slow] <= 5.0 / DRIP_S  # of these each takes longer where the machine is slow
        assert codes == [ErrorCode.FLOODING]
        assert [peer_id for peer_id, _ in b.disconnected] == [slow.peer_id]


async def test_work_counts_until_it_has_really_ended_whatever_becomes_of_the_connection(engines):
    done = trio.Event()

    async def stubborn(stream):
        with trio.CancelScope(shield=True):
            await done.wait()

    a, b = Node(1, engines[0]), Node(2, engines[1], {SINK: stubborn})
    async with running(a, b):
        connection = await a.transport.dial(b.address)
        for _ in range(3):
            stream = await connection.open_stream(SINK)
            await stream.send_all(b"x")
        await until(lambda: b.transport.n_serving(a.peer_id) == 3)
        await connection.close()
        await until(lambda: b.disconnected)
        await a.transport.dial(b.address)
        assert b.transport.n_serving(a.peer_id) == 3
        done.set()
        await until(lambda: b.transport.n_serving(a.peer_id) == 0)
