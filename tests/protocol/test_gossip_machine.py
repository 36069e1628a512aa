"""Gossip: alone against single messages, and twenty machines on virtual time."""

import heapq
import random
from dataclasses import replace
from itertools import combinations, count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_strategies import BEAT, CARD, EDGES, IDENTITIES, NETWORK, WALL_S

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.gossip import (
    MESSAGE_BYTES_MAX,
    Equivocated,
    Gossip,
    GossipConfig,
    Misbehaved,
    OwnRecordHeard,
    RecordAccepted,
    RecordExpired,
    RecordRefused,
    Send,
)
from protocol.gossip.messages import (
    ENTRIES_MAX,
    ENVELOPES_MAX,
    WANTS_MAX,
    Digest,
    Entries,
    Records,
    Want,
    answer_messages,
    decode_message,
    encode_message,
    entries_messages,
    records_messages,
)
from protocol.identity import Identity
from protocol.records import RecordKind, kind_of, seal
from protocol.table import BUCKETS, PeerTable, RecordKey, TableConfig, bucket_of, record_key
from protocol.wire import PackingLimits, pack

LIFETIME_S = {RecordKind.CARD: 86_400.0, RecordKind.BEAT: 30.0, RecordKind.EDGES: 3_600.0}
WIDE = PackingLimits(size_bytes_max=1_000_000, depth_max=16, values_max=100_000)
CONFIG = GossipConfig()


def sealed(identity, payload=CARD, sequence=1, issued_s=WALL_S, network=NETWORK):
    return seal(identity, network, payload, sequence, issued_s, issued_s + LIFETIME_S[kind_of(payload)])


def drained(machine):
    outputs = []
    while (output := machine.next_output()) is not None:
        outputs.append(output)
    return outputs


def of(outputs, kind):
    return [output for output in outputs if isinstance(output, kind)]


def codes(outputs):
    return [output.code for output in of(outputs, (RecordRefused, Misbehaved))]


class Node:
    """One machine with its table, whose wall clock may be off."""

    def __init__(self, index, seed=0, config=CONFIG, table_config=None, clock_off_s=0.0):
        self.identity = IDENTITIES[index] if index < len(IDENTITIES) else Identity.from_seed(index.to_bytes(32, "big"))
        self.peer_id = self.identity.peer_id
        self.table = PeerTable(self.peer_id, table_config)
        self.gossip = Gossip(config, self.table, NETWORK, random.Random(f"{seed}/{index}"))
        self.sequence = 0
        self.clock_off_s = clock_off_s

    def publish(self, payload, now):
        self.sequence += 1
        self.gossip.publish(sealed(self.identity, payload, self.sequence, WALL_S + now + self.clock_off_s), now)


