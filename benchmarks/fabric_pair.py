"""Hands tensors over between this process and a child: `python -m benchmarks.fabric_pair SIZE COUNT` prints seconds as JSON.

A program of its own, because it forks before there is any thread.
"""

import json
import os
import socket
import sys
from time import perf_counter

import trio

from mesh.fabric.ring import Entry, Inbox, Outbox, Word, make_bell
from mesh.fabric.session import ShmSession
from protocol.fabric import FabricConfig, Lease, Place, Rights
from protocol.identity import PeerId
from protocol.inference import Tensor

CONFIG = FabricConfig(mapped_bytes_max=16 << 30)
LIFETIME_S = 60.0
PEER = PeerId(b"the other process")


def nothing(_session: ShmSession, _why: str) -> None:
    """Nobody needs to know that it is over."""


async def take_all(connection: socket.socket, outbox: Outbox, inbox: Inbox, bell: int) -> None:
    """Views what is offered by the ring, looks at both ends of it, and says so by the ring."""
    session = ShmSession(PEER, CONFIG, connection, outbox, inbox, bell, nothing)

    def take(entry: Entry) -> None:
        if entry.word == Word.OFFERED:
            lease = Lease(entry.region, entry.epoch, entry.offset, entry.length, Rights.READ, LIFETIME_S)
            (tensor,) = session.take(lease, (Place("", "f4", (entry.length // 4,), 0, entry.length),))
            assert tensor.data[0] == tensor.data[-1] == 1
            session.say(Entry(Word.TAKEN, entry.region, entry.epoch))

    session.on_entry = take
    await session.run()


async def give_all(connection: socket.socket, outbox: Outbox, inbox: Inbox, bell: int, size: int, count: int) -> list[float]:
    """Seconds of each of `count` hand-overs of `size` bytes that lie in a region, until the child has taken and released it."""
    session = ShmSession(PEER, CONFIG, connection, outbox, inbox, bell, nothing, 4 << 30)
    memory, took, heard = session.allocate(size), [], []
    assert memory is not None
    memory[:] = 1
    tensor = Tensor("", "f4", (size // 4,), memory.data)
    session.on_entry = heard.append
    for _ in range(count):
        heard.clear()
        began = perf_counter()
        given = session.give((tensor,), LIFETIME_S, 0.0)
        assert given is not None
        assert given.copied_bytes == 0
        lease = given.lease
        session.say(Entry(Word.OFFERED, lease.region, lease.epoch, lease.offset, lease.length))
        while not heard or given.own.lease is not None:
            await trio.lowlevel.wait_readable(bell)
            session.hear_ring()
        took.append(perf_counter() - began)
    session.close("")
    return took


def main() -> None:
    """Measures once."""
    size, count = map(int, sys.argv[1:])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    bells = make_bell(), make_bell()
    boxes = Outbox(os.dup(bells[1])), Outbox(os.dup(bells[0]))
    inboxes = Inbox(boxes[1].region.descriptor), Inbox(boxes[0].region.descriptor)
    if os.fork() == 0:
        ours.close()
        trio.run(take_all, theirs, boxes[1], inboxes[1], bells[1])
        return
    theirs.close()
    print(json.dumps(trio.run(give_all, ours, boxes[0], inboxes[0], bells[0], size, count)))


if __name__ == "__main__":
    main()
