"""The sans-IO QUIC endpoint: datagrams in and out, connections by connection id, timers, and the bounds on strangers.

`handle_datagrams` groups what came by connection and hands it on; a first Initial packet of a stranger makes a connection when
the bounds allow it, and is forgotten at once when it does not decrypt. Anything else that fits no connection is counted and
ignored. `flush` builds the datagrams of every connection that was touched since the last call, so a caller handles a whole
batch and flushes once. After every call the outputs are drained with `next_output` until none is left. The connection ids, TLS
randoms and packet protection draw on the library's own entropy; what is handed in is the certificate.

Source: RFC 9000.
Spec: docs/spec/02-transport.md.
"""

import hashlib
import heapq
import ipaddress
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import PeerId, TlsCertificate
from protocol.quic.connection import Connection
from protocol.quic.events import ConnectionHandle, EndpointConfig, EndpointCounters, Output, Received, Transmit
from protocol.quic.seam import (
    CONNECTION_ID_BYTES,
    QUIC_VERSION_1,
    Address,
    EngineSetup,
    QuicEngine,
    VerifyPeer,
)

INITIAL_DATAGRAM_BYTES_MIN = 1200
"""Smallest datagram that may carry a client's Initial packet, in bytes (RFC 9000 section 14.1)."""

CLIENT_CID_BYTES_MIN = 8
"""Shortest connection id a client may choose for the server, in bytes (RFC 9000 section 7.2)."""

CID_BYTES_MAX = 20
"""Longest connection id in bytes (RFC 9000 section 17.2)."""

GROUP_SPAN_S = 0.0002
"""Datagrams that arrived within this many seconds share one time of arrival; far below the jitter of any path."""

IPV6_PREFIX_BYTES = 7
"""A /56 counts as one stranger, in bytes: the usual size of one customer's network."""


@dataclass(slots=True)
class _Farewell:
    """A close that is repeated to a peer which goes on talking.

    Attributes:
        datagrams: what was sent.
        local: from which socket.
        until: when it is forgotten.
        heard: datagrams that came since; it is repeated at the first, second, fourth, eighth.
    """

    datagrams: list[tuple[bytes, Address]]
    local: int
    until: float
    heard: int = 0


