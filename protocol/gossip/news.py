"""What a node has to announce: what was news at the last heartbeats, and cards that say nothing new.

News is announced at a few heartbeats, as long as it is scarce: of what has come again from others it is known that it is spread
already. A card that only takes the place of one that would expire is announced once, at the next heartbeat.

Source: gossipsub v1.0 specification (libp2p/specs), message cache and IHAVE.
Spec: docs/spec/04-gossip.md, section "News".
"""

from dataclasses import dataclass

from protocol.gossip.events import GossipConfig
from protocol.table import RecordKey


@dataclass(slots=True)
class _Item:
    sequence: int
    heartbeats_left: int
    copies: int = 0  # that came after the first


class News:
    """The memory; entries are keys of records with their sequence numbers, oldest first."""

    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._items: dict[RecordKey, _Item] = {}
        self._renewed: dict[RecordKey, int] = {}

    def note(self, key: RecordKey, sequence: int) -> None:
        """Remembers a record that is news; the oldest is forgotten when there are too many."""
        self._items.pop(key, None)
        self._items[key] = _Item(sequence, self._config.history_heartbeats)
        if len(self._items) > self._config.history_max:
            del self._items[next(iter(self._items))]

    def note_copy(self, key: RecordKey, sequence: int) -> None:
        """Notes that a record which is known came once more."""
        item = self._items.get(key)
        if item is not None and item.sequence == sequence:
            item.copies += 1

    def note_renewed(self, key: RecordKey, sequence: int) -> None:
        """Remembers a card that says what the one before said."""
        self._renewed[key] = sequence

    def take_scarce(self) -> list[tuple[RecordKey, int]]:
        """What is to be announced outside the mesh at this heartbeat."""
        scarce = [(key, item.sequence) for key, item in self._items.items() if item.copies < self._config.copies_enough]
        for item in self._items.values():
            item.heartbeats_left -= 1
        self._items = {key: item for key, item in self._items.items() if item.heartbeats_left > 0}
        return scarce

    def take_renewed(self) -> list[tuple[RecordKey, int]]:
        """What is to be announced over the links of the mesh at this heartbeat."""
        renewed, self._renewed = list(self._renewed.items()), {}
        return renewed
