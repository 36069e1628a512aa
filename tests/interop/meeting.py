"""A node of ours and a foreign peer, connected."""

import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import trio
from foreign import Foreign, Talk, digest_of, pattern

from mesh.transport import Connection, StreamReset

sys.path.insert(0, str(Path(__file__).parents[1] / "mesh" / "transport"))
from transport_nodes import Node, echo, read_all, running, until

_numbers = count(40)


class Ours(Node):
    """A node that serves what a foreign peer's program serves too."""

    def __init__(self, engine: str) -> None:
        self.stopped: list[int] = []
        self.reset: list[int] = []
        handlers = {
            "/interop/echo/1": self._echo,
            "/interop/count/1": self._count,
            "/interop/return/1": self._return,
            "/interop/reset/1": self._reset,
            "/interop/endless/1": self._endless,
            "/interop/silent/1": self._silent,
        }
        super().__init__(next(_numbers), engine, handlers)

    async def _echo(self, stream):
        try:
            await echo(stream)
        except StreamReset as fault:
            self.reset.append(fault.code)
            raise

    async def _count(self, stream):
        await stream.send_all(json.dumps(digest_of(await read_all(stream))).encode())

    async def _return(self, stream):
        await stream.send_all(await read_all(stream))

    async def _reset(self, stream):
        await stream.receive_some()
        stream.reset(0x2A)

    async def _endless(self, stream):
        try:
            while True:
                await stream.send_all(pattern(65536))
        except StreamReset as fault:
            self.stopped.append(fault.code)
            raise

    async def _silent(self, stream):
        await trio.sleep_forever()


@dataclass
class Meeting:
    """Both ends of one connection.

    Attributes:
        ours: our node.
        theirs: the foreign program.
        connection: our end.
        peer: our peer id as the foreign program writes it.
    """

    ours: Ours
    theirs: Talk
    connection: Connection

    @property
    def peer(self) -> str:
        return str(self.ours.address).rpartition("/")[2]

    async def ask(self, command: str, **fields) -> dict:
        """Give the foreign peer a command that concerns our node."""
        return await self.theirs.ask(command, peer=self.peer, **fields)


@asynccontextmanager
async def meeting(foreign: Foreign, engine: str, direction: str):
    """Connect a new node of ours to the foreign peer, from either side."""
    ours = Ours(engine)
    async with running(ours), foreign.talking() as theirs:
        if direction == "they dial":
            dialled = await theirs.ask("dial", address=str(ours.address))
            await until(lambda: ours.connected)
            connection = ours.connected[0]
            met = Meeting(ours, theirs, connection)
            assert dialled["peer_id"] == met.peer
        else:
            connection = await ours.transport.dial(foreign.address)
            met = Meeting(ours, theirs, connection)
        assert connection.peer_id == foreign.peer_id
        await met.ask("meet")
        yield met
        assert ours.crashes == []
        assert ours.disconnected == []
