"""Strangers at the door: Retry, the bounds on who may begin a handshake, and those who are turned away."""

import random

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, get_retry_integrity_tag, pull_quic_header
from hypothesis import given
from hypothesis import strategies as st
from quic_pair import DIALLER, LISTENER, Pair

from protocol.conduct import Account, Allowance, BanExpired, ConductConfig, PeerBanned, prefix_of
from protocol.errors import ErrorCode
from protocol.quic.events import ConnectionClosed, ConnectionEstablished, EndpointConfig, Transmit
from protocol.quic.retry import TOKEN_LIFETIME_S, Initial, Retry, read_initial

NOBODY_UNPROVEN = EndpointConfig(unproven=Allowance(0.0, 0.0))
RETRY_BYTES_MAX = 150


@pytest.fixture(params=["aa", "qq", "aq", "qa"], ids="-".join)
def engines(request):
    return request.param


def first_flight(pair: Pair) -> bytes:
    pair.dialler.endpoint.connect(LISTENER, None, pair.now)
    pair.dialler.endpoint.flush(pair.now)
    (transmit,) = [output for output in drained(pair.dialler) if isinstance(output, Transmit)]
    return transmit.datagrams[0][0]


def drained(side) -> list:
    found = []
    while (output := side.endpoint.next_output()) is not None:
        found.append(output)
    return found


def heard(pair: Pair, data: bytes, address) -> list:
    """What the listener says to a datagram."""
    pair.listener.endpoint.handle_datagram(data, address, pair.now)
    pair.listener.endpoint.flush(pair.now)
    return drained(pair.listener)


def spoofed(luck: random.Random) -> bytes:
    """A first packet that nobody can tell from a true one without its keys."""
    cids = b"\x08" + luck.randbytes(8) + b"\x08" + luck.randbytes(8)
    return b"\xc3\x00\x00\x00\x01" + cids + b"\x00\x44\x9e" + luck.randbytes(1200 - 25)


def test_a_peer_comes_in_by_a_retry_and_talks(engines):
    pair = Pair(engines, config=NOBODY_UNPROVEN)
    pair.connect()
    assert pair.listener.endpoint.counters.retries in (1, 2)  # one for each datagram of a first flight
    assert pair.listener.endpoint.n_connections == 1
    stream = pair.open()
    pair.write(pair.dialler, stream, b"x" * 100_000, end=True)
    pair.run(5.0, until=lambda: stream in pair.listener.ended)
    assert len(pair.listener.received[stream]) == 100_000


@pytest.mark.parametrize("seed", range(4))
def test_a_retry_survives_loss(engines, seed):
    pair = Pair(engines, config=NOBODY_UNPROVEN, loss=0.2, seed=seed)
    pair.dial()
    pair.run(5.0, until=lambda: pair.dialler.established is not None)
    assert pair.dialler.established is not None


def test_a_retry_is_one_small_datagram_that_keeps_nothing():
    pair = Pair("aa", config=NOBODY_UNPROVEN)
    data = first_flight(pair)
    (transmit,) = heard(pair, data, DIALLER)
    ((retry, address),) = transmit.datagrams
    assert address == DIALLER
    assert len(retry) < RETRY_BYTES_MAX
    header = pull_quic_header(Buffer(data=retry), host_cid_length=8)
    assert header.packet_type is QuicPacketType.RETRY
    assert retry[-16:] == get_retry_integrity_tag(retry[:-16], read_initial(data).cid, version=1)
    endpoint = pair.listener.endpoint
    assert (endpoint.n_connections, endpoint.n_strangers, endpoint.next_timer()) == (0, 0, None)
    assert endpoint._doorstep._unproven == {}


def second_flight(retry: Retry, now: float = 1000.0, address=DIALLER, cid: bytes = b"original") -> Initial:
    packet = retry.packet(Initial(cid, b"client", b""), address, now)
    header = pull_quic_header(Buffer(data=packet), host_cid_length=8)
    return Initial(header.source_cid, b"client", header.token)


