"""Peers that begin much and finish nothing: streams on which a task waits for the rest of what the peer began.

One slow stream is a slow path. Many at a time, each begun seconds ago, are a peer that keeps tasks and memory busy with a byte
now and then, and its connection ends.

Spec: docs/spec/02-transport.md, section "Conduct".
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from protocol.errors import ErrorCode

if TYPE_CHECKING:
    from mesh.transport.transport import Transport

LOOK_S = 1.0
"""Time between two looks, in seconds."""

SLOW_S = 3.0
"""How long the rest of what a peer began may take without being counted, in seconds: with a look a second, four at most."""

SLOW_MAX = 64
"""Streams of one connection that may be slow at a time, a count: a program that asks hundreds of things at once over a path
that is just then cut off for seconds has not so many of them half sent, since a request is most often one datagram."""


class Waits:
    """Since when tasks wait for the rest of what a peer began, by the stream."""

    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since: dict[int, float] = {}

    @contextmanager
    def on(self, stream_id: int, now: float) -> Generator[None]:
        """Count a stream as waited for until the block ends."""
        self.since[stream_id] = now
        try:
            yield
        finally:
            self.since.pop(stream_id, None)

    def n_slow(self, now: float) -> int:
        """How many streams are waited for too long."""
        return sum(now - since > SLOW_S for since in self.since.values())


async def cut_slow_writers(transport: "Transport") -> None:
    """End the connections of peers with too many slow streams, until cancelled."""
    while True:
        await trio.sleep(LOOK_S)
        now = trio.current_time()
        for connection in list(transport.connections.values()):
            if len(connection.waits.since) > SLOW_MAX and connection.waits.n_slow(now) > SLOW_MAX:
                transport.fault(connection.peer_id, ErrorCode.FLOODING)
                await connection.close(ErrorCode.FLOODING, f"more than {SLOW_MAX} streams are begun and not gone on with")
