"""Scores against the formulas of gossipsub v1.1, one parameter at a time."""

import pytest

from protocol.identity import Identity
from protocol.pubsub import ScoreConfig, TopicScoreConfig
from protocol.pubsub.history import Seen
from protocol.pubsub.score import PeerScores

PEERS = [Identity.from_seed(bytes([number]) * 32).peer_id for number in range(1, 12)]
ONE, TWO = PEERS[:2]
NOTHING = {
    "time_in_mesh_weight": 0.0,
    "first_deliveries_weight": 0.0,
    "mesh_deliveries_weight": 0.0,
    "mesh_failure_weight": 0.0,
    "invalid_weight": 0.0,
}
DECAY = {
    "first_deliveries_decay": 0.5,
    "mesh_deliveries_decay": 0.5,
    "mesh_failure_decay": 0.5,
    "invalid_decay": 0.5,
}


def scores_of(peers=(ONE, TWO), host="192.0.2.1", topic=None, **settings):
    config = ScoreConfig(topics=(("t", TopicScoreConfig(**{**NOTHING, **DECAY, **(topic or {})})),), **settings)
    scores = PeerScores(config)
    for peer in peers:
        scores.handle_connected(peer, host)
    return scores


def decayed(scores, seconds, start=0):
    for second in range(start + 1, start + seconds + 1):
        scores.decay(float(second))


def test_p1_is_the_quanta_in_the_mesh_up_to_the_cap():
    scores = scores_of(topic={"time_in_mesh_weight": 0.5, "time_in_mesh_quantum_s": 2.0, "time_in_mesh_cap": 10.0})
    scores.handle_grafted(ONE, "t", 0.0)
    decayed(scores, 7)
    assert scores.score(ONE) == 0.5 * 3  # 7 s are three quanta and a half
    decayed(scores, 100)
    assert scores.score(ONE) == 0.5 * 10
    scores.handle_pruned(ONE, "t")
    assert scores.score(ONE) == 0.0


def test_p2_counts_first_deliveries_decays_and_is_capped():
    scores = scores_of(topic={"first_deliveries_weight": 2.0, "first_deliveries_cap": 5.0})
    for _ in range(4):
        scores.handle_delivered(ONE, "t", Seen(0.0), 0.0)
    assert scores.score(ONE) == 8.0
    decayed(scores, 1)
    assert scores.score(ONE) == 4.0
    for _ in range(10):
        scores.handle_delivered(ONE, "t", Seen(0.0), 0.0)
    assert scores.score(ONE) == 10.0
    decayed(scores, 20)
    assert scores.score(ONE) == 0.0  # below decay_to_zero


P3 = {"mesh_deliveries_weight": -1.0, "mesh_deliveries_threshold": 10.0, "mesh_deliveries_activation_s": 5.0}


def test_p3_is_the_square_of_the_deficit_once_it_is_active():
    scores = scores_of(topic={**P3, "mesh_deliveries_decay": 1.0})
    scores.handle_grafted(ONE, "t", 0.0)
    for _ in range(4):
        scores.handle_delivered(ONE, "t", Seen(0.0), 0.0)
    decayed(scores, 5)
    assert scores.score(ONE) == 0.0
    decayed(scores, 1, start=5)
    assert scores.score(ONE) == -((10 - 4) ** 2)
    for _ in range(6):
        scores.handle_delivered(ONE, "t", Seen(0.0), 0.0)
    assert scores.score(ONE) == 0.0


def test_p3_counts_copies_within_the_window_and_each_peer_once():
    scores = scores_of(peers=PEERS[:4], topic={**P3, "mesh_deliveries_decay": 1.0, "mesh_deliveries_window_s": 0.01})
    early, first, soon, late = PEERS[:4]
    for peer in PEERS[:4]:
        scores.handle_grafted(peer, "t", 0.0)
    decayed(scores, 6)
    seen = Seen(6.0)
    scores.handle_duplicate(early, "t", seen, 6.0)  # while it was being judged
    scores.handle_delivered(first, "t", seen, 6.001)
    for _ in range(3):
        scores.handle_duplicate(soon, "t", seen, 6.005)
        scores.handle_duplicate(early, "t", seen, 6.005)
        scores.handle_duplicate(first, "t", seen, 6.005)
        scores.handle_duplicate(late, "t", seen, 6.1)
    assert [scores.score(peer) for peer in PEERS[:4]] == [-81.0, -81.0, -81.0, -100.0]


def test_p3b_remembers_the_deficit_of_a_link_that_is_gone():
    scores = scores_of(topic={**P3, "mesh_deliveries_weight": 0.0, "mesh_failure_weight": -1.0, "mesh_deliveries_decay": 1.0})
    scores.handle_grafted(ONE, "t", 0.0)
    decayed(scores, 6)
    scores.handle_delivered(ONE, "t", Seen(0.0), 6.0)
    scores.handle_pruned(ONE, "t")
    scores.handle_pruned(ONE, "t")
    assert scores.score(ONE) == -81.0
    decayed(scores, 1, start=6)
    assert scores.score(ONE) == -40.5


