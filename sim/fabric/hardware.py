"""Memory of one process as a fabric shows it to a peer, with its faults and with what must never happen.

It stands for what hardware does: it lets nobody past a lease that is not bound, and it may fail, be late or carry other bytes. It
remembers what was given to whom under which epoch, so that a reader who sees anything else has used a lease past its time, or
memory that was never shown to it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import count
from random import Random
from typing import Protocol

from protocol.fabric import Kind, Lease, Rights


class FabricError(Exception):
    """The fabric does not carry."""


class BrokenPromiseError(AssertionError):
    """Something has happened that the specification rules out."""


class Fate(Enum):
    """What becomes of one step of the hardware."""

    WORKS = "works"
    FAILS = "fails"
    LATE = "late"
    NEVER = "never"


class Fates(Protocol):
    """Says what becomes of each step."""

    late_s: float

    def of(self, kind: Kind, step: str) -> Fate:
        """The fate of the next step."""
        ...

    def spoils(self, kind: Kind) -> bool:
        """Whether the bytes that are carried next arrive as others."""
        ...


@dataclass(eq=False, slots=True)
class Drawn:
    """Fates that are drawn, each step apart.

    Attributes:
        luck: draws them.
        fail: share of the steps that fail.
        stall: share of those that are late or never end, half each.
        spoil: share of what is carried that arrives changed.
        late_s: by how long a step is late at the most, in seconds.
    """

    luck: Random
    fail: float = 0.0
    stall: float = 0.0
    spoil: float = 0.0
    late_s: float = 3.0

    def of(self, kind: Kind, step: str) -> Fate:
        """See `Fates`."""
        del kind, step
        drawn = self.luck.random()
        if drawn < self.fail:
            return Fate.FAILS
        if drawn < self.fail + self.stall:
            return self.luck.choice((Fate.LATE, Fate.NEVER))
        return Fate.WORKS

    def spoils(self, kind: Kind) -> bool:
        """See `Fates`."""
        del kind
        return self.luck.random() < self.spoil


@dataclass(eq=False, slots=True)
class Segment:
    """Memory of one process that one peer may reach.

    Attributes:
        owner: whose it is.
        peer: who may.
        data: what lies there.
        bound: the lease by which the hardware lets the peer in.
        retired: nobody writes to it or leases it any more.
        gone: it was given back to the system.
        torn: the hardware has taken it away; whoever uses it gets an error.
        given: what was put there under each epoch.
    """

    owner: str
    peer: str
    data: bytearray
    bound: Lease | None = None
    retired: bool = False
    gone: bool = False
    torn: bool = False
    given: dict[int, bytes] = field(default_factory=dict[int, bytes])

    @property
    def _name(self) -> str:
        return f"memory of {self.owner} for {self.peer}"

    def bind(self, lease: Lease) -> None:
        """Let the peer in by a lease; the one before is no way in any more."""
        if self.retired or self.gone:
            raise BrokenPromiseError(f"{self._name} is leased after it was {'given back' if self.gone else 'retired'}")
        if self.bound is not None:
            raise BrokenPromiseError(f"{self._name} is leased twice at a time")
        self.bound = lease

    def unbind(self, lease: Lease) -> None:
        """Let nobody in by a lease any more."""
        if self.bound == lease:
            self.bound = None

    def fill(self, lease: Lease, data: bytes) -> None:
        """The owner puts bytes where a lease of its own begins, before it offers it."""
        if self.torn:
            raise FabricError("the memory was taken away")
        if self.retired or self.gone:
            raise BrokenPromiseError(f"{self._name} is written after it was {'given back' if self.gone else 'retired'}")
        self._put(lease, 0, data)
        self.given[lease.epoch] = bytes(self.data)

    def admits(self, writer: str, lease: Lease) -> bool:
        """Whether a lease is a way in to write now."""
        bound = self.bound  # its lifetime is no business of the hardware, and is told in milliseconds
        same = bound is not None and replace(bound, lifetime_s=0.0) == replace(lease, lifetime_s=0.0)
        return writer == self.peer and same and lease.rights is Rights.WRITE and not self.gone

    def put(self, writer: str, lease: Lease, offset: int, data: bytes) -> None:
        """The peer writes by a lease.

        Raises:
            FabricError: the hardware turns it away.
        """
        if not self.admits(writer, lease) or not lease.covers(offset, len(data)):
            raise FabricError("remote access error")
        self._put(lease, offset, data)

    def get(self, reader: str, lease: Lease, offset: int, length: int) -> bytes:
        """The peer reads by a lease; the bytes must be those of the lease's epoch, and given to it."""
        if reader != self.peer:
            raise BrokenPromiseError(f"{reader} reads {self._name}")
        if self.torn:
            raise FabricError("the memory was taken away")
        if self.gone:
            raise BrokenPromiseError(f"{self._name} is read after it was given back")
        if not lease.covers(offset, length) or lease.offset + lease.length > len(self.data):
            raise BrokenPromiseError(f"{length} bytes at {offset} are read of a lease of {lease.length}")
        begins = lease.offset + offset
        seen = bytes(self.data[begins : begins + length])
        given = self.given.get(lease.epoch)
        if given is None or seen != given[begins : begins + length]:
            raise BrokenPromiseError(f"{self._name} is read by epoch {lease.epoch} when it holds another one's bytes")
        return seen

    def own(self, lease: Lease, length: int) -> bytes:
        """The owner reads what a peer has written, once that cannot write any more."""
        if self.bound is not None:
            raise BrokenPromiseError(f"{self._name} is read while the peer can write to it")
        return bytes(self.data[lease.offset : lease.offset + length])

    def _put(self, lease: Lease, offset: int, data: bytes) -> None:
        begins = lease.offset + offset
        if begins < lease.offset or begins + len(data) > lease.offset + lease.length:
            raise BrokenPromiseError(f"{len(data)} bytes at {offset} are written of a lease of {lease.length}")
        before = len(self.data)
        self.data[begins : begins + len(data)] = data
        if len(self.data) != before:
            raise BrokenPromiseError("a write has moved the end of a region")


