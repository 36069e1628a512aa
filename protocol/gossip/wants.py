"""What a node has asked its peers for and not received yet, and what it has received and refused.

Spec: docs/spec/04-gossip.md, sections "Digests" and "Checks".
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.gossip.events import GossipConfig
from protocol.identity import PeerId
from protocol.table import RecordKey

_REFUSED_HASH_BYTES = 16
"""Length in bytes of the hash by which a refused envelope is remembered: none is found twice by chance or on purpose."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Whom a record was asked for, when, and until when it may come."""

    peer_id: PeerId
    at: float
    give_up_at: float


class Wants:
    """Records asked for: of each peer no more than `wants_max`, and each of a second and a third peer when the first is slow."""

    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._asked: dict[RecordKey, tuple[_Asked, ...]] = {}  # the longest ago first
        self._under_way: Counter[PeerId] = Counter()
        self._came_at: dict[PeerId, float] = {}  # when a peer that was asked for something last sent any of it

    def ask(self, peer_id: PeerId, keys: Iterable[RecordKey], now: float) -> tuple[RecordKey, ...]:
        """Notes as asked for what nobody else is about to send, as many as may be under way, and returns it."""
        asked: list[RecordKey] = []
        for key in dict.fromkeys(keys):
            if self._under_way[peer_id] >= self._config.wants_max:
                break
            before = self._asked.get(key, ())
            if before and before[0].give_up_at <= now:
                before = self._keep(key, tuple(ask for ask in before if now < ask.give_up_at))
            if not self._may_ask(peer_id, before, now):
                continue
            self._asked[key] = (*before, _Asked(peer_id, now, now + self._config.want_timeout_s))
            self._under_way[peer_id] += 1
            asked.append(key)
        return tuple(asked)

    def handle_came(self, key: RecordKey, peer_id: PeerId, now: float) -> bool:
        """Notes that a peer has sent a record; whether it was asked for it."""
        before = self._asked.get(key, ())
        others = tuple(ask for ask in before if ask.peer_id != peer_id)
        if len(others) == len(before):
            return False
        self._keep(key, others)
        self._came_at[peer_id] = now
        return True

    def handle_disconnected(self, peer_id: PeerId) -> None:
        """Lets what a peer was asked for be asked for elsewhere."""
        for key in [key for key, asks in self._asked.items() if any(ask.peer_id == peer_id for ask in asks)]:
            self._keep(key, tuple(ask for ask in self._asked[key] if ask.peer_id != peer_id))
        del self._under_way[peer_id]
        self._came_at.pop(peer_id, None)

    def handle_timer(self, now: float) -> list[PeerId]:
        """Gives up what has not come in time; returns who has sent nothing at all since being asked for it."""
        silent: dict[PeerId, None] = {}
        for key in [key for key, asks in self._asked.items() if asks[0].give_up_at <= now]:
            for ask in self._asked[key]:
                if ask.give_up_at <= now and self._came_at.get(ask.peer_id, ask.at) <= ask.at:
                    silent[ask.peer_id] = None
            self._keep(key, tuple(ask for ask in self._asked[key] if now < ask.give_up_at))
        return list(silent)

    def _may_ask(self, peer_id: PeerId, before: tuple[_Asked, ...], now: float) -> bool:
        """Whether a peer may be asked too: all who were asked have been silent for a while, and are not too many."""
        if len(before) >= self._config.want_peers_max:
            return False
        return all(
            ask.peer_id != peer_id and now >= max(ask.at, self._came_at.get(ask.peer_id, ask.at)) + self._config.want_again_s
            for ask in before
        )

    def _keep(self, key: RecordKey, asks: tuple[_Asked, ...]) -> tuple[_Asked, ...]:
        """Forgets that others than these were asked for a record."""
        for ask in self._asked.pop(key, ()):
            if ask not in asks:
                self._under_way[ask.peer_id] -= 1
        if asks:
            self._asked[key] = asks
        return asks


class Refused:
    """The last envelopes that were refused, so that no fault is verified twice."""

    def __init__(self, refused_max: int) -> None:
        self._refused_max = refused_max
        self._hashes: dict[bytes, None] = {}  # oldest first

    def __contains__(self, envelope: bytes) -> bool:
        """Whether exactly these bytes were refused a short while ago."""
        return bool(self._hashes) and _hash_of(envelope) in self._hashes

    def add(self, envelope: bytes) -> None:
        """Remembers an envelope."""
        self._hashes[_hash_of(envelope)] = None
        if len(self._hashes) > self._refused_max:
            del self._hashes[next(iter(self._hashes))]


def _hash_of(envelope: bytes) -> bytes:
    return hashlib.sha256(envelope).digest()[:_REFUSED_HASH_BYTES]
