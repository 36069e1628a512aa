"""Chapter 8: cards on gossipsub, seen by somebody who speaks nothing else.

Spec: docs/spec/08-pubsub.md.
"""

import os
import time
from dataclasses import replace

import trio

from mesh.conformance.gossip import Scribe, joined, record_key, talk
from mesh.conformance.peer import SERVED, ScriptedPeer
from mesh.conformance.pubsub import VERSIONS, Stranger, card_message, meet, subscribed
from mesh.conformance.registry import case, expect
from mesh.conformance.wire import PROBE
from protocol.encoding import encode_uvarint
from protocol.errors import ErrorCode
from protocol.libp2p.envelope import seal_peer_record
from protocol.libp2p.protobuf import encode_bytes, encode_text, encode_uint, read_fields
from protocol.pubsub import RPC_BYTES_MAX
from protocol.pubsub.messages import IHave, Prune, PubsubMessage, Rpc, Subscription, bare_id, encode_pubsub_message, encode_rpc
from protocol.pubsub.signing import is_signed, sign_message
from protocol.records import Accusation, Card, Edges, Verdict, open_record

STRANGERS_TRIED = 70
"""Strangers that connect at once, a count: more than the 64 that are served."""

HEARTBEAT_S = 1.0
"""Seconds between two heartbeats of gossipsub."""

BACKOFF_S = 60
"""How long a link that was given back is not to be asked for again, in seconds (ISO-PUBSUB-012)."""

IHAVE_MAX = 10
"""IHAVE messages that are heard in a heartbeat, a count (ISO-PUBSUB-014)."""


def prunes(stranger: Stranger) -> list[Prune]:
    """Every prune heard so far."""
    return [prune for rpc in stranger.listen() for prune in rpc.prunes]


async def published(author: Stranger, reader: Stranger) -> None:
    """Publish a good card and wait until it has come through: what was published before has come by then, or never will."""
    control = card_message(author.peer)
    author.publish(control)
    await reader.until(lambda: control.data in reader.cards(), "a good card passed on over the mesh of the topic")


@case("ISO-PUBSUB-001")
async def members_get_no_pubsub(peer: ScriptedPeer) -> None:
    """To a peer that speaks gossip no such stream is opened, and one that it opens is reset."""
    peer.needs(VERSIONS[0])
    connection = await peer.dial(served=(*SERVED, *VERSIONS))
    gossip = await talk(peer, connection=connection)
    await peer.never(
        connection, lambda: [s for s in connection.opened if s.protocol in VERSIONS], "no stream of gossipsub to a member"
    )
    stream = connection.open()
    stream.send(b"\x13/multistream/1.0.0\n\x0f" + VERSIONS[0].encode() + b"\n")
    await stream.over("a reset of a member's stream of gossipsub")
    expect(stream.reset_code == ErrorCode.UNSUPPORTED, "UNSUPPORTED", stream)
    await gossip.settled()


@case("ISO-PUBSUB-002", "ISO-PUBSUB-001")
async def a_stranger_gets_one_stream_to_read(peer: ScriptedPeer) -> None:
    """The node opens one stream, of the newest version, and writes nothing on the stranger's."""
    stranger = await meet(peer)
    stranger.subscribe()
    await stranger.until(stranger.messages, "a card for who subscribes")
    (stream,) = stranger.incoming()
    expect(stream.protocol == VERSIONS[0], VERSIONS[0], stream.protocol)
    expect(not stranger.out.data and not stranger.out.ended, "nothing on the stream of the stranger", stranger.out)