class World:
    """Machines joined by links with delay and loss, on virtual time."""

    def __init__(self, nodes, seed=0, loss=0.0):
        self.nodes = {node.peer_id: node for node in nodes}
        self.luck = random.Random(f"world {seed}")
        self.loss = loss
        self.now = 0.0
        self.links = set()
        self.flying = []
        self.order = count()
        self.facts = []
        self.sent = 0

    def connect(self, one, other):
        self.links.add(frozenset((one.peer_id, other.peer_id)))
        for a, b in ((one, other), (other, one)):
            a.gossip.handle_connected(b.peer_id, self.now)
        self.drain(one, other)

    def disconnect(self, one, other):
        self.links.discard(frozenset((one.peer_id, other.peer_id)))
        for a, b in ((one, other), (other, one)):
            a.gossip.handle_disconnected(b.peer_id, self.now)
        self.drain(one, other)

    def publish(self, node, payload):
        node.publish(payload, self.now)
        self.drain(node)

    def drain(self, *touched):
        for node in touched:
            for output in drained(node.gossip):
                if isinstance(output, Send):
                    assert len(output.payload) <= MESSAGE_BYTES_MAX
                    self.sent += 1
                    if self.luck.random() >= self.loss:
                        at = self.now + self.luck.uniform(0.001, 0.05)
                        heapq.heappush(self.flying, (at, next(self.order), node.peer_id, output.peer_id, output.payload))
                else:
                    self.facts.append((round(self.now, 6), node.peer_id, output))

    def run(self, until):
        while True:
            timers = [(at, peer_id) for peer_id, node in self.nodes.items() if (at := node.gossip.next_timer()) is not None]
            at = min([timer[0] for timer in timers] + [flight[0] for flight in self.flying[:1]], default=until)
            if at >= until:
                self.now = until
                return
            self.now = at
            if self.flying and self.flying[0][0] == at:
                _, _, source, target, payload = heapq.heappop(self.flying)
                node = self.nodes[target]
                if frozenset((source, target)) in self.links:
                    node.gossip.handle_message(source, payload, at, WALL_S + at + node.clock_off_s)
            else:
                node = self.nodes[min(timers)[1]]
                node.gossip.handle_timer(at, WALL_S + at + node.clock_off_s)
            self.drain(node)

    def know_all(self, records):
        return all(len(node.table) == records for node in self.nodes.values())

    def accused(self):
        return [fact for fact in self.facts if isinstance(fact[2], Misbehaved | RecordRefused | Equivocated)]


def ring_with_chords(world, nodes):
    for index, node in enumerate(nodes):
        for step in (1, 3, 7):
            other = nodes[(index + step) % len(nodes)]
            if frozenset((node.peer_id, other.peer_id)) not in world.links:
                world.connect(node, other)


def joined_world(size=20, loss=0.0, seed=0, **config):
    nodes = [Node(index, seed, config=GossipConfig(**config)) for index in range(size)]
    world = World(nodes, seed, loss)
    ring_with_chords(world, nodes)
    return world, nodes


# Messages


keys = st.binary(min_size=8, max_size=8).map(RecordKey)
entries = st.lists(st.tuples(keys, st.integers(1, 2**63 - 1)), max_size=20).map(tuple)
messages = (
    st.builds(Records, st.lists(st.binary(max_size=300), max_size=5).map(tuple))
    | st.builds(Digest, st.lists(st.binary(min_size=8, max_size=8), min_size=BUCKETS, max_size=BUCKETS).map(tuple))
    | st.builds(Entries, entries, st.sets(st.integers(0, BUCKETS - 1)).map(sorted).map(tuple))
    | st.builds(Want, st.lists(keys, min_size=1, max_size=20).map(tuple))
)


@given(messages)
def test_a_message_comes_back_as_it_went(message):
    assert decode_message(encode_message(message)) == message


@given(
    st.binary(max_size=200)
    | st.lists(st.integers(0, 5) | st.binary(max_size=40) | st.lists(st.binary(max_size=5)), max_size=4).map(
        lambda value: pack(value, WIDE)
    )
)
def test_any_bytes_are_a_message_or_the_one_declared_error(payload):
    try:
        decode_message(payload)
        code = ErrorCode.NO_ERROR
    except RemoteProtocolError as error:
        code = error.code
    assert code in (ErrorCode.NO_ERROR, ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], ErrorCode.MALFORMED),
        ([1], ErrorCode.MALFORMED),
        ({"type": 1}, ErrorCode.MALFORMED),
        ([True, []], ErrorCode.MALFORMED),
        (["records", []], ErrorCode.MALFORMED),
        ([1, {}], ErrorCode.MALFORMED),
        ([1, ["text"]], ErrorCode.MALFORMED),
        ([1, [b""] * (ENVELOPES_MAX + 1)], ErrorCode.TOO_LARGE),
        ([2, b"x" * 1023], ErrorCode.MALFORMED),
        ([2, b"x" * 1032], ErrorCode.TOO_LARGE),
        ([3, bytes(16)], ErrorCode.MALFORMED),
        ([3, bytes(15), b""], ErrorCode.MALFORMED),
        ([3, bytes(16), b"x" * 15], ErrorCode.MALFORMED),
        ([3, bytes(16), bytes(16)], ErrorCode.MALFORMED),  # sequence 0
        ([3, bytes(16), b"\xff" * 16], ErrorCode.MALFORMED),
        ([3, bytes(16), b"\x01" * 16 * (ENTRIES_MAX + 1)], ErrorCode.TOO_LARGE),
        ([4, b""], ErrorCode.MALFORMED),
        ([4, b"x" * 9], ErrorCode.MALFORMED),
        ([4, b"x" * 8 * (WANTS_MAX + 1)], ErrorCode.TOO_LARGE),
        ([1, [b"x" * 66_000]], ErrorCode.TOO_LARGE),
    ],
)
def test_a_message_out_of_its_limits_is_refused(value, code):
    with pytest.raises(RemoteProtocolError) as caught:
        decode_message(pack(value, WIDE))
    assert caught.value.code is code


