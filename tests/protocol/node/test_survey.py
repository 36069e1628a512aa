"""What a node knows of distances: kept, told, carried over, and used."""

import random

import pytest
from world import mesh

from protocol.distances import DistanceConfig, SeededDraws
from protocol.errors import ErrorCode
from protocol.estimate import Source
from protocol.identity import Identity
from protocol.node.survey import VISITS, Survey
from tests.protocol.distances.planted import planted, some_ends

IDENTITY = Identity.from_seed((0).to_bytes(4, "big") * 8)


def told_by_all(mesh, survey: Survey, degree: int = 16) -> None:
    """Every path of a random graph is told by both of its ends."""
    luck, edges = random.Random(1), {row: set() for row in range(len(mesh.peers))}
    for row, ends in edges.items():
        for end in some_ends(mesh, row, degree, luck):
            ends.add(end)
            edges[end].add(row)
    for row, ends in edges.items():
        survey.distances.handle_edges(mesh.peers[row], mesh.edges(row, sorted(ends)), 0.0)


def run(survey: Survey, until: float) -> None:
    while (now := survey.next_timer()) <= until:
        survey.handle_timer(now)


def test_a_node_knows_how_far_peers_are_that_it_never_met():
    mesh = planted(60)
    own = mesh.peers.index(IDENTITY.peer_id)
    survey = Survey(DistanceConfig(), IDENTITY)
    told_by_all(mesh, survey)
    measured = some_ends(mesh, own, 16, random.Random(2))
    for end in measured:
        survey.handle_sample(mesh.peers[end], float(mesh.rtts[own, end]), 0.0)
    run(survey, 60.0)
    off = []
    for row, peer in enumerate(mesh.peers):
        if row != own and row not in measured:
            known = survey.distances.estimate(peer, 60.0)
            assert known.source is Source.EDGES
            off.append(abs(known.rtt_s / mesh.rtts[own, row] - 1.0))
    assert sorted(off)[len(off) // 2] < 0.05


def test_peers_to_visit_are_half_drawn_at_random_and_never_connected_ones():
    mesh = planted(60)
    own = mesh.peers.index(IDENTITY.peer_id)
    survey = Survey(DistanceConfig(drawn_first=2), IDENTITY)
    told_by_all(mesh, survey)
    for end in some_ends(mesh, own, 16, random.Random(2)):
        survey.handle_sample(mesh.peers[end], float(mesh.rtts[own, end]), 0.0)
    run(survey, 60.0)
    free = [peer for peer in mesh.peers if survey.distances.measured(peer, 60.0) is None and peer != IDENTITY.peer_id]
    visits = survey.visits(free, 60.0)
    assert len(visits) == VISITS == len(set(visits))
    assert set(visits) <= set(free)
    for peer in visits:
        survey.handle_sample(peer, 0.05, 61.0)
        assert survey.distances.measured(peer, 61.0) is not None
    assert not set(survey.visits(free, 61.0)) & set(visits)


def test_draws_are_this_nodes_own_and_repeat():
    first, second, other = (SeededDraws(secret) for secret in (b"one", b"one", b"two"))
    drawn = [[draws.choice(range(1000)) for _ in range(20)] for draws in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_distance_of_a_peer_is_remembered_when_its_connection_is_gone():
    world = mesh(4, 5, spread_s=0.1)
    world.run(60.0)
    asker, target = world.members[0], world.members[3]
    rtt_s = asker.node.peer(target.peer_id, world.now).quality.rtt_s
    asker.node.handle_disconnected(target.peer_id, ErrorCode.IDLE, world.now)
    known = asker.node.views.estimate(target.peer_id, world.now)
    assert known.source is Source.MEASURED
    assert known.rtt_s == pytest.approx(rtt_s, rel=0.01)
    assert known.low_s < rtt_s < known.high_s
