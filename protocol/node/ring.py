"""Of whom a node holds the edges: of everybody in a small mesh, of the nearest and of a few others in a large one.

Edges are most of what is told of a peer that is no candidate for work. Up to some hundred known peers a node holds them all. Past
that it holds those of its nearest, among whom it chooses, and of a sample that it draws itself, first among those that it has
measured, and keeps as long as it can: so its chart is anchored everywhere, and nobody steers who is in it. Whoever else there is
it knows by the coordinate on the card.

What is announced of others is not asked for. What is missing, because this node came later or an announcement was lost, it asks
the nearest connected peers for, who hold the edges of much the same peers; and who is in the sample for its own, while connected.

Source: docs/coordinates.md, section "How a node knows".
Spec: docs/spec/04-gossip.md, section "Neighbours".
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from protocol.coordinates import Coordinate, estimate_rtt_to
from protocol.encoding import Luck
from protocol.identity import PeerId
from protocol.records import RecordKind
from protocol.table import PeerTable, RecordKey, record_key


@dataclass(frozen=True, slots=True)
class RingConfig:
    """How many peers' edges are held.

    Attributes:
        peers_max: edges of everybody are held while so many peers are known at most, and of so many past that: 512 records of
            740 bytes every ten minutes are 630 B/s (arithmetic).
        sample_max: of these, peers that are drawn and not chosen for being near, where not everybody has room.
        missing_max: records asked for at one look of each peer that is asked.
        asked_max: peers that are asked at one look.
        stale_s: seconds after which edges that were not told anew are asked for: one time of telling was missed.
    """

    peers_max: int = 512
    sample_max: int = 64
    missing_max: int = 64
    asked_max: int = 2
    stale_s: float = 900.0


class EdgeRing:
    """The machine; see the module's docstring."""

    def __init__(self, config: RingConfig, table: PeerTable, luck: Luck) -> None:
        """Holds everybody's."""
        self._config = config
        self._table = table
        self._luck = luck
        self._keys: dict[PeerId, RecordKey] = {}  # of the edges of everybody known
        self._sample: frozenset[PeerId] = frozenset()
        self.members: tuple[PeerId, ...] = ()
        """Whose edges are held, the nearest first."""

    def look(self, place: Coordinate, measured: Collection[PeerId] = ()) -> frozenset[RecordKey]:
        """Sees who belongs to it now.

        Args:
            place: where this node is.
            measured: to whom its paths lead that it has measured.

        Returns:
            The keys of the edges of all others.
        """
        config = self._config
        known = [peer for peer in self._table.known() if peer != self._table.own]
        self._keys = {peer: self._keys.get(peer) or record_key(peer, RecordKind.EDGES) for peer in known}
        far_s = {peer: estimate_rtt_to(place, told) for peer, told in self._table.places()}
        order = sorted(known, key=lambda peer: (far_s.get(peer, float("inf")), peer))
        if len(order) <= config.peers_max:
            self._sample, self.members = frozenset(), tuple(order)
            return frozenset()
        near, others = order[: config.peers_max - config.sample_max], order[config.peers_max - config.sample_max :]
        kept = [peer for peer in others if peer in self._sample]
        kept = self._luck.sample(kept, min(len(kept), config.sample_max))
        for met in (True, False):
            left = [peer for peer in others if (peer in measured) is met and peer not in kept]
            kept += self._luck.sample(left, min(len(left), config.sample_max - len(kept)))
        self._sample = frozenset(kept)
        self.members = (*near, *(peer for peer in others if peer in self._sample))
        return frozenset(self._keys[peer] for peer in others if peer not in self._sample)

    def missing(self, now_wall_s: float) -> list[PeerId]:
        """Whose edges are not held though they should be, or were not told anew for long, in random order.

        Args:
            now_wall_s: wall-clock seconds.
        """
        peers = [peer for peer in self.members if self._is_missing(peer, now_wall_s)]
        self._luck.shuffle(peers)
        return peers

    def asked(self, missing: Sequence[PeerId], connected: Sequence[PeerId]) -> list[tuple[PeerId, tuple[RecordKey, ...]]]:
        """Whom to ask for what is missing.

        Args:
            missing: whose edges.
            connected: who can be asked, the nearest first.
        """
        config, there = self._config, set(connected)
        own = [peer for peer in missing if peer in self._sample and peer in there]
        keys = [self._keys[peer] for peer in missing if not (peer in self._sample and peer in there)]
        near = list(connected)[: 4 * config.asked_max]
        parts = [tuple(keys[at : at + config.missing_max]) for at in range(0, len(keys), config.missing_max)]
        peers = self._luck.sample(near, min(len(near), len(parts), config.asked_max))
        return [*((peer, (self._keys[peer],)) for peer in own), *zip(peers, parts, strict=False)]

    def _is_missing(self, peer: PeerId, now_wall_s: float) -> bool:
        record = self._table.get(peer, RecordKind.EDGES)
        return record is None or now_wall_s - record.issued_s > self._config.stale_s
