"""Asks the local node through its unix socket, from any program: plain calls that block, from as many threads as one likes.

A call is a write and the reads of its answer, with no event loop between: the shortest way there is to a model. Connections are
kept and used again, each by one request at a time.

Spec: docs/client.md, section "The door".
"""

import socket
import struct
import time
from pathlib import Path
from typing import Self

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

_TIMEVAL = struct.Struct("ll")
"""The kernel's `struct timeval`: seconds and microseconds (socket(7), SO_RCVTIMEO)."""


class BlockingWay:
    """The connections of one program to its node."""

    def __init__(self, path: Path) -> None:
        """Name the socket; nothing is connected yet."""
        self._path = path
        self._idle: list[socket.socket] = []  # its `append` and `pop` are atomic, so that threads can share it
        self._closed = False

    def start(self) -> Self:
        """Connect once, so that a node that is not there is told at the start."""
        self._idle.append(self.lease())
        return self

    def begin(self, request: InferenceRequest, *, text: bool) -> "BlockingExchange":
        """Send a request.

        Raises:
            BadInputError: it cannot be sent.
            NotConnectedError: the node is not there.
        """
        return self._begin(pieces_of(request), request.deadline_s + GRACE_S, text=text)

    def gather(self, request: InferenceRequest, take: Take) -> None:
        """Send a request, and hand its events to `take` until the last; raises as `begin`, `next_reply` and `take` do."""
        exchange = self.begin(request, text=False)
        try:
            while not take(exchange.next_reply()):
                pass
        finally:
            exchange.close()

    def look(self, question: Question) -> object:
        """Ask a question; return what the JSON of its answer holds.

        Raises:
            NotConnectedError: the node is not there.
            RequestError: it does not answer.
        """
        exchange = self._begin([encode_frame(write_question(question))], QUESTION_S_MAX, text=False)
        try:
            message = exchange.next_message()
            exchange.ended = True
        finally:
            exchange.close()
        return value_of(message)

    def close(self) -> None:
        """Close the connections that are kept, and those of answers under way when they end."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def give_back(self, connection: socket.socket, *, usable: bool) -> None:
        """Keep a connection for the next request, or close it."""
        if usable and not self._closed and len(self._idle) < IDLE_MAX:
            self._idle.append(connection)
        else:
            connection.close()

    def lease(self) -> socket.socket:
        """A connection that carries nothing.

        Raises:
            NotConnectedError: the node is not there, or this client is closed.
        """
        if self._closed:
            raise NotConnectedError(ErrorCode.CANCELLED, "this client is closed: use it inside its `with`")
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if is_usable(connection):
                return connection
            connection.close()
        try:
            return connect_to(self._path, CONNECT_S_MAX)
        except OSError as error:
            raise not_connected(self._path, error) from error

    def _begin(self, pieces: list[bytes | memoryview], patience_s: float, *, text: bool) -> "BlockingExchange":
        exchange = BlockingExchange(self, self.lease(), self._path, patience_s, text=text)
        try:
            exchange.send(pieces)
        except BaseException:
            exchange.close()
            raise
        return exchange


class BlockingExchange:
    """One request and its answer."""

    def __init__(self, way: BlockingWay, connection: socket.socket, path: Path, patience_s: float, *, text: bool) -> None:
        self._way = way
        self._connection: socket.socket | None = connection
        self._path = path
        self._ends_at = time.monotonic() + patience_s
        self._inbox = Inbox(text=text)
        self.ended = False
        """Whether the last message was taken, so that the connection can carry the next request."""
        # The kernel counts each call from its start; a node that says a little now and then is measured by `_ends_at` as well.
        limit = _TIMEVAL.pack(int(patience_s), int(patience_s % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def send(self, pieces: list[bytes | memoryview]) -> None:
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
                raise silent() from None
            except (BrokenPipeError, ConnectionResetError):
                return  # why the node has closed may stand in what it sent before
            except OSError as error:
                raise not_connected(self._path, error) from error

    def next_reply(self) -> Reply:
        """Wait for the next event.

        Raises:
            NotConnectedError: the node is gone.
            RequestError: what came is no answer, or it is late.
        """
        reply = reply_of(self.next_message())
        self.ended = isinstance(reply, Finished | Failed)
        return reply

    def next_message(self) -> memoryview | bytes:
        """Wait for the next message; raises like `next_reply`."""
        connection = self._connection
        if connection is None:
            raise NotConnectedError(ErrorCode.CANCELLED, "the answer was given up: it was closed")
        try:
            while (message := self._inbox.next_message()) is None:
                n_bytes = connection.recv_into(self._inbox.room())
                if not n_bytes:
                    raise ended_early(self._path)
                if time.monotonic() > self._ends_at:
                    raise silent()
                self._inbox.took(n_bytes)
        except RemoteProtocolError as error:
            raise no_answer(error) from error
        except BlockingIOError:
            raise silent() from None
        except OSError as error:
            raise not_connected(self._path, error) from error
        return message

    def close(self) -> None:
        """Let go of the connection; an answer that has not ended is cancelled at the node."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._way.give_back(connection, usable=self.ended and self._inbox.is_empty)
