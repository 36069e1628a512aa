"""A ring of small entries in shared memory with a bell: one side writes, the other reads.

Each side owns an outbox, which only it can write: a head of two counters and 64-byte entries. The first counter says how many
entries were ever written, the second how many of the other's outbox were read, which is how the other side knows what is free. A
writer who has put something in rings the reader's bell, an eventfd that trio waits on; the system calls of ringing and hearing
order the memory on every processor.

What the other side writes is not trusted: an entry is copied before it is looked at, and counters that cannot be end the session.

Source: eventfd(2).
Spec: docs/spec/11-fabric.md, section "Shared memory".
"""

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from mesh.fabric.memory import Region, make_region, map_for_reading, sealed_size
from protocol.errors import ErrorCode, RemoteProtocolError

ENTRIES_MAX = 1023
"""Entries of an outbox, a count: with the head 64 KiB, one for each of a thousand tensors under way."""

ENTRY_BYTES = 64
"""Size of an entry and of the head in bytes: a cache line."""

RING_BYTES = (ENTRIES_MAX + 1) * ENTRY_BYTES
"""Size of an outbox in bytes."""

_HEAD = struct.Struct("<Q")
_ENTRY = struct.Struct("<IIQQQQ")
# Where the second counter stands, in bytes from the start.
_READ_AT = 8


class Word(IntEnum):
    """What an entry says; the numbers stand in memory that two versions may share."""

    RELEASED = 1  # the lease of this region and epoch is over
    OFFERED = 2  # bytes lie there, with this epoch
    TAKEN = 3
    REFUSED = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: a word about a lease of a region, with its place for an offer, and a number that the sides agree about."""

    word: int
    region: int
    epoch: int
    offset: int = 0
    length: int = 0
    number: int = 0


class Outbox:
    """This side's entries."""

    def __init__(self, other_bell: int) -> None:
        """Makes the memory.

        Args:
            other_bell: descriptor of the eventfd that wakes the reader; not closed here.

        Raises:
            OSError: the system refuses.
        """
        self.region: Region = make_region(RING_BYTES)
        self.other_bell = other_bell
        self._map = self.region.map
        self._written = 0

    def put(self, entry: Entry, read_by_other: int) -> bool:
        """Write an entry and ring; False where the ring is full, because the reader does not read.

        Args:
            entry: what to say.
            read_by_other: how many entries the reader says it has read.
        """
        if self._written - read_by_other >= ENTRIES_MAX:
            return False
        at = ENTRY_BYTES * (1 + self._written % ENTRIES_MAX)
        _ENTRY.pack_into(self._map, at, entry.word, entry.region, entry.epoch, entry.offset, entry.length, entry.number)
        self._written += 1
        _HEAD.pack_into(self._map, 0, self._written)
        self.ring()
        return True

    def acknowledge(self, read: int) -> None:
        """Say how many entries of the other side were read."""
        _HEAD.pack_into(self._map, _READ_AT, read)

    @property
    def written(self) -> int:
        """How many entries were ever written."""
        return self._written

    def ring(self) -> None:
        """Wake the reader; a bell that has rung so often that it is full wakes it, too."""
        with suppress(BlockingIOError):
            os.eventfd_write(self.other_bell, 1)


class Inbox:
    """The other side's entries, read-only."""

    def __init__(self, descriptor: int) -> None:
        """Maps the outbox of the other side; the descriptor may be closed afterwards.

        Raises:
            RemoteProtocolError: it is no outbox.
        """
        size = sealed_size(descriptor)
        if size != RING_BYTES:
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"a ring of {size} bytes")
        self._map: mmap.mmap = map_for_reading(descriptor, size)
        self.read = 0

    def acknowledged(self, written: int) -> int:
        """How many of this side's entries the other says it has read.

        Raises:
            RemoteProtocolError: more than were written.
        """
        count = int(_HEAD.unpack_from(self._map, _READ_AT)[0])
        if count > written or written - count > ENTRIES_MAX:
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"{count} of {written} entries are said to be read")
        return count

    def entries(self) -> Iterator[Entry]:
        """What is there and was not read yet.

        Raises:
            RemoteProtocolError: the other side has written more than there is room for, or its count went back.
        """
        written = int(_HEAD.unpack_from(self._map, 0)[0])
        if not 0 <= written - self.read <= ENTRIES_MAX:
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"a ring with {written} entries after {self.read}")
        while self.read < written:
            at = ENTRY_BYTES * (1 + self.read % ENTRIES_MAX)
            entry = Entry(*_ENTRY.unpack(self._map[at : at + _ENTRY.size]))  # the slice is a copy
            self.read += 1
            yield entry


def make_bell() -> int:
    """An eventfd that does not block.

    Raises:
        OSError: the system refuses.
    """
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def check_bell(descriptor: int) -> None:
    """See that what was passed is an eventfd.

    Raises:
        RemoteProtocolError: it is something else, to which this process would write what it must not.
    """
    try:
        kind = str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError as error:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a bell that cannot be looked at: {error.strerror}") from None
    if kind != "anon_inode:[eventfd]":
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a bell that is {kind[:40]}")
