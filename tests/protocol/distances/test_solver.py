"""The robust fit of one place."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protocol.distances.solver import Anchors, Fit, cheapest, costs_of, step

FIT = Fit(relative_s=0.001, huber=0.3, cut=0.5, damping=0.3, gain=0.7, step_s_max=0.05, height_s_min=2e-5)


def anchors_of(seed: int, count: int, dimensions: int = 3) -> tuple[np.ndarray, float, Anchors]:
    """A true place and height, and what it measures without noise."""
    luck = np.random.default_rng(seed)
    place, height_s = luck.uniform(0.0, 0.1, dimensions), 0.003
    ends, heights = luck.uniform(0.0, 0.1, (1, count, dimensions)), luck.uniform(0.0005, 0.005, (1, count))
    rtts = np.linalg.norm(ends - place, axis=2) + height_s + heights
    return place, height_s, Anchors(ends, heights, rtts, np.ones((1, count)))


def solved(anchors: Anchors, steps: int = 60) -> tuple[np.ndarray, float]:
    places, heights = np.full((1, anchors.places.shape[2]), 0.05), np.array([0.002])
    for _ in range(steps):
        places, heights, _ = step(places, heights, anchors, FIT)
    return places[0], float(heights[0])


@given(st.integers(0, 10_000))
def test_a_place_is_found_from_exact_round_trips(seed):
    place, height_s, anchors = anchors_of(seed, 24)
    starts = np.random.default_rng(seed).uniform(0.0, 0.1, (6, 3))
    found, found_height_s, cost = cheapest(starts, np.full(6, 0.002), anchors, FIT, 40)
    assert np.linalg.norm(found - place) < 0.001
    assert abs(found_height_s - height_s) < 0.001
    assert cost < 1e-3


@given(st.integers(0, 10_000), st.floats(1.0, 10.0))
def test_one_edge_out_of_all_proportion_hardly_moves_a_place(seed, lie_s):
    place, _, anchors = anchors_of(seed, 24)
    honest, _ = solved(anchors)
    rtts = anchors.rtts.copy()
    rtts[0, 0] = lie_s
    misled, _ = solved(Anchors(anchors.places, anchors.heights, rtts, anchors.weights))
    assert np.linalg.norm(misled - honest) < 0.01
    assert np.linalg.norm(honest - place) < 0.05


def test_edges_without_weight_count_nothing():
    _, _, anchors = anchors_of(3, 24)
    rtts, weights = anchors.rtts.copy(), anchors.weights.copy()
    rtts[0, 12:], weights[0, 12:] = 7.0, 0.0
    kept = Anchors(anchors.places[:, :12], anchors.heights[:, :12], anchors.rtts[:, :12], anchors.weights[:, :12])
    assert np.allclose(solved(Anchors(anchors.places, anchors.heights, rtts, weights))[0], solved(kept)[0])


@given(st.integers(0, 1000), st.lists(st.floats(1e-5, 10.0), min_size=6, max_size=6))
def test_any_round_trips_give_a_finite_place(seed, rtts):
    _, _, anchors = anchors_of(seed, 6)
    place, height_s = solved(Anchors(anchors.places, anchors.heights, np.array([rtts]), anchors.weights))
    assert np.isfinite(place).all()
    assert FIT.height_s_min <= height_s < np.inf


def test_a_step_costs_less_than_the_one_before():
    _, _, anchors = anchors_of(5, 24)
    places, heights, before = np.full((1, 3), 0.05), np.array([0.002]), np.inf
    for _ in range(20):
        places, heights, cost = step(places, heights, anchors, FIT)
        assert cost[0] <= before * 1.001
        before = cost[0]


@given(st.floats(0.01, 20.0))
def test_what_an_error_costs_rises_as_steeply_as_it_pulls(size):
    """An edge pulls by its error up to `huber`, as hard up to `cut`, and with the inverse square past that."""
    by = 1e-5
    slope = float(costs_of(np.array([size + by]), FIT)[0] - costs_of(np.array([size - by]), FIT)[0]) / (2.0 * by)
    pull = min(size, FIT.huber) * min(1.0, FIT.cut / size) ** 2
    assert abs(slope - 2.0 * pull) < 0.01 * pull + 2e-3


def test_an_error_without_end_costs_no_more_than_some():
    assert costs_of(np.array([1e9]), FIT)[0] < 4.0 * costs_of(np.array([FIT.cut]), FIT)[0]
