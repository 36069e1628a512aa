"""The product's "Vivaldi with memory": `protocol.distances`, over the edges that nodes publish.

Every node would work out the same chart of all others from the same edges. Here all nodes of a run share one, worked out as often
as one node would; its processor time counts for every node in full. A liar can delay what it echoes and acknowledges, and can
publish edges with other liars, which both ends sign; edges with honest nodes are what was measured.

Source: protocol/distances; docs/coordinates.md.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from protocol.distances import Agreements, Chart, DistanceConfig, Distances
from protocol.encoding import Luck
from protocol.identity import PeerId
from protocol.places import PLACE_BYTES
from sim.coordinates.method import Estimates, Kind, Seat, peer_id

EDGES_TOLD = 128
"""Edges that a node publishes, a count, unless set by `edges_told`."""

EDGE_BYTES = 62
"""Bytes of a published edge: `RecordConfig.edges_bytes_max` says how many take how much."""

RECORD_BYTES = 164
"""Bytes of the record round the edges: a signature of 64 and a header of about 100 (arithmetic)."""

Edges = tuple[tuple[PeerId, float], ...]

SETTINGS = ("edges_told", *(field.name for field in fields(DistanceConfig)))
"""What `--set` can set: the edges that are told, and everything in `DistanceConfig`."""


class Atlas:
    """The chart that all nodes share, and the ids of all of them."""

    def __init__(self, nodes: int, luck: Luck, settings: dict[str, float]) -> None:
        """Nothing told yet."""
        self.config = configured(settings)
        self.edges_told = int(settings.get("edges_told", EDGES_TOLD))
        self._agreements = Agreements(self.config)
        self._sequence = 0
        self.chart = Chart(self.config, luck)
        self.ids = [peer_id(index) for index in range(nodes)]
        self.number = {peer: index for index, peer in enumerate(self.ids)}
        self.worked_s = 0.0
        self._worked_at = -np.inf
        self._alive: Sequence[int] = ()
        self._candidates: list[PeerId] = []
        self._may: frozenset[PeerId] = frozenset()

    def handle_told(self, peer: int, told: object, now_s: float) -> None:
        """Takes in the edges that a node has published; those count that both ends tell."""
        if isinstance(told, tuple):
            began = time.process_time()
            self._sequence += 1
            self._agreements.handle_told(self.ids[peer], self._sequence, told, now_s)
            self.chart.set_edges(self.ids[peer], self._agreements.agreed(self.ids[peer], now_s))
            self.worked_s += time.process_time() - began

    def work(self, now_s: float) -> None:
        """Brings the chart up to date, as often as a node would."""
        if now_s - self._worked_at >= self.config.resolve_s:
            self._worked_at = now_s
            began = time.process_time()
            self.chart.finish(now_s)
            self.worked_s += time.process_time() - began

    def among(self, alive: Sequence[int]) -> tuple[list[PeerId], Callable[[PeerId], bool]]:
        """The ids of `alive`, and whether one is among them."""
        if alive is not self._alive:
            self._alive = alive
            self._candidates = [self.ids[index] for index in alive]
            self._may = frozenset(self._candidates)
        return self._candidates, self._may.__contains__


class Memory:
    """One node: its own `Distances` in the shared chart."""

    def __init__(self, seat: Seat) -> None:
        """Nothing measured yet."""
        assert isinstance(seat.shared, Atlas)
        self._atlas = seat.shared
        self._distances = Distances(seat.shared.config, seat.shared.ids[seat.index], seat.luck, seat.shared.chart)
        self._index = seat.index
        self._measured_s: dict[int, float] = {}
        self._drawn: set[int] = set()  # whom the pings under way go to that were drawn at random

    def whom(self, alive: Sequence[int], now_s: float) -> int | None:
        """Somebody not measured lately, by turns drawn at random and seeming near; then who was measured the longest ago."""
        candidates, may = self._atlas.among(alive)
        chosen = self._distances.whom_to_measure(candidates, now_s, may)
        if chosen is None:
            again = [peer for peer in alive if peer != self._index]
            return min(again, key=lambda peer: self._measured_s.get(peer, 0.0)) if again else None
        peer = self._atlas.number[chosen[0]]
        if chosen[1]:
            self._drawn.add(peer)
        return peer

    def handle_rtt(self, peer: int, rtt_s: float, now_s: float, told: object | None) -> None:  # noqa: ARG002
        """Keeps a round trip, whoever began the ping."""
        self._distances.handle_sample(self._atlas.ids[peer], rtt_s, now_s, drawn=peer in self._drawn)
        self._drawn.discard(peer)
        self._measured_s[peer] = now_s

    def handle_lost(self, peer: int, now_s: float) -> None:  # noqa: ARG002
        """The peer may be drawn again."""
        self._drawn.discard(peer)

    def handle_told(self, peer: int, told: object, now_s: float) -> None:
        """The shared chart hears it once for all."""

    def told(self, now_s: float, *, echoed: bool) -> tuple[object, int] | None:
        """Edges to everybody; an echo has the place that Vivaldi has worked out, which is not used here."""
        if echoed:
            return None, PLACE_BYTES
        edges: Edges = tuple(self._distances.edges(self._atlas.edges_told, now_s))
        return edges, RECORD_BYTES + EDGE_BYTES * len(edges)

    def tick(self, now_s: float) -> None:
        """Works out the own place again when there is something new."""
        self._atlas.work(now_s)
        if self._distances.next_timer() <= now_s:
            self._distances.handle_timer(now_s)

    def estimate(self, peers: NDArray[np.int64], now_s: float) -> Estimates:
        """What `Distances` tells, with its intervals."""
        ids = self._atlas.ids
        return self._distances.estimates([ids[peer] for peer in peers.tolist()], now_s)


def configured(settings: dict[str, float]) -> DistanceConfig:
    """The product's config with some numbers set."""
    usual = DistanceConfig()
    known = {field.name: type(getattr(usual, field.name)) for field in fields(usual)}
    return replace(usual, **{name: known[name](value) for name, value in settings.items() if name in known})


def conspired(told: object, liars: Sequence[int], edge_s: Callable[[], float]) -> object:
    """Published edges in which those between liars are what `edge_s` says."""
    if not isinstance(told, tuple):
        return told
    others = [peer_id(index) for index in liars]
    false = set(others)
    return tuple([edge for edge in told if edge[0] not in false] + [(peer, edge_s()) for peer in others])


KIND = Kind(
    'the product\'s "Vivaldi with memory": every measurement kept, everybody placed by published edges, half of the pings near',
    Memory,
    both_ends=True,
    keeps_rtt=True,
    ticks=True,
    share=Atlas,
    conspire=conspired,
    settings=SETTINGS,
)
"""The method as the simulator takes it."""
