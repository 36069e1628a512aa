"""The mesh of one topic: the steps of a heartbeat and the answers to a graft, with the numbers of gossipsub v1.1."""

import random

import pytest
from pubsub_world import CONFIG, IDENTITIES

from protocol.pubsub.mesh import BACKOFFS_MAX, GraftAnswer, TopicMesh

PEERS = [identity.peer_id for identity in IDENTITIES[:30]]


def mesh_of(scores=None, seed=0, config=CONFIG):
    scores = scores or {}
    return TopicMesh(config, random.Random(seed), lambda peer_id: scores.get(peer_id, 0.0))


def inbound(peers):
    return dict.fromkeys(peers, False)


def test_a_heartbeat_takes_links_up_to_the_degree():
    mesh = mesh_of()
    change = mesh.heartbeat(inbound(PEERS), 0.0, betters=False)
    assert len(change.grafted) == len(mesh.members) == CONFIG.degree


def test_a_mesh_within_its_bounds_is_left_alone():
    mesh = mesh_of()
    mesh.members = dict.fromkeys(PEERS[: CONFIG.degree_min])
    change = mesh.heartbeat(inbound(PEERS), 0.0, betters=False)
    assert (change.grafted, change.pruned) == ([], [])


@pytest.mark.parametrize("seed", range(20))
def test_of_too_many_the_best_stay_and_enough_that_were_dialled(seed):
    scores = {peer: float(rank) for rank, peer in enumerate(PEERS[:14])}
    dialled = PEERS[:2]  # the worst by score
    mesh = mesh_of(scores, seed)
    mesh.members = dict.fromkeys(PEERS[:14])
    change = mesh.heartbeat(inbound(PEERS[:14]) | dict.fromkeys(dialled, True), 0.0, betters=False)
    assert len(mesh.members) == CONFIG.degree
    assert len(change.pruned) == 14 - CONFIG.degree
    assert set(dialled) <= set(mesh.members)
    assert set(PEERS[10:14]) <= set(mesh.members)


def test_a_negative_score_ends_a_link_and_keeps_a_peer_out():
    scores = dict.fromkeys(PEERS[:3], -1.0)
    mesh = mesh_of(scores)
    mesh.members = dict.fromkeys(PEERS[:3])
    change = mesh.heartbeat(inbound(PEERS[:5]), 0.0, betters=False)
    assert change.pruned == PEERS[:3]
    assert sorted(mesh.members) == sorted(PEERS[3:5])


def test_links_to_peers_that_were_dialled_are_added_until_there_are_enough():
    mesh = mesh_of()
    mesh.members = dict.fromkeys(PEERS[:5])
    change = mesh.heartbeat(inbound(PEERS[:5]) | dict.fromkeys(PEERS[5:9], True), 0.0, betters=False)
    assert len(change.grafted) == CONFIG.degree_out
    assert set(change.grafted) <= set(PEERS[5:9])


def test_better_peers_are_asked_in_where_the_median_is_poor():
    scores = {**dict.fromkeys(PEERS[:6], 1.0), PEERS[10]: 2.0, PEERS[11]: 5.0, PEERS[12]: 0.5}
    mesh = mesh_of(scores)
    mesh.members = dict.fromkeys(PEERS[:6])
    candidates = inbound([*PEERS[:6], *PEERS[10:13]])
    assert mesh.heartbeat(candidates, 0.0, betters=False).grafted == []
    assert sorted(mesh.heartbeat(candidates, 0.0, betters=True).grafted) == sorted(PEERS[10:12])
    good = mesh_of(dict.fromkeys(PEERS, 4.0))
    good.members = dict.fromkeys(PEERS[:6])
    assert good.heartbeat(inbound(PEERS), 0.0, betters=True).grafted == []


def test_a_link_given_back_is_not_asked_for_until_backoff_and_slack_are_over():
    mesh = mesh_of()
    mesh.members = dict.fromkeys(PEERS[:1])
    assert mesh.handle_prune(PEERS[0], 30, 0.0)
    for now in (0.0, 29.0, 31.0):
        assert mesh.heartbeat(inbound(PEERS[:1]), now, betters=False).grafted == []
    assert mesh.heartbeat(inbound(PEERS[:1]), 32.0, betters=False).grafted == PEERS[:1]


def test_a_backoff_that_is_told_is_bounded_and_without_one_the_own_counts():
    mesh = mesh_of()
    mesh.handle_prune(PEERS[0], 2**63, 0.0)
    mesh.handle_prune(PEERS[1], None, 0.0)
    assert mesh.handle_graft(PEERS[1], CONFIG.backoff_s, is_dialled=False) is GraftAnswer.TAKEN
    assert mesh.handle_graft(PEERS[0], CONFIG.backoff_max_s, is_dialled=False) is GraftAnswer.TAKEN


def test_a_graft_is_taken_once():
    mesh = mesh_of()
    assert mesh.handle_graft(PEERS[0], 0.0, is_dialled=False) is GraftAnswer.TAKEN
    assert mesh.handle_graft(PEERS[0], 0.0, is_dialled=False) is GraftAnswer.HELD


def test_a_graft_during_backoff_is_too_soon_and_lengthens_it():
    mesh = mesh_of()
    mesh.handle_prune(PEERS[0], None, 0.0)
    assert mesh.handle_graft(PEERS[0], 5.0, is_dialled=False) is GraftAnswer.MUCH_TOO_SOON
    assert mesh.handle_graft(PEERS[0], 64.0, is_dialled=False) is GraftAnswer.TOO_SOON
    assert mesh.handle_graft(PEERS[0], 123.0, is_dialled=False) is GraftAnswer.TOO_SOON
    assert mesh.handle_graft(PEERS[0], 183.0, is_dialled=False) is GraftAnswer.TAKEN


def test_a_graft_of_a_poor_peer_is_refused():
    assert mesh_of({PEERS[0]: -0.1}).handle_graft(PEERS[0], 0.0, is_dialled=True) is GraftAnswer.POOR_SCORE


def test_a_full_mesh_takes_only_peers_that_were_dialled():
    mesh = mesh_of()
    mesh.members = dict.fromkeys(PEERS[: CONFIG.degree_max])
    assert mesh.handle_graft(PEERS[20], 0.0, is_dialled=False) is GraftAnswer.FULL
    assert mesh.handle_graft(PEERS[21], 0.0, is_dialled=True) is GraftAnswer.TAKEN


def test_backoffs_are_bounded():
    mesh = mesh_of()
    for number in range(BACKOFFS_MAX + 10):
        mesh.handle_prune(number.to_bytes(4, "big"), None, 0.0)
    assert len(mesh._backoff) == BACKOFFS_MAX