@case("ISO-PUBSUB-003", "ISO-CONV-002")
async def rpcs_over_a_limit_are_too_large(peer: ScriptedPeer) -> None:
    """The length of a frame, a topic, an id, and how many fields there are."""
    stranger = await meet(peer)
    stranger.out.send(encode_uvarint(RPC_BYTES_MAX + 1))
    await stranger.blamed(ErrorCode.TOO_LARGE, "an RPC over 1 MiB of which only the length came")
    over = {
        "a topic of 1,025 bytes": encode_rpc(Rpc(subscriptions=(Subscription("t" * 1025),))),
        "an id of 257 bytes": encode_rpc(Rpc(iwants=(bytes(257),))),
        "2,049 fields": encode_uint(99, 1) * 2049,
        "10,001 ids": encode_rpc(Rpc(idontwants=tuple(number.to_bytes(4, "big") for number in range(10_001)))),
    }
    for what, payload in over.items():
        stranger = await meet(peer)
        stranger.send_bytes(payload)
        await stranger.blamed(ErrorCode.TOO_LARGE, f"an RPC with {what}")


@case("ISO-PUBSUB-003", "ISO-CONV-007")
async def rpcs_that_do_not_decode_are_malformed(peer: ScriptedPeer) -> None:
    """Bytes that are no protocol buffers, a message without a topic; fields of later versions are skipped."""
    for what, payload in {
        "a field past its end": b"\x0a\x64abc",
        "a group": b"\x0b",
        "a number where messages stand": encode_uint(2, 7),
        "a message without a topic": encode_bytes(2, encode_bytes(2, b"data")),
    }.items():
        stranger = await meet(peer)
        stranger.send_bytes(payload)
        await stranger.blamed(ErrorCode.MALFORMED, f"an RPC with {what}")
    stranger = await meet(peer)
    stranger.send_bytes(encode_bytes(99, b"later") + encode_rpc(Rpc(subscriptions=(Subscription(stranger.topic),))))
    await stranger.until(stranger.messages, "a card for who subscribes with a field of a later version")


@case("ISO-PUBSUB-003", "ISO-CONV-006")
async def an_rpc_that_is_cut_off_is_malformed(peer: ScriptedPeer) -> None:
    """A stream that ends inside a frame costs the connection."""
    stranger = await meet(peer)
    stranger.out.send(encode_uvarint(100) + bytes(50), end=True)
    await stranger.blamed(ErrorCode.MALFORMED, "an RPC that is cut off")


@case("ISO-PUBSUB-004", alone=True)
async def strangers_are_bounded(peer: ScriptedPeer) -> None:
    """Of seventy strangers some are refused, and a member is served all the same."""
    peer.needs(VERSIONS[0])
    met, refused = [], 0
    for _ in range(STRANGERS_TRIED):
        connection = await peer.dial(identity=peer.stranger(), served=VERSIONS)
        stream = connection.open()
        stream.send(b"\x13/multistream/1.0.0\n\x0f" + VERSIONS[0].encode() + b"\n")
        met.append((connection, stream))
    await trio.sleep(peer.subject.quiet_s)
    refused = sum(stream.reset_code is not None for _, stream in met)
    expect(0 < refused < STRANGERS_TRIED, "some of seventy strangers refused", refused)
    codes = {stream.reset_code for _, stream in met if stream.reset_code is not None}
    expect(codes == {ErrorCode.OVERLOADED}, "OVERLOADED", codes)
    await talk(peer, peer.stranger())


@case("ISO-PUBSUB-004")
async def strangers_are_not_probed(peer: ScriptedPeer) -> None:
    """No probe comes to a stranger, and it is not closed for answering none."""
    stranger = await meet(peer)
    stranger.connection.echoes = False
    await trio.sleep(2.5)
    expect(not [frame for frame in stranger.connection.frames if frame[:1] == PROBE], "no probes of a stranger", "probes")
    await peer.ping(stranger.connection)


