"""An owner's place in a pool: its slot, the slabs that it claims, and those of others at which it still looks.

Nobody can be locked out of memory that several hosts write, so nothing is claimed by a lock. Two rules take its place.

**Raise, then look.** Claims and holds are bits of which this owner is the only writer. To claim a slab it sets its bit, waits
until that is in memory, and then looks at the bits of all others; where one of them has the slab too, it takes its own bit back
and looks for another one. Of two that want the same slab at least one sees the other. Who reads a region sets its hold first
and then looks whether the region still is what it was offered; who frees one spoils its head first and then looks at the holds.

**Write, wait, look again.** A free slot has no owner who could be its only writer. Who wants it writes its nonce, waits for
longer than anybody may take from finding a slot free to having written to it, and looks whether the nonce is still its own. Who
took longer gives up. (Fischer's algorithm, with the delay that it assumes measured by each for itself.)

An owner counts its beat up every second. Whose beat stands still for `DEAD_S` is dead: another owner takes the slot over in a
greater epoch, clears it and leaves it free. A process that was only stopped finds its nonce gone and writes nothing more.

Where it has to wait, `claiming_slot` and `reaping` are generators that say for how many seconds, and end with whether it is done.

Source: Lamport, "A Fast Mutual Exclusion Algorithm" (ACM TOCS 1987), which tells Fischer's; Dijkstra, "Cooperating sequential
processes" (1965), for flags. Spec: docs/spec/11-fabric.md, section "Pools".
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.encoding import Luck
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric.pools import (
    LINE_BYTES,
    NONCE_BYTES,
    PAGE_BYTES,
    PoolLayout,
    RegionHead,
    SlotHead,
    SlotState,
    Token,
    decode_region,
    decode_slot,
    encode_beat,
    encode_name,
    encode_slot,
)
from protocol.fabric.values import EPOCH_MAX, Lease

BEAT_S = 1.0
"""Time between two beats of an owner, in seconds: a line in memory, so it costs nothing."""

DEAD_S = 15.0
"""How long a beat stands still until its owner is dead, in seconds: a node that hangs so long has lost its peers as well."""

SETTLE_S = 0.05
"""How long a new owner waits before it looks again, in seconds (ISO-FAB-027)."""

WRITE_S_MAX = SETTLE_S / 2
"""Seconds from finding a slot free to having written to it, past which its taker gives up: the rest is for the memory."""

TRIES_MAX = 8
"""Attempts to claim slabs before the pool counts as full, a count: each finds others in the way only by a rare chance."""


class Window(Protocol):
    """A part of a pool that this process writes to."""

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there, and have them in memory."""
        ...


W = TypeVar("W", bound=Window)
W_co = TypeVar("W_co", bound=Window, covariant=True)


class Mapped(Protocol[W_co]):
    """A pool as one process maps it."""

    @property
    def layout(self) -> PoolLayout:
        """What its superblock says."""
        ...

    def read(self, at: int, size_bytes: int = LINE_BYTES) -> bytes:
        """A copy of what is in memory now."""
        ...

    def window(self, at: int, size_bytes: int) -> W_co:
        """Map a part for writing.

        Raises:
            OSError: the system refuses.
        """
        ...

    def fence(self) -> None:
        """Have what was written before in memory before anything after it is read."""
        ...


@dataclass(eq=False, slots=True)
class Run(Generic[W]):
    """Slabs one after the other that this owner claims, mapped for writing."""

    first: int
    count: int
    window: W


@dataclass(slots=True)
class _Seen:
    """What was seen of another slot the last time that it changed, and since when."""

    lines: bytes
    since: float


