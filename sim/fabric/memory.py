"""The memory of two nodes as a fabric shows it, with its faults and with what must never happen.

It stands for what hardware does: it lets nobody past a lease that is not bound, and it may fail, be late or carry other bytes. It
remembers what was given under which epoch, so that a reader who sees anything else has used a lease past its time.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.fabric import Lease, Rights


class FabricError(Exception):
    """The fabric does not carry."""


class BrokenPromiseError(AssertionError):
    """Something has happened that the specification rules out."""


@dataclass(slots=True)
class Memory:
    """The regions of one node.

    Attributes:
        luck: draws faults.
        corrupt_share: how often bytes arrive changed.
        refused: accesses that the hardware has turned away.
        accesses: all accesses.
    """

    luck: random.Random
    corrupt_share: float = 0.0
    refused: int = 0
    accesses: int = 0
    corrupted: int = 0
    _regions: dict[int, bytearray] = field(default_factory=dict[int, bytearray])
    _bound: dict[int, Lease] = field(default_factory=dict[int, Lease])
    _given: dict[tuple[int, int], bytes] = field(default_factory=dict[tuple[int, int], bytes])
    _retired: set[int] = field(default_factory=set[int])

    def add(self, region: int, size_bytes: int) -> None:
        """Makes a region."""
        self._regions[region] = bytearray(size_bytes)

    def bind(self, lease: Lease) -> None:
        """Lets the peer in by a lease; the one before is no way in any more."""
        if lease.region in self._retired:
            raise BrokenPromiseError(f"region {lease.region} is leased after it was retired")
        self._bound[lease.region] = lease

    def unbind(self, lease: Lease) -> None:
        """Invalidates a lease."""
        if self._bound.get(lease.region) == lease:
            del self._bound[lease.region]

    def admits(self, lease: Lease) -> bool:
        """Whether a lease is a way in to write now."""
        return self._bound.get(lease.region) == lease and lease.rights is Rights.WRITE

    def retire(self, region: int) -> None:
        """The region is never written or leased again."""
        self._retired.add(region)

    def fill(self, lease: Lease, pieces: Sequence[tuple[int, bytes]]) -> None:
        """The owner puts bytes where its own lease of the region begins, before it offers them."""
        if lease.region in self._retired:
            raise BrokenPromiseError(f"region {lease.region} is written after it was retired")
        for offset, data in pieces:
            self._put(lease, offset, data)
        self._given[lease.region, lease.epoch] = bytes(self._regions[lease.region])

    def write(self, lease: Lease, offset: int, data: bytes) -> None:
        """The peer writes by a lease.

        Raises:
            FabricError: the hardware turns it away.
        """
        self.accesses += 1
        allowed = self._bound.get(lease.region) == lease and lease.rights is Rights.WRITE and lease.covers(offset, len(data))
        if not allowed:
            self.refused += 1
            raise FabricError("remote access error")
        self._put(lease, offset, self._carried(data))

    def read(self, lease: Lease, offset: int, length: int) -> bytes:
        """The peer reads by a lease; the bytes must be those of the lease's epoch."""
        self.accesses += 1
        region = self._regions[lease.region]
        if not lease.covers(offset, length) or lease.offset + lease.length > len(region):
            raise BrokenPromiseError(f"{length} bytes at {offset} are read of a lease of {lease.length}")
        begins = lease.offset + offset
        seen = bytes(region[begins : begins + length])
        given = self._given.get((lease.region, lease.epoch))
        if given is None or seen != given[begins : begins + length]:
            raise BrokenPromiseError(f"region {lease.region} is read by epoch {lease.epoch} when it holds another one's bytes")
        return self._carried(seen)

    def own(self, lease: Lease, offset: int, length: int) -> bytes:
        """The owner reads what a peer has written, once that cannot write any more."""
        if lease.region in self._bound:
            raise BrokenPromiseError(f"region {lease.region} is read while the peer can write to it")
        begins = lease.offset + offset
        return bytes(self._regions[lease.region][begins : begins + length])

    def _put(self, lease: Lease, offset: int, data: bytes) -> None:
        begins = lease.offset + offset
        if begins < lease.offset or begins + len(data) > lease.offset + lease.length:
            raise BrokenPromiseError(f"{len(data)} bytes at {offset} are written of a lease of {lease.length}")
        before = len(self._regions[lease.region])
        self._regions[lease.region][begins : begins + len(data)] = data
        if len(self._regions[lease.region]) != before:
            raise BrokenPromiseError("a write has moved the end of a region")

    def _carried(self, data: bytes) -> bytes:
        if not data or self.luck.random() >= self.corrupt_share:
            return data
        self.corrupted += 1
        spoilt = bytearray(data)
        spoilt[self.luck.randrange(len(spoilt))] ^= 1 << self.luck.randrange(8)
        return bytes(spoilt)
