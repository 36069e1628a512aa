"""What two endpoints do to one another, for every combination of engines."""

import random

import pytest
from quic_pair import DIALLER, LISTENER, WALL_S, Pair, certificate_of

from protocol.conduct import Allowance, ConductConfig
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import Identity, verify_certificate
from protocol.quic.events import (
    ConnectionClosed,
    ConnectionEstablished,
    EndpointConfig,
    StopSending,
    StreamReset,
    StreamsAvailable,
    StreamWritable,
)
from protocol.quic.seam import EngineConfig

COMBOS = ("aa", "qq", "aq", "qa")
MIB = 1024 * 1024


@pytest.fixture(params=COMBOS)
def engines(request):
    return request.param


def test_handshake_proves_both_peers(engines):
    pair = Pair(engines)
    pair.connect()
    assert pair.dialler.outputs[0].peer_id == pair.listener.identity.peer_id
    assert pair.listener.outputs[0].peer_id == pair.dialler.identity.peer_id
    assert pair.dialler.outputs[0].is_client
    assert not pair.listener.outputs[0].is_client


def test_wrong_peer_is_refused_inside_the_handshake(engines):
    pair = Pair(engines)
    pair.dial(Identity.from_seed(bytes([9]) * 32).peer_id)
    pair.run(3.0)
    assert pair.dialler.closed.code is ErrorCode.WRONG_PEER
    assert not pair.dialler.closed.established
    assert not pair.listener.of(ConnectionClosed) or not pair.listener.closed.established
    assert pair.dialler.endpoint.n_connections == 0


def test_expired_client_certificate_is_refused(engines):
    stranger = Identity.from_seed(bytes([1]) * 32)
    pair = Pair(engines, dialler_certificate=certificate_of(stranger, WALL_S + 7200))
    pair.dial()
    pair.run(3.0)
    assert pair.listener.closed.code is ErrorCode.EXPIRED
    assert pair.dialler.closed.code is ErrorCode.EXPIRED
    assert not pair.dialler.closed.established
    assert pair.listener.endpoint.n_connections == pair.dialler.endpoint.n_connections == 0


def test_expired_server_certificate_is_refused(engines):
    stranger = Identity.from_seed(bytes([2]) * 32)
    pair = Pair(engines, listener_certificate=certificate_of(stranger, WALL_S + 7200))
    pair.dial()
    pair.run(3.0)
    assert pair.dialler.closed.code is ErrorCode.EXPIRED
    assert not pair.dialler.closed.established


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (ErrorCode.NOT_ADMITTED, ErrorCode.NOT_ADMITTED),
        (ErrorCode.REVOKED, ErrorCode.REVOKED),
        (ErrorCode.WRONG_NETWORK, ErrorCode.WRONG_NETWORK),
        (ErrorCode.NOT_YET_VALID, ErrorCode.NOT_ADMITTED),
        (ErrorCode.WRONG_KEY, ErrorCode.BAD_CERTIFICATE),
    ],
    ids=lambda code: code.name,
)
def test_why_a_peer_is_not_admitted_is_told_by_an_alert(engines, code, told):
    def verify(der):
        peer_id = verify_certificate(der, WALL_S)
        if peer_id == pair.dialler.identity.peer_id:
            raise RemoteProtocolError(code, "not this one")
        return peer_id

    pair = Pair(engines, verify=verify)
    pair.dial()
    pair.run(3.0)
    assert pair.listener.closed.code is code
    assert pair.dialler.closed.code is told
    assert not pair.dialler.closed.established
    assert pair.listener.endpoint.n_connections == pair.dialler.endpoint.n_connections == 0


