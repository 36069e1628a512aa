"""What a node says of distances: its own samples, its place, intervals, and whom it measures next."""

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.distances import COVERAGE, Chart, DistanceConfig, Distances
from protocol.estimate import Source
from tests.protocol.distances.planted import charted, newcomer, peers_of, planted, some_ends

CONFIG = DistanceConfig()


def anyone(_peer) -> bool:
    return True


@given(st.floats())
def test_what_can_be_no_round_trip_never_enters(rtt_s):
    peers = peers_of(2)
    distances = Distances(CONFIG, peers[0], random.Random(1))
    distances.handle_sample(peers[1], rtt_s, 0.0)
    known = distances.estimate(peers[1], 0.0)
    assert (known is not None) == (0.0 < rtt_s <= CONFIG.rtt_s_max)
    if known is not None:
        assert known.rtt_s == max(rtt_s, CONFIG.rtt_s_min)
        assert 0.0 < known.low_s <= known.rtt_s <= known.high_s < math.inf
        assert distances.next_timer() < math.inf


def test_nobody_measures_itself():
    peers = peers_of(2)
    distances = Distances(CONFIG, peers[0], random.Random(1))
    distances.handle_sample(peers[0], 0.1, 0.0)
    assert distances.estimate(peers[0], 0.0) is None


@pytest.mark.parametrize("row", range(0, 60, 12))
def test_a_joiner_knows_everybody_after_a_few_measurements(row):
    mesh = planted(60)
    chart = charted(mesh, 16)
    distances = newcomer(mesh, chart, row, some_ends(mesh, row, 12, random.Random(row)))
    others = [number for number in range(60) if number != row]
    rtts, low, high = distances.estimates([mesh.peers[number] for number in others], 0.0)
    assert np.median(np.abs(rtts - mesh.rtts[row, others]) / mesh.rtts[row, others]) < 0.03
    assert ((low <= rtts) & (rtts <= high)).all()


@pytest.mark.parametrize("row", range(4, 60, 12))
def test_who_met_liars_first_finds_out_of_their_midst(row):
    """A third sign that they are together and delay everybody by a second: who has measured only them seems to be far away."""
    mesh = planted(60)
    liars = list(range(0, 60, 3))
    said = mesh.rtts.copy()
    said[liars, :] += 1.0
    said[:, liars] += 1.0
    said[np.ix_(liars, liars)] = 1e-4
    misled = replace(mesh, rtts=said)
    chart = charted(misled, 16)
    distances = newcomer(misled, chart, row, [end for end in liars if end != row][:8])
    honest = [end for end in range(60) if end not in liars and end != row]
    for number, end in enumerate(honest[:24]):
        distances.handle_sample(mesh.peers[end], float(mesh.rtts[row, end]), 1.0 + number, drawn=True)
        distances.resolve(1.0 + number)
    rtts, _, _ = distances.estimates([mesh.peers[end] for end in honest[24:]], 30.0)
    assert np.median(np.abs(rtts - mesh.rtts[row, honest[24:]]) / mesh.rtts[row, honest[24:]]) < 0.1


def test_an_own_fresh_measurement_wins_and_an_old_one_does_not():
    mesh = planted(60)
    distances = newcomer(mesh, charted(mesh, 16), 0, list(range(1, 20)))
    assert distances.estimate(mesh.peers[30], 0.0).source is Source.EDGES
    distances.handle_sample(mesh.peers[30], 0.777, 1.0)
    distances.resolve(1.0)
    known = distances.estimate(mesh.peers[30], 1.0)
    assert (known.source, known.rtt_s) == (Source.MEASURED, 0.777)
    assert distances.estimates([mesh.peers[30]], 1.0)[0][0] == 0.777
    later = 2.0 * CONFIG.sample_s
    assert distances.estimate(mesh.peers[30], later).source is Source.EDGES


def test_intervals_hold_nine_truths_of_ten():
    mesh = planted(120, noise=0.1)
    chart = charted(mesh, 24)
    inside = total = 0
    for row in range(0, 120, 4):
        measured = some_ends(mesh, row, 32, random.Random(row))
        distances = newcomer(mesh, chart, row, measured)
        rest = [number for number in range(120) if number != row and number not in measured]
        _, low, high = distances.estimates([mesh.peers[number] for number in rest], 0.0)
        truth = mesh.rtts[row, rest]
        inside += int(((low <= truth) & (truth <= high)).sum())
        total += len(rest)
    assert COVERAGE - 0.05 <= inside / total <= COVERAGE + 0.05


def test_distances_between_others_need_no_measurement_of_this_node():
    mesh = planted(60)
    chart = charted(mesh, 16)
    distances = newcomer(mesh, chart, 0, list(range(1, 20)))
    off = []
    for first in range(1, 60, 5):
        for second in range(2, 60, 7):
            if first != second:
                known, back = (
                    distances.between(mesh.peers[a], mesh.peers[b], 0.0) for a, b in ((first, second), (second, first))
                )
                assert known.rtt_s == pytest.approx(back.rtt_s)
                off.append(abs(known.rtt_s / mesh.rtts[first, second] - 1.0))
    assert np.median(off) < 0.03
    assert distances.between(mesh.peers[0], mesh.peers[5], 0.0) == distances.estimate(mesh.peers[5], 0.0)
    stranger = next(peer for peer in peers_of(61) if peer not in mesh.peers)
    assert distances.between(mesh.peers[1], stranger, 0.0) is None


