"""The bridge: cards out to strangers, messages of strangers in, and no member's place for any of them."""

from dataclasses import replace

import pytest
from pubsub_strangers import CARD, MEMBERS, STRANGERS, TOPIC, WALL_S, Host, card_of, messages_to

from protocol import gossip, membership, probe
from protocol.errors import ErrorCode
from protocol.gossip.messages import Records, decode_message, stamped_messages
from protocol.identity import verify_signature
from protocol.node.strangers import StrangersConfig
from protocol.pubsub import PubsubMisbehaved, is_signed, sign_message
from protocol.pubsub.messages import Rpc, Subscription
from protocol.records import Accusation, RecordKind, Verdict, open_record, stamped
from protocol.records.envelope import RECORD_DOMAIN

ONE, TWO, AUTHOR = STRANGERS[:3]


def message_of(identity, record=None, number=None, topic=TOPIC):
    record = record or card_of(identity)
    return sign_message(identity, record.envelope, record.sequence if number is None else number, topic)


def told_by_gossip(host, member, record):
    """A connected member of the mesh tells a record."""
    host.node.handle_connected(member.peer_id, host.now)
    host.drain()
    for message in stamped_messages([(record.envelope, record.stamp)]):
        host.node.handle_message(member.peer_id, message, host.now)
    return host.drain()


def with_stamp(identity, record=None):
    record = record or card_of(identity)
    return stamped(record, message_of(identity, record).signature)


# Cards out


def test_a_subscriber_is_sent_the_node_s_card_and_can_verify_it():
    host = Host()
    (message,) = messages_to(host.meet(ONE), ONE)
    assert (message.author, message.topic, message.key) == (host.peer_id, TOPIC, b"")
    assert is_signed(message)
    assert open_record(message.data, "isochrone", WALL_S).peer_id == host.peer_id
    assert verify_signature(host.identity.public_key, message.data[:64], RECORD_DOMAIN + message.data[64:])
    assert int.from_bytes(message.seqno, "big") == host.sealed()[0].sequence


def test_only_the_first_subscription_of_a_connection_is_welcomed():
    host = Host()
    host.meet(ONE)
    for subscribes in (True, False, True):
        assert messages_to(host.hear(ONE, Rpc(subscriptions=(Subscription(TOPIC, subscribes),))), ONE) == ()
    host.node.handle_disconnected(ONE.peer_id, ErrorCode.NO_ERROR, host.now)
    assert len(messages_to(host.meet(ONE), ONE)) == 1


def test_a_subscriber_that_grafts_before_it_subscribes_is_welcomed_once():
    host = Host()
    host.meet(ONE, subscribes=False)
    assert len(messages_to(host.hear(ONE, Rpc(grafts=(TOPIC,))), ONE)) == 1
    assert messages_to(host.hear(ONE, Rpc(subscriptions=(Subscription(TOPIC),))), ONE) == ()


def test_a_new_card_of_the_node_reaches_all_subscribers():
    host = Host()
    for stranger in STRANGERS[:20]:
        host.meet(stranger)
    host.node.announcer.renew()
    outputs = host.pass_time(5.0)
    newest = host.sealed()[-1]
    assert all([message.data for message in messages_to(outputs, stranger)] == [newest.envelope] for stranger in STRANGERS[:20])


def test_a_card_that_is_news_goes_to_the_mesh_once_with_its_author_s_signature():
    host = Host()
    host.meet(ONE)
    host.pass_time(2.0)
    record = with_stamp(MEMBERS[1])
    (message,) = messages_to(told_by_gossip(host, MEMBERS[0], record), ONE)
    assert message == message_of(MEMBERS[1])
    assert messages_to(told_by_gossip(host, MEMBERS[2], record), ONE) == ()


@pytest.mark.parametrize("stamp", [None, bytes(64)], ids=["missing", "wrong"])
def test_a_card_whose_stamp_is_missing_or_wrong_is_a_card_and_is_not_published(stamp):
    host = Host()
    host.meet(ONE)
    host.pass_time(2.0)
    outputs = told_by_gossip(host, MEMBERS[0], stamped(card_of(MEMBERS[1]), stamp))
    assert messages_to(outputs, ONE) == ()
    assert host.node.table.get(MEMBERS[1].peer_id, RecordKind.CARD) is not None
    assert not any(isinstance(output, gossip.Misbehaved) for output in outputs)


def test_a_crowd_at_one_address_is_not_sent_what_others_are():
    host = Host()
    for stranger in STRANGERS[:20]:
        host.meet(stranger, host="192.0.2.200")
    host.meet(STRANGERS[20])
    host.node.announcer.renew()
    outputs = host.pass_time(5.0)
    assert [len(messages_to(outputs, stranger)) for stranger in STRANGERS[:21]] == [0] * 20 + [1]


