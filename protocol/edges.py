"""Edges that both ends tell: what peers measured of one another, as far as the records of both agree.

Each peer tells what it measured (`protocol.records.measured`). An edge counts only where both ends tell it, and its length is the
longer of the two: so whoever lies can make an edge longer or have it not counted, and shorten none. Where the two differ by more
than jitter explains, though both measured at about the same time, the edge is disputed: it counts for nothing and is held against
both ends, so that who disagrees with many is seen.

The store keeps the newest of each peer as it came, nine bytes an edge, and lays it beside those of the others when it comes. One
sorted column holds the tags of all of them, so whoever tells of the same edge is found by bisection; a hash over both ids says
whether it is one of its ends. The pairs that count are kept as columns of numbers, so that reading them takes no other look at
the records.

There is room for a number of peers. When it is full, somebody goes for each who comes: from a place in the network or an owner
that holds more than its share, if there is one, and else whoever has told nothing for longest.

Source: M. Sherr, M. Blaze, B. Thau Loo, "Veracity" (USENIX ATC 2009), for coordinates that others vouch for.
Spec: docs/spec/05-coordinates.md, section "Edges".
"""

from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.identity import PeerId
from protocol.records import EDGE_BYTES, TAG_BYTES, Measured, Way, edge_tag, measured_at, position_of, rtt_code, rtt_of


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """Bounds and what explains a difference.

    Attributes:
        peers_max: peers whose edges are kept.
        edges_max: edges kept of each; those after them in the record are left out.
        owner_share: share of `peers_max` that one owner may hold once the store is full, unitless.
        origin_share: and one place in the network.
        lifetime_s: seconds that told edges count: as long as their records are good at most.
        fresh_s: an edge counts while its newest sample is younger at either end, in seconds.
        apart_s: ends whose newest samples are farther apart than so many seconds may have met two states of the path: where they
            differ they dispute nothing.
        slack_s: difference in seconds that always is explained: queueing at one end.
        slack_share: and as a share of the shorter one: nine of ten paths change by less than a tenth within a day, and a busy
            access link doubles a short one for a minute.
        disputed_min: edges that are disputed, a count, from which a peer may lose all its edges: a few are bad luck or a liar at
            the other end.
        disputed_share: share of its edges, unitless, that are disputed when it loses them all: 30 % of liars make it 0.3.
        jitter_factor: how many times the jitter of both ends is explained besides, at most the length of the shorter.
    """

    peers_max: int = 2048
    edges_max: int = 64
    owner_share: float = 0.5
    origin_share: float = 0.125
    lifetime_s: float = 1800.0
    fresh_s: float = 1800.0
    apart_s: float = 180.0
    slack_s: float = 0.005
    slack_share: float = 0.5
    jitter_factor: float = 4.0
    disputed_min: int = 8
    disputed_share: float = 0.5


@dataclass(frozen=True, slots=True)
class EdgeDisputed:
    """Two peers tell of the edge between them what cannot both be true: it counts for nothing, and one at least is wrong."""

    one: PeerId
    other: PeerId
    rtt_s_of_one: float
    rtt_s_of_other: float


class _Row:
    """What one peer told, and with whom it agrees and does not; peers are named by their slots."""

    __slots__ = ("agreed", "codes", "disputed", "is_believed", "measured", "origin", "owner", "peer", "told_at")

    def __init__(self, peer: PeerId, measured: bytes, told_at: float, owner: bytes | None, origin: bytes | None) -> None:
        self.peer = peer
        self.measured = measured
        self.told_at = told_at
        self.owner = owner
        self.origin = origin
        self.agreed = array("H")  # slots of who agrees
        self.codes = array("H")  # the longer round trip with each, as records tell it
        self.disputed = array("H")  # slots of who tells otherwise
        self.is_believed = True  # it does not disagree with most of those whose edges it tells


