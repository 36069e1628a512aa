"""A QUIC connection without our guards: aioquic as it comes, open to everything that a case wants to send or to look at.

What a node must not do is done here: any certificate, any ALPN, any frame. What a node sends is kept as it came: its
certificates, its ClientHello, whether it asked for a certificate, the tickets that it offered.

Source: aioquic 1.7.2, whose private names this module uses (tests/protocol/quic/test_private_names.py).
Spec: docs/spec/02-transport.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from mesh.conformance.certificates import Chain

QUIC_VERSION_1 = 0x00000001
"""The only version (RFC 9000)."""

FRAME_BYTES_MAX = 65535
"""DATAGRAM frames taken, in bytes: as the specification has it."""

STREAM_CREDIT_BYTES = 1 << 20
"""Credit of a stream in bytes, unless a case withholds it: as the specification has it."""

CONNECTION_CREDIT_BYTES = 8 << 20
"""Credit of a connection in bytes: as the specification has it."""

PACKET_BYTES_MAX = 1350
"""UDP payload sent, in bytes: as the specification has it."""

INITIAL_BYTES_MIN = 1200
"""Smallest datagram with an Initial packet, in bytes (RFC 9000 section 14.1)."""

CID_BYTES = 8
"""Length of the connection ids of this side, in bytes: by it a short header is read."""

_CERT_NONE = 0
"""ssl.CERT_NONE: whoever is at the other end is looked at afterwards."""


@dataclass(frozen=True, slots=True)
class End:
    """How a connection ended.

    Attributes:
        code: the application's error code, or QUIC's.
        by_application: whether it is the application's.
        by_node: whether the node closed it, and not this side.
        reason: the words that came with it.
    """

    code: int
    by_application: bool
    by_node: bool
    reason: str

    def __str__(self) -> str:
        who = "the node" if self.by_node else "this side"
        kind = "application code" if self.by_application else "QUIC error"
        return f"{who} closed the connection with {kind} 0x{self.code:x} ({self.reason or 'no reason given'})"


@dataclass(frozen=True, slots=True)
class Manner:
    """How this side behaves on the level of QUIC.

    Attributes:
        chain: the certificates to show, possibly none.
        alpn: what is offered.
        credit_bytes: credit of a stream; it is renewed unless it is `frozen`.
        frozen: never renew the credit of a stream or of the connection.
        server_name: the server name to send, None for none.
        tickets: whether session tickets are taken.
        idle_s: the idle timeout that is announced, in seconds.
        versions: the QUIC versions offered, the first one used.
        asks_certificate: whether, as the listener, the node is asked for its certificate.
        confirms: whether, as the listener, the node is told that the handshake is confirmed (HANDSHAKE_DONE).
        outlives: whether this side goes on when its own idle timeout is over.
    """

    chain: Chain
    alpn: tuple[str, ...] = ("libp2p",)
    credit_bytes: int = STREAM_CREDIT_BYTES
    frozen: bool = False
    server_name: str | None = None
    tickets: bool = False
    idle_s: float = 60.0
    versions: tuple[int, ...] = (QUIC_VERSION_1,)
    asks_certificate: bool = True
    confirms: bool = True
    outlives: bool = False


@dataclass(slots=True)
class Shown:
    """What the node let be seen in the handshake."""

    certificates: list[bytes] = field(default_factory=list)
    hello: Any = None
    tickets: int = 0


class OpenConnection(QuicConnection):
    """aioquic's connection, which tells what it saw and sends what it is told."""

    def __init__(self, manner: Manner, original_cid: bytes | None) -> None:
        configuration = QuicConfiguration(
            alpn_protocols=list(manner.alpn),
            connection_id_length=CID_BYTES,
            idle_timeout=manner.idle_s,
            is_client=original_cid is None,
            max_data=CONNECTION_CREDIT_BYTES,
            max_datagram_frame_size=FRAME_BYTES_MAX,
            max_datagram_size=PACKET_BYTES_MAX,
            max_stream_data=manner.credit_bytes,
            server_name=manner.server_name,
            supported_versions=list(manner.versions),
            verify_mode=_CERT_NONE,
        )
        if manner.chain.certificates:
            configuration.certificate, *configuration.certificate_chain = manner.chain.certificates
            configuration.private_key = manner.chain.private_key
        self.shown = Shown()
        self._manner = manner
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_cid,
            session_ticket_handler=self._take_ticket if manner.tickets else None,
        )

    def _take_ticket(self, _ticket: Any) -> None:
        self.shown.tickets += 1

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        context: Any = self.tls
        if not self._is_client:
            context._request_client_certificate = self._manner.asks_certificate
        accept: Callable[[Any], None] = context._set_peer_certificate
        handle: Callable[[Any, Any, Any], None] = context._server_handle_hello

        def set_peer_certificate(certificate: Any) -> None:
            self.shown.certificates = [der for der, _ in certificate.certificates]
            accept(certificate)

        def server_handle_hello(message: Any, initial: Any, handshake: Any) -> None:
            self.shown.hello = tls.pull_client_hello(Buffer(data=message.data_slice(0, message.capacity)))
            handle(message, initial, handshake)

        context._set_peer_certificate = set_peer_certificate
        context._server_handle_hello = server_handle_hello

    @property
    def confirmed(self) -> bool:
        """Whether both sides know that the handshake is over."""
        return self._handshake_confirmed

    @property
    def was_retried(self) -> bool:
        """Whether the node had this side prove its address by a Retry."""
        return self._retry_source_connection_id is not None

    @property
    def was_asked_for_certificate(self) -> bool:
        """Whether the node, as a listener, asked for a certificate."""
        context: Any = self.tls
        return context._certificate_request is not None

    @property
    def alpn(self) -> str | None:
        """The protocol that was agreed."""
        agreed: str | None = self.tls.alpn_negotiated
        return agreed

    @property
    def uni_streams_allowed(self) -> int:
        """How many unidirectional streams the node allows."""
        return self._remote_max_streams_uni

    @property
    def streams_allowed(self) -> int:
        """How many bidirectional streams the node allows by now, those that are over included."""
        return self._remote_max_streams_bidi

    @property
    def frame_bytes_allowed(self) -> int:
        """The largest DATAGRAM frame that the node takes; 0 where it takes none."""
        return self._remote_max_datagram_frame_size or 0

    @property
    def credit_bytes(self) -> int:
        """The credit of the connection that the node has granted, in bytes since the start."""
        return self._remote_max_data

    def stream_credit_bytes(self, stream_id: int) -> int:
        """The credit of a stream that the node has granted, in bytes since its start."""
        return self._streams[stream_id].max_stream_data_remote

    def sent_bytes(self, stream_id: int) -> int:
        """How much of a stream was put into packets, in bytes."""
        return self._streams[stream_id].sender.next_offset if stream_id in self._streams else 0

    @property
    def n_streams_opened(self) -> int:
        """How many bidirectional streams this side has opened."""
        return self._local_next_stream_id_bidi // 4

    @property
    def end(self) -> End | None:
        """How the connection ended; None while it lives."""
        over = self._close_event
        if over is None:
            return None
        return End(over.error_code, over.frame_type is None, self._state is QuicConnectionState.DRAINING, over.reason_phrase)

    def open_uni_stream(self) -> int:
        """Open a unidirectional stream, whether the node allows one or not."""
        self._remote_max_streams_uni = max(self._remote_max_streams_uni, 8)
        self._remote_max_stream_data_uni = max(self._remote_max_stream_data_uni, 1024)
        stream_id: int = self.get_next_available_stream_id(is_unidirectional=True)
        return stream_id

    def packet(self, frames: bytes, *, initial: bool = False) -> bytes:
        """Protect frames of any content as the next packet of this connection, one of its first ones where `initial`."""
        epoch = tls.Epoch.INITIAL if initial else tls.Epoch.ONE_RTT
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=PACKET_BYTES_MAX,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            peer_token=b"",
            quic_logger=None,
            spin_bit=False,
            version=QUIC_VERSION_1,
        )
        builder.start_packet(QuicPacketType.INITIAL if initial else QuicPacketType.ONE_RTT, self._cryptos[epoch])
        buffer = builder.start_frame(frames[0], capacity=len(frames))
        buffer.push_bytes(frames[1:])
        (data,), _ = builder.flush()
        self._packet_number = builder.packet_number
        return data.ljust(INITIAL_BYTES_MIN, b"\x00") if initial else bytes(data)

    def _idle_timeout(self) -> float:
        return 3600.0 if self._manner.outlives else super()._idle_timeout()

    def _write_handshake_done_frame(self, builder: Any) -> None:
        if self._manner.confirms:
            super()._write_handshake_done_frame(builder)

    def _write_connection_limits(self, builder: Any, space: Any) -> None:
        if not self._manner.frozen:
            super()._write_connection_limits(builder, space)

    def _write_stream_limits(self, builder: Any, space: Any, stream: Any) -> None:
        if not self._manner.frozen:
            super()._write_stream_limits(builder, space, stream)


def varint(value: int) -> bytes:
    """Encode a QUIC variable-length integer (RFC 9000 section 16)."""
    for prefix, size in ((0, 1), (1, 2), (2, 4), (3, 8)):
        if value < 1 << (8 * size - 2):
            return (value | prefix << (8 * size - 2)).to_bytes(size, "big")
    raise ValueError(value)


__all__ = ["CID_BYTES", "End", "Manner", "OpenConnection", "Shown", "events", "varint"]