def test_verdicts_are_not_published():
    host = Host()
    host.meet(ONE)
    host.pass_time(2.0)
    verdict = card_of(MEMBERS[1], payload=Verdict((Accusation(bytes(8), 1),)), lifetime_s=240.0)
    assert messages_to(told_by_gossip(host, MEMBERS[0], verdict), ONE) == ()


def test_cards_published_for_others_are_bounded():
    host = Host(strangers=StrangersConfig(published_per_s=1.0, published_burst=5))
    host.meet(ONE)
    host.pass_time(2.0)
    published = [messages_to(told_by_gossip(host, MEMBERS[0], with_stamp(member)), ONE) for member in MEMBERS[1:20]]
    assert sum(map(len, published)) == 5


def test_a_subscriber_is_welcomed_with_a_few_cards_of_others():
    host = Host(strangers=StrangersConfig(welcome_max=4))
    for member in MEMBERS[1:10]:
        told_by_gossip(host, MEMBERS[0], with_stamp(member))
    told = messages_to(host.meet(ONE), ONE)
    assert len(told) == 4
    assert told[0].author == host.peer_id
    assert all(is_signed(message) for message in told)
    assert len({message.author for message in told}) == 4


def test_a_stranger_at_two_nodes_hears_one_message():
    hosts = [Host(0), Host(1)]
    record = with_stamp(MEMBERS[1])
    ids = set()
    for host in hosts:
        host.meet(ONE)
        host.pass_time(2.0)
        ids |= {message.id for message in messages_to(told_by_gossip(host, MEMBERS[0], record), ONE)}
    assert len(ids) == 1


# Messages in


def test_a_card_of_a_stranger_is_taken_spread_and_passed_on():
    host = Host()
    host.meet(ONE)
    host.meet(TWO)
    host.pass_time(2.0)
    host.node.handle_connected(MEMBERS[0].peer_id, host.now)
    host.drain()
    message = message_of(AUTHOR)
    outputs = host.hear(ONE, Rpc(messages=(message,)))
    assert host.node.table.get(AUTHOR.peer_id, RecordKind.CARD).stamp == message.signature
    pushed = [decode_message(output.payload) for output in outputs if isinstance(output, gossip.Send)]
    assert Records((message.data,), (message.signature,)) in pushed
    assert messages_to(outputs, TWO) == (message,)
    assert messages_to(outputs, ONE) == ()
    assert host.score(ONE) == pytest.approx(1.0, abs=0.001)  # and a second in the mesh, where a heartbeat has gone by


def rejected():
    card = card_of(AUTHOR)
    forged = card.envelope[:10] + bytes([card.envelope[10] ^ 1]) + card.envelope[11:]
    return [
        ("no envelope", sign_message(AUTHOR, b"hello", 1, TOPIC)),
        ("another's card", sign_message(AUTHOR, card_of(MEMBERS[3]).envelope, 1, TOPIC)),
        ("another number", message_of(AUTHOR, number=2)),
        ("another network", message_of(AUTHOR, card_of(AUTHOR, network="elsewhere"))),
        ("forged", sign_message(AUTHOR, forged, 1, TOPIC)),
        ("unsigned", replace(message_of(AUTHOR), signature=b"")),
        ("signed for another topic", replace(message_of(AUTHOR, topic="other"), topic=TOPIC)),
    ]


@pytest.mark.parametrize("message", [pytest.param(message, id=name) for name, message in rejected()])
def test_what_no_honest_peer_passes_on_is_rejected_and_lowers_the_score(message):
    host = Host()
    host.meet(ONE)
    host.meet(TWO)
    host.pass_time(2.0)
    outputs = host.hear(ONE, Rpc(messages=(message,)))
    assert host.score(ONE) < -100.0
    assert messages_to(outputs, TWO) == ()
    assert host.node.table.get(AUTHOR.peer_id, RecordKind.CARD) is None
    assert not any(isinstance(output, PubsubMisbehaved) for output in outputs)


def ignored():
    verdict = card_of(AUTHOR, payload=Verdict(()), lifetime_s=240.0)
    return [
        ("another kind", message_of(AUTHOR, verdict)),
        ("expired", message_of(AUTHOR, card_of(AUTHOR, issued_s=WALL_S - 10_000.0))),
        ("not yet valid", message_of(AUTHOR, card_of(AUTHOR, issued_s=WALL_S + 10_000.0))),
        ("another topic", message_of(AUTHOR, topic="other")),
    ]


