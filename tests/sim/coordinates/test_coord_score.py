"""The metrics, against cases worked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from sim.coordinates import score

NAN = float("nan")


def scene(estimate_ms: list[list[float]], truth_ms: list[list[float]], **other: object) -> score.Scene:
    truth_s = np.array(truth_ms) * 1e-3
    defaults: dict[str, object] = {
        "honest": np.ones(len(truth_s), dtype=bool),
        "ping_s": lambda judge, peer: float(truth_s[judge, peer]),
        "fresh": np.zeros(truth_s.shape, dtype=bool),
    }
    return score.Scene(np.array(estimate_ms) * 1e-3, truth_s, **{**defaults, **other})


def test_relative_errors_of_chosen_known_pairs() -> None:
    estimate = np.array([[NAN, 15.0, 8.0], [20.0, NAN, NAN], [5.0, 1.0, NAN]])
    truth = np.array([[NAN, 10.0, 10.0], [10.0, NAN, 10.0], [NAN, 4.0, NAN]])
    assert sorted(score.error_of(estimate, truth, np.ones((3, 3), dtype=bool))) == pytest.approx([0.2, 0.5, 0.75, 1.0])
    honest, measured = np.array([True, True, False]), np.zeros((3, 3), dtype=bool)
    measured[0, 1] = True
    found = score.errors(estimate, truth, honest, measured)
    assert found["error_p50"] == pytest.approx(0.75)
    assert found["error_unmeasured_p50"] is None  # the only pair of honest nodes was measured, by one end
    assert found["pairs_measured"] == pytest.approx(1.0)


def test_nearest_of_all() -> None:
    """Judge 0 takes 20 ms where 10 is there, judge 1 the best, judge 2 one of 30 where 15 is there."""
    truth = [[NAN, 10, 20], [10, NAN, 15], [30, 15, NAN]]
    estimate = [[NAN, 9, 8], [1, NAN, 2], [3, 4, NAN]]
    found, curves = score.choices(scene(estimate, truth), np.random.default_rng(1))
    assert found["nearest_all_ratio_p50"] == pytest.approx(2.0)
    assert found["nearest_all_penalty_ms_p50"] == pytest.approx(10.0)
    assert found["nearest_all_within_10"] == pytest.approx(1 / 3)
    assert sorted(curves["nearest_all"]) == pytest.approx([0.0, 0.01, 0.015])
    assert found["nearest_16_ratio_p50"] is None  # there are no 16
    assert found["request_all_ratio_p90"] == pytest.approx(1.0)  # all were pinged
    assert found["request_all_pings"] == pytest.approx(2.0)


def test_without_estimates_the_choice_is_random() -> None:
    nodes = 40
    truth = np.tile(np.arange(1.0, nodes + 1), (nodes, 1))
    np.fill_diagonal(truth, NAN)
    found, _ = score.choices(scene(np.full((nodes, nodes), NAN).tolist(), truth.tolist()), np.random.default_rng(1))
    assert found["nearest_16_within_10"] == pytest.approx(1 / 16, abs=0.04)


def test_shortlist_pings_only_what_is_not_fresh() -> None:
    truth = [[NAN, 50, 40, 30, 20, 10, 5, 9, 8, 7, 1]] + [[NAN] * 11] * 10
    estimate = [[NAN, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]] + [[NAN] * 11] * 10
    fresh = np.zeros((11, 11), dtype=bool)
    fresh[0, [1, 2]] = True
    candidates = np.arange(1, 11)
    pinged: list[int] = []

    def ping_s(judge: int, peer: int) -> float:
        pinged.append(peer)
        return NAN if peer == 6 else truth[judge][peer] * 1e-3

    chosen, used = score.asked_choice(scene(estimate, truth, ping_s=ping_s, fresh=fresh), 0, candidates)
    assert pinged == [3, 4, 5, 6, 7, 8]  # the eight best by estimate, without the two that are fresh
    assert used == 6
    assert candidates[chosen] == 1  # the judge believes its fresh 1 ms
    chosen, used = score.asked_choice(scene(estimate, truth, ping_s=ping_s), 0, candidates)
    assert used == 8
    assert candidates[chosen] == 8  # the nearest of the eight but for the one whose ping was lost


def test_with_intervals_the_product_decides_whom_to_ping() -> None:
    truth = [[NAN, 30, 25, 60, 90]] + [[NAN] * 5] * 4
    estimate = [[NAN, 20, 30, 70, 40]] + [[NAN] * 5] * 4
    low, high = np.array(estimate) * 0.6e-3, np.array(estimate) * 1.6e-3
    fresh = np.zeros((5, 5), dtype=bool)
    candidates, pinged = np.arange(1, 5), []

    def ping_s(judge: int, peer: int) -> float:
        pinged.append(peer)
        return truth[judge][peer] * 1e-3

    seen = replace(scene(estimate, truth, ping_s=ping_s, fresh=fresh), low_s=low, high_s=high)
    chosen, used = score.asked_choice(seen, 0, candidates)
    assert (sorted(pinged), used) == ([1, 2], 2)  # the third may not be as near as the first, nor the fourth by enough
    assert candidates[chosen] == 2
    fresh[0, 1] = True  # measured to be 20 ms away, so that waiting for the second costs more than it is likely to save
    assert score.asked_choice(seen, 0, candidates) == (0, 0)


def test_intervals_that_hold() -> None:
    estimate, truth = np.array([10.0, 10.0, 10.0, 10.0]), np.array([9.0, 12.0, 20.0, NAN])
    low, high = np.array([8.0, 5.0, 8.0, 1.0]), np.array([12.0, 12.0, 14.0, 99.0])
    found = score.intervals(low, high, estimate, truth, np.ones(4, dtype=bool))
    assert found["coverage"] == pytest.approx(2 / 3)
    assert found["width_p50"] == pytest.approx(0.6)
    assert score.intervals(low * NAN, high * NAN, estimate, truth, np.ones(4, dtype=bool))["coverage"] is None


def test_how_often_a_liar_is_chosen() -> None:
    truth = np.full((4, 4), 10.0)
    np.fill_diagonal(truth, NAN)
    estimate = truth.copy()
    estimate[:, 3] = 1.0
    truth[:, 2] = 5.0
    found = score.liars_chosen(estimate, truth, np.array([True, True, True, False]), np.random.default_rng(1))
    assert found == {"liars_share": 0.25, "liars_chosen": 1.0, "liars_nearest": pytest.approx(0.0, abs=0.34)}
    assert score.liars_chosen(estimate, truth, np.ones(4, dtype=bool), np.random.default_rng(1))["liars_chosen"] is None


def test_change_is_the_middle_relative_one() -> None:
    before, after = np.array([[NAN, 10.0], [20.0, NAN]]), np.array([[NAN, 11.0], [18.0, NAN]])
    assert score.change(before, after, np.ones(2, dtype=bool)) == pytest.approx(0.1)
    assert score.change(before * NAN, after, np.ones(2, dtype=bool)) is None
