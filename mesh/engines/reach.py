"""Connects to engines: a name that the owner wrote is resolved once a connection, and the address that was checked is dialled.

A name belongs to whoever runs its zone, and may lead anywhere at any moment. So addresses that no engine has are refused when a
name leads to them: link-local ones, among them those at which clouds tell a machine its credentials, and the few others used for
that. Whoever means such an address writes it as it is. Every other address, loopback and private networks included, is where
engines live.

Source: CVE-2026-45401 and CVE-2026-63764 (what was checked is not what was connected to); RFC 3927, RFC 4291 section 2.5.6; the
clouds' documentation of their metadata services.
"""

import ipaddress
from collections.abc import Iterable

import httpcore
import httpx
import trio

NO_ENGINE_AT = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # this host, by another name
        "169.254.0.0/16",  # link-local: AWS, Google, Azure and others tell credentials at .169.254 and its neighbours
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure's host
        "192.0.0.192/32",  # Oracle
        "224.0.0.0/4",  # multicast
        "255.255.255.255/32",
        "::/128",
        "fe80::/10",  # link-local
        "fd00:ec2::/32",  # AWS
        "ff00::/8",  # multicast
    )
)
"""Addresses to which no name of an engine leads."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses with an IPv4 address at their end (RFC 6052)."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ReachBackend(httpcore.AsyncNetworkBackend):
    """Opens the connections of one HTTP client."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._inner = inner or httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a literal address as it is, to a name at the first of its addresses that answers.

        Raises:
            httpcore.ConnectError: the name leads nowhere, or where no engine is.
            httpcore.ConnectTimeout: nothing answers in time.
        """
        if _literal(host) is not None:
            return await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        try:
            with trio.fail_after(float("inf") if timeout is None else timeout):
                found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except trio.TooSlowError as error:
            raise httpcore.ConnectTimeout(f"{host} could not be resolved in time") from error
        except OSError as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved: {error}") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            if not may_hold_engine(address):
                raise httpcore.ConnectError(
                    f"{host} leads to {address}, where machines tell their secrets and no engine is; write that address itself "
                    "if it is meant"
                )
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Pause, between attempts."""
        await self._inner.sleep(seconds)


def engine_transport(limits: httpx.Limits) -> httpx.AsyncHTTPTransport:
    """The transport of an HTTP client that talks to an engine."""
    transport = httpx.AsyncHTTPTransport(trust_env=False, limits=limits)
    transport._pool._network_backend = ReachBackend()  # noqa: SLF001  # httpx hands none on; held by a test
    return transport


def may_hold_engine(text: str) -> bool:
    """Whether an address to which a name leads may be an engine's; one inside another counts as what it holds."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        address = inner or address
    return not any(address in network for network in NO_ENGINE_AT)


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
