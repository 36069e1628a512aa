"""The virtual network: delays between places, jitter, and uplinks with a rate and a bounded queue.

Every node has one uplink that sends so many bytes a second and holds so many bytes; what does not fit is dropped. Behind it a
packet takes the one-way delay of its path plus an exponential jitter. What faults add (loss, blocked paths, copies, packets that
overtake one another) is asked of the hooks in the order in which they were put up. A datagram is delivered zero, one or two
times; a piece of a stream always is, later for every time it was lost: by a probe timeout, which doubles, or by the time until a
later packet of the same path is acknowledged, which is shorter where much is sent.

Source: RFC 9002 sections 6.1 (a loss shows by later packets) and 6.2 (probe timeouts double); PlanetLab and Seattle matrices of
Ledlie et al. and of serf for the files.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np

from sim.luck import Streams

PACKET_OVERHEAD_BYTES = 60
"""Bytes that IPv4 (20), UDP (8), QUIC's short header (about 14), its tag (16) and a frame header put round a payload."""

RETRANSMISSION_S_MIN = 0.025
"""Seconds. The shortest probe timeout: QUIC's default max_ack_delay, RFC 9002 section 6.2.1."""

RETRANSMISSION_S_MAX = 15.0
"""Seconds. Gaps between packets that are longer count as so long: QUIC's keep-alive of this mesh sends one then."""

LOSS_SHOWS_RTTS = 9.0 / 8.0
"""Round trips, unitless, after which a packet is held to be lost when a later one was acknowledged: RFC 9002 section 6.1.2."""

GAP_GAIN = 0.25
"""Share of the newest gap in the mean gap between two packets of a path, unitless: some four packets are remembered."""

GAP_S_MIN = 0.001
"""Seconds. Packets that leave closer together are acknowledged together: a timer's granularity, RFC 9002 section 6.1.2."""

LATER_PACKETS_MAX = 8
"""Packets after a lost one that are looked at, a count: at 50 % loss none of them is acknowledged once in ten times."""

RETRANSMISSIONS_MAX = 8
"""Losses of one piece of a stream in a row, a count: at 50 % loss one piece in 256 would meet more."""

LAN_ONE_WAY_S = 0.00005
"""Seconds. One way within one site: a switched LAN's round trip is about 0.1 ms."""

LINE_STEP_S = 0.001
"""Seconds. One way between neighbours on the line and the grid: a round trip of 2 ms, about 200 km of fibre."""

REGION_RTT_MS = (
    (2, 65, 120, 80, 170, 200),
    (65, 2, 175, 140, 105, 140),
    (120, 175, 2, 190, 260, 310),
    (80, 140, 190, 2, 220, 260),
    (170, 105, 260, 220, 2, 105),
    (200, 140, 310, 260, 105, 2),
)  # ms; North America east and west, South America, Europe, East Asia, Oceania: usual medians between public cloud regions


class Delays(Protocol):
    """How long light and routers take from one node to another."""

    def one_way_s(self, one: int, other: int) -> float:
        """Seconds from node `one` to node `other`, without queues and jitter."""
        ...


@dataclass(frozen=True, slots=True)
class Line:
    """Nodes on a line, equally far apart."""

    step_s: float = LINE_STEP_S

    def one_way_s(self, one: int, other: int) -> float:
        """See `Delays`."""
        return max(LAN_ONE_WAY_S, abs(one - other) * self.step_s)


@dataclass(frozen=True, slots=True)
class Grid:
    """Nodes on a square grid; a path follows its lines."""

    width: int
    step_s: float = LINE_STEP_S

    def one_way_s(self, one: int, other: int) -> float:
        """See `Delays`."""
        (row, column), (other_row, other_column) = divmod(one, self.width), divmod(other, self.width)
        return max(LAN_ONE_WAY_S, (abs(row - other_row) + abs(column - other_column)) * self.step_s)


class Continents:
    """Nodes in six regions, each behind an access link of its own."""

    def __init__(self, luck: Random) -> None:
        self._luck = luck
        self._one_way_s = [[rtt_ms / 2000.0 for rtt_ms in row] for row in REGION_RTT_MS]
        self._regions: list[int] = []  # of each node
        self._access_s: list[float] = []  # of each node

    def one_way_s(self, one: int, other: int) -> float:
        """See `Delays`."""
        while len(self._regions) <= one or len(self._regions) <= other:
            self._access_s.append(self._luck.uniform(0.0001, 0.004))  # a data centre to a fibre subscriber
            self._regions.append(self._luck.randrange(len(REGION_RTT_MS)))
        between_s = self._one_way_s[self._regions[one]][self._regions[other]]
        return between_s + self._access_s[one] + self._access_s[other]


