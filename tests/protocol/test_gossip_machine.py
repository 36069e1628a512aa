"""One gossip machine: what it compares, what it believes, whom it blames, and what anybody can cost it."""

from dataclasses import replace

import pytest
from gossip_nodes import CONFIG, NO_MESH, Node, codes, crowd, drained, of, sealed, signed_by_hand, told
from gossip_strategies import messages
from hypothesis import given, settings
from hypothesis import strategies as st
from record_strategies import BEAT, CARD, EDGES, EXAMPLES, IDENTITIES, LIFETIME_S, VERDICT, WALL_S

from protocol.errors import ErrorCode, LocalProtocolError
from protocol.gossip import (
    Equivocated,
    GossipConfig,
    Misbehaved,
    OwnRecordHeard,
    RecordAccepted,
    RecordExpired,
    RecordRefused,
    Send,
)
from protocol.gossip.beats import encode_beat
from protocol.gossip.messages import BeatTold, Digest, Entries, Graft, Keep, Prune, Want, encode_message, records_messages
from protocol.records import RecordKind
from protocol.table import BUCKETS, PeerTable, RecordKey, TableConfig, bucket_of, record_key
from protocol.wire import PackingLimits, pack

WIDE = PackingLimits(size_bytes_max=1_000_000, depth_max=16, values_max=100_000)
PEER = IDENTITIES[1]
OTHER = IDENTITIES[2]


def listener(table_config=None, **config):
    """A node with one connected peer; what is said at the beginning is drained, and the link belongs to no mesh."""
    node = Node(0, config=GossipConfig(**NO_MESH | config), table_config=table_config)
    node.connect(PEER)
    return node


def hear(node, peer, *envelopes, now=1.0):
    for message in records_messages(envelopes):
        node.gossip.handle_message(peer.peer_id, message, now, WALL_S + now)
    return drained(node.gossip)


def card_key(identity):
    return record_key(identity.peer_id, RecordKind.CARD)


# Comparing


def test_the_first_thing_on_connect_is_the_hash_of_everything():
    node = Node(0, config=GossipConfig(**NO_MESH))
    node.publish(CARD, 0.0)
    assert told(node.connect(PEER)) == [(PEER.peer_id, Digest((node.table.root_hash(),)))]


def test_greetings_are_bounded_and_the_rounds_see_to_the_rest():
    node = Node(0, config=GossipConfig(**NO_MESH))
    greeted = node.connect(*IDENTITIES[1:31])
    assert len(told(greeted, Digest)) == CONFIG.greetings_burst
    later = node.connect(IDENTITIES[31], now=0.5)
    assert len(told(later, Digest)) == 1
    compared = {peer_id for peer_id, _ in told(node.beat_heart(300.0), Digest)}
    assert compared == {identity.peer_id for identity in IDENTITIES[1:]}


def test_the_same_hash_of_everything_is_not_answered():
    node = listener()
    node.publish(CARD, 0.0)
    drained(node.gossip)
    assert node.hear(PEER, Digest((node.table.root_hash(),))) == []


def test_another_hash_of_everything_is_answered_with_all_entries_of_a_small_table():
    node = listener()
    node.publish(CARD, 0.0)
    drained(node.gossip)
    answer = told(node.hear(PEER, Digest((bytes(8),))))
    assert answer == [(PEER.peer_id, Entries(((card_key(node.identity), 1),), tuple(range(BUCKETS))))]


