"""Gossip of the scripted peer: one conversation with the node, and records made by hand.

A conversation has two streams, one for each direction. What the node says is decoded when somebody looks; what is said to it may
be any bytes.

Spec: docs/spec/03-records.md, docs/spec/04-gossip.md.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import trio

from mesh.conformance.peer import SERVED, Listener, ScriptedPeer, Subject
from mesh.conformance.quic import End, Manner
from mesh.conformance.registry import NotApplicable, Unmet
from mesh.conformance.wire import Connection, Stream
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.gossip.messages import (
    Entries,
    Graft,
    Message,
    Prune,
    Records,
    Want,
    decode_message,
    encode_message,
)
from protocol.identity import Identity, PeerId
from protocol.multiaddr import Multiaddr
from protocol.records import DEFAULT_RECORD_CONFIG, Card, Hardware, ModelOffer, Payload, RecordKind, encode_payload, peek, seal
from protocol.records.envelope import RECORD_DOMAIN
from protocol.table import RecordKey
from protocol.wire import PackingLimits, pack, unpack

MESSAGE_BYTES_MAX = 65_536
"""Longest gossip message in bytes (ISO-GOS-001)."""

LIFETIME_S = 60.0
"""Lifetime of the records that cases tell, in seconds: long enough for a case, short enough to leave no trace."""

WIDE = PackingLimits(size_bytes_max=1 << 20, depth_max=32, values_max=100_000)
"""Limits for what is packed by hand: wider than anything that a node accepts."""

HARDWARE = Hardware("conformance", 1, 1 << 30, 1)
"""What the scripted peer says that it runs on."""

LAST_SEQUENCE = 1 << 40
"""Number of the last card of a peer that was told where it can be dialled: greater than any that a case gives."""

LURES_MAX = 3
"""How often the node is told where it can dial, a count: cases that run at the same time may give it, for a moment, too many
connections for that (ISO-MEMBER-013)."""

WITHDRAWN_S_MAX = 2.0
"""How long a case takes at most to withdraw what it told, in seconds: it is a courtesy to the node, and no part of the case."""

_M = TypeVar("_M")


def record_key(kind: str, peer_id: PeerId) -> RecordKey:
    """Return the key of a record (docs/spec/04-gossip.md, section "Digests")."""
    return RecordKey(hashlib.sha256(kind.encode() + b":" + bytes(peer_id)).digest()[:8])


def with_proof(payload: bytes, proof: bytes) -> bytes:
    """Put the proof of its author's membership on a card that is a map; whatever else there is stays as it is."""
    if not proof:
        return payload
    try:
        plain = unpack(payload, WIDE)
    except RemoteProtocolError:
        return payload
    return pack({**plain, "membership": proof}, WIDE) if isinstance(plain, dict) else payload


def card_of(
    addresses: Sequence[Multiaddr] = (),
    models: Sequence[ModelOffer] = (),
    agent: str = "conformance",
    incarnation: int = 0,
) -> Card:
    """Make a plain card."""
    return Card(tuple(addresses), HARDWARE, tuple(models), None, agent, incarnation)


def signed(identity: Identity, packed: bytes) -> bytes:
    """Sign the bytes of a record as they are."""
    return identity.sign(RECORD_DOMAIN + packed) + packed


class Scribe:
    """Makes records of one identity on the node's network, in a private one with the proof of its membership on cards."""

    def __init__(self, identity: Identity, subject: Subject) -> None:
        self.identity = identity
        self.network = subject.network
        self._proof = subject.proof_of(identity)
        self.sequence = 0

    def seal(
        self,
        payload: Payload,
        *,
        sequence: int | None = None,
        issued_in_s: float = 0.0,
        lasts_s: float = LIFETIME_S,
        network: str | None = None,
        vouched: bool = True,
    ) -> bytes:
        """Seal a payload as this identity's next record, or with a chosen number; unless `vouched`, as it is."""
        if isinstance(payload, Card) and vouched:
            payload = replace(payload, membership=self._proof)
        self.sequence = self.sequence + 1 if sequence is None else sequence
        issued_s = time.time() + issued_in_s
        return seal(
            self.identity, self.network if network is None else network, payload, self.sequence, issued_s, issued_s + lasts_s
        ).envelope

    def card(self, **named: object) -> bytes:
        """Seal a plain card."""
        return self.seal(card_of(), **named)  # type: ignore[arg-type]

    def testify(self, payload: Payload) -> tuple[bytes, ...]:
        """Seal what a node takes of known members alone: in a private network the author's card goes before it."""
        return (*((self.card(),) if self._proof else ()), self.seal(payload))

    def by_hand(self, payload: bytes, kind: str = "card", *, peer_id: bytes | None = None, more: Sequence[object] = ()) -> bytes:
        """Sign a header round a payload that may be anything."""
        self.sequence += 1
        payload = with_proof(payload, self._proof) if kind == "card" else payload
        issued_ms = int(time.time() * 1000)
        fields = [self.network, kind, bytes(self.identity.peer_id) if peer_id is None else peer_id, self.sequence]
        fields += [issued_ms, issued_ms + int(LIFETIME_S * 1000), payload, *more]
        return signed(self.identity, pack(fields, WIDE))


