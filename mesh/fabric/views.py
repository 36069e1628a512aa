"""Tensors that are read where a peer has put them, and how it is told when nothing looks at them any more."""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import trio
from numpy.typing import NDArray

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Lease, Place
from protocol.inference import Tensor

COPIED_BYTES_MAX = 64 * 1024
"""Tensors of whole numbers up to so many bytes are copied as they are taken (ISO-FAB-013): engines look up rows by them, and
check them before; copying so many takes some microseconds."""


def check_places(lease: Lease, places: Sequence[Place]) -> None:
    """See that all tensors lie in their lease.

    Raises:
        RemoteProtocolError: OUT_OF_BOUNDS, one does not.
    """
    for place in places:
        if not lease.covers(place.offset, place.length):
            raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, f"a tensor at {place.offset} of a lease of {lease.length}")


def view_tensors(whole: NDArray[np.uint8], places: Sequence[Place]) -> tuple[Tensor, ...]:
    """Tensors as views of a lease, which is alive for as long as any of them is; small ones of whole numbers are copied."""
    view = whole.data
    tensors = []
    for place in places:
        data = view[place.offset : place.offset + place.length]
        if place.dtype[0] in "iub" and place.length <= COPIED_BYTES_MAX:
            data = memoryview(bytes(data))
        tensors.append(Tensor(place.name, place.dtype, place.shape, data))
    return tuple(tensors)


class Returns:
    """Tells in trio's thread, and in order, of leases that nothing views any more."""

    __slots__ = ("_done", "_thread", "_token", "give_back")

    def __init__(self, give_back: Callable[[int, int], None]) -> None:
        """Begins; to be made in trio's thread.

        Args:
            give_back: hears of the region and the epoch.
        """
        self.give_back = give_back
        self._done: deque[tuple[int, int]] = deque()
        self._thread, self._token = threading.get_ident(), trio.lowlevel.current_trio_token()

    def watch(self, whole: NDArray[np.uint8], region: int, epoch: int) -> None:
        """Tell once nothing views an array any more."""
        weakref.finalize(whole, self._is_done, region, epoch).atexit = False

    def _is_done(self, region: int, epoch: int) -> None:
        """Nothing views a lease any more; this may be any thread, and in the middle of anything."""
        self._done.append((region, epoch))
        if threading.get_ident() == self._thread:
            self._tell()
        else:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._tell, idempotent=True)

    def _tell(self) -> None:
        while self._done:
            self.give_back(*self._done.popleft())