class Endpoint:
    """All QUIC connections of one node."""

    def __init__(
        self,
        engine: QuicEngine,
        certificate: TlsCertificate,
        own: PeerId,
        verify: VerifyPeer,
        config: EndpointConfig | None = None,
    ) -> None:
        """Make an endpoint.

        Args:
            engine: the QUIC library behind the seam.
            certificate: this node's certificate.
            own: this node's peer id; a connection to itself is refused.
            verify: turns a peer's certificate into its peer id, usually `verify_certificate` with the wall clock.
            config: bounds and timers.
        """
        self.config = config or EndpointConfig()
        self.counters = EndpointCounters()
        self._engine = engine
        self._setup = EngineSetup(certificate, self.config.engine)
        self._own = own
        self._verify = verify
        self._connections: dict[ConnectionHandle, Connection] = {}
        self._routes: dict[bytes, Connection] = {}
        self._strangers: dict[ConnectionHandle, Connection] = {}
        self._touched: dict[ConnectionHandle, Connection] = {}
        self._prefixes: dict[str | bytes, int] = {}
        self._timers: list[tuple[float, int]] = []
        self._farewells: dict[bytes, _Farewell] = {}
        self._outputs: deque[Output] = deque()
        self._last_handle = 0

    @property
    def n_connections(self) -> int:
        """Connections in any state."""
        return len(self._connections)

    @property
    def n_strangers(self) -> int:
        """Accepted connections whose handshake is not over."""
        return len(self._strangers)

    def rtt_s(self, handle: ConnectionHandle) -> float | None:
        """The library's smoothed round trip of a connection; good for timers, no measurement of distance."""
        connection = self._connections.get(handle)
        return connection.engine.rtt_s if connection is not None else None

    def address(self, handle: ConnectionHandle) -> Address | None:
        """Where a connection's datagrams go now."""
        connection = self._connections.get(handle)
        return (connection.engine.address or connection.address) if connection is not None else None

    def next_output(self) -> Output | None:
        """Return the oldest output not yet taken."""
        return self._outputs.popleft() if self._outputs else None

    # From the network and the clock.

    def handle_datagram(self, data: bytes, address: Address, now: float, local: int = 0) -> None:
        """Take one datagram that arrived now."""
        self.handle_datagrams([Received(data, address, now, local)], now)

    def handle_datagrams(self, batch: Sequence[Received], now: float) -> None:
        """Take datagrams in the order of their arrival; flush afterwards."""
        group: list[bytes] = []
        target: Connection | None = None
        first: Received | None = None
        for received in batch:
            self.counters.datagrams_in += 1
            self.counters.bytes_in += len(received.data)
            connection = self._route(received, now)
            if connection is None:
                continue
            if target is not None and first is not None:
                same = connection is target and received.address == first.address
                if same and received.received_at - first.received_at <= GROUP_SPAN_S:
                    group.append(received.data)
                    continue
                self._deliver(target, group, first, now)
            group, target, first = [received.data], connection, received
        if target is not None and first is not None:
            self._deliver(target, group, first, now)

    def _deliver(self, connection: Connection, group: list[bytes], first: Received, now: float) -> None:
        was_established = connection.established
        connection.local = first.local
        connection.receive(group, first.address, now, first.received_at)
        if not was_established and not connection.engine.authenticated and not connection.is_client:
            self.counters.junk_datagrams += len(group)
            self._remove(connection)
            return
        self._settle(connection)

    def _route(self, received: Received, now: float) -> Connection | None:
        """Return the connection a datagram belongs to, making one for a stranger's first Initial packet."""
        data = received.data
        cid: bytes | None = None
        if data and data[0] & 0x80:
            end = 6 + data[5] if len(data) > 6 else 0
            if 6 <= end <= min(len(data), 6 + CID_BYTES_MAX):
                cid = data[6:end]
        elif len(data) > CONNECTION_ID_BYTES:
            cid = data[1 : 1 + CONNECTION_ID_BYTES]
        connection = self._routes.get(cid) if cid is not None else None
        if connection is None and cid is not None:
            if cid in self._farewells:
                self._repeat_farewell(cid, now)
                return None
            connection = self._admit(received, cid, now)
        if connection is None:
            self.counters.junk_datagrams += 1
        return connection

    def _admit(self, received: Received, cid: bytes, now: float) -> Connection | None:
        """Make a server connection for a first Initial packet, when the bounds allow one more.

        A Retry, which proves the sender's address before anything is kept, belongs here for the time when strangers are many.
        """
        data, config = received.data, self.config
        is_initial = data[0] & 0xF0 == 0xC0 and int.from_bytes(data[1:5], "big") == QUIC_VERSION_1
        if not is_initial or len(data) < INITIAL_DATAGRAM_BYTES_MIN or len(cid) < CLIENT_CID_BYTES_MIN:
            return None
        prefix = _prefix(received.address)
        from_prefix = sum(1 for stranger in self._strangers.values() if _prefix(stranger.address) == prefix)
        if (
            len(self._connections) >= config.connections_max
            or self._prefixes.get(prefix, 0) >= config.connections_per_prefix_max
            or len(self._strangers) >= config.handshakes_max
            or from_prefix >= config.handshakes_per_prefix_max
        ):
            self.counters.refused_handshakes += 1
            return None
        verifier = _Verifier(self._verify, self._own, None)
        engine = self._engine.accept(self._setup, cid, verifier)
        connection = Connection(self._next_handle(), engine, config, now, received.address, is_client=False)
        connection.incarnation = verifier.incarnation
        self._prefixes[prefix] = self._prefixes.get(prefix, 0) + 1
        self._add(connection)
        self._strangers[connection.handle] = connection
        self.counters.accepted += 1
        return connection

    def next_timer(self) -> float | None:
        """Return when `handle_timer` wants to be called."""
        while self._timers:
            due, handle = self._timers[0]
            connection = self._connections.get(ConnectionHandle(handle))
            if connection is not None and connection.timer == due:
                return due
            heapq.heappop(self._timers)
        return None

    def handle_timer(self, now: float) -> None:
        """Let due timers fire; flush afterwards."""
        while (due := self.next_timer()) is not None and due <= now:
            _, handle = heapq.heappop(self._timers)
            connection = self._connections[ConnectionHandle(handle)]
            connection.timer = None
            connection.handle_timer(now)
            # What is due again at once waits for the next call, so that this loop ends.
            self._settle(connection)

    def flush(self, now: float) -> None:
        """Build the datagrams of every connection touched since the last flush, and set the timers."""
        while self._touched:
            touched, self._touched = self._touched, {}
            for connection in touched.values():
                sent = connection.engine.transmits(now)
                connection.collect(now, now)
                self._settle(connection, touch=False)
                if sent:
                    self.counters.datagrams_out += len(sent)
                    self.counters.bytes_out += sum(len(data) for data, _ in sent)
                    self._outputs.append(Transmit(connection.local, sent))
                if connection.closed is not None:
                    if connection.closed.local and not sent:
                        sent = connection.engine.transmits(now)
                        if sent:
                            self._outputs.append(Transmit(connection.local, sent))
                    self._remember_farewell(connection, sent, now)
                    self._remove(connection)
                else:
                    self._set_timer(connection)

    # From the application.

    def connect(self, address: Address, expected: PeerId | None, now: float, local: int = 0) -> ConnectionHandle:
        """Dial a peer; `ConnectionEstablished` or `ConnectionClosed` follows.

        Args:
            address: where it listens.
            expected: who it must be; anybody when None.
            now: monotonic seconds.
            local: the socket to use.

        Raises:
            LocalProtocolError: OVERLOADED when the endpoint has all the connections it may have.
        """
        if len(self._connections) >= self.config.connections_max:
            raise LocalProtocolError(
                ErrorCode.OVERLOADED, f"{self.config.connections_max} connections are open, the most allowed"
            )
        verifier = _Verifier(self._verify, self._own, expected)
        engine = self._engine.connect(self._setup, address, verifier, now)
        connection = Connection(self._next_handle(), engine, self.config, now, address, is_client=True)
        connection.incarnation = verifier.incarnation
        connection.local = local
        self._add(connection)
        self._touched[connection.handle] = connection
        self.counters.dialled += 1
        return connection.handle

    def open_stream(self, handle: ConnectionHandle, now: float) -> int | None:
        """Open a bidirectional stream; None while the peer allows no more, then `StreamsAvailable` follows.

        Raises:
            LocalProtocolError: UNREACHABLE when the connection is not established or closed.
        """
        stream = self._touch(handle).open_stream(now)
        self._settle(self._connections[handle])
        return stream

    def send(self, handle: ConnectionHandle, stream: int, data: bytes | memoryview, end: bool = False) -> int:
        """Queue stream bytes and return how many were taken.

        When that is not all, `end` was not said either, and `StreamWritable` follows.

        Raises:
            LocalProtocolError: UNREACHABLE when the connection is closed, CANCELLED when this side of the stream is over.
        """
        return self._touch(handle).send(stream, data, end)

    def reset(self, handle: ConnectionHandle, stream: int, code: int) -> None:
        """Abandon this side of a stream."""
        if self._is_open(handle):
            self._touch(handle).reset(stream, code)

    def stop_sending(self, handle: ConnectionHandle, stream: int, code: int) -> None:
        """Read no more of a stream."""
        if self._is_open(handle):
            self._touch(handle).stop_sending(stream, code)

    def ignore(self, handle: ConnectionHandle, stream: int, code: int) -> None:
        """Read no more of a stream whose peer is about to end it; if it sends more instead, it is asked to stop."""
        if self._is_open(handle):
            self._touch(handle).ignore(stream, code)

    def consumed(self, handle: ConnectionHandle, stream: int, n_bytes: int, now: float) -> None:
        """Grant the peer credit for stream bytes that were read; more data may follow at once."""
        connection = self._connections.get(handle)
        if connection is not None and connection.closed is None:
            connection.consumed(stream, n_bytes)
            connection.collect(now, now)
            self._settle(connection)

    def send_datagram(self, handle: ConnectionHandle, data: bytes) -> bool:
        """Queue a DATAGRAM frame; False when it does not fit, the queue is full, or the connection is gone."""
        return self._is_open(handle) and self._touch(handle).send_datagram(data)

    def close(self, handle: ConnectionHandle, code: ErrorCode, reason: str, now: float) -> None:
        """Close a connection; nothing happens when it is gone."""
        connection = self._connections.get(handle)
        if connection is not None:
            connection.close(code, reason, now)
            self._settle(connection)

    # Helpers.

    def _is_open(self, handle: ConnectionHandle) -> bool:
        """Whether the connection is there; one that is closed stays until the next flush."""
        connection = self._connections.get(handle)
        return connection is not None and connection.closed is None

    def _touch(self, handle: ConnectionHandle) -> Connection:
        connection = self._connections.get(handle)
        if connection is None or connection.closed is not None:
            raise LocalProtocolError(ErrorCode.UNREACHABLE, "the connection is closed")
        self._touched[handle] = connection
        return connection

    def _next_handle(self) -> ConnectionHandle:
        self._last_handle += 1
        return ConnectionHandle(self._last_handle)

    def _add(self, connection: Connection) -> None:
        self._connections[connection.handle] = connection
        for cid in connection.cids:
            self._routes[cid] = connection

    def _settle(self, connection: Connection, *, touch: bool = True) -> None:
        """Move a connection's outputs and connection ids to the endpoint."""
        while (output := connection.next_output()) is not None:
            self._outputs.append(output)
        for cid in connection.new_cids:
            connection.cids[cid] = None
            self._routes[cid] = connection
        for cid in connection.old_cids:
            connection.cids.pop(cid, None)
            if self._routes.get(cid) is connection:
                del self._routes[cid]
        connection.new_cids.clear()
        connection.old_cids.clear()
        if connection.established:
            self._strangers.pop(connection.handle, None)
        if touch and connection.handle in self._connections:
            self._touched[connection.handle] = connection

    def _set_timer(self, connection: Connection) -> None:
        due = connection.due()
        if due != connection.timer:
            connection.timer = due
            if due is not None:
                heapq.heappush(self._timers, (due, connection.handle))
        if len(self._timers) > 8 * len(self._connections) + 64:
            live = [(timer.timer, timer.handle) for timer in self._connections.values() if timer.timer is not None]
            heapq.heapify(live)
            self._timers = list(live)

    def _remove(self, connection: Connection) -> None:
        if self._connections.pop(connection.handle, None) is None:
            return
        self._touched.pop(connection.handle, None)
        self._strangers.pop(connection.handle, None)
        for cid in connection.cids:
            if self._routes.get(cid) is connection:
                del self._routes[cid]
        if not connection.is_client:
            prefix = _prefix(connection.address)
            left = self._prefixes.get(prefix, 0) - 1
            if left > 0:
                self._prefixes[prefix] = left
            else:
                self._prefixes.pop(prefix, None)

    def _remember_farewell(self, connection: Connection, sent: list[tuple[bytes, Address]], now: float) -> None:
        if connection.closed is None or not connection.closed.local or not sent:
            return
        farewell = _Farewell(sent, connection.local, now + self.config.farewell_s)
        for cid in connection.cids:
            self._farewells[cid] = farewell
        while len(self._farewells) > self.config.farewells_max:
            del self._farewells[next(iter(self._farewells))]

    def _repeat_farewell(self, cid: bytes, now: float) -> None:
        farewell = self._farewells[cid]
        if now > farewell.until:
            del self._farewells[cid]
            return
        farewell.heard += 1
        if farewell.heard & (farewell.heard - 1) == 0:
            self._outputs.append(Transmit(farewell.local, farewell.datagrams))


