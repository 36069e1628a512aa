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

TURN_S = 0.002
"""Time after which others get their turn, in seconds: what is taken in one go takes as much again, and 5 ms are too long."""

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


def whole(message: bytes) -> list[bytes]:
    """The message as the one piece that it is."""
    return [message]


async def read_frames(
    stream: Stream,
    bytes_max: int,
    take: Callable[[bytes], None],
    clock: Callable[[], float],
    in_pieces: Callable[[bytes], list[bytes]] = whole,
) -> None:
    """Hand each message of a stream to `take` until the peer ends it, in order, and let others get their turn meanwhile.

    Args:
        stream: what is read.
        bytes_max: longest message.
        take: takes a message or a piece of one.
        clock: seconds, by which a turn is over after `TURN_S`.
        in_pieces: cuts a message into such as take little time each.

    Raises:
        RemoteProtocolError: TOO_LARGE for a message over `bytes_max`, MALFORMED where the stream ends inside one.
        StreamReset: the peer broke the stream off.
        ConnectionLost: the connection is gone.
    """
    decoder = FrameDecoder(bytes_max)
    while chunk := await stream.receive_some():
        began_s, taken = clock(), 0
        decoder.receive(chunk)
        while (message := decoder.next_frame()) is not None:
            stream.tell(Doing.FRAME, sent=False, data=message)
            for piece in in_pieces(message):
                if taken >= MESSAGES_PER_TURN or clock() - began_s > TURN_S:
                    await trio.lowlevel.checkpoint()
                    began_s, taken = clock(), 0
                take(piece)
                taken += 1
    decoder.finish()
