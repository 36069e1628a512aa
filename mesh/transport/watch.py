"""What somebody who watches a connection is told: connections, streams, whole frames, datagrams.

Frames are told by whoever writes or reads them, since only they know where one begins, so a watcher that comes in the middle of
a stream understands the next frame. While nobody watches, a frame costs one look at an empty tuple.

Spec: docs/trace.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Doing(StrEnum):
    """What was seen."""

    CONNECTED = "connected"
    CLOSED = "closed"
    OPENED = "opened"
    FRAME = "frame"
    DATAGRAM = "datagram"
    ENDED = "ended"
    RESET = "reset"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that happened on a connection.

    Attributes:
        at_s: the transport's clock, in seconds.
        doing: what happened.
        sent: whether this node did it; else the peer did.
        stream_id: of which stream, None for what concerns the connection.
        protocol_id: what was agreed for the stream.
        by_opener: whether the end that opened the stream did it.
        data: the frame without its length, or the datagram.
        code: the error code of a reset, a stop or a close.
        reason: what a close says.
    """

    at_s: float
    doing: Doing
    sent: bool
    stream_id: int | None = None
    protocol_id: str = ""
    by_opener: bool = False
    data: bytes = b""
    code: int = 0
    reason: str = ""


Watcher = Callable[[Seen], None]
"""Is told at once, and must neither wait nor raise."""
