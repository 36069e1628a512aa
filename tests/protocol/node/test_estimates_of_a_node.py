"""How far others are, as one node tells: by its own probes, else by places, else not at all."""

import pytest
from knowing import Knowing

from protocol.estimate import ITSELF, UNKNOWN, Source
from protocol.identity import Identity


def test_a_measured_path_wins_over_places() -> None:
    knowing = Knowing()
    peer_id = knowing.card(0.5)
    views, own = knowing.node.views, knowing.node.peer_id
    placed = views.estimate(peer_id, 1.0)
    assert placed.source is Source.COORDINATE
    assert placed.rtt_s == pytest.approx(0.5, rel=1e-3)
    knowing.measure(peer_id, 0.010)
    measured = views.estimate(peer_id, 1.0)
    assert measured.source is Source.MEASURED
    assert measured.rtt_s == pytest.approx(0.010)
    assert views.between(own, peer_id, 1.0) == views.between(peer_id, own, 1.0) == measured


def test_others_are_as_far_apart_as_their_places_tell() -> None:
    knowing = Knowing()
    one, other = knowing.card(0.010), knowing.card(0.045)
    knowing.measure(one, 0.001)  # of the path between the two nothing follows
    between = knowing.node.views.between(one, other, 1.0)
    assert between == knowing.node.views.between(other, one, 1.0)
    assert between.rtt_s == pytest.approx(0.035, rel=1e-3)
    assert between.low_s < 0.030
    assert between.high_s > 0.040


def test_whose_place_is_not_known_is_at_no_distance() -> None:
    knowing = Knowing()
    silent, told, stranger = knowing.card(None), knowing.card(0.010), Identity.from_seed(bytes([9]) * 32).peer_id
    views = knowing.node.views
    for peer_id in (silent, stranger):
        assert views.estimate(peer_id, 1.0) == UNKNOWN
        assert views.between(told, peer_id, 1.0) == views.between(peer_id, told, 1.0) == UNKNOWN


def test_a_node_is_where_it_is() -> None:
    knowing = Knowing()
    views, own, peer_id = knowing.node.views, knowing.node.peer_id, knowing.card(None)
    assert views.estimate(own, 1.0) == views.between(own, own, 1.0) == views.between(peer_id, peer_id, 1.0) == ITSELF
