"""Libp2p's ping: 32 random bytes go out and come back, as often as the dialer likes, until it ends the stream.

The listener returns whole frames only and holds less than one; how fast it answers is bounded by the stream's back-pressure. The
dialer has one frame on its way at a time and measures its round trip. The mesh's own probes are others: this is for libp2p peers.

Source: libp2p/specs ping/ping.md; go-libp2p p2p/protocol/ping.
Spec: docs/spec/02-transport.md, section "Ping".
"""

from dataclasses import dataclass

from protocol.errors import ErrorCode, RemoteProtocolError

PING_PROTOCOL = "/ipfs/ping/1.0.0"
"""The protocol id of libp2p's ping."""

PING_BYTES = 32
"""Size of one ping frame in bytes (libp2p/specs ping/ping.md)."""


@dataclass(frozen=True, slots=True)
class PingConfig:
    """Bounds of ping.

    Attributes:
        timeout_s: seconds that a dialer waits for an echo; go-libp2p's choice.
        idle_s: seconds without a byte after which a listener ends a stream; go and rust peers ping every 15 s.
        inbound_streams_max: most ping streams of one peer that a listener answers at a time (libp2p/specs ping/ping.md).
    """

    timeout_s: float = 10.0
    idle_s: float = 60.0
    inbound_streams_max: int = 2


class PingListener:
    """The echo of one stream."""

    __slots__ = ("_config", "_heard_at", "_held")

    def __init__(self, now: float, config: PingConfig = PingConfig()) -> None:
        self._config = config
        self._heard_at = now
        self._held = bytearray()

    def handle_data(self, data: bytes, now: float) -> bytes:
        """Take bytes as they came; return the bytes to send back, whole frames only, possibly none."""
        if data:
            self._heard_at = now
        self._held += data
        whole = len(self._held) - len(self._held) % PING_BYTES
        echo = bytes(self._held[:whole])
        del self._held[:whole]
        return echo

    def next_timer(self) -> float:
        """Return when the stream has been silent for too long, in the seconds of `now`."""
        return self._heard_at + self._config.idle_s

    def handle_timer(self, now: float) -> None:
        """Let time pass.

        Raises:
            RemoteProtocolError: IDLE, when the stream has been silent for too long.
        """
        if now >= self.next_timer():
            raise RemoteProtocolError(ErrorCode.IDLE, f"no ping for {self._config.idle_s:g} s")


class PingDialer:
    """The asking end of one stream; it may be used for any number of pings, one after the other."""

    __slots__ = ("_config", "_echo", "_frame", "_sent_at")

    def __init__(self, config: PingConfig = PingConfig()) -> None:
        self._config = config
        self._frame: bytes | None = None
        self._sent_at = 0.0
        self._echo = bytearray()

    def start(self, entropy: bytes, now: float) -> bytes:
        """Begin one ping.

        Args:
            entropy: `PING_BYTES` unpredictable bytes.
            now: monotonic seconds at which the frame leaves.

        Returns:
            The frame to send.
        """
        assert len(entropy) == PING_BYTES, f"a ping has {PING_BYTES} bytes, not {len(entropy)}"
        assert self._frame is None, "a ping is on its way"
        self._frame = bytes(entropy)
        self._sent_at = now
        return self._frame

    def handle_data(self, data: bytes, now: float) -> float | None:
        """Take bytes as they came.

        Returns:
            The round trip in seconds when the echo is complete, else None.

        Raises:
            RemoteProtocolError: MALFORMED, when the bytes are not the echo that is awaited.
        """
        self._echo += data
        awaited = self._frame or b""
        if awaited[: len(self._echo)] != bytes(self._echo):
            raise RemoteProtocolError(ErrorCode.MALFORMED, "the peer did not echo the ping")
        if len(self._echo) < PING_BYTES:
            return None
        self._frame = None
        self._echo.clear()
        return now - self._sent_at

    def next_timer(self) -> float | None:
        """Return when the echo is late, in the seconds of `now`; None when none is awaited."""
        return None if self._frame is None else self._sent_at + self._config.timeout_s

    def handle_timer(self, now: float) -> None:
        """Let time pass.

        Raises:
            RemoteProtocolError: IDLE, when the echo is late.
        """
        late_at = self.next_timer()
        if late_at is not None and now >= late_at:
            raise RemoteProtocolError(ErrorCode.IDLE, f"no echo within {self._config.timeout_s:g} s")
