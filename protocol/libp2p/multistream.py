"""Agreeing on the protocol of a stream: multistream-select 1.0, both ends, without I/O.

Each message is a varint length, text and a newline. Both ends send the header; the initiator proposes protocols one after the
other, the listener echoes the first one it speaks and answers `na` to the rest. An initiator with one proposal may send its first
data at once behind `data_to_send`; a listener therefore keeps the bytes behind the agreed proposal for the protocol's handler.

Source: multiformats/multistream-select; libp2p/specs connections/README.md, section "multistream-select".
Spec: docs/spec/02-transport.md, section "Protocol negotiation".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError

MULTISTREAM_PROTOCOL = "/multistream/1.0.0"
"""The header that both ends send first."""

NOT_AVAILABLE = "na"
"""The listener's answer to a proposal it does not speak."""

ONE_BYTE_LENGTH_MAX = 127
"""Longest message in bytes whose length takes one byte (multiformats/unsigned-varint); names of protocols are shorter."""

OPENINGS_MAX = 64
"""Names of protocols whose first bytes are kept, a count: a node proposes some ten."""

_END = b"\n"
"""What every message ends with; its length counts it."""


@dataclass(frozen=True, slots=True)
class MultistreamConfig:
    """Bounds of one negotiation.

    Attributes:
        message_bytes_max: largest message in bytes, newline included; go-libp2p allows 64 KiB, no protocol id needs 1 KiB.
        proposals_max: most proposals that a listener answers before it gives up; an honest initiator knows few versions.
    """

    message_bytes_max: int = 1024
    proposals_max: int = 16


class Initiator:
    """The end that opened the stream."""

    __slots__ = ("_agreed", "_decoder", "_header_seen", "_message_bytes_max", "_out", "_proposals")

    def __init__(self, protocol_ids: Sequence[str], config: MultistreamConfig = MultistreamConfig()) -> None:
        assert protocol_ids, "nothing to propose"
        self._proposals = list(protocol_ids)
        self._decoder = FrameDecoder(config.message_bytes_max)
        self._message_bytes_max = config.message_bytes_max
        self._out = bytearray(_opening(self._proposals[0]))
        self._header_seen = False
        self._agreed: str | None = None

    @property
    def agreed(self) -> str | None:
        """The protocol both ends speak, None until it is known."""
        return self._agreed

    def data_to_send(self) -> bytes:
        """Take the bytes that must go out now, empty when there are none."""
        return _take(self._out)

    def receive_data(self, data: bytes) -> str | None:
        """Take bytes as they came from the stream, until a protocol is agreed.

        Returns:
            The agreed protocol, or None when more bytes are needed; look at `data_to_send` after each call.

        Raises:
            RemoteProtocolError: UNSUPPORTED, when the listener speaks none of the proposals; MALFORMED or TOO_LARGE.
        """
        assert self._agreed is None, "the negotiation is over"
        if (
            not self._header_seen
            and not self._decoder.buffered_bytes
            and data.startswith(opening := _opening(self._proposals[0]))
            and max(_HEADER[0], len(self._proposals[0]) + len(_END)) <= self._message_bytes_max
        ):
            self._agreed = self._proposals[0]  # as nearly always
            self._decoder.receive(data[len(opening) :])
            return self._agreed
        self._decoder.receive(data)
        while self._agreed is None and (text := _next_text(self._decoder)) is not None:
            if not self._header_seen:
                _check_header(text)
                self._header_seen = True
            elif text == self._proposals[0]:
                self._agreed = text
            elif text == NOT_AVAILABLE:
                refused = self._proposals.pop(0)
                if not self._proposals:
                    raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"the peer does not speak {refused}")
                self._out += _encode(self._proposals[0])
            else:
                raise RemoteProtocolError(ErrorCode.MALFORMED, "the peer agrees to a protocol that was not proposed")
        return self._agreed

    def receive_eof(self) -> None:
        """Say that the peer ended its side.

        Raises:
            RemoteProtocolError: MALFORMED, when nothing was agreed yet.
        """
        _check_end(self._agreed)

    def take_rest(self) -> bytes:
        """Take the bytes that came behind the agreement; they belong to the protocol's handler."""
        return self._decoder.take_rest()


