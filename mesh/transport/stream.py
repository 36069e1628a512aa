"""One stream of one peer, as a task reads and writes it.

Both directions hold the other side back: reading grants credit for what was read, writing waits while the send buffer is full. A
reader that falls too far behind loses the stream, by a reset with FLOODING, where the QUIC engine cannot hold the sender back.
A stream that this node opens sends the protocol negotiation together with its first data, so it costs no round trip; the peer's
agreement is read when the first answer is.

Spec: docs/spec/02-transport.md, sections "Streams" and "Protocol negotiation".
"""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

import trio

from mesh.transport.errors import ConnectionLost, StreamReset, TransportError
from mesh.transport.watch import Doing
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId
from protocol.libp2p.multistream import Initiator, Listener, MultistreamConfig

if TYPE_CHECKING:
    from mesh.transport.connection import Connection

CREDIT_STEP_BYTES = 16 * 1024
"""Credit is granted in steps of this many bytes, so that small reads cost nothing; 256 streams hold back half a
connection's window."""

CHUNK_JOINED_BYTES_MAX = 4096
"""Chunks are joined up to this many bytes, so that a peer who sends byte by byte costs little more memory than its bytes."""

WRITE_BYTES_MAX = 256 * 1024
"""Bytes handed to the endpoint at once, so that the first datagrams leave before the last are built."""


