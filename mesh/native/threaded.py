"""Lets a plain program use what needs an event loop: trio runs in a thread of its own, and each call waits for it.

Spec: docs/client.md, section "A light node".
"""

import queue
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

import trio

from mesh.local.questions import Question
from mesh.native.answers import Take
from mesh.native.errors import NotConnectedError
from mesh.native.light import LightExchange, LightWay
from protocol.errors import ErrorCode
from protocol.inference import InferenceRequest, Reply


class ThreadedWay:
    """A way of the other face, called from any thread."""

    def __init__(self, way: LightWay, token: trio.lowlevel.TrioToken) -> None:
        self._way = way
        self._token = token

    def begin(self, request: InferenceRequest, *, text: bool) -> "ThreadedExchange":
        """Hand a request to the mesh; raises MeshError."""

        async def begin() -> LightExchange:
            return await self._way.begin(request, text=text)

        try:
            return ThreadedExchange(trio.from_thread.run(begin, trio_token=self._token), self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise _ended() from None

    def gather(self, request: InferenceRequest, take: Take) -> None:
        """Send a request, and have its events handed to `take` in the other thread, until the last; raises MeshError."""
        scope = trio.CancelScope()
        try:
            trio.from_thread.run(self._way.gather, request, take, scope, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise _ended() from None
        except KeyboardInterrupt:  # this thread's alone: the other goes on
            self._token.run_sync_soon(scope.cancel)
            raise

    def look(self, question: Question) -> object:
        """Ask a question; raises MeshError."""
        try:
            return trio.from_thread.run(self._way.look, question, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise _ended() from None


class ThreadedExchange:
    """One request and its answer."""

    def __init__(self, exchange: LightExchange, token: trio.lowlevel.TrioToken) -> None:
        self._exchange = exchange
        self._token = token

    def next_reply(self) -> Reply:
        """Wait for the next event; raises MeshError."""
        try:
            return trio.from_thread.run(self._exchange.next_reply, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise _ended() from None

    def close(self) -> None:
        """Cancel whatever is left."""
        try:
            self._token.run_sync_soon(self._exchange.close)
        except trio.RunFinishedError:
            return  # and so has everything under way


@contextmanager
def in_thread(way: AbstractAsyncContextManager[LightWay]) -> Iterator[ThreadedWay]:
    """Run `way` in a thread as long as the context lasts; what it raises on entering is raised here."""
    begun: queue.SimpleQueue[ThreadedWay | BaseException] = queue.SimpleQueue()
    stop = trio.Event()

    async def run() -> None:
        async with way as entered:
            begun.put(ThreadedWay(entered, trio.lowlevel.current_trio_token()))
            await stop.wait()

    def main() -> None:
        try:
            trio.run(run)
        except BaseException as error:  # noqa: BLE001 -- handed to the thread that waits for it
            begun.put(error)

    thread = threading.Thread(target=main, name="isochrone-client", daemon=True)
    thread.start()
    entered = begun.get()
    if isinstance(entered, BaseException):
        thread.join()
        raise entered
    try:
        yield entered
    finally:
        entered._token.run_sync_soon(stop.set)  # noqa: SLF001  # of this module
        thread.join()


def _ended() -> NotConnectedError:
    return NotConnectedError(ErrorCode.CANCELLED, "this client is closed: use it inside its `with`")