class Matrix:
    """Measured round trips; when there are more nodes than rows, several nodes share a site."""

    def __init__(self, rtt_ms: "np.typing.NDArray[np.float64]") -> None:
        self.size = len(rtt_ms)
        symmetric = np.fmax(rtt_ms, rtt_ms.T)
        known = np.where(np.isfinite(symmetric), symmetric, np.nanmedian(symmetric))
        self._one_way_s: list[list[float]] = np.maximum(known / 2000.0, LAN_ONE_WAY_S).tolist()

    def one_way_s(self, one: int, other: int) -> float:
        """See `Delays`."""
        row, column = one % self.size, other % self.size
        return LAN_ONE_WAY_S if row == column else self._one_way_s[row][column]


def load_matrix(path: Path) -> Matrix:
    """Reads round trips in milliseconds: `.npz` with `upper` (one or many triangles) and `n`, a square `.npy`, or a square CSV.

    Raises:
        ValueError: when the file holds no square matrix.
    """
    if path.suffix == ".npz":
        with np.load(path) as archive:
            size, upper = int(archive["n"]), np.atleast_2d(archive["upper"])
        rtt_ms = np.zeros((size, size))
        rtt_ms[np.triu_indices(size, 1)] = np.nanmedian(upper, axis=0)
        return Matrix(rtt_ms + rtt_ms.T)
    loaded = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, delimiter=",", ndmin=2)
    if loaded.ndim != 2 or loaded.shape[0] != loaded.shape[1] or not len(loaded):
        raise ValueError(f"{path} holds a matrix of shape {loaded.shape}, not a square one")
    return Matrix(loaded.astype(np.float64))


def delays_named(name: str, nodes: int, streams: Streams) -> Delays:
    """The delays `line`, `grid`, `continents`, or of the file of that name.

    Raises:
        ValueError: for a name that is neither.
    """
    match name:
        case "line":
            return Line()
        case "grid":
            return Grid(max(1, round(nodes**0.5)))
        case "continents":
            return Continents(streams.of("places"))
        case _:
            if not Path(name).is_file():
                raise ValueError(f"{name!r} is neither line, grid, continents nor a file")
            return load_matrix(Path(name))


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """What every path and uplink is like.

    Attributes:
        jitter_s: mean of the exponential jitter of one packet, in seconds.
        uplink_bytes_per_s: rate of a node's uplink; 12.5 MB/s is 100 Mbit/s.
        uplink_queue_bytes: most bytes waiting in it: 20 ms at that rate.
    """

    jitter_s: float = 0.0002
    uplink_bytes_per_s: float = 12_500_000.0
    uplink_queue_bytes: int = 262_144


Lossy = Callable[[float, int, int, bool], bool]
"""Whether a packet is lost: seconds, sender, receiver, and whether it is a datagram (a piece of a stream comes again)."""

Blocked = Callable[[int, int], bool]
"""Whether nothing passes from one node to another."""

CLOG_DATAGRAMS_MAX = 4096
"""Datagrams that one clog holds, a count: a router's buffer of some megabytes; what comes after is dropped."""


@dataclass(eq=False, slots=True)
class Clog:
    """Paths that hold what they carry, in order, until the clog is taken away."""

    blocked: Blocked
    held: deque[Callable[[], None]] = field(default_factory=deque[Callable[[], None]])


@dataclass(slots=True)
class Tally:
    """What passed the network, counts."""

    datagrams: int = 0
    messages: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    overflowed: int = 0
    blocked: int = 0


