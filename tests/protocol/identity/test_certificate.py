"""The certificate: what a node makes, what it accepts, and each reason to refuse."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import (
    CERTIFICATE_BYTES_MAX,
    Identity,
    encode_public_key,
    make_certificate,
    peer_id_text,
    read_certificate,
    verify_certificate,
)
from protocol.identity.der import OCTET_STRING, SEQUENCE, encode_element, read_sequence

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "libp2p.json").read_text())
WALL_S = 1_700_000_000.0
HOUR_S = 3600.0
IDENTITY = Identity.from_seed(bytes(range(32)))
PROOF_OID = x509.ObjectIdentifier("2.25.1930428719")
P2P_OID = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
RSA_KEY = rsa.generate_private_key(65537, 2048)
SHA256 = hashes.SHA256()
P256_KEY = ec.derive_private_key(12345, ec.SECP256R1())


def binding(public_key, identity: Identity = IDENTITY, key_message: bytes | None = None) -> bytes:
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    parts = encode_element(OCTET_STRING, encode_public_key(identity.public_key) if key_message is None else key_message)
    parts += encode_element(OCTET_STRING, identity.sign(b"libp2p-tls-handshake:" + spki))
    return encode_element(SEQUENCE, parts)


def build(
    key=P256_KEY,
    *,
    value: bytes | None = None,
    critical: bool = False,
    extra=(),
    digest=SHA256,
    signer=None,
    rsa_padding=None,
) -> bytes:
    """Build a certificate as other implementations might, right but for what is asked."""
    name = x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.fromtimestamp(WALL_S - HOUR_S, UTC))
        .not_valid_after(datetime.fromtimestamp(WALL_S + HOUR_S, UTC))
    )
    if value != b"":
        builder = builder.add_extension(
            x509.UnrecognizedExtension(P2P_OID, binding(key.public_key()) if value is None else value), critical
        )
    for extension, is_critical in extra:
        builder = builder.add_extension(extension, is_critical)
    return builder.sign(signer or key, digest, rsa_padding=rsa_padding).public_bytes(Encoding.DER)


def rebuilt(der: bytes, change) -> bytes:
    """Change the elements of a certificate's body and sign it anew with `P256_KEY`."""
    body, algorithm, _ = read_sequence(der)
    elements = [whole for _, _, whole in read_sequence(body[2])]
    changed = encode_element(SEQUENCE, b"".join(change(elements)))
    signature = P256_KEY.sign(changed, ec.ECDSA(hashes.SHA256()))
    return encode_element(SEQUENCE, changed + algorithm[2] + encode_element(0x03, b"\x00" + signature))


def refusal(der: bytes, wall_s: float = WALL_S) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        verify_certificate(der, wall_s)
    return caught.value


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=64), st.floats(0, 4e9))
def test_own_certificate_verifies_and_is_repeatable(seed: bytes, entropy: bytes, wall_s: float) -> None:
    identity = Identity.from_seed(seed)
    made = make_certificate(identity, entropy, wall_s)
    assert verify_certificate(made.der, wall_s) == identity.peer_id
    assert make_certificate(identity, entropy, wall_s).der == made.der
    assert made.certificate.serial_number > 0
    assert len(made.der) < 512


@given(st.binary(min_size=1, max_size=1600))
def test_a_proof_travels_in_an_extension_of_its_own(proof: bytes) -> None:
    made = make_certificate(IDENTITY, bytes(32), WALL_S, proof)
    assert read_certificate(made.der, WALL_S) == (IDENTITY.peer_id, proof)
    assert verify_certificate(made.der, WALL_S) == IDENTITY.peer_id
    assert not made.certificate.extensions.get_extension_for_oid(PROOF_OID).critical


def test_a_certificate_without_a_proof_shows_nothing() -> None:
    assert read_certificate(make_certificate(IDENTITY, bytes(32), WALL_S).der, WALL_S) == (IDENTITY.peer_id, b"")


def test_a_second_proof_is_refused() -> None:
    one = make_certificate(IDENTITY, bytes(32), WALL_S, b"one")

    def twice(elements: list[bytes]) -> list[bytes]:
        *rest, last = elements
        (listed,) = read_sequence(read_sequence(encode_element(SEQUENCE, last))[0][1])[:1]
        extensions = [whole for _, _, whole in read_sequence(listed[2])] if listed[0] == SEQUENCE else []
        return [*rest, encode_element(0xA3, encode_element(SEQUENCE, b"".join([*extensions, extensions[-1]])))]

    assert refusal(rebuilt(one.der, twice)).code is ErrorCode.BAD_CERTIFICATE


def test_certificate_is_valid_from_an_hour_ago_for_a_hundred_years() -> None:
    der = make_certificate(IDENTITY, bytes(32), WALL_S).der
    century_s = 36525 * 86400.0
    for wall_s in (WALL_S - HOUR_S, WALL_S + century_s):
        assert verify_certificate(der, wall_s) == IDENTITY.peer_id
    for wall_s in (WALL_S - HOUR_S - 1, WALL_S + century_s + 1):
        assert refusal(der, wall_s).code is ErrorCode.EXPIRED


