"""A link emulator in user space: UDP datagrams between nodes on one machine, delayed, jittered and lost per pair, without root.

Node j is known to the others by an announced address V_j, at which this process listens; it really listens at R_j. A datagram
that arrives at V_j from R_i waits for the delay of the path i -> j and leaves from V_i to R_j, so that j sees V_i as its peer,
and answers to it. Senders that are no node of the mesh are not served.

One thread does it all: a heap of datagrams by the time they are due, and `select`, which unlike `epoll` in Python takes
microseconds. The delay counts from the kernel's receive timestamp, so that the time a datagram waited for this process is not
added to it. A path keeps its order, as a queue does. Nothing leaves early; how late it leaves is up to the scheduler: measured
on two cores under a load of 3.5, a median of 40 to 140 microseconds, and 3 to 6 milliseconds in one of a hundred. The process
reports its own lateness when it ends.

It runs as a process of its own (`python link.py`): one line of JSON on stdin says what to emulate, "ready" is answered on
stdout, and the end of stdin is the end of the process, so that it cannot outlive who started it.

Source: the `tc-netem` manual page for the model (normal jitter, independent loss).
"""

import ctypes
import heapq
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

DATAGRAM_BYTES_MAX = 9216
"""Longest datagram in bytes: a jumbo frame's; a longer one is dropped and counted."""
IN_FLIGHT_MAX = 65536
"""Datagrams that wait at once; then new ones are dropped, as at a full queue. At 1,200 bytes they are 80 MiB."""
BURST = 32
"""Datagrams read from one socket before due ones are sent: keeps a flood on one path from delaying the others."""
SOCKET_BUFFER_BYTES = 4 << 20
"""Receive buffer asked for: a burst of 3,000 full datagrams while this process is not scheduled."""
LATENESS_SAMPLES_MAX = 1 << 16
"""Last forwarded datagrams whose lateness is kept for the report."""

# Linux: option and message number of SOL_SOCKET that stamp each datagram with a struct timespec (asm-generic/socket.h).
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@qq")
# prctl(2) PR_SET_TIMERSLACK, which is 50 microseconds unless it is set.
_PR_SET_TIMERSLACK = 29

Address = tuple[str, int]


@dataclass(slots=True)
class Counters:
    """What happened to datagrams so far."""

    forwarded: int = 0
    lost: int = 0
    dropped: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """What to emulate: `announced[i]` is V_i, `real[i]` is R_i, `links[i][j]` is (delay_s, jitter_s, loss) from i to j."""

    announced: Sequence[Address]
    real: Sequence[Address]
    links: Sequence[Sequence[tuple[float, float, float]]]
    seed: int = 0

    def to_json(self) -> str:
        """Return the line for the process's stdin."""
        return json.dumps({"announced": self.announced, "real": self.real, "links": self.links, "seed": self.seed})

    @classmethod
    def from_json(cls, text: str) -> "LinkSpec":
        """Read that line back."""
        values: Mapping[str, Any] = json.loads(text)
        return cls(
            [(str(host), int(port)) for host, port in values["announced"]],
            [(str(host), int(port)) for host, port in values["real"]],
            [[(float(delay), float(jitter), float(loss)) for delay, jitter, loss in row] for row in values["links"]],
            int(values["seed"]),
        )


