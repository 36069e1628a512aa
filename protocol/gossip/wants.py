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
    """Whom a record was asked for, and until when it may come."""

    peer_id: PeerId
    give_up_at: float


class Wants:
    """Records asked for: each of one peer at a time, and of each peer no more than `wants_max`."""

    def __init__(self, config: GossipConfig) -> None:
        self._config = config
        self._asked: dict[RecordKey, _Asked] = {}
        self._under_way: Counter[PeerId] = Counter()

    def ask(self, peer_id: PeerId, keys: Iterable[RecordKey], now: float) -> tuple[RecordKey, ...]:
        """Notes as asked for what nobody was asked for, as many as may be under way, and returns it."""
        asked: list[RecordKey] = []
        for key in dict.fromkeys(keys):
            if self._under_way[peer_id] >= self._config.wants_max:
                break
            under_way = self._asked.get(key)
            if under_way is not None and now < under_way.give_up_at:
                continue
            self._forget(key)
            self._asked[key] = _Asked(peer_id, now + self._config.want_timeout_s)
            self._under_way[peer_id] += 1
            asked.append(key)
        return tuple(asked)

    def handle_came(self, key: RecordKey, peer_id: PeerId) -> bool:
        """Notes that a peer has sent a record; whether it was asked for it."""
        asked = self._asked.get(key)
        if asked is None or asked.peer_id != peer_id:
            return False
        self._forget(key)
        return True

    def handle_disconnected(self, peer_id: PeerId) -> None:
        """Lets what a peer was asked for be asked for elsewhere."""
        self._asked = {key: asked for key, asked in self._asked.items() if asked.peer_id != peer_id}
        del self._under_way[peer_id]

    def handle_timer(self, now: float) -> None:
        """Gives up what has not come in time."""
        for key in [key for key, asked in self._asked.items() if now >= asked.give_up_at]:
            self._forget(key)

    def _forget(self, key: RecordKey) -> None:
        asked = self._asked.pop(key, None)
        if asked is not None:
            self._under_way[asked.peer_id] -= 1


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