def test_other_entropy_gives_another_key_and_serial() -> None:
    one, other = (make_certificate(IDENTITY, entropy, WALL_S) for entropy in (bytes(32), bytes(31) + b"\x01"))
    assert one.private_key.private_numbers() != other.private_key.private_numbers()
    assert one.certificate.serial_number != other.certificate.serial_number
    with pytest.raises(AssertionError):
        make_certificate(IDENTITY, bytes(31), WALL_S)


def test_certificate_and_key_come_in_both_encodings() -> None:
    made = make_certificate(IDENTITY, bytes(32), WALL_S)
    assert x509.load_pem_x509_certificate(made.pem).public_bytes(Encoding.DER) == made.der
    numbers = made.private_key.private_numbers()
    assert load_der_private_key(made.private_key_der, None).private_numbers() == numbers
    assert load_pem_private_key(made.private_key_pem, None).private_numbers() == numbers
    assert str(numbers.private_value) not in repr(made)


@pytest.mark.parametrize("vector", VECTORS["certificates"], ids=lambda vector: vector["name"])
def test_certificates_of_other_implementations(vector: dict[str, str]) -> None:
    der = bytes.fromhex(vector["der_hex"])
    if vector["host_key"] == "Ed25519" and vector["peer_id"]:
        assert peer_id_text(verify_certificate(der, WALL_S)) == vector["peer_id"]
        return
    fault = refusal(der)
    assert fault.code is ErrorCode.BAD_CERTIFICATE
    assert ("only Ed25519 is accepted" if vector["host_key"] != "Ed25519" else "host key's signature") in fault.detail


@pytest.mark.parametrize("vector", VECTORS["algorithms"], ids=lambda vector: vector["name"])
def test_every_key_algorithm_of_a_certificate_is_verified(vector: dict[str, str]) -> None:
    """All of these but one carry a host signature over another key: they fail there, after their own signature has passed."""
    der = bytes.fromhex(vector["der_hex"])
    wall_s = x509.load_der_x509_certificate(der).not_valid_before_utc.timestamp()
    if vector["name"] == "rsa_pss_sha384.der":
        assert peer_id_text(verify_certificate(der, wall_s)) == "12D3KooWNhaaRyBfd97qvv1Fdw7Mvng1rh5KrW8PRaMMioz4NNno"
    else:
        assert "host key's signature" in refusal(der, wall_s).detail
    forged = der[:-1] + bytes((der[-1] ^ 1,))
    assert "not signed by its own key" in refusal(forged, wall_s).detail
    assert refusal(der, wall_s - 1).code is ErrorCode.EXPIRED


@pytest.mark.parametrize("critical", [False, True])
def test_libp2p_extension_may_be_critical(critical: bool) -> None:
    assert verify_certificate(build(critical=critical), WALL_S) == IDENTITY.peer_id


def test_another_extension_is_ignored_unless_it_is_critical() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    assert verify_certificate(build(extra=[(unknown, False)]), WALL_S) == IDENTITY.peer_id
    assert "critical extension" in refusal(build(extra=[(unknown, True)])).detail
    assert "critical extension" in refusal(build(extra=[(x509.BasicConstraints(ca=True, path_length=None), True)])).detail


def test_missing_extension_is_refused() -> None:
    harmless = (x509.BasicConstraints(ca=False, path_length=None), False)
    assert "no extensions" in refusal(build(value=b"")).detail
    assert "no libp2p extension" in refusal(build(value=b"", extra=[harmless])).detail


def test_second_libp2p_extension_is_refused() -> None:
    def double(elements: list[bytes]) -> list[bytes]:
        extension = read_sequence(read_elements_content(elements[-1]))[0][2]
        return [*elements[:-1], encode_element(0xA3, encode_element(SEQUENCE, extension * 2))]

    assert "twice" in refusal(rebuilt(build(), double)).detail


def read_elements_content(element: bytes) -> bytes:
    """Return what stands in an explicit tag of less than 64 KiB."""
    start = 2 + (element[1] & 0x7F if element[1] & 0x80 else 0)
    return element[start:]


@pytest.mark.parametrize("tag", [0x81, 0x82])
def test_unique_identifiers_are_refused(tag: int) -> None:
    der = rebuilt(build(), lambda elements: [*elements[:-1], encode_element(tag, b"\x00\x2a"), elements[-1]])
    assert "unique identifier" in refusal(der).detail


@pytest.mark.parametrize("serial", [b"\x00", b"\x80"])
def test_serial_number_that_is_not_positive_is_refused(serial: bytes) -> None:
    der = rebuilt(build(), lambda elements: [elements[0], encode_element(0x02, serial), *elements[2:]])
    assert "serial number" in refusal(der).detail


def test_second_algorithm_outside_the_signed_body_is_refused() -> None:
    body, algorithm, signature = (whole for _, _, whole in read_sequence(build()))
    with_null = encode_element(SEQUENCE, algorithm[2:] + b"\x05\x00")
    assert "two signature algorithms" in refusal(encode_element(SEQUENCE, body + with_null + signature)).detail