@case("ISO-PUBSUB-005", "ISO-PUBSUB-007", "ISO-PUBSUB-008")
async def who_subscribes_gets_the_nodes_card(peer: ScriptedPeer) -> None:
    """Signed by the node as gossipsub signs, its data the envelope, its number the card's."""
    stranger = await meet(peer)
    stranger.subscribe()
    node = peer.subject.peer_id
    await stranger.until(lambda: stranger.by(node), "the node's own card")
    message = stranger.by(node)[0]
    expect(is_signed(message), "a message that its author has signed", message)
    record = open_record(message.data, peer.subject.network, time.time())
    expect(record.peer_id == node and isinstance(record.payload, Card), "the node's card as the data", record)
    expect(int.from_bytes(message.seqno, "big") == record.sequence, "the card's number as the message's", message.seqno.hex())
    expect(message.topic == stranger.topic and not message.key, "the topic of the network and no key", message)


@case("ISO-PUBSUB-006", "ISO-GOS-041", alone=True)
async def cards_are_published_with_a_good_stamp_alone(peer: ScriptedPeer) -> None:
    """Of three cards that a member tells, one without a stamp, one with a wrong one, the third alone is published."""
    reader = await subscribed(peer)
    herald = await talk(peer)
    bare, wrong, good = (card_message(peer) for _ in range(3))
    herald.send_plain([1, [bare.data]], [1, [wrong.data], [os.urandom(64)]], [1, [good.data], [good.signature]])
    await reader.until(lambda: good.data in reader.cards(), "a card with a good stamp published")
    seen = [message for message in reader.messages() if message.data == good.data]
    expect(is_signed(seen[0]), "the author's own signature", seen[0])
    await trio.sleep(peer.subject.quiet_s)
    for message, what in ((bare, "no stamp"), (wrong, "a wrong stamp")):
        expect(message.data not in reader.cards(), f"a card with {what} is not published", "it was")
        key = record_key("card", type(peer.subject.peer_id)(message.author))
        expect(await herald.holds(message.data, key), "the card stays a card", "it is not held")


@case("ISO-PUBSUB-007", alone=True)
async def a_new_card_of_the_node_is_published(peer: ScriptedPeer) -> None:
    """When the node refutes, its new card reaches who has subscribed, link or none."""
    stranger = await meet(peer)
    stranger.send(Rpc(subscriptions=(Subscription(stranger.topic),)))
    node = peer.subject.peer_id
    await stranger.until(lambda: stranger.by(node), "the node's own card")
    newest = max(stranger.by(node), key=lambda message: message.seqno)
    payload = open_record(newest.data, peer.subject.network, time.time()).payload
    assert isinstance(payload, Card)
    herald = await talk(peer)
    accused = Verdict((Accusation(bytes(record_key("card", node)), payload.incarnation),))
    for _ in range(2):
        herald.send_records(*Scribe(peer.stranger(), peer.subject).testify(accused))
    await stranger.until(
        lambda: any(message.seqno > newest.seqno for message in stranger.by(node)), "a new card of the node published", 6.0
    )


@case("ISO-PUBSUB-018", alone=True)
async def ids_without_the_header_are_understood(peer: ScriptedPeer) -> None:
    """A message is sent again to who asks for it by the id that js-libp2p gives it."""
    reader, author = await subscribed(peer), await meet(peer)
    message = card_message(peer)
    author.publish(message)
    await reader.until(lambda: message.data in reader.cards(), "a card passed on over the mesh of the topic")
    reader.send(Rpc(iwants=(bare_id(message.id),)))
    await reader.until(lambda: reader.cards().count(message.data) > 1, "the message once more, asked for by an id of 44 bytes")


