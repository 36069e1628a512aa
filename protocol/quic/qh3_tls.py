"""Mutual TLS for qh3, whose server never asks for a client certificate.

The server side of the library's TLS context gains three states: it writes a CertificateRequest right behind
EncryptedExtensions, takes exactly one certificate and the proof of its key, and only then the client's Finished. The library's
own `_server_handle_hello` runs unchanged but for one of its helpers, which is replaced in a copy of the function's globals, so
nothing of the library is patched for other users in the process. Both sides hand the peer's certificate to a verifier while the
handshake runs.

Source: RFC 8446 sections 4.3.2, 4.4.2 and 4.4.3; qh3 2.1.0 `qh3/tls.py`.
Spec: docs/spec/02-transport.md.
"""
# pyright: basic

import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import qh3.tls  # noqa: F401  (the package hides the module of that name behind a class, hence sys.modules below)
from qh3._hazmat import Buffer
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.packet import pull_quic_transport_parameters, push_quic_transport_parameters
from qh3.quic.tls_bridge import QuicTlsBridge

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId
from protocol.quic.seam import ALPN, CONNECTION_ID_BYTES, QUIC_VERSION_1, EngineConfig, EngineSetup, VerifyPeer, alert_of

tls: Any = sys.modules["qh3.tls"]

SIGNATURE_ALGORITHMS = (0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0807)
"""How a peer's certificate key may sign: ECDSA P-256/384/521, RSA-PSS 256/384/512, Ed25519 (RFC 8446 section 4.2.3)."""

CONNECTION_IDS_MAX = 8
"""Connection ids of the peer kept at once: as aioquic and the library's own servers."""

UDP_PAYLOAD_BYTES_MAX = 65_527
"""The largest UDP payload taken, in bytes: all that there are (RFC 9000 section 18.2). Saying it tells that it is meant."""

UNSAID_PAYLOAD_BYTES_MAX = 1472
"""The largest UDP payload for a peer that says nothing of it, in bytes: that of Ethernet, up to which the library probes."""

_CERT_NONE = 0
"""ssl.CERT_NONE: no authority vouches for a peer; its certificate vouches for its own host key."""

HANDSHAKE_MESSAGE_BYTES_MAX = 16384
"""Largest handshake message taken from a client, in bytes; a flight with one certificate needs less than 5,000."""

_FAULTS = (ValueError, TypeError, RuntimeError, OverflowError)
"""What the compiled parsers raise over malformed certificates and messages."""


def _push_with_request(buf: Any, extensions: Any) -> None:
    """Write EncryptedExtensions and, in the same hashed block, a CertificateRequest."""
    tls.push_encrypted_extensions(buf, extensions)
    buf.push_uint8(tls.HandshakeType.CERTIFICATE_REQUEST)
    with tls.push_block(buf, 3):
        tls.push_opaque(buf, 1, b"")
        with tls.push_block(buf, 2), tls.push_extension(buf, tls.ExtensionType.SIGNATURE_ALGORITHMS):
            tls.push_list(buf, 2, buf.push_uint16, SIGNATURE_ALGORITHMS)


_server_handle_hello = FunctionType(
    tls.Context._server_handle_hello.__code__,
    {**vars(tls), "push_encrypted_extensions": _push_with_request},
    closure=tls.Context._server_handle_hello.__closure__,
)


