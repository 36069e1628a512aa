"""Ed25519 identities and libp2p peer ids.

A peer id is a multihash of the libp2p PublicKey message. An Ed25519 key is short enough to stand in its id unhashed, so the key
can be had from the id and nothing else need be asked of anybody. Ids of other key types are read and passed on, but nothing can
be verified with them: only Ed25519 is accepted as an identity.

Source: libp2p/specs peer-ids/peer-ids.md; RFC 8032.
Spec: docs/spec/01-identity.md.
"""

from typing import NewType

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.encoding import decode_base32, decode_base58btc, encode_base58btc
from protocol.errors import ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError

PeerId = NewType("PeerId", bytes)
"""A peer id as multihash bytes; equal ids are equal bytes."""

SEED_BYTES = 32
"""Length of an Ed25519 private seed in bytes (RFC 8032 section 5.1.5)."""

PUBLIC_KEY_BYTES = 32
"""Length of an Ed25519 public key in bytes (RFC 8032 section 5.1.5)."""

SIGNATURE_BYTES = 64
"""Length of an Ed25519 signature in bytes (RFC 8032 section 5.1.6)."""

PEER_ID_BYTES_MAX = 44
"""Longest peer id in bytes: an identity multihash of the 42 bytes that peer-ids.md allows, with its two bytes of header."""

_ED25519_PREFIX = b"\x08\x01\x12\x20"
"""PublicKey{1: Type Ed25519 = 1, 2: Data of 32 bytes}; peer-ids.md demands this one encoding, so it is compared, not parsed."""

_KEY_TYPES = {0: "RSA", 1: "Ed25519", 2: "secp256k1", 3: "ECDSA"}
"""The key types of peer-ids.md by their numbers, for messages."""

_IDENTITY_MULTIHASH = 0x00
"""Multihash code of an unhashed value (multicodec table)."""

_SHA256_MULTIHASH = 0x12
"""Multihash code of SHA2-256 (multicodec table)."""

_SHA256_BYTES = 32
"""Length of a SHA2-256 digest in bytes."""

_CID_PREFIX = b"\x01\x72"
"""CID version 1 with codec libp2p-key 0x72 (peer-ids.md, section "String representation")."""


class Identity:
    """A node's private key and what follows from it. It never shows the key in its text form."""

    __slots__ = ("_key", "_peer_id", "_public_key", "_seed")

    def __init__(self, seed: bytes) -> None:
        assert len(seed) == SEED_BYTES, f"an Ed25519 seed has {SEED_BYTES} bytes, not {len(seed)}"
        self._seed = bytes(seed)
        self._key = Ed25519PrivateKey.from_private_bytes(self._seed)
        self._public_key = self._key.public_key().public_bytes_raw()
        self._peer_id = peer_id_of(self._public_key)

    @classmethod
    def from_seed(cls, seed: bytes) -> "Identity":
        """Make the identity of a secret seed of `SEED_BYTES` bytes."""
        return cls(seed)

    @property
    def seed(self) -> bytes:
        """The secret seed, `SEED_BYTES` bytes: for the key file and nothing else."""
        return self._seed

    @property
    def public_key(self) -> bytes:
        """The public key, `PUBLIC_KEY_BYTES` bytes."""
        return self._public_key

    @property
    def peer_id(self) -> PeerId:
        """The peer id of the public key."""
        return self._peer_id

    def sign(self, message: bytes) -> bytes:
        """Return the Ed25519 signature of `message`, `SIGNATURE_BYTES` bytes; the same message gives the same signature."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Identity({peer_id_text(self._peer_id)})"


def verify_signature(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Say whether `signature` is the Ed25519 signature of `message` by `public_key`; False for anything of a wrong length."""
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def encode_public_key(public_key: bytes) -> bytes:
    """Return the libp2p PublicKey message of an Ed25519 key, 36 bytes."""
    assert len(public_key) == PUBLIC_KEY_BYTES, f"an Ed25519 key has {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}"
    return _ED25519_PREFIX + public_key


