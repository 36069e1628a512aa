"""HTTP/1.1 on one connection, stricter than the library beneath: one reading of a message, or none.

h11 lets lines end in LF alone, headers go on in the next line, and chunks carry extensions of any length. Two programs that read
such a message differently can be led to see different requests in it, and no client of ours sends any of it, so it is refused
here: the connection gets one answer, 400 with a reason, and is closed. What h11 refuses itself gets the same shape.

Source: RFC 9112, sections 2.2, 5.2, 7.1.1 and 11.2; h11 0.16, `h11/_receivebuffer.py`; hypercorn 0.18,
`hypercorn/protocol/h11.py`, whose private names used here are held by a test.
"""

import json
import re
from collections.abc import Callable
from itertools import chain

import h11
from h11._receivebuffer import ReceiveBuffer
from hypercorn.events import RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer

from mesh.gateway.failures import ApiError

CHUNK_LINE_BYTES_MAX = 64
"""Longest line that begins a chunk, in bytes: sixteen digits and a little; clients send no extensions."""

LINES_MAX = 128
"""Most lines of a head or a trailer, a count: browsers send about 30 headers."""

_LONE_LF = re.compile(rb"(?<!\r)\n")
_LONE_CR = re.compile(rb"\r(?!\n)")
_FOLD = re.compile(rb"\n[ \t]")

_CODES = {400: "bad_http", 431: "headers_too_large", 501: "transfer_encoding", 505: "http_version"}
"""Codes of refusals that come from below the application, by status."""

_REASONS = {
    400: "This is not HTTP/1.1 as RFC 9112 has it.",
    431: "The headers are larger than this gateway reads.",
    501: "This gateway reads no transfer coding but chunked.",
    505: "This gateway speaks HTTP/1.1.",
}


class StrictBuffer(ReceiveBuffer):
    """What h11 reads lines from; refuses those that others could read differently."""

    def __init__(self) -> None:
        super().__init__()
        self._taken = bytearray()

    def _extract(self, count: int) -> bytearray:
        self._taken = super()._extract(count)
        return self._taken

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a head or a trailer, once it is complete.

        Raises:
            h11.LocalProtocolError: h11's word, inside a reader, for what the peer did wrong.
        """
        lines = super().maybe_extract_lines()
        if lines is None:
            return None
        head = self._taken
        if _LONE_LF.search(head) or _LONE_CR.search(head) or _FOLD.search(head):
            raise h11.LocalProtocolError("a line that ends or goes on as no line should", error_status_hint=400)
        if len(lines) > LINES_MAX:
            raise h11.LocalProtocolError(f"more than {LINES_MAX} headers", error_status_hint=431)
        return lines

    def maybe_extract_next_line(self) -> bytearray | None:
        """The line that begins a chunk, once it is complete; raises like `maybe_extract_lines`."""
        line = super().maybe_extract_next_line()
        if len(self if line is None else line) > CHUNK_LINE_BYTES_MAX:
            raise h11.LocalProtocolError("a chunk with extensions", error_status_hint=400)
        return line


class StrictProtocol(H11Protocol):  # type: ignore[misc]  # hypercorn is not typed
    """Hypercorn's HTTP/1.1 with a strict buffer, and a reason in what it refuses.

    The head of an answer waits for the first of its body and leaves in one write with it: each write wakes the client.
    """

    refused: Callable[[str], None]
    _head: bytes = b""

    async def _send_h11_event(self, event: h11.Event) -> None:
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data
            return
        head, self._head = self._head, b""
        if head or data:
            await self.send(RawData(data=head + data))

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.method == b"PRI":  # from a client that took this for HTTP/2 and understands a refusal in no other
            await super()._check_protocol(event)

    async def _send_error_response(self, status_code: int) -> None:
        error = ApiError(status_code, _CODES.get(status_code, "bad_http"), _REASONS.get(status_code, _REASONS[400]), retry=False)
        body = json.dumps(error.body()).encode()
        told = {**error.headers(), "content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        headers = [(name.encode(), value.encode()) for name, value in told.items()]
        self.refused(error.code)
        await self._send_h11_event(
            h11.Response(status_code=status_code, headers=list(chain(headers, self.config.response_headers("h11"))))
        )
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


class StrictServer(TCPServer):  # type: ignore[misc]  # hypercorn is not typed
    """Hypercorn's server of one connection, which gets a strict protocol wherever hypercorn makes one of its own."""

    refused: Callable[[str], None]

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()  # it would hold the connection's place until the idle time is over

    @property
    def protocol(self) -> ProtocolWrapper:
        """What the connection speaks."""
        return self._wrapper

    @protocol.setter
    def protocol(self, wrapper: ProtocolWrapper) -> None:
        """Put the strict protocol in the place of hypercorn's."""
        lax = wrapper.protocol
        assert isinstance(lax, H11Protocol), "HTTP/2 is not offered"
        strict = StrictProtocol(
            lax.app,
            lax.config,
            lax.context,
            lax.task_group,
            lax.connection_state,
            lax.ssl,
            lax.client,
            lax.server,
            lax.send,
        )
        strict.refused = self.refused
        assert isinstance(strict.connection, h11.Connection), "no WebSocket yet"
        strict.connection._receive_buffer = StrictBuffer()  # noqa: SLF001  # held by a test
        wrapper.protocol = strict
        self._wrapper = wrapper
