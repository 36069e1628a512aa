"""Invitations: what an issuer signs, and the texts that are copied from one machine to the other.

    text = "isoinvite1" || base32(token || the first 4 bytes of SHA-256 over the token)

The texts of delegations ("isodelegation1") and of networks ("isonetwork1") are made alike.

The checksum tells a typing error from a forged invitation. All letters are small and none is a sign, so that a double click takes
the whole text; white space, as chat programs put it in, is left out.

Spec: docs/spec/09-admission.md, section "Invitations".
"""

import hashlib

from protocol.admission import reading
from protocol.admission.config import (
    ADDRESSES_MAX,
    NETWORK_LIMITS,
    ROOT_KEY_BYTES,
    TOKEN_BYTES_MAX,
    TOKEN_ID_BYTES,
    TOKEN_LIFETIME_S_MAX,
    TOKEN_LIMITS,
    USES_MAX,
)
from protocol.admission.values import Token
from protocol.encoding import decode_base32, encode_base32
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import Identity, public_key_of
from protocol.multiaddr import MULTIADDR_BYTES_MAX, Multiaddr
from protocol.wire import Plain, pack, unpack

TOKEN_DOMAIN = b"isochrone-invite-v1:"
"""Stands before the signed bytes of an invitation."""

TOKEN_PREFIX = "isoinvite1"  # noqa: S105  (how its text begins, no secret)
"""How the text of an invitation begins; the number is the version."""

DELEGATION_PREFIX = "isodelegation1"
"""How the text of a delegation begins."""

NETWORK_PREFIX = "isonetwork1"
"""How the text that names a network begins."""

CHECKSUM_BYTES = 4
"""Bytes of the checksum: one typing error in four thousand millions goes unnoticed, and the signature catches that one."""

TEXT_LENGTH_MAX = len(TOKEN_PREFIX) + (TOKEN_BYTES_MAX + CHECKSUM_BYTES) * 8 // 5 + 8
"""Longest text of an invitation in characters, white space not counted."""

_FIELDS = 9  # elements of the statement that this version knows, a count
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def sign_token(issuer: Identity, token: Token) -> bytes:
    """Sign an invitation with the issuer's key.

    Raises:
        LocalProtocolError: MALFORMED or TOO_LARGE when receivers would refuse it.
    """
    assert issuer.peer_id == token.issuer, "an invitation is signed by the issuer it names"
    fields: list[object] = [
        token.root,
        token.token_id,
        token.uses,
        token.issued_s,
        token.expires_s,
        token.owner,
        list(token.roles),
        bytes(token.issuer),
        [address.to_bytes() for address in token.addresses],
    ]
    signed = reading.sign(issuer, TOKEN_DOMAIN, fields, TOKEN_LIMITS)
    try:
        open_token(signed)
    except RemoteProtocolError as fault:
        raise LocalProtocolError(fault.code, fault.detail) from None
    return signed


def open_token(data: bytes) -> Token:
    """Read an invitation and verify it by the issuer it names; time, network and uses are for the caller.

    Raises:
        RemoteProtocolError: TOO_LARGE, MALFORMED, UNSUPPORTED or BAD_SIGNATURE.
    """
    fields = reading.read(data, TOKEN_LIMITS, _FIELDS, "an invitation")
    token = Token(
        root=reading.binary(fields[0], "the network's key", ROOT_KEY_BYTES),
        token_id=reading.binary(fields[1], "the invitation's id", TOKEN_ID_BYTES),
        uses=reading.integer(fields[2], "uses", 1, USES_MAX),
        issued_s=reading.time_s(fields[3], "the issue time"),
        expires_s=reading.time_s(fields[4], "the expiry"),
        owner=reading.text(fields[5], "an owner"),
        roles=reading.names(fields[6], "roles"),
        issuer=reading.peer(fields[7], "the issuer"),
        addresses=tuple(_address(item) for item in reading.array(fields[8], "addresses", ADDRESSES_MAX)),
    )
    reading.check_times(token.issued_s, token.expires_s, TOKEN_LIFETIME_S_MAX, "an invitation")
    reading.check_signature(data, TOKEN_DOMAIN, public_key_of(token.issuer), "the invitation")
    return token


def _address(value: Plain) -> Multiaddr:
    if not isinstance(value, bytes) or len(value) > MULTIADDR_BYTES_MAX:
        raise reading.malformed("an address that is none")
    return Multiaddr.from_bytes(value)


def token_text(data: bytes) -> str:
    """The text of a signed invitation, to be copied."""
    return _text_of(TOKEN_PREFIX, data)


def parse_token(text: str) -> bytes:
    """Read the text of an invitation; the invitation in it is not verified.

    Raises:
        LocalProtocolError: MALFORMED, saying what is wrong with the text.
    """
    return _parse(TOKEN_PREFIX, "invitation", text)


def delegation_text(data: bytes) -> str:
    """The text of a signed delegation, to be copied."""
    return _text_of(DELEGATION_PREFIX, data)


def parse_delegation(text: str) -> bytes:
    """Read the text of a delegation; the delegation in it is not verified.

    Raises:
        LocalProtocolError: MALFORMED, saying what is wrong with the text.
    """
    return _parse(DELEGATION_PREFIX, "delegation", text)


def network_text(root: bytes, name: str) -> str:
    """The text by which a network is named to the owners of others: its public key, and what it calls itself."""
    return _text_of(NETWORK_PREFIX, pack([root, name], NETWORK_LIMITS))


def parse_network(text: str) -> tuple[bytes, str]:
    """Read the text that names a network: its public key and its name.

    Raises:
        LocalProtocolError: MALFORMED, saying what is wrong with the text.
    """
    data = _parse(NETWORK_PREFIX, "network", text)
    try:
        match unpack(data, NETWORK_LIMITS):
            case [root, name, *_]:
                return reading.binary(root, "the network's key", ROOT_KEY_BYTES), reading.text(name, "a name")
            case _:
                raise _unreadable("network", "it names none")
    except RemoteProtocolError as fault:
        raise _unreadable("network", fault.detail) from None


def _text_of(prefix: str, data: bytes) -> str:
    return prefix + encode_base32(data + _checksum(data))


def _parse(prefix: str, what: str, text: str) -> bytes:
    if len(text) > 4 * TEXT_LENGTH_MAX:
        raise _unreadable(what, f"it has {len(text)} characters")
    compact = "".join(text.split()).lower()
    if not compact.startswith(prefix):
        raise _unreadable(what, f"it does not begin with {prefix}")
    body = compact[len(prefix) :]
    if len(body) > TEXT_LENGTH_MAX:
        raise _unreadable(what, f"it has {len(compact)} characters")
    strange = next((character for character in body if character not in _ALPHABET), None)
    if strange is not None:
        raise _unreadable(what, f"it holds {strange!r}, which none does")
    try:
        data = decode_base32(body, TEXT_LENGTH_MAX)
    except LocalProtocolError:
        data = b""
    if len(data) <= CHECKSUM_BYTES or _checksum(data[:-CHECKSUM_BYTES]) != data[-CHECKSUM_BYTES:]:
        raise _unreadable(what, "a character is missing, wrong or too many")
    return data[:-CHECKSUM_BYTES]


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:CHECKSUM_BYTES]


def _unreadable(what: str, detail: str) -> LocalProtocolError:
    return LocalProtocolError(ErrorCode.MALFORMED, f"this is no {what} as it was printed: {detail}; copy it again as a whole")
