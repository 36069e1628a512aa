"""The packets: both ends' round trips, losses, NAT, churn, gossip and liars, on small matrices."""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from sim.coordinates.attacks import ATTACKS, Liar
from sim.coordinates.engine import LOST_AFTER_S, PING_BYTES, Conditions, World
from sim.coordinates.matrices import RttMatrix, checked
from sim.coordinates.method import Estimates, Hears, Kind, Place, Seat, anybody, unknown
from sim.coordinates.methods import METHODS
from sim.coordinates.serf import SerfCoordinate


class Recorder:
    """A method that only writes down what it is told."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.rtts: list[tuple[int, float, object]] = []
        self.lost: list[tuple[int, float]] = []
        self.heard: list[tuple[int, object, float]] = []
        self.ticks = 0

    def whom(self, alive: Sequence[int], now_s: float) -> int | None:
        return anybody(alive, self.seat.index, self.seat.luck)

    def handle_rtt(self, peer: int, rtt_s: float, now_s: float, told: object | None) -> None:
        self.rtts.append((peer, rtt_s, told))

    def handle_lost(self, peer: int, now_s: float) -> None:
        self.lost.append((peer, now_s))

    def handle_told(self, peer: int, told: object, now_s: float) -> None:
        self.heard.append((peer, told, now_s))

    def told(self, now_s: float, *, echoed: bool) -> tuple[object, int] | None:
        return f"{self.seat.index} {'echoes' if echoed else 'publishes'}", 10

    def tick(self, now_s: float) -> None:
        self.ticks += 1

    def estimate(self, peers: NDArray[np.int64], now_s: float) -> Estimates:
        return unknown(len(peers)), unknown(len(peers)), unknown(len(peers))


def recorded(hears: Hears = Hears.ALL, *, both_ends: bool = True) -> Kind:
    return Kind("writes down", Recorder, both_ends=both_ends, hears=hears, ticks=True)


def matrix_of(nodes: int = 6, slices: int = 1) -> RttMatrix:
    luck = np.random.default_rng(7)
    upper = np.triu(luck.uniform(0.01, 0.3, (slices, nodes, nodes)), 1)
    rtt_s = (upper + upper.transpose(0, 2, 1)).astype(np.float32)
    return checked(RttMatrix("made up", rtt_s, tuple(map(str, range(nodes)))))


def ran(kind: Kind, conditions: Conditions, matrix: RttMatrix | None = None, pings: int = 20, seed: int = 1) -> World:
    world = World(matrix or matrix_of(), kind, conditions, seed, until_s=pings * conditions.ping_s)
    world.run(pings * conditions.ping_s + 30.0)
    return world


def recorders(world: World) -> list[Recorder]:
    return [method for method in world.methods if isinstance(method, Recorder)]


@pytest.mark.parametrize("asymmetry", [0.0, 0.4])
def test_both_ends_time_the_round_trip_of_the_matrix(asymmetry: float) -> None:
    world = ran(recorded(), Conditions(asymmetry=asymmetry))
    count = 0
    for index, method in enumerate(recorders(world)):
        for peer, rtt_s, told in method.rtts:
            assert rtt_s == pytest.approx(float(world.matrix.rtt_s[0, index, peer]), rel=1e-6)
            assert told == f"{peer} echoes"
            count += 1
    assert world.spent.pings == 6 * 20
    assert count == 2 * world.spent.pings
    assert world.spent.ping_bytes == world.spent.pings * (3 * PING_BYTES + 20)


def test_one_way_takes_longer_where_paths_are_asymmetric() -> None:
    world = ran(recorded(both_ends=False), Conditions(asymmetry=0.4), pings=1)
    shares = world._shares
    assert shares is not None
    assert shares + shares.T == pytest.approx(np.ones((6, 6)))
    assert float(np.abs(shares - 0.5).max()) > 0.2


def test_method_of_one_end_hears_nothing_of_acknowledgements() -> None:
    world = ran(recorded(both_ends=False), Conditions())
    assert sum(len(method.rtts) for method in recorders(world)) == world.spent.pings


def test_each_ping_draws_a_slice_and_a_series_follows_the_time() -> None:
    matrix = matrix_of(4, slices=5)
    drawn = ran(recorded(), Conditions(), matrix, pings=60)
    seen = {round(rtt_s, 5) for peer, rtt_s, _ in recorders(drawn)[0].rtts if peer == 1}
    assert seen == {round(float(plane[0, 1]), 5) for plane in matrix.rtt_s}
    series = World(matrix, recorded(), Conditions(slice_s=10.0), 1, until_s=50.0)
    for number in range(5):
        before = len(recorders(series)[0].rtts)
        series.run(10.0 * number + 9.0)
        if number:
            series.run(10.0 * number + 0.5)
        for peer, rtt_s, _ in recorders(series)[0].rtts[before + 4 :]:
            assert rtt_s == pytest.approx(float(matrix.rtt_s[number, 0, peer]), rel=1e-6)


def test_jitter_only_lengthens() -> None:
    world = ran(recorded(), Conditions(jitter_s=0.01))
    added = [
        rtt_s - float(world.matrix.rtt_s[0, index, peer])
        for index, method in enumerate(recorders(world))
        for peer, rtt_s, _ in method.rtts
    ]
    assert min(added) > 0.0
    assert np.mean(added) == pytest.approx(0.02, rel=0.3)


def test_lost_datagrams_are_told_to_the_prober_and_to_nobody_else() -> None:
    world = ran(recorded(), Conditions(loss=0.3), pings=400)
    methods, pings = recorders(world), world.spent.pings
    lost = sum(len(method.lost) for method in methods)
    assert lost == world.spent.lost
    assert lost / pings == pytest.approx(1 - 0.7**2, abs=0.03)  # probe or echo
    assert sum(len(method.rtts) for method in methods) / pings == pytest.approx(0.7**2 + 0.7**3, abs=0.05)
    assert all(now_s >= LOST_AFTER_S for method in methods for _, now_s in method.lost)


def test_nobody_begins_a_measurement_to_a_node_behind_a_nat() -> None:
    world = ran(recorded(), Conditions(nat=0.5), pings=100)
    hidden = np.flatnonzero(world.behind_nat).tolist()
    assert len(hidden) == 3
    assert world.spent.pings == 600  # nobody is even asked to
    for index, method in enumerate(recorders(world)):
        peers = {peer for peer, _, _ in method.rtts}
        expected = set(range(6)) - {index} - (set(hidden) if index in hidden else set())
        assert peers == expected  # the other end of a NAT's own ping measures it too
    one_sided = ran(recorded(both_ends=False), Conditions(nat=0.5), pings=100)
    assert all(peer not in hidden for method in recorders(one_sided) for peer, _, _ in method.rtts)


def test_unknown_pairs_are_never_measured() -> None:
    matrix = matrix_of()
    matrix.rtt_s[0, 0, 1] = matrix.rtt_s[0, 1, 0] = np.nan
    world = ran(recorded(), Conditions(), matrix, pings=60)
    assert {peer for peer, _, _ in recorders(world)[0].rtts} == {2, 3, 4, 5}


def test_who_leaves_comes_back_without_its_memory() -> None:
    world = ran(recorded(), Conditions(churn=0.9), pings=900)
    assert sum(world._life) > 4
    returned = [index for index in range(6) if world._life[index] > 0 and world.up[index]]
    assert returned
    learnt = list(world._trace)[::3]  # who was told each round trip, in all its lives
    for index in returned:
        assert 0 < len(recorders(world)[index].rtts) < learnt.count(index)
    assert world.spent.lost > 0  # pings to nodes that had gone
    assert world.digest() == ran(recorded(), Conditions(churn=0.9), pings=900).digest()


def test_publications_are_late_and_reach_everybody() -> None:
    world = World(matrix_of(), recorded(), Conditions(gossip_s=5.0, gossip_delay_s=2.0), 1, until_s=0.0)
    world.run(2.0)
    assert not any(method.heard for method in recorders(world))
    world.run(7.5)
    for index, method in enumerate(recorders(world)):
        assert {peer for peer, _, _ in method.heard} == set(range(6)) - {index}
        assert all(told == f"{peer} publishes" for peer, told, _ in method.heard)
    assert world.spent.gossip_bytes >= 6 * 10 * 5


def test_methods_hear_as_much_as_they_say() -> None:
    measured = ran(recorded(Hears.MEASURED), Conditions(gossip_s=5.0), pings=2)
    for method in recorders(measured):
        assert {peer for peer, _, _ in method.heard} <= {peer for peer, _, _ in method.rtts}
        assert method.heard
    late = ran(recorded(Hears.LATE), Conditions())
    assert not any(method.heard for method in recorders(late))
    late.estimates(0, np.arange(6))
    assert [peer for peer, _, _ in recorders(late)[0].heard] == [1, 2, 3, 4, 5]


def test_ticks_come_as_often_as_asked() -> None:
    world = ran(recorded(), Conditions(tick_s=2.0))
    assert all(24 <= method.ticks <= 26 for method in recorders(world))


def test_liars_delay_and_never_shorten() -> None:
    world = ran(METHODS["serf"], Conditions(liars=0.34, attack="repulse"))
    assert len(world.liars) == 2
    kind = Kind("writes down", Recorder, both_ends=True, place=METHODS["serf"].place, forge=METHODS["serf"].forge)
    world = ran(kind, Conditions(liars=0.34, attack="repulse", attack_from_s=5.0))
    held_back = 0
    for index, method in enumerate(recorders(world)):
        for peer, rtt_s, _ in method.rtts:
            held_s = rtt_s - float(world.matrix.rtt_s[0, index, peer])
            assert min(abs(held_s), abs(held_s - 1.0)) < 1e-5
            held_back += held_s > 0.5
            assert peer in world.liars or held_s < 0.5
    told = sum(peer in world.liars for method in recorders(world) for peer, _, _ in method.rtts)
    assert 0.6 < held_back / told < 0.9  # in 15 of the 20 seconds, by either end


def liar_of(attack: str) -> Liar:
    return Liar(ATTACKS[attack], METHODS["serf"], 10.0, Random(1), Random(2))


def place_told(liar: Liar, now_s: float = 20.0) -> Place:
    own, victim = SerfCoordinate((0.1,) * 8, 0.01, 0.2), SerfCoordinate((0.3,) * 8, 0.02, 0.3)
    place = METHODS["serf"].place(liar.tell(own, victim, now_s))
    assert place is not None
    return place


def test_each_attack_claims_what_it_says() -> None:
    assert place_told(liar_of("inflate"), 9.0).vector_s == (0.1,) * 8  # not begun yet
    inflated = np.linalg.norm(place_told(liar_of("inflate")).vector_s)
    assert 1.0 <= inflated <= 3.0
    liar = liar_of("inflate")
    assert place_told(liar) == place_told(liar)
    liar = liar_of("disorder")
    assert place_told(liar) != place_told(liar)
    assert place_told(liar_of("deflate")).vector_s == (0.0,) * 8
    assert place_told(liar_of("sinkhole")).vector_s == (0.3,) * 8
    drift = np.array(place_told(liar_of("frog")).vector_s) - 0.1
    assert np.linalg.norm(drift) == pytest.approx(0.005)  # ten seconds after it began
    repulsing = liar_of("repulse")
    away = np.array((0.3,) * 8) - np.array(place_told(repulsing).vector_s)
    assert np.linalg.norm(away) == pytest.approx(0.001)
    towards = np.array(repulsing.common(8, 3.0)) - 0.3
    assert np.dot(away, towards) == pytest.approx(0.001 * np.linalg.norm(towards))  # it pushes to the common point
    assert repulsing.hold_s(20.0) == 1.0
    assert repulsing.hold_s(9.0) == 0.0
    assert liar_of("inflate").hold_s(20.0) == 0.0
