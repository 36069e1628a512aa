"""Peers that keep within the letter of QUIC and cost more than they may: each is bounded, and cut off where it goes on."""

import itertools
import os
import sys

import pytest
from hostile import DIALLER, Hostile, varint
from quic_pair import Pair
from yardstick import DATAGRAM_S_MAX, dearest_s, steady_clock

from protocol.conduct import Account
from protocol.errors import ErrorCode
from protocol.quic.events import ConnectionClosed, ConnectionEstablished, EndpointConfig, StreamOpened, StreamWritable

FULL = 1250


@pytest.fixture
def clock():
    return steady_clock()


@pytest.fixture(params=["a", "q"], ids=["aioquic", "qh3"])
def engine(request):
    return request.param


@pytest.fixture(params=["aa", "qq", "aq", "qa"], ids="-".join)
def engines(request):
    return request.param


def connected(engine, cpu_clock=None) -> Hostile:
    hostile = Hostile(engine, cpu_clock=cpu_clock)
    hostile.exchange()
    assert hostile.of(ConnectionEstablished)
    return hostile


def filled(frame) -> bytes:
    frames = b""
    while len(frames) < FULL:
        frames += frame()
    return frames


def path_challenges():
    return lambda: b"\x1a" + os.urandom(8)


def path_responses():
    return lambda: b"\x1b" + os.urandom(8)


def counted(name, frame, start=0, wrap=None):
    """Makes frames of a number that grows with each, or comes round again after `wrap`."""

    def flood():
        numbers = itertools.count(start) if wrap is None else itertools.cycle(range(wrap))
        return lambda: frame(next(numbers))

    flood.__name__ = name
    return flood


new_connection_ids = counted(
    "new_connection_ids", lambda number: b"\x18" + varint(number) + varint(number) + b"\x08" + os.urandom(24), start=8
)
retired_connection_ids = counted("retired_connection_ids", lambda number: b"\x19" + varint(number), start=1)
window_updates = counted("window_updates", lambda value: b"\x10" + varint(value), start=(1 << 30) + 1)
empty_streams = counted("empty_streams", lambda number: b"\x0a" + varint(4 * number) + b"\x00", wrap=256)
resets = counted("resets", lambda number: b"\x04" + varint(4 * number) + varint(1) + varint(0), wrap=256)
stops = counted("stops", lambda number: b"\x05" + varint(4 * number) + varint(1), wrap=256)


def pings():
    return lambda: b"\x01"


def datagram_frames():
    return lambda: b"\x31\x01x"


FLOODS = [
    path_challenges, path_responses, new_connection_ids, retired_connection_ids, pings, window_updates, empty_streams, resets,
    stops, datagram_frames,
]  # fmt: skip


def flood(hostile: Hostile, clock, make, datagrams: int) -> tuple[list[float], int]:
    """Send full datagrams of one kind of frame; return what each took of the clock, answer included, and the bytes answered."""
    frame, took, answered = make(), [], 0
    for _ in range(datagrams):
        if hostile.of(ConnectionClosed):
            break
        data = hostile.packet(filled(frame))
        began = clock()
        hostile.victim.handle_datagram(data, DIALLER, hostile.now)
        sent = hostile.drain()
        took.append(clock() - began)
        answered += sum(map(len, sent))
        hostile.now += 1 / 300
    return took, answered


@pytest.mark.parametrize("make", FLOODS, ids=lambda make: make.__name__)
def test_no_datagram_of_cheap_frames_holds_the_loop(engine, clock, make):
    assert dearest_s([flood(connected(engine), clock, make, 30)[0] for _ in range(3)]) < DATAGRAM_S_MAX


@pytest.mark.parametrize("make", FLOODS, ids=lambda make: make.__name__)
def test_a_flood_of_cheap_frames_is_cut_or_cheap(engine, clock, make):
    """Three hundred a second for a second: the connection ends, or does so at this pace within five, or it costs little."""
    hostile = connected(engine, clock)
    took, answered = flood(hostile, clock, make, 300)
    ended = bool(hostile.of(ConnectionClosed))
    left_s = hostile.victim.conduct.left(hostile.identity.peer_id, Account.CPU, hostile.now)
    assert ended or sum(took) < 0.3 or left_s < 0.4, (len(took), sum(took), left_s)
    assert answered <= 3 * FULL * len(took)
    state = hostile.victim._connections.values()
    assert all(len(connection.cids) <= 16 for connection in state)


def test_replaced_connection_ids_are_charged_before_they_hold_the_loop(engine, clock):
    took, _ = flood(connected(engine, clock), clock, new_connection_ids, 300)
    assert len(took) <= 20
    assert sum(took) < 0.05