@dataclass
class Network:
    """See the module's docstring; the hooks are lists that faults add themselves to and take themselves from."""

    delays: Delays
    config: NetworkConfig
    streams: Streams
    losses: list[Lossy] = field(default_factory=list[Lossy])
    blocks: list[Blocked] = field(default_factory=list[Blocked])
    duplications: list[float] = field(default_factory=list[float])  # shares of datagrams that come twice
    reorderings: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])  # (share, late by up to seconds)
    rates: dict[int, float] = field(default_factory=dict[int, float])  # bytes/s of uplinks that differ from the others
    jitter_of: Callable[[int, int], float] | None = None  # mean jitter of one path in seconds, where paths differ
    queues: dict[int, int] = field(default_factory=dict[int, int])  # bytes waiting at most in uplinks that differ from the others
    clogs: list[Clog] = field(default_factory=list[Clog])
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._free_at: dict[int, float] = {}
        self._sent: dict[tuple[int, int], tuple[float, float]] = {}  # per lossy path: when last, and the mean gap before
        self._jitter = self.streams.of("jitter")
        self._copies = self.streams.of("copies")

    def is_blocked(self, one: int, other: int) -> bool:
        """Whether nothing passes from `one` to `other` now."""
        return any(blocked(one, other) for blocked in self.blocks)

    def is_cut(self, one: int, other: int) -> bool:
        """Whether nothing gets from `one` to `other` now, be it dropped or held."""
        return self.is_blocked(one, other) or any(clog.blocked(one, other) for clog in self.clogs)

    def hold(self, one: int, other: int, arrive: Callable[[], None], *, datagram: bool = False) -> bool:
        """Keeps what would arrive now when its path is clogged; whether it did.

        Args:
            one: the sender.
            other: the receiver.
            arrive: called when the clog is gone.
            datagram: whether it may be dropped where the clog holds too many.
        """
        for clog in self.clogs:
            if clog.blocked(one, other):
                if datagram and len(clog.held) >= CLOG_DATAGRAMS_MAX:
                    self.tally.overflowed += 1
                else:
                    clog.held.append(arrive)
                return True
        return False

    def path_s(self, one: int, other: int) -> float:
        """One trip of one packet that meets no queue."""
        delay_s = self.delays.one_way_s(one, other)
        jitter_s = self.config.jitter_s if self.jitter_of is None else self.jitter_of(one, other)
        return delay_s - jitter_s * log(1.0 - self._jitter.random()) if jitter_s else delay_s

    def datagram(self, one: int, other: int, size_bytes: int, now: float) -> tuple[float, ...]:
        """When a datagram arrives, in seconds from now: not at all, once, or twice."""
        tally = self.tally
        tally.datagrams += 1
        waits_s = self._queue(one, size_bytes, now)
        if waits_s is None:
            tally.overflowed += 1
            return ()
        if self.blocks and self.is_blocked(one, other):
            tally.blocked += 1
            return ()
        if self.losses:
            self._gap_s(one, other, now)
            if any(lossy(now, one, other, True) for lossy in self.losses):
                tally.lost += 1
                return ()
        first_s = waits_s + self.path_s(one, other)
        for share, late_s in self.reorderings:
            if self._copies.random() < share:
                tally.reordered += 1
                first_s += self._copies.uniform(0.0, late_s)
        for share in self.duplications:
            if self._copies.random() < share:
                tally.duplicated += 1
                return (first_s, first_s + self.path_s(one, other))
        return (first_s,)

    def message(self, one: int, other: int, size_bytes: int, now: float) -> float:
        """When a piece of a stream arrives, in seconds from now; blocked paths are the caller's to look at on arrival."""
        tally = self.tally
        tally.messages += 1
        waits_s = self._queue(one, size_bytes, now)
        if waits_s is not None and not self.losses:
            return waits_s + self.path_s(one, other)
        timeout_s = max(RETRANSMISSION_S_MIN, 3.0 * self.delays.one_way_s(one, other))
        late_s = 0.0
        if waits_s is None:
            tally.overflowed += 1
            waits_s, late_s = self._queue_bytes(one) / self._rate(one), timeout_s
        if self.losses:
            late_s += self._lost_s(one, other, now, timeout_s)
        return waits_s + late_s + self.path_s(one, other)

    def _lost_s(self, one: int, other: int, now: float, timeout_s: float) -> float:
        """By how much losses make a piece of a stream late, in seconds."""
        late_s, gap_s = 0.0, self._gap_s(one, other, now)
        shows_s = LOSS_SHOWS_RTTS * (self.delays.one_way_s(one, other) + self.delays.one_way_s(other, one))
        for _ in range(RETRANSMISSIONS_MAX):
            if not self._is_lost(one, other, now):
                break
            self.tally.lost += 1
            wait_s = shows_s + gap_s
            for _ in range(LATER_PACKETS_MAX):
                if wait_s >= timeout_s or not (self._is_lost(one, other, now) or self._is_lost(other, one, now)):
                    break
                wait_s += gap_s  # the later packet was lost as well, or its acknowledgement
            late_s += min(timeout_s, wait_s)
            timeout_s *= 2.0
        return late_s

    def _is_lost(self, one: int, other: int, now: float) -> bool:
        return any(lossy(now, one, other, False) for lossy in self.losses)

    def _gap_s(self, one: int, other: int, now: float) -> float:
        """Notes a packet; the mean gap between those of its path lately, in seconds."""
        sent_at, mean_s = self._sent.get((one, other), (float("-inf"), RETRANSMISSION_S_MAX))
        mean_s += GAP_GAIN * (min(now - sent_at, RETRANSMISSION_S_MAX) - mean_s)
        self._sent[one, other] = now, mean_s
        return max(mean_s, GAP_S_MIN)

    def _rate(self, one: int) -> float:
        return self.rates.get(one, self.config.uplink_bytes_per_s)

    def _queue_bytes(self, one: int) -> int:
        return self.queues.get(one, self.config.uplink_queue_bytes)

    def _queue(self, one: int, size_bytes: int, now: float) -> float | None:
        """How long a packet waits for the uplink and passes it; None when the queue is full."""
        rate = self.rates.get(one, self.config.uplink_bytes_per_s) if self.rates else self.config.uplink_bytes_per_s
        free_at = self._free_at.get(one, 0.0)
        if free_at <= now:
            free_at = now
        elif (free_at - now) * rate > self._queue_bytes(one):
            return None
        free_at = self._free_at[one] = free_at + (size_bytes + PACKET_OVERHEAD_BYTES) / rate
        return free_at - now
