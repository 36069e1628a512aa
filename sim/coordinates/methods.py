"""The methods by name: the product's own, Serf's and choosing at random."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocol.coordinates import DIMENSIONS, Coordinate, CoordinateConfig, Vivaldi
from protocol.places import PLACE_BYTES
from sim.coordinates import memory, serf
from sim.coordinates.method import Estimates, Kind, Place, Seat, anybody, peer_id, unknown


class PlainVivaldi:
    """The product's `Vivaldi`: one sample a ping, each time of a random peer, nothing kept but the coordinate."""

    def __init__(self, seat: Seat) -> None:
        self._own = seat.index
        self._luck = seat.luck
        self._vivaldi = Vivaldi(CoordinateConfig(), seat.luck)
        self._published: list[Coordinate | None] = [None] * seat.nodes

    def whom(self, alive: Sequence[int], now_s: float) -> int | None:  # noqa: ARG002 - see `Method`
        """Anybody."""
        return anybody(alive, self._own, self._luck)

    def handle_rtt(self, peer: int, rtt_s: float, now_s: float, told: object | None) -> None:  # noqa: ARG002
        """A sample; without the peer's coordinate it is none."""
        if isinstance(told, Coordinate):
            self._vivaldi.handle_sample(peer_id(peer), rtt_s, told)

    def handle_lost(self, peer: int, now_s: float) -> None:
        """Vivaldi does not use losses."""

    def handle_told(self, peer: int, told: object, now_s: float) -> None:  # noqa: ARG002
        """Keeps the newest published coordinate of a peer."""
        if isinstance(told, Coordinate):
            self._published[peer] = told

    def told(self, now_s: float, *, echoed: bool) -> tuple[object, int] | None:  # noqa: ARG002
        """The coordinate, as echoes carry it."""
        return self._vivaldi.coordinate, PLACE_BYTES

    def tick(self, now_s: float) -> None:
        """Nothing is worked out again."""

    def estimate(self, peers: NDArray[np.int64], now_s: float) -> Estimates:  # noqa: ARG002
        """The distances to published coordinates; there are no intervals."""
        own = self._vivaldi.coordinate
        nowhere = Coordinate((math.nan,) * DIMENSIONS, 0.0, 0.0)
        known = [self._published[peer] or nowhere for peer in peers.tolist()]
        vectors = np.array([place.vector for place in known]).reshape(len(known), DIMENSIONS)
        rtt_s = np.sqrt(np.square(vectors - np.array(own.vector)).sum(axis=1))
        rtt_s += np.array([place.height_s for place in known]) + own.height_s
        return rtt_s, unknown(len(known)), unknown(len(known))


class RandomChoice:
    """No method at all: nobody is any nearer than anybody else."""

    def __init__(self, seat: Seat) -> None:
        self._own = seat.index
        self._luck = seat.luck

    def whom(self, alive: Sequence[int], now_s: float) -> int | None:  # noqa: ARG002 - see `Method`
        """Nobody: there is nothing to learn."""
        return None

    def handle_rtt(self, peer: int, rtt_s: float, now_s: float, told: object | None) -> None:
        """Nothing is learnt."""

    def handle_lost(self, peer: int, now_s: float) -> None:
        """Nothing is learnt."""

    def handle_told(self, peer: int, told: object, now_s: float) -> None:
        """Nothing is learnt."""

    def told(self, now_s: float, *, echoed: bool) -> tuple[object, int] | None:  # noqa: ARG002
        """Nothing."""
        return None

    def tick(self, now_s: float) -> None:
        """Nothing is worked out."""

    def estimate(self, peers: NDArray[np.int64], now_s: float) -> Estimates:  # noqa: ARG002
        """Nothing is known; who has to choose takes the first of shuffled candidates."""
        return unknown(len(peers)), unknown(len(peers)), unknown(len(peers))


def vivaldi_place(told: object) -> Place | None:
    """The place in what a node with the product's coordinates tells."""
    return Place(told.vector, told.height_s, told.error) if isinstance(told, Coordinate) else None


def vivaldi_forged(told: object, place: Place) -> object:  # noqa: ARG001 - nothing of the truth is left
    """What a liar with the product's coordinates tells."""
    return Coordinate(place.vector_s, place.height_s, place.error)


METHODS: dict[str, Kind] = {
    "memory": memory.KIND,
    "vivaldi": Kind(
        "the product's Vivaldi alone: a random peer each ping, nothing kept but the coordinate",
        PlainVivaldi,
        place=vivaldi_place,
        forge=vivaldi_forged,
    ),
    "serf": Kind("Serf's coordinates: a random peer each ping", serf.Serf, place=serf.place_of, forge=serf.forged),
    "random": Kind("no method: candidates are chosen at random", RandomChoice),
}
"""All methods, in the order in which they are run unless others are named."""
