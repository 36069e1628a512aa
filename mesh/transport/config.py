"""The bounds and timers of the trio shell.

Spec: docs/spec/02-transport.md.
"""

from dataclasses import dataclass, field

from mesh.busypoll import BUSY_POLL_S
from protocol.libp2p.multistream import MultistreamConfig
from protocol.libp2p.ping import PingConfig
from protocol.quic.events import EndpointConfig


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """How the shell drives the endpoint.

    Attributes:
        endpoint: the endpoint's bounds and timers.
        multistream: the bounds of protocol negotiation.
        ping: the bounds of libp2p's ping.
        negotiation_timeout_s: a peer that opened a stream has this long to agree on a protocol.
        resolve_timeout_s: patience with the name service while dialling.
        dial_addresses_max: addresses of one name that are tried, one after the other.
        retire_min_s: a duplicate connection is kept at least this long, for streams that are on their way.
        retire_max_s: and at most this long, for streams that do not end.
        datagrams_per_wake_max: datagrams taken from a socket before anything else runs; bounds the delay of other tasks.
        send_backlog_max: datagrams kept while a socket does not take them; more are dropped, as the network would.
        socket_buffer_bytes: receive and send buffer asked of the kernel; 2 MiB hold 20 ms of 1 Gbit/s.
        push_delay_s: changes of addresses and protocols within this many seconds are told to the peers together.
        pushes_max: peers that are told at a time.
        serving_max: handler tasks of one peer at a time; a stream beyond is reset with OVERLOADED.
        busy_poll_s: the event loop looks at most this long whether something has come before it sleeps; 0 for not at all.
        agent: what identify says of the program.
        protocol_version: what identify says of the network's protocol; it begins with "/", as some peers want it.
    """

    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    multistream: MultistreamConfig = field(default_factory=MultistreamConfig)
    ping: PingConfig = field(default_factory=PingConfig)
    negotiation_timeout_s: float = 10.0
    resolve_timeout_s: float = 5.0
    dial_addresses_max: int = 4
    retire_min_s: float = 1.0
    retire_max_s: float = 30.0
    datagrams_per_wake_max: int = 64
    send_backlog_max: int = 4096
    socket_buffer_bytes: int = 2 * 1024 * 1024
    push_delay_s: float = 0.25
    pushes_max: int = 16
    serving_max: int = 256
    busy_poll_s: float = BUSY_POLL_S
    agent: str = "isochrone/0.1.0"
    protocol_version: str = "/isochrone/0.1.0"