class Gossip:
    """One conversation with the node."""

    def __init__(self, peer: ScriptedPeer, identity: Identity, connection: Connection, out: Stream) -> None:
        self.peer = peer
        self.identity = identity
        self.connection = connection
        self.out = out
        self.scribe = Scribe(identity, peer.subject)
        self.heard: list[Message] = []
        self.raw: list[bytes] = []
        self._decoders: dict[int, FrameDecoder] = {}

    def send(self, *messages: Message) -> None:
        """Say messages."""
        self.out.send(b"".join(encode_frame(encode_message(message)) for message in messages))

    def send_records(self, *envelopes: bytes) -> None:
        """Push records."""
        self.send(Records(envelopes))

    def send_bytes(self, message: bytes) -> None:
        """Say a message that is not packed by us."""
        self.out.send(encode_frame(message))

    def send_plain(self, *values: object) -> None:
        """Say messages packed by hand."""
        self.out.send(b"".join(encode_frame(pack(value, WIDE)) for value in values))

    def listen(self) -> list[Message]:
        """Decode what came and return everything heard so far.

        Raises:
            Unmet: the node said what does not decode.
        """
        for stream in self.connection.of(GOSSIP_PROTOCOL):
            decoder = self._decoders.setdefault(stream.id, FrameDecoder(MESSAGE_BYTES_MAX))
            decoder.receive(bytes(stream.data))
            stream.data.clear()
            try:
                while (payload := decoder.next_frame()) is not None:
                    self.raw.append(payload)
                    message = decode_message(payload)
                    if message is not None:
                        self.heard.append(message)
            except RemoteProtocolError as fault:
                raise Unmet("gossip messages as chapter 4 lays them out", fault) from fault
        return self.heard

    def of(self, kind: type[_M]) -> list[_M]:
        """Everything of one kind that was heard so far."""
        return [message for message in self.listen() if isinstance(message, kind)]

    def envelopes(self) -> list[bytes]:
        """All records heard so far, as they came."""
        return [envelope for message in self.of(Records) for envelope in message.envelopes]

    def entries(self) -> dict[RecordKey, int]:
        """The greatest sequence number heard for each key so far."""
        told: dict[RecordKey, int] = {}
        for message in self.of(Entries):
            for key, sequence in message.entries:
                told[key] = max(sequence, told.get(key, 0))
        return told

    async def until(self, condition: Callable[[], object], what: str, within_s: float | None = None) -> None:
        """Wait until something holds of what was heard.

        Raises:
            Unmet: it does not in time.
        """
        await self.connection.until(lambda: condition() or self.connection.end, what, within_s, seen=self._summary)
        if not condition():
            raise Unmet(what, self.connection.end)

    def _summary(self) -> str:
        return str(self.connection.end or [type(message).__name__ for message in self.heard[-12:]])

    @property
    def lost_its_link(self) -> bool:
        """Whether the node has given back the link that it held with this side, and has others."""
        return bool(self.peer.subject.n_others) and self in self.peer.links and bool(self.of(Prune))

    async def hears(self, envelope: bytes, what: str, within_s: float | None = None) -> None:
        """Wait for one record, byte for byte; in vain once the link over which it would come was given back."""
        await self.until(lambda: envelope in self.envelopes() or self.lost_its_link, what, within_s)
        if envelope not in self.envelopes():
            raise Unmet(what, "the link was given back before")

    def cards_of_node(self) -> list[bytes]:
        """The node's own cards heard so far, as they came."""
        return [envelope for envelope in self.envelopes() if is_card_of(envelope, self.peer.subject.peer_id)]

    async def settled(self) -> None:
        """Wait until the node has taken everything that was said: what is asked for last is answered last.

        What is asked for is the node's card. One that was not heard before may have been pushed, as news, before the question was
        read; then it is asked for once more, for no card is pushed twice.
        """
        own = record_key("card", self.peer.subject.peer_id)
        for _ in range(2):
            heard = self.cards_of_node()
            self.send(Want((own,)))
            await self.until(
                lambda heard=heard: len(self.cards_of_node()) > len(heard),  # type: ignore[misc]
                "the node's own card when it is wanted",
            )
            if self.cards_of_node()[len(heard)] in (*heard, self.peer.subject.envelope):
                return

    async def blamed(self, code: ErrorCode, what: str) -> End:
        """Wait for the connection to be closed with a code.

        Raises:
            Unmet: it is not, or with another.
        """
        end = await self.connection.ended(f"the connection closed with {code.name} for {what}")
        if not (end.by_node and end.by_application and end.code == code):
            raise Unmet(f"the connection closed with {code.name} (0x{code:x}) for {what}", end)
        return end

    async def holds(self, envelope: bytes, key: RecordKey) -> bool:
        """Ask the node for a record and say whether it is this one."""
        n_heard = len(self.envelopes())
        self.send(Want((key,)))
        await self.settled()
        return envelope in self.envelopes()[n_heard:]


