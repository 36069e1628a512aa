"""What stands on the streams of a sealed request: the header that a relay reads, and the frames of a sealed answer.

A header is all that a relay learns in words: which request it is, how long it may take, how often it may still be passed on, and
who is at the other end. On the way to the relay that is the executor, on the way from it the requester, as TLS has proven it to
the relay. Everything else is sealed.

Spec: docs/spec/10-sealing.md, sections "Header" and "Answer frames".
"""

from dataclasses import dataclass
from typing import assert_never

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import (
    AEAD_TAG_BYTES,
    PEER_ID_BYTES_MAX,
    SEALING_KEY_BYTES,
    SIGNATURE_BYTES,
    PeerId,
    peer_id_from_bytes,
)

RELAY_PROTOCOL = "/isochrone/relay/1.0.0"
"""The stream from a requester to a relay (docs/spec/10-sealing.md)."""

SEALED_PROTOCOL = "/isochrone/sealed/1.0.0"
"""The stream from a relay to an executor (docs/spec/10-sealing.md)."""

REQUEST_ID_BYTES = 16
"""Length of a request id in bytes, as in chapter 6."""

DEADLINE_US_MAX = 3_600_000_000
"""Longest deadline in microseconds: an hour, as in chapter 6."""

HEADER_BYTES_MAX = REQUEST_ID_BYTES + 5 + PEER_ID_BYTES_MAX
"""Longest header in bytes."""

PAD_BYTES = 256
"""What sealed messages are padded to a multiple of, in bytes, so that their lengths tell little: a token is as long as a word."""

PAD_BYTES_MAX = 64 * 1024
"""Most padding that is accepted beyond what a message holds, in bytes."""

LENGTH_BYTES = 4
"""Length in bytes of the length that stands before padded content."""

REQUEST_BYTES_MAX = 8 * 1024 * 1024
"""Largest request inside a seal in bytes, as in chapter 6."""

SEALED_BYTES_MAX = SEALING_KEY_BYTES + LENGTH_BYTES + SIGNATURE_BYTES + REQUEST_BYTES_MAX + PAD_BYTES_MAX + AEAD_TAG_BYTES
"""Largest sealed request in bytes."""

CHUNK_CONTENT_BYTES_MAX = 32 * 1024
"""Most bytes of an answer in one chunk: large answers begin to be read before they have all come."""

CHUNK_BYTES_MAX = LENGTH_BYTES + CHUNK_CONTENT_BYTES_MAX + PAD_BYTES_MAX + AEAD_TAG_BYTES
"""Largest sealed content of one chunk in bytes."""

CARD_BYTES_MAX = 4096
"""Largest card that a refusal brings in bytes, as in chapter 3."""

NUMBER_MAX = 2**32 - 1
"""Largest number of a chunk, a count."""

ANSWER_NONCE_BYTES = 32
"""Length of what the executor draws for each answer in bytes: the longer of key and nonce, as RFC 9458 section 4.4 asks."""

ANSWER_FRAME_BYTES_MAX = 6 + CHUNK_BYTES_MAX
"""Largest frame of an answer in bytes."""

# The kinds of frame, the first byte of each.
_BEGUN = 1
_CHUNK = 2  # as above
_REFUSED = 3  # as above
# The flags of a chunk.
_FINAL = 1

_CODES = {code.value: code for code in ErrorCode}


@dataclass(frozen=True, slots=True)
class Header:
    """What a relay reads.

    Attributes:
        request_id: `REQUEST_ID_BYTES` bytes.
        deadline_s: seconds left when it was handed over, more than 0.
        hop: how often it may still be passed on: 1 to a relay, 0 to an executor.
        far_end: the executor, on the way to a relay; the requester, on the way from it.
    """

    request_id: bytes
    deadline_s: float
    hop: int
    far_end: PeerId


@dataclass(frozen=True, slots=True)
class Begun:
    """The executor has opened the request; its answer's keys are made of this."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a sealed answer; numbers count from 0."""

    number: int
    is_final: bool
    ciphertext: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing comes: the relay or the executor refuses, and nothing proves which. `card` is the executor's newest, or empty."""

    code: ErrorCode
    card: bytes = b""


