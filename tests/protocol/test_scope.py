"""Scopes: what they cover, how wide they are, and that both ends of a link decide alike."""

import math

import pytest
from gossip_strategies import places, scopes
from hypothesis import given
from hypothesis import strategies as st

from protocol.coordinates import Coordinate
from protocol.gossip.messages import ScopeTold, decode_message, encode_message
from protocol.scope import RADIUS_S_MAX, Scope, in_common, place_of, scope_of

MIDDLE = Coordinate((0.0,) * 8, 0.001, 0.1)
coordinates = st.builds(Coordinate, places, st.floats(0.0, 60.0), st.floats(0.0, 1.5))


def at(distance_s, height_s=0.0):
    return (distance_s,) + (0.0,) * 7 + (height_s,)


def test_a_scope_covers_what_is_within_its_radius_height_included():
    scope = Scope(MIDDLE.vector, 0.05)
    assert scope.covers(at(0.05))
    assert scope.covers(at(0.04, 0.01))
    assert not scope.covers(at(0.051))
    assert not scope.covers(at(0.045, 0.01))


@given(scopes, coordinates)
def test_who_is_told_a_scope_decides_as_who_has_it(scope, coordinate):
    place = place_of(coordinate)
    told = decode_message(encode_message(ScopeTold(scope))).scope
    assert told.covers(place) == scope.covers(place)


@given(coordinates, st.lists(coordinates, max_size=40), st.integers(1, 20))
def test_the_scope_of_so_many_places_covers_so_many_or_is_everything(middle, around, count):
    around = [place_of(coordinate) for coordinate in around]
    scope = scope_of(middle.vector, around, count)
    if scope is not None:
        covered = [place for place in around if scope.covers(place)]
        assert len(covered) >= count
        assert sum(scope.reach_s(place) < scope.radius_s for place in covered) < count
    else:
        distances = sorted(math.dist(middle.vector, place[:8]) + place[8] for place in around)
        assert len(around) <= count or distances[count - 1] > RADIUS_S_MAX


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (None, None, True),
        (Scope(MIDDLE.vector, 0.2), None, True),
        (None, Scope(MIDDLE.vector, 0.05), False),
        (Scope(MIDDLE.vector, 0.2), Scope(at(0.2)[:8], 0.15), True),
        (Scope(MIDDLE.vector, 0.2), Scope(at(0.3)[:8], 0.15), False),
    ],
)
def test_what_is_common_lies_in_both_scopes(one, other, common):
    assert in_common(one, other, [at(0.1)]) is common
    assert in_common(other, one, [at(0.1)]) is common


def test_what_has_no_place_is_in_no_scope_but_that_of_everything():
    assert in_common(None, None, [])
    assert not in_common(Scope(MIDDLE.vector, 60.0), None, [])
