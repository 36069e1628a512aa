"""The native client: ask the mesh from a program, without HTTP, with arrays as they lie.

    import numpy as np
    from mesh import client

    with client.sync.attach() as mesh:                                # a plain program
        answer = mesh.infer("echo", {"x": np.arange(4, dtype="f4")})
        print(answer["x"], answer.route().node)

    async with client.attach() as mesh:                               # a trio program, the same names
        async for piece in mesh.generate("llama", [{"role": "user", "content": "What is time?"}]):
            print(piece, end="")

`attach` goes to the node that runs on this machine, through a unix socket that only its own user can open. Every failure is a
`MeshError` that carries a code and says what to do next.

Spec: docs/client.md.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import trio

from mesh.native.answers import Answer, Route
from mesh.native.attached import AttachedWay
from mesh.native.blocking import BlockingWay
from mesh.native.errors import BadInputError, DeadlineError, MeshError, NotConnectedError, RequestError
from mesh.native.faces import AsyncMesh, Mesh
from mesh.native.inbox import door_of
from mesh.native.text import AsyncText, Text

__all__ = [
    "Answer",
    "AsyncMesh",
    "AsyncText",
    "BadInputError",
    "DeadlineError",
    "Mesh",
    "MeshError",
    "NotConnectedError",
    "RequestError",
    "Route",
    "Text",
    "attach",
    "sync",
]


@asynccontextmanager
async def attach(socket: Path | str | None = None, *, state_dir: Path | str | None = None) -> AsyncIterator[AsyncMesh]:
    """Ask through the node that runs on this machine; what is under way on leaving is cancelled.

    Args:
        socket: where its socket is; None looks into the state directory.
        state_dir: of the node; None takes the default one.

    Raises:
        NotConnectedError: no node runs there; the text says what to do.
    """
    way = AttachedWay(door_of(_path(socket), _path(state_dir)))
    try:
        yield AsyncMesh(await way.start())
    finally:
        with trio.CancelScope(shield=True):
            await way.aclose()


class sync:  # noqa: N801  # read as the module it stands for
    """The same for programs without an event loop."""

    @staticmethod
    def attach(socket: Path | str | None = None, *, state_dir: Path | str | None = None) -> AbstractContextManager[Mesh]:
        """Ask through the node that runs on this machine; arguments and errors are those of `attach`."""
        return _attached(socket, state_dir)


@contextmanager
def _attached(socket: Path | str | None, state_dir: Path | str | None) -> Iterator[Mesh]:
    way = BlockingWay(door_of(_path(socket), _path(state_dir)))
    try:
        yield Mesh(way.start())
    finally:
        way.close()


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value).expanduser()
