"""The fast engine: qh3, whose packet core is compiled, behind the seam.

The connection class of the library is extended, not patched: TLS is mutual (`qh3_tls`), unidirectional streams are refused, and
padding behind the last packet of a datagram counts toward the anti-amplification allowance. The core queues the events of all
streams in one line and grants flow-control credit when an event is taken, so no stream can be held back alone, and holding all
back would silence probes and resets too: every event is taken at once, and the endpoint gives up a stream that is not read
(`EndpointConfig.stream_unread_bytes_max`). A panic of the compiled core ends its connection alone. The names used are private to
qh3, so the version is pinned, checked on import, and each name stands under a test (tests/protocol/quic/test_private_names.py).

Source: RFC 9000, RFC 9001, RFC 9221; qh3 2.1.0.
Spec: docs/spec/02-transport.md.
"""
# pyright: basic

import importlib.metadata
from collections import deque
from collections.abc import Sequence
from typing import Any

from qh3._hazmat import QuicConnectionCore, pull_quic_header
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.packet import QuicPacketType
from qh3.quic.tls_bridge import QuicTlsBridgeError

from protocol.errors import ErrorCode, LocalProtocolError
from protocol.identity import PeerId
from protocol.quic.guards import Destinations, Guard
from protocol.quic.qh3_faults import is_contained, is_panic
from protocol.quic.qh3_tls import CONNECTION_IDS_MAX, MutualBridge, configuration_of, tls
from protocol.quic.qh3_traps import TRAP_UIDS, PacketTraps
from protocol.quic.seam import (
    CONNECTION_ID_BYTES,
    QUIC_VERSION_1,
    TIMER_SLACK_S,
    Address,
    CidIssued,
    CidReplaced,
    CidRetired,
    Closed,
    DataReceived,
    EngineConfig,
    EngineEvent,
    EngineSetup,
    FrameReceived,
    HandshakeFinished,
    PingAnswered,
    ResetReceived,
    StopReceived,
    VerifyPeer,
    application_code,
    transport_code,
)

VERSION = "2.1.0"
"""The one version whose private names this module knows."""

PACKET_OVERHEAD_BYTES = 40
"""Room of a 1-RTT packet around a DATAGRAM frame, in bytes: short header 13, tag 16, frame header 3, rounded up."""

ACK_DELAY_EXPONENT = 3
"""Exponent of the ACK delay field: the protocol's default (RFC 9000 section 18.2)."""

MAX_ACK_DELAY_S = 0.025
"""Longest delay of an acknowledgement in seconds: the protocol's default (RFC 9000 section 18.2)."""

REASSEMBLY_FACTOR = 1
"""Stream windows a stream may hold out of order: what its credit allows."""

PROTOCOL_VIOLATION = 0x0A
"""QUIC transport error (RFC 9000 section 20.1)."""

SMALL_BYTES = 64
"""A datagram below this size in bytes holds an acknowledgement or the answer to a path challenge and no more."""

SMALL_MAX = 8
"""Datagrams of that size sent at a time: one acknowledgement, and as many answers as aioquic gives to path challenges."""

DROPPED_MAX = 256
"""Answers to path challenges dropped until the connection ends: each is kept by the core until it is acknowledged or lost."""

OUTSTANDING_MAX = 32_768
"""Packets that may wait to be acknowledged: the core keeps some 100 bytes of each, and a window of 8 MiB holds 6,200 full ones. A
peer that goes on sending and acknowledges nothing would have them grow without end."""

COUNT_EVERY = 1024
"""Packets sent between two counts of those that wait: a count takes 0.1 µs for each of them."""

_FIXED_BIT = 0x40
"""Set in the first byte of every packet (RFC 9000 section 17); a byte without it is padding behind the last packet."""

if (installed := importlib.metadata.version("qh3")) != VERSION:
    message = f"qh3 {installed} is installed; this engine knows {VERSION}: pip install qh3=={VERSION}"
    raise LocalProtocolError(ErrorCode.UNSUPPORTED, message)


