"""Peers that speak gossipsub and no gossip, over live wires: served, bounded, and never taken for members."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from mesh_nodes import MeshNode, PlannedEngine, Start, eventually, introduced

from mesh.transport import Connection, Stream, StreamReset, Transport
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.pubsub import RPC_BYTES_MAX, PubsubMessage, Version, is_signed, sign_message
from protocol.pubsub.messages import Rpc, Subscription, decode_rpc, encode_rpc
from protocol.records import open_record

TOPIC = "isochrone/test/cards"
SUBSCRIBED = Rpc(subscriptions=(Subscription(TOPIC),))


class Subscriber:
    """A libp2p peer that reads what it is sent on gossipsub streams, and says what it is told to say."""

    def __init__(self) -> None:
        self.transport: Transport
        self.connection: Connection
        self.heard: list[Rpc] = []
        self.streams: list[Stream] = []

    async def listen(self, stream: Stream) -> None:
        self.streams.append(stream)
        decoder = FrameDecoder(RPC_BYTES_MAX)
        while chunk := await stream.receive_some():
            decoder.receive(chunk)
            while (frame := decoder.next_frame()) is not None:
                self.heard.append(decode_rpc(frame))

    @property
    def messages(self) -> list[PubsubMessage]:
        return [message for rpc in self.heard for message in rpc.messages]

    def has_card_of(self, node: MeshNode) -> bool:
        return any(message.author == node.peer_id for message in self.messages)

    async def open(self, version: Version = Version.V11) -> Stream:
        stream = await self.connection.open_stream(version.value)
        await stream.send_all(encode_frame(encode_rpc(SUBSCRIBED)))
        return stream


@asynccontextmanager
async def subscriber(
    start: Start, node: MeshNode, seed: int = 5, versions: tuple[Version, ...] = (Version.V12, Version.V11)
) -> AsyncIterator[Subscriber]:
    """A stranger that has dialled a node."""
    peer = Subscriber()
    handlers: dict[str, Callable] = {version.value: peer.listen for version in versions}
    async with start.stranger(seed, **handlers) as peer.transport:
        peer.connection = await peer.transport.dial(node.address)
        yield peer


async def end_of(stream: Stream) -> int:
    """The code with which the node resets a stream that it says nothing on."""
    with pytest.raises(StreamReset) as ended, trio.fail_after(5):
        await stream.receive_some()
    return ended.value.code


async def test_a_node_opens_a_stream_of_the_newest_version_to_a_stranger_and_sends_it_cards(start: Start) -> None:
    node = await start(PlannedEngine())
    async with subscriber(start, node) as peer:
        await eventually(lambda: peer.heard != [])
        assert peer.heard[0] == SUBSCRIBED
        assert [stream.protocol_id for stream in peer.streams] == [Version.V12.value]
        await peer.open()
        await eventually(lambda: peer.has_card_of(node))
        (message,) = peer.messages
        assert is_signed(message)
        record = open_record(message.data, "test", node.service.node.wall(node.service.transport.now()))
        assert (record.peer_id, message.topic) == (node.peer_id, TOPIC)


async def test_cards_of_nodes_behind_it_reach_a_stranger_once(start: Start) -> None:
    node = await start(PlannedEngine())
    async with subscriber(start, node) as peer:
        await peer.open()
        await eventually(lambda: peer.has_card_of(node))
        await eventually(lambda: len(node.service.node.strangers.router.mesh(TOPIC)) == 1)
        other = await start(PlannedEngine(), join=(node,))
        await eventually(lambda: peer.has_card_of(other), 10)
        ids = [message.id for message in peer.messages]
        assert len(ids) == len(set(ids))


async def test_a_stranger_that_opens_a_stream_is_one_without_being_asked(start: Start) -> None:
    node = await start(PlannedEngine())
    async with subscriber(start, node, versions=(Version.V10,)) as peer:
        await peer.open(Version.V10)
        await eventually(lambda: peer.has_card_of(node))
        assert peer.streams[0].protocol_id == Version.V10.value


async def test_a_stranger_is_no_member(start: Start) -> None:
    node = await start(PlannedEngine())
    async with subscriber(start, node) as peer:
        await peer.open()
        await eventually(lambda: peer.has_card_of(node))
        assert node.service.node.membership.connected() == []
        assert node.service.node.views.known() == []
        assert len(node.service.driver.strangers) == 1
    await eventually(lambda: len(node.service.driver.strangers) == 0)
    assert node.service.node.strangers.next_timer() is None


async def test_two_nodes_open_no_gossipsub_to_one_another(start: Start) -> None:
    one = await start(PlannedEngine())
    other = await start(PlannedEngine(), join=(one,))
    await introduced(one, other)
    assert len(one.service.driver.strangers) == len(other.service.driver.strangers) == 0
    stream = await one.service.transport.connections[other.peer_id].open_stream(Version.V12.value)
    await stream.send_all(encode_frame(encode_rpc(SUBSCRIBED)))
    assert await end_of(stream) is ErrorCode.UNSUPPORTED
    assert one.knows(other.peer_id)


async def test_a_stranger_that_begins_to_speak_gossip_is_a_stranger_no_more(start: Start) -> None:
    node = await start(PlannedEngine())
    async with subscriber(start, node) as peer:
        await peer.open()
        await eventually(lambda: len(node.service.driver.strangers) == 1)
        async with await peer.connection.open_stream(GOSSIP_PROTOCOL) as gossip:
            await gossip.send_all(b"\x03\x92\x05\xc0")  # a graft
            await eventually(lambda: node.service.node.membership.is_connected(peer.transport.identity.peer_id))
            assert len(node.service.driver.strangers) == 0


async def test_junk_ends_the_stranger_s_connection_and_no_other(start: Start) -> None:
    node = await start(PlannedEngine())
    async with subscriber(start, node) as peer, subscriber(start, node, seed=6) as other:
        await other.open()
        stream = await peer.open()
        await eventually(lambda: other.has_card_of(node) and peer.has_card_of(node))
        await stream.send_all(encode_frame(b"\xff\xff"))
        await eventually(lambda: not peer.connection.is_alive)
        assert peer.connection.lost.code is ErrorCode.MALFORMED
        assert other.connection.is_alive
        await eventually(lambda: node.faults() == {"malformed": 1.0})


async def test_a_frame_over_the_limit_ends_the_connection_at_its_length(start: Start) -> None:
    node = await start(PlannedEngine())
    async with subscriber(start, node) as peer:
        stream = await peer.open()
        await stream.send_all(encode_frame(bytes(RPC_BYTES_MAX + 1))[:10])
        await eventually(lambda: not peer.connection.is_alive)
        assert peer.connection.lost.code is ErrorCode.TOO_LARGE


async def test_a_stream_that_is_broken_off_is_opened_again_and_begins_with_the_subscription(start: Start) -> None:
    node = await start(PlannedEngine())
    async with subscriber(start, node) as peer:
        await eventually(lambda: len(peer.heard) == 1)
        peer.streams[0].reset(ErrorCode.CANCELLED)
        await peer.open()  # what is said to it now meets the reset
        await eventually(lambda: len(peer.streams) == 2 and len(peer.heard) >= 2)
        assert peer.heard[-1].subscriptions == SUBSCRIBED.subscriptions


async def test_a_second_stream_of_a_stranger_takes_the_place_of_the_first(start: Start) -> None:
    node = await start(PlannedEngine())
    async with subscriber(start, node) as peer:
        first = await peer.open()
        await eventually(lambda: peer.has_card_of(node))
        await peer.open()
        assert await end_of(first) is ErrorCode.DUPLICATE


async def test_a_message_that_is_rejected_lowers_the_score_and_one_too_many_ends_the_hearing(start: Start) -> None:
    node = await start(PlannedEngine())
    async with subscriber(start, node) as peer:
        stream, me = await peer.open(), peer.transport.identity
        await eventually(lambda: peer.has_card_of(node))
        scores, config = node.service.node.strangers.router.scores, node.service.node.config.strangers.pubsub.score
        for number in range(6):
            message = sign_message(me, b"no card", number, TOPIC)
            await stream.send_all(encode_frame(encode_rpc(Rpc(messages=(message,)))))
        await eventually(lambda: scores.score(me.peer_id) < config.graylist_threshold)
        assert peer.connection.is_alive


async def test_strangers_are_pinged(start: Start) -> None:
    node = await start(PlannedEngine())
    async with subscriber(start, node) as peer:
        await eventually(lambda: node.service.node.strangers.router.scores.score(peer.transport.identity.peer_id) > 1.0)


async def test_strangers_beyond_the_bound_are_refused(start: Start) -> None:
    node = await start(PlannedEngine())
    router = node.service.node.strangers.router
    for number in range(router._config.peers_max):
        router.handle_connected(number.to_bytes(38, "big"), Version.V11, None, 0.0, is_dialled=False)
    async with subscriber(start, node) as peer:
        stream = await peer.open()
        assert await end_of(stream) is ErrorCode.OVERLOADED
        assert peer.connection.is_alive
