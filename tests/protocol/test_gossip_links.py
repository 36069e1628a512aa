"""One gossip machine and its links: whom news is pushed to, what is announced, who is grafted and pruned, beats and keeping."""

from dataclasses import replace

import pytest
from gossip_nodes import CONFIG, Node, codes, crowd, drained, of, sealed, signed_by_hand, told
from record_strategies import BEAT, CARD, EDGES, IDENTITIES, VERDICT, WALL_S

from protocol.errors import ErrorCode
from protocol.gossip import BeatHeard, GossipConfig, Grafted, LinkKept, Misbehaved, Pruned, RecordAccepted, RecordRefused, Send
from protocol.gossip.beats import BEAT_BYTES_MAX, encode_beat
from protocol.gossip.messages import (
    BeatTold,
    Digest,
    DontWant,
    Entries,
    Graft,
    Keep,
    Prune,
    Records,
    Want,
)
from protocol.records import DEFAULT_RECORD_CONFIG, ModelOffer, RecordKind, encode_payload
from protocol.table import record_key

MESH = IDENTITIES[1:5]
"""Who is connected first, and so belongs to the mesh of a node that wants four links."""
OUTSIDE = IDENTITIES[5:8]
"""Who is connected after that."""
ORIGIN = IDENTITIES[20]
"""Somebody elsewhere whose records are told."""
LONG_CARD = replace(CARD, models=tuple(ModelOffer(f"organisation/model-{index}", frozenset()) for index in range(12)))
"""A card of which a copy costs more than saying that it is not wanted."""


def ids(*groups):
    return sorted(identity.peer_id for group in groups for identity in group)


def meshed(*more, **config):
    """A node with a full mesh; what it announces reaches all of `OUTSIDE`."""
    node = Node(0, config=GossipConfig(**{"degree_lazy": len(OUTSIDE), **config}))
    node.connect(*MESH, *more)
    assert node.gossip.mesh() == tuple(ids(MESH))
    return node


def key_of(record):
    return record_key(record.peer_id, record.kind)


def pushed(outputs):
    """Who is pushed which envelopes."""
    return {peer_id: message.envelopes for peer_id, message in told(outputs, Records)}


def announced(outputs):
    """Who is told of which keys without an answer being asked for."""
    return {peer_id: dict(message.entries) for peer_id, message in told(outputs, Entries) if not message.buckets}


# Pushing


def test_news_is_pushed_over_the_mesh_but_not_back_nor_to_its_origin():
    node = meshed(*OUTSIDE)
    record = sealed(MESH[3])
    outputs = node.hear(MESH[0], Records((record.envelope,)))
    assert of(outputs, RecordAccepted) == [RecordAccepted(record, MESH[0].peer_id)]
    assert pushed(outputs) == dict.fromkeys(ids(MESH[1:3]), (record.envelope,))


def test_news_from_outside_the_mesh_is_pushed_over_all_of_it():
    node = meshed(*OUTSIDE)
    record = sealed(ORIGIN, VERDICT)
    assert pushed(node.hear(OUTSIDE[0], Records((record.envelope,)))) == dict.fromkeys(ids(MESH), (record.envelope,))


def test_what_is_heard_in_one_message_is_pushed_in_one():
    node = meshed()
    news = tuple(sealed(identity).envelope for identity in crowd(20))
    outputs = node.hear(MESH[0], Records(news))
    assert pushed(outputs) == dict.fromkeys(ids(MESH[1:]), news)
    assert len(told(outputs, Records)) == 3


def test_own_news_is_pushed_over_the_mesh():
    node = meshed(*OUTSIDE)
    for payload in (CARD, VERDICT, EDGES):
        node.publish(payload, 1.0)
        envelope = node.table.get(node.peer_id, RecordKind(type(payload).__name__.lower())).envelope
        assert pushed(drained(node.gossip)) == dict.fromkeys(ids(MESH), (envelope,))


def test_what_concerns_neighbours_goes_one_hop_and_is_not_announced():
    node = meshed(*OUTSIDE)
    record = sealed(ORIGIN, EDGES)
    assert node.hear(MESH[0], Records((record.envelope,))) == [RecordAccepted(record, MESH[0].peer_id)]
    node.publish(EDGES, 1.0)
    drained(node.gossip)
    assert announced(node.beat_heart(5.0)) == {}


