"""The stream by which a fabric is opened, frame by frame; some kinds keep it for words that belong to no transfer.

Spec: docs/spec/11-fabric.md, section "Opening".
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress

import trio

from mesh.transport import ConnectionLost, Stream, StreamReset
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError

FRAME_BYTES_MAX = 1024
"""Longest frame of an opening, and of a session that keeps its stream, in bytes."""

UNSAID_MAX = 4096
"""Frames that wait to be sent, a count: a peer that does not read so many leaves more leased to it than it may have."""


class Control:
    """Frames both ways, until the stream ends."""

    __slots__ = ("_decoder", "_has_said", "_said", "stream")

    def __init__(self, stream: Stream) -> None:
        """Begins.

        Args:
            stream: negotiated; who reads and writes frames here alone may do so.
        """
        self.stream = stream
        self._decoder = FrameDecoder(FRAME_BYTES_MAX)
        self._said: deque[bytes] = deque()
        self._has_said = trio.Event()

    async def receive(self) -> bytes | None:
        """Wait for the next frame; None where the peer has finished.

        Raises:
            RemoteProtocolError: it is longer than any, or the stream ends within it.
            StreamReset: as the stream.
            ConnectionLost: as the stream.
        """
        while (frame := self._decoder.next_frame()) is None:
            data = await self.stream.receive_some()
            if not data:
                if self._decoder.buffered_bytes:
                    raise RemoteProtocolError(ErrorCode.MALFORMED, "the stream ended within a frame")
                return None
            self._decoder.receive(data)
        return frame

    async def expect(self) -> bytes:
        """Wait for a frame that has to come.

        Raises:
            RemoteProtocolError: the stream ends before it, or as `receive`.
            StreamReset: as the stream.
            ConnectionLost: as the stream.
        """
        with self.stream.waiting():
            frame = await self.receive()
        if frame is None:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "the stream ended before its frame")
        return frame

    async def send(self, frame: bytes, *, end: bool = False) -> None:
        """Send a frame.

        Raises:
            StreamReset: as the stream.
            ConnectionLost: as the stream.
        """
        await self.stream.send_all(encode_frame(frame), end=end)

    def say(self, frame: bytes) -> None:
        """Have `run` send a frame in its turn, without waiting.

        Raises:
            RemoteProtocolError: the peer does not read what was said before.
        """
        if len(self._said) >= UNSAID_MAX:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "the peer does not read what is said beside transfers")
        self._said.append(encode_frame(frame))
        self._has_said.set()

    async def run(self, take: Callable[[bytes], None]) -> str:
        """Sends what is said, and hands out what comes, until the stream ends.

        Args:
            take: given each frame; may raise RemoteProtocolError for one that no peer sends.

        Returns:
            Why it is over; empty where the peer has ended it in order, or is gone.
        """
        why = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_said, nursery.cancel_scope)
            try:
                while (frame := await self.receive()) is not None:
                    take(frame)
            except RemoteProtocolError as error:
                why = error.detail
            except StreamReset as reset:
                why = "" if reset.code == ErrorCode.NO_ERROR else f"the peer has closed it: {reset}"
            except ConnectionLost:
                pass
            nursery.cancel_scope.cancel()
        return why

    async def _send_said(self, scope: trio.CancelScope) -> None:
        with suppress(StreamReset, ConnectionLost):
            while True:
                if not self._said:
                    self._has_said = trio.Event()
                    await self._has_said.wait()
                data = b"".join(self._said)
                self._said.clear()
                await self.stream.send_all(data)
        scope.cancel()

    def close(self, code: int) -> None:
        """End both sides at once; a second call does nothing."""
        self.stream.reset(code)
