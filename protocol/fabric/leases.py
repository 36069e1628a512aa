"""Leases as both sides keep them: the owner's book of its regions, and the holder's table of a peer's.

The owner gives out one lease of a region at a time, each in a greater epoch. A region whose lease ran out without a word of its
holder is retired: it is never leased again, because the holder may still look at it. The holder takes a lease only of a region
that it was shown, inside its bounds, with the rights for what it means to do, and of an epoch greater than all before: so neither
an old offer told again nor one that was taken back can be used. Sessions with one peer that follow one another number their
regions on: an offer that is on its way while a fabric is opened anew is of a region that the new session does not know.

Spec: docs/spec/11-fabric.md, section "Leases".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.fabric.values import BYTES_MAX, EPOCH_MAX, REGION_MAX, FabricConfig, Lease, Rights


@dataclass(slots=True)
class _Owned:
    """A region of this node: its size, its epoch, and its lease with the time at which it ends."""

    size_bytes: int
    epoch: int = 0
    lease: Lease | None = None
    ends_at: float = 0.0


class LeaseBook:
    """The regions that one peer is shown, as their owner keeps them."""

    def __init__(self, config: FabricConfig, numbers: Iterator[int] | None = None) -> None:
        """Begins without regions.

        Args:
            config: bounds.
            numbers: of new regions, shared by all sessions with a peer; from 0 on where there is but one.
        """
        self._config = config
        self._regions: dict[int, _Owned] = {}
        self._numbers = count() if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._regions)

    @property
    def size_bytes(self) -> int:
        """Bytes of all regions."""
        return sum(region.size_bytes for region in self._regions.values())

    def add(self, size_bytes: int) -> int | None:
        """Take a new region into the book and return its number; None where the peer has as much as it may have."""
        if not 0 < size_bytes <= BYTES_MAX:
            raise LocalProtocolError(ErrorCode.TOO_LARGE, f"a region of {size_bytes} bytes")
        full = len(self._regions) >= self._config.regions_max
        if full or self.size_bytes + size_bytes > self._config.mapped_bytes_max:
            return None
        number = next(self._numbers)
        if number > REGION_MAX:
            raise LocalProtocolError(ErrorCode.TOO_LARGE, "more regions than there are numbers")
        self._regions[number] = _Owned(size_bytes)
        return number

    def drop(self, region: int) -> None:
        """A region is gone; its number does not come again."""
        self._regions.pop(region, None)

    def grant(
        self, region: int, offset: int, length: int, rights: Rights, lifetime_s: float, now: float, key: bytes = b""
    ) -> Lease:
        """Lease a part of a region that nobody holds a lease of.

        Raises:
            LocalProtocolError: the region is not there, is leased, or has no such part.
        """
        owned = self._regions.get(region)
        if owned is None or owned.lease is not None:
            raise LocalProtocolError(ErrorCode.STALE_LEASE, f"region {region} is {'gone' if owned is None else 'leased'}")
        if offset < 0 or length < 0 or offset + length > owned.size_bytes:
            raise LocalProtocolError(ErrorCode.OUT_OF_BOUNDS, f"{length} bytes at {offset} of {owned.size_bytes}")
        if rights not in (Rights.READ, Rights.WRITE):
            raise LocalProtocolError(ErrorCode.OUT_OF_BOUNDS, "a lease is to read or to write")
        assert owned.epoch < EPOCH_MAX
        owned.epoch += 1
        owned.lease = Lease(region, owned.epoch, offset, length, rights, lifetime_s, key)
        owned.ends_at = now + lifetime_s + self._config.lease_grace_s
        return owned.lease

    def holds(self, lease: Lease, now: float) -> bool:
        """Whether a lease is the one that holds, so that what is done by it counts."""
        owned = self._regions.get(lease.region)
        return owned is not None and owned.lease == lease and now < owned.ends_at

    def end(self, lease: Lease) -> bool:
        """End a lease whose holder is done with it; False where it was not the one that holds."""
        owned = self._regions.get(lease.region)
        if owned is None or owned.lease != lease:
            return False
        owned.lease = None
        return True

    def expired(self, now: float) -> list[int]:
        """The regions whose leases ran out without a word; they are to be retired, in the order of their numbers."""
        return sorted(number for number, owned in self._regions.items() if owned.lease is not None and now >= owned.ends_at)

    def next_timer(self) -> float | None:
        """When the next lease runs out."""
        return min((owned.ends_at for owned in self._regions.values() if owned.lease is not None), default=None)


@dataclass(slots=True)
class _Shown:
    """A region of a peer: its size, and the greatest epoch that was taken."""

    size_bytes: int
    epoch: int = 0


class RegionTable:
    """The regions of one peer that this node was shown, as their user keeps them."""

    def __init__(self, config: FabricConfig) -> None:
        """Begins without regions."""
        self._config = config
        self._regions: dict[int, _Shown] = {}

    def __len__(self) -> int:
        return len(self._regions)

    def __contains__(self, region: int) -> bool:
        return region in self._regions

    @property
    def size_bytes(self) -> int:
        """Bytes of all regions."""
        return sum(region.size_bytes for region in self._regions.values())

    def show(self, region: int, size_bytes: int) -> None:
        """Take in a region that the peer shows; `size_bytes` is what it really has, as the kernel tells it.

        Raises:
            RemoteProtocolError: TOO_LARGE past the peer's limits, MALFORMED for a number that is there already.
        """
        if region in self._regions:
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"region {region} comes twice")
        if len(self._regions) >= self._config.regions_max:
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"more than {self._config.regions_max} regions")
        if not 0 < size_bytes <= self._config.mapped_bytes_max - self.size_bytes:
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a region of {size_bytes} bytes past the limit")
        self._regions[region] = _Shown(size_bytes)

    def hide(self, region: int) -> None:
        """A region is gone."""
        self._regions.pop(region, None)

    def take(self, lease: Lease, rights: Rights) -> None:
        """Check a lease and take its epoch; an earlier one is void from now on.

        Raises:
            RemoteProtocolError: STALE_LEASE for a region that is not there or an epoch that is not greater; OUT_OF_BOUNDS.
        """
        shown = self._regions.get(lease.region)
        if shown is None:
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"region {lease.region} was not shown")
        if lease.epoch <= shown.epoch:
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"epoch {lease.epoch} after {shown.epoch}")
        if lease.rights != rights:
            raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, f"a lease for {lease.rights!r}")
        if lease.offset < 0 or lease.length < 0 or lease.offset + lease.length > shown.size_bytes:
            raise RemoteProtocolError(
                ErrorCode.OUT_OF_BOUNDS, f"{lease.length} bytes at {lease.offset} of a region of {shown.size_bytes}"
            )
        shown.epoch = lease.epoch