def _wrong(peer: ScriptedPeer) -> dict[str, PubsubMessage]:
    """Messages that are to be rejected or ignored, by what is wrong with them."""
    one, other = peer.stranger(), peer.stranger()
    topic = card_message(peer).topic
    scribe = Scribe(one, peer.subject)
    good = card_message(peer)
    late = Scribe(one, peer.subject).card(sequence=9, issued_in_s=-300.0, lasts_s=10.0)
    foreign = Scribe(one, peer.subject).card(sequence=9, network="another-network")
    forged = scribe.card(sequence=9)
    forged = forged[:-1] + bytes([forged[-1] ^ 1])
    return {
        "a signature that does not match": replace(good, signature=bytes(64)),
        "no signature": replace(card_message(peer), signature=b""),
        "data that is no envelope": sign_message(one, b"hello", 9, topic),
        "another number than its envelope": sign_message(one, scribe.card(sequence=8), 9, topic),
        "another author than its envelope": sign_message(other, scribe.card(sequence=9), 9, topic),
        "a card of another network": sign_message(one, foreign, 9, topic),
        "a card that has expired": sign_message(one, late, 9, topic),
        "a card that is forged": sign_message(one, forged, 9, topic),
        "edges": sign_message(one, scribe.seal(Edges(()), sequence=9), 9, topic),
    }


@case("ISO-PUBSUB-009", alone=True)
async def what_is_not_accepted_is_not_passed_on(peer: ScriptedPeer) -> None:
    """Whatever is wrong with a message, it goes no further; a good one does."""
    reader = await subscribed(peer)
    wrong = _wrong(peer)
    later = card_message(peer)
    payload = encode_bytes(2, encode_pubsub_message(later) + encode_text(99, "later"))
    for message in wrong.values():
        author = await meet(peer)
        author.publish(message)
    author = await meet(peer)
    author.send_bytes(payload)
    await published(await meet(peer), reader)
    await trio.sleep(peer.subject.quiet_s)
    for what, message in (wrong | {"a field of a later version": later}).items():
        expect(message.data not in reader.cards(), f"a message with {what} is not passed on", "it was")


@case("ISO-PUBSUB-011", alone=True)
async def a_strangers_card_is_news_of_gossip(peer: ScriptedPeer) -> None:
    """A card that a stranger publishes is pushed to the members, byte for byte."""
    member = await joined(peer)
    stranger = await meet(peer)
    message = card_message(peer)
    stranger.publish(message)
    await member.hears(message.data, "the card of a stranger over a link of the mesh of gossip")


@case("ISO-PUBSUB-012", "ISO-PUBSUB-013", alone=True)
async def a_prune_says_for_how_long_and_names_nobody(peer: ScriptedPeer) -> None:
    """Who asks again too soon for a link that it gave back is told to wait a minute, and is offered no peers."""
    stranger = await subscribed(peer)
    stranger.send(Rpc(prunes=(Prune(stranger.topic, BACKOFF_S),)))
    stranger.send(Rpc(grafts=(stranger.topic,)))
    await stranger.until(lambda: prunes(stranger), "a prune for a graft before its time")
    expect(prunes(stranger)[-1].backoff_s == BACKOFF_S, f"a backoff of {BACKOFF_S} s", prunes(stranger)[-1])
    offered = sum(_offers(payload) for payload in stranger.raw)
    expect(offered == 0, "no peers in a prune", f"{offered} peers")


def _inside(message: bytes, number: int) -> list[bytes]:
    """The messages in the fields of one number."""
    return [value for field, value in read_fields(message, 1000) if field == number and isinstance(value, bytes)]


def _offers(rpc: bytes) -> int:
    """How many peers the prunes of an RPC offer: field 3 of an RPC is its control, 4 of that a prune, 2 of that a peer."""
    return sum(len(_inside(prune, 2)) for control in _inside(rpc, 3) for prune in _inside(control, 4))


@case("ISO-PUBSUB-012", alone=True)
async def a_backoff_is_obeyed(peer: ScriptedPeer) -> None:
    """Who gave a link back for a minute is not asked for it, however few links the node has."""
    stranger = await subscribed(peer)
    before = len(stranger.listen())
    stranger.send(Rpc(prunes=(Prune(stranger.topic, BACKOFF_S),)))
    await trio.sleep(3 * HEARTBEAT_S)
    expect(not any(rpc.grafts for rpc in stranger.listen()[before:]), "no graft before its time", "a graft")


