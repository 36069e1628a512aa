"""The figures of a run: how fast a card spreads, how good the coordinates are, what it costs, who was suspected in vain."""

import math
from dataclasses import dataclass, field
from statistics import median

from protocol import gossip, probe
from protocol.coordinates import estimate_rtt
from protocol.identity import PeerId
from protocol.node import Output
from protocol.records import Card, ModelOffer, Record, RecordKind
from sim.process import Process
from sim.world import World

MARKERS = 5
"""Cards whose spread is followed, a count: enough for a median, few enough not to be a load of their own."""

SAMPLES = 24
"""Looks at the coordinates during a run, a count: points of a curve."""

PAIRS_MAX = 500
"""Pairs of nodes looked at each time, a count: the median of so many is within a few percent of that of all."""


@dataclass
class Spread:
    """How one new card went round: after how many seconds each node held it, in order."""

    peer_id: PeerId
    sequence: int
    began_at: float
    nodes: int
    reached: set[int] = field(default_factory=set[int])
    after_s: list[float] = field(default_factory=list[float])

    def share_s(self, share: float) -> float | None:
        """After how many seconds that share of the other nodes held it; None when so many never did."""
        needed = max(1, math.ceil(share * (self.nodes - 1)))
        return self.after_s[needed - 1] if len(self.after_s) >= needed else None


@dataclass
class Figures:
    """Watches a world from the moment it is made."""

    world: World
    accepted: int = 0
    suspicions: int = 0
    false_suspicions: int = 0
    spreads: list[Spread] = field(default_factory=list[Spread])
    errors: list[tuple[float, float, float]] = field(default_factory=list[tuple[float, float, float]])  # (s, median, p90)

    def __post_init__(self) -> None:
        self._luck = self.world.streams.of("figures")
        self._pending: dict[int, ModelOffer] = {}
        self.world.watchers.append(self._watch)
        self.world.seal_watchers.append(self._sealed)

    def schedule(self, duration_s: float) -> None:
        """Plans the markers and the looks at the coordinates."""
        for number in range(MARKERS):
            self.world.at(duration_s * (0.4 + 0.1 * number), self._mark)
        for number in range(1, SAMPLES + 1):
            self.world.at(duration_s * number / SAMPLES - 1e-3, self._sample)

    def _mark(self) -> None:
        """Gives one node a new model, so that it makes a new card."""
        working = self.world.working()
        if not working:
            return
        process = self._luck.choice(working)
        offer = ModelOffer(f"marker {len(self.spreads)} {self.world.now:.3f}", frozenset(), engine="echo")
        self._pending[process.index] = offer
        process.offers = (*process.offers[:1], offer)
        process.node.handle_offers(process.offers, self.world.now)
        self.world.settle(process)

    def _sealed(self, process: Process, record: Record) -> None:
        offer = self._pending.get(process.index)
        if offer is not None and isinstance(record.payload, Card) and offer in record.payload.models:
            del self._pending[process.index]
            self.spreads.append(
                Spread(process.peer_id, record.sequence, self.world.now, sum(not one.hostile for one in self.world.processes))
            )

    def _watch(self, process: Process, output: Output) -> None:
        match output:
            case _ if process.hostile:
                pass
            case gossip.RecordAccepted(record):
                self.accepted += 1
                if record.kind is RecordKind.CARD:
                    self._note_card(process, record)
            case probe.PeerSuspected(peer):
                self.suspicions += 1
                self.false_suspicions += self.world.by_id[peer] in self.world.working()
            case _:
                pass

    def _note_card(self, process: Process, record: Record) -> None:
        for spread in self.spreads:
            if spread.peer_id == record.peer_id and record.sequence >= spread.sequence and process.index not in spread.reached:
                spread.reached.add(process.index)
                spread.after_s.append(self.world.now - spread.began_at)

    def _sample(self) -> None:
        """Compares the coordinates with the paths."""
        working = self.world.working()
        if len(working) < 2:
            return
        errors: list[float] = []
        for _ in range(min(PAIRS_MAX, len(working) * (len(working) - 1))):
            one, other = self._luck.sample(working, 2)
            delays = self.world.network.delays
            rtt_s = delays.one_way_s(one.index, other.index) + delays.one_way_s(other.index, one.index)
            estimate_s = estimate_rtt(one.node.vivaldi.coordinate, other.node.vivaldi.coordinate)
            errors.append(abs(estimate_s - rtt_s) / rtt_s)
        errors.sort()
        self.errors.append((self.world.now, median(errors), errors[int(0.9 * (len(errors) - 1))]))

    def spread_s(self, share: float) -> float | None:
        """The median over the followed cards of the time to that share of the nodes; None when none got there."""
        times = [spread.share_s(share) for spread in self.spreads]
        known = [time for time in times if time is not None]
        return median(known) if known else None