class GuardedConnection(QuicConnection):  # type: ignore[misc]
    """qh3's connection with the libp2p handshake and our limits."""

    _core: Any
    _tls: Any
    _now: float = 0.0

    def __init__(
        self,
        configuration: QuicConfiguration,
        config: EngineConfig,
        verify: VerifyPeer,
        original_cid: bytes | None,
        retry_cid: bytes | None = None,
        secret: bytes = b"",
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_cid,
            retry_source_connection_id=retry_cid,
        )
        self.normal: deque[EngineEvent] = deque()
        self.closed: Closed | None = None
        self._config = config
        self._verify = verify
        self._traps = PacketTraps(secret, self.host_cid)
        self._n_sent = 0
        self._n_dropped = 0
        self._counted_at = 0
        self._destinations = Destinations()

    @property
    def core(self) -> Any:
        """The compiled half; None before the first packet."""
        return self._core

    @property
    def peer_id(self) -> PeerId | None:
        """Who the peer's certificate proves it is."""
        return self._tls.tls.peer_id if self._tls is not None else None

    @property
    def handshake_confirmed(self) -> bool:
        """Whether both sides know that the handshake is over."""
        return bool(self._handshake_confirmed and self._handshake_complete)

    @property
    def frame_room_bytes(self) -> int:
        """The largest DATAGRAM content the peer takes; 0 when it takes none."""
        return min(int(self._remote_max_datagram_frame_size or 0), self._config.datagram_bytes_max - PACKET_OVERHEAD_BYTES)

    def receive(self, datagrams: Sequence[bytes], address: Address, now: float) -> None:
        """Take datagrams from one address."""
        if self.closed is not None and self._core is None:
            return
        self._traps.handle_receipt(self._core)
        if self._handshake_complete and self._core is not None:
            self._core.receive_many_datagrams(list(datagrams), address, now)
            self.drain()
            return
        for data in datagrams:
            self._receive_one(data, address, now)

    def _receive_one(self, data: bytes, address: Address, now: float) -> None:
        """Take one datagram of a handshake packet by packet, since each may bring the keys of the next."""
        if self._core is None:
            if self._is_client or not self._start_server(data, address, now):
                return
        elif self._receive_version_negotiation(data, address, now) or self._receive_retry(data, address, now):
            return
        core: Any = self._core
        offset = 0
        while offset < len(data):
            try:
                end = pull_quic_header(data, offset, CONNECTION_ID_BYTES)[9]
            except ValueError:
                end = len(data)
            if end <= offset or (end < len(data) and not data[end] & _FIXED_BIT):
                end = len(data)
            report = core.receive_datagram(data[offset:end], address, now, len(data))
            if report[2]:
                self._learn_remote_source_cid(data[offset:end])
            self.drain()
            offset = end

    def _start_server(self, data: bytes, address: Address, now: float) -> bool:
        try:
            header = pull_quic_header(data, 0, CONNECTION_ID_BYTES)
        except ValueError:
            return False
        if header[1] != int(QuicPacketType.INITIAL) or header[0] != QUIC_VERSION_1:
            return False
        self._remote_addr = address
        self._version = QUIC_VERSION_1
        self._create_core(address, header[3], now)
        self._create_tls(remote_source_cid=None)
        return True

    def drain(self) -> None:
        """Take the core's events."""
        core = self._core
        while core is not None and self.closed is None:
            native = core.next_event()
            if native is None:
                break
            self._take(native)
            core = self._core

    def _take(self, native: tuple[Any, ...]) -> None:
        match native[0]:
            case "stream_data":
                self.normal.append(DataReceived(native[1], native[2], native[3]))
            case "datagram":
                self.normal.append(FrameReceived(native[1]))
            case "ping_acknowledged" if native[1] >= TRAP_UIDS:
                if self._traps.springs(native[1]):
                    self._refuse("a packet that was never sent is acknowledged")
            case "ping_acknowledged":
                self.normal.append(PingAnswered(native[1]))
            case "stream_reset":
                self.normal.append(ResetReceived(native[1], native[2]))
            case "stop_sending":
                self.normal.append(StopReceived(native[1], native[2]))
            case "stream_finished":
                self._created_local_stream_ids.discard(native[1])
            case "connection_id_issued":
                self.normal.append(CidIssued(native[1]))
            case "connection_id_retired":
                self.normal.append(CidRetired(native[1]))
            case "handshake_done":
                self._handshake_confirmed = True
                self._core.handshake_confirmed()
            case "crypto_data":
                self._take_crypto(native)
            case _:
                self._take_end(native)

    def _take_end(self, native: tuple[Any, ...]) -> None:
        match native[0]:
            case "peer_closed":
                code = application_code(native[2]) if native[1] else transport_code(native[2])
                self.closed = Closed(code, native[4].decode("utf-8", "replace"), local=False)
            case "protocol_error":
                self.closed = Closed(transport_code(native[1]), str(native[3]), local=True)
            case "connection_terminated":
                is_idle = native[3] == b"Idle timeout"
                reason = (
                    f"nothing was heard for {self._config.idle_timeout_s:g} s"
                    if is_idle
                    else "the peer knows nothing of the connection"
                )
                self.closed = Closed(ErrorCode.IDLE, reason, local=True)
            case _:
                pass  # credit, migration and path events need no answer

    def _take_crypto(self, native: tuple[Any, ...]) -> None:
        try:
            self._tls.receive_crypto(tls.Epoch(native[1]), native[3], native[2], version=self._core.version)
            self._drain_tls()
            self._events.clear()
        except QuicTlsBridgeError as fault:
            self._core.close(fault.error_code, int(fault.frame_type), fault.reason_phrase.encode())
            refusal = getattr(self._tls.tls, "refusal", None)
            code = refusal.code if refusal is not None else transport_code(fault.error_code)
            self.closed = Closed(code, refusal.detail if refusal is not None else fault.reason_phrase, local=True)

    def transmits(self, now: float) -> list[tuple[bytes, Address]]:
        """Build what may be sent now, and lay a trap where one is due.

        The core answers each of many path challenges by a datagram of its own. Beyond a few they are dropped, as a peer has to
        expect (RFC 9000 section 8.2.2): one datagram of challenges would cause a hundred system calls.
        """
        core: Any = self._core
        self._now = now
        sent: list[tuple[bytes, Address]] = []
        n_small = 0
        while (transmit := core.poll_transmit(now)) is not None:
            n_small += len(transmit[0]) < SMALL_BYTES
            if len(transmit[0]) >= SMALL_BYTES or n_small <= SMALL_MAX:
                sent.append((transmit[0], transmit[1]))
        if sent and self._is_client and not self._handshake_complete and not core.received_authenticated_packet:
            sent[0] = (sent[0][0].ljust(core.active_path[5], b"\0"), sent[0][1])  # RFC 9000 section 14.1: it shows what passes
        self._n_dropped += max(0, n_small - SMALL_MAX)
        if self._n_dropped > DROPPED_MAX and self.closed is None:
            self._refuse("too many path challenges")
        if self._n_sent - self._counted_at >= COUNT_EVERY and self.closed is None:
            self._counted_at = self._n_sent
            if len(core.outstanding_application_packets) > OUTSTANDING_MAX:
                self._refuse("too many packets wait to be acknowledged")
        self._n_sent += len(sent)
        if (
            sent
            and self._tls is not None
            and self._destinations.is_new(sent[-1][0], self._tls.remote_initial_source_connection_id)
        ):
            self.normal.append(CidReplaced())
        if sent and self.closed is None and self.handshake_confirmed and (behind := self._traps.lay(core, now, self._n_sent)):
            self._n_sent += 1 + len(behind)
            sent += behind
        return sent

    def held_until(self) -> float | None:
        """Until when the core holds a small message back that there is no reason to; None where it holds none.

        It spaces packets as if each had the size of the largest: of those for a peer on this machine two fill the first window,
        and a message of some bytes would wait for half a round trip behind the one before, though next to nothing is under way.
        """
        core: Any = self._core
        if core is None or core.active_path[5] <= self._config.datagram_bytes_max or not core.get_send_buffer_size():
            return None
        timer = core.get_timer()
        if timer is None or timer[0] != "pacing" or core.bytes_in_flight >= self._config.datagram_bytes_max:
            return None
        return float(timer[1])

    def ping(self, uid: int) -> None:
        """Send a PING; the moment is quiet."""
        if self.handshake_confirmed:
            self._traps.prime(self._core, self._now)
        self._core.send_ping(uid)

    def _refuse(self, reason: str) -> None:
        """End the connection for what the peer did."""
        self._core.close(PROTOCOL_VIOLATION, 0, reason.encode())
        self.closed = Closed(transport_code(PROTOCOL_VIOLATION), reason, local=True)

    def end(self, code: int, reason: str) -> None:
        """Close with an application code; the farewell goes out with the next datagrams."""
        if self.closed is None:
            self.closed = Closed(application_code(code), reason, local=True)
            if self._core is not None:
                self._core.close(code, None, reason.encode("utf-8"))

    def abandon(self) -> None:
        """Never enter the compiled half again: a panic may have left it half changed."""
        self._core = None

    def _create_core(self, remote_addr: Address, initial_dcid: bytes, now: float) -> None:
        config = self._config
        self._core = QuicConnectionCore(
            self._is_client,
            QUIC_VERSION_1,
            ("0.0.0.0", 0) if len(remote_addr) == 2 else ("::", 0, 0, 0),  # noqa: S104  (a name for "this side", never bound)
            remote_addr,
            self.host_cid,
            initial_dcid,
            self._is_client or self._retry_source_connection_id is not None,
            CONNECTION_IDS_MAX,
            self._configuration.max_datagram_size,
            True,
            config.idle_timeout_s,
            ACK_DELAY_EXPONENT,
            config.frame_bytes_max,
            None,
            config.connection_window_bytes,
            0,
            config.stream_window_bytes,
            0,
            0,
            0,
            REASSEMBLY_FACTOR * config.stream_window_bytes,
            config.streams_in_max,
            0,
            0,
            0,
            config.initial_rtt_s,
            MAX_ACK_DELAY_S,
            now,
        )
        self._applied_transport_parameters = None
        self._pre_handshake_state_replayed = False

    def _create_tls(self, remote_source_cid: bytes | None) -> MutualBridge:
        bridge = MutualBridge(
            self._configuration,
            self._config,
            self._verify,
            self._set_version,
            version=QUIC_VERSION_1,
            local_initial_source_connection_id=self.host_cid,
            remote_initial_source_connection_id=remote_source_cid,
            original_destination_connection_id=self._original_destination_connection_id,
            retry_source_connection_id=self._retry_source_connection_id,
        )
        self._tls = bridge
        return bridge


