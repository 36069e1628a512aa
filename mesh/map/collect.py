"""What a map is drawn from, taken from the core: the nodes round one of them, and the round trips between them.

Up to `FULL_NODES` nodes the round trips between all of them are told, so that any can be made the middle; beyond that those to
each one's nearest, which places choose, since asking for all would take time by the square. The work is done in pieces, between
which everything else has its turn.

Spec: docs/gateway.md, section "The map".
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import trio
from numpy.typing import NDArray

from mesh.distances import Distances, Row
from protocol.estimate import Source
from protocol.identity import PeerId, peer_id_text
from protocol.node import Node
from protocol.records import Card, RecordKind

FULL_NODES = 200
"""Nodes up to which all round trips between them are told, a count: 19,900 pairs, 0.4 MB."""

PAIRS_MAX = 40_000
"""Round trips told at most where only the nearest are, a count: as many as between `FULL_NODES`, each from both ends."""

NODES_MAX = 2000
"""Nodes on a map, a count, the nearest to its middle: more cannot be told apart on a screen."""

MODELS_MAX = 16
"""Models told of one node, a count: what a label can show."""

UNIT_S = 1e-5
"""Seconds of one unit in which round trips are told: a hundredth of a millisecond, as fine as a map is read."""

SOURCES = tuple(str(source) for source in Source)
"""What the numbers of sources stand for."""


class MapCollector:
    """Collects what a map is drawn from; one map at a time."""

    def __init__(self, node: Node, distances: Distances) -> None:
        """Keeps nothing.

        Args:
            node: the core.
            distances: finds nodes by their names.
        """
        self._node = node
        self._distances = distances
        self._turn = trio.Lock()

    async def collect(self, around: str | None) -> Row:
        """The nodes round one of them, nearest first, itself at the head, and the round trips between them.

        Args:
            around: who is in the middle; this node where None.

        Raises:
            UnknownPeerError: `around` is nobody's name, or not one node's alone.
        """
        centre = self._node.peer_id if around is None else self._distances.find(around)
        async with self._turn:
            views, now = self._node.views, self._distances.now()
            reached: list[tuple[float, PeerId]] = []
            unknown = 0
            for peer_id in self._distances.living(now):
                estimate = views.between(centre, peer_id, now)
                if peer_id != centre and estimate.source is not Source.UNKNOWN:
                    reached.append((estimate.rtt_s, peer_id))
                unknown += estimate.source is Source.UNKNOWN
            reached.sort()
            peers = [centre, *(peer_id for _, peer_id in reached[: NODES_MAX - 1])]
            rows = [await self._row(peer_id, now) for peer_id in peers]
            pairs = await self._pairs(peers, now)
        own = self._node.peer_id
        return {
            "around": peer_id_text(centre),
            "own": peers.index(own) if own in peers else None,
            "unit_s": UNIT_S,
            "sources": SOURCES,
            "nodes": rows,
            "pairs": pairs,
            "left_off": len(reached) + 1 - len(peers),
            "unknown": unknown,
        }

    async def _row(self, peer_id: PeerId, now: float) -> Row:
        """One node as a JSON object."""
        await trio.lowlevel.checkpoint()
        place = self._node.views.told_place(peer_id)
        record = self._node.table.get(peer_id, RecordKind.CARD)
        card = record.payload if record is not None and isinstance(record.payload, Card) else None
        row = self._distances.about(peer_id, now)
        models = row.get("models")
        row["models"] = models[:MODELS_MAX] if isinstance(models, list) else []
        row["vector_ms"] = None if place is None else [round(component * 1000, 3) for component in place.vector]
        return row | geographic({} if card is None else card.hardware.extra)

    async def _pairs(self, peers: list[PeerId], now: float) -> list[list[int]]:
        """Of each node a flat list of five numbers a pair, each pair at the node that stands first.

        The numbers are the other node, the round trip, its bounds, and the number of the source.
        """
        views = self._node.views
        wanted = await self._wanted(peers)
        pairs: list[list[int]] = []
        for one, others in enumerate(wanted):
            await trio.lowlevel.checkpoint()
            flat: list[int] = []
            for other in others:
                estimate = views.between(peers[one], peers[other], now)
                if estimate.source is not Source.UNKNOWN:
                    figures = (round(seconds / UNIT_S) for seconds in (estimate.rtt_s, estimate.low_s, estimate.high_s))
                    flat += [other, *figures, SOURCES.index(str(estimate.source))]
            pairs.append(flat)
        return pairs

    async def _wanted(self, peers: list[PeerId]) -> list[Iterable[int]]:
        """With whom the round trips of each node are told, those that stand later."""
        count = len(peers)
        if count <= FULL_NODES:
            return [range(one + 1, count) for one in range(count)]
        near = PAIRS_MAX // count
        places = np.full((count, 9), math.inf)
        for number, peer_id in enumerate(peers):
            place = self._node.views.told_place(peer_id)
            if place is not None:
                places[number] = (*place.vector, place.height_s)
        kept: list[set[int]] = [set() for _ in peers]
        kept[0].update(range(1, count))  # the middle is asked for everybody
        for one in range(1, count):
            await trio.lowlevel.checkpoint()
            for other in nearest(places, one, near):
                kept[min(one, other)].add(max(one, other))
        return [sorted(others) for others in kept]


def nearest(places: NDArray[np.float64], one: int, count: int) -> list[int]:
    """The numbers of the nodes that are nearest to one by their places, itself left out.

    Args:
        places: shape (nodes, dimensions + 1), seconds, the height last; infinite where a place is not known.
        one: whose nearest.
        count: how many at most.
    """
    with np.errstate(invalid="ignore"):
        apart = np.sqrt(((places[:, :-1] - places[one, :-1]) ** 2).sum(axis=1)) + places[:, -1]
    apart[one] = math.inf
    order = np.argsort(apart, kind="stable")[:count]
    return [int(other) for other in order if math.isfinite(apart[other])]


def geographic(told: Mapping[str, object]) -> Row:
    """Where a node's owner says that its machine stands, in degrees; nothing where that is no place on Earth."""
    latitude, longitude = told.get("latitude"), told.get("longitude")
    if not isinstance(latitude, int | float) or not isinstance(longitude, int | float):
        return {}
    if isinstance(latitude, bool) or isinstance(longitude, bool):
        return {}
    if not (-90.0 <= latitude <= 90.0 and -180.0 <= longitude <= 180.0):  # NaN compares false
        return {}
    return {"latitude": float(latitude), "longitude": float(longitude)}
