"""What dialling needs: one attempt, and where this node itself can be dialled.

Spec: docs/spec/02-transport.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from mesh.transport.connection import Connection
from mesh.transport.errors import ConnectionLost
from mesh.transport.udp import UdpSocket, local_address_towards
from protocol.identity import PeerId
from protocol.multiaddr import Multiaddr
from protocol.quic.events import ConnectionHandle
from protocol.quic.seam import Address

WILDCARDS = {"0.0.0.0": ("127.0.0.1", "192.0.2.1"), "::": ("::1", "2001:db8::1")}  # noqa: S104
"""Addresses that stand for all of a family: its loopback, and a documentation address behind the default route (RFC 5737)."""


@dataclass(slots=True)
class Dial:
    """One attempt to reach a peer; any number of callers wait for it."""

    handle: ConnectionHandle | None = None
    done: trio.Event = field(default_factory=trio.Event)
    connection: Connection | None = None
    failure: ConnectionLost | None = None


def reachable(sockets: Sequence[UdpSocket], own: PeerId) -> tuple[Multiaddr, ...]:
    """Return the addresses at which others reach these sockets; a wildcard stands for loopback and the way outside."""
    found: list[Multiaddr] = []
    for udp in sockets:
        bound = udp.bound
        loopback, outside = WILDCARDS.get(bound.host, (bound.host, None))
        hosts = [local_address_towards(outside) if outside else None, loopback]
        for host in dict.fromkeys(host for host in hosts if host):
            found.append(Multiaddr(bound.protocol, host, bound.port, own))  # noqa: PERF401  (nested)
    return tuple(found)


def multiaddr_of(address: Address, peer_id: PeerId) -> Multiaddr:
    """Where a peer is reached, as a multiaddr with its peer id."""
    return Multiaddr("ip6" if ":" in address[0] else "ip4", address[0], address[1], peer_id)
