"""A mesh of which each node holds a part: what stays in the table, what concerns whom, and what anybody can cost."""

from dataclasses import replace

import pytest
from gossip_nodes import NO_MESH, Node, World, crowd, drained, of, sealed, told
from hypothesis import given, settings
from hypothesis import strategies as st
from record_strategies import CARD, IDENTITIES, WALL_S

from protocol.coordinates import Coordinate
from protocol.errors import ErrorCode
from protocol.gossip import (
    GossipConfig,
    HorizonConfig,
    Misbehaved,
    RecordAccepted,
    RecordEvicted,
    RecordRefused,
)
from protocol.gossip.messages import Digest, Entries, Records, ScopeTold, Seek, Want
from protocol.records import Accusation, ModelOffer, RecordKind, Verdict
from protocol.scope import Scope, place_of
from protocol.table import record_key

PEER, OTHER = IDENTITIES[1], IDENTITIES[2]
SMALL = HorizonConfig(peers=8, sample_max=3, shuffle_count=2)


def place(at_s):
    return Coordinate((at_s,) + (0.0,) * 7, 0.001, 0.1)


def card(at_s, *models):
    return replace(CARD, coordinate=place(at_s), models=tuple(ModelOffer(model, frozenset()) for model in models) or CARD.models)


def key_of(identity):
    return record_key(identity.peer_id, RecordKind.CARD)


def looking(at_s=0.0, index=0, horizon=SMALL, **config):
    """A node at a place that holds only a part of a large mesh, and pushes nothing."""
    node = Node(index, config=GossipConfig(horizon=horizon, **NO_MESH | config))
    node.gossip.handle_moved(place(at_s))
    return node


def crowded(count=20, step_s=0.01, **config):
    """Such a node that has heard of so many peers, each `step_s` farther than the one before, from the first of its two peers."""
    node = looking(**config)
    node.connect(PEER, OTHER)
    records = [sealed(identity, card(step_s * (number + 1))) for number, identity in enumerate(crowd(count))]
    for record in records:
        node.hear(PEER, Records((record.envelope,)))
    outputs = node.beat_heart(2.0)
    return node, records, outputs


def held(node):
    return {record.peer_id for record in node.table.cards()} - {node.peer_id}


# What is held


def test_a_table_within_the_bound_has_everything_for_a_scope():
    node, records, outputs = crowded(10)
    assert node.gossip.scope is None
    assert told(outputs, ScopeTold) == []
    assert held(node) == {record.peer_id for record in records}
    assert node.gossip.beyond() == []


def test_past_the_bound_the_nearest_are_held_and_a_sample_of_the_others():
    node, records, _ = crowded(40)
    scope = node.gossip.scope
    covered = {record.peer_id for record in records if scope.covers(place_of(record.payload.coordinate))}
    assert SMALL.peers * 0.75 <= len(covered) <= SMALL.peers * 1.25
    assert covered == {record.peer_id for record in records[: len(covered)]}
    assert covered < held(node)
    assert len(held(node) - covered) <= SMALL.sample_max
    assert set(node.gossip.beyond()) == held(node) - covered


def test_a_new_scope_is_told_to_all_and_what_is_dropped_is_told_here():
    node = looking()
    node.connect(PEER, OTHER)
    outputs = []
    for number, identity in enumerate(crowd(30)):
        outputs += node.hear(PEER, Records((sealed(identity, card(0.01 * (30 - number))).envelope,)))
    last = {peer_id: message.scope for peer_id, message in told(outputs, ScopeTold)}
    assert last == {PEER.peer_id: node.gossip.scope, OTHER.peer_id: node.gossip.scope}
    gone = {output.record.peer_id for output in of(outputs, RecordEvicted)}
    assert gone
    assert gone.isdisjoint(held(node))
    assert told(node.connect(IDENTITIES[3]), ScopeTold) == [(IDENTITIES[3].peer_id, ScopeTold(node.gossip.scope))]


def test_the_scope_stays_while_little_changes_and_follows_the_node_when_it_moves_far():
    node, _, _ = crowded(40)
    before = node.gossip.scope
    node.gossip.handle_moved(place(0.4 * before.radius_s))
    node.beat_heart(30.0)
    assert node.gossip.scope == before
    node.gossip.handle_moved(place(0.6 * before.radius_s))
    node.beat_heart(60.0)
    assert node.gossip.scope.vector == place(0.6 * before.radius_s).vector


