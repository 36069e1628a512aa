"""What a node tells of itself, and when: its card, its beats, its edges.

A card reaches everyone, so it is told when something on it changes and renewed before it expires. A coordinate that moves is a
change that can wait: each card that says nothing else makes the next of its kind wait four times as long. A beat
reaches the peers that this node is connected to, so it is told as soon as the load has changed enough to change what routing
makes of it, at most every `beat_interval_s`, and now and then otherwise. Edges are told to neighbours, seldom.

The machine decides and counts time; sealing and sending are for the node.

Spec: docs/spec/03-records.md, section "When records are told".
"""

from dataclasses import dataclass

from protocol.coordinates import Coordinate, distance
from protocol.load import Beat, ModelLoad
from protocol.multiaddr import Multiaddr
from protocol.queues import turns
from protocol.records import Card, Hardware, ModelOffer


@dataclass(frozen=True, slots=True)
class AnnouncerConfig:
    """Intervals and thresholds; seconds unless the name says otherwise."""

    card_lifetime_s: float = 7200.0
    """A card is good for two hours and renewed after one: with 10,000 nodes that is 1.4 kB/s for each of them. Who dies is taken
    out within seconds by those who watch it, not by its card's expiry."""
    card_interval_s: float = 2.0
    """Shortest time between two cards, however fast things change: a card reaches everyone."""
    moved_s: float = 0.002
    moved_share: float = 0.1
    """A coordinate that moved by less than two milliseconds, or than a tenth of the distances it is used for, is no news."""
    error_changed: float = 0.2
    """An error estimate that changed by less is no news: peers weigh this node by it, and a fresh one (1.5) counts for little."""
    moves_settle_s: float = 10.0
    """A coordinate is told when it has been elsewhere for so long: what a burst of bad samples moved comes back by itself."""
    moves_wait_s: float = 10.0
    """A card that only tells a new coordinate waits so long after the card before, and four times as long each further time."""
    moves_wait_s_max: float = 2560.0
    """And at most so long; connected peers hear of it by echoes. Among 1,000 nodes whose places had not settled, cards that told
    of nothing else came twenty times a second and were 12 kB/s to everybody at an earlier 640 s."""
    beat_interval_s: float = 2.0
    """Shortest time between two beats: a load known for two seconds is still good, and 64 peers hear each."""
    beat_changed_s: float = 30.0
    """Longest time until a load is told that has changed at all, if only by what changes nobody's mind."""
    beat_floor_s: float = 120.0
    """Longest time between two beats: a beat may have been lost in a full queue."""
    load_changed_share: float = 0.2
    """A load is news when the wait that readers work out from it has changed by more of a service time, or a time by more of
    itself. How many of a node's free slots are taken changes no wait, so it does not matter to routing."""
    edges_first_s: float = 20.0
    """Seconds from the start until edges are told first: by then a new connection has been measured four or five times."""
    edges_second_s: float = 60.0
    """And again after so long, when those are known that were met meanwhile."""
    edges_interval_s: float = 600.0
    """Seconds between two tellings later: a hundred neighbours cost 130 B/s so."""
    edges_look_s: float = 60.0
    """Seconds between two looks whether enough has changed to tell edges sooner."""
    edges_changed_share: float = 0.5
    """Share of the edges told of which, when they have changed or are new, all are told anew: a node that still meets others
    tells three times until it has its 64, and not seven times, as with a quarter."""
    edges_newcomer: int = 8
    """Edges that count, below which a peer is new and is answered sooner: with three it has a place, with eight a good one."""
    edges_changed_rtt: float = 0.25
    edges_changed_s: float = 0.002
    """A round trip has changed when it differs by a quarter and 2 ms: below that both ends would still agree."""
    edges_lifetime_s: float = 1800.0
    edges_max: int = 64
    """Measured paths told: with fewer than 48 places are worse, with more little better (docs/coordinates.md)."""


