"""The streams of gossipsub, to peers that do not speak gossip: one to write on to each of them, one of theirs to read.

A peer that refuses gossip is asked what it speaks; one that speaks gossipsub, or opens such a stream itself, is a stranger and is
handed to the core's bridge. What the bridge says waits in a queue of its own; the oldest goes when a stranger reads slowly. Now
and then a stranger is pinged, for a near one is worth more.

Source: libp2p/specs pubsub/README.md, section "Stream management".
Spec: docs/spec/08-pubsub.md, section "Transport".
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import trio

from mesh.outbox import Outbox, read_frames, signatures_in
from mesh.telemetry import Telemetry
from mesh.transport import Connection, ConnectionLost, Stream, StreamReset, Transport
from protocol.budget import Verdict
from protocol.conduct import Account
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId
from protocol.node import Node
from protocol.pubsub import RPC_BYTES_MAX, Version, in_pieces

OUTBOX_RPCS_MAX = 1024
"""RPCs waiting for one stranger: half a megabyte of cards; past it the oldest go, and gossip makes up for them."""
OPENING_TIMEOUT_S = 5.0
"""Longest wait in seconds until a stranger takes the stream that it is offered: as for a gossip stream."""
OPENING_RETRY_S = 1.0
"""Pause in seconds before a stranger that broke off its stream is offered another."""
PING_INTERVAL_S = 30.0
"""Seconds between two pings of a stranger: its round trip is one part of its score and changes seldom."""


@dataclass(slots=True)
class _Stranger:
    """One stranger that is served."""

    version: Version
    outbox: Outbox = field(default_factory=lambda: Outbox(OUTBOX_RPCS_MAX))
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    reading: Stream | None = None


class Strangers:
    """Runs the bridge of one core over one transport."""

    def __init__(
        self,
        node: Node,
        transport: Transport,
        telemetry: Telemetry,
        settle: Callable[[], None],
        start: Callable[..., None],
    ) -> None:
        """Offers the protocols.

        Args:
            node: the core.
            transport: the QUIC transport.
            telemetry: for log lines.
            settle: drains the core's outputs.
            start: begins work that takes time.
        """
        self._node = node
        self._transport = transport
        self._telemetry = telemetry
        self._settle = settle
        self._start = start
        self._strangers: dict[PeerId, _Stranger] = {}
        for version in Version:
            transport.add_handler(version.value, self._listen)

    def __len__(self) -> int:
        """How many strangers are served."""
        return len(self._strangers)

    async def meet(self, connection: Connection) -> None:
        """Finds out whether a connected peer that refuses gossip speaks gossipsub, and serves it then."""
        try:
            said = await connection.identify()
        except (StreamReset, ConnectionLost) as error:
            self._telemetry.log.debug("a peer does not say what it speaks", peer=str(connection.remote), error=str(error))
            return
        version = newest_of(said.protocols)
        if version is not None and self._transport.connections.get(connection.peer_id) is connection:
            self._serve(connection, version)

    def post(self, peer_id: PeerId, payload: bytes) -> None:
        """Queues one RPC for a stranger."""
        stranger = self._strangers.get(peer_id)
        if stranger is not None:
            stranger.outbox.put(payload)

    def end(self, peer_id: PeerId) -> None:
        """Serves a peer no more: its connection is gone or another now, or it speaks gossip."""
        stranger = self._strangers.pop(peer_id, None)
        if stranger is not None:
            stranger.scope.cancel()
            if stranger.reading is not None:
                stranger.reading.reset(ErrorCode.UNSUPPORTED)
            self._node.strangers.handle_disconnected(peer_id, self._transport.now())

    def _serve(self, connection: Connection, version: Version) -> _Stranger | None:
        """The stranger at the end of a connection; None where there is no room for one more, or it is a member of the mesh."""
        peer_id = connection.peer_id
        if peer_id in self._strangers or self._node.membership.is_connected(peer_id):
            return self._strangers.get(peer_id)
        remote, now = connection.remote, self._transport.now()
        host = remote.host if remote.protocol in ("ip4", "ip6") else None
        if not self._node.strangers.handle_connected(peer_id, version, host, now, is_dialled=connection.is_dialled):
            return None
        stranger = self._strangers[peer_id] = _Stranger(version)
        self._start(self._speak, peer_id, stranger)
        self._settle()
        return stranger

    # What is said to a stranger

    async def _speak(self, peer_id: PeerId, stranger: _Stranger) -> None:
        """Keeps a stream to a stranger open and writes what is queued, for as long as it is served."""
        with stranger.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_measuring, peer_id)
                while (connection := self._transport.connections.get(peer_id)) is not None:
                    try:
                        await self._speak_over(connection, stranger)
                    except (StreamReset, ConnectionLost, trio.TooSlowError) as error:
                        self._telemetry.log.debug("a stranger broke off", peer=str(connection.remote), error=str(error))
                        if isinstance(error, StreamReset) and error.code is ErrorCode.UNSUPPORTED:
                            break
                    await trio.sleep(OPENING_RETRY_S)
                    self._node.strangers.handle_reopened(peer_id, self._transport.now())
                    self._settle()
                nursery.cancel_scope.cancel()
        if self._strangers.get(peer_id) is stranger:
            self.end(peer_id)

    async def _speak_over(self, connection: Connection, stranger: _Stranger) -> None:
        """Opens one stream and writes to it until it ends.

        Raises:
            StreamReset: the peer broke the stream off, or speaks no gossipsub after all.
            ConnectionLost: the connection is gone.
            trio.TooSlowError: the peer does not take the stream.
        """
        async with await connection.open_stream(stranger.version.value) as stream:
            with trio.fail_after(OPENING_TIMEOUT_S):
                await stream.confirmed()
            await stranger.outbox.write_to(stream)

    async def _keep_measuring(self, peer_id: PeerId) -> None:
        """Pings a stranger from time to time; one that does not answer stays as far as it was."""
        while (connection := self._transport.connections.get(peer_id)) is not None:
            try:
                self._node.strangers.handle_rtt(peer_id, await connection.ping())
            except (StreamReset, ConnectionLost) as error:
                self._telemetry.log.debug("a stranger does not answer pings", peer=str(connection.remote), error=str(error))
            await trio.sleep(PING_INTERVAL_S)

    # What a stranger says

    async def _listen(self, stream: Stream) -> None:
        """Reads what a stranger says, on the newest stream that it has opened."""
        stranger = self._serve(stream.connection, Version(stream.protocol_id))
        if stranger is None:
            is_member = self._node.membership.is_connected(stream.peer_id)
            raise RemoteProtocolError(ErrorCode.UNSUPPORTED if is_member else ErrorCode.OVERLOADED, "not served as a stranger")
        if stranger.reading is not None:
            stranger.reading.reset(ErrorCode.DUPLICATE)
        stranger.reading = stream

        def take(rpc: bytes) -> None:
            if self._transport.charge(stream.peer_id, Account.VERIFICATIONS, signatures_in(rpc)) is not Verdict.GRANTED:
                return
            self._node.strangers.handle_rpc(stream.peer_id, rpc, self._transport.now())
            self._settle()

        try:
            await read_frames(stream, RPC_BYTES_MAX, take, self._transport.now, in_pieces)
        except RemoteProtocolError as error:
            self._telemetry.peer_faulted(stream.peer_id, error.code, error.detail)
            self._transport.fault(stream.peer_id, error.code)
            await stream.connection.close(error.code, error.code.name.lower())
        except (StreamReset, ConnectionLost):
            return
        finally:
            if stranger.reading is stream:
                stranger.reading = None


def newest_of(protocols: Iterable[str]) -> Version | None:
    """The newest version of gossipsub among the protocols that a peer says it speaks."""
    spoken = frozenset(protocols)
    return next((version for version in Version if version.value in spoken), None)
