"""What was news a moment ago, and how often it came again: what is known all round need not be announced.

Source: gossipsub v1.0 (libp2p/specs), the message cache and its gossip of the last heartbeats; that copies stand for how well a
message is known is our addition.
Spec: docs/spec/04-gossip.md, section "News".
"""

from dataclasses import dataclass

from protocol.gossip.messages import records_messages
from protocol.identity import PeerId
from protocol.table import RecordKey


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


class Pushes:
    """What is to be pushed, and to whom, when the present call ends: all of it for one peer in as few messages as hold it."""

    def __init__(self) -> None:
        self._news: dict[PeerId, list[bytes]] = {}

    def add(self, peer_id: PeerId, envelope: bytes) -> None:
        """Has a record pushed to a peer."""
        self._news.setdefault(peer_id, []).append(envelope)

    def taken(self) -> list[tuple[PeerId, list[bytes]]]:
        """The messages for each peer, in the order in which they were first given something; they are kept no longer."""
        if not self._news:
            return []
        encoded: dict[tuple[bytes, ...], list[bytes]] = {}  # most peers are told the same
        told: list[tuple[PeerId, list[bytes]]] = []
        for peer_id, envelopes in self._news.items():
            news = tuple(envelopes)
            if news not in encoded:
                encoded[news] = records_messages(news)
            told.append((peer_id, encoded[news]))
        self._news = {}
        return told
