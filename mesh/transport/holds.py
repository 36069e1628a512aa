"""How long datagrams held the loop: what one peer's bytes cost all others, told as a metric.

Datagrams are handed to the endpoint in runs of one sender. The processor time of each run is taken, so that a program which the
system had put aside does not look slow, and the longest of the last seconds is kept, second by second. A run is cut short, so
that its mean is close to what its dearest datagram took.

Spec: docs/gateway.md, section "Metrics".
"""

import time
from collections.abc import Callable, Iterator, Sequence

from protocol.quic.events import Received

RUN_MAX = 8
"""Datagrams of one run, a count: as many as an endpoint's group usually has, few enough that their mean says something."""

SPAN_S = 10
"""How many seconds back the longest is looked for, a whole number: no less than what passes between two looks of a monitor."""


def runs(batch: Sequence[Received]) -> Iterator[Sequence[Received]]:
    """Cut a batch into runs of one sender, in order, at most `RUN_MAX` datagrams each."""
    start = 0
    for at in range(1, len(batch) + 1):
        if at == len(batch) or at - start == RUN_MAX or batch[at].address != batch[start].address:
            yield batch[start:at]
            start = at


class Holds:
    """The longest times of the last `SPAN_S` seconds, by the second; as long as any of its numbers is."""

    __slots__ = ("_clock", "_cpu", "_longest", "_seconds")

    def __init__(self, clock: Callable[[], float], cpu: Callable[[], float] = time.thread_time) -> None:
        """Begin with nothing.

        Args:
            clock: monotonic seconds.
            cpu: processor time of this thread in seconds.
        """
        self._clock = clock
        self._cpu = cpu
        self._seconds = [0] * SPAN_S
        self._longest = [0.0] * SPAN_S

    def take(self, batch: Sequence[Received], handle: Callable[[Sequence[Received], float], None]) -> None:
        """Have a batch handled run by run, and note how long a datagram of each took.

        Args:
            batch: what came, in order.
            handle: takes a run and the time at which it is handed over.
        """
        for run in runs(batch):
            began_s = self._cpu()
            handle(run, self._clock())
            self.note((self._cpu() - began_s) / len(run))

    def note(self, took_s: float) -> None:
        """Note what one datagram took."""
        second = int(self._clock())
        slot = second % SPAN_S
        if self._seconds[slot] != second:
            self._seconds[slot], self._longest[slot] = second, took_s
        elif took_s > self._longest[slot]:
            self._longest[slot] = took_s

    def longest_s(self) -> float:
        """The longest time of one datagram in the last `SPAN_S` seconds, in seconds of processor time."""
        newest = int(self._clock())
        pairs = zip(self._seconds, self._longest, strict=True)
        return max((longest for second, longest in pairs if newest - SPAN_S < second <= newest), default=0.0)
