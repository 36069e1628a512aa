"""Whether the links of the mesh bring what they should: what is due from each, and what is held back to see whether it comes.

When a new card comes over one link of the mesh, the others are due to bring it too, unless they have it from this node first; so
that a peer did not bring it says little, and that one never brings anything little more: it may stand behind this node. To know,
this node leaves some cards to be brought: it does not push such a card to the peer for `hold_s`, within which a peer with other
links has it from them and pushes it here. What has not come then is pushed after all, and counts as missing. Few are held back
from who brings its share, more from who has brought nothing for some cards, all from whom something is missing already. So who
swallows what it gets is found out, who stands behind this node is not taken for it, and each card still has its other links.

If both ends of a link left the same card to one another it would seem to be missing to both. So a number that both know, made
from the card and the two ends, says which end may: mostly the one that was dialled, for who means harm dials.

Spec: docs/spec/04-gossip.md, section "Scores".
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protocol.encoding import Luck
from protocol.gossip.score import PeerScores
from protocol.identity import PeerId
from protocol.records import Record
from protocol.table import RecordKey


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """How much is held back.

    Attributes:
        due_s: seconds within which a card is to come from everybody who brings it: a copy that crossed another is long here.
        hold_s: seconds for which a card is held back: more than twice what it takes to spread over 300 nodes on six
            continents, with 30 % loss or without (0.23 s, measured).
        settled_s: seconds for which a link has belonged to the mesh before anything is due from it.
        dialled_share: of the cards that may be held back by the end that has dialled; the others may be by the other end.
        share: of the cards that are held back from a peer that brings its share.
        share_idle: of those from one that has brought nothing for `streak` cards.
        streak: such cards in a row.
        pending_max: cards whose deliveries are waited for, and cards held back; past it no more are noted.
    """

    due_s: float = 2.0
    hold_s: float = 0.5
    settled_s: float = 2.0
    dialled_share: float = 0.25
    share: float = 1.0 / 16.0
    share_idle: float = 0.5
    streak: int = 4
    pending_max: int = 256


@dataclass(slots=True)
class _Due:
    """A card, and who has not brought it yet."""

    key: RecordKey
    sequence: int
    until: float
    waiting: dict[PeerId, bool]  # whether it is left to the peer to bring it


class Audits:
    """The machine; it notes what is due and says what is held back."""

    def __init__(self, config: AuditConfig, own: PeerId, scores: PeerScores, luck: Luck) -> None:
        """Nothing is due; `own` is this node."""
        self._config = config
        self._own = own
        self._scores = scores
        self._luck = luck
        self._due: dict[tuple[RecordKey, int], _Due] = {}  # the oldest first
        self._held: deque[tuple[float, PeerId, Record, tuple[RecordKey, int]]] = deque()
        self._since: dict[PeerId, float] = {}  # the links of the mesh, and since when they belong to it

    def handle_grafted(self, peer_id: PeerId, now: float) -> None:
        """Notes a link of the mesh."""
        self._since.setdefault(peer_id, now)

    def handle_pruned(self, peer_id: PeerId) -> None:
        """Notes that a link belongs to the mesh no more: nothing is due from it."""
        if self._since.pop(peer_id, None) is not None:
            for due in self._due.values():
                due.waiting.pop(peer_id, None)

    def begin(
        self, key: RecordKey, record: Record, brought_by: Iterable[PeerId], dialled: Callable[[PeerId], bool], now: float
    ) -> set[PeerId]:
        """Notes a new card that came over the mesh; returns from whom it is held back, which `released` gives back in time.

        Args:
            key: of the card.
            record: the card.
            brought_by: who has it already.
            dialled: whether this node has dialled a peer.
            now: monotonic seconds.
        """
        config = self._config
        if len(self._due) >= config.pending_max or len(self._held) >= config.pending_max:
            return set()
        due = _Due(key, record.sequence, now + config.due_s, {})
        for peer_id, since in self._since.items():
            if since + config.settled_s <= now and peer_id != record.peer_id:
                due.waiting[peer_id] = False
        for peer_id in brought_by:
            if due.waiting.pop(peer_id, None) is not None:
                self._scores.handle_due(peer_id, brought=True)
        number = key + record.sequence.to_bytes(8, "big")
        for peer_id in due.waiting:
            if self._may_hold(peer_id, number, dialled(peer_id)) and self._luck.random() < self._share_of(peer_id, now):
                due.waiting[peer_id] = True
                self._held.append((now + config.hold_s, peer_id, record, (key, record.sequence)))
        self._due[key, record.sequence] = due
        return {peer_id for peer_id, is_held in due.waiting.items() if is_held}

    def handle_brought(self, peer_id: PeerId, key: RecordKey, sequence: int, now: float) -> None:
        """Notes that a peer has brought a card, or said that it has it."""
        due = self._due.get((key, sequence))
        is_left = None if due is None else due.waiting.pop(peer_id, None)
        if is_left:
            self._scores.handle_left(peer_id, now, brought=True)
        elif is_left is not None:
            self._scores.handle_due(peer_id, brought=True)

    def handle_told(self, peer_id: PeerId, entries: Iterable[tuple[RecordKey, int]], now: float) -> None:
        """Notes that a peer says that it has some records."""
        for key, sequence in entries if self._due else ():
            self.handle_brought(peer_id, key, sequence, now)

    def next_timer(self) -> float | None:
        """When something is to be given back, or None."""
        return self._held[0][0] if self._held else None

    def released(self, now: float) -> list[tuple[PeerId, Record]]:
        """What was held back and has not come: it is to be pushed now; and what was due until now is judged."""
        given: list[tuple[PeerId, Record]] = []
        while self._held and self._held[0][0] <= now:
            _, peer_id, record, number = self._held.popleft()
            due = self._due.get(number)
            if due is not None and due.waiting.get(peer_id):
                del due.waiting[peer_id]
                self._scores.handle_left(peer_id, now, brought=False)
                given.append((peer_id, record))
        return given

    def judge(self, now: float) -> None:
        """Judges who has not brought in time what was not held back; call it at each heartbeat."""
        while self._due:
            number, due = next(iter(self._due.items()))
            if due.until > now:
                return
            del self._due[number]
            for peer_id in due.waiting:
                self._scores.handle_due(peer_id, brought=False)

    def _may_hold(self, peer_id: PeerId, number: bytes, dialled: bool) -> bool:
        """Whether it is this end of a link that may hold a card back."""
        ends = min(self._own, peer_id) + max(self._own, peer_id)
        drawn = hashlib.sha256(number + ends).digest()[0] / 256.0
        return (drawn < self._config.dialled_share) is dialled

    def _share_of(self, peer_id: PeerId, now: float) -> float:
        if self._scores.is_suspect(peer_id, now):
            return 1.0
        return self._config.share_idle if self._scores.streak_of(peer_id) >= self._config.streak else self._config.share
