"""A pool of memory as several hosts see it, each through a cache of its own where the pool is not coherent.

The layout, the owners and their rules are those of the core (`protocol.fabric.pools`, `protocol.fabric.owners`). A host that
reads a line gets it from its cache if it is there, however old it is; what it writes stays in its cache until it is written
back. The hardware writes lines back and fetches them whenever it likes: `evict` and `prefetch` have it do so now. Beside the
memory stands what nobody can see: which owner has claimed which slabs, and what was given to whom in them.

Source: Compute Express Link specification 3.1, section 2.4.4 (software-managed coherence of shared memory); Intel SDM volume 1,
section 11.4.4 (CLFLUSHOPT, CLWB).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.fabric.owners import Owner, Run
from protocol.fabric.pools import LINE_BYTES, PoolFlags, PoolLayout, encode_superblock, lay_out, slab_bytes_for
from sim.fabric.hardware import BrokenPromiseError

POOL_BYTES = 8 * 2**20
"""Size of a pool in bytes: the smallest there is, with some hundred slabs."""

SLOTS = 6
"""Owners of a pool, a count: more than the processes of any rack here."""


@dataclass(frozen=True, slots=True)
class Put:
    """What was put into a run of slabs: by whom, for whom, under which region and epoch, and the bytes."""

    owner: str
    peer: str
    region: int
    epoch: int
    data: bytes


class SimPool:
    """The device."""

    def __init__(self, pool_id: bytes, flags: PoolFlags, *, size_bytes: int = POOL_BYTES, slots: int = SLOTS) -> None:
        """Makes an empty pool."""
        self.layout: PoolLayout = lay_out(pool_id, flags, size_bytes, slab_bytes_for(size_bytes), slots)
        self.is_coherent, self.is_tagged = bool(flags & PoolFlags.COHERENT), bool(flags & PoolFlags.TAGGED)
        self.memory = bytearray(size_bytes)
        self.memory[:LINE_BYTES] = encode_superblock(self.layout)
        self.hosts: list[Host] = []
        self.claimed: dict[int, str] = {}
        self.put: dict[int, Put] = {}
        self.names: dict[int, str] = {}  # whose a slot was last

    def note_claim(self, owner: str, run: Run["SimWindow"]) -> None:
        """Somebody may write to slabs from now on: nobody else may claim them, or look at them."""
        for slab in range(run.first, run.first + run.count):
            other = self.claimed.get(slab)
            if other is not None:
                raise BrokenPromiseError(f"{owner} claims slab {slab}, which {other} has")
            looking = next((host.name for host in self.hosts if slab in host.looked_at), None)
            if looking is not None:
                raise BrokenPromiseError(f"{owner} claims slab {slab}, at which {looking} looks")
            self.claimed[slab] = owner
        self.put.pop(run.first, None)

    def note_free(self, run: Run["SimWindow"]) -> None:
        """Slabs are claimed no more."""
        for slab in range(run.first, run.first + run.count):
            self.claimed.pop(slab, None)

    def note_slot(self, slot: int, owner: str) -> None:
        """Somebody owns a slot."""
        self.names[slot] = owner

    def note_reaped(self, slot: int) -> None:
        """A slot was taken over and cleared: whoever had it holds and claims nothing any more, though it may live."""
        name = self.names.pop(slot, "")
        self.note_death(name)
        for host in self.hosts:
            if host.name == name:
                host.looked_at.clear()

    def note_death(self, owner: str) -> None:
        """Whoever has died writes nothing more; what it has claimed stays in its slot until that is cleared."""
        for slab in [slab for slab, name in self.claimed.items() if name == owner]:
            del self.claimed[slab]


@dataclass(slots=True)
class _Cached:
    """A line in a cache."""

    data: bytearray
    dirty: bool = False


class SimWindow:
    """A part of a pool that one host writes to."""

    __slots__ = ("at", "host", "size_bytes")

    def __init__(self, host: "Host", at: int, size_bytes: int) -> None:
        """Maps it."""
        self.host, self.at, self.size_bytes = host, at, size_bytes

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there, and have them in memory."""
        self.put(offset, data)
        self.write_back(offset, len(data))

    def put(self, offset: int, data: bytes) -> None:
        """Put bytes there, which may stay in the cache."""
        if offset < 0 or offset + len(data) > self.size_bytes:
            raise BrokenPromiseError(f"{self.host.name} writes {len(data)} bytes at {offset} of a window of {self.size_bytes}")
        self.host.store(self.at + offset, data)

    def write_back(self, offset: int, size_bytes: int) -> None:
        """Have in memory what was put there."""
        self.host.write_back(self.at + offset, size_bytes)


