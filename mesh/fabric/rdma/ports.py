"""The RDMA ports of this host, and by which address each is told and used.

The devices, the state and speed of their ports and the tables of addresses come from sysfs, the addresses of the network
interfaces behind them, with the lengths of their subnets, from rtnetlink. On Ethernet only RoCE v2 counts (it is routed and has
a UDP port that a firewall can name): of a port's addresses the first is taken that is one of IPv4, else a global one of IPv6.
Addresses of a single link are left out: their subnet is the same everywhere, so that all nodes would seem to share one.

Source: Documentation/ABI/stable/sysfs-class-infiniband; InfiniBand specification, annex 17 (RoCE v2); RFC 4291, sections 2.5.1
(interface identifiers) and 2.5.5.2 (IPv4-mapped).
Spec: docs/spec/11-fabric.md, section "Adverts".
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.fabric.adverts import GID_BYTES, PORTS_MAX, SPEED_MBPS_MAX, Port

GIDS_MAX = 256
"""Entries looked at of one port's table of addresses, a count: the largest devices have as many."""

DEVICES_MAX = 64
"""Devices looked at, a count: a server has one for each GPU, with virtual functions some more."""

CLASS = "sys/class/infiniband"
"""Where the kernel lists RDMA devices, below the root."""

_V4_MAPPED = bytes(10) + b"\xff\xff"  # how an address of IPv4 begins that is written as one of IPv6
_IB_SUBNET_BITS = 64  # InfiniBand specification, 4.1.1: the upper half of an address
_ACTIVE = "ACTIVE"

Addresses = Mapping[str, Sequence[tuple[bytes, int]]]
"""By the name of an interface: its addresses in the form of IPv6, with the length of the subnet in bits."""


@dataclass(frozen=True, slots=True)
class RdmaPort:
    """A port that can be used, and its address.

    Attributes:
        device: the device's name.
        number: of the port, from 1.
        gid: its address.
        gid_index: where that stands in the port's table.
        subnet_bits: how many leading bits of it name the subnet.
        speed_mbps: 0 when unknown.
        interface: the network interface behind it; empty for InfiniBand.
    """

    device: str
    number: int
    gid: bytes
    gid_index: int
    subnet_bits: int
    speed_mbps: int
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The ports that can be used, and why others cannot: a sentence each."""

    ports: tuple[RdmaPort, ...]
    unusable: tuple[str, ...]


def has_devices(root: Path = Path("/")) -> bool:
    """Whether the kernel lists any RDMA device."""
    return bool(_names(root))


def read_ports(addresses: Addresses, only: Sequence[str] = (), root: Path = Path("/")) -> Found:
    """Look at all ports; the fastest come first.

    Args:
        addresses: of the network interfaces.
        only: the devices that may be used; empty for all.
        root: where `sys` is.
    """
    ports: list[RdmaPort] = []
    unusable: list[str] = [f"{name}: there is no such RDMA device" for name in only if name not in _names(root)]
    for name in _names(root):
        if only and name not in only:
            continue
        for folder in sorted((root / CLASS / name / "ports").glob("[0-9]*"), key=lambda path: int(path.name)):
            found = _read_port(name, folder, addresses)
            if isinstance(found, RdmaPort):
                ports.append(found)
            else:
                unusable.append(f"{name}/{folder.name}: {found}")
    ports.sort(key=lambda port: -port.speed_mbps)
    return Found(tuple(ports[:PORTS_MAX]), tuple(unusable))


def told(port: RdmaPort, secret: bytes) -> Port:
    """A port for the advert.

    An address that holds the number of the hardware (InfiniBand's do, and those of IPv6 that are made from a MAC address) is
    told with its subnet alone; the rest is a tag that only this host can make (ISO-FAB-001). The address itself is told inside
    a session.

    Args:
        port: the port.
        secret: of the host.
    """
    gid = port.gid
    names_hardware = not port.interface or gid[11:13] == b"\xff\xfe"
    if names_hardware and not gid.startswith(_V4_MAPPED):
        tag = hmac.new(secret, b"isochrone-rdma-port:" + gid, hashlib.sha256).digest()[:GID_BYTES]
        mask = (1 << (8 * GID_BYTES - port.subnet_bits)) - 1
        number = (int.from_bytes(gid, "big") & ~mask) | (int.from_bytes(tag, "big") & mask)
        gid = number.to_bytes(GID_BYTES, "big")
    return Port(gid, port.subnet_bits, port.speed_mbps)


def read_addresses() -> dict[str, list[tuple[bytes, int]]]:
    """The addresses of all interfaces. Blocks, and belongs in a worker thread.

    Raises:
        ImportError: pyroute2 is not installed.
        OSError: the kernel does not tell.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    found: dict[str, list[tuple[bytes, int]]] = {}
    try:
        with IPRoute() as kernel:
            names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in kernel.get_links()}
            for told_address in kernel.get_addr():
                text = told_address.get_attr("IFA_LOCAL") or told_address.get_attr("IFA_ADDRESS")
                name = names.get(told_address["index"])
                if text and name:
                    found.setdefault(name, []).append(as_v6(text, told_address["prefixlen"]))
    except NetlinkError as error:
        raise OSError(error.code, f"the kernel does not tell addresses: {error}") from error
    return found


