"""Gossipsub of the scripted peer, as somebody who speaks nothing else of the mesh.

Spec: docs/spec/08-pubsub.md.
"""

from collections.abc import Callable

from mesh.conformance.gossip import Scribe
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.quic import End, Manner
from mesh.conformance.registry import Unmet
from mesh.conformance.wire import Connection, Stream
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import Identity, PeerId
from protocol.libp2p.ping import PING_PROTOCOL
from protocol.pubsub import RPC_BYTES_MAX
from protocol.pubsub.messages import PubsubMessage, Rpc, Subscription, decode_rpc, encode_rpc
from protocol.pubsub.signing import sign_message

VERSIONS = ("/meshsub/1.2.0", "/meshsub/1.1.0", "/meshsub/1.0.0")
"""What a node offers, the newest first."""


def topic_of(network: str) -> str:
    """The topic of a network's cards."""
    return f"isochrone/{network}/cards"


class Stranger:
    """One gossipsub peer, with a stream in each direction."""

    def __init__(self, peer: ScriptedPeer, identity: Identity, connection: Connection, out: Stream) -> None:
        self.peer = peer
        self.identity = identity
        self.connection = connection
        self.out = out
        self.topic = topic_of(peer.subject.network)
        self.raw: list[bytes] = []
        self.heard: list[Rpc] = []
        self._decoder = FrameDecoder(RPC_BYTES_MAX)

    def send(self, rpc: Rpc) -> None:
        """Say one RPC."""
        self.send_bytes(encode_rpc(rpc))

    def send_bytes(self, payload: bytes) -> None:
        """Say one RPC of any bytes."""
        self.out.send(encode_frame(payload))

    def publish(self, *messages: PubsubMessage) -> None:
        """Publish messages."""
        self.send(Rpc(messages=messages))

    def subscribe(self) -> None:
        """Ask for the cards of the network, and for a link of the mesh."""
        self.send(Rpc(subscriptions=(Subscription(self.topic),)))
        self.send(Rpc(grafts=(self.topic,)))

    def incoming(self) -> list[Stream]:
        """The streams of gossipsub that the node opened."""
        return [stream for stream in self.connection.opened if stream.protocol in VERSIONS]

    def listen(self) -> list[Rpc]:
        """Decode what came and return everything heard so far.

        Raises:
            Unmet: the node said what does not decode.
        """
        for stream in self.incoming()[:1]:
            self._decoder.receive(bytes(stream.data))
            stream.data.clear()
            try:
                while (payload := self._decoder.next_frame()) is not None:
                    self.raw.append(payload)
                    self.heard.append(decode_rpc(payload))
            except RemoteProtocolError as fault:
                raise Unmet("RPCs as gossipsub lays them out", fault) from fault
        return self.heard

    def messages(self) -> list[PubsubMessage]:
        """Every message heard so far."""
        return [message for rpc in self.listen() for message in rpc.messages]

    def cards(self) -> list[bytes]:
        """The data of every message heard so far."""
        return [message.data for message in self.messages()]

    def by(self, author: PeerId) -> list[PubsubMessage]:
        """The messages of one author heard so far."""
        return [message for message in self.messages() if message.author == bytes(author)]

    async def until(self, condition: Callable[[], object], what: str, within_s: float | None = None) -> None:
        """Wait until something holds of what was heard.

        Raises:
            Unmet: it does not in time.
        """
        await self.connection.until(lambda: condition() or self.connection.end, what, within_s, seen=lambda: self.heard[-8:])
        if not condition():
            raise Unmet(what, self.connection.end)

    async def blamed(self, code: ErrorCode, what: str) -> End:
        """Wait for the connection to be closed with a code.

        Raises:
            Unmet: it is not, or with another.
        """
        end = await self.connection.ended(f"the connection closed with {code.name} for {what}")
        if not (end.by_node and end.by_application and end.code == code):
            raise Unmet(f"the connection closed with {code.name} (0x{code:x}) for {what}", end)
        return end


async def meet(peer: ScriptedPeer, identity: Identity | None = None, *, manner: Manner | None = None) -> Stranger:
    """Connect as somebody who speaks gossipsub alone, and wait for the node's stream.

    Raises:
        NotApplicable: the node offers no gossipsub.
    """
    peer.needs_gossip()
    peer.needs(VERSIONS[0])
    identity = identity or peer.stranger()
    connection = await peer.dial(manner, identity=identity, served=(*VERSIONS, PING_PROTOCOL))
    stranger = Stranger(peer, identity, connection, await connection.speak(VERSIONS[0]))
    await connection.until(stranger.incoming, "a stream of gossipsub opened by the node", seen=lambda: connection.opened)
    return stranger


async def subscribed(peer: ScriptedPeer, identity: Identity | None = None) -> Stranger:
    """The same, with a subscription and a link of the mesh that the node holds.

    Raises:
        Unmet: the node gives the link back, though it has room.
    """
    stranger = await meet(peer, identity)
    stranger.subscribe()
    await stranger.until(lambda: stranger.by(peer.subject.peer_id), "the node's own card for who subscribes")
    if any(rpc.prunes for rpc in stranger.listen()):
        raise Unmet("a link that is held when it is asked for, with room for it", "a prune")
    return stranger


def card_message(peer: ScriptedPeer, identity: Identity | None = None, *, sequence: int = 1) -> PubsubMessage:
    """The card of somebody, as its author publishes it."""
    identity = identity or peer.stranger()
    envelope = Scribe(identity, peer.subject).card(sequence=sequence)
    return sign_message(identity, envelope, sequence, topic_of(peer.subject.network))
