"""The native client: ask the mesh from a program, without HTTP, with arrays as they lie.

    import numpy as np
    from mesh import client

    with client.sync.attach() as mesh:                                # a plain program
        answer = mesh.infer("echo", {"x": np.arange(4, dtype="f4")})
        print(answer["x"], answer.route().node)

    async with client.attach() as mesh:                               # a trio program, the same names
        async for piece in mesh.generate("llama", [{"role": "user", "content": "What is time?"}]):
            print(piece, end="")

`attach` goes to the node that runs on this machine, through a unix socket that only its own user can open. `connect` joins the
mesh as a light node of its own: an identity and a QUIC endpoint, no engine, nothing forwarded for others. Every failure is a
`MeshError` that carries a code and says what to do next.

Spec: docs/client.md.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
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
    "connect",
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


@asynccontextmanager
async def connect(
    bootstrap: Sequence[str] = (),
    *,
    network: str | None = None,
    state_dir: Path | str | None = None,
    network_dir: Path | str | None = None,
    fabric: str = "auto",
    cxl_pool: Sequence[Path | str] = (),
    rdma_device: Sequence[str] = (),
) -> AsyncIterator[AsyncMesh]:
    """Join the mesh as a light node, and ask without a node on this machine; what is under way on leaving is cancelled.

    Args:
        bootstrap: addresses of nodes of the mesh; a member of a private network also asks those who issued its certificate.
        network: id of an open network; None is the private network that the directories are of.
        state_dir: holds the key and, after `isochrone join TOKEN --state-dir DIR`, the certificate; one program at a time. None
            takes a new key, which in the user's own network is certified at once.
        network_dir: the user's own private network; None takes the default one.
        fabric: by which fabrics large tensors may go, as `isochrone up --fabric` takes it; RDMA has to be named.
        cxl_pool: the pools of memory to share with nodes, as `--cxl-pool`.
        rdma_device: the RDMA devices that may be used, as `--rdma-device`; empty for all.

    Raises:
        BadInputError: an address is none, or a fabric is none.
        NotConnectedError: nobody lets the program in; the text says what to do.
    """
    # Half a second of imports that only a light node needs.
    from mesh.native.light import fabrics_of, joined

    may_use = fabrics_of(fabric, cxl_pool, rdma_device)
    async with joined(bootstrap, network, _path(state_dir), _path(network_dir), may_use) as way:
        yield AsyncMesh(way)


class sync:  # noqa: N801  # read as the module it stands for
    """The same for programs without an event loop."""

    @staticmethod
    def attach(socket: Path | str | None = None, *, state_dir: Path | str | None = None) -> AbstractContextManager[Mesh]:
        """Ask through the node that runs on this machine; arguments and errors are those of `attach`."""
        return _attached(socket, state_dir)

    @staticmethod
    def connect(
        bootstrap: Sequence[str] = (),
        *,
        network: str | None = None,
        state_dir: Path | str | None = None,
        network_dir: Path | str | None = None,
        fabric: str = "auto",
        cxl_pool: Sequence[Path | str] = (),
        rdma_device: Sequence[str] = (),
    ) -> AbstractContextManager[Mesh]:
        """Join the mesh as a light node; arguments and errors are those of `connect`. A thread of its own runs it."""
        return _connected(bootstrap, network, (_path(state_dir), _path(network_dir)), (fabric, cxl_pool, rdma_device))


@contextmanager
def _connected(
    bootstrap: Sequence[str],
    network: str | None,
    directories: tuple[Path | None, Path | None],
    told_fabrics: tuple[str, Sequence[Path | str], Sequence[str]],
) -> Iterator[Mesh]:
    from mesh.native.light import fabrics_of, joined
    from mesh.native.threaded import in_thread

    with in_thread(joined(bootstrap, network, *directories, fabrics_of(*told_fabrics))) as way:
        yield Mesh(way)


@contextmanager
def _attached(socket: Path | str | None, state_dir: Path | str | None) -> Iterator[Mesh]:
    way = BlockingWay(door_of(_path(socket), _path(state_dir)))
    try:
        yield Mesh(way.start())
    finally:
        way.close()


def _path(value: Path | str | None) -> Path | None:
    return None if value is None else Path(value).expanduser()