AnswerFrame = Begun | Chunk | Refused
"""A frame of a sealed answer."""


def encode_header(header: Header) -> bytes:
    """Write a header."""
    assert len(header.request_id) == REQUEST_ID_BYTES, "a request id has 16 bytes"
    deadline_us = min(max(1, round(header.deadline_s * 1e6)), DEADLINE_US_MAX)
    return header.request_id + deadline_us.to_bytes(4, "big") + bytes((header.hop,)) + header.far_end


def decode_header(data: bytes) -> Header:
    """Read a header.

    Raises:
        RemoteProtocolError: MALFORMED, for anything else.
    """
    if len(data) <= REQUEST_ID_BYTES + 5:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a relay header of {len(data)} bytes")
    deadline_us = int.from_bytes(data[REQUEST_ID_BYTES : REQUEST_ID_BYTES + 4], "big")
    if not 0 < deadline_us <= DEADLINE_US_MAX:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a deadline of {deadline_us} us")
    far_end = peer_id_from_bytes(data[REQUEST_ID_BYTES + 5 :])
    return Header(data[:REQUEST_ID_BYTES], deadline_us / 1e6, data[REQUEST_ID_BYTES + 4], far_end)


def encode_answer_frame(frame: AnswerFrame) -> bytes:
    """Write a frame of an answer, without its length."""
    match frame:
        case Begun(nonce):
            return bytes((_BEGUN,)) + nonce
        case Chunk(number, is_final, ciphertext):
            return chunk_head(number, is_final=is_final) + ciphertext
        case Refused(code, card):
            return bytes((_REFUSED,)) + code.to_bytes(2, "big") + card
        case _:
            assert_never(frame)


def chunk_head(number: int, *, is_final: bool) -> bytes:
    """What stands before a chunk's ciphertext, which is bound to it."""
    return bytes((_CHUNK, _FINAL if is_final else 0)) + number.to_bytes(4, "big")


def decode_answer_frame(data: bytes) -> AnswerFrame:
    """Read a frame of an answer.

    Raises:
        RemoteProtocolError: MALFORMED, for what is none; TOO_LARGE, for a card that is too long.
    """
    kind = data[:1]
    if kind == bytes((_BEGUN,)) and len(data) == 1 + ANSWER_NONCE_BYTES:
        return Begun(data[1:])
    if kind == bytes((_CHUNK,)) and len(data) >= 6 + AEAD_TAG_BYTES and data[1] <= _FINAL:
        return Chunk(int.from_bytes(data[2:6], "big"), data[1] == _FINAL, data[6:])
    if kind == bytes((_REFUSED,)) and len(data) >= 3:
        if len(data) > 3 + CARD_BYTES_MAX:
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a refusal of {len(data)} bytes")
        return Refused(_CODES.get(int.from_bytes(data[1:3], "big"), ErrorCode.INTERNAL), data[3:])
    raise RemoteProtocolError(ErrorCode.MALFORMED, f"{len(data)} bytes that are no frame of a sealed answer")


def padded(content: bytes, pad_bytes: int) -> bytes:
    """Content with its length before it and zeros behind it, up to a multiple of `pad_bytes`; 1 pads nothing."""
    length = LENGTH_BYTES + len(content)
    return len(content).to_bytes(LENGTH_BYTES, "big") + content + bytes(-length % pad_bytes)


def unpadded(message: bytes) -> bytes:
    """The content of a padded message.

    Raises:
        RemoteProtocolError: MALFORMED, for a length past the message, too much padding, or padding that is not zero.
    """
    end = LENGTH_BYTES + int.from_bytes(message[:LENGTH_BYTES], "big")
    if len(message) < LENGTH_BYTES or not end <= len(message) <= end + PAD_BYTES_MAX or any(message[end:]):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a sealed message whose padding is wrong")
    return message[LENGTH_BYTES:end]
