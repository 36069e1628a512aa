"""Signed envelopes and peer records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import Identity, encode_public_key
from protocol.libp2p import protobuf
from protocol.libp2p.envelope import (
    ENVELOPE_BYTES_MAX,
    PEER_RECORD_DOMAIN,
    PEER_RECORD_TYPE,
    RECORD_ADDRESSES_MAX,
    PeerRecord,
    open_envelope,
    open_peer_record,
    seal_envelope,
    seal_peer_record,
)

IDENTITY = Identity.from_seed(bytes(range(32)))
OTHER = Identity.from_seed(bytes(32))
SEALED = seal_peer_record(IDENTITY, 5, (b"\x04\x7f\x00\x00\x01",))


def refusal(envelope: bytes) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        open_peer_record(envelope)
    return caught.value.code


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1), st.lists(st.binary(max_size=50), max_size=8))
def test_peer_record_round_trip(seed: bytes, sequence: int, addresses: list[bytes]) -> None:
    identity = Identity.from_seed(seed)
    envelope = seal_peer_record(identity, sequence, tuple(addresses))
    assert open_peer_record(envelope) == PeerRecord(identity.peer_id, sequence, tuple(addresses))


def test_layout_is_that_of_the_implementations() -> None:
    payload = b"\x0a\x26" + IDENTITY.peer_id + b"\x10\x05" + b"\x1a\x07\x0a\x05\x04\x7f\x00\x00\x01"
    signed = b"\x12libp2p-peer-record" + b"\x02\x03\x01" + bytes((len(payload),)) + payload
    key = encode_public_key(IDENTITY.public_key)
    expected = (
        b"\x0a\x24" + key + b"\x12\x02\x03\x01" + b"\x1a" + bytes((len(payload),)) + payload + b"\x2a\x40" + IDENTITY.sign(signed)
    )
    assert expected == SEALED


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(position: int, difference: int) -> None:
    changed = bytearray(SEALED)
    changed[position] ^= difference
    assert refusal(bytes(changed)) in (ErrorCode.BAD_SIGNATURE, ErrorCode.MALFORMED, ErrorCode.UNSUPPORTED)


@given(st.binary(max_size=120))
def test_any_bytes_raise_nothing_else(data: bytes) -> None:
    assert refusal(data) in (ErrorCode.MALFORMED, ErrorCode.UNSUPPORTED, ErrorCode.BAD_SIGNATURE, ErrorCode.TOO_LARGE)


@given(st.binary(max_size=120))
def test_any_signed_payload_raises_nothing_else(payload: bytes) -> None:
    envelope = seal_envelope(IDENTITY, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, payload)
    assert refusal(envelope) in (ErrorCode.MALFORMED, ErrorCode.WRONG_PEER, ErrorCode.TOO_LARGE)


def test_signature_of_another_domain_or_type_does_not_pass() -> None:
    envelope = seal_envelope(IDENTITY, "one", b"t", b"payload")
    assert open_envelope(envelope, "one", b"t") == (IDENTITY.peer_id, b"payload")
    for domain, payload_type, code in (("two", b"t", ErrorCode.BAD_SIGNATURE), ("one", b"u", ErrorCode.MALFORMED)):
        with pytest.raises(RemoteProtocolError) as caught:
            open_envelope(envelope, domain, payload_type)
        assert caught.value.code is code


def test_record_about_another_peer_than_its_signer_is_refused() -> None:
    payload = protobuf.encode_bytes(1, OTHER.peer_id) + protobuf.encode_uint(2, 1)
    assert refusal(seal_envelope(IDENTITY, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, payload)) is ErrorCode.WRONG_PEER


def test_signer_of_another_key_type_is_refused() -> None:
    assert refusal(SEALED.replace(b"\x08\x01\x12\x20", b"\x08\x02\x12\x20", 1)) is ErrorCode.UNSUPPORTED


def test_unknown_fields_are_ignored() -> None:
    assert open_peer_record(SEALED + protobuf.encode_text(99, "later")).sequence == 5


def test_count_of_addresses_is_bounded_on_both_sides() -> None:
    full = (b"\x04",) * RECORD_ADDRESSES_MAX
    assert open_peer_record(seal_peer_record(IDENTITY, 1, full)).addresses == full
    with pytest.raises(LocalProtocolError, match="129 addresses"):
        seal_peer_record(IDENTITY, 1, (*full, b"\x04"))
    payload = protobuf.encode_bytes(1, IDENTITY.peer_id) + protobuf.encode_bytes(3, b"\x0a\x00") * (RECORD_ADDRESSES_MAX + 1)
    assert refusal(seal_envelope(IDENTITY, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, payload)) is ErrorCode.TOO_LARGE


def test_size_is_bounded_on_both_sides() -> None:
    with pytest.raises(LocalProtocolError, match="limit is 8192"):
        seal_envelope(IDENTITY, "d", b"t", bytes(ENVELOPE_BYTES_MAX))
    assert refusal(bytes(ENVELOPE_BYTES_MAX + 1)) is ErrorCode.TOO_LARGE
