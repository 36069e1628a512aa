"""When what was written leaves: at once, with what others write in the same moment, or with whatever follows."""

import trio
from transport_nodes import ECHO, Node, read_all, running, until

STREAMS = 20


def flushes(monkeypatch, node):
    """Counts how often a node's endpoint is flushed."""
    counted, flush = [], node.transport.endpoint.flush

    def counting(now):
        counted.append(now)
        flush(now)

    monkeypatch.setattr(node.transport.endpoint, "flush", counting)
    return counted


async def opened(one, two):
    connection = await one.transport.dial(two.address)
    streams = [await connection.open_stream(ECHO) for _ in range(STREAMS)]
    for stream in streams:
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
    return streams


async def test_what_many_write_in_one_moment_leaves_together(monkeypatch):
    one, two = Node(1, "qh3"), Node(2, "qh3")
    async with running(one, two):
        streams = await opened(one, two)
        counted = flushes(monkeypatch, one)
        datagrams = one.transport.endpoint.counters.datagrams_out
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(lambda stream=stream: stream.send_all(b"word", with_others=True))
        for stream in streams:
            assert await stream.receive_some() == b"word"
        assert len(counted) < STREAMS / 2
        assert one.transport.endpoint.counters.datagrams_out - datagrams < STREAMS / 2


async def test_what_one_writes_alone_does_not_wait_for_others():
    one, two = Node(1, "qh3"), Node(2, "qh3")
    async with running(one, two):
        (stream, *_) = await opened(one, two)
        for _ in range(50):
            await stream.send_all(b"word", with_others=True)
            assert await stream.receive_some() == b"word"
        await stream.send_all(b"end", end=True, with_others=True)
        assert await read_all(stream) == b"end"


async def test_a_stream_that_is_let_go_ends_after_what_is_written_next_and_by_itself_soon(monkeypatch):
    one, two = Node(1, "qh3"), Node(2, "qh3")
    async with running(one, two):
        first, second, *_ = await opened(one, two)
        ends = []
        monkeypatch.setattr(first, "send_now", lambda *_args, end, **_named: ends.append(end) or True)
        first.let_go()
        assert ends == []
        await second.send_all(b"word")
        assert ends == [True]
        monkeypatch.undo()
        second.let_go()
        await until(lambda: second._sent_eof)
