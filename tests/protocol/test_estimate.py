"""Estimates: what bounds are put round a round trip that was measured, or that two places tell."""

import itertools
import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.estimate import ITSELF, UNKNOWN, Estimate, Source, of_places, of_samples

SECONDS = st.floats(1e-6, 10.0)


@given(SECONDS, st.floats(0.0, 10.0), st.integers(1, 64))
def test_what_was_measured_lies_between_its_bounds(rtt_s: float, jitter_s: float, samples: int) -> None:
    estimate = of_samples(rtt_s, jitter_s, samples)
    assert 0.0 <= estimate.low_s < estimate.rtt_s == rtt_s < estimate.high_s < math.inf
    assert estimate.source is Source.MEASURED


@given(SECONDS, st.floats(0.0, 3.0), st.floats(0.0, 60.0))
def test_what_places_tell_lies_between_its_bounds(rtt_s: float, errors: float, reach_s: float) -> None:
    estimate = of_places(rtt_s, errors, reach_s)
    assert 0.0 <= estimate.low_s <= estimate.rtt_s == rtt_s <= estimate.high_s < math.inf
    assert estimate.source is Source.COORDINATE


def test_more_samples_and_less_jitter_make_the_bounds_narrower() -> None:
    def width_s(jitter_s: float, samples: int) -> float:
        estimate = of_samples(0.1, jitter_s, samples)
        return estimate.high_s - estimate.low_s

    assert width_s(0.0, 1) > width_s(0.0, 2) > width_s(0.0, 8) > width_s(0.0, 64) > 0.0
    assert width_s(0.010, 64) > 5 * width_s(0.001, 64)


def test_places_that_err_more_have_wider_bounds_and_a_large_map_has_too() -> None:
    assert of_places(0.01, 0.2, 0.1).high_s > of_places(0.01, 0.1, 0.1).high_s > of_places(0.01, 0.1, 0.0).high_s > 0.01


def test_what_is_not_known_sorts_last_and_lies_within_no_limit() -> None:
    far = of_places(10.0, 3.0, 20.0)
    assert sorted([UNKNOWN, far, ITSELF], key=lambda estimate: estimate.rtt_s) == [ITSELF, far, UNKNOWN]
    assert not UNKNOWN.rtt_s <= 10.0
    assert Estimate(math.inf, 0.0, math.inf, Source.UNKNOWN) == UNKNOWN


def probed(samples: list[float]) -> Estimate:
    """What a probe would tell of these samples (`protocol.probe`)."""
    jitter_s = 0.0
    for before, after in itertools.pairwise(samples):
        jitter_s += (abs(after - before) - jitter_s) / 16
    return of_samples(statistics.median(samples[-8:]), jitter_s, len(samples))


@pytest.mark.parametrize("samples", [2, 4, 8, 64])
@pytest.mark.parametrize(
    ("draw", "median_s"),
    [
        (lambda luck: 0.020 + luck.expovariate(1000.0), 0.020 + 0.001 * math.log(2)),
        (lambda luck: luck.gauss(0.020, 0.001), 0.020),
    ],
    ids=["exponential", "normal"],
)
def test_nine_of_ten_medians_lie_within_the_bounds(draw: Callable[[random.Random], float], median_s: float, samples: int) -> None:
    luck = random.Random(samples)
    estimates = [probed([draw(luck) for _ in range(samples)]) for _ in range(1000)]
    held = statistics.mean(estimate.low_s <= median_s <= estimate.high_s for estimate in estimates)
    assert 0.82 <= held <= 0.96  # two to four samples hardly tell how much they vary


def test_one_sample_is_not_taken_for_certain() -> None:
    estimate = of_samples(0.020, 0.0, 1)
    assert estimate.low_s < 0.019
    assert estimate.high_s > 0.021