@pytest.mark.parametrize("message", [pytest.param(message, id=name) for name, message in ignored()])
def test_what_may_be_passed_on_in_good_faith_is_ignored(message):
    host = Host()
    host.meet(ONE)
    host.meet(TWO)
    host.pass_time(2.0)
    before = host.score(ONE)
    outputs = host.hear(ONE, Rpc(messages=(message,)))
    assert host.score(ONE) == before
    assert messages_to(outputs, TWO) == ()
    assert host.node.table.get(AUTHOR.peer_id, RecordKind.CARD) is None


def test_a_card_known_already_is_ignored():
    host = Host()
    told_by_gossip(host, MEMBERS[0], card_of(MEMBERS[1], sequence=5))
    host.meet(ONE)
    for sequence in (4, 5):
        before = host.score(ONE)
        host.hear(ONE, Rpc(messages=(message_of(MEMBERS[1], card_of(MEMBERS[1], sequence)),)))
        assert host.score(ONE) == before


def test_the_share_of_rejected_messages_and_the_round_trip_are_in_the_score():
    host = Host()
    host.meet(ONE)
    host.meet(TWO)
    host.node.strangers.handle_rtt(ONE.peer_id, 0.003)
    host.node.strangers.handle_rtt(TWO.peer_id, 0.5)
    assert host.score(ONE) == pytest.approx(2.0 * 0.99)
    assert host.score(TWO) == 0.0
    host.hear(ONE, Rpc(messages=(sign_message(AUTHOR, b"hello", 1, TOPIC),)))
    assert host.score(ONE) == pytest.approx(2.0 * 0.99 - 100.0 / 20 - 140.0)


def test_who_keeps_bringing_what_is_rejected_is_heard_no_more():
    host = Host()
    host.meet(ONE)
    for number in range(6):
        host.hear(ONE, Rpc(messages=(sign_message(AUTHOR, b"hello", number, TOPIC),)))
    assert host.score(ONE) < host.node.config.strangers.pubsub.score.graylist_threshold
    host.hear(ONE, Rpc(messages=(message_of(TWO),)))
    assert host.node.table.get(TWO.peer_id, RecordKind.CARD) is None
    host.node.strangers.handle_disconnected(ONE.peer_id, host.now)
    host.meet(ONE)
    assert host.score(ONE) < host.node.config.strangers.pubsub.score.graylist_threshold + 200.0  # P5 alone begins anew


# Strangers are no members


def test_a_stranger_is_neither_probed_nor_suspected_nor_counted():
    host = Host()
    host.meet(ONE)
    outputs = host.pass_time(120.0)
    assert not host.node.membership.is_connected(ONE.peer_id)
    assert ONE.peer_id not in host.node.views.known()
    kinds = (probe.SendDatagram, probe.PeerSuspected, membership.Disconnect, membership.Connect, membership.PeerJoined)
    assert not any(isinstance(output, kinds) for output in outputs)


def test_strangers_are_bounded_and_members_are_not_among_them():
    host = Host()
    for stranger in STRANGERS:
        host.meet(stranger)
    assert len(host.node.strangers.router) == host.node.config.strangers.pubsub.peers_max == 64
    host.node.handle_connected(MEMBERS[0].peer_id, host.now)
    assert host.node.membership.is_connected(MEMBERS[0].peer_id)


def test_a_stranger_that_is_gone_leaves_no_timer():
    host = Host()
    host.meet(ONE)
    host.node.handle_disconnected(ONE.peer_id, ErrorCode.NO_ERROR, host.now)
    host.drain()
    assert host.node.strangers.next_timer() is None
    assert host.node.strangers._worth == {}


def test_a_stranger_that_floods_loses_its_connection_and_nothing_else():
    host = Host()
    host.meet(ONE)
    host.meet(TWO)
    host.node.strangers.handle_rpc(ONE.peer_id, b"\xff", host.now)
    assert [output for output in host.drain() if isinstance(output, PubsubMisbehaved)] == [
        PubsubMisbehaved(ONE.peer_id, ErrorCode.MALFORMED)
    ]
    host.hear(TWO, Rpc(messages=(message_of(AUTHOR),)))
    assert host.node.table.get(AUTHOR.peer_id, RecordKind.CARD) is not None


def test_a_long_card_is_published_too():
    host = Host()
    host.meet(ONE)
    host.pass_time(2.0)
    record = with_stamp(MEMBERS[1], card_of(MEMBERS[1], payload=replace(CARD, extra={"x-note": "n" * 2000})))
    assert len(messages_to(told_by_gossip(host, MEMBERS[0], record), ONE)) == 1