@dataclass(eq=False, slots=True)
class Hardware:
    """What one process has of memory, and what became of it.

    Attributes:
        name: of the process.
        fates: of every step.
        luck: where a bit is spoilt.
        segments: what it has of the system's memory for peers.
        numbers: of its regions; none comes again.
        spoilt: how often bytes were changed on their way.
        refused: accesses that the hardware has turned away.
    """

    name: str
    fates: Fates
    luck: Random
    segments: list[Segment] = field(default_factory=list[Segment])
    numbers: Iterator[int] = field(default_factory=count)
    spoilt: int = 0
    refused: int = 0
    is_out_of_memory: bool = False

    def allocate(self, peer: str, size_bytes: int) -> Segment:
        """Memory for one peer.

        Raises:
            FabricError: there is none.
        """
        if self.is_out_of_memory:
            raise FabricError("no memory")
        segment = Segment(self.name, peer, bytearray(size_bytes))
        self.segments.append(segment)
        return segment

    def give_back(self, segment: Segment, *, seen: bool = False) -> None:
        """Give memory back to the system.

        Args:
            segment: which.
            seen: whether it lasts as long as anybody maps it, as memory of the host does.
        """
        self.segments.remove(segment)
        segment.gone = not seen
        segment.retired = True

    def touch(self, kind: Kind, step: str) -> None:
        """One step that is done at once.

        Raises:
            FabricError: it fails.
        """
        if self.fates.of(kind, step) is Fate.FAILS:
            raise FabricError(f"{step} fails")

    def carried(self, kind: Kind, data: bytes) -> bytes:
        """Bytes as they arrive."""
        if not data or not self.fates.spoils(kind):
            return data
        self.spoilt += 1
        spoilt = bytearray(data)
        spoilt[self.luck.randrange(len(spoilt))] ^= 1 << self.luck.randrange(8)
        return bytes(spoilt)


class Timer(Protocol):
    """Virtual time as one process sees it: what it has asked for does not happen any more when it has died."""

    @property
    def now(self) -> float:
        """Seconds."""
        ...

    def after(self, delay_s: float, call: Callable[[], None], /) -> None:
        """Does something later."""
        ...


STEP_S = 0.0002
"""Seconds that a step of the hardware takes where nothing is wrong: a page that is mapped, a message of a network card."""


def run_step(
    clock: Timer, hardware: Hardware, kind: Kind, step: str, works: Callable[[], None], fails: Callable[[], None]
) -> None:
    """One step of the hardware that takes its time, or for ever."""
    match hardware.fates.of(kind, step):
        case Fate.WORKS:
            clock.after(STEP_S, works)
        case Fate.FAILS:
            clock.after(STEP_S, fails)
        case Fate.LATE:
            clock.after(hardware.luck.random() * hardware.fates.late_s, works)
        case Fate.NEVER:
            pass
