"""Identify: the codec, merging, and what is held against the proven peer id."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.encoding import encode_frame
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import Identity, encode_public_key
from protocol.libp2p import protobuf
from protocol.libp2p.envelope import seal_peer_record
from protocol.libp2p.identify import (
    IDENTIFY_MESSAGE_BYTES_MAX,
    IDENTIFY_MESSAGES_MAX,
    LISTEN_ADDRESSES_MAX,
    PROTOCOLS_MAX,
    Identify,
    IdentifyReader,
    PeerDescription,
    decode_identify,
    encode_identify,
    merge_identify,
    quic_addresses,
    verify_identify,
)
from protocol.multiaddr import parse_multiaddr

IDENTITY = Identity.from_seed(bytes(range(32)))
OTHER = Identity.from_seed(bytes(32))
KEY = encode_public_key(IDENTITY.public_key)

texts = st.none() | st.text(max_size=20)
blobs = st.none() | st.binary(max_size=40)
descriptions = st.builds(
    Identify,
    public_key=blobs,
    listen_addresses=st.lists(st.binary(max_size=20), max_size=6).map(tuple),
    protocols=st.lists(st.text(max_size=20), max_size=6).map(tuple),
    observed_address=blobs,
    protocol_version=texts,
    agent_version=texts,
    signed_peer_record=st.none() | st.binary(max_size=3000),
)


def outcome(call, *args):
    """Return what the call returns, or the code of its declared error."""
    try:
        return call(*args)
    except RemoteProtocolError as fault:
        return fault.code


def read(stream: bytes, chunk: int = 1 << 20) -> Identify:
    reader = IdentifyReader()
    for start in range(0, len(stream), chunk):
        reader.receive_data(stream[start : start + chunk])
    return reader.receive_eof()


@given(descriptions, st.integers(1, 3000))
def test_description_round_trip_however_the_bytes_are_cut(identify: Identify, chunk: int) -> None:
    assert read(encode_identify(identify), chunk) == identify


def test_field_numbers_are_libp2ps() -> None:
    identify = Identify(b"k", (b"a",), ("/p",), b"o", "v", "g", b"r")
    assert encode_identify(identify).hex() == "16" + "120161" + "1a022f70" + "0a016b" + "22016f" + "2a0176" + "320167" + "420172"


def test_long_record_travels_in_a_second_message() -> None:
    identify = Identify(public_key=KEY, signed_peer_record=bytes(2100))
    stream = encode_identify(identify)
    assert stream[0] == 38
    assert stream[39:] == encode_frame(b"\x42\xb4\x10" + bytes(2100))
    assert read(stream) == identify


def test_messages_are_merged_until_the_stream_ends() -> None:
    parts = [Identify(protocols=("/a",), agent_version="x"), Identify(protocols=("/b",)), Identify(agent_version="y")]
    assert read(b"".join(encode_identify(part) for part in parts)) == Identify(protocols=("/a", "/b"), agent_version="y")


def test_of_a_single_field_that_occurs_twice_the_last_counts() -> None:
    twice = encode_frame(protobuf.encode_text(6, "first") + protobuf.encode_text(6, "last"))
    assert read(twice) == Identify(agent_version="last")


def test_ten_messages_pass_and_the_eleventh_is_refused() -> None:
    one = encode_identify(Identify(protocols=("/a",)))
    assert len(read(one * IDENTIFY_MESSAGES_MAX).protocols) == IDENTIFY_MESSAGES_MAX
    with pytest.raises(RemoteProtocolError, match="more than 10"):
        read(one * (IDENTIFY_MESSAGES_MAX + 1))


def test_message_at_the_limit_passes_and_a_longer_one_is_refused() -> None:
    filler = bytes(IDENTIFY_MESSAGE_BYTES_MAX - 3)
    assert read(encode_frame(b"\x22" + b"\xfd\x3f" + filler)).observed_address == filler
    with pytest.raises(RemoteProtocolError) as caught:
        read(encode_frame(bytes(IDENTIFY_MESSAGE_BYTES_MAX + 1)))
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_lists_are_bounded_on_both_sides() -> None:
    full = Identify(listen_addresses=(b"a",) * LISTEN_ADDRESSES_MAX, protocols=("/a",) * PROTOCOLS_MAX)
    assert read(encode_identify(full)) == full
    for more in (Identify(listen_addresses=(b"a",)), Identify(protocols=("/a",))):
        with pytest.raises(RemoteProtocolError) as caught:
            merge_identify(full, more)
        assert caught.value.code is ErrorCode.TOO_LARGE
    with pytest.raises(LocalProtocolError, match="257 addresses"):
        encode_identify(Identify(listen_addresses=(b"a",) * (LISTEN_ADDRESSES_MAX + 1)))
    with pytest.raises(LocalProtocolError, match="513 protocols"):
        encode_identify(Identify(protocols=("/a",) * (PROTOCOLS_MAX + 1)))
    with pytest.raises(LocalProtocolError):
        encode_identify(Identify(listen_addresses=(bytes(100),) * 100))


def test_one_message_with_too_many_fields_is_refused() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_identify(b"\x1a\x00" * 801)
    assert caught.value.code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize("stream", [b"", b"\x05\x1a", b"\x80"])
def test_stream_that_says_nothing_or_is_cut_off_is_refused(stream: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read(stream)
    assert caught.value.code is ErrorCode.MALFORMED


@given(st.binary(max_size=80) | st.binary(max_size=80).map(encode_frame))
def test_any_bytes_raise_nothing_else(stream: bytes) -> None:
    identify = outcome(read, stream)
    if isinstance(identify, Identify):
        assert isinstance(outcome(verify_identify, identify, IDENTITY.peer_id), ErrorCode | None)
        assert len(quic_addresses(identify.listen_addresses)) <= len(identify.listen_addresses)
    else:
        assert identify in (ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)


def test_key_and_record_of_the_proven_peer_verify() -> None:
    address = parse_multiaddr("/ip4/192.0.2.7/udp/4001/quic-v1")
    envelope = seal_peer_record(IDENTITY, 3, (address.to_bytes(), b"\x04\x7f\x00\x00\x01\x06\x00\x01"))
    record = verify_identify(Identify(public_key=KEY, signed_peer_record=envelope), IDENTITY.peer_id)
    assert record is not None
    assert (record.peer_id, record.sequence) == (IDENTITY.peer_id, 3)
    assert quic_addresses(record.addresses) == (address,)
    assert verify_identify(Identify(public_key=KEY), IDENTITY.peer_id) is None
    assert verify_identify(Identify(), IDENTITY.peer_id) is None


def test_key_or_record_of_another_peer_is_refused() -> None:
    foreign = seal_peer_record(OTHER, 3, ())
    for identify in (
        Identify(public_key=encode_public_key(OTHER.public_key)),
        Identify(public_key=KEY, signed_peer_record=foreign),
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            verify_identify(identify, IDENTITY.peer_id)
        assert caught.value.code is ErrorCode.WRONG_PEER


def test_what_a_push_leaves_out_stays_and_lists_are_replaced_whole() -> None:
    description = PeerDescription(IDENTITY.peer_id)
    description.answered(Identify(KEY, (b"a", b"b"), ("/a", "/b"), b"o", "/v", "x"))
    description.pushed(Identify(protocols=("/c",)))
    assert description.said == Identify(KEY, (b"a", b"b"), ("/c",), b"o", "/v", "x")
    description.pushed(Identify(listen_addresses=(b"d",), agent_version="y"))
    assert description.said == Identify(KEY, (b"d",), ("/c",), b"o", "/v", "y")


def test_a_push_is_taken_from_a_peer_that_was_not_asked() -> None:
    description = PeerDescription(IDENTITY.peer_id)
    description.pushed(Identify(agent_version="x"))
    assert description.said == Identify(agent_version="x")


def test_a_record_that_is_not_newer_is_ignored_whether_pushed_or_answered() -> None:
    older, held, newer = (seal_peer_record(IDENTITY, sequence, (b"%d" % sequence,)) for sequence in (2, 3, 4))
    description = PeerDescription(IDENTITY.peer_id)
    description.answered(Identify(signed_peer_record=held))
    for take in (description.pushed, description.answered):
        for again in (older, held, None):
            take(Identify(signed_peer_record=again))
            assert description.said is not None
            assert description.said.signed_peer_record == held
            assert description.record is not None
            assert description.record.sequence == 3
    description.pushed(Identify(signed_peer_record=newer))
    assert description.record.addresses == (b"4",)
    assert description.said.signed_peer_record == newer


def test_a_push_in_anothers_name_changes_nothing() -> None:
    description = PeerDescription(IDENTITY.peer_id)
    description.answered(Identify(agent_version="x"))
    for news in (
        Identify(public_key=encode_public_key(OTHER.public_key), agent_version="y"),
        Identify(agent_version="y", signed_peer_record=seal_peer_record(OTHER, 3, ())),
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            description.pushed(news)
        assert caught.value.code is ErrorCode.WRONG_PEER
        assert description.said == Identify(agent_version="x")
        assert description.record is None
