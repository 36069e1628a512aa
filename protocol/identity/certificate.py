"""The self-signed TLS certificate in which a host key vouches for a fresh certificate key, as every libp2p peer knows it.

Making one: an ECDSA P-256 key is derived from the entropy that is handed in; the host key signs a fixed prefix and that key; both
stand in one extension. Checking one: the size, the structure, the one extension, the validity, the certificate's signature by its
own key and the host key's signature; what remains is the peer id. Only Ed25519 host keys are accepted: their encoding has a fixed
length and nothing need be parsed before it is known who speaks. Other host keys would be decoded in `_read_binding` alone.

Source: libp2p/specs tls/tls.md; RFC 5280 section 4.1.
Spec: docs/spec/01-identity.md, section "Certificates".
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import der as asn1
from protocol.identity.keys import Identity, PeerId, decode_public_key, encode_public_key, peer_id_of, verify_signature

CERTIFICATE_BYTES_MAX = 4096
"""Largest certificate accepted, in bytes: one with an RSA key of 8192 bits needs 2.4 KiB, one of a node 0.4 KiB."""

CERTIFICATE_ENTROPY_BYTES = 32
"""Least entropy for a certificate key in bytes: twice the 128 bits of strength of P-256."""

RSA_BITS_MIN = 2048
"""Smallest RSA certificate key in bits (libp2p/specs peer-ids.md; NIST SP 800-131A)."""

RSA_BITS_MAX = 8192
"""Largest RSA certificate key in bits: what rust-libp2p accepts; larger ones only cost the verifier time."""

_VALID_BEFORE = timedelta(hours=1)
"""How far the validity reaches back, for peers whose clocks are late: an hour, as go-libp2p does."""

_VALID_AFTER = timedelta(days=36525)
"""How far the validity reaches ahead: a hundred years, as go-libp2p does; the key lives no longer than the process anyway."""

_BINDING_PREFIX = b"libp2p-tls-handshake:"
"""What stands before the certificate key in the bytes that the host key signs (tls.md, section "libp2p Public Key Extension")."""

_EXTENSION_OID = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
"""The libp2p extension (tls.md, section "libp2p Public Key Extension")."""

_EXTENSION_OID_DER = bytes.fromhex("2b0601040183a25a0101")
"""The content of the same identifier in DER."""

_PROOF_OID = x509.ObjectIdentifier("2.25.1930428719")
"""The extension in which a node shows what network it belongs to: under the arc that anybody may use (ITU-T X.667), and below
2^31, since some programs read no larger numbers."""

_PROOF_OID_DER = bytes.fromhex("698798c0822f")
"""The content of the same identifier in DER."""

_KEY_DOMAIN = b"isochrone certificate key\x00"
"""Domain separation of the certificate key, so that entropy used elsewhere by mistake gives no related key."""

_SERIAL_DOMAIN = b"isochrone certificate serial\x00"
"""Domain separation of the serial number."""

_SERIAL_BITS = 63
"""Bits of a serial number: go-libp2p's, and always positive as RFC 5280 section 4.1.2.2 wants."""

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order of the group of P-256 (SEC 2 section 2.4.2)."""

_CERTIFICATE_ELEMENTS = 3
"""Elements of a certificate: body, algorithm and signature (RFC 5280 section 4.1)."""

_TBS_SERIAL_INDEX = 1
"""Place of the serial number in the body; it is positive (RFC 5280 section 4.1.2.2)."""

_TBS_ALGORITHM_INDEX = 2
"""Place of the signed copy of the signature algorithm in the body."""

_TBS_SPKI_INDEX = 6
"""Place of SubjectPublicKeyInfo after version, serial, signature, issuer, validity and subject (RFC 5280 section 4.1)."""

_VERSION_TAG = 0xA0
"""Tag of the explicit version; without it a certificate is version 1 and has no extensions (RFC 5280 section 4.1)."""

_EXTENSIONS_TAG = 0xA3
"""Tag of the extensions; anything else after the key is one of the unique identifiers, which tls.md forbids."""

_DER_TRUE = b"\xff"
"""The one encoding of TRUE in DER (X.690 section 11.1)."""

_SHA2 = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
"""Hashes of certificate signatures that TLS 1.3 still knows (RFC 8446 section 4.2.3)."""

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
"""Curves of certificate keys that TLS 1.3 knows (RFC 8446 section 4.2.3)."""


@dataclass(frozen=True, slots=True, repr=False)
class TlsCertificate:
    """A certificate and its private key, for one process and never stored.

    Attributes:
        certificate: the certificate as the `cryptography` package holds it.
        private_key: the P-256 key it was made for.
    """

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def private_key_der(self) -> bytes:
        """The private key in DER, PKCS #8, not encrypted."""
        return self.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    @property
    def private_key_pem(self) -> bytes:
        """The private key in PEM, PKCS #8, not encrypted."""
        return self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_certificate(identity: Identity, entropy: bytes, wall_s: float, proof: bytes = b"") -> TlsCertificate:
    """Make the certificate that proves `identity` in TLS; the same arguments give the same certificate.

    Args:
        identity: the host key that vouches.
        entropy: at least `CERTIFICATE_ENTROPY_BYTES` secret bytes, never used before.
        wall_s: the wall clock, in seconds since 1970.
        proof: what the node shows of its network, in an extension that others ignore; empty leaves the extension out.

    Returns:
        A certificate valid from an hour ago for a hundred years.

    Source: libp2p/specs tls/tls.md.
    """
    assert len(entropy) >= CERTIFICATE_ENTROPY_BYTES, f"{len(entropy)} bytes of entropy"
    key = ec.derive_private_key(_scalar(entropy), ec.SECP256R1())
    serial = int.from_bytes(hashlib.sha512(_SERIAL_DOMAIN + entropy).digest(), "big") >> (512 - _SERIAL_BITS) | 1
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    binding = asn1.encode_element(asn1.OCTET_STRING, encode_public_key(identity.public_key))
    binding += asn1.encode_element(asn1.OCTET_STRING, identity.sign(_BINDING_PREFIX + spki))
    extension = x509.UnrecognizedExtension(_EXTENSION_OID, asn1.encode_element(asn1.SEQUENCE, binding))
    name = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, str(serial))])
    wall = datetime.fromtimestamp(int(wall_s), UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(wall - _VALID_BEFORE)
        .not_valid_after(wall + _VALID_AFTER)
        .add_extension(extension, critical=False)
    )
    if proof:
        builder = builder.add_extension(x509.UnrecognizedExtension(_PROOF_OID, proof), critical=False)
    return TlsCertificate(builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True), key)


