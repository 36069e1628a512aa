"""The bridge to strangers: libp2p peers that speak gossipsub and nothing of the mesh's own.

On one topic, `isochrone/<network>/cards`, each message is a card: its data is the card's envelope, its author the card's, its
number the card's sequence number. So the message of a card is the same whoever sends it, and who hears it of two gets it once.
Only the author can sign it; it does so when it seals the card, and the signature, the stamp, travels beside the envelope in the
mesh's own gossip. A node that has strangers publishes to them what is news to it, once it has verified the stamp; what comes
from strangers is judged here, and spread in the mesh like any card.

A stranger takes no member's place: it is neither probed nor suspected nor told to anybody. What it is worth is its score, to
which this module adds how near it is and how many of its messages were no good.

Source: libp2p/specs pubsub; docs/architecture.md, "The core".
Spec: docs/spec/08-pubsub.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from protocol import pubsub
from protocol.budget import Budget, Verdict
from protocol.encoding import Luck
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip import Gossip
from protocol.identity import Identity, PeerId
from protocol.pubsub import (
    SEQNO_BYTES,
    Judgement,
    MessageCame,
    PeerSubscribed,
    PubsubConfig,
    PubsubMessage,
    PubsubRouter,
    TopicScoreConfig,
    Version,
    is_signed,
    sign_message,
)
from protocol.records import Record, RecordKind, stamped
from protocol.table import PeerTable, record_key

BridgeOutput = pubsub.SendRpc | pubsub.PubsubMisbehaved
"""What the bridge wants done."""


@dataclass(frozen=True, slots=True)
class StrangersConfig:
    """The bounds of the bridge.

    Attributes:
        published_per_s: cards of others published to strangers: as many as a flooded node takes from one peer of the mesh.
        published_burst: how many at once; who fetches a whole table has others tell the rest.
        welcome_max: cards that a new subscriber is sent at once, this node's own first: without them it would hear nothing of a
            mesh at rest for up to an hour. Few, for it passes them on to others who have them.
        near_weight: what a stranger that is not far away adds to its score by that (P5), less the farther it is.
        far_s: the round trip from which on it adds nothing, in seconds: once round the Earth.
        rejected_weight: what it takes from the score when all that a stranger brings is rejected.
        rejected_memory: how many messages the share of rejected ones is over, about.
        pubsub: those of the router.
    """

    published_per_s: float = 20.0
    published_burst: int = 256
    welcome_max: int = 16
    near_weight: float = 2.0
    far_s: float = 0.3
    rejected_weight: float = -100.0
    rejected_memory: int = 20
    pubsub: PubsubConfig = field(default_factory=PubsubConfig)


@dataclass(slots=True)
class _Worth:
    """What the application score of one stranger is made of, and whether it has been sent the cards of a welcome."""

    rtt_s: float | None = None
    rejected_share: float = 0.0
    is_welcomed: bool = False


class Strangers:
    """The machine; see the module's docstring."""

    def __init__(
        self,
        config: StrangersConfig,
        identity: Identity,
        network_id: str,
        table: PeerTable,
        gossip: Gossip,
        luck: Luck,
        act: Callable[[BridgeOutput], None],
        wall: Callable[[float], float],
        settle: Callable[[float], None],
    ) -> None:
        """Nobody is served before `handle_connected`.

        Args:
            config: the bounds.
            identity: signs the messages of this node's cards.
            network_id: names the topic.
            table: where cards are.
            gossip: spreads what strangers bring.
            luck: for the router.
            act: takes what is to be done.
            wall: the wall clock at a monotonic time.
            settle: has the node drain all outputs; called after whatever the shell tells of strangers.
        """
        self.topic = cards_topic(network_id)
        scores = replace(config.pubsub.score, topics=((self.topic, TopicScoreConfig()),))
        self.router = PubsubRouter(replace(config.pubsub, score=scores), identity.peer_id, luck)
        self.router.join(self.topic, 0.0)
        self._act = act
        self._config = config
        self._identity = identity
        self._network_id = network_id
        self._table = table
        self._gossip = gossip
        self._luck = luck
        self._wall = wall
        self._settle = settle
        self._budget = Budget(config.published_per_s, config.published_burst, 0.0, 0.0)
        self._worth: dict[PeerId, _Worth] = {}

    def next_timer(self) -> float | None:
        """When to call `handle_timer`; None while there are no strangers."""
        return self.router.next_timer()

    def handle_timer(self, now: float) -> None:
        """Does what is due."""
        self.router.handle_timer(now)
        self._drain(now)

    # What the transport heard of strangers

    def handle_connected(self, peer_id: PeerId, version: Version, host: str | None, now: float, *, is_dialled: bool) -> bool:
        """Notes a connected peer that speaks gossipsub and not gossip; whether it is served, for their number is bounded."""
        is_new = peer_id not in self.router
        is_served = self.router.handle_connected(peer_id, version, host, now, is_dialled=is_dialled)
        if is_served and is_new:
            self._worth[peer_id] = _Worth()
        self._drain(now)
        self._settle(now)
        return is_served

    def handle_reopened(self, peer_id: PeerId, now: float) -> None:
        """Notes that the stream to a stranger is a new one: what was said on the old one may be lost."""
        self.router.greet(peer_id)
        self._drain(now)
        self._settle(now)

    def handle_disconnected(self, peer_id: PeerId, now: float) -> None:
        """Notes that a stranger is gone, or is none: it speaks gossip."""
        self._worth.pop(peer_id, None)
        self.router.handle_disconnected(peer_id, now)

    def handle_rpc(self, peer_id: PeerId, payload: bytes, now: float) -> None:
        """Takes an RPC of a stranger, without its length."""
        self.router.handle_rpc(peer_id, payload, now)
        self._drain(now)
        self._settle(now)

    def handle_rtt(self, peer_id: PeerId, rtt_s: float) -> None:
        """Takes over how near a stranger is, as a ping measured it."""
        if (worth := self._worth.get(peer_id)) is not None:
            worth.rtt_s = rtt_s
            self._rate(peer_id, worth)

    # Cards of the mesh

    def stamped(self, record: Record) -> Record:
        """This node's own record as strangers can be shown it: a card gets its stamp."""
        if record.kind is not RecordKind.CARD:
            return record
        return stamped(record, sign_message(self._identity, record.envelope, record.sequence, self.topic).signature)

    def publish(self, record: Record, now: float) -> None:
        """Tells strangers of a card that is news here, if there are any and its stamp is good."""
        if not len(self.router) or record.kind is not RecordKind.CARD or record.stamp is None:
            return
        message = self._message(record, record.stamp)
        own = record.peer_id == self._identity.peer_id
        if own or (self._budget.take(1, now) is Verdict.GRANTED and is_signed(message)):
            self.router.publish(message, now, own=own)
            self._drain(now)

    def _message(self, record: Record, stamp: bytes) -> PubsubMessage:
        seqno = record.sequence.to_bytes(SEQNO_BYTES, "big")
        return PubsubMessage(record.peer_id, record.envelope, seqno, self.topic, stamp)

    # What strangers say

    def _drain(self, now: float) -> None:
        while (output := self.router.next_output()) is not None:
            match output:
                case MessageCame(peer_id, message):
                    judgement = self._judge(peer_id, message, now)
                    self.router.handle_judged(peer_id, message, judgement, now)
                    self._note(peer_id, judgement)
                case PeerSubscribed(peer_id, topic):
                    if topic == self.topic:
                        self._welcome(peer_id, now)
                case _:
                    self._act(output)

    def _judge(self, peer_id: PeerId, message: PubsubMessage, now: float) -> Judgement:
        """What is made of a message that its author has signed; one with news in it is taken and spread."""
        reader, config, wall_s = self._gossip.reader, self._table.config.records, self._wall(now)
        try:
            header = reader.peek(message.data, config)
        except RemoteProtocolError as error:
            return Judgement.IGNORE if error.code is ErrorCode.UNSUPPORTED else Judgement.REJECT
        if header.peer_id != message.author or header.sequence.to_bytes(SEQNO_BYTES, "big") != message.seqno:
            return Judgement.REJECT
        if header.kind is not RecordKind.CARD or header.sequence <= self._table.sequence_of(
            record_key(header.peer_id, header.kind)
        ):
            return Judgement.IGNORE
        try:
            reader.check(header, self._network_id, wall_s, config)
            record = reader.open(message.data, self._network_id, wall_s, config)
        except RemoteProtocolError as error:
            is_fault = error.code in (ErrorCode.WRONG_NETWORK, ErrorCode.BAD_SIGNATURE)
            return Judgement.REJECT if is_fault else Judgement.IGNORE
        self._gossip.take(reader.stamped(record, message.signature), peer_id, now, wall_s)
        return Judgement.ACCEPT

    def _note(self, peer_id: PeerId, judgement: Judgement) -> None:
        """Has the share of rejected messages follow what was judged; what is ignored says nothing of who brought it."""
        worth = self._worth.get(peer_id)
        if worth is not None and judgement is not Judgement.IGNORE:
            worth.rejected_share += (float(judgement is Judgement.REJECT) - worth.rejected_share) / self._config.rejected_memory
            self._rate(peer_id, worth)

    def _rate(self, peer_id: PeerId, worth: _Worth) -> None:
        config = self._config
        near = 0.0 if worth.rtt_s is None else max(0.0, 1.0 - worth.rtt_s / config.far_s)
        self.router.scores.set_app_score(peer_id, config.near_weight * near + config.rejected_weight * worth.rejected_share)

    def _welcome(self, peer_id: PeerId, now: float) -> None:
        """Sends a new subscriber this node's card and some others, once in a connection: looking for them is dear."""
        worth = self._worth.get(peer_id)
        if worth is None or worth.is_welcomed:
            return
        worth.is_welcomed = True
        own, wall_s = self._identity.peer_id, self._wall(now)
        others = [known for known in self._table.known() if known != own]
        chosen = [own, *self._luck.sample(others, min(len(others), self._config.welcome_max - 1))]
        for author in chosen:
            record = self._table.get(author, RecordKind.CARD)
            if record is None or record.stamp is None or wall_s >= record.expires_s:
                continue
            message = self._message(record, record.stamp)
            if author == own or (self._budget.take(1, now) is Verdict.GRANTED and is_signed(message)):
                self.router.send_to(peer_id, message)


def cards_topic(network_id: str) -> str:
    """The topic of a network's cards."""
    return f"isochrone/{network_id}/cards"