def test_large_tables_compare_hashes_and_tell_only_what_differs():
    node = listener(direct_entries_max=10)
    theirs = PeerTable(PEER.peer_id)
    for identity in crowd(30):
        record = sealed(identity)
        node.table.offer(record, 0.0, WALL_S)
        theirs.offer(record, 0.0, WALL_S)
    lacking = sealed(IDENTITIES[5])
    node.table.offer(lacking, 0.0, WALL_S)
    assert told(node.hear(PEER, Digest((theirs.root_hash(),)))) == [(PEER.peer_id, Digest(tuple(node.table.bucket_hashes())))]
    assert node.hear(PEER, Digest(tuple(node.table.bucket_hashes()))) == []  # nothing to tell
    ((_, answer),) = told(node.hear(PEER, Digest(tuple(theirs.bucket_hashes()))))
    key = card_key(IDENTITIES[5])
    assert answer.buckets == (bucket_of(key),)
    assert (key, 1) in answer.entries
    assert list(answer.entries) == node.table.digest(answer.buckets)


def test_told_buckets_are_answered_with_what_is_newer_and_what_is_missing():
    node = listener()
    held = [sealed(identity, sequence=5) for identity in IDENTITIES[2:5]]
    for record in held:
        node.table.offer(record, 0.0, WALL_S)
    older, same, _ = (card_key(identity) for identity in IDENTITIES[2:5])
    outputs = node.hear(PEER, Entries(((older, 4), (same, 5)), tuple(range(BUCKETS))))
    ((_, answer),) = told(outputs, Entries)
    assert sorted(answer.entries) == sorted([(older, 5), (card_key(IDENTITIES[4]), 5)])
    assert answer.buckets == ()  # which asks for no answer
    assert told(node.hear(PEER, Entries(((older, 4), (same, 5)), ())), Entries) == []


def test_peer_connected_again_is_told_again_on_its_new_stream():
    node = Node(0)
    first = told(node.connect(PEER))
    assert told(node.connect(PEER, now=1.0)) == first != []
    node.gossip.handle_message(PEER.peer_id, b"\xff", 1.0, WALL_S)
    assert of(drained(node.gossip), Misbehaved)
    assert node.connect(PEER, now=2.0) == []  # who misbehaved is told nothing


# Records


@pytest.mark.parametrize("payload", EXAMPLES)
def test_news_of_every_kind_is_accepted_once(payload):
    node = listener()
    record = sealed(OTHER, payload)
    assert hear(node, PEER, record.envelope) == [RecordAccepted(record, PEER.peer_id)]
    assert hear(node, PEER, *[record.envelope] * 500) == []


def test_what_a_record_replaces_is_told():
    node = listener()
    first, second = sealed(OTHER), sealed(OTHER, sequence=2)
    hear(node, PEER, first.envelope)
    (accepted,) = hear(node, PEER, second.envelope)
    assert (accepted.record, accepted.replaced) == (second, first)


def test_a_replayed_older_record_does_nothing():
    node = listener()
    hear(node, PEER, sealed(OTHER, sequence=9).envelope)
    assert hear(node, PEER, sealed(OTHER, sequence=8).envelope) == []
    assert node.table.get(OTHER.peer_id, RecordKind.CARD).sequence == 9


@pytest.mark.parametrize("payload", EXAMPLES)
def test_a_forged_record_is_blamed_on_its_sender_who_is_heard_no_more(payload):
    node = listener()
    genuine = sealed(OTHER, payload)
    forged = bytes(64) + genuine.envelope[64:]
    assert hear(node, PEER, forged) == [Misbehaved(PEER.peer_id, ErrorCode.BAD_SIGNATURE)]
    assert hear(node, PEER, genuine.envelope) == []
    assert len(node.table) == 0


def test_who_misbehaved_is_told_nothing():
    node = Node(0)
    node.connect(PEER)
    outputs = hear(node, PEER, b"junk")
    assert outputs[0] == Misbehaved(PEER.peer_id, ErrorCode.MALFORMED)
    node.publish(CARD, 2.0)
    node.gossip.tell_beat(BEAT, [PEER.peer_id])
    node.gossip.tell_kept(PEER.peer_id, 2.0, keeps=True, legs=3)
    node.gossip.handle_heard(PEER.peer_id, 2.0)
    assert of(drained(node.gossip), Send) == []
    assert of(node.beat_heart(60.0), Send) == []
    assert node.gossip.mesh() == ()