def test_streams_carry_data_both_ways(engines):
    pair = Pair(engines)
    pair.connect()
    luck = random.Random(7)
    question, answer = luck.randbytes(MIB), luck.randbytes(MIB)
    stream = pair.open()
    pair.write(pair.dialler, stream, question, end=True)
    pair.run(30.0, until=lambda: stream in pair.listener.ended)
    assert bytes(pair.listener.received[stream]) == question
    pair.write(pair.listener, stream, answer, end=True)
    pair.run(30.0, until=lambda: stream in pair.dialler.ended)
    assert bytes(pair.dialler.received[stream]) == answer


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_third_of_all_datagrams_lost_delays_and_spoils_nothing(engines, seed):
    config = EndpointConfig(handshake_timeout_s=60.0, engine=EngineConfig(idle_timeout_s=60.0))
    pair = Pair(engines, loss=0.3, seed=seed, config=config)
    pair.dial()
    pair.run(60.0, until=lambda: pair.dialler.established is not None and pair.listener.established is not None)
    data = random.Random(seed).randbytes(64 * 1024)
    stream = pair.open()
    pair.write(pair.dialler, stream, data, end=True)
    pair.run(120.0, until=lambda: stream in pair.listener.ended)
    assert bytes(pair.listener.received[stream]) == data


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_server_that_speaks_at_once_is_heard_after_the_connection_is_established(engines, seed):
    config = EndpointConfig(handshake_timeout_s=60.0, engine=EngineConfig(idle_timeout_s=60.0))
    pair = Pair(engines, loss=0.3, seed=seed, config=config)

    def greet(output):
        if isinstance(output, ConnectionEstablished):
            stream = pair.listener.endpoint.open_stream(output.connection, pair.now)
            pair.listener.endpoint.send(output.connection, stream, b"welcome", True)

    pair.listener.on_output = greet
    pair.dial()
    pair.run(60.0, until=lambda: pair.dialler.ended)
    assert [bytes(data) for data in pair.dialler.received.values()] == [b"welcome"]
    assert isinstance(pair.dialler.outputs[0], ConnectionEstablished)


def test_junk_is_counted_and_ignored(engines):
    pair = Pair(engines)
    luck = random.Random(5)
    initial = b"\xc3\x00\x00\x00\x01\x08" + bytes(8) + b"\x08" + bytes(8) + b"\x00\x44\xd0" + luck.randbytes(1200)
    junk = [b"", b"\x00", b"\xff", b"\xc0", b"\x40" * 30, initial] + [luck.randbytes(luck.randrange(1, 1500)) for _ in range(300)]
    for data in junk:
        pair.listener.endpoint.handle_datagram(data, ("198.51.100.7", 9), pair.now)
        pair.pump()
    assert pair.listener.endpoint.counters.junk_datagrams >= len(junk)
    assert pair.listener.endpoint.n_connections == 0
    assert pair.listener.outputs == []
    pair.connect()


WINDOW = EngineConfig(stream_window_bytes=64 * 1024, connection_window_bytes=512 * 1024)
NARROW = EndpointConfig(engine=WINDOW, stream_unread_bytes_max=128 * 1024, unread_bytes_max=384 * 1024)


def test_stream_that_is_never_read_is_bounded_and_disturbs_no_other(engines):
    pair = Pair(engines, config=NARROW)
    pair.connect()
    unread, served = pair.open(), pair.open()
    pair.listener.reads = False
    data, sent = memoryview(bytes(2 * MIB)), 0

    def heard(count):
        return len(pair.listener.received.get(served, b"")) >= 1000 * count and len(pair.frames(pair.listener)) >= count

    for number in range(200):
        if pair.dialler.of(StopSending) == []:
            sent += pair.dialler.endpoint.send(pair.dialler.established, unread, data[sent : sent + 64 * 1024])
        pair.dialler.endpoint.send(pair.dialler.established, served, bytes([number]) * 1000)
        pair.dialler.endpoint.send_datagram(pair.dialler.established, bytes([number]))
        pair.run(1.0, until=lambda count=number + 1: heard(count))
        for handle, stream, n_bytes in pair.listener.unread:
            if stream == served:
                pair.listener.endpoint.consumed(handle, stream, n_bytes, pair.now)
        pair.listener.unread = [entry for entry in pair.listener.unread if entry[1] == unread]
    assert len(pair.listener.received[served]) == 200_000
    assert len(pair.frames(pair.listener)) == 200
    stops, resets = pair.dialler.of(StopSending), pair.listener.of(StreamReset)
    if engines[1] == "a":  # aioquic holds the sender back by its credit
        assert len(pair.listener.received[unread]) == WINDOW.stream_window_bytes
        assert stops == resets == []
    else:  # qh3 cannot, and the stream is given up
        assert 0 <= len(pair.listener.received[unread]) - NARROW.stream_unread_bytes_max <= 64 * 1024
        assert [(stop.stream, stop.code) for stop in stops] == [(unread, ErrorCode.FLOODING)]
        assert [(reset.stream, reset.code, reset.local) for reset in resets] == [(unread, ErrorCode.FLOODING, True)]
    assert pair.dialler.of(ConnectionClosed) == pair.listener.of(ConnectionClosed) == []


