"""The samples of one path."""

import math

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


def test_samples_count_for_longer_where_they_differ_less():
    steady, volatile = path_of([0.02, 0.0201, 0.0199, 0.02]), path_of([0.02, 0.06, 0.01, 0.03])
    assert steady.lasts_s(CONFIG) > 0.9 * CONFIG.sample_s
    assert volatile.lasts_s(CONFIG) < 0.05 * CONFIG.sample_s
    assert steady.is_fresh(1800.0)
    assert not volatile.is_fresh(1800.0)


def test_old_samples_are_forgotten():
    path = path_of([0.02, 0.02])
    path.add(0.02, 2 * CONFIG.sample_s, CONFIG)
    assert len(path) == 1


@given(st.lists(st.floats(1e-5, 10.0), min_size=1, max_size=40))
def test_the_round_trip_is_within_the_samples(rtts):
    path = path_of(rtts)
    assert min(rtts) <= path.rtt_s <= max(rtts)
    assert 1 <= len(path) <= CONFIG.samples_max
    assert CONFIG.volatile_s <= path.lasts_s(CONFIG) <= CONFIG.sample_s
    assert math.isfinite(path.spread())