def test_a_record_of_a_kind_that_is_unknown_is_not_passed_on_and_costs_no_link():
    node = meshed(*OUTSIDE)
    assert node.hear(MESH[0], Records((signed_by_hand("beat", b"\xc0"),))) == [
        RecordRefused(MESH[0].peer_id, ErrorCode.UNSUPPORTED)
    ]
    outputs = node.beat_heart(5.0)
    assert pushed(outputs) == announced(outputs) == {}
    assert codes(outputs) == []
    assert node.gossip.mesh() == tuple(ids(MESH))


def test_what_was_asked_for_is_pushed_on_as_far_as_the_budget_goes():
    node = meshed(repeats_burst=10)
    records = [sealed(identity) for identity in crowd(30)]
    node.hear(MESH[0], Entries(tuple((key_of(record), 1) for record in records)))
    outputs = node.hear(MESH[0], Records(tuple(record.envelope for record in records)))
    assert len(of(outputs, RecordAccepted)) == 30
    assert pushed(outputs) == dict.fromkeys(ids(MESH[1:]), tuple(record.envelope for record in records[:10]))


# Announcing


def test_news_is_announced_outside_the_mesh_for_a_few_heartbeats():
    node = meshed(*OUTSIDE)
    record = sealed(ORIGIN)
    node.hear(MESH[0], Records((record.envelope,)), now=0.0)
    entry = ((key_of(record), 1),)
    heard = told(node.beat_heart(60.0), Entries)
    times = range(CONFIG.history_heartbeats)
    assert sorted(heard, key=lambda item: item[0]) == [(peer_id, Entries(entry)) for peer_id in ids(OUTSIDE) for _ in times]


def test_news_that_came_again_is_known_all_round_and_is_not_announced():
    node = meshed(*OUTSIDE)
    often, seldom = sealed(ORIGIN), sealed(IDENTITIES[21])
    for record in (often, seldom):
        node.hear(MESH[0], Records((record.envelope,)), now=0.0)
    node.hear(MESH[1], Records((often.envelope,)), now=0.0)
    assert announced(node.beat_heart(1.0)) == {key: {key_of(seldom): 1} for key in ids(OUTSIDE)}
    newer = sealed(ORIGIN, replace(CARD, models=()), sequence=2)
    node.hear(MESH[0], Records((newer.envelope,)))
    node.hear(MESH[1], Records((often.envelope,)))  # a copy of what it replaced says nothing of it
    assert announced(node.beat_heart(2.0)) == {key: {key_of(newer): 2, key_of(seldom): 1} for key in ids(OUTSIDE)}


def test_news_to_be_announced_is_bounded():
    node = meshed(*OUTSIDE, history_max=10)
    records = [sealed(identity) for identity in crowd(15)]
    node.hear(MESH[0], Records(tuple(record.envelope for record in records)), now=0.0)
    assert announced(node.beat_heart(1.0))[OUTSIDE[0].peer_id] == {key_of(record): 1 for record in records[5:]}


def test_no_more_peers_outside_the_mesh_are_told_than_the_lazy_degree():
    node = meshed(*IDENTITIES[5:20], history_heartbeats=1, degree_lazy=CONFIG.degree_lazy)
    node.hear(MESH[0], Records((sealed(ORIGIN).envelope,)), now=0.0)
    chosen = announced(node.beat_heart(60.0))
    assert len(chosen) == CONFIG.degree_lazy
    assert set(chosen) <= set(ids(IDENTITIES[5:20]))


def test_who_lacks_what_is_announced_asks_for_it_and_is_served():
    node, other = meshed(*OUTSIDE), Node(5)
    assert other.identity in OUTSIDE
    other.connect(node.identity)
    record = sealed(ORIGIN)
    node.hear(MESH[0], Records((record.envelope,)), now=0.0)
    message = dict(told(node.beat_heart(1.0), Entries))[other.peer_id]
    ((_, want),) = told(other.hear(node.identity, message), Want)
    ((_, answer),) = told(node.hear(other.identity, want), Records)
    assert of(other.hear(node.identity, answer), RecordAccepted) == [RecordAccepted(record, node.peer_id)]


