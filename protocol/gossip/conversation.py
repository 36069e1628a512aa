"""What gossip remembers of each connected peer."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol.budget import Budget
from protocol.gossip.events import GossipConfig
from protocol.gossip.horizon import View
from protocol.scope import Scope
from protocol.table import RecordKey


@dataclass(slots=True)
class Conversation:
    """One connected peer: what it may still cost, and what passes between it and this node."""

    records: Budget
    exchanges: Budget
    received: Budget
    served: Budget
    beats: Budget
    misbehaved: bool = False
    scope: Scope | None = None  # as it was told last
    view: View | None = None  # what concerns both; None until it is asked for
    sought: int = 0  # cards that may still come in answer to a search
    sought_until: float = 0.0
    fed_at: float | None = None  # when the first records that it had asked for were sent
    has: dict[RecordKey, int] = field(default_factory=dict[RecordKey, int])  # what it said it has, oldest first

    def note_has(self, entries: Iterable[tuple[RecordKey, int]], history_max: int) -> None:
        """Remember what the peer has, so that it is not sent; what is forgotten costs one copy."""
        for key, sequence in entries:
            self.has.pop(key, None)
            self.has[key] = sequence
        while len(self.has) > history_max:
            del self.has[next(iter(self.has))]

    @classmethod
    def begin(cls, config: GossipConfig, now: float) -> "Conversation":
        """A peer that has just connected, with full budgets."""
        return cls(
            records=Budget(config.records_per_s, config.records_burst, config.records_debt_max, now),
            exchanges=Budget(config.exchanges_per_s, config.exchanges_burst, config.exchanges_debt_max, now),
            received=Budget(config.bytes_per_s, config.bytes_burst, config.bytes_debt_max, now),
            served=Budget(config.served_bytes_per_s, config.served_burst, 0.0, now),
            beats=Budget(config.beats_per_s, config.beats_burst, 0.0, now),
        )