def test_residuals_are_carried_to_peers_beside_those_measured():
    """A detour of a quarter to everybody in one corner is foretold for those of the corner that were not measured."""
    mesh = planted(80)
    corner = [row for row in range(1, 80) if mesh.rtts[0, row] > np.quantile(mesh.rtts[0], 0.7)]
    mesh.rtts[0, corner] *= 1.25
    mesh.rtts[corner, 0] *= 1.25
    chart = charted(mesh, 24)
    measured = [row for row in range(1, 80) if row % 2]
    distances = newcomer(mesh, chart, 0, measured)
    unmeasured = [row for row in corner if row not in measured]
    said = distances.estimates([mesh.peers[row] for row in unmeasured], 0.0)[0]
    assert np.median(np.abs(said / mesh.rtts[0, unmeasured] - 1.0)) < 0.12


def test_half_are_drawn_evenly_and_half_seem_near():
    mesh = planted(100)
    chart = charted(mesh, 16)
    drawn: Counter[int] = Counter()
    near: list[float] = []
    for seed in range(40):
        distances = Distances(CONFIG, mesh.peers[0], random.Random(seed), chart)
        for turn in range(CONFIG.drawn_first + 16):
            peer, at_random = distances.whom_to_measure(mesh.peers, float(turn), anyone)
            row = mesh.peers.index(peer)
            assert row != 0
            assert distances.estimate(peer, float(turn)) is None or distances.estimate(peer, float(turn)).source is Source.EDGES
            distances.handle_sample(peer, float(mesh.rtts[0, row]), float(turn), drawn=at_random)
            distances.resolve(float(turn))
            if at_random:
                drawn[row] += 1
            else:
                near.append(float(mesh.rtts[0, row]))
    assert len(near) == 40 * 8
    assert np.median(near) < np.quantile(mesh.rtts[0], 0.2)
    expected = sum(drawn.values()) / 99
    assert sum((drawn[row] - expected) ** 2 / expected for row in range(1, 100)) < 150  # chi square, 98 degrees: once in 1,900


def test_who_was_measured_lately_or_may_not_be_is_left_alone():
    mesh = planted(20)
    distances = newcomer(mesh, charted(mesh, 8), 0, list(range(1, 19)))
    assert distances.whom_to_measure(mesh.peers, 0.0, anyone) == (mesh.peers[19], True)
    assert distances.whom_to_measure(mesh.peers, 0.0, lambda peer: peer != mesh.peers[19]) is None
    assert distances.whom_to_measure(mesh.peers, 2 * CONFIG.sample_s, anyone) is not None


def test_the_nearest_half_is_told_and_the_newest_of_the_others():
    mesh = planted(40)
    distances = newcomer(mesh, charted(mesh, 8), 0, list(range(1, 30)))
    distances.handle_sample(mesh.peers[35], float(mesh.rtts[0, 35]), 1.0)
    told = distances.edges(10, 1.0)
    nearest = sorted(range(1, 30), key=lambda row: mesh.rtts[0, row])[:5]
    assert len(told) == 10
    assert {mesh.peers[row] for row in (*nearest, 35)} <= {peer for peer, _ in told}
    assert told == sorted(told, key=lambda edge: edge[1])


def test_the_work_of_a_timer_is_a_slice():
    mesh, luck = planted(60), random.Random(1)
    distances = Distances(CONFIG, mesh.peers[0], luck)
    assert distances.next_timer() == math.inf
    for row in range(1, 60):
        distances.chart.set_edges(mesh.peers[row], mesh.edges(row, some_ends(mesh, row, 16, luck)))
        distances.handle_sample(mesh.peers[row], float(mesh.rtts[0, row]), 0.0)
    due, calls = distances.next_timer(), 0
    distances.handle_timer(due - 0.001)
    assert distances.next_timer() == due
    while (now := distances.next_timer()) < math.inf:
        assert now - due == pytest.approx(calls * CONFIG.slice_s)
        distances.handle_timer(now)
        calls += 1
        assert calls < 1000
    assert calls > 50
    assert distances.between(mesh.peers[1], mesh.peers[2], now).source is Source.EDGES
    assert distances.next_timer() == math.inf


def test_forgotten_peers_are_unknown():
    mesh = planted(30)
    distances = newcomer(mesh, charted(mesh, 8), 0, list(range(1, 20)))
    distances.forget(mesh.peers[5])
    assert distances.chart.row(mesh.peers[5]) is None
    assert distances.between(mesh.peers[5], mesh.peers[6], 0.0) is None
    assert distances.measured(mesh.peers[5], 0.0) is None


def test_paths_are_bounded():
    peers = peers_of(12)
    distances = Distances(DistanceConfig(measured_max=4), peers[0], random.Random(1))
    for number, peer in enumerate(peers[1:]):
        distances.handle_sample(peer, 0.01, float(number))
    assert [distances.measured(peer, 11.0) is not None for peer in peers[1:]] == [False] * 7 + [True] * 4


def test_two_nodes_with_the_same_luck_agree():
    mesh = planted(40)
    first, second = (newcomer(mesh, charted(mesh, 12), 0, list(range(1, 20))) for _ in range(2))
    assert all(
        np.array_equal(a, b) for a, b in zip(first.estimates(mesh.peers, 0.0), second.estimates(mesh.peers, 0.0), strict=True)
    )
    assert isinstance(first.chart, Chart)
