"""Machines that do not exist: each has clocks, luck and a UDP socket of its own, and a network with delays lies between them.

Everything runs in one trio loop whose clock jumps to the next deadline as soon as all tasks wait. The sockets speak what
mesh/transport/udp.py speaks with the kernel: batches that UDP_SEGMENT cuts and UDP_GRO joins, the time of arrival as a control
message, EAGAIN when nothing is there, and readiness through a real file descriptor. The network is the simulator's, with its
loss, its cuts, its copies and its queues.
"""

import errno
import heapq
import math
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass
from itertools import count
from random import Random

import trio

from mesh.machine import Machine
from mesh.transport.udp import SEGMENTS_MAX, SO_TIMESTAMPNS, SOL_UDP, UDP_GRO, UDP_SEGMENT
from protocol.multiaddr import Multiaddr
from protocol.records import Hardware
from sim.luck import Streams
from sim.network import Delays, Line, Network, NetworkConfig

WALL_S = 1_800_000_000.0
UPTIME_S = 2.0**17
"""For how long the machines have been up, in seconds. So their clocks are coarser than trio's, and a timer that is due by trio's
clock is due by theirs: between two clocks of floating-point numbers it may else be too early for ever by the last bit."""
PORT = 4001
HARDWARE = Hardware("virtual", 1, 8_000_000_000, 1)


@dataclass(frozen=True)
class Arrived:
    """A datagram in a receive buffer."""

    data: bytes
    source: tuple[str, int]
    wall_s: float


class VirtualSocket:
    """One UDP socket of one virtual machine; what stands here of `socket.socket` is what the shell uses."""

    def __init__(self, machine: "VirtualMachine", family: int, kind: int) -> None:
        assert (family, kind) == (socket.AF_INET, socket.SOCK_DGRAM), "virtual machines speak UDP over IPv4"
        self._machine = machine
        self._options: dict[tuple[int, int], int] = {}
        self._buffer: deque[Arrived] = deque()
        self._buffered_bytes = 0
        self._name = ("0.0.0.0", 0)
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._signalled = False
        machine.sockets.append(self)

    @property
    def buffered(self) -> int:
        return len(self._buffer)

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self._options[level, option] = value

    def bind(self, address: tuple[str, int]) -> None:
        host, port = address
        if host not in (self._machine.host, "0.0.0.0"):
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        taken = self._machine.ports()
        port = port or next(port for port in range(49_152, 65_536) if port not in taken)
        if port in taken:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._name = (host, port)

    def getsockname(self) -> tuple[str, int]:
        return self._name

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            self._machine.sockets.remove(self)
            trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1

    # Sending

    def sendto(self, data: bytes, address: tuple[str, int]) -> int:
        return self.sendmsg([data], [], 0, address)

    def sendmsg(self, buffers: list[bytes], ancillary: list, flags: int, address: tuple[str, int]) -> int:
        data = b"".join(buffers)
        step = max(1, len(data))
        for level, kind, content in ancillary:
            assert (level, kind) == (SOL_UDP, UDP_SEGMENT)
            (step,) = struct.unpack("@H", content)
        assert len(data) <= step * SEGMENTS_MAX
        for start in range(0, len(data), step):
            self._machine.net.send(self._machine, self._name[1], data[start : start + step], address)
        return len(data)

    # Receiving

    def take_in(self, arrived: Arrived) -> None:
        """Put a datagram into the receive buffer, unless that is full."""
        room = self._options.get((socket.SOL_SOCKET, socket.SO_RCVBUF), 212_992)
        if self._buffered_bytes + len(arrived.data) > room:
            self._machine.net.overflowed += 1
            return
        self._buffer.append(arrived)
        self._buffered_bytes += len(arrived.data)
        self.signal()

    def signal(self) -> None:
        """Make the descriptor readable or not, as the buffer and the machine are."""
        readable = bool(self._buffer) and not self._machine.stopped
        if readable and not self._signalled:
            os.eventfd_write(self._fd, 1)
        elif self._signalled and not readable:
            os.eventfd_read(self._fd)
        self._signalled = readable

    def recvmsg(self, size_bytes: int, _ancillary_bytes: int) -> tuple[bytes, list, int, tuple[str, int]]:
        if not self._signalled:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        first = self._buffer.popleft()
        data, ancillary = first.data, []
        if self._options.get((SOL_UDP, UDP_GRO)):
            pieces = self._joined(first, size_bytes)
            if len(pieces) > 1:
                data = b"".join(pieces)
                ancillary.append((SOL_UDP, UDP_GRO, struct.pack("@i", len(first.data))))
        if self._options.get((socket.SOL_SOCKET, SO_TIMESTAMPNS)):
            seconds = math.floor(first.wall_s)
            stamp = struct.pack("@qq", seconds, round((first.wall_s - seconds) * 1e9))
            ancillary.append((socket.SOL_SOCKET, SO_TIMESTAMPNS, stamp))
        self._buffered_bytes -= len(data)
        self.signal()
        return data, ancillary, 0, first.source

    def _joined(self, first: Arrived, size_bytes: int) -> list[bytes]:
        """What came behind a datagram at the same time from the same sender in the same size, a shorter one last."""
        pieces = [first.data]
        while self._buffer and len(pieces) < SEGMENTS_MAX and len(pieces[-1]) == len(first.data):
            following = self._buffer[0]
            fits = (len(pieces) + 1) * len(first.data) <= size_bytes
            if not fits or following.source != first.source or following.wall_s != first.wall_s:
                break
            if len(following.data) > len(first.data):
                break
            pieces.append(self._buffer.popleft().data)
        return pieces


