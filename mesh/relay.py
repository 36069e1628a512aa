"""Sealed requests, all three parts: asking through a relay, being the relay, and answering what comes through one.

The relay pipes two streams into one another. It holds what one read brings and no more: where one side takes nothing, nothing is
read from the other. It passes resets on, keeps the deadline, and reads nothing but the header.

Spec: docs/spec/10-sealing.md, sections "Relay" and "Ways".
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Self

import trio

from mesh.engines.base import refuse
from mesh.inference import ServeLimits, serve_stream
from mesh.inference.client import Answer, request_over
from mesh.inference.server import Handle, Served
from mesh.sealed import AnsweringStream, AskingStream
from mesh.telemetry import Telemetry
from mesh.transport import ConnectionLost, Doing, Stream, StreamReset, Transport
from protocol.circuits import CircuitConfig, Circuits
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import SEALING_KEY_BYTES, Identity, PeerId, SealingKey
from protocol.inference import Failed, InferenceRequest, Reply
from protocol.node import Node
from protocol.records import RecordKind
from protocol.sealing import (
    ANSWER_NONCE_BYTES,
    HEADER_BYTES_MAX,
    RELAY_PROTOCOL,
    SEALED_BYTES_MAX,
    SEALED_PROTOCOL,
    AnswerSealer,
    Header,
    Refused,
    Route,
    decode_header,
    encode_answer_frame,
    encode_header,
    open_request,
)

PIPE_BYTES = 64 * 1024
"""Most bytes that a relay holds of one direction: what one read brings."""
REQUEST_PASSED_BYTES_MAX = SEALED_BYTES_MAX + 64
"""Most bytes that a relay passes toward an executor for one request: the sealed request and its length."""
ANSWER_PASSED_BYTES_MAX = 96 * 1024 * 1024
"""Most bytes that a relay passes back for one: an answer of 64 MiB in chunks of single tokens, padded."""
HEADER_READ_S = 10.0
"""Longest wait for a header in seconds, as for the negotiation before it."""
GRACE_S = 0.2
"""How long after its deadline a circuit is kept in seconds: twice what a requester waits."""
FAREWELL_S = 1.0
"""How long a circuit whose answer has ended waits for the requester's end in seconds, as the executor does."""
OPENED_MAX = 16_384
"""Sealed requests remembered so that none is answered twice: their encapsulated keys take a megabyte."""
DIAL_S = 1.5
"""Longest direct dial in seconds where there is a way round: three round trips across the world."""


