import json
import math
import random
from dataclasses import replace
from pathlib import Path

import known_networks as networks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.coordinates import (
    DIMENSIONS,
    Coordinate,
    CoordinateConfig,
    LatencyFilter,
    SampleResult,
    Vivaldi,
    attract,
    estimate_rtt,
    origin,
    plausible_coordinate,
    plausible_rtt,
    update,
)

CONFIG = CoordinateConfig()
VECTORS = Path(__file__).parents[2] / "docs" / "spec" / "vectors" / "coordinates.json"


def place(*components: float, height_s: float = 10e-6, error: float = 0.5) -> Coordinate:
    return Coordinate(components + (0.0,) * (DIMENSIONS - len(components)), height_s, error)


def test_distance_is_euclidean_plus_both_heights() -> None:
    a, b = place(0.003, height_s=0.001), place(0.0, 0.004, height_s=0.002)
    assert estimate_rtt(a, b) == pytest.approx(0.008)
    assert estimate_rtt(a, b) == estimate_rtt(b, a)


def test_a_sample_longer_than_the_estimate_pushes_away_and_a_shorter_one_pulls() -> None:
    own, other = place(0.01), place(0.02)
    luck = random.Random(1)
    assert estimate_rtt(update(own, other, 0.03, CONFIG, luck), other) > estimate_rtt(own, other)
    assert estimate_rtt(update(own, other, 0.001, CONFIG, luck), other) < estimate_rtt(own, other)


def test_the_uncertain_side_moves_more() -> None:
    luck = random.Random(1)
    moved = [
        math.dist(update(place(0.01, error=error), place(0.05, error=0.3), 0.09, CONFIG, luck).vector, place(0.01).vector)
        for error in (0.1, 0.3, 1.0)
    ]
    assert moved[0] < moved[1] < moved[2]


def test_nodes_at_the_same_place_part_in_a_random_direction() -> None:
    moved = [update(origin(CONFIG), origin(CONFIG), 0.1, CONFIG, random.Random(seed)) for seed in (1, 2)]
    assert moved[0].vector != moved[1].vector
    assert math.hypot(*moved[0].vector) == pytest.approx(0.25 * 0.5 * (0.1 - 20e-6))


def test_error_falls_with_good_samples_and_rises_with_bad_ones() -> None:
    own, other, luck = place(0.0), place(0.01), random.Random(1)
    assert update(own, other, estimate_rtt(own, other), CONFIG, luck).error < own.error
    assert update(own, other, 0.001, CONFIG, luck).error > own.error


def test_claiming_certainty_gains_no_more_than_the_trusted_minimum() -> None:
    own = place(0.0, error=0.5)
    honest = update(own, place(0.05, error=CONFIG.error_trusted_min), 0.1, CONFIG, random.Random(1))
    assert update(own, place(0.05, error=0.0), 0.1, CONFIG, random.Random(1)) == honest


def test_no_sample_moves_a_node_further_than_the_largest_force() -> None:
    own = place(0.01, error=1.5)
    for other in (place(9.0, error=0.0), place(0.011, height_s=10.0, error=0.0), place(0.01, height_s=10.0, error=0.0)):
        for rtt_s in (1e-6, 10.0):
            moved = update(own, other, rtt_s, CONFIG, random.Random(1))
            distance_s = math.dist(moved.vector, own.vector) + abs(moved.height_s - own.height_s)
            assert distance_s <= CONFIG.force_s_max * (1 + 1e-9)


def test_gravity_pulls_toward_the_origin_and_never_past_it() -> None:
    assert 0.0 < attract(place(0.3), CONFIG).vector[0] < 0.3
    assert attract(place(0.3), replace(CONFIG, gravity_s=0.001)).vector[0] == 0.0
    assert attract(place(0.0), CONFIG) == place(0.0)


def test_filter_takes_the_median_of_the_last_samples() -> None:
    latency = LatencyFilter(3)
    assert [latency.add(rtt_s) for rtt_s in (0.010, 0.500, 0.012, 0.011, 0.013)] == [0.010, 0.255, 0.012, 0.012, 0.012]


@pytest.mark.parametrize("rtt_s", [math.nan, math.inf, -math.inf, -0.001, 0.0, 10.000001, 1e300])
def test_what_is_no_round_trip_never_enters(rtt_s: float) -> None:
    node = Vivaldi(CONFIG, random.Random(1))
    assert node.handle_sample(networks.peer(1), rtt_s, place(0.01)) is SampleResult.IMPLAUSIBLE_RTT
    assert node.coordinate == origin(CONFIG)
    assert node.peers_tracked == 0