@case("ISO-PUBSUB-013")
async def peers_that_are_offered_are_not_dialled(peer: ScriptedPeer) -> None:
    """A prune that names a peer and where it is leads to no connection."""
    stranger = await meet(peer)
    identity = peer.stranger()
    listener = peer.listen(identity)
    record = seal_peer_record(identity, 1, (listener.address.to_bytes(),))
    offered = encode_bytes(2, encode_bytes(1, identity.peer_id) + encode_bytes(2, record))
    stranger.send_bytes(encode_bytes(3, encode_bytes(4, encode_text(1, stranger.topic) + offered + encode_uint(3, BACKOFF_S))))
    dialled = await listener.accepted(2 * HEARTBEAT_S)
    expect(dialled is None, "no dial to a peer that was offered", "a dial")
    await peer.ping(stranger.connection)


@case("ISO-PUBSUB-014")
async def too_many_ihaves_are_ignored(peer: ScriptedPeer) -> None:
    """Of forty at once no more are answered than ten for each heartbeat that they touch."""
    stranger = await subscribed(peer)
    ids = [peer.stranger().peer_id + number.to_bytes(8, "big") for number in range(4 * IHAVE_MAX)]
    for name in ids:
        stranger.send(Rpc(ihaves=(IHave(stranger.topic, (name,)),)))
    await stranger.until(lambda: any(rpc.iwants for rpc in stranger.listen()), "an IWANT for what the node lacks")
    await trio.sleep(peer.subject.quiet_s)
    asked = {name for rpc in stranger.listen() for name in rpc.iwants}
    expect(asked <= set(ids) and len(asked) <= 2 * IHAVE_MAX, f"at most {2 * IHAVE_MAX} ids asked for", len(asked))


@case("ISO-PUBSUB-015", alone=True)
async def who_does_not_want_a_message_is_not_sent_it(peer: ScriptedPeer) -> None:
    """After IDONTWANT a message goes to the others of the mesh alone."""
    reader, other = await subscribed(peer), await subscribed(peer)
    author = await meet(peer)
    message = card_message(peer)
    reader.send(Rpc(idontwants=(message.id,)))
    await peer.ping(reader.connection)
    author.publish(message)
    await other.until(lambda: message.data in other.cards(), "the message for who has not said IDONTWANT")
    await published(author, reader)
    expect(message.data not in reader.cards(), "no message for who does not want it", "it was sent")


@case("ISO-PUBSUB-016", alone=True)
async def a_bad_score_is_kept(peer: ScriptedPeer) -> None:
    """Who published forgeries is told no gossip when it comes back; somebody new is."""
    forger = peer.stranger()
    stranger = await meet(peer, forger)
    for _ in range(2):
        stranger.publish(replace(card_message(peer), signature=bytes(64)))
    await peer.ping(stranger.connection)
    stranger.connection.close()
    await trio.sleep(peer.subject.quiet_s)
    reader, author = await subscribed(peer), await meet(peer)
    message = card_message(peer)
    author.publish(message)
    await reader.until(lambda: message.data in reader.cards(), "a card passed on over the mesh of the topic")
    back, new = await meet(peer, forger), await meet(peer)
    for asker in (back, new):
        asker.send(Rpc(iwants=(message.id,)))
    await new.until(lambda: message.data in new.cards(), "the message for somebody new who asks for it")
    await peer.ping(back.connection)
    expect(message.data not in back.cards(), "no gossip for who has published forgeries", "the message")


@case("ISO-PUBSUB-017", alone=True)
async def a_stranger_that_floods_is_closed(peer: ScriptedPeer) -> None:
    """Ids without end cost the connection, with FLOODING, and nothing else."""
    stranger = await meet(peer)
    for start in range(0, 60_000, 5000):
        if stranger.connection.end is None:
            stranger.send(Rpc(idontwants=tuple(number.to_bytes(8, "big") for number in range(start, start + 5000))))
        await trio.lowlevel.checkpoint()
    await stranger.blamed(ErrorCode.FLOODING, "60,000 ids at once")
    await peer.others_are_served()
