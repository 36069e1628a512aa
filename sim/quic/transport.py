"""One process's QUIC transport without tasks: the real endpoint, its timer, its connections, and the choice between two of them.

It does what mesh/transport does, call by call: what is written leaves at once, what nobody waits for lingers for a millisecond
and leaves with the next message, dials of one peer share one attempt, and of two connections to one peer one is retired. Where
the shell has a task that waits, this has an object that is told. What happens on streams is told to the object that was put on
the stream.

Source: mesh/transport/transport.py, which this stands for.
Spec: docs/spec/02-transport.md, sections "Connections" and "Timers".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from protocol import conduct
from protocol.errors import ErrorCode, LocalProtocolError
from protocol.identity import Identity, PeerId, TlsCertificate
from protocol.multiaddr import Multiaddr
from protocol.quic import QuicEngine
from protocol.quic import events as quic
from protocol.quic.endpoint import Endpoint
from protocol.quic.seam import Address, VerifyPeer

LINGER_S = 0.001
"""Longest wait in seconds of what nobody waits for, as in the shell."""

LINGERING_DATAGRAMS_MAX = 8
"""Received datagrams whose acknowledgement lingers, a count, as in the shell."""

RETIRE_S_MIN = 1.0
"""Seconds for which a duplicate connection is kept at least, as in the shell."""

RETIRE_S_MAX = 30.0
"""Seconds for which a duplicate connection is kept at most, as in the shell."""

STANDING_STILL_MAX = 1000
"""Wake-ups at one moment, a count: more of them are a timer that stands still, which would never let time pass."""


class StreamUser(Protocol):
    """What is told of one stream; each call comes once per event and may call the transport back."""

    def took(self, data: bytes, *, end: bool) -> None:
        """Bytes came, and maybe the end."""
        ...

    def was_reset(self, code: int) -> None:
        """The peer abandoned its side."""
        ...

    def was_stopped(self, code: int) -> None:
        """The peer reads no more."""
        ...

    def became_writable(self) -> None:
        """The send buffer has room again."""
        ...

    def was_lost(self, code: int) -> None:
        """The connection is gone."""
        ...


@dataclass(eq=False, slots=True)
class Connection:
    """One established connection.

    Attributes:
        handle: the endpoint's name for it.
        peer_id: who is at the other end.
        is_dialled: whether this process opened it.
        incarnation: the same for all connections of one run of the peer.
        streams: who uses each stream that is not over.
        openers: who waits until the peer allows another stream.
        retired: whether another one took its place.
        may_close: whether it is closed as soon as it is retired and no stream is left.
    """

    handle: quic.ConnectionHandle
    peer_id: PeerId
    is_dialled: bool
    incarnation: bytes
    streams: dict[int, StreamUser] = field(default_factory=dict[int, StreamUser])
    openers: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    retired: bool = False
    may_close: bool = False


class Owner(Protocol):
    """Whom the transport tells of peers, and who lends it time and a network."""

    @property
    def now(self) -> float:
        """Virtual seconds."""
        ...

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Calls `action` after a while, if the process still lives and when it is let run."""
        ...

    def transmit(self, datagrams: list[tuple[bytes, Address]]) -> None:
        """Gives datagrams to the network."""
        ...

    def connected(self, connection: Connection) -> None:
        """A peer is connected that was not."""
        ...

    def disconnected(self, peer_id: PeerId, code: ErrorCode) -> None:
        """The last connection of a peer is gone."""
        ...

    def replaced(self, connection: Connection) -> None:
        """Another connection took the place of a peer's current one."""
        ...

    def datagram(self, peer_id: PeerId, payload: bytes, received_at: float) -> None:
        """A DATAGRAM frame came."""
        ...

    def opened(self, connection: Connection, stream: int) -> StreamUser:
        """A peer opened a stream; who uses it?"""
        ...


Ended = Callable[[PeerId | None], None]
"""Who is told how a dial ended: with whom it connected, or None."""


