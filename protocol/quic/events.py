"""What the QUIC endpoint is told to keep to, and what it says: its configuration and its outputs.

Spec: docs/spec/02-transport.md.
"""

from dataclasses import dataclass, field
from typing import NewType, TypeAlias

from protocol.conduct import Allowance, BanExpired, ConductConfig, PeerBanned, PrefixBanned
from protocol.conduct.prefixes import OWN_NETWORKS
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.quic.seam import Address, EngineConfig

ConnectionHandle = NewType("ConnectionHandle", int)
"""Names one connection of one endpoint; never used again after the connection closed."""


UNPROVEN_PER_PREFIX = Allowance(0.2, 16.0)
"""First packets of a prefix taken without a Retry: what go-libp2p takes of an address, 0.2 per second after 16 at once."""

PROVEN_PER_PREFIX = Allowance(1.0, 32.0)
"""First packets of a prefix taken with a Retry: 32 nodes behind one address may all be started again at once."""

UNPROVEN = Allowance(20.0, 24.0)
"""First packets of all prefixes taken without a Retry: one costs up to 1.2 ms and 73 KiB with aioquic, so 2.4 % of a core, and
those at once hold the loop for 29 ms."""


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """The bounds and timers of an endpoint.

    Attributes:
        engine: the limits of one connection.
        connections_max: connections at once, in both directions.
        connections_per_prefix_max: of these, accepted ones from one IPv4 address or one IPv6 /56. go-libp2p takes 8; a site of
            the owner's whose nodes share one address may have as many as they keep links to one node.
        handshakes_max: accepted connections whose handshake is not over.
        handshakes_per_prefix_max: of these, from one IPv4 address or one IPv6 /56; as go-libp2p's connections.
        handshakes_unproven_max: of these, from addresses that no Retry has proven; further ones are answered by a Retry.
        own_networks: networks whose addresses are not counted by prefix: loopback and private ones, where one owner runs many
            nodes and where the network itself keeps strangers out.
        unproven_per_prefix: first packets of a prefix taken without a Retry.
        proven_per_prefix: first packets of a prefix taken with one.
        unproven: first packets of all prefixes taken without a Retry.
        prefixes_max: prefixes whose allowances are remembered; the oldest gives way. Unproven ones come at the rate of
            `unproven`.
        conduct: what peers may cost, and bans.
        stranger_bytes_max: what a stranger may send before its handshake is over; an honest one sends less than 8 KiB.
        stranger_cpu_s: what it may cost of a core; a handshake takes 2 ms with aioquic.
        handshake_timeout_s: a handshake that takes longer is given up; as rust-libp2p.
        keep_alive_s: a PING goes out when nothing was heard for this long; four fit into the idle timeout.
        prompt_ping_s: the same while a stream is busy, doubling up to `keep_alive_s`; finds a path whose NAT binding moved.
        send_buffer_bytes_max: unsent bytes kept per stream; room for the bandwidth-delay product of 1 Gbit/s over 8 ms.
        held_bytes_max: the same over all streams of a connection.
        stalled_bytes_max: when more than this waits for a peer that is heard and takes less than `stalled_share` of it in
            `stalled_s`, the connection ends. One long answer whose reader has paused keeps one send buffer full, which is less.
        stalled_s: see there, in seconds.
        stalled_share: see there: a peer that takes less needs longer than six minutes for what waits.
        stream_unread_bytes_max: unread bytes of a stream beyond which it is given up, where the engine cannot hold its sender
            back; two stream windows, so that a reader which is a whole window behind is still served.
        unread_bytes_max: unread bytes of a connection beyond which its stream with the most of them is given up.
        farewells_max: connection ids for which a close is repeated when the peer did not hear it.
        farewell_s: how long it is repeated, in seconds: as long as the peer's idle timeout, for until then it may hold the
            connection for living and be told so by nothing else. RFC 9000 section 10.2 asks for three probe timeouts at least.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    connections_max: int = 512
    connections_per_prefix_max: int = 32
    handshakes_max: int = 128
    handshakes_per_prefix_max: int = 8
    handshakes_unproven_max: int = 64
    own_networks: tuple[str, ...] = OWN_NETWORKS
    unproven_per_prefix: Allowance = UNPROVEN_PER_PREFIX
    proven_per_prefix: Allowance = PROVEN_PER_PREFIX
    unproven: Allowance = UNPROVEN
    prefixes_max: int = 4096
    conduct: ConductConfig = field(default_factory=ConductConfig)
    stranger_bytes_max: int = 64 * 1024
    stranger_cpu_s: float = 0.25
    handshake_timeout_s: float = 5.0
    keep_alive_s: float = 15.0
    prompt_ping_s: float = 0.15
    send_buffer_bytes_max: int = 1024 * 1024
    held_bytes_max: int = 8 * 1024 * 1024
    stalled_bytes_max: int = 1280 * 1024
    stalled_s: float = 2.5
    stalled_share: float = 1 / 128
    stream_unread_bytes_max: int = 2 * 1088 * 1024
    unread_bytes_max: int = 6 * 1024 * 1024
    farewells_max: int = 1024
    farewell_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Received:
    """One datagram from a socket.

    Attributes:
        data: the UDP payload.
        address: where it came from.
        received_at: when the kernel took it from the network, in monotonic seconds.
        local: which of the node's sockets it came to.
    """

    data: bytes
    address: Address
    received_at: float
    local: int = 0


@dataclass(frozen=True, slots=True)
class Transmit:
    """Datagrams to send now from the socket `local`, in this order."""

    local: int
    datagrams: list[tuple[bytes, Address]]


@dataclass(frozen=True, slots=True)
class ConnectionEstablished:
    """Both sides proved who they are; streams may be opened.

    Attributes:
        connection: which one.
        peer_id: who is at the other end.
        address: where from.
        is_client: whether this side dialled.
        incarnation: the same for all connections of one run of the peer's program, another after it was started again.
    """

    connection: ConnectionHandle
    peer_id: PeerId
    address: Address
    is_client: bool
    incarnation: bytes


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """The connection is over; nothing follows for it.

    Attributes:
        connection: which one; it may never have been established.
        code: why.
        reason: the same for a person.
        local: whether this side ended it.
        established: whether `ConnectionEstablished` was said before.
    """

    connection: ConnectionHandle
    code: ErrorCode
    reason: str
    local: bool
    established: bool


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream."""

    connection: ConnectionHandle
    stream: int


