"""What a node thinks of its gossip peers: bad conduct always ends below zero, and honest peers never get there."""

import random

import pytest
from gossip_nodes import sealed
from hypothesis import given, settings
from hypothesis import strategies as st
from record_strategies import IDENTITIES

from protocol.gossip.audits import AuditConfig, Audits
from protocol.gossip.score import PeerScores, ScoreConfig, Yield
from protocol.records import RecordKind
from protocol.table import record_key

CONFIG = ScoreConfig()
PEER, OTHER, *MORE = [identity.peer_id for identity in IDENTITIES]
FAULTS = {
    "missing": lambda scores, now: scores.handle_left(PEER, now, brought=False),
    "invalid": lambda scores, now: scores.handle_invalid(PEER, now),
    "broken": lambda scores, now: scores.handle_broken(PEER, now),
}
FAULT_S = 60.0
"""Seconds between two faults that count as going on."""
ENDS_S = 360.0
"""Seconds within which such a peer is below zero, whatever it did before."""


def known(now=0.0):
    scores = PeerScores(CONFIG)
    scores.handle_connected(PEER, now)
    return scores


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(FAULTS)),
    st.integers(0, 5000),
    st.lists(st.tuples(st.floats(0.0, FAULT_S), st.integers(0, 20)), min_size=12, max_size=12),
)
def test_fault_that_goes_on_ends_below_zero_whatever_good_is_done_beside_it(fault, saved_up, beside):
    """Good deliveries before it, as many as can be saved up, and beside it, at any times; one fault at least each minute."""
    scores, now, below_at = known(), 0.0, None
    for _ in range(saved_up):
        now += 0.01
        scores.handle_first(PEER, now)
    assert scores.score(PEER, now) <= CONFIG.first_weight * CONFIG.first_max
    began = now
    for wait_s, deliveries in beside:
        now += wait_s
        FAULTS[fault](scores, now)
        for _ in range(deliveries):
            scores.handle_first(PEER, now)
        if scores.score(PEER, now) < 0.0:
            below_at = below_at or now
        elif below_at is not None:
            pytest.fail("came back while the fault went on")
        if below_at is None and now - began > ENDS_S:
            pytest.fail(f"{scores.score(PEER, now)} after {now - began:.0f} s")
    assert below_at is not None


@given(st.integers(CONFIG.origin_free + 1, 40))
def test_who_comes_with_too_many_from_one_place_is_below_zero_with_all_the_others(count):
    scores = PeerScores(CONFIG)
    crowd = [b"crowd %d" % number for number in range(count)]
    for peer_id in crowd:
        scores.handle_connected(peer_id, 0.0, b"192.0.2.1")
    scores.handle_connected(PEER, 0.0, b"192.0.2.2")
    for _ in range(100):
        scores.handle_first(crowd[0], 0.0)
    assert all(not scores.is_good(peer_id, 0.0) for peer_id in crowd)
    assert scores.score(crowd[1], 0.0) < 0.0
    assert not scores.is_banned(crowd[0], 0.0)  # who shares an address with a crowd is not to blame for it
    assert scores.is_good(PEER, 0.0)
    for peer_id in crowd[CONFIG.origin_free :]:
        scores.handle_disconnected(peer_id, 1.0)
    assert scores.score(crowd[1], 1.0) == 0.0


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.integers(50, 400))
def test_honest_peer_where_nearly_a_third_of_all_packets_is_lost_stays_above_zero(seed, cards):
    """Of the cards that are left to an honest peer 1 % come late at 30 % loss (slower than any that was measured), once a minute
    a message crosses another on the way, and it is blamed for nothing."""
    luck, scores, now = random.Random(seed), known(), 0.0
    crossed = 0
    for _ in range(cards):
        now += luck.expovariate(1 / 5.0)
        if luck.random() < 0.25:
            scores.handle_first(PEER, now)
        scores.handle_left(PEER, now, brought=luck.random() >= 0.01)
        if crossed < now // 600.0:  # a stream that stands still for five seconds, once in ten minutes
            crossed += 1
            scores.handle_broken(PEER, now)
        assert scores.is_good(PEER, now)
        assert scores.score(PEER, now) >= 0.0


def test_credit_cannot_be_saved_up():
    scores = known()
    for _ in range(10_000):
        scores.handle_first(PEER, 0.0)
    best = scores.score(PEER, 0.0)
    assert best == CONFIG.first_weight * CONFIG.first_max
    assert scores.score(PEER, CONFIG.half_life_s) == pytest.approx(best / 2)
    for _ in range(4):
        scores.handle_left(PEER, 1.0, brought=False)
    assert scores.score(PEER, 1.0) < 0.0


def test_bad_name_outlives_the_connection_and_a_good_one_does_not():
    scores = known()
    for _ in range(2):
        scores.handle_invalid(PEER, 0.0)
    before = scores.score(PEER, 0.0)
    scores.handle_connected(OTHER, 0.0)
    scores.handle_first(OTHER, 0.0)
    for peer_id in (PEER, OTHER):
        scores.handle_disconnected(peer_id, 0.0)
        scores.handle_connected(peer_id, 1.0)
    assert scores.score(PEER, 1.0) == pytest.approx(before, rel=0.01)
    assert not scores.is_good(PEER, 1.0)
    assert scores.score(OTHER, 1.0) == 0.0