def test_a_scope_grows_until_it_is_everything_where_the_mesh_has_shrunk():
    node, records, _ = crowded(40)
    for record in records[2:]:
        node.table.remove(record.peer_id)
    outputs = node.beat_heart(600.0)
    assert node.gossip.scope is None
    assert told(outputs, ScopeTold)[-1][1] == ScopeTold(None)


def test_who_was_dropped_comes_back_as_it_is():
    node = looking()
    node.connect(PEER, OTHER)
    dropped = []
    for number, identity in enumerate(crowd(40)):
        outputs = node.hear(PEER, Records((sealed(identity, card(0.01 * (40 - number))).envelope,)))
        dropped += [output.record for output in of(outputs, RecordEvicted)]
    back = dropped[0]
    node.gossip.handle_moved(back.payload.coordinate)
    node.beat_heart(60.0)
    assert back.peer_id not in held(node)
    assert of(node.hear(PEER, Records((back.envelope,)), 60.0), RecordAccepted) == [RecordAccepted(back, PEER.peer_id)]


def test_whom_the_node_is_connected_to_is_held_however_far_and_however_many_claim_to_be_near():
    node = looking()
    connected = IDENTITIES[1:11]  # more than the sample from beyond
    node.connect(*connected)
    for identity in connected:
        node.hear(identity, Records((sealed(identity, card(5.0)).envelope,)))
    for number, invented in enumerate(crowd(60)):
        node.hear(PEER, Records((sealed(invented, card(1e-6 * number)).envelope,)), now=2.0)
    node.beat_heart(60.0)
    assert {identity.peer_id for identity in connected} <= held(node)
    assert len(held(node)) <= SMALL.peers * 1.25 + SMALL.sample_max + len(connected)


def test_a_sample_from_beyond_does_not_grow_old():
    node, _, _ = crowded(40)
    assert node.gossip.beyond()
    node.beat_heart(SMALL.sample_life_s + 30.0)
    assert node.gossip.beyond() == []


# What is taken


def test_what_is_beyond_the_scope_is_taken_when_asked_for_only():
    node, _, _ = crowded(40)  # which has asked for others itself meanwhile, and given up
    stranger = sealed(IDENTITIES[5], card(7.0))
    assert node.hear(PEER, Records((stranger.envelope,)), 20.0) == []
    node.gossip.seek(Seek("", 1), [PEER.peer_id], 20.0)
    assert told(drained(node.gossip)) == [(PEER.peer_id, Seek("", 1))]
    assert node.hear(OTHER, Records((stranger.envelope,)), 20.1) == []  # who was not asked
    assert of(node.hear(PEER, Records((stranger.envelope,)), 20.1), RecordAccepted)
    second = sealed(IDENTITIES[6], card(7.0))
    assert node.hear(PEER, Records((second.envelope,)), 20.1) == []  # one was asked for


def test_an_answer_that_comes_too_late_is_not_taken():
    node, _, _ = crowded(40)
    node.gossip.seek(Seek("", 1), [PEER.peer_id], 20.0)
    drained(node.gossip)
    assert node.hear(PEER, Records((sealed(IDENTITIES[5], card(7.0)).envelope,)), 26.0) == []


def test_what_is_held_does_not_grow_old_by_moving_away():
    node, _, _ = crowded(40)
    near = crowd(1)[0]
    moved = sealed(near, card(7.0), sequence=2)
    assert of(node.hear(PEER, Records((moved.envelope,)), 20.0), RecordAccepted)


def test_a_connected_peer_is_heard_of_itself_from_beyond():
    node, _, _ = crowded(40)
    assert of(node.hear(PEER, Records((sealed(PEER, card(7.0)).envelope,)), 20.0), RecordAccepted)


def test_a_verdict_concerns_those_who_hold_whom_it_names_and_nobody_else():
    node, _, _ = crowded(40)
    near, far = crowd(1)[0], crowd(40)[39]
    assert far.peer_id not in held(node)
    of_near = sealed(IDENTITIES[5], Verdict((Accusation(key_of(near), 1),)))
    of_far = sealed(IDENTITIES[6], Verdict((Accusation(key_of(far), 1),)))
    assert of(node.hear(PEER, Records((of_near.envelope,)), 20.0), RecordAccepted)
    assert node.hear(PEER, Records((of_far.envelope,)), 20.0) == []


# What is told


