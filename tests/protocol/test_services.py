import math
from dataclasses import replace

import pytest

from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.inference import Feature
from protocol.services import DEMOTING, ServiceConfig, ServiceEstimate, ServiceEstimates

CONFIG = ServiceConfig()
A, B = PeerId(b"a"), PeerId(b"b")
CHAT = Feature.CHAT


def test_the_first_measurement_is_the_estimate_and_later_ones_move_it() -> None:
    services = ServiceEstimates(CONFIG)
    assert services.estimate(A, "m", CHAT, 0, 0.0) is None
    services.record(A, "m", CHAT, 0.0, 1.0, 0.2)
    assert services.estimate(A, "m", CHAT, 0, 0.0) == ServiceEstimate(1.0, 0.2, 1.0)
    services.record(A, "m", CHAT, 0.0, 2.0, 0.4)
    estimate = services.estimate(A, "m", CHAT, 0, 0.0)
    assert estimate.service_s == pytest.approx(1.2)
    assert estimate.first_output_s == pytest.approx(0.24)
    assert estimate.samples == 2.0


def test_peers_models_and_features_are_kept_apart() -> None:
    services = ServiceEstimates(CONFIG)
    services.record(A, "m", CHAT, 0.0, 1.0)
    assert services.estimate(B, "m", CHAT, 0, 0.0) is None
    assert services.estimate(A, "n", CHAT, 0, 0.0) is None
    assert services.estimate(A, "m", Feature.EMBEDDINGS, 0, 0.0) is None


def test_a_bound_on_tokens_lowers_the_estimate_and_never_raises_it() -> None:
    services = ServiceEstimates(CONFIG)
    services.record(A, "m", CHAT, 0.0, service_s=1.1, first_output_s=0.1, output_tokens=101)
    assert services.estimate(A, "m", CHAT, 11, 0.0).service_s == pytest.approx(0.2)
    assert services.estimate(A, "m", CHAT, 0, 0.0).service_s == pytest.approx(1.1)
    assert services.estimate(A, "m", CHAT, 10**9, 0.0).service_s == pytest.approx(1.1)


def test_an_estimate_is_worth_less_with_time_and_never_more_than_its_mean_holds() -> None:
    services = ServiceEstimates(CONFIG)
    for _ in range(50):
        services.record(A, "m", CHAT, 0.0, 1.0)
    assert services.estimate(A, "m", CHAT, 0, 0.0).samples == CONFIG.samples_max
    assert services.estimate(A, "m", CHAT, 0, CONFIG.half_life_s).samples == pytest.approx(CONFIG.samples_max / 2)
    assert services.estimate(A, "m", CHAT, 0, 1e9).samples == 0.0


def test_a_poorly_known_estimate_is_drawn_toward_the_ordinary() -> None:
    ordinary = ServiceEstimate(1.0, 0.5, 0.0)
    assert ServiceEstimate(2.0, 1.5, 4.0).drawn_toward(ordinary, 4.0) == ServiceEstimate(1.5, 1.0, 4.0)
    assert ServiceEstimate(2.0, 1.5, 0.0).drawn_toward(ordinary, 4.0) == ServiceEstimate(1.0, 0.5, 0.0)


@pytest.mark.parametrize("service_s", [math.nan, math.inf, -1.0])
def test_what_is_no_duration_is_dropped(service_s: float) -> None:
    services = ServiceEstimates(CONFIG)
    services.record(A, "m", CHAT, 0.0, service_s)
    assert services.estimate(A, "m", CHAT, 0, 0.0) is None


@pytest.mark.parametrize("first_output_s", [math.nan, -1.0, 9.0])
def test_a_first_output_outside_of_the_service_is_taken_for_its_end(first_output_s: float) -> None:
    services = ServiceEstimates(CONFIG)
    services.record(A, "m", CHAT, 0.0, 2.0, first_output_s)
    assert services.estimate(A, "m", CHAT, 0, 0.0) == ServiceEstimate(2.0, 2.0, 1.0)


def test_one_hung_request_is_capped() -> None:
    services = ServiceEstimates(CONFIG)
    services.record(A, "m", CHAT, 0.0, 1e9)
    assert services.estimate(A, "m", CHAT, 0, 0.0).service_s == CONFIG.service_s_max


def test_entries_are_bounded_and_the_longest_unused_makes_room() -> None:
    services = ServiceEstimates(replace(CONFIG, entries_max=2))
    for peer in (b"a", b"b", b"a", b"c"):
        services.record(PeerId(peer), "m", CHAT, 0.0, 1.0)
        services.record_failure(PeerId(peer), "m", ErrorCode.UNREACHABLE, 0.0)
        assert services.entries <= 2
        assert len(services._failures) <= 2
    assert services.estimate(B, "m", CHAT, 0, 0.0) is None
    assert services.estimate(A, "m", CHAT, 0, 0.0) is not None


def test_failures_demote_for_longer_each_time_until_a_success() -> None:
    services = ServiceEstimates(CONFIG)
    for lasts_s in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        services.record_failure(A, "m", ErrorCode.ENGINE_FAILED, 0.0)
        assert services.demoted(A, "m", lasts_s - 0.001)
        assert services.failed_ago_s(A, "m", 0.5) == 0.5
        assert not services.demoted(A, "m", lasts_s)
        assert services.failed_ago_s(A, "m", lasts_s) is None
    assert not services.demoted(A, "n", 0.0)
    services.record(A, "m", CHAT, 0.0, 1.0)
    assert not services.demoted(A, "m", 0.0)


@pytest.mark.parametrize("code", sorted(set(ErrorCode) - DEMOTING))
def test_what_is_wrong_with_the_request_demotes_nobody(code: ErrorCode) -> None:
    services = ServiceEstimates(CONFIG)
    services.record_failure(A, "m", code, 0.0)
    assert not services.demoted(A, "m", 0.0)


def test_a_forgotten_peer_leaves_nothing() -> None:
    services = ServiceEstimates(CONFIG)
    services.record(A, "m", CHAT, 0.0, 1.0)
    services.record_failure(A, "m", ErrorCode.UNREACHABLE, 0.0)
    services.record(B, "m", CHAT, 0.0, 1.0)
    services.forget(A)
    assert services.estimate(A, "m", CHAT, 0, 0.0) is None
    assert not services.demoted(A, "m", 0.0)
    assert services.entries == 1