def verify_certificate(der: bytes, wall_s: float) -> PeerId:
    """Check a peer's certificate and say whose it is.

    The caller makes sure that it is the only certificate of the peer's chain, and that TLS proves possession of its key.

    Args:
        der: the certificate as it came.
        wall_s: the wall clock, in seconds since 1970.

    Raises:
        RemoteProtocolError: EXPIRED outside the validity, BAD_CERTIFICATE for every other fault.

    Source: libp2p/specs tls/tls.md.
    """
    return read_certificate(der, wall_s)[0]


def read_certificate(der: bytes, wall_s: float) -> tuple[PeerId, bytes]:
    """Check a peer's certificate as `verify_certificate` does; say whose it is and what it shows of its network.

    The second is empty where nothing is shown, and otherwise bytes that nobody has looked at.
    """
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise _bad(f"it has {len(der)} bytes; the limit is {CERTIFICATE_BYTES_MAX}")
    spki, extensions = _read_body(der)
    try:
        certificate = x509.load_der_x509_certificate(der)
        valid_from_s = certificate.not_valid_before_utc.timestamp()
        valid_to_s = certificate.not_valid_after_utc.timestamp()
    except (ValueError, x509.InvalidVersion) as fault:
        raise _bad("it is not X.509 version 3 in DER") from fault
    host_key, host_signature, proof = _read_binding(extensions)
    if not valid_from_s <= wall_s <= valid_to_s:
        detail = f"the peer's certificate is valid from {valid_from_s:.0f} to {valid_to_s:.0f}, and it is {wall_s:.0f}"
        raise RemoteProtocolError(ErrorCode.EXPIRED, detail)
    _verify_self_signature(certificate)
    if not verify_signature(host_key, host_signature, _BINDING_PREFIX + spki):
        raise _bad("the host key's signature does not match")
    return peer_id_of(host_key), proof


def certificate_key_digest(der: bytes) -> bytes:
    """The SHA-256 digest of the key in a certificate that was checked: it stays while a program runs, whatever that shows."""
    return hashlib.sha256(_read_body(der)[0]).digest()


def _bad(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.BAD_CERTIFICATE, f"the peer's certificate is refused: {detail}")


