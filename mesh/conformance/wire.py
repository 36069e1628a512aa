"""Connections and streams of the scripted peer: real UDP sockets round `OpenConnection`.

A connection runs by itself once it is made: it reads its socket, answers what QUIC wants answered, echoes the node's probes
unless told otherwise, and keeps everything else that came for a case to look at: bytes, resets and stops of streams, DATAGRAM
frames, its end. Streams that the node opens are negotiated by `served` and kept.

Spec: docs/spec/02-transport.md.
"""

import math
import os
import socket
from collections.abc import Callable
from typing import Any

import trio
from aioquic.quic import events

from mesh.conformance.quic import End, Manner, OpenConnection
from mesh.conformance.registry import Unmet
from protocol.encoding import FrameDecoder
from protocol.errors import RemoteProtocolError
from protocol.libp2p.multistream import Initiator, Listener

Address = tuple[str, int] | tuple[str, int, int, int]

PROBE = b"\x01"
"""First byte of a probe (docs/spec/05-coordinates.md)."""

ECHO = b"\x02"
"""First byte of an echo."""

PROBE_THREE = b"\x03"
"""First byte of a probe that asks for three legs."""

ECHO_THREE = b"\x04"
"""First byte of its echo."""

THIRD_LEG = b"\x05"
"""First byte of a third leg."""

OPENING_BYTES = 256
"""How much of the beginning of a stream is kept, in bytes: its negotiation."""

UDP_BYTES_MAX = 65_536
"""Largest datagram read from a socket, in bytes."""