def test_messages_of_later_versions_are_ignored():
    assert decode_message(pack([9, "whatever"], WIDE)) is None
    assert decode_message(pack([4, b"x" * 8, "more"], WIDE)) == Want((RecordKey(b"x" * 8),))


def test_long_lists_are_split_into_messages_within_the_limit():
    envelopes = [bytes([index % 256]) * 700 for index in range(300)]
    split = records_messages(envelopes)
    assert all(len(message) <= MESSAGE_BYTES_MAX for message in split)
    assert [envelope for message in split for envelope in decode_message(message).envelopes] == envelopes
    assert len(split) == 4
    assert len(records_messages([b"x" * 10] * 1000)) == 2
    pairs = [(RecordKey(index.to_bytes(8, "big")), index + 1) for index in range(7000)]
    split = answer_messages(pairs)
    assert [len(decode_message(message).entries) for message in split] == [3072, 3072, 856]
    assert all(len(message) <= MESSAGE_BYTES_MAX for message in split)
    told = [(bucket, pairs[bucket * 50 : bucket * 50 + 50]) for bucket in range(BUCKETS)] + [(5, pairs)]
    split = [decode_message(message) for message in entries_messages(told)]
    assert all(len(message.entries) <= ENTRIES_MAX for message in split)
    assert [bucket for message in split for bucket in message.buckets] == [*range(BUCKETS), 5]


# One machine


def listener(**config):
    """A node with one connected peer, its first digest drained."""
    node = Node(0, config=GossipConfig(**config))
    peer = IDENTITIES[1]
    node.gossip.handle_connected(peer.peer_id, 0.0)
    drained(node.gossip)
    return node, peer


def hear(node, peer, *envelopes, now=1.0):
    for message in records_messages(envelopes):
        node.gossip.handle_message(peer.peer_id, message, now, WALL_S + now)
    return drained(node.gossip)


def test_the_first_thing_on_connect_is_a_digest():
    node = Node(0)
    node.publish(CARD, 0.0)
    node.gossip.handle_connected(IDENTITIES[1].peer_id, 0.0)
    (send,) = drained(node.gossip)
    assert send.peer_id == IDENTITIES[1].peer_id
    message = decode_message(send.payload)
    assert message == Entries(((record_key(node.peer_id, RecordKind.CARD), 1),), tuple(range(BUCKETS)))


