"""What a node knows of distances: its samples and the edges that peers tell, worked out from time to time.

Every round trip that the probe takes is kept, also of peers that are connected no more. The edges that both ends tell (`telling`)
make a chart of the mesh; in it this node finds its own place. With every look for the nearest it names a few peers to be measured
next, half of them drawn at random, so that nobody can make itself invisible or everybody else seem far.

Source: docs/coordinates.md, section "How a node knows".
"""

from collections.abc import Sequence

from protocol.distances import DistanceConfig, Distances, SeededDraws
from protocol.identity import Identity, PeerId

_DOMAIN = b"isochrone-survey:"
"""What the node signs, and shows to nobody, for a secret of its draws."""

VISITS = 2
"""Peers named at each look for the nearest, a count: one drawn at random, one that seems near. A visit costs a handshake."""


class Survey:
    """The machine's part of a node; see the module's docstring."""

    def __init__(self, config: DistanceConfig, identity: Identity) -> None:
        """Nothing measured yet.

        Args:
            config: bounds.
            identity: this node's key.
        """
        self._visits: dict[PeerId, bool] = {}  # who was named last, and whether it was drawn at random
        self.distances = Distances(config, identity.peer_id, SeededDraws(identity.sign(_DOMAIN)))

    def handle_sample(self, peer: PeerId, rtt_s: float, now: float) -> None:
        """Keeps a round trip that this node has measured."""
        self.distances.handle_sample(peer, rtt_s, now, drawn=self._visits.pop(peer, False))

    def forget(self, peer: PeerId) -> None:
        """Drops a peer that is gone for good."""
        self.distances.forget(peer)

    def visits(self, free: Sequence[PeerId], now: float) -> list[PeerId]:
        """Whom to measure next, besides those that are connected.

        Args:
            free: the peers that are not connected and may be dialled, in the order of their ids.
            now: monotonic seconds.
        """
        may = frozenset(free)
        self._visits = {}
        for _ in range(VISITS):
            chosen = self.distances.whom_to_measure(free, now, lambda peer: peer in may and peer not in self._visits)
            if chosen is not None:
                self._visits[chosen[0]] = chosen[1]
        return list(self._visits)

    def next_timer(self) -> float:
        """When `handle_timer` wants to be called."""
        return self.distances.next_timer()

    def handle_timer(self, now: float) -> None:
        """Does a slice of the work that is due."""
        self.distances.handle_timer(now)
