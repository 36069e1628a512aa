"""Two endpoints and the network between them on virtual time, which jumps from timer to timer."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from protocol.errors import LocalProtocolError
from protocol.identity import Identity, PeerId, TlsCertificate, make_certificate, verify_certificate
from protocol.quic import choose_engine
from protocol.quic.endpoint import Endpoint
from protocol.quic.events import (
    ConnectionClosed,
    ConnectionEstablished,
    ConnectionHandle,
    DatagramReceived,
    EndpointConfig,
    Output,
    Received,
    StreamData,
    StreamOpened,
    Transmit,
)

WALL_S = 1_800_000_000.0
DIALLER = ("192.0.2.1", 4001)
LISTENER = ("192.0.2.2", 4001)
SHORT = {"a": "aioquic", "q": "qh3"}


def engine_of(letter):
    try:
        return choose_engine(SHORT[letter])
    except LocalProtocolError as fault:
        pytest.skip(f"the engine {SHORT[letter]} cannot be used here: {fault}")


def certificate_of(identity: Identity, wall_s: float = WALL_S) -> TlsCertificate:
    return make_certificate(identity, identity.seed * 2, wall_s)


@dataclass
class Side:
    """One end: an endpoint, what it said, and an application that reads or does not."""

    identity: Identity
    endpoint: Endpoint
    address: tuple[str, int]
    reads: bool = True
    outputs: list[Output] = field(default_factory=list)
    received: dict[int, bytearray] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    unread: list[tuple[ConnectionHandle, int, int]] = field(default_factory=list)
    established: ConnectionHandle | None = None
    on_output: Callable[[Output], None] | None = None

    def of(self, kind):
        return [output for output in self.outputs if isinstance(output, kind)]

    @property
    def closed(self) -> ConnectionClosed:
        (closed,) = self.of(ConnectionClosed)
        return closed


class Pair:
    """A dialler and a listener; `run` moves the clock until nothing is left to do or the time is over."""

    def __init__(
        self,
        engines="aa",
        *,
        delay_s=0.01,
        loss=0.0,
        seed=1,
        config=None,
        dialler_certificate=None,
        listener_certificate=None,
        verify=None,
        cpu_clock=None,
        path_bytes=None,
    ):
        self.now = 1000.0
        self.delay_s = delay_s
        self.loss = loss
        self.luck = random.Random(seed)
        self.sides = []
        self.cut = False
        self.carries_bytes = 65_507
        self.sizes = []
        self._wire = []
        self._n = 0
        self._steps_at_once = 0
        for index, letter in enumerate(engines):
            identity = Identity.from_seed(bytes([index + 1]) * 32)
            certificate = (dialler_certificate, listener_certificate)[index] or certificate_of(identity)
            endpoint = Endpoint(
                engine_of(letter),
                certificate,
                identity.peer_id,
                verify or (lambda der: verify_certificate(der, WALL_S)),
                config or EndpointConfig(),
                cpu_clock if index else None,
                path_bytes,
            )
            self.sides.append(Side(identity, endpoint, (DIALLER, LISTENER)[index]))
        self.dialler, self.listener = self.sides

    def connect(self, expected: PeerId | None = None) -> None:
        """Dial and wait for both sides to be established."""
        self.dial(expected)
        self.run(5.0, until=lambda: self.dialler.established is not None and self.listener.established is not None)
        assert self.dialler.established is not None, self.dialler.outputs
        assert self.listener.established is not None, self.listener.outputs

    def dial(self, expected: PeerId | None = None) -> ConnectionHandle:
        expected = expected or self.listener.identity.peer_id
        handle = self.dialler.endpoint.connect(LISTENER, expected, self.now)
        self.pump()
        return handle

    def pump(self) -> None:
        """Flush both endpoints, put what they send on the wire, and let the applications take what they are given."""
        for side in self.sides:
            busy = True
            while busy:
                busy = False
                side.endpoint.flush(self.now)
                while (output := side.endpoint.next_output()) is not None:
                    busy = True
                    self._take(side, output)

    def _take(self, side: Side, output: Output) -> None:
        if isinstance(output, Transmit):
            for data, address in output.datagrams:
                self.send(data, side.address, address)
            return
        side.outputs.append(output)
        if isinstance(output, ConnectionEstablished):
            side.established = output.connection
        elif isinstance(output, StreamOpened):
            assert side.established is not None, "a stream before its connection"
            side.received.setdefault(output.stream, bytearray())
        elif isinstance(output, StreamData):
            side.received.setdefault(output.stream, bytearray()).extend(output.data)
            if output.end:
                side.ended.add(output.stream)
            side.unread.append((output.connection, output.stream, len(output.data)))
            if side.reads:
                self.read(side)
        if side.on_output is not None:
            side.on_output(output)

    def read(self, side: Side) -> None:
        """Consume all that was received."""
        while side.unread:
            handle, stream, n_bytes = side.unread.pop(0)
            side.endpoint.consumed(handle, stream, n_bytes, self.now)

    def send(self, data: bytes, source, destination) -> None:
        """Put a datagram on the wire."""
        self.sizes.append(len(data))
        if self.cut or len(data) > self.carries_bytes or self.luck.random() < self.loss:
            return
        self._n += 1
        heapq.heappush(self._wire, (self.now + self.delay_s, self._n, data, source, destination))

    def next_wake(self) -> float | None:
        times = [side.endpoint.next_timer() for side in self.sides]
        if self._wire:
            times.append(self._wire[0][0])
        times = [time for time in times if time is not None]
        return min(times) if times else None

    def step(self, until_s: float) -> bool:
        """Jump to the next moment at which something happens; False when none is left before `until_s`."""
        wake = self.next_wake()
        if wake is None or wake > until_s:
            return False
        self._steps_at_once = 0 if wake > self.now else self._steps_at_once + 1
        assert self._steps_at_once < 1000, "a timer stands still"
        self.now = max(self.now, wake)
        while self._wire and self._wire[0][0] <= self.now:
            _, _, data, source, destination = heapq.heappop(self._wire)
            for side in self.sides:
                if side.address == destination:
                    side.endpoint.handle_datagrams([Received(data, source, self.now)], self.now)
        for side in self.sides:
            side.endpoint.handle_timer(self.now)
        self.pump()
        return True

    def run(self, seconds: float, until=None) -> None:
        end = self.now + seconds
        self.pump()
        steps = 0
        while (until is None or not until()) and self.step(end):
            steps += 1
            assert steps < 200_000, "the pair does not come to rest"
        if until is None:
            self.now = max(self.now, end)

    def open(self, side: Side | None = None) -> int:
        side = side or self.dialler
        stream = side.endpoint.open_stream(side.established, self.now)
        assert stream is not None
        return stream

    def write(self, side: Side, stream: int, data: bytes, end: bool = False, seconds: float = 60.0) -> None:
        """Send everything, waiting for room."""
        view = memoryview(data)
        limit = self.now + seconds
        while True:
            taken = side.endpoint.send(side.established, stream, view, end)
            view = view[taken:]
            if not view:
                break
            self.pump()
            assert self.step(limit), "no progress"
        self.pump()

    def frames(self, side: Side) -> list[bytes]:
        return [output.data for output in side.of(DatagramReceived)]
