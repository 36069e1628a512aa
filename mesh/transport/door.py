"""Who is let in by the transport of a private network, and what this node shows to be let in.

A transport without a door lets in whoever proves a peer id. With one, the check is part of the TLS handshake: nothing is kept of
a peer that it refuses.

Spec: docs/spec/09-admission.md, section "Certificates".
"""

from collections.abc import Callable, Container
from dataclasses import dataclass

import trio

from mesh.machine import Machine
from mesh.transport.connection import Connection
from protocol.errors import ErrorCode
from protocol.identity import Identity, PeerId, TlsCertificate, certificate_key_digest, make_certificate, read_certificate

CERTIFICATE_ENTROPY_BYTES = 64
"""Entropy for the certificate's key in bytes: twice the strength of P-256, so that no bias is left."""

GUESTS_MAX = 16
"""Guests connected at a time: each is there for one question, and whoever finds the door full tries again."""

GUEST_S = 30.0
"""Longest stay of a guest in seconds: a question and an answer over the slowest path, and a disk that is slow too."""


@dataclass(frozen=True, slots=True)
class Door:
    """The check.

    Attributes:
        proof: what this node shows in its TLS certificate now.
        check: takes a peer id and what that peer shows; says whether it is let in as a guest only, and raises
            RemoteProtocolError where it is not let in.
        guests: the protocols that guests may open.
    """

    proof: Callable[[], bytes]
    check: Callable[[PeerId, bytes], bool]
    guests: frozenset[str] = frozenset()


class Entrance:
    """Makes this node's certificate and judges those of peers, inside the handshake."""

    def __init__(self, identity: Identity, machine: Machine, door: Door | None) -> None:
        """Takes the key, the clock and the check; without one, whoever proves a peer id is let in."""
        self._identity = identity
        self._machine = machine
        self._door = door
        self._entropy = machine.entropy(CERTIFICATE_ENTROPY_BYTES)
        self._guests: dict[bytes, None] = {}  # the incarnations of peers that have shown an invitation, the oldest first

    def speaks(self, connection: Connection, handlers: Container[str]) -> Callable[[str], bool]:
        """Which of the protocols that are served a peer may open: all of them, or those for guests."""
        guests = self._door.guests if self._door is not None else frozenset[str]()
        if connection.is_guest:
            return lambda protocol_id: protocol_id in guests and protocol_id in handlers
        return lambda protocol_id: protocol_id in handlers

    def certificate(self) -> TlsCertificate:
        """This node's certificate with what it shows now; the key is the same each time."""
        proof = self._door.proof() if self._door is not None else b""
        return make_certificate(self._identity, self._entropy, self._machine.wall(), proof)

    def verify(self, der: bytes) -> PeerId:
        """Say whose a certificate is.

        Raises:
            RemoteProtocolError: it is not valid, or its peer is not let in.
        """
        peer_id, proof = read_certificate(der, self._machine.wall())
        if self._door is not None and peer_id != self._identity.peer_id:
            incarnation = certificate_key_digest(der)
            self._guests.pop(incarnation, None)
            if self._door.check(peer_id, proof):
                self._guests[incarnation] = None
                if len(self._guests) > 2 * GUESTS_MAX:
                    del self._guests[next(iter(self._guests))]
        return peer_id

    def is_guest(self, incarnation: bytes) -> bool:
        """Whether a peer has shown an invitation and no certificate."""
        return incarnation in self._guests


async def see_guest_off(connection: Connection, n_guests: int) -> None:
    """End a guest's connection when its time is over, or at once where there are too many."""
    if n_guests <= GUESTS_MAX:
        await trio.sleep(GUEST_S)
    if connection.lost is None:
        await connection.close(ErrorCode.SURPLUS, "a guest's time is over")
