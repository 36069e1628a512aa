"""Of whom a node holds the edges: everybody's in a small mesh, those of the nearest and of a sample in a large one."""

import random

import pytest

from protocol.coordinates import estimate_rtt_to
from protocol.node import Node
from protocol.node.ring import EdgeRing, RingConfig
from protocol.records import RecordKind
from protocol.table import record_key
from sim.formed import Formation, formed


@pytest.fixture(scope="module")
def node() -> Node:
    return formed(Formation(24, seed=3)).processes[0].node


def ring_of(node: Node, **config: int) -> EdgeRing:
    return EdgeRing(RingConfig(**config), node.table, random.Random(1))


def test_in_a_small_mesh_everybody_belongs_to_it(node: Node) -> None:
    ring = ring_of(node, peers_max=23)
    assert ring.look(node.vivaldi.coordinate) == frozenset()
    assert set(ring.members) == set(node.views.known())


def test_in_a_large_one_the_nearest_and_a_sample_that_stays(node: Node) -> None:
    ring = ring_of(node, peers_max=10, sample_max=3)
    beyond = ring.look(node.vivaldi.coordinate)
    members = ring.members
    others = [peer for peer in node.views.known() if peer not in members]
    assert (len(members), len(others)) == (10, 13)
    assert beyond == {record_key(peer, RecordKind.EDGES) for peer in others}
    here = node.vivaldi.coordinate
    far_s = {peer: estimate_rtt_to(here, place) for peer, place in node.table.places()}
    assert max(far_s[peer] for peer in members[:7]) <= min(far_s[peer] for peer in others)
    for _ in range(3):
        assert ring.look(node.vivaldi.coordinate) == beyond
    samples = {EdgeRing(RingConfig(10, 3), node.table, random.Random(seed)) for seed in range(8)}
    assert len({ring.look(node.vivaldi.coordinate) for ring in samples}) > 1  # it hangs on the node's own luck


def test_what_is_missing_is_asked_of_a_few_near_peers_so_much_of_each(node: Node) -> None:
    ring = ring_of(node, missing_max=5)
    ring.look(node.vivaldi.coordinate)
    missing = ring.missing(0.0)
    assert sorted(missing) == node.views.known()
    asked = ring.asked(missing, ring.members)
    assert [len(keys) for _, keys in asked] == [5, 5]
    assert {peer for peer, _ in asked} <= set(ring.members[:8])
    assert len({key for _, keys in asked for key in keys}) == 10
    assert len({peer for peer, _ in asked}) == 2
    assert ring.asked([], ring.members) == []
    assert ring.asked(missing, []) == []


def test_the_sample_is_drawn_from_who_was_measured_and_each_of_it_is_asked_for_its_own(node: Node) -> None:
    ring, known = ring_of(node, peers_max=10, sample_max=3), node.views.known()
    ring.look(node.vivaldi.coordinate)
    others = [peer for peer in known if peer not in ring.members[:7]]
    ring = ring_of(node, peers_max=10, sample_max=3)
    ring.look(node.vivaldi.coordinate, others[:2])
    sample = set(ring.members[7:])
    assert set(others[:2]) < sample
    asked = ring.asked(ring.missing(0.0), ring.members)
    assert {(peer, (record_key(peer, RecordKind.EDGES),)) for peer in sample} <= set(asked)
    assert sum(len(keys) for _, keys in asked) == 10
