"""What a program that uses the mesh can run into: one family, `MeshError`, with the code and what to do next."""

from protocol.errors import RETRYABLE, ErrorCode
from protocol.inference import Failed


class MeshError(Exception):
    """Something between the program and its answer failed; the text says what, with which value, and what to do next.

    Attributes:
        code: the error code in small letters, such as `model_not_found` (docs/spec/00-conventions.md).
        retryable: whether the same request may succeed later or elsewhere.
        retry_after_s: when to come back, in seconds, as the node advises; 0 where it does not.
    """

    def __init__(self, code: ErrorCode, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code.name.lower()
        self.retryable = code in RETRYABLE
        self.retry_after_s = retry_after_s


class NotConnectedError(MeshError):
    """There is no node to ask, or the connection to it is gone."""


class BadInputError(MeshError, ValueError):
    """What was passed cannot be sent."""


class RequestError(MeshError):
    """The mesh refused the request, or its answer failed."""


class DeadlineError(RequestError):
    """The answer was not complete in time."""


_ADVICE = {
    ErrorCode.MODEL_NOT_FOUND: "models() lists what can be asked for",
    ErrorCode.FEATURE_NOT_SUPPORTED: "models() lists what each model can do",
    ErrorCode.DEADLINE_EXCEEDED: "give a longer deadline_s, or look at route() for who was slow",
    ErrorCode.OVERLOADED: "ask again after retry_after_s",
    ErrorCode.DRAINING: "ask again once the node has started anew",
    ErrorCode.INSUFFICIENT_MEMORY: "ask for less memory_bytes",
}
"""What a caller can do about it, where that is more than to ask again."""


def request_error(failed: Failed) -> RequestError:
    """The exception that a failed answer is raised as."""
    advice = _ADVICE.get(failed.code, "ask again" if failed.retryable else "")
    text = f"{failed.message or failed.code.name.lower()}{f' ({advice})' if advice else ''}"
    kind = DeadlineError if failed.code is ErrorCode.DEADLINE_EXCEEDED else RequestError
    return kind(failed.code, text, failed.retry_after_s)