def test_a_peer_whose_address_changes_is_charged_little_for_connection_ids(engines):
    """Three times in three seconds; qh3 follows no further ones."""
    pair = Pair(engines)
    pair.connect()
    for number in range(3):
        pair.dialler.address = (DIALLER[0], 5000 + number)
        pair.dialler.endpoint.send_datagram(pair.dialler.established, b"x")
        pair.listener.endpoint.send_datagram(pair.listener.established, b"x")
        pair.run(1.0)
    assert pair.listener.endpoint.address(pair.listener.established) == (DIALLER[0], 5002)
    conduct = pair.listener.endpoint.conduct
    left = conduct.left(pair.dialler.identity.peer_id, Account.IDS, pair.now)
    assert left > 0.75 * conduct.config.ids.burst


@pytest.mark.parametrize("what", ["transmits", "handle_timer"])
def test_what_sending_and_timers_take_is_charged(what):
    """By this clock each takes three milliseconds, though hardly anything is sent: the library looks through much."""
    spent = [0.0]
    pair = Pair("aa", cpu_clock=lambda: spent[0])
    pair.connect()
    engine = pair.listener.endpoint._connections[pair.listener.established].engine
    does = getattr(engine, what)

    def slow(now):
        spent[0] += 0.003
        return does(now)

    setattr(engine, what, slow)
    began = pair.now
    while not pair.listener.of(ConnectionClosed) and pair.now < began + 20.0:
        pair.dialler.endpoint.send_datagram(pair.dialler.established, b"x")
        if what == "handle_timer":
            pair.listener.endpoint._connections[pair.listener.established].timer = None
            pair.listener.endpoint._timers.insert(0, (pair.now, pair.listener.established))
            pair.listener.endpoint._connections[pair.listener.established].timer = pair.now
            pair.listener.endpoint.handle_timer(pair.now)
        pair.run(0.01)
    assert pair.listener.closed.code is ErrorCode.BANNED
    assert pair.now - began <= 10.0


# Peers that do not read


@pytest.mark.parametrize("speaks", [True, False], ids=["speaks", "answers pings alone"])
def test_a_peer_that_is_heard_and_takes_nothing_of_much_is_cut_within_five_seconds(engines, speaks):
    pair = Pair(engines)
    pair.connect()
    pair.dialler.reads = False
    streams = [pair.open() for _ in range(6)]
    for stream in streams:
        pair.write(pair.dialler, stream, b"?")
    pair.run(0.1)
    began = pair.now
    for stream in streams:
        pair.listener.endpoint.send(pair.listener.established, stream, bytes(1024 * 1024))
    connection = pair.listener.endpoint._connections[pair.listener.established]
    hold(pair, connection)
    while pair.listener.of(ConnectionClosed) == [] and pair.now < began + 20.0:
        if speaks:
            pair.dialler.endpoint.send_datagram(pair.dialler.established, b"alive")
        pair.run(0.1)
    assert pair.listener.closed.code is ErrorCode.FLOODING
    assert pair.now - began <= 5.0


def hold(pair, connection) -> None:
    """Make the dialler's library grant no credit, as a peer does that wants others to keep its answers."""
    engine = pair.dialler.endpoint._connections[pair.dialler.established].engine
    engine.consumed = lambda *_: None
    buffered = connection.engine.buffered
    first = {}

    def stuck(stream_id):
        return first.setdefault(stream_id, buffered(stream_id))

    connection.engine.buffered = stuck


def test_a_path_that_is_cut_off_is_no_peer_that_does_not_read(engines):
    pair = Pair(engines)
    pair.connect()
    stream = pair.open()
    pair.write(pair.dialler, stream, b"?")
    pair.run(0.1)
    for _ in range(2):
        pair.listener.endpoint.send(pair.listener.established, stream, bytes(1024 * 1024))
        pair.run(0.001)
    pair.cut = True
    pair.run(20.0)
    pair.cut = False
    pair.run(60.0)
    assert pair.listener.of(ConnectionClosed) == []


def test_what_waits_for_one_peer_is_bounded_over_all_its_streams(engines):
    config = EndpointConfig(held_bytes_max=3_000_000, stalled_s=1e9)
    pair = Pair(engines, config=config)
    pair.connect()
    pair.cut = True
    streams = [pair.open() for _ in range(20)]
    taken = {stream: pair.dialler.endpoint.send(pair.dialler.established, stream, bytes(500_000)) for stream in streams}
    assert sum(taken.values()) == 3_000_000
    pair.cut = False
    pair.run(30.0, until=lambda: len(pair.dialler.of(StreamWritable)) >= 14)
    assert {output.stream for output in pair.dialler.of(StreamWritable)} == {
        stream for stream in streams if taken[stream] < 500_000
    }
    more = {
        stream: pair.dialler.endpoint.send(pair.dialler.established, stream, bytes(500_000 - taken[stream]))
        for stream in streams
        if taken[stream] < 500_000
    }
    assert 0 < sum(more.values()) <= 3_000_000


# Peers that acknowledge nothing