def _scalar(entropy: bytes) -> int:
    """Return a P-256 private key; 512 bits reduced to 256 leave no measurable bias (FIPS 186-5 appendix A.2.1)."""
    wide = int.from_bytes(hashlib.sha512(_KEY_DOMAIN + entropy).digest(), "big")
    return wide % (_P256_ORDER - 1) + 1


def _read_body(der: bytes) -> tuple[bytes, bytes]:
    """Return SubjectPublicKeyInfo with its header, and the content of the extensions list, of a version 3 certificate.

    The algorithm stands twice in a certificate, once unsigned: both must agree (RFC 5280 section 4.1.1.2).
    """
    certificate = asn1.read_sequence(der)
    if len(certificate) != _CERTIFICATE_ELEMENTS:
        raise _bad("it is not X.509")
    elements = asn1.read_sequence(certificate[0][2])
    if len(elements) <= _TBS_SPKI_INDEX or elements[0][0] != _VERSION_TAG:
        raise _bad("it is not version 3")
    serial = int.from_bytes(elements[_TBS_SERIAL_INDEX][1], "big", signed=True)
    if serial <= 0:
        raise _bad("its serial number is not positive")
    if elements[_TBS_ALGORITHM_INDEX][2] != certificate[1][2]:
        raise _bad("it names two signature algorithms")
    rest = elements[_TBS_SPKI_INDEX + 1 :]
    if any(tag != _EXTENSIONS_TAG for tag, _, _ in rest):
        raise _bad("it has an issuer or subject unique identifier")
    if len(rest) != 1:
        raise _bad("it has no extensions")
    return elements[_TBS_SPKI_INDEX][2], rest[0][1]


def _read_binding(extensions: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the Ed25519 host key, its signature and the proof of membership.

    Another critical extension is refused, a second one of either kind, and a certificate without libp2p's.
    """
    value: bytes | None = None
    proof: bytes | None = None
    for _, _, whole in asn1.read_sequence(extensions):
        parts = asn1.read_sequence(whole)
        oid = parts[0][1] if parts and parts[0][0] == asn1.OBJECT_IDENTIFIER else b""
        critical = len(parts) == 3 and parts[1][:2] == (asn1.BOOLEAN, _DER_TRUE)
        if oid == _PROOF_OID_DER:
            if proof is not None or parts[-1][0] != asn1.OCTET_STRING:
                raise _bad("its proof of membership stands there twice or is malformed")
            proof = parts[-1][1]
        elif oid != _EXTENSION_OID_DER:
            if critical:
                raise _bad("it has a critical extension that is not libp2p's")
        elif value is not None or parts[-1][0] != asn1.OCTET_STRING:
            raise _bad("its libp2p extension stands there twice or is malformed")
        else:
            value = parts[-1][1]
    if value is None:
        raise _bad("it has no libp2p extension")
    binding = asn1.read_sequence(value)
    if [tag for tag, _, _ in binding] != [asn1.OCTET_STRING, asn1.OCTET_STRING]:
        raise _bad("its libp2p extension does not hold a key and a signature")
    try:
        return decode_public_key(binding[0][1]), binding[1][1], proof or b""
    except RemoteProtocolError as fault:
        raise _bad(fault.detail) from fault


def _verify_self_signature(certificate: x509.Certificate) -> None:
    try:
        matches = _self_signature_matches(certificate)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as fault:
        raise _bad("it is not signed by its own key") from fault
    if not matches:
        raise _bad("its key or its signature is of a kind that is not accepted")


def _self_signature_matches(certificate: x509.Certificate) -> bool:
    """Verify the certificate by its own key; False when key and algorithm are no accepted pair, InvalidSignature otherwise."""
    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    key, algorithm = certificate.public_key(), certificate.signature_algorithm_oid
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, signed)
        return algorithm == SignatureAlgorithmOID.ED25519
    if isinstance(key, ed448.Ed448PublicKey):
        key.verify(signature, signed)
        return algorithm == SignatureAlgorithmOID.ED448
    digest, parameters = certificate.signature_hash_algorithm, certificate.signature_algorithm_parameters
    if not isinstance(digest, _SHA2):
        return False
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES) and isinstance(parameters, ec.ECDSA):
        key.verify(signature, signed, ec.ECDSA(digest))
        return True
    if not isinstance(key, rsa.RSAPublicKey) or not isinstance(parameters, padding.PKCS1v15 | padding.PSS):
        return False
    if not RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
        return False
    key.verify(signature, signed, parameters, digest)
    return True
