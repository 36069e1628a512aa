"""The peer table: the newest valid record of every kind from every peer, bounded, with a memory of what is gone.

A record is kept until it expires, until a newer one of its peer and kind replaces it, or until its peer has to make room. What
goes leaves a tombstone, the sequence number it had, for as long as an older record of that peer could still be valid: so nothing
old comes back. What is the least number that is still taken under each key (`floors`) can be kept on disk and restored, so that
nothing old comes back after a restart either. Two different records with one sequence number are an equivocation; the first one
stays, and a newer one replaces it as usual.

For reconciliation each (peer, kind) has a key of 8 bytes. The keys of cards and verdicts, which concern everyone, fall into
buckets; edges concern neighbours alone and are compared with nobody. Tables that hold the same sequence numbers have
the same bucket hashes, and the same root over them.

What is asked of everybody stands in columns (`protocol.rows`); the records themselves are kept packed and are read when they are
asked for. The table takes verified records only. Times named `wall_s` are wall-clock seconds since 1970; `now` is monotonic.

Source: death certificates, Demers et al., "Epidemic algorithms for replicated database maintenance" (PODC 1987) section 2.1.
Spec: docs/spec/03-records.md, section "Peer table"; docs/spec/04-gossip.md, section "Digests".
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.records import (
    DEFAULT_RECORD_CONFIG,
    Card,
    Record,
    RecordConfig,
    RecordKind,
    RecordPacker,
    Serving,
    signed_bytes,
)
from protocol.rows import KINDS, RECORD_KEY_BYTES, Place, RecordKey, Rows

BUCKETS = 256
"""Buckets in all, a count: 10,000 cards make about 40 a bucket, 640 bytes of entries for one that is missing."""

__all__ = [
    "BUCKETS",
    "BUCKET_HASH_BYTES",
    "COMPARED",
    "RECORD_KEY_BYTES",
    "Accepted",
    "Equivocation",
    "Floor",
    "Full",
    "Outcome",
    "PeerTable",
    "RecordKey",
    "Stale",
    "TableConfig",
    "bucket_hash",
    "bucket_of",
    "record_key",
    "root_hash",
]

COMPARED = frozenset((RecordKind.CARD, RecordKind.VERDICT))
"""The kinds of record that everyone is to hold."""

BUCKET_HASH_BYTES = 8
"""Length of a bucket's hash in bytes; an unnoticed difference costs one more round."""

_COMPARED_NUMBERS = frozenset(KINDS.index(kind) for kind in COMPARED)


