"""RDMA devices of virtual machines: what stands here of `mesh.fabric.verbs.objects` is what a queue pair and its session use.

A device carries out what is posted one after the other, in virtual time, and tells it as hardware does: by completions, a
descriptor that becomes readable once after each arming, and events. What may be written is what a window was bound to. It can be
made to fail: a request ends with an error, the port goes down, or nothing ends any more.
"""

import ctypes
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

import pytest
import trio

from mesh.fabric.base import Opening
from mesh.fabric.rdma import memory, session, wire
from mesh.fabric.rdma.memory import Locked
from mesh.fabric.rdma.session import RdmaSession
from mesh.fabric.rdma.wire import Wire
from mesh.fabric.verbs.objects import Access, Completion, Did, Flag, Path, Status, VerbsError, Work
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Advert, Kind, Match, Port, Way
from protocol.fabric.cost import COPY
from protocol.fabric.messages import NONCE_BYTES, SECRET_BYTES, Door, encode_opening

RATE = 1.25e9
"""Bytes a second that a port carries: 10 Gbit/s."""
WAY = Way((COPY,), setup_s=0.001)


@dataclass
class Posted:
    """A request on its way: the queue pair, its number, what it is, and what is done when it ends."""

    pair: "QueuePair"
    number: int
    did: Did
    size_bytes: int = 0
    carry_out: Callable[[], bool] = lambda: True


class Ether:
    """All devices of a test, and the queue pairs on them by number."""

    def __init__(self) -> None:
        self.numbers = count(1)
        self.keys = count(0x100, 0x100)
        self.pairs: dict[int, QueuePair] = {}


@dataclass(eq=False)
class Device:
    """A device with one port.

    Attributes:
        ether: what it is connected to.
        fails: the next write ends with an error.
        stands_still: nothing ends any more.
        failed_at: when it told of the first error, or of the last request that ended before it stood still.
    """

    ether: Ether
    has_windows: ClassVar[bool] = True
    binding: ClassVar[None] = None
    name: ClassVar[str] = "emulated"
    fails: bool = False
    stands_still: bool = False
    failed_at: float | None = None
    on_post: Callable[[Posted], None] = lambda _posted: None
    queue: deque[Posted] = field(default_factory=deque)
    has_work: trio.Event = field(default_factory=trio.Event)
    sessions: list[RdmaSession] = field(default_factory=list)

    def post(self, posted: Posted) -> None:
        self.queue.append(posted)
        self.has_work.set()
        self.on_post(posted)

    def fail(self) -> None:
        """Have the next write end with an error."""
        self.fails = True

    def stand_still(self) -> None:
        """End nothing any more."""
        self.stands_still, self.failed_at = True, trio.current_time()

    def port_down(self) -> None:
        """A cable was pulled; the sessions are told as the opener tells them that hears of it."""
        self.stand_still()
        trio.lowlevel.spawn_system_task(self._tell_port_down)

    async def _tell_port_down(self) -> None:
        for made in self.sessions:
            made.close("the RDMA port has gone down")

    async def run(self) -> None:
        """Carries out what is posted."""
        while True:
            while not self.queue or self.stands_still:
                self.has_work = trio.Event()
                await self.has_work.wait()
            posted = self.queue.popleft()
            await trio.sleep(10e-6 + posted.size_bytes / RATE)
            if self.stands_still or posted.pair.stopped:
                continue
            if self.fails and posted.did is Did.WRITE:
                self.failed_at = trio.current_time()
                posted.pair.tell(Completion(posted.number, Status.RETRIES_EXCEEDED, posted.did, 0, 0))
                continue
            status = Status.SUCCESS if posted.carry_out() else Status.REMOTE_ACCESS
            posted.pair.tell(Completion(posted.number, status, posted.did, posted.size_bytes, 0))


class Domain:
    def __init__(self, device: Device) -> None:
        self.device, self.binding = device, None

    def close(self) -> None:
        pass


class Region:
    def __init__(self, domain: Domain, address: int, size_bytes: int, access: Access) -> None:
        self.address, self.size_bytes = address, size_bytes
        self.local_key = self.remote_key = next(domain.device.ether.keys)

    def close(self) -> None:
        pass


class Window:
    def __init__(self, domain: Domain) -> None:
        self.key = next(domain.device.ether.keys)

    def next_key(self, low: int) -> int:
        return (self.key & ~0xFF) | (low if low != self.key & 0xFF else (low + 1) & 0xFF)

    def close(self) -> None:
        pass


class Completions:
    def __init__(self, device: Device, entries: int) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ends: deque[Completion] = deque()
        self._is_armed = False

    def tell(self, end: Completion) -> None:
        self._ends.append(end)
        if self._is_armed:
            self._is_armed = False
            os.eventfd_write(self.fd, 1)

    def arm(self) -> None:
        self._is_armed = True

    def take_events(self) -> int:
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0

    def poll(self) -> list[Completion]:
        ends = list(self._ends)
        self._ends.clear()
        return ends

    def close(self) -> None:
        os.close(self.fd)