class VirtualMachine:
    """One machine: `machine` is what a node takes from it; it can be stopped and put to sleep."""

    def __init__(self, net: "VirtualNet", index: int) -> None:
        self.net = net
        self.index = index
        self.host = f"10.0.{index // 250}.{index % 250 + 1}"
        self.sockets: list[VirtualSocket] = []
        self.stopped = False
        self.asleep = False
        self.wall_off_s = 0.0
        self._slept_s = 0.0
        self._stopped_at = 0.0
        luck = net.streams.of(f"machine {index}")
        self.machine = Machine(
            self.clock,
            self.wall,
            luck.randbytes,
            luck,
            self.open_socket,
            self.hardware,
            lambda: 0.0,
            None,
            self.beside,
            path_bytes=lambda _: 0,
        )

    @property
    def address(self) -> Multiaddr:
        return Multiaddr("ip4", self.host, PORT)

    def clock(self) -> float:
        """Monotonic seconds as a program on it reads them: they stand while it is stopped, and catch up unless it slept."""
        return UPTIME_S + (self._stopped_at if self.stopped else trio.current_time()) - self._slept_s

    def wall(self) -> float:
        return WALL_S + (self._stopped_at if self.stopped else trio.current_time()) + self.wall_off_s

    async def beside(self, work):
        """No thread: the virtual clock would not wait for it."""
        return work()

    async def hardware(self) -> Hardware:
        return HARDWARE

    def open_socket(self, family: int, kind: int) -> VirtualSocket:
        return VirtualSocket(self, family, kind)

    def ports(self) -> set[int]:
        return {virtual.getsockname()[1] for virtual in self.sockets}

    def stop(self, *, sleeps: bool) -> None:
        """Stop everything on it: its kernel goes on to receive (SIGSTOP), or it sleeps and hears nothing (suspend)."""
        self._stopped_at = trio.current_time()
        self.stopped, self.asleep = True, sleeps
        for virtual in self.sockets:
            virtual.signal()

    def go_on(self) -> None:
        if self.asleep:
            self._slept_s += trio.current_time() - self._stopped_at
        self.stopped = self.asleep = False
        for virtual in self.sockets:
            virtual.signal()

    def take_in(self, port: int, data: bytes, source: tuple[str, int]) -> None:
        """A datagram has reached this machine."""
        if not self.asleep:
            wall_s = WALL_S + trio.current_time() + self.wall_off_s
            for virtual in self.sockets:
                if virtual.getsockname()[1] == port:
                    virtual.take_in(Arrived(data, source, wall_s))


class VirtualNet:
    """The network between the machines; `run` it in a nursery, since it delivers."""

    def __init__(self, seed: int, delays: Delays | None = None) -> None:
        self.streams = Streams(seed)
        self.network = Network(delays or Line(), NetworkConfig(), self.streams)
        self.machines: list[VirtualMachine] = []
        self.overflowed = 0
        self.sent: list[tuple[float, int, int]] | None = (
            None  # (seconds, machine, bytes) of every datagram when a list is put here
        )
        self._by_host: dict[str, VirtualMachine] = {}
        self._order = count()
        self._heap: list[tuple[float, int, VirtualMachine, int, bytes, tuple[str, int]]] = []
        self._scope: trio.CancelScope | None = None

    def luck(self, purpose: str) -> Random:
        return self.streams.of(purpose)

    def add(self) -> VirtualMachine:
        machine = VirtualMachine(self, len(self.machines))
        self.machines.append(machine)
        self._by_host[machine.host] = machine
        return machine

    def send(self, sender: VirtualMachine, port: int, data: bytes, address: tuple[str, int]) -> None:
        """Take a datagram from a machine."""
        now = trio.current_time()
        if self.sent is not None:
            self.sent.append((now, sender.index, len(data)))
        receiver = self._by_host.get(address[0])
        if receiver is None:
            return
        for late_s in self.network.datagram(sender.index, receiver.index, len(data), now):
            heapq.heappush(self._heap, (now + late_s, next(self._order), receiver, address[1], data, (sender.host, port)))
        if self._scope is not None and self._heap:
            self._scope.deadline = self._heap[0][0]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            with trio.CancelScope() as self._scope:
                self._scope.deadline = self._heap[0][0] if self._heap else math.inf
                await trio.sleep_forever()
            while self._heap and self._heap[0][0] <= trio.current_time():
                _, _, receiver, port, data, source = heapq.heappop(self._heap)
                receiver.take_in(port, data, source)
