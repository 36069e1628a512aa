"""The peer table: newest wins, bounds, expiry, tombstones, equivocation, digests."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_strategies import CARD, EDGES, EXAMPLES, IDENTITIES, LIFETIME_S, NETWORK, VERDICT, WALL_S

from protocol.records import RecordKind, kind_of, seal
from protocol.table import (
    BUCKETS,
    COMPARED,
    Accepted,
    Equivocation,
    Full,
    PeerTable,
    Stale,
    TableConfig,
    bucket_of,
    record_key,
)

OWN = IDENTITIES[0]


def sealed(who, payload=CARD, sequence=1, issued_s=WALL_S, lifetime_s=None):
    identity = IDENTITIES[who]
    lifetime_s = LIFETIME_S[kind_of(payload)] if lifetime_s is None else lifetime_s
    return seal(identity, NETWORK, payload, sequence, issued_s, issued_s + lifetime_s)


def table(**bounds):
    return PeerTable(OWN.peer_id, TableConfig(**bounds))


def test_a_newer_record_replaces_an_older_one():
    held = table()
    first, second = sealed(1), sealed(1, sequence=2)
    assert held.offer(first, 0.0, WALL_S) == Accepted(first)
    assert held.offer(second, 5.0, WALL_S) == Accepted(second, replaced=first)
    assert held.get(first.peer_id, RecordKind.CARD) == second
    assert held.heard_at(first.peer_id) == 5.0
    assert len(held) == 1


def test_an_older_or_repeated_record_is_stale():
    held = table()
    held.offer(sealed(1, sequence=5), 0.0, WALL_S)
    assert held.offer(sealed(1, sequence=4), 9.0, WALL_S) == Stale(5)
    assert held.offer(sealed(1, sequence=5), 9.0, WALL_S) == Stale(5)
    assert held.heard_at(IDENTITIES[1].peer_id) == 0.0


def test_kinds_are_apart():
    held = table()
    for payload in EXAMPLES:
        assert isinstance(held.offer(sealed(1, payload), 0.0, WALL_S), Accepted)
    assert [record.kind for record in held] == sorted(RecordKind)
    assert held.peers() == [IDENTITIES[1].peer_id]


def test_an_expired_record_is_stale():
    held = table()
    assert held.offer(sealed(1, EDGES, lifetime_s=30.0), 0.0, WALL_S + 90.0) == Stale(0)
    assert len(held) == 0


def test_a_record_expires_a_minute_after_its_expiry():
    held = table()
    edges, card = sealed(1, EDGES, lifetime_s=30.0), sealed(1, CARD)
    held.offer(edges, 0.0, WALL_S)
    held.offer(card, 0.0, WALL_S)
    assert held.expire(WALL_S + 89.9) == []
    assert held.expire(WALL_S + 90.0) == [edges]
    assert list(held) == [card]


def test_an_old_record_cannot_come_back_after_a_newer_one_expired():
    held = table()
    long = sealed(1, sequence=1, lifetime_s=86_400.0)
    short = sealed(1, sequence=2, lifetime_s=10.0)
    held.offer(long, 0.0, WALL_S)
    held.offer(short, 0.0, WALL_S)
    assert held.expire(WALL_S + 100.0) == [short]
    assert held.offer(long, 0.0, WALL_S + 100.0) == Stale(2)
    held.expire(WALL_S + 86_459.0)
    assert held.offer(long, 0.0, WALL_S + 86_459.0) == Stale(2)
    # past its own expiry it is refused for that reason, and the memory of it is given up
    held.expire(WALL_S + 86_461.0)
    assert held.offer(long, 0.0, WALL_S + 86_461.0) == Stale(0)


def test_a_removed_peer_comes_back_by_news_only():
    held = table()
    old = sealed(1, sequence=3)
    held.offer(old, 0.0, WALL_S)
    assert held.remove(old.peer_id) == [old]
    assert held.offer(old, 1.0, WALL_S) == Stale(3)
    assert held.heard_at(old.peer_id) is None
    assert isinstance(held.offer(sealed(1, sequence=4), 1.0, WALL_S), Accepted)


def test_of_two_records_with_one_number_the_first_stays():
    held = table()
    first, second = sealed(1, sequence=3), sealed(1, replace(CARD, agent="other"), sequence=3)
    held.offer(first, 0.0, WALL_S)
    assert held.offer(second, 1.0, WALL_S) == Equivocation(kept=first, offered=second)
    assert held.get(first.peer_id, RecordKind.CARD) == first
    newer = sealed(1, sequence=4)
    assert held.offer(newer, 2.0, WALL_S) == Accepted(newer, replaced=first)


def test_a_full_table_refuses_while_all_were_heard_lately():
    held = table(peers_max=3)
    held.offer(sealed(0), 0.0, WALL_S)  # this node does not count
    for who in (1, 2, 3):
        assert isinstance(held.offer(sealed(who), float(who), WALL_S), Accepted)
    assert held.offer(sealed(4), 60.9, WALL_S) == Full()
    assert isinstance(held.offer(sealed(1, EDGES), 60.9, WALL_S), Accepted)  # a known peer needs no room
    assert len(held.peers()) == 4


def test_the_peer_unheard_the_longest_makes_room_and_never_this_node():
    held = table(peers_max=3)
    held.offer(sealed(0), 0.0, WALL_S)
    records = {who: sealed(who) for who in (1, 2, 3)}
    for who, record in records.items():
        held.offer(record, float(who), WALL_S)
    held.offer(sealed(1, sequence=2), 10.0, WALL_S)  # now 2 is the longest unheard
    newcomer = sealed(4)
    assert held.offer(newcomer, 100.0, WALL_S) == Accepted(newcomer, evicted=(records[2],))
    assert held.offer(records[2], 200.0, WALL_S) == Stale(1)
    assert held.get(OWN.peer_id, RecordKind.CARD) is not None


def test_what_expired_by_a_wrong_clock_is_let_in_again_and_nothing_older():
    held = table(peers_max=2)
    first, newest, removed = (sealed(who, sequence=number, lifetime_s=100.0) for who, number in ((1, 4), (1, 5), (2, 7)))
    held.offer(newest, 0.0, WALL_S)
    held.offer(removed, 0.0, WALL_S)
    held.remove(removed.peer_id)
    assert held.expire(WALL_S + 1_000.0) == [newest]
    held.readmit_expired()
    held.readmit_expired()  # a second step of the clock lets in nothing more
    assert held.offer(first, 1.0, WALL_S) == Stale(4)
    assert held.offer(removed, 1.0, WALL_S) == Stale(7)
    assert held.offer(newest, 1.0, WALL_S) == Accepted(newest)


def test_expired_peers_make_room_before_live_ones():
    held = table(peers_max=2)
    live, dead = sealed(1), sealed(2, EDGES, lifetime_s=30.0)
    held.offer(live, 0.0, WALL_S)
    held.offer(dead, 50.0, WALL_S)
    outcome = held.offer(sealed(3), 150.0, WALL_S + 100.0)
    assert isinstance(outcome, Accepted)
    assert outcome.evicted == (dead,)
    assert held.get(live.peer_id, RecordKind.CARD) == live


def test_tombstones_are_bounded():
    held = table(peers_max=32, tombstones_max=4)
    for who in range(1, 11):
        record = sealed(who, lifetime_s=1000.0 + who)
        held.offer(record, 0.0, WALL_S + who)
        held.remove(record.peer_id)
    assert len(held._tombstones) == 4


def test_tables_with_the_same_numbers_have_the_same_digest_whatever_the_order():
    records = [sealed(who, payload) for who in range(8) for payload in EXAMPLES]
    one, other = table(), table()
    for record in records:
        one.offer(record, 0.0, WALL_S)
    random.Random(1).shuffle(records)
    for record in records:
        other.offer(record, 0.0, WALL_S)
    assert one.digest() == other.digest()
    assert one.bucket_hashes() == other.bucket_hashes()
    assert one.root_hash() == other.root_hash()
    assert list(one) == list(other)
    assert one.cards() == other.cards()
    assert len(one) == 24
    assert one.compared == len(one.digest()) == 16


@pytest.mark.parametrize("payload", [CARD, VERDICT])
def test_a_change_shows_in_its_bucket_and_in_the_root_and_in_no_other(payload):
    held = table()
    for who in range(8):
        held.offer(sealed(who, CARD), 0.0, WALL_S)
        held.offer(sealed(who, VERDICT), 0.0, WALL_S)
    before, root = held.bucket_hashes(), held.root_hash()
    held.offer(sealed(3, payload, sequence=2), 0.0, WALL_S)
    after = held.bucket_hashes()
    changed = [bucket for bucket in range(BUCKETS) if before[bucket] != after[bucket]]
    key = record_key(IDENTITIES[3].peer_id, kind_of(payload))
    assert changed == [bucket_of(key)]
    assert (key, 2) in held.digest(changed)
    assert held.record_of(key) == held.get(IDENTITIES[3].peer_id, kind_of(payload))
    assert held.root_hash() != root
    held.remove(IDENTITIES[3].peer_id)
    assert held.root_hash() not in {root, bytes(8)}


def test_what_concerns_neighbours_alone_is_held_and_not_compared():
    held = table()
    held.offer(sealed(1, CARD), 0.0, WALL_S)
    before = held.root_hash(), held.digest(), held.compared
    record = sealed(1, EDGES, sequence=2)
    assert held.offer(record, 0.0, WALL_S) == Accepted(record)
    assert (held.root_hash(), held.digest(), held.compared) == before
    key = record_key(record.peer_id, record.kind)
    assert (held.sequence_of(key), held.record_of(key)) == (2, record)
    held.remove(record.peer_id)
    assert held.sequence_of(key) == 2  # remembered all the same


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "remove", "expire"]),
        st.integers(0, 7),
        st.sampled_from(EXAMPLES),
        st.integers(1, 4),
        st.integers(0, 200),
    ),
    max_size=30,
)


@given(CALLS)
def test_whatever_happens_bounds_hold_and_no_number_goes_back(calls):
    held = table(peers_max=3, tombstones_max=64, evictable_after_s=10.0)
    newest: dict = {}
    now = 0.0
    for call, who, payload, sequence, elapsed_s in calls:
        now += elapsed_s
        wall_s = WALL_S + now
        if call == "offer":
            record = sealed(who, payload, sequence, issued_s=wall_s)
            if isinstance(held.offer(record, now, wall_s), Accepted):
                place = (record.peer_id, record.kind)
                forgotten = record.kind is not RecordKind.CARD  # others' tombstones may run out within the test
                assert forgotten or sequence > newest.get(place, 0)
                newest[place] = sequence
        elif call == "remove":
            held.remove(IDENTITIES[who].peer_id)
        else:
            held.expire(wall_s)
        assert len([peer for peer in held.peers() if peer != OWN.peer_id]) <= 3
        assert sorted({record.peer_id for record in held}) == held.peers()
        compared = [record for record in held if record.kind in COMPARED]
        assert sorted(held.digest()) == sorted((record_key(record.peer_id, record.kind), record.sequence) for record in compared)
        assert held.compared == len(compared)
        assert held.bucket_hashes() == rebuilt(held).bucket_hashes()
        assert held.root_hash() == rebuilt(held).root_hash()
        assert held.cards() == [record for record in held if record.kind is RecordKind.CARD]


def rebuilt(held):
    fresh = table(peers_max=8)
    for record in held:
        assert isinstance(fresh.offer(record, 0.0, record.issued_s), Accepted)
    return fresh


@pytest.mark.parametrize("count", [0, 1, 5])
def test_an_empty_bucket_hashes_to_zeros(count):
    held = table()
    for who in range(count):
        held.offer(sealed(who), 0.0, WALL_S)
    assert sum(hash_ != bytes(8) for hash_ in held.bucket_hashes()) <= count
    assert (count == 0) == (set(held.bucket_hashes()) == {bytes(8)})