def test_large_tables_compare_hashes_first_and_tell_only_what_differs():
    node, peer = listener(direct_entries_max=10)
    other = PeerTable(peer.peer_id)
    for identity in crowd(30):
        record = sealed(identity)
        node.table.offer(record, 0.0, WALL_S)
        other.offer(record, 0.0, WALL_S)
    node.gossip.handle_timer(3.0, WALL_S)
    (send,) = drained(node.gossip)
    assert decode_message(send.payload) == Digest(tuple(other.bucket_hashes()))
    node.gossip.handle_message(peer.peer_id, encode_message(Digest(tuple(other.bucket_hashes()))), 3.0, WALL_S)
    assert drained(node.gossip) == []  # nothing to tell
    lacking = sealed(IDENTITIES[5])
    key = record_key(lacking.peer_id, lacking.kind)
    node.table.offer(lacking, 3.0, WALL_S)
    node.gossip.handle_message(peer.peer_id, encode_message(Digest(tuple(other.bucket_hashes()))), 3.0, WALL_S)
    (send,) = drained(node.gossip)
    told = decode_message(send.payload)
    assert told.buckets == (bucket_of(key, lacking.kind),)
    assert (key, 1) in told.entries
    assert list(told.entries) == node.table.digest(told.buckets)


def test_news_is_accepted_and_passed_on_but_not_back_nor_to_its_origin():
    node, peer = listener(fanout=8)
    for identity in IDENTITIES[2:6]:
        node.gossip.handle_connected(identity.peer_id, 0.0)
    drained(node.gossip)
    record = sealed(IDENTITIES[5])
    outputs = hear(node, peer, record.envelope)
    assert of(outputs, RecordAccepted) == [RecordAccepted(record, peer.peer_id)]
    assert sorted(send.peer_id for send in of(outputs, Send)) == sorted(identity.peer_id for identity in IDENTITIES[2:5])
    assert {send.payload for send in of(outputs, Send)} == {encode_message(Records((record.envelope,)))}


def test_news_goes_to_no_more_peers_than_the_fan_out():
    node, peer = listener(fanout=2)
    for identity in IDENTITIES[2:12]:
        node.gossip.handle_connected(identity.peer_id, 0.0)
    drained(node.gossip)
    assert len(of(hear(node, peer, sealed(IDENTITIES[20]).envelope), Send)) == 2


def test_a_repeated_record_does_nothing():
    node, peer = listener()
    record = sealed(IDENTITIES[2])
    hear(node, peer, record.envelope)
    assert hear(node, peer, *[record.envelope] * 500) == []


def test_a_replayed_older_record_does_nothing():
    node, peer = listener()
    hear(node, peer, sealed(IDENTITIES[2], sequence=9).envelope)
    assert hear(node, peer, sealed(IDENTITIES[2], sequence=8).envelope) == []
    assert node.table.get(IDENTITIES[2].peer_id, RecordKind.CARD).sequence == 9


def test_a_forged_record_is_blamed_on_its_sender_who_is_heard_no_more():
    node, peer = listener()
    genuine = sealed(IDENTITIES[2])
    forged = bytes(64) + genuine.envelope[64:]
    assert hear(node, peer, forged) == [Misbehaved(peer.peer_id, ErrorCode.BAD_SIGNATURE)]
    assert hear(node, peer, genuine.envelope) == []
    assert len(node.table) == 0
    node.publish(CARD, 2.0)
    assert drained(node.gossip) == []  # nor told anything


def test_what_came_before_the_forgery_counts():
    node, peer = listener()
    record = sealed(IDENTITIES[2])
    outputs = hear(node, peer, record.envelope, b"junk", sealed(IDENTITIES[3]).envelope)
    assert outputs == [RecordAccepted(record, peer.peer_id), Misbehaved(peer.peer_id, ErrorCode.MALFORMED)]


def test_a_record_of_another_network_is_blamed_on_its_sender():
    node, peer = listener()
    outputs = hear(node, peer, sealed(IDENTITIES[2], network="elsewhere").envelope)
    assert outputs == [Misbehaved(peer.peer_id, ErrorCode.WRONG_NETWORK)]


def test_an_oversized_record_is_blamed_on_its_sender():
    node, peer = listener()
    assert hear(node, peer, bytes(9000)) == [Misbehaved(peer.peer_id, ErrorCode.TOO_LARGE)]


