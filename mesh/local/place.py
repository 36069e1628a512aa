"""Where the node's unix socket stands: claimed by the node, found by a client, and proven on both sides.

The kernel keeps other users out by the mode of the file, and says of every connection who is at the other end. A file that a node
left behind is replaced; one behind which a node answers is not. A path longer than the kernel takes is gone to through the
descriptor of its directory.

Source: unix(7), sections "Pathname sockets" and "SO_PEERCRED"; proc(5), "/proc/self/fd".
Spec: docs/client.md, section "The door".
"""

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.config import StartError

SOCKET_FILE = "client.sock"
"""Name of the socket in the state directory."""

SOCKET_MODE = 0o600
"""Permission bits of the socket: who may write to it may connect, and that is its owner."""

BACKLOG_MAX = 128
"""Connections that wait to be accepted: as many as a node serves at a time."""

_PATH_BYTES_MAX = 107
"""Longest path the kernel takes in bytes: 108 with the zero behind it (unix(7), `sun_path`)."""

_CREDENTIALS = struct.Struct("iII")
"""The kernel's `struct ucred`: process, user, group."""


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end, as the kernel noted it when the connection was made."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(told)[1]
    return uid


def is_ours(uid: int) -> bool:
    """Whether a user is this process's own, or root, who could read its memory anyway."""
    return uid in (os.geteuid(), 0)


@dataclass(frozen=True, slots=True)
class Listening:
    """A socket that this process listens at.

    Attributes:
        path: where its file stands.
        listener: the socket, which does not block.
        file: numbers of device and file, and when it was made, by which the file is known again.
    """

    path: Path
    listener: socket.socket
    file: tuple[int, int, int]

    def close(self) -> None:
        """Close it and remove its file, unless another stands there by now."""
        self.listener.close()
        with suppress(OSError):
            if _file_at(self.path) == self.file:
                self.path.unlink()


def listen_at(path: Path) -> Listening:
    """Bind and listen at `path`, in place of a socket that nobody answers any more.

    Raises:
        StartError: something else stands there, a node answers there, or the system refuses.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_way(path)
        # Linux makes the file with the mode that the socket has, so that it is never open to others, whatever the umask.
        os.fchmod(listener.fileno(), SOCKET_MODE)
        with _reachable(path) as address:
            listener.bind(address)
        listener.listen(BACKLOG_MAX)
        listener.setblocking(False)
        return Listening(path, listener, _file_at(path))
    except OSError as error:
        listener.close()
        raise StartError(
            f"no socket can be made at {path} ({error.strerror or error}): choose another place with --client-socket, or none "
            "with --client-socket none"
        ) from error
    except StartError:
        listener.close()
        raise


def connect_to(path: Path, timeout_s: float = 0.0) -> socket.socket:
    """Connect to the socket at `path`.

    Args:
        path: where it stands.
        timeout_s: how long to wait while the queue of those who want to be let in is full.

    Returns:
        A connected socket that blocks.

    Raises:
        BlockingIOError: the queue is full, and `timeout_s` is 0.
        FileNotFoundError: there is none.
        ConnectionRefusedError: nobody listens there any more.
        PermissionError: the system or this function refuses: the socket is another user's.
        OSError: anything else.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        with _reachable(path) as address:
            connection.connect(address)
        connection.settimeout(None)
        _check_listener(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_listener(connection: socket.socket) -> None:
    """Refuse a listener of another user, who would read what is asked; root may talk to anybody's."""
    if not is_ours(peer_uid(connection)) and os.geteuid() != 0:
        raise PermissionError(errno.EACCES, "who listens there is another user")


def _file_at(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino, status.st_mtime_ns  # a number is given again as soon as it is free


def _make_way(path: Path) -> None:
    """Remove a socket that nobody answers.

    Raises:
        StartError: something else stands there, or a node answers.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{path} is no socket: it stays where it is; choose another place with --client-socket")
    if _answers(path):
        raise StartError(
            f"a node answers at {path} already: stop it, or choose another place with --client-socket (or another --state-dir)"
        )
    path.unlink()


def _answers(path: Path) -> bool:
    """Whether somebody listens at `path`; one whose queue is full does."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        with _reachable(path) as address:
            probe.connect(address)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except BlockingIOError:
        return True
    finally:
        probe.close()
    return True


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name of `path` that is short enough for the kernel."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
