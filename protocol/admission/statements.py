"""Delegations and join certificates: signing them, reading them, and how a peer shows them.

A network is an Ed25519 key. Its id is a hash of that key, so nobody else can sign for it and nobody need ask whose it is. The key
signs delegations, and may lie in a drawer from then on; nodes with a delegation sign join certificates with their own keys. A
certificate travels with its delegation: two signatures from the network's key to the peer.

Spec: docs/spec/09-admission.md, sections "The network" to "Certificates".
"""

import hashlib

from protocol.admission import reading
from protocol.admission.config import (
    CERTIFICATE_LIFETIME_S_MAX,
    DELEGATION_LIFETIME_S_MAX,
    NUMBER_MAX,
    ROOT_KEY_BYTES,
    SHOWN_LIMITS,
    STATEMENT_LIMITS,
)
from protocol.admission.values import Certificate, Delegation, Right, Shown
from protocol.encoding import encode_base32
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import Identity, public_key_of
from protocol.wire import pack, unpack

NETWORK_DOMAIN = b"isochrone-network-v1:"
"""Stands before the network's key where its id is made."""

DELEGATION_DOMAIN = b"isochrone-delegation-v1:"
"""Stands before the signed bytes of a delegation."""

CERTIFICATE_DOMAIN = b"isochrone-join-certificate-v1:"
"""Stands before the signed bytes of a join certificate."""

NETWORK_ID_HASH_BYTES = 20
"""Bytes of the hash in a network id: 160 bits, against which no second key is found."""

_DELEGATION_FIELDS = 7  # elements of a delegation that this version knows, a count
_CERTIFICATE_FIELDS = 8  # elements of a certificate that this version knows, a count
_MEMBER, _GUEST = 1, 2
"""What is shown: a certificate with its delegation, or an invitation."""


def network_id_of(root: bytes) -> str:
    """The id of the network whose public key is `root`: `net-` and 32 characters of base32."""
    digest = hashlib.sha256(NETWORK_DOMAIN + root).digest()[:NETWORK_ID_HASH_BYTES]
    return "net-" + encode_base32(digest)


def sign_delegation(root: Identity, delegation: Delegation) -> bytes:
    """Sign a delegation with the network's key.

    Raises:
        LocalProtocolError: MALFORMED or TOO_LARGE when receivers would refuse it.
    """
    assert root.public_key == delegation.root, "a delegation is signed by the key it names"
    fields: list[object] = [
        delegation.root,
        bytes(delegation.issuer),
        list(delegation.rights),
        list(delegation.owners),
        delegation.not_before_s,
        delegation.not_after_s,
        delegation.serial,
    ]
    statement = reading.sign(root, DELEGATION_DOMAIN, fields, STATEMENT_LIMITS)
    _must_read(statement)
    return statement


def delegation_bytes(statement: bytes) -> Delegation:
    """Read a delegation whose signature nobody has checked yet.

    Raises:
        RemoteProtocolError: TOO_LARGE, MALFORMED or UNSUPPORTED.
    """
    fields = reading.read(statement, STATEMENT_LIMITS, _DELEGATION_FIELDS, "a delegation")
    delegation = Delegation(
        root=reading.binary(fields[0], "the network's key", ROOT_KEY_BYTES),
        issuer=reading.peer(fields[1], "the issuer"),
        rights=reading.names(fields[2], "rights"),
        owners=reading.names(fields[3], "owners"),
        not_before_s=reading.time_s(fields[4], "not before"),
        not_after_s=reading.time_s(fields[5], "not after"),
        serial=reading.integer(fields[6], "a serial", 0, NUMBER_MAX),
    )
    reading.check_times(delegation.not_before_s, delegation.not_after_s, DELEGATION_LIFETIME_S_MAX, "a delegation")
    return delegation


def open_delegation(statement: bytes) -> Delegation:
    """Read a delegation and verify it by the key it names; whose network that is, and the time, are for the caller.

    Raises:
        RemoteProtocolError: as `delegation_bytes`; BAD_SIGNATURE.
    """
    delegation = delegation_bytes(statement)
    reading.check_signature(statement, DELEGATION_DOMAIN, delegation.root, "a delegation")
    return delegation


