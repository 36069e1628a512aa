"""What the two faces of an attached client share: where the node's door is, and how its answers are read.

Tensors are received into memory of their own, where the program's arrays will view them; text comes in many small frames, so as
much as there is is taken at once and cut up.

Spec: docs/client.md, section "The door".
"""

import json
import os
import socket
from pathlib import Path

from mesh.config import default_state_dir
from mesh.local.frames import FrameReader
from mesh.local.place import SOCKET_FILE
from mesh.local.questions import ANSWER_BYTES_MAX
from mesh.native.errors import DeadlineError, NotConnectedError, RequestError, request_error
from mesh.nodefile import NoNodeError, find_node
from protocol.encoding import FrameDecoder
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.inference import Failed, Reply
from protocol.wire.inference import REPLY_BYTES_MAX, decode_reply

CONNECT_S_MAX = 5.0
"""How long to wait, in seconds, while more clients than the node's queue holds want to be let in."""

GRACE_S = 3.0
"""How long past the deadline of a request its answer is waited for, in seconds: the node itself says that it is late."""

IDLE_MAX = 16
"""Connections kept for the next requests, a count; more are closed when their answers have ended."""

PIECES_MAX = 512
"""Pieces of one vectored write: half of what Linux takes (IOV_MAX, 1024)."""

QUESTION_S_MAX = 10.0
"""How long the answer to a question may take, in seconds; the node answers from memory."""

_READ_BYTES = 64 * 1024
"""Bytes taken at once of text, which comes in frames of a hundred."""


class Inbox:
    """Reads the messages of one answer out of what a socket receives."""

    __slots__ = ("_decoder", "_message", "_reader", "_scratch")

    def __init__(self, *, text: bool) -> None:
        """Begin an answer: of many small messages where it is `text`, else of few large ones."""
        self._decoder = FrameDecoder(REPLY_BYTES_MAX) if text else None
        self._reader = None if text else FrameReader(max(REPLY_BYTES_MAX, ANSWER_BYTES_MAX))
        self._scratch = memoryview(bytearray(_READ_BYTES)) if text else None
        self._message: memoryview | None = None

    def room(self) -> memoryview:
        """Where the next bytes belong."""
        if self._reader is not None:
            return self._reader.room()
        assert self._scratch is not None
        return self._scratch

    def took(self, n_bytes: int) -> None:
        """Note that so many bytes have come into `room()`.

        Raises:
            RemoteProtocolError: they are no frames.
        """
        if self._reader is not None:
            self._message = self._reader.took(n_bytes)
        elif self._decoder is not None and self._scratch is not None:
            self._decoder.receive(self._scratch[:n_bytes])

    def next_message(self) -> memoryview | bytes | None:
        """The next whole message, if it is there.

        Raises:
            RemoteProtocolError: what came is no frame.
        """
        if self._decoder is not None:
            return self._decoder.next_frame()
        message, self._message = self._message, None
        return message

    @property
    def is_empty(self) -> bool:
        """Whether nothing has come beyond the messages taken."""
        if self._decoder is not None:
            return not self._decoder.buffered_bytes
        return self._reader is not None and not self._reader.begun and self._message is None


def reply_of(message: memoryview | bytes) -> Reply:
    """The event that a message holds; raises RequestError where it holds none."""
    try:
        return decode_reply(message)
    except RemoteProtocolError as error:
        raise no_answer(error) from error


def value_of(message: memoryview | bytes) -> object:
    """What the JSON of an answer to a question holds; raises RequestError where the node refuses, or answers something else."""
    try:
        return json.loads(bytes(message))
    except ValueError:
        reply = reply_of(message)
    failed = reply if isinstance(reply, Failed) else Failed(ErrorCode.MALFORMED, "the node answered something else")
    raise request_error(failed)


def door_of(path: Path | None, state_dir: Path | None) -> Path:
    """Where the socket of the local node is.

    Args:
        path: the socket itself; None looks at who runs from the state directory.
        state_dir: that directory; None takes the default one.

    Raises:
        NotConnectedError: no node runs there, or it has no such door.
    """
    if path is not None:
        return path
    directory = state_dir or default_state_dir(os.environ)
    try:
        running = find_node(directory)
    except NoNodeError as error:
        raise NotConnectedError(ErrorCode.UNREACHABLE, str(error)) from error
    if not running.ready.client_socket:
        raise NotConnectedError(
            ErrorCode.UNREACHABLE,
            f"the node that runs from {directory} has no socket for programs: start it without --client-socket none",
        )
    return Path(running.ready.client_socket)


def not_connected(path: Path, error: OSError) -> NotConnectedError:
    """Why the door cannot be reached, and what to do."""
    hint = f"start a node with `isochrone up`, or name its socket ({SOCKET_FILE} in its state directory)"
    match error:
        case FileNotFoundError():
            text = f"there is no socket at {path}: {hint}"
        case ConnectionRefusedError():
            text = f"no node listens at {path} any more: {hint}"
        case PermissionError():
            text = f"the node at {path} is another user's: run the program as the user whose node it is"
        case BlockingIOError() | TimeoutError():
            text = f"the node at {path} lets nobody in: too many clients want in at once; ask again"
        case _:
            text = f"the connection to the node at {path} failed ({error.strerror or error}): is it still running?"
    return NotConnectedError(ErrorCode.UNREACHABLE, text)


def ended_early(path: Path) -> NotConnectedError:
    """The node has gone in the middle of an answer."""
    text = f"the node at {path} ended the connection before the end of the answer: is it still running?"
    return NotConnectedError(ErrorCode.UNREACHABLE, text)


def silent() -> DeadlineError:
    """The node does not even say that the answer is late."""
    return DeadlineError(ErrorCode.DEADLINE_EXCEEDED, "the node says nothing, not even that the answer is late: is it stopped?")


def no_answer(error: RemoteProtocolError) -> RequestError:
    """The node sent something else."""
    return RequestError(error.code, f"the node sent what is no answer ({error.detail}): do both have the same version?")


def is_usable(connection: socket.socket) -> bool:
    """Whether a kept connection is still open and silent, as it must be between two answers."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
