import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.inference import Feature
from protocol.load import Beat, ModelLoad
from protocol.records import ModelOffer
from protocol.routing import (
    CandidateInput,
    Path,
    Requirement,
    RouteReport,
    RoutingConfig,
    RttSource,
    ServiceConfig,
    ServiceEstimates,
    path_time,
    queue_time,
    rank,
)

CONFIG = RoutingConfig()
CHAT = Requirement("m", Feature.CHAT)
OFFER = ModelOffer("m", frozenset({Feature.CHAT, Feature.EMBEDDINGS}), context_length=4096)
HERE = Path(RttSource.SELF)


def peer(name: str) -> PeerId:
    return PeerId(name.encode())


def measured(rtt_s: float, jitter_s: float = 0.0, loss: float = 0.0) -> Path:
    return Path(RttSource.MEASURED, rtt_s, jitter_s=jitter_s, loss=loss)


def load(running: int = 0, waiting: int = 0, slots: int = 1, queue_s: float = 0.0, service_s: float = 0.0) -> ModelLoad:
    return ModelLoad("m", running, waiting, slots, queue_s, service_s)


def node(name: str, path: Path, model_load: ModelLoad | None = None, **fields: object) -> CandidateInput:
    beat = None if model_load is None else Beat(False, (model_load,))
    return CandidateInput(**{"peer_id": peer(name), "path": path, "offers": (OFFER,), "beat": beat, **fields})


def ranked(
    *candidates: CandidateInput,
    requirement: Requirement = CHAT,
    services: ServiceEstimates | None = None,
    seed: int = 1,
    config: RoutingConfig = CONFIG,
    now: float = 100.0,
) -> RouteReport:
    services = services or ServiceEstimates(config.service)
    return rank(b"\x01" * 16, requirement, candidates, services, config, random.Random(seed), now)


def names(report: RouteReport) -> list[str]:
    return [bytes(candidate.peer_id).decode() for candidate in report.candidates if candidate.qualified]


def reason_of(candidate: CandidateInput, requirement: Requirement = CHAT) -> str:
    (judged,) = ranked(candidate, requirement=requirement).candidates
    assert not judged.qualified
    assert judged.predicted_s is None
    return judged.reason


def test_the_nearest_of_equals_comes_first() -> None:
    report = ranked(node("far", measured(0.2)), node("near", measured(0.01)), node("middle", measured(0.05)))
    assert names(report) == ["near", "middle", "far"]
    assert report.chosen == peer("near")
    assert report.request_id == "01" * 16
    assert report.predicted_s == report.candidates[0].predicted_s
    assert report.qualified == (peer("near"), peer("middle"), peer("far"))


def test_the_prediction_is_path_and_queue_and_service() -> None:
    report = ranked(node("a", measured(0.05), load(running=2, waiting=1, slots=2, service_s=0.3)))
    (candidate,) = report.candidates
    assert candidate.rtt_s == 0.05
    assert candidate.service_s == pytest.approx(0.3)
    assert candidate.queue_s == pytest.approx(2 * 0.3 / 2)
    assert candidate.total_s == pytest.approx(0.05 + 0.3 + 0.3)
    assert candidate.predicted_s == pytest.approx(candidate.total_s)


def test_a_busy_near_peer_loses_to_a_free_far_one() -> None:
    near = node("near", measured(0.005), load(running=4, waiting=4, slots=4, service_s=0.2))
    far = node("far", measured(0.1), load(running=0, slots=4, service_s=0.2))
    assert names(ranked(near, far)) == ["far", "near"]


def test_a_slow_near_peer_loses_to_a_fast_far_one() -> None:
    near = node("near", measured(0.005), load(service_s=5.0))
    far = node("far", measured(0.1), load(service_s=0.5))
    assert names(ranked(near, far)) == ["far", "near"]


def test_own_measurements_win_over_what_is_advertised() -> None:
    services = ServiceEstimates(CONFIG.service)
    for _ in range(9):
        services.record(peer("liar"), "m", Feature.CHAT, 100.0, 3.0)
        services.record(peer("honest"), "m", Feature.CHAT, 100.0, 0.5)
    liar = node("liar", measured(0.01), load(service_s=0.001))
    honest = node("honest", measured(0.05), load(service_s=1.0))
    assert names(ranked(liar, honest)) == ["liar", "honest"]
    assert names(ranked(liar, honest, services=services)) == ["honest", "liar"]


