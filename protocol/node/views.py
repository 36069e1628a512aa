"""What a node knows of its peers, put together from its machines without reading a card."""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from protocol.coordinates import Coordinate, Vivaldi, estimate_rtt, estimate_rtt_to
from protocol.distances import Distances
from protocol.estimate import ITSELF, UNKNOWN, Estimate, Source, of_places, of_samples
from protocol.identity import PeerId
from protocol.load import Beat
from protocol.membership import Membership, Standing
from protocol.node.config import PeerFacts, PeerView
from protocol.probe import Probe
from protocol.records import Card, RecordKind
from protocol.table import PeerTable

ESTIMATE_SLACK = 1.25
"""How much farther than the farthest of the nearest, unitless, a peer may seem by its place and still be measured: near places
are wrong by a tenth to a fifth, and a trial costs nobody its connection."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """Who is near, and who may be.

    Attributes:
        seated: the nearest peers, the nearest first: by measurement, and as far as too few were measured by their places.
        seeming: peers that were not measured and may be as near by their places, the nearest first.
        within_s: the round trip to the farthest of the seated in seconds, infinite while there are too few.
    """

    seated: list[PeerId]
    seeming: list[PeerId]
    within_s: float


class Views:
    """Looks at the machines of one node."""

    def __init__(
        self,
        own: PeerId,
        table: PeerTable,
        membership: Membership,
        probe: Probe,
        beats: Mapping[PeerId, Beat],
        places: Mapping[PeerId, Coordinate],
        error_max: float,
        vivaldi: Callable[[], Vivaldi],
        distances: Distances,
    ) -> None:
        """Keeps nothing of its own.

        Args:
            own: this node.
            table: its peer table.
            membership: who is connected and what is thought of them.
            probe: measured paths.
            beats: of connected peers, as they change.
            places: of connected peers, as their echoes tell them: fresher than their cards.
            error_max: the error of a place that is not known, unitless.
            vivaldi: tells where this node is.
            distances: what was measured, also of peers that are connected no more, and what the edges of all say.
        """
        self._own = own
        self._table = table
        self._membership = membership
        self._probe = probe
        self._beats = beats
        self._places = places
        self._error_max = error_max
        self._vivaldi = vivaldi
        self._distances = distances

    def known(self) -> list[PeerId]:
        """Everybody who is connected or has told its card, this node left out, in order."""
        return sorted({*self._table.known(), *self._membership.connected()} - {self._own})

    def standings(self, now: float) -> list[Standing]:
        """What this node thinks of everyone it knows, in the order of their ids."""
        return [self._membership.standing(peer_id, now)[0] for peer_id in self.known()]

    def facts(self, peer_id: PeerId, place: Coordinate, now: float) -> PeerFacts:
        """What is known of one peer.

        Args:
            peer_id: whom.
            place: where this node is.
            now: monotonic seconds.
        """
        standing, why = self._membership.standing(peer_id, now)
        told, (serving, carded) = self._places.get(peer_id), self._table.serving(peer_id) or (None, None)
        rtt_s, low_s, error, quality = None, None, self._error_max, self._probe.quality(peer_id, now)
        known = None if quality is not None else self._distances.estimate(peer_id, now)
        if known is not None:
            rtt_s, low_s, error = known.rtt_s, known.low_s, known.high_s / known.rtt_s - 1.0
        elif place.error >= self._error_max:
            pass  # whoever has measured nobody is nowhere
        elif told is not None:
            rtt_s, error = estimate_rtt(place, told), told.error
        elif carded is not None and carded[-1] < self._error_max:
            rtt_s, error = estimate_rtt_to(place, carded), carded[-1]
        return PeerFacts(
            peer_id=peer_id,
            standing=standing,
            why=why,
            connected=self._membership.is_connected(peer_id),
            serving=serving,
            beat=self._beats.get(peer_id),
            quality=quality,
            coordinate_rtt_s=rtt_s,
            coordinate_error=error,
            coordinate_low_s=low_s,
            remembered=known is not None and known.source is Source.MEASURED,
        )

    def peer(self, peer_id: PeerId, place: Coordinate, now: float) -> PeerView:
        """What is known of one peer, its card included, which is read for it.

        Args:
            peer_id: whom.
            place: where this node is.
            now: monotonic seconds.
        """
        standing, why = self._membership.standing(peer_id, now)
        told = self.place_of(peer_id)
        return PeerView(
            peer_id=peer_id,
            standing=standing,
            why=why,
            connected=self._membership.is_connected(peer_id),
            card=self._card(peer_id),
            beat=self._beats.get(peer_id),
            quality=self._probe.quality(peer_id, now),
            coordinate_rtt_s=None if told is None else estimate_rtt(place, told),
        )

    def place_of(self, peer_id: PeerId) -> Coordinate | None:
        """Where a peer says it is: its echoes are fresher than its card."""
        told = self._places.get(peer_id)
        if told is not None:
            return told
        card = self._card(peer_id)
        return None if card is None else card.coordinate

    def estimate(self, peer_id: PeerId, now: float) -> Estimate:
        """How far a peer is from this node: as measured where its path is or was probed, else as edges tell, else as places do.

        Args:
            peer_id: whom; anybody may be named, and who is not known is at an unknown distance.
            now: monotonic seconds.
        """
        if peer_id == self._own:
            return ITSELF
        quality = self._probe.quality(peer_id, now)
        if quality is not None:
            return of_samples(quality.rtt_s, quality.jitter_s, quality.samples)
        known = self._distances.estimate(peer_id, now)
        return known if known is not None else _apart(self._vivaldi().coordinate, self.told_place(peer_id))

    def between(self, one: PeerId, other: PeerId, now: float) -> Estimate:
        """How far two nodes are from each other, either of which may be this one.

        Args:
            one: one of them.
            other: the other; the order does not matter.
            now: monotonic seconds.
        """
        if self._own in (one, other):
            return self.estimate(other if one == self._own else one, now)
        if one == other:
            return ITSELF
        known = self._distances.between(one, other, now)
        if known is not None:
            return known
        place = self.told_place(one)
        return UNKNOWN if place is None else _apart(place, self.told_place(other))

    def told_place(self, peer_id: PeerId) -> Coordinate | None:
        """Where a node says it is, as `place_of`, without reading its card: what a table keeps has seven digits."""
        if peer_id == self._own:
            return self._vivaldi().coordinate
        told = self._places.get(peer_id)
        if told is None and (carded := (self._table.serving(peer_id) or (None, None))[1]) is not None:
            told = Coordinate(tuple(carded[:-2]), carded[-2], carded[-1])
        return told

    def _card(self, peer_id: PeerId) -> Card | None:
        record = self._table.get(peer_id, RecordKind.CARD)
        return record.payload if record is not None and isinstance(record.payload, Card) else None

    def nearest(self, place: Coordinate, count: int, now: float) -> Nearest:
        """The nearest peers whose places are known, and those that may be as near and have to be measured to know it.

        A place is a claim, and near ones are wrong by more than neighbours differ. So whoever was measured, connected or not any
        more, is displaced by somebody who was measured to be nearer, and by nobody who only says so.

        Who has turned this node away is left out for a while: a peer that is near to thousands is connected to some of them.

        Args:
            place: where this node is.
            count: how many at most.
            now: monotonic seconds.
        """
        measured = self._probe.distances(now)
        kept = ((rtt_s, peer_id) for peer_id, rtt_s in measured.items() if self._may_be_kept(peer_id, now))
        seated = heapq.nsmallest(count, kept)
        missing = count - len(seated)
        limit_s = float("inf") if missing else ESTIMATE_SLACK * seated[-1][0]
        seeming = heapq.nsmallest(missing or count, self._estimates(place, limit_s, measured, now))
        if missing:
            seated, seeming = seated + seeming, []
        within_s = max(rtt_s for rtt_s, _ in seated) if len(seated) == count else float("inf")
        return Nearest([peer_id for _, peer_id in seated], [peer_id for _, peer_id in seeming], within_s)

    def _estimates(
        self, place: Coordinate, limit_s: float, measured: Mapping[PeerId, float], now: float
    ) -> Iterator[tuple[float, PeerId]]:
        """The estimated round trips below a limit to peers that were not measured."""
        first, height_s = place.vector[0], place.height_s
        for peer_id, carded in self._table.places():
            if abs(carded[0] - first) + height_s + carded[-2] >= limit_s:  # one component alone: most of a large mesh
                continue
            if peer_id in measured or peer_id == self._own or self._membership.is_shunned(peer_id, now):
                continue
            told, known = self._places.get(peer_id), self._distances.estimate(peer_id, now)
            if known is not None:
                rtt_s = known.rtt_s
            else:
                rtt_s = estimate_rtt_to(place, carded) if told is None else estimate_rtt(place, told)
            if rtt_s < limit_s:
                yield rtt_s, peer_id

    def _may_be_kept(self, peer_id: PeerId, now: float) -> bool:
        """Whether a peer is connected, or lives as far as is known and has not turned this node away."""
        if self._membership.is_connected(peer_id):  # who has no card gets no work, and no seat
            return self._table.has_card(peer_id) and self._membership.may_be_near(peer_id)
        return not self._membership.is_shunned(peer_id, now) and self._membership.standing(peer_id, now)[0] is Standing.ALIVE

    def dialable(self, now: float) -> list[PeerId]:
        """The peers that are not connected and that it makes sense to dial, in the order of their ids."""
        membership = self._membership
        return [
            peer_id
            for peer_id in self.known()
            if not membership.is_connected(peer_id)
            and not membership.is_shunned(peer_id, now)
            and membership.standing(peer_id, now)[0] is Standing.ALIVE
        ]


def _apart(one: Coordinate, other: Coordinate | None) -> Estimate:
    """What two places tell of the round trip between them."""
    if other is None:
        return UNKNOWN
    reach_s = math.hypot(*one.vector) + one.height_s + math.hypot(*other.vector) + other.height_s
    return of_places(estimate_rtt(one, other), one.error + other.error, reach_s)
