"""Serves the streams that peers open: agreement on a protocol, and a task for the handler.

A protocol may have a second face beside its handler, `Begin`: it is called as soon as what has come of a stream was handed
out and agreed on, and may be done with it within the call; then there is no task. So many streams of one batch of datagrams are
begun so; the others have tasks, which leave the event loop to everybody in between.

Spec: docs/spec/02-transport.md, sections "Streams" and "Protocol negotiation".
"""

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from mesh.transport.door import Entrance
from mesh.transport.errors import TransportError
from mesh.transport.stream import Stream
from protocol import conduct
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId
from protocol.libp2p.ping import PING_PROTOCOL

if TYPE_CHECKING:
    from mesh.transport.transport import Transport

Handler = Callable[[Stream], Awaitable[None]]
"""Serves one stream that a peer opened; when it returns the stream is finished, when it raises it is reset."""

Begin = Callable[[Stream, Callable[[], None]], Handler | None]
"""Begins to serve a stream without waiting. None says that it is done with, or will be when the second argument is called; else
what it returns goes on, in a task. It may raise as a handler may."""

AT_ONCE_MAX = 16
"""Streams of one batch that are begun at once, a count: each takes some 0.3 ms, so that whatever else is due waits 5 ms."""


class Reception:
    """The streams of peers that are served."""

    def __init__(self, transport: "Transport", entrance: Entrance, handlers: dict[str, Handler]) -> None:
        """Begin without streams.

        Args:
            transport: whose streams these are.
            entrance: says which protocols a peer may open.
            handlers: by protocol; may grow.
        """
        self._transport = transport
        self._entrance = entrance
        self._handlers = handlers
        self._at_once: dict[str, Begin] = {}
        self._serving: dict[PeerId, int] = {}
        self._fresh: deque[Stream] = deque()
        self._left = AT_ONCE_MAX

    def set_at_once(self, protocol_id: str, begin: Begin | None) -> None:
        """Have streams of a protocol begun without a task, or none of it any more."""
        if begin is None:
            self._at_once.pop(protocol_id, None)
        else:
            self._at_once[protocol_id] = begin

    def n_serving(self, peer_id: PeerId) -> int:
        """How many streams of a peer are served, over all its connections and those that it had."""
        return self._serving.get(peer_id, 0)

    def turn(self) -> None:
        """A new batch of datagrams is taken."""
        self._left = AT_ONCE_MAX

    def opened(self, stream: Stream) -> None:
        """A peer has opened a stream; `begin` follows once what came with it was handed out."""
        if self.n_serving(stream.peer_id) >= self._transport.config.serving_max:
            stream.reset(ErrorCode.OVERLOADED)
            return
        self._serving[stream.peer_id] = self.n_serving(stream.peer_id) + 1
        self._fresh.append(stream)

    def begin(self, nursery: trio.Nursery) -> None:
        """Begin to serve the streams that were opened."""
        while self._fresh:
            stream = self._fresh.popleft()
            fault: Exception | None = None
            handler: Handler | None = None
            try:
                if self._at_once and self._left > 0 and stream.agree(self._speaks(stream)):
                    begin = self._at_once.get(stream.protocol_id)
                    if begin is not None:
                        self._left -= 1
                        handler = begin(stream, partial(self._over, stream.peer_id))
                        if handler is None:
                            continue
            except Exception as error:  # noqa: BLE001  (raised again in the task, where it is told from others)
                fault = error
            nursery.start_soon(self._serve, stream, handler, fault)

    def _speaks(self, stream: Stream) -> Callable[[str], bool]:
        return self._entrance.speaks(stream.connection, self._handlers)

    def _over(self, peer_id: PeerId) -> None:
        self._serving[peer_id] -= 1
        if not self._serving[peer_id]:
            del self._serving[peer_id]

    async def _serve(self, stream: Stream, handler: Handler | None, raised: Exception | None) -> None:
        """Agree on a protocol and run its handler; whatever goes wrong ends this stream alone."""
        transport, code = self._transport, ErrorCode.CANCELLED
        try:
            if raised is not None:
                raise raised  # noqa: TRY301  (it is told from others as what the handler raises)
            speaks = self._speaks(stream)
            if not stream.agree(speaks):
                with trio.move_on_after(transport.config.negotiation_timeout_s) as patience, stream.waiting():
                    await stream.negotiate(speaks)
                if patience.cancelled_caught:
                    code = ErrorCode.IDLE
                    return
            await self._handle(stream, handler or self._handlers[stream.protocol_id])
            await stream.aclose()
            code = ErrorCode.NO_ERROR
        except RemoteProtocolError as fault:
            code = fault.code
            if code is not ErrorCode.FLOODING:  # what flooded was charged already
                transport.fault(stream.peer_id, code, conduct.STREAM_FAULT)
        except TransportError:
            code = ErrorCode.CANCELLED
        except Exception as fault:  # noqa: BLE001  (a handler is foreign code: its crash ends its stream and nothing else)
            code = ErrorCode.INTERNAL
            if transport.on_crash is not None:
                transport.on_crash(stream, fault)
        finally:
            self._over(stream.peer_id)
            if code is not ErrorCode.NO_ERROR:
                stream.reset(code)

    async def _handle(self, stream: Stream, handler: Handler) -> None:
        serving, protocol_id = stream.connection.serving, stream.protocol_id
        if protocol_id == PING_PROTOCOL and serving.get(protocol_id, 0) >= self._transport.config.ping.inbound_streams_max:
            raise RemoteProtocolError(ErrorCode.FLOODING, "too many ping streams")
        serving[protocol_id] = serving.get(protocol_id, 0) + 1
        try:
            await handler(stream)
        finally:
            serving[protocol_id] -= 1
