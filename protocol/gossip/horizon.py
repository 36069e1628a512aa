"""How far a node looks: which cards it holds in a mesh of which it cannot hold all.

While the table is small its scope is everything, and nothing here does anything. Past `peers` cards the node has a scope: a ball
round its own place that covers the nearest `peers` (`protocol.scope`). It holds what its scope covers, whom it is connected to,
and a sample of a few more cards from beyond, which comes by asking for it and is changed all the time. A verdict concerns those
who hold a card of its signer or of anybody that it names. Whatever else leaves the table leaves no trace there, so that it can
come back when the scope moves.

Nobody is dropped because others are nearer while connected: a crowd of invented peers that claim to be near can only take the
place of peers that this node knows by their claims, too.

With each connected peer a node compares what concerns both ends: what has a place in both scopes. Hashes over that are kept for
each of them, and worked out anew for the buckets that have changed.

Source: S. Voulgaris, D. Gavidia, M. van Steen, "CYCLON" (2005), for a sample that is changed by asking one peer after another.
Spec: docs/spec/04-gossip.md, section "Scopes".
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from protocol.coordinates import Coordinate
from protocol.encoding import Luck
from protocol.gossip.messages import Seek
from protocol.identity import PeerId
from protocol.records import Card, Edges, Record, RecordKind, Verdict
from protocol.scope import RADIUS_S_MAX, Place, Scope, in_common, place_of, scope_of
from protocol.table import BUCKETS, COMPARED, PeerTable, RecordKey, bucket_hash, record_key, root_hash


@dataclass(frozen=True, slots=True)
class HorizonConfig:
    """How much of a large mesh a node holds.

    Attributes:
        peers: cards of the nearest that a node means to hold. Two thousand make a request find what is usual near by, and cost
            half a kilobyte per second.
        slack: the scope changes when it covers so much more or less than `peers`, as a share, so that it changes seldom.
        moved_share: and when this node has moved by this share of the radius. Where many nodes are near, the radius is a few
            milliseconds, and a coordinate wanders by a tenth of that all the time.
        widened: a scope that covers too little is made so many times wider, and again at the next look.
        look_s: seconds between two looks at the scope, while nothing forces one.
        sample_max: cards from beyond the scope that are held beside those of connected peers.
        sample_life_s: none of them longer without being heard of anew: nobody tells when they change.
        shuffle_s: seconds between two questions for other cards from beyond.
        shuffle_count: cards asked for each time.
    """

    peers: int = 2048
    slack: float = 0.25
    moved_share: float = 0.5
    widened: float = 1.25
    look_s: float = 10.0
    sample_max: int = 64
    sample_life_s: float = 900.0
    shuffle_s: float = 60.0
    shuffle_count: int = 8


class View:
    """The records that concern both ends of a link, as a table that can be compared."""

    __slots__ = ("_hashes", "_horizon", "_seen", "_theirs")

    def __init__(self, horizon: "Horizon", theirs: Scope | None) -> None:
        """Looks at nothing yet.

        Args:
            horizon: of this end; a new view is needed when its scope changes.
            theirs: the scope of the other end.
        """
        self._theirs = theirs
        self._horizon = horizon
        self._seen: list[bytes | None] = [None] * BUCKETS  # what the whole bucket hashed to when it was last looked at
        self._hashes: list[bytes] = [b""] * BUCKETS

    def digest(self, buckets: Iterable[int]) -> list[tuple[RecordKey, int]]:
        """See `PeerTable`."""
        return [entry for bucket in sorted(set(buckets)) for entry in self._of_bucket(bucket)[0]]

    def bucket_hashes(self) -> list[bytes]:
        """See `PeerTable`."""
        for bucket, whole in enumerate(self._horizon.table.bucket_hashes()):
            if whole != self._seen[bucket]:
                entries, settled = self._of_bucket(bucket)
                self._hashes[bucket] = bucket_hash(entries)
                self._seen[bucket] = whole if settled else None
        return self._hashes

    def _of_bucket(self, bucket: int) -> tuple[list[tuple[RecordKey, int]], bool]:
        """What concerns both in a bucket, and whether that hangs on nothing else: with verdicts it hangs on others' cards."""
        horizon, theirs, settled = self._horizon, self._theirs, True
        entries: list[tuple[RecordKey, int]] = []
        for key, sequence, place in horizon.table.placed(bucket):
            settled = settled and place is not None
            if in_common(horizon.scope, theirs, (place,) if place is not None else horizon.places(key)):
                entries.append((key, sequence))
        return entries, settled

    def root_hash(self) -> bytes:
        """See `PeerTable`."""
        return root_hash(self.bucket_hashes())


