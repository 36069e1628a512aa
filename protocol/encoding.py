"""The small encodings under everything else: unsigned varints, length-prefixed frames, base58btc and base32; and the luck seam.

Varints follow the multiformats rules: little-endian groups of seven bits, at most nine bytes, and only the shortest form. A frame
is a varint length and that many bytes. The two text encodings serve peer ids; text comes from people, so what is wrong with it
is a `LocalProtocolError`, while wrong bytes come from peers and are a `RemoteProtocolError`.

Source: multiformats/unsigned-varint; multiformats/multibase; RFC 4648 section 6.
Spec: docs/spec/00-conventions.md, sections "Varints" and "Frames".
"""

import base64
import binascii
from collections.abc import MutableSequence, Sequence
from typing import Protocol, TypeVar

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError

UVARINT_BYTES_MAX = 9
"""Longest varint in bytes: 63 bits of value, the bound of multiformats/unsigned-varint."""

PIECE_JOINED_BYTES_MAX = 4096
"""Pieces of a frame are joined up to this many bytes, so that a peer who sends byte by byte costs little more than its bytes."""

UVARINT_MAX = (1 << 63) - 1
"""Largest value of a varint, unitless: what nine bytes of seven bits hold."""

BASE_TEXT_CHARACTERS_MAX = 128
"""Longest base58btc or base32 text in characters: a peer id needs 68; decoding base58 costs the square of the length."""

BASE58_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
"""The base58btc alphabet: digits and letters without 0, O, I and l (multiformats/multibase, code `z`)."""

_BASE58_VALUES = {character: value for value, character in enumerate(BASE58_ALPHABET)}

_T = TypeVar("_T")


class Luck(Protocol):
    """The randomness that is handed in; `random.Random` has this shape, and a seeded one makes a run repeatable."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between `a` and `b`."""
        ...

    def randrange(self, start: int, /) -> int:
        """Return an integer in [0, start)."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """Return an integer of `k` random bits."""
        ...

    def choice(self, seq: Sequence[_T], /) -> _T:
        """Return one element of a sequence that is not empty."""
        ...

    def sample(self, population: Sequence[_T], k: int) -> list[_T]:
        """Return `k` different elements."""
        ...

    def shuffle(self, x: MutableSequence[_T], /) -> None:
        """Put the elements into a random order in place."""
        ...


def encode_uvarint(value: int) -> bytes:
    """Encode `value`, 0 to `UVARINT_MAX`, in its shortest form.

    Source: multiformats/unsigned-varint.
    """
    assert 0 <= value <= UVARINT_MAX, f"{value} does not fit a varint"
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(0x80 | (value & 0x7F))
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def peek_uvarint(buffer: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int] | None:
    """Decode the varint at `offset` if all of it is there.

    Returns:
        The value and the offset after it, or None when more bytes are needed.

    Raises:
        RemoteProtocolError: MALFORMED, for more than nine bytes or a form that is not the shortest.
    """
    value = 0
    for index in range(UVARINT_BYTES_MAX):
        position = offset + index
        if position >= len(buffer):
            return None
        byte = buffer[position]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index > 0:
                raise RemoteProtocolError(ErrorCode.MALFORMED, "a varint is not in its shortest form")
            return value, position + 1
    raise RemoteProtocolError(ErrorCode.MALFORMED, f"a varint is longer than {UVARINT_BYTES_MAX} bytes")


def decode_uvarint(buffer: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int]:
    """Decode the varint at `offset` of a complete message.

    Returns:
        The value and the offset after it.

    Raises:
        RemoteProtocolError: MALFORMED, as `peek_uvarint` and also when the buffer ends inside the varint.
    """
    result = peek_uvarint(buffer, offset)
    if result is None:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "the message ends inside a varint")
    return result


def encode_frame(payload: bytes | bytearray | memoryview) -> bytes:
    """Put the varint length before `payload`."""
    return encode_uvarint(len(payload)) + bytes(payload)


class FrameDecoder:
    """Cuts a byte stream into length-prefixed frames.

    Bytes go in by `receive`, frames come out by `next_frame` until it returns None. What is buffered is bounded by the caller,
    who drains after each `receive`: at most one unfinished frame and the bytes just received are held. They are kept in the
    pieces in which they came, so that a frame is copied once.
    """

    __slots__ = ("_at", "_frame_bytes_max", "_pieces", "_size", "_wanted")

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._pieces: list[bytes] = []
        self._at = 0  # where in the first piece that begins which is not used yet
        self._size = 0
        self._wanted = 1  # bytes to have before it is worth to look again

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes as they came from the stream."""
        n_bytes, pieces = len(data), self._pieces
        if pieces and len(pieces[-1]) + n_bytes <= PIECE_JOINED_BYTES_MAX:
            pieces[-1] += data
        elif n_bytes:
            pieces.append(bytes(data))
        self._size += n_bytes

    def next_frame(self) -> bytes | None:
        """Return the next frame without its length, or None when more bytes are needed.

        Raises:
            RemoteProtocolError: TOO_LARGE as soon as a length over the limit is read; MALFORMED for a bad varint.
        """
        if self._size < self._wanted:
            return None
        head = peek_uvarint(self._pieces[0], self._at)
        if head is None and len(self._pieces) > 1:
            self._pieces[:2] = [self._pieces[0][self._at :] + self._pieces[1]]
            self._at = 0
            head = peek_uvarint(self._pieces[0])
        if head is None:
            return None
        length, start = head
        if length > self._frame_bytes_max:
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a frame of {length} bytes; the limit is {self._frame_bytes_max}")
        end = start + length
        if self._at + self._size < end:
            self._wanted = end - self._at
            return None
        self._size -= end - self._at
        self._wanted = 1
        return self._cut(start, end)

    def _cut(self, start: int, end: int) -> bytes:
        """Take out the bytes from `start` to `end` of the pieces, which are there, and forget those before."""
        pieces = self._pieces
        if end <= len(pieces[0]):
            frame, n_used, self._at = pieces[0][start:end], 0, end
        else:
            parts: list[bytes | memoryview] = [memoryview(pieces[0])[start:]]
            left, n_used = end - len(pieces[0]), 1
            while len(pieces[n_used]) < left:
                parts.append(pieces[n_used])
                left -= len(pieces[n_used])
                n_used += 1
            parts.append(memoryview(pieces[n_used])[:left])
            frame, self._at = b"".join(parts), left
        if self._at == len(pieces[n_used]):
            n_used, self._at = n_used + 1, 0
        del pieces[:n_used]
        return frame

    @property
    def buffered_bytes(self) -> int:
        """Bytes received that no frame was made of yet."""
        return self._size

    def take_rest(self) -> bytes:
        """Hand over the bytes not yet used and forget them."""
        rest = b"".join(self._pieces)[self._at :]
        self._pieces.clear()
        self._at, self._size, self._wanted = 0, 0, 1
        return rest

    def finish(self) -> None:
        """Say that the stream ended.

        Raises:
            RemoteProtocolError: MALFORMED, when it ended inside a frame.
        """
        if self._size:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "the stream ends inside a frame")


