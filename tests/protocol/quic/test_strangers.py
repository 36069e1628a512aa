"""Honest libp2p peers that do what ours do not: long first flights, STOP_SENDING at any moment, many streams at once."""

import pytest
from aioquic.quic import events
from hostile import DIALLER, LISTENER, Hostile, stream_frame, varint

from protocol.errors import ErrorCode, LocalProtocolError
from protocol.quic.events import ConnectionClosed, ConnectionEstablished, StopSending, StreamData, StreamOpened

CODE = 0x2A
ANSWER_BYTES = 300_000


@pytest.fixture(params=["a", "q"], ids=["aioquic", "qh3"])
def engine(request):
    return request.param


def stop_frame(stream_id: int, code: int) -> bytes:
    return b"\x05" + varint(stream_id) + varint(code)


def connected(engine) -> Hostile:
    stranger = Hostile(engine)
    stranger.exchange()
    assert stranger.of(ConnectionEstablished)
    return stranger


def handle_of(stranger: Hostile):
    return stranger.of(ConnectionEstablished)[0].connection


def still_serves(stranger: Hostile, stream_id: int) -> None:
    stranger.client.send_stream_data(stream_id, b"another", True)
    stranger.exchange()
    assert [output.data for output in stranger.of(StreamData) if output.stream == stream_id] == [b"another"]
    assert stranger.of(ConnectionClosed) == []


def resets_seen(stranger: Hostile) -> list[tuple[int, int]]:
    seen = []
    while (event := stranger.client.next_event()) is not None:
        if isinstance(event, events.StreamReset):
            seen.append((event.stream_id, event.error_code))
    return seen


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 1, 0, 0), (1,), (0,)], ids=str)
def test_a_hello_of_two_datagrams_is_put_together_in_any_order(engine, order):
    """A key share of ML-KEM does not fit one datagram; rust-libp2p and go-libp2p send one, and their order is the network's."""
    stranger = Hostile(engine, quantum_readiness_test=True)
    flight = [data for data, _ in stranger.client.datagrams_to_send(stranger.now)]
    assert len(flight) == 2
    for index in order:
        stranger.victim.handle_datagram(flight[index], DIALLER, stranger.now)
        for data in stranger.drain():
            stranger.client.receive_datagram(data, LISTENER, stranger.now)
        stranger.now += 0.01
    assert stranger.victim.n_connections == 1
    stranger.exchange(100)
    (established,) = stranger.of(ConnectionEstablished)
    assert established.peer_id == stranger.identity.peer_id
    still_serves(stranger, 0)


def stop_with_the_first_data(stranger):
    stranger.client.send_stream_data(0, b"question")
    stranger.client.stop_stream(0, CODE)


def stop_behind_the_question(stranger):
    stranger.client.send_stream_data(0, b"question")
    stranger.exchange()
    stranger.client.stop_stream(0, CODE)


def stop_within_the_answer(stranger):
    stranger.client.send_stream_data(0, b"question", True)
    stranger.exchange()
    stranger.victim.send(handle_of(stranger), 0, bytes(ANSWER_BYTES))
    stranger.exchange(2)
    stranger.client.stop_stream(0, CODE)


def stop_behind_the_answers_end_before_it_is_acknowledged(stranger):
    stranger.client.send_stream_data(0, b"question", True)
    stranger.exchange()
    stranger.victim.send(handle_of(stranger), 0, bytes(ANSWER_BYTES), True)
    stranger.exchange(2)
    stranger.client.stop_stream(0, CODE)


@pytest.mark.parametrize(
    "moment",
    [
        stop_with_the_first_data,
        stop_behind_the_question,
        stop_within_the_answer,
        stop_behind_the_answers_end_before_it_is_acknowledged,
    ],
    ids=lambda moment: moment.__name__,
)
def test_stop_sending_is_answered_by_a_reset_with_its_code(engine, moment):
    stranger = connected(engine)
    moment(stranger)
    stranger.exchange()
    assert resets_seen(stranger) == [(0, CODE)]
    with pytest.raises(LocalProtocolError):
        stranger.victim.send(handle_of(stranger), 0, b"more")
    still_serves(stranger, 4)


def test_stop_sending_for_a_stream_that_is_opened_by_it(engine):
    stranger = connected(engine)
    stranger.attack(stop_frame(0, CODE))
    assert [output.stream for output in stranger.of(StreamOpened)] == [0]
    assert [(output.stream, output.code) for output in stranger.of(StopSending)] == [(0, CODE)]
    with pytest.raises(LocalProtocolError):
        stranger.victim.send(handle_of(stranger), 0, b"more")
    stranger.client.send_stream_data(0, b"question", True)
    stranger.exchange()
    assert [output.data for output in stranger.of(StreamData)] == [b"question"]
    still_serves(stranger, 4)


def test_stop_sending_again_and_for_a_stream_that_is_over(engine):
    stranger = connected(engine)
    stranger.client.send_stream_data(0, b"question", True)
    stranger.exchange()
    stranger.attack(stop_frame(0, CODE))
    stranger.attack(stop_frame(0, CODE + 1))
    stranger.victim.reset(handle_of(stranger), 0, ErrorCode.CANCELLED)
    stranger.client.send_stream_data(4, b"question", True)
    stranger.exchange()
    for output in stranger.of(StreamData):
        stranger.victim.consumed(output.connection, output.stream, len(output.data), stranger.now)
    stranger.victim.send(handle_of(stranger), 4, b"answer", True)
    stranger.exchange()
    stranger.attack(stop_frame(4, CODE))
    assert [output.code for output in stranger.of(StopSending)] == [CODE]
    still_serves(stranger, 8)


def test_a_peer_may_hold_256_streams_open_and_no_more(engine):
    stranger = connected(engine)
    for number in range(256):
        stranger.client.send_stream_data(4 * number, b"x")
    stranger.exchange(100)
    assert [output.stream for output in stranger.of(StreamOpened)] == [4 * number for number in range(256)]
    assert len(stranger.of(StreamData)) == 256
    assert stranger.of(ConnectionClosed) == []
    stranger.attack(stream_frame(4 * 256, 0, b"x"))
    (closed,) = stranger.of(ConnectionClosed)
    assert closed.code is ErrorCode.FLOODING