def test_what_came_before_the_forgery_counts():
    node = listener()
    record = sealed(OTHER)
    outputs = hear(node, PEER, record.envelope, b"junk", sealed(IDENTITIES[3]).envelope)
    assert outputs == [RecordAccepted(record, PEER.peer_id), Misbehaved(PEER.peer_id, ErrorCode.MALFORMED)]


def test_a_record_of_another_network_is_blamed_on_its_sender():
    node = listener()
    outputs = hear(node, PEER, sealed(OTHER, network="elsewhere").envelope)
    assert outputs == [Misbehaved(PEER.peer_id, ErrorCode.WRONG_NETWORK)]


def test_an_oversized_record_is_blamed_on_its_sender():
    node = listener()
    assert hear(node, PEER, bytes(9000)) == [Misbehaved(PEER.peer_id, ErrorCode.TOO_LARGE)]


@pytest.mark.parametrize(
    ("issued_s", "code"), [(WALL_S - 90_000.0, ErrorCode.EXPIRED), (WALL_S + 100.0, ErrorCode.NOT_YET_VALID)]
)
def test_a_record_of_another_time_is_refused_without_blame(issued_s, code):
    node = listener()
    assert hear(node, PEER, sealed(OTHER, issued_s=issued_s).envelope) == [RecordRefused(PEER.peer_id, code)]
    assert len(node.table) == 0


@pytest.mark.parametrize(
    ("kind", "packed"), [("route", b"\xc0"), ("beat", pack({"draining": False, "loads": []}, WIDE))], ids=["later", "given up"]
)
def test_a_kind_that_is_unknown_is_refused_without_blame(kind, packed):
    node = listener()
    record = sealed(IDENTITIES[3])
    outputs = hear(node, PEER, signed_by_hand(kind, packed), record.envelope)
    assert outputs == [RecordRefused(PEER.peer_id, ErrorCode.UNSUPPORTED), RecordAccepted(record, PEER.peer_id)]
    assert list(node.table) == [record]


def test_a_signed_payload_that_is_wrong_is_refused_once_without_blame():
    node = listener()
    envelope = signed_by_hand("edges", b"\xc0")
    assert hear(node, PEER, envelope) == [RecordRefused(PEER.peer_id, ErrorCode.MALFORMED)]
    assert hear(node, PEER, envelope) == []


def test_equivocation_is_told_once_and_the_first_record_stays():
    node = listener()
    first, second = sealed(OTHER), sealed(OTHER, replace(CARD, agent="other"))
    hear(node, PEER, first.envelope)
    assert hear(node, PEER, second.envelope) == [Equivocated(first, second)]
    assert hear(node, PEER, second.envelope) == []
    assert node.table.get(OTHER.peer_id, RecordKind.CARD) == first


def test_a_forgotten_own_record_is_heard():
    node = listener()
    assert hear(node, PEER, sealed(node.identity, sequence=77).envelope) == [OwnRecordHeard(77)]
    assert len(node.table) == 0


def test_only_own_and_newer_records_are_published():
    node = Node(0)
    node.gossip.publish(sealed(node.identity, sequence=5), 0.0)
    with pytest.raises(LocalProtocolError):
        node.gossip.publish(sealed(node.identity, sequence=5), 0.0)
    with pytest.raises(LocalProtocolError):
        node.gossip.publish(sealed(IDENTITIES[1], sequence=6), 0.0)


def test_a_full_table_refuses_without_blame():
    node = listener(table_config=TableConfig(peers_max=2))
    outputs = hear(node, PEER, *[sealed(identity).envelope for identity in IDENTITIES[2:6]])
    assert len(of(outputs, RecordAccepted)) == 2
    assert codes(outputs) == [ErrorCode.OVERLOADED] * 2