def test_an_advertised_time_is_capped() -> None:
    absurd = node("a", measured(0.01), load(service_s=1e300))
    (candidate,) = ranked(absurd).candidates
    assert candidate.service_s <= CONFIG.service.service_s_max


def test_an_unknown_peer_counts_as_ordinary() -> None:
    known = [node(name, measured(0.1), load(service_s=0.4)) for name in ("a", "b", "c")]
    report = ranked(*known, node("new", measured(0.01)))
    assert names(report)[0] == "new"
    assert report.candidates[0].service_s == pytest.approx(0.4)


def test_one_slow_first_run_does_not_banish_a_peer_for_good() -> None:
    services = ServiceEstimates(CONFIG.service)
    services.record(peer("near"), "m", Feature.CHAT, 100.0, 3.0)
    for _ in range(9):
        services.record(peer("far"), "m", Feature.CHAT, 100.0, 0.1)
    near, far = node("near", measured(0.01)), node("far", measured(0.15))
    assert names(ranked(near, far, services=services, now=100.0)) == ["far", "near"]
    assert names(ranked(near, far, services=services, now=400.0)) == ["near", "far"]


def test_a_stream_that_is_generated_faster_than_read_counts_until_its_first_output() -> None:
    loads = {
        "near": ModelLoad("m", 0, 0, 1, 0.0, 0.0, tokens_per_s=60.0),
        "fast": ModelLoad("m", 0, 0, 1, 0.0, 0.0, tokens_per_s=1000.0),
        "slow": ModelLoad("m", 0, 0, 1, 0.0, 0.0, tokens_per_s=2.0),
    }
    rtts = {"near": 0.010, "fast": 0.090, "slow": 0.001}
    candidates = [node(name, measured(rtts[name]), loads[name]) for name in loads]
    whole = replace(CHAT, output_tokens=200)
    assert names(ranked(*candidates, requirement=whole)) == ["fast", "near", "slow"]
    config = replace(CONFIG, service=replace(CONFIG.service, prior_samples=0.001))
    assert names(ranked(*candidates, requirement=replace(whole, stream=True), config=config)) == ["near", "fast", "slow"]


def test_a_bound_on_tokens_says_nothing_of_the_requests_before() -> None:
    services = ServiceEstimates(CONFIG.service)
    for _ in range(9):
        services.record(peer("a"), "m", Feature.CHAT, 100.0, 2.0, 0.1, 101)
    busy = node("a", measured(0.05), load(running=1, slots=1))
    (candidate,) = ranked(busy, services=services, requirement=replace(CHAT, output_tokens=11)).candidates
    assert candidate.service_s == pytest.approx(0.29)
    assert candidate.queue_s == pytest.approx(2.0)
    (candidate,) = ranked(busy, services=services, requirement=replace(CHAT, output_tokens=100_000)).candidates
    assert candidate.service_s == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("told", "tokens", "service_s"),
    [
        (ModelLoad("m", 0, 0, 1, 0.0, 5.0, tokens_per_s=10.0), 20, 2.0),
        (ModelLoad("m", 0, 0, 1, 0.0, 5.0, tokens_per_s=10.0), 1000, 5.0),
        (ModelLoad("m", 0, 0, 1, 0.0, 0.0, tokens_per_s=10.0), 1000, 100.0),
        (ModelLoad("m", 0, 0, 1, 0.0, 0.0, tokens_per_s=10.0), 10**6, 120.0),
    ],
)
def test_a_bound_on_tokens_lowers_what_a_peer_says_of_itself(told: ModelLoad, tokens: int, service_s: float) -> None:
    (candidate,) = ranked(node("a", measured(0.01), told), requirement=replace(CHAT, output_tokens=tokens)).candidates
    assert candidate.service_s == pytest.approx(service_s)


def test_the_prediction_of_a_chat_is_until_its_first_output() -> None:
    services = ServiceEstimates(CONFIG.service)
    for _ in range(9):
        services.record(peer("a"), "m", Feature.CHAT, 100.0, 2.0, 0.1, 100)
    (candidate,) = ranked(node("a", measured(0.05)), services=services).candidates
    assert candidate.predicted_s == pytest.approx(0.15)
    assert candidate.total_s == pytest.approx(2.05)


