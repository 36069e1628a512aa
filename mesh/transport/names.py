"""From a multiaddr to the socket addresses that can be dialled.

Source: RFC 1035, by way of the machine's own name service.
"""

import socket

import trio

from mesh.transport.errors import ConnectionLost
from protocol.errors import ErrorCode
from protocol.multiaddr import Multiaddr
from protocol.quic.seam import Address


async def resolve(address: Multiaddr, timeout_s: float, addresses_max: int) -> list[Address]:
    """Return the socket addresses of a multiaddr, in the order of the name service.

    Args:
        address: where to dial.
        timeout_s: patience with the name service.
        addresses_max: how many addresses of one name are returned at most.

    Raises:
        ConnectionLost: UNREACHABLE, the name was not resolved in time.
        OSError: there is no such name.
    """
    if address.protocol == "ip4":
        return [(address.host, address.port)]
    if address.protocol == "ip6":
        return [(address.host, address.port, 0, 0)]
    family = {"dns4": socket.AF_INET, "dns6": socket.AF_INET6}.get(address.protocol, socket.AF_UNSPEC)
    found: list[Address] = []
    with trio.move_on_after(timeout_s) as scope:
        for _, _, _, _, target in await trio.socket.getaddrinfo(address.host, address.port, family, socket.SOCK_DGRAM):
            if target not in found:
                found.append(
                    (str(target[0]), int(target[1])) if len(target) == 2 else (str(target[0]), int(target[1]), 0, int(target[3]))
                )
    if scope.cancelled_caught:
        raise ConnectionLost(ErrorCode.UNREACHABLE, f"{address.host} was not resolved within {timeout_s:g} s")
    return found[:addresses_max]
