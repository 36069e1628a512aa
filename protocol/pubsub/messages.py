"""The messages of gossipsub and their protocol buffers: subscriptions, messages, and the control of meshes.

An RPC holds any number of each. Fields of later versions are skipped, and so are the peers that a PRUNE offers: this router
connects to nobody whom it was told of so. Nothing recurses, and whatever repeats is counted over the whole RPC.

Source: libp2p/specs pubsub/README.md; pubsub/gossipsub/gossipsub-v1.0.md, v1.1 (backoff), v1.2 (IDONTWANT).
Spec: docs/spec/08-pubsub.md, section "RPCs".
"""

from collections.abc import Iterable
from dataclasses import dataclass

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.libp2p.protobuf import (
    FieldBudget,
    as_bytes,
    as_text,
    as_uint,
    encode_bytes,
    encode_text,
    encode_uint,
    read_fields,
)

RPC_BYTES_MAX = 1_048_576
"""Longest RPC in bytes (libp2p/specs pubsub/README.md: "say 1 MiB"; go-libp2p-pubsub's default)."""

RPC_FIELDS_MAX = 2048
"""Most fields of one RPC, messages and subscriptions together: a busy host subscribes to some hundred topics."""

CONTROL_FIELDS_MAX = 2048
"""Most fields of one control message: one for each topic and kind of control."""

IDS_MAX = 10_000
"""Most message ids in one RPC: twice what go-libp2p-pubsub asks for in one heartbeat."""

FIELDS_MAX = RPC_FIELDS_MAX + IDS_MAX
"""Most fields of an RPC and all that is in it, a count: every id there may be, and its own. Each takes half a microsecond."""

BYTES_PER_FIELD = 64
"""For each so many bytes an RPC may have one field more: a thousand whole messages have seven thousand."""

ID_BYTES_MAX = 256
"""Longest message id in bytes: ours have 46; ids of other applications are hashes."""

TOPIC_BYTES_MAX = 1024
"""Longest topic in bytes: ours have less than 100; others are read and left alone."""

BARE_ID_BYTES = 44
"""Length in bytes of an id as js-libp2p makes it: a public key message of 36 and a number of 8 (gossipsub, utils/msgIdFn)."""

_MULTIHASH_HEADER = b"\x00\x24"
"""An identity multihash of 36 bytes: what stands before the public key message in an Ed25519 peer id (peer-ids.md)."""

_KEY_HEADER = b"\x08\x01\x12\x20"
"""What an Ed25519 public key message begins with (peer-ids.md)."""

_MESSAGE_FIELDS_MAX = 32
"""Most fields of one message: it has six; the rest is room for later versions."""

_INNER_FIELDS_MAX = 32
"""Most fields of a subscription or a graft: they have two and one."""

_PRUNE_FIELDS_MAX = 256
"""Most fields of a prune: topic, backoff, and the peers that others exchange, of whom go sends 16."""

# Field numbers of RPC, SubOpts, Message, ControlMessage (libp2p/specs pubsub).
MESSAGES_PER_PIECE = 8
"""Messages that are verified in one go, a count: each takes up to 0.4 ms of a core, for it and the record in it are signed."""

SIGNED_BYTES_MIN = 64
"""Length below which no message is signed, in bytes: an Ed25519 signature alone has as many."""

_SUBSCRIPTIONS, _PUBLISH, _CONTROL = 1, 2, 3
_SUBSCRIBE, _TOPIC_ID = 1, 2
_FROM, _DATA, _SEQNO, _TOPIC, _SIGNATURE, _KEY = range(1, 7)
_IHAVE, _IWANT, _GRAFT, _PRUNE, _IDONTWANT = range(1, 6)
_BACKOFF = 3  # the field number of a prune's backoff


@dataclass(frozen=True, slots=True)
class PubsubMessage:
    """One message as its author signed it; empty bytes stand for what is missing.

    Attributes:
        author: the peer id of who wrote it, called `from` on the wire.
        data: what it says.
        seqno: the author's number of it, 8 bytes big-endian.
        topic: where it was published.
        signature: of the author (`protocol.pubsub.signing`).
        key: the author's public key, superfluous where the peer id holds it.
        is_later: whether it holds fields of a later version, which the signature may cover and which would be lost here.
    """

    author: bytes
    data: bytes
    seqno: bytes
    topic: str
    signature: bytes = b""
    key: bytes = b""
    is_later: bool = False

    @property
    def id(self) -> bytes:
        """What the message is called: author and number."""
        return self.author + self.seqno


def whole_id(name: bytes) -> bytes:
    """The id that is meant by one that may lack the header of the author's multihash, as js-libp2p calls messages."""
    return _MULTIHASH_HEADER + name if is_bare(name) else name


def is_bare(name: bytes) -> bool:
    """Whether an id begins with the author's public key message, which stands in the peer id behind a header."""
    return len(name) == BARE_ID_BYTES and name.startswith(_KEY_HEADER)