@pytest.mark.parametrize("peers", [0, 1])
def test_expired_records_leave_with_a_fact(peers):
    node = listener()
    edges = sealed(OTHER, EDGES, issued_s=WALL_S + 30.0 - LIFETIME_S[RecordKind.EDGES])
    hear(node, PEER, edges.envelope)
    if not peers:
        node.gossip.handle_disconnected(PEER.peer_id, 2.0)
    assert of(node.beat_heart(89.0), RecordExpired) == []
    assert of(node.beat_heart(100.0), RecordExpired) == [RecordExpired(edges)]


# Asking


def test_a_claim_that_is_never_kept_is_asked_for_elsewhere_in_time():
    node = listener()
    others = IDENTITIES[4:7]
    node.connect(OTHER, *others)
    claim = Entries(((card_key(IDENTITIES[3]), 1),))
    asks = Want((card_key(IDENTITIES[3]),))
    again_s = CONFIG.want_again_s
    assert told(node.hear(PEER, claim, 1.0)) == [(PEER.peer_id, asks)]
    assert told(node.hear(OTHER, claim, 0.9 + again_s)) == []
    assert told(node.hear(PEER, claim, 1.0 + again_s)) == []  # it was asked, and may be slow
    assert told(node.hear(OTHER, claim, 1.0 + again_s)) == [(OTHER.peer_id, asks)]
    assert told(node.hear(others[0], claim, 1.9 * again_s + 1.0)) == []
    assert told(node.hear(others[0], claim, 2.0 * again_s + 1.0)) == [(others[0].peer_id, asks)]
    assert told(node.hear(others[1], claim, 0.9 + CONFIG.want_timeout_s)) == []  # three are asked and no more
    assert told(node.hear(others[1], claim, 1.0 + CONFIG.want_timeout_s)) == [(others[1].peer_id, asks)]


def test_whoever_was_asked_may_send_it_though_it_came_from_another():
    node = listener(records_burst=0, records_per_s=0.0)
    node.connect(OTHER)
    claim = Entries(((card_key(IDENTITIES[3]), 1),))
    node.hear(PEER, claim, 1.0)
    node.hear(OTHER, claim, 1.6)
    first, second = (sealed(IDENTITIES[3], sequence=sequence).envelope for sequence in (1, 2))
    assert len(of(hear(node, OTHER, first, now=1.7), RecordAccepted)) == 1
    assert codes(hear(node, OTHER, second, now=1.8)) == [ErrorCode.FLOODING]  # it was asked for one
    assert len(of(hear(node, PEER, second, now=1.9), RecordAccepted)) == 1


def test_a_table_that_is_on_its_way_is_not_asked_for_twice():
    node = listener()
    node.connect(OTHER)
    claim = Entries(tuple(sorted((card_key(identity), 1) for identity in IDENTITIES[3:5])))
    node.hear(PEER, claim, 1.0)
    hear(node, PEER, sealed(IDENTITIES[3]).envelope, now=1.4)
    assert told(node.hear(OTHER, claim, 1.8)) == []
    assert told(node.hear(OTHER, claim, 1.9)) == [(OTHER.peer_id, Want((card_key(IDENTITIES[4]),)))]


def test_what_a_gone_peer_was_asked_for_is_asked_for_elsewhere():
    node = listener()
    claim = Entries(((RecordKey(b"k" * 8), 1),))
    node.hear(PEER, claim, 1.0)
    node.gossip.handle_disconnected(PEER.peer_id, 1.5)
    node.connect(OTHER, now=1.5)
    assert told(node.hear(OTHER, claim, 2.0)) == [(OTHER.peer_id, Want((RecordKey(b"k" * 8),)))]


def claims(first, number):
    return Entries(tuple((RecordKey(index.to_bytes(8, "big")), 1) for index in range(first, first + number)))


def test_wants_under_way_are_bounded():
    node = listener(wants_max=100)
    ((_, want),) = told(node.hear(PEER, claims(0, 1000)))
    assert len(want.keys) == 100
    assert node.hear(PEER, claims(0, 1000), 1.1) == []