def test_a_card_that_says_the_same_is_announced_and_not_pushed():
    node = meshed(*OUTSIDE)
    node.hear(MESH[0], Records((sealed(ORIGIN).envelope,)), now=0.0)
    node.beat_heart(5.0)
    renewed = sealed(ORIGIN, sequence=2, issued_s=WALL_S + 5.0)
    outputs = node.hear(MESH[0], Records((renewed.envelope,)), now=5.0)
    assert [output.record for output in outputs] == [renewed]
    assert announced(node.beat_heart(6.1)) == {key: {key_of(renewed): 2} for key in ids(MESH[1:])}
    assert announced(node.beat_heart(9.0)) == {}


def test_a_card_that_says_no_more_than_a_new_place_is_announced_and_not_pushed():
    node = meshed(*OUTSIDE)
    node.hear(MESH[0], Records((sealed(ORIGIN).envelope,)), now=0.0)
    node.beat_heart(5.0)
    moved = sealed(ORIGIN, replace(CARD, coordinate=None), sequence=2)
    outputs = node.hear(MESH[0], Records((moved.envelope,)), now=5.0)
    assert [output.record for output in outputs] == [moved]
    assert announced(node.beat_heart(6.1)) == {key: {key_of(moved): 2} for key in ids(MESH[1:])}


def test_who_has_told_of_a_renewed_card_is_not_told_of_it():
    node = meshed()
    node.hear(MESH[0], Records((sealed(ORIGIN).envelope,)), now=0.0)
    node.beat_heart(5.0)
    renewed = sealed(ORIGIN, sequence=2)
    node.hear(MESH[0], Records((renewed.envelope,)), now=5.0)
    node.hear(MESH[1], Entries(((key_of(renewed), 2),)), now=5.1)
    node.hear(MESH[2], Entries(((key_of(renewed), 1),)), now=5.2)
    assert announced(node.beat_heart(6.1)) == {key: {key_of(renewed): 2} for key in ids(MESH[2:])}


def test_no_tables_are_compared_while_cards_that_can_wait_are_on_their_way():
    node = meshed()
    node.hear(MESH[0], Records((sealed(ORIGIN).envelope,)), now=0.0)
    node.beat_heart(10.0)
    node.hear(MESH[0], Records((sealed(ORIGIN, sequence=2).envelope,)), now=10.0)
    assert told(node.beat_heart(10.0 + CONFIG.in_motion_s - 0.01), Digest) == []
    assert len(told(node.beat_heart(16.0 + CONFIG.in_motion_s), Digest)) >= 2


def test_tables_are_compared_now_and_then_though_cards_are_always_on_their_way():
    node = meshed()
    compared = 0
    for second in range(1, 121):
        node.hear(MESH[0], Records((sealed(ORIGIN, sequence=second).envelope,)), now=float(second))
        compared += len(told(node.beat_heart(second + 0.99), Digest))
    assert compared == pytest.approx(120.0 / CONFIG.round_s / (CONFIG.rounds_left_out_max + 1), abs=2)


def test_an_own_card_that_says_the_same_is_announced_and_not_pushed():
    node = meshed(*OUTSIDE)
    node.publish(CARD, 0.0)
    node.beat_heart(5.0)
    node.publish(CARD, 5.0)
    assert drained(node.gossip) == []
    assert announced(node.beat_heart(6.1)) == {key: {record_key(node.peer_id, RecordKind.CARD): 2} for key in ids(MESH)}


@pytest.mark.parametrize("changed", [replace(CARD, incarnation=9), replace(CARD, models=())], ids=range(2))
def test_a_card_that_says_anything_new_is_pushed(changed):
    node = meshed()
    node.hear(MESH[0], Records((sealed(ORIGIN).envelope,)))
    news = sealed(ORIGIN, changed, sequence=2)
    assert pushed(node.hear(MESH[0], Records((news.envelope,)))) == dict.fromkeys(ids(MESH[1:]), (news.envelope,))


def test_a_verdict_is_pushed_even_where_it_says_the_same():
    node = meshed()
    node.hear(MESH[0], Records((sealed(ORIGIN, VERDICT).envelope,)))
    again = sealed(ORIGIN, VERDICT, sequence=2)
    assert pushed(node.hear(MESH[0], Records((again.envelope,)))) == dict.fromkeys(ids(MESH[1:]), (again.envelope,))


# What is not wanted


