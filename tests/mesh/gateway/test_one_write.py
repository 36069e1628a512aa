"""The head of an answer and the first of its body leave in one write."""

import h11
import pytest
from hypercorn.config import Config
from hypercorn.events import Event, RawData
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from mesh.gateway.strict import StrictProtocol

EVENTS = {"content-type": "text/event-stream"}


class Written:
    """A protocol that has read a request, and what it writes."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.protocol = StrictProtocol(
            None, Config(), WorkerContext(None), None, ConnectionState({}), False, None, None, self._write
        )
        self.protocol.connection.receive_data(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        request, end = self.protocol.connection.next_event(), self.protocol.connection.next_event()
        assert (type(request), type(end)) == (h11.Request, h11.EndOfMessage)

    async def _write(self, event: Event) -> None:
        assert isinstance(event, RawData)
        self.writes.append(event.data)

    async def say(self, *events: h11.Event) -> None:
        for event in events:
            await self.protocol._send_h11_event(event)


async def test_head_waits_for_the_first_of_a_body_of_chunks() -> None:
    written = Written()
    await written.say(h11.Response(status_code=200, headers=EVENTS.items()))
    assert written.writes == []
    await written.say(h11.Data(data=b"one"))
    (first,) = written.writes
    assert first.startswith(b"HTTP/1.1 200")
    assert first.endswith(b"\r\n\r\n3\r\none\r\n")
    await written.say(h11.Data(data=b"two"), h11.EndOfMessage())
    assert written.writes[1:] == [b"3\r\ntwo\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize(("status", "length", "body"), [(200, "4", b"four"), (204, None, b"")])
async def test_whole_answer_is_one_write(status: int, length: str | None, body: bytes) -> None:
    written = Written()
    headers = [] if length is None else [("content-length", length)]
    data = [h11.Data(data=body)] if body else []
    await written.say(h11.Response(status_code=status, headers=headers), *data, h11.EndOfMessage())
    (only,) = written.writes
    assert only.startswith(f"HTTP/1.1 {status}".encode())
    assert only.endswith(b"\r\n\r\n" + body)
