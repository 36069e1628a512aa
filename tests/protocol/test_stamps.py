"""Stamps travel beside their cards: pushed, passed on, kept, and served, and nothing in gossip depends on them."""

from dataclasses import replace

from gossip_nodes import Node, drained, of, sealed
from record_strategies import CARD, EDGES, IDENTITIES, VERDICT, WALL_S

from protocol.gossip import RecordAccepted, Send
from protocol.gossip.messages import Records, Want, decode_message, encode_message, stamped_messages
from protocol.records import RecordKind
from protocol.table import record_key

OWN, PEER, OTHER, AUTHOR = IDENTITIES[:4]
STAMP = bytes([7]) * 64


def records_to(outputs, peer):
    """Envelopes and stamps in what a peer is sent."""
    messages = [decode_message(output.payload) for output in of(outputs, Send) if output.peer_id == peer.peer_id]
    return [(message.envelopes, message.stamps) for message in messages if isinstance(message, Records)]


def linked():
    """A node whose mesh holds two peers."""
    node = Node(0)
    node.connect(PEER, OTHER)
    return node


def hear(node, peer, *told):
    for message in stamped_messages(told):
        node.gossip.handle_message(peer.peer_id, message, 1.0, WALL_S + 1.0)
    return drained(node.gossip)


def test_a_stamp_is_passed_on_kept_and_served():
    node, card = linked(), sealed(AUTHOR, CARD)
    outputs = hear(node, PEER, (card.envelope, STAMP))
    assert records_to(outputs, OTHER) == [((card.envelope,), (STAMP,))]
    assert node.table.get(AUTHOR.peer_id, RecordKind.CARD).stamp == STAMP
    assert of(outputs, RecordAccepted)[0].record.stamp == STAMP
    want = encode_message(Want((record_key(AUTHOR.peer_id, RecordKind.CARD),)))
    node.gossip.handle_message(OTHER.peer_id, want, 1.0, WALL_S + 1.0)
    assert records_to(drained(node.gossip), OTHER) == [((card.envelope,), (STAMP,))]


def test_an_own_stamp_is_pushed():
    node, card = linked(), replace(sealed(OWN, CARD), stamp=STAMP)
    node.gossip.publish(card, 1.0)
    assert records_to(drained(node.gossip), PEER) == [((card.envelope,), (STAMP,))]


def test_a_card_without_a_stamp_is_a_card_and_one_with_another_stamp_no_news():
    node, card = linked(), sealed(AUTHOR, CARD)
    assert records_to(hear(node, PEER, (card.envelope, None)), OTHER) == [((card.envelope,), ())]
    assert of(hear(node, PEER, (card.envelope, STAMP)), RecordAccepted) == []
    assert node.table.get(AUTHOR.peer_id, RecordKind.CARD).stamp is None


def test_records_with_and_without_stamps_travel_in_one_message():
    node, card, verdict = linked(), sealed(AUTHOR, CARD), sealed(AUTHOR, VERDICT)
    outputs = hear(node, PEER, (card.envelope, STAMP), (verdict.envelope, None))
    assert records_to(outputs, OTHER) == [((card.envelope, verdict.envelope), (STAMP, None))]


def test_a_record_taken_from_outside_gossip_is_spread():
    node, card = linked(), replace(sealed(AUTHOR, CARD), stamp=STAMP)
    node.gossip.take(card, AUTHOR.peer_id, 1.0, WALL_S)
    outputs = drained(node.gossip)
    assert records_to(outputs, PEER) == records_to(outputs, OTHER) == [((card.envelope,), (STAMP,))]
    node.gossip.take(card, AUTHOR.peer_id, 1.0, WALL_S)
    assert drained(node.gossip) == []


def test_edges_have_no_stamp():
    node = linked()
    node.gossip.publish(sealed(OWN, EDGES), 1.0)
    assert all(stamps == () for _, stamps in records_to(drained(node.gossip), PEER))
