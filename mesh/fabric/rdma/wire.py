"""One queue pair with its completion queue, as tasks use it: post a request, wait for its end.

Requests are numbered; `reap` polls the queue and hands each end to whoever waits. Who waits first looks at the queue for a
moment, if the device has been quick of late (`Polling`), and then sleeps; `run` wakes it, which trio wakes when the descriptor
of the completion channel becomes readable. The queue is armed before it is polled for the last time, so that nothing comes
between.

A request that fails stops the queue pair, as the hardware has it; whoever waits then is told the first failure.

Source: ibv_get_cq_event(3), section "Notes"; InfiniBand Architecture Specification 1.4, volume 1, section 10.10.
Spec: docs/spec/11-fabric.md, section "RDMA".
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter

import trio

from mesh.fabric.verbs.objects import (
    Access,
    Completion,
    Completions,
    Device,
    Did,
    Domain,
    Flag,
    Path,
    QueuePair,
    Region,
    Status,
    VerbsError,
    Window,
    Work,
    status_words,
)
from mesh.polling import Polling
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric.values import REGION_MAX

SENDS = 256
"""Requests on their way at the most, a count: of writes `WRITES_MAX`, and one for each window that is bound or taken back."""

WRITES_MAX = 128
"""Pieces on their way at the most, a count: 32 MiB, more than any network holds."""

RECEIVES = 128
"""Transfers that may be said to be written before this side has looked, a count: twice the regions that a peer may have."""

INLINE_BYTES = 220
"""Bytes that are wished to travel inside a request itself, so that the device need not fetch them: what most devices grant."""

PACKET_TIMEOUT = 12
"""Exponent of 4.096 us, so 17 ms: how long the device waits for a packet to be confirmed before it is sent again. A device may
take up to four times as long (InfiniBand specification, 9.9.2.1.1), which lets it make one lost packet good within `STALL_S`."""

RETRIES = 7
"""How often a packet is sent again, a count: the most there is. The device gives up after eight times `PACKET_TIMEOUT`, 134 ms,
or up to four times that; `STALL_S` ends it earlier."""

STALL_S = 0.1
"""How long nothing may come to its end while something is on its way, in seconds. Half of the 200 ms within which a request must
have fallen back (ISO-FAB-018); a piece of 256 KiB takes a fiftieth of it on a network of 1 Gbit/s."""

STOPPED = "the RDMA device has stopped the queue pair: the peer used a key that is not good, or the network has gone"
"""What is said where the first that is heard of a failure is that everything has ended."""

GREETING = REGION_MAX
"""Immediate of the write of nothing by which an opener sees that the other side is reached: the number of no region."""

RECEIVE_ID = 0
"""Number of all requests to receive; others count from 1."""


@dataclass(eq=False, slots=True)
class Operation:
    """A request that was posted: its end is there, or `ended` will be set."""

    posted_at: float
    is_write: bool
    on_end: Callable[["Operation"], None] | None = None
    end: Completion | None = None
    ended: trio.Event | None = None


@dataclass(eq=False, slots=True)
class Wire:
    """A queue pair in a protection domain of its own.

    Attributes:
        device: which it is on.
        port: of the device.
        on_written: told the immediate of each write of the other side.
        on_failed: told once why the queue pair has stopped.
    """

    device: Device
    port: int
    on_written: Callable[[int], None] = lambda _number: None
    on_failed: Callable[[str], None] = lambda _why: None
    failure: str = ""
    n_written_bytes: int = 0
    polling: Polling = field(default_factory=Polling)
    domain: Domain = field(init=False)
    completions: Completions = field(init=False)
    pair: QueuePair = field(init=False)
    _pending: dict[int, Operation] = field(init=False, default_factory=dict)
    _next: int = field(init=False, default=RECEIVE_ID + 1)
    _n_writes: int = field(init=False, default=0)
    _n_ended: int = field(init=False, default=0)
    _has_room: trio.Event = field(init=False, default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.domain = Domain(self.device)
        try:
            self.completions = Completions(self.device, SENDS + RECEIVES + 1)
            try:
                self.pair = QueuePair(self.domain, self.completions, SENDS, RECEIVES, INLINE_BYTES)
            except BaseException:
                self.completions.close()
                raise
        except BaseException:
            self.domain.close()
            raise

    def connect(self, path: Path, own_psn: int) -> None:
        """Connect to the other side, and let it say what it has written. Blocks for a moment.

        Raises:
            VerbsError: the device refuses.
        """
        self.pair.connect(path, own_psn, Access.REMOTE_WRITE, timeout=PACKET_TIMEOUT, retries=RETRIES)
        self.pair.receive(RECEIVE_ID, RECEIVES)

    async def greet(self) -> None:
        """See that the other side is reached, and that it confirms: it is told that nothing has been written.

        Nobody is told of a failure but who waits here.

        Raises:
            VerbsError: the queue pair has stopped.
            RemoteProtocolError: likewise, or nothing comes back.
        """
        on_failed, self.on_failed = self.on_failed, lambda _why: None
        try:
            greeting = await self.write((0, 0, 0), (0, 0), GREETING)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.run)
                with suppress(RemoteProtocolError):
                    await self.wait(greeting)
                nursery.cancel_scope.cancel()
        finally:
            self.on_failed = on_failed
        if self.failure:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, self.failure)

    # Requests

    def bind(self, window: Window, key: int, region: Region, part: tuple[int, int]) -> Operation:
        """Let the other side write to a part of a region, by address and size; it may when the request has ended.

        Raises:
            VerbsError: the queue pair has stopped.
            RemoteProtocolError: likewise.
        """
        number, operation = self._operation()
        self.pair.bind(number, window, key, region, part, Access.REMOTE_WRITE)
        self._pending[number] = operation
        return operation

    def invalidate(self, key: int, on_end: Callable[[Operation], None] | None = None) -> Operation:
        """Take a window's key back; it is worth nothing when the request has ended.

        Raises:
            VerbsError: the queue pair has stopped.
            RemoteProtocolError: likewise.
        """
        number, operation = self._operation(on_end)
        self.pair.invalidate(number, key)
        self._pending[number] = operation
        return operation

    async def write(
        self, piece: tuple[int, int, int], remote: tuple[int, int], immediate: int | None = None, *, on_device: bool = False
    ) -> Operation:
        """Post that a piece of memory is written to the other side; wait for room first.

        Args:
            piece: address, size in bytes and local key of the memory; nobody changes it before the request has ended.
            remote: address and remote key of where it goes.
            immediate: what the other side is told when it and all before it are there; None where it is told nothing.
            on_device: whether the piece lies where the processor cannot read it, so that it cannot travel inside the request.

        Raises:
            VerbsError: the queue pair has stopped.
            RemoteProtocolError: likewise, or nothing has moved for too long.
        """
        while self._n_writes >= WRITES_MAX and not self.failure:
            await self._moves(lambda: self._n_writes < WRITES_MAX)
        number, operation = self._operation(is_write=True)
        work = Work.WRITE if immediate is None else Work.WRITE_IMMEDIATE
        is_inline = piece[1] <= self.pair.inline_bytes and not on_device
        flags = Flag.SIGNALED | (Flag.INLINE if is_inline else Flag.NONE)
        self.pair.post(number, work, piece, remote, flags=flags, immediate=immediate or 0)
        self._pending[number] = operation
        self._n_writes += 1
        self.n_written_bytes += piece[1]
        return operation

    def _operation(self, on_end: Callable[[Operation], None] | None = None, *, is_write: bool = False) -> tuple[int, Operation]:
        if self.failure:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, self.failure)
        number = self._next
        self._next += 1
        return number, Operation(perf_counter(), is_write, on_end)

    # Waiting

    async def wait(self, operation: Operation) -> None:
        """Wait for the end of a request.

        Raises:
            RemoteProtocolError: FABRIC_FAILED, it has failed, or nothing has moved for too long.
        """
        until = perf_counter() + self.polling.budget_s
        while operation.end is None and not self.failure and perf_counter() < until:
            self.reap()
        while operation.end is None and not self.failure:
            if operation.ended is None:
                operation.ended = trio.Event()
            n_ended = self._n_ended
            with trio.move_on_after(STALL_S):
                await operation.ended.wait()
            if operation.end is None and self._n_ended == n_ended:
                self.reap()  # the loop may have been busy for all that time
                if self._n_ended == n_ended:
                    self.fail(f"the RDMA device has not finished anything for {STALL_S:g} s")
        if operation.end is None or not operation.end.is_good:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, self.failure)

    async def _moves(self, is_so: Callable[[], bool]) -> None:
        """Wait until something has moved so that it is so.

        Raises:
            RemoteProtocolError: nothing moves.
        """
        n_ended = self._n_ended
        with trio.move_on_after(STALL_S):
            while not is_so() and not self.failure:
                self._has_room = trio.Event()
                await self._has_room.wait()
        if not self.failure and self._n_ended == n_ended:
            self.reap()
            if self._n_ended == n_ended:
                self.fail(f"the RDMA device has not finished anything for {STALL_S:g} s")
        if self.failure:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, self.failure)

    def reap(self) -> int:
        """Take the ends that are there, and tell whoever waits; how many they were."""
        if self.failure:
            return 0
        try:
            ends = self.completions.poll()
        except VerbsError as error:
            self.fail(str(error))
            return 0
        for end in ends:
            self._take_end(end)
        return len(ends)

    def _take_end(self, end: Completion) -> None:
        if self.failure:  # an earlier one of the same batch
            return
        operation = self._pending.pop(end.id, None)
        if operation is not None:
            operation.end = end
            self._n_ended += 1
            if operation.is_write:
                self._n_writes -= 1
                self._has_room.set()
            if operation.ended is not None:
                operation.ended.set()
        if not end.is_good:
            self.fail(STOPPED if end.status == Status.FLUSHED else f"RDMA: {status_words(self.device.binding, end.status)}")
        elif end.id == RECEIVE_ID:
            self._take_written(end)
        elif operation is not None:
            self.polling.handle_wait(perf_counter() - operation.posted_at)
            if operation.on_end is not None:
                operation.on_end(operation)

    def _take_written(self, end: Completion) -> None:
        try:
            self.pair.receive(RECEIVE_ID)
        except VerbsError as error:
            self.fail(str(error))
            return
        if end.did != Did.WRITTEN:
            self.fail("the peer sends by RDMA what no node sends")
            return
        self.on_written(end.immediate)

    async def run(self) -> None:
        """Takes ends as they come, until the queue pair stops."""
        try:
            while True:
                self.completions.take_events()
                self.completions.arm()
                while self.reap():
                    await trio.lowlevel.checkpoint()
                if self.failure:
                    return
                await trio.lowlevel.wait_readable(self.completions.fd)
        except VerbsError as error:
            self.fail(str(error))
        except trio.ClosedResourceError:
            pass  # it was failed, or closed, meanwhile

    # The end

    def fail(self, why: str) -> None:
        """Stop everything: from now on the device touches no memory of this queue pair. A second call does nothing."""
        if self.failure:
            return
        self.failure = why
        self.pair.stop()
        trio.lowlevel.notify_closing(self.completions.fd)
        self._has_room.set()
        for operation in list(self._pending.values()):
            if operation.ended is not None:
                operation.ended.set()
        self._pending.clear()
        self.on_failed(why)

    def close(self, before: Callable[[], None] = lambda: None) -> None:
        """Give everything back; takes a while, and belongs in a worker thread. The queue pair has been stopped.

        Args:
            before: gives back windows, which a queue pair must not outlive with some devices, and regions.
        """
        for step in (before, self.pair.close, self.completions.close, self.domain.close):
            with suppress(VerbsError):  # the system takes it when the process ends
                step()
