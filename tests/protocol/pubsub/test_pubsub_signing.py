"""StrictSign: what the author signed verifies, and nothing else does."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.identity import Identity, encode_public_key
from protocol.libp2p.protobuf import encode_bytes, encode_text
from protocol.pubsub import is_signed, sign_message

AUTHOR, OTHER = Identity.from_seed(bytes([1]) * 32), Identity.from_seed(bytes([2]) * 32)
MESSAGE = sign_message(AUTHOR, b"data", 7, "topic")


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1), st.text(max_size=30))
def test_what_the_author_signed_verifies(data, number, topic):
    message = sign_message(AUTHOR, data, number, topic)
    assert is_signed(message)
    assert message.id == AUTHOR.peer_id + number.to_bytes(8, "big")


def test_the_signature_is_over_prefix_and_marshalled_fields():
    marshalled = (
        encode_bytes(1, AUTHOR.peer_id) + encode_bytes(2, b"data") + encode_bytes(3, bytes(7) + b"\x07") + encode_text(4, "topic")
    )
    assert MESSAGE.signature == AUTHOR.sign(b"libp2p-pubsub:" + marshalled)


@pytest.mark.parametrize(
    "change",
    [
        {"data": b"other"},
        {"seqno": (8).to_bytes(8, "big")},
        {"topic": "other"},
        {"author": bytes(OTHER.peer_id)},
        {"signature": bytes(64)},
        {"signature": b""},
        {"author": b""},
        {"seqno": b""},
        {"seqno": b"\x07"},
        {"author": b"\x12\x20" + bytes(32)},
        {"key": encode_public_key(OTHER.public_key)},
        {"key": b"no key"},
    ],
    ids=str,
)
def test_anything_else_does_not(change):
    assert not is_signed(replace(MESSAGE, **change))


def test_the_author_s_own_key_may_stand_beside():
    assert is_signed(replace(MESSAGE, key=encode_public_key(AUTHOR.public_key)))
