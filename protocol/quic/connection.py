"""One connection of the endpoint: its streams, its keep-alive and its end, over an engine's connection.

The engine's events become the endpoint's outputs here. A stream is forgotten when both sides are over and all its bytes are
consumed. One of which too much is unread is given up, so that a reader which has stopped costs bounded memory and delays no
other stream; an engine that grants credit by what was consumed never lets it come so far. Keep-alive: when nothing was heard for
a while a PING goes out; while stream data flows the while is short, and it doubles with every PING up to the usual interval, so
that a stream which stays open and silent costs nothing.

Spec: docs/spec/02-transport.md, sections "Streams" and "Timers".
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from protocol.budget import Verdict
from protocol.conduct import Account, Conduct
from protocol.errors import ErrorCode, LocalProtocolError
from protocol.identity import PeerId
from protocol.quic.events import (
    ConnectionClosed,
    ConnectionEstablished,
    ConnectionHandle,
    DatagramReceived,
    EndpointConfig,
    Output,
    StopSending,
    StreamData,
    StreamOpened,
    StreamReset,
    StreamsAvailable,
    StreamWritable,
)
from protocol.quic.seam import (
    Address,
    CidIssued,
    CidReplaced,
    CidRetired,
    Closed,
    DataReceived,
    EngineConnection,
    EngineEvent,
    FrameReceived,
    HandshakeFinished,
    PingAnswered,
    ResetReceived,
    StopReceived,
)

EARLY_EVENT_BYTES = 256
"""What an event costs beside its data, in bytes, while it waits for the connection to be established: two objects of Python."""


LOOK_INTERVAL_S = 0.5
"""Time in seconds between two looks whether a peer takes what waits for it."""

REPLACED_ID_COST = 4.0
"""What it costs of the account of connection ids when the peer replaces its own: behind one that is used there may be as many
unseen as fit a datagram, and each takes longer than those before."""

UNHEARD_S = 2.0
"""A peer that was not heard for this many seconds, though it was pinged, may have been cut off from the network."""


@dataclass(slots=True)
class StreamState:
    """What the endpoint knows of one stream.

    Attributes:
        readable: whether the peer may still send.
        writable: whether this side may still send.
        discarding: whether arriving bytes are dropped, since nobody reads them.
        stop_code: with what the peer is asked to stop should it send more; None where it is not to be asked, or was.
        unread_bytes: bytes handed out and not yet consumed.
    """

    readable: bool = True
    writable: bool = True
    discarding: bool = False
    stop_code: int | None = None
    unread_bytes: int = 0


class Connection:
    """The machine for one connection; the endpoint routes datagrams and timers to it."""

    def __init__(
        self,
        handle: ConnectionHandle,
        engine: EngineConnection,
        config: EndpointConfig,
        now: float,
        address: Address,
        conduct: Conduct,
        *,
        is_client: bool,
    ) -> None:
        self.handle = handle
        self.engine = engine
        self.is_client = is_client
        self.local = 0
        self.address = address
        self.peer_id: PeerId | None = None
        self.incarnation: Callable[[], bytes] = bytes
        self.cids: dict[bytes, None] = dict.fromkeys(engine.cids)
        self.new_cids: list[bytes] = []
        self.old_cids: list[bytes] = []
        self.timer: float | None = None
        self.closed: Closed | None = None
        self.stranger_bytes = 0
        self.stranger_cpu_s = 0.0
        self.delivered_bytes = 0
        self.unexplained_s = 0.0
        self._ends_it = False
        self._config = config
        self._conduct = conduct
        self._outputs: deque[Output] = deque()
        self._early: deque[DataReceived | ResetReceived | StopReceived] = deque()
        self._early_bytes = 0
        self._streams: dict[int, StreamState] = {}
        self._unread_bytes = 0
        self._blocked: dict[int, None] = {}
        self._peer_bit = 1 if is_client else 0
        self._next_remote = self._peer_bit
        self._skipped: dict[int, None] = {}
        self._wants_stream = False
        self._held: dict[int, int] = {}  # bytes of each stream in the library's send buffer, as of its last write
        self._held_bytes = 0
        self._written_bytes = 0
        self._taken_bytes = 0
        self._explained_bytes = 0
        self._poke_at = now
        self._taken_at = now
        self._look_at = now
        self._handshake_ends = now + config.handshake_timeout_s
        self._ping_interval_s = config.keep_alive_s
        self._next_ping = now + config.keep_alive_s
        self._pings = 0

    @property
    def established(self) -> bool:
        """Whether both sides proved who they are."""
        return self.peer_id is not None

    @property
    def open_streams(self) -> int:
        """Streams that are not forgotten yet."""
        return len(self._streams)

    @property
    def has_unsent(self) -> bool:
        """Whether stream bytes wait for credit or for the congestion window; cheap where nothing was written lately."""
        return bool(self._held) and self.closed is None and self.engine.has_unsent()

    def next_output(self) -> Output | None:
        """Return the oldest output not yet taken."""
        return self._outputs.popleft() if self._outputs else None

    # From the network and the clock.

    def receive(self, datagrams: list[bytes], address: Address, now: float, received_at: float) -> None:
        """Take datagrams for this connection."""
        self.engine.receive(datagrams, address, now)
        self._next_ping = now + self._ping_interval_s
        self.collect(now, received_at)
        if self._held and now >= self._look_at and self.closed is None:
            self._look_whether_it_reads(now)

    def handle_timer(self, now: float) -> None:
        """Let due timers fire: the engine's, the handshake's, the keep-alive."""
        self.engine.handle_timer(now)
        if self.established:
            if self._held_bytes > self._config.stalled_bytes_max and now >= self._poke_at:
                self._pings += 1
                self.engine.ping(self._pings)  # whether it is there at all, and only does not read
                self._poke_at = now + LOOK_INTERVAL_S
            if now >= self._next_ping:
                self._pings += 1
                self.engine.ping(self._pings)
                self._ping_interval_s = min(2 * self._ping_interval_s, self._config.keep_alive_s)
                self._next_ping = now + self._ping_interval_s
        elif now >= self._handshake_ends:
            self.close(ErrorCode.IDLE, f"the handshake took longer than {self._config.handshake_timeout_s:g} s", now)
        self.collect(now, now)

    def due(self) -> float | None:
        """Return when this connection wants `handle_timer`."""
        if self.closed is not None:
            return None
        own = self._next_ping if self.established else self._handshake_ends
        if self._held_bytes > self._config.stalled_bytes_max:
            own = min(own, self._poke_at)
        timer = self.engine.next_timer()
        return own if timer is None else min(own, timer)

    def collect(self, now: float, received_at: float) -> None:
        """Turn the engine's events into outputs."""
        while self.closed is None and (event := self.engine.next_event()) is not None:
            if not self._ends_it or isinstance(event, Closed):  # what came before the end is void
                self._take(event, now, received_at)
        if self.closed is None:
            self._wake_writers()

    def _take(self, event: EngineEvent, now: float, received_at: float) -> None:
        match event:
            case DataReceived() | ResetReceived() | StopReceived():
                if self.peer_id is not None:
                    is_small = not isinstance(event, DataReceived) or len(event.data) < self._conduct.config.small_bytes
                    if not is_small or self._pays(self.peer_id, Account.FRAMES, now) is not Verdict.FLOODED:
                        self._take_stream(event, now)
                else:  # a server may speak before the client knows that it was accepted
                    self._keep_early(event, now)
            case FrameReceived(data=data):
                if self.peer_id is not None and self._pays(self.peer_id, Account.FRAMES, now) is Verdict.GRANTED:
                    self._outputs.append(DatagramReceived(self.handle, data, received_at))
            case HandshakeFinished(peer_id=peer_id) if self._conduct.is_banned(peer_id, now):
                self.close(ErrorCode.BANNED, "this peer is turned away for a while, for what it did before", now)
            case HandshakeFinished(peer_id=peer_id):
                self.peer_id = peer_id
                self._next_ping = now + self._ping_interval_s
                incarnation = self.incarnation()
                self._outputs.append(ConnectionEstablished(self.handle, peer_id, self.address, self.is_client, incarnation))
                while self._early and self.closed is None:
                    self._take_stream(self._early.popleft(), now)
            case CidIssued() | CidRetired() | CidReplaced():
                self._take_cid(event, now)
            case PingAnswered():
                pass
            case Closed():
                self.closed = event
                if event.local and self.peer_id is not None and not self._ends_it:
                    self._conduct.fault(self.peer_id, event.code, now)  # the library found that the peer broke the rules
                self._streams.clear()
                self._blocked.clear()
                self._early.clear()
                self._outputs.append(ConnectionClosed(self.handle, event.code, event.detail, event.local, self.established))

    def _take_cid(self, event: CidIssued | CidRetired | CidReplaced, now: float) -> None:
        match event:
            case CidReplaced():
                if self.peer_id is not None:
                    self._pays(self.peer_id, Account.IDS, now, REPLACED_ID_COST)
            case CidIssued(cid=cid):
                self.new_cids.append(cid)
            case CidRetired(cid=cid):
                self.old_cids.append(cid)
                if self.peer_id is not None:
                    self._pays(self.peer_id, Account.IDS, now)

    def _keep_early(self, event: DataReceived | ResetReceived | StopReceived, now: float) -> None:
        self._early_bytes += EARLY_EVENT_BYTES + (len(event.data) if isinstance(event, DataReceived) else 0)
        if self._early_bytes > self._config.stream_unread_bytes_max:
            self.close(ErrorCode.FLOODING, "too much was sent before the connection was established", now)
        else:
            self._early.append(event)

    def _take_stream(self, event: DataReceived | ResetReceived | StopReceived, now: float) -> None:
        match event:
            case DataReceived(stream_id=stream_id, data=data, end=end):
                self._take_data(stream_id, data, end, now)
            case ResetReceived(stream_id=stream_id, code=code):
                if (state := self._remote_stream(stream_id, now)) is not None and state.readable:
                    state.readable = False
                    self._read(state, state.unread_bytes)  # the engine has granted credit for them
                    if not state.discarding:
                        self._outputs.append(StreamReset(self.handle, stream_id, code))
                    self._forget_if_over(stream_id, state)
            case StopReceived(stream_id=stream_id, code=code):
                if (state := self._remote_stream(stream_id, now)) is not None and state.writable:
                    state.writable = False
                    self._blocked.pop(stream_id, None)
                    self._outputs.append(StopSending(self.handle, stream_id, code))
                    self._forget_if_over(stream_id, state)

    def _take_data(self, stream_id: int, data: bytes, end: bool, now: float) -> None:
        self.delivered_bytes += len(data)
        state = self._remote_stream(stream_id, now)
        if state is None or not state.readable:
            if state is None:
                self.engine.consumed(stream_id, len(data))
            return
        self._hurry(now)
        if end:
            state.readable = False
        if state.discarding:
            if state.stop_code is not None and not end:
                self.engine.stop(stream_id, state.stop_code)
                state.stop_code = None
            self.engine.consumed(stream_id, len(data))
            self._forget_if_over(stream_id, state)
            return
        state.unread_bytes += len(data)
        self._unread_bytes += len(data)
        self._outputs.append(StreamData(self.handle, stream_id, data, end))
        if not data:
            self._forget_if_over(stream_id, state)
        elif state.unread_bytes > self._config.stream_unread_bytes_max:
            self._give_up(stream_id)
        elif self._unread_bytes > self._config.unread_bytes_max:
            self._give_up(max(self._streams, key=lambda stream_id: self._streams[stream_id].unread_bytes))

    def _give_up(self, stream_id: int) -> None:
        """Read no more of a stream that the application does not read."""
        self.stop_sending(stream_id, ErrorCode.FLOODING)
        self._outputs.append(StreamReset(self.handle, stream_id, ErrorCode.FLOODING, local=True))

    def _read(self, state: StreamState, n_bytes: int) -> None:
        """Count bytes as read, or as never to be read."""
        state.unread_bytes -= n_bytes
        self._unread_bytes -= n_bytes

    def _remote_stream(self, stream_id: int, now: float) -> StreamState | None:
        """Return a stream that an event names, opening it when the peer just did; None when it is over or not allowed."""
        state = self._streams.get(stream_id)
        if state is not None or stream_id & 1 != self._peer_bit:
            return state
        if stream_id >= self._next_remote:
            for skipped in range(self._next_remote, stream_id, 4):
                self._skipped[skipped] = None
            self._next_remote = stream_id + 4
        elif stream_id in self._skipped:
            del self._skipped[stream_id]
        else:
            return None
        if self.peer_id is None or self._pays(self.peer_id, Account.STREAMS, now) is not Verdict.GRANTED:
            return None
        state = self._streams[stream_id] = StreamState()
        self._outputs.append(StreamOpened(self.handle, stream_id))
        return state

    def _pays(self, peer_id: PeerId, account: Account, now: float, amount: float = 1.0) -> Verdict:
        """Charge the peer for one of something, or so many; when it floods, the connection is closed."""
        verdict = self._conduct.charge(peer_id, account, amount, now)
        if verdict is Verdict.FLOODED and self.closed is None:
            allowance = self._conduct.config.allowance(account)
            self.close(ErrorCode.FLOODING, f"more than {allowance.rate_per_s:g} {account.value} per second", now)
        return verdict

    def _hurry(self, now: float) -> None:
        """Stream data flows: look sooner whether the path still carries it."""
        self._ping_interval_s = min(self._config.prompt_ping_s, self._config.keep_alive_s)
        self._next_ping = now + self._ping_interval_s

    def _look_whether_it_reads(self, now: float) -> None:
        """End the connection to a peer that is heard and takes next to nothing of the much that waits for it.

        A few bytes now and then are no reading: a peer that has no credit to give for its answers may still take what is said on
        other streams.
        """
        config = self._config
        if now > self._look_at + UNHEARD_S:
            self._taken_at = now  # it was not heard for a while: its path may have been cut off
        self._look_at = now + LOOK_INTERVAL_S
        held_bytes = self._count_held()
        taken_bytes = self._written_bytes - held_bytes
        if held_bytes <= config.stalled_bytes_max or taken_bytes - self._taken_bytes >= held_bytes * config.stalled_share:
            self._taken_bytes, self._taken_at = taken_bytes, now
        elif now - self._taken_at >= config.stalled_s and self.peer_id is not None:
            self._conduct.fault(self.peer_id, ErrorCode.FLOODING, now)
            self.close(ErrorCode.FLOODING, f"{held_bytes} bytes wait and next to none is taken", now)

    def newly_taken_bytes(self) -> int:
        """Bytes of this side's streams that the peer has acknowledged since the last call: they explain its acknowledgements."""
        taken_bytes = self._written_bytes - self._count_held()
        newly, self._explained_bytes = taken_bytes - self._explained_bytes, max(taken_bytes, self._explained_bytes)
        return max(0, newly)

    def _count_held(self) -> int:
        """Count anew what waits in the library's send buffers."""
        counted = {stream_id: self.engine.buffered(stream_id) for stream_id in self._held}
        self._held = {stream_id: n_bytes for stream_id, n_bytes in counted.items() if n_bytes}
        self._held_bytes = sum(self._held.values())
        return self._held_bytes

    def _wake_writers(self) -> None:
        full = self._config.held_bytes_max
        if self._blocked and self._held_bytes >= full and self._count_held() >= full:
            return
        half = self._config.send_buffer_bytes_max // 2
        for stream_id in [stream_id for stream_id in self._blocked if self.engine.buffered(stream_id) <= half]:
            del self._blocked[stream_id]
            self._outputs.append(StreamWritable(self.handle, stream_id))
        if self._wants_stream and self.established and self.engine.streams_left() > 0:
            self._wants_stream = False
            self._outputs.append(StreamsAvailable(self.handle))

    def _forget_if_over(self, stream_id: int, state: StreamState) -> None:
        if not state.readable and not state.writable and state.unread_bytes == 0:
            self._streams.pop(stream_id, None)
            self._blocked.pop(stream_id, None)
            self.engine.forget(stream_id)

    # From the application.

    def open_stream(self, now: float) -> int | None:
        """Open a stream; None while the peer allows no more, then `StreamsAvailable` follows."""
        if self.closed is not None or not self.established:
            raise LocalProtocolError(ErrorCode.UNREACHABLE, "the connection is not established")
        stream_id = self.engine.open_stream()
        if stream_id is None:
            self._wants_stream = True
            return None
        self._streams[stream_id] = StreamState()
        self._hurry(now)
        return stream_id

    def room(self, stream_id: int) -> int:
        """How many bytes of a stream `send` would take now."""
        state, config = self._streams.get(stream_id), self._config
        if state is None or not state.writable:
            return 0
        return max(
            0, min(config.send_buffer_bytes_max - self.engine.buffered(stream_id), config.held_bytes_max - self._held_bytes)
        )

    def send(self, stream_id: int, data: bytes | memoryview, end: bool) -> int:
        """Queue stream bytes and say how many were taken; when not all, `StreamWritable` follows."""
        state = self._streams.get(stream_id)
        if state is None or not state.writable:
            raise LocalProtocolError(ErrorCode.CANCELLED, f"stream {stream_id} takes no more data")
        held = self.engine.buffered(stream_id)
        room = self._config.send_buffer_bytes_max - held
        if self._held_bytes + len(data) > self._config.held_bytes_max:
            room = min(room, self._config.held_bytes_max - self._count_held())
        self._note_held(stream_id, held + max(0, min(room, len(data))), max(0, min(room, len(data))))
        if room < len(data):
            self._blocked[stream_id] = None
            if room <= 0:
                return 0
            self.engine.send(stream_id, data[:room], False)
            return room
        self.engine.send(stream_id, data, end)
        if end:
            state.writable = False
            self._forget_if_over(stream_id, state)
        return len(data)

    def _note_held(self, stream_id: int, held_bytes: int, written_bytes: int) -> None:
        self._held_bytes += held_bytes - self._held.get(stream_id, 0)
        self._held[stream_id] = held_bytes
        self._written_bytes += written_bytes

    def reset(self, stream_id: int, code: int) -> None:
        """Abandon this side of a stream; nothing happens when it is over."""
        state = self._streams.get(stream_id)
        if state is None:
            return
        self.engine.reset(stream_id, code)
        state.writable = False
        self._blocked.pop(stream_id, None)
        self._forget_if_over(stream_id, state)

    def stop_sending(self, stream_id: int, code: int) -> None:
        """Read no more of a stream: what came is dropped, and the peer is asked to stop."""
        state = self._streams.get(stream_id)
        if state is None:
            return
        if state.readable and (not state.discarding or state.stop_code is not None):
            self.engine.stop(stream_id, code)
        state.stop_code = None
        self._discard(stream_id, state)

    def ignore(self, stream_id: int, code: int) -> None:
        """Read no more of a stream of which no more is expected: the peer is asked to stop only if it does send more."""
        state = self._streams.get(stream_id)
        if state is not None and not state.discarding:
            state.stop_code = code
            self._discard(stream_id, state)

    def _discard(self, stream_id: int, state: StreamState) -> None:
        state.discarding = True
        self.engine.consumed(stream_id, state.unread_bytes)
        self._read(state, state.unread_bytes)
        self._forget_if_over(stream_id, state)

    def consumed(self, stream_id: int, n_bytes: int) -> None:
        """Grant credit for bytes that the reader has taken."""
        state = self._streams.get(stream_id)
        if state is None or state.unread_bytes == 0:
            return
        n_bytes = min(n_bytes, state.unread_bytes)
        self._read(state, n_bytes)
        self.engine.consumed(stream_id, n_bytes)
        self._forget_if_over(stream_id, state)

    def send_datagram(self, data: bytes) -> bool:
        """Queue a DATAGRAM frame; False when it cannot go."""
        return self.closed is None and self.established and self.engine.send_frame(data)

    def close(self, code: ErrorCode, reason: str, now: float) -> None:
        """Close the connection; `ConnectionClosed` follows at once."""
        self._ends_it = True
        self.engine.close(code, reason)
        self.collect(now, now)
