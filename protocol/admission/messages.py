"""What is said on the streams of admission: joining, renewing, and notices.

    /isochrone/join/1.0.0      one request frame, one answer frame
    /isochrone/notices/1.0.0   frames of one notice each, until the initiator ends its side; no answer

Spec: docs/spec/09-admission.md, sections "Joining" and "Notices".
"""

from dataclasses import dataclass

from protocol.admission.config import NOTICE_BYTES_MAX, SHOWN_BYTES_MAX, STATEMENT_BYTES_MAX, TOKEN_BYTES_MAX
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.wire import PackingLimits, pack, unpack

JOIN_PROTOCOL = "/isochrone/join/1.0.0"
"""Asks an issuer for a certificate."""

NOTICES_PROTOCOL = "/isochrone/notices/1.0.0"
"""Tells a member what the network's key and the issuers have signed."""

JOIN_FRAME_BYTES_MAX = SHOWN_BYTES_MAX + 512
"""Longest frame of a join stream in bytes: what a member shows, or an invitation, or a refusal with its sentence."""

NOTICE_FRAME_BYTES_MAX = NOTICE_BYTES_MAX + STATEMENT_BYTES_MAX + 64
"""Longest frame of a notices stream in bytes."""

REFUSAL_BYTES_MAX = 256
"""Longest sentence of a refusal in bytes of UTF-8."""

_JOIN_LIMITS = PackingLimits(size_bytes_max=JOIN_FRAME_BYTES_MAX, depth_max=2, values_max=16)
_NOTICE_LIMITS = PackingLimits(size_bytes_max=NOTICE_FRAME_BYTES_MAX, depth_max=2, values_max=16)


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """A peer asks for a certificate: by an invitation, or, where `token` is empty, for the next one."""

    token: bytes = b""


@dataclass(frozen=True, slots=True)
class Granted:
    """The peer shows this from now on."""

    shown: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no certificate, and why."""

    code: ErrorCode
    detail: str


JoinAnswer = Granted | Refused


def encode_join_request(request: JoinRequest) -> bytes:
    """A request as one frame."""
    return pack(["join", request.token] if request.token else ["renew"], _JOIN_LIMITS)


def decode_join_request(frame: bytes) -> JoinRequest:
    """Read a request.

    Raises:
        RemoteProtocolError: TOO_LARGE or MALFORMED; UNSUPPORTED for a request of a later version.
    """
    match unpack(frame, _JOIN_LIMITS):
        case ["join", bytes(token), *_] if 0 < len(token) <= TOKEN_BYTES_MAX:
            return JoinRequest(token)
        case ["renew", *_]:
            return JoinRequest()
        case [str(word), *_] if word != "join":
            raise RemoteProtocolError(ErrorCode.UNSUPPORTED, "a request that this version does not know")
        case _:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "no request to join")


def encode_join_answer(answer: JoinAnswer) -> bytes:
    """An answer as one frame."""
    match answer:
        case Granted(shown):
            return pack(["granted", shown], _JOIN_LIMITS)
        case Refused(code, detail):
            short = detail.encode()[:REFUSAL_BYTES_MAX].decode(errors="ignore")
            return pack(["refused", int(code), short], _JOIN_LIMITS)


def decode_join_answer(frame: bytes) -> JoinAnswer:
    """Read an answer.

    Raises:
        RemoteProtocolError: TOO_LARGE or MALFORMED.
    """
    match unpack(frame, _JOIN_LIMITS):
        case ["granted", bytes(shown), *_] if len(shown) <= SHOWN_BYTES_MAX:
            return Granted(shown)
        case ["refused", bool(), *_]:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "a refusal without a code")
        case ["refused", int(code), str(detail), *_] if len(detail.encode()) <= REFUSAL_BYTES_MAX:
            return Refused(_code(code), detail)
        case _:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "no answer to a request to join")


def encode_notice_frame(data: bytes, delegation: bytes) -> bytes:
    """A notice and the delegation of its signer as one frame."""
    return pack([data, delegation], _NOTICE_LIMITS)


def decode_notice_frame(frame: bytes) -> tuple[bytes, bytes]:
    """Read a notice and the delegation of its signer, neither of them verified.

    Raises:
        RemoteProtocolError: TOO_LARGE or MALFORMED.
    """
    match unpack(frame, _NOTICE_LIMITS):
        case [bytes(data), bytes(delegation), *_]:
            return data, delegation
        case _:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "no notice")


def _code(value: int) -> ErrorCode:
    try:
        return ErrorCode(value)
    except ValueError:
        return ErrorCode.INTERNAL
