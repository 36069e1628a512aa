"""Identify and its push between two transports on loopback, and peers that speak it in other ways than ours."""

import pytest
from transport_nodes import COMBOS, Node, read_all, running, until

from mesh.transport import StreamReset
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import encode_public_key
from protocol.libp2p.envelope import open_peer_record, seal_peer_record
from protocol.libp2p.identify import IDENTIFY_PROTOCOL, IDENTIFY_PUSH_PROTOCOL, Identify, IdentifyReader, encode_identify
from protocol.libp2p.protobuf import encode_text


@pytest.fixture(params=COMBOS, ids=lambda pair: "-".join(pair))
def engines(request):
    return request.param


async def nothing(stream):
    await stream.receive_some()


def answering(*answers: Identify):
    """A handler that answers identify with these, a message each."""

    async def answer(stream):
        await stream.send_all(b"".join(encode_identify(part) for part in answers))

    return {IDENTIFY_PROTOCOL: answer}


async def test_a_new_protocol_and_a_new_address_reach_the_peer_that_asked(engines):
    a, b, other = Node(1, engines[0]), Node(2, engines[1]), Node(3, engines[0])
    async with running(a, b, other):
        connection = await a.transport.dial(b.address)
        before = await connection.identify()
        assert before.protocol_version == "/isochrone/0.1.0"
        unasked = await other.transport.dial(b.address)
        b.transport.add_handler("/test/new/1", nothing)
        await until(lambda: "/test/new/1" in connection.description.said.protocols)
        assert connection.description.said.listen_addresses == before.listen_addresses
        first = connection.description.record.sequence
        assert first > open_peer_record(before.signed_peer_record).sequence
        b.transport._bind("127.0.0.1", 0)
        await until(lambda: len(connection.description.said.listen_addresses) == 2)
        assert connection.description.record.sequence > first
        assert connection.description.record.addresses == connection.description.said.listen_addresses
        assert unasked.description.said is None


async def test_changes_in_quick_succession_are_told_together(engines):
    told = []

    async def keep(stream):
        reader = IdentifyReader()
        reader.receive_data(await read_all(stream))
        told.append(reader.receive_eof().protocols)

    a, b = Node(1, engines[0], handlers={IDENTIFY_PUSH_PROTOCOL: keep}), Node(2, engines[1])
    async with running(a, b):
        connection = await a.transport.dial(b.address)
        await connection.identify()
        for number in range(20):
            b.transport.add_handler(f"/test/new/{number}", nothing)
        await until(lambda: told)
        b.transport.add_handler("/test/last", nothing)
        await until(lambda: "/test/last" in told[-1])
        assert len(told) == 2
        assert {f"/test/new/{number}" for number in range(20)} <= set(told[0])


async def test_a_peer_that_takes_no_push_is_left_alone(engines):
    a, b = Node(1, engines[0]), Node(2, engines[1])
    async with running(a, b):
        del a.transport._handlers[IDENTIFY_PUSH_PROTOCOL]
        connection = await a.transport.dial(b.address)
        await connection.identify()
        await until(lambda: b.connected[0].told)
        b.transport.add_handler("/test/new/1", nothing)
        await until(lambda: b.connected[0].told is None)
        assert await connection.ping() > 0


async def test_an_answer_in_two_messages_without_a_record_is_taken(engines):
    handlers = answering(Identify(protocols=("/a",), agent_version="x"), Identify(protocols=("/b",)))
    a, b = Node(1, engines[0]), Node(2, engines[1], handlers=handlers)
    async with running(a, b):
        connection = await a.transport.dial(b.address)
        assert await connection.identify() == Identify(protocols=("/a", "/b"), agent_version="x")
        assert connection.description.record is None


@pytest.mark.parametrize("lie", ["key", "record"])
async def test_a_push_in_anothers_name_is_reset_and_changes_nothing(engines, lie):
    a, b = Node(1, engines[0]), Node(2, engines[1])
    if lie == "key":
        news = Identify(public_key=encode_public_key(b.transport.identity.public_key))
    else:
        news = Identify(signed_peer_record=seal_peer_record(b.transport.identity, 1, ()))
    async with running(a, b):
        connection = await a.transport.dial(b.address)
        stream = await connection.open_stream(IDENTIFY_PUSH_PROTOCOL)
        await stream.send_all(encode_identify(news), end=True)
        with pytest.raises(StreamReset) as caught:
            await read_all(stream)
        assert caught.value.code == ErrorCode.WRONG_PEER
        assert b.connected[0].description.said is None
        assert await connection.ping() > 0


@pytest.mark.parametrize("ends", [True, False], ids=["with its end", "without its end"])
async def test_a_push_that_is_no_good_is_reset_with_its_fault_whether_its_end_has_come_or_not(engines, ends):
    a, b = Node(1, engines[0]), Node(2, engines[1])
    eleven = encode_frame(encode_text(6, "more")) * 11
    async with running(a, b):
        connection = await a.transport.dial(b.transport.addresses[0])
        stream = await connection.open_stream(IDENTIFY_PUSH_PROTOCOL)
        await stream.send_all(eleven, end=ends)
        with pytest.raises(StreamReset) as caught:
            await read_all(stream)
        assert caught.value.code == ErrorCode.TOO_LARGE


async def test_what_a_handler_blames_the_peer_for_is_the_code_of_the_reset_also_through_the_stream(engines):
    async def blames(stream):
        async with stream:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "not like that")

    a, b = Node(1, engines[0]), Node(2, engines[1], {"/blames/1": blames})
    async with running(a, b):
        connection = await a.transport.dial(b.transport.addresses[0])
        for ends in (True, False):
            stream = await connection.open_stream("/blames/1")
            await stream.send_all(b"x", end=ends)
            with pytest.raises(StreamReset) as caught:
                await read_all(stream)
            assert caught.value.code == ErrorCode.MALFORMED
