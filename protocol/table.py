"""The peer table: the newest valid record of every kind from every peer, bounded, with a memory of what is gone.

A record is kept until it expires, until a newer one of its peer and kind replaces it, or until its peer has to make room. What
goes leaves a tombstone, the sequence number it had, for as long as an older record of that peer could still be valid: so nothing
old comes back. Two different records with one sequence number are an equivocation; the first one stays, and a newer one replaces
it as usual.

For reconciliation each (peer, kind) has a key of 8 bytes. The keys of cards and verdicts, which concern everyone, fall into
buckets; beats and edges concern neighbours alone and are compared with nobody. Tables that hold the same sequence numbers have
the same bucket hashes, and the same root over them.

The table takes verified records only. Times named `wall_s` are wall-clock seconds since 1970; `now` is monotonic.

Source: death certificates, Demers et al., "Epidemic algorithms for replicated database maintenance" (PODC 1987) section 2.1.
Spec: docs/spec/03-records.md, section "Peer table"; docs/spec/04-gossip.md, section "Digests".
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import NewType

from protocol.identity import PeerId
from protocol.records import DEFAULT_RECORD_CONFIG, Record, RecordConfig, RecordKind, signed_bytes

RecordKey = NewType("RecordKey", bytes)
"""What a digest calls the records of one peer and kind: `RECORD_KEY_BYTES` bytes of a hash."""

RECORD_KEY_BYTES = 8
"""Length of a record key in bytes: among 4,096 keys two are equal by chance once in 10^12, and no harm is done."""

BUCKETS = 256
"""Buckets in all, a count: 10,000 cards make about 40 a bucket, 640 bytes of entries for one that is missing."""

COMPARED = frozenset((RecordKind.CARD, RecordKind.VERDICT))
"""The kinds of record that everyone is to hold."""

BUCKET_HASH_BYTES = 8
"""Length of a bucket's hash in bytes; an unnoticed difference costs one more round."""

_KINDS = tuple(RecordKind)


@dataclass(frozen=True, slots=True)
class TableConfig:
    """The bounds of the table.

    Attributes:
        peers_max: peers with at least one record, this node not counted.
        tombstones_max: remembered sequence numbers; past it those that matter for the shortest time are forgotten.
        evictable_after_s: a peer heard within so many seconds never makes room for a new one, so that a crowd of invented peers
            cannot drive out live ones; twice a beat's lifetime.
        records: the bounds of records.
    """

    peers_max: int = 16_384
    tombstones_max: int = 16_384
    evictable_after_s: float = 60.0
    records: RecordConfig = DEFAULT_RECORD_CONFIG


@dataclass(frozen=True, slots=True)
class Accepted:
    """The record is now the newest of its peer and kind; `evicted` are those whose peer had to make room."""

    record: Record
    replaced: Record | None = None
    evicted: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True)