def pushing(scope, at_s=0.0):
    """A node that pushes to one peer which has told a scope."""
    node = Node(0, config=GossipConfig(horizon=SMALL))
    node.gossip.handle_moved(place(at_s))
    node.connect(PEER, OTHER)
    node.hear(PEER, ScopeTold(scope))
    return node


def test_news_is_pushed_to_those_whom_it_concerns():
    node = pushing(Scope(place(1.0).vector, 0.1))
    near, far = sealed(IDENTITIES[5], card(1.05)), sealed(IDENTITIES[6], card(0.5))
    assert told(node.hear(OTHER, Records((near.envelope,))), Records) == [(PEER.peer_id, Records((near.envelope,)))]
    assert told(node.hear(OTHER, Records((far.envelope,))), Records) == []
    entries = [entry for _, message in told(node.beat_heart(10.0), Entries) for entry in message.entries]
    assert (key_of(IDENTITIES[6]), 1) not in entries


def test_who_moves_out_of_a_scope_is_told_there_once_more():
    node = pushing(Scope(place(1.0).vector, 0.1))
    node.hear(OTHER, Records((sealed(IDENTITIES[5], card(1.05)).envelope,)))
    node.beat_heart(5.0)
    moved, again = sealed(IDENTITIES[5], card(0.5), sequence=2), sealed(IDENTITIES[5], card(0.4), sequence=3)
    for record, now, expected in ((moved, 5.0, [(key_of(IDENTITIES[5]), 2)]), (again, 10.0, [])):
        node.hear(OTHER, Records((record.envelope,)), now=now)
        entries = [entry for _, message in told(node.beat_heart(now + 1.5), Entries) for entry in message.entries]
        assert entries == expected


@pytest.mark.parametrize("again", [False, True])
def test_a_node_announces_its_own_card_to_those_whose_scope_is_elsewhere_for_nobody_else_does(again):
    node = pushing(Scope(place(1.0).vector, 0.1))
    node.publish(card(0.0), 1.0)
    outputs = drained(node.gossip)
    if again:
        node.publish(card(0.0), 2.0)  # only renewed
        outputs = drained(node.gossip)
    assert [peer_id for peer_id, _ in told(outputs, Records)] == ([] if again else [OTHER.peer_id])
    announced = Entries(((key_of(node.identity), 1 + again),))
    assert told(outputs, Entries) == [(PEER.peer_id, announced)]


# Searches


def test_a_search_is_answered_with_the_nearest_beyond_the_scope_of_the_asker():
    node = looking()
    node.connect(PEER)
    offers = [(0.01, "m"), (0.3, "m"), (0.2, "m"), (0.25, "other"), (0.4, "m")]
    records = [sealed(identity, card(at_s, model)) for identity, (at_s, model) in zip(crowd(5), offers, strict=True)]
    for record in records:
        node.table.offer(record, 0.0, WALL_S)
    assert told(node.hear(PEER, Seek("m", 2))) == []  # whose scope is everything, as far as it said
    node.hear(PEER, ScopeTold(Scope(place(0.0).vector, 0.1)))
    expected = Records((records[2].envelope, records[1].envelope))
    assert told(node.hear(PEER, Seek("m", 2))) == [(PEER.peer_id, expected)]
    ((_, anything),) = told(node.hear(PEER, Seek("", 3)))
    assert len(anything.envelopes) == 3
    assert records[0].envelope not in anything.envelopes
    assert told(node.hear(PEER, Seek("unheard of", 2))) == []


def test_a_node_with_a_scope_asks_for_other_cards_from_beyond_now_and_then():
    node, _, _ = crowded(40)
    asked = told(node.beat_heart(SMALL.shuffle_s * 5.0), Seek)
    assert 4 <= len(asked) <= 7
    assert {message for _, message in asked} == {Seek("", SMALL.shuffle_count)}
    alone, _, _ = crowded(5)
    assert told(alone.beat_heart(SMALL.shuffle_s * 5.0), Seek) == []


@pytest.mark.parametrize("message", [ScopeTold(Scope(place(0.0).vector, 60.0)), Seek("m", 16)])
def test_who_tells_scopes_or_asks_all_the_time_is_held_back_and_then_blamed(message):
    node, _, _ = crowded(40)
    config = GossipConfig()
    outputs = [output for _ in range(40) for output in node.hear(PEER, message, 3.0)]
    assert len(of(outputs, RecordRefused)) >= config.exchanges_debt_max // config.question_cost
    assert of(outputs, Misbehaved) == [Misbehaved(PEER.peer_id, ErrorCode.FLOODING)]