def encode_base58btc(data: bytes) -> str:
    """Encode bytes as base58btc without a multibase prefix; each leading zero byte becomes a `1`."""
    number = int.from_bytes(data, "big")
    characters: list[str] = []
    while number:
        number, digit = divmod(number, 58)
        characters.append(BASE58_ALPHABET[digit])
    zeros = len(data) - len(data.lstrip(b"\x00"))
    return "1" * zeros + "".join(reversed(characters))


def decode_base58btc(text: str) -> bytes:
    """Decode base58btc text of at most `BASE_TEXT_CHARACTERS_MAX` characters without a multibase prefix.

    Raises:
        LocalProtocolError: MALFORMED, naming the character that is not in the alphabet, or for text that is too long.
    """
    _check_text_length(text)
    number = 0
    for character in text:
        value = _BASE58_VALUES.get(character)
        if value is None:
            raise LocalProtocolError(ErrorCode.MALFORMED, f"{character!r} does not occur in base58 text")
        number = number * 58 + value
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def encode_base32(data: bytes) -> str:
    """Encode bytes as lower-case base32 without padding and without a multibase prefix."""
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def decode_base32(text: str, characters_max: int = BASE_TEXT_CHARACTERS_MAX) -> bytes:
    """Decode lower-case base32 text of at most `characters_max` characters without padding and prefix.

    Raises:
        LocalProtocolError: MALFORMED, for another character, an impossible length or spare bits that are not zero.
    """
    _check_text_length(text, characters_max)
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError) as fault:
        raise LocalProtocolError(ErrorCode.MALFORMED, "the text is not base32") from fault
    if encode_base32(data) != text:
        raise LocalProtocolError(ErrorCode.MALFORMED, "the text is not lower-case base32 in its only form")
    return data


def _check_text_length(text: str, characters_max: int = BASE_TEXT_CHARACTERS_MAX) -> None:
    if len(text) > characters_max:
        detail = f"the text has {len(text)} characters; the limit is {characters_max}"
        raise LocalProtocolError(ErrorCode.MALFORMED, detail)