@dataclass(frozen=True, slots=True)
class StreamData:
    """The next bytes of a stream; `end` says that none follow. They hold credit until `Endpoint.consumed` is called."""

    connection: ConnectionHandle
    stream: int
    data: bytes
    end: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer's side of a stream is over before its end; bytes not yet read are void.

    Attributes:
        connection: which connection.
        stream: which stream.
        code: why.
        local: whether this side gave it up, since too much of it was not read.
    """

    connection: ConnectionHandle
    stream: int
    code: int
    local: bool = False


@dataclass(frozen=True, slots=True)
class StopSending:
    """The peer reads no more; this side of the stream is over."""

    connection: ConnectionHandle
    stream: int
    code: int


@dataclass(frozen=True, slots=True)
class StreamWritable:
    """A stream whose send buffer was full is below half of it."""

    connection: ConnectionHandle
    stream: int


@dataclass(frozen=True, slots=True)
class StreamsAvailable:
    """The peer allows streams again after `Endpoint.open_stream` returned None."""

    connection: ConnectionHandle


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """A QUIC DATAGRAM frame; `received_at` is when its packet reached this machine."""

    connection: ConnectionHandle
    data: bytes
    received_at: float


Output: TypeAlias = (
    Transmit
    | ConnectionEstablished
    | ConnectionClosed
    | StreamOpened
    | StreamData
    | StreamReset
    | StopSending
    | StreamWritable
    | StreamsAvailable
    | DatagramReceived
    | PeerBanned
    | PrefixBanned
    | BanExpired
)


@dataclass(slots=True)
class EndpointCounters:
    """What happened since the start; for metrics, never for decisions."""

    datagrams_in: int = 0
    datagrams_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    junk_datagrams: int = 0
    refused_handshakes: int = 0
    retries: int = 0
    dropped_datagrams: int = 0
    accepted: int = 0
    dialled: int = 0
