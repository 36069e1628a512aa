"""A trace over HTTP: server-sent events until the client goes, or the node leaves.

Spec: docs/gateway.md, section "Looking inside"; docs/trace.md.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mesh.gateway.answers import encode
from mesh.gateway.failures import ApiError
from mesh.gateway.ports import TracePort
from mesh.trace import TraceRefusedError

LOOK_S = 1.0
"""Longest time in seconds until a trace notices that the node leaves; a stop is not held up by more."""

COMMENT_EVERY = 15
"""Looks without an event until a comment shows that the trace lives: less than any client's patience between two reads."""

_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


class TraceStream(Response):
    """The answer to a request for a trace."""

    def __init__(
        self, begin: Callable[[], AbstractContextManager[TracePort]], is_draining: Callable[[], bool], for_s: float
    ) -> None:
        super().__init__()
        self._for_s = for_s
        self._begin = begin
        self._is_draining = is_draining

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send events on one connection until its end.

        Raises:
            ApiError: status 404, when the trace cannot begin.
        """
        try:
            with self._begin() as trace:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, receive, nursery.cancel_scope)
                    await self._run(trace, send)
                    nursery.cancel_scope.cancel()
        except TraceRefusedError as error:
            raise ApiError(404, "trace_refused", f"{error}.", param="peer", retry=False) from error

    @staticmethod
    async def _watch(receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _run(self, trace: TracePort, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": b": begun\n\n", "more_body": True})  # the head waits for a first body
        n_quiet = 0
        ends_at = trio.current_time() + self._for_s
        while not self._is_draining() and (left_s := ends_at - trio.current_time()) > 0:
            events = await trace.take(min(LOOK_S, left_s))
            n_quiet = 0 if events else n_quiet + 1
            if events:
                body = b"".join(b"data: " + encode(event) + b"\n\n" for event in events)
                await send({"type": "http.response.body", "body": body, "more_body": True})
            elif n_quiet % COMMENT_EVERY == 0:
                await send({"type": "http.response.body", "body": b": quiet\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
