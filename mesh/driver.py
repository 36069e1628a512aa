"""The driver owns the core: it hands in what the transport heard, carries out what comes out, and wakes it when it is due.

Everything here runs in one thread, and after each call into the core its outputs are drained until none is left. Gossip messages
leave through one outbound stream per peer with a bounded queue: gossip survives a dropped message, so a peer that reads slowly
loses messages instead of costing memory.

Spec: docs/spec/04-gossip.md, section "Streams".
"""

from collections.abc import Awaitable, Callable, Iterable

import trio

from mesh.facts import observe
from mesh.outbox import Outbox, read_frames, signatures_in
from mesh.strangers import Strangers
from mesh.telemetry import Telemetry
from mesh.transport import Connection, ConnectionLost, Stream, StreamReset, Transport
from protocol import forwarding, gossip, membership, probe, pubsub
from protocol.budget import Verdict
from protocol.conduct import Account, Prefix, prefix_of
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.identity import PeerId, peer_id_text
from protocol.multiaddr import Multiaddr
from protocol.node import Node, Output, Reranked, ReserveSequences
from protocol.shortlist import DIAL_ROUND_TRIPS

OUTBOX_MESSAGES_MAX = 256
"""Gossip messages waiting for one peer: a few seconds of a busy mesh; past it the oldest go, for newer ones replace them."""
UNREACHED_MAX = 256
"""Addresses remembered as unreachable, so that each is told once: four times the bootstrap addresses a node may have."""
DIAL_TIMEOUT_S = 6.0
"""Longest dial in seconds: the transport's handshake timeout of 5 s and a little for name resolution."""
GREETING_TIMEOUT_S = 5.0
"""Longest wait in seconds for a new peer to say whether it speaks gossip: as long as a handshake may take."""
SLEEP_LOOK_S = 2.0
"""Longest time in seconds between two looks whether the machine was suspended: peers give a node up after five."""
SLEPT_S_MIN = 1.0
"""Shortest suspension in seconds that is told to the core: no peer notices a shorter one."""
GREETING_RETRY_S = 1.0
"""Pause in seconds before a peer that broke off a gossip stream is offered another, so that refusing one costs no work here."""


class _Speech(Outbox):
    """What waits to be said to one connected peer, from the moment it is connected: it may speak before it can be spoken to."""

    def __init__(self) -> None:
        super().__init__(OUTBOX_MESSAGES_MAX)
        self.scope = trio.CancelScope()


