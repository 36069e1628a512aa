"""Signed statements as bytes: a signature, then a msgpack array; every range checked after the signature.

    statement = signature (64 bytes) | msgpack array

The signature covers a domain string and the array exactly as it came. Elements after the known ones belong to later versions:
signed, bounded and ignored.

Spec: docs/spec/09-admission.md, section "Statements".
"""

from protocol.admission.config import NAME_BYTES_MAX, ROLES_MAX, SIGNATURE_BYTES, TIME_S_MAX, UNKNOWN_ELEMENTS_MAX
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import Identity, PeerId, peer_id_from_bytes, public_key_of, verify_signature
from protocol.wire import PackingLimits, Plain, pack, unpack


def malformed(detail: str) -> RemoteProtocolError:
    """The fault of bytes that do not say what they should."""
    return RemoteProtocolError(ErrorCode.MALFORMED, detail)


def sign(identity: Identity, domain: bytes, fields: list[object], limits: PackingLimits) -> bytes:
    """Sign an array as one statement.

    Raises:
        LocalProtocolError: TOO_LARGE or MALFORMED when receivers would refuse it.
    """
    signed = pack(fields, limits)
    return identity.sign(domain + signed) + signed


def read(statement: bytes, limits: PackingLimits, count: int, what: str) -> list[Plain]:
    """The first `count` elements of a statement whose signature nobody has checked yet.

    Raises:
        RemoteProtocolError: TOO_LARGE or MALFORMED.
    """
    if len(statement) <= SIGNATURE_BYTES:
        raise malformed(f"{what} has no content")
    value = unpack(memoryview(statement)[SIGNATURE_BYTES:], limits)
    if not isinstance(value, list) or len(value) < count:
        raise malformed(f"{what} is no array of {count}")
    if len(value) > count + UNKNOWN_ELEMENTS_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{what} has {len(value)} elements")
    return value[:count]


def check_signature(statement: bytes, domain: bytes, signer: bytes, what: str) -> None:
    """Verify a statement by a public key.

    Raises:
        RemoteProtocolError: BAD_SIGNATURE.
    """
    if not verify_signature(signer, statement[:SIGNATURE_BYTES], domain + statement[SIGNATURE_BYTES:]):
        raise RemoteProtocolError(ErrorCode.BAD_SIGNATURE, f"{what} is not signed by the key it names")


def integer(value: Plain, what: str, least: int, largest: int) -> int:
    """An integer within a range."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        raise malformed(f"{what} is no integer from {least} to {largest}")
    return value


def time_s(value: Plain, what: str) -> int:
    """A time in whole seconds since 1970."""
    return integer(value, what, 0, TIME_S_MAX)


def text(value: Plain, what: str, bytes_max: int = NAME_BYTES_MAX) -> str:
    """A printable text of at most `bytes_max` bytes."""
    if not isinstance(value, str) or not value.isprintable():
        raise malformed(f"{what} is no printable text")
    if len(value.encode()) > bytes_max:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{what} is longer than {bytes_max} bytes")
    return value


def binary(value: Plain, what: str, length: int) -> bytes:
    """Bytes of one length."""
    if not isinstance(value, bytes) or len(value) != length:
        raise malformed(f"{what} is not {length} bytes")
    return value


def array(value: Plain, what: str, count_max: int) -> list[Plain]:
    """An array of at most `count_max` elements."""
    if not isinstance(value, list):
        raise malformed(f"{what} is no array")
    if len(value) > count_max:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{what} has {len(value)} elements, {count_max} are allowed")
    return value


def names(value: Plain, what: str) -> tuple[str, ...]:
    """An array of at most `ROLES_MAX` names."""
    return tuple(text(item, what) for item in array(value, what, ROLES_MAX))


def peer(value: Plain, what: str) -> PeerId:
    """A peer id that holds an Ed25519 key."""
    if not isinstance(value, bytes):
        raise malformed(f"{what} is no peer id")
    peer_id = peer_id_from_bytes(value)
    public_key_of(peer_id)  # raises where it holds no key
    return peer_id


def check_times(not_before_s: int, not_after_s: int, lifetime_s_max: float, what: str) -> None:
    """Refuse a validity that is empty or longer than allowed.

    Raises:
        RemoteProtocolError: MALFORMED.
    """
    if not 0 < not_after_s - not_before_s <= lifetime_s_max:
        raise malformed(f"{what} is valid for {not_after_s - not_before_s} s")


def check_now(not_before_s: int, not_after_s: int, wall_s: float, skew_s: float, what: str) -> None:
    """Refuse what is not valid at `wall_s`.

    Raises:
        RemoteProtocolError: NOT_YET_VALID or EXPIRED.
    """
    if not_before_s > wall_s + skew_s:
        raise RemoteProtocolError(ErrorCode.NOT_YET_VALID, f"{what} is valid in {not_before_s - wall_s:.0f} s")
    if wall_s >= not_after_s:
        raise RemoteProtocolError(ErrorCode.EXPIRED, f"{what} expired {wall_s - not_after_s:.0f} s ago")
