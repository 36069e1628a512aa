"""The figures of the benchmark of distances on real sockets are what they are called."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import mesh_distances
from benchmarks.echo_floor import floor_s
from benchmarks.mesh_distances import choose_matrix, simulated
from benchmarks.mesh_node import LINKS, few
from benchmarks.mesh_score import Answers, Asked, cost_s, errors, excess_s, is_near_equal, is_nearest, missed_percent, percentiles
from mesh.testnet.matrix import drawn, read_matrix
from protocol.routing import RoutingConfig

TRUTH_S = np.array([[0.0, 0.1, 0.2, 0.104], [0.1, 0.0, 0.3, 0.2], [0.2, 0.3, 0.0, 0.05], [0.104, 0.2, 0.05, 0.0]])


def answers() -> Answers:
    """Everybody says the truth of everything, and 0 and 1 have measured one another, 2 alone its way to 3."""
    rtt_s = np.broadcast_to(TRUTH_S, (4, 4, 4)).copy()
    source = np.full((4, 4, 4), "edges", dtype="U16")
    source[0, 0, 1] = source[1, 1, 0] = source[2, 2, 3] = "measured"
    return Answers(rtt_s, source)


def test_own_distances_are_those_of_the_node_that_says_them() -> None:
    told = answers()
    told.rtt_s[2, 2, 3], told.rtt_s[2, 0, 1] = 7.0, 8.0
    own_s, source = told.own()
    assert own_s[2, 3] == 7.0
    assert 8.0 not in own_s
    assert source[2, 3] == "measured"


def test_distances_of_others_leave_out_whoever_says_them() -> None:
    others_s, source = answers().of_others()
    for judge in range(4):
        assert np.isnan(others_s[judge, judge]).all()
        assert np.isnan(others_s[judge, :, judge]).all()
    assert np.isfinite(others_s[2, 0, 1])
    assert "measured" not in source


def test_a_pair_is_measured_where_either_end_has_measured_it() -> None:
    assert answers().measured_share() == pytest.approx(2 / 6)


def test_errors_are_relative_and_of_what_is_estimated_alone() -> None:
    estimate_s = np.full((4, 4), np.nan)
    estimate_s[0, 1], estimate_s[2, 3], estimate_s[1, 1] = 0.11, 0.04, 5.0
    assert errors(estimate_s, TRUTH_S) == pytest.approx([0.1, 0.2])
    assert excess_s(estimate_s, TRUTH_S) == pytest.approx([0.01, -0.01])
    assert percentiles(np.arange(101.0)) == pytest.approx((50, 90, 95))
    assert np.isnan(percentiles(np.array([]))).all()


def test_only_the_nearest_of_the_qualified_is_right() -> None:
    nearest, equal, far, other = (Asked(0, answerer, (1, 2, 3)) for answerer in (1, 3, 2, None))
    assert [is_nearest(one, TRUTH_S) for one in (nearest, equal, far, other)] == [True, False, False, False]
    assert [is_near_equal(one, TRUTH_S) for one in (nearest, equal, far, other)] == [True, True, False, False]
    assert not is_near_equal(Asked(0, 1, (2, 3)), TRUTH_S)  # it answered, and does not serve what was asked for
    assert cost_s([nearest, equal, far, other], TRUTH_S) == pytest.approx([0.0, 0.004, 0.1])
    assert missed_percent([True, True, True, False]) == pytest.approx(25.0)
    assert missed_percent([]) == 100.0


def test_the_margin_is_the_rankings() -> None:
    config = RoutingConfig()
    at_the_edge = TRUTH_S.copy()
    at_the_edge[0, 3] = at_the_edge[0, 1] * (1 + config.near_equal_share)
    assert is_near_equal(Asked(0, 3, (1, 3)), at_the_edge - 1e-9 * (at_the_edge > 0.1))
    at_the_edge[0, 3] += 1e-4
    assert not is_near_equal(Asked(0, 3, (1, 3)), at_the_edge)


def test_a_node_with_few_links_is_one_that_the_core_accepts() -> None:
    assert few(LINKS).membership.small_mesh == few(LINKS).membership.near_max == LINKS


def test_mesh_and_simulator_are_given_the_same_nodes(tmp_path: Path) -> None:
    whole = tmp_path / "whole.csv"
    whole.write_text("\n".join(",".join(str(abs(i - j) * 3 + 1) if i != j else "0" for j in range(9)) for i in range(9)))
    path = choose_matrix(str(whole), 4, 5, tmp_path)
    chosen = drawn(9, 4, 5)
    assert read_matrix(path).rtt_ms[0] == pytest.approx(read_matrix(whole).rtt_ms[0][np.ix_(chosen, chosen)], nan_ok=True)
    assert choose_matrix("synthetic-9", 4, 5, tmp_path).exists()
    with pytest.raises(SystemExit, match="synthetic-12"):
        choose_matrix("nothing", 4, 5, tmp_path)


def test_the_simulator_is_asked_for_as_many_pairs_as_were_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_distances, "SIM_PINGS", (1, 24))
    path = choose_matrix("synthetic-8", 8, 1, tmp_path)
    some, every = simulated(path, 0.3, 1, 0.0), simulated(path, 1.0, 1, 2.0)
    assert (some.pings, every.pings) == (1, 24)
    assert some.memory["pairs_measured"] < every.memory["pairs_measured"] == 1.0
    assert every.memory["error_p50"] > 0.0  # packets wait, so nobody measures the truth


def test_a_bare_echo_takes_time() -> None:
    found = floor_s(5)
    assert len(found) == 5
    assert all(took_s > 0.0 for took_s in found)
