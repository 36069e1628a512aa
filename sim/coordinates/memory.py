"""The product's "Vivaldi with memory": `protocol.distances`, over the edges that nodes publish.

Edges are told in the product's form, by the product's choice and at its pace (`protocol.node.pace`), and an edge counts as the
product's store says. Every node would work out the same chart of all others from the same edges. Here all nodes of a run share
one store and one chart, worked out as often as one node would; their processor time counts for every node in full. A liar can
delay what it echoes and acknowledges, and can publish edges with other liars, which both ends sign; edges with honest nodes are
what was measured.

Source: protocol/distances; docs/coordinates.md.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.announcer import AnnouncerConfig
from protocol.distances import Chart, DistanceConfig, Distances
from protocol.edges import EdgeConfig, EdgeStore
from protocol.encoding import Luck
from protocol.identity import PeerId
from protocol.node.pace import Pace
from protocol.places import PLACE_BYTES
from protocol.records import Measured, decode_measured, edge_tag, encode_measured
from sim.coordinates.method import Estimates, Kind, Seat, peer_id

RECORD_BYTES = 164
"""Bytes of the record round the edges: a signature of 64 and a header of about 100 (arithmetic)."""

SETTINGS = (
    *(field.name for field in fields(DistanceConfig)),
    *(f"edge_{field.name}" for field in fields(EdgeConfig)),
    *(f"tell_{field.name}" for field in fields(AnnouncerConfig) if field.name.startswith("edges_")),
)
"""What `--set` can set: all of `DistanceConfig`, of `EdgeConfig` behind `edge_`, and of edges in `AnnouncerConfig`
behind `tell_`."""


@dataclass(frozen=True, slots=True)
class Told:
    """Edges as they are published: whose, and in the compact form."""

    peer: PeerId
    measured: bytes


_Config = TypeVar("_Config", DistanceConfig, EdgeConfig, AnnouncerConfig)


class Atlas:
    """The chart that all nodes share, and the ids of all of them."""

    def __init__(self, nodes: int, luck: Luck, settings: dict[str, float]) -> None:
        """Nothing told yet."""
        self.config = configured(DistanceConfig(), settings)
        self.pace = configured(AnnouncerConfig(), settings, "tell_")
        self.store = EdgeStore(configured(EdgeConfig(), settings, "edge_"))
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
        if isinstance(told, Told):
            began = time.process_time()
            self.store.handle_told(self.ids[peer], told.measured, now_s)
            self.store.expire(now_s)
            for changed in self.store.taken_changes():
                self.chart.set_edges(changed, self.store.edges_of(changed, now_s), whole=True)
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
        self._pace = Pace(seat.shared.pace, seat.luck)
        self._turn_s = -np.inf
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
        if now_s < self._turn_s:
            return None
        measured = self._distances.edges(self._atlas.config.measured_max, now_s)
        chosen, wait_s = self._pace.turn(measured, self._named, now_s)
        self._turn_s = now_s + wait_s
        if not chosen:
            return None
        own = self._atlas.ids[self._index]
        measured_at = self._distances.measured_at
        edges = (Measured(edge_tag(own, peer), rtt_s, now_s - measured_at(peer)) for peer, rtt_s in chosen)
        told = Told(own, encode_measured(edges))
        return told, RECORD_BYTES + len(told.measured)

    def tick(self, now_s: float) -> None:
        """Works out the own place again when there is something new."""
        self._atlas.work(now_s)
        if self._distances.next_timer() <= now_s:
            self._distances.handle_timer(now_s)
            while self._distances.next_timer() <= now_s + self._atlas.config.slice_s:  # the rest, some milliseconds later
                self._distances.handle_timer(now_s + self._atlas.config.slice_s)

    def estimate(self, peers: NDArray[np.int64], now_s: float) -> Estimates:
        """What `Distances` tells, with its intervals."""
        ids = self._atlas.ids
        return self._distances.estimates([ids[peer] for peer in peers.tolist()], now_s)

    def _named(self, peer: PeerId) -> int | None:
        store = self._atlas.store
        return store.standing(peer)[0] if store.tells_of(peer, self._atlas.ids[self._index]) else None


def configured(usual: _Config, settings: dict[str, float], prefix: str = "") -> _Config:
    """One of the product's configs with some numbers set, by their names behind a prefix."""
    known = {prefix + field.name: (field.name, type(getattr(usual, field.name))) for field in fields(usual)}
    numbers = {known[name][0]: known[name][1](value) for name, value in settings.items() if name in known}
    return replace(usual, **numbers)


def conspired(told: object, liars: Sequence[int], edge_s: Callable[[], float]) -> object:
    """Published edges in which those between liars are what `edge_s` says, as many as half of a record holds.

    Where there are more liars each is one of a pair that a hash chooses, so that both ends tell of the same pairs.
    """
    if not isinstance(told, Told):
        return told
    room = AnnouncerConfig().edges_max // 2
    false = {edge_tag(told.peer, peer_id(index)) for index in liars}
    true = [edge for edge in decode_measured(told.measured) if edge.tag not in false]
    share = 256.0 * room / max(room, len(false))
    signed = [Measured(tag, edge_s()) for tag in sorted(false) if tag[0] < share]
    return Told(told.peer, encode_measured([*true, *signed]))


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
