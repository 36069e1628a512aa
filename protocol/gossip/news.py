"""What was news a moment ago, and how often it came again: what is known all round need not be announced.

Source: gossipsub v1.0 (libp2p/specs), the message cache and its gossip of the last heartbeats; that copies stand for how well a
message is known is our addition.
Spec: docs/spec/04-gossip.md, section "News".
"""

from collections.abc import Iterable
from dataclasses import dataclass

from protocol.gossip.conversation import Conversation
from protocol.gossip.events import GossipConfig
from protocol.gossip.horizon import Horizon
from protocol.gossip.messages import stamped_messages
from protocol.identity import PeerId
from protocol.records import Record
from protocol.table import COMPARED, RecordKey


@dataclass(slots=True)
class _Item:
    sequence: int
    heartbeats_left: int
    copies: int = 0  # that came after the first


class News:
    """Keys and sequence numbers of the records of the last heartbeats, bounded."""

    def __init__(self, heartbeats: int, items_max: int) -> None:
        """Starts empty.

        Args:
            heartbeats: for how many an item is kept.
            items_max: items kept; past it the oldest go.
        """
        self._heartbeats = heartbeats
        self._items_max = items_max
        self._items: dict[RecordKey, _Item] = {}  # oldest first

    def add(self, key: RecordKey, sequence: int) -> None:
        """Notes a record that has been pushed."""
        self._items.pop(key, None)
        self._items[key] = _Item(sequence, self._heartbeats)
        if len(self._items) > self._items_max:
            del self._items[next(iter(self._items))]

    def came_again(self, key: RecordKey, sequence: int) -> None:
        """Notes a copy of a record that is known."""
        item = self._items.get(key)
        if item is not None and item.sequence == sequence:
            item.copies += 1

    def heartbeat(self, copies_enough: int) -> list[tuple[RecordKey, int]]:
        """What came again fewer than `copies_enough` times and is to be announced; everything grows older by a heartbeat."""
        scarce = [(key, item.sequence) for key, item in self._items.items() if item.copies < copies_enough]
        for item in self._items.values():
            item.heartbeats_left -= 1
        self._items = {key: item for key, item in self._items.items() if item.heartbeats_left > 0}
        return scarce


@dataclass(slots=True)
class Renewal:
    """A card that says what the one before said, or no more than where its node is now.

    Attributes:
        key: of the card.
        record: the card.
        replaced: the one before: who moves is told of where it was, too.
        known_by: who has told this node of it.
    """

    key: RecordKey
    record: Record
    replaced: Record | None
    known_by: set[PeerId]


class Renewals:
    """Cards that can wait: they are announced at the next heartbeat, and asked for by who lacks them."""

    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._items: dict[RecordKey, Renewal] = {}
        self._added_at = float("-inf")
        self._rounds_left_out = 0

    def add(self, renewal: Renewal, now: float) -> None:
        """Has a card announced, in place of an older one of the same node."""
        self._items[renewal.key] = renewal
        if renewal.record.kind in COMPARED:  # others make no table differ
            self._added_at = now

    def leave_out_round(self, now: float) -> bool:
        """Whether a round is no time to compare tables, for cards that are on their way make them differ; not many in a row."""
        config = self._config
        in_motion = now < self._added_at + config.in_motion_s
        self._rounds_left_out = (
            self._rounds_left_out + 1 if in_motion and self._rounds_left_out < config.rounds_left_out_max else 0
        )
        return self._rounds_left_out > 0

    def handle_told(self, peer_id: PeerId, entries: Iterable[tuple[RecordKey, int]]) -> None:
        """Notes what a peer has, who need not be told of it."""
        for key, sequence in entries if self._items else ():
            item = self._items.get(key)
            if item is not None and sequence >= item.record.sequence:
                item.known_by.add(peer_id)

    def taken(self) -> list[Renewal]:
        """What is to be announced now; it is kept no longer."""
        items = list(self._items.values())
        self._items = {}
        return items


def fresh_for(peer_id: PeerId, peer: Conversation, renewals: Iterable[Renewal], horizon: Horizon) -> list[tuple[RecordKey, int]]:
    """Which of the cards that can wait a peer is to be told of: those that concern it and that it has not told of itself."""
    return [
        (item.key, item.record.sequence)
        for item in renewals
        if peer_id not in item.known_by
        and peer.has.get(item.key, 0) < item.record.sequence
        and (peer.scope is None or horizon.concerns(peer.scope, item.record, item.replaced))
    ]


class Pushes:
    """What is to be pushed, and to whom, when the present call ends: all of it for one peer in as few messages as hold it."""

    def __init__(self) -> None:
        self._news: dict[PeerId, list[tuple[bytes, bytes | None]]] = {}  # envelopes, each with its stamp

    def add(self, peer_id: PeerId, record: Record) -> None:
        """Has a record pushed to a peer."""
        self._news.setdefault(peer_id, []).append((record.envelope, record.stamp))

    def taken(self) -> list[tuple[PeerId, list[bytes]]]:
        """The messages for each peer, in the order in which they were first given something; they are kept no longer."""
        if not self._news:
            return []
        encoded: dict[tuple[tuple[bytes, bytes | None], ...], list[bytes]] = {}  # most peers are told the same
        told: list[tuple[PeerId, list[bytes]]] = []
        for peer_id, pushed in self._news.items():
            news = tuple(pushed)
            if news not in encoded:
                encoded[news] = stamped_messages(news)
            told.append((peer_id, encoded[news]))
        self._news = {}
        return told