@pytest.mark.parametrize(("engine", "module"), [("a", "aioquic_engine"), ("q", "qh3_engine")], ids=["aioquic", "qh3"])
def test_what_waits_to_be_acknowledged_is_bounded(engine, module, monkeypatch):
    """Each datagram makes the victim send one, and none of those is ever acknowledged; the bound is a smaller one here."""
    hostile = connected(engine)
    monkeypatch.setattr(sys.modules[f"protocol.quic.{module}"], "OUTSTANDING_MAX", 4096)
    sent = 0
    while not hostile.of(ConnectionClosed) and sent < 3 * 4096:
        hostile.victim.handle_datagram(hostile.packet(b"\x01"), DIALLER, hostile.now)
        sent += len(hostile.drain())
        hostile.now += 0.0001
    assert hostile.of(ConnectionClosed)
    assert hostile.of(ConnectionClosed)[0].reason == "too many packets wait to be acknowledged"
    assert 4096 - 64 <= sent <= 4096 + 2048


# Peers that take back


@pytest.mark.parametrize("per_second", [500, 2000])
def test_rapid_reset_is_cut_within_five_seconds(engines, per_second):
    pair = Pair(engines)
    pair.connect()
    began, opened = pair.now, 0
    while pair.listener.of(ConnectionClosed) == [] and pair.now < began + 10.0:
        for _ in range(per_second // 100):
            stream = pair.dialler.endpoint.open_stream(pair.dialler.established, pair.now)
            if stream is not None:
                opened += 1
                pair.dialler.endpoint.send(pair.dialler.established, stream, b"x")
                pair.dialler.endpoint.reset(pair.dialler.established, stream, 0)
                pair.dialler.endpoint.stop_sending(pair.dialler.established, stream, 0)
        for output in pair.listener.of(StreamOpened):
            pair.listener.endpoint.reset(output.connection, output.stream, 0)
        pair.listener.outputs = [output for output in pair.listener.outputs if not isinstance(output, StreamOpened)]
        pair.run(0.01)
    assert pair.listener.closed.code is ErrorCode.FLOODING
    assert pair.now - began <= 5.0
    assert opened >= 1000


def test_coming_again_after_rapid_reset_finds_the_account_used_up_and_then_the_door_shut(engines):
    pair = Pair(engines)
    codes = []
    for _ in range(6):
        pair.dialler.outputs.clear()
        pair.listener.outputs.clear()
        pair.dialler.established = None
        pair.dial()
        pair.run(2.0, until=lambda: pair.dialler.established is not None or pair.dialler.of(ConnectionClosed))
        for _ in range(1100):
            if pair.dialler.of(ConnectionClosed):
                break
            stream = pair.dialler.endpoint.open_stream(pair.dialler.established, pair.now)
            if stream is not None:
                pair.dialler.endpoint.send(pair.dialler.established, stream, b"x")
                pair.dialler.endpoint.reset(pair.dialler.established, stream, 0)
                pair.dialler.endpoint.stop_sending(pair.dialler.established, stream, 0)
            for output in pair.listener.of(StreamOpened):
                pair.listener.endpoint.reset(output.connection, output.stream, 0)
            pair.listener.outputs = [output for output in pair.listener.outputs if not isinstance(output, StreamOpened)]
            pair.run(0.0005)
        pair.run(1.0)
        codes.append(pair.dialler.closed.code)
    assert codes[0] is ErrorCode.FLOODING
    assert codes[-1] is ErrorCode.BANNED
    assert set(codes) == {ErrorCode.FLOODING, ErrorCode.BANNED}


@pytest.mark.parametrize("engines", ["aa", "qq", "aq", "qa"])
def test_many_small_frames_and_streams_at_once_are_no_path_challenges(engines):
    pair = Pair(engines)
    pair.connect()
    for number in range(60):
        assert pair.dialler.endpoint.send_datagram(pair.dialler.established, bytes([number]))
    streams = [pair.open() for _ in range(100)]
    for stream in streams:
        pair.dialler.endpoint.send(pair.dialler.established, stream, b"x", True)
    pair.run(1.0)
    assert len(pair.frames(pair.listener)) == 60
    assert pair.listener.ended == set(streams)


@pytest.mark.parametrize("engines", ["aa", "qq"])
def test_acknowledgements_of_a_long_fat_path_use_up_no_account(engines, clock):
    """A sender with megabytes in flight and some loss: what its reader acknowledges takes time, and the data explain it."""
    pair = Pair(engines, delay_s=0.05, loss=0.01)
    for side in pair.sides:
        side.endpoint._meter._clock = clock
    pair.connect()
    stream = pair.open()
    pair.write(pair.dialler, stream, bytes(16 * 1024 * 1024), end=True, seconds=600.0)
    pair.run(600.0, until=lambda: stream in pair.listener.ended)
    assert pair.dialler.of(ConnectionClosed) == pair.listener.of(ConnectionClosed) == []
    for side, other in ((pair.dialler, pair.listener), (pair.listener, pair.dialler)):
        conduct = side.endpoint.conduct
        for account in (Account.CPU, Account.SLOW, Account.BYTES):
            assert conduct.left(other.identity.peer_id, account, pair.now) > 0.5 * conduct.config.allowance(account).burst, (
                account
            )
