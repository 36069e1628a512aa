"""The kernel's own list of network interfaces, asked for through rtnetlink: one question and its answers.

`/sys/class/net` tells the same of most machines, but in a network namespace it may be that of another. A library for netlink
takes a tenth of a second to import; this is the one message of it that a node needs.

Source: rtnetlink(7), netlink(7); linux/rtnetlink.h, linux/if_link.h.
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

ANSWER_BYTES_MAX = 64 * 1024
"""Bytes read at once; the kernel puts at most 32 KiB into one message of a list (NLMSG_GOODSIZE)."""
READS_MAX = 256
"""Messages read of one list, a count: 8 MiB, thousands of interfaces."""
ANSWER_S_MAX = 1.0
"""Longest wait for the kernel in seconds: it answers within the call."""

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, kind of hardware, index, flags, which flags changed
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type
_GET_LINK, _NEW_LINK = 18, 16  # RTM_GETLINK, RTM_NEWLINK
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_NAME, _MTU, _INFO, _KIND = 3, 4, 18, 1  # IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, and IFLA_INFO_KIND within the third
_TYPE_BITS = 0x3FFF  # NLA_TYPE_MASK: the two bits above say how the value is laid out


@dataclass(frozen=True, slots=True)
class Link:
    """One interface: `IFF_*` flags, `ARPHRD_*` kind of hardware; `is_virtual` ones are bridges, tunnels and the like."""

    name: str
    flags: int
    hardware: int
    mtu_bytes: int
    is_virtual: bool


def read_links() -> list[Link]:
    """Ask the kernel.

    Raises:
        OSError: it does not answer, or with an error.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(ANSWER_S_MAX)
        kernel.bind((0, 0))
        kernel.send(_HEADER.pack(_HEADER.size + _LINK.size, _GET_LINK, _DUMP, 1, 0) + bytes(_LINK.size))
        found: list[Link] = []
        for _ in range(READS_MAX):
            links, is_done = parse(kernel.recv(ANSWER_BYTES_MAX))
            found += links
            if is_done:
                return found
    raise OSError("the kernel's list of interfaces does not end")


def parse(data: bytes) -> tuple[list[Link], bool]:
    """The interfaces of one answer, and whether the list has ended.

    Raises:
        OSError: the answer is an error, or not laid out as one.
    """
    found: list[Link] = []
    try:
        for kind, body in _messages(data):
            if kind == _DONE:
                return found, True
            if kind == _ERROR:
                raise OSError(-struct.unpack_from("=i", body)[0], "the kernel does not list its interfaces")
            if kind == _NEW_LINK:
                found.append(_link(body))
    except (struct.error, UnicodeDecodeError) as error:
        raise OSError(f"the kernel's list of interfaces is not understood: {error}") from error
    return found, False


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        length, kind = _HEADER.unpack_from(data)[:2]
        if not _HEADER.size <= length <= len(data):
            raise struct.error(f"a message of {length} bytes in {len(data)}")
        yield kind, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _link(body: bytes) -> Link:
    _, hardware, _, flags, _ = _LINK.unpack_from(body)
    known = _attributes(body[_LINK.size :])
    name = known.get(_NAME, b"").rstrip(b"\0").decode()
    (mtu_bytes,) = struct.unpack("=I", known.get(_MTU, bytes(4)))
    return Link(name, flags, hardware, mtu_bytes, _KIND in _attributes(known.get(_INFO, b"")))


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            raise struct.error(f"an attribute of {length} bytes in {len(data)}")
        found[kind & _TYPE_BITS] = data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]
    return found


def _aligned(length: int) -> int:
    """Messages and attributes begin at multiples of four bytes (NLMSG_ALIGNTO, RTA_ALIGNTO)."""
    return (length + 3) & ~3
