"""The reference engine: aioquic behind the seam, with mutual TLS and the bounds that a hostile peer must not pass.

The connection class of the library is extended, not patched: the TLS context asks for and verifies one libp2p certificate on
both sides; reassembly keeps a bounded number of gaps; handshake bytes ahead of a gap are bounded; an acknowledgement of a
packet that was never sent closes the connection; credit follows what the application consumed. The names used are private to
aioquic, so the version is pinned, checked on import, and each name stands under a test
(tests/protocol/quic/test_private_names.py).

Source: RFC 9000, RFC 9001, RFC 9221; aioquic 1.7.2.
Spec: docs/spec/02-transport.md.
"""
# pyright: reportPrivateUsage=false

from collections import deque
from collections.abc import Sequence
from typing import Any

import aioquic
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    Limit,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, pull_ack_frame
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import PeerId
from protocol.quic.guards import Guard, Traps
from protocol.quic.seam import (
    ALPN,
    CONNECTION_ID_BYTES,
    QUIC_VERSION_1,
    TIMER_SLACK_S,
    Address,
    CidIssued,
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
    alert_of,
    application_code,
    transport_code,
)

VERSION = "1.7.2"
"""The one version whose private names this module knows."""

PACKET_OVERHEAD_BYTES = 40
"""Room of a 1-RTT packet around a DATAGRAM frame, in bytes: short header 13, tag 16, frame header 3, rounded up."""

CHALLENGES_MAX = 8
"""Path challenges in one datagram: a peer that tries a path needs one (RFC 9000 section 8.2.1)."""

SKIPPED_MAX = 8
"""Packet numbers without a packet that are remembered: the places double, so the eighth before is acknowledged or lost long
ago."""

OUTSTANDING_MAX = 16_384
"""Packets that may wait to be acknowledged: the library keeps some 600 bytes of each, 10 MiB in all, and a window of 8 MiB holds
6,200 full ones. A peer that goes on sending and acknowledges nothing would have them grow without end."""

_CERT_NONE = 0
"""ssl.CERT_NONE: no authority vouches for a peer; its certificate vouches for its own host key."""

_FAULTS = (QuicConnectionError, ValueError, RuntimeError, AssertionError, LookupError, TypeError, AttributeError, OverflowError)
"""What the library may raise over a peer's bytes; each ends that connection and nothing else."""

if aioquic.__version__ != VERSION:
    message = f"aioquic {aioquic.__version__} is installed; this engine knows {VERSION}: pip install aioquic=={VERSION}"
    raise LocalProtocolError(ErrorCode.UNSUPPORTED, message)