class Sealing:
    """What a node does with sealed requests."""

    def __init__(
        self,
        node: Node,
        transport: Transport,
        telemetry: Telemetry,
        identity: Identity,
        limits: ServeLimits,
        *,
        relays: bool,
        circuits: CircuitConfig | None = None,
    ) -> None:
        """Makes this run's sealing key and tells the core of it.

        Args:
            node: the core.
            transport: for streams.
            telemetry: hears of faults.
            identity: this node's key.
            limits: what a requester may cost.
            relays: whether requests of others are passed on.
            circuits: bounds of what is passed on; the defaults where None.
        """
        self._node = node
        self._transport = transport
        self._telemetry = telemetry
        self._identity = identity
        self._limits = limits
        self._key = SealingKey(transport.machine.entropy(SEALING_KEY_BYTES))
        self._opened: OrderedDict[bytes, None] = OrderedDict()
        self.circuits = Circuits(circuits or CircuitConfig(), node.peer_id)
        self.is_draining: Callable[[], bool] = lambda: False
        node.announcer.handle_sealing(self._key.public_key, relays=relays)
        if relays:
            transport.add_handler(RELAY_PROTOCOL, self.relay)

    # Asking

    @asynccontextmanager
    async def ask(
        self, executor: PeerId, request: InferenceRequest, told: Callable[[PeerId], None]
    ) -> AsyncIterator[AsyncIterator[Reply]]:
        """Asks a peer by the ways round to it, the best first, until one leads there.

        Args:
            executor: whom.
            request: what; its deadline counts from now.
            told: hears through whom it is asked.
        """
        ends_at = trio.current_time() + request.deadline_s
        failed = Failed(ErrorCode.UNREACHABLE, "nobody is known through whom the peer could be asked")
        for way in self._node.relays.ways(executor, self._transport.now()):
            for _ in range(2):
                told(way.relay)
                left = replace(request, deadline_s=max(0.001, ends_at - trio.current_time()), hops_left=0)
                try:
                    stream = await self._stream_to(way.relay, executor, left)
                except (StreamReset, ConnectionLost, RemoteProtocolError) as error:
                    failed, renewed = Failed(ErrorCode.UNREACHABLE, f"no way through the relay: {error}"), False
                else:
                    async with request_over(stream, left) as answer:
                        first = await anext(answer)
                        if not isinstance(first, Failed) or stream.refused is None:
                            try:
                                yield _Begun(first, answer)
                            finally:
                                self._blame(way.relay, executor, answer, first)
                            return
                    failed, renewed = first, self._take_card(stream.refused, executor, way.relay)
                if not renewed:
                    break
            self._node.relays.handle_failed(way.relay, executor, self._transport.now())
        async with refuse(failed.code, failed.message) as refusal:
            yield refusal

    async def _stream_to(self, relay: PeerId, executor: PeerId, request: InferenceRequest) -> AskingStream:
        """A stream to the relay on which the request will be sealed.

        Raises:
            StreamReset: the relay opens none.
            ConnectionLost: the relay is not connected.
            RemoteProtocolError: the executor's card has no sealing key.
        """
        key, connection = self._node.relays.sealing_key(executor), self._transport.connections.get(relay)
        if connection is None:
            raise ConnectionLost(ErrorCode.UNREACHABLE, "the relay is not connected")
        if not key:
            raise RemoteProtocolError(ErrorCode.SEAL_REFUSED, "the peer's card has no sealing key")
        route = Route(request.request_id, self._identity.peer_id, relay, executor)
        stream = await connection.open_stream(RELAY_PROTOCOL)
        return AskingStream(
            stream, self._identity, route, key, request.deadline_s, self._transport.machine.entropy(SEALING_KEY_BYTES)
        )

    def _take_card(self, refused: Refused, executor: PeerId, relay: PeerId) -> bool:
        """Whether the refusal brought a newer key, so that the same way is worth another try."""
        if refused.code is not ErrorCode.SEAL_REFUSED or not refused.card:
            return False
        return self._node.relays.handle_card(refused.card, executor, relay, self._transport.now())

    def _blame(self, relay: PeerId, executor: PeerId, answer: Answer, first: Reply) -> None:
        """Notes how a way served; what was done to an answer is told of the relay, through which it came."""
        if answer.fault is not None:
            self._telemetry.peer_faulted(relay, answer.fault.code, f"as a relay: {answer.fault.detail}")
        if answer.fault is not None or (isinstance(first, Failed) and first.code is ErrorCode.UNREACHABLE):
            self._node.relays.handle_failed(relay, executor, self._transport.now())

    # Passing on

    async def relay(self, stream: Stream) -> None:
        """Passes one request of a peer on to another, and its answer back."""
        decoder = FrameDecoder(HEADER_BYTES_MAX)
        try:
            header = await _read_header(stream, decoder)
        except RemoteProtocolError as error:
            self._telemetry.peer_faulted(stream.peer_id, error.code, error.detail)
            self._transport.fault(stream.peer_id, error.code)
            stream.reset(error.code)
            return
        except (StreamReset, ConnectionLost):
            return
        requester, executor, now = stream.peer_id, header.far_end, self._transport.now()
        declined = self.circuits.open(requester, executor, header.hop, now)
        if declined is not None:
            await _refuse(stream, Refused(declined.code))
            return
        try:
            await self._pass(stream, header, decoder.take_rest())
        finally:
            self.circuits.close(requester, executor)

    async def _pass(self, stream: Stream, header: Header, rest: bytes) -> None:
        """Joins the requester's stream to one to the executor."""
        connection = self._transport.connections.get(header.far_end)
        if self.is_draining():
            await _refuse(stream, Refused(ErrorCode.DRAINING))
            return
        if not self._node.membership.is_connected(stream.peer_id):
            await _refuse(stream, Refused(ErrorCode.RELAY_REFUSED))
            return
        if connection is None or not self._node.membership.is_connected(header.far_end):
            await _refuse(stream, Refused(ErrorCode.UNREACHABLE))
            return
        try:
            onward = await connection.open_stream(SEALED_PROTOCOL)
        except (StreamReset, ConnectionLost):
            await _refuse(stream, Refused(ErrorCode.UNREACHABLE))
            return
        told = encode_header(Header(header.request_id, header.deadline_s, header.hop - 1, stream.peer_id))
        with trio.move_on_after(header.deadline_s + GRACE_S) as deadline:
            await _join(stream, onward, encode_frame(told) + rest)
        if deadline.cancelled_caught:
            stream.reset(ErrorCode.DEADLINE_EXCEEDED)
            onward.reset(ErrorCode.DEADLINE_EXCEEDED)

    # Answering

    async def answer(self, stream: Stream, handle: Handle) -> Served | None:
        """Opens one request that a relay has brought, and answers it like any other; None where it is refused."""
        try:
            with trio.fail_after(self._limits.request_read_s):
                header, sealed = await _read_sealed(stream)
            request, sealer = self._open(stream.peer_id, header, sealed)
        except RemoteProtocolError as error:
            self._telemetry.peer_faulted(stream.peer_id, error.code, error.detail)
            await _refuse(stream, Refused(error.code, self._own_card() if error.code is ErrorCode.SEAL_REFUSED else b""))
            return None
        except trio.TooSlowError:
            stream.reset(ErrorCode.IDLE)
            return None
        except (StreamReset, ConnectionLost):
            return None
        with trio.move_on_after(header.deadline_s + GRACE_S):
            return await serve_stream(AnsweringStream(stream, header.far_end, request, sealer), handle, self._limits)
        stream.reset(ErrorCode.DEADLINE_EXCEEDED)
        return None

    def _open(self, relay: PeerId, header: Header, sealed: bytes) -> tuple[bytes, AnswerSealer]:
        """Opens a sealed request, unless it was opened before or nobody knows who asks.

        Raises:
            RemoteProtocolError: it does not open, or may not be answered.
        """
        if header.hop != 0:
            raise RemoteProtocolError(ErrorCode.HOPS_EXCEEDED, f"a sealed request with {header.hop} hops left")
        now = self._transport.now()
        if self._transport.endpoint.conduct.is_banned(header.far_end, now):
            raise RemoteProtocolError(ErrorCode.RELAY_REFUSED, "a sealed request of somebody who is banned here")
        if self._node.peer(header.far_end, now).card is None:
            raise RemoteProtocolError(ErrorCode.RELAY_REFUSED, "a sealed request of somebody whose card is not known here")
        encapsulated = sealed[:SEALING_KEY_BYTES]
        if encapsulated in self._opened:
            raise RemoteProtocolError(ErrorCode.SEAL_REFUSED, "a sealed request that has been here before")
        route = Route(header.request_id, header.far_end, relay, self._node.peer_id)
        opened = open_request(self._key, route, sealed, self._transport.machine.entropy(ANSWER_NONCE_BYTES))
        self._opened[encapsulated] = None
        if len(self._opened) > OPENED_MAX:
            self._opened.popitem(last=False)
        return opened

    def _own_card(self) -> bytes:
        """This node's newest card, for who has sealed by an older one."""
        record = self._node.table.get(self._node.peer_id, RecordKind.CARD)
        return b"" if record is None else record.envelope


