"""What can go wrong with a connection or a stream, as its user sees it.

Spec: docs/spec/00-conventions.md, section "Error codes".
"""

from protocol.errors import ErrorCode


class TransportError(Exception):
    """A stream or a connection ended before its time.

    Attributes:
        code: why; an `ErrorCode` where the number is known, else the peer's number.
        reason: the same for a person.
        local: whether this side ended it, and not the peer.
    """

    def __init__(self, code: int, reason: str = "", *, local: bool = True) -> None:
        try:
            self.code: int = ErrorCode(code)
        except ValueError:
            self.code = code
        name = self.code.name.lower() if isinstance(self.code, ErrorCode) else f"code {code:#x}"
        super().__init__(f"{name}: {reason}" if reason else name)
        self.reason = reason
        self.local = local


class StreamReset(TransportError):
    """One side of a stream was abandoned: by RESET_STREAM while reading, by STOP_SENDING while writing, or by this node."""


class ConnectionLost(TransportError):
    """The connection is gone, or could not be had."""