def bare_id(name: bytes) -> bytes:
    """An id without the header of the author's multihash, where it has one."""
    return name[len(_MULTIHASH_HEADER) :] if is_bare(name[len(_MULTIHASH_HEADER) :]) else name


@dataclass(frozen=True, slots=True)
class Subscription:
    """The sender wants messages of a topic, or wants them no more."""

    topic: str
    subscribes: bool = True


@dataclass(frozen=True, slots=True)
class IHave:
    """Messages that the sender has lately seen."""

    topic: str
    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Prune:
    """The link belongs to the sender's mesh no more; `backoff_s` is how long it is not to be asked for again, None if untold."""

    topic: str
    backoff_s: int | None = None


@dataclass(frozen=True, slots=True)
class Rpc:
    """Everything of one RPC; ids of several IWANTs or IDONTWANTs stand in one list each."""

    subscriptions: tuple[Subscription, ...] = ()
    messages: tuple[PubsubMessage, ...] = ()
    ihaves: tuple[IHave, ...] = ()
    iwants: tuple[bytes, ...] = ()
    grafts: tuple[str, ...] = ()
    prunes: tuple[Prune, ...] = ()
    idontwants: tuple[bytes, ...] = ()

    @property
    def control_entries(self) -> int:
        """How many subscriptions and control entries have to be looked at, ids counted one by one."""
        ids = len(self.iwants) + len(self.idontwants) + sum(len(ihave.ids) for ihave in self.ihaves)
        return len(self.subscriptions) + len(self.ihaves) + len(self.grafts) + len(self.prunes) + ids


def encode_rpc(rpc: Rpc) -> bytes:
    """Encode an RPC, without its length."""
    parts = [encode_bytes(_SUBSCRIPTIONS, _encode_subscription(item)) for item in rpc.subscriptions]
    parts += [encode_bytes(_PUBLISH, encode_pubsub_message(message)) for message in rpc.messages]
    control = [
        encode_bytes(_IHAVE, encode_text(1, ihave.topic) + b"".join([encode_bytes(2, name) for name in ihave.ids]))
        for ihave in rpc.ihaves
    ]
    if rpc.iwants:
        control.append(encode_bytes(_IWANT, _encode_ids(rpc.iwants)))
    control += [encode_bytes(_GRAFT, encode_text(1, topic)) for topic in rpc.grafts]
    control += [encode_bytes(_PRUNE, _encode_prune(prune)) for prune in rpc.prunes]
    if rpc.idontwants:
        control.append(encode_bytes(_IDONTWANT, _encode_ids(rpc.idontwants)))
    if control:
        parts.append(encode_bytes(_CONTROL, b"".join(control)))
    return b"".join(parts)


def encode_pubsub_message(message: PubsubMessage) -> bytes:
    """Encode a message: its fields in the order of their numbers, those that are empty left out, the topic never."""
    parts = [encode_bytes(_FROM, message.author)] if message.author else []
    if message.data:
        parts.append(encode_bytes(_DATA, message.data))
    if message.seqno:
        parts.append(encode_bytes(_SEQNO, message.seqno))
    parts.append(encode_text(_TOPIC, message.topic))
    if message.signature:
        parts.append(encode_bytes(_SIGNATURE, message.signature))
    if message.key:
        parts.append(encode_bytes(_KEY, message.key))
    return b"".join(parts)


class _Collector:
    """What one RPC holds, counted while it is read."""

    __slots__ = ("budget", "grafts", "idontwants", "ids", "ihaves", "iwants", "messages", "prunes", "subscriptions")

    def __init__(self, budget: FieldBudget) -> None:
        self.budget = budget
        self.ids = 0
        self.subscriptions: list[Subscription] = []
        self.messages: list[PubsubMessage] = []
        self.ihaves: list[IHave] = []
        self.iwants: list[bytes] = []
        self.grafts: list[str] = []
        self.prunes: list[Prune] = []
        self.idontwants: list[bytes] = []

    def take_ids(self, message: bytes, number: int) -> tuple[str, tuple[bytes, ...]]:
        """The ids in the fields of this number, and the topic in field 1 where that is another."""
        topic, found = "", list[bytes]()
        for field, value in read_fields(message, IDS_MAX + _INNER_FIELDS_MAX, self.budget):
            if field == number:
                name = as_bytes(value)
                self.ids += 1
                if len(name) > ID_BYTES_MAX or self.ids > IDS_MAX:
                    detail = f"a message id of {len(name)} bytes, the {self.ids}th of its RPC"
                    raise RemoteProtocolError(ErrorCode.TOO_LARGE, detail)
                found.append(name)
            elif field == 1:
                topic = _checked_topic(as_text(value))
        return topic, tuple(found)

    def take_control(self, message: bytes) -> None:
        """Everything in a control message."""
        for number, value in read_fields(message, CONTROL_FIELDS_MAX, self.budget):
            if number == _IHAVE:
                self.ihaves.append(IHave(*self.take_ids(as_bytes(value), 2)))
            elif number == _IWANT:
                self.iwants += self.take_ids(as_bytes(value), 1)[1]
            elif number == _GRAFT:
                self.grafts.append(_topic_and_number(as_bytes(value), 1, 0, _INNER_FIELDS_MAX, self.budget)[0])
            elif number == _PRUNE:
                self.prunes.append(Prune(*_topic_and_number(as_bytes(value), 1, _BACKOFF, _PRUNE_FIELDS_MAX, self.budget)))
            elif number == _IDONTWANT:
                self.idontwants += self.take_ids(as_bytes(value), 1)[1]


