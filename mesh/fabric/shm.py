"""Opens shared memory with nodes of this host: the local socket, and what both sides pass by it.

Spec: docs/spec/11-fabric.md, section "Opening".
"""

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Self

from mesh.fabric.base import Opening
from mesh.fabric.door import DOOR, Terms, close_all, enter, let_in, send_packet, tell_door
from mesh.fabric.ring import Inbox, Outbox, check_bell, make_bell
from mesh.fabric.session import ShmSession
from protocol.fabric import SHM, Advert, Kind, Match, Way, host_tag
from protocol.fabric.messages import Door, Hello


def host_secret(root: Path = Path("/")) -> bytes:
    """What the processes of this host, start and network namespace share; empty where the system does not tell.

    Source: random(4), "boot_id"; network_namespaces(7).
    """
    try:
        boot_id = (root / "proc/sys/kernel/random/boot_id").read_bytes().strip()
        namespace = str((root / "proc/self/ns/net").readlink()).encode()
    except OSError:
        return b""
    return hashlib.sha256(b"isochrone-host-secret:" + boot_id + b":" + namespace).digest() if boot_id else b""


class ShmOpener:
    """Shared memory between nodes that have the same host secret."""

    kind = Kind.SHM
    keeps_stream = False

    def __init__(self, network_id: str, secret: bytes, memory_node: int | None = None) -> None:
        """Makes the host tag.

        Args:
            network_id: of the network in which the tag is told.
            secret: of the host; empty where it has none.
            memory_node: the NUMA node from which regions are to be; None leaves it to the system.
        """
        self.memory_node = memory_node
        self._tag = host_tag(secret, network_id) if secret else b""

    @property
    def absent(self) -> str:
        """Why there is none; empty where there is."""
        return "" if self._tag else "this system does not tell a boot id and a network namespace in /proc"

    def advert(self) -> Advert:
        """The host tag."""
        return Advert(host=self._tag)

    def way(self, match: Match) -> Way:
        """The same for all peers."""
        del match
        return SHM

    def figures(self) -> dict[str, object]:
        """From where regions are, if that was said."""
        return {} if self.memory_node is None else {"memory_node": self.memory_node}

    async def knock(self, opening: Opening, door: Door, own_nonce: bytes) -> ShmSession:
        """Go to the local socket that the peer has told.

        Raises:
            RemoteProtocolError: who is there is not the peer.
            OSError: nobody is there.
        """
        terms = Terms(door.secret, opening.own, opening.peer, own_nonce, door.nonce)
        with _Making() as making:
            local, passed = await enter(door.place, terms, making.passed)
            return making.session(opening, local, passed, self.memory_node)

    async def admit(self, opening: Opening, hello: Hello) -> ShmSession:
        """Bind a local socket, tell the peer its name, and let it in.

        Raises:
            RemoteProtocolError: nobody comes who is the peer.
            OSError: the system refuses.
        """
        listener, terms = await tell_door(opening, hello, Kind.SHM, end=True)
        with _Making() as making:
            local, passed = await let_in(listener, terms)
            session = making.session(opening, local, passed, self.memory_node)
            send_packet(local, terms.proof(DOOR), making.passed)
            return session

    async def run(self, changed: Callable[[], None]) -> None:
        """There is nothing to do beside sessions."""


class _Making:
    """What one side brings to a session; closed where none comes of it."""

    def __init__(self) -> None:
        self._bell = make_bell()
        try:
            self._outbox: Outbox | None = Outbox(-1)
        except BaseException:
            os.close(self._bell)
            raise
        self._taken = False

    @property
    def passed(self) -> list[int]:
        """The ring and the bell, to be passed to the other side."""
        assert self._outbox is not None
        return [self._outbox.region.descriptor, self._bell]

    def session(self, opening: Opening, local: socket.socket, passed: list[int], memory_node: int | None) -> ShmSession:
        """The session, with what the other side has passed.

        Raises:
            RemoteProtocolError: that is no ring and no bell.
        """
        assert self._outbox is not None
        ring, bell = passed
        try:
            inbox = Inbox(ring)
            check_bell(bell)
        except BaseException:
            close_all([bell])
            local.close()
            raise
        finally:
            close_all([ring])
        self._outbox.other_bell = bell
        self._taken = True
        peer, config, closed = opening.peer, opening.config, opening.on_closed
        return ShmSession(peer, config, local, self._outbox, inbox, self._bell, closed, memory_node=memory_node)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        if not self._taken:
            os.close(self._bell)
            assert self._outbox is not None
            self._outbox.region.close()
