"""Asks the local node through its unix socket, from a trio program.

Each request under way has a connection of its own, so that a slow reader of one answer holds up no other, and closing the
connection is all it takes to cancel. Connections whose answers have ended are kept for the next requests.

Spec: docs/client.md, section "The door".
"""

import socket
from pathlib import Path
from typing import Self

import trio

from mesh.local.frames import without
from mesh.local.place import connect_to
from mesh.local.questions import Question, write_question
from mesh.native.answers import Take
from mesh.native.errors import NotConnectedError
from mesh.native.inbox import (
    CONNECT_S_MAX,
    GRACE_S,
    IDLE_MAX,
    PIECES_MAX,
    QUESTION_S_MAX,
    Inbox,
    ended_early,
    is_usable,
    no_answer,
    not_connected,
    reply_of,
    silent,
    value_of,
)
from mesh.native.requests import pieces_of
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.inference import Failed, Finished, InferenceRequest, Reply


class AttachedWay:
    """The connections of one program to its node."""

    def __init__(self, path: Path) -> None:
        """Name the socket; nothing is connected yet."""
        self._path = path
        self._idle: list[socket.socket] = []
        self._open: dict[Exchange, None] = {}
        self._closed = False

    async def start(self) -> Self:
        """Connect once, so that a node that is not there is told at the start."""
        self._idle.append(await self._lease())
        return self

    async def begin(self, request: InferenceRequest, *, text: bool) -> "Exchange":
        """Send a request.

        Raises:
            BadInputError: it cannot be sent.
            NotConnectedError: the node is not there.
        """
        return await self._begin(pieces_of(request), request.deadline_s + GRACE_S, text=text)

    async def gather(self, request: InferenceRequest, take: Take) -> None:
        """Send a request, and hand its events to `take` until the last; raises as `begin`, `next_reply` and `take` do."""
        exchange = await self.begin(request, text=False)
        try:
            while not take(await exchange.next_reply()):
                pass
        finally:
            exchange.close()

    async def look(self, question: Question) -> object:
        """Ask a question; return what the JSON of its answer holds.

        Raises:
            NotConnectedError: the node is not there.
            RequestError: it does not answer.
        """
        exchange = await self._begin([encode_frame(write_question(question))], QUESTION_S_MAX, text=False)
        try:
            message = await exchange.next_message()
            exchange.ended = True
        finally:
            exchange.close()
        return value_of(message)

    async def aclose(self) -> None:
        """Close every connection; what is under way is cancelled at the node."""
        self._closed = True
        for exchange in list(self._open):
            exchange.close()
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await trio.lowlevel.checkpoint()

    def give_back(self, exchange: "Exchange", connection: socket.socket, *, usable: bool) -> None:
        """Keep a connection for the next request, or close it."""
        self._open.pop(exchange, None)
        if usable and not self._closed and len(self._idle) < IDLE_MAX:
            self._idle.append(connection)
        else:
            trio.lowlevel.notify_closing(connection)
            connection.close()

    async def _begin(self, pieces: list[bytes | memoryview], patience_s: float, *, text: bool) -> "Exchange":
        await trio.lowlevel.checkpoint_if_cancelled()
        exchange = Exchange(self, await self._lease(), self._path, trio.current_time() + patience_s, text=text)
        self._open[exchange] = None
        try:
            await exchange.send(pieces)
        except BaseException:
            exchange.close()
            raise
        return exchange

    async def _lease(self) -> socket.socket:
        """A connection that carries nothing."""
        if self._closed:
            raise NotConnectedError(ErrorCode.CANCELLED, "this client is closed: use it inside its `async with`")
        while self._idle:
            connection = self._idle.pop()
            if is_usable(connection):
                return connection
            connection.close()
        try:
            try:
                connection = connect_to(self._path)
            except BlockingIOError:
                connection = await trio.to_thread.run_sync(connect_to, self._path, CONNECT_S_MAX)
        except OSError as error:
            raise not_connected(self._path, error) from error
        connection.setblocking(False)
        return connection


class Exchange:
    """One request and its answer."""

    def __init__(self, way: AttachedWay, connection: socket.socket, path: Path, ends_at: float, *, text: bool) -> None:
        self._way = way
        self._connection: socket.socket | None = connection
        self._path = path
        self._ends_at = ends_at
        self._inbox = Inbox(text=text)
        self.ended = False
        """Whether the last message was taken, so that the connection can carry the next request."""

    async def send(self, pieces: list[bytes | memoryview]) -> None:
        """Send a whole frame.

        Raises:
            NotConnectedError: the node is gone.
            DeadlineError: it does not take it.
        """
        connection = self._connection
        assert connection is not None, "the exchange is closed"
        while pieces:
            try:
                pieces = without(pieces, connection.sendmsg(pieces[:PIECES_MAX]))
            except BlockingIOError:
                with trio.move_on_at(self._ends_at) as patience:
                    await trio.lowlevel.wait_writable(connection)
                if patience.cancelled_caught:
                    raise silent() from None
            except (BrokenPipeError, ConnectionResetError):
                return  # why the node has closed may stand in what it sent before
            except OSError as error:
                raise not_connected(self._path, error) from error

    async def next_reply(self) -> Reply:
        """Wait for the next event.

        Raises:
            NotConnectedError: the node is gone.
            RequestError: what came is no answer, or it is late.
        """
        reply = reply_of(await self.next_message())
        self.ended = isinstance(reply, Finished | Failed)
        return reply

    async def next_message(self) -> memoryview | bytes:
        """Wait for the next message; raises like `next_reply`."""
        try:
            while (message := self._inbox.next_message()) is None:
                self._inbox.took(await self._receive())
        except RemoteProtocolError as error:
            raise no_answer(error) from error
        return message

    def close(self) -> None:
        """Let go of the connection; an answer that has not ended is cancelled at the node."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._way.give_back(self, connection, usable=self.ended and self._inbox.is_empty)

    async def _receive(self) -> int:
        """Receive into the inbox; return how many bytes."""
        while True:
            connection = self._connection
            if connection is None:
                raise NotConnectedError(ErrorCode.CANCELLED, "the answer was given up: this client, or the answer, was closed")
            try:
                n_bytes = connection.recv_into(self._inbox.room())
            except BlockingIOError:
                with trio.move_on_at(self._ends_at) as patience:
                    await _readable(connection)
                if patience.cancelled_caught:
                    raise silent() from None
            except OSError as error:
                raise not_connected(self._path, error) from error
            else:
                if not n_bytes:
                    raise ended_early(self._path)
                return n_bytes


async def _readable(connection: socket.socket) -> None:
    """Wait until there is something to read, or the socket was closed meanwhile."""
    try:
        await trio.lowlevel.wait_readable(connection)
    except trio.ClosedResourceError:
        return
