"""One inference request over HTTP: submit, hold the headers until the first event, send until the end or until the client goes.

Two tasks run: one watches the connection, and cancels everything when the client goes away, also while the engine is silent; the
other takes events from the dispatcher and sends them. The second never takes an event before the last one is sent, so a slow
client slows its engine and nothing piles up here. A dispatcher that is silent past the deadline is given up.

Spec: docs/gateway.md, sections "Answers" and "Deadlines".
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from mesh.gateway.answers import Frame, TextStream, WholeText, encode, fault_event, render_embeddings
from mesh.gateway.config import GatewayConfig
from mesh.gateway.failures import ApiError, engine_fault, failure_of
from mesh.gateway.ports import Answer, DispatcherPort
from mesh.gateway.sanitise import Call
from mesh.gateway.views import route_headers
from mesh.telemetry import ABORTED, RequestOutcome, Telemetry
from protocol.errors import ErrorCode
from protocol.inference import Accepted, Failed, Feature, Finished, InferenceRequest, JsonDelta, Reply, TensorsReady, TextDelta

Event = TextDelta | JsonDelta | TensorsReady | Finished
"""What an answer consists of once its failures have become `ApiError`."""


class Exchange(Response):
    """The answer to one checked call; like every response of starlette it is called with the connection."""

    def __init__(
        self, call: Call, request: InferenceRequest, dispatcher: DispatcherPort, telemetry: Telemetry, config: GatewayConfig
    ) -> None:
        super().__init__()
        self._call = call
        self._request = request
        self._dispatcher = dispatcher
        self._telemetry = telemetry
        self._config = config
        self._frame = Frame(call, request.request_id.hex(), int(time.time()))
        self._outcome = RequestOutcome(call.feature, call.stream)
        self._started_at = trio.current_time()
        self._give_up_at = self._started_at + request.deadline_s + config.deadline_slack_s
        self._route_headers: dict[str, str] = {}
        self._headers_sent = False

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Run the exchange on one connection."""
        self._telemetry.request_started(self._outcome)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, receive, nursery.cancel_scope)
                await self._run(send)
                nursery.cancel_scope.cancel()
        finally:
            self._outcome.duration_s = trio.current_time() - self._started_at
            self._telemetry.request_ended(self._outcome)

    async def _watch(self, receive: Receive, scope: trio.CancelScope) -> None:
        """Cancel the exchange when the client goes away."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if self._outcome.result == ABORTED:
            self._outcome.result = "client_gone"
        scope.cancel()

    async def _run(self, send: Send) -> None:
        error: ApiError | None = self._too_late()
        tail = b""
        with trio.move_on_at(self._give_up_at):
            async with self._dispatcher.submit(self._request) as answer, _closing(answer) as events:
                # Nothing is raised through the dispatcher's context: a nursery inside it would wrap it in a group.
                try:
                    first = await self._first(answer, events)
                    tail = await (self._stream(first, events, send) if self._call.stream else self._collect(first, events))
                except ApiError as caught:
                    error = caught
                else:
                    error = None
        self._outcome.result = "ok" if error is None else error.code
        if self._headers_sent:
            await _send(send, {"type": "http.response.body", "body": tail if error is None else fault_event(error)})
        elif error is not None:
            await _send_whole(send, error.status, error.headers() | self._extra_headers(), encode(error.body()))
        else:
            await _send_whole(send, 200, self._extra_headers(), tail)

    async def _first(self, answer: Answer, events: AsyncIterator[Reply]) -> Event:
        """Wait for the first event, and note what is known from then on, also when it is a failure."""
        event = await anext(events, None)
        while isinstance(event, Accepted):
            event = await anext(events, None)
        route = answer.route
        self._route_headers = route_headers(route)
        self._outcome.first_output_s = trio.current_time() - self._started_at
        self._outcome.predicted_s, self._outcome.measured_s = route.predicted_s, route.measured_s
        self._outcome.model = self._call.model if route.chosen is not None else None
        return _event_of(event)

    def _too_late(self) -> ApiError:
        return failure_of(Failed(ErrorCode.DEADLINE_EXCEEDED, f"No answer within {self._request.deadline_s:g} s."))

    async def _stream(self, event: Event, events: AsyncIterator[Reply], send: Send) -> bytes:
        """Send everything but the end; returns the end."""
        stream = TextStream(self._frame)
        while not isinstance(event, Finished):
            chunks = stream.add(_text_of(event))  # before the headers: a bad first event still gets its own status
            if not self._headers_sent:
                await self._send_stream_head(send)
            self._outcome.outputs += 1
            await _send(send, {"type": "http.response.body", "body": chunks, "more_body": True})
            event = _event_of(await anext(events, None))
        if not self._headers_sent:
            await self._send_stream_head(send)
        self._outcome.usage = event.usage
        return stream.finish(event)

    async def _send_stream_head(self, send: Send) -> None:
        headers = MutableHeaders({"content-type": "text/event-stream; charset=utf-8", **self._extra_headers()})
        await _send(send, {"type": "http.response.start", "status": 200, "headers": headers.raw})
        self._headers_sent = True

    async def _collect(self, event: Event, events: AsyncIterator[Reply]) -> bytes:
        """Wait for everything; returns the body."""
        tensors: TensorsReady | None = None
        text = WholeText(self._frame, self._config.answer_bytes_max)
        while not isinstance(event, Finished):
            self._outcome.outputs += 1
            if self._call.feature is not Feature.EMBEDDINGS:
                text.add(_text_of(event))
            elif isinstance(event, TensorsReady) and tensors is None:
                tensors = event
            else:
                raise engine_fault("The engine answered with something else than one set of embeddings.")
            event = _event_of(await anext(events, None))
        self._outcome.usage = event.usage
        if self._call.feature is not Feature.EMBEDDINGS:
            return encode(text.finish(event))
        if tensors is None:
            raise engine_fault("The engine answered without embeddings.")
        return encode(render_embeddings(tensors, event, self._call, self._config.answer_bytes_max))

    def _extra_headers(self) -> dict[str, str]:
        dropped = {"x-mesh-dropped": ", ".join(self._call.dropped)} if self._call.dropped else {}
        return self._route_headers | dropped


def _event_of(reply: Reply | None) -> Event:
    match reply:
        case None:
            raise engine_fault("The answer ended without an end.")
        case Accepted():
            raise engine_fault("The answer was accepted twice.")
        case Failed():
            raise failure_of(reply)
        case _:
            return reply


def _text_of(event: TextDelta | JsonDelta | TensorsReady) -> TextDelta | JsonDelta:
    if isinstance(event, TensorsReady):
        raise engine_fault("The engine answered with tensors where text was asked for.")
    return event


@asynccontextmanager
async def _closing(answer: Answer) -> AsyncIterator[AsyncIterator[Reply]]:
    """Iterate over `answer`, and close its iterator where that is a generator."""
    events = aiter(answer)
    try:
        yield events
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _send(send: Send, message: Message) -> None:
    """Send one message completely, or not at all when we are cancelled already.

    The server's state moves on before its bytes are written, so a send that is broken off would garble what follows. A send
    ends by itself: the server cuts a client that does not take its bytes.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    with trio.CancelScope(shield=True):
        await send(message)


async def _send_whole(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    raw = MutableHeaders({"content-type": "application/json", "content-length": str(len(body)), **headers}).raw
    await _send(send, {"type": "http.response.start", "status": status, "headers": raw})
    await _send(send, {"type": "http.response.body", "body": body})