class Horizon:
    """The scope of this node and what follows from it; see the module's docstring."""

    def __init__(self, config: HorizonConfig, table: PeerTable, luck: Luck) -> None:
        """Starts with everything for a scope.

        Args:
            config: how much is held.
            table: of the node.
            luck: for the sample from beyond.
        """
        self.table = table
        self.scope: Scope | None = None
        self.edges_beyond: frozenset[RecordKey] = frozenset()
        """Keys of edges that are neither asked for nor taken where they are told of; who is far is known by its card."""
        self._config = config
        self._luck = luck
        self._place: Coordinate | None = None
        self._news = 0  # cards of peers that were not known, since the last look
        self._room = config.peers * (1.0 + config.slack)  # so many of them force a look
        self._look_at = float("-inf")

    def handle_moved(self, place: Coordinate) -> None:
        """Takes over where this node is."""
        self._place = place

    # What concerns whom

    def places(self, key: RecordKey) -> tuple[Place, ...]:
        """The places that a record held under a key concerns."""
        place = self.table.place(key)
        return self.places_of(self.table.record_of(key)) if place is None else (place,)

    def places_of(self, record: Record | None) -> tuple[Place, ...]:
        """The places that a record concerns: of its signer, and of those it names, as far as they are known."""
        match record and record.payload:
            case Card(coordinate=coordinate):
                return () if coordinate is None else (place_of(coordinate),)
            case Verdict(accused=accused):
                assert record is not None
                cards = [record_key(record.peer_id, RecordKind.CARD), *(RecordKey(item.subject) for item in accused)]
                return tuple(place for place in map(self.table.place, cards) if place is not None)
            case Edges():
                assert record is not None
                place = self.table.place(record_key(record.peer_id, RecordKind.CARD))
                return () if place is None else (place,)
            case _:
                return ()

    def concerns(self, scope: Scope, record: Record, replaced: Record | None) -> bool:
        """Whether a record, or the one before it, concerns somebody with this scope."""
        return any(map(scope.covers, (*self.places_of(record), *self.places_of(replaced))))

    def concerning(self, scope: Scope | None, entries: list[tuple[RecordKey, int]]) -> list[tuple[RecordKey, int]]:
        """Those of the records held that concern somebody with this scope."""
        return entries if scope is None else [entry for entry in entries if any(map(scope.covers, self.places(entry[0])))]

    def unheard_by(self, scopes: Iterable[tuple[PeerId, Scope | None]]) -> list[PeerId]:
        """Those whose scope does not cover this node: nobody but itself tells them of it."""
        own = self._place
        if own is None:
            return []
        place = place_of(own)
        return [peer for peer, scope in scopes if scope is not None and not scope.covers(place)]

    def kept(self, entries: Iterable[tuple[RecordKey, int]]) -> list[tuple[RecordKey, int]]:
        """What of that which somebody tells of may be asked for."""
        return [entry for entry in entries if entry[0] not in self.edges_beyond]

    def takes(self, record: Record, connected: Collection[PeerId]) -> bool:
        """Whether a record that nobody asked for is to be held."""
        if record.kind is RecordKind.EDGES:
            return record_key(record.peer_id, RecordKind.EDGES) not in self.edges_beyond
        if self.scope is None or record.kind not in COMPARED or record.peer_id in connected:
            return True
        if self.table.get(record.peer_id, record.kind) is not None:
            return True  # what is held is never left to grow old
        return any(map(self.scope.covers, self.places_of(record)))

    def found(self, search: Seek, theirs: Scope | None) -> list[Record]:
        """The cards that answer a search of somebody whose scope is known; whoever holds everything lacks nothing."""
        if theirs is None:
            return []
        beyond: list[tuple[float, PeerId]] = []
        for peer_id in self.table.known():
            serving, place = self.table.serving(peer_id) or (None, None)
            if serving is None or place is None or theirs.covers(place):
                continue
            if not search.model or any(offer.model == search.model for offer in serving.models):
                beyond.append((theirs.reach_s(place), peer_id))
        if search.model:
            beyond.sort()
        elif len(beyond) > search.count:
            beyond = self._luck.sample(beyond, search.count)
        records = [self.table.get(peer_id, RecordKind.CARD) for _, peer_id in beyond[: search.count]]
        return [record for record in records if record is not None]

    def beyond(self) -> list[PeerId]:
        """Those whose cards are held though the scope does not cover them, in the order of their ids."""
        scope = self.scope
        return [] if scope is None else [peer for peer, place in self._others() if place is None or not scope.covers(place)]

    # The scope and what leaves the table

    def note(self, record: Record, replaced: Record | None) -> None:
        """Counts a card that was accepted."""
        self._news += record.kind is RecordKind.CARD and replaced is None

    @property
    def is_overfull(self) -> bool:
        """Whether so many cards have come that a look cannot wait."""
        return self._news > self._room

    def is_due(self, now: float) -> bool:
        """Whether it is time for a look."""
        return now >= self._look_at

    def look(self, connected: Collection[PeerId], now: float) -> tuple[bool, list[Record]]:
        """Fits the scope to what is known, and drops what is beyond it.

        Returns:
            Whether the scope is another now, and the records dropped.
        """
        config = self._config
        self._look_at = now + config.look_s
        if self.scope is None and self.table.compared <= config.peers:  # fewer than make a scope
            self._news, self._room = 0, config.peers * (1.0 + config.slack) - self.table.compared
            return False, []
        others = self._others()
        before, self.scope = self.scope, self._fitting(others)
        dropped = self._drop_beyond(others, connected, now)
        limit = config.peers * (1.0 + config.slack) - len(others) + len({record.peer_id for record in dropped})
        self._news, self._room = 0, max(limit, config.slack * config.peers / 2.0, 1.0)
        return self.scope != before, dropped

    def _others(self) -> list[tuple[PeerId, Place | None]]:
        """All others whose cards are held, with their places, in the order of their ids."""
        places: dict[PeerId, Place] = dict(self.table.places())
        return [(peer_id, places.get(peer_id)) for peer_id in self.table.known() if peer_id != self.table.own]

    def _fitting(self, others: Sequence[tuple[PeerId, Place | None]]) -> Scope | None:
        """The scope for those that are known; the one before where it still fits."""
        config, scope, own = self._config, self.scope, self._place
        if own is None:
            return scope
        places = [place for _, place in others if place is not None]
        most, least = config.peers * (1.0 + config.slack), config.peers * (1.0 - config.slack)
        if scope is None:
            return scope_of(own.vector, places, config.peers) if len(others) > most else None
        inside = sum(map(scope.covers, places))
        if inside > most:
            return scope_of(own.vector, places, config.peers)
        if inside < least:
            wider_s = scope.radius_s * config.widened
            return None if wider_s > RADIUS_S_MAX else Scope(own.vector, wider_s)
        moved = Scope(own.vector, scope.radius_s)
        return moved if moved.distance_s(scope) > config.moved_share * scope.radius_s else scope

    def _drop_beyond(
        self, others: Sequence[tuple[PeerId, Place | None]], connected: Collection[PeerId], now: float
    ) -> list[Record]:
        """Drops the cards that are neither covered nor of connected peers, but for a sample of them that is not too old."""
        scope, config = self.scope, self._config
        if scope is None:
            return []
        beyond = [peer for peer, place in others if peer not in connected and (place is None or not scope.covers(place))]
        old = [peer for peer in beyond if now - (self.table.heard_at(peer) or 0.0) > config.sample_life_s]
        kept = [peer for peer in beyond if peer not in set(old)]
        surplus = self._luck.sample(kept, len(kept) - config.sample_max) if len(kept) > config.sample_max else []
        return [record for peer in sorted([*old, *surplus]) for record in self.table.evict(peer)]