class _Verifier:
    """Judges one peer's certificate, and keeps its digest: a program makes a new certificate each time it starts."""

    def __init__(self, verify: VerifyPeer, own: PeerId, expected: PeerId | None) -> None:
        self._verify = verify
        self._own = own
        self._expected = expected
        self._digest = b""

    def __call__(self, der: bytes) -> PeerId:
        """Return the peer id that a certificate proves; refuse this node itself and any other than the expected peer."""
        peer_id = self._verify(der)
        if peer_id == self._own:
            raise RemoteProtocolError(ErrorCode.WRONG_PEER, "the peer is this node itself")
        if self._expected is not None and peer_id != self._expected:
            raise RemoteProtocolError(ErrorCode.WRONG_PEER, "the peer at this address is not the one that was dialled")
        self._digest = hashlib.sha256(der).digest()
        return peer_id

    def incarnation(self) -> bytes:
        """The SHA-256 digest of the certificate that was accepted; empty before."""
        return self._digest


def _prefix(address: Address) -> str | bytes:
    """Return what counts as one stranger: an IPv4 address, or an IPv6 /56."""
    host = address[0]
    if ":" not in host:
        return host
    return ipaddress.IPv6Address(host.partition("%")[0]).packed[:IPV6_PREFIX_BYTES]
