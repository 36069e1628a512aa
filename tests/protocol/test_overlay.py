"""The mesh's links: how many are held, who is chosen, who is left alone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_strategies import IDENTITIES

from protocol.gossip import GossipConfig
from protocol.gossip.overlay import Maintenance, Overlay
from protocol.gossip.score import PeerScores, ScoreConfig

CONFIG = GossipConfig()
PEERS = [identity.peer_id for identity in IDENTITIES]


def overlay(far=0, near=0, seed=1, **config):
    """An overlay that knows some peers and, at first, holds none of their links."""
    made = Overlay(GossipConfig(**config), random.Random(seed), PeerScores(ScoreConfig()))
    for index in range(far + near):
        made.handle_connected(PEERS[index], 0.0, far=index < far)
        made.handle_silent(PEERS[index])
        made.handle_heard(PEERS[index])
    assert made.members == []
    return made


def test_connected_peers_are_taken_until_there_are_enough():
    made = Overlay(CONFIG, random.Random(1), PeerScores(ScoreConfig()))
    taken = [made.handle_connected(peer_id, 0.0, far=False) for peer_id in PEERS[:8]]
    assert taken == [True] * CONFIG.degree + [False] * 4
    assert made.members == sorted(PEERS[: CONFIG.degree])
    assert made.heartbeat(1.0) == Maintenance()
    assert not made.handle_connected(PEERS[0], 1.0, far=False)  # it is held already


def test_too_few_links_are_made_enough_at_once():
    made = overlay(near=10)
    change = made.heartbeat(1.0)
    assert sorted(change.grafted) == made.members
    assert len(made.members) == CONFIG.degree
    assert change.pruned == ()


@pytest.mark.parametrize("seed", range(20))
def test_half_of_the_links_lead_to_peers_chosen_at_random(seed):
    made = overlay(far=2, near=20, seed=seed)
    assert set(made.heartbeat(1.0).grafted) >= set(PEERS[:2])


def test_random_links_that_are_held_count_for_the_half():
    def chosen(seed):
        made = overlay(far=12, near=1, seed=seed)
        for peer_id in PEERS[:2]:
            made.handle_graft(peer_id, 0.0)
        return made.heartbeat(1.0).grafted

    assert any(PEERS[12] in chosen(seed) for seed in range(100))  # anybody may make up the other half


def test_where_only_near_peers_are_connected_they_are_taken():
    made = overlay(near=3)
    assert sorted(made.heartbeat(1.0).grafted) == sorted(PEERS[:3])


@pytest.mark.parametrize("seed", range(5))
def test_near_links_are_given_back_before_random_ones(seed):
    made = overlay(far=2, near=10, seed=seed)
    for peer_id in PEERS[:6]:
        assert made.handle_graft(peer_id, 0.0)
    assert not made.handle_graft(PEERS[6], 0.0)
    change = made.heartbeat(1.0)
    assert len(change.pruned) == 2
    assert set(made.members) >= set(PEERS[:2])
    assert len(made.members) == CONFIG.degree


def test_random_links_are_given_back_where_there_are_no_others():
    made = overlay(far=6)
    for peer_id in PEERS[:6]:
        made.handle_graft(peer_id, 0.0)
    assert len(made.heartbeat(1.0).pruned) == 2


@pytest.mark.parametrize("given_back_by", ["peer", "this node"])
def test_a_link_that_was_given_back_is_not_asked_for_and_taken_only_from_who_gave_it_back(given_back_by):
    made = overlay(far=6 if given_back_by == "this node" else 1)
    if given_back_by == "this node":
        for peer_id in PEERS[:6]:
            made.handle_graft(peer_id, 0.0)
        left_alone = made.heartbeat(0.0).pruned[0]
    else:
        left_alone = PEERS[0]
        made.handle_graft(left_alone, 0.0)
        assert made.handle_prune(left_alone, 0.0)
    for other in list(made.members):
        made.handle_disconnected(other)
    before, after = CONFIG.prune_backoff_s - 0.001, CONFIG.prune_backoff_s
    assert not made.handle_connected(left_alone, before, far=True)
    assert left_alone not in made.heartbeat(before).grafted
    assert made.handle_graft(left_alone, before) is (given_back_by == "peer")
    assert (left_alone in made.heartbeat(after).grafted) is (given_back_by == "this node")


def test_two_that_refused_one_another_come_together_again():
    one, other = overlay(far=1), overlay(far=1)
    one.handle_prune(PEERS[0], 0.0)  # the peer had not heard this node for a while
    other.handle_silent(PEERS[0])
    other.handle_heard(PEERS[0])
    assert other.heartbeat(1.0).grafted == (PEERS[0],)
    assert one.handle_graft(PEERS[0], 1.0)


def test_a_silent_peer_is_not_chosen_until_it_is_heard():
    made = overlay(near=2)
    made.handle_silent(PEERS[0])
    assert made.heartbeat(1.0).grafted == (PEERS[1],)
    assert made.outside(10, 0.0) == []
    made.handle_heard(PEERS[0])
    assert made.outside(10, 0.0) == [PEERS[0]]
    assert made.heartbeat(2.0).grafted == (PEERS[0],)


def test_a_silent_peer_that_asks_for_a_link_is_heard():
    made = overlay(near=1)
    made.handle_silent(PEERS[0])
    assert made.handle_graft(PEERS[0], 1.0)
    assert PEERS[0] in made


def test_a_peer_that_is_gone_is_forgotten_with_its_back_off():
    made = overlay(near=1)
    made.handle_graft(PEERS[0], 0.0)
    made.handle_prune(PEERS[0], 0.0)
    assert not made.handle_disconnected(PEERS[0])
    assert made.handle_connected(PEERS[0], 1.0, far=False)
    assert made.handle_disconnected(PEERS[0])
    assert PEERS[0] not in made
    assert made.outside(10, 0.0) == []


def test_those_outside_are_told_apart_from_the_members_and_counted():
    made = overlay(near=10)
    made.heartbeat(1.0)
    assert sorted([*made.members, *made.outside(100, 0.0)]) == sorted(PEERS[:10])
    assert len(made.outside(3, 0.0)) == 3


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["connected", "disconnected", "silent", "heard", "graft", "prune", "heartbeat"]),
        st.integers(0, 11),
        st.booleans(),
        st.floats(0.0, 5.0),
    ),
    max_size=80,
)


@given(CALLS)
def test_whatever_happens_links_lead_to_connected_peers_and_are_bounded(calls):
    made, connected, silent, now = Overlay(CONFIG, random.Random(1), PeerScores(ScoreConfig())), set(), set(), 0.0
    for call, who, far, elapsed_s in calls:
        now += elapsed_s
        peer_id, before = PEERS[who], list(made.members)
        match call:
            case "connected":
                taken = made.handle_connected(peer_id, now, far=far)
                assert taken == (peer_id in made and peer_id not in before)
                connected.add(peer_id)
                silent.discard(peer_id)
            case "disconnected":
                assert made.handle_disconnected(peer_id) == (peer_id in before)
                connected.discard(peer_id)
                silent.discard(peer_id)
            case "silent":
                assert made.handle_silent(peer_id) == (peer_id in before)
                silent.add(peer_id)
            case "heard":
                made.handle_heard(peer_id)
                silent.discard(peer_id)
            case "graft" if peer_id in connected:  # strangers are not heard
                assert made.handle_graft(peer_id, now) == (peer_id in made)
                silent.difference_update(made.members)
            case "prune":
                assert made.handle_prune(peer_id, now) == (peer_id in before)
            case "heartbeat":
                change = made.heartbeat(now)
                assert set(made.members) == (set(before) | set(change.grafted)) - set(change.pruned)
                assert len(made.members) <= CONFIG.degree_max
                assert silent.isdisjoint(change.grafted)
        assert made.members == sorted(set(made.members))
        assert set(made.members) <= connected
        assert silent.isdisjoint(made.members)
        assert len(made.members) <= CONFIG.degree_max + 1
        assert set(made.outside(100, 0.0)) == connected - silent - set(made.members)