class GuardedConnection(QuicConnection):
    """aioquic's connection with the libp2p handshake and with bounds."""

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
        self.peer_id: PeerId | None = None
        self.refusal: RemoteProtocolError | None = None
        self.consumed_bytes = 0
        self.n_challenges = 0
        self.consumed_of: dict[int, int] = {}
        self._config = config
        self._verify = verify
        self._traps = Traps(secret, self.host_cid)
        self._skipped: deque[int] = deque(maxlen=SKIPPED_MAX)
        for limit, value in ((self._local_max_streams_bidi, config.streams_in_max), (self._local_max_streams_uni, 0)):
            limit.value = limit.sent = value

    @property
    def handshake_confirmed(self) -> bool:
        """Whether both sides know that the handshake is over."""
        return self._handshake_confirmed

    @property
    def authenticated(self) -> bool:
        """Whether a packet of the peer was decrypted."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def ended(self) -> bool:
        """Whether the connection sends nothing but its farewell."""
        return self._close_event is not None

    @property
    def farewell(self) -> events.ConnectionTerminated | None:
        """Why the connection ended, before the closing period is over."""
        return self._close_event

    @property
    def was_closed_here(self) -> bool:
        """Whether this side ended it; a peer's close puts the state to draining at once."""
        return self._state is not QuicConnectionState.DRAINING

    @property
    def rtt_s(self) -> float | None:
        """The smoothed round trip."""
        loss: Any = self._loss
        return float(loss._rtt_smoothed) if loss._rtt_initialized else None

    @property
    def frame_room_bytes(self) -> int:
        """The largest DATAGRAM content the peer takes; 0 when it takes none."""
        return min(self._remote_max_datagram_frame_size or 0, self._max_datagram_size - PACKET_OVERHEAD_BYTES)

    @property
    def frames_pending(self) -> int:
        """DATAGRAM frames that wait to be sent."""
        return len(self._datagrams_pending)

    @property
    def streams_left(self) -> int:
        """How many more bidirectional streams the peer allows now."""
        return self._remote_max_streams_bidi - self._local_next_stream_id_bidi // 4

    def send_buffer_bytes(self, stream_id: int) -> int:
        """Bytes of a stream not yet acknowledged."""
        stream = self._streams.get(stream_id)
        return stream.sender._buffer_stop - stream.sender._buffer_start if stream is not None else 0

    @property
    def has_unsent(self) -> bool:
        """Whether some stream bytes are not on their way yet."""
        senders = [stream.sender for stream in self._streams.values()]
        return sum(sender._buffer_stop - sender._buffer_start for sender in senders) > self._loss.bytes_in_flight

    def can_write(self, stream_id: int) -> bool:
        """Whether the library would take stream data now without raising."""
        stream = self._streams.get(stream_id)
        return stream is not None and stream.sender._buffer_fin is None and stream.sender._reset_error_code is None

    def can_stop(self, stream_id: int) -> bool:
        """Whether the receiving side of a stream is still there."""
        stream = self._streams.get(stream_id)
        return stream is not None and not stream.receiver.is_finished

    def received_bytes(self, stream_id: int) -> int:
        """The highest offset the peer used on a stream."""
        stream = self._streams.get(stream_id)
        return stream.receiver.highest_offset if stream is not None else 0

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.peer_id = None
        context: Any = self.tls
        if not self._is_client:
            context._request_client_certificate = True
        accept_certificate, expect_finished = context._set_peer_certificate, context._server_expect_finished

        def set_peer_certificate(certificate: tls.Certificate) -> None:
            if len(certificate.certificates) != 1:
                raise tls.AlertBadCertificate("exactly one certificate is wanted")
            accept_certificate(certificate)
            self.peer_id = self._verified(certificate.certificates[0][0])

        def server_expect_finished() -> None:
            if self.peer_id is None:
                self.refusal = RemoteProtocolError(ErrorCode.BAD_CERTIFICATE, "the client showed no certificate")
                raise tls.AlertBadCertificate("a client certificate is required")
            expect_finished()

        context._set_peer_certificate = set_peer_certificate
        context._server_expect_finished = server_expect_finished

    def _verified(self, der: bytes) -> PeerId:
        try:
            return self._verify(der)
        except RemoteProtocolError as fault:
            self.refusal = fault
            alert = tls.Alert(fault.code.name.lower())
            alert.description = tls.AlertDescription(alert_of(fault.code))
            raise alert from fault

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        acknowledged, _ = pull_ack_frame(buf)
        if len(acknowledged) > self._config.ranges_max:
            raise QuicConnectionError(QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "too many ranges are acknowledged")
        if acknowledged[-1].stop > self._packet_number or any(number in acknowledged for number in self._skipped):
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "a packet that was never sent is acknowledged"
            )
        buf.seek(start)
        super()._handle_ack_frame(context, frame_type, buf)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """Build what may be sent now, past a packet number that no packet gets where a trap is due."""
        if self._handshake_confirmed and self._packet_number >= self._traps.next:
            skipped: int = self._packet_number
            self._skipped.append(skipped)
            self._packet_number = skipped + 1
            self._traps.laid()
        if not self.ended and sum(len(space.sent_packets) for space in self._loss.spaces) > OUTSTANDING_MAX:
            self.close(QuicErrorCode.PROTOCOL_VIOLATION, QuicFrameType.PADDING, "too many packets wait to be acknowledged")
        return super().datagrams_to_send(now)

    def _handle_path_challenge_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self.n_challenges += 1
        if self.n_challenges > CHALLENGES_MAX:
            raise QuicConnectionError(QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "too many path challenges")
        super()._handle_path_challenge_frame(context, frame_type, buf)

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        receiver = self._crypto_streams[context.epoch].receiver
        if end - receiver.starting_offset() > self._config.crypto_pending_bytes_max:
            raise QuicConnectionError(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "too many handshake bytes before a gap")
        super()._handle_crypto_frame(context, frame_type, buf)
        if len(receiver._ranges) > self._config.ranges_max:
            raise QuicConnectionError(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "too many gaps in the handshake")

    def _handle_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(start)
        super()._handle_stream_frame(context, frame_type, buf)
        stream = self._streams.get(stream_id)
        if stream is not None and len(stream.receiver._ranges) > self._config.ranges_max:
            raise QuicConnectionError(QuicErrorCode.FLOW_CONTROL_ERROR, frame_type, "too many gaps in a stream")

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        limit: Limit = self._local_max_data
        window = self._config.connection_window_bytes
        if self.consumed_bytes + window >= limit.value + window // 2:
            limit.value = self.consumed_bytes + window
        # The library doubles the limit when half of it is used. While it looks, nothing is.
        used, limit.used = limit.used, 0
        try:
            super()._write_connection_limits(builder, space)
        finally:
            limit.used = used

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        receiver = stream.receiver
        if stream.stream_id is not None and not receiver.is_finished and stream.max_stream_data_local:
            window = self._config.stream_window_bytes
            target = self.consumed_of.get(stream.stream_id, 0) + window
            if target >= stream.max_stream_data_local + window // 2:
                stream.max_stream_data_local = target
        highest, receiver.highest_offset = receiver.highest_offset, 0
        try:
            super()._write_stream_limits(builder, space, stream)
        finally:
            receiver.highest_offset = highest