def sign_certificate(issuer: Identity, certificate: Certificate) -> bytes:
    """Sign a join certificate with an issuer's key.

    Raises:
        LocalProtocolError: MALFORMED or TOO_LARGE when receivers would refuse it.
    """
    fields: list[object] = [
        certificate.network_id,
        bytes(certificate.peer_id),
        certificate.owner,
        list(certificate.roles),
        certificate.admitted_s,
        certificate.not_before_s,
        certificate.not_after_s,
        certificate.serial,
    ]
    statement = reading.sign(issuer, CERTIFICATE_DOMAIN, fields, STATEMENT_LIMITS)
    try:
        _certificate(statement)
    except RemoteProtocolError as fault:
        raise LocalProtocolError(fault.code, fault.detail) from None
    return statement


def open_certificate(statement: bytes, delegation: Delegation) -> Certificate:
    """Read a join certificate and verify it by the issuer's key.

    Raises:
        RemoteProtocolError: TOO_LARGE, MALFORMED, UNSUPPORTED; BAD_SIGNATURE; WRONG_NETWORK when it names another network than
            the delegation; NOT_ADMITTED when the issuer had no right to it.
    """
    certificate = _certificate(statement)
    reading.check_signature(statement, CERTIFICATE_DOMAIN, public_key_of(delegation.issuer), "a join certificate")
    if certificate.network_id != network_id_of(delegation.root):
        raise RemoteProtocolError(ErrorCode.WRONG_NETWORK, f"a join certificate of network {certificate.network_id!r}")
    if Right.ADMIT not in delegation.rights or not delegation.covers(certificate.owner):
        detail = f"the issuer may not admit nodes of owner {certificate.owner!r}"
        raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, detail)
    return certificate


def _certificate(statement: bytes) -> Certificate:
    fields = reading.read(statement, STATEMENT_LIMITS, _CERTIFICATE_FIELDS, "a join certificate")
    certificate = Certificate(
        network_id=reading.text(fields[0], "a network id"),
        peer_id=reading.peer(fields[1], "the peer"),
        owner=reading.text(fields[2], "an owner"),
        roles=reading.names(fields[3], "roles"),
        admitted_s=reading.time_s(fields[4], "the admission"),
        not_before_s=reading.time_s(fields[5], "not before"),
        not_after_s=reading.time_s(fields[6], "not after"),
        serial=reading.integer(fields[7], "a serial", 0, NUMBER_MAX),
    )
    reading.check_times(certificate.not_before_s, certificate.not_after_s, CERTIFICATE_LIFETIME_S_MAX, "a join certificate")
    if certificate.admitted_s > certificate.not_before_s:
        raise reading.malformed("a join certificate that is older than the admission")
    return certificate


def encode_member(certificate: bytes, delegation: bytes) -> bytes:
    """What a member shows: its certificate and the delegation behind it."""
    return pack([_MEMBER, certificate, delegation], SHOWN_LIMITS)


def encode_guest(token: bytes) -> bytes:
    """What shows who has an invitation and no certificate yet."""
    return pack([_GUEST, token], SHOWN_LIMITS)


def open_shown(shown: bytes) -> Shown:
    """Read what a peer shows; nothing in it is verified.

    Raises:
        RemoteProtocolError: NOT_ADMITTED for nothing, TOO_LARGE or MALFORMED for what cannot be read.
    """
    if not shown:
        raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, "the peer shows no certificate of a network")
    match unpack(shown, SHOWN_LIMITS):
        case [bool(), *_]:
            raise reading.malformed("neither a certificate nor an invitation")
        case [int(kind), bytes(certificate), bytes(delegation), *_] if kind == _MEMBER:
            return Shown(certificate=certificate, delegation=delegation)
        case [int(kind), bytes(token), *_] if kind == _GUEST:
            return Shown(token=token)
        case _:
            raise reading.malformed("neither a certificate nor an invitation")


def _must_read(statement: bytes) -> None:
    try:
        delegation_bytes(statement)
    except RemoteProtocolError as fault:
        raise LocalProtocolError(fault.code, fault.detail) from None
