"""Frames into memory of their own: each message is read where it will be used, and moved nowhere afterwards.

The length of a frame tells how much room its message needs; the rest of the message is then received straight into that room, and
the tensors of a request are views of it. `FrameDecoder` serves streams whose bytes come in pieces of another's choosing; here the
reader says where the next bytes go.

Spec: docs/spec/00-conventions.md, section "Frames"; docs/performance.md, section "Copies".
"""

import numpy as np

from protocol.encoding import peek_uvarint
from protocol.errors import ErrorCode, RemoteProtocolError

HEAD_BYTES = 4
"""Bytes read to learn the length of a frame: the longest varint of a length below 2^28; what follows it begins the message."""

MESSAGE_BYTES_MIN = 3
"""Shortest message that is taken, in bytes: with its length it fills the head. The shortest request has a hundred."""


class FrameReader:
    """Turns received bytes into messages, each in memory of its own.

    Receive into `room()` and tell `took()` how many bytes came; it returns the message once all of it is there.
    """

    __slots__ = ("_at", "_bytes_max", "_head", "_message")

    def __init__(self, bytes_max: int) -> None:
        """Take messages of at most so many bytes, fewer than 2^28."""
        assert bytes_max < 1 << 28, "the head of a frame has four bytes"
        self._bytes_max = bytes_max
        self._head = memoryview(bytearray(HEAD_BYTES))
        self._message: memoryview | None = None
        self._at = 0

    @property
    def begun(self) -> bool:
        """Whether part of a frame has come and the rest has not."""
        return self._at > 0

    def room(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return (self._head if self._message is None else self._message)[self._at :]

    def took(self, n_bytes: int) -> memoryview | None:
        """Note that so many bytes have come into `room()`; return the whole message that they complete, if any.

        Raises:
            RemoteProtocolError: TOO_LARGE for a length over the limit; MALFORMED for a bad length or too short a message.
        """
        self._at += n_bytes
        if self._message is None:
            head = peek_uvarint(self._head[: self._at])
            if head is None:
                if self._at == HEAD_BYTES:
                    raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a frame of more than {self._bytes_max} bytes")
                return None
            length, start = head
            if length > self._bytes_max:
                raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a frame of {length} bytes; the limit is {self._bytes_max}")
            if length < MESSAGE_BYTES_MIN:
                raise RemoteProtocolError(ErrorCode.MALFORMED, f"a frame of {length} bytes")
            # Not a bytearray, which is written full of zeros first: this takes memory only where bytes come.
            self._message = np.empty(length, np.uint8).data
            n_begun = self._at - start
            self._message[:n_begun] = self._head[start : self._at]
            self._at = n_begun
        if self._at < len(self._message):
            return None
        message, self._message, self._at = self._message, None, 0
        return message


def without(pieces: list[bytes | memoryview], n_bytes: int) -> list[bytes | memoryview]:
    """What is left to be sent of some pieces once so many of their bytes have been."""
    for index, piece in enumerate(pieces):
        if n_bytes < len(piece):
            return [memoryview(piece)[n_bytes:], *pieces[index + 1 :]]
        n_bytes -= len(piece)
    return []