def test_failing_peers_come_last_and_are_still_asked() -> None:
    services = ServiceEstimates(CONFIG.service)
    services.record_failure(peer("near"), "m", ErrorCode.ENGINE_FAILED, 99.5)
    report = ranked(node("near", measured(0.001)), node("far", measured(0.1)), services=services)
    assert names(report) == ["far", "near"]
    assert report.candidates[1].reason == "failed 0.5 s ago"
    assert names(ranked(node("near", measured(0.001)), services=services)) == ["near"]
    assert names(ranked(node("near", measured(0.001)), node("far", measured(0.1)), services=services, now=101.0))[0] == "near"


@pytest.mark.parametrize(
    ("fields", "requirement", "reason"),
    [
        ({"offers": ()}, CHAT, "does not serve m"),
        ({"offers": (replace(OFFER, model="n"),)}, CHAT, "does not serve m"),
        ({}, Requirement("m", Feature.TENSORS), "serves m without tensors"),
        ({"unavailable": "suspected since 1.2 s"}, CHAT, "suspected since 1.2 s"),
        ({"beat": Beat(True, ())}, CHAT, "draining"),
        ({"memory_bytes": 8 * 10**9}, replace(CHAT, memory_bytes=16 * 10**9), "has 8.0 GB of memory, 16.0 GB needed"),
        ({}, replace(CHAT, context_tokens=5000), "takes 4096 tokens, 5000 needed"),
        ({"beat": Beat(False, (load(running=1, waiting=32, slots=2),))}, CHAT, "queue full: 32 waiting for 2 slots"),
        ({}, replace(CHAT, excluded=frozenset({peer("a")})), "the request came from it"),
    ],
)
def test_who_is_not_able_is_kept_with_the_reason(fields: dict[str, object], requirement: Requirement, reason: str) -> None:
    assert reason_of(node("a", measured(0.01), **fields), requirement) == reason


def test_too_little_memory_has_a_code_of_its_own_and_enough_is_enough() -> None:
    requirement = replace(CHAT, memory_bytes=16 * 10**9)
    little, enough = (node(name, measured(0.01), memory_bytes=size) for name, size in (("a", 16 * 10**9 - 1), ("b", 16 * 10**9)))
    report = ranked(little, enough, requirement=requirement)
    assert report.qualified == (peer("b"),)
    assert report.candidates[1].refusal is ErrorCode.INSUFFICIENT_MEMORY


def test_unknown_memory_and_context_do_not_disqualify() -> None:
    offer = replace(OFFER, context_length=0)
    requirement = replace(CHAT, memory_bytes=16 * 10**9, context_tokens=5000)
    assert names(ranked(node("a", measured(0.01), offers=(offer,)), requirement=requirement)) == ["a"]


def test_a_model_offered_twice_is_served_where_one_offer_has_the_feature() -> None:
    offers = (replace(OFFER, features=frozenset({Feature.TENSORS})), OFFER)
    assert names(ranked(node("a", measured(0.01), offers=offers))) == ["a"]


def test_the_unqualified_follow_nearest_first() -> None:
    report = ranked(
        node("x", Path(RttSource.UNKNOWN), offers=()),
        node("far", measured(0.3), offers=()),
        node("near", measured(0.1), offers=()),
        node("able", measured(0.5)),
    )
    assert [bytes(candidate.peer_id).decode() for candidate in report.candidates] == ["able", "near", "far", "x"]


def test_nobody_able_means_nobody_chosen() -> None:
    report = ranked(node("a", measured(0.01), offers=()))
    assert (report.chosen, report.predicted_s, report.qualified) == (None, None, ())
    assert ranked().candidates == ()


def test_a_report_is_bounded() -> None:
    report = ranked(*(node(f"{index:03}", measured(0.001 * (index + 1))) for index in range(200)))
    assert len(report.candidates) == CONFIG.report_candidates_max
    assert report.candidates[0].rtt_s <= 0.01


def test_near_equals_share_the_work_and_those_with_work_in_flight_get_less() -> None:
    candidates = [node("a", measured(0.0101)), node("b", measured(0.0100)), node("c", measured(0.5))]
    firsts = Counter(names(ranked(*candidates, seed=seed))[0] for seed in range(400))
    assert set(firsts) == {"a", "b"}
    assert 150 < firsts["a"] < 250
    roomy = load(slots=8)
    busy = [node("a", measured(0.01), roomy, in_flight=3), node("b", measured(0.01), roomy)]
    firsts = Counter(names(ranked(*busy, seed=seed))[0] for seed in range(400))
    assert 260 < firsts["b"] < 380  # weights 1/4 and 1: four of five


