"""What counts as one place in the network: an IPv4 address, or an IPv6 /56.

Peer ids are free, so nothing is counted per peer id alone. A household or a company has one IPv4 address or one /56; behind one
may sit many honest nodes. Networks that are the owner's own (loopback, and the private and link-local ones) are not counted at
all: a testnet runs fifty nodes on one address.

Source: go-libp2p `p2p/host/resource-manager` (limits per /32 and /56); RFC 1918, RFC 4193.
"""

import functools
import ipaddress
from collections.abc import Sequence
from typing import TypeAlias

Prefix: TypeAlias = bytes
"""The packed address for IPv4 (4 bytes), the first 7 bytes for IPv6."""

IPV6_PREFIX_BYTES = 7
"""A /56 in bytes: the usual size of one customer's network."""

OWN_NETWORKS = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10")
"""Networks whose addresses are not counted by prefix unless a node is told otherwise."""

_CACHED_MAX = 4096
"""Addresses whose prefix is remembered; the one not asked for longest gives way."""


@functools.lru_cache(maxsize=_CACHED_MAX)
def prefix_of(host: str, own_networks: Sequence[str] = OWN_NETWORKS) -> Prefix | None:
    """Return the prefix of a numeric address; None where it is in one of the owner's own networks.

    Args:
        host: as the socket module writes it, with or without a zone.
        own_networks: a tuple of networks in CIDR notation.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    if any(address in network for network in _networks(own_networks)):
        return None
    return address.packed if address.version == 4 else address.packed[:IPV6_PREFIX_BYTES]


def prefix_text(prefix: Prefix) -> str:
    """Return a prefix as people write it."""
    if len(prefix) == IPV6_PREFIX_BYTES:
        return f"{ipaddress.IPv6Address(prefix.ljust(16, bytes(1)))}/56"
    return f"{ipaddress.IPv4Address(prefix)}/32"


@functools.lru_cache(maxsize=16)
def _networks(texts: Sequence[str]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)