def test_slow_reader_within_its_bound_gets_everything(engines):
    config = EndpointConfig(engine=WINDOW, stream_unread_bytes_max=2 * MIB, unread_bytes_max=4 * MIB)
    pair = Pair(engines, config=config)
    pair.connect()
    pair.listener.reads = False
    data = random.Random(3).randbytes(MIB)
    stream = pair.open()
    sent = 0
    for _ in range(2000):
        sent += pair.dialler.endpoint.send(pair.dialler.established, stream, memoryview(data)[sent:])
        pair.pump()
        pair.step(pair.now + 0.5)
    if engines[1] == "a":
        assert len(pair.listener.received[stream]) == WINDOW.stream_window_bytes
    pair.run(60.0)
    assert pair.dialler.of(ConnectionClosed) == []
    pair.listener.reads = True
    pair.read(pair.listener)
    pair.pump()
    pair.write(pair.dialler, stream, data[sent:], end=True)
    pair.run(60.0, until=lambda: stream in pair.listener.ended)
    assert bytes(pair.listener.received[stream]) == data


def test_reset_of_the_peer_is_seen_while_nothing_is_read(engines):
    pair = Pair(engines, config=NARROW)
    pair.connect()
    pair.listener.reads = False
    stream = pair.open()
    pair.dialler.endpoint.send(pair.dialler.established, stream, bytes(60 * 1024))
    pair.run(5.0)
    pair.dialler.endpoint.reset(pair.dialler.established, stream, ErrorCode.CANCELLED)
    pair.run(5.0)
    assert [(reset.code, reset.local) for reset in pair.listener.of(StreamReset)] == [(ErrorCode.CANCELLED, False)]


def test_unread_bytes_of_many_streams_stay_within_the_bound_of_the_connection(engines):
    pair = Pair(engines, config=NARROW)
    pair.connect()
    pair.listener.reads = False
    streams = [pair.open() for _ in range(20)]
    for number, stream in enumerate(streams):
        pair.dialler.endpoint.send(pair.dialler.established, stream, bytes((number + 40) * 1024), True)
    pair.run(30.0)
    given_up = [reset.stream for reset in pair.listener.of(StreamReset)]
    assert all(reset.local for reset in pair.listener.of(StreamReset))
    kept = [stream for stream in streams if stream not in given_up]
    assert given_up
    assert kept
    assert sum(len(pair.listener.received[stream]) for stream in kept) <= NARROW.unread_bytes_max
    pair.listener.reads = True
    pair.read(pair.listener)
    pair.run(30.0, until=lambda: pair.listener.ended >= set(kept))
    assert all(len(pair.listener.received[stream]) == (streams.index(stream) + 40) * 1024 for stream in kept)
    later = pair.open()
    pair.write(pair.dialler, later, bytes(MIB), end=True)
    pair.run(30.0, until=lambda: later in pair.listener.ended)
    assert len(pair.listener.received[later]) == MIB


def test_peer_of_an_ignored_stream_is_asked_to_stop_only_if_it_sends_more(engines):
    pair = Pair(engines)
    pair.connect()
    ends, goes_on = pair.open(), pair.open()
    for stream in (ends, goes_on):
        pair.write(pair.dialler, stream, b"request")
        pair.run(1.0)
        pair.listener.endpoint.ignore(pair.listener.established, stream, ErrorCode.NO_ERROR)
        pair.write(pair.listener, stream, b"answer", end=True)
    pair.run(1.0)
    assert pair.dialler.of(StopSending) == []
    pair.write(pair.dialler, ends, b"", end=True)
    pair.write(pair.dialler, goes_on, b"more")
    pair.run(1.0)
    assert [(stop.stream, stop.code) for stop in pair.dialler.of(StopSending)] == [(goes_on, ErrorCode.NO_ERROR)]
    assert b"more" not in pair.listener.received[goes_on]