def test_who_has_a_long_record_tells_the_others_before_they_send_it():
    node = meshed()
    record = sealed(ORIGIN, LONG_CARD)
    assert len(record.envelope) >= CONFIG.dont_want_bytes_min
    outputs = node.hear(MESH[0], Records((record.envelope,)))
    assert told(outputs, DontWant) == [(peer_id, DontWant(((key_of(record), 1),))) for peer_id in ids(MESH[1:])]
    short = sealed(IDENTITIES[21])
    assert len(short.envelope) < CONFIG.dont_want_bytes_min
    assert told(node.hear(MESH[0], Records((short.envelope,))), DontWant) == []


def test_who_has_a_record_is_neither_sent_nor_announced_it():
    node = meshed()
    record = sealed(ORIGIN, LONG_CARD, sequence=3)
    node.hear(MESH[1], DontWant(((key_of(record), 3),)))
    node.hear(MESH[2], DontWant(((key_of(record), 2),)))  # an older one
    outputs = node.hear(MESH[0], Records((record.envelope,)))
    assert sorted(pushed(outputs)) == ids(MESH[2:])
    renewed = sealed(ORIGIN, LONG_CARD, sequence=4)
    node.hear(MESH[1], DontWant(((key_of(record), 4),)))
    node.hear(MESH[0], Records((renewed.envelope,)))
    assert sorted(announced(node.beat_heart(2.1))) == ids(MESH[2:])


def test_what_is_not_wanted_is_remembered_up_to_a_bound():
    node = meshed(history_max=10)
    records = [sealed(identity) for identity in crowd(11)]
    node.hear(MESH[1], DontWant(tuple((key_of(record), 1) for record in records)))
    outputs = node.hear(MESH[0], Records((records[0].envelope, records[10].envelope)))
    assert pushed(outputs)[MESH[1].peer_id] == (records[0].envelope,)  # the oldest is forgotten, and costs one copy


def test_endless_lists_of_what_is_not_wanted_are_ignored_and_then_blamed():
    node = meshed(records_burst=10, records_debt_max=5)
    refusals = []
    while not (refusals and refusals[-1] is Misbehaved):
        outputs = node.hear(MESH[1], DontWant(((key_of(sealed(ORIGIN)), 1),)))
        refusals += [type(output) for output in outputs if codes([output]) == [ErrorCode.FLOODING]]
    assert len(refusals) == 6


# Links


def test_the_first_peers_are_grafted_up_to_the_degree():
    node = Node(0)
    outputs = node.connect(*IDENTITIES[1:10])
    assert of(outputs, Grafted) == [Grafted(identity.peer_id) for identity in MESH]
    assert told(outputs, Graft) == [(identity.peer_id, Graft()) for identity in MESH]
    assert node.gossip.mesh() == tuple(ids(MESH))
    assert [node.gossip.in_mesh(identity.peer_id) for identity in (*MESH, *OUTSIDE)] == [True] * 4 + [False] * 3


def test_a_graft_is_taken_up_to_the_bound_and_refused_past_it():
    node = meshed(*OUTSIDE)
    for taken in OUTSIDE[:2]:
        assert node.hear(taken, Graft(), now=0.0) == [Grafted(taken.peer_id)]
        assert node.hear(taken, Graft(), now=0.0) == []  # known
    assert len(node.gossip.mesh()) == CONFIG.degree_max + 1
    refused = node.hear(OUTSIDE[2], Graft(), now=0.0)
    assert told(refused) == [(OUTSIDE[2].peer_id, Prune())]
    assert of(refused, Grafted) == []
    assert not node.gossip.in_mesh(OUTSIDE[2].peer_id)


def test_links_past_the_bound_are_given_back_at_the_heartbeat():
    node = meshed(*OUTSIDE)
    for taken in OUTSIDE[:2]:
        node.hear(taken, Graft(), now=0.0)
    outputs = node.beat_heart(1.0)
    given_back = [peer_id for peer_id, _ in told(outputs, Prune)]
    assert of(outputs, Pruned) == [Pruned(peer_id) for peer_id in given_back]
    assert len(node.gossip.mesh()) == CONFIG.degree
    assert sorted([*node.gossip.mesh(), *given_back]) == ids(MESH, OUTSIDE[:2])
    assert told(node.beat_heart(5.0), (Graft, Prune)) == []