def decode_public_key(message: bytes) -> bytes:
    """Return the Ed25519 key inside a libp2p PublicKey message.

    Raises:
        RemoteProtocolError: UNSUPPORTED for a key of another type, MALFORMED for anything else.
    """
    if message.startswith(_ED25519_PREFIX) and len(message) == len(_ED25519_PREFIX) + PUBLIC_KEY_BYTES:
        return message[len(_ED25519_PREFIX) :]
    if len(message) >= 2 and message[0] == _ED25519_PREFIX[0] and message[1] in _KEY_TYPES and message[1] != _ED25519_PREFIX[1]:
        detail = f"the peer's identity key is of type {_KEY_TYPES[message[1]]}; only Ed25519 is accepted"
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED, detail)
    raise RemoteProtocolError(ErrorCode.MALFORMED, "the peer's public key message is not a 36-byte Ed25519 key")


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the peer id of an Ed25519 public key: the identity multihash of its PublicKey message."""
    message = encode_public_key(public_key)
    return PeerId(bytes((_IDENTITY_MULTIHASH, len(message))) + message)


def public_key_of(peer_id: PeerId) -> bytes:
    """Return the Ed25519 key that stands in a peer id, `PUBLIC_KEY_BYTES` bytes.

    Raises:
        RemoteProtocolError: UNSUPPORTED, when the id is a hash or holds a key of another type; MALFORMED, when it holds no key.
    """
    if peer_id[:1] != bytes((_IDENTITY_MULTIHASH,)):
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED, "the peer id is a hash of a key that is not Ed25519")
    return decode_public_key(peer_id_from_bytes(peer_id)[2:])


def peer_id_from_bytes(data: bytes) -> PeerId:
    """Check multihash bytes that came from a peer.

    Raises:
        RemoteProtocolError: MALFORMED, when the bytes are neither an identity nor a SHA2-256 multihash of a fitting length.
    """
    problem = _multihash_problem(data)
    if problem:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"not a peer id: {problem}")
    return PeerId(bytes(data))


def peer_id_text(peer_id: PeerId) -> str:
    """Return the peer id as base58btc text: `12D3KooW...` for an Ed25519 key."""
    return encode_base58btc(peer_id)


def parse_peer_id(text: str) -> PeerId:
    """Read a peer id as base58btc text (`12D3KooW...`, `Qm...`) or as a CIDv1 in base32 (`bafz...`).

    Raises:
        LocalProtocolError: MALFORMED, saying what is wrong with the text.
    """
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    try:
        if text.startswith(("1", "Qm")):
            data = decode_base58btc(text)
        elif text.startswith("b"):
            data = decode_base32(text[1:])
            if not data.startswith(_CID_PREFIX):
                raise LocalProtocolError(ErrorCode.MALFORMED, "the CID is not one of a libp2p key")
            data = data[len(_CID_PREFIX) :]
        else:
            raise LocalProtocolError(ErrorCode.MALFORMED, "a peer id starts with 12D3KooW, 16Uiu2HA, Qm or bafz")
        problem = _multihash_problem(data)
        if problem:
            raise LocalProtocolError(ErrorCode.MALFORMED, problem)
    except ProtocolError as fault:
        raise LocalProtocolError(fault.code, f"{shown!r} is not a peer id: {fault.detail}") from fault
    return PeerId(data)


def _multihash_problem(data: bytes) -> str:
    """Return what keeps `data` from being a peer id's multihash, empty when nothing does."""
    if len(data) < 3 or len(data) > PEER_ID_BYTES_MAX:
        return f"it has {len(data)} bytes, not 3 to {PEER_ID_BYTES_MAX}"
    if data[1] != len(data) - 2:
        return f"its length byte says {data[1]}, but {len(data) - 2} bytes follow"
    if data[0] == _SHA256_MULTIHASH:
        return "" if data[1] == _SHA256_BYTES else f"its SHA2-256 digest has {data[1]} bytes, not {_SHA256_BYTES}"
    if data[0] != _IDENTITY_MULTIHASH:
        return f"its multihash code is {data[0]:#04x}, neither identity nor SHA2-256"
    return ""
