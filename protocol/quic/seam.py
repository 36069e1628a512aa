"""The seam between the endpoint and a QUIC library: what an engine must do, in the endpoint's own words.

An engine turns datagrams into normalised events and commands into datagrams for one connection at a time. Two engines stand
behind the seam, one over aioquic and one over qh3; they speak the same wire, so the choice is local. An engine proves the
peer's identity inside the TLS handshake by handing the peer's one certificate to `VerifyPeer`; it contains every exception that
the peer's bytes can cause in the library and turns it into one `Closed`. The libraries draw their own entropy (connection ids,
TLS randoms) from the operating system: a run with them is repeatable in its outcome, not in its bytes.

Spec: docs/spec/02-transport.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from protocol.errors import ErrorCode
from protocol.identity import PeerId, TlsCertificate
from protocol.quic.guards import Guard

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""A numeric IP address as the socket module writes it: two items for IPv4, four for IPv6."""

VerifyPeer: TypeAlias = Callable[[bytes], PeerId]
"""Takes the peer's certificate in DER, returns the peer id it proves, raises RemoteProtocolError when it proves none."""

ALPN = "libp2p"
QUIC_VERSION_1 = 0x00000001
"""The only QUIC version on the wire (RFC 9000); go-libp2p and rust-libp2p speak no other by default."""

CONNECTION_ID_BYTES = 8
"""Length of the connection ids that this side issues: 64 bits, the length both libraries use by default."""

TIMER_SLACK_S = 1e-6
"""Added to the time of a due timer, in seconds: a library may miss an exact hit by rounding, and the timer would stand still."""

CRYPTO_ERROR = 0x100
"""QUIC transport error codes from here to 0x1FF carry a TLS alert in the low byte (RFC 9001 section 4.8)."""

CRYPTO_ERROR_LAST = 0x1FF
"""The last code of that range."""

_ALERT_CODES = {
    40: ErrorCode.UNSUPPORTED,  # handshake_failure: no common cipher, group or ALPN
    42: ErrorCode.BAD_CERTIFICATE,
    43: ErrorCode.BAD_CERTIFICATE,  # unsupported_certificate
    44: ErrorCode.REVOKED,  # certificate_revoked
    45: ErrorCode.EXPIRED,  # certificate_expired
    46: ErrorCode.BAD_CERTIFICATE,  # certificate_unknown
    48: ErrorCode.WRONG_NETWORK,  # unknown_ca
    49: ErrorCode.NOT_ADMITTED,  # access_denied
    51: ErrorCode.BAD_CERTIFICATE,  # decrypt_error: possession of the certificate's key was not proven
    70: ErrorCode.UNSUPPORTED,  # protocol_version
    116: ErrorCode.BAD_CERTIFICATE,  # certificate_required
    120: ErrorCode.UNSUPPORTED,  # no_application_protocol
}

_REFUSALS = {
    ErrorCode.EXPIRED: 45,
    ErrorCode.REVOKED: 44,
    ErrorCode.WRONG_NETWORK: 48,
    ErrorCode.NOT_ADMITTED: 49,
    ErrorCode.NOT_YET_VALID: 49,
    ErrorCode.TOKEN_REFUSED: 49,
}
"""The TLS alert by which a peer learns why its certificate was refused; every other fault is a bad certificate."""