@pytest.mark.parametrize(
    "other",
    [
        place(math.nan),
        place(math.inf),
        place(10.1),
        place(0.0, height_s=-1e-9),
        place(0.0, height_s=math.nan),
        place(0.0, height_s=math.inf),
        place(0.0, error=-0.1),
        place(0.0, error=1.6),
        place(0.0, error=math.nan),
        Coordinate((0.0,) * (DIMENSIONS - 1), 0.0, 0.5),
        Coordinate((), 0.0, 0.5),
    ],
)
def test_an_implausible_coordinate_moves_nothing(other: Coordinate) -> None:
    node = Vivaldi(CONFIG, random.Random(1))
    assert node.handle_sample(networks.peer(1), 0.01, other) is SampleResult.IMPLAUSIBLE_COORDINATE
    assert node.coordinate == origin(CONFIG)


def test_tracked_peers_are_bounded_and_the_longest_unheard_makes_room() -> None:
    node = Vivaldi(replace(CONFIG, peers_max=2), random.Random(1))
    for index in (1, 2, 1, 3):
        node.handle_sample(networks.peer(index), 0.01, place(0.01))
        assert node.peers_tracked <= 2
    node.forget(networks.peer(1))
    assert node.peers_tracked == 1
    node.forget(networks.peer(2))  # made room for 3
    assert node.peers_tracked == 1


def test_one_late_sample_of_a_steady_peer_changes_nothing() -> None:
    steady, disturbed = (Vivaldi(CONFIG, random.Random(1)) for _ in range(2))
    other = place(0.02, error=0.2)
    for index in range(12):
        steady.handle_sample(networks.peer(1), 0.05, other)
        disturbed.handle_sample(networks.peer(1), 5.0 if index == 5 else 0.05, other)
    assert steady.coordinate == disturbed.coordinate


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("truth", "average_max", "worst_max"),
    [
        pytest.param(networks.line(10, 0.010), 0.010, 0.10, id="line"),
        pytest.param(networks.grid(25, 0.010), 0.012, 0.25, id="grid"),
        pytest.param(networks.split(24, 0.001, 0.010), 0.06, 0.40, id="two sites"),
        pytest.param(networks.split(10, 0.0001, 0.0003), 0.03, 0.20, id="one room"),
        pytest.param(networks.circle(25, 0.100), 0.02, 0.60, id="circle"),
        pytest.param(networks.scattered(30, 0.1, 0.03, random.Random(5)), 0.05, 0.70, id="random with heights"),
    ],
)
def test_a_known_network_is_found(truth: networks.Matrix, average_max: float, worst_max: float, seed: int) -> None:
    """Bounds in the manner of Serf's performance_test.go: about 1.6 times the worst of four seeds."""
    luck = random.Random(seed)
    found = networks.errors(networks.settle(truth, 1000, CONFIG, luck), truth)
    assert sum(found) / len(found) < average_max
    assert found[-1] < worst_max


@pytest.mark.parametrize("seed", [1, 2])
def test_a_long_access_link_becomes_height_where_the_space_leaves_no_other_room(seed: int) -> None:
    config = replace(CONFIG, dimensions=2)
    nodes = networks.settle(networks.circle(25, 0.100), 1000, config, random.Random(seed))
    assert nodes[0].coordinate.height_s == pytest.approx(0.100, rel=0.05)
    assert all(node.coordinate.height_s < 0.010 for node in nodes[1:])


def test_a_mesh_follows_a_network_that_changes() -> None:
    luck = random.Random(1)
    nodes = networks.settle(networks.grid(25, 0.010), 1000, CONFIG, luck)
    slower = networks.grid(25, 0.020)
    networks.measure(nodes, slower, 1000, luck)
    found = networks.errors(nodes, slower)
    assert sum(found) / len(found) < 0.02


def test_a_mesh_does_not_drift() -> None:
    """Four nodes start seconds off the origin, and gravity brings them back; as in TestPerformance_Drift of Serf."""
    truth = networks.from_points([(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 0.0)])
    luck = random.Random(1)
    nodes = [Vivaldi(CONFIG, luck) for _ in truth]
    for node in nodes:
        node._coordinate = place(3.0 + luck.random(), 3.0 + luck.random(), error=0.5)
    networks.measure(nodes, truth, 200, luck)
    before_s = middle_s(nodes)
    networks.measure(nodes, truth, 2000, luck)
    assert middle_s(nodes) < 0.8 * before_s


