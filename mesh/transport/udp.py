"""One UDP socket: batches in with the kernel's time of arrival, batches out with as few system calls as the kernel allows.

Datagrams are read without blocking until none is left or the batch is full. The kernel stamps each with the wall clock at which
it came (SO_TIMESTAMPNS), which is turned into monotonic seconds by its age. Where the kernel can, several datagrams of one
sender come as one buffer (UDP_GRO), and several of one size to one receiver leave as one (UDP_SEGMENT).

Source: Linux udp(7), socket(7); Documentation/networking/segmentation-offloads.
"""

import contextlib
import errno
import socket
import struct
from collections import deque

from mesh.machine import Machine
from protocol.multiaddr import Multiaddr
from protocol.quic.events import Received
from protocol.quic.seam import Address

SOL_UDP = 17
"""Level of UDP socket options (linux/socket.h)."""

UDP_SEGMENT = 103
"""Option and control message that cuts one buffer into datagrams of a size (linux/udp.h)."""

UDP_GRO = 104
"""Option and control message that joins datagrams of a size into one buffer (linux/udp.h)."""

SO_TIMESTAMPNS = 35
"""Option and control message with the time of arrival as timespec, in its 64-bit form (asm-generic/socket.h)."""

SEGMENTS_MAX = 64
"""Datagrams cut from one buffer (UDP_MAX_SEGMENTS of older kernels)."""

BUFFER_BYTES_MAX = 65_000
"""Bytes sent as one buffer: below the largest UDP payload of 65,507."""

BATCH_BYTES_MAX = 512 * 1024
"""Bytes taken from a socket before anything else runs: to decrypt and hand on as many takes some 0.5 ms."""

AGE_MAX_S = 1.0
"""A time of arrival older than this many seconds means that the wall clock was set; the time of reading is taken instead."""

# Room in bytes for one timespec and one segment size.
_ANCILLARY_BYTES = socket.CMSG_SPACE(16) + socket.CMSG_SPACE(4)
_TIMESPEC = struct.Struct("@qq")
_GONE = {
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EMSGSIZE,
    errno.EPERM,
    errno.EACCES,
    errno.EINVAL,
}
"""What a send may fail with for reasons of the path: the datagram counts as lost."""


class UdpSocket:
    """A bound UDP socket that never blocks."""

    def __init__(self, machine: Machine, host: str, port: int, *, index: int, buffer_bytes: int, backlog_max: int) -> None:
        """Bind a socket.

        Args:
            machine: whose socket and clocks these are.
            host: a numeric IP address.
            port: a UDP port; 0 lets the kernel choose.
            index: how the endpoint names this socket.
            buffer_bytes: kernel buffers to ask for.
            backlog_max: datagrams kept while the kernel takes none.

        Raises:
            OSError: the address cannot be had.
        """
        self.index = index
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.backlog: deque[tuple[bytes, Address]] = deque(maxlen=backlog_max)
        self._machine = machine
        self._segments = True
        self.raw = machine.open_socket(self.family, socket.SOCK_DGRAM)
        try:
            self.raw.setblocking(False)
            if self.family == socket.AF_INET6:
                self.raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                self.raw.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
            for level, name in ((socket.SOL_SOCKET, SO_TIMESTAMPNS), (SOL_UDP, UDP_GRO)):
                with contextlib.suppress(OSError):
                    self.raw.setsockopt(level, name, 1)
            self.raw.bind((host, port))
        except OSError:
            self.raw.close()
            raise

    @property
    def bound(self) -> Multiaddr:
        """The address that the socket has."""
        host, port = self.raw.getsockname()[:2]
        return Multiaddr("ip6" if self.family == socket.AF_INET6 else "ip4", host, port)

    def close(self) -> None:
        """Give the address back."""
        self.raw.close()

    def receive_batch(self, datagrams_max: int) -> list[Received]:
        """Take what has arrived, at most about `datagrams_max` datagrams."""
        batch: list[Received] = []
        room_bytes = BATCH_BYTES_MAX
        while len(batch) < datagrams_max and room_bytes > 0:
            try:
                data, ancillary, _, address = self.raw.recvmsg(65_536, _ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as fault:
                if fault.errno in _GONE:
                    continue  # an ICMP error about an earlier datagram
                raise
            room_bytes -= len(data)
            received_at, segment_bytes = self._machine.clock(), 0
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(content) >= _TIMESPEC.size:
                    seconds, nanoseconds = _TIMESPEC.unpack_from(content)
                    age_s = self._machine.wall() - (seconds + nanoseconds * 1e-9)
                    if 0.0 <= age_s <= AGE_MAX_S:
                        received_at -= age_s
                elif level == SOL_UDP and kind == UDP_GRO:
                    segment_bytes = int.from_bytes(content[:2], "little" if _LITTLE else "big")
            address = _plain(address)
            if 0 < segment_bytes < len(data):
                starts = range(0, len(data), segment_bytes)
                batch += [Received(data[start : start + segment_bytes], address, received_at, self.index) for start in starts]
            else:
                batch.append(Received(data, address, received_at, self.index))
        return batch

    def send(self, datagrams: list[tuple[bytes, Address]]) -> bool:
        """Send in order; False when the kernel takes no more and a backlog is left."""
        if self.backlog:
            self.backlog.extend(datagrams)
            return False
        n_sent = 0
        while n_sent < len(datagrams):
            n_sent, blocked = self._send_some(datagrams, n_sent)
            if blocked:
                self.backlog.extend(datagrams[n_sent:])
                return False
        return True

    def send_backlog(self) -> bool:
        """Send what was kept; False when some is left."""
        datagrams = list(self.backlog)
        self.backlog.clear()
        return self.send(datagrams)

    def _send_some(self, datagrams: list[tuple[bytes, Address]], start: int) -> tuple[int, bool]:
        """Send one datagram or one group; return the index of the next and whether the kernel takes no more."""
        data, address = datagrams[start]
        end = self._group_end(datagrams, start) if self._segments else start + 1
        try:
            if end - start > 1:
                size = struct.pack("@H", len(data))
                self.raw.sendmsg([datagram for datagram, _ in datagrams[start:end]], [(SOL_UDP, UDP_SEGMENT, size)], 0, address)
            else:
                self.raw.sendto(data, address)
        except (BlockingIOError, InterruptedError):
            return start, True
        except OSError as fault:
            if end - start > 1 and fault.errno in (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EMSGSIZE):
                self._segments = False  # the kernel or the device cannot cut; one by one from now on
                return start, False
            if fault.errno == errno.ENOBUFS:
                return start, True
            if fault.errno not in _GONE:
                raise
        return end, False

    def _group_end(self, datagrams: list[tuple[bytes, Address]], start: int) -> int:
        """Return the end of the run that may leave as one buffer: one address, one size, a shorter one last."""
        data, address = datagrams[start]
        size, total, end = len(data), len(data), start + 1
        while end < len(datagrams) and end - start < SEGMENTS_MAX:
            following, to = datagrams[end]
            total += len(following)
            if to != address or len(following) > size or total > BUFFER_BYTES_MAX:
                break
            end += 1
            if len(following) < size:
                break
        return end


_LITTLE = struct.pack("@H", 1)[0] == 1
"""Whether control messages of this machine have the low byte first."""


def _plain(address: Address) -> Address:
    """Return the address without a zone name, which the endpoint's engines cannot read; the scope id stays."""
    if len(address) == 4 and "%" in address[0]:
        return (address[0].partition("%")[0], *address[1:])
    return address


def local_address_towards(host: str) -> str | None:
    """Return the address from which this machine would talk to `host`; no datagram is sent."""
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe,
    ):
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
    return None