@pytest.mark.parametrize(
    ("issued_s", "code"), [(WALL_S - 90_000.0, ErrorCode.EXPIRED), (WALL_S + 100.0, ErrorCode.NOT_YET_VALID)]
)
def test_a_record_of_another_time_is_refused_without_blame(issued_s, code):
    node, peer = listener()
    assert hear(node, peer, sealed(IDENTITIES[2], issued_s=issued_s).envelope) == [RecordRefused(peer.peer_id, code)]
    assert len(node.table) == 0


def test_a_signed_payload_that_is_wrong_is_refused_once_without_blame():
    node, peer = listener()
    signed = pack(
        [NETWORK, "beat", bytes(IDENTITIES[2].peer_id), 1, int(WALL_S * 1000), int(WALL_S * 1000) + 10_000, b"\xc0"], WIDE
    )
    envelope = IDENTITIES[2].sign(b"isochrone-record-v1:" + signed) + signed
    assert hear(node, peer, envelope) == [RecordRefused(peer.peer_id, ErrorCode.MALFORMED)]
    assert hear(node, peer, envelope) == []


def test_equivocation_is_told_once_and_the_first_record_stays():
    node, peer = listener()
    first, second = sealed(IDENTITIES[2]), sealed(IDENTITIES[2], replace(CARD, agent="other"))
    hear(node, peer, first.envelope)
    assert hear(node, peer, second.envelope) == [Equivocated(first, second)]
    assert hear(node, peer, second.envelope) == []
    assert node.table.get(IDENTITIES[2].peer_id, RecordKind.CARD) == first


def test_a_forgotten_own_record_is_heard():
    node, peer = listener()
    assert hear(node, peer, sealed(node.identity, sequence=77).envelope) == [OwnRecordHeard(77)]
    assert len(node.table) == 0


def test_only_own_and_newer_records_are_published():
    node = Node(0)
    node.gossip.publish(sealed(node.identity, sequence=5), 0.0)
    with pytest.raises(LocalProtocolError):
        node.gossip.publish(sealed(node.identity, sequence=5), 0.0)
    with pytest.raises(LocalProtocolError):
        node.gossip.publish(sealed(IDENTITIES[1], sequence=6), 0.0)


def crowd(number, start=1000):
    return [Identity.from_seed((start + index).to_bytes(32, "big")) for index in range(number)]


def test_a_flooding_sender_is_refused_and_then_blamed():
    node, peer = listener()
    records = [sealed(identity, BEAT) for identity in crowd(510)]
    outputs = hear(node, peer, *[record.envelope for record in records])
    assert len(of(outputs, RecordAccepted)) == CONFIG.records_burst
    assert codes(outputs) == [ErrorCode.FLOODING] * (CONFIG.records_debt_max + 1)
    assert outputs[-1] == Misbehaved(peer.peer_id, ErrorCode.FLOODING)
    assert len(of(outputs, Misbehaved)) == 1


def test_a_budget_fills_again_with_time():
    node, peer = listener()
    records = [sealed(identity, BEAT) for identity in crowd(130)]
    hear(node, peer, *[record.envelope for record in records[:110]])
    assert codes(hear(node, peer, records[110].envelope, now=1.2)) == [ErrorCode.FLOODING]
    assert hear(node, peer, records[111].envelope, now=3.0) == [RecordAccepted(records[111], peer.peer_id)]


def test_one_sender_s_flood_takes_nothing_from_another():
    node, peer = listener()
    other = IDENTITIES[2]
    node.gossip.handle_connected(other.peer_id, 0.0)
    drained(node.gossip)
    records = [sealed(identity, BEAT) for identity in crowd(300)]
    hear(node, peer, *[record.envelope for record in records[:-1]])
    assert RecordAccepted(records[-1], other.peer_id) in hear(node, other, records[-1].envelope)


