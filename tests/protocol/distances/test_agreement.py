"""Edges that both ends have signed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.distances import Agreements, DistanceConfig
from tests.protocol.distances.planted import peers_of

CONFIG = DistanceConfig()
PEERS = peers_of(40)
A, B, C = PEERS[:3]


def told(**by: list) -> Agreements:
    agreements = Agreements(CONFIG)
    for name, edges in by.items():
        agreements.handle_told({"a": A, "b": B, "c": C}[name], 1, edges, 0.0)
    return agreements


def test_an_edge_counts_only_where_both_ends_tell_it():
    assert told(a=[(B, 0.02)]).agreed(A, 0.0) == []
    assert told(a=[(B, 0.02)], b=[(C, 0.02)]).agreed(A, 0.0) == []
    assert told(a=[(B, 0.02)], b=[(A, 0.02)]).agreed(A, 0.0) == [(B, 0.02)]


@given(st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_nobody_shortens_a_path(true_s, said_s):
    agreements = told(a=[(B, said_s)], b=[(A, true_s)])
    for peer, other in ((A, B), (B, A)):
        for end, rtt_s in agreements.agreed(peer, 0.0):
            assert end == other
            assert rtt_s >= max(true_s, said_s)
    assert len(agreements.agreed(A, 0.0)) == len(agreements.agreed(B, 0.0))


def test_small_differences_agree_and_large_ones_are_disputed():
    assert told(a=[(B, 0.001)], b=[(A, 0.004)]).agreed(A, 0.0) == [(B, 0.004)]
    assert told(a=[(B, 0.1)], b=[(A, 0.14)]).agreed(A, 0.0) == [(B, 0.14)]
    assert told(a=[(B, 0.1)], b=[(A, 0.2)]).agreed(A, 0.0) == []


@pytest.mark.parametrize(("lies", "believed"), [(7, True), (12, True), (13, False)])
def test_who_disagrees_with_most_is_not_believed(lies, believed):
    agreements = Agreements(CONFIG)
    ends = PEERS[1:25]
    agreements.handle_told(A, 1, [(end, 0.1) for end in ends], 0.0)
    for number, end in enumerate(ends):
        agreements.handle_told(end, 1, [(A, 0.9 if number < lies else 0.1)], 0.0)
    assert bool(agreements.agreed(A, 0.0)) == believed
    assert len(agreements.agreed(A, 0.0)) == (24 - lies if believed else 0)
    assert agreements.agreed(ends[-1], 0.0) == [(A, 0.1)]  # the others lose nothing


def test_an_older_record_changes_nothing_and_old_ones_run_out():
    agreements = told(a=[(B, 0.02)], b=[(A, 0.02)])
    assert not agreements.handle_told(A, 1, [], 1.0)
    assert agreements.handle_told(A, 2, [(B, 0.021)], 1.0)
    assert agreements.agreed(A, 1.0) == [(B, 0.021)]
    assert agreements.agreed(A, CONFIG.told_s + 0.5) == []  # B has told nothing since
    agreements.forget(A)
    assert agreements.agreed(B, 1.0) == []


@given(st.lists(st.tuples(st.sampled_from(PEERS), st.lists(st.tuples(st.sampled_from(PEERS), st.floats())))))
def test_whatever_is_told_only_round_trips_come_out(records):
    agreements = Agreements(DistanceConfig(peers_max=4, edges_max=3))
    for number, (peer, edges) in enumerate(records):
        agreements.handle_told(peer, number, edges, float(number))
        assert len(agreements) <= 4
    for peer in PEERS:
        edges = agreements.agreed(peer, float(len(records)))
        assert len(edges) <= 3
        assert all(0.0 < rtt_s <= CONFIG.rtt_s_max and math.isfinite(rtt_s) and other != peer for other, rtt_s in edges)
