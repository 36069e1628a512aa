"""The chart of the others."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.distances import Chart, DistanceConfig
from protocol.distances.chart import lengths_between
from tests.protocol.distances.planted import charted, peers_of, planted, some_ends

SMALL = DistanceConfig(peers_max=8, edges_max=4)


def errors(chart: Chart, mesh) -> np.ndarray:
    """Relative errors of what the places say of all pairs."""
    rows = [chart.row(peer) for peer in mesh.peers]
    places, heights = chart.places[rows], chart.heights[rows]
    said = np.linalg.norm(places[:, None] - places[None], axis=2) + heights[:, None] + heights[None]
    off = ~np.eye(len(rows), dtype=bool)
    return (np.abs(said - mesh.rtts) / mesh.rtts)[off]


@pytest.mark.parametrize("seed", range(4))
def test_places_are_found_from_some_edges_of_each(seed):
    mesh = planted(60, seed)
    chart = charted(mesh, 10, seed)
    assert np.median(errors(chart, mesh)) < 0.02
    assert np.quantile(errors(chart, mesh), 0.9) < 0.15


def test_a_third_of_the_edges_may_be_delayed():
    mesh = planted(60)
    liars = set(range(0, 60, 3))
    chart, luck = Chart(DistanceConfig(), random.Random(1)), random.Random(1)
    for row, peer in enumerate(mesh.peers):
        edges = [
            (mesh.peers[end], float(mesh.rtts[row, end]) + (luck.uniform(0.1, 1.0) if row in liars or end in liars else 0.0))
            for end in some_ends(mesh, row, 16, luck)
        ]
        chart.set_edges(peer, edges)
    chart.finish(0.0)
    rows = [chart.row(mesh.peers[row]) for row in range(60) if row not in liars]
    honest = np.array([row for row in range(60) if row not in liars])
    places, heights = chart.places[rows], chart.heights[rows]
    said = np.linalg.norm(places[:, None] - places[None], axis=2) + heights[:, None] + heights[None]
    truth = mesh.rtts[np.ix_(honest, honest)]
    off = ~np.eye(len(rows), dtype=bool)
    assert np.median((np.abs(said - truth) / truth)[off]) < 0.05


@pytest.mark.parametrize("said_s", [1e-5, 1.0, 3.0])
def test_a_third_may_sign_what_they_like_among_themselves(said_s):
    mesh = planted(60)
    liars = set(range(0, 60, 3))
    chart, luck = Chart(DistanceConfig(), random.Random(1)), random.Random(1)
    for row, peer in enumerate(mesh.peers):
        edges = mesh.edges(row, some_ends(mesh, row, 16, luck))
        others = liars - {row} if row in liars else set()
        chart.set_edges(peer, [edge for edge in edges if mesh.peers.index(edge[0]) not in others])
        if others:
            honest = [edge for edge in edges if mesh.peers.index(edge[0]) not in others]
            chart.set_edges(peer, honest + [(mesh.peers[other], said_s * luck.uniform(0.5, 1.5)) for other in sorted(others)])
    chart.finish(0.0)
    honest = np.array([row for row in range(60) if row not in liars])
    rows = [chart.row(mesh.peers[row]) for row in honest]
    said = lengths_between(chart.places[rows], chart.places[rows]) + chart.heights[rows, None] + chart.heights[rows]
    truth, off = mesh.rtts[np.ix_(honest, honest)], ~np.eye(len(rows), dtype=bool)
    assert np.median((np.abs(said - truth) / truth)[off]) < 0.03


def test_who_comes_later_is_placed_without_moving_everybody():
    mesh = planted(40)
    chart, luck = Chart(DistanceConfig(), random.Random(1)), random.Random(1)
    for row in range(36):
        chart.set_edges(mesh.peers[row], mesh.edges(row, [end for end in some_ends(mesh, row, 16, luck) if end < 36]))
    chart.finish(0.0)
    rows = [chart.row(peer) for peer in mesh.peers[:36]]
    before, shaken = chart.places[rows].copy(), chart.shaken
    for row in range(36, 40):
        chart.set_edges(mesh.peers[row], mesh.edges(row, [end for end in some_ends(mesh, row, 16, luck) if end < 36]))
    chart.finish(100.0)
    assert chart.shaken == shaken
    assert np.median(np.linalg.norm(chart.places[rows] - before, axis=1)) < 0.002
    assert np.median(errors(chart, mesh)) < 0.03


def test_a_mesh_in_one_room_has_distances_too():
    mesh = planted(30)
    mesh.rtts = mesh.rtts / 200.0  # up to 0.7 ms
    assert np.median(errors(charted(mesh, 12), mesh)) < 0.05


def test_work_is_done_in_slices():
    mesh, luck = planted(60), random.Random(1)
    chart = Chart(DistanceConfig(rows_at_once=8, residual_rows_at_once=8), luck)
    for row, peer in enumerate(mesh.peers):
        chart.set_edges(peer, mesh.edges(row, some_ends(mesh, row, 10, luck)))
    chart.begin(0.0)
    before = chart.places.copy()
    chart.work()
    assert chart.is_busy
    chart.begin(0.0)  # changes nothing while it is busy
    while chart.is_busy:
        chart.work()
    assert not np.array_equal(before, chart.places)
    settled = chart.places.copy()
    chart.finish(100.0)  # nothing is new
    assert np.array_equal(settled, chart.places)


def test_a_chart_that_has_settled_is_looked_at_ever_more_seldom():
    mesh, luck, config = planted(30), random.Random(1), DistanceConfig()
    chart = charted(mesh, 10)
    looked = []
    for now in range(1, 600):
        row = now % 30
        chart.set_edges(mesh.peers[row], mesh.edges(row, some_ends(mesh, row, 10, luck)))
        chart.begin(float(now))
        if chart.is_busy:
            looked.append(now)
            while chart.is_busy:
                chart.work()
    gaps = [after - before for before, after in zip([0, *looked], looked, strict=False)]
    assert gaps[0] == config.resolve_s
    assert gaps == sorted(gaps)
    assert gaps[-1] == config.chart_s_max


def test_the_nearest_edges_and_some_of_the_others_are_kept():
    peers = peers_of(8)
    chart = Chart(DistanceConfig(edges_max=4), random.Random(1))
    chart.set_edges(peers[0], [(peer, 0.01 * number) for number, peer in enumerate(peers[1:], 1)])
    ends, rtts = chart.edges_of(chart.row(peers[0]))
    assert len(ends) == 4
    assert np.allclose(rtts[:2], [0.01, 0.02], rtol=1e-3)


def test_packed_round_trips_are_near_to_what_they_were():
    peers = peers_of(2)
    chart = Chart(DistanceConfig(), random.Random(1))
    for rtt_s in (1e-5, 2e-4, 0.0123, 1.0, 10.0):
        chart.set_edges(peers[0], [(peers[1], rtt_s)])
        assert chart.edges_of(chart.row(peers[0]))[1][0] == pytest.approx(rtt_s, rel=2e-4)
        assert chart.edges_of(chart.row(peers[1]))[1][0] == pytest.approx(rtt_s, rel=2e-4)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 11), st.lists(st.tuples(st.integers(0, 11), st.floats()), max_size=9), st.booleans())))
def test_whatever_is_told_the_chart_keeps_its_bounds(told):
    peers = peers_of(12)
    chart = Chart(SMALL, random.Random(1))
    for number, (who, edges, leaves) in enumerate(told):
        chart.set_edges(peers[who], [(peers[end], rtt_s) for end, rtt_s in edges])
        if leaves:
            chart.forget(peers[who])
            assert chart.row(peers[who]) is None
        chart.begin(100.0 * number)
        if chart.is_busy:
            chart.work()
        assert len(chart) <= SMALL.peers_max
    chart.finish(1e6)
    for peer in peers:
        row = chart.row(peer)
        if row is None:
            continue
        ends, rtts = chart.edges_of(row)
        assert len(ends) <= SMALL.edges_max
        assert len(set(ends.tolist())) == len(ends)
        assert row not in ends
        assert all(chart.peer(int(end)) is not None for end in ends)
        assert ((rtts > 0.0) & (rtts <= SMALL.rtt_s_max * 1.001)).all()
    assert np.isfinite(chart.places).all()
    assert np.isfinite(chart.heights).all()


def test_an_edge_that_counts_no_more_is_gone_at_both_ends():
    peers = peers_of(4)
    chart = Chart(SMALL, random.Random(1))
    chart.set_edges(peers[0], [(peer, 0.01) for peer in peers[1:]], whole=True)
    chart.set_edges(peers[1], [(peers[2], 0.02), (peers[0], 0.01)], whole=True)
    chart.set_edges(peers[0], [(peers[3], 0.03)], whole=True)
    ends = {peer: {chart.peer(end) for end in chart.edges_of(chart.row(peer))[0].tolist()} for peer in peers}
    assert ends == {peers[0]: {peers[3]}, peers[1]: {peers[2]}, peers[2]: {peers[1]}, peers[3]: {peers[0]}}
