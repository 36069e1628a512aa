"""The node's QUIC transport: one endpoint, its sockets, its clock, and the tasks that serve what peers open.

One task per socket takes up to a batch of datagrams without waiting and hands them to the endpoint; one task waits for the
endpoint's timer. Everything else is calls: whoever sends, reads or closes drives the endpoint directly and flushes, so a
message costs no task switch on its way out. What nobody waits for (acknowledgements, credit, the end of a stream) lingers for a
moment and leaves with the next message: a datagram costs more than all that is written into it. All times are
those of the machine's monotonic clock.

Spec: docs/spec/02-transport.md.
"""

import math
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import assert_never

import trio

from mesh.busypoll import busy_polling
from mesh.machine import Machine
from mesh.transport import builtin
from mesh.transport.config import TransportConfig
from mesh.transport.connection import Connection
from mesh.transport.dialling import WILDCARDS, Dial, multiaddr_of, reachable
from mesh.transport.door import Door, Entrance, see_guest_off
from mesh.transport.errors import ConnectionLost, TransportError
from mesh.transport.holds import Holds
from mesh.transport.names import resolve
from mesh.transport.patience import cut_slow_writers
from mesh.transport.reception import Begin, Handler, Reception
from mesh.transport.stream import Stream
from mesh.transport.udp import UdpSocket
from mesh.transport.watch import Doing, Watcher
from protocol import conduct
from protocol.budget import Verdict
from protocol.errors import ErrorCode, LocalProtocolError
from protocol.identity import Identity, PeerId
from protocol.libp2p.identify import IDENTIFY_PROTOCOL, IDENTIFY_PUSH_PROTOCOL
from protocol.libp2p.ping import PING_PROTOCOL
from protocol.multiaddr import Multiaddr
from protocol.quic import QuicEngine, choose_engine
from protocol.quic import events as quic
from protocol.quic.endpoint import Endpoint
from protocol.quic.seam import Address

LINGER_S = 0.001
"""Longest wait in seconds of what nobody waits for: far below the 25 ms that QUIC allows an acknowledgement (RFC 9000, 18.2)."""

LINGERING_DATAGRAMS_MAX = 8
"""Received datagrams whose acknowledgement lingers: fewer than a first flight, so that a sender in slow start is not held up."""


