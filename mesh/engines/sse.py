"""A bounded reader of server-sent events.

Bytes go in as they come, the data of whole events comes out. Lines may end in CR, LF or both and may be cut anywhere; comments
and fields other than `data` are skipped. A line or an event over its limit is an error, so a server cannot fill our memory.

Source: WHATWG HTML, section 9.2 "Server-sent events".
"""

import re
from collections.abc import Iterator

EVENT_BYTES_MAX = 1 << 20
"""Largest line, and largest event, in bytes: a chunk of an answer is a few hundred, with log-probabilities some ten thousand."""


_EMPTY_LINES = re.compile(rb"\n{3,}")


class SseError(Exception):
    """The stream of events is not one."""


class SseReader:
    """Cuts a stream of bytes into the data of its events."""

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._line = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._skip_newline = False
        self._first = True

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of every event that `chunk` completes.

        Raises:
            SseError: a line or an event is over its limit.
        """
        if self._skip_newline and chunk:
            self._skip_newline = False
            chunk = chunk.removeprefix(b"\n")
        self._skip_newline = chunk.endswith(b"\r")
        # Of several empty lines the first ends an event and the others nothing; no server needs thousands of them.
        lines = _EMPTY_LINES.sub(b"\n\n", chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n")
        for line in lines[:-1]:
            self._append(line)
            whole = bytes(self._line)
            self._line.clear()
            data = self._take(whole)
            if data is not None:
                yield data
        self._append(lines[-1])

    def _append(self, part: bytes) -> None:
        if len(self._line) + len(part) > self._event_bytes_max:
            raise SseError(f"a line is over {self._event_bytes_max} bytes")
        self._line += part

    def _take(self, line: bytes) -> bytes | None:
        """Take in one line; the event's data where the line ends an event."""
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            data = b"\n".join(self._data)
            had_data = bool(self._data)
            self._data.clear()
            self._data_bytes = 0
            return data if had_data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data_bytes += len(value) + 1
            if self._data_bytes > self._event_bytes_max:
                raise SseError(f"an event is over {self._event_bytes_max} bytes")
            self._data.append(value)
        return None