def test_the_same_luck_gives_the_same_order() -> None:
    candidates = [node(f"{index}", measured(0.01)) for index in range(10)]
    assert ranked(*candidates, seed=3) == ranked(*candidates, seed=3)
    assert names(ranked(*candidates, seed=3)) != names(ranked(*candidates, seed=4))


def test_this_node_comes_first_among_equals() -> None:
    for seed in range(20):
        assert names(ranked(node("peer", measured(0.0001)), node("own", HERE), seed=seed))[0] == "own"


def test_a_difference_beyond_the_tolerance_is_no_matter_of_luck() -> None:
    config = replace(CONFIG, service=replace(CONFIG.service, service_s_default=0.002))
    for seed in range(20):
        report = ranked(node("a", measured(0.0100)), node("b", measured(0.0110)), seed=seed, config=config)
        assert names(report) == ["a", "b"]


@pytest.mark.parametrize(
    ("path", "expected_s"),
    [
        (HERE, 0.0),
        (measured(0.1), 0.1),
        (measured(0.1, jitter_s=0.01), 0.12),
        (measured(0.1, loss=0.1), 0.1 + 0.1 * (0.1 + 0.001 + 0.025)),
        (measured(0.1, jitter_s=0.01, loss=0.5), 0.12 + 0.5 * (0.1 + 0.04 + 0.025)),
        (Path(RttSource.COORDINATE, 0.1, error=0.2), 0.12),
        (Path(RttSource.UNKNOWN), 0.3),
        (Path(RttSource.MEASURED, 0.1, connected=False), 0.2),
    ],
)
def test_path_time_has_margins_for_what_is_uncertain(path: Path, expected_s: float) -> None:
    assert path_time(path, CONFIG) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("model_load", "in_flight", "expected_s"),
    [
        (None, 0, 0.0),
        (None, 2, 2.0),
        (load(running=0, slots=2), 0, 0.0),
        (load(running=1, slots=2), 0, 0.0),
        (load(running=2, slots=2), 0, 0.5),
        (load(running=2, waiting=2, slots=2), 0, 1.5),
        (load(running=0, slots=2), 3, 1.0),  # the beat is older than our requests
        (load(running=2, slots=2), 2, 0.5),  # ours are the ones the beat tells of
        (load(running=1, waiting=1, slots=1, queue_s=9.0), 0, 9.0),
        (load(running=0, waiting=0, slots=1, queue_s=9.0), 0, 0.0),  # a queue that is gone
        (load(running=0, slots=0), 0, 0.0),
    ],
)
def test_queue_time_counts_the_departures_that_have_to_pass(
    model_load: ModelLoad | None, in_flight: int, expected_s: float
) -> None:
    assert queue_time(model_load, in_flight, 1.0) == pytest.approx(expected_s)


def test_a_report_learns_what_came_of_it() -> None:
    report = ranked(node("a", measured(0.01)), node("b", measured(0.1)))
    report = report.with_outcome(peer("a"), "failed: overloaded").with_first_output(peer("b"), 0.25, 1)
    assert [candidate.outcome for candidate in report.candidates] == ["failed: overloaded", ""]
    assert (report.chosen, report.measured_s, report.hops) == (peer("b"), 0.25, 1)
    assert report.predicted_s == report.candidates[1].predicted_s