def test_panic_of_the_compiled_core_ends_its_connection_alone():
    hazmat = pytest.importorskip("qh3._hazmat")
    pair = Pair("qq")
    pair.connect()
    stream = pair.open()
    pair.write(pair.dialler, stream, b"before")
    pair.run(1.0)

    class PanickingCore:
        """The core, whose next datagrams meet a panic of the same library."""

        def __init__(self, core):
            self._core = core

        def __getattr__(self, name):
            return getattr(self._core, name)

        def receive_many_datagrams(self, datagrams, address, now):
            hazmat.PrivateKeyInfo(b"")

    engine = pair.listener.endpoint._connections[pair.listener.established].engine
    engine._quic._core = PanickingCore(engine._quic._core)
    pair.write(pair.dialler, stream, b"after")
    pair.run(1.0)
    assert pair.listener.closed.code is ErrorCode.INTERNAL
    assert "PanicException" in pair.listener.closed.reason
    assert pair.listener.endpoint.n_connections == 0
    pair.run(30.0)
    pair.dialler.established = pair.listener.established = None
    pair.connect()


def test_interrupt_of_a_person_is_not_contained():
    pytest.importorskip("qh3")
    pair = Pair("qq")
    pair.connect()

    class InterruptedCore:
        outstanding_application_packets = ()

        def receive_many_datagrams(self, datagrams, address, now):
            raise KeyboardInterrupt

    engine = pair.listener.endpoint._connections[pair.listener.established].engine
    engine._quic._core = InterruptedCore()
    with pytest.raises(KeyboardInterrupt):
        engine.receive([b"x"], DIALLER, pair.now)


def test_full_send_buffer_takes_no_more_until_writable(engines):
    pair = Pair(engines, config=EndpointConfig(send_buffer_bytes_max=64 * 1024))
    pair.connect()
    stream = pair.open()
    assert pair.dialler.endpoint.send(pair.dialler.established, stream, bytes(100_000)) == 64 * 1024
    assert pair.dialler.endpoint.send(pair.dialler.established, stream, b"x") == 0
    pair.run(5.0)
    assert len(pair.dialler.of(StreamWritable)) == 1
    assert pair.dialler.endpoint.send(pair.dialler.established, stream, b"x", True) == 1
    pair.run(5.0)
    assert len(pair.listener.received[stream]) == 64 * 1024 + 1


def test_reset_voids_the_stream_and_later_writes_are_refused(engines):
    pair = Pair(engines)
    pair.connect()
    stream = pair.open()
    pair.write(pair.dialler, stream, b"begin")
    pair.run(1.0)
    pair.dialler.endpoint.reset(pair.dialler.established, stream, ErrorCode.CANCELLED)
    pair.run(1.0)
    assert [output.code for output in pair.listener.of(StreamReset)] == [ErrorCode.CANCELLED]
    with pytest.raises(LocalProtocolError):
        pair.dialler.endpoint.send(pair.dialler.established, stream, b"more")
    pair.dialler.endpoint.reset(pair.dialler.established, stream, ErrorCode.CANCELLED)
    pair.write(pair.listener, stream, b"the other side lives", end=True)
    pair.run(1.0)
    assert bytes(pair.dialler.received[stream]) == b"the other side lives"


def test_stop_sending_ends_the_writer_without_a_library_error(engines):
    pair = Pair(engines)
    pair.connect()
    stream = pair.open()
    pair.write(pair.dialler, stream, b"begin")
    pair.run(1.0)
    pair.listener.endpoint.stop_sending(pair.listener.established, stream, ErrorCode.CANCELLED)
    pair.run(1.0)
    assert [output.code for output in pair.dialler.of(StopSending)] == [ErrorCode.CANCELLED]
    for end in (False, True):
        with pytest.raises(LocalProtocolError):
            pair.dialler.endpoint.send(pair.dialler.established, stream, b"more", end)
    pair.dialler.endpoint.reset(pair.dialler.established, stream, 1)
    pair.dialler.endpoint.stop_sending(pair.dialler.established, stream, 1)
    pair.listener.endpoint.reset(pair.listener.established, stream, 1)
    pair.run(1.0)
    assert pair.dialler.of(ConnectionClosed) == []


