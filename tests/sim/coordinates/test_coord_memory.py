"""The product's "Vivaldi with memory" in the simulator: what its nodes share, what liars can sign, how it does."""

from random import Random

import numpy as np
import pytest

from sim.coordinates.engine import Conditions, World
from sim.coordinates.memory import EDGE_BYTES, RECORD_BYTES, Atlas, configured, conspired
from sim.coordinates.method import peer_id
from sim.coordinates.methods import METHODS
from sim.coordinates.run import Plan, simulate
from sim.coordinates.synthetic import named


def test_it_is_nearer_to_the_truth_than_the_others_and_says_how_sure_it_is() -> None:
    matrix = named("synthetic-60", 1)
    assert matrix is not None
    plan = Plan(24, Conditions(gossip_s=5.0))
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
    for index in (0, 1, 2):
        told, size = world.methods[index].told(world.now_s, echoed=False)
        assert {peer for peer, _ in told} == {peer_id(peer) for peer in np.flatnonzero(measured[index]).tolist()}
        assert size == RECORD_BYTES + EDGE_BYTES * len(told)
        rtts = dict(told)
        for peer in np.flatnonzero(measured[index]).tolist():
            assert rtts[peer_id(peer)] == pytest.approx(float(matrix.rtt_s[0, index, peer]), rel=1e-5)


def test_liars_sign_what_they_like_among_themselves_alone() -> None:
    told = ((peer_id(1), 0.1), (peer_id(2), 0.2))
    assert dict(conspired(told, [2, 3], lambda: 0.5)) == {peer_id(1): 0.1, peer_id(2): 0.5, peer_id(3): 0.5}
    matrix = named("synthetic-30", 1)
    assert matrix is not None
    world = World(matrix, METHODS["memory"], Conditions(liars=0.2, attack="sinkhole", gossip_s=5.0), 1, until_s=12.0)
    world.run(30.0)
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
    config = configured({"huber": 0.5, "hops": 2.0, "edges_told": 8.0})
    assert config.huber == 0.5
    assert config.hops == 2
    assert isinstance(config.hops, int)
    atlas = Atlas(4, Random(1), {"edges_told": 8.0})
    assert atlas.edges_told == 8
    assert {"huber", "edges_told"} <= set(METHODS["memory"].settings)


def test_the_chart_is_worked_out_as_often_as_a_node_would() -> None:
    atlas = Atlas(6, Random(1), {})
    for index in range(6):
        atlas.handle_told(index, tuple((peer_id(other), 0.1) for other in range(6) if other != index), 0.0)
    atlas.work(0.0)
    places = atlas.chart.places.copy()
    assert places.any()
    atlas.handle_told(0, ((peer_id(1), 0.2), (peer_id(2), 0.1), (peer_id(3), 0.1)), 1.0)
    atlas.work(atlas.config.resolve_s - 0.1)
    assert np.array_equal(atlas.chart.places, places)
    atlas.work(atlas.config.resolve_s + 0.1)
    assert not np.array_equal(atlas.chart.places, places)
