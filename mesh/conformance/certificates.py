"""Certificates of all kinds: the good one, and one for each rule that a certificate can break.

Source: libp2p/specs tls/tls.md; RFC 5280 section 4.1.
Spec: docs/spec/01-identity.md, section "Certificates".
"""

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from protocol.identity import Identity, encode_public_key
from protocol.identity import der as asn1

_BINDING_PREFIX = b"libp2p-tls-handshake:"
"""What the host key signs before the certificate key (docs/spec/01-identity.md, section "Certificates")."""

_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
"""The libp2p extension."""

_PROOF = x509.ObjectIdentifier("2.25.1930428719")
"""The extension for proofs of membership."""

_FOREIGN_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.99")
"""An extension that nobody knows."""

_SECP256K1_HEAD = b"\x08\x02\x12\x21"
"""What stands before a compressed secp256k1 key in its PublicKey message (libp2p/specs peer-ids.md)."""


@dataclass(frozen=True, slots=True)
class Chain:
    """What is shown in TLS: certificates, possibly none or several, and the key of the first."""

    certificates: tuple[Any, ...] = ()
    private_key: Any = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a certificate is made; the defaults make a good one.

    Attributes:
        starts_in_s, ends_in_s: the validity, in seconds from now.
        key: the certificate's own key: "p256", "ed25519", "rsa2048" or "rsa1024".
        critical: whether the libp2p extension is critical.
        bound: whether the host key's signature is right.
        extended: whether the libp2p extension is there.
        host: whose host key it is: "ed25519", "secp256k1", or "padded" for an Ed25519 key in a message of other bytes.
        foreign: an extension that nobody knows: "critical", "plain" or "".
        self_signed: whether the certificate's own key signs it.
        issuer: a name other than the subject's; the subject's where empty.
        padding_bytes: bytes of an extension that only makes the certificate long.
        proof: what is shown of a network's membership (docs/spec/09-admission.md); nothing where empty.
    """

    starts_in_s: float = -3600.0
    ends_in_s: float = 86400.0
    key: str = "p256"
    critical: bool = False
    bound: bool = True
    extended: bool = True
    host: str = "ed25519"
    foreign: str = ""
    self_signed: bool = True
    issuer: str = ""
    padding_bytes: int = 0
    proof: bytes = b""


GOOD = Recipe()
"""What every node must accept."""

ACCEPTED: dict[str, Recipe] = {
    "a critical libp2p extension": Recipe(critical=True),
    "an Ed25519 certificate key": Recipe(key="ed25519"),
    "an RSA certificate key of 2048 bits": Recipe(key="rsa2048"),
    "an unknown extension that is not critical": Recipe(foreign="plain"),
    "another issuer than subject": Recipe(issuer="somebody else"),
}
"""Unusual certificates that hold all rules."""

REFUSED: dict[str, Recipe] = {
    "no libp2p extension": Recipe(extended=False),
    "a host signature that does not match": Recipe(bound=False),
    "a self-signature that does not match": Recipe(self_signed=False),
    "an unknown critical extension": Recipe(foreign="critical"),
    "an RSA certificate key of 1024 bits": Recipe(key="rsa1024"),
    "more than 4096 bytes": Recipe(padding_bytes=4096),
}
"""Certificates that break one rule each."""

WRONG_HOSTS: dict[str, Recipe] = {
    "a host key of the type secp256k1": Recipe(host="secp256k1"),
    "an Ed25519 host key in a message of more than 36 bytes": Recipe(host="padded"),
}
"""Certificates of hosts whose keys are not those of a node, their signatures being right."""

OUT_OF_TIME: dict[str, Recipe] = {
    "a certificate that has expired": Recipe(starts_in_s=-7200.0, ends_in_s=-3600.0),
    "a certificate that is not valid yet": Recipe(starts_in_s=3600.0, ends_in_s=7200.0),
}
"""Certificates outside their validity."""


def make_chain(identity: Identity, recipe: Recipe = GOOD) -> Chain:
    """Make one certificate of a host key by a recipe."""
    key, signing, digest = _keys(recipe.key)
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signed = _BINDING_PREFIX + (spki if recipe.bound else spki[:-1] + bytes([spki[-1] ^ 1]))
    host_key, signature = _vouch(identity, recipe.host, signed)
    binding = asn1.encode_element(asn1.OCTET_STRING, host_key) + asn1.encode_element(asn1.OCTET_STRING, signature)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "conformance")])
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, recipe.issuer)]) if recipe.issuer else subject
    now = datetime.now(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(os.urandom(7), "big") + 1)
        .not_valid_before(now + timedelta(seconds=recipe.starts_in_s))
        .not_valid_after(now + timedelta(seconds=recipe.ends_in_s))
    )
    if recipe.extended:
        value = asn1.encode_element(asn1.SEQUENCE, binding)
        builder = builder.add_extension(x509.UnrecognizedExtension(_EXTENSION, value), critical=recipe.critical)
    if recipe.proof:
        builder = builder.add_extension(x509.UnrecognizedExtension(_PROOF, recipe.proof), critical=False)
    if recipe.foreign or recipe.padding_bytes:
        value = asn1.encode_element(asn1.OCTET_STRING, bytes(recipe.padding_bytes or 1))
        unknown = x509.UnrecognizedExtension(_FOREIGN_EXTENSION, value)
        builder = builder.add_extension(unknown, critical=recipe.foreign == "critical")
    signer = signing if recipe.self_signed else _keys(recipe.key)[1]
    return Chain((builder.sign(signer, digest),), key)


def two_certificates(first: Chain, second: Chain) -> Chain:
    """Show two certificates where one is allowed."""
    return replace(first, certificates=first.certificates + second.certificates)


def stolen_chain(chain: Chain) -> Chain:
    """Show a good certificate of a host without having its key: the possession cannot be proven."""
    return replace(chain, private_key=ec.generate_private_key(ec.SECP256R1()))


def _vouch(identity: Identity, host: str, signed: bytes) -> tuple[bytes, bytes]:
    """Return the PublicKey message of the host and its signature."""
    if host == "secp256k1":
        key = ec.generate_private_key(ec.SECP256K1())
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        return _SECP256K1_HEAD + point, key.sign(signed, ec.ECDSA(hashes.SHA256()))
    message = encode_public_key(identity.public_key)
    return (message + b"\x18\x00" if host == "padded" else message), identity.sign(signed)


def _keys(kind: str) -> tuple[Any, Any, Any]:
    match kind:
        case "ed25519":
            key: Any = ed25519.Ed25519PrivateKey.generate()
            return key, key, None
        case "rsa2048" | "rsa1024":
            key = rsa.generate_private_key(65537, int(kind[3:]))
            return key, key, hashes.SHA256()
        case _:
            key = ec.generate_private_key(ec.SECP256R1())
            return key, key, hashes.SHA256()