def is_card_of(envelope: bytes, peer_id: PeerId) -> bool:
    """Whether an envelope holds the card of a peer; not its verdict, nor what names it."""
    if bytes(peer_id) not in envelope:
        return False
    try:
        header = peek(envelope)
    except RemoteProtocolError:
        return False
    return header.kind is RecordKind.CARD and header.peer_id == peer_id


async def talk(
    peer: ScriptedPeer, identity: Identity | None = None, *, connection: Connection | None = None, settle: bool = True
) -> Gossip:
    """Connect, open the conversation, and wait until the node has opened its side.

    Raises:
        NotApplicable: the node speaks no gossip.
    """
    peer.needs_gossip()
    identity = identity or peer.identity
    if connection is None:
        connection = await peer.dial(identity=identity)
    out = await connection.speak(GOSSIP_PROTOCOL)
    gossip = Gossip(peer, identity, connection, out)
    await connection.until(lambda: connection.of(GOSSIP_PROTOCOL), "a gossip stream opened by the node")
    if settle:
        await gossip.settled()
    return gossip


async def dialled_for(listener: Listener, tell: Callable[[int], None]) -> Connection | None:
    """Tell a card, given its incarnation, and wait for the node to dial; None when it does not.

    Whoever it did not dial for want of room is dialled when a greater incarnation shows that it lives.
    """
    for incarnation in range(LURES_MAX):
        tell(incarnation)
        connection = await listener.accepted(listener.subject.patience_s / 2)
        if connection is not None:
            return connection
    return None


async def lure(
    peer: ScriptedPeer,
    identity: Identity | None = None,
    manner: Manner | None = None,
    served: tuple[str, ...] = SERVED,
) -> tuple[Gossip, Listener, Connection]:
    """Have the node dial: somebody tells it a card with an address of the scripted peer.

    Returns:
        The conversation of who told the card, the listener, and the connection that the node opened.

    Raises:
        NotApplicable: the node speaks no gossip or does not dial.
    """
    herald = await talk(peer, peer.stranger())
    identity = identity or peer.stranger()
    listener = peer.listen(identity, manner, served)
    scribe = Scribe(identity, peer.subject)
    connection = await dialled_for(
        listener, lambda life: herald.send_records(scribe.seal(card_of([listener.address], incarnation=life)))
    )
    if connection is None:
        raise NotApplicable("the node does not dial a peer whose card it learns (ISO-MEMBER-013)")
    return herald, listener, connection


async def withdraw(peer: ScriptedPeer) -> None:
    """Tell the node that there is nobody any more where a case had it dial.

    Without that it goes on dialling the dead addresses for minutes, a few at a time, and does not come to those of later cases.
    """
    if not peer.listeners:
        return
    with trio.move_on_after(WITHDRAWN_S_MAX), suppress(Unmet, NotApplicable):
        gossip = await talk(peer, peer.stranger(), settle=False)
        scribes = [Scribe(listener.identity, peer.subject) for listener in peer.listeners]
        gossip.send_records(*[scribe.seal(card_of(), sequence=LAST_SEQUENCE, lasts_s=1.0) for scribe in scribes])
        await gossip.settled()


def card_fields(card: Card | None = None) -> dict[str, object]:
    """Return the payload of a card as a map, to be spoilt."""
    plain = unpack(encode_payload(card or card_of(), DEFAULT_RECORD_CONFIG), WIDE)
    assert isinstance(plain, dict)
    return dict(plain)


async def joined(peer: ScriptedPeer, identity: Identity | None = None, *, connection: Connection | None = None) -> Gossip:
    """Begin a conversation whose link belongs to the mesh of both ends.

    Raises:
        Unmet: the node gives the link back, though it has room.
    """
    gossip = await talk(peer, identity, connection=connection)
    peer.links.append(gossip)
    gossip.send(Graft())
    await gossip.settled()
    links = [message for message in gossip.listen() if isinstance(message, Graft | Prune)]
    if links and isinstance(links[-1], Prune):
        raise Unmet("a link that is held when it is asked for, with room for it", "a prune")
    return gossip


async def told_through(herald: Gossip, listener: Gossip) -> bytes:
    """Tell the card of a stranger and wait until it has come through: what was told before has come by then, or never will.

    Raises:
        Unmet: it does not come through.
    """
    envelope = Scribe(herald.peer.stranger(), herald.peer.subject).card()
    herald.send_records(envelope)
    await listener.hears(envelope, "news passed on over a link of the mesh")
    return envelope