class Stream:
    """A bidirectional stream; one task may read while another writes.

    Attributes:
        connection: whose stream it is.
        protocol_id: what was agreed, or proposed and not refused yet.
    """

    def __init__(self, connection: "Connection", stream_id: int, config: MultistreamConfig, protocol_id: str = "") -> None:
        self.connection = connection
        self.protocol_id = protocol_id
        self._id = stream_id
        self._config = config
        self._initiator = Initiator([protocol_id], config) if protocol_id else None
        self._listener: Listener | None = None
        self._unsent = self._initiator.data_to_send() if self._initiator is not None else b""
        self._chunks: deque[bytes] = deque()
        self._uncredited_bytes = 0
        self._ended = False
        self._reset: StreamReset | None = None
        self._stopped: StreamReset | None = None
        self._lost: ConnectionLost | None = None
        self._sent_eof = False
        self._abandoned = False
        self._writable = True
        self._over: Callable[[], None] | None = None  # told when the peer has ended a stream that is answered
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    @property
    def peer_id(self) -> PeerId:
        """Who is at the other end, proven by TLS."""
        return self.connection.peer_id

    @property
    def is_watched(self) -> bool:
        """Whether anybody is told what happens on it."""
        return bool(self.connection.watchers)

    def tell(self, doing: Doing, *, sent: bool, data: bytes | memoryview = b"", code: int = 0) -> None:
        """Tell those who watch the connection what happened on this stream; who writes or reads a frame tells it whole."""
        if self.connection.watchers:
            told = bytes(data)
            self.connection.tell(doing, sent=sent, stream_id=self._id, protocol_id=self.protocol_id, data=told, code=code)

    def waiting(self) -> AbstractContextManager[None]:
        """Enter while the peer is to finish what it began; a peer with too many such streams is cut off."""
        return self.connection.waits.on(self._id, trio.current_time())

    # What the connection tells.

    def took(self, data: bytes, end: bool) -> None:
        """Take bytes from the network."""
        if self._over is not None:
            self._uncredited_bytes += len(data)
            self._ended = self._ended or end
            if end:
                self.tell(Doing.ENDED, sent=False)
            self._seen_off()
            return
        if data:
            if self._chunks and len(self._chunks[-1]) + len(data) <= CHUNK_JOINED_BYTES_MAX:
                self._chunks[-1] += data
            else:
                self._chunks.append(data)
        if end:
            self._ended = True
            self.tell(Doing.ENDED, sent=False)
            self._forget_if_over()
        self._readers.unpark_all()

    def was_reset(self, code: int, reason: str) -> None:
        """The peer's side is over before its end."""
        self._chunks.clear()
        self._reset = StreamReset(code, reason)
        self.tell(Doing.RESET, sent=False, code=code)
        self._forget_if_over()
        self._seen_off()
        self._readers.unpark_all()

    def was_stopped(self, code: int) -> None:
        """The peer reads no more."""
        self._stopped = StreamReset(code, "the peer reads no more")
        self.tell(Doing.STOPPED, sent=False, code=code)
        self._forget_if_over()
        self._writers.unpark_all()

    def _forget_if_over(self) -> None:
        """Leave the connection's table once neither side can do anything more."""
        if (self._ended or self._reset is not None) and (self._sent_eof or self._stopped is not None):
            self.connection.forget(self._id)

    def was_lost(self, lost: ConnectionLost) -> None:
        """The connection is gone."""
        self._lost = lost
        self._seen_off()
        self._readers.unpark_all()
        self._writers.unpark_all()

    def became_writable(self) -> None:
        """The send buffer has room again."""
        self._writable = True
        self._writers.unpark_all()

    # Reading.

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """Wait for bytes and return at most `max_bytes` of them; empty when the peer finished.

        Raises:
            StreamReset: the peer abandoned the stream, or does not speak its protocol.
            ConnectionLost: the connection is gone.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._initiator is not None:
            await self._finish_negotiation(self._initiator)
        return await self._receive_raw(max_bytes)

    def at_hand(self, max_bytes: int = 65536) -> bytes:
        """At most `max_bytes` of what has come already, without waiting; empty where nothing has."""
        return self._take_chunk(max_bytes) if self._chunks and self._initiator is None else b""

    async def confirmed(self) -> None:
        """Wait until the peer has agreed to the protocol of a stream that this node opened.

        Raises:
            StreamReset: the peer does not speak it, or abandoned the stream.
            ConnectionLost: the connection is gone.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._initiator is not None:
            await self._finish_negotiation(self._initiator)

    async def _receive_raw(self, max_bytes: int) -> bytes:
        while not self._chunks:
            if self._reset is not None:
                raise self._reset.with_traceback(None)
            if self._ended:
                self._grant()
                return b""
            if self._lost is not None:
                raise self._lost.with_traceback(None)
            if self._unsent:
                # A proposal is waited for; an agreement may leave with what the handler says next.
                await self._send(b"", end=False, linger=self._initiator is None)
                continue
            await self._readers.park()
        return self._take_chunk(max_bytes)

    def _take_chunk(self, max_bytes: int) -> bytes:
        chunk = self._chunks.popleft()
        if len(chunk) > max_bytes:
            self._chunks.appendleft(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        self._uncredited_bytes += len(chunk)
        if self._uncredited_bytes >= CREDIT_STEP_BYTES:
            self._grant()
        return chunk

    def _grant(self) -> None:
        n_bytes, self._uncredited_bytes = self._uncredited_bytes, 0
        if n_bytes and self._lost is None:
            self.connection.grant(self._id, n_bytes, ended=self._ended)

    async def _finish_negotiation(self, initiator: Initiator) -> None:
        """Read the peer's agreement, and put back what came behind it."""
        try:
            while initiator.agreed is None:
                data = await self._receive_raw(self._config.message_bytes_max)
                if data:
                    initiator.receive_data(data)
                else:
                    initiator.receive_eof()
        except RemoteProtocolError as fault:
            self._reset = StreamReset(fault.code, fault.detail)
            self.reset(fault.code)
            raise self._reset from fault
        self._initiator = None
        self._put_back(initiator.take_rest())

    def agree(self, speaks: Callable[[str], bool]) -> bool:
        """Agree on the protocol of a stream that the peer opened, by what has come already; False where more has to come.

        Raises:
            RemoteProtocolError: the peer breaks the negotiation or proposes nothing that this node speaks.
        """
        if self.protocol_id:
            return True
        listener = self._listener = self._listener or Listener(speaks, self._config)
        while listener.agreed is None and self._chunks:
            listener.receive_data(self._take_chunk(self._config.message_bytes_max))
            self._unsent += listener.data_to_send()
        if listener.agreed is None:
            return False
        self.protocol_id = listener.agreed
        self.tell(Doing.OPENED, sent=False)
        self._put_back(listener.take_rest())
        # The agreement goes out with the handler's first bytes, or when the handler first waits.
        return True

    async def negotiate(self, speaks: Callable[[str], bool]) -> None:
        """The same, waiting for what has to come.

        Raises:
            RemoteProtocolError: as `agree`.
            StreamReset: the peer abandoned the stream.
            ConnectionLost: the connection is gone.
        """
        while not self.agree(speaks):
            if self._unsent:
                await self._send(b"", end=False)
            data = await self._receive_raw(self._config.message_bytes_max)
            self._put_back(data)
            if not data and self._listener is not None:
                self._listener.receive_eof()

    def _put_back(self, rest: bytes) -> None:
        if rest:
            self._chunks.appendleft(rest)
            self._uncredited_bytes -= len(rest)

    # Writing.

    async def send_all(
        self, data: bytes | bytearray | memoryview, *, end: bool = False, linger: bool = False, with_others: bool = False
    ) -> None:
        """Send bytes, waiting while the send buffer is full.

        Args:
            data: what to send.
            end: finish this side with them; the last of them and the end leave in one datagram.
            linger: they may wait a moment (`transport.LINGER_S`), so as to leave with what follows.
            with_others: they leave with what other tasks can send now, on this stream or another.

        Raises:
            StreamReset: the peer reads no more, or this side was reset.
            ConnectionLost: the connection is gone.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._send(data, end=end, linger=linger, with_others=with_others)

    def takes_now(self, n_bytes: int) -> bool:
        """Whether so many bytes would be sent without waiting."""
        if self._stopped is not None or self._lost is not None or self._sent_eof:
            return False
        return len(self._unsent) + n_bytes <= min(WRITE_BYTES_MAX, self.connection.room(self._id))

    def send_now(self, data: bytes, *, end: bool, linger: bool = False) -> bool:
        """Send bytes without waiting, all of them or none; whether they were. Why they were not is found by `send_all`."""
        if not self.takes_now(len(data)):
            return False
        try:
            self.connection.write(self._id, memoryview(self._unsent + data), end=end, linger=linger)
        except TransportError:
            return False
        self._unsent, self._sent_eof = b"", end
        if end:
            self.tell(Doing.ENDED, sent=True)
            self._forget_if_over()
        return True

    async def send_eof(self) -> None:
        """Finish this side; the peer reads an end after what was sent.

        Raises:
            StreamReset: the peer reads no more, or this side was reset.
            ConnectionLost: the connection is gone.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._sent_eof:
            await self._send(b"", end=True)

    async def _send(
        self, data: bytes | bytearray | memoryview, *, end: bool, linger: bool = False, with_others: bool = False
    ) -> None:
        prefix, self._unsent = self._unsent, b""
        if prefix and len(data) > WRITE_BYTES_MAX:
            await self._send(prefix, end=False)
            prefix = b""
        view = memoryview(prefix + bytes(data)) if prefix else memoryview(data).cast("B")
        while True:
            if self._stopped is not None:
                raise self._stopped.with_traceback(None)
            if self._lost is not None:
                raise self._lost.with_traceback(None)
            if self._sent_eof:
                raise StreamReset(ErrorCode.CANCELLED, "this side of the stream is finished")
            piece = view[:WRITE_BYTES_MAX]
            is_last = len(piece) == len(view)
            self._writable = False
            lingers, waits = linger and is_last, with_others and is_last
            n_taken = self.connection.write(self._id, piece, end=end and is_last, linger=lingers, with_others=waits)
            view = view[n_taken:]
            if n_taken == len(piece):
                self._writable = True
                if is_last:
                    if end:
                        self._sent_eof = True
                        self.tell(Doing.ENDED, sent=True)
                        self._forget_if_over()
                    return
            while not self._writable and self._stopped is None and self._lost is None:
                await self._writers.park()

    # Ending.

    def see_off(self, over: Callable[[], None]) -> None:
        """Read no more of a stream whose sending side is finished, and call `over` once the peer's is: all has arrived then.

        A peer that sends more instead is asked to stop, and is not waited for.
        """
        self._over = over
        if self._chunks or self._ended or self._reset is not None or self._lost is not None:
            self._chunks.clear()
            self._seen_off()

    def _seen_off(self) -> None:
        over, self._over = self._over, None
        if over is None:
            return
        if not self._ended and self._reset is None and self._lost is None:
            self._reset = StreamReset(ErrorCode.CANCELLED, "this node closed the stream")
            self.connection.ignore(self._id, ErrorCode.NO_ERROR)
        else:
            self._grant()
        self._forget_if_over()
        over()

    def reset(self, code: int = ErrorCode.CANCELLED) -> None:
        """Abandon both sides at once; the peer sees `code`. A second call does nothing: the first reason stands."""
        if self._abandoned:
            return
        self._abandoned = True
        self._unsent = b""
        self._sent_eof = True
        self.tell(Doing.RESET, sent=True, code=code)
        self._stopped = self._stopped or StreamReset(code, "this node reset the stream")
        self._reset = self._reset or StreamReset(code, "this node reset the stream")
        self._chunks.clear()
        self.connection.abandon(self._id, code)
        self.connection.forget(self._id)
        self._readers.unpark_all()
        self._writers.unpark_all()

    async def aclose(self) -> None:
        """Finish this side when that is still to be done, and read no more."""
        try:
            if not self._sent_eof and self._stopped is None and self._lost is None and self._reset is None:
                await trio.lowlevel.checkpoint_if_cancelled()
                await self._send(b"", end=True, linger=True)
        finally:
            self._read_no_more()

    def let_go(self) -> None:
        """Do what `aclose` does a moment later, without waiting: for a stream on which all is said but that this side ends."""
        self.connection.afterwards(self._end_now)

    def _end_now(self) -> None:
        if not self._sent_eof and self._stopped is None and self._lost is None and self._reset is None:
            self.send_now(b"", end=True, linger=True)
        self._read_no_more()

    def _read_no_more(self) -> None:
        if not self._sent_eof:
            self.reset()
        elif not (self._ended and not self._chunks):
            self._chunks.clear()
            self._reset = self._reset or StreamReset(ErrorCode.CANCELLED, "this node closed the stream")
            self.connection.ignore(self._id, ErrorCode.NO_ERROR)
            self._forget_if_over()
        else:
            self._grant()
        self._readers.unpark_all()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        if args[0] is None:
            await self.aclose()
        else:
            fault = args[1]
            self.reset(fault.code if isinstance(fault, RemoteProtocolError) else ErrorCode.CANCELLED)
