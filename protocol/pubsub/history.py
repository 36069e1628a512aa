"""What a router remembers of messages: those of the last heartbeats whole, ids for two minutes, and what others promised.

Source: libp2p/specs pubsub/gossipsub/gossipsub-v1.0.md, section "Message Cache"; v1.1, section "Spam Protection Measures".
"""

from dataclasses import dataclass, field
from enum import Enum

from protocol.encoding import Luck
from protocol.identity import PeerId
from protocol.pubsub.messages import PubsubMessage

DELIVERERS_MAX = 64
"""Peers remembered as having delivered one message: as many as are served."""


@dataclass(slots=True)
class _Kept:
    message: PubsubMessage
    sent: dict[PeerId, int] = field(default_factory=dict[PeerId, int])


class MessageCache:
    """The messages of the last heartbeats, for who asks for them."""

    def __init__(self, heartbeats: int, gossip_heartbeats: int, messages_max: int) -> None:
        """Starts empty.

        Args:
            heartbeats: windows kept.
            gossip_heartbeats: the newest of them, whose ids are told.
            messages_max: messages kept; past it the oldest go.
        """
        self._gossip_heartbeats = gossip_heartbeats
        self._messages_max = messages_max
        self._kept: dict[bytes, _Kept] = {}  # oldest first
        self._windows: list[list[bytes]] = [[] for _ in range(heartbeats)]  # the newest first

    def __len__(self) -> int:
        """How many messages are kept."""
        return len(self._kept)

    def put(self, message: PubsubMessage) -> None:
        """Keeps a message."""
        if message.id in self._kept:
            return
        self._kept[message.id] = _Kept(message)
        self._windows[0].append(message.id)
        if len(self._kept) > self._messages_max:
            del self._kept[next(iter(self._kept))]

    def asked_by(self, name: bytes, peer_id: PeerId) -> tuple[PubsubMessage, int] | None:
        """A message that a peer asks for, and how often it has asked for it, this time included."""
        kept = self._kept.get(name)
        if kept is None:
            return None
        kept.sent[peer_id] = kept.sent.get(peer_id, 0) + 1
        return kept.message, kept.sent[peer_id]

    def gossip_ids(self, topic: str) -> list[bytes]:
        """The ids of a topic that are told, the newest heartbeat's first."""
        told = [name for window in self._windows[: self._gossip_heartbeats] for name in window]
        return [name for name in told if name in self._kept and self._kept[name].message.topic == topic]

    def clear(self) -> None:
        """Forgets everything."""
        for _ in range(len(self._windows)):
            self.shift()

    def shift(self) -> None:
        """Forgets the oldest heartbeat and begins a new one."""
        for name in self._windows.pop():
            self._kept.pop(name, None)
        self._windows.insert(0, [])


class Delivery(Enum):
    """What became of a message."""

    UNKNOWN = "unknown"
    VALID = "valid"
    INVALID = "invalid"
    IGNORED = "ignored"


@dataclass(slots=True)
class Seen:
    """One message that was seen: since when, what became of it and when, and who else brought it."""

    since: float
    delivery: Delivery = Delivery.UNKNOWN
    judged_at: float = 0.0
    peers: dict[PeerId, None] = field(default_factory=dict[PeerId, None])


class SeenCache:
    """The ids of the last two minutes."""

    def __init__(self, seconds: float, ids_max: int) -> None:
        """Starts empty.

        Args:
            seconds: how long an id is remembered after it was first seen.
            ids_max: ids remembered; past it the oldest go.
        """
        self._seconds = seconds
        self._ids_max = ids_max
        self._seen: dict[bytes, Seen] = {}  # oldest first

    def __len__(self) -> int:
        """How many ids are remembered."""
        return len(self._seen)

    def __contains__(self, name: bytes) -> bool:
        """Whether an id is remembered."""
        return name in self._seen

    def get(self, name: bytes) -> Seen | None:
        """What is remembered of an id."""
        return self._seen.get(name)

    def add(self, name: bytes, now: float) -> Seen:
        """Notes an id that is not remembered."""
        seen = self._seen[name] = Seen(now)
        if len(self._seen) > self._ids_max:
            del self._seen[next(iter(self._seen))]
        return seen

    def expire(self, now: float) -> None:
        """Forgets what was seen too long ago."""
        while self._seen and next(iter(self._seen.values())).since <= now - self._seconds:
            del self._seen[next(iter(self._seen))]


class Promises:
    """Messages that peers said they have and were asked for: of each question one id, at random, must come in time."""

    def __init__(self, seconds: float, luck: Luck) -> None:
        """Starts empty.

        Args:
            seconds: how long a peer has to keep its word.
            luck: which of the ids is watched.
        """
        self._seconds = seconds
        self._luck = luck
        self._due: dict[tuple[PeerId, bytes], float] = {}

    def __len__(self) -> int:
        """How many are waited for; each peer makes at most one with each IHAVE that is heard."""
        return len(self._due)

    def add(self, peer_id: PeerId, ids: list[bytes], now: float) -> None:
        """Notes that a peer was asked for these."""
        self._due.setdefault((peer_id, self._luck.choice(ids)), now + self._seconds)

    def kept(self, name: bytes) -> None:
        """Notes that a message came, from whomever."""
        for promise in [promise for promise in self._due if promise[1] == name]:
            del self._due[promise]

    def broken(self, now: float) -> dict[PeerId, int]:
        """How many each peer did not keep since this was last asked."""
        late = [promise for promise, due in self._due.items() if due <= now]
        counts: dict[PeerId, int] = {}
        for promise in late:
            del self._due[promise]
            counts[promise[0]] = counts.get(promise[0], 0) + 1
        return counts

    def handle_disconnected(self, peer_id: PeerId) -> None:
        """Waits for nothing from a peer that is gone."""
        for promise in [promise for promise in self._due if promise[0] == peer_id]:
            del self._due[promise]
