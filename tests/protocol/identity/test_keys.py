"""Peer ids and signatures."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.encoding import encode_base32, encode_base58btc
from protocol.errors import ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError
from protocol.identity import (
    Identity,
    PeerId,
    decode_public_key,
    encode_public_key,
    parse_peer_id,
    peer_id_from_bytes,
    peer_id_of,
    peer_id_text,
    public_key_of,
    verify_signature,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "libp2p.json").read_text())
seeds = st.binary(min_size=32, max_size=32)


def outcome(call, *args):
    """Return what the call returns, or the code of its declared error."""
    try:
        return call(*args)
    except ProtocolError as fault:
        return fault.code


def cid_text(peer_id: bytes) -> str:
    return "b" + encode_base32(b"\x01\x72" + peer_id)


def test_key_pair_of_the_specification() -> None:
    identity = Identity.from_seed(bytes.fromhex(VECTORS["ed25519_seed_hex"]))
    assert encode_public_key(identity.public_key).hex() == VECTORS["keys"]["Ed25519"]


@pytest.mark.parametrize("kind", ["RSA", "ECDSA", "secp256k1"])
def test_host_key_of_another_type_is_refused_by_name(kind: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"type {kind}; only Ed25519") as caught:
        decode_public_key(bytes.fromhex(VECTORS["keys"][kind]))
    assert caught.value.code is ErrorCode.UNSUPPORTED


@given(seeds)
def test_peer_id_holds_the_public_key(seed: bytes) -> None:
    identity = Identity.from_seed(seed)
    assert identity.seed == seed
    assert public_key_of(identity.peer_id) == identity.public_key
    assert peer_id_of(identity.public_key) == peer_id_from_bytes(identity.peer_id) == identity.peer_id
    assert peer_id_text(identity.peer_id).startswith("12D3KooW")


@given(seeds)
def test_both_text_forms_of_a_peer_id_are_read(seed: bytes) -> None:
    peer_id = Identity.from_seed(seed).peer_id
    assert parse_peer_id(peer_id_text(peer_id)) == peer_id
    assert cid_text(peer_id).startswith("bafz")
    assert parse_peer_id(cid_text(peer_id)) == peer_id


@pytest.mark.parametrize("text", [v["peer_id"] for v in VECTORS["certificates"] if v["peer_id"]])
def test_peer_ids_of_every_key_type_are_read_and_written(text: str) -> None:
    peer_id = parse_peer_id(text)
    assert peer_id_text(peer_id) == text
    assert parse_peer_id(cid_text(peer_id)) == peer_id


@pytest.mark.parametrize(
    "text", ["QmfXbAwNjJLXfesgztEHe8HwgVDCMMpZ9Eax1HYq6hn9uE", "16Uiu2HAkutTMoTzDw1tCvSRtu6YoixJwS46S1ZFxW8hSx9fWHiPs"]
)
def test_key_is_not_had_from_a_hash_or_another_type(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="Ed25519") as caught:
        public_key_of(parse_peer_id(text))
    assert caught.value.code is ErrorCode.UNSUPPORTED


def test_the_same_peer_in_sha256_form_is_another_id_without_a_key() -> None:
    with pytest.raises(RemoteProtocolError, match="hash"):
        public_key_of(PeerId(b"\x12\x20" + bytes(32)))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "starts with"),
        ("hello", "starts with"),
        ("12D3KooW0", "'0' does not occur"),
        ("1", "has 1 bytes"),
        ("bafy", "base32"),
        ("b" + encode_base32(b"\x01\x70\x12\x20" + bytes(32)), "not one of a libp2p key"),
        ("b" + encode_base32(b"\x01\x72\x12\x1f" + bytes(31)), "digest has 31"),
        ("Qm" + "z" * 200, "202 characters"),
        (encode_base58btc(b"\x00\x03\x08\x01"), "length byte says 3"),
        ("b" + encode_base32(b"\x01\x72\x13\x20" + bytes(32)), "multihash code is 0x13"),
    ],
)
def test_text_that_is_no_peer_id_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(LocalProtocolError, match=why) as caught:
        parse_peer_id(text)
    assert len(str(caught.value)) < 300


@given(st.text(max_size=90))
def test_any_text_raises_nothing_else(text: str) -> None:
    peer_id = outcome(parse_peer_id, text)
    assert peer_id is ErrorCode.MALFORMED or text in (peer_id_text(peer_id), cid_text(peer_id))


@given(st.binary(max_size=60) | st.binary(min_size=1, max_size=50).map(lambda rest: bytes((0, len(rest))) + rest))
def test_any_bytes_as_peer_id_raise_nothing_else(data: bytes) -> None:
    peer_id = outcome(peer_id_from_bytes, data)
    if peer_id is not ErrorCode.MALFORMED:
        assert parse_peer_id(cid_text(peer_id)) == data
    key = outcome(public_key_of, data)
    assert key in (ErrorCode.MALFORMED, ErrorCode.UNSUPPORTED) or len(key) == 32


@pytest.mark.parametrize("size", [44, 45])
def test_longest_peer_id_passes_and_one_byte_more_is_refused(size: int) -> None:
    data = bytes((0, size - 2)) + bytes(size - 2)
    if size == 44:
        assert peer_id_from_bytes(data) == data
    else:
        with pytest.raises(RemoteProtocolError, match="45 bytes"):
            peer_id_from_bytes(data)


@given(seeds, st.binary(max_size=64), st.integers(0, 511))
def test_signature_verifies_and_any_flipped_bit_breaks_it(seed: bytes, message: bytes, bit: int) -> None:
    identity = Identity.from_seed(seed)
    signature = identity.sign(message)
    assert verify_signature(identity.public_key, signature, message)
    flipped = bytearray(signature)
    flipped[bit // 8] ^= 1 << (bit % 8)
    assert not verify_signature(identity.public_key, bytes(flipped), message)
    assert not verify_signature(identity.public_key, signature, message + b"\x00")


@given(st.binary(max_size=40), st.binary(max_size=70))
def test_any_bytes_as_key_and_signature_are_just_wrong(public_key: bytes, signature: bytes) -> None:
    assert not verify_signature(public_key, signature, b"message")


def test_identity_of_rfc_8032_test_1() -> None:
    identity = Identity.from_seed(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert identity.public_key.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert identity.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


def test_text_form_of_an_identity_keeps_the_seed_secret() -> None:
    identity = Identity.from_seed(bytes(range(32)))
    assert repr(identity) == f"Identity({peer_id_text(identity.peer_id)})"
    with pytest.raises(AssertionError):
        Identity.from_seed(bytes(31))
