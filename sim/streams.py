"""Streams between two processes of a world, over the connection they have or dial for it.

A stream carries pieces in both directions, reliable and in order: a lost piece is late by retransmission timeouts, a blocked path
holds everything up behind the first piece that meets it. A stream breaks at an end when that end's connection closes, and it is
reset by a word that travels as a piece does. Nothing else is told: a process whose peer dies without a word learns of it from its
own core, which hangs up, or from its own deadline.

There is no flow control: whoever receives has taken a piece in when it arrives.

Source: RFC 9000 sections 2 and 3 (streams, RESET_STREAM); the transport in mesh/transport is what it stands for.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.multiaddr import Multiaddr
from sim.dial import DIAL_TIMEOUT_S, HANDSHAKE_BYTES
from sim.process import FIRST_PORT, Link, Process
from sim.world import RETRY_S, World

RESET_BYTES = 20
"""Bytes of RESET_STREAM and STOP_SENDING together: RFC 9000 sections 19.4 and 19.5, with ids of one byte."""


@dataclass(frozen=True, slots=True)
class Broken:
    """Why a stream has ended before its time: the peer has reset it with a code, or its connection is gone."""

    code: ErrorCode
    was_reset: bool


@dataclass(eq=False, slots=True)
class StreamEnd:
    """One end of a stream; `on_data` and `on_broken` are set by whoever owns the end.

    Attributes:
        process: whose end it is.
        peer: the process at the other end.
        name: what the stream is for; empty for one request.
        over: whether this end is done with the stream: closed, reset or broken.
        way: what this end has sent and has not arrived, with the earliest time of arrival.
        moving: whether `way` has an event under way.
    """

    streams: "Streams"
    link: Link
    number: int
    process: Process
    peer: Process
    name: str = ""
    on_data: Callable[[bytes], None] = field(default=lambda _data: None)
    on_broken: Callable[[Broken], None] = field(default=lambda _broken: None)
    over: bool = False
    way: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque[tuple[float, Callable[[], None]]])
    moving: bool = False
    other: "StreamEnd | None" = None

    def send(self, data: bytes) -> None:
        """Sends a piece; nothing is sent on a stream that is over."""
        other = self.other
        assert other is not None
        if not self.over:
            self.streams.post(self, len(data), lambda: other.take(data))

    def reset(self, code: ErrorCode) -> None:
        """Gives the stream up in both directions; what has not arrived may not arrive any more."""
        other = self.other
        assert other is not None
        if not self.over:
            self.way.clear()
            self.streams.post(self, RESET_BYTES, lambda: other.fail(Broken(code, was_reset=True)))
            self.close()

    def close(self) -> None:
        """Is done with the stream; what was sent still arrives."""
        self.over = True
        assert self.other is not None
        if self.other.over:
            self.link.streams.pop(self.number, None)

    def take(self, data: bytes) -> None:
        """Takes a piece that has arrived."""
        if not self.over:
            self.on_data(data)

    def fail(self, broken: Broken) -> None:
        """Ends this end because of what the peer or the connection did."""
        if not self.over:
            self.close()
            self.on_broken(broken)

    def is_open(self) -> bool:
        """Whether the connection is open at this end, in the life of the process that it was made in."""
        process, link = self.process, self.link
        return process.running and process.peer_id in link.open_at and link.lives[process.peer_id] == process.life


class Streams:
    """Opens streams, and hands those that peers open to `accept`."""

    def __init__(self, world: World, accept: Callable[[StreamEnd], None]) -> None:
        """Nothing happens before the first stream.

        Args:
            world: whose connections are used.
            accept: takes the far end of a new stream when its first piece arrives, and before that is handed over.
        """
        self._world = world
        self._accept = accept
        self._numbers = count()

    def open(self, link: Link, process: Process, peer: Process, name: str = "") -> StreamEnd:
        """Opens a stream from `process`; the peer hears of it by the first piece."""
        number = next(self._numbers)
        near = StreamEnd(self, link, number, process, peer, name)
        far = StreamEnd(self, link, number, peer, process, name)
        near.other, far.other = far, near
        accepted = False

        def accept_with(data: bytes) -> None:
            nonlocal accepted
            if not accepted:
                accepted = True
                self._accept(far)
                far.on_data(data)

        far.on_data = accept_with

        def closed(end_id: PeerId) -> None:
            end = near if end_id == process.peer_id else far
            self._world.later(end.process, 0.0, lambda: end.fail(Broken(ErrorCode.UNREACHABLE, was_reset=False)))

        link.streams[number] = closed
        return near

    def post(self, end: StreamEnd, size_bytes: int, arrived: Callable[[], None]) -> None:
        """Sets a piece on its way behind those that are under way."""
        world = self._world
        end.process.bytes_sent += size_bytes
        late_s = world.network.message(end.process.index, end.peer.index, size_bytes, world.now)
        end.way.append((world.now + late_s, arrived))
        if not end.moving:
            end.moving = True
            world.at(end.way[0][0], lambda: self._moved(end))

    def _moved(self, end: StreamEnd) -> None:
        """The first piece of a way arrives, or finds its path blocked and tries again; the next one follows."""
        world, other = self._world, end.other
        assert other is not None
        end.moving = False
        if not end.way or not other.is_open():
            end.way.clear()
            return
        if end.way[0][0] > world.now:  # the piece that this event was for was given up by a reset
            self._move_at(end, end.way[0][0])
        elif world.network.is_blocked(end.process.index, end.peer.index):
            if end.is_open():
                self._move_at(end, world.now + RETRY_S)
        else:
            _, arrived = end.way.popleft()
            world.later(other.process, 0.0, lambda: arrived() if other.is_open() else None)
            if end.way:
                self._move_at(end, end.way[0][0])

    def _move_at(self, end: StreamEnd, when: float) -> None:
        end.moving = True
        self._world.at(when, lambda: self._moved(end))

    def connect(
        self, process: Process, peer: PeerId, addresses: Sequence[Multiaddr], done: Callable[[Link | None], None]
    ) -> None:
        """Finds the connection to a peer, or dials its addresses in turn.

        Args:
            process: who asks.
            peer: whom it wants.
            addresses: where the peer may be; each takes a round trip, or the timeout where nobody answers.
            done: called in the process with the connection, at once where there is one, or with None.
        """
        world = self._world
        link = process.connections.get(peer)
        if link is not None or not addresses:
            done(link)
            return
        other = world.processes[addresses[0].port - FIRST_PORT]

        def reachable() -> bool:
            blocked = world.network.is_blocked
            return other.works and not (blocked(process.index, other.index) or blocked(other.index, process.index))

        def answered() -> None:
            if reachable() and other.peer_id == peer:
                world._established(process, other, None)  # noqa: SLF001 - a dial of the dispatcher ends as one of the driver
                done(process.connections.get(peer))
            else:
                self.connect(process, peer, addresses[1:], done)

        took_s = DIAL_TIMEOUT_S
        if reachable():
            there_s = world.network.message(process.index, other.index, HANDSHAKE_BYTES, world.now)
            back_s = world.network.message(other.index, process.index, HANDSHAKE_BYTES, world.now)
            took_s = min(there_s + back_s, DIAL_TIMEOUT_S)
        world.later(process, took_s, answered)