class MutualContext(tls.Context):  # type: ignore[misc]
    """TLS context that verifies the peer's one certificate inside the handshake, on both sides.

    Attributes:
        verify: what turns a certificate into a peer id.
        peer_id: the proven peer, None until its certificate verified.
        refusal: why the peer was refused.
    """

    verify: VerifyPeer
    _receive_buffer: bytes
    peer_id: PeerId | None = None
    refusal: RemoteProtocolError | None = None
    _awaited: int = int(tls.HandshakeType.CERTIFICATE)

    def _server_handle_hello(self, *args: Any) -> None:
        # The client's Finished cannot be anticipated; this flag of the library defers it until it arrives.
        self._alps_negotiated = True
        _server_handle_hello(self, *args)

    def _process_certificate(self, certificate: Any) -> None:
        if len(certificate.certificates) != 1:
            raise tls.AlertBadCertificate("exactly one certificate is wanted")
        der = certificate.certificates[0][0]
        try:
            self.peer_id = self.verify(der)
            super()._process_certificate(certificate)
        except RemoteProtocolError as fault:
            self.refusal = fault
            alert = tls.Alert(fault.code.name.lower())
            alert.description = tls.AlertDescription(alert_of(fault.code))
            raise alert from fault
        except _FAULTS as fault:
            raise tls.AlertBadCertificate("the certificate cannot be read") from fault

    def handle_message(self, input_data: bytes, output_buf: Any, epoch: int = -1) -> None:
        """Take handshake bytes; in place of the library where a server waits for the client's second flight."""
        if self.state != tls.State.SERVER_EXPECT_FINISHED:
            super().handle_message(input_data, output_buf, epoch)
            return
        if epoch != tls.Epoch.HANDSHAKE:
            raise tls.AlertUnexpectedMessage
        self._receive_buffer += input_data
        while self.state == tls.State.SERVER_EXPECT_FINISHED and len(self._receive_buffer) >= 4:
            length = 4 + int.from_bytes(self._receive_buffer[1:4], "big")
            if length > HANDSHAKE_MESSAGE_BYTES_MAX:
                raise tls.AlertDecodeError("a handshake message is too long")
            if len(self._receive_buffer) < length:
                return
            message = bytes(self._receive_buffer[:length])
            if message[0] != self._awaited:
                raise tls.AlertUnexpectedMessage
            if message[0] == tls.HandshakeType.FINISHED:
                super().handle_message(b"", output_buf, epoch)
                return
            self._receive_buffer = self._receive_buffer[length:]
            self._take(message)

    def _take(self, message: bytes) -> None:
        """Take the client's Certificate or CertificateVerify."""
        buf = Buffer(data=message)
        if message[0] == tls.HandshakeType.CERTIFICATE:
            certificate = tls.pull_certificate(buf)
            if not certificate.certificates:
                self.refusal = RemoteProtocolError(ErrorCode.BAD_CERTIFICATE, "the client showed no certificate")
                raise tls.AlertBadCertificate("a client certificate is required")
            self._process_certificate(certificate)
            self._awaited = int(tls.HandshakeType.CERTIFICATE_VERIFY)
        else:
            verify = tls.pull_certificate_verify(buf)
            if verify.algorithm not in SIGNATURE_ALGORITHMS:
                raise tls.AlertIllegalParameter("a signature algorithm that was not offered")
            signed = self.key_schedule.certificate_verify_data(b"TLS 1.3, client CertificateVerify")
            try:
                tls.verify_with_public_key(self._peer_certificate.public_key(), verify.algorithm, signed, verify.signature)
            except (tls.SignatureError, *_FAULTS) as fault:
                raise tls.AlertDecryptError("the certificate's key did not sign") from fault
            self._awaited = int(tls.HandshakeType.FINISHED)
        if not buf.eof():
            raise tls.AlertDecodeError("extra bytes at the end of a handshake message")
        self.key_schedule.update_hash(message)


class MutualBridge(QuicTlsBridge):  # type: ignore[misc]
    """The library's TLS half of a connection, with a `MutualContext` and the limits of `EngineConfig`."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        config: EngineConfig,
        verify: VerifyPeer,
        on_version: Callable[[int], None],
        **named: Any,
    ) -> None:
        self._limits = config
        self.datagram_bytes = configuration.max_datagram_size
        super().__init__(configuration, version_change_handler=on_version, **named)
        # The library makes the context itself; taking over its class leaves the forty settings as it made them.
        context: Any = self.tls
        context.__class__ = MutualContext
        context.verify = verify

    def serialize_transport_parameters(self) -> bytes:
        """Announce the stream limits of the configuration in place of the library's fixed 100 and 103, and any UDP payload."""
        parameters = pull_quic_transport_parameters(Buffer(data=super().serialize_transport_parameters()))
        parameters.initial_max_streams_bidi = self._limits.streams_in_max
        parameters.initial_max_streams_uni = 0
        parameters.max_udp_payload_size = UDP_PAYLOAD_BYTES_MAX
        buf = Buffer(capacity=3 * self.configuration.max_datagram_size)
        push_quic_transport_parameters(buf, parameters)
        return bytes(buf.data)

    def parse_transport_parameters(self, data: bytes, *, from_session_ticket: bool = False) -> Any:
        """Take what the peer announces; one that says nothing of its UDP payload is sent none beyond those of Ethernet.

        By default any payload would do (RFC 9000 section 18.2), but aioquic says nothing and decrypts no packet over 1,500 bytes.
        """
        parameters = super().parse_transport_parameters(data, from_session_ticket=from_session_ticket)
        if parameters.max_udp_payload_size is None:
            parameters.max_udp_payload_size = UNSAID_PAYLOAD_BYTES_MAX
        return parameters


def configuration_of(setup: EngineSetup, *, is_client: bool) -> QuicConfiguration:
    """Return what the library is told of an endpoint's certificate and limits."""
    config = setup.config
    configuration = QuicConfiguration(
        alpn_protocols=[ALPN],
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=config.idle_timeout_s,
        is_client=is_client,
        max_data=config.connection_window_bytes,
        max_datagram_size=setup.datagram_bytes,
        max_stream_data=config.stream_window_bytes,
        initial_rtt=config.initial_rtt_s,
        max_datagram_frame_size=config.frame_bytes_max,
        active_connection_id_limit=CONNECTION_IDS_MAX,
        supported_versions=[QUIC_VERSION_1],
        verify_mode=_CERT_NONE,
    )
    configuration.load_cert_chain(setup.certificate.pem, setup.certificate.private_key_pem)
    return configuration