def test_newcomers_ask_in_orders_of_their_own():
    """Whose card comes first is dialled first."""
    orders = set()
    for seed in range(8):
        node = Node(0, seed, config=GossipConfig(**NO_MESH))
        node.connect(PEER)
        ((_, want),) = told(node.hear(PEER, claims(0, 100)))
        assert sorted(want.keys) == [key for key, _ in claims(0, 100).entries]
        orders.add(want.keys)
    assert len(orders) == 8


def test_peer_that_was_sent_what_it_lacked_is_fed_once_that_has_arrived():
    node = listener()
    hear(node, PEER, sealed(OTHER).envelope)
    node.connect(OTHER)
    node.hear(OTHER, Want((RecordKey(b"k" * 8),)), 2.0)  # which nobody has
    assert node.gossip.fed(60.0) == []
    node.hear(PEER, Want((card_key(OTHER),)), 2.0)
    assert node.gossip.fed(2.0 + CONFIG.fed_s - 0.1) == []
    assert node.gossip.fed(2.0 + CONFIG.fed_s) == [PEER.peer_id]
    node.gossip.handle_disconnected(PEER.peer_id, 3.0)
    assert node.gossip.fed(60.0) == []


def test_wants_that_are_never_answered_make_room_in_time():
    node = listener(wants_max=2)
    assert len(told(node.hear(PEER, claims(0, 2), 1.0))) == 1
    assert told(node.hear(PEER, claims(2, 2), 1.5)) == []
    node.gossip.handle_timer(6.5, WALL_S)
    drained(node.gossip)
    assert len(told(node.hear(PEER, claims(4, 2), 6.6))) == 1


def test_a_claim_about_what_is_known_is_not_asked_for():
    node = listener()
    hear(node, PEER, sealed(OTHER, sequence=5).envelope)
    assert node.hear(PEER, Entries(((card_key(OTHER), 5),))) == []
    node.table.remove(OTHER.peer_id)  # what is remembered counts like what is held
    assert node.hear(PEER, Entries(((card_key(OTHER), 5),))) == []
    assert told(node.hear(PEER, Entries(((card_key(OTHER), 6),)))) == [(PEER.peer_id, Want((card_key(OTHER),)))]


# Budgets


def test_a_flooding_sender_is_refused_and_then_blamed():
    node = listener()
    records = [sealed(identity, EDGES) for identity in crowd(CONFIG.records_burst + CONFIG.records_debt_max + 10)]
    outputs = hear(node, PEER, *[record.envelope for record in records])
    assert len(of(outputs, RecordAccepted)) == CONFIG.records_burst
    assert codes(outputs) == [ErrorCode.FLOODING] * (CONFIG.records_debt_max + 1)
    assert outputs[-1] == Misbehaved(PEER.peer_id, ErrorCode.FLOODING)
    assert len(of(outputs, Misbehaved)) == 1


def test_a_budget_fills_again_with_time():
    node = listener(records_burst=100)
    records = [sealed(identity, EDGES) for identity in crowd(130)]
    hear(node, PEER, *[record.envelope for record in records[:110]])
    assert codes(hear(node, PEER, records[110].envelope, now=1.2)) == [ErrorCode.FLOODING]
    assert hear(node, PEER, records[111].envelope, now=3.0) == [RecordAccepted(records[111], PEER.peer_id)]


def test_one_sender_s_flood_takes_nothing_from_another():
    node = listener(records_burst=100)
    node.connect(OTHER)
    records = [sealed(identity, EDGES) for identity in crowd(300)]
    hear(node, PEER, *[record.envelope for record in records[:-1]])
    assert RecordAccepted(records[-1], OTHER.peer_id) in hear(node, OTHER, records[-1].envelope)