class Announcer:
    """The machine; see the module's docstring. Times are monotonic."""

    def __init__(self, config: AnnouncerConfig, agent: str) -> None:
        """Nothing is due before `start`."""
        self.draining = False
        self.offers: tuple[ModelOffer, ...] = ()
        self.loads: tuple[ModelLoad, ...] = ()
        self.bus_free_mbps = 0
        self.hardware: Hardware | None = None
        self._config = config
        self._agent = agent
        self._addresses: tuple[Multiaddr, ...] = ()
        self._seal_key, self._relays = b"", False
        self._incarnation = 0
        self._membership = b""
        self._fabric = b""
        self._card_changed = self._beat_changed = self._reborn = False
        self._moved_at: float | None = None  # since when the place is another than the last card tells
        self._card_at = self._beat_at = self._edges_at = float("-inf")
        self._moves_wait_s = config.moves_wait_s
        self._told_place: Coordinate | None = None  # by the last card
        self._told_loads: tuple[ModelLoad, ...] = ()
        self._started = False
        self._due: float | None = None  # None when it has to be worked out anew

    @property
    def incarnation(self) -> int:
        """The incarnation on this node's newest card; 0 before the first."""
        return self._incarnation

    def start(self, addresses: tuple[Multiaddr, ...], hardware: Hardware, offers: tuple[ModelOffer, ...]) -> None:
        """Has everything told for the first time."""
        self._due = None
        self._addresses, self.hardware, self.offers = addresses, hardware, offers
        self._started = self._card_changed = self._beat_changed = self._reborn = True

    # What changes

    def handle_sealing(self, seal_key: bytes, *, relays: bool) -> None:
        """Takes over what requests to this node are sealed to, and whether it passes on those of others."""
        self._due = None
        self._card_changed = self._card_changed or (seal_key, relays) != (self._seal_key, self._relays)
        self._seal_key, self._relays = seal_key, relays

    def handle_addresses(self, addresses: tuple[Multiaddr, ...]) -> None:
        """Takes over where this node can be reached."""
        self._due = None
        self._card_changed = self._card_changed or addresses != self._addresses
        self._addresses = addresses

    def handle_membership(self, membership: bytes) -> None:
        """Takes over what this node shows of its network."""
        self._due = None
        self._card_changed = self._card_changed or membership != self._membership
        self._membership = membership

    def handle_fabric(self, advert: bytes) -> None:
        """Takes over which fabrics this node has, as its advert says."""
        self._due = None
        self._card_changed = self._card_changed or advert != self._fabric
        self._fabric = advert

    def handle_offers(self, offers: tuple[ModelOffer, ...]) -> None:
        """Takes over which models this node serves."""
        self._due = None
        self._card_changed = self._card_changed or offers != self.offers
        self.offers = offers

    def handle_load(self, loads: tuple[ModelLoad, ...], bus_free_mbps: int = 0) -> None:
        """Takes over how busy this node's engines are, and what the bus to its accelerators has left, 0 when unknown."""
        self._due = None
        self.loads, self.bus_free_mbps = loads, bus_free_mbps
        self._beat_changed = self._beat_changed or _load_changed(self._told_loads, loads, self._config.load_changed_share)

    def handle_moved(self, place: Coordinate, typical_rtt_s: float, now: float) -> None:
        """Takes over where this node is now.

        Args:
            place: its coordinate.
            typical_rtt_s: how long round trips from here are, in seconds: by this others judge what a move means.
            now: monotonic seconds.
        """
        if self._is_news(self._told_place, place, typical_rtt_s) is not (self._moved_at is not None):
            self._due = None
            self._moved_at = now if self._moved_at is None else None

    def settle(self) -> None:
        """Counts as one that has told its moves for long, for who begins in the middle of a node's life."""
        self._due = None
        self._moves_wait_s = self._config.moves_wait_s_max

    def drain(self) -> None:
        """Has everyone told that this node takes no more work."""
        self._due = None
        self.draining = self._beat_changed = True
        self._beat_at = float("-inf")

    def renew(self) -> None:
        """Has the card told again, as it is, because the mesh holds an older one for the newest."""
        self._due = None
        self._card_changed = self._reborn = True

    def refute(self) -> None:
        """Has a card of a greater incarnation told at once: others hold this node for dead."""
        self._due = None
        self._card_changed = self._reborn = True
        self._card_at = float("-inf")

    # What is due

    def next_due(self) -> float:
        """When something is to be told next."""
        if not self._started:
            return float("inf")
        if self._due is None:
            self._due = min(self._card_due(), self._beat_due(), self._edges_at)
        return self._due

    def card(self, place: Coordinate, sequence: int, now: float) -> Card | None:
        """The card to be sealed with this sequence number, if one is due."""
        if not self._started or now < self._card_due():
            return None
        self._due = None
        assert self.hardware is not None
        if self._card_changed or self._moved_at is None:
            self._moves_wait_s = self._config.moves_wait_s
        else:
            self._moves_wait_s = min(4.0 * self._moves_wait_s, self._config.moves_wait_s_max)
        if self._reborn:
            self._incarnation = sequence
        if self._card_changed or self._moved_at is not None or self._told_place is None:
            self._told_place = place
        self._card_at, self._card_changed, self._moved_at, self._reborn = now, False, None, False
        return Card(
            addresses=self._addresses,
            hardware=self.hardware,
            models=self.offers,
            coordinate=self._told_place,
            agent=self._agent,
            incarnation=self._incarnation,
            membership=self._membership,
            seal_key=self._seal_key,
            relays=self._relays,
            fabric=self._fabric,
        )

    def beat(self, now: float) -> Beat | None:
        """The beat to be told, if one is due."""
        if not self._started or now < self._beat_due():
            return None
        self._due = None
        self._beat_at, self._beat_changed = now, False
        self._told_loads = self.loads
        return self.whole_beat()

    def whole_beat(self) -> Beat:
        """What somebody is told who has heard no beat of this node yet."""
        return Beat(self.draining, self.loads, self.bus_free_mbps)

    def edges_due(self, now: float) -> bool:
        """Whether edges are to be told now; they count as told then, and are due again as `plan_edges` says."""
        if not self._started or now < self._edges_at:
            return False
        self._due = None
        self._edges_at = now + self._config.edges_interval_s
        return True

    def plan_edges(self, at: float) -> None:
        """Has edges due at another time than after an interval."""
        self._due, self._edges_at = None, at

    # Helpers

    def _card_due(self) -> float:
        config = self._config
        if self._card_changed:
            return self._card_at + config.card_interval_s
        renewed_at = self._card_at + config.card_lifetime_s / 2
        if self._moved_at is None:
            return renewed_at
        return min(renewed_at, max(self._card_at + self._moves_wait_s, self._moved_at + config.moves_settle_s))

    def _beat_due(self) -> float:
        config = self._config
        if self._beat_changed:
            return self._beat_at + config.beat_interval_s
        return self._beat_at + (config.beat_floor_s if self.loads == self._told_loads else config.beat_changed_s)

    def _is_news(self, told: Coordinate | None, place: Coordinate, typical_rtt_s: float) -> bool:
        if told is None:
            return True
        moved = distance(told, place) > max(self._config.moved_s, self._config.moved_share * typical_rtt_s)
        return moved or abs(told.error - place.error) > self._config.error_changed


def _load_changed(told: tuple[ModelLoad, ...], loads: tuple[ModelLoad, ...], share: float) -> bool:
    """Whether any model's load has changed enough to be told."""
    if told == loads:
        return False
    if [load.model for load in told] != [load.model for load in loads]:
        return True
    return any(
        abs(turns(old) - turns(new)) > share
        or old.slots != new.slots
        or abs(old.service_s - new.service_s) > share * max(old.service_s, new.service_s)
        for old, new in zip(told, loads, strict=True)
    )