@dataclass(eq=False)
class Owner(Generic[W]):
    """One owner of a pool, from `claiming_slot` until it has lost its slot or left it.

    Attributes:
        pool: which.
        name: what it calls itself, for people.
        entropy: draws so many bytes.
        luck: where it begins to look for slabs.
        now: monotonic seconds.
    """

    pool: Mapped[W]
    name: str
    entropy: Callable[[int], bytes]
    luck: Luck
    now: Callable[[], float]
    slot: int = -1
    head: SlotHead = field(default_factory=SlotHead)
    _window: W | None = None
    _beat: int = 0
    _seen: dict[int, _Seen] = field(default_factory=dict[int, _Seen])

    def __post_init__(self) -> None:
        slabs = self.pool.layout.slabs
        self._claims: NDArray[np.bool_] = np.zeros(slabs, np.bool_)
        self._holds: NDArray[np.int32] = np.zeros(slabs, np.int32)

    # The slot

    def claiming_slot(self) -> Generator[float, None, bool]:
        """Become an owner: of a slot that nobody has.

        Yields:
            How long to wait, in seconds.

        Returns:
            False where all have an owner, or one whose death is not certain yet.

        Raises:
            OSError: the system refuses.
        """
        self.watch()
        for slot in self.luck.sample(range(self.pool.layout.slots), self.pool.layout.slots):
            head = self.head_of(slot)
            if head is not None and head.state is SlotState.FREE and (yield from self.taking(slot)):
                return True
        return False

    def taking(self, slot: int) -> Generator[float, None, bool]:
        """Write, wait, look again; whether the slot is this owner's. It begins empty."""
        began = self.now()
        head = self.head_of(slot)
        if head is None or head.epoch >= EPOCH_MAX:
            return False
        layout = self.pool.layout
        window = self.pool.window(layout.slot_at(slot), layout.slot_bytes)
        own = SlotHead(SlotState.CLAIMED, head.epoch + 1, self.entropy(NONCE_BYTES))
        window.write(0, encode_slot(own))
        self.pool.fence()
        if self.now() - began > WRITE_S_MAX:
            return False
        yield SETTLE_S
        if self.pool.read(layout.slot_at(slot)) != encode_slot(own):
            return False
        window.write(PAGE_BYTES, bytes(layout.slot_bytes - PAGE_BYTES))
        window.write(2 * LINE_BYTES, encode_name(self.name))
        self.slot, self.head, self._window = slot, own, window
        self._claims[:] = False
        self._holds[:] = 0
        self._beat = 0
        self.beat()
        return True

    @property
    def token(self) -> Token:
        """Who this owner is, for its peers."""
        return Token(self.pool.layout.pool_id, self.slot, self.head.epoch, self.head.nonce)

    @property
    def has_slot(self) -> bool:
        """Whether the slot is still its own; to be asked before anything is written."""
        return self._window is not None and self.pool.read(self.pool.layout.slot_at(self.slot)) == encode_slot(self.head)

    def beat(self) -> bool:
        """Say that it lives, and put right what its bits should be; False where the slot is lost."""
        if self._window is None or not self.has_slot:
            return False
        self._beat += 1
        self._window.write(LINE_BYTES, encode_beat(self._beat))
        self._write_bits(0, len(self._claims))
        return True

    def leave(self) -> None:
        """Give the slot back, with all claims. What others look at stays as it is by their holds."""
        if self.has_slot and self._window is not None:
            self._claims[:] = False
            self._write_bits(0, len(self._claims))
            if not self._holds.any():  # else somebody here still looks, and the slot is taken for dead after a while
                self._window.write(0, encode_slot(SlotHead(SlotState.FREE, self.head.epoch)))
        self._window, self.slot = None, -1

    # Others

    def head_of(self, slot: int) -> SlotHead | None:
        """Who owns a slot; None where that cannot be read: it is being written."""
        try:
            return decode_slot(self.pool.read(self.pool.layout.slot_at(slot)))
        except RemoteProtocolError:
            return None

    def is_owner(self, token: Token) -> bool:
        """Whether a slot is still that of whoever told the token."""
        head = self.head_of(token.slot)
        return head == SlotHead(SlotState.CLAIMED, token.epoch, token.nonce)

    def claims_all(self, slot: int, first: int, count: int) -> bool:
        """Whether a slot's owner claims all of some slabs."""
        begin, end = first // 8, -(-(first + count) // 8)
        bits = self.pool.read(self.pool.layout.claims_at(slot) + begin, end - begin)
        claimed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
        return bool(claimed[first - 8 * begin : first - 8 * begin + count].all())

    def check(self, theirs: Token, lease: Lease, first: int, count: int) -> None:
        """See that a peer is still who it was in the pool, that some slabs are its own, and that its lease of them holds.

        The slabs are held before, so that what is found here stays so.

        Raises:
            RemoteProtocolError: STALE_LEASE, OUT_OF_BOUNDS.
        """
        if not self.is_owner(theirs):
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, "the peer's slot in the pool has another owner, or another epoch")
        if not self.claims_all(theirs.slot, first, count):
            raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, f"{count} slabs from {first}, which are not the peer's")
        head = decode_region(self.pool.read(self.pool.layout.slab_at(first)))
        if head != RegionHead(theirs.slot, theirs.epoch, lease.region, lease.epoch, lease.offset + lease.length):
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"region {lease.region} is leased otherwise, by its head")

    def watch(self) -> list[int]:
        """Look at all other slots; return those whose owner is dead."""
        now = self.now()
        dead: list[int] = []
        for slot in range(self.pool.layout.slots):
            head = self.head_of(slot)
            if slot == self.slot or (head is not None and head.state is SlotState.FREE):
                self._seen.pop(slot, None)
                continue
            lines = self.pool.read(self.pool.layout.slot_at(slot), 2 * LINE_BYTES)
            seen = self._seen.get(slot)
            if seen is None or seen.lines != lines:
                self._seen[slot] = _Seen(lines, now)
            elif now - seen.since >= DEAD_S:
                dead.append(slot)
        return dead

    def reaping(self, slot: int) -> Generator[float, None, bool]:
        """Take the slot of a dead owner over, clear it, and leave it free; whether that is done."""
        reaper: Owner[W] = Owner(self.pool, self.name, self.entropy, self.luck, self.now)
        seen = self._seen.pop(slot, None)
        if seen is None or self.pool.read(self.pool.layout.slot_at(slot), 2 * LINE_BYTES) != seen.lines:
            return False
        if self.head_of(slot) is None:  # its owner died while it wrote, and nobody knows of an epoch
            self.pool.window(self.pool.layout.slot_at(slot), LINE_BYTES).write(0, encode_slot(SlotHead(SlotState.CLAIMED, 1)))
        if not (yield from reaper.taking(slot)):
            return False
        reaper.leave()
        return True

    # Slabs

    def claim(self, count: int) -> Run[W] | None:
        """Claim slabs one after the other; None where there are not so many.

        Raises:
            OSError: the system refuses to map them.
        """
        if not 0 < count <= self.pool.layout.slabs or not self.has_slot:
            return None
        start = self.luck.randrange(self.pool.layout.slabs)
        for _ in range(TRIES_MAX):
            first = find_run(self._used(), count, start)
            if first is None:
                return None
            self._claims[first : first + count] = True
            self._write_bits(first, count)
            self.pool.fence()
            if not self._used_by_others()[first : first + count].any():
                layout = self.pool.layout
                return Run(first, count, self.pool.window(layout.slab_at(first), count * layout.slab_bytes))
            self._claims[first : first + count] = False
            self._write_bits(first, count)
            start = self.luck.randrange(self.pool.layout.slabs)
        return None

    def free(self, run: Run[W]) -> None:
        """Claim slabs no more; whoever holds them keeps others from claiming them."""
        self._claims[run.first : run.first + run.count] = False
        if self.has_slot:
            self._write_bits(run.first, run.count)

    def hold(self, first: int, count: int) -> None:
        """Keep others from using slabs anew while they are looked at; to be done before it is looked whose they are."""
        self._holds[first : first + count] += 1
        self._write_bits(first, count)
        self.pool.fence()

    def let_go(self, first: int, count: int) -> None:
        """Look at them no more."""
        self._holds[first : first + count] -= 1
        if self.has_slot:
            self._write_bits(first, count)

    @property
    def free_slabs(self) -> int:
        """How many slabs nobody claims or holds."""
        return int((~self._used()).sum())

    def _used(self) -> NDArray[np.bool_]:
        return self._used_by_others() | self._claims | (self._holds > 0)

    def _used_by_others(self) -> NDArray[np.bool_]:
        return union_of(list(self._bits_of_others()), self.pool.layout.slabs)

    def _bits_of_others(self) -> Iterator[bytes]:
        layout = self.pool.layout
        for slot in range(layout.slots):
            head = self.head_of(slot)
            if slot != self.slot and (head is None or head.state is not SlotState.FREE):
                both = self.pool.read(layout.claims_at(slot), 2 * layout.bits_bytes)
                yield both[: layout.bits_bytes]
                yield both[layout.bits_bytes :]

    def _write_bits(self, first: int, count: int) -> None:
        """Write the bytes in which the bits of some slabs stand, from what this owner knows itself."""
        if self._window is None:
            return
        begin, end = first // 8, -(-(first + count) // 8)
        for offset, bits in ((0, self._claims), (self.pool.layout.bits_bytes, self._holds > 0)):
            packed = np.packbits(bits[8 * begin : 8 * end], bitorder="little").tobytes()
            self._window.write(PAGE_BYTES + offset + begin, packed)


def find_run(used: NDArray[np.bool_], count: int, start: int) -> int | None:
    """The first of `count` unused slabs one after the other, looked for from `start` on and then from the beginning."""
    padded = np.concatenate(([True], used, [True]))
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    begins, ends = edges[::2], edges[1::2]
    fits = np.flatnonzero(ends - np.maximum(begins, np.minimum(start, ends)) >= count)
    if len(fits):
        return int(max(begins[fits[0]], start))
    fits = np.flatnonzero(ends - begins >= count)
    return int(begins[fits[0]]) if len(fits) else None


def union_of(bits: Sequence[bytes], count: int) -> NDArray[np.bool_]:
    """The slabs that stand in any of several bit maps."""
    joined = np.zeros(-(-count // 8), np.uint8)
    for item in bits:
        joined |= np.frombuffer(item, np.uint8, len(joined))
    return np.unpackbits(joined, count=count, bitorder="little").astype(np.bool_)