def test_a_token_names_the_first_connection_id():
    retry = Retry(b"secret")
    assert retry.original_cid(second_flight(retry), DIALLER, 1001.0) == b"original"
    assert retry.original_cid(second_flight(retry, cid=b"o" * 20), DIALLER, 1001.0) == b"o" * 20


@pytest.mark.parametrize(
    ("spoil", "address", "age_s"),
    [
        (lambda seen: seen, ("192.0.2.9", DIALLER[1]), 1.0),
        (lambda seen: seen, (DIALLER[0], 9), 1.0),
        (lambda seen: seen, DIALLER, TOKEN_LIFETIME_S + 0.01),
        (lambda seen: Initial(b"notgiven", seen.reply_cid, seen.token), DIALLER, 1.0),
        (lambda seen: Initial(seen.cid, seen.reply_cid, seen.token[:8] + b"Original" + seen.token[16:]), DIALLER, 1.0),
        (lambda seen: Initial(seen.cid, seen.reply_cid, b"\xff" + seen.token[1:]), DIALLER, 1.0),
        (lambda seen: Initial(seen.cid, seen.reply_cid, seen.token[:-1] + bytes([seen.token[-1] ^ 1])), DIALLER, 1.0),
        (lambda seen: Initial(seen.cid, seen.reply_cid, seen.token[:-1]), DIALLER, 1.0),
        (lambda seen: second_flight(Retry(b"another node's")), DIALLER, 1.0),
    ],
    ids=["address", "port", "age", "cid", "original", "time", "code", "short", "key"],
)
def test_a_token_proves_nothing_in_another_hand(spoil, address, age_s):
    retry = Retry(b"secret")
    assert retry.original_cid(spoil(second_flight(retry)), address, 1000.0 + age_s) is None


@given(st.binary(max_size=80), st.binary(max_size=20))
def test_no_bytes_are_a_token(token, cid):
    assert Retry(b"secret").original_cid(Initial(cid, b"", token), DIALLER, 1000.0) is None


@given(st.binary(max_size=600))
def test_no_bytes_break_the_reading_of_a_first_packet(head):
    for start in (b"", b"\xc0\0\0\0\1", b"\xc3\0\0\0\1\x08"):
        initial = read_initial((start + head).ljust(1200, b"\xff"))
        if initial is not None:
            assert len(initial.token) <= 44
            assert 8 <= len(initial.cid) <= 20
            assert len(initial.reply_cid) <= 20


def test_a_retried_client_shows_its_token_again_from_another_address_and_gets_a_retry():
    pair = Pair("aa", config=NOBODY_UNPROVEN)
    (transmit,) = heard(pair, first_flight(pair), DIALLER)
    pair.dialler.endpoint.handle_datagram(transmit.datagrams[0][0], LISTENER, pair.now)
    pair.dialler.endpoint.flush(pair.now)
    second = drained(pair.dialler)[0].datagrams[0][0]
    assert read_initial(second).token
    (answer,) = heard(pair, second, ("198.51.100.7", 1))
    assert len(answer.datagrams[0][0]) < RETRY_BYTES_MAX
    assert pair.listener.endpoint.n_connections == 0
    heard(pair, second, DIALLER)
    assert pair.listener.endpoint.n_connections == 1


@pytest.mark.parametrize("engine", ["a", "q"], ids=["aioquic", "qh3"])
def test_spoofed_first_packets_keep_out_nobody_of_another_prefix(engine):
    """Five thousand a second from everywhere, for two seconds: one Retry each, and an honest stranger comes in meanwhile."""
    pair = Pair("a" + engine)
    luck = random.Random(1)
    endpoint = pair.listener.endpoint
    sent = 0
    for step in range(100):
        for _ in range(100):
            address = (f"{luck.randrange(11, 100)}.{luck.randrange(256)}.{luck.randrange(256)}.7", 1)
            sent += 1
            for output in heard(pair, spoofed(luck), address):
                assert isinstance(output, Transmit)
                assert sum(len(data) for data, _ in output.datagrams) < RETRY_BYTES_MAX
        if step == 50:
            pair.dial()
        pair.run(0.02)
    assert pair.dialler.established is not None
    assert sent == 10_000
    assert endpoint.n_connections == 1
    assert endpoint.counters.retries > 9_000
    assert len(endpoint._doorstep._unproven) <= 24 + 20 * 2 + 1


