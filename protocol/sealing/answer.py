"""An answer sealed in numbered chunks, the last of which says so.

Each chunk has the next number, counted from 0, in its head and in its nonce; the head is bound to the ciphertext. So whoever
opens the answer sees a chunk that was altered or belongs to another answer, one that came before its time or twice, and an end
that is not the end. All of these are faults on the way, and say nothing of whether the executor or a relay is to blame.

Source: RFC 9458 section 4.4 (keys from an exported secret and a nonce of the responder); V. T. Hoang et al., "Online
Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance" (CRYPTO 2015), the STREAM construction.
Spec: docs/spec/10-sealing.md, section "Sealed answer".
"""

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import AEAD_KEY_BYTES, AEAD_NONCE_BYTES, AeadKey, hkdf_expand, hkdf_extract
from protocol.sealing.frames import (
    ANSWER_NONCE_BYTES,
    CHUNK_BYTES_MAX,
    CHUNK_CONTENT_BYTES_MAX,
    NUMBER_MAX,
    PAD_BYTES,
    Begun,
    Chunk,
    Refused,
    chunk_head,
    decode_answer_frame,
    encode_answer_frame,
    padded,
    unpadded,
)


class AnswerSealer:
    """The executor's end: pieces of an answer in, frames out."""

    __slots__ = ("_key", "_nonce", "_number", "pad_bytes")

    def __init__(self, encapsulated: bytes, secret: bytes, nonce: bytes, pad_bytes: int = PAD_BYTES) -> None:
        """Makes the keys.

        Args:
            encapsulated: of the request.
            secret: that both ends export from it.
            nonce: `ANSWER_NONCE_BYTES` bytes drawn for this answer.
            pad_bytes: what chunks are padded to a multiple of; 1 for no padding.
        """
        assert len(nonce) == ANSWER_NONCE_BYTES, f"an answer's nonce of {len(nonce)} bytes"
        self._nonce = nonce
        self._key = _answer_key(encapsulated, secret, nonce)
        self._number = -1
        self.pad_bytes = pad_bytes

    def seal(self, content: bytes | memoryview, *, is_final: bool) -> list[bytes]:
        """The frames that carry the next piece of the answer; the first call's begin with what the keys are made of.

        Args:
            content: the piece; may be empty, for an end alone.
            is_final: whether it is the last.
        """
        frames: list[bytes] = []
        if self._number < 0:
            frames.append(encode_answer_frame(Begun(self._nonce)))
            self._number = 0
        view = memoryview(content)
        while True:
            piece, view = bytes(view[:CHUNK_CONTENT_BYTES_MAX]), view[CHUNK_CONTENT_BYTES_MAX:]
            ends = is_final and not view
            if piece or ends:
                assert self._number <= NUMBER_MAX, "an answer of 2^32 chunks"
                head = chunk_head(self._number, is_final=ends)
                frames.append(head + self._key.seal(self._number, head, padded(piece, self.pad_bytes)))
                self._number += 1
            if not view:
                return frames


class AnswerOpener:
    """The requester's end: frames in, pieces of the answer out."""

    __slots__ = ("_encapsulated", "_key", "_number", "_secret", "ended")

    def __init__(self, encapsulated: bytes, secret: bytes) -> None:
        """Waits for the executor's nonce.

        Args:
            encapsulated: of the request.
            secret: that both ends export from it.
        """
        self._encapsulated = encapsulated
        self._secret = secret
        self._key: AeadKey | None = None
        self._number = 0
        self.ended = False
        """Whether the final chunk has been opened."""

    def receive(self, frame: bytes) -> bytes | Refused:
        """Open the next frame.

        Returns:
            A piece of the answer, which may be empty; or the refusal that stands in the answer's place.

        Raises:
            RemoteProtocolError: SEAL_REFUSED, for a chunk that does not open; MALFORMED, for one out of its order or repeated,
                a second beginning, a refusal in mid-answer, anything after the final chunk, and what is no frame.
        """
        if self.ended:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "a frame after the final chunk of a sealed answer")
        match decode_answer_frame(frame):
            case Begun(nonce):
                if self._key is not None:
                    raise RemoteProtocolError(ErrorCode.MALFORMED, "a sealed answer that begins twice")
                self._key = _answer_key(self._encapsulated, self._secret, nonce)
                return b""
            case Refused() as refused:
                if self._key is not None:
                    raise RemoteProtocolError(ErrorCode.MALFORMED, "a refusal inside a sealed answer")
                self.ended = True
                return refused
            case Chunk() as chunk:
                return self._open(chunk)

    def finish(self) -> None:
        """Say that the stream has ended.

        Raises:
            RemoteProtocolError: MALFORMED, when the final chunk has not come: the answer was cut off.
        """
        if not self.ended:
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"a sealed answer that is cut off after {self._number} chunks")

    def _open(self, chunk: Chunk) -> bytes:
        if self._key is None:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "a chunk before the beginning of its sealed answer")
        if len(chunk.ciphertext) > CHUNK_BYTES_MAX:
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a chunk of {len(chunk.ciphertext)} bytes")
        head = chunk_head(chunk.number, is_final=chunk.is_final)
        message = self._key.open(chunk.number, head, chunk.ciphertext)
        if message is None:
            raise RemoteProtocolError(
                ErrorCode.SEAL_REFUSED, f"chunk {chunk.number} of a sealed answer was altered or belongs to another answer"
            )
        if chunk.number != self._number:
            what = "repeated" if chunk.number < self._number else "out of its order"
            raise RemoteProtocolError(
                ErrorCode.MALFORMED, f"chunk {chunk.number} of a sealed answer is {what}; {self._number} was to come"
            )
        self._number += 1
        self.ended = chunk.is_final
        return unpadded(message)


def _answer_key(encapsulated: bytes, secret: bytes, nonce: bytes) -> AeadKey:
    extracted = hkdf_extract(encapsulated + nonce, secret)
    return AeadKey(hkdf_expand(extracted, b"key", AEAD_KEY_BYTES), hkdf_expand(extracted, b"nonce", AEAD_NONCE_BYTES))
