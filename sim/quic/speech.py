"""Gossip streams without tasks: the one a process speaks on to each peer, and those it listens to.

Source: mesh/driver.py and mesh/transport/stream.py, which these stand for: the proposal leaves at once, the agreement lingers,
credit is granted in steps, what is queued is written in one piece, and a full queue gives up its oldest message.
Spec: docs/spec/04-gossip.md, section "Streams"; docs/spec/02-transport.md, section "Protocol negotiation".
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from protocol import gossip
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.identity import PeerId
from protocol.libp2p.multistream import Initiator, Listener
from sim.quic.transport import Connection, Transport

OUTBOX_MESSAGES_MAX = 256
"""Messages waiting for one peer, a count, as in the shell; the oldest give way."""

GREETING_TIMEOUT_S = 5.0
"""Seconds that a peer may take to agree to gossip, as in the shell."""

GREETING_RETRY_S = 1.0
"""Seconds before a peer that broke off a gossip stream is offered another, as in the shell."""

NEGOTIATION_TIMEOUT_S = 10.0
"""Seconds that a peer may take to propose a protocol on a stream it opened, as in the shell."""

CREDIT_STEP_BYTES = 16 * 1024
"""Bytes after which credit is granted, as in the shell."""


class Talker(Protocol):
    """The process on whose behalf streams are used."""

    transport: Transport

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Calls `action` after a while, if the process still lives."""
        ...

    def greeted(self, peer_id: PeerId) -> None:
        """The peer has shown that it speaks gossip."""
        ...

    def not_greeted(self, peer_id: PeerId) -> None:
        """The peer does not speak gossip now."""
        ...

    def heard(self, peer_id: PeerId, message: bytes) -> None:
        """A gossip message came."""
        ...

    def faulted(self, peer_id: PeerId, code: ErrorCode) -> None:
        """The peer broke the framing."""
        ...