_BAD_CERTIFICATE_ALERT = 42
"""bad_certificate (RFC 8446 section 6)."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The limits one connection announces and keeps.

    Attributes:
        idle_timeout_s: the connection ends when nothing is heard for this long. The mesh notices a silent peer within two seconds
            by itself; the connection outlives a cut of most of a minute, so that it need not be made again.
        datagram_bytes_max: UDP payload sent before the path is probed; 1,350 passes every usual tunnel over a 1,500-byte link.
        near_datagram_bytes_max: UDP payload sent to a peer on this machine that says it takes so much, where the handshake shows
            that it passes: half of the 65,507 that UDP has, so that two leave in one system call, and that a first one
            of this size stays below `EndpointConfig.stranger_bytes_max`.
        frame_bytes_max: the largest QUIC DATAGRAM frame accepted; 65,535 as RFC 9221 section 3 recommends.
        stream_window_bytes: credit per stream beyond what the application consumed: a tensor of 1 MiB and what stands round it
            pass without a round trip for the rest.
        connection_window_bytes: the same per connection; more than `EndpointConfig.unread_bytes_max`, so that streams which
            nobody reads never use up the credit of the others.
        streams_in_max: bidirectional streams the peer may have open at once; unidirectional ones are never allowed. 256 as
            go-libp2p and rust-libp2p, whose programs may count on it.
        ranges_max: gaps kept in one reassembly: a window of 430 packets of which a third is lost at random has some 100.
        crypto_pending_bytes_max: handshake bytes buffered ahead of a gap; RFC 9000 section 7.5 asks for at least 4,096.
        initial_rtt_s: the round trip assumed before the first sample; as aioquic, and less than RFC 9002's 333 ms.
        frames_pending_max: unsent DATAGRAM frames; more are dropped, as a full queue in the network would.
    """

    idle_timeout_s: float = 60.0
    datagram_bytes_max: int = 1350
    near_datagram_bytes_max: int = 32_000
    frame_bytes_max: int = 65535
    stream_window_bytes: int = 1088 * 1024
    connection_window_bytes: int = 8 * 1024 * 1024
    streams_in_max: int = 256
    ranges_max: int = 256
    crypto_pending_bytes_max: int = 32768
    initial_rtt_s: float = 0.1
    frames_pending_max: int = 64


@dataclass(frozen=True, slots=True)
class HandshakeFinished:
    """Both sides proved who they are, and the peer accepted this side's certificate."""

    peer_id: PeerId


@dataclass(frozen=True, slots=True)
class DataReceived:
    """The next bytes of a stream, in order; `end` says that none follow."""

    stream_id: int
    data: bytes
    end: bool


@dataclass(frozen=True, slots=True)
class ResetReceived:
    """The peer abandoned its sending side of a stream."""

    stream_id: int
    code: int