class _Begun:
    """An answer of which the first reply was taken already."""

    def __init__(self, first: Reply, answer: AsyncIterator[Reply]) -> None:
        self._first: Reply | None = first
        self._answer = answer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        first, self._first = self._first, None
        return await anext(self._answer) if first is None else first


async def _read_header(stream: Stream, decoder: FrameDecoder) -> Header:
    """Reads the header that stands first on a stream; what came behind it stays in the decoder.

    Raises:
        RemoteProtocolError: there is none.
        StreamReset: the peer has given up.
        ConnectionLost: it is gone.
    """
    with trio.move_on_after(HEADER_READ_S), stream.waiting():
        while (frame := decoder.next_frame()) is None:
            data = await stream.receive_some()
            if not data:
                raise RemoteProtocolError(ErrorCode.MALFORMED, "the stream ended before its header did")
            decoder.receive(data)
        stream.tell(Doing.FRAME, sent=False, data=frame)
        return decode_header(frame)
    raise RemoteProtocolError(ErrorCode.IDLE, f"no header within {HEADER_READ_S:g} s")


async def _read_sealed(stream: Stream) -> tuple[Header, bytes]:
    """Reads a header and the one sealed request behind it; raises as `_read_header`."""
    heads, frames = FrameDecoder(HEADER_BYTES_MAX), FrameDecoder(SEALED_BYTES_MAX)
    header = await _read_header(stream, heads)
    frames.receive(heads.take_rest())
    with stream.waiting():
        while (frame := frames.next_frame()) is None:
            data = await stream.receive_some()
            if not data:
                raise RemoteProtocolError(ErrorCode.MALFORMED, "the stream ended before its sealed request did")
            frames.receive(data)
    if frames.buffered_bytes:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "data after the sealed request")
    stream.tell(Doing.FRAME, sent=False, data=frame)
    return header, frame


async def _refuse(stream: Stream, refused: Refused) -> None:
    """Sends a refusal and ends the stream."""
    with suppress(StreamReset, ConnectionLost):
        with trio.move_on_after(FAREWELL_S):
            await stream.send_all(encode_frame(encode_answer_frame(refused)), end=True)
        await stream.aclose()


async def _join(stream: Stream, onward: Stream, head: bytes) -> None:
    """Pipes two streams into one another until both directions have ended or one has broken off."""
    asked = trio.Event()

    async def ask() -> None:
        try:
            await _pipe(stream, onward, REQUEST_PASSED_BYTES_MAX, head)
        finally:
            asked.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await _pipe(onward, stream, ANSWER_PASSED_BYTES_MAX)
        with trio.move_on_after(FAREWELL_S):
            await asked.wait()
        nursery.cancel_scope.cancel()
    for end in (stream, onward):
        with suppress(StreamReset, ConnectionLost):
            await end.aclose()


async def _pipe(source: Stream, sink: Stream, bytes_max: int, head: bytes = b"") -> None:
    """Passes bytes on as they come, one read at a time, and then the end; what breaks one stream breaks both."""
    n_bytes = 0
    try:
        if head:
            await sink.send_all(head)
        while data := await source.receive_some(PIPE_BYTES):
            n_bytes += len(data)
            if n_bytes > bytes_max:
                source.reset(ErrorCode.TOO_LARGE)
                sink.reset(ErrorCode.TOO_LARGE)
                return
            await sink.send_all(data)
        await sink.send_eof()
    except (StreamReset, ConnectionLost) as error:
        code = error.code if isinstance(error, StreamReset) else ErrorCode.UNREACHABLE
        for end in (source, sink):
            end.reset(code)