def test_who_gives_a_link_back_is_told_no_news_and_is_replaced():
    node = meshed(*OUTSIDE[:2])
    assert node.hear(MESH[0], Prune()) == [Pruned(MESH[0].peer_id)]
    assert node.hear(MESH[0], Prune()) == []
    record = sealed(ORIGIN)
    assert sorted(pushed(node.hear(MESH[1], Records((record.envelope,))))) == ids(MESH[2:])
    outputs = node.beat_heart(2.1)
    ((grafted, _),) = told(outputs, Graft)
    assert grafted in ids(OUTSIDE[:2])
    assert of(outputs, Grafted) == [Grafted(grafted)]


def test_who_gave_a_link_back_is_left_alone_for_a_while_and_may_ask_for_it():
    node = Node(0)
    node.connect(MESH[0])
    node.hear(MESH[0], Prune(), now=1.0)
    outputs = node.hear(MESH[0], Graft(), now=2.0)
    assert (told(outputs), of(outputs, Grafted)) == ([], [Grafted(MESH[0].peer_id)])
    node.hear(MESH[0], Prune(), now=1.0)
    assert told(node.beat_heart(1.0 + CONFIG.prune_backoff_s - 0.001), Graft) == []
    assert told(node.beat_heart(1.0 + CONFIG.prune_backoff_s + CONFIG.heartbeat_s), Graft) == [(MESH[0].peer_id, Graft())]


def with_few_chosen():
    """A node with links to two peers that it keeps and four others, which knows one more that it keeps."""
    node = Node(0)
    kept, others, spare = IDENTITIES[1:3], IDENTITIES[3:7], IDENTITIES[7]
    node.connect(*kept, *others[:2])
    for identity in others[2:]:
        node.connect(identity)
        node.hear(identity, Graft())
    node.connect(spare)
    for identity in (*kept, spare):
        node.gossip.tell_kept(identity.peer_id, 0.5, keeps=True, legs=3)
    assert len(node.gossip.mesh()) == CONFIG.degree_max + 1
    drained(node.gossip)
    return node, kept, spare


@pytest.mark.parametrize("reason", ["given back", "not kept any more", "gone", "silent"])
def test_too_few_chosen_links_are_made_good_before_the_next_heartbeat(reason):
    node, (kept, _), spare = with_few_chosen()
    match reason:
        case "given back":
            outputs = node.hear(kept, Prune(), now=0.6)
        case "not kept any more":
            node.gossip.tell_kept(kept.peer_id, 0.6, keeps=False, legs=3)
            outputs = drained(node.gossip)
        case "gone":
            node.gossip.handle_disconnected(kept.peer_id, 0.6)
            outputs = drained(node.gossip)
        case _:
            node.gossip.handle_silent(kept.peer_id, 0.6)
            outputs = drained(node.gossip)
    assert told(outputs, Graft) == [(spare.peer_id, Graft())]
    assert node.gossip.in_mesh(spare.peer_id)


def test_who_has_a_card_finds_a_place_where_those_who_have_links_have_none():
    node, _, _ = with_few_chosen()
    without, other = IDENTITIES[8:10]
    node.connect(without, other)
    assert told(node.hear(without, Graft()), Prune) == [(without.peer_id, Prune())]
    node.hear(other, Records((sealed(other).envelope,)))
    assert told(node.hear(other, Graft()), Prune) == []
    node.beat_heart(1.5)
    assert node.gossip.in_mesh(other.peer_id)


def test_who_falls_silent_leaves_the_mesh_and_comes_back_with_a_comparison():
    node = Node(0)
    node.connect(*MESH[:2])
    node.gossip.handle_silent(MESH[0].peer_id, 0.5)
    outputs = drained(node.gossip)
    assert (told(outputs), of(outputs, Pruned)) == ([(MESH[0].peer_id, Prune())], [Pruned(MESH[0].peer_id)])
    node.gossip.handle_silent(MESH[0].peer_id, 0.5)
    assert drained(node.gossip) == []
    node.publish(CARD, 1.0)
    assert sorted(pushed(drained(node.gossip))) == ids(MESH[1:2])
    outputs = node.beat_heart(5.0)
    assert told(outputs, Graft) == []
    assert announced(outputs) == {}  # nor is it told what was news
    node.gossip.handle_heard(MESH[0].peer_id, 5.0)
    assert told(drained(node.gossip)) == [(MESH[0].peer_id, Digest((node.table.root_hash(),)))]
    assert told(node.beat_heart(6.1), Graft) == [(MESH[0].peer_id, Graft())]