@dataclass(slots=True)
class Emulator:
    """The emulator; its sockets are bound when it is made.

    Raises:
        OSError: if an announced address cannot be bound.
    """

    spec: LinkSpec
    in_flight_max: int = IN_FLIGHT_MAX
    counters: Counters = field(default_factory=Counters)
    _sockets: list[socket.socket] = field(default_factory=list)
    _node_at: dict[Address, int] = field(default_factory=dict)
    _queue: list[tuple[float, int, int, int, bytes]] = field(default_factory=list)
    _last_due: dict[tuple[int, int], float] = field(default_factory=dict)
    _lateness: "array[float]" = field(default_factory=lambda: array("f"))
    _order: int = 0
    _luck: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._luck = random.Random(self.spec.seed)  # noqa: S311  # loss and jitter are no secrets
        self._node_at = {address: index for index, address in enumerate(self.spec.real)}
        try:
            for address in self.spec.announced:
                opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._sockets.append(opened)
                opened.setblocking(False)
                opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
                opened.bind(address)
        except OSError:
            self.close()
            raise

    @property
    def addresses(self) -> list[Address]:
        """The announced addresses as bound, in the order of the nodes."""
        return [bound.getsockname() for bound in self._sockets]

    def close(self) -> None:
        """Close the sockets."""
        for opened in self._sockets:
            opened.close()

    def serve(self, stop: int) -> None:
        """Forward until the file descriptor `stop` can be read or has ended."""
        index_of = {opened.fileno(): index for index, opened in enumerate(self._sockets)}
        watched = [stop, *index_of]
        while True:
            wait_s = max(0.0, self._queue[0][0] - time.monotonic()) if self._queue else None
            readable, _, _ = select.select(watched, (), (), wait_s)
            if stop in readable:
                return
            self._send_due()
            for descriptor in readable:
                self._receive(index_of[descriptor])
                self._send_due()

    def _receive(self, target: int) -> None:
        """Read what arrived at V_target and put it on its path."""
        opened = self._sockets[target]
        wall_to_monotonic = time.monotonic() - time.time()
        for _ in range(BURST):
            try:
                data, ancillary, flags, sender = opened.recvmsg(DATAGRAM_BYTES_MAX, 64)
            except BlockingIOError:
                return
            source = self._node_at.get(sender)
            if source is None:
                self.counters.unknown += 1
                continue
            delay_s, jitter_s, loss = self.spec.links[source][target]
            if loss and self._luck.random() < loss:
                self.counters.lost += 1
                continue
            if flags & socket.MSG_TRUNC or len(self._queue) >= self.in_flight_max:
                self.counters.dropped += 1
                continue
            now = time.monotonic()
            arrived = now
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(content) == _TIMESPEC.size:
                    seconds, nanoseconds = _TIMESPEC.unpack(content)
                    # Never in the future, whatever a step of the wall clock does.
                    arrived = min(now, max(seconds + nanoseconds * 1e-9 + wall_to_monotonic, now - 1.0))
            due = arrived + (max(0.0, self._luck.gauss(delay_s, jitter_s)) if jitter_s else delay_s)
            due = max(due, self._last_due.get((source, target), 0.0))
            self._last_due[source, target] = due
            self._order += 1
            heapq.heappush(self._queue, (due, self._order, source, target, data))

    def _send_due(self) -> None:
        """Send everything whose time has come."""
        while self._queue and self._queue[0][0] <= (now := time.monotonic()):
            due, _, source, target, data = heapq.heappop(self._queue)
            try:
                self._sockets[source].sendto(data, self.spec.real[target])
            except OSError:
                # A full send buffer or a node that has gone: the network loses such datagrams too.
                self.counters.dropped += 1
                continue
            late = now - due
            if len(self._lateness) < LATENESS_SAMPLES_MAX:
                self._lateness.append(late)
            else:
                self._lateness[self.counters.forwarded % LATENESS_SAMPLES_MAX] = late
            self.counters.forwarded += 1

    def report(self) -> dict[str, float]:
        """Return the counters and the lateness of forwarded datagrams in microseconds."""
        lateness = sorted(self._lateness) or [0.0]
        return {
            "forwarded": self.counters.forwarded,
            "lost": self.counters.lost,
            "dropped": self.counters.dropped,
            "unknown": self.counters.unknown,
            "late_p50_us": round(lateness[len(lateness) // 2] * 1e6, 1),
            "late_p99_us": round(lateness[int(len(lateness) * 0.99)] * 1e6, 1),
            "late_max_us": round(lateness[-1] * 1e6, 1),
        }


def main() -> int:
    """Emulate what one line on stdin says until stdin ends; print "ready" and, at the end, a report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is the starter's to handle, which then closes stdin
    with suppress(OSError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    with suppress(OSError):  # it waits nearly always, and a moment too late is distance to those whom it serves
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        emulator = Emulator(LinkSpec.from_json(sys.stdin.readline()))
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_UNAVAILABLE
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    emulator.serve(sys.stdin.fileno())
    emulator.close()
    sys.stdout.write(json.dumps(emulator.report()) + "\n")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