class Stale:
    """A record that is known, older than what is known, or expired; `sequence` is the newest known, 0 when none is."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Equivocation:
    """The peer signed two different records with one sequence number; `kept` came first and stays."""

    kept: Record
    offered: Record


@dataclass(frozen=True, slots=True)
class Full:
    """There is no room for one more peer, and every peer in the table was heard a short while ago."""


Outcome = Accepted | Stale | Equivocation | Full
"""What became of a record that was offered."""


@dataclass(slots=True)
class _Entry:
    record: Record
    key: RecordKey
    forget_at_s: float  # wall clock; no record that this one made stale is valid from then on


@dataclass(slots=True)
class _Tombstone:
    sequence: int
    forget_at_s: float
    expired: bool = False  # and neither evicted nor removed: by another clock the record would still be good


class PeerTable:
    """The newest record of each kind from each peer.

    Every iteration is in the order of peer ids, then kinds, so that two tables with the same content behave the same.
    """

    def __init__(self, own: PeerId, config: TableConfig | None = None) -> None:
        """Make an empty table.

        Args:
            own: this node, whose records are never evicted and do not count as a peer.
            config: the bounds.
        """
        self.own = own
        self.config = config or TableConfig()
        self._entries: dict[tuple[PeerId, RecordKind], _Entry] = {}
        self._by_key: dict[RecordKey, _Entry] = {}
        self._buckets: list[dict[RecordKey, int]] = [{} for _ in range(BUCKETS)]
        self._hashes: list[bytes | None] = [None] * BUCKETS
        self._root: bytes | None = None
        self._expires_s = math.inf  # no record expires sooner
        self._heard: dict[PeerId, float] = {}  # when a record of the peer was last accepted, the longest unheard first
        self._tombstones: dict[RecordKey, _Tombstone] = {}
        self._order: list[tuple[PeerId, RecordKind]] | None = None  # sorted; None when it has to be sorted again
        self._cards: list[Record] | None = None  # asked for with every request, changed seldom

    def __len__(self) -> int:
        """How many records are held."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Record]:
        """All records, in order."""
        return iter([self._entries[place].record for place in self._ordered()])

    @property
    def compared(self) -> int:
        """How many records a comparison looks at."""
        return sum(map(len, self._buckets))

    def get(self, peer_id: PeerId, kind: RecordKind) -> Record | None:
        """The newest record of a peer and kind."""
        entry = self._entries.get((peer_id, kind))
        return entry.record if entry else None

    def cards(self) -> list[Record]:
        """All cards, in the order of peer ids; their payloads are `Card`s."""
        if self._cards is None:
            self._cards = [self._entries[place].record for place in self._ordered() if place[1] is RecordKind.CARD]
        return list(self._cards)

    def peers(self) -> list[PeerId]:
        """Everybody of whom a record is held, this node included if it published, in order."""
        return sorted(self._heard)

    def heard_at(self, peer_id: PeerId) -> float | None:
        """When, in monotonic seconds, a record of the peer was last accepted; None for a peer not in the table."""
        return self._heard.get(peer_id)

    def offer(self, record: Record, now: float, wall_s: float) -> Outcome:
        """Take a verified record if it is news.

        Args:
            record: as `open_record` or `seal` returned it.
            now: monotonic seconds.
            wall_s: wall-clock seconds.
        """
        place = (record.peer_id, record.kind)
        known = self._entries.get(place)
        if known is not None and record.sequence == known.record.sequence:
            if signed_bytes(record.envelope) == signed_bytes(known.record.envelope):
                return Stale(record.sequence)
            return Equivocation(known.record, record)
        key = record_key(*place)
        newest = self.sequence_of(key)
        if record.sequence <= newest or wall_s >= record.expires_s + self.config.records.skew_s:
            return Stale(newest)
        evicted: tuple[Record, ...] = ()
        if record.peer_id not in self._heard and record.peer_id != self.own:
            room = self._make_room(now, wall_s)
            if room is None:
                return Full()
            evicted = room
        self._put(place, key, record)
        self._heard.pop(record.peer_id, None)
        self._heard[record.peer_id] = now  # moved to the end: heard the latest
        return Accepted(record, known.record if known else None, evicted)

    def expire(self, wall_s: float) -> list[Record]:
        """Drop what is past its expiry and the allowed skew, and forget tombstones nobody needs any more.

        Returns:
            The records dropped, in order.
        """
        gone = [key for key, tombstone in self._tombstones.items() if wall_s >= tombstone.forget_at_s]
        for key in gone:
            del self._tombstones[key]
        skew_s = self.config.records.skew_s
        if wall_s < self._expires_s + skew_s:
            return []
        expired = [place for place in self._ordered() if wall_s >= self._entries[place].record.expires_s + skew_s]
        dropped = [self._drop(place, expired=True) for place in expired]
        self._expires_s = min((entry.record.expires_s for entry in self._entries.values()), default=math.inf)
        return dropped

    def readmit_expired(self) -> None:
        """Let in again what has only expired, because the wall clock that said so was wrong; nothing older than it."""
        for tombstone in self._tombstones.values():
            if tombstone.expired:
                tombstone.sequence -= 1
                tombstone.expired = False

    def remove(self, peer_id: PeerId, until_s: float = math.inf) -> list[Record]:
        """Drop all records of a peer that said goodbye or died; only newer records bring it back.

        Args:
            peer_id: who is dropped.
            until_s: wall-clock time after which the same records would be taken again, for whoever still has them then has
                heard them from the peer itself; by default not before no older record can be valid.
        """
        for kind in _KINDS:
            entry = self._entries.get((peer_id, kind))
            if entry is not None:
                entry.forget_at_s = min(entry.forget_at_s, until_s)
        return [self._drop((peer_id, kind)) for kind in _KINDS if (peer_id, kind) in self._entries]

    def digest(self, buckets: Iterable[int] | None = None) -> list[tuple[RecordKey, int]]:
        """What is held, as (key, sequence number) pairs sorted by bucket and key.

        Args:
            buckets: which buckets, each 0 to `BUCKETS - 1`; all of them when None.
        """
        chosen = range(BUCKETS) if buckets is None else sorted(set(buckets))
        return [pair for bucket in chosen for pair in sorted(self._buckets[bucket].items())]

    def bucket_hashes(self) -> list[bytes]:
        """One hash of `BUCKET_HASH_BYTES` per bucket over its sorted keys and sequence numbers; zeros for an empty bucket."""
        found: list[bytes] = []
        for bucket, cached in enumerate(self._hashes):
            fresh = cached if cached is not None else _hash_of(self._buckets[bucket])
            self._hashes[bucket] = fresh
            found.append(fresh)
        return found

    def root_hash(self) -> bytes:
        """One hash of `BUCKET_HASH_BYTES` over all bucket hashes; equal where two tables hold the same."""
        if self._root is None:
            self._root = hashlib.sha256(b"".join(self.bucket_hashes())).digest()[:BUCKET_HASH_BYTES]
        return self._root

    def sequence_of(self, key: RecordKey) -> int:
        """The greatest sequence number known under a key, held or remembered; 0 when none is."""
        entry = self._by_key.get(key)
        tombstone = self._tombstones.get(key)
        return max(entry.record.sequence if entry else 0, tombstone.sequence if tombstone else 0)

    def record_of(self, key: RecordKey) -> Record | None:
        """The record held under a key."""
        entry = self._by_key.get(key)
        return entry.record if entry else None

    def _put(self, place: tuple[PeerId, RecordKind], key: RecordKey, record: Record) -> None:
        older = self._entries.get(place)
        tombstone = self._tombstones.pop(key, None)
        forget_at_s = self._forget_at_s(record)
        forget_at_s = max(forget_at_s, older.forget_at_s if older else 0.0, tombstone.forget_at_s if tombstone else 0.0)
        entry = _Entry(record, key, forget_at_s)
        if older is None:
            self._order = None
        if record.kind is RecordKind.CARD:
            self._cards = None
        self._entries[place] = entry
        self._expires_s = min(self._expires_s, record.expires_s)
        self._by_key[key] = entry
        if record.kind in COMPARED:
            bucket = bucket_of(key)
            self._buckets[bucket][key] = record.sequence
            self._hashes[bucket] = self._root = None

    def _drop(self, place: tuple[PeerId, RecordKind], *, expired: bool = False) -> Record:
        entry = self._entries.pop(place)
        self._order = None
        self._cards = None
        key, kind = entry.key, entry.record.kind
        if self._by_key.get(key) is entry:
            del self._by_key[key]
        if kind in COMPARED:
            bucket = bucket_of(key)
            self._buckets[bucket].pop(key, None)
            self._hashes[bucket] = self._root = None
        if not any((place[0], other) in self._entries for other in _KINDS):
            del self._heard[place[0]]
        self._tombstones[key] = _Tombstone(entry.record.sequence, entry.forget_at_s, expired)
        if len(self._tombstones) > self.config.tombstones_max:
            soonest = min(self._tombstones.items(), key=lambda item: (item[1].forget_at_s, item[0]))
            del self._tombstones[soonest[0]]
        return entry.record

    def _make_room(self, now: float, wall_s: float) -> tuple[Record, ...] | None:
        """Room for one more peer: what had to go for it, or None when there is none to be had."""
        limit = self.config.peers_max + (self.own in self._heard)
        if len(self._heard) < limit:
            return ()
        evicted = self.expire(wall_s)
        if len(self._heard) < self.config.peers_max + (self.own in self._heard):
            return tuple(evicted)
        oldest = next(peer for peer in self._heard if peer != self.own)
        if now - self._heard[oldest] < self.config.evictable_after_s:
            return None
        return (*evicted, *self.remove(oldest))

    def _forget_at_s(self, record: Record) -> float:
        """When the last record issued before this one has surely expired everywhere."""
        records = self.config.records
        return record.issued_s + records.lifetime_s_max_of(record.kind) + records.skew_s

    def _ordered(self) -> list[tuple[PeerId, RecordKind]]:
        if self._order is None:
            self._order = sorted(self._entries)
        return self._order


def record_key(peer_id: PeerId, kind: RecordKind) -> RecordKey:
    """The first `RECORD_KEY_BYTES` bytes of SHA-256 over the kind, a colon and the peer id."""
    return RecordKey(hashlib.sha256(kind.encode() + b":" + peer_id).digest()[:RECORD_KEY_BYTES])


def bucket_of(key: RecordKey) -> int:
    """The bucket of a record: its key's first byte."""
    return key[0]


def _hash_of(bucket: dict[RecordKey, int]) -> bytes:
    if not bucket:
        return bytes(BUCKET_HASH_BYTES)
    hasher = hashlib.sha256()
    for key, sequence in sorted(bucket.items(), key=itemgetter(0)):
        hasher.update(key + sequence.to_bytes(8, "big"))
    return hasher.digest()[:BUCKET_HASH_BYTES]
