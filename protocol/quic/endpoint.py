"""The sans-IO QUIC endpoint: datagrams in and out, connections by connection id, timers, and the bounds on strangers.

`handle_datagrams` groups what came by connection and hands it on; a first Initial packet of a stranger makes a connection when
the bounds allow it, and is forgotten at once when it does not decrypt. Anything else that fits no connection is counted and
ignored. `flush` builds the datagrams of every connection that was touched since the last call, so a caller handles a whole
batch and flushes once. After every call the outputs are drained with `next_output` until none is left. The connection ids, TLS
randoms and packet protection draw on the library's own entropy; what is handed in is the certificate.

Source: RFC 9000.
Spec: docs/spec/02-transport.md.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from protocol.budget import Verdict
from protocol.conduct import Account, Conduct, PeerBanned
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import PeerId, TlsCertificate, certificate_key_digest
from protocol.quic.connection import Connection
from protocol.quic.doorstep import Admitted, Doorstep, Refused
from protocol.quic.events import ConnectionHandle, EndpointConfig, EndpointCounters, Output, Received, Transmit
from protocol.quic.meter import Meter
from protocol.quic.rehearsal import rehearse
from protocol.quic.retry import CID_BYTES_MAX, read_initial
from protocol.quic.seam import (
    CONNECTION_ID_BYTES,
    Address,
    EngineSetup,
    QuicEngine,
    VerifyPeer,
)
from protocol.timers import sooner

GROUP_SPAN_S = 0.0002
"""Datagrams that arrived within this many seconds share one time of arrival; far below the jitter of any path."""


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
        cpu_clock: Callable[[], float] | None = None,
        path_bytes: Callable[[Address], int] | None = None,
    ) -> None:
        """Make an endpoint.

        Args:
            engine: the QUIC library behind the seam.
            certificate: this node's certificate.
            own: this node's peer id; a connection to itself is refused.
            verify: turns a peer's certificate into its peer id, usually `verify_certificate` with the wall clock.
            config: bounds and timers.
            cpu_clock: says how many seconds of a core this thread has used; without one no peer is charged for them.
            path_bytes: says which UDP payload reaches an address for sure, 0 where that is not known; without one of none it is.
        """
        self.config = config or EndpointConfig()
        self.conduct = Conduct(self.config.conduct)
        self.counters = EndpointCounters()
        self._engine = engine
        self._setup = EngineSetup(certificate, self.config.engine, certificate.private_key_der)
        self._own = own
        self._verify = verify
        self._path_bytes = path_bytes
        self._connections: dict[ConnectionHandle, Connection] = {}
        self._routes: dict[bytes, Connection] = {}
        self._strangers: dict[ConnectionHandle, Connection] = {}
        self._touched: dict[ConnectionHandle, Connection] = {}
        self._admitted: dict[ConnectionHandle, Admitted] = {}
        self._introduced: set[ConnectionHandle] = set()
        self._doorstep = Doorstep(self.config, certificate.private_key_der)
        self._meter = Meter(self.conduct, self.config, cpu_clock)
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

    @property
    def has_unsent(self) -> bool:
        """Whether a connection that was touched since the last flush has stream bytes that may leave now."""
        return any(connection.has_unsent for connection in self._touched.values())

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
        if connection.closed is None and not self._meter.admits(connection, group, now):
            self.counters.dropped_datagrams += len(group)
        else:
            self._meter.receive(connection, group, first, now)
        if not was_established and not connection.engine.authenticated and not connection.is_client:
            self.counters.junk_datagrams += len(group)
            self._remove(connection)
            return
        self._settle(connection, now)

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
        """Make a server connection for a first Initial packet, when the bounds allow one more; else perhaps answer by a Retry."""
        initial = read_initial(received.data) if received.data[0] & 0x80 else None
        if initial is None or initial.cid != cid:
            return None
        judged: Admitted | Refused = Refused()
        if len(self._connections) < self.config.connections_max:
            banned = self.conduct.is_banned_prefix
            judged = self._doorstep.judge(initial, received.address, now, len(self._strangers), banned)
        if isinstance(judged, Refused):
            if judged.retry is None:
                self.counters.refused_handshakes += 1
            else:
                self.counters.retries += 1
                self._outputs.append(Transmit(received.local, [(judged.retry, received.address)]))
            return None
        verifier = _Verifier(self._verify, self._own, None)
        # A path that has carried so much this way is taken to carry it back.
        setup = self._setup_for(received.address, len(received.data))
        engine = self._engine.accept(setup, judged.original_cid, verifier, judged.retry_cid)
        handle, conduct = self._next_handle(), self.conduct
        connection = Connection(handle, engine, self.config, now, received.address, conduct, is_client=False)
        connection.incarnation = verifier.incarnation
        self._doorstep.entered(judged)
        self._admitted[handle] = judged
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
                return sooner(due, self.conduct.next_timer())
            heapq.heappop(self._timers)
        return self.conduct.next_timer()

    def handle_timer(self, now: float) -> None:
        """Let due timers fire; flush afterwards."""
        self.conduct.handle_timer(now)
        while (due := self.next_timer()) is not None and due <= now:
            _, handle = heapq.heappop(self._timers)
            connection = self._connections[ConnectionHandle(handle)]
            connection.timer = None
            self._meter.fire(connection, now)
            # What is due again at once waits for the next call, so that this loop ends.
            self._settle(connection, now)

    def flush(self, now: float) -> None:
        """Build the datagrams of every connection touched since the last flush, and set the timers."""
        self._enforce(now)
        while self._touched:
            touched, self._touched = self._touched, {}
            for connection in touched.values():
                sent = self._meter.transmits(connection, now)
                connection.collect(now, now)
                self._settle(connection, now, touch=False)
                if sent:
                    self.counters.datagrams_out += len(sent)
                    self.counters.bytes_out += sum(len(data) for data, _ in sent)
                    self._outputs.append(Transmit(connection.local, sent))
                if connection.closed is not None:
                    # What building the datagrams took may itself have closed it: the farewell is then in none of them.
                    if connection.closed.local and (farewell := connection.engine.transmits(now)):
                        sent = farewell
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
        engine = self._engine.connect(self._setup_for(address), address, verifier, now)
        connection = Connection(self._next_handle(), engine, self.config, now, address, self.conduct, is_client=True)
        connection.incarnation = verifier.incarnation
        connection.local = local
        self._add(connection)
        self._touched[connection.handle] = connection
        self.counters.dialled += 1
        return connection.handle

    def rehearse(self, now: float) -> bool:
        """Go through a handshake with itself, so that the first peer does not wait for what the library does only once.

        Returns:
            Whether it was completed, as it always is.
        """
        return rehearse(self._engine, self._setup, self._own, now)

    def use_certificate(self, certificate: TlsCertificate) -> None:
        """Show another certificate on connections that begin from now on; those there are keep the one they began with."""
        self._setup = replace(self._setup, certificate=certificate)

    def open_stream(self, handle: ConnectionHandle, now: float) -> int | None:
        """Open a bidirectional stream; None while the peer allows no more, then `StreamsAvailable` follows.

        Raises:
            LocalProtocolError: UNREACHABLE when the connection is not established or closed.
        """
        stream = self._touch(handle).open_stream(now)
        self._settle(self._connections[handle], now)
        return stream

    def send(self, handle: ConnectionHandle, stream: int, data: bytes | memoryview, end: bool = False) -> int:
        """Queue stream bytes and return how many were taken.

        When that is not all, `end` was not said either, and `StreamWritable` follows.

        Raises:
            LocalProtocolError: UNREACHABLE when the connection is closed, CANCELLED when this side of the stream is over.
        """
        return self._touch(handle).send(stream, data, end)

    def room(self, handle: ConnectionHandle, stream: int) -> int:
        """How many bytes `send` would take of a stream now; 0 where the connection is closed."""
        return self._touch(handle).room(stream) if self._is_open(handle) else 0

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
            self._settle(connection, now)

    def send_datagram(self, handle: ConnectionHandle, data: bytes) -> bool:
        """Queue a DATAGRAM frame; False when it does not fit, the queue is full, or the connection is gone."""
        return self._is_open(handle) and self._touch(handle).send_datagram(data)

    def close(self, handle: ConnectionHandle, code: ErrorCode, reason: str, now: float) -> None:
        """Close a connection; nothing happens when it is gone."""
        connection = self._connections.get(handle)
        if connection is not None:
            connection.close(code, reason, now)
            self._settle(connection, now)

    def fault(self, peer_id: PeerId, code: ErrorCode, now: float, weight: float = 1.0) -> bool:
        """Note that a peer broke the rules above QUIC, and return whether it is banned now; its connections close then."""
        banned = self.conduct.fault(peer_id, code, now, weight)
        self._enforce(now)
        return banned

    def charge(self, peer_id: PeerId, account: Account, amount: float, now: float) -> Verdict:
        """Charge a peer for work above QUIC that is about to be done; its connections are closed when it floods."""
        verdict = self.conduct.charge(peer_id, account, amount, now)
        if verdict is Verdict.FLOODED:
            self._cut_off(peer_id, ErrorCode.FLOODING, f"too much of one account: {account.value}", now)
        self._enforce(now)
        return verdict

    # Helpers.

    def _cut_off(self, peer_id: PeerId, code: ErrorCode, reason: str, now: float) -> None:
        """Close all connections of a peer."""
        for connection in [other for other in self._connections.values() if other.peer_id == peer_id]:
            if connection.closed is None:
                connection.close(code, reason, now)
                self._settle(connection, now)

    def _enforce(self, now: float) -> None:
        """Close the connections of peers that are banned since the last look, and tell of all bans that began or ended."""
        while (fact := self.conduct.next_output()) is not None:
            self._outputs.append(fact)
            if isinstance(fact, PeerBanned):
                reason = "this peer cost too much, or broke the rules too often"
                self._cut_off(fact.peer_id, ErrorCode.BANNED, reason, now)

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

    def _setup_for(self, address: Address, seen_bytes: int | None = None) -> EngineSetup:
        """What a connection begins with; `seen_bytes` is the largest datagram that came from there, where one has come."""
        near_bytes = self.config.engine.near_datagram_bytes_max
        if self._path_bytes is None or (seen_bytes is not None and seen_bytes < near_bytes):
            return self._setup
        path_bytes = self._path_bytes(address)
        return replace(self._setup, path_bytes=path_bytes) if path_bytes >= near_bytes else self._setup

    def _next_handle(self) -> ConnectionHandle:
        self._last_handle += 1
        return ConnectionHandle(self._last_handle)

    def _add(self, connection: Connection) -> None:
        self._connections[connection.handle] = connection
        for cid in connection.cids:
            self._routes[cid] = connection

    def _settle(self, connection: Connection, now: float, *, touch: bool = True) -> None:
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
        if connection.peer_id is not None and connection.handle not in self._introduced:
            self._introduced.add(connection.handle)
            self._strangers.pop(connection.handle, None)
            if (admitted := self._admitted.get(connection.handle)) is not None:
                self._doorstep.introduced(admitted)
            self.conduct.connected(connection.peer_id, self._doorstep.prefix(connection.address), now)
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
        is_introduced = connection.handle in self._introduced
        self._introduced.discard(connection.handle)
        if is_introduced and connection.peer_id is not None:
            self.conduct.disconnected(connection.peer_id)
        if (admitted := self._admitted.pop(connection.handle, None)) is not None:
            if not is_introduced:
                self._doorstep.introduced(admitted)
            self._doorstep.left(admitted)

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
    """Judges one peer's certificate, and keeps the digest of its key: a program makes a new key each time it starts."""

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
        self._digest = certificate_key_digest(der)
        return peer_id

    def incarnation(self) -> bytes:
        """The SHA-256 digest of the key of the certificate that was accepted; empty before."""
        return self._digest
