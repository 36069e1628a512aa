"""StrictSign: a message is signed by its author, whose peer id holds the key.

The signature covers the marshalled message without signature and key, behind a prefix that no other signature has. Only authors
whose key stands in their id are verified: no others write on the topics of this mesh.

Source: libp2p/specs pubsub/README.md, section "Message Signing".
Spec: docs/spec/08-pubsub.md, section "Messages".
"""

from protocol.errors import RemoteProtocolError
from protocol.identity import Identity, PeerId, decode_public_key, public_key_of, verify_signature
from protocol.pubsub.messages import PubsubMessage, encode_pubsub_message

SIGN_PREFIX = b"libp2p-pubsub:"
"""Stands before the marshalled message (libp2p/specs pubsub/README.md)."""

SEQNO_BYTES = 8
"""Length of a sequence number in bytes (libp2p/specs pubsub/README.md: a 64-bit number)."""


def signed_part(author: bytes, data: bytes, seqno: bytes, topic: str) -> bytes:
    """What the signature of a message covers."""
    return SIGN_PREFIX + encode_pubsub_message(PubsubMessage(author, data, seqno, topic))


def sign_message(identity: Identity, data: bytes, number: int, topic: str) -> PubsubMessage:
    """Write and sign a message.

    Args:
        identity: its author.
        data: what it says.
        number: greater than that of every message before, 0 to 2^64 - 1.
        topic: where it is published.
    """
    seqno = number.to_bytes(SEQNO_BYTES, "big")
    signature = identity.sign(signed_part(identity.peer_id, data, seqno, topic))
    return PubsubMessage(identity.peer_id, data, seqno, topic, signature)


def is_signed(message: PubsubMessage) -> bool:
    """Whether a message is complete, its key, where it has one, that of its author, and its signature the author's."""
    if len(message.seqno) != SEQNO_BYTES or not message.author or not message.signature:
        return False
    try:
        public_key = public_key_of(PeerId(message.author))
        if message.key and decode_public_key(message.key) != public_key:
            return False
    except RemoteProtocolError:
        return False
    covered = signed_part(message.author, message.data, message.seqno, message.topic)
    return verify_signature(public_key, message.signature, covered)