class Stream:
    """One stream, as it came: what was received, and how either side of it ended."""

    def __init__(self, connection: "Connection", stream_id: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.data = bytearray()
        self.total_bytes = 0
        self.ended = False
        self.reset_code: int | None = None
        self.stop_code: int | None = None
        self.protocol: str | None = None
        self.opening = b""
        self._listener: Listener | None = None

    def __str__(self) -> str:
        state = f"{self.total_bytes} bytes received ({bytes(self.data[:64]).hex()})"
        state += ", ended" if self.ended else ""
        state += f", reset with 0x{self.reset_code:x}" if self.reset_code is not None else ""
        state += f", stopped with 0x{self.stop_code:x}" if self.stop_code is not None else ""
        end = self.connection.end
        return state + (f"; {end}" if end is not None else "")

    def send(self, data: bytes, *, end: bool = False) -> None:
        """Send bytes as they are; nothing happens where this side is over."""
        self.connection.write(self.id, data, end=end)

    def reset(self, code: int) -> None:
        """Abandon this side."""
        self.connection.quic.reset_stream(self.id, code)
        self.connection.flush()

    def stop(self, code: int) -> None:
        """Ask the node to send no more."""
        self.connection.quic.stop_stream(self.id, code)
        self.connection.flush()

    @property
    def is_over(self) -> bool:
        """Whether the node sends no more on it."""
        return self.ended or self.reset_code is not None or self.connection.end is not None

    async def until(self, condition: Callable[[], object], what: str, within_s: float | None = None) -> None:
        """Wait until something holds.

        Raises:
            Unmet: it does not in time, or cannot any more.
        """
        await self.connection.until(lambda: condition() or self.is_over, what, within_s, seen=lambda: self)
        if not condition():
            raise Unmet(what, self)

    async def receive(self, n_bytes: int, what: str = "") -> bytes:
        """Take so many bytes."""
        await self.until(lambda: len(self.data) >= n_bytes, what or f"{n_bytes} bytes on the stream")
        taken = bytes(self.data[:n_bytes])
        del self.data[:n_bytes]
        return taken

    async def receive_all(self, what: str = "the end of the stream", within_s: float | None = None) -> bytes:
        """Take everything up to the end."""
        await self.until(lambda: self.ended, what, within_s)
        taken = bytes(self.data)
        self.data.clear()
        return taken

    async def frame(self, bytes_max: int, what: str = "a frame", within_s: float | None = None) -> bytes:
        """Take one frame."""
        found: list[bytes] = []

        def whole() -> bool:
            decoder = FrameDecoder(bytes_max)
            decoder.receive(bytes(self.data))
            payload = decoder.next_frame()
            if payload is None:
                return False
            found.append(payload)
            self.data[:] = decoder.take_rest()
            return True

        await self.until(lambda: found or whole(), what, within_s)
        return found[0]

    async def over(self, what: str, within_s: float | None = None) -> None:
        """Wait until the node sends no more on it: its end, a reset or the end of the connection."""
        await self.connection.until(lambda: self.is_over, what, within_s, seen=lambda: self)

    async def negotiate(self, protocol: str) -> None:
        """Agree on a protocol as an honest initiator does.

        Raises:
            Unmet: the node does not agree.
        """
        dialer = Initiator((protocol,))
        agreed: str | None = None
        while agreed is None:
            self.send(dialer.data_to_send())
            await self.until(lambda: self.data, f"an answer to the proposal of {protocol}")
            taken = bytes(self.data)
            self.data.clear()
            try:
                agreed = dialer.receive_data(taken)
            except RemoteProtocolError as fault:
                raise Unmet(f"agreement on {protocol}", fault) from fault
        self.protocol = agreed
        self.data[:0] = dialer.take_rest()

    def serve(self, speaks: Callable[[str], bool]) -> None:
        """Take a step of the negotiation of a stream that the node opened."""
        if self.protocol is not None:
            return
        self._listener = self._listener or Listener(speaks)
        taken = bytes(self.data)
        self.data.clear()
        try:
            self.protocol = self._listener.receive_data(taken)
        except RemoteProtocolError as fault:
            self.reset(fault.code)
            return
        self.send(self._listener.data_to_send())
        if self.protocol is not None:
            self.data[:0] = self._listener.take_rest()


class Connection:
    """One connection to the node under test.

    Attributes:
        quic: the connection underneath.
        streams: every stream by its number.
        opened: those that the node opened.
        frames: the DATAGRAM frames that came.
        echoes: whether the node's probes are answered.
        deaf: whether what comes is dropped.
        mute: whether what would be sent is kept back, in `unsent`.
        patience_s: how long to wait for what must come.
    """

    def __init__(self, quic: OpenConnection, link: "Link", served: tuple[str, ...], patience_s: float) -> None:
        self.quic = quic
        self.streams: dict[int, Stream] = {}
        self.opened: list[Stream] = []
        self.frames: list[bytes] = []
        self.echoes = True
        self.patience_s = patience_s
        self.deaf = False
        self.mute = False
        self.unsent: list[tuple[bytes, Address]] = []
        self.n_bytes_in = 0
        self.n_bytes_out = 0
        self.n_datagrams_in = 0
        self._served = served
        self._link = link
        self._changed = trio.lowlevel.ParkingLot()
        self._wake = trio.Event()

    @property
    def end(self) -> End | None:
        """How it ended; None while it lives."""
        return self.quic.end

    async def until(
        self, condition: Callable[[], object], what: str, within_s: float | None = None, seen: Callable[[], object] | None = None
    ) -> None:
        """Wait until something holds.

        Raises:
            Unmet: it does not in time.
        """
        limit_s = self.patience_s if within_s is None else within_s
        with trio.move_on_after(limit_s):
            while not condition():
                await self._changed.park()
            return
        found = seen() if seen is not None else (self.end or "nothing of the kind")
        raise Unmet(f"{what} within {limit_s:g} s", found)

    async def established(self) -> "Connection":
        """Wait for the node to accept this side.

        Raises:
            Unmet: it does not.
        """
        await self.until(lambda: self.quic.confirmed or self.end, "a finished handshake")
        if not self.quic.confirmed:
            raise Unmet("a finished handshake", self.end)
        return self

    async def ended(self, what: str = "the end of the connection", within_s: float | None = None) -> End:
        """Wait for the connection to be over."""
        await self.until(lambda: self.end, what, within_s)
        assert self.end is not None
        return self.end

    def open(self) -> Stream:
        """Open a bidirectional stream; nothing leaves before something is sent on it."""
        stream_id: int = self.quic.get_next_available_stream_id()
        self.quic.send_stream_data(stream_id, b"")
        stream = self.streams[stream_id] = Stream(self, stream_id)
        return stream

    async def speak(self, protocol: str) -> Stream:
        """Open a stream and agree on a protocol."""
        stream = self.open()
        await stream.negotiate(protocol)
        return stream

    def of(self, protocol: str) -> list[Stream]:
        """The streams of a protocol that the node opened."""
        return [stream for stream in self.opened if stream.protocol == protocol]

    def write(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Send stream bytes where that is possible."""
        if self.end is None:
            try:
                self.quic.send_stream_data(stream_id, data, end)
            except (RuntimeError, ValueError, AssertionError):
                return  # the node asked to stop meanwhile
            self.flush()

    def send_frame(self, data: bytes) -> None:
        """Send a DATAGRAM frame."""
        if self.end is None:
            self.quic.send_datagram_frame(data)
            self.flush()

    def send_packet(self, frames: bytes) -> None:
        """Send one packet of frames as they are."""
        address = self.quic.get_peer_address()
        assert address is not None
        self._link.send(self.quic.packet(frames), address)

    def close(self, code: int = 0, reason: str = "") -> None:
        """Close it."""
        if self.end is None:
            self.quic.close(error_code=code, reason_phrase=reason)
            self.flush()

    def flush(self) -> None:
        """Send what waits, look at what came, and wake who waits for it."""
        for data, address in self.quic.datagrams_to_send(trio.current_time()):
            if self.mute:
                self.unsent.append((data, address))
                continue
            self.n_bytes_out += len(data)
            self._link.send(data, address)
        self._collect()
        self._wake.set()
        self._changed.unpark_all()

    def release(self) -> None:
        """Send what was kept back while it was mute."""
        self.mute = False
        for data, address in self.unsent:
            self._link.send(data, address)
        self.unsent.clear()

    def move(self, link: "Link") -> None:
        """Go on from another socket, as a client does whose address has changed."""
        for cid, connection in self._link.routes.items():
            if connection is self:
                link.routes[cid] = self
        self._link = link

    def receive(self, data: bytes, address: Address) -> None:
        """Take one datagram of the node."""
        self.n_bytes_in += len(data)
        self.n_datagrams_in += 1
        if self.deaf:
            return
        self.quic.receive_datagram(data, address, trio.current_time())
        self.flush()

    async def run_timer(self) -> None:
        """Let QUIC's timers fire as long as it runs."""
        while True:
            self._wake = trio.Event()
            timer = self.quic.get_timer()
            now = trio.current_time()
            with trio.move_on_after(math.inf if timer is None else max(0.0, timer - now)):
                await self._wake.wait()
            now = trio.current_time()
            if timer is not None and timer <= now:
                self.quic.handle_timer(now + 1e-6)
                self.flush()

    def _collect(self) -> None:
        while (event := self.quic.next_event()) is not None:
            match event:
                case events.StreamDataReceived(stream_id=stream_id, data=data, end_stream=end):
                    stream = self._stream(stream_id)
                    stream.data += data
                    if len(stream.opening) < OPENING_BYTES:
                        stream.opening += data[: OPENING_BYTES - len(stream.opening)]
                    stream.total_bytes += len(data)
                    stream.ended |= end
                    if stream in self.opened:
                        stream.serve(lambda protocol: protocol in self._served)
                case events.StreamReset(stream_id=stream_id, error_code=code):
                    self._stream(stream_id).reset_code = code
                case events.StopSendingReceived(stream_id=stream_id, error_code=code):
                    self._stream(stream_id).stop_code = code
                case events.DatagramFrameReceived(data=data):
                    self.frames.append(data)
                    if self.echoes and data[:1] in (PROBE, PROBE_THREE):
                        three = data[:1] == PROBE_THREE
                        self.quic.send_datagram_frame(ECHO_THREE + data[1:9] + os.urandom(8) if three else ECHO + data[1:9])
                        self._link.send_soon(self)
                case events.ConnectionIdIssued(connection_id=cid):
                    self._link.routes[cid] = self
                case _:
                    pass

    def _stream(self, stream_id: int) -> Stream:
        stream = self.streams.get(stream_id)
        if stream is None:
            stream = self.streams[stream_id] = Stream(self, stream_id)
            self.opened.append(stream)
        return stream


class Link:
    """One UDP socket with the connections over it."""

    def __init__(self, host: str, port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.raw = socket.socket(family, socket.SOCK_DGRAM)
        self.raw.setblocking(False)
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 << 20)
        self.raw.bind((host, port))
        self.routes: dict[bytes, Connection] = {}
        self.strays: list[bytes] = []
        self.accept: Callable[[bytes, Address], Connection | None] = lambda _cid, _address: None
        self._soon: list[Connection] = []

    @property
    def port(self) -> int:
        """The port that it has."""
        port: int = self.raw.getsockname()[1]
        return port

    def send(self, data: bytes, address: Any) -> None:
        """Send one datagram; one that the kernel does not take counts as lost."""
        try:
            self.raw.sendto(data, address)
        except OSError:
            return

    def send_soon(self, connection: Connection) -> None:
        """Flush a connection after what is handled now."""
        self._soon.append(connection)

    async def run(self) -> None:
        """Read the socket until it is closed."""
        while self.raw.fileno() >= 0:
            try:
                await trio.lowlevel.wait_readable(self.raw)
            except trio.ClosedResourceError:
                return
            for _ in range(256):
                try:
                    data, address = self.raw.recvfrom(UDP_BYTES_MAX)
                except (BlockingIOError, InterruptedError):
                    break
                except OSError:
                    continue
                self._take(data, address)
                while self._soon:
                    self._soon.pop().flush()
            await trio.lowlevel.checkpoint()

    def _take(self, data: bytes, address: Address) -> None:
        is_long = bool(data) and bool(data[0] & 0x80)
        cid = data[6 : 6 + data[5]] if is_long and len(data) > 6 else data[1:9]
        connection = self.routes.get(cid)
        if connection is None and is_long:
            connection = self.accept(cid, address)
        if connection is None:
            self.strays.append(data)
            return
        connection.receive(data, address)

    def close(self) -> None:
        """Give the socket back, which whoever waits for it is told: the next one may have the same number."""
        if self.raw.fileno() >= 0:
            trio.lowlevel.notify_closing(self.raw)
        self.raw.close()


def dialled(manner: Manner, link: Link, address: Address, served: tuple[str, ...], patience_s: float) -> Connection:
    """Begin a connection to an address; it runs once its timer does."""
    quic = OpenConnection(manner, None)
    connection = Connection(quic, link, served, patience_s)
    link.routes[quic.host_cid] = connection
    quic.connect(address, trio.current_time())
    connection.flush()
    return connection