def test_third_fault_bans_and_time_forgives():
    scores = known()
    verdicts = []
    for _ in range(3):
        scores.handle_invalid(PEER, 0.0)
        verdicts.append((scores.is_good(PEER, 0.0), scores.is_ignored(PEER, 0.0), scores.is_banned(PEER, 0.0)))
    assert verdicts == [(False, False, False), (False, True, False), (False, True, True)]
    assert scores.banned(0.0) == [PEER]
    scores.handle_disconnected(PEER, 1.0)
    assert scores.is_banned(PEER, 2.0)
    assert not scores.is_banned(PEER, CONFIG.half_life_s)
    scores.handle_connected(PEER, 3 * CONFIG.half_life_s)
    scores.handle_connected(PEER, 6 * CONFIG.half_life_s)
    assert scores.is_good(PEER, 6 * CONFIG.half_life_s)


def test_missing_deliveries_cost_the_mesh_and_nothing_else():
    scores = known()
    for _ in range(1000):
        scores.handle_left(PEER, 0.0, brought=False)
    assert scores.score(PEER, 0.0) == -CONFIG.floor
    assert not scores.is_good(PEER, 0.0)
    assert not scores.is_ignored(PEER, 0.0)


def test_what_is_remembered_of_peers_that_are_gone_is_bounded_and_ends():
    config = ScoreConfig(retained_max=10)
    scores = PeerScores(config)
    for number in range(100):
        peer_id = b"%d" % number
        scores.handle_connected(peer_id, float(number))
        scores.handle_invalid(peer_id, float(number))
        scores.handle_disconnected(peer_id, float(number))
    assert sum(not scores.is_good(b"%d" % number, 100.0) for number in range(100)) == 10
    scores.handle_connected(PEER, 100.0 + config.retained_s)
    scores.handle_invalid(PEER, 100.0 + config.retained_s)
    scores.handle_disconnected(PEER, 100.0 + config.retained_s)
    assert len(scores._gone) == 1


# What is left to be brought.

KEY = record_key(IDENTITIES[9].peer_id, RecordKind.CARD)


class Left:
    """Audits of a mesh of three links, to which cards come one a second."""

    def __init__(self, seed=1):
        self.scores = PeerScores(CONFIG)
        self.config = AuditConfig()
        self.audits = Audits(self.config, IDENTITIES[0].peer_id, self.scores, random.Random(seed))
        self.mesh = (PEER, OTHER, MORE[0])
        self.now, self.sequence, self.given = 0.0, 0, []
        for peer_id in self.mesh:
            self.scores.handle_connected(peer_id, 0.0)
            self.audits.handle_grafted(peer_id, 0.0)
        self.now = 10.0

    def card(self, brings):
        """A card comes from the last of the mesh; the others bring it in 0.1 s, or not. Returns from whom it was held back."""
        self.sequence += 1
        record = sealed(IDENTITIES[9], sequence=self.sequence)
        held = self.audits.begin(KEY, record, (self.mesh[-1],), lambda _peer_id: False, self.now)
        for peer_id in self.mesh[:-1]:
            if brings(peer_id, peer_id in held):
                self.audits.handle_brought(peer_id, KEY, self.sequence, self.now + 0.1)
        self.given += self.audits.released(self.now + self.config.hold_s)
        self.audits.judge(self.now + self.config.due_s)
        self.now += 3.0
        return held


@pytest.mark.parametrize("seed", range(20))
def test_who_swallows_what_it_gets_is_out_of_the_mesh_after_twenty_cards(seed):
    left = Left(seed)
    cards = 0
    while left.scores.is_good(PEER, left.now) and cards < 20:
        left.card(lambda peer_id, _held: peer_id == OTHER)
        cards += 1
    assert cards >= 4  # so many have to be missing
    assert not left.scores.is_good(PEER, left.now)
    assert left.scores.is_good(OTHER, left.now)
    assert {peer_id for peer_id, _ in left.given} == {PEER}  # and it was told all the same


@pytest.mark.parametrize("seed", range(20))
def test_who_stands_behind_this_node_and_brings_only_what_is_left_to_it_keeps_its_good_name(seed):
    left = Left(seed)
    for _ in range(200):
        left.card(lambda peer_id, held: held or peer_id == OTHER)
    assert left.scores.score(PEER, left.now) == 0.0
    assert left.given == []


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0.3, 1.0))
def test_who_drops_a_part_of_everything_is_out_of_the_mesh_within_three_hundred_cards(seed, share):
    left, luck = Left(seed), random.Random(seed)
    out = 0
    for _ in range(300):
        left.card(lambda peer_id, held: peer_id == OTHER or (luck.random() >= share and (held or luck.random() < 0.74)))
        out += not left.scores.is_good(PEER, left.now)
    assert out > 0


def test_what_is_held_back_is_bounded_and_goes_with_the_link():
    left = Left()
    for number in range(2 * left.config.pending_max):
        left.audits.begin(KEY, sealed(IDENTITIES[9], sequence=number + 1), (), lambda _peer_id: False, left.now)
    assert len(left.audits._due) == left.config.pending_max
    assert len(left.audits._held) <= left.config.pending_max + len(left.mesh)
    for peer_id in left.mesh:
        left.audits.handle_pruned(peer_id)
    assert left.audits.released(left.now + 10.0) == []
    left.audits.judge(left.now + 10.0)
    assert not left.audits._due
    assert [left.scores.yield_of(peer_id) for peer_id in left.mesh] == [Yield.UNPROVEN] * 3
