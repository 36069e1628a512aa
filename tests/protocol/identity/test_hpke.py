"""HPKE as RFC 9180 and as the library has it."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import SealingKey, encapsulate

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "hpke.json").read_text())
LIBRARY = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
SECRET = bytes(range(32))
ENTROPY = bytes(range(32, 64))


def raw(name: str) -> bytes:
    return bytes.fromhex(VECTOR[name])


def test_the_sender_of_the_rfc_is_met() -> None:
    assert SealingKey(raw("skRm")).public_key == raw("pkRm")
    encapsulated, context = encapsulate(raw("pkRm"), raw("info"), raw("skEm"))
    assert encapsulated == raw("enc")
    for message in VECTOR["encryptions"]:
        sealed = context.messages.seal(message["sequence"], bytes.fromhex(message["aad"]), bytes.fromhex(message["pt"]))
        assert sealed.hex() == message["ct"]


def test_the_receiver_of_the_rfc_is_met() -> None:
    context = SealingKey(raw("skRm")).decapsulate(raw("enc"), raw("info"))
    for message in VECTOR["encryptions"]:
        opened = context.messages.open(message["sequence"], bytes.fromhex(message["aad"]), bytes.fromhex(message["ct"]))
        assert opened is not None
        assert opened.hex() == message["pt"]
    for export in VECTOR["exports"]:
        assert context.export(bytes.fromhex(export["exporter_context"]), export["L"]).hex() == export["exported_value"]


@given(st.binary(max_size=300), st.binary(max_size=40), st.binary(min_size=32, max_size=32))
def test_the_library_opens_what_is_sealed_here_and_the_other_way_round(plaintext: bytes, info: bytes, entropy: bytes) -> None:
    encapsulated, context = encapsulate(SealingKey(SECRET).public_key, info, entropy)
    theirs = X25519PrivateKey.from_private_bytes(SECRET)
    assert LIBRARY.decrypt(encapsulated + context.messages.seal(0, b"", plaintext), theirs, info) == plaintext
    sealed = LIBRARY.encrypt(plaintext, X25519PublicKey.from_public_bytes(SealingKey(SECRET).public_key), info)
    assert SealingKey(SECRET).decapsulate(sealed[:32], info).messages.open(0, b"", sealed[32:]) == plaintext


@pytest.mark.parametrize("changed", ["key", "info", "aad", "number", "ciphertext"])
def test_nothing_opens_by_anything_else(changed: str) -> None:
    encapsulated, context = encapsulate(SealingKey(SECRET).public_key, b"info", ENTROPY)
    sealed = context.messages.seal(7, b"aad", b"plaintext")
    key = SealingKey(ENTROPY if changed == "key" else SECRET)
    messages = key.decapsulate(encapsulated, b"other" if changed == "info" else b"info").messages
    ciphertext = sealed[:-1] + bytes((sealed[-1] ^ 1,)) if changed == "ciphertext" else sealed
    opened = messages.open(8 if changed == "number" else 7, b"other" if changed == "aad" else b"aad", ciphertext)
    assert opened is None


@pytest.mark.parametrize("public_key", [bytes(32), b"", bytes(31), (1).to_bytes(32, "little")])
def test_bytes_that_are_no_public_key_are_refused(public_key: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        encapsulate(public_key, b"", ENTROPY)
    assert caught.value.code is ErrorCode.SEAL_REFUSED
    with pytest.raises(RemoteProtocolError) as caught:
        SealingKey(SECRET).decapsulate(public_key, b"")
    assert caught.value.code is ErrorCode.SEAL_REFUSED


def test_a_sealing_key_does_not_show_itself() -> None:
    assert SECRET.hex() not in repr(SealingKey(SECRET))
