"""What a case is given: the node under test, and a peer that does to it whatever the case says.

Everything a case begins (sockets, connections, listeners) ends with the case. Identities are fresh, so that no case sees what
another one left behind. `Subject` is what was found out about the node before the first case.

Spec: docs/spec/README.md, section "The conformance suite".
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from mesh.conformance.certificates import GOOD, Chain, Recipe, make_chain
from mesh.conformance.papers import Papers
from mesh.conformance.quic import Manner, OpenConnection
from mesh.conformance.registry import NotApplicable, Unmet
from mesh.conformance.wire import Address, Connection, Link, Stream, dialled
from mesh.transport.udp import local_address_towards
from protocol.errors import RemoteProtocolError
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.identity import Identity, PeerId, peer_id_text, verify_certificate
from protocol.libp2p.identify import IDENTIFY_PROTOCOL, Identify, IdentifyReader
from protocol.libp2p.ping import PING_BYTES, PING_PROTOCOL
from protocol.multiaddr import Multiaddr
from protocol.records import Card
from protocol.wire.inference import PROTOCOL_ID as INFER_PROTOCOL

if TYPE_CHECKING:
    from mesh.conformance.gossip import Gossip

SERVED = (GOSSIP_PROTOCOL, PING_PROTOCOL, IDENTIFY_PROTOCOL)
"""What the scripted peer agrees to on streams that the node opens, unless a case says otherwise."""

NOBODY = PeerId(b"")
"""Stands for a peer id that is not known yet."""

PATIENCE_S = 4.0
"""How long a case waits for what must come, in seconds, where the specification gives no time: far more than any path needs."""

QUIET_S = 0.25
"""How long a case waits for what must not come, in seconds and on top of a round trip, before it takes it for granted."""


@dataclass(slots=True)
class Subject:
    """The node under test.

    Attributes:
        address: its numeric address.
        expected: the peer id that was named, None for anybody.
        peer_id: who answers there.
        network: its network, empty where it speaks no gossip.
        said: what it says of itself.
        card: its card, None where it speaks no gossip.
        envelope: the envelope of that card.
        rtt_s: the round trip to it.
        n_others: how many records of others it held before the first case: those of its mesh, and of a run before.
        shown: what it shows of its membership, empty in an open network.
        papers: by which the suite acts as members of its network, None where it cannot.
        is_closed: whether it does not let the suite in.
    """

    address: Multiaddr
    expected: PeerId | None = None
    peer_id: PeerId = NOBODY
    network: str = ""
    said: Identify = field(default_factory=Identify)
    card: Card | None = None
    envelope: bytes = b""
    rtt_s: float = 0.05
    n_others: int = 0
    shown: bytes = b""
    papers: Papers | None = None
    is_closed: bool = False

    def proof_of(self, identity: Identity) -> bytes:
        """What a peer of the suite shows of its membership: nothing in an open network."""
        return b"" if self.papers is None else self.papers.of(identity)

    @property
    def sockaddr(self) -> Address:
        """The address as sockets write it."""
        if self.address.protocol == "ip6":
            return (self.address.host, self.address.port, 0, 0)
        return (self.address.host, self.address.port)

    @property
    def patience_s(self) -> float:
        """How long to wait for what must come."""
        return PATIENCE_S + 20 * self.rtt_s

    @property
    def quiet_s(self) -> float:
        """How long to wait for what must not come."""
        return QUIET_S + 3 * self.rtt_s


class Listener:
    """A place where the scripted peer can be dialled."""

    def __init__(self, identity: Identity, link: Link, host: str, subject: Subject) -> None:
        self.identity = identity
        self.address = Multiaddr("ip6" if ":" in host else "ip4", host, link.port)
        self.connections: list[Connection] = []
        self.subject = subject
        self._from_node: list[Connection] = []
        self._changed = trio.lowlevel.ParkingLot()

    def add(self, connection: Connection, source: Address) -> None:
        """Note that somebody has dialled."""
        self.connections.append(connection)
        if source[:2] == self.subject.sockaddr[:2]:
            self._from_node.append(connection)
        self._changed.unpark_all()

    async def accepted(self, within_s: float) -> Connection | None:
        """Wait for the node to dial; None when it does not.

        Other members of its mesh learn the card, too, and dial: who comes from elsewhere than the node's address is taken for it
        only where it knows nobody else.
        """
        with trio.move_on_after(within_s):
            while not self._from_node:
                await self._changed.park()
        found = self._from_node or ([] if self.subject.n_others else self.connections)
        return found[0] if found else None


class ScriptedPeer:
    """A peer that a case drives."""

    def __init__(self, subject: Subject, nursery: trio.Nursery) -> None:
        self.subject = subject
        self.identity = Identity(os.urandom(32))
        self._nursery = nursery
        self._connections: list[Connection] = []
        self._links: list[Link] = []
        self.listeners: list[Listener] = []
        self.links: list[Gossip] = []

    @staticmethod
    def stranger() -> Identity:
        """Make an identity that nobody knows."""
        return Identity(os.urandom(32))

    def chain(self, identity: Identity | None = None, recipe: Recipe = GOOD) -> Chain:
        """What a peer shows in TLS, in a private network with its membership."""
        identity = identity or self.identity
        return make_chain(identity, replace(recipe, proof=self.subject.proof_of(identity)))

    # Connections

    def begin(
        self,
        manner: Manner | None = None,
        *,
        identity: Identity | None = None,
        served: tuple[str, ...] = SERVED,
        link: Link | None = None,
    ) -> Connection:
        """Begin a connection and do not wait for the handshake."""
        manner = manner or Manner(self.chain(identity))
        link = link or self.link()
        connection = dialled(manner, link, self.subject.sockaddr, served, self.subject.patience_s)
        return self._keep(connection)

    async def dial(
        self,
        manner: Manner | None = None,
        *,
        identity: Identity | None = None,
        served: tuple[str, ...] = SERVED,
        link: Link | None = None,
    ) -> Connection:
        """Connect as an honest peer does, and wait until the node has accepted it."""
        return await self.begin(manner, identity=identity, served=served, link=link).established()

    def manner(self, **changes: object) -> Manner:
        """Return the usual manner with changes."""
        return replace(Manner(self.chain()), **changes)  # type: ignore[arg-type]

    def link(self) -> Link:
        """Open a socket towards the node."""
        link = Link("::" if self.subject.address.protocol == "ip6" else "0.0.0.0")  # noqa: S104  (a socket that dials)
        self._links.append(link)
        self._nursery.start_soon(link.run)
        return link

    def listen(
        self, identity: Identity | None = None, manner: Manner | None = None, served: tuple[str, ...] = SERVED
    ) -> Listener:
        """Open a place where the node can dial this peer."""
        identity = identity or self.identity
        host = local_address_towards(self.subject.address.host)
        if host is None:
            raise NotApplicable("this machine has no address that the node could dial")
        link = Link(host)
        self._links.append(link)
        listener = Listener(identity, link, host, self.subject)
        self.listeners.append(listener)
        chosen = manner or Manner(self.chain(identity))

        def accept(cid: bytes, address: Address) -> Connection:
            quic = OpenConnection(chosen, cid)
            connection = Connection(quic, link, served, self.subject.patience_s)
            link.routes[cid] = link.routes[quic.host_cid] = connection
            listener.add(self._keep(connection), address)
            return connection

        link.accept = accept
        self._nursery.start_soon(link.run)
        return listener

    def _keep(self, connection: Connection) -> Connection:
        self._connections.append(connection)
        self._nursery.start_soon(connection.run_timer)
        return connection

    def leave(self) -> None:
        """End everything that the case began."""
        for connection in self._connections:
            connection.close()
        for link in self._links:
            link.close()

    # What every node can do

    async def ping(self, connection: Connection, within_s: float | None = None) -> None:
        """Have one ping echoed: what was sent on the connection before has been taken by then.

        Raises:
            Unmet: no echo comes, or a wrong one.
        """
        stream = await connection.speak(PING_PROTOCOL)
        sent = os.urandom(PING_BYTES)
        stream.send(sent)
        await stream.until(lambda: len(stream.data) >= PING_BYTES, "the echo of a ping", within_s)
        if bytes(stream.data) != sent:
            raise Unmet("the 32 bytes of the ping", bytes(stream.data).hex())
        stream.send(b"", end=True)
        await stream.until(lambda: stream.ended, "the end of the ping stream")

    async def others_are_served(self) -> None:
        """See that the node still serves somebody else.

        Raises:
            Unmet: it does not.
        """
        other = await self.dial(identity=self.stranger())
        await self.ping(other)
        other.close()

    async def nothing_happens(self, connection: Connection) -> None:
        """See that a connection goes on: a ping is echoed and the connection lives for a moment more.

        Raises:
            Unmet: it ended.
        """
        await self.ping(connection)
        await self.never(connection, lambda: connection.end, "a connection that goes on")

    async def never(
        self, connection: Connection, condition: Callable[[], object], expected: str, within_s: float | None = None
    ) -> None:
        """See that something does not come for a moment.

        Raises:
            Unmet: it came.
        """
        with trio.move_on_after(self.subject.quiet_s if within_s is None else within_s):
            await connection.until(condition, "", within_s=60.0)
            raise Unmet(expected, connection.end or "it came")

    async def identify(self, connection: Connection) -> tuple[Identify, Stream]:
        """Ask the node what it says of itself."""
        stream = await connection.speak(IDENTIFY_PROTOCOL)
        stream.send(b"", end=True)
        reader = IdentifyReader()
        try:
            reader.receive_data(await stream.receive_all("an identify message and the end of the stream"))
            return reader.receive_eof(), stream
        except RemoteProtocolError as fault:
            raise Unmet("an identify message", fault) from fault

    # What the node must offer for a case

    def needs(self, protocol: str) -> None:
        """Go on only if the node offers a protocol.

        Raises:
            NotApplicable: it does not.
        """
        if protocol not in self.subject.said.protocols:
            raise NotApplicable(f"the node does not offer {protocol}")

    def needs_gossip(self) -> None:
        """Go on only if the node is a member of a mesh."""
        self.needs(GOSSIP_PROTOCOL)

    def needs_a_private_node(self) -> None:
        """Go on only if the node belongs to a private network.

        Raises:
            NotApplicable: it does not.
        """
        if not self.subject.shown:
            raise NotApplicable("the node belongs to an open network")

    def needs_papers(self) -> Papers:
        """Go on only if certificates of the node's network can be made.

        Raises:
            NotApplicable: they cannot.
        """
        self.needs_a_private_node()
        if self.subject.papers is None:
            raise NotApplicable("it takes the key of the node's network: name its directory with --network-dir")
        return self.subject.papers

    def needs_inference(self) -> None:
        """Go on only if the node answers requests."""
        self.needs(INFER_PROTOCOL)


def proven(connection: Connection, wall_s: float) -> PeerId:
    """Return the peer id that the node's certificate proves.

    Raises:
        Unmet: it proves none.
    """
    shown = connection.quic.shown.certificates
    if len(shown) != 1:
        raise Unmet("exactly one certificate", f"{len(shown)} certificates")
    try:
        return verify_certificate(shown[0], wall_s)
    except RemoteProtocolError as fault:
        raise Unmet("a certificate by the rules of chapter 1", fault) from fault


def short(peer_id: PeerId) -> str:
    """Return the end of a peer id, by which a person tells peers apart."""
    return peer_id_text(peer_id)[-8:]
