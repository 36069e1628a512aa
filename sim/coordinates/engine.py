"""Packets between nodes on virtual time: pings in three legs, gossip, losses, churn, NAT and liars, and a method at each node.

A ping is a probe, its echo and an acknowledgement of the echo, so that both ends time one round trip by their own clocks. Each
leg takes its share of the pair's round trip in the slice of that moment: the slice of the time in a series, else one drawn for
each ping. Echo and acknowledgement carry what their senders tell. What a node publishes reaches everybody some time later, no
earlier than the farthest of them can be reached; gossip is repaired when packets are lost and so is only late, never lost.

One heap holds all events. A leg that is lost leaves no event but the one at which the prober gives up.

Source: docs/coordinates.md, section "What is simulated"; the anatomy is that of sim/world.py, without cores.
"""

import hashlib
import math
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random

import numpy as np
from numpy.typing import NDArray

from sim.coordinates.attacks import ATTACKS, Liar
from sim.coordinates.matrices import RttMatrix
from sim.coordinates.method import Hears, Kind, Method, Seat
from sim.luck import Streams

PING_BYTES = 69
"""Bytes of a probe, an echo or an acknowledgement without what is told: 9 of the product's probe, 60 of QUIC, UDP and IP."""

LOST_AFTER_S = 2.5
"""Seconds after which a ping without an echo is held to be lost: the product's `overdue_s`. An echo that comes later counts."""

AWAY_S = 60.0
"""Seconds. The mean time for which a node that leaves is away."""

NOTICED_S = 5.0
"""Seconds until everybody knows that a node has gone: the product's bound on a suspicion of somebody else's."""

CHURN_S = 600.0
"""Seconds that the share of nodes which leave is counted over."""