class AioquicConnection:
    """The seam over one `GuardedConnection`."""

    def __init__(self, quic: GuardedConnection, config: EngineConfig, original_cid: bytes | None) -> None:
        self._quic = quic
        self._config = config
        self._events: deque[EngineEvent] = deque()
        self._cids = (quic.host_cid,) if original_cid is None else (quic.host_cid, original_cid)
        self._established = False
        self._closed = False

    @property
    def cids(self) -> Sequence[bytes]:
        """See EngineConnection."""
        return self._cids

    @property
    def authenticated(self) -> bool:
        """See EngineConnection."""
        return self._quic.authenticated

    @property
    def address(self) -> Address | None:
        """See EngineConnection."""
        address: Address | None = self._quic.get_peer_address()
        return address

    @property
    def rtt_s(self) -> float | None:
        """See EngineConnection."""
        return self._quic.rtt_s

    def receive(self, datagrams: Sequence[bytes], address: Address, now: float) -> None:
        """See EngineConnection."""
        try:
            for data in datagrams:
                self._quic.n_challenges = 0
                self._quic.receive_datagram(data, address, now)
        except _FAULTS as fault:
            self._fail(fault)
        self._collect()

    def transmits(self, now: float) -> list[tuple[bytes, Address]]:
        """See EngineConnection."""
        try:
            sent: list[tuple[bytes, Address]] = (
                self._quic.datagrams_to_send(now) if self._quic.authenticated or self._is_client else []
            )
        except _FAULTS as fault:
            self._fail(fault)
            sent = []
        self._collect()
        return sent

    @property
    def _is_client(self) -> bool:
        return self._quic.configuration.is_client

    def next_timer(self) -> float | None:
        """See EngineConnection."""
        return None if self._closed else self._quic.get_timer()

    def handle_timer(self, now: float) -> None:
        """See EngineConnection."""
        timer = self.next_timer()
        if timer is None or now < timer:
            return
        try:
            self._quic.handle_timer(now + TIMER_SLACK_S)
        except _FAULTS as fault:
            self._fail(fault)
        self._collect()

    def next_event(self) -> EngineEvent | None:
        """See EngineConnection."""
        return self._events.popleft() if self._events else None

    def streams_left(self) -> int:
        """See EngineConnection."""
        return 0 if self._quic.ended else self._quic.streams_left

    def open_stream(self) -> int | None:
        """See EngineConnection."""
        if self.streams_left() <= 0:
            return None
        stream_id: int = self._quic.get_next_available_stream_id()
        self._quic.send_stream_data(stream_id, b"")
        return stream_id

    def send(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        """See EngineConnection."""
        if not self._quic.ended and self._quic.can_write(stream_id):
            self._quic.send_stream_data(stream_id, bytes(data), end)

    def buffered(self, stream_id: int) -> int:
        """See EngineConnection."""
        return self._quic.send_buffer_bytes(stream_id)

    def has_unsent(self) -> bool:
        """See EngineConnection."""
        return self._quic.has_unsent

    def reset(self, stream_id: int, code: int) -> None:
        """See EngineConnection."""
        if not self._quic.ended and (self._quic.can_write(stream_id) or self._quic.send_buffer_bytes(stream_id)):
            self._quic.reset_stream(stream_id, code)

    def stop(self, stream_id: int, code: int) -> None:
        """See EngineConnection."""
        if not self._quic.ended and self._quic.can_stop(stream_id):
            self._quic.stop_stream(stream_id, code)

    def consumed(self, stream_id: int, n_bytes: int) -> None:
        """See EngineConnection."""
        self._quic.consumed_bytes += n_bytes
        self._quic.consumed_of[stream_id] = self._quic.consumed_of.get(stream_id, 0) + n_bytes

    def forget(self, stream_id: int) -> None:
        """See EngineConnection."""
        self._quic.consumed_of.pop(stream_id, None)

    def send_frame(self, data: bytes) -> bool:
        """See EngineConnection."""
        quic = self._quic
        if quic.ended or len(data) > quic.frame_room_bytes or quic.frames_pending >= self._config.frames_pending_max:
            return False
        quic.send_datagram_frame(data)
        return True

    def ping(self, uid: int) -> None:
        """See EngineConnection."""
        if not self._quic.ended:
            self._quic.send_ping(uid)

    def close(self, code: int, reason: str) -> None:
        """See EngineConnection."""
        self._quic.close(error_code=code, reason_phrase=reason)
        self._collect()

    def _collect(self) -> None:
        """Turn the library's events into the seam's."""
        while (event := self._quic.next_event()) is not None:
            match event:
                case events.StreamDataReceived(stream_id=stream_id, data=data, end_stream=end):
                    self._events.append(DataReceived(stream_id, data, end))
                case events.StreamReset(stream_id=stream_id, error_code=code):
                    # Bytes that never reach the application are consumed by the reset itself.
                    rest = self._quic.received_bytes(stream_id) - self._quic.consumed_of.get(stream_id, 0)
                    self._quic.consumed_bytes += max(0, rest)
                    self._quic.consumed_of[stream_id] = self._quic.received_bytes(stream_id)
                    self._events.append(ResetReceived(stream_id, code))
                case events.StopSendingReceived(stream_id=stream_id, error_code=code):
                    self._events.append(StopReceived(stream_id, code))
                case events.DatagramFrameReceived(data=data):
                    self._events.append(FrameReceived(data))
                case events.PingAcknowledged(uid=uid):
                    self._events.append(PingAnswered(uid))
                case events.ConnectionIdIssued(connection_id=cid):
                    self._events.append(CidIssued(cid))
                case events.ConnectionIdRetired(connection_id=cid):
                    self._events.append(CidRetired(cid))
                case _:
                    pass  # ProtocolNegotiated, HandshakeCompleted, ConnectionTerminated: their states are read below
        if not self._established and self._quic.handshake_confirmed and self._quic.peer_id is not None:
            self._established = True
            self._events.append(HandshakeFinished(self._quic.peer_id))
        if self._quic.farewell is not None and not self._closed:
            self._closed = True
            self._events.append(self._explain(self._quic.farewell))

    def _explain(self, farewell: events.ConnectionTerminated) -> Closed:
        local = self._quic.was_closed_here
        if self._quic.refusal is not None:
            return Closed(self._quic.refusal.code, self._quic.refusal.detail, local=True)
        if farewell.frame_type is None:
            return Closed(application_code(farewell.error_code), farewell.reason_phrase, local)
        if local and farewell.reason_phrase == "Idle timeout":
            return Closed(ErrorCode.IDLE, f"nothing was heard for {self._config.idle_timeout_s:g} s", local)
        return Closed(transport_code(farewell.error_code), farewell.reason_phrase, local)

    def _fail(self, fault: Exception) -> None:
        """End the connection after a fault inside the library."""
        self._quic.close(error_code=ErrorCode.INTERNAL, reason_phrase=type(fault).__name__)


class AioquicEngine:
    """The QUIC engine over aioquic."""

    name = "aioquic"
    version = VERSION
    guarantees = frozenset(Guard)

    def connect(self, setup: EngineSetup, address: Address, verify: VerifyPeer, now: float) -> AioquicConnection:
        """See QuicEngine."""
        quic = GuardedConnection(_configuration(setup, is_client=True), setup.config, verify, None, None, setup.secret)
        quic.connect(address, now)
        return AioquicConnection(quic, setup.config, None)

    def accept(
        self, setup: EngineSetup, original_cid: bytes, verify: VerifyPeer, retry_cid: bytes | None = None
    ) -> AioquicConnection:
        """See QuicEngine."""
        configuration = _configuration(setup, is_client=False)
        quic = GuardedConnection(configuration, setup.config, verify, original_cid, retry_cid, setup.secret)
        return AioquicConnection(quic, setup.config, retry_cid or original_cid)


def _configuration(setup: EngineSetup, *, is_client: bool) -> QuicConfiguration:
    config = setup.config
    return QuicConfiguration(
        alpn_protocols=[ALPN],
        connection_id_length=CONNECTION_ID_BYTES,
        congestion_control_algorithm="cubic",
        idle_timeout=config.idle_timeout_s,
        is_client=is_client,
        max_data=config.connection_window_bytes,
        max_datagram_size=config.datagram_bytes_max,
        max_stream_data=config.stream_window_bytes,
        certificate=setup.certificate.certificate,
        private_key=setup.certificate.private_key,
        initial_rtt=config.initial_rtt_s,
        max_datagram_frame_size=config.frame_bytes_max,
        supported_versions=[QUIC_VERSION_1],
        verify_mode=_CERT_NONE,
    )