def decode_rpc(payload: bytes) -> Rpc:
    """Decode one RPC from a peer.

    Raises:
        RemoteProtocolError: TOO_LARGE for what is over a limit, MALFORMED for any other fault.
    """
    if len(payload) > RPC_BYTES_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"an RPC of {len(payload)} bytes")
    budget = FieldBudget(FIELDS_MAX + len(payload) // BYTES_PER_FIELD)
    found = _Collector(budget)
    for number, value in read_fields(payload, RPC_FIELDS_MAX, budget):
        if number == _SUBSCRIPTIONS:
            topic, subscribes = _topic_and_number(as_bytes(value), _TOPIC_ID, _SUBSCRIBE, _INNER_FIELDS_MAX, budget)
            found.subscriptions.append(Subscription(topic, bool(subscribes)))
        elif number == _PUBLISH:
            found.messages.append(decode_pubsub_message(as_bytes(value), budget))
        elif number == _CONTROL:
            found.take_control(as_bytes(value))
    return Rpc(
        tuple(found.subscriptions),
        tuple(found.messages),
        tuple(found.ihaves),
        tuple(found.iwants),
        tuple(found.grafts),
        tuple(found.prunes),
        tuple(found.idontwants),
    )


def in_pieces(payload: bytes, messages_max: int = MESSAGES_PER_PIECE) -> list[bytes]:
    """Return an RPC as several, where it holds more messages than are verified in one go; they mean the same one after another.

    Subscriptions come with the first, what else it says with the last. What cannot be read stays whole, for whoever takes it to
    find fault with.
    """
    if len(payload) <= messages_max * SIGNED_BYTES_MIN:
        return [payload]
    try:
        fields = list(read_fields(payload, RPC_FIELDS_MAX))
    except RemoteProtocolError:
        return [payload]
    told: dict[int, list[bytes]] = {_SUBSCRIPTIONS: [], _PUBLISH: [], _CONTROL: []}
    for number, value in fields:
        if number not in told:
            continue  # of a later version
        if not isinstance(value, bytes):
            return [payload]
        told[number].append(encode_bytes(number, value))
    messages = told[_PUBLISH]
    if len(messages) <= messages_max:
        return [payload]
    pieces = [b"".join(messages[at : at + messages_max]) for at in range(0, len(messages), messages_max)]
    pieces[0] = b"".join(told[_SUBSCRIPTIONS]) + pieces[0]
    pieces[-1] += b"".join(told[_CONTROL])
    return pieces


def decode_pubsub_message(message: bytes, budget: FieldBudget | None = None) -> PubsubMessage:
    """Decode one message; its fields are charged to the budget of the RPC that holds it.

    Raises:
        RemoteProtocolError: TOO_LARGE for a topic or a count over its limit, MALFORMED for any other fault.
    """
    single: dict[int, bytes] = {}
    topic: str | None = None
    is_later = False
    for number, value in read_fields(message, _MESSAGE_FIELDS_MAX, budget):
        if number == _TOPIC:
            topic = _checked_topic(as_text(value))
        elif _FROM <= number <= _KEY:
            single[number] = as_bytes(value)
        else:
            is_later = True
    if topic is None:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a message without a topic")
    return PubsubMessage(
        author=single.get(_FROM, b""),
        data=single.get(_DATA, b""),
        seqno=single.get(_SEQNO, b""),
        topic=topic,
        signature=single.get(_SIGNATURE, b""),
        key=single.get(_KEY, b""),
        is_later=is_later,
    )


def _encode_subscription(item: Subscription) -> bytes:
    return encode_uint(_SUBSCRIBE, int(item.subscribes)) + encode_text(_TOPIC_ID, item.topic)


def _encode_prune(prune: Prune) -> bytes:
    told = b"" if prune.backoff_s is None else encode_uint(_BACKOFF, prune.backoff_s)
    return encode_text(1, prune.topic) + told


def _encode_ids(ids: Iterable[bytes]) -> bytes:
    return b"".join([encode_bytes(1, name) for name in ids])


def _topic_and_number(
    message: bytes, topic_field: int, number_field: int, fields_max: int, budget: FieldBudget
) -> tuple[str, int | None]:
    """The topic and the number in two fields; the empty text, which nobody subscribes to, and None where they are missing."""
    topic, number = "", None
    for field, value in read_fields(message, fields_max, budget):
        if field == topic_field:
            topic = _checked_topic(as_text(value))
        elif field == number_field:
            number = as_uint(value)
    return topic, number


def _checked_topic(topic: str) -> str:
    if len(topic.encode()) > TOPIC_BYTES_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a topic of {len(topic.encode())} bytes")
    return topic