def test_datagram_frames_arrive_with_the_time_of_their_packet(engines):
    pair = Pair(engines)
    pair.connect()
    assert pair.dialler.endpoint.send_datagram(pair.dialler.established, b"probe" * 100)
    sent_at = pair.now
    pair.run(1.0)
    (frame,) = [output for output in pair.listener.outputs if type(output).__name__ == "DatagramReceived"]
    assert frame.data == b"probe" * 100
    assert frame.received_at == pytest.approx(sent_at + pair.delay_s)
    assert not pair.dialler.endpoint.send_datagram(pair.dialler.established, bytes(2000))


def test_too_many_datagram_frames_at_once_are_dropped(engines):
    pair = Pair(engines)
    pair.connect()
    taken = [pair.dialler.endpoint.send_datagram(pair.dialler.established, b"x") for _ in range(200)]
    assert 0 < sum(taken) <= EngineConfig().frames_pending_max


def test_a_silent_peer_is_dropped_after_the_idle_timeout(engines):
    pair = Pair(engines)
    pair.connect()
    pair.run(1.0)
    pair.cut = True
    start = pair.now
    limit_s = EngineConfig().idle_timeout_s + EndpointConfig().keep_alive_s + 1.0
    pair.run(limit_s, until=lambda: pair.dialler.of(ConnectionClosed) and pair.listener.of(ConnectionClosed))
    assert pair.dialler.closed.code is pair.listener.closed.code is ErrorCode.IDLE
    assert EngineConfig().idle_timeout_s - 1.0 <= pair.now - start


def test_keep_alive_holds_a_silent_connection(engines):
    pair = Pair(engines)
    pair.connect()
    pair.run(600.0)
    assert pair.dialler.of(ConnectionClosed) == pair.listener.of(ConnectionClosed) == []
    quiet = pair.dialler.endpoint.counters.datagrams_out
    pair.run(100.0)
    assert pair.dialler.endpoint.counters.datagrams_out - quiet < 150


def test_a_close_is_heard_at_once_with_its_code(engines):
    pair = Pair(engines)
    pair.connect()
    pair.dialler.endpoint.close(pair.dialler.established, ErrorCode.GOODBYE, "leaving", pair.now)
    start = pair.now
    pair.run(5.0, until=lambda: pair.listener.of(ConnectionClosed))
    assert pair.now - start <= 2 * pair.delay_s
    assert (pair.listener.closed.code, pair.listener.closed.reason, pair.listener.closed.local) == (
        ErrorCode.GOODBYE,
        "leaving",
        False,
    )
    assert pair.dialler.closed.local
    assert pair.dialler.endpoint.n_connections == pair.listener.endpoint.n_connections == 0
    pair.run(5.0)
    assert pair.dialler.endpoint.next_timer() is None


def test_a_lost_close_is_said_again(engines):
    pair = Pair(engines)
    pair.connect()
    pair.run(1.0)
    pair.cut = True
    pair.dialler.endpoint.close(pair.dialler.established, ErrorCode.GOODBYE, "leaving", pair.now)
    pair.pump()
    pair.cut = False
    pair.run(2.0)
    assert pair.listener.of(ConnectionClosed) == []  # it has nothing to say and so hears nothing
    pair.listener.endpoint.send_datagram(pair.listener.established, b"probe")
    pair.run(1.0, until=lambda: pair.listener.of(ConnectionClosed))
    assert pair.listener.closed.code is ErrorCode.GOODBYE


def test_a_lost_close_is_said_again_as_long_as_the_peer_may_hold_the_connection_for_living(engines):
    pair = Pair(engines)
    pair.connect()
    pair.run(1.0)
    pair.cut = True
    pair.dialler.endpoint.close(pair.dialler.established, ErrorCode.SURPLUS, "too many", pair.now)
    pair.run(10.0)
    pair.cut = False
    pair.run(10.0)  # a keep-alive goes out in this time
    assert pair.listener.closed.code is ErrorCode.SURPLUS