def test_who_is_disconnected_leaves_the_mesh_and_is_replaced():
    node = meshed(*OUTSIDE[:1])
    node.gossip.handle_disconnected(MESH[0].peer_id, 1.0)
    assert drained(node.gossip) == [Pruned(MESH[0].peer_id)]
    node.gossip.handle_disconnected(MESH[0].peer_id, 1.0)
    assert drained(node.gossip) == []
    assert of(node.beat_heart(2.1), Grafted) == [Grafted(OUTSIDE[0].peer_id)]


def test_who_misbehaves_leaves_the_mesh_and_is_replaced():
    node = meshed(*OUTSIDE[:1])
    node.gossip.handle_message(MESH[0].peer_id, b"\xff", 1.0, WALL_S)
    assert drained(node.gossip) == [Misbehaved(MESH[0].peer_id, ErrorCode.MALFORMED), Pruned(MESH[0].peer_id)]
    assert of(node.beat_heart(2.1), Grafted) == [Grafted(OUTSIDE[0].peer_id)]


# Beats, and whether a link is kept


def test_a_beat_goes_to_those_who_are_to_hear_it():
    node = meshed(*OUTSIDE)
    node.gossip.tell_beat(BEAT, [MESH[0].peer_id, OUTSIDE[0].peer_id, ORIGIN.peer_id])
    beat = BeatTold(encode_beat(BEAT))
    assert told(drained(node.gossip)) == [(MESH[0].peer_id, beat), (OUTSIDE[0].peer_id, beat)]


def test_a_beat_that_is_too_long_tells_the_busiest_models():
    node = meshed()
    load = BEAT.loads[0]
    many = replace(BEAT, loads=tuple(replace(load, model=f"organisation/model-{index}", running=index) for index in range(60)))
    node.gossip.tell_beat(many, [MESH[0].peer_id])
    ((_, message),) = told(drained(node.gossip))
    assert len(message.payload) <= BEAT_BYTES_MAX
    other = Node(1)
    other.connect(node.identity)
    (heard,) = other.hear(node.identity, message)
    assert heard.beat.loads[0].running == 59


def test_a_beat_that_is_heard_goes_no_further():
    node = meshed(*OUTSIDE)
    outputs = node.hear(MESH[0], BeatTold(encode_beat(BEAT)))
    assert outputs == [BeatHeard(MESH[0].peer_id, BEAT)]
    assert len(node.table) == 0


@pytest.mark.parametrize("payload", [b"", b"\xc0", encode_payload(CARD, DEFAULT_RECORD_CONFIG), bytes(2000)], ids=range(4))
def test_a_beat_that_is_none_is_blamed_on_its_sender(payload):
    node = meshed()
    (misbehaved, _) = node.hear(MESH[0], BeatTold(payload))
    assert misbehaved.code in (ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)


@pytest.mark.parametrize("keeps", [True, False])
def test_an_end_says_whether_it_keeps_the_link(keeps):
    here, there = Node(0), Node(1)
    here.connect(there.identity)
    there.connect(here.identity)
    here.gossip.tell_kept(there.peer_id, 0.5, keeps=keeps, legs=3)
    here.gossip.tell_kept(ORIGIN.peer_id, 0.5, keeps=keeps, legs=3)  # who is not connected
    ((to, message),) = told(drained(here.gossip))
    assert (to, message) == (there.peer_id, Keep(keeps, 3))
    assert there.hear(here.identity, message) == [LinkKept(here.peer_id, keeps, 3)]


def test_a_node_without_peers_says_nothing_and_wakes_seldom():
    node = Node(0)
    assert node.gossip.next_timer() is None
    node.publish(CARD, 0.0)
    assert drained(node.gossip) == []
    wakes = 0
    while (due := node.gossip.next_timer()) <= 100.0:
        node.gossip.handle_timer(due, WALL_S + due)
        wakes += 1
    assert of(drained(node.gossip), Send) == []
    assert wakes <= 100.0 / CONFIG.expire_s + 1