class Transport:
    """All connections of this node.

    Attributes:
        identity: this node's key.
        config: bounds and timers.
        machine: whose clocks, entropy and sockets these are.
        endpoint: the sans-IO endpoint.
        holds: how long datagrams held the loop.
        connections: the current connection of every connected peer.
        on_connected: called when a peer is connected that was not.
        on_disconnected: called when the last connection of a peer is gone.
        on_replaced: called when another connection takes the place of a peer's current one: what was on its way on the old one
            may be lost, above all when the peer has started anew.
        on_datagram: called with peer id, content and time of arrival of every QUIC DATAGRAM frame.
        on_crash: called when a handler fails by a fault of its own.
        on_ban: called when a peer or a prefix is banned, and when that is over.
    """

    def __init__(
        self,
        identity: Identity,
        config: TransportConfig | None = None,
        engine: QuicEngine | None = None,
        handlers: Mapping[str, Handler] | None = None,
        *,
        announce: Sequence[Multiaddr] = (),
        on_connected: Callable[[Connection], None] | None = None,
        on_disconnected: Callable[[Connection, int], None] | None = None,
        on_replaced: Callable[[Connection], None] | None = None,
        on_datagram: Callable[[PeerId, bytes, float], None] | None = None,
        on_crash: Callable[[Stream, Exception], None] | None = None,
        machine: Machine | None = None,
        door: Door | None = None,
    ) -> None:
        self.identity = identity
        self.config = config or TransportConfig()
        self.engine = engine or choose_engine()
        self.machine = machine = machine or Machine()
        self.entropy = machine.entropy
        self.holds = Holds(machine.clock)
        self.connections: dict[PeerId, Connection] = {}
        self.on_connected = on_connected
        self.on_disconnected = on_disconnected
        self.on_replaced = on_replaced
        self.on_datagram = on_datagram
        self.on_crash = on_crash
        self.on_ban: Callable[[conduct.Fact], None] | None = None
        self._entrance = entrance = Entrance(identity, machine, door)
        shown, verify = entrance.certificate(), entrance.verify
        own, bounds = identity.peer_id, self.config.endpoint
        self.endpoint = Endpoint(self.engine, shown, own, verify, bounds, machine.cpu, machine.path_bytes)
        self._handlers: dict[str, Handler] = {
            PING_PROTOCOL: lambda stream: builtin.serve_ping(stream, self),
            IDENTIFY_PROTOCOL: lambda stream: builtin.serve_identify(stream, self),
            IDENTIFY_PUSH_PROTOCOL: lambda stream: builtin.serve_identify_push(stream, self),
            **(handlers or {}),
        }
        self._announce = tuple(address.with_peer(identity.peer_id) for address in announce)
        self._sockets: list[UdpSocket] = []
        self._by_handle: dict[quic.ConnectionHandle, Connection] = {}
        self._watchers: dict[PeerId, tuple[Watcher, ...]] = {}
        self._dials: dict[object, Dial] = {}
        self._dial_of: dict[quic.ConnectionHandle, Dial] = {}
        self._nursery: trio.Nursery | None = None
        self._timer_scope: trio.CancelScope | None = None
        self._pumping = False
        self._pump_again = False
        self._afterwards: list[Callable[[], None]] = []
        self._turns = trio.lowlevel.ParkingLot()
        self._linger_until = math.inf
        self._lingering_datagrams = 0
        self._wake_at = math.inf
        self._closing = False
        self._reception = Reception(self, entrance, self._handlers)
        self._sequence = 0
        self._pusher = builtin.Pusher(self)

    def show_anew(self) -> None:
        """Show what the door says to show now on connections that begin from now on."""
        self.endpoint.use_certificate(self._entrance.certificate())

    # The life of the transport.

    async def run(
        self, listen: Sequence[Multiaddr] = (), *, task_status: trio.TaskStatus[tuple[Multiaddr, ...]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen and serve until cancelled or closed; peers are told goodbye on the way out.

        Args:
            listen: addresses to bind, ip4 or ip6; port 0 lets the kernel choose. Without any the node only dials.
            task_status: told `addresses` once the sockets are bound.

        Raises:
            OSError: an address cannot be bound.
            LocalProtocolError: an address to listen on is a name.
        """
        assert self._nursery is None, "the transport runs once"
        try:
            for address in listen:
                if address.protocol not in ("ip4", "ip6"):
                    raise LocalProtocolError(ErrorCode.MALFORMED, f"{address} is a name; listen on an ip4 or ip6 address")
                self._bind(address.host, address.port)
            with busy_polling(self.config.busy_poll_s):
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    for udp in self._sockets:
                        nursery.start_soon(self._read, udp)
                    nursery.start_soon(self._keep_time)
                    nursery.start_soon(self._end_turns)
                    nursery.start_soon(self._pusher.run)
                    nursery.start_soon(cut_slow_writers, self)
                    task_status.started(self.addresses)
        finally:
            try:
                self._say_goodbye()
            finally:
                for udp in self._sockets:
                    udp.close()

    async def aclose(self) -> None:
        """Say goodbye to all peers and end `run`."""
        self._say_goodbye()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        await trio.lowlevel.checkpoint()

    def _say_goodbye(self) -> None:
        if self._closing:
            return
        self.pump()
        self._closing = True
        for handle in [*self._by_handle, *self._dial_of]:
            self.endpoint.close(handle, ErrorCode.GOODBYE, "the node leaves", self.now())
        self.pump()

    def add_handler(self, protocol_id: str, handler: Handler, begin: Begin | None = None) -> None:
        """Serve a further protocol, by `begin` where that goes without a task, and tell the peers so that asked before."""
        self._handlers[protocol_id] = handler
        self._reception.set_at_once(protocol_id, begin)
        self._pusher.changed()

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols that peers may open."""
        return tuple(self._handlers)

    @property
    def addresses(self) -> tuple[Multiaddr, ...]:
        """Where peers can dial this node, with its peer id: what was announced, else what is bound."""
        if self._announce:
            return self._announce
        return reachable(self._sockets, self.identity.peer_id)

    def now(self) -> float:
        """Monotonic seconds, the time of everything here."""
        return self.machine.clock()

    def record_sequence(self) -> int:
        """Return a sequence number for a signed peer record: greater than every earlier one."""
        self._sequence = max(self._sequence + 1, int(self.machine.wall() * 1000))
        return self._sequence

    def remote_of(self, connection: Connection) -> Multiaddr:
        """Where a connection's peer is reached."""
        address = self.endpoint.address(connection.handle)
        return connection.last_remote if address is None else multiaddr_of(address, connection.peer_id)

    @contextmanager
    def watch(self, peer_id: PeerId, watcher: Watcher) -> Generator[None]:
        """Tell `watcher` what happens on the connections to a peer, those there are and later ones, until the block ends."""
        self._set_watchers(peer_id, (*self._watchers.get(peer_id, ()), watcher))
        try:
            yield
        finally:
            self._set_watchers(peer_id, tuple(other for other in self._watchers[peer_id] if other is not watcher))

    def _set_watchers(self, peer_id: PeerId, watchers: tuple[Watcher, ...]) -> None:
        if watchers:
            self._watchers[peer_id] = watchers
        else:
            del self._watchers[peer_id]
        for connection in self._by_handle.values():
            if connection.peer_id == peer_id:
                connection.watchers = watchers

    # Dialling.

    async def dial(self, address: Multiaddr, *, afresh: bool = False) -> Connection:
        """Return a connection to a peer, dialling it unless it is connected; calls at the same time share one attempt.

        Args:
            address: where to dial, with the peer id that has to answer there, or without.
            afresh: dial also a peer that is connected, because nothing is heard over that connection.

        Raises:
            ConnectionLost: UNREACHABLE, IDLE after the handshake timeout, WRONG_PEER, BAD_CERTIFICATE, or what the peer said.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._nursery is None or self._closing:
            raise ConnectionLost(ErrorCode.UNREACHABLE, "the transport does not run")
        if not afresh and address.peer_id is not None and address.peer_id in self.connections:
            return self.connections[address.peer_id]
        key: object = (address.peer_id, address.host, address.port) if address.peer_id is None else address.peer_id
        dial = self._dials.get(key)
        if dial is None:
            dial = self._dials[key] = Dial()
            self._nursery.start_soon(self._attempt, dial, key, address)
        await dial.done.wait()
        if dial.connection is not None:
            return dial.connection
        failure = dial.failure or ConnectionLost(ErrorCode.UNREACHABLE, "the transport was closed")
        raise ConnectionLost(failure.code, failure.reason, local=failure.local)

    async def _attempt(self, dial: Dial, key: object, address: Multiaddr) -> None:
        try:
            for target in await resolve(address, self.config.resolve_timeout_s, self.config.dial_addresses_max):
                attempt = Dial()
                attempt.handle = self.endpoint.connect(target, address.peer_id, self.now(), self._local_for(target))
                self._dial_of[attempt.handle] = attempt
                self.pump()
                await attempt.done.wait()
                dial.connection, dial.failure = attempt.connection, attempt.failure
                if dial.connection is not None:
                    return
        except TransportError as fault:
            dial.failure = ConnectionLost(fault.code, fault.reason)
        except LocalProtocolError as fault:
            dial.failure = ConnectionLost(fault.code, fault.detail)
        except OSError as fault:
            dial.failure = ConnectionLost(ErrorCode.UNREACHABLE, f"{address}: {fault}")
        finally:
            del self._dials[key]
            dial.done.set()

    def _local_for(self, target: Address) -> int:
        """Choose the socket to dial from: one of the family, on loopback if and only if the target is."""
        host = target[0]
        is_loopback = host.startswith("127.") or host == "::1"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        usable = [udp for udp in self._sockets if udp.family == family]
        for udp in usable:
            bound = udp.bound.host
            if bound in WILDCARDS or (bound.startswith("127.") or bound == "::1") == is_loopback:
                return udp.index
        udp = self._bind("::" if family == socket.AF_INET6 else "0.0.0.0", 0)  # noqa: S104  (a port of its own to dial from)
        assert self._nursery is not None
        self._nursery.start_soon(self._read, udp)
        return udp.index

    def _bind(self, host: str, port: int) -> UdpSocket:
        udp = UdpSocket(
            self.machine,
            host,
            port,
            index=len(self._sockets),
            buffer_bytes=self.config.socket_buffer_bytes,
            backlog_max=self.config.send_backlog_max,
        )
        self._sockets.append(udp)
        self._pusher.changed()
        return udp

    # What peers may cost.

    def n_serving(self, peer_id: PeerId) -> int:
        """How many streams of a peer are served, over all its connections and those that it had."""
        return self._reception.n_serving(peer_id)

    def charge(self, peer_id: PeerId, account: conduct.Account, amount: float = 1.0) -> Verdict:
        """Charge a peer for work that is about to be done for it; when it floods it is cut off."""
        verdict = self.endpoint.charge(peer_id, account, amount, self.now())
        if verdict is Verdict.FLOODED:
            self.pump()
        return verdict

    def answered(self, peer_id: PeerId) -> None:
        """Give back what a request of a peer was charged: it was answered, and the peer took the answer."""
        for account in (conduct.Account.STREAMS, conduct.Account.WORK):
            self.endpoint.conduct.give_back(peer_id, account, 1.0, self.now())

    def fault(self, peer_id: PeerId, code: ErrorCode, weight: float = 1.0) -> None:
        """Note that a peer broke the rules; the one fault too many bans it."""
        if self.endpoint.fault(peer_id, code, self.now(), weight):
            self.pump()

    # Driving the endpoint.

    async def _read(self, udp: UdpSocket) -> None:
        while True:
            await trio.lowlevel.wait_readable(udp.raw)
            batch = udp.receive_batch(self.config.datagrams_per_wake_max)
            if batch:
                self._reception.turn()
                self.holds.take(batch, self.endpoint.handle_datagrams)
                self._lingering_datagrams += len(batch)
                # A handshake is a conversation of which each side waits for the other; so is a transfer in pieces.
                is_prompt = self._dial_of or self.endpoint.n_strangers or self.endpoint.has_unsent
                if is_prompt or self._lingering_datagrams > LINGERING_DATAGRAMS_MAX:
                    self.pump()
                else:
                    self.pump_soon()

    async def _write_backlog(self, udp: UdpSocket) -> None:
        while True:
            await trio.lowlevel.wait_writable(udp.raw)
            if udp.send_backlog():
                return

    async def _end_turns(self) -> None:
        while True:
            await self._turns.park()
            self.pump()

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope() as self._timer_scope:
                self._wake_at = math.inf
                self._set_timer()
                await trio.sleep_forever()
            now = self.now()
            due = self.endpoint.next_timer()
            if self._linger_until <= now or (due is not None and due <= now):
                self.endpoint.handle_timer(now)
                self.pump()

    def _set_timer(self) -> None:
        """Wake the clock's task early enough; to find that nothing is due costs it less than to be set back each time."""
        due = self.endpoint.next_timer()
        wake_at = self._linger_until if due is None else min(due, self._linger_until)
        if self._timer_scope is not None and (wake_at < self._wake_at or self._wake_at < self.now() + 2 * LINGER_S):
            self._wake_at = wake_at
            self._timer_scope.deadline = math.inf if wake_at == math.inf else trio.current_time() + max(0.0, wake_at - self.now())

    def pump(self) -> None:
        """Flush the endpoint and act on all its outputs."""
        if self._pumping:
            self._pump_again = True
            return
        self._pumping = True
        try:
            self._pump_again = True
            while self._pump_again:
                self._pump_again = False
                self._linger_until, self._lingering_datagrams = math.inf, 0
                self.endpoint.flush(self.now())
                self._take_outputs()
                if self._afterwards:
                    todo, self._afterwards = self._afterwards, []
                    for do in todo:
                        do()
        finally:
            self._pumping = False
        self._set_timer()

    def pump_this_turn(self) -> None:
        """Flush once everything that can go on now has done so: what many streams send in one moment leaves together."""
        if self._turns:
            self._turns.unpark()
        elif self._nursery is None or self._closing:
            self.pump()

    def afterwards(self, do: Callable[[], None]) -> None:
        """Do what nobody waits for once something that somebody may wait for has left, after `LINGER_S` at the latest."""
        self._afterwards.append(do)
        if self._linger_until == math.inf and not self._pumping:
            self._linger_until = self.now() + LINGER_S
            self._set_timer()

    def pump_soon(self) -> None:
        """Act on all outputs of the endpoint; what is to be sent leaves with the next flush, after `LINGER_S` at the latest."""
        if self._linger_until == math.inf:
            self._linger_until = self.now() + LINGER_S
        if self._pumping:
            return  # its outputs are acted on before that ends
        self._pumping = True
        try:
            self._take_outputs()
        finally:
            self._pumping = False
        if self._pump_again:
            self.pump()
        else:
            self._set_timer()

    def _take_outputs(self) -> None:
        while (output := self.endpoint.next_output()) is not None:
            self._act(output)
        if self._nursery is not None:
            self._reception.begin(self._nursery)

    def _act(self, output: quic.Output) -> None:
        match output:
            case quic.Transmit(local=local, datagrams=datagrams):
                self._transmit(self._sockets[local], datagrams)
            case quic.DatagramReceived(connection=handle, data=data, received_at=received_at):
                if (connection := self._by_handle.get(handle)) is not None and not connection.is_guest:
                    if connection.watchers:
                        connection.tell(Doing.DATAGRAM, sent=False, data=data)
                    if self.on_datagram is not None:
                        self.on_datagram(connection.peer_id, data, received_at)
            case quic.ConnectionEstablished():
                self._established(output)
            case quic.ConnectionClosed():
                self._closed(output)
            case quic.StreamOpened(connection=handle, stream=stream_id):
                self._opened(self._by_handle[handle], stream_id)
            case quic.StreamsAvailable(connection=handle):
                self._by_handle[handle].streams_became_available()
            case conduct.PeerBanned() | conduct.PrefixBanned() | conduct.BanExpired():
                if self.on_ban is not None:
                    self.on_ban(output)
            case _:
                self._act_on_stream(output)

    def _act_on_stream(self, output: quic.StreamData | quic.StreamReset | quic.StopSending | quic.StreamWritable) -> None:
        match output:
            case quic.StreamData(connection=handle, stream=stream_id, data=data, end=end):
                if (stream := self._stream(handle, stream_id)) is not None:
                    stream.took(data, end)
                else:
                    self.endpoint.consumed(handle, stream_id, len(data), self.now())
            case quic.StreamReset(connection=handle, stream=stream_id, code=code, local=is_local):
                if (stream := self._stream(handle, stream_id)) is not None:
                    stream.was_reset(code, "too much of the stream was not read" if is_local else "the peer reset the stream")
            case quic.StopSending(connection=handle, stream=stream_id, code=code):
                if (stream := self._stream(handle, stream_id)) is not None:
                    stream.was_stopped(code)
            case quic.StreamWritable(connection=handle, stream=stream_id):
                if (stream := self._stream(handle, stream_id)) is not None:
                    stream.became_writable()
            case _:
                assert_never(output)

    def _transmit(self, udp: UdpSocket, datagrams: list[tuple[bytes, Address]]) -> None:
        if udp.raw.fileno() < 0:
            return  # the transport was closed
        was_waiting = bool(udp.backlog)
        if not udp.send(datagrams) and not was_waiting and self._nursery is not None and not self._closing:
            self._nursery.start_soon(self._write_backlog, udp)

    def _stream(self, handle: quic.ConnectionHandle, stream_id: int) -> Stream | None:
        return None if (connection := self._by_handle.get(handle)) is None else connection.streams.get(stream_id)

    # Connections.

    def _established(self, output: quic.ConnectionEstablished) -> None:
        remote = multiaddr_of(output.address, output.peer_id)
        connection = Connection(
            self, output.connection, remote, output.peer_id, is_dialled=output.is_client, incarnation=output.incarnation
        )
        self._by_handle[output.connection] = connection
        connection.watchers = self._watchers.get(output.peer_id, ())
        connection.tell(Doing.CONNECTED, sent=output.is_client, reason=str(remote))
        if self._entrance.is_guest(output.incarnation) and self._nursery is not None:
            connection.is_guest = True
            self._finish_dial(output.connection, None, ConnectionLost(ErrorCode.NOT_ADMITTED, "the peer is only a guest"))
            self._nursery.start_soon(see_guest_off, connection, sum(other.is_guest for other in self._by_handle.values()))
            return
        other = self.connections.get(output.peer_id)
        if other is None:
            self.connections[output.peer_id] = connection
            if self.on_connected is not None:
                self.on_connected(connection)
        elif other.incarnation != connection.incarnation:
            # The peer's program was started again: what it knew of the older connection is gone with it.
            self.connections[output.peer_id] = connection
            other.successor = connection
            self.endpoint.close(other.handle, ErrorCode.DUPLICATE, "the peer was started again", self.now())
            if self.on_replaced is not None:
                self.on_replaced(connection)
            self.pump()
        elif self._keeps_older(other, connection):
            self._retire(connection, other)
        else:
            self.connections[output.peer_id] = connection
            self._retire(other, connection)
            if self.on_replaced is not None:
                self.on_replaced(connection)
        self._finish_dial(output.connection, self.connections[output.peer_id], None)

    def _keeps_older(self, older: Connection, newer: Connection) -> bool:
        """Whether the older of two connections stays: both sides choose alike, the one that the smaller peer id dialled."""
        if older.is_dialled == newer.is_dialled:
            return False  # the same side dialled again, so it lost the older one
        return older.is_dialled == (self.identity.peer_id < older.peer_id)

    def _retire(self, connection: Connection, successor: Connection) -> None:
        connection.successor = successor
        assert self._nursery is not None
        self._nursery.start_soon(self._close_when_quiet, connection)

    async def _close_when_quiet(self, connection: Connection) -> None:
        quiet = trio.Event()
        connection.became_quiet = quiet.set
        with trio.move_on_after(self.config.retire_max_s):
            await trio.sleep(self.config.retire_min_s)
            if connection.streams:
                await quiet.wait()
        if connection.successor is not None:  # else it took its successor's place again when that was lost
            self.endpoint.close(connection.handle, ErrorCode.DUPLICATE, "another connection of the same peers stays", self.now())
            self.pump()

    def _closed(self, output: quic.ConnectionClosed) -> None:
        connection = self._by_handle.pop(output.connection, None)
        lost = ConnectionLost(output.code, output.reason, local=output.local)
        self._finish_dial(output.connection, None, lost)
        if connection is None:
            return
        connection.tell(Doing.CLOSED, sent=False, code=lost.code, reason=lost.reason)
        if self.connections.get(connection.peer_id) is connection:
            del self.connections[connection.peer_id]
            for other in () if self._closing else self._by_handle.values():
                if other.peer_id == connection.peer_id and not other.is_guest:  # the one that was retired outlived its successor
                    other.successor = None
                    self.connections[connection.peer_id] = other
                    break
            promoted = self.connections.get(connection.peer_id)
            if promoted is not None and self.on_replaced is not None:
                self.on_replaced(promoted)
        connection.was_lost(lost)
        if connection.peer_id not in self.connections and self.on_disconnected is not None and not connection.is_guest:
            self.on_disconnected(connection, lost.code)

    def _finish_dial(self, handle: quic.ConnectionHandle, connection: Connection | None, failure: ConnectionLost | None) -> None:
        if (dial := self._dial_of.pop(handle, None)) is not None:
            dial.connection, dial.failure = connection, failure
            dial.done.set()

    def _opened(self, connection: Connection, stream_id: int) -> None:
        stream = Stream(connection, stream_id, self.config.multistream)
        connection.streams[stream_id] = stream
        if self._nursery is None or self._closing:
            stream.reset(ErrorCode.OVERLOADED)
        else:
            self._reception.opened(stream)
