"""The errors a peer or a caller can cause, and their codes on the wire.

Four kinds of failure get four treatments. An expected outcome is a value. A peer's fault is a `RemoteProtocolError`, raised while
decoding or verifying and caught in one place. A caller's fault is a `LocalProtocolError`. Our own fault is an assertion.

Spec: docs/spec/00-conventions.md, section "Error codes".
"""

from enum import IntEnum


class ErrorCode(IntEnum):
    """Every code that can stand in a stream reset, a connection close or a failed answer.

    Codes below 0x100 concern a connection or a stream; codes from 0x100 concern one inference request.
    """

    NO_ERROR = 0x00
    INTERNAL = 0x01  # our own fault; the peer may retry elsewhere
    MALFORMED = 0x02  # bytes that do not decode, or that decode to values outside their range
    TOO_LARGE = 0x03  # a message, record or count over its limit
    BAD_CERTIFICATE = 0x04  # the libp2p certificate did not verify
    WRONG_PEER = 0x05  # the peer is not the one that was dialled
    BAD_SIGNATURE = 0x06  # a record's signature does not verify
    WRONG_NETWORK = 0x07  # a record of another network id
    EXPIRED = 0x08  # a record past its expiry, or a certificate outside its validity
    NOT_YET_VALID = 0x09  # a record issued in the future by more than the allowed skew
    UNSUPPORTED = 0x0A  # no common protocol or version
    FLOODING = 0x0B  # a per-peer budget is used up
    IDLE = 0x0C  # nothing was heard for too long
    GOODBYE = 0x0D  # the node leaves the mesh on purpose
    DUPLICATE = 0x0E  # a newer connection of the same peer replaces this one
    SURPLUS = 0x0F  # the node keeps its connections to other peers, or is full; nothing is wrong with this one
    NOT_ADMITTED = 0x10  # no valid certificate of the network, or its quota is used up
    REVOKED = 0x11  # the certificate of the peer was taken back
    WRONG_KEY = 0x12  # a certificate or a token that is bound to another key
    TOKEN_REFUSED = 0x13  # an invitation that is used up, or that another node gave
    REPLAYED = 0x14  # a statement that is known already, as it is
    OLD_SEQUENCE = 0x15  # a statement whose number is not greater than the one known
    BANNED = 0x18  # the peer is turned away for a while, for what it did before
    STALE_LEASE = 0x19  # a lease of a region that is not there, or of an epoch that is over
    OUT_OF_BOUNDS = 0x1A  # what does not lie inside its lease or its region, or is not allowed by it
    FABRIC_FAILED = 0x1B  # a fabric does not carry, or is closed for a while; the stream does
    CORRUPTED = 0x1C  # bytes that a fabric carried are not those that were given

    CANCELLED = 0x100  # the caller no longer wants the answer
    DEADLINE_EXCEEDED = 0x101
    OVERLOADED = 0x102  # no slot and no room in the queue; retry elsewhere or later
    MODEL_NOT_FOUND = 0x103
    FEATURE_NOT_SUPPORTED = 0x104
    BAD_REQUEST = 0x105  # the engine or the node says the request itself is wrong; do not retry
    ENGINE_FAILED = 0x106  # the engine died, hung or answered rubbish; may be retried elsewhere
    HOPS_EXCEEDED = 0x107  # the request came round in a loop or too far
    DRAINING = 0x108  # the node is leaving; retry elsewhere
    UNREACHABLE = 0x109  # no connection to the peer could be had
    INSUFFICIENT_MEMORY = 0x10A  # the node has less memory than the request asks for; may be tried elsewhere
    SEAL_REFUSED = 0x10B  # a sealed request or answer that cannot be opened: sealed to another key, or altered on its way
    RELAY_REFUSED = 0x10C  # the peer passes nothing on, or nothing more at present; another way or another peer may do


RETRYABLE = frozenset(
    {
        ErrorCode.INTERNAL,
        ErrorCode.OVERLOADED,
        ErrorCode.MODEL_NOT_FOUND,
        ErrorCode.FEATURE_NOT_SUPPORTED,
        ErrorCode.ENGINE_FAILED,
        ErrorCode.DRAINING,
        ErrorCode.UNREACHABLE,
        ErrorCode.INSUFFICIENT_MEMORY,
        ErrorCode.SEAL_REFUSED,
        ErrorCode.RELAY_REFUSED,
    }
)
"""Codes after which the next candidate may still answer, provided that nothing was delivered to the caller yet."""


class ProtocolError(Exception):
    """A protocol fault with its code and a sentence on what was wrong."""

    def __init__(self, code: ErrorCode, detail: str = "") -> None:
        super().__init__(f"{code.name.lower()}: {detail}" if detail else code.name.lower())
        self.code = code
        self.detail = detail


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; it is scored, and its stream or connection ends with `code`."""


class LocalProtocolError(ProtocolError):
    """The caller asked for something the protocol does not allow in this state."""