def test_endless_questions_are_ignored_and_then_blamed():
    node, peer = listener()
    node.publish(CARD, 0.0)
    drained(node.gossip)
    question = encode_message(Digest((b"\xff" * 8,) * BUCKETS))
    answers, refusals = 0, []
    for _ in range(200):
        node.gossip.handle_message(peer.peer_id, question, 1.0, WALL_S)
        outputs = drained(node.gossip)
        answers += len(of(outputs, Send))
        refusals += codes(outputs)
    assert answers == CONFIG.exchanges_burst
    assert refusals == [ErrorCode.FLOODING] * (CONFIG.exchanges_debt_max + 1)


def test_endless_bytes_are_ignored_and_then_blamed():
    node, peer = listener()
    record = sealed(IDENTITIES[2])
    (message,) = records_messages([record.envelope] * 80)
    misbehaved = []
    for _ in range(4 * 2_097_152 // len(message)):
        node.gossip.handle_message(peer.peer_id, message, 1.0, WALL_S)
        misbehaved += of(drained(node.gossip), Misbehaved)
    assert misbehaved == [Misbehaved(peer.peer_id, ErrorCode.FLOODING)]


def test_a_claim_that_is_never_kept_is_asked_for_elsewhere_in_time():
    node, liar = listener()
    honest = IDENTITIES[2]
    node.gossip.handle_connected(honest.peer_id, 0.0)
    drained(node.gossip)
    record = sealed(IDENTITIES[3])
    key = record_key(record.peer_id, record.kind)
    claim = encode_message(Entries(((key, 1),)))

    def asked_after_claim_of(who, now):
        node.gossip.handle_message(who.peer_id, claim, now, WALL_S)
        return [send.peer_id for send in of(drained(node.gossip), Send)]

    assert asked_after_claim_of(liar, 1.0) == [liar.peer_id]
    assert asked_after_claim_of(honest, 2.0) == []
    assert asked_after_claim_of(honest, 6.5) == [honest.peer_id]


def test_what_a_gone_peer_was_asked_for_is_asked_for_elsewhere():
    node, gone = listener()
    claim = encode_message(Entries(((RecordKey(b"k" * 8), 1),)))
    node.gossip.handle_message(gone.peer_id, claim, 1.0, WALL_S)
    node.gossip.handle_disconnected(gone.peer_id, 1.5)
    node.gossip.handle_connected(IDENTITIES[2].peer_id, 1.5)
    drained(node.gossip)
    node.gossip.handle_message(IDENTITIES[2].peer_id, claim, 2.0, WALL_S)
    assert [send.peer_id for send in of(drained(node.gossip), Send)] == [IDENTITIES[2].peer_id]


def test_wants_under_way_are_bounded():
    node, peer = listener(wants_max=100)
    claims = tuple((RecordKey(index.to_bytes(8, "big")), 1) for index in range(1000))
    node.gossip.handle_message(peer.peer_id, encode_message(Entries(claims)), 1.0, WALL_S)
    (send,) = drained(node.gossip)
    assert len(decode_message(send.payload).keys) == 100
    node.gossip.handle_message(peer.peer_id, encode_message(Entries(claims)), 1.1, WALL_S)
    assert drained(node.gossip) == []


def test_wants_that_are_never_answered_make_room_in_time():
    node, peer = listener(wants_max=2)

    def claim(first, now):
        claims = tuple((RecordKey(index.to_bytes(8, "big")), 1) for index in range(first, first + 2))
        node.gossip.handle_message(peer.peer_id, encode_message(Entries(claims)), now, WALL_S)
        return len(of(drained(node.gossip), Send))

    assert claim(0, 1.0) == 1
    assert claim(2, 1.5) == 0
    node.gossip.handle_timer(6.5, WALL_S)
    drained(node.gossip)
    assert claim(4, 6.6) == 1


def test_bytes_that_were_asked_for_are_free():
    node, peer = listener(bytes_burst=80_000, bytes_per_s=1.0, bytes_debt_max=0)
    records = [sealed(identity) for identity in crowd(300)]
    for batch in (records[:100], records[100:200], records[200:]):
        claims = tuple((record_key(record.peer_id, record.kind), 1) for record in batch)
        node.gossip.handle_message(peer.peer_id, encode_message(Entries(claims)), 1.0, WALL_S)
        drained(node.gossip)
        assert sum(len(record.envelope) for record in batch) > 50_000
        assert len(of(hear(node, peer, *[record.envelope for record in batch]), RecordAccepted)) == 100


def test_what_is_served_is_bounded():
    node, peer = listener(served_burst=2000)
    for identity in crowd(20):
        node.table.offer(sealed(identity), 0.0, WALL_S)
    held = [key for key, _ in node.table.digest()]
    node.gossip.handle_message(peer.peer_id, encode_message(Want(tuple(held))), 0.0, WALL_S)
    (send,) = drained(node.gossip)
    assert sum(len(envelope) for envelope in decode_message(send.payload).envelopes) <= 2000


def test_a_full_table_refuses_without_blame():
    node = Node(0, table_config=TableConfig(peers_max=2))
    peer = IDENTITIES[1]
    node.gossip.handle_connected(peer.peer_id, 0.0)
    drained(node.gossip)
    outputs = hear(node, peer, *[sealed(identity).envelope for identity in IDENTITIES[2:6]])
    assert len(of(outputs, RecordAccepted)) == 2
    assert codes(outputs) == [ErrorCode.OVERLOADED] * 2


def test_connected_peers_are_bounded():
    node = Node(0, config=GossipConfig(peers_max=3))
    for identity in IDENTITIES[1:10]:
        node.gossip.handle_connected(identity.peer_id, 0.0)
    assert len(of(drained(node.gossip), Send)) == 3


def test_messages_of_strangers_are_not_heard():
    node, _peer = listener()
    assert hear(node, IDENTITIES[9], sealed(IDENTITIES[2]).envelope) == []


def test_expired_records_leave_with_a_fact():
    node, peer = listener()
    beat = sealed(IDENTITIES[2], BEAT)
    hear(node, peer, beat.envelope)
    node.gossip.handle_timer(100.0, WALL_S + 100.0)
    assert of(drained(node.gossip), RecordExpired) == [RecordExpired(beat)]


@settings(max_examples=50)
@given(st.lists(messages.map(encode_message) | st.binary(max_size=100), max_size=20))
def test_whatever_a_peer_sends_is_at_worst_blamed(payloads):
    node, peer = listener()
    for payload in payloads:
        node.gossip.handle_message(peer.peer_id, payload, 1.0, WALL_S)
        drained(node.gossip)
    assert len(node.table) == 0
    other = IDENTITIES[2]
    node.gossip.handle_connected(other.peer_id, 1.0)
    drained(node.gossip)
    record = sealed(IDENTITIES[3])
    assert RecordAccepted(record, other.peer_id) in hear(node, other, record.envelope)


# Twenty machines


def test_news_spreads_to_all_within_a_second():
    world, nodes = joined_world()
    world.publish(nodes[0], CARD)
    world.run(until=1.0)
    informed = sum(len(node.table) for node in nodes)
    assert informed >= 17  # what the rumour misses is brought by digests
    world.run(until=10.0)
    assert world.know_all(1)
    assert world.accused() == []


def test_all_records_of_all_converge():
    world, nodes = joined_world()
    for node in nodes:
        for payload in (CARD, BEAT, EDGES):
            world.publish(node, payload)
    world.run(until=8.0)
    assert world.know_all(60)
    assert world.accused() == []


def test_a_node_that_missed_everything_converges_by_digests_alone():
    world, nodes = joined_world(19, fanout=0)
    for node in nodes:
        world.publish(node, CARD)
        world.publish(node, BEAT)
    world.run(until=25.0)
    late = Node(19, config=GossipConfig(fanout=0))
    world.nodes[late.peer_id] = late
    late.publish(CARD, world.now)
    world.connect(late, nodes[4])
    world.run(until=26.0)
    assert len(late.table) == 39
    world.run(until=50.0)
    assert world.know_all(39)
    assert world.accused() == []


def test_a_fifth_of_all_messages_lost_delays_and_no_more():
    world, nodes = joined_world(loss=0.2)
    for node in nodes:
        world.publish(node, CARD)
    world.run(until=30.0)
    assert world.know_all(20)
    assert world.accused() == []


def test_two_halves_that_were_apart_become_one():
    world, nodes = joined_world()
    for one, other in combinations(range(20), 2):
        if (one < 10) != (other < 10) and frozenset((nodes[one].peer_id, nodes[other].peer_id)) in world.links:
            world.disconnect(nodes[one], nodes[other])
    for node in nodes:
        world.publish(node, CARD)
    world.run(until=20.0)
    assert all(len(node.table) == 10 for node in nodes)
    world.connect(nodes[0], nodes[19])
    world.run(until=25.0)
    assert world.know_all(20)


def test_five_nodes_know_one_another_at_once():
    nodes = [Node(index) for index in range(5)]
    world = World(nodes)
    for node in nodes:
        world.publish(node, CARD)
    for node in nodes[1:]:
        world.connect(node, nodes[0])  # all they know is the bootstrap node
    world.run(until=1.0)
    assert world.know_all(5)


def test_beats_each_second_reach_everybody_in_time():
    world, nodes = joined_world()
    for second in range(8):
        for node in nodes:
            world.publish(node, BEAT)
        world.run(until=second + 1.0)
    for node in nodes:
        ages = [8 - node.table.get(other.peer_id, RecordKind.BEAT).sequence for other in nodes]
        assert max(ages) <= 3
    assert world.accused() == []


def test_clocks_apart_within_the_skew_disturb_nothing():
    nodes = [Node(index, clock_off_s=(index - 2) * 12.0) for index in range(5)]
    world = World(nodes)
    ring_with_chords(world, nodes)
    for node in nodes:
        world.publish(node, CARD)
        world.publish(node, BEAT)
    world.run(until=10.0)
    assert world.know_all(10)
    assert world.accused() == []


def test_a_table_of_a_thousand_peers_is_fetched_by_hashes_and_pages():
    table_config = TableConfig(peers_max=2000)
    full, empty = Node(0, table_config=table_config), Node(1, table_config=table_config)
    for identity in crowd(700):
        full.table.offer(sealed(identity, BEAT), 0.0, WALL_S)
        full.table.offer(sealed(identity, CARD, sequence=2), 0.0, WALL_S)
    world = World([full, empty])
    world.connect(full, empty)
    world.run(until=8.0)
    assert len(empty.table) == 1400
    assert world.accused() == []
    sent = world.sent
    world.run(until=20.0)
    assert world.sent - sent < 40  # equal tables exchange hashes and nothing else


def test_the_same_seed_gives_the_same_run():
    def facts_of_a_run(seed):
        world, nodes = joined_world(10, loss=0.1, seed=seed)
        for node in nodes:
            world.publish(node, CARD)
        world.run(until=6.0)
        return world.facts, world.sent

    assert facts_of_a_run(3) == facts_of_a_run(3)
    assert facts_of_a_run(3) != facts_of_a_run(4)


def test_peer_connected_again_is_told_again_on_its_new_stream():
    here, there = Node(0), Node(1)
    here.gossip.handle_connected(there.peer_id, 0.0)
    first = of(drained(here.gossip), Send)
    here.gossip.handle_connected(there.peer_id, 1.0)
    assert of(drained(here.gossip), Send) == first != []
    here.gossip.handle_message(there.peer_id, b"\xff", 1.0, WALL_S)
    assert of(drained(here.gossip), Misbehaved)
    here.gossip.handle_connected(there.peer_id, 2.0)
    assert drained(here.gossip) == []  # who misbehaved is told nothing