def middle_s(nodes: list[Vivaldi]) -> float:
    return math.hypot(*(sum(column) / len(nodes) for column in zip(*(node.coordinate.vector for node in nodes), strict=True)))


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_liars_who_claim_to_be_far_and_certain_do_not_break_honest_estimates(share: float) -> None:
    """The inflation attack: without limits the median error of the honest exceeds 1 at a tenth of liars."""
    luck = random.Random(7)
    truth = networks.scattered(40, 0.1, 0.01, luck)
    liars = set(range(int(share * 40)))
    claims = {liar: place(*(luck.choice([-2.0, 2.0]) for _ in range(DIMENSIONS)), error=0.0) for liar in liars}

    def honest_errors(config: CoordinateConfig) -> list[float]:
        nodes = [Vivaldi(config, luck) for _ in truth]
        for _ in range(500):
            for i in range(len(liars), len(nodes)):
                j = luck.randrange(len(nodes))
                if i != j:
                    nodes[i].handle_sample(networks.peer(j), truth[i][j], claims.get(j, nodes[j].coordinate))
        honest = [row[len(liars) :] for row in truth[len(liars) :]]
        return networks.errors(nodes[len(liars) :], honest)

    limited = honest_errors(CONFIG)
    unlimited = honest_errors(replace(CONFIG, residuals_min=10**9, force_s_max=100.0))
    assert limited[len(limited) // 2] < 0.15
    assert unlimited[len(unlimited) // 2] > 1.0


def test_a_sample_out_of_line_is_limited() -> None:
    node = Vivaldi(CONFIG, random.Random(1))
    for _ in range(100):
        node.handle_sample(networks.peer(1), 0.05, place(0.02, error=0.2))
    before = node.coordinate
    assert node.handle_sample(networks.peer(2), 0.05, place(9.0, error=0.0)) is SampleResult.LIMITED
    assert math.dist(node.coordinate.vector, before.vector) <= 0.25 * CONFIG.residual_s_floor * 1.01


ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)
ANY_COORDINATE = st.builds(
    Coordinate, st.lists(ANY_FLOAT, min_size=DIMENSIONS, max_size=DIMENSIONS).map(tuple), ANY_FLOAT, ANY_FLOAT
)
EXTREME_COORDINATE = st.builds(
    Coordinate,
    st.lists(st.sampled_from([-10.0, -1e-300, 0.0, 5e-324, 1e-7, 10.0]), min_size=DIMENSIONS, max_size=DIMENSIONS).map(tuple),
    st.sampled_from([0.0, 5e-324, 1e-5, 10.0]),
    st.sampled_from([0.0, 5e-324, 0.05, 1.5]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(), ANY_COORDINATE | EXTREME_COORDINATE), max_size=60), st.integers(0, 2**32))
def test_no_sequence_of_samples_makes_a_coordinate_implausible(samples: list[tuple[float, Coordinate]], seed: int) -> None:
    node = Vivaldi(CONFIG, random.Random(seed))
    for index, (rtt_s, other) in enumerate(samples):
        result = node.handle_sample(networks.peer(index % 3), rtt_s, other)
        assert plausible_coordinate(node.coordinate, CONFIG)
        assert (result is SampleResult.IMPLAUSIBLE_RTT) == (not plausible_rtt(rtt_s, CONFIG))


@settings(max_examples=100, deadline=None)
@given(EXTREME_COORDINATE, EXTREME_COORDINATE, st.floats(5e-324, 10.0), st.integers(0, 2**32))
def test_an_update_stays_plausible_and_bounded(own: Coordinate, other: Coordinate, rtt_s: float, seed: int) -> None:
    moved = update(own, other, rtt_s, CONFIG, random.Random(seed))
    assert plausible_coordinate(moved, CONFIG)
    assert moved == origin(CONFIG) or math.dist(moved.vector, own.vector) <= CONFIG.force_s_max * (1 + 1e-6)


@pytest.mark.parametrize("case", json.loads(VECTORS.read_text())["cases"], ids=lambda case: case["name"])
def test_spec_vectors_hold(case: dict[str, object]) -> None:
    own = parse(case["start"])
    for step in case["steps"]:
        own = update(own, parse(step["other"]), step["rtt_s"], CONFIG, random.Random(1))
        assert own.vector == pytest.approx(step["result"]["vector"], abs=1e-12)
        assert own.height_s == pytest.approx(step["result"]["height_s"], abs=1e-12)
        assert own.error == pytest.approx(step["result"]["error"], abs=1e-12)
        assert estimate_rtt(own, parse(step["other"])) == pytest.approx(step["estimate_after_s"], abs=1e-12)


def parse(fields: dict[str, object]) -> Coordinate:
    return Coordinate(tuple(fields["vector"]), fields["height_s"], fields["error"])


def test_typical_round_trip_is_the_median_over_peers_however_often_each_is_measured() -> None:
    vivaldi = Vivaldi(CONFIG, random.Random(1))
    assert vivaldi.typical_rtt_s == 0.0
    for number in range(300):
        far = number % 10 == 0
        vivaldi.handle_sample(networks.peer(number % 50 if far else 1000), 0.2 if far else 0.001, place(0.05))
    assert vivaldi.typical_rtt_s == 0.2
    for number in range(0, 300, 10):
        vivaldi.handle_sample(networks.peer(number % 50), 0.02, place(0.05))
    assert vivaldi.typical_rtt_s == 0.02
