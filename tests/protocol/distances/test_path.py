"""The samples of one path."""

import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.distances import DistanceConfig
from protocol.distances.path import PathSamples

CONFIG = DistanceConfig()


def path_of(rtts: list[float], gap_s: float = 10.0) -> PathSamples:
    path = PathSamples()
    for number, rtt_s in enumerate(rtts):
        path.add(rtt_s, number * gap_s, CONFIG)
    return path


def test_one_late_sample_changes_nothing():
    assert path_of([0.02, 0.021, 0.9, 0.02]).rtt_s < 0.022


def test_a_path_that_has_changed_is_believed_after_three_samples():
    assert path_of([0.02] * 8 + [0.05] * 2).rtt_s == 0.02
    assert path_of([0.02] * 8 + [0.05] * 3).rtt_s == 0.05
    assert path_of([0.05] * 8 + [0.02] * 3).rtt_s == 0.02


def test_a_small_change_makes_no_new_path():
    assert len(path_of([0.02] * 8 + [0.0205] * 3)) == 11


def test_a_steady_path_takes_the_median_and_a_volatile_one_the_least():
    steady, volatile = path_of([0.02, 0.0201, 0.0199, 0.0202]), path_of([0.02, 0.06, 0.01, 0.03])
    assert steady.steadiness > 0.9
    assert steady.rtt_s == pytest.approx(0.02005, rel=2e-3)
    assert volatile.steadiness < 0.05
    assert volatile.rtt_s == pytest.approx(0.01, rel=0.1)


def test_old_samples_are_forgotten():
    path = path_of([0.02, 0.02])
    assert path.is_fresh(CONFIG.sample_s)
    assert not path.is_fresh(10.1 + CONFIG.sample_s)
    path.add(0.02, 2 * CONFIG.sample_s, CONFIG)
    assert len(path) == 1


@given(st.lists(st.floats(1e-5, 10.0), min_size=1, max_size=40))
def test_the_round_trip_is_within_the_samples(rtts):
    path = path_of(rtts)
    assert min(rtts) <= path.rtt_s <= max(rtts)
    assert 1 <= len(path) <= CONFIG.samples_max
    assert 0.0 < path.steadiness <= 1.0
    assert path.rtt_s <= (1.0 + 1e-12) * median(rtts[-len(path) :])
    assert math.isfinite(path.spread())
