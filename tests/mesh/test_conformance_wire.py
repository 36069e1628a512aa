"""The socket of the conformance suite is closed while somebody waits for it, or is about to."""

import trio
import trio.testing

from mesh.conformance.wire import Link


async def test_a_link_that_is_closed_is_read_no_more_and_its_number_is_free():
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            link = Link("127.0.0.1")
            nursery.start_soon(link.run)
            await trio.testing.wait_all_tasks_blocked()
            link.close()


async def test_a_link_that_is_closed_before_its_turn_ends_by_itself():
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            link = Link("127.0.0.1")
            sender = Link("127.0.0.1")
            nursery.start_soon(link.run)
            await trio.testing.wait_all_tasks_blocked()
            sender.send(b"x" * 30, ("127.0.0.1", link.port))
            while not link.strays:
                await trio.lowlevel.checkpoint()
            link.close()
            sender.close()


async def test_a_link_is_closed_twice():
    link = Link("127.0.0.1")
    link.close()
    link.close()