@dataclass(frozen=True, slots=True)
class StopReceived:
    """The peer no longer reads a stream; this side's sending half is already reset."""

    stream_id: int
    code: int


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """The content of one QUIC DATAGRAM frame."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """A PING sent with this number was acknowledged."""

    uid: int


@dataclass(frozen=True, slots=True)
class CidIssued:
    """The peer may address this connection by a further connection id."""

    cid: bytes


@dataclass(frozen=True, slots=True)
class CidRetired:
    """The peer gave up a connection id."""

    cid: bytes


@dataclass(frozen=True, slots=True)
class CidReplaced:
    """The peer has this side address it by a connection id that it did not use lately."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over; the last event, emitted at once and not after the closing period.

    Attributes:
        code: why, in the mesh's codes.
        detail: one sentence for a person.
        local: whether this side ended it.
    """

    code: ErrorCode
    detail: str
    local: bool


EngineEvent: TypeAlias = (
    HandshakeFinished
    | DataReceived
    | ResetReceived
    | StopReceived
    | FrameReceived
    | PingAnswered
    | CidIssued
    | CidRetired
    | CidReplaced
    | Closed
)


class EngineConnection(Protocol):
    """One QUIC connection; every method is safe to call in every state and raises no library error."""

    @property
    def cids(self) -> Sequence[bytes]:
        """The connection ids by which the peer may address this connection from the start."""
        ...

    @property
    def authenticated(self) -> bool:
        """Whether a packet of the peer was decrypted; junk never gets that far."""
        ...

    @property
    def address(self) -> Address | None:
        """Where datagrams to the peer go now; it changes when the peer's path does."""
        ...

    @property
    def rtt_s(self) -> float | None:
        """The library's smoothed round trip; a peer can shorten it by early ACKs, so it serves timers alone."""
        ...

    def receive(self, datagrams: Sequence[bytes], address: Address, now: float) -> None:
        """Take datagrams that arrived from one address, in order of arrival."""
        ...

    def transmits(self, now: float) -> list[tuple[bytes, Address]]:
        """Return the datagrams that may be sent now."""
        ...

    def next_timer(self) -> float | None:
        """Return when `handle_timer` wants to be called."""
        ...

    def handle_timer(self, now: float) -> None:
        """Let due timers fire."""
        ...

    def next_event(self) -> EngineEvent | None:
        """Return the oldest event not yet taken."""
        ...

    def streams_left(self) -> int:
        """How many more streams the peer allows now."""
        ...

    def open_stream(self) -> int | None:
        """Open a bidirectional stream; None while the peer's limit allows no more."""
        ...

    def send(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        """Queue stream bytes; `end` finishes this side."""
        ...

    def buffered(self, stream_id: int) -> int:
        """Bytes of a stream that wait in the send buffer."""
        ...

    def has_unsent(self) -> bool:
        """Whether of the stream bytes in the send buffers some are not on their way yet."""
        ...

    def reset(self, stream_id: int, code: int) -> None:
        """Abandon this side of a stream."""
        ...

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to abandon its side of a stream."""
        ...

    def consumed(self, stream_id: int, n_bytes: int) -> None:
        """Grant the peer credit for bytes that the application has taken; an engine may have granted it before."""
        ...

    def forget(self, stream_id: int) -> None:
        """Say that both sides of a stream are over."""
        ...

    def send_frame(self, data: bytes) -> bool:
        """Queue a DATAGRAM frame; False when the peer takes none, it does not fit, or the queue is full."""
        ...

    def ping(self, uid: int) -> None:
        """Queue a PING frame."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Close with an application error code."""
        ...


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """What all connections of one endpoint share.

    Attributes:
        certificate: who this node is.
        config: the limits.
        secret: bytes that no peer knows, from which the places of traps are drawn.
        path_bytes: UDP payload that the path to the peer is known to carry; 0 where that is not known.
    """

    certificate: TlsCertificate
    config: EngineConfig
    secret: bytes
    path_bytes: int = 0

    @property
    def datagram_bytes(self) -> int:
        """UDP payload to send from the start, in bytes."""
        config = self.config
        is_near = self.path_bytes >= config.near_datagram_bytes_max
        return config.near_datagram_bytes_max if is_near else config.datagram_bytes_max


class QuicEngine(Protocol):
    """A QUIC library behind the seam.

    Attributes:
        name: what people call it.
        version: the one version of the library that it knows.
        guarantees: the rows of docs/transport-guards.md that it holds.
    """

    name: str
    version: str
    guarantees: frozenset[Guard]

    def connect(self, setup: EngineSetup, address: Address, verify: VerifyPeer, now: float) -> EngineConnection:
        """Start a client connection."""
        ...

    def accept(
        self, setup: EngineSetup, original_cid: bytes, verify: VerifyPeer, retry_cid: bytes | None = None
    ) -> EngineConnection:
        """Make the server side for a first Initial packet.

        Args:
            setup: what all connections share.
            original_cid: the connection id that the client chose at first.
            verify: judges the client's certificate.
            retry_cid: the connection id that a Retry gave it, to which its packet is addressed; the address is proven then.
        """
        ...


def application_code(value: int) -> ErrorCode:
    """Turn a peer's application error code into the mesh's; one that the mesh does not know counts as INTERNAL."""
    try:
        return ErrorCode(value)
    except ValueError:
        return ErrorCode.INTERNAL


def alert_of(code: ErrorCode) -> int:
    """The TLS alert that tells a peer why its certificate was refused (RFC 8446 section 6)."""
    return _REFUSALS.get(code, _BAD_CERTIFICATE_ALERT)


def transport_code(value: int) -> ErrorCode:
    """Turn a QUIC transport error code (RFC 9000 section 20.1) into the mesh's."""
    if CRYPTO_ERROR <= value <= CRYPTO_ERROR_LAST:
        return _ALERT_CODES.get(value - CRYPTO_ERROR, ErrorCode.MALFORMED)
    match value:
        case 0x00:
            return ErrorCode.NO_ERROR
        case 0x01 | 0x0C:  # INTERNAL_ERROR, APPLICATION_ERROR during the handshake
            return ErrorCode.INTERNAL
        case 0x02:  # CONNECTION_REFUSED
            return ErrorCode.OVERLOADED
        case 0x03 | 0x04 | 0x0D:  # FLOW_CONTROL_ERROR, STREAM_LIMIT_ERROR, CRYPTO_BUFFER_EXCEEDED
            return ErrorCode.FLOODING
        case 0x11:  # VERSION_NEGOTIATION_ERROR
            return ErrorCode.UNSUPPORTED
        case _:
            return ErrorCode.MALFORMED
