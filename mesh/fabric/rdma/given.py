"""Tensors that are given by RDMA, until the peer has leased memory for them, and how much of it an offer asks for.

Spec: docs/spec/11-fabric.md, section "RDMA".
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Lease, Place
from protocol.fabric.messages import Offer
from protocol.fabric.values import ALIGNMENT_BYTES
from protocol.inference import Tensor, are_on_host, on_host


@dataclass(eq=False, slots=True)
class RdmaGiven:
    """Tensors that are to be written: they stay where they are until the peer has leased memory for them.

    Attributes:
        tensors: they; once the host has a copy of those on a device, that.
        places: of each in the lease.
        on_device: whether some of them lay on a device when they were given.
    """

    tensors: tuple[Tensor, ...]
    places: tuple[Place, ...]
    lease: Lease | None = None
    tag: bytes = b""
    on_device: bool = False

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Self:
        """One behind the other."""
        places, end = [], 0
        for tensor in tensors:
            places.append(Place(tensor.name, tensor.dtype, tensor.shape, end, tensor.size_bytes))
            end += -(-tensor.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return cls(tuple(tensors), tuple(places), on_device=not are_on_host(tensors))

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.length for place in self.places)

    @property
    def extent_bytes(self) -> int:
        """Bytes of the lease that they take."""
        return max((place.offset + place.length for place in self.places), default=0)

    def hold(self) -> None:
        """The tensors are kept by this object."""

    def let_go(self) -> None:
        """The tensors are kept by this object."""

    def bring_to_host(self) -> None:
        """Copy what lies on a device, once and for all; takes a while.

        Raises:
            OSError: the device fails.
        """
        self.tensors = on_host(self.tensors)

    def flat(self) -> Iterator[memoryview]:
        """The bytes of each tensor that has any, in order; they lie on the host."""
        return (flat(tensor.data) for tensor in self.tensors if tensor.data.nbytes)

    def pieces(self, bytes_max: int) -> Iterator[memoryview]:
        """All bytes of the tensors, in order, in pieces of at most so many."""
        self.bring_to_host()
        for view in self.flat():
            for start in range(0, len(view), bytes_max):
                yield view[start : start + bytes_max]

    def placed(self, bytes_max: int, is_wanted: Callable[[], bool]) -> Iterator[tuple[int, memoryview]]:
        """The bytes of tensors on the host, in order, as long as they are wanted.

        Args:
            bytes_max: of one piece.
            is_wanted: asked before each piece.

        Yields:
            Where in the lease a piece goes, and the piece.
        """
        for place, tensor in zip(self.places, self.tensors, strict=True):
            view = flat(tensor.data)
            for start in range(0, len(view), bytes_max):
                if not is_wanted():
                    return
                yield place.offset + start, view[start : start + bytes_max]


def extent_of(offer: Offer) -> int:
    """How many bytes a lease for an offer has: what its tensors take, one behind the other.

    Raises:
        RemoteProtocolError: OUT_OF_BOUNDS, they lie so far apart that memory would be locked for nothing.
    """
    extent = max((place.offset + place.length for place in offer.places), default=0)
    if extent > offer.size_bytes + ALIGNMENT_BYTES * len(offer.places):
        raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, f"tensors of {offer.size_bytes} bytes that are spread over {extent}")
    return max(1, extent)


def flat(data: memoryview) -> memoryview:
    """The bytes of a tensor one after the other."""
    if data.ndim == 1 and data.itemsize == 1 and data.c_contiguous:
        return data
    return data.cast("B") if data.nbytes else memoryview(b"")