def test_honest_first_packets_from_forged_addresses_leave_room_for_who_proves_itself():
    """True first packets, which do decrypt, from addresses that never answer."""
    pair = Pair("aa")
    endpoint = pair.listener.endpoint
    for number in range(300):
        heard(pair, first_flight(Pair("aa", seed=number)), (f"11.0.{number % 250}.{number // 250}", 1))
    assert endpoint.n_strangers <= 64
    pair.dial()
    pair.run(4.0, until=lambda: pair.dialler.established is not None)
    assert pair.dialler.established is not None


def test_one_prefix_does_not_use_up_what_is_for_all():
    pair = Pair("aa")
    luck = random.Random(1)
    for number in range(500):
        heard(pair, spoofed(luck), ("203.0.113.5", number + 1))
    assert pair.listener.endpoint.counters.retries == 500 - 16
    pair.connect()
    assert pair.listener.endpoint.counters.retries == 500 - 16


def test_a_proven_address_is_bound_by_its_prefix():
    config = EndpointConfig(unproven=Allowance(0.0, 0.0), proven_per_prefix=Allowance(0.0, 2.0))
    pair = Pair("aa", config=config)
    for _ in range(4):
        pair.dialler.endpoint.connect(LISTENER, None, pair.now)
    pair.run(3.0)
    assert len(pair.listener.of(ConnectionEstablished)) == 2
    assert pair.listener.endpoint.counters.refused_handshakes > 0


def test_the_owners_own_networks_are_not_counted_by_prefix():
    config = EndpointConfig(own_networks=("192.0.2.0/24",), handshakes_per_prefix_max=1, connections_per_prefix_max=1)
    pair = Pair("aa", config=config)
    for _ in range(5):
        pair.dialler.endpoint.connect(LISTENER, None, pair.now)
    pair.run(3.0)
    assert len(pair.listener.of(ConnectionEstablished)) == 5


# Those who are turned away


def test_a_banned_peer_is_told_so_and_never_counts_as_connected(engines):
    pair = Pair(engines)
    pair.listener.endpoint.conduct.ban(pair.dialler.identity.peer_id, ErrorCode.FLOODING, pair.now)
    pair.dial()
    pair.run(3.0)
    for side in (pair.dialler, pair.listener):
        assert side.of(ConnectionEstablished) == []
        (closed,) = side.of(ConnectionClosed)
        assert closed.code is ErrorCode.BANNED
        assert not closed.established
    assert pair.listener.endpoint.n_connections == 0
    pair.run(600.0)
    assert BanExpired(pair.dialler.identity.peer_id) in pair.listener.outputs
    pair.connect()


def test_a_ban_closes_the_connections_there_are(engines):
    pair = Pair(engines)
    pair.connect()
    for _ in range(4):
        pair.listener.endpoint.fault(pair.dialler.identity.peer_id, ErrorCode.MALFORMED, pair.now)
    pair.run(1.0)
    assert pair.listener.closed.code is ErrorCode.BANNED
    assert pair.dialler.closed.code is ErrorCode.BANNED
    assert [output.peer_id for output in pair.listener.of(PeerBanned)] == [pair.dialler.identity.peer_id]


def test_first_packets_of_a_banned_prefix_leave_no_state_and_get_no_answer():
    pair = Pair("aa")
    conduct = pair.listener.endpoint.conduct
    for number in range(5):
        peer_id = bytes([number]) * 38
        conduct.connected(peer_id, prefix_of(DIALLER[0]), pair.now)
        conduct.ban(peer_id, ErrorCode.FLOODING, pair.now)
    pair.listener.endpoint.flush(pair.now)
    drained(pair.listener)
    assert heard(pair, first_flight(pair), DIALLER) == []
    assert pair.listener.endpoint.n_connections == 0
    assert heard(pair, first_flight(pair), ("203.0.113.5", 1)) != []


class Clock:
    """Seconds of a core: each look costs what the test says."""

    def __init__(self):
        self.used_s = 0.0
        self.cost_s = 0.0

    def __call__(self):
        self.used_s += self.cost_s
        return self.used_s


