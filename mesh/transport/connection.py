"""One connection to one peer, as tasks use it: streams to open, datagrams to send, libp2p's ping and identify.

When two connections to a peer exist, one is retired: it takes no new streams and closes when the last one on it is over. A
reference to it stays good, since new streams go to its successor.

Spec: docs/spec/02-transport.md, section "Connections".
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from mesh.transport import builtin
from mesh.transport.errors import ConnectionLost, StreamReset
from mesh.transport.patience import Waits
from mesh.transport.stream import Stream
from mesh.transport.watch import Doing, Seen, Watcher
from protocol.errors import ErrorCode, LocalProtocolError
from protocol.identity import PeerId
from protocol.libp2p.identify import Identify, PeerDescription
from protocol.multiaddr import Multiaddr
from protocol.quic.events import ConnectionHandle

if TYPE_CHECKING:
    from mesh.transport.transport import Transport


class Connection:
    """An authenticated connection.

    Attributes:
        peer_id: who is at the other end, proven by TLS.
        last_remote: where the peer was reached at first.
        is_dialled: whether this node opened it.
        incarnation: the same for all connections of one run of the peer's program.
        is_guest: the peer has shown an invitation and no certificate: it may join and do nothing else.
        successor: the connection that replaces this one, if any.
        pinging: held while a ping is on its way; libp2p wants one ping stream at a time.
        description: what the peer said of itself.
        told: the protocols and addresses that the peer was told when it asked; None while it did not ask.
        serving: handler tasks that run for streams of the peer, by protocol.
        watchers: who is told what happens here.
        waits: the streams on which a task waits for the rest of what the peer began.
    """

    def __init__(
        self,
        transport: "Transport",
        handle: ConnectionHandle,
        remote: Multiaddr,
        peer_id: PeerId,
        *,
        is_dialled: bool,
        incarnation: bytes,
    ) -> None:
        self.handle = handle
        self.last_remote = remote
        self.peer_id = peer_id
        self.is_dialled = is_dialled
        self.incarnation = incarnation
        self.is_guest = False
        self.successor: Connection | None = None
        self.lost: ConnectionLost | None = None
        self.streams: dict[int, Stream] = {}
        self.description = PeerDescription(peer_id)
        self.told: tuple[tuple[str, ...], tuple[bytes, ...]] | None = None
        self.serving: dict[str, int] = {}
        self.waits = Waits()
        self.watchers: tuple[Watcher, ...] = ()
        self.became_quiet: Callable[[], None] | None = None
        self._transport = transport
        self.pinging = trio.Lock()
        self._openers = trio.lowlevel.ParkingLot()

    @property
    def remote(self) -> Multiaddr:
        """Where the peer is reached now, with its peer id."""
        return self._transport.remote_of(self)

    @property
    def is_alive(self) -> bool:
        """Whether streams can be opened on it or on its successor."""
        return self._current().lost is None

    def _current(self) -> "Connection":
        connection = self
        while connection.successor is not None:
            connection = connection.successor
        return connection

    async def open_stream(self, protocol_id: str) -> Stream:
        """Open a stream; it waits only while the peer allows no more streams. The protocol is agreed with the first data.

        Raises:
            ConnectionLost: the connection is gone.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            connection = self._current()
            if connection.lost is not None:
                raise ConnectionLost(connection.lost.code, connection.lost.reason)
            try:
                stream_id = self._transport.endpoint.open_stream(connection.handle, self._transport.now())
            except LocalProtocolError as fault:
                raise ConnectionLost(fault.code, fault.detail) from fault
            if stream_id is not None:
                stream = Stream(connection, stream_id, self._transport.config.multistream, protocol_id)
                connection.streams[stream_id] = stream
                stream.tell(Doing.OPENED, sent=True)
                return stream
            await connection._openers.park()  # noqa: SLF001  (another of this class)

    def send_datagram(self, data: bytes) -> bool:
        """Send an unreliable datagram; False when it is too large, the queue is full or the connection gone."""
        connection = self._current()
        taken = self._transport.endpoint.send_datagram(connection.handle, data)
        if connection.watchers and taken:
            connection.tell(Doing.DATAGRAM, sent=True, data=data)
        self._transport.pump()
        return taken

    async def close(self, code: ErrorCode = ErrorCode.NO_ERROR, reason: str = "") -> None:
        """Close the connection and tell the peer why; every stream on it is lost."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._transport.endpoint.close(self._current().handle, code, reason, self._transport.now())
        self._transport.pump()

    async def ping(self) -> float:
        """Send one libp2p ping and return its round trip in seconds.

        Raises:
            StreamReset: the peer does not answer pings, or answers wrongly.
            ConnectionLost: the connection is gone.
        """
        return await builtin.ping(self, self._transport)

    async def identify(self) -> Identify:
        """Ask the peer what it says of itself; its key and its signed record are verified, all else is a claim.

        Raises:
            StreamReset: the peer does not answer, or answers what does not verify.
            ConnectionLost: the connection is gone.
        """
        return await builtin.identify(self, self._transport)

    # What streams and the transport use.

    def tell(
        self,
        doing: Doing,
        *,
        sent: bool,
        stream_id: int | None = None,
        protocol_id: str = "",
        data: bytes = b"",
        code: int = 0,
        reason: str = "",
    ) -> None:
        """Tell those who watch this connection what happened; a stream's opener is known by its number (RFC 9000, 2.1)."""
        by_us = stream_id is not None and (stream_id & 1 == 0) == self.is_dialled
        seen = Seen(self._transport.now(), doing, sent, stream_id, protocol_id, by_us == sent, data, code, reason)
        for watcher in self.watchers:
            watcher(seen)

    def room(self, stream_id: int) -> int:
        """How many stream bytes would be taken now; none where the connection is gone."""
        return self._transport.endpoint.room(self.handle, stream_id)

    def write(self, stream_id: int, data: memoryview, *, end: bool, linger: bool, with_others: bool = False) -> int:
        """Queue stream bytes; return how many were taken.

        With `linger` they wait a moment for others to leave with, `with_others` for what can be sent in the same moment.
        """
        try:
            n_taken = self._transport.endpoint.send(self.handle, stream_id, data, end)
        except LocalProtocolError as fault:
            kind = StreamReset if fault.code is ErrorCode.CANCELLED else ConnectionLost
            raise kind(fault.code, fault.detail) from fault
        if linger:
            self._transport.pump_soon()
        elif with_others:
            self._transport.pump_this_turn()
        else:
            self._transport.pump()
        return n_taken

    def afterwards(self, do: Callable[[], None]) -> None:
        """Do what nobody waits for once something else has left."""
        self._transport.afterwards(do)

    def grant(self, stream_id: int, n_bytes: int, *, ended: bool) -> None:
        """Grant credit for bytes that were read; that of a stream which has ended leaves with whatever leaves next."""
        self._transport.endpoint.consumed(self.handle, stream_id, n_bytes, self._transport.now())
        if not ended:
            self._transport.pump_soon()

    def abandon(self, stream_id: int, code: int) -> None:
        """Abandon both sides of a stream."""
        self._transport.endpoint.reset(self.handle, stream_id, code)
        self._transport.endpoint.stop_sending(self.handle, stream_id, code)
        self._transport.pump()

    def ignore(self, stream_id: int, code: int) -> None:
        """Read no more of a stream; the peer is asked to stop if it does send more."""
        self._transport.endpoint.ignore(self.handle, stream_id, code)

    def streams_became_available(self) -> None:
        """The peer allows streams again."""
        self._openers.unpark_all()

    def was_lost(self, lost: ConnectionLost) -> None:
        """The connection is gone."""
        self.lost = lost
        for stream in list(self.streams.values()):
            stream.was_lost(lost)
        self.streams.clear()
        self._openers.unpark_all()
        self._tell_quiet()

    def forget(self, stream_id: int) -> None:
        """A stream is over."""
        self.streams.pop(stream_id, None)
        self._tell_quiet()

    def _tell_quiet(self) -> None:
        if not self.streams and self.became_quiet is not None:
            self.became_quiet()