def as_v6(text: str, prefix_bits: int) -> tuple[bytes, int]:
    """An address in the form of IPv6, as RoCE v2 uses it, with the length of its subnet in bits."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return _V4_MAPPED + address.packed, 96 + prefix_bits
    return address.packed, prefix_bits


def _names(root: Path) -> list[str]:
    try:
        return sorted(path.name for path in (root / CLASS).iterdir())[:DEVICES_MAX]
    except OSError:
        return []


def _read_port(device: str, folder: Path, addresses: Addresses) -> RdmaPort | str:
    """The port in a folder of sysfs, or why it cannot be used."""
    state = _read(folder / "state")
    if _ACTIVE not in state:
        return f"its link is {state.partition(':')[2].strip().lower() or 'not there'}"
    speed = _speed_mbps(_read(folder / "rate"))
    if _read(folder / "link_layer") == "InfiniBand":
        gid = _gid(_read(folder / "gids/0"))
        if gid is None:
            return "it has no address"
        return RdmaPort(device, int(folder.name), gid, 0, _IB_SUBNET_BITS, speed)
    best: tuple[tuple[bool, int], RdmaPort] | None = None
    for index in range(GIDS_MAX):
        gid = _gid(_read(folder / "gids" / str(index)))
        if gid is None or _read(folder / "gid_attrs/types" / str(index)) != "RoCE v2":
            continue
        interface = _read(folder / "gid_attrs/ndevs" / str(index))
        bits = next((bits for address, bits in addresses.get(interface, ()) if address == gid), None)
        if bits is None or ipaddress.IPv6Address(gid).is_link_local or not 0 < bits <= 8 * GID_BYTES:
            continue
        rank = (not gid.startswith(_V4_MAPPED), index)
        if best is None or rank < best[0]:
            best = rank, RdmaPort(device, int(folder.name), gid, index, bits, speed, interface)
    return "it has no RoCE v2 address of IPv4 or of global IPv6" if best is None else best[1]


def _gid(text: str) -> bytes | None:
    """An address as sysfs writes it; None for an empty entry."""
    digits = text.replace(":", "")
    if not re.fullmatch("[0-9a-f]{32}", digits):
        return None
    gid = bytes.fromhex(digits)
    return gid if any(gid) else None


def _speed_mbps(text: str) -> int:
    """A rate as sysfs writes it ("100 Gb/sec (4X EDR)"); 0 where it is not understood."""
    match = re.match(r"(\d+(?:\.\d+)?) Gb/sec", text)
    return min(round(float(match[1]) * 1000), SPEED_MBPS_MAX) if match else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):  # empty entries of the table cannot be read
        return ""