class Speech:
    """Speaks to one peer for as long as it is connected: one stream at a time, which is opened anew where it breaks."""

    def __init__(self, talker: Talker, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.over = False
        self._talker = talker
        self._messages: deque[bytes] = deque(maxlen=OUTBOX_MESSAGES_MAX)
        self._connection: Connection | None = None
        self._stream: int | None = None
        self._initiator: Initiator | None = None
        self._unsent = b""
        self._tries = 0
        self._is_writing = False
        talker.later(0.0, self._begin)

    @property
    def waiting(self) -> int:
        """Messages that were not written yet."""
        return len(self._messages)

    def post(self, message: bytes) -> None:
        """Queues one message; everything that is queued at one moment is written together."""
        self._messages.append(message)
        if not self._is_writing:
            self._is_writing = True
            self._talker.later(0.0, self._write_queued)

    def end(self) -> None:
        """Speaks no more, and gives up the stream."""
        self.over = True
        self._give_up()

    def _give_up(self) -> None:
        connection, stream = self._connection, self._stream
        self._stream, self._initiator, self._unsent = None, None, b""
        if connection is not None and stream is not None:
            self._talker.transport.abandon(connection, stream, ErrorCode.CANCELLED)

    def _begin(self) -> None:
        if self.over or self._stream is not None:
            return
        transport = self._talker.transport
        self._connection = connection = transport.connections.get(self.peer_id)
        if connection is None:
            self.over = True
            return
        try:
            self._stream = transport.open_stream(connection, self)
        except LocalProtocolError:
            return  # the end of the connection is about to be told
        if self._stream is None:
            connection.openers.append(self._begin)
            return
        self._tries += 1
        tries = self._tries
        self._talker.later(GREETING_TIMEOUT_S, lambda: self._too_late(tries))
        self._initiator = Initiator([GOSSIP_PROTOCOL])
        self._write(self._initiator.data_to_send())

    def _too_late(self, tries: int) -> None:
        if tries == self._tries and self._initiator is not None:
            self._give_up()
            self._broke(ErrorCode.IDLE)

    def _broke(self, code: int) -> None:
        """The stream is over, though nobody ended it here."""
        if self.over:
            return
        self._stream = self._initiator = None
        self._unsent = b""
        if self._talker.transport.connections.get(self.peer_id) is not self._connection:
            self._talker.later(0.0, self._begin)
            return
        self._talker.not_greeted(self.peer_id)
        if code == ErrorCode.UNSUPPORTED:
            self.over = True
        else:
            self._talker.later(GREETING_RETRY_S, self._begin)

    # What the transport tells

    def took(self, data: bytes, *, end: bool) -> None:
        """See `StreamUser`."""
        connection, stream = self._connection, self._stream
        if connection is None or stream is None:
            return
        self._talker.transport.grant(connection, stream, len(data))
        if self._initiator is None:
            return  # a listener has nothing to say, and speaking goes on where it ended its side
        try:
            if data:
                self._initiator.receive_data(data)
            if end and self._initiator.agreed is None:
                self._initiator.receive_eof()
        except RemoteProtocolError as fault:
            self._talker.transport.abandon(connection, stream, fault.code)
            self._broke(fault.code)
            return
        if self._initiator.agreed is not None:
            self._initiator = None
            self._talker.greeted(self.peer_id)
            self._write_queued()

    def was_reset(self, code: int) -> None:
        """See `StreamUser`; a reader that waits for nothing does not notice, the writer is told by `was_stopped`."""
        if self._initiator is not None:
            self._give_up()
            self._broke(code)

    def was_stopped(self, code: int) -> None:
        """See `StreamUser`."""
        self._give_up()
        self._broke(code)

    def became_writable(self) -> None:
        """See `StreamUser`."""
        self._write(b"")

    def was_lost(self, code: int) -> None:
        """See `StreamUser`."""
        self._broke(code)

    # Writing

    def _write_queued(self) -> None:
        self._is_writing = False
        if self._stream is None or self._initiator is not None or self._unsent or not self._messages:
            return
        batch = b"".join(map(encode_frame, self._messages))
        self._messages.clear()
        self._write(batch)

    def _write(self, data: bytes) -> None:
        self._unsent += data
        if self._connection is None or self._stream is None or not self._unsent:
            return
        pending = self._unsent
        try:
            taken = self._talker.transport.write(self._connection, self._stream, pending)
        except LocalProtocolError:
            return  # what ended the stream is about to be told
        self._unsent = pending[taken:]
        if not self._unsent and self._messages and self._initiator is None:
            self._write_queued()


class Hearing:
    """Listens to one stream that a peer opened."""

    def __init__(self, talker: Talker, connection: Connection, stream: int) -> None:
        self._talker = talker
        self._connection = connection
        self._stream = stream
        self._listener: Listener | None = Listener(lambda protocol_id: protocol_id == GOSSIP_PROTOCOL)
        self._decoder = FrameDecoder(gossip.MESSAGE_BYTES_MAX)
        self._uncredited_bytes = 0
        self._over = False
        talker.later(NEGOTIATION_TIMEOUT_S, self._too_late)

    def _too_late(self) -> None:
        if self._listener is not None:
            self._finish(ErrorCode.IDLE)

    def _finish(self, code: ErrorCode) -> None:
        if not self._over:
            self._over = True
            self._talker.transport.abandon(self._connection, self._stream, code)

    def took(self, data: bytes, *, end: bool) -> None:
        """See `StreamUser`."""
        if self._over:
            return
        self._uncredited_bytes += len(data)
        if self._uncredited_bytes >= CREDIT_STEP_BYTES:
            granted, self._uncredited_bytes = self._uncredited_bytes, 0
            self._talker.transport.grant(self._connection, self._stream, granted)
        try:
            self._hear(self._negotiated(data) if self._listener is not None else data)
        except RemoteProtocolError as fault:
            if self._listener is not None:
                self._finish(fault.code)
            else:
                self._talker.faulted(self._connection.peer_id, fault.code)
            return
        if end:
            self._end()

    def _negotiated(self, data: bytes) -> bytes:
        """Takes bytes of the negotiation, and returns what came behind it."""
        assert self._listener is not None, "the negotiation is over"
        listener = self._listener
        listener.receive_data(data)
        answer = listener.data_to_send()
        if answer:
            try:
                self._talker.transport.write(self._connection, self._stream, answer, linger=listener.agreed is not None)
            except LocalProtocolError:
                return b""
        if listener.agreed is None:
            return b""
        self._listener = None
        return listener.take_rest()

    def _hear(self, data: bytes) -> None:
        self._decoder.receive(data)
        while not self._over and (message := self._decoder.next_frame()) is not None:
            self._talker.heard(self._connection.peer_id, message)

    def _end(self) -> None:
        """The peer has ended its side; this side has nothing to add."""
        if self._over:
            return
        self._over = True
        transport = self._talker.transport
        transport.grant(self._connection, self._stream, self._uncredited_bytes)
        with suppress(LocalProtocolError):
            transport.write(self._connection, self._stream, b"", end=True, linger=True)
        transport.forget(self._connection, self._stream)

    def was_reset(self, _code: int) -> None:
        """See `StreamUser`."""
        self._finish(ErrorCode.CANCELLED)

    def was_stopped(self, _code: int) -> None:
        """See `StreamUser`; nothing is said on this stream but the agreement."""

    def became_writable(self) -> None:
        """See `StreamUser`."""

    def was_lost(self, _code: int) -> None:
        """See `StreamUser`."""
        self._over = True
