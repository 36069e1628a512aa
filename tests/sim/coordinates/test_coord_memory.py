"""The product's "Vivaldi with memory" in the simulator: what its nodes share, what liars can sign, how it does."""

from random import Random

import numpy as np
import pytest

from protocol.announcer import AnnouncerConfig
from protocol.distances import DistanceConfig
from protocol.records import EDGE_BYTES, Measured, decode_measured, edge_tag, encode_measured, find_measured
from sim.coordinates.engine import Conditions, World
from sim.coordinates.memory import RECORD_BYTES, Atlas, Told, configured, conspired
from sim.coordinates.method import peer_id
from sim.coordinates.methods import METHODS
from sim.coordinates.run import Plan, simulate
from sim.coordinates.synthetic import named


def told(index: int, rtts: dict[int, float]) -> Told:
    own = peer_id(index)
    return Told(own, encode_measured(Measured(edge_tag(own, peer_id(other)), rtt_s) for other, rtt_s in rtts.items()))


def test_it_is_nearer_to_the_truth_than_the_others_and_says_how_sure_it_is() -> None:
    matrix = named("synthetic-60", 1)
    assert matrix is not None
    plan = Plan(24, Conditions(ping_s=10.0, gossip_s=5.0))
    memory, serf = (simulate(matrix, name, plan, 1).figures for name in ("memory", "serf"))
    assert memory["error_unmeasured_p90"] < 0.5 * serf["error_p90"]
    assert memory["nearest_16_penalty_ms_p90"] < 0.2 * serf["nearest_16_penalty_ms_p90"]
    assert memory["request_16_pings"] < 8.0  # what is fresh is not pinged again
    assert memory["coverage_unmeasured"] > 0.7
    assert memory["shared_us_per_node_s"] > 0.0
    assert serf["shared_us_per_node_s"] == 0.0


def test_both_ends_keep_a_round_trip_and_nobody_is_pinged_twice() -> None:
    matrix = named("synthetic-30", 1)
    assert matrix is not None
    world = World(matrix, METHODS["memory"], Conditions(), 1, until_s=10.0)
    world.run(40.0)
    measured = world.measured_s > -np.inf
    assert (measured == measured.T).all()
    assert measured.sum() == pytest.approx(2 * world.spent.pings, rel=0.05)  # but where two began at the same moment
    shared, published = world.shared, 0
    assert isinstance(shared, Atlas)
    for index in range(30):
        for peer, rtt_s in shared.store.edges_of(shared.ids[index], world.now_s):
            other = shared.number[peer]
            assert measured[index, other]
            assert rtt_s == pytest.approx(float(matrix.rtt_s[0, index, other]), rel=1e-3)
            published += 1
    assert published > 0.5 * measured.sum()


def test_edges_are_told_at_the_pace_of_the_product_in_nine_bytes_each() -> None:
    matrix = named("synthetic-30", 1)
    assert matrix is not None
    world = World(matrix, METHODS["memory"], Conditions(gossip_s=5.0), 1, until_s=20.0)
    method, sizes = world.methods[0], []
    tell = method.told

    def counted(now_s: float, *, echoed: bool) -> tuple[object, int] | None:
        found = tell(now_s, echoed=echoed)
        if found is not None and not echoed:
            sizes.append((now_s, found[1], len(decode_measured(found[0].measured))))
        return found

    method.told = counted  # type: ignore[method-assign]
    world.run(200.0)
    pace = AnnouncerConfig()
    assert 0.8 * pace.edges_first_s <= sizes[0][0] <= 1.2 * pace.edges_first_s + 5.0
    assert all(size == RECORD_BYTES + EDGE_BYTES * count for _, size, count in sizes)
    assert len(sizes) <= 3


def test_liars_sign_what_they_like_among_themselves_alone() -> None:
    lied = conspired(told(0, {1: 0.1, 2: 0.2}), [2, 3], lambda: 0.5)
    assert isinstance(lied, Told)
    for other, rtt_s in {1: 0.1, 2: 0.5, 3: 0.5}.items():
        edge = find_measured(lied.measured, edge_tag(peer_id(0), peer_id(other)))
        assert edge is not None
        assert edge.rtt_s == pytest.approx(rtt_s, rel=1e-3)
    many = conspired(told(0, {1: 0.1}), range(2, 300), lambda: 0.5)
    assert isinstance(many, Told)
    assert 16 < len(decode_measured(many.measured)) < 64
    matrix = named("synthetic-30", 1)
    assert matrix is not None
    world = World(matrix, METHODS["memory"], Conditions(liars=0.2, attack="sinkhole", gossip_s=5.0), 1, until_s=12.0)
    world.run(45.0)
    assert isinstance(world.shared, Atlas)
    chart, ids = world.shared.chart, world.shared.ids
    for index in range(30):
        row = chart.row(ids[index])
        assert row is not None
        ends, rtts = chart.edges_of(row)
        for end, rtt_s in zip(ends.tolist(), rtts.tolist(), strict=True):
            other = world.shared.number[chart.peer(end)]
            if index in world.liars and other in world.liars:
                assert rtt_s == pytest.approx(0.0001, rel=0.01)
            else:
                assert rtt_s >= float(matrix.rtt_s[0, index, other]) * 0.999  # delayed perhaps, never shortened


def test_settings_are_those_of_the_product() -> None:
    config = configured(DistanceConfig(), {"huber": 0.5, "hops": 2.0, "tell_edges_max": 8.0})
    assert config.huber == 0.5
    assert config.hops == 2
    assert isinstance(config.hops, int)
    atlas = Atlas(4, Random(1), {"tell_edges_max": 8.0, "edge_slack_s": 0.001})
    assert atlas.pace.edges_max == 8
    assert atlas.store.handle_told(peer_id(0), told(0, {1: 0.001}).measured, 0.0) == []
    assert len(atlas.store.handle_told(peer_id(1), told(1, {0: 0.004}).measured, 0.0)) == 1
    assert {"huber", "tell_edges_max", "edge_slack_s"} <= set(METHODS["memory"].settings)


def test_the_chart_is_worked_out_as_often_as_a_node_would() -> None:
    atlas = Atlas(6, Random(1), {})
    for index in range(6):
        atlas.handle_told(index, told(index, {other: 0.1 for other in range(6) if other != index}), 0.0)
    atlas.work(0.0)
    places = atlas.chart.places.copy()
    assert places.any()
    atlas.handle_told(0, told(0, {1: 0.14, 2: 0.1, 3: 0.1}), 1.0)
    atlas.work(atlas.config.resolve_s - 0.1)
    assert np.array_equal(atlas.chart.places, places)
    atlas.work(atlas.config.resolve_s + 0.1)
    assert not np.array_equal(atlas.chart.places, places)
