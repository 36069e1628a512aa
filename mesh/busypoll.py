"""Looks for a while whether something has come, before the event loop sleeps, where that is worth it.

A processor that has nothing to do stops, and to start it again takes tens of microseconds, on a virtual machine a hundred and
more, partly of whoever sends. Between two nodes that answer one another at once, that is a fourth of the time of a request. So a
loop that was woken soon after it slept, several times in a row, keeps looking for as long as that may take again; one that is
woken seldom sleeps at once and costs nothing. While it looks it gives way to whatever else wants the processor.

Source: Karlin et al., "Empirical Studies of Competitive Spinning for a Shared-Memory Multiprocessor" (SOSP 1991); Linux,
Documentation/virt/kvm/halt-polling.rst, which does the same for the processors of a virtual machine.
"""

import os
import select
import time
from collections.abc import Generator
from contextlib import contextmanager

import trio

from mesh.polling import Polling
from mesh.settingvalues import BUSY_POLL_US

BUSY_POLL_S = BUSY_POLL_US * 1e-6
"""Longest look in seconds unless told otherwise."""

_OF_LOOP = trio.lowlevel.RunVar["BusyPoll | None"]("busy_poll", None)


class BusyPoll(trio.abc.Instrument):
    """Looks before one event loop sleeps."""

    def __init__(self, look_s_max: float, loop: select.epoll) -> None:
        """Begin as if little happened.

        Args:
            look_s_max: the longest look, in seconds.
            loop: where the event loop is told of what has come.
        """
        self._polling = Polling(look_s_max)
        self._events = select.epoll()
        self._events.register(loop.fileno(), select.EPOLLIN)
        self._began_at = 0.0
        self.users = 0

    def before_io_wait(self, timeout: float) -> None:
        """Look, for as long as it may be worth; trio calls this before it sleeps for at most `timeout` seconds."""
        self._began_at = now = time.perf_counter()
        look_s = min(self._polling.budget_s, timeout)
        if look_s <= 0.0:
            return
        until, poll, give_way, clock = now + look_s, self._events.poll, os.sched_yield, time.perf_counter
        while not poll(0) and clock() < until:
            give_way()

    def after_io_wait(self, timeout: float) -> None:
        """Learn how long it took until something came; trio calls this after it has slept, or has not needed to."""
        if timeout > 0.0:
            self._polling.handle_wait(time.perf_counter() - self._began_at)

    def close(self) -> None:
        """Look no more."""
        self._events.close()


@contextmanager
def busy_polling(look_s_max: float) -> Generator[None]:
    """Look before this event loop sleeps, as long as the block lasts; the first who asks says for how long.

    Nothing happens where that is no time at all, where the process has one processor, which whoever is to send may need, or where
    trio does not wait by epoll.
    """
    looking = _OF_LOOP.get()
    if looking is None:
        loop = _loop_epoll() if look_s_max > 0.0 and len(os.sched_getaffinity(0)) > 1 else None
        if loop is None:
            yield
            return
        looking = BusyPoll(look_s_max, loop)
        _OF_LOOP.set(looking)
        trio.lowlevel.add_instrument(looking)
    looking.users += 1
    try:
        yield
    finally:
        looking.users -= 1
        if looking.users == 0:
            _OF_LOOP.set(None)
            trio.lowlevel.remove_instrument(looking)
            looking.close()


def _loop_epoll() -> select.epoll | None:
    """What the running loop waits by; trio has no public name for it."""
    from trio._core._run import GLOBAL_RUN_CONTEXT

    found = getattr(GLOBAL_RUN_CONTEXT.runner.io_manager, "_epoll", None)
    return found if isinstance(found, select.epoll) else None
