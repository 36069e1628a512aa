"""How a failure looks to an OpenAI client: an HTTP status, a body `{"error": {...}}` and headers that steer its retries.

Handlers raise `ApiError`; a dispatcher's `Failed` becomes one through `failure_of`. The official clients retry on 408, 409, 429
and every 5xx unless `x-should-retry` says otherwise, wait for `retry-after-ms`, and show `code` to their user.

Source: the openai client library, `_base_client.py` (`_should_retry`, `_parse_retry_after_header`).
Spec: docs/gateway.md, section "Errors".
"""

import json
from dataclasses import dataclass

from starlette.responses import Response

from protocol.errors import ErrorCode
from protocol.inference import Failed

RETRY_AFTER_S = 0.5
"""Seconds a client is asked to wait when an overloaded node gives no advice; the official client's own first back-off."""

RETRY_AFTER_S_MAX = 60.0
"""Longest advice passed on, in seconds; the official clients ignore more than 120 s."""

MESSAGE_CHARS_MAX = 2000
"""Longest message passed on from a peer or an engine, in characters: enough for a sentence, too little for a dump."""


class ApiError(Exception):
    """A request that ends with an error answer.

    Attributes:
        status: the HTTP status.
        code: the short name programs look at.
        message: the sentence people read.
        param: the request field at fault, or None.
        retry: True or False where the client must not guess, None where the status says enough.
        retry_after_s: advice on when to come back, or None.
        close: whether the connection cannot be used any further.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry: bool | None = None,
        retry_after_s: float | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message[:MESSAGE_CHARS_MAX]
        self.param = param
        self.retry = retry
        self.retry_after_s = retry_after_s
        self.close = close

    @property
    def kind(self) -> str:
        """OpenAI's `type`: whose fault it is."""
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, object]:
        """The error as a JSON object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The headers that steer the client's retries."""
        headers: dict[str, str] = {}
        if self.retry is not None:
            headers["x-should-retry"] = "true" if self.retry else "false"
        if self.retry_after_s is not None:
            headers["retry-after-ms"] = str(max(1, round(self.retry_after_s * 1000)))
            headers["retry-after"] = str(max(1, round(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.close:
            headers["connection"] = "close"
        return headers

    def response(self, headers: dict[str, str] | None = None) -> Response:
        """The whole HTTP answer, with further `headers`."""
        return Response(
            json.dumps(self.body()), self.status, {**self.headers(), **(headers or {})}, media_type="application/json"
        )


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one error code is answered."""

    status: int
    code: str
    param: str | None = None
    retry: bool | None = None


_RULES = {
    ErrorCode.MODEL_NOT_FOUND: _Rule(404, "model_not_found", "model", retry=False),
    ErrorCode.FEATURE_NOT_SUPPORTED: _Rule(400, "feature_not_supported", "model", retry=False),
    ErrorCode.BAD_REQUEST: _Rule(400, "bad_request", retry=False),
    ErrorCode.TOO_LARGE: _Rule(413, "too_large", retry=False),
    ErrorCode.OVERLOADED: _Rule(429, "overloaded"),
    ErrorCode.DEADLINE_EXCEEDED: _Rule(504, "deadline_exceeded", retry=False),
    ErrorCode.CANCELLED: _Rule(499, "cancelled", retry=False),
    ErrorCode.DRAINING: _Rule(503, "draining"),
    ErrorCode.UNREACHABLE: _Rule(503, "unreachable"),
    ErrorCode.INSUFFICIENT_MEMORY: _Rule(503, "insufficient_memory", retry=False),
    ErrorCode.SEAL_REFUSED: _Rule(502, "seal_refused"),
    ErrorCode.RELAY_REFUSED: _Rule(503, "relay_refused"),
    ErrorCode.ENGINE_FAILED: _Rule(502, "engine_failed"),
    ErrorCode.HOPS_EXCEEDED: _Rule(502, "hops_exceeded", retry=False),
    ErrorCode.INTERNAL: _Rule(500, "internal"),
}
"""Codes that concern a request.

A code that concerns a connection means that a peer failed us: 502. A deadline has no retry, since
the client has waited as long as it wanted to; 504 and not 408, which reads as a slow upload. Nor has a lack of memory:
it does not pass in the time that a client waits between two attempts."""


def failure_of(failed: Failed) -> ApiError:
    """Translate the failed end of an answer."""
    rule = _RULES.get(failed.code) or _Rule(502, failed.code.name.lower())
    retry_after_s: float | None = min(failed.retry_after_s, RETRY_AFTER_S_MAX) if failed.retry_after_s > 0 else None
    if failed.code is ErrorCode.OVERLOADED:
        retry_after_s = retry_after_s or RETRY_AFTER_S
    message = failed.message or rule.code.replace("_", " ")
    return ApiError(rule.status, rule.code, message, param=rule.param, retry=rule.retry, retry_after_s=retry_after_s)


def engine_fault(message: str) -> ApiError:
    """The error for an answer that breaks the rules of its own format."""
    return failure_of(Failed(ErrorCode.ENGINE_FAILED, message))
