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


def everybody(_peer_id):
    """All have cards."""
    return True


def overlay(far=0, near=0, seed=1, **config):
    """An overlay that knows some peers and, at first, holds none of their links."""
    made = Overlay(GossipConfig(**config), random.Random(seed), PeerScores(ScoreConfig()), everybody)
    for index in range(far + near):
        made.handle_connected(PEERS[index], 0.0, far=index < far)
        made.handle_silent(PEERS[index])
        made.handle_heard(PEERS[index])
    assert made.members == []
    return made


def test_connected_peers_are_taken_until_there_are_enough():
    made = Overlay(CONFIG, random.Random(1), PeerScores(ScoreConfig()), everybody)
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


@pytest.mark.parametrize("seed", range(5))
def test_links_of_peers_without_cards_are_given_back_first_and_make_room_for_who_has_one(seed):
    with_cards = PEERS[6:10]
    made = Overlay(CONFIG, random.Random(seed), PeerScores(ScoreConfig()), with_cards.__contains__)
    for peer_id in PEERS:
        made.handle_connected(peer_id, 0.0, far=False)
        made.handle_silent(peer_id)
        made.handle_heard(peer_id)
    for peer_id in PEERS[:6]:
        assert made.handle_graft(peer_id, 0.0)
    assert not made.handle_graft(PEERS[10], 0.0)
    for peer_id in with_cards[: CONFIG.displaced_max]:
        assert made.handle_graft(peer_id, 0.0)
    assert not made.handle_graft(with_cards[-1], 0.0)
    pruned = made.heartbeat(1.0).pruned
    assert len(pruned) == 5
    assert set(pruned) < set(PEERS[:6])
    assert set(made.members) > set(with_cards[: CONFIG.displaced_max])


def crowded_out(own, keeping=()):
    """A mesh that is full of others' links, beside those to peers that this node chose; it knows more of these."""
    made = overlay(near=12)
    for peer_id in [*own, *PEERS[8:12]]:
        made.handle_kept(peer_id, keeps=True)
    for peer_id in keeping:
        made.handle_keeping(peer_id, keeps=True)
    for peer_id in [*own, *PEERS[2 : 2 + CONFIG.degree_max + 1 - len(own)]]:
        assert made.handle_graft(peer_id, 0.0)
    assert len(made.members) == CONFIG.degree_max + 1
    return made


@pytest.mark.parametrize("reason", ["given back by the peer", "gone", "not kept any more"])
def test_too_few_links_of_its_own_choice_are_made_good_at_once_where_the_mesh_is_full_of_others(reason):
    made = crowded_out(PEERS[:2])
    assert made.make_good(0.5) == []
    match reason:
        case "given back by the peer":
            made.handle_prune(PEERS[0], 0.5)
        case "gone":
            made.handle_disconnected(PEERS[0])
        case _:
            made.handle_kept(PEERS[0], keeps=False)
    (asked,) = made.make_good(0.5)
    assert asked in PEERS[8:12]
    assert asked in made
    assert made.make_good(0.5) == []


@pytest.mark.parametrize("seed", range(5))
def test_where_too_few_are_left_those_are_asked_first_that_keep_this_node_too(seed):
    made = crowded_out(PEERS[:1], keeping=[PEERS[10], PEERS[11]])
    for peer_id in PEERS[8:11]:
        made.handle_dialled(peer_id, far=peer_id != PEERS[10], dialled=True)
    assert made.make_good(0.5) == [PEERS[10]]


def test_of_chosen_links_those_stay_that_bring_most_and_then_those_that_were_dialled():
    """Who dials here may come to be kept for being near; it drives out nobody who brings what it should or was dialled."""
    made = overlay(near=9)
    for peer_id in PEERS[:9]:
        made.handle_kept(peer_id, keeps=True)
    for peer_id in PEERS[:6]:
        assert made.handle_graft(peer_id, 0.0)
    proven, dialled = PEERS[3], PEERS[4:6]
    for peer_id in PEERS[:6]:
        made._scores.handle_connected(peer_id, 0.0)
    made._scores.handle_due(proven, brought=True)
    for peer_id in dialled:
        made.handle_dialled(peer_id, far=False, dialled=True)
    assert not {proven, *dialled} & {*made.heartbeat(1.0).pruned}


@pytest.mark.parametrize("seed", range(5))
def test_link_that_brings_what_it_should_is_worth_more_than_a_chosen_one_of_which_nothing_is_known(seed):
    made = overlay(near=9, seed=seed)
    for peer_id in PEERS[:6]:
        made._scores.handle_connected(peer_id, 0.0)
        made.handle_kept(peer_id, keeps=True)
        assert made.handle_graft(peer_id, 0.0)
    for peer_id in PEERS[:4]:
        made._scores.handle_due(peer_id, brought=True)
    assert sorted(made.heartbeat(1.0).pruned) == sorted(PEERS[4:6])


def test_links_that_are_made_good_are_bounded():
    made = overlay(near=12)
    for peer_id in PEERS[8:]:
        made.handle_kept(peer_id, keeps=True)
    for peer_id in PEERS[:6]:
        made.handle_graft(peer_id, 0.0)
    for _ in range(20):
        for peer_id in made.make_good(0.5):
            made.handle_kept(peer_id, keeps=False)  # it does not count any more, and stays
    assert len(made.members) <= CONFIG.degree_max + CONFIG.displaced_max + CONFIG.degree_out - 1


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
    made, connected, silent, now = Overlay(CONFIG, random.Random(1), PeerScores(ScoreConfig()), everybody), set(), set(), 0.0
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