def test_p4_is_the_square_of_invalid_messages_of_all_who_brought_them():
    scores = scores_of(topic={"invalid_weight": -1.0})
    seen = Seen(0.0)
    scores.handle_duplicate(TWO, "t", seen, 0.0)
    scores.handle_rejected(ONE, "t", seen, 0.0)
    scores.handle_invalid(ONE, "t")
    assert (scores.score(ONE), scores.score(TWO)) == (-4.0, -1.0)
    scores.handle_duplicate(TWO, "t", seen, 0.0)
    assert scores.score(TWO) == -4.0
    decayed(scores, 1)
    assert scores.score(ONE) == -1.0


def test_what_is_ignored_counts_for_nothing():
    scores = scores_of(topic={"invalid_weight": -1.0, "first_deliveries_weight": 1.0})
    seen = Seen(0.0)
    scores.handle_ignored(seen, 0.0)
    scores.handle_duplicate(TWO, "t", seen, 0.0)
    assert scores.score(TWO) == 0.0


def test_p5_is_what_the_application_says():
    scores = scores_of(app_weight=3.0)
    scores.set_app_score(ONE, -7.0)
    assert scores.score(ONE) == -21.0


def test_p6_is_the_square_of_the_surplus_at_one_address():
    scores = scores_of(peers=PEERS[:5], colocation_weight=-2.0, colocation_threshold=3)
    assert [scores.score(peer) for peer in PEERS[:5]] == [-8.0] * 5
    scores.handle_connected(PEERS[4], "192.0.2.2")
    assert [scores.score(peer) for peer in PEERS[:5]] == [-2.0] * 4 + [0.0]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", None])
def test_the_loopback_is_shared_for_nothing(host):
    scores = scores_of(peers=PEERS, host=host, colocation_threshold=3)
    assert scores.score(PEERS[0]) == 0.0


def test_p7_is_the_square_of_the_penalties_beyond_the_threshold():
    scores = scores_of(behaviour_weight=-10.0, behaviour_threshold=6.0, behaviour_decay=0.5)
    scores.penalise(ONE, 6)
    assert scores.score(ONE) == 0.0
    scores.penalise(ONE, 4)
    assert scores.score(ONE) == -160.0
    decayed(scores, 1)
    assert scores.score(ONE) == 0.0


def test_topics_are_weighed_and_what_they_add_is_capped():
    topic = {"first_deliveries_weight": 1.0, "weight": 0.5}
    scores = scores_of(topic=topic, topic_score_cap=2.0)
    scores.set_app_score(ONE, 1.0)
    for _ in range(3):
        scores.handle_delivered(ONE, "t", Seen(0.0), 0.0)
    assert scores.score(ONE) == 0.5 * 3 + 1.0
    for _ in range(3):
        scores.handle_delivered(ONE, "t", Seen(0.0), 0.0)
    assert scores.score(ONE) == 2.0 + 1.0


def test_a_topic_that_is_not_scored_counts_for_nothing():
    scores = scores_of(topic={"invalid_weight": -1.0})
    scores.handle_invalid(ONE, "another")
    assert scores.score(ONE) == 0.0


def test_a_bad_score_outlives_the_connection_and_a_good_one_does_not():
    scores = scores_of(topic={"invalid_weight": -1.0, "first_deliveries_weight": 1.0}, retain_s=10.0)
    scores.handle_invalid(ONE, "t")
    scores.handle_delivered(TWO, "t", Seen(0.0), 0.0)
    for peer in (ONE, TWO):
        scores.handle_disconnected(peer, 0.0)
    decayed(scores, 9)
    for peer in (ONE, TWO):
        scores.handle_connected(peer, None)
    assert (scores.score(ONE), scores.score(TWO)) == (-1.0, 0.0)  # it does not decay while the peer is gone
    scores.handle_disconnected(ONE, 9.0)
    decayed(scores, 10, start=9)
    assert scores.score(ONE) == 0.0


def test_peers_remembered_are_bounded_and_connected_ones_stay():
    scores = scores_of(peers=(), topic={"invalid_weight": -1.0}, retained_max=3)
    scores.handle_connected(PEERS[0], None)
    for peer in PEERS[1:]:
        scores.handle_connected(peer, None)
        scores.handle_invalid(peer, "t")
        scores.handle_disconnected(peer, 0.0)
    assert len(scores) == 3
    scores.handle_invalid(PEERS[0], "t")
    assert [scores.score(peer) for peer in (PEERS[0], PEERS[1], PEERS[-1])] == [-1.0, 0.0, -1.0]