class QueuePair:
    def __init__(self, domain: Domain, completions: Completions, sends: int, receives: int, inline_bytes: int) -> None:
        self.device, self.inline_bytes = domain.device, inline_bytes
        self.number = next(self.device.ether.numbers)
        self.windows: dict[int, tuple[int, int]] = {}
        self.stopped = False
        self.tell = completions.tell
        self._remote = 0
        self.device.ether.pairs[self.number] = self

    def connect(self, path: Path, own_psn: int, access: Access, *, timeout: int, retries: int) -> None:
        self._remote = path.qpn

    def receive(self, number: int, count: int = 1) -> None:
        pass

    def post(self, number, work, piece, remote, *, flags: Flag = Flag.SIGNALED, immediate: int = 0) -> None:
        other = self.device.ether.pairs[self._remote]
        address, size, _ = piece

        def written() -> bool:
            begins, length = other.windows.get(remote[1], (0, -1)) if size else (remote[0], 0)  # nothing is written anywhere
            if not begins <= remote[0] or remote[0] + size > begins + length or other.stopped:
                return False
            ctypes.memmove(remote[0], address, size)
            if work is Work.WRITE_IMMEDIATE:
                other.tell(Completion(0, Status.SUCCESS, Did.WRITTEN, size, immediate))
            return True

        self._post(Posted(self, number, Did.WRITE, size, written))

    def bind(self, number: int, window: Window, key: int, region: Region, part: tuple[int, int], access: Access) -> None:
        def bound() -> bool:
            self.windows[key] = part
            return True

        window.key = key
        self._post(Posted(self, number, Did.BIND, 0, bound))

    def invalidate(self, number: int, key: int) -> None:
        self._post(Posted(self, number, Did.INVALIDATE, 0, lambda: self.windows.pop(key, None) is not None))

    def _post(self, posted: Posted) -> None:
        if self.stopped:
            raise VerbsError(22, "a request cannot be posted")
        self.device.post(posted)

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.device.ether.pairs.pop(self.number, None)


@dataclass
class EmulatedOpener:
    """Opens RDMA sessions on such devices: `mesh.fabric.rdma.opener` without sysfs and libraries."""

    number: int
    device: Device
    absent: str = ""
    kind: ClassVar[Kind] = Kind.RDMA
    keeps_stream: ClassVar[bool] = True

    def advert(self) -> Advert:
        return Advert(ports=(Port(bytes(15) + bytes([self.number]), 64, 10_000),))

    def way(self, match: Match) -> Way:
        return WAY

    def figures(self):
        return {}

    async def run(self, changed) -> None:
        await self.device.run()

    def _session(self, opening: Opening, key: bytes) -> RdmaSession:
        made = Wire(self.device, 1)
        locked = Locked(1 << 40)
        found = RdmaSession(
            opening.peer, opening.config, WAY, made, opening.control, key, opening.entropy, True, locked, opening.on_closed
        )
        self.device.sessions.append(found)
        return found

    async def knock(self, opening: Opening, door: Door, own_nonce: bytes) -> RdmaSession:
        made = self._session(opening, door.secret)
        self._connect(made, int.from_bytes(door.place, "big"))
        await opening.control.send(made.wire.pair.number.to_bytes(4, "big"))
        assert await opening.control.expect() == b"in"
        await made.wire.greet()
        return made

    async def admit(self, opening: Opening, hello) -> RdmaSession:
        secret = opening.entropy(SECRET_BYTES)
        made = self._session(opening, secret)
        place = made.wire.pair.number.to_bytes(4, "big")
        await opening.control.send(encode_opening(Door(self.kind, place, secret, opening.entropy(NONCE_BYTES))))
        theirs = await opening.control.expect()
        if len(theirs) != 4:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "somebody else")
        self._connect(made, int.from_bytes(theirs, "big"))
        opening.control.say(b"in")
        return made

    def _connect(self, made: RdmaSession, number: int) -> None:
        made.wire.connect(Path(bytes(16), number, 0, 5, 0, 1, 0), 0)


def emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have queue pairs and memory be of emulated devices, and nothing go to threads, whose time no virtual clock counts."""
    for name, made in (("Domain", Domain), ("Completions", Completions), ("QueuePair", QueuePair)):
        monkeypatch.setattr(wire, name, made)
    monkeypatch.setattr(wire, "status_words", lambda _binding, status: f"status {status}")
    for name, made in (("Region", Region), ("Window", Window)):
        monkeypatch.setattr(memory, name, made)
    monkeypatch.setattr(session, "THREAD_BYTES", 1 << 40)