class EdgeStore:
    """The machine; see the module's docstring. Times are monotonic seconds."""

    def __init__(self, config: EdgeConfig | None = None) -> None:
        """Knows nothing yet.

        Args:
            config: at most 65,535 peers.
        """
        self._config = config or EdgeConfig()
        self._rows: list[_Row | None] = []
        self._slots: dict[PeerId, int] = {}  # the longest untold first
        self._free: list[int] = []
        self._owners: Counter[bytes] = Counter()
        self._origins: Counter[bytes] = Counter()
        self._tags: NDArray[np.uint64] = np.zeros(0, np.uint64)  # of all edges that are told, in order
        self._tellers: NDArray[np.uint16] = np.zeros(0, np.uint16)  # the slot of who tells each
        self._oldest_at = float("inf")  # nothing was told before
        self._changed: dict[PeerId, None] = {}  # whose edges that count may be others than were read, the longest ago first

    def __len__(self) -> int:
        """How many peers have told edges."""
        return len(self._slots)

    def peers(self) -> list[PeerId]:
        """Whose edges are kept, the longest untold first."""
        return list(self._slots)

    def __contains__(self, peer: PeerId) -> bool:
        """Whether edges of a peer are kept."""
        return peer in self._slots

    def handle_told(
        self, peer: PeerId, measured: bytes, now: float, owner: bytes | None = None, origin: bytes | None = None
    ) -> list[EdgeDisputed]:
        """Take what a peer tells, in place of what it told before.

        Args:
            peer: whose signed record it is.
            measured: its edges, as `check_measured` has let pass.
            now: monotonic seconds when it told that, which may be a while before it came.
            owner: whose node it is, by a certificate that was verified; None where that is not known.
            origin: where it is in the network (a /24, a /48); None where peers that share it are to be expected.

        Returns:
            The edges that are disputed by this and were not before.
        """
        known = self._slots.get(peer)
        disputed_before: frozenset[int] = frozenset()
        if known is not None:
            row = self._row(known)
            disputed_before = frozenset(row.disputed)
            self._take_out(peer)
        elif len(self._slots) >= self._config.peers_max:
            self._take_out(self._who_goes(owner, origin))
        slot = self._free.pop() if self._free else len(self._rows)
        row = _Row(peer, measured[: EDGE_BYTES * self._config.edges_max], now, owner, origin)
        if slot == len(self._rows):
            self._rows.append(row)
        else:
            self._rows[slot] = row
        for group, count in ((owner, self._owners), (origin, self._origins)):
            if group is not None:
                count[group] += 1
        found = self._compare(slot, row)
        self._slots[peer] = slot
        self._oldest_at = min(self._oldest_at, now)
        self._index(slot, row)
        self._note_changed(peer)
        return [self._told_of(row, self._row(other)) for other in found if other not in disputed_before]

    def remove(self, peer: PeerId) -> None:
        """Forget what a peer told, if it told anything."""
        if peer in self._slots:
            self._take_out(peer)

    def expire(self, now: float) -> None:
        """Forget what was told too long ago."""
        since = now - self._config.lifetime_s
        if since < self._oldest_at:
            return
        for peer in [peer for peer, slot in self._slots.items() if self._row(slot).told_at <= since]:
            self.remove(peer)
        self._oldest_at = min((self._row(slot).told_at for slot in self._slots.values()), default=float("inf"))

    def told(self, peer: PeerId, other: PeerId, now: float) -> Measured | None:
        """What a peer told of the edge between it and another, whatever the other says; None where it told nothing of it."""
        slot = self._slots.get(peer)
        if slot is None or self._row(slot).told_at <= now - self._config.lifetime_s:
            return None
        at = position_of(self._row(slot).measured, edge_tag(peer, other))
        return None if at is None else measured_at(self._row(slot).measured, at)

    def tells_of(self, peer: PeerId, other: PeerId) -> bool:
        """Whether a peer told of the edge between it and another."""
        slot = self._slots.get(peer)
        return slot is not None and position_of(self._row(slot).measured, edge_tag(peer, other)) is not None

    def taken_changes(self) -> list[PeerId]:
        """Whose edges may count otherwise since this was asked last, because they or the other ends told anew or were forgotten.

        An edge that has come or gone is told of one end alone, for it is the other's as well. It is meant to be asked after every
        call; of more than twice `peers_max` that have gathered the oldest are left out.
        """
        changed = list(self._changed)
        self._changed = {}
        return changed

    def pairs(self, now: float) -> list[tuple[PeerId, PeerId, float]]:
        """Every edge that counts, as its ends in order and its round trip in seconds, in the order of the ends."""
        self.expire(now)
        found: list[tuple[PeerId, PeerId, float]] = []
        for peer in sorted(self._slots):
            found += [(peer, other, rtt_s) for other, rtt_s in self.edges_of(peer, now) if peer < other]
        return found

    def edges_of(self, peer: PeerId, now: float) -> list[tuple[PeerId, float]]:
        """The edges of one peer that count: other ends and round trips in seconds, in the order of the ends."""
        self.expire(now)
        slot = self._slots.get(peer)
        if slot is None:
            return []
        row = self._row(slot)
        if not row.is_believed:
            return []
        ends = ((self._row(other), code) for other, code in zip(row.agreed, row.codes, strict=True))
        return sorted((other.peer, rtt_of(code)) for other, code in ends if other.is_believed)

    def standing(self, peer: PeerId) -> tuple[int, int]:
        """With how many others a peer agrees, and how many it disputes an edge with."""
        slot = self._slots.get(peer)
        return (0, 0) if slot is None else (len(self._row(slot).agreed), len(self._row(slot).disputed))

    def disputed(self) -> dict[PeerId, int]:
        """How many edges each peer disputes with others, those that dispute none left out, in the order of their ids."""
        counts = ((peer, len(self._row(self._slots[peer]).disputed)) for peer in sorted(self._slots))
        return {peer: count for peer, count in counts if count}

    # Helpers

    def _row(self, slot: int) -> _Row:
        row = self._rows[slot]
        assert row is not None
        return row

    def _note_changed(self, peer: PeerId) -> None:
        self._changed.pop(peer, None)
        self._changed[peer] = None
        if len(self._changed) > 2 * self._config.peers_max:
            del self._changed[next(iter(self._changed))]

    def _judge(self, row: _Row) -> None:
        """Sees whether a peer is believed still, or again, now that it agrees with others than before."""
        config, disputed = self._config, len(row.disputed)
        is_believed = disputed < config.disputed_min or disputed <= config.disputed_share * (len(row.agreed) + disputed)
        if is_believed is not row.is_believed:
            row.is_believed = is_believed
            self._note_changed(row.peer)

    def _index(self, slot: int, row: _Row) -> None:
        """Lets a row be found by the tags of its edges."""
        tags = _tags_of(row.measured)
        at = np.searchsorted(self._tags, tags)
        self._tags = np.insert(self._tags, at, tags)
        self._tellers = np.insert(self._tellers, at, np.uint16(slot))

    def _tell_same(self, row: _Row) -> list[int]:
        """The slots of all that tell of an edge under one of the tags of a row; of everybody where tags are told by very many."""
        tags = _tags_of(row.measured)
        first, last = np.searchsorted(self._tags, tags), np.searchsorted(self._tags, tags, side="right")
        if int((last - first).sum()) > len(self._slots):  # somebody tells what is not its own: a look at each peer costs no more
            return list(self._slots.values())
        found = [int(self._tellers[at]) for start, end in zip(first, last, strict=True) for at in range(int(start), int(end))]
        return sorted(set(found))

    def _compare(self, slot: int, row: _Row) -> list[int]:
        """Lay a new row beside the others; returns the slots of those that it disputes an edge with."""
        numbers = {row.measured[at : at + TAG_BYTES]: at // EDGE_BYTES for at in range(0, len(row.measured), EDGE_BYTES)}
        for other_slot in self._tell_same(row):
            other = self._row(other_slot)
            tag = edge_tag(row.peer, other.peer)
            number, theirs_at = numbers.get(tag), position_of(other.measured, tag)
            if number is None or theirs_at is None:
                continue
            mine, theirs = measured_at(row.measured, number), measured_at(other.measured, theirs_at)
            if not self._may_compare(row, mine, other, theirs):
                continue
            if self._agree(mine, theirs):
                code = rtt_code(max(mine.rtt_s, theirs.rtt_s))
                for end, with_slot in ((row, other_slot), (other, slot)):
                    end.agreed.append(with_slot)
                    end.codes.append(code)
            elif abs((row.told_at - mine.age_s) - (other.told_at - theirs.age_s)) <= self._config.apart_s:
                row.disputed.append(other_slot)
                other.disputed.append(slot)
            self._judge(other)
        self._judge(row)
        return list(row.disputed)

    def _may_compare(self, row: _Row, mine: Measured, other: _Row, theirs: Measured) -> bool:
        """Whether both ends speak of one way, and of it as it was lately."""
        one_way = mine.way == theirs.way or Way.UNKNOWN in (mine.way, theirs.way)
        oldest = min(row.told_at - mine.age_s, other.told_at - theirs.age_s)
        return one_way and row.told_at - oldest <= self._config.fresh_s

    def _agree(self, mine: Measured, theirs: Measured) -> bool:
        config, shorter_s = self._config, min(mine.rtt_s, theirs.rtt_s)
        jitter_s = min(config.jitter_factor * (mine.jitter_s + theirs.jitter_s), shorter_s)
        return abs(mine.rtt_s - theirs.rtt_s) <= max(config.slack_s, config.slack_share * shorter_s) + jitter_s

    @staticmethod
    def _told_of(row: _Row, other: _Row) -> EdgeDisputed:
        one, two = (row, other) if row.peer < other.peer else (other, row)
        tag = edge_tag(one.peer, two.peer)
        rtts = [_rtt_at(end.measured, tag) for end in (one, two)]
        return EdgeDisputed(one.peer, two.peer, rtts[0], rtts[1])

    def _take_out(self, peer: PeerId) -> None:
        slot = self._slots.pop(peer)
        row = self._row(slot)
        for other_slot in row.agreed:
            other = self._row(other_slot)
            at = other.agreed.index(slot)
            del other.agreed[at], other.codes[at]
        for other_slot in row.disputed:
            self._row(other_slot).disputed.remove(slot)
        for other_slot in (*row.agreed, *row.disputed):
            self._judge(self._row(other_slot))
        for group, count in ((row.owner, self._owners), (row.origin, self._origins)):
            if group is not None:
                count[group] -= 1
                if not count[group]:
                    del count[group]
        kept = self._tellers != slot
        self._tags, self._tellers = self._tags[kept], self._tellers[kept]
        self._rows[slot] = None
        self._free.append(slot)
        self._note_changed(peer)

    def _who_goes(self, owner: bytes | None, origin: bytes | None) -> PeerId:
        """Who makes room: of the newcomer's group if that has its share, of the largest with more, or the longest untold."""
        config = self._config
        for group, count, share, name in (
            (origin, self._origins, config.origin_share, "origin"),
            (owner, self._owners, config.owner_share, "owner"),
        ):
            room = max(1, int(share * config.peers_max))
            if group is not None and count[group] >= room:
                return self._longest_untold(name, group)
            crowded = [(size, key) for key, size in count.items() if size > room]
            if crowded:
                return self._longest_untold(name, max(crowded)[1])
        return next(iter(self._slots))

    def _longest_untold(self, name: str, group: bytes) -> PeerId:
        return next(peer for peer, slot in self._slots.items() if getattr(self._row(slot), name) == group)


def _rtt_at(measured: bytes, tag: bytes) -> float:
    """The round trip of the edge with a tag, which is there."""
    at = position_of(measured, tag)
    assert at is not None
    return measured_at(measured, at).rtt_s


def _tags_of(measured: bytes) -> NDArray[np.uint64]:
    """The tags of edges as numbers, in order."""
    columns = np.frombuffer(measured, np.uint8).reshape(-1, EDGE_BYTES)
    wide = np.zeros((len(columns), 8), np.uint8)
    wide[:, 8 - TAG_BYTES :] = columns[:, :TAG_BYTES]
    return wide.view(">u8").ravel().astype(np.uint64)
