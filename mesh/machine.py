"""What a node takes from the machine it runs on: clocks, luck, sockets, and what the machine is made of.

The defaults are the operating system's. Everything that runs in the shell and depends on time, luck or the network goes through
here, so that whole nodes also run on a virtual clock and a virtual network (docs/simulation.md, "The third tier").
"""

import os
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from mesh.hardware import read_hardware
from mesh.store import StoreFault
from protocol.encoding import Luck
from protocol.quic.seam import Address
from protocol.records import Hardware

T = TypeVar("T")

IP_MTU = 14
"""Option that tells the MTU of a connected socket's route (linux/in.h)."""

IPV6_MTU = 24
"""The same for IPv6 (linux/in6.h)."""

HEADERS_BYTES = 48
"""Headers of IPv6 and UDP in bytes (RFC 8200 section 3, RFC 768); those of IPv4 and UDP are shorter."""


async def in_thread(work: Callable[[], T]) -> T:
    """Does in a thread what may block for long; it is brought to its end also where nobody waits for it any more."""
    return await trio.to_thread.run_sync(work)


async def hardware_here() -> Hardware:
    """Reads this machine's hardware in a thread, since drivers may block."""
    return await trio.to_thread.run_sync(read_hardware)


def read_suspended_s() -> float:
    """For how long this machine was ever suspended, in seconds: time that CLOCK_BOOTTIME counts and CLOCK_MONOTONIC does not.

    CLOCK_BOOTTIME is read first: a process that is held up between the two reads sees too little once, and never too much.
    """
    boottime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return boottime_s - time.clock_gettime(time.CLOCK_MONOTONIC)


def read_path_bytes(address: Address) -> int:
    """Return which UDP payload reaches an address for sure; 0 where the way leads out of this machine, or that is not known.

    No datagram is sent. An address is this machine's own where it would talk to it from the same.

    Source: Linux ip(7) and ipv6(7), IP_MTU and IPV6_MTU.
    """
    is_ip6 = ":" in address[0]
    level, option = (socket.IPPROTO_IPV6, IPV6_MTU) if is_ip6 else (socket.IPPROTO_IP, IP_MTU)
    with suppress(OSError), socket.socket(socket.AF_INET6 if is_ip6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        is_here = address[0].startswith("127.") or probe.getsockname()[0] == address[0]
        if is_here and sys.platform == "linux":
            return probe.getsockopt(level, option) - HEADERS_BYTES
    return 0


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine.

    Attributes:
        clock: monotonic seconds, the time of everything but records and certificates; it runs as trio's clock does.
        wall: the wall clock, in seconds since 1970.
        entropy: so many secret bytes.
        luck: draws that no peer may foresee.
        open_socket: makes a socket of a family and a kind that does not block.
        hardware: reads what the machine is made of.
        suspended_s: for how long the machine was ever suspended, in seconds, which `clock` does not count.
        cpu: how many seconds of a core this thread has used, None where that is not to be known.
        beside: does what may block, such as writing to a disk, beside everything else.
        path_bytes: which UDP payload reaches an address for sure; 0 where that is not known.
    """

    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    entropy: Callable[[int], bytes] = os.urandom
    luck: Luck = field(default_factory=random.SystemRandom)
    open_socket: Callable[[socket.AddressFamily, socket.SocketKind], socket.socket] = socket.socket
    hardware: Callable[[], Awaitable[Hardware]] = hardware_here
    suspended_s: Callable[[], float] = read_suspended_s
    cpu: Callable[[], float] | None = time.thread_time
    beside: Callable[[Callable[[], StoreFault | None]], Awaitable[StoreFault | None]] = in_thread
    path_bytes: Callable[[Address], int] = read_path_bytes