class Qh3Connection:
    """The seam over one `GuardedConnection`."""

    def __init__(self, quic: GuardedConnection, original_cid: bytes | None) -> None:
        self._quic = quic
        self._cids = (quic.host_cid,) if original_cid is None else (quic.host_cid, original_cid)
        self._established = False
        self._closed_taken = False
        self._frames_left = quic._config.frames_pending_max
        self._ahead_s = 0.0  # the core's clock is so many seconds ahead of the node's: what it was not let wait for

    @property
    def cids(self) -> Sequence[bytes]:
        """See EngineConnection."""
        return self._cids

    @property
    def authenticated(self) -> bool:
        """See EngineConnection."""
        core = self._quic.core
        return core is not None and bool(core.received_authenticated_packet)

    @property
    def address(self) -> Address | None:
        """See EngineConnection."""
        core = self._quic.core
        address: Address | None = core.active_path[2] if core is not None else None
        return address

    @property
    def rtt_s(self) -> float | None:
        """See EngineConnection."""
        core = self._quic.core
        rtt_s: float | None = core.smoothed_rtt if core is not None else None
        return rtt_s

    @property
    def _open(self) -> Any:
        """The core while commands make sense, else None."""
        return self._quic.core if self._quic.closed is None and self._established else None

    def receive(self, datagrams: Sequence[bytes], address: Address, now: float) -> None:
        """See EngineConnection."""
        try:
            self._quic.receive(datagrams, address, now + self._ahead_s)
        except BaseException as fault:
            if not is_contained(fault):
                raise
            self._fail(fault)

    def transmits(self, now: float) -> list[tuple[bytes, Address]]:
        """See EngineConnection."""
        core = self._quic.core
        sent: list[tuple[bytes, Address]] = []
        if core is None:
            return sent
        try:
            sent = self._quic.transmits(now + self._ahead_s)
            if (held_until := self._quic.held_until()) is not None:
                self._ahead_s = max(self._ahead_s, held_until - now)
                sent += self._quic.transmits(now + self._ahead_s)
        except BaseException as fault:
            if not is_contained(fault):
                raise
            self._fail(fault)
        self._frames_left = self._quic._config.frames_pending_max
        return sent

    def next_timer(self) -> float | None:
        """See EngineConnection."""
        core = self._quic.core
        timer = core.get_timer() if core is not None and self._quic.closed is None else None
        return None if timer is None else float(timer[1]) - self._ahead_s

    def handle_timer(self, now: float) -> None:
        """See EngineConnection."""
        timer = self.next_timer()
        if timer is None or now < timer:
            return
        try:
            self._quic.core.handle_timer(now + self._ahead_s + TIMER_SLACK_S)
            self._quic.drain()
        except BaseException as fault:
            if not is_contained(fault):
                raise
            self._fail(fault)

    def next_event(self) -> EngineEvent | None:
        """See EngineConnection."""
        quic = self._quic
        if not self._established and quic.handshake_confirmed and quic.closed is None:
            peer_id = quic.peer_id
            assert peer_id is not None, "a handshake is over and the peer unknown"
            self._established = True
            return HandshakeFinished(peer_id)
        if quic.normal:
            return quic.normal.popleft()
        if quic.closed is not None and not self._closed_taken:
            self._closed_taken = True
            return quic.closed
        return None

    def streams_left(self) -> int:
        """See EngineConnection."""
        core = self._open
        if core is None:
            return 0
        allowed, _, opened, _ = core.stream_limits
        return int(allowed - opened)

    def open_stream(self) -> int | None:
        """See EngineConnection."""
        if self.streams_left() <= 0:
            return None
        stream_id: int = self._quic._open_stream()
        return stream_id

    def send(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        """See EngineConnection."""
        core = self._open
        if core is not None and core.can_send_stream(stream_id):
            core.send_stream(stream_id, data, end)

    def buffered(self, stream_id: int) -> int:
        """See EngineConnection."""
        core = self._open
        return int(core.get_send_buffer_size(stream_id)) if core is not None else 0

    def has_unsent(self) -> bool:
        """See EngineConnection."""
        core = self._open
        return core is not None and core.get_send_buffer_size() > 0

    def reset(self, stream_id: int, code: int) -> None:
        """See EngineConnection."""
        core = self._open
        if core is not None:
            try:
                core.reset_stream(stream_id, code)
            except (ValueError, RuntimeError):
                return  # the stream is over

    def stop(self, stream_id: int, code: int) -> None:
        """See EngineConnection."""
        core = self._open
        if core is not None:
            try:
                core.stop_sending(stream_id, code)
            except (ValueError, RuntimeError):
                return  # the stream is over

    def consumed(self, stream_id: int, n_bytes: int) -> None:
        """Nothing is left to grant: the core did when the event was taken."""

    def forget(self, stream_id: int) -> None:
        """Nothing is kept of a stream."""

    def send_frame(self, data: bytes) -> bool:
        """See EngineConnection."""
        core = self._open
        if core is None or len(data) > self._quic.frame_room_bytes or self._frames_left <= 0:
            return False
        self._frames_left -= 1
        core.send_datagram(data)
        return True

    def ping(self, uid: int) -> None:
        """See EngineConnection."""
        core = self._open
        if core is not None:
            self._quic.ping(uid)

    def close(self, code: int, reason: str) -> None:
        """See EngineConnection."""
        self._quic.end(code, reason)

    def _fail(self, fault: BaseException) -> None:
        """End the connection after a fault inside the library."""
        self._quic.closed = self._quic.closed or Closed(ErrorCode.INTERNAL, f"{type(fault).__name__}: {fault}", local=True)
        if is_panic(fault):
            self._quic.abandon()


class Qh3Engine:
    """The QUIC engine over qh3."""

    name = "qh3"
    version = VERSION
    guarantees = frozenset(Guard)

    def connect(self, setup: EngineSetup, address: Address, verify: VerifyPeer, now: float) -> Qh3Connection:
        """See QuicEngine."""
        quic = GuardedConnection(configuration_of(setup, is_client=True), setup.config, verify, None, None, setup.secret)
        quic.connect(address, now)
        return Qh3Connection(quic, None)

    def accept(
        self, setup: EngineSetup, original_cid: bytes, verify: VerifyPeer, retry_cid: bytes | None = None
    ) -> Qh3Connection:
        """See QuicEngine."""
        configuration = configuration_of(setup, is_client=False)
        quic = GuardedConnection(configuration, setup.config, verify, original_cid, retry_cid, setup.secret)
        return Qh3Connection(quic, retry_cid or original_cid)