def test_nobody_at_the_address_gives_up_after_the_handshake_timeout(engines):
    pair = Pair(engines)
    pair.cut = True
    pair.dial()
    start = pair.now
    pair.run(30.0, until=lambda: pair.dialler.of(ConnectionClosed))
    assert pair.dialler.closed.code is ErrorCode.IDLE
    assert pair.now - start == pytest.approx(5.0, abs=0.1)


def test_streams_beyond_the_peers_limit_wait_and_then_go_on(engines):
    pair = Pair(engines, config=EndpointConfig(engine=EngineConfig(streams_in_max=8)))
    pair.connect()
    streams = [pair.open() for _ in range(8)]
    assert pair.dialler.endpoint.open_stream(pair.dialler.established, pair.now) is None
    for stream in streams:
        pair.write(pair.dialler, stream, b"x", end=True)
    pair.run(2.0)
    for stream in streams:
        pair.write(pair.listener, stream, b"y", end=True)
    pair.run(5.0)
    assert len(pair.dialler.of(StreamsAvailable)) == 1
    assert pair.open() not in streams


def test_hundreds_of_streams_in_turn_leave_nothing_behind(engines):
    pair = Pair(engines)
    pair.connect()
    for _ in range(300):
        stream = pair.open()
        pair.write(pair.dialler, stream, b"ask", end=True)
        pair.run(1.0, until=lambda stream=stream: stream in pair.listener.ended)
        pair.write(pair.listener, stream, b"answer", end=True)
        pair.run(1.0, until=lambda stream=stream: stream in pair.dialler.ended)
        assert bytes(pair.dialler.received[stream]) == b"answer"
    (connection,) = pair.dialler.endpoint._connections.values()
    assert connection.open_streams == 0


def test_opening_streams_without_end_is_flooding(engines):
    pair = Pair(engines, config=EndpointConfig(conduct=ConductConfig(streams=Allowance(10.0, 50.0))))
    pair.connect()
    for _ in range(100):
        if pair.dialler.of(ConnectionClosed):
            break
        stream = pair.dialler.endpoint.open_stream(pair.dialler.established, pair.now)
        if stream is not None:
            pair.dialler.endpoint.send(pair.dialler.established, stream, b"x")
            pair.dialler.endpoint.reset(pair.dialler.established, stream, 1)
            pair.dialler.endpoint.stop_sending(pair.dialler.established, stream, 1)
        pair.pump()
        pair.step(pair.now + 0.1)
    pair.run(1.0)
    assert pair.listener.closed.code is ErrorCode.FLOODING
    assert pair.dialler.closed.code is ErrorCode.FLOODING


def test_strangers_from_one_address_are_bounded():
    config = EndpointConfig(handshakes_per_prefix_max=3)
    pair = Pair("aa", config=config)
    first_flights = []
    for _ in range(6):
        pair.dialler.endpoint.connect(LISTENER, None, pair.now)
    pair.dialler.endpoint.flush(pair.now)
    while (output := pair.dialler.endpoint.next_output()) is not None:
        first_flights += [data for data, _ in output.datagrams]
    for data in first_flights:
        pair.listener.endpoint.handle_datagram(data, ("203.0.113.5", 1), pair.now)
    assert pair.listener.endpoint.n_connections == 3
    assert pair.listener.endpoint.counters.refused_handshakes >= 3
    pair.now += 6.0
    pair.listener.endpoint.flush(pair.now)
    pair.listener.endpoint.handle_timer(pair.now)
    pair.listener.endpoint.flush(pair.now)
    assert pair.listener.endpoint.n_connections == 0


def test_a_node_does_not_connect_to_itself(engines):
    pair = Pair(engines)
    endpoint = pair.dialler.endpoint
    endpoint.connect(("192.0.2.1", 4001), None, pair.now)
    pair.run(3.0)
    codes = {output.local: output.code for output in pair.dialler.of(ConnectionClosed)}
    assert codes[True] is ErrorCode.WRONG_PEER
    assert pair.dialler.of(ConnectionEstablished) == []