class Driver:
    """Runs one core over one transport.

    Attributes:
        on_turned_away: told who ended a connection to this node, or refused one, and with which code.
    """

    def __init__(
        self,
        node: Node,
        transport: Transport,
        telemetry: Telemetry,
        reserve: Callable[[int], None],
        on_forwarding: Callable[[forwarding.Output | Reranked], None],
    ) -> None:
        """Connects the parts; nothing runs before `run`.

        Args:
            node: the core.
            transport: the QUIC transport, whose callbacks this object takes.
            telemetry: where facts become metrics and log lines.
            reserve: persists an upper bound of used sequence numbers; raises OSError when it cannot.
            on_forwarding: takes what the core wants done with requests.
        """
        self._node = node
        self._transport = transport
        self._telemetry = telemetry
        self._reserve = reserve
        self._on_forwarding = on_forwarding
        self.counts_origins = True
        self.on_turned_away: Callable[[str, int], None] = lambda _who, _code: None
        self._suspended_s = transport.machine.suspended_s()
        self._outboxes: dict[PeerId, _Speech] = {}
        self._targets: dict[PeerId, list[membership.Target]] = {}
        self._unreached: set[str] = set()
        self._armed_for = float("inf")
        self._wake = trio.Event()
        self._nursery: trio.Nursery | None = None
        transport.on_connected = self._connected
        transport.on_disconnected = self._disconnected
        transport.on_replaced = self._replaced
        transport.on_datagram = self._datagram
        transport.on_ban = lambda fact: observe(telemetry, fact)
        transport.add_handler(GOSSIP_PROTOCOL, self._listen)
        self.strangers = Strangers(node, transport, telemetry, self.settle, self._start)

    @property
    def now(self) -> float:
        """The core's clock, which is the transport's: monotonic seconds."""
        return self._transport.now()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wakes the core whenever it is due, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                while True:
                    self._wake = trio.Event()
                    self._look_whether_slept()
                    self._node.handle_timer(self.now)
                    self.settle()
                    self._armed_for = self._node.next_timer()
                    with trio.move_on_after(min(max(0.0, self._armed_for - self.now), SLEEP_LOOK_S)):
                        await self._wake.wait()
            finally:
                self._nursery = None  # from here on it may be closed to new tasks at any moment

    def settle(self) -> None:
        """Drains the core's outputs; call it after every call into the core."""
        while (output := self._node.next_output()) is not None:
            self._carry_out(output)
        if self._node.next_timer() < self._armed_for:
            self._wake.set()

    def _look_whether_slept(self) -> None:
        """Tells the core when the machine was suspended since the last look."""
        slept_s = self._transport.machine.suspended_s() - self._suspended_s
        if slept_s > SLEPT_S_MIN:
            self._suspended_s += slept_s
            self._telemetry.slept(slept_s)
            self._node.handle_slept(slept_s, self.now)
            self.settle()

    def _carry_out(self, output: Output) -> None:
        """Does what one output says."""
        match output:
            case gossip.Send(peer_id, payload):
                self._post(peer_id, payload)
            case probe.SendDatagram(peer_id, payload):
                connection = self._transport.connections.get(peer_id)
                if connection is not None:
                    connection.send_datagram(payload)
            case membership.Connect(target, addresses, afresh):
                self._start(self._dial, target, addresses, afresh)
            case pubsub.SendRpc(peer_id, payload):
                self.strangers.post(peer_id, payload)
            case membership.Disconnect(peer_id, code):
                self._start(self._hang_up, peer_id, code)
            case gossip.Misbehaved(peer_id, code) | probe.Misbehaved(peer_id, code) | pubsub.PubsubMisbehaved(peer_id, code):
                observe(self._telemetry, output)
                self._transport.fault(peer_id, code)
                self._start(self._hang_up, peer_id, code)
            case ReserveSequences(upto):
                self._persist(upto)
            case (
                forwarding.RunLocally()
                | forwarding.Forward()
                | forwarding.Refuse()
                | forwarding.CancelAttempt()
                | forwarding.Ended()
            ):
                self._on_forwarding(output)
            case Reranked(_, report):
                self._telemetry.request_probed(report.probed, report.probing_s)
                self._on_forwarding(output)
            case probe.SampleTaken(peer_id, rtt_s):
                quality = self._node.probe.quality(peer_id, self.now)
                self._telemetry.sample_taken(peer_id, rtt_s, rtt_s if quality is None else quality.rtt_s)
            case _:
                observe(self._telemetry, output)

    def _start(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Begins work that takes time; what the transport still tells while the node ends leads to none."""
        if self._nursery is not None:
            self._nursery.start_soon(work, *arguments)

    def _persist(self, upto: int) -> None:
        """Reserves sequence numbers on disk; when the disk refuses, the node goes on and asks again with the next record."""
        try:
            self._reserve(upto)
        except OSError as error:
            reason = str(error)
            self._telemetry.log.warning("sequence numbers cannot be kept; records are not renewed until they can", reason=reason)
            return
        self._node.handle_reserved(upto, self.now)

    # Connections

    async def _dial(self, target: membership.Target, addresses: Iterable[Multiaddr], afresh: bool) -> None:
        """Tries the addresses in turn and tells the core how it went."""
        for known in addresses:
            # Who is dialled by its peer id must be who answers; addresses on cards do not name it.
            address = known if isinstance(target, str) else known.with_peer(target)
            began_at, was_connected = self.now, address.peer_id in self._transport.connections
            try:
                with trio.fail_after(DIAL_TIMEOUT_S):
                    connection = await self._transport.dial(address, afresh=afresh)
            except (ConnectionLost, LocalProtocolError, trio.TooSlowError) as error:
                self._tell_failed_dial(str(address), str(error))
                if isinstance(error, ConnectionLost) and not error.local:
                    self.on_turned_away(str(address), error.code)
                continue
            self._unreached.discard(str(address))
            if connection.peer_id in self._transport.connections:
                if not was_connected:  # by this node's own clock: a peer can delay a handshake and cannot hasten it
                    self._node.handle_reached(connection.peer_id, (self.now - began_at) / DIAL_ROUND_TRIPS, self.now)
                    self.settle()
                self._targets.setdefault(connection.peer_id, []).append(target)
                self._attend(connection.peer_id)
                return
        self._node.handle_dial_failed(target, self.now)
        self.settle()

    def _tell_failed_dial(self, address: str, error: str) -> None:
        """Says once of an address that it cannot be reached, and again only after it could; the rest is for debugging."""
        if address in self._unreached or len(self._unreached) >= UNREACHED_MAX:
            self._telemetry.log.debug("dial failed", address=address, error=error)
        else:
            self._unreached.add(address)
            self._telemetry.log.warning(
                "address cannot be reached; it is tried again from time to time", address=address, error=error
            )

    def _connected(self, connection: Connection) -> None:
        """Greets a new connection, whoever dialled it."""
        self._telemetry.peer_connected(connection.peer_id)
        self._attend(connection.peer_id)

    def _disconnected(self, connection: Connection, code: int) -> None:
        """Tells the core that a peer is no longer connected, and ends what was done for it."""
        peer_id = connection.peer_id
        known = code if isinstance(code, ErrorCode) else ErrorCode.INTERNAL
        self._telemetry.peer_disconnected(peer_id, known)
        if connection.lost is not None and not connection.lost.local:
            self.on_turned_away(peer_id_text(peer_id), code)
        self._fall_silent(peer_id)
        self._node.handle_disconnected(peer_id, known, self.now)
        self._dials_failed(peer_id)
        self.settle()

    def _replaced(self, connection: Connection) -> None:
        """Begins anew with a peer whose connection was replaced: it may be another run of it that knows nothing yet."""
        self._fall_silent(connection.peer_id)
        self._node.handle_replaced(connection.peer_id, self.now)
        self._attend(connection.peer_id)
        self.settle()

    def _fall_silent(self, peer_id: PeerId) -> None:
        """Ends the speaking to a peer over its old connection."""
        self.strangers.end(peer_id)
        outbox = self._outboxes.pop(peer_id, None)
        if outbox is not None:
            outbox.scope.cancel()

    async def _hang_up(self, peer_id: PeerId, code: ErrorCode) -> None:
        """Closes a connection."""
        connection = self._transport.connections.get(peer_id)
        if connection is not None:
            await connection.close(code, code.name.lower())

    def _attend(self, peer_id: PeerId) -> None:
        """Sees to it that somebody speaks to a connected peer, and that the dials which led to it hear how that went."""
        if peer_id not in self._outboxes:
            outbox = self._outboxes[peer_id] = _Speech()
            self._start(self._speak, peer_id, outbox)
        if self._node.membership.is_connected(peer_id):
            self._greeted(peer_id)

    def _greeted(self, peer_id: PeerId) -> None:
        """Tells the core that the peer speaks the mesh's protocols.

        What a peer said last may be read when its connection is gone already; that makes no peer connected again.
        """
        if peer_id not in self._transport.connections:
            return
        if peer_id not in self._targets and self._node.membership.is_connected(peer_id):
            return
        self.strangers.end(peer_id)  # it was taken for one before it spoke gossip
        for target in self._targets.pop(peer_id, (None,)):
            self._node.handle_connected(peer_id, self.now, target, self._origin(peer_id))
        self.settle()

    def _origin(self, peer_id: PeerId) -> Prefix | None:
        """The prefix by which many peers at one place are held against them; None where that is no offence.

        In a private network every peer is there by its owner's word, and a whole site may sit behind one address.
        """
        transport = self._transport
        remote = transport.connections[peer_id].remote
        if not self.counts_origins or remote.protocol not in ("ip4", "ip6"):
            return None
        return prefix_of(remote.host, transport.config.endpoint.own_networks)

    def _dials_failed(self, peer_id: PeerId) -> None:
        """Tells the core that the dials which led to this peer led to nobody who speaks the mesh's protocols."""
        for target in self._targets.pop(peer_id, ()):
            self._node.handle_dial_failed(target, self.now)

    def _datagram(self, peer_id: PeerId, payload: bytes, received_at: float) -> None:
        """Hands a datagram to the core, with the time the kernel received it."""
        self._node.handle_datagram(peer_id, payload, received_at, self.now)
        self.settle()

    # Gossip streams

    def _post(self, peer_id: PeerId, payload: bytes) -> None:
        """Queues one message for a peer; the oldest gives way when the queue is full."""
        outbox = self._outboxes.get(peer_id)
        if outbox is not None:
            outbox.put(payload)

    async def _speak(self, peer_id: PeerId, outbox: _Speech) -> None:
        """Keeps a gossip stream to a peer open and writes what is queued, for as long as the peer is connected.

        Two peers that dialled each other at once keep one of the two connections; the stream moves to it when the other closes.
        """
        with outbox.scope:
            while (connection := self._transport.connections.get(peer_id)) is not None:
                try:
                    await self._speak_over(connection, outbox)
                except (StreamReset, ConnectionLost, trio.TooSlowError) as error:
                    if self._transport.connections.get(peer_id) is not connection:
                        continue
                    self._telemetry.log.debug("no gossip with peer", peer=str(connection.remote), error=str(error))
                    self._dials_failed(peer_id)
                    self.settle()
                    if isinstance(error, StreamReset) and error.code is ErrorCode.UNSUPPORTED:
                        self._start(self.strangers.meet, connection)
                        break
                    await trio.sleep(GREETING_RETRY_S)
        if self._outboxes.get(peer_id) is outbox:
            del self._outboxes[peer_id]

    async def _speak_over(self, connection: Connection, outbox: _Speech) -> None:
        """Opens one gossip stream and writes to it until it ends.

        Raises:
            StreamReset: the peer speaks no gossip, or broke the stream off.
            ConnectionLost: the connection is gone.
            trio.TooSlowError: the peer does not say whether it speaks gossip.
        """
        async with await connection.open_stream(GOSSIP_PROTOCOL) as stream:
            with trio.fail_after(GREETING_TIMEOUT_S):
                await stream.confirmed()
            self._greeted(connection.peer_id)
            await outbox.write_to(stream)

    async def _listen(self, stream: Stream) -> None:
        """Reads a peer's gossip."""

        def take(message: bytes) -> None:
            if self._transport.charge(stream.peer_id, Account.VERIFICATIONS, signatures_in(message)) is not Verdict.GRANTED:
                return  # gossip survives a dropped message
            if not self._node.membership.is_connected(stream.peer_id):
                self._greeted(stream.peer_id)
            self._node.handle_message(stream.peer_id, message, self.now)
            self.settle()

        try:
            await read_frames(stream, gossip.MESSAGE_BYTES_MAX, take, self._transport.now, gossip.in_pieces)
        except RemoteProtocolError as error:
            self._telemetry.peer_faulted(stream.peer_id, error.code, error.detail)
            self._transport.fault(stream.peer_id, error.code)
            await self._hang_up(stream.peer_id, error.code)
        except (StreamReset, ConnectionLost):
            return