class Listener:
    """The end that accepted the stream."""

    __slots__ = ("_agreed", "_config", "_decoder", "_header_seen", "_out", "_refused", "_speaks")

    def __init__(self, speaks: Callable[[str], bool], config: MultistreamConfig = MultistreamConfig()) -> None:
        self._speaks = speaks
        self._config = config
        self._decoder = FrameDecoder(config.message_bytes_max)
        self._out = bytearray()
        self._header_seen = False
        self._refused = 0
        self._agreed: str | None = None

    @property
    def agreed(self) -> str | None:
        """The protocol both ends speak, None until it is known."""
        return self._agreed

    def data_to_send(self) -> bytes:
        """Take the bytes that must go out now, empty when there are none."""
        return _take(self._out)

    def receive_data(self, data: bytes) -> str | None:
        """Take bytes as they came from the stream, until a protocol is agreed.

        Returns:
            The agreed protocol, or None when more bytes are needed; look at `data_to_send` after each call.

        Raises:
            RemoteProtocolError: UNSUPPORTED, when the initiator proposes too many unknown protocols; MALFORMED or TOO_LARGE.
        """
        assert self._agreed is None, "the negotiation is over"
        if not self._header_seen and not self._decoder.buffered_bytes and (end := self._opened_by(data)):
            self._out += data[:end]  # which is just what agrees to it
            self._decoder.receive(data[end:])
            return self._agreed
        self._decoder.receive(data)
        while self._agreed is None and (text := _next_text(self._decoder)) is not None:
            if not self._header_seen:
                _check_header(text)
                self._header_seen = True
                self._out += _encode(MULTISTREAM_PROTOCOL)
            elif text.startswith("/") and self._speaks(text):
                self._agreed = text
                self._out += _encode(text)
            else:
                self._refused += 1
                if self._refused > self._config.proposals_max:
                    raise RemoteProtocolError(
                        ErrorCode.UNSUPPORTED, f"more than {self._config.proposals_max} proposals were refused"
                    )
                self._out += _encode(NOT_AVAILABLE)
        return self._agreed

    def _opened_by(self, data: bytes) -> int:
        """Agree where a negotiation begins as nearly all do, with the header and a protocol that is spoken; how long that is."""
        start = len(_HEADER)
        if not data.startswith(_HEADER) or len(data) == start or _HEADER[0] > self._config.message_bytes_max:
            return 0
        end = start + 1 + data[start]
        name = data[start + 1 : end]
        if data[start] > min(ONE_BYTE_LENGTH_MAX, self._config.message_bytes_max) or len(data) < end or not name.endswith(_END):
            return 0
        text = name[: -len(_END)].decode("ascii", "replace")
        if not text.startswith("/") or not text.isascii() or not self._speaks(text):
            return 0
        self._agreed = text
        return end

    def receive_eof(self) -> None:
        """Say that the peer ended its side.

        Raises:
            RemoteProtocolError: MALFORMED, when nothing was agreed yet.
        """
        _check_end(self._agreed)

    def take_rest(self) -> bytes:
        """Take the bytes that came behind the proposal; they belong to the protocol's handler."""
        return self._decoder.take_rest()


def _encode(text: str) -> bytes:
    return encode_frame(text.encode() + _END)


_HEADER = _encode(MULTISTREAM_PROTOCOL)


@lru_cache(OPENINGS_MAX)
def _opening(protocol_id: str) -> bytes:
    """What both ends send where the first proposal is spoken."""
    return _HEADER + _encode(protocol_id)


def _next_text(decoder: FrameDecoder) -> str | None:
    frame = decoder.next_frame()
    if frame is None:
        return None
    if not frame.endswith(_END):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a multistream message does not end with a newline")
    try:
        return frame[: -len(_END)].decode()
    except UnicodeDecodeError as fault:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a multistream message is not UTF-8") from fault


def _check_header(text: str) -> None:
    if text != MULTISTREAM_PROTOCOL:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"the stream does not start with {MULTISTREAM_PROTOCOL}")


def _check_end(agreed: str | None) -> None:
    if agreed is None:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "the stream ended before a protocol was agreed")


def _take(out: bytearray) -> bytes:
    data = bytes(out)
    out.clear()
    return data