@dataclass(frozen=True, slots=True)
class TableConfig:
    """The bounds of the table.

    Attributes:
        peers_max: peers with at least one record, this node not counted.
        tombstones_max: remembered sequence numbers, and those told to be kept over a restart; past it those that matter for the
            shortest time are forgotten.
        evictable_after_s: a peer heard within so many seconds never makes room for a new one, so that a crowd of invented peers
            cannot drive out live ones (ISO-REC-021).
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

    @property
    def can_wait(self) -> bool:
        """Whether a card says what the one before said, but for the place. A verdict is news even then: silence goes on."""
        before, card = self.replaced and self.replaced.payload, self.record.payload
        return isinstance(before, Card) and isinstance(card, Card) and replace(before, coordinate=card.coordinate) == card


@dataclass(frozen=True, slots=True)
class Stale:
    """A record that is no news, as happens all the time where records spread by many ways; nobody is to blame.

    Attributes:
        sequence: the newest known, 0 when none is.
        code: REPLAYED for what is known as it is, OLD_SEQUENCE for what is older, EXPIRED for what is over.
    """

    sequence: int
    code: ErrorCode = field(default=ErrorCode.OLD_SEQUENCE, compare=False)


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


@dataclass(frozen=True, slots=True)
class Floor:
    """What is still taken under a key: records numbered `least` and more, and anything once nothing older can be valid.

    Attributes:
        key: of a peer and kind.
        least: the least sequence number that is taken.
        forget_at_s: wall-clock time from which on the floor says nothing any more.
    """

    key: RecordKey
    least: int
    forget_at_s: float


@dataclass(slots=True)
class _Tombstone:
    sequence: int
    forget_at_s: float
    expired: bool = False  # and neither evicted nor removed: by another clock the record would still be good
    is_below: bool = False  # the number is one below the least that is taken, and of no record that was known


class PeerTable:
    """The newest record of each kind from each peer.

    Every iteration is in the order of peer ids, then kinds, so that two tables with the same content behave the same.
    """

    def __init__(self, own: PeerId, config: TableConfig | None = None) -> None:
        """Make an empty table.

        Args:
            own: this node, whose records are never evicted and do not count as a peer.
            config: the bounds.

        The attribute `compared` is how many records a comparison looks at.
        """
        self.own = own
        self.config = config or TableConfig()
        self._packer = RecordPacker()
        self.compared = 0
        self._rows = Rows()
        self._hashes: list[bytes | None] = [None] * BUCKETS
        self._root: bytes | None = None
        self._expires_s = math.inf  # no record expires sooner
        self._heard: dict[PeerId, float] = {}  # when a record of the peer was last accepted, the longest unheard first
        self._tombstones: dict[RecordKey, _Tombstone] = {}

    def use_packer(self, packer: RecordPacker) -> None:
        """Keeps the records by another packer from now on, for who runs many tables in one process and shares their records."""
        packed = self._rows.packed
        packed[:] = [packer.pack(self._record(row)) for row in range(len(packed))]
        self._packer = packer

    def __len__(self) -> int:
        """How many records are held."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        """All records, in order; each is read for it, which is dear where there are thousands."""
        return iter([self._record(row) for row in self._rows.ordered()])

    def get(self, peer_id: PeerId, kind: RecordKind) -> Record | None:
        """The newest record of a peer and kind."""
        row = self._rows.find(record_key(peer_id, kind))
        return None if row is None or self._rows.peers[row] != peer_id else self._record(row)

    def cards(self) -> list[Record]:
        """All cards, in the order of peer ids; their payloads are `Card`s. Each is read for it, as by `__iter__`."""
        return [self._record(row) for row in self._rows.ordered() if self._rows.kind(row) is RecordKind.CARD]

    def known(self) -> list[PeerId]:
        """Everybody whose card is held, in order."""
        rows = self._rows
        return sorted(rows.peers[row] for row in range(len(rows)) if rows.servings[row] is not None)

    def serving(self, peer_id: PeerId) -> tuple[Serving, Place | None] | None:
        """What a peer's card says that routing asks of everybody, and where it says the peer is; nothing is read for it."""
        row = self._rows.find(record_key(peer_id, RecordKind.CARD))
        serving = None if row is None else self._rows.servings[row]
        return None if row is None or serving is None else (serving, self._rows.place(row))

    def serves(self, peer_id: PeerId, model: str) -> bool:
        """Whether a peer's card offers a model."""
        row = self._rows.find(record_key(peer_id, RecordKind.CARD))
        serving = None if row is None else self._rows.servings[row]
        return serving is not None and any(offer.model == model for offer in serving.models)

    def serving_model(self, model: str) -> Iterator[tuple[PeerId, Place | None]]:
        """Everybody whose card offers a model, and where it says it is, in an order that depends on who they are alone."""
        rows, of_serving = self._rows, dict[int, bool]()  # cards that offer the same share what they offer
        for row, serving in enumerate(rows.servings):
            if serving is None:
                continue
            offers = of_serving.get(id(serving))
            if offers is None:
                offers = of_serving[id(serving)] = any(offer.model == model for offer in serving.models)
            if offers:
                yield rows.peers[row], rows.place(row)

    def has_card(self, peer_id: PeerId) -> bool:
        """Whether a peer's card is held; nothing is read for it."""
        row = self._rows.find(record_key(peer_id, RecordKind.CARD))
        return row is not None and self._rows.servings[row] is not None

    def peer_of(self, key: RecordKey) -> PeerId | None:
        """Whose record is held under a key; nothing is read for it."""
        row = self._rows.find(key)
        return None if row is None else self._rows.peers[row]

    def incarnation_of(self, key: RecordKey) -> int | None:
        """The incarnation on the card held under a key, None where none is; nothing is read for it."""
        row = self._rows.find(key)
        return None if row is None or self._rows.servings[row] is None else self._rows.incarnations[row]

    def places(self) -> Iterator[tuple[PeerId, Place]]:
        """Everybody whose card tells a place, and the place, in an order that depends on who they are alone."""
        return self._rows.places()

    def place(self, key: RecordKey) -> Place | None:
        """Where the card under a key says its node is; None where it does not, or there is no such card."""
        row = self._rows.find(key)
        return None if row is None else self._rows.place(row)

    def placed(self, bucket: int) -> list[tuple[RecordKey, int, Place | None]]:
        """What is held in a bucket and compared, sorted by key: keys, sequence numbers and, of cards that tell one, places."""
        rows = self._rows
        return [(rows.key(row), rows.sequences[row], rows.place(row)) for row in self._compared_of(bucket)]

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
        key = record_key(record.peer_id, record.kind)
        row = self._rows.find(key)
        if row is not None and self._rows.peers[row] != record.peer_id:
            return Stale(self._rows.sequences[row])  # another peer's key is the same: who came first stays
        if row is not None and record.sequence == self._rows.sequences[row]:
            kept = self._record(row)
            if signed_bytes(record.envelope) == signed_bytes(kept.envelope):
                return Stale(record.sequence, ErrorCode.REPLAYED)
            return Equivocation(kept, record)
        newest = self.sequence_of(key)
        if record.sequence <= newest:
            return Stale(newest, self._why_stale(key, record.sequence, newest))
        if wall_s >= record.expires_s + self.config.records.skew_s:
            return Stale(newest, ErrorCode.EXPIRED)
        known = None if row is None else self._record(row)
        evicted: tuple[Record, ...] = ()
        if record.peer_id not in self._heard and record.peer_id != self.own:
            room = self._make_room(now, wall_s)
            if room is None:
                return Full()
            evicted = room
        self._put(key, record)
        self._heard.pop(record.peer_id, None)
        self._heard[record.peer_id] = now  # moved to the end: heard the latest
        return Accepted(record, known, evicted)

    def staleness(self, key: RecordKey, sequence: int, envelope: bytes) -> ErrorCode | None:
        """Why what an envelope claims is no news, or None where it may be, or contradicts what is known under its number.

        Args:
            key: of the peer and kind that it names; nothing of it is verified.
            sequence: the number that it claims.
            envelope: all of it.
        """
        newest = self.sequence_of(key)
        if sequence > newest:
            return None
        if sequence == newest:
            known = self.record_of(key)
            if known is not None and signed_bytes(known.envelope) != signed_bytes(envelope):
                return None
        return self._why_stale(key, sequence, newest)

    def _why_stale(self, key: RecordKey, sequence: int, newest: int) -> ErrorCode:
        dead = self._tombstones.get(key)
        is_known = sequence == newest and (dead is None or not dead.is_below)
        return ErrorCode.REPLAYED if is_known else ErrorCode.OLD_SEQUENCE

    def floors(self) -> list[Floor]:
        """What has to be known after a restart to take no older record then: at most `tombstones_max`, in the order of keys."""
        rows, own = self._rows, self.own
        held = [row for row in range(len(rows)) if rows.peers[row] != own]
        floors = [Floor(rows.key(row), rows.sequences[row], rows.forget_s[row]) for row in held]
        # Of what was dropped nothing comes back as it was, but for what only a clock that was wrong held for expired.
        floors += [Floor(key, dead.sequence + (not dead.expired), dead.forget_at_s) for key, dead in self._tombstones.items()]
        lasting = sorted(floors, key=lambda floor: (-floor.forget_at_s, floor.key))[: self.config.tombstones_max]
        return sorted(lasting, key=lambda floor: floor.key)

    def restore(self, floors: Iterable[Floor], wall_s: float) -> None:
        """Take over what an earlier run knew; call it before the first record is offered.

        Args:
            floors: as that run told them; those that say nothing any more are left out.
            wall_s: wall-clock seconds. A floor from a clock that was wrong lasts no longer than one of now.
        """
        records = self.config.records
        latest_s = wall_s + 2 * records.skew_s + max(records.lifetime_s_max_of(kind) for kind in KINDS)
        good = [floor for floor in floors if floor.least > 0 and floor.forget_at_s > wall_s]
        for floor in sorted(good, key=lambda floor: (-floor.forget_at_s, floor.key))[: self.config.tombstones_max]:
            # The record of the least number is the newest there is, and welcome.
            self._tombstones[floor.key] = _Tombstone(floor.least - 1, min(floor.forget_at_s, latest_s), is_below=True)

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
        rows = self._rows
        expired = [rows.key(row) for row in rows.ordered() if wall_s >= rows.expires_s[row] + skew_s]
        dropped = [self._drop(key, expired=True) for key in expired]
        self._expires_s = min(rows.expires_s, default=math.inf)
        return dropped

    def readmit_expired(self) -> None:
        """Let in again what has only expired, because the wall clock that said so was wrong; nothing older than it."""
        for tombstone in self._tombstones.values():
            if tombstone.expired:
                tombstone.sequence -= 1
                tombstone.expired, tombstone.is_below = False, True

    def remove(self, peer_id: PeerId, until_s: float = math.inf) -> list[Record]:
        """Drop all records of a peer that said goodbye or died; only newer records bring it back.

        Args:
            peer_id: who is dropped.
            until_s: wall-clock time after which the same records would be taken again, for whoever still has them then has
                heard them from the peer itself; by default not before no older record can be valid.
        """
        keys = [key for kind in KINDS if self._rows.find(key := record_key(peer_id, kind)) is not None]
        for key in keys:
            row = self._row(key)
            self._rows.forget_s[row] = min(self._rows.forget_s[row], until_s)
        return [self._drop(key) for key in keys]

    def evict(self, peer_id: PeerId) -> list[Record]:
        """Drop all records of a peer that is of no interest now, and remember nothing: any of them may come back."""
        evicted = self.remove(peer_id)
        for record in evicted:
            self._tombstones.pop(record_key(peer_id, record.kind), None)
        return evicted

    def digest(self, buckets: Iterable[int] | None = None) -> list[tuple[RecordKey, int]]:
        """What is held, as (key, sequence number) pairs sorted by bucket and key.

        Args:
            buckets: which buckets, each 0 to `BUCKETS - 1`; all of them when None.
        """
        chosen = range(BUCKETS) if buckets is None else sorted(set(buckets))
        rows = self._rows
        return [(rows.key(row), rows.sequences[row]) for bucket in chosen for row in self._compared_of(bucket)]

    def bucket_hashes(self) -> list[bytes]:
        """One hash of `BUCKET_HASH_BYTES` per bucket over its sorted keys and sequence numbers; zeros for an empty bucket."""
        found: list[bytes] = []
        for bucket, cached in enumerate(self._hashes):
            fresh = cached if cached is not None else bucket_hash(self.digest((bucket,)))
            self._hashes[bucket] = fresh
            found.append(fresh)
        return found

    def root_hash(self) -> bytes:
        """One hash of `BUCKET_HASH_BYTES` over all bucket hashes; equal where two tables hold the same."""
        if self._root is None:
            self._root = root_hash(self.bucket_hashes())
        return self._root

    def sequence_of(self, key: RecordKey) -> int:
        """The greatest sequence number known under a key, held or remembered; 0 when none is."""
        row, tombstone = self._rows.find(key), self._tombstones.get(key)
        return max(0 if row is None else self._rows.sequences[row], tombstone.sequence if tombstone else 0)

    def record_of(self, key: RecordKey) -> Record | None:
        """The record held under a key."""
        row = self._rows.find(key)
        return None if row is None else self._record(row)

    def _record(self, row: int) -> Record:
        return self._packer.unpack(self._rows.packed[row], self.config.records)

    def _row(self, key: RecordKey) -> int:
        row = self._rows.find(key)
        assert row is not None, "the record is held"
        return row

    def _put(self, key: RecordKey, record: Record) -> None:
        rows, row = self._rows, self._rows.find(key)
        is_compared = record.kind in COMPARED
        if row is None:
            row = rows.insert(key, record.peer_id, record.kind)
            self.compared += is_compared
        tombstone = self._tombstones.pop(key, None)
        rows.sequences[row], rows.expires_s[row] = record.sequence, record.expires_s
        rows.forget_s[row] = max(self._forget_at_s(record), rows.forget_s[row], tombstone.forget_at_s if tombstone else 0.0)
        rows.packed[row] = self._packer.pack(record)
        if isinstance(record.payload, Card):
            rows.servings[row] = self._packer.serving(record.payload)
            rows.set_place(row, record.payload.coordinate)
            rows.incarnations[row] = record.payload.incarnation
        self._expires_s = min(self._expires_s, record.expires_s)
        if is_compared:
            self._hashes[bucket_of(key)] = self._root = None

    def _drop(self, key: RecordKey, *, expired: bool = False) -> Record:
        rows, row = self._rows, self._row(key)
        record = self._record(row)
        tombstone = _Tombstone(record.sequence, rows.forget_s[row], expired)
        rows.delete(row)
        if record.kind in COMPARED:
            self.compared -= 1
            self._hashes[bucket_of(key)] = self._root = None
        if all(rows.find(record_key(record.peer_id, kind)) is None for kind in KINDS):
            del self._heard[record.peer_id]
        self._tombstones[key] = tombstone
        if len(self._tombstones) > self.config.tombstones_max:
            soonest = min(self._tombstones.items(), key=lambda item: (item[1].forget_at_s, item[0]))
            del self._tombstones[soonest[0]]
        return record

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

    def _compared_of(self, bucket: int) -> list[int]:
        """The rows of a bucket that are compared, in the order of their keys."""
        kinds = self._rows.kinds
        return [row for row in self._rows.of_bucket(bucket) if kinds[row] in _COMPARED_NUMBERS]


def record_key(peer_id: PeerId, kind: RecordKind) -> RecordKey:
    """The first `RECORD_KEY_BYTES` bytes of SHA-256 over the kind, a colon and the peer id."""
    return RecordKey(hashlib.sha256(kind.encode() + b":" + peer_id).digest()[:RECORD_KEY_BYTES])


def bucket_of(key: RecordKey) -> int:
    """The bucket of a record: its key's first byte."""
    return key[0]


def bucket_hash(entries: Sequence[tuple[RecordKey, int]]) -> bytes:
    """The hash of a bucket that holds these entries, sorted by key; zeros for none."""
    if not entries:
        return bytes(BUCKET_HASH_BYTES)
    packed = b"".join([key + sequence.to_bytes(8, "big") for key, sequence in entries])
    return hashlib.sha256(packed).digest()[:BUCKET_HASH_BYTES]


def root_hash(hashes: Iterable[bytes]) -> bytes:
    """The hash of a table whose buckets have these hashes."""
    return hashlib.sha256(b"".join(hashes)).digest()[:BUCKET_HASH_BYTES]