def test_the_rebuilding_itself_leaves_a_valid_certificate() -> None:
    assert verify_certificate(rebuilt(build(), lambda elements: elements), WALL_S) == IDENTITY.peer_id


def test_host_signature_over_another_key_is_refused() -> None:
    other = ec.derive_private_key(54321, ec.SECP256R1())
    assert "host key's signature" in refusal(build(value=binding(other.public_key()))).detail


def test_certificate_signed_by_another_key_is_refused() -> None:
    other = ec.derive_private_key(54321, ec.SECP256R1())
    assert "not signed by its own key" in refusal(build(signer=other)).detail


@pytest.mark.parametrize(
    "key_message", [b"", b"\x08\x01\x12\x1f" + bytes(31), encode_public_key(IDENTITY.public_key) + b"\x00", bytes(3000)]
)
def test_extension_with_a_key_of_wrong_form_is_refused(key_message: bytes) -> None:
    assert refusal(build(value=binding(P256_KEY.public_key(), key_message=key_message))).code is ErrorCode.BAD_CERTIFICATE


@pytest.mark.parametrize(
    "value", [b"\x30", b"\x30\x00", b"\x04\x00", b"\x30\x80\x00\x00", b"\x30\x04\x04\x00\x04\x00\x00", b"\x30\x03\x04\x05\x00"]
)
def test_extension_of_wrong_structure_is_refused(value: bytes) -> None:
    assert refusal(build(value=value)).code is ErrorCode.BAD_CERTIFICATE


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)),
        ec.derive_private_key(99, ec.SECP384R1()),
        ec.derive_private_key(99, ec.SECP521R1()),
    ],
    ids=["ed25519", "p384", "p521"],
)
def test_other_certificate_keys_of_tls_1_3_are_accepted(key) -> None:
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA512()
    assert verify_certificate(build(key, digest=digest), WALL_S) == IDENTITY.peer_id


def test_rsa_certificate_key_below_the_limit_is_refused() -> None:
    assert verify_certificate(build(RSA_KEY), WALL_S) == IDENTITY.peer_id
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    assert verify_certificate(build(RSA_KEY, rsa_padding=pss), WALL_S) == IDENTITY.peer_id
    assert "not accepted" in refusal(build(rsa.generate_private_key(65537, 1024))).detail


@pytest.mark.parametrize(
    "key", [ec.derive_private_key(99, ec.SECP256K1()), dsa.generate_private_key(2048)], ids=["secp256k1", "dsa"]
)
def test_certificate_keys_that_tls_1_3_does_not_know_are_refused(key) -> None:
    assert "not accepted" in refusal(build(key)).detail


def test_rsa_certificate_key_above_the_limit_is_refused_unused() -> None:
    """The modulus is no product of primes: verifying with it would fail in another way."""
    for bits, why in ((8192, "not signed by its own key"), (8208, "not accepted")):
        large = (
            rsa.RSAPublicNumbers(65537, (1 << bits) - 1)
            .public_key()
            .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )
        der = rebuilt(build(RSA_KEY), lambda elements, spki=large: [*elements[:6], spki, *elements[7:]])
        assert why in refusal(der).detail


def test_signature_with_another_hash_than_sha_2_of_256_bits_or_more_is_refused() -> None:
    for digest in (hashes.SHA224(), hashes.SHA3_256()):
        assert "not accepted" in refusal(build(digest=digest)).detail


def test_certificate_over_the_size_limit_is_refused_unread() -> None:
    filler = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(CERTIFICATE_BYTES_MAX - len(build()) - 30)
    )
    fits = build(extra=[(filler, False)])
    assert len(fits) <= CERTIFICATE_BYTES_MAX
    assert verify_certificate(fits, WALL_S) == IDENTITY.peer_id
    assert "limit is 4096" in refusal(bytes(CERTIFICATE_BYTES_MAX + 1)).detail


def test_trailing_bytes_and_version_1_are_refused() -> None:
    assert refusal(build() + b"\x00").code is ErrorCode.BAD_CERTIFICATE
    assert refusal(rebuilt(build(), lambda elements: elements[1:-1])).code is ErrorCode.BAD_CERTIFICATE


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_and_raise_nothing_else(data: bytes) -> None:
    assert refusal(data).code is ErrorCode.BAD_CERTIFICATE


OWN_DER = make_certificate(IDENTITY, bytes(32), WALL_S).der


@given(st.integers(0, len(OWN_DER) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(position: int, difference: int) -> None:
    changed = bytearray(OWN_DER)
    changed[position] ^= difference
    assert refusal(bytes(changed)).code in (ErrorCode.BAD_CERTIFICATE, ErrorCode.EXPIRED)


@given(st.binary(max_size=200))
def test_any_extension_value_is_refused(value: bytes) -> None:
    assert refusal(build(value=value)).code is ErrorCode.BAD_CERTIFICATE
