"""How the local sockets of two nodes find each other and prove to belong to the QUIC session that told them so.

For each opening a fresh abstract socket is bound, under a name that is drawn and told inside the QUIC session alone; it is gone
when somebody has shown the secret, or after two seconds. Abstract names belong to a network namespace, so no file is left behind
and a container with a network of its own is not reached, which is right: descriptors would pass, but the host tags differ.

Source: unix(7), "Abstract sockets", "SCM_RIGHTS", "SO_PEERCRED"; RFC 2104 (HMAC).
Spec: docs/spec/11-fabric.md, section "Opening".
"""

import array
import hashlib
import hmac
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from mesh.fabric.base import Opening
from mesh.local.place import is_ours, peer_uid
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Kind
from protocol.fabric.messages import NONCE_BYTES, SECRET_BYTES, Door, Hello, encode_opening
from protocol.identity import PeerId

DOMAIN = b"isochrone-fabric-v1:"
"""What every proof begins with."""

PACKET_BYTES_MAX = 256
"""Longest packet on the local socket in bytes; the longest has 61."""

DESCRIPTORS_MAX = 2
"""Descriptors of one packet, a count: a ring and a bell, or a region."""

ENTRANTS_MAX = 4
"""Wrong entrants after which an opening is given up, a count: who knows a name that was drawn a moment ago is no accident."""

OPENING_S = 2.0
"""How long a secret can be shown, in seconds (ISO-FAB-004)."""

OPENER, DOOR = b"o", b"d"
# Length of a proof in bytes.
_PROOF_BYTES = len(DOMAIN) + 1 + hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Terms:
    """What both sides have agreed on inside the QUIC session."""

    secret: bytes
    opener: PeerId
    other: PeerId
    opener_nonce: bytes
    other_nonce: bytes

    def proof(self, role: bytes) -> bytes:
        """What the side in this role says first."""
        told = role + self.opener + self.other + self.opener_nonce + self.other_nonce
        return DOMAIN + role + hmac.new(self.secret, told, hashlib.sha256).digest()

    def check(self, role: bytes, packet: bytes) -> None:
        """See that a packet is the proof of the side in this role.

        Raises:
            RemoteProtocolError: BAD_SIGNATURE, it is not.
        """
        if len(packet) != _PROOF_BYTES or not hmac.compare_digest(packet, self.proof(role)):
            raise RemoteProtocolError(ErrorCode.BAD_SIGNATURE, "somebody at the local socket who does not know its secret")


def bind_door(name: bytes) -> socket.socket:
    """Listen at an abstract name.

    Raises:
        OSError: the system refuses.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(b"\0" + name)
        listener.listen(ENTRANTS_MAX)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


async def tell_door(opening: Opening, hello: Hello, kind: Kind, *, end: bool) -> tuple[socket.socket, Terms]:
    """Listen at a name that is drawn, and tell it to the peer with what else belongs to the opening.

    Args:
        opening: the fabric that is being opened.
        hello: what the peer asked for it with.
        kind: of the fabric.
        end: whether nothing more is said on the stream of the opening.

    Returns:
        The listening socket, for `let_in`, and what both sides prove themselves by.

    Raises:
        OSError: the system refuses.
    """
    entropy = opening.entropy
    name, secret, nonce = b"isochrone-" + entropy(16).hex().encode(), entropy(SECRET_BYTES), entropy(NONCE_BYTES)
    listener = bind_door(name)
    try:
        await opening.control.send(encode_opening(Door(kind, name, secret, nonce)), end=end)
    except BaseException:
        listener.close()
        raise
    return listener, Terms(secret, opening.peer, opening.own, hello.nonce, nonce)


async def let_in(listener: socket.socket, terms: Terms, n_passed: int = DESCRIPTORS_MAX) -> tuple[socket.socket, list[int]]:
    """Wait for the peer at a door; the listener is closed afterwards, and so are all who are not the peer.

    Args:
        listener: of `bind_door`.
        terms: what was agreed.
        n_passed: how many descriptors the opener passes.

    Returns:
        The connection, and the descriptors that the opener has passed.

    Raises:
        RemoteProtocolError: nobody came in time who is the peer.
    """
    try:
        with trio.move_on_after(OPENING_S):
            for _ in range(ENTRANTS_MAX):
                await trio.lowlevel.wait_readable(listener)
                connection, _ = listener.accept()
                try:
                    return connection, await _first_packet(connection, terms, OPENER, n_passed)
                except (RemoteProtocolError, OSError):
                    connection.close()
                except BaseException:
                    connection.close()
                    raise
    finally:
        listener.close()
    raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "nobody who knows the secret came to the local socket")


async def enter(name: bytes, terms: Terms, descriptors: Sequence[int]) -> tuple[socket.socket, list[int]]:
    """Go to the peer's door, and pass it descriptors; it passes as many.

    Returns:
        The connection, and the descriptors that the other side has passed.

    Raises:
        RemoteProtocolError: who is there is not the peer, or another user.
        OSError: nobody is there: another network namespace, or the peer has given up.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)
        connection.connect(b"\0" + name)
        check_user(connection)
        send_packet(connection, terms.proof(OPENER), descriptors)
        return connection, await _first_packet(connection, terms, DOOR, len(descriptors))
    except BaseException:
        connection.close()
        raise


async def _first_packet(connection: socket.socket, terms: Terms, role: bytes, n_passed: int) -> list[int]:
    """Read the proof of the other side and what it passes with it."""
    connection.setblocking(False)
    check_user(connection)
    await trio.lowlevel.wait_readable(connection)
    packet, descriptors = receive_packet(connection)
    try:
        terms.check(role, packet)
        _check_count(descriptors, n_passed)
    except BaseException:
        close_all(descriptors)
        raise
    return descriptors


def _check_count(descriptors: Sequence[int], n_passed: int) -> None:
    if len(descriptors) != n_passed:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"{len(descriptors)} descriptors where {n_passed} are passed")


def check_user(connection: socket.socket) -> None:
    """See that the other end is a process of this user, or of the superuser: they can look into this one's memory anyway.

    Raises:
        RemoteProtocolError: NOT_ADMITTED, it is another user's.
    """
    uid = peer_uid(connection)
    if not is_ours(uid):
        raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, f"a process of user {uid} at the local socket")


def send_packet(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one packet with descriptors, without waiting.

    Raises:
        OSError: the other side does not read, or is gone.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def receive_packet(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Read one packet; no bytes where the other side is gone. More descriptors than are ever passed are not taken.

    Raises:
        BlockingIOError: there is none.
        RemoteProtocolError: it is longer, or brings more, than any.
        OSError: the other side is gone.
    """
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
    data, ancillary, flags, _ = connection.recvmsg(PACKET_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(descriptors.tolist())
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, "a packet that is longer, or brings more, than any")
    return data, descriptors.tolist()


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that are not wanted."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