@pytest.mark.parametrize(
    "question", [Digest((b"\xff" * 8,)), Digest((b"\xff" * 8,) * BUCKETS), Entries((), (0,)), Graft(), Prune(), Keep(keeps=True)]
)
def test_endless_questions_are_ignored_and_then_blamed(question):
    node = listener()
    node.publish(CARD, 0.0)
    drained(node.gossip)
    heard, refusals = 0, []
    while len(refusals) <= CONFIG.exchanges_debt_max:
        outputs = node.hear(PEER, question)
        refusals += codes(outputs)
        heard += not codes(outputs)
        assert heard <= CONFIG.exchanges_burst
    assert heard == CONFIG.exchanges_burst
    assert refusals == [ErrorCode.FLOODING] * (CONFIG.exchanges_debt_max + 1)
    assert outputs[0] == Misbehaved(PEER.peer_id, ErrorCode.FLOODING)
    assert node.hear(PEER, question) == []


def test_endless_bytes_are_ignored_and_then_blamed():
    node = listener()
    (message,) = records_messages([sealed(OTHER).envelope] * 80)
    misbehaved = []
    for _ in range(4 * 2_097_152 // len(message)):
        node.gossip.handle_message(PEER.peer_id, message, 1.0, WALL_S)
        misbehaved += of(drained(node.gossip), Misbehaved)
    assert misbehaved == [Misbehaved(PEER.peer_id, ErrorCode.FLOODING)]


def test_endless_beats_are_refused():
    node = listener()
    told_beat = BeatTold(encode_beat(BEAT))
    outputs = [output for _ in range(100) for output in node.hear(PEER, told_beat)]
    assert len(outputs) == 100
    assert codes(outputs) == [ErrorCode.FLOODING] * (100 - CONFIG.beats_burst)
    assert codes(node.hear(PEER, told_beat, now=1.5)) == []


def test_bytes_that_were_asked_for_are_free():
    node = listener(bytes_burst=80_000, bytes_per_s=1.0, bytes_debt_max=0)
    records = [sealed(identity) for identity in crowd(300)]
    for batch in (records[:100], records[100:200], records[200:]):
        node.hear(PEER, Entries(tuple((record_key(record.peer_id, record.kind), 1) for record in batch)))
        assert sum(len(record.envelope) for record in batch) > 50_000
        assert len(of(hear(node, PEER, *[record.envelope for record in batch]), RecordAccepted)) == 100


def test_what_is_served_is_bounded():
    node = listener(served_burst=2000)
    for identity in crowd(20):
        node.table.offer(sealed(identity), 0.0, WALL_S)
    ((_, served),) = told(node.hear(PEER, Want(tuple(key for key, _ in node.table.digest())), 0.0))
    assert 0 < sum(len(envelope) for envelope in served.envelopes) <= 2000


def test_connected_peers_are_bounded():
    node = Node(0, config=GossipConfig(peers_max=3))
    assert {peer_id for peer_id, _ in told(node.connect(*IDENTITIES[1:10]))} == {who.peer_id for who in IDENTITIES[1:4]}


def test_messages_of_strangers_are_not_heard():
    node = listener()
    assert hear(node, IDENTITIES[9], sealed(OTHER).envelope) == []
    assert node.hear(IDENTITIES[9], Graft()) == []


@settings(max_examples=100)
@given(st.lists(messages.map(encode_message) | st.binary(max_size=100), max_size=20))
def test_whatever_a_peer_sends_is_at_worst_blamed(payloads):
    node = Node(0)
    node.connect(PEER)
    for payload in payloads:
        node.gossip.handle_message(PEER.peer_id, payload, 1.0, WALL_S)
        drained(node.gossip)
    node.beat_heart(5.0)
    assert len(node.table) == 0
    node.connect(OTHER, now=5.0)
    record = sealed(IDENTITIES[3], VERDICT)
    assert RecordAccepted(record, OTHER.peer_id) in hear(node, OTHER, record.envelope, now=5.0)