def test_a_peer_that_takes_too_much_of_a_core_is_banned_within_five_seconds(engines):
    clock = Clock()
    pair = Pair(engines, cpu_clock=clock)
    pair.connect()
    began, clock.cost_s = pair.now, 0.0015
    while pair.dialler.endpoint.send_datagram(pair.dialler.established, b"x") and pair.now < began + 10.0:
        pair.run(0.004)  # every datagram costs 1.5 ms, a third of a core in all
    assert pair.now <= began + 5.0
    assert pair.listener.closed.code is ErrorCode.BANNED
    pair.dialler.outputs.clear()
    pair.listener.outputs.clear()
    clock.cost_s = 0.0
    pair.dial()
    pair.run(3.0)
    assert pair.dialler.closed.code is ErrorCode.BANNED


def test_datagrams_that_hold_the_loop_are_flooding_however_seldom_they_come(engines):
    clock = Clock()
    pair = Pair(engines, cpu_clock=clock)
    pair.connect()
    clock.cost_s, sent = 0.0025, 0
    while pair.listener.of(ConnectionClosed) == [] and sent < 100:
        sent += pair.dialler.endpoint.send_datagram(pair.dialler.established, b"x")
        pair.run(0.2)
    assert 10 <= sent <= 30
    assert pair.listener.closed.code is ErrorCode.FLOODING


def test_stream_data_explains_the_time_it_takes(engines):
    clock = Clock()
    pair = Pair(engines, cpu_clock=clock)
    pair.connect()
    stream = pair.open()
    clock.cost_s = 1200 * 90e-9  # nearly as slow a machine as the account is made for: all of its core goes into this
    pair.write(pair.dialler, stream, bytes(8 * 1024 * 1024), end=True)
    pair.run(20.0, until=lambda: stream in pair.listener.ended)
    assert len(pair.listener.received[stream]) == 8 * 1024 * 1024
    assert pair.listener.of(ConnectionClosed) == []


def test_a_stranger_costs_no_more_than_a_handshake_may():
    clock = Clock()
    pair = Pair("aa", cpu_clock=clock)
    clock.cost_s = 0.3
    pair.dial()
    pair.run(2.0)
    assert pair.listener.of(ConnectionEstablished) == []
    assert pair.dialler.of(ConnectionEstablished) == []


def test_crumbs_and_probes_without_end_are_flooding(engines):
    config = EndpointConfig(conduct=ConductConfig(frames=Allowance(100.0, 200.0, 50.0)))
    pair = Pair(engines, config=config)
    pair.connect()
    sent = 0
    while pair.listener.of(ConnectionClosed) == [] and sent < 2000:
        sent += pair.dialler.endpoint.send_datagram(pair.dialler.established, b"x")
        pair.run(0.001)
    assert 250 <= sent < 400
    assert pair.listener.closed.code is ErrorCode.FLOODING
    assert len(pair.frames(pair.listener)) <= 240


def test_bytes_that_bring_nothing_are_dropped_and_then_flooding():
    config = EndpointConfig(conduct=ConductConfig(wasted_bytes=Allowance(1000.0, 20_000.0, 20_000.0)))
    pair = Pair("aa", config=config)
    pair.connect()
    for _ in range(100):
        pair.dialler.endpoint.send_datagram(pair.dialler.established, bytes(1000))
        pair.run(0.01)
    assert pair.listener.endpoint.counters.dropped_datagrams > 5
    assert pair.listener.closed.code is ErrorCode.FLOODING


def test_a_library_that_finds_the_rules_broken_counts_as_a_fault_of_the_peer(engines):
    pair = Pair(engines)
    conduct, peer_id = pair.listener.endpoint.conduct, pair.dialler.identity.peer_id
    for _ in range(4):
        pair.dialler.outputs.clear()
        pair.listener.outputs.clear()
        pair.dialler.established = pair.listener.established = None
        pair.connect()
        pair.listener.endpoint.charge(peer_id, Account.STREAMS, 1e9, pair.now)
        pair.run(1.0)
    assert conduct.is_banned(peer_id, pair.now)