Event = tuple[float, int, Callable[..., None], tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the network and the nodes are like.

    Attributes:
        ping_s: seconds between the pings that a node begins.
        loss: share of datagrams that are lost.
        churn: share of nodes that leave, and come back without their memory, in ten minutes.
        nat: share of nodes that nobody can begin a measurement with.
        asymmetry: the share of the round trip that one direction takes lies within so much of a half; drawn per pair.
        jitter_s: mean of an exponential delay that each leg meets in queues.
        gossip_s: seconds between a node's publications.
        gossip_delay_s: seconds that one takes to reach everybody, the way of the packets not counted.
        tick_s: seconds between the calls at which methods work things out again.
        liars: share of nodes that lie.
        attack: how.
        attack_from_s: virtual seconds from which on they do.
        slice_s: seconds that one slice lasts in a series; None draws one for each ping.
    """

    ping_s: float = 1.0
    loss: float = 0.0
    churn: float = 0.0
    nat: float = 0.0
    asymmetry: float = 0.0
    jitter_s: float = 0.0
    gossip_s: float = 10.0
    gossip_delay_s: float = 1.0
    tick_s: float = 5.0
    liars: float = 0.0
    attack: str = "inflate"
    attack_from_s: float = 0.0
    slice_s: float | None = None


@dataclass(slots=True)
class Spent:
    """What was sent and worked, by all nodes together."""

    ping_bytes: int = 0
    gossip_bytes: int = 0
    pings: int = 0
    lost: int = 0
    choosing_s: float = 0.0
    learning_s: float = 0.0
    ticking_s: float = 0.0
    estimating_s: float = 0.0
    estimates: int = 0


class World:
    """All nodes of one run of one method."""

    def __init__(
        self,
        matrix: RttMatrix,
        kind: Kind,
        conditions: Conditions,
        seed: int,
        *,
        settings: dict[str, float] | None = None,
        absent: tuple[int, ...] = (),
        until_s: float = math.inf,
    ) -> None:
        """Makes the nodes; those in `absent` are not there yet, and no ping begins from `until_s` on."""
        self.matrix, self.kind, self.conditions = matrix, kind, conditions
        self.nodes = matrix.nodes
        self.now_s = 0.0
        self.until_s = until_s
        self.spent = Spent()
        self._settings = settings or {}
        self._streams = Streams(seed)
        self._slices, self._losses, self._queues = (self._streams.of(name) for name in ("slices", "losses", "queues"))
        self._events: list[Event] = []
        self._sequence = 0
        self._trace = array("d")
        self._shares = self._asymmetry()
        self._farthest_s = np.nan_to_num(np.nanmax(matrix.rtt_s[0], axis=1)).tolist() if self.nodes else []
        order = list(range(self.nodes))
        self._streams.of("nat").shuffle(order)
        self.behind_nat = np.zeros(self.nodes, dtype=bool)
        self.behind_nat[order[: round(conditions.nat * self.nodes)]] = True
        self.liars: dict[int, Liar] = {}
        self.up = [index not in absent for index in range(self.nodes)]
        self._life = [0] * self.nodes
        self.reachable = [index for index in range(self.nodes) if self.up[index] and not self.behind_nat[index]]
        share = self.kind.share
        self.shared = None if share is None else share(self.nodes, self._streams.of("shared"), self._settings)
        self.methods: list[Method] = [self._fresh(index) for index in range(self.nodes)]
        self.board: list[object | None] = [None] * self.nodes
        self._met: list[dict[int, None]] = [{} for _ in range(self.nodes)]
        self.measured_s = np.full((self.nodes, self.nodes), -np.inf, dtype=np.float32)  # when, by whom (row), of whom
        self._liars_of(set(absent))
        self._begin()

    def run(self, until_s: float) -> None:
        """Runs everything that happens up to `until_s`."""
        events = self._events
        while events and events[0][0] <= until_s:
            self.now_s, _, act, arguments = heappop(events)
            act(*arguments)
        self.now_s = until_s

    def rtt_now_s(self, one: int, other: int) -> float:
        """A round trip as a ping would meet it now, in seconds; NaN where the pair is not known."""
        return float(self.matrix.rtt_s[self._slice(), one, other])

    def sync(self, index: int) -> None:
        """Hands a node everything that others have published and it can have heard."""
        if self.shared is not None:
            return
        method, now_s = self.methods[index], self.now_s
        began = time.process_time()
        for peer, told in enumerate(self.board):
            if told is not None and peer != index:
                liar = self.liars.get(peer)
                method.handle_told(peer, told if liar is None else self._lie(liar, told, index), now_s)
        self.spent.learning_s += time.process_time() - began

    def estimates(self, index: int, peers: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
        """What a node makes of the distances to `peers` now: seconds, and both ends of the interval."""
        if self.kind.hears is not Hears.ALL:
            self.sync(index)
        began = time.process_time()
        found = self.methods[index].estimate(peers, self.now_s)
        self.spent.estimating_s += time.process_time() - began
        self.spent.estimates += len(peers)
        return found

    def join(self, index: int) -> None:
        """A node that was absent is there, hears what is published and takes no pings of its own; see `ping`."""
        self._life[index] += 1
        self.up[index] = True
        self.methods[index] = self._fresh(index)
        self._met[index] = {}
        self.measured_s[index] = -np.inf
        self.sync(index)

    def leave(self, index: int) -> None:
        """A node is gone, with everything that it knew."""
        self._life[index] += 1
        self.up[index] = False

    def digest(self) -> str:
        """SHA-256 over all round trips that any method was told, in order."""
        return hashlib.sha256(self._trace.tobytes()).hexdigest()

    def ping(self, prober: int, peer: int) -> None:
        """Begins one ping."""
        spent, conditions, now_s = self.spent, self.conditions, self.now_s
        plane = self._slice()
        rtt_s = float(self.matrix.rtt_s[plane, prober, peer])
        if rtt_s != rtt_s:  # not known: never measured
            return
        spent.pings += 1
        spent.ping_bytes += PING_BYTES
        share = 0.5 if self._shares is None else float(self._shares[prober, peer])
        there_s, back_s = rtt_s * share, rtt_s * (1.0 - share)
        again_s = max(0.0, float(self.matrix.rtt_s[plane, peer, prober]) - back_s)
        if conditions.loss and self._losses.random() < conditions.loss:
            self._at(now_s + LOST_AFTER_S, self._give_up, prober, peer, self._life[prober])
            return
        arguments = (prober, peer, self._life[prober], now_s, back_s, again_s)
        self._at(now_s + there_s + self._queued_s(), self._probed, *arguments)

    def _slice(self) -> int:
        slices, slice_s = self.matrix.slices, self.conditions.slice_s
        if slice_s is not None:
            return min(slices - 1, int(self.now_s / slice_s))
        return int(self._slices.random() * slices) if slices > 1 else 0

    def _queued_s(self) -> float:
        mean_s = self.conditions.jitter_s
        return self._queues.expovariate(1.0 / mean_s) if mean_s else 0.0

    def _at(self, at_s: float, act: Callable[..., None], *arguments: object) -> None:
        self._sequence += 1
        heappush(self._events, (at_s, self._sequence, act, arguments))

    def _fresh(self, index: int) -> Method:
        """The method of a node that knows nothing, with luck of its own for each life."""
        luck = self._streams.of(f"node {index} life {self._life[index]}")
        return self.kind.make(Seat(index, self.nodes, luck, self._settings, self.shared))

    def _asymmetry(self) -> NDArray[np.float32] | None:
        """The share of each pair's round trip that the way from row to column takes."""
        most = self.conditions.asymmetry
        if not most:
            return None
        luck = np.random.default_rng(self._streams.of("asymmetry").getrandbits(64))
        drawn = np.triu(luck.uniform(-most, most, (self.nodes, self.nodes)).astype(np.float32), 1)
        return np.asarray(np.float32(0.5) + drawn - drawn.T, dtype=np.float32)

    def _liars_of(self, absent: set[int]) -> None:
        conditions = self.conditions
        candidates = [index for index in range(self.nodes) if index not in absent]
        self._streams.of("liars").shuffle(candidates)
        chosen = candidates[: round(conditions.liars * len(candidates))]
        for index in chosen:
            others = [other for other in chosen if other != index]
            common = Random(self._streams.seed)  # noqa: S311 - all liars agree on it
            luck = self._streams.of(f"liar {index}")
            self.liars[index] = Liar(ATTACKS[conditions.attack], self.kind, conditions.attack_from_s, common, luck, others)

    def _begin(self) -> None:
        """Everybody's first events, at moments spread over the intervals."""
        conditions, luck = self.conditions, self._streams.of("beginnings")
        for index in range(self.nodes):
            offsets = (luck.random(), luck.random(), luck.random(), luck.random())
            if not self.up[index]:
                continue
            self._at(offsets[0] * conditions.ping_s, self._turn, index, self._life[index])
            self._at(offsets[1] * conditions.gossip_s, self._publish, index, self._life[index])
            if self.kind.ticks:
                self._at(offsets[2] * conditions.tick_s, self._tick, index, self._life[index])
            if conditions.churn:
                self._at(self._streams.of("churn").expovariate(conditions.churn / CHURN_S), self._go, index)

    def _turn(self, index: int, life: int) -> None:
        """A node may begin a ping."""
        if self._life[index] != life or self.now_s >= self.until_s:
            return
        began = time.process_time()
        peer = self.methods[index].whom(self.reachable, self.now_s)
        self.spent.choosing_s += time.process_time() - began
        if peer is not None and peer != index and not self.behind_nat[peer]:
            self.ping(index, peer)
        self._at(self.now_s + self.conditions.ping_s, self._turn, index, life)

    def _give_up(self, prober: int, peer: int, life: int) -> None:
        if self._life[prober] == life:
            self.spent.lost += 1
            self.methods[prober].handle_lost(peer, self.now_s)

    def _probed(self, prober: int, peer: int, life: int, sent_s: float, back_s: float, again_s: float) -> None:
        """The probe is there; the echo leaves."""
        now_s, conditions = self.now_s, self.conditions
        lost = not self.up[peer]
        if not lost:
            told, told_bytes = self._told(peer, prober)
            self.spent.ping_bytes += PING_BYTES + told_bytes
            lost = bool(conditions.loss) and self._losses.random() < conditions.loss
        if lost:
            self._at(max(now_s, sent_s + LOST_AFTER_S), self._give_up, prober, peer, life)
            return
        liar = self.liars.get(peer)
        held_s = liar.hold_s(now_s) if liar is not None else 0.0
        leaves_s = now_s + held_s
        arguments = (prober, peer, life, sent_s, leaves_s, again_s, told, self._life[peer])
        self._at(leaves_s + back_s + self._queued_s(), self._echoed, *arguments)

    def _echoed(
        self,
        prober: int,
        peer: int,
        life: int,
        sent_s: float,
        echoed_s: float,
        again_s: float,
        told: object,
        peer_life: int,
    ) -> None:
        """The echo is there; the prober has its round trip, and the acknowledgement leaves."""
        if self._life[prober] != life:
            return
        now_s, conditions = self.now_s, self.conditions
        own, own_bytes = self._told(prober, peer)  # what it tells is from before this round trip
        self._learn(prober, peer, now_s - sent_s, told)
        self.spent.ping_bytes += PING_BYTES + own_bytes
        if not self.kind.both_ends or (conditions.loss and self._losses.random() < conditions.loss):
            return
        liar = self.liars.get(prober)
        held_s = liar.hold_s(now_s) if liar is not None else 0.0
        self._at(now_s + held_s + again_s + self._queued_s(), self._acknowledged, prober, peer, peer_life, echoed_s, own)

    def _acknowledged(self, prober: int, peer: int, peer_life: int, echoed_s: float, told: object) -> None:
        """The acknowledgement is there; the other end has its round trip too."""
        if self._life[peer] == peer_life:
            self._learn(peer, prober, self.now_s - echoed_s, told)

    def _learn(self, index: int, peer: int, rtt_s: float, told: object) -> None:
        self._trace.extend((index, peer, rtt_s))
        self._met[index][peer] = None
        self.measured_s[index, peer] = self.now_s
        began = time.process_time()
        self.methods[index].handle_rtt(peer, rtt_s, self.now_s, told)
        self.spent.learning_s += time.process_time() - began

    def _told(self, index: int, receiver: int) -> tuple[object, int]:
        """What a node tells another in a packet, with the bytes; the truth or not."""
        found = self.methods[index].told(self.now_s, echoed=True)
        if found is None:
            return None, 0
        told, size = found
        liar = self.liars.get(index)
        return (told if liar is None else self._lie(liar, told, receiver)), size

    def _lie(self, liar: Liar, told: object, victim: int) -> object:
        return liar.tell(told, self.board[victim], self.now_s)

    def _publish(self, index: int, life: int) -> None:
        if self._life[index] != life:
            return
        conditions = self.conditions
        found = self.methods[index].told(self.now_s, echoed=False)
        if found is not None:
            told, size = found
            self.spent.gossip_bytes += size * (sum(self.up) - 1)
            after_s = conditions.gossip_delay_s + self._farthest_s[index] / 2.0
            self._at(self.now_s + after_s, self._arrive, index, life, told)
        self._at(self.now_s + conditions.gossip_s, self._publish, index, life)

    def _arrive(self, index: int, life: int, told: object) -> None:
        """What a node has published is with everybody."""
        self.board[index] = told
        liar = self.liars.get(index)
        if self.shared is not None:
            self.shared.handle_told(index, told if liar is None else self._lie(liar, told, index), self.now_s)
        if self._life[index] != life or self.kind.hears is Hears.LATE:
            return
        everybody = self.kind.hears is Hears.ALL
        began = time.process_time()
        for peer in range(self.nodes):
            if peer != index and self.up[peer] and (everybody or index in self._met[peer]):
                shown = told if liar is None else self._lie(liar, told, peer)
                self.methods[peer].handle_told(index, shown, self.now_s)
        self.spent.learning_s += time.process_time() - began

    def _tick(self, index: int, life: int) -> None:
        if self._life[index] != life:
            return
        began = time.process_time()
        self.methods[index].tick(self.now_s)
        self.spent.ticking_s += time.process_time() - began
        self._at(self.now_s + self.conditions.tick_s, self._tick, index, life)

    def _go(self, index: int) -> None:
        """A node leaves, and comes back later."""
        self.leave(index)
        luck = self._streams.of("churn")
        self._at(self.now_s + NOTICED_S, self._see_who_is_there)
        self._at(self.now_s + NOTICED_S + luck.expovariate(1.0 / AWAY_S), self._return, index)

    def _return(self, index: int) -> None:
        conditions = self.conditions
        self.join(index)
        life, luck = self._life[index], self._streams.of("churn")
        self._at(self.now_s, self._turn, index, life)
        self._at(self.now_s + conditions.gossip_s, self._publish, index, life)
        if self.kind.ticks:
            self._at(self.now_s + conditions.tick_s, self._tick, index, life)
        self._at(self.now_s + conditions.gossip_delay_s, self._see_who_is_there)
        self._at(self.now_s + luck.expovariate(conditions.churn / CHURN_S), self._go, index)

    def _see_who_is_there(self) -> None:
        self.reachable = [index for index in range(self.nodes) if self.up[index] and not self.behind_nat[index]]