LOADS = st.builds(
    ModelLoad,
    st.just("m"),
    st.integers(0, 2**31),
    st.integers(0, 40),
    st.integers(0, 2**16),
    st.floats(0, 1e9),
    st.floats(0, 1e9),
    st.floats(0, 1e9),
)
PATHS = st.builds(
    Path, st.sampled_from(RttSource), st.floats(0, 10), st.floats(0, 10), st.floats(0, 1), st.floats(0, 1.5), st.booleans()
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(PATHS, st.none() | LOADS, st.integers(0, 100)), max_size=12),
    st.sampled_from([0, 1, 1000]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_every_ranking_is_whole_ordered_and_finite(
    nodes: list[tuple[Path, ModelLoad | None, int]], output_tokens: int, stream: bool, seed: int
) -> None:
    candidates = [node(f"{i:02}", path, told, in_flight=flying) for i, (path, told, flying) in enumerate(nodes)]
    report = ranked(*candidates, requirement=replace(CHAT, output_tokens=output_tokens, stream=stream), seed=seed)
    assert sorted(c.peer_id for c in report.candidates) == [c.peer_id for c in candidates]
    qualified = [candidate for candidate in report.candidates if candidate.qualified]
    assert list(report.candidates[: len(qualified)]) == qualified
    totals = [candidate.total_s for candidate in qualified]
    assert all(math.isfinite(total) and total >= 0.0 for total in totals)
    assert all(candidate.predicted_s <= candidate.total_s * (1 + 1e-9) + 1e-12 for candidate in qualified)
    if totals:
        limit_s = min(totals) + max(0.05 * min(totals), 0.0002)
        equal = [total for total in totals if total <= limit_s]
        assert all(total <= limit_s for total in totals[: len(equal)])
        assert totals[len(equal) :] == sorted(totals[len(equal) :])


def test_service_defaults_order_nobody() -> None:
    assert ServiceConfig().service_s_default > 0.0
    for default_s in (0.001, 10.0):
        config = replace(CONFIG, service=replace(CONFIG.service, service_s_default=default_s))
        assert names(ranked(node("a", measured(1.0)), node("b", measured(0.1)), config=config)) == ["b", "a"]


SLOW = RoutingConfig(slow_start=True)


def answers_of(*named: str, count: int = 20) -> ServiceEstimates:
    """What is known once the named peers have answered so often."""
    services = ServiceEstimates(CONFIG.service)
    for name in named:
        for _ in range(count):
            services.record(peer(name), "m", Feature.CHAT, 100.0, 0.5)
    return services


def first_choices(*candidates: CandidateInput, services: ServiceEstimates, config: RoutingConfig = SLOW) -> Counter[str]:
    """Who comes first in a thousand rankings with one stream of luck."""
    luck = random.Random(7)
    reports = (rank(bytes(16), CHAT, candidates, services, config, luck, 100.0) for _ in range(1000))
    return Counter(names(report)[0] for report in reports)


def test_new_peers_get_one_request_in_a_hundred_all_together() -> None:
    services = answers_of("old")
    new = [node(f"new{number}", measured(0.001), load(service_s=0.01)) for number in range(50)]
    chosen = first_choices(node("old", measured(0.1)), *new, services=services)
    assert 980 <= chosen["old"] < 1000
    assert first_choices(node("old", measured(0.1)), *new, services=services, config=CONFIG)["old"] == 0


def test_a_new_peer_is_asked_when_nobody_else_is_able() -> None:
    assert first_choices(node("new", measured(0.1)), services=answers_of("old"))["new"] == 1000
    away = node("old", measured(0.01), unavailable="gone: said goodbye")
    assert first_choices(away, node("new", measured(0.1)), services=answers_of("old"))["new"] == 1000


def test_a_held_back_peer_says_why_and_stays_a_candidate() -> None:
    services = answers_of("old")
    services.record(peer("new"), "m", Feature.CHAT, 100.0, 0.5)
    report = ranked(node("new", measured(0.01)), node("old", measured(0.1)), services=services, config=SLOW)
    assert names(report) == ["old", "new"]
    assert report.candidates[1].reason == "new here: 1 of 20 answers"


@pytest.mark.parametrize(("count", "first"), [(19, "old"), (20, "new")])
def test_twenty_answers_make_a_peer_like_any_other(count: int, first: str) -> None:
    services = answers_of("old")
    for _ in range(count):
        services.record(peer("new"), "m", Feature.CHAT, 100.0, 0.5)
    assert first_choices(node("old", measured(0.1)), node("new", measured(0.01)), services=services).most_common(1)[0][0] == first


def test_this_node_itself_is_never_new() -> None:
    chosen = first_choices(node("self", HERE, load(service_s=0.1)), node("new", measured(0.001)), services=answers_of())
    assert chosen["self"] >= 980


def test_a_measured_speed_counts_for_no_more_than_it_claims() -> None:
    services = ServiceEstimates(CONFIG.service)
    for _ in range(200):
        services.record(peer("fast for now"), "m", Feature.CHAT, 100.0, 0.001)
    claims = node("fast for now", measured(0.01), load(service_s=2.0))
    (bare,) = ranked(claims, services=services).candidates
    (capped,) = ranked(claims, services=services, config=SLOW).candidates
    assert bare.service_s == pytest.approx(0.001)
    assert capped.service_s == pytest.approx(2.0)


def test_answers_are_counted_for_a_bounded_number_of_peers() -> None:
    services = ServiceEstimates(ServiceConfig(entries_max=4))
    for number in range(10):
        services.record(peer(str(number)), "m", Feature.CHAT, 100.0, 0.5)
    assert [services.successes(peer(str(number))) for number in range(10)] == [0] * 6 + [1] * 4
    services.forget(peer("9"))
    assert services.successes(peer("9")) == 0
