"""HPKE in base mode: anybody seals to a public key, and only its owner can open.

One suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. It is put together here from the library's X25519 and AEAD,
and not from its `hpke.Suite`, for two reasons: that one draws its ephemeral key itself, where all entropy of the core is handed
in, and it exports no secret, which keys the answer (RFC 9458 section 4.4). The tests hold this module to the vectors of RFC 9180
and let it and the library's suite open what the other has sealed.

Source: RFC 9180 sections 4.1, 5.1 and 5.3, appendix A.2.
Spec: docs/spec/10-sealing.md, section "Suite".
"""

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocol.errors import ErrorCode, RemoteProtocolError

SEALING_KEY_BYTES = 32
"""Length of an X25519 key, public or secret, and of an encapsulated key in bytes (RFC 9180 section 7.1)."""

AEAD_KEY_BYTES = 32
"""Length of a ChaCha20-Poly1305 key in bytes (RFC 8439)."""

AEAD_NONCE_BYTES = 12
"""Length of its nonce in bytes."""

AEAD_TAG_BYTES = 16
"""By how many bytes a ciphertext is longer than its plaintext."""

HASH_BYTES = 32
"""Length of SHA-256's output in bytes, which is also that of HKDF's extracted keys."""

# Suite ids of RFC 9180 sections 4.1 and 5.1: KEM 0x0020; then with KDF 0x0001 and AEAD 0x0003.
_KEM_SUITE = b"KEM\x00\x20"
_HPKE_SUITE = b"HPKE\x00\x20\x00\x01\x00\x03"
# The base mode and the empty pre-shared key that belongs to it, RFC 9180 section 5.1.
_MODE_BASE = b"\x00"


def hkdf_extract(salt: bytes, secret: bytes) -> bytes:
    """HKDF-Extract with SHA-256 (RFC 5869 section 2.2)."""
    return hmac.digest(salt or bytes(HASH_BYTES), secret, "sha256")


def hkdf_expand(key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869 section 2.3); `length` is at most 255 hashes."""
    assert length <= 255 * HASH_BYTES, f"{length} bytes are more than HKDF expands to"
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.digest(key, block + info + bytes((counter,)), "sha256")
        output += block
        counter += 1
    return output[:length]


class AeadKey:
    """A key of ChaCha20-Poly1305 with a base nonce, under which each number is used once."""

    __slots__ = ("_aead", "_base")

    def __init__(self, key: bytes, base_nonce: bytes) -> None:
        assert len(base_nonce) == AEAD_NONCE_BYTES, f"a nonce of {len(base_nonce)} bytes"
        self._aead = ChaCha20Poly1305(key)
        self._base = int.from_bytes(base_nonce, "big")

    def seal(self, number: int, aad: bytes, plaintext: bytes | memoryview) -> bytes:
        """Encrypt the message with this number; no number may be used twice."""
        return self._aead.encrypt(self._nonce(number), plaintext, aad)

    def open(self, number: int, aad: bytes, ciphertext: bytes | memoryview) -> bytes | None:
        """Decrypt the message with this number; None where it is not what was sealed under this key."""
        try:
            return self._aead.decrypt(self._nonce(number), ciphertext, aad)
        except (InvalidTag, ValueError):
            return None

    def _nonce(self, number: int) -> bytes:
        return (self._base ^ number).to_bytes(AEAD_NONCE_BYTES, "big")


class HpkeContext:
    """What both ends share once one has sealed to the other: the message key and the secret for what else is to be keyed."""

    __slots__ = ("_exporter", "messages")

    def __init__(self, shared_secret: bytes, info: bytes) -> None:
        hashes = _labeled_extract(b"", b"psk_id_hash", b"") + _labeled_extract(b"", b"info_hash", info)
        schedule = _MODE_BASE + hashes
        secret = _labeled_extract(shared_secret, b"secret", b"")
        key = _labeled_expand(secret, b"key", schedule, AEAD_KEY_BYTES)
        self.messages = AeadKey(key, _labeled_expand(secret, b"base_nonce", schedule, AEAD_NONCE_BYTES))
        self._exporter = _labeled_expand(secret, b"exp", schedule, HASH_BYTES)

    def export(self, label: bytes, length: int) -> bytes:
        """A secret of both ends for another purpose (RFC 9180 section 5.3)."""
        return _labeled_expand(self._exporter, b"sec", label, length)


class SealingKey:
    """The secret key that others seal to. It never shows itself in its text form."""

    __slots__ = ("_key", "_public")

    def __init__(self, entropy: bytes) -> None:
        assert len(entropy) == SEALING_KEY_BYTES, f"a sealing key needs {SEALING_KEY_BYTES} bytes, not {len(entropy)}"
        self._key = X25519PrivateKey.from_private_bytes(entropy)
        self._public = self._key.public_key().public_bytes_raw()

    @property
    def public_key(self) -> bytes:
        """What others seal to, `SEALING_KEY_BYTES` bytes."""
        return self._public

    def decapsulate(self, encapsulated: bytes, info: bytes) -> HpkeContext:
        """The context of who has sealed to this key; with another key's encapsulation it opens nothing.

        Raises:
            RemoteProtocolError: SEAL_REFUSED, for bytes that are no public key.
        """
        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(encapsulated))
        except ValueError as fault:
            raise RemoteProtocolError(ErrorCode.SEAL_REFUSED, "the encapsulated key is none") from fault
        return HpkeContext(_extract_and_expand(shared, encapsulated, self._public), info)

    def __repr__(self) -> str:
        return f"SealingKey({self._public.hex()})"


def encapsulate(public_key: bytes, info: bytes, entropy: bytes) -> tuple[bytes, HpkeContext]:
    """Begin to seal to a public key.

    Args:
        public_key: whom to.
        info: what both ends know and bind the keys to.
        entropy: `SEALING_KEY_BYTES` secret bytes, used for nothing else.

    Returns:
        The encapsulated key, for the other end, and the context.

    Raises:
        RemoteProtocolError: SEAL_REFUSED, for bytes that are no public key.
    """
    ephemeral = X25519PrivateKey.from_private_bytes(entropy)
    encapsulated = ephemeral.public_key().public_bytes_raw()
    try:
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as fault:
        raise RemoteProtocolError(ErrorCode.SEAL_REFUSED, "the peer's sealing key is none") from fault
    return encapsulated, HpkeContext(_extract_and_expand(shared, encapsulated, public_key), info)


def sha256(data: bytes | memoryview) -> bytes:
    """The SHA-256 hash of some bytes."""
    return hashlib.sha256(data).digest()


def _extract_and_expand(shared: bytes, encapsulated: bytes, public_key: bytes) -> bytes:
    extracted = _labeled_extract(b"", b"eae_prk", shared, _KEM_SUITE)
    return _labeled_expand(extracted, b"shared_secret", encapsulated + public_key, HASH_BYTES, _KEM_SUITE)


def _labeled_extract(salt: bytes, label: bytes, secret: bytes, suite: bytes = _HPKE_SUITE) -> bytes:
    return hkdf_extract(salt, b"HPKE-v1" + suite + label + secret)


def _labeled_expand(key: bytes, label: bytes, info: bytes, length: int, suite: bytes = _HPKE_SUITE) -> bytes:
    return hkdf_expand(key, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)