@dataclass(eq=False)
class Host:
    """A pool as one process maps it.

    Attributes:
        name: of the process.
        pool: which.
        looked_at: slabs at which somebody here looks, each as often.
        on_write: hears of every write before it is done, with where and what; a process that dies at it raises.
    """

    name: str
    pool: SimPool
    looked_at: dict[int, int] = field(default_factory=dict[int, int])
    on_write: Callable[[int, bytes], None] = field(default=lambda _at, _data: None)
    _cache: dict[int, _Cached] = field(default_factory=dict[int, _Cached])
    is_dead: bool = False

    def __post_init__(self) -> None:
        self.pool.hosts.append(self)

    @property
    def layout(self) -> PoolLayout:
        """What the superblock says."""
        return self.pool.layout

    def read(self, at: int, size_bytes: int = LINE_BYTES) -> bytes:
        """A copy of what is in memory now."""
        self.invalidate(at, size_bytes)
        return self.load(at, size_bytes)

    def window(self, at: int, size_bytes: int) -> SimWindow:
        """Map a part for writing."""
        return SimWindow(self, at, size_bytes)

    def fence(self) -> None:
        """Nothing here is done in another order than it is written."""

    def load(self, at: int, size_bytes: int) -> bytes:
        """What this host sees there."""
        if self.pool.is_coherent:
            return bytes(self.pool.memory[at : at + size_bytes])
        first, end = at // LINE_BYTES, -(-(at + size_bytes) // LINE_BYTES)
        seen = b"".join(bytes(self._line(number).data) for number in range(first, end))
        return seen[at - first * LINE_BYTES : at - first * LINE_BYTES + size_bytes]

    def store(self, at: int, data: bytes) -> None:
        """Write; in a pool that is not coherent it stays in this host's cache."""
        if self.is_dead:
            raise BrokenPromiseError(f"{self.name} writes after its death")
        if at >= self.layout.slabs_at:
            owner = self.pool.claimed.get((at - self.layout.slabs_at) // self.layout.slab_bytes)
            if owner not in (None, self.name):
                raise BrokenPromiseError(f"{self.name} writes into a slab that {owner} has claimed")
        self.on_write(at, data)
        if self.pool.is_coherent:
            self.pool.memory[at : at + len(data)] = data
            return
        done = 0
        while done < len(data):
            number, place = divmod(at + done, LINE_BYTES)
            piece = data[done : done + LINE_BYTES - place]
            line = self._line(number)
            line.data[place : place + len(piece)] = piece
            line.dirty = True
            done += len(piece)

    def write_back(self, at: int, size_bytes: int) -> None:
        """Write lines back that were changed here."""
        for number in self._cached(at, size_bytes):
            line = self._cache[number]
            if line.dirty:
                self.pool.memory[number * LINE_BYTES : (number + 1) * LINE_BYTES] = line.data
                line.dirty = False

    def invalidate(self, at: int, size_bytes: int) -> None:
        """Forget lines, so that what is read next comes from memory."""
        self.write_back(at, size_bytes)
        for number in self._cached(at, size_bytes):
            del self._cache[number]

    def evict(self) -> None:
        """The hardware needs room: everything is written back and forgotten."""
        self.invalidate(0, len(self.pool.memory))

    def prefetch(self) -> None:
        """The hardware fetches what it thinks is read next: the slots, and the beginnings of all slabs."""
        layout = self.pool.layout
        spans = [(0, layout.slabs_at), *((layout.slab_at(slab), 9 * 1024) for slab in range(layout.slabs))]
        for at, size_bytes in spans:
            if not self.pool.is_coherent and any(self.pool.memory[at : at + size_bytes]):
                self.load(at, size_bytes)

    def die(self) -> None:
        """The process is gone, or its host: what was only in its cache is lost."""
        self.is_dead = True
        self._cache.clear()
        self.looked_at.clear()
        self.pool.note_death(self.name)
        self.pool.hosts.remove(self)

    def _line(self, number: int) -> _Cached:
        line = self._cache.get(number)
        if line is None:
            at = number * LINE_BYTES
            line = self._cache[number] = _Cached(bytearray(self.pool.memory[at : at + LINE_BYTES]))
        return line

    def _cached(self, at: int, size_bytes: int) -> list[int]:
        first, end = at // LINE_BYTES, -(-(at + size_bytes) // LINE_BYTES)
        if end - first > len(self._cache):
            return [number for number in self._cache if first <= number < end]
        return [number for number in range(first, end) if number in self._cache]


SimOwner = Owner[SimWindow]
"""An owner of the core over this memory."""

SimRun = Run[SimWindow]
"""Its slabs."""
