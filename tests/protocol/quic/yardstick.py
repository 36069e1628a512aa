"""Processor time in a measure that no machine changes: what a full datagram of honest stream data costs, taken there and then.

How long a datagram takes depends on the machine and on what else runs there, and so does how long an honest one takes. Tests that
bound the cost of hostile bytes therefore read a clock that runs by honest datagrams; the endpoints under test are given the same.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from hostile import DIALLER, Hostile, stream_frame

HONEST_S = 60e-6
"""Seconds of the clock for an honest datagram: what aioquic takes for one on the machine by which the bounds were chosen."""

DATAGRAM_S_MAX = 150 * HONEST_S
"""Seconds of the clock that one datagram may take, 9 ms: the dearest that is let through takes as long as some 70 honest ones."""

DATAGRAMS = 60
"""Of these the cheapest counts: whatever else ran at the time made the others dearer."""


def steady_clock() -> Callable[[], float]:
    """Return a clock of this thread's processor time on which an honest datagram takes `HONEST_S` on every machine."""
    factor = pace()
    return lambda: time.thread_time() * factor


def pace() -> float:
    """Return how many seconds of the clock a second of processor time is at present."""
    hostile = Hostile("a")
    hostile.exchange()
    return HONEST_S / min(honest_s(hostile, 1000 * number) for number in range(DATAGRAMS))


def honest_s(hostile: Hostile, offset: int) -> float:
    """Send a full datagram of stream data and return what it took, its answer included, in seconds of this machine."""
    data = hostile.packet(stream_frame(0, offset, bytes(1000)) + bytes(250))
    began = time.thread_time()
    hostile.victim.handle_datagram(data, DIALLER, hostile.now)
    hostile.drain()
    hostile.now += 0.001
    return time.thread_time() - began


def dearest_s(runs: Iterable[Sequence[float]]) -> float:
    """Return the longest that a step took, of each the least of several runs: what is left is what the bytes cost."""
    return max(min(step) for step in zip(*runs, strict=False))
