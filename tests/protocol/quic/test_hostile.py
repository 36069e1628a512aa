"""What peers that break the rules cost: their own connection and nothing else."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from aioquic import tls
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hostile import Hostile, ack_frame, crypto_frame, stream_frame, varint
from quic_pair import DIALLER, LISTENER, WALL_S, Pair, certificate_of

from protocol.errors import ErrorCode
from protocol.identity import Identity
from protocol.quic.events import ConnectionClosed, ConnectionEstablished, Received, StreamData, StreamOpened

BINDING = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")


@pytest.fixture(params=["a", "q"], ids=["aioquic", "qh3"])
def engine(request):
    return request.param


def self_signed(extension: bytes | None):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    wall = datetime.fromtimestamp(WALL_S, UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(wall - timedelta(hours=1))
        .not_valid_after(wall + timedelta(hours=1))
    )
    if extension is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(BINDING, extension), critical=False)
    return builder.sign(key, hashes.SHA256()), key


def refused(hostile: Hostile) -> ErrorCode:
    hostile.exchange()
    assert hostile.of(ConnectionEstablished) == []
    (closed,) = hostile.of(ConnectionClosed)
    assert closed.local
    assert not closed.established
    assert hostile.victim.n_connections == 0
    return closed.code


def test_the_attacker_is_accepted_while_it_keeps_the_rules(engine):
    hostile = Hostile(engine)
    hostile.exchange()
    (established,) = hostile.of(ConnectionEstablished)
    assert established.peer_id == hostile.identity.peer_id


def test_a_client_without_certificate_is_refused(engine):
    assert refused(Hostile(engine, certificate=None)) is ErrorCode.BAD_CERTIFICATE


def test_a_certificate_without_the_extension_is_refused(engine):
    assert refused(Hostile(engine, certificate=self_signed(None))) is ErrorCode.BAD_CERTIFICATE


def test_a_host_signature_over_another_key_is_refused(engine):
    stolen = certificate_of(Identity.from_seed(bytes([8]) * 32)).certificate.extensions.get_extension_for_oid(BINDING).value.value
    assert refused(Hostile(engine, certificate=self_signed(stolen))) is ErrorCode.BAD_CERTIFICATE


def test_a_stolen_certificate_without_its_key_is_refused(engine):
    stolen = certificate_of(Identity.from_seed(bytes([8]) * 32))
    own = certificate_of(Identity.from_seed(bytes([1]) * 32))
    assert refused(Hostile(engine, certificate=(stolen.certificate, own.private_key))) is ErrorCode.BAD_CERTIFICATE


def test_a_chain_of_two_certificates_is_refused(engine):
    good = certificate_of(Identity.from_seed(bytes([1]) * 32))
    assert (
        refused(Hostile(engine, certificate=(good.certificate, good.private_key, good.certificate))) is ErrorCode.BAD_CERTIFICATE
    )


def test_data_right_behind_the_clients_finished_comes_after_its_connection(engine):
    hostile = Hostile(engine)
    flights = 0
    while not hostile.of(StreamData) and flights < 10:
        flights += 1
        sent = [data for data, _ in hostile.client.datagrams_to_send(hostile.now)]
        hostile.victim.handle_datagrams([Received(data, DIALLER, hostile.now) for data in sent], hostile.now)
        for data in hostile.drain():
            hostile.client.receive_datagram(data, LISTENER, hostile.now)
            while (event := hostile.client.next_event()) is not None:
                if type(event).__name__ == "HandshakeCompleted":
                    hostile.client.send_stream_data(0, b"at once", True)
        hostile.now += 0.01
    kinds = [type(output) for output in hostile.outputs]
    assert kinds.index(ConnectionEstablished) < kinds.index(StreamOpened) < kinds.index(StreamData)


def test_another_alpn_is_unsupported(engine):
    assert refused(Hostile(engine, alpn="h3")) is ErrorCode.UNSUPPORTED


def test_acknowledging_packets_never_sent_ends_the_connection(engine):
    hostile = Hostile(engine)
    hostile.exchange()
    hostile.attack(ack_frame(2_000_000))
    (closed,) = hostile.of(ConnectionClosed)
    assert closed.code is ErrorCode.MALFORMED


def test_handshake_bytes_far_ahead_of_a_gap_are_not_buffered(engine):
    hostile = Hostile(engine)
    hostile.client.datagrams_to_send(hostile.now)
    hostile.attack(crypto_frame(524_280, b"x"), tls.Epoch.INITIAL)
    hostile.attack(crypto_frame(524_280, b"x"), tls.Epoch.INITIAL)
    if engine == "a":
        (closed,) = hostile.of(ConnectionClosed)
        assert closed.code is ErrorCode.FLOODING
    assert hostile.of(ConnectionEstablished) == []


def test_gaps_in_the_handshake_are_bounded(engine):
    hostile = Hostile(engine)
    hostile.client.datagrams_to_send(hostile.now)
    for start in range(20):
        if hostile.of(ConnectionClosed):
            break
        hostile.attack(b"".join(crypto_frame(2 * (start * 100 + index) + 1, b"x") for index in range(100)), tls.Epoch.INITIAL)
    if engine == "a":
        (closed,) = hostile.of(ConnectionClosed)
        assert closed.code is ErrorCode.FLOODING
    assert hostile.of(ConnectionEstablished) == []


def test_gaps_in_a_stream_are_bounded_and_honest_data_still_flows_elsewhere(engine):
    hostile = Hostile(engine)
    hostile.exchange()
    for start in range(20):
        if hostile.of(ConnectionClosed):
            break
        hostile.attack(b"".join(stream_frame(0, 2 * (start * 100 + index) + 1, b"x") for index in range(100)))
    assert len(hostile.of(ConnectionClosed)) == (1 if engine == "a" else 0)
    assert hostile.of(StreamData) == []


def test_unidirectional_streams_are_refused(engine):
    hostile = Hostile(engine)
    hostile.exchange()
    hostile.attack(stream_frame(2, 0, b"x"))
    (closed,) = hostile.of(ConnectionClosed)
    assert closed.code is ErrorCode.FLOODING


def test_streams_beyond_the_limit_end_the_connection(engine):
    hostile = Hostile(engine)
    hostile.exchange()
    hostile.attack(stream_frame(4 * 256, 0, b"x"))
    (closed,) = hostile.of(ConnectionClosed)
    assert closed.code is ErrorCode.FLOODING


def test_data_beyond_the_credit_ends_the_connection(engine):
    hostile = Hostile(engine)
    hostile.exchange()
    hostile.attack(stream_frame(0, 64 * 1024 * 1024, b"x"))
    (closed,) = hostile.of(ConnectionClosed)
    assert closed.code is ErrorCode.FLOODING


@pytest.mark.parametrize("seed", range(8))
def test_random_frames_in_valid_packets_never_escape(engine, seed):
    luck = random.Random(seed)
    for _ in range(25):
        hostile = Hostile(engine)
        hostile.exchange()
        for _ in range(8):
            if hostile.of(ConnectionClosed):
                break
            kind = luck.choice([luck.randrange(0x20), 0x30, 0x31, luck.randrange(256)])
            frames = bytes([kind & 0x3F]) + b"".join(
                varint(luck.randrange(1 << luck.choice([3, 6, 14, 30, 62]))) for _ in range(3)
            )
            hostile.attack((frames + luck.randbytes(luck.randrange(60))).ljust(24, b"\x00"))
        assert hostile.victim.n_connections <= 1


@pytest.mark.parametrize("engines", ["aa", "qq", "aq", "qa"])
def test_corrupted_datagrams_cost_only_time(engines):
    pair = Pair(engines, seed=11)
    pair.connect()
    send, luck = pair.send, random.Random(4)

    def corrupting(data, source, destination):
        if luck.random() < 0.2:
            spoilt = bytearray(data)
            spoilt[luck.randrange(len(spoilt))] ^= 1 << luck.randrange(8)
            data = bytes(spoilt)
        send(data, source, destination)

    pair.send = corrupting
    data = luck.randbytes(128 * 1024)
    stream = pair.open()
    pair.write(pair.dialler, stream, data, end=True)
    pair.run(60.0, until=lambda: stream in pair.listener.ended)
    assert bytes(pair.listener.received[stream]) == data
