"""Whom a node takes for its nearest peers: by measurement first, and by places where nothing was measured."""

import random

import pytest
from knowing import HERE, Knowing

from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.node import NodeConfig
from protocol.node.views import ESTIMATE_SLACK, Nearest


def test_who_was_measured_makes_room_for_who_was_measured_to_be_nearer_and_for_nobody_else() -> None:
    knowing = Knowing()
    measured = [knowing.card(0.5) for _ in range(3)]
    for number, peer_id in enumerate(measured):
        knowing.measure(peer_id, 0.010 + number / 1000)
    farther, nearer, far = knowing.card(0.012 * 0.99 * ESTIMATE_SLACK), knowing.card(0.001), knowing.card(0.0121 * ESTIMATE_SLACK)
    assert knowing.nearest(3) == Nearest(measured, [nearer, farther], pytest.approx(0.012))
    assert far not in knowing.nearest(3).seeming
    knowing.measure(nearer, 0.0115)
    assert knowing.nearest(3).seated == [*measured[:2], nearer]


def test_where_too_few_were_measured_places_decide_on_the_rest() -> None:
    knowing = Knowing()
    measured = knowing.card(0.001)
    knowing.measure(measured, 0.040)
    far, near = knowing.card(0.020), knowing.card(0.010)
    assert knowing.nearest(2) == Nearest([measured, near], [], pytest.approx(0.040))
    assert knowing.nearest(3).seated == [measured, near, far]


def test_who_was_measured_and_let_go_does_not_seem_near_again() -> None:
    knowing = Knowing()
    seeming, honest = knowing.card(0.001), knowing.card(0.020)
    assert knowing.nearest(1).seated == [seeming]
    for peer_id, rtt_s in ((seeming, 0.040), (honest, 0.021)):
        knowing.measure(peer_id, rtt_s)
    assert knowing.nearest(1) == Nearest([honest], [], pytest.approx(0.021))
    knowing.node.probe.handle_disconnected(seeming, 0.5)
    assert knowing.nearest(1) == Nearest([honest], [], pytest.approx(0.021))


def test_who_was_measured_keeps_its_place_without_a_connection_as_long_as_it_lives() -> None:
    knowing = Knowing()
    peer_id, other = knowing.card(0.5), knowing.card(0.5)
    knowing.measure(peer_id, 0.010)
    knowing.measure(other, 0.020)
    knowing.node.probe.handle_disconnected(peer_id, 0.5)
    assert knowing.nearest(1).seated == [peer_id]
    knowing.node.membership.handle_doubted(peer_id, 0.6)
    assert knowing.nearest(1).seated == [other]


def test_a_crowd_that_claims_to_be_near_displaces_nobody_who_was_measured() -> None:
    knowing = Knowing()
    measured = [knowing.card(0.5) for _ in range(3)]
    for number, peer_id in enumerate(measured):
        knowing.measure(peer_id, 0.010 + number / 1000)
        knowing.node.probe.handle_disconnected(measured[0], 0.5)
    crowd = [knowing.card(0.0001) for _ in range(100)]
    nearest = knowing.nearest(3)
    assert nearest.seated == measured
    assert len(nearest.seeming) == 3  # and it is tried a few at a time
    assert set(nearest.seeming) <= set(crowd)


def test_who_has_turned_the_node_away_is_not_among_the_nearest_for_a_while() -> None:
    knowing = Knowing()
    full, next_nearest, farther = knowing.card(0.001), knowing.card(0.002), knowing.card(0.003)
    assert knowing.nearest(2).seated == [full, next_nearest]
    knowing.node.handle_connected(full, 0.5, full)
    knowing.node.handle_disconnected(full, ErrorCode.SURPLUS, 0.6)
    assert knowing.nearest(2).seated == [next_nearest, farther]
    later = 0.6 + NodeConfig().membership.shunned_s
    assert knowing.node.views.nearest(HERE, 2, later).seated == [full, next_nearest]
    knowing.node.handle_connected(full, 1.0)  # it has dialled
    assert knowing.nearest(2).seated == [full, next_nearest]


def test_the_farthest_of_the_nearest_says_who_is_as_near() -> None:
    knowing = Knowing()
    for number in range(3):
        knowing.measure(knowing.card(0.5), 0.010 + number / 100)
    assert knowing.nearest(2).within_s == pytest.approx(0.020)
    assert knowing.nearest(4).within_s == float("inf")


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_are_those_of_the_shortest_measurements_and_then_of_the_shortest_estimates(seed: int) -> None:
    luck, knowing = random.Random(seed), Knowing()
    measured: dict[PeerId, float] = {}
    estimated: dict[PeerId, float] = {}
    for _ in range(60):
        seconds = luck.uniform(0.1, 0.3)
        peer_id = knowing.card(seconds)
        if luck.random() < 0.4:
            measured[peer_id] = luck.uniform(0.001, 0.25)
            knowing.node.handle_connected(peer_id, 0.0)
            knowing.measure(peer_id, measured[peer_id])
        else:
            estimated[peer_id] = seconds
    near, seeming = sorted(measured, key=measured.__getitem__), sorted(estimated, key=estimated.__getitem__)
    for count in (1, 10, len(near)):
        limit_s = ESTIMATE_SLACK * measured[near[count - 1]]
        tried = [peer_id for peer_id in seeming if estimated[peer_id] < limit_s][:count]
        assert knowing.nearest(count) == Nearest(near[:count], tried, pytest.approx(measured[near[count - 1]]))
    assert knowing.nearest(60).seated == near + seeming