class Transport:
    """All connections of one life of one process; `connections` holds the current one of every connected peer."""

    def __init__(
        self,
        owner: Owner,
        engine: QuicEngine,
        certificate: TlsCertificate,
        identity: Identity,
        verify: VerifyPeer,
        config: quic.EndpointConfig,
    ) -> None:
        """Makes the transport of a process that starts.

        Args:
            owner: whom it tells.
            engine: the QUIC library.
            certificate: of this life of the process.
            identity: of the process.
            verify: turns a peer's certificate into its peer id.
            config: of the endpoint.
        """
        self.endpoint = Endpoint(engine, certificate, identity.peer_id, verify, config)
        self.connections: dict[PeerId, Connection] = {}
        self._owner = owner
        self._own = identity.peer_id
        self._by_handle: dict[quic.ConnectionHandle, Connection] = {}
        self._dials: dict[object, list[Ended]] = {}
        self._dial_of: dict[quic.ConnectionHandle, object] = {}
        self._pumping = False
        self._pump_again = False
        self._linger_until = math.inf
        self._lingering_datagrams = 0
        self._armed_for = math.inf
        self._woken_at = -math.inf
        self._woken_times = 0

    @property
    def n_connections(self) -> int:
        """Established connections, retired ones among them."""
        return len(self._by_handle)

    # From the network and the clock

    def receive(self, data: bytes, address: Address, received_at: float) -> None:
        """Takes one datagram that reached the machine at `received_at`."""
        now = self._owner.now
        self.endpoint.handle_datagrams([quic.Received(data, address, received_at)], now)
        self._lingering_datagrams += 1
        if self._lingering_datagrams > LINGERING_DATAGRAMS_MAX or self._dial_of or self.endpoint.n_strangers:
            self.pump()
        else:
            self.pump_soon()

    def _arm(self) -> None:
        due = self.endpoint.next_timer()
        wake_at = self._linger_until if due is None else min(due, self._linger_until)
        if wake_at < self._armed_for:
            self._armed_for = wake_at
            self._owner.later(max(0.0, wake_at - self._owner.now), lambda: self._due(wake_at))

    def _due(self, armed_for: float) -> None:
        if self._armed_for != armed_for:
            return
        self._armed_for = math.inf
        now = self._owner.now
        self._woken_times = self._woken_times + 1 if self._woken_at == now else 0
        self._woken_at = now
        assert self._woken_times < STANDING_STILL_MAX, "a timer of the endpoint stands still"
        due = self.endpoint.next_timer()
        if self._linger_until <= now or (due is not None and due <= now):
            self.endpoint.handle_timer(now)
            self.pump()
        else:
            self._arm()

    def pump(self) -> None:
        """Flushes the endpoint and acts on all its outputs."""
        self._pump_again = True
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._pump_again:
                self._pump_again = False
                self._linger_until, self._lingering_datagrams = math.inf, 0
                self.endpoint.flush(self._owner.now)
                self._drain()
        finally:
            self._pumping = False
        self._arm()

    def pump_soon(self) -> None:
        """Acts on all outputs; what is to be sent leaves with the next flush, after `LINGER_S` at the latest."""
        self._linger_until = min(self._linger_until, self._owner.now + LINGER_S)
        if self._pumping:
            return
        self._pumping = True
        try:
            self._drain()
        finally:
            self._pumping = False
        if self._pump_again:
            self.pump()
        else:
            self._arm()

    def _drain(self) -> None:
        while (output := self.endpoint.next_output()) is not None:
            self._act(output)

    def _act(self, output: quic.Output) -> None:
        match output:
            case quic.Transmit(datagrams=datagrams):
                self._owner.transmit(datagrams)
            case quic.DatagramReceived(connection=handle, data=data, received_at=received_at):
                if (connection := self._by_handle.get(handle)) is not None:
                    self._owner.datagram(connection.peer_id, data, received_at)
            case quic.ConnectionEstablished():
                self._established(output)
            case quic.ConnectionClosed():
                self._closed(output)
            case quic.StreamOpened(connection=handle, stream=stream):
                connection = self._by_handle[handle]
                connection.streams[stream] = self._owner.opened(connection, stream)
            case conduct.PeerBanned() | conduct.PrefixBanned() | conduct.BanExpired():
                pass  # told by a node's telemetry alone
            case quic.StreamsAvailable(connection=handle):
                waiting, self._by_handle[handle].openers = self._by_handle[handle].openers, []
                for opener in waiting:
                    self._owner.later(0.0, opener)
            case _:
                self._act_on_stream(output)

    def _act_on_stream(self, output: quic.StreamData | quic.StreamReset | quic.StopSending | quic.StreamWritable) -> None:
        connection = self._by_handle.get(output.connection)
        user = connection.streams.get(output.stream) if connection is not None else None
        match output:
            case quic.StreamData(connection=handle, stream=stream, data=data, end=end):
                if user is not None:
                    user.took(data, end=end)
                else:
                    self.endpoint.consumed(handle, stream, len(data), self._owner.now)
            case quic.StreamReset(code=code) if user is not None:
                user.was_reset(code)
            case quic.StopSending(code=code) if user is not None:
                user.was_stopped(code)
            case quic.StreamWritable() if user is not None:
                user.became_writable()
            case _:
                pass

    # Dialling

    def dial(self, address: Multiaddr, ended: Ended, *, afresh: bool = False) -> None:
        """Dials a peer unless it is connected, or (`afresh`) all the same; dials of one peer at a time share one attempt."""
        if not afresh and address.peer_id is not None and address.peer_id in self.connections:
            peer_id = address.peer_id
            self._owner.later(0.0, lambda: ended(peer_id))
            return
        key: object = (address.host, address.port) if address.peer_id is None else address.peer_id
        if key in self._dials:
            self._dials[key].append(ended)
            return
        try:
            handle = self.endpoint.connect((address.host, address.port), address.peer_id, self._owner.now)
        except LocalProtocolError:
            self._owner.later(0.0, lambda: ended(None))
            return
        self._dials[key] = [ended]
        self._dial_of[handle] = key
        self.pump()

    def _finish_dial(self, handle: quic.ConnectionHandle, peer_id: PeerId | None) -> None:
        key = self._dial_of.pop(handle, None)
        for ended in self._dials.pop(key, []) if key is not None else []:
            self._owner.later(0.0, lambda ended=ended: ended(peer_id))  # type: ignore[misc]

    # Connections

    def _established(self, output: quic.ConnectionEstablished) -> None:
        connection = Connection(output.connection, output.peer_id, output.is_client, output.incarnation)
        self._by_handle[output.connection] = connection
        other = self.connections.get(output.peer_id)
        if other is None:
            self.connections[output.peer_id] = connection
            self._owner.connected(connection)
        elif other.incarnation != connection.incarnation:
            self.connections[output.peer_id] = connection
            self.endpoint.close(other.handle, ErrorCode.DUPLICATE, "the peer was started again", self._owner.now)
            self._owner.replaced(connection)
            self.pump()
        elif self._keeps_older(other, connection):
            self._retire(connection)
        else:
            self.connections[output.peer_id] = connection
            self._retire(other)
            self._owner.replaced(connection)
        self._finish_dial(output.connection, output.peer_id)

    def _keeps_older(self, older: Connection, newer: Connection) -> bool:
        """Whether the older of two connections stays: both sides choose alike, the one that the smaller peer id dialled."""
        return older.is_dialled != newer.is_dialled and older.is_dialled == (self._own < older.peer_id)

    def _retire(self, connection: Connection) -> None:
        def may_close() -> None:
            connection.may_close = True
            self._close_if_quiet(connection)

        connection.retired = True
        self._owner.later(RETIRE_S_MIN, may_close)
        self._owner.later(RETIRE_S_MAX, lambda: self._close_duplicate(connection))

    def _close_if_quiet(self, connection: Connection) -> None:
        if connection.may_close and not connection.streams:
            self._close_duplicate(connection)

    def _close_duplicate(self, connection: Connection) -> None:
        """Closes a connection that was retired, unless it took its successor's place again."""
        if connection.retired and connection.handle in self._by_handle:
            reason = "another connection of the same peers stays"
            self.endpoint.close(connection.handle, ErrorCode.DUPLICATE, reason, self._owner.now)
            self.pump()

    def _closed(self, output: quic.ConnectionClosed) -> None:
        connection = self._by_handle.pop(output.connection, None)
        self._finish_dial(output.connection, None)
        if connection is None:
            return
        peer_id = connection.peer_id
        if self.connections.get(peer_id) is connection:
            del self.connections[peer_id]
            promoted = next((other for other in self._by_handle.values() if other.peer_id == peer_id), None)
            if promoted is not None:  # the one that was retired outlived its successor
                promoted.retired = False
                self.connections[peer_id] = promoted
                self._owner.replaced(promoted)
        users = list(connection.streams.values())
        connection.streams.clear()
        for user in users:
            user.was_lost(output.code)
        if peer_id not in self.connections:
            self._owner.disconnected(peer_id, output.code)

    def close(self, peer_id: PeerId, code: ErrorCode, reason: str) -> None:
        """Closes the current connection of a peer."""
        connection = self.connections.get(peer_id)
        if connection is not None:
            self.endpoint.close(connection.handle, code, reason, self._owner.now)
            self.pump()

    def lose_everything(self) -> None:
        """Ends all connections at this end, as where the machine has another address and does not migrate them."""
        for handle in [*self._by_handle, *self._dial_of]:
            self.endpoint.close(handle, ErrorCode.IDLE, "the address is gone", self._owner.now)
        self.pump()

    def say_goodbye(self) -> None:
        """Closes everything, as a process that leaves does."""
        for handle in [*self._by_handle, *self._dial_of]:
            self.endpoint.close(handle, ErrorCode.GOODBYE, "the node leaves", self._owner.now)
        self.pump()

    # Streams

    def send_datagram(self, peer_id: PeerId, payload: bytes) -> None:
        """Sends a DATAGRAM frame to a connected peer."""
        connection = self.connections.get(peer_id)
        if connection is not None:
            self.endpoint.send_datagram(connection.handle, payload)
            self.pump()

    def open_stream(self, connection: Connection, user: StreamUser) -> int | None:
        """Opens a stream; None when the peer allows no more now.

        Raises:
            LocalProtocolError: the connection is gone.
        """
        stream = self.endpoint.open_stream(connection.handle, self._owner.now)
        if stream is not None:
            connection.streams[stream] = user
        return stream

    def write(
        self, connection: Connection, stream: int, data: bytes | memoryview, *, end: bool = False, linger: bool = False
    ) -> int:
        """Queues stream bytes and returns how many were taken.

        Raises:
            LocalProtocolError: the connection or this side of the stream is over.
        """
        taken = self.endpoint.send(connection.handle, stream, data, end)
        if linger:
            self.pump_soon()
        else:
            self.pump()
        return taken

    def grant(self, connection: Connection, stream: int, n_bytes: int) -> None:
        """Grants the peer credit for bytes that were read."""
        self.endpoint.consumed(connection.handle, stream, n_bytes, self._owner.now)
        self.pump_soon()

    def abandon(self, connection: Connection, stream: int, code: int) -> None:
        """Abandons both sides of a stream."""
        self.endpoint.reset(connection.handle, stream, code)
        self.endpoint.stop_sending(connection.handle, stream, code)
        self.pump()
        self.forget(connection, stream)

    def forget(self, connection: Connection, stream: int) -> None:
        """A stream is over."""
        connection.streams.pop(stream, None)
        self._close_if_quiet(connection)
