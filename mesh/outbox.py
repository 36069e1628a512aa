"""Messages on their way to one peer and from it, over streams of frames: a bounded queue and its writer, and a reader.

What is queued survives a stream: it is written to the next one. A peer that reads slowly loses the oldest messages instead of
costing memory; whoever uses this must bear that, as gossip does.
"""

from collections import deque
from collections.abc import Callable

import trio

from mesh.transport import Doing, Stream
from protocol.encoding import FrameDecoder, encode_frame

MESSAGES_PER_TURN = 64
"""Messages of one peer that are taken before others get their turn, a count: what is read at once may hold thousands of the
shortest, and each costs up to some ten microseconds."""

SIGNED_BYTES_MIN = 256
"""Bytes of a message for which one signature is charged: records of a mesh take 250 to 500, and most of what is said is none."""


def signatures_in(message: bytes) -> float:
    """How many signatures a message is charged for, before it is read."""
    return 1.0 + len(message) // SIGNED_BYTES_MIN


class Outbox:
    """What waits to be said to one peer."""

    def __init__(self, messages_max: int) -> None:
        self.messages: deque[bytes] = deque(maxlen=messages_max)
        self._ready = trio.Event()

    def put(self, message: bytes) -> None:
        """Queue one message; the oldest gives way when the queue is full."""
        self.messages.append(message)
        self._ready.set()

    async def write_to(self, stream: Stream) -> None:
        """Write what is queued until the stream ends, which is raised.

        Raises:
            StreamReset: the peer broke the stream off.
            ConnectionLost: the connection is gone.
        """
        while True:
            while self.messages:
                batch = [self.messages.popleft() for _ in range(len(self.messages))]
                for message in batch if stream.connection.watchers else ():
                    stream.tell(Doing.FRAME, sent=True, data=message)
                await stream.send_all(b"".join(map(encode_frame, batch)))
            await self._ready.wait()
            self._ready = trio.Event()


async def read_frames(stream: Stream, bytes_max: int, take: Callable[[bytes], None]) -> None:
    """Hand each message of a stream to `take` until the peer ends it.

    Raises:
        RemoteProtocolError: TOO_LARGE for a message over `bytes_max`, MALFORMED where the stream ends inside one.
        StreamReset: the peer broke the stream off.
        ConnectionLost: the connection is gone.
    """
    decoder, taken = FrameDecoder(bytes_max), 0
    while chunk := await stream.receive_some():
        decoder.receive(chunk)
        while (message := decoder.next_frame()) is not None:
            stream.tell(Doing.FRAME, sent=False, data=message)
            take(message)
            taken += 1
            if taken % MESSAGES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
    decoder.finish()