def test_an_honest_node_does_not_tell_scopes_so_often_that_it_would_be_blamed():
    node, _, _ = crowded(200, step_s=0.001)
    changes = 0
    for turn in range(60):
        node.gossip.handle_moved(place(0.01 * turn))
        changes += len(told(node.beat_heart(10.0 + turn), ScopeTold)) // 2
    assert changes * GossipConfig().question_cost <= 60 * GossipConfig().exchanges_per_s


# Comparison


def met(one, other, seed):
    """A world in which two nodes were connected for a minute."""
    world = World([one, other], seed)
    world.connect(one, other)
    world.run(60.0)
    assert world.accused() == []
    return world


spots = st.integers(0, 60).map(lambda step: step * 0.01)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(spots, st.booleans(), st.booleans()), min_size=1, max_size=60), spots, st.integers(0, 99))
def test_two_tables_with_scopes_agree_on_what_both_cover(cards, apart_s, seed):
    one, other = looking(0.0, 0, direct_entries_max=4), looking(apart_s, 1, direct_entries_max=4)
    for number, (at_s, known_here, known_there) in enumerate(cards):
        identity = crowd(1, start=2000 + number)[0]
        for node, newest in ((one, known_here), (other, known_there)):
            node.table.offer(sealed(identity, card(at_s, "old"), sequence=1 + newest), 0.0, WALL_S)
    met(one, other, seed)
    for node, peer in ((one, other), (other, one)):
        scopes = [scope for scope in (node.gossip.scope, peer.gossip.scope) if scope is not None]
        for record in peer.table.cards():
            if all(scope.covers(place_of(record.payload.coordinate)) for scope in scopes) and record.peer_id != peer.peer_id:
                mine = node.table.get(record.peer_id, RecordKind.CARD)
                assert mine is not None
                assert mine.sequence == record.sequence


def test_tables_that_agree_on_what_both_cover_say_no_more_than_one_hash():
    one, other = looking(0.0, 0), looking(0.1, 1)
    for number, identity in enumerate(crowd(40)):
        for node in (one, other):
            node.table.offer(sealed(identity, card(0.005 * number)), 0.0, WALL_S)
    world = met(one, other, 1)
    assert one.gossip.scope is not None
    assert other.gossip.scope is not None
    assert held(one) != held(other)
    before = world.sent
    world.run(160.0)
    messages = world.sent - before
    assert messages <= 100.0 / one.gossip._config.round_s * 2 * 1.3 + 20  # and the questions for others from beyond


def test_entries_of_who_has_moved_away_are_answered_with_where_it_is_now():
    node, _, _ = crowded(40)
    mover = crowd(1)[0]
    node.hear(PEER, ScopeTold(node.gossip.scope), 20.0)
    node.hear(OTHER, Records((sealed(mover, card(9.0), sequence=2).envelope,)), 20.0)
    answers = told(node.hear(PEER, Entries(((key_of(mover), 1),), (key_of(mover)[0],)), 20.0), Entries)
    assert (key_of(mover), 2) in [entry for _, answer in answers for entry in answer.entries]


def test_a_view_follows_the_table_and_the_scopes():
    node, records, _ = crowded(40)
    scope = Scope(place(0.03).vector, 0.02)
    node.hear(PEER, ScopeTold(scope), 3.0)

    def root():
        ((_, answer),) = told(node.hear(PEER, Digest((bytes(8),)), 3.0))
        return {key for key, _ in answer.entries}

    inside = {
        key_of(identity)
        for identity, record in zip(crowd(40), records, strict=True)
        if scope.covers(place_of(record.payload.coordinate))
    }
    assert root() == {key for key in inside if node.table.sequence_of(key)} != set()
    newcomer = sealed(IDENTITIES[7], card(0.031))
    node.hear(OTHER, Records((newcomer.envelope,)), 3.0)
    assert key_of(IDENTITIES[7]) in root()
    node.table.remove(IDENTITIES[7].peer_id)
    assert key_of(IDENTITIES[7]) not in root()
    node.hear(PEER, ScopeTold(Scope(place(0.03).vector, 1e-9)), 3.0)
    assert root() == set()
    assert told(node.hear(PEER, Want((key_of(crowd(1)[0]),)), 3.0), Records)  # what is asked for by name is sent all the same
