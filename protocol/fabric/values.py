"""The words of the fabric: kinds, rights, leases, where tensors lie, and every bound.

A *fabric* is memory that two nodes reach without a network stack between them. A *region* is a piece of it that one node owns and
another may use; a *lease* says which part of a region, how, for how long, and in which epoch.

Spec: docs/spec/11-fabric.md.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag

REGION_MAX = 2**32 - 1
"""Largest number of a region, unitless: 32 bits, far more than are ever made in one session."""

EPOCH_MAX = 2**63 - 1
"""Largest epoch of a region, unitless: it grows by one with each lease and never comes again."""

BYTES_MAX = 2**46
"""Largest offset or length in bytes: 64 TiB, what a pool of CXL memory may have one day."""

LIFETIME_S_MAX = 3700.0
"""Longest lease in seconds: the longest deadline of a request (an hour), and what it takes to give back."""

KEY_BYTES_MAX = 72
"""Longest key of a lease in bytes: that of RDMA has 13 at the most, a token of a GPU's memory 64, and the tag of the GPU 8."""

TENSORS_MAX = 32
"""Most tensors of one transfer: as many as a request has (chapter 6)."""

DIMENSIONS_MAX = 8
"""Most dimensions of a tensor (chapter 6)."""

NAME_BYTES_MAX = 256
"""Longest name of a tensor in bytes (chapter 6)."""

ALIGNMENT_BYTES = 64
"""Offsets of tensors are multiples of so many bytes: a cache line, and what vector units of today want."""


class Kind(IntEnum):
    """The fabrics, in the order in which they are preferred; the numbers stand on the wire.

    The last reaches tensors that lie on a device, for which it comes first, and no others.
    """

    SHM = 1  # memory of one host, passed as a descriptor
    CXL = 2  # a pool that both hosts map
    RDMA = 3  # RoCE v2 or InfiniBand
    GPU = 4  # memory of a GPU that both processes use


def reaches_devices(kind: Kind) -> bool:
    """Whether tensors that lie on a device take this kind of fabric; all others take the other kinds."""
    return kind is Kind.GPU


class Rights(IntFlag):
    """What the holder of a lease may do. Never both, and no atomics: what can be written is never read, or both ways leak."""

    READ = 1
    WRITE = 2


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one peer to a part of one region, for a time.

    Attributes:
        region: which one, by the number that its owner gave it in this session.
        epoch: which use of the region; greater with each lease.
        offset: where it begins, in bytes from the start of the region.
        length: how many bytes.
        rights: what the holder may do.
        lifetime_s: how long it holds, in seconds from when it is received; the owner waits longer.
        key: what the hardware wants to see, empty for memory that is mapped.
    """

    region: int
    epoch: int
    offset: int
    length: int
    rights: Rights
    lifetime_s: float
    key: bytes = b""

    def covers(self, offset: int, length: int) -> bool:
        """Whether `length` bytes at `offset`, counted from the start of the lease, lie inside it."""
        return offset >= 0 and length >= 0 and offset + length <= self.length


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of a transfer: what it is, and where it lies, in bytes from the start of the lease."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class FabricConfig:
    """What fabrics may cost and how long is waited for them.

    Attributes:
        take_s: how long the giver waits for what it offered to be taken before it sends the bytes by the stream. Half of the
            200 ms within which a request must have fallen back, so that a late timer keeps the promise.
        lease_grace_s: how much longer than its lifetime the owner keeps a lease: the offer's time under way.
        lease_slack_s: how much longer than the request's deadline a lease holds: the answer's way back.
        offers_per_s: transfers that a peer may offer, on average.
        offers_burst: and at once.
        offers_debt_max: offers past the budget after which the peer floods.
        regions_max: regions of one peer that are mapped at a time.
        mapped_bytes_max: bytes of one peer that are mapped at a time.
        closed_s: how long a peer's fabric stays closed after its first error; twice as long after each further one.
        closed_s_max: but no longer.
        peers_max: peers of which anything is remembered; who is used the longest ago is forgotten first.
        bulk_bytes_max: most bytes of one transfer that may come by the stream when the fabric has failed.
        bulk_frame_bytes_max: most of them in one frame.
    """

    take_s: float = 0.1
    lease_grace_s: float = 2.0
    lease_slack_s: float = 5.0
    offers_per_s: float = 2000.0
    offers_burst: float = 500.0
    offers_debt_max: float = 2000.0
    regions_max: int = 64
    mapped_bytes_max: int = 8 * 2**30
    closed_s: float = 30.0
    closed_s_max: float = 600.0
    peers_max: int = 1024
    bulk_bytes_max: int = 64 * 2**20
    bulk_frame_bytes_max: int = 2**20


def item_bytes(dtype: str) -> int:
    """The size of one element in bytes, from numpy's short name, which ends with it."""
    return int(dtype[1:])
