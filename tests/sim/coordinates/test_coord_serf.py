"""Serf's algorithm: one update worked by hand, and the published figures where the data are."""

import math
from pathlib import Path
from random import Random

import numpy as np
import pytest

from sim.coordinates import score
from sim.coordinates.engine import Conditions, World
from sim.coordinates.matrices import load
from sim.coordinates.method import Seat
from sim.coordinates.methods import METHODS
from sim.coordinates.serf import Serf, SerfCoordinate, distance, pushed

DATA = [path for folder in Path(__file__).parents for path in [folder / "shared/data/planetlab490x18.npz"] if path.exists()]


def along(first: float, height: float, error: float = 1.5, adjustment: float = 0.0) -> SerfCoordinate:
    return SerfCoordinate((first,) + (0.0,) * 7, height, error, adjustment)


def test_one_update_by_hand() -> None:
    """A fresh node at the origin, a peer 30 ms off with 10 ms of height and an error of 0.5, a round trip of 100 ms.

    The distance is 30 + 10 + 0.01 = 40.01 ms, off by 0.5999 of the round trip. The weight is 1.5 / 2 = 0.75, so the error becomes
    0.1875 * 0.5999 + 1.5 * 0.8125 and the force 0.1875 * 59.99 = 11.248125 ms away from the peer; the height grows by
    10.01 * 11.248125 / 30 ms. The adjustment is (100 - 55.0112493...) / 40 ms, and gravity pulls by (16.1459.../150000)**2 s.
    """
    method = Serf(Seat(0, 2, Random(1)))
    method.handle_rtt(1, 0.1, 0.0, along(0.03, 0.01, 0.5))
    own = method.coordinate
    height = 1e-5 + 0.01001 * 0.011248125 / 0.03
    adjustment = (0.1 - (0.03 + 0.011248125 + 0.01 + height)) / 40.0
    pull = ((0.011248125 + height + 1e-5 + adjustment) / 150.0) ** 2
    assert own.error == pytest.approx(1.33123125, rel=1e-12)
    assert own.adjustment == pytest.approx(adjustment, rel=1e-9)
    assert own.vector[0] == pytest.approx(-0.011248125 + pull, rel=1e-12)
    assert own.vector[1:] == (0.0,) * 7
    assert own.height == pytest.approx(height - (height + 1e-5) * pull / 0.011248125, rel=1e-12)


def test_filter_is_the_median_of_three() -> None:
    seen = []

    class Watched(Serf):
        def update(self, other: SerfCoordinate, rtt_s: float) -> None:
            seen.append(rtt_s)

    method = Watched(Seat(0, 3, Random(1)))
    for rtt_s in (0.3, 0.1, 0.2, 0.9, 0.8):
        method.handle_rtt(1, rtt_s, 0.0, along(0.1, 0.0))
    method.handle_rtt(2, 0.5, 0.0, along(0.1, 0.0))
    assert seen == [0.3, 0.3, 0.2, 0.2, 0.8, 0.5]


def test_impossible_samples_change_nothing() -> None:
    method = Serf(Seat(0, 2, Random(1)))
    before = method.coordinate
    for rtt_s, told in (
        (-1.0, along(0.1, 0.0)),
        (math.nan, along(0.1, 0.0)),
        (11.0, along(0.1, 0.0)),
        (0.1, along(math.nan, 0.0)),
    ):
        method.handle_rtt(1, rtt_s, 0.0, told)
    method.handle_rtt(1, 0.1, 0.0, None)
    assert method.coordinate == before


def test_adjustments_count_unless_they_make_a_distance_negative() -> None:
    assert distance(along(0.0, 0.01, adjustment=0.002), along(0.03, 0.01, adjustment=-0.005)) == pytest.approx(0.047)
    assert distance(along(0.0, 0.01, adjustment=-0.1), along(0.03, 0.01)) == pytest.approx(0.05)


def test_together_a_random_direction_is_taken_and_the_height_stays() -> None:
    vector, height = pushed(along(0.1, 0.02), along(0.1, 0.03), 0.005, Random(3))
    assert math.dist(vector, along(0.1, 0.0).vector) == pytest.approx(0.005)
    assert height == 0.02


def test_estimate_follows_what_was_published() -> None:
    method = Serf(Seat(0, 3, Random(1)))
    method.handle_told(2, along(0.03, 0.01, adjustment=0.001), 0.0)
    rtt_s, low_s, _ = method.estimate(np.arange(3), 0.0)
    assert rtt_s[2] == pytest.approx(0.03 + 0.01 + 1e-5 + 0.001)
    assert np.isnan(rtt_s[1])
    assert np.isnan(low_s).all()


@pytest.mark.soak
@pytest.mark.skipif(not DATA, reason="needs shared/data/planetlab490x18.npz in a folder above, which is not shipped")
def test_figures_of_serf_itself_on_planetlab() -> None:
    """hashicorp/serf (a24f620), 512 random pings a node: error .078 to .082, .355 to .363, .586 to .598 (p50, p90, p95)."""
    matrix = load(DATA[0])
    world = World(matrix, METHODS["serf"], Conditions(), 1, until_s=512.0)
    world.run(530.0)
    estimate_s = np.array([world.estimates(index, np.arange(matrix.nodes))[0] for index in range(matrix.nodes)])
    np.fill_diagonal(estimate_s, np.nan)
    found = np.percentile(score.error_of(estimate_s, matrix.middle(), np.ones(estimate_s.shape, dtype=bool)), [50, 90, 95])
    assert found == pytest.approx([0.080, 0.359, 0.592], rel=0.05)
