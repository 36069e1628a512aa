"""Many requests between two ends over fabrics that break at every step; what must hold is checked while they run.

What must hold: every request is answered with the right bytes; nobody reads or writes outside a lease, or by a lease whose epoch
is over, or what was given to another; the bytes are on the stream within 200 ms of the first sign that the fabric does not carry
them; what is kept is bounded, and nothing is kept for nobody afterwards.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from protocol.errors import RemoteProtocolError
from protocol.fabric import FabricConfig, Kind, Lease, RegionTable, Rights
from sim.fabric.ends import End, Pair, Way, lease_variants
from sim.fabric.hardware import BrokenPromiseError, Drawn, Fates
from sim.fabric.lane import FALL_BACK_S
from sim.fabric.world import Clock, Pipe

SETTLE_S = 30.0
"""Virtual seconds after the last request: the longest stall and lease, several times."""

CONFIG = FabricConfig(
    closed_s=0.02, closed_s_max=0.05, regions_max=8, mapped_bytes_max=16 * 65536, offers_per_s=1e6, offers_burst=1e6
)
"""As the specification's, but that a fabric opens again at once: otherwise every second request would take the stream anyway."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How often each thing goes wrong, as shares of the steps of the hardware, and how long things take, in seconds."""

    fail: float = 0.0
    stall: float = 0.0
    revoke: float = 0.0
    close: float = 0.0
    corrupt: float = 0.0
    late_s: float = 3.0
    lease_s: float = 2.0


@dataclass(frozen=True, slots=True)
class FabricSettings:
    """What is run.

    Attributes:
        seed: everything follows from it.
        requests: how many.
        shares: what goes wrong; None to draw it from the seed.
        delay_s: of the stream, one way, without hiccups; None to draw it, with some.
        attacks: whether old leases, and accesses past their bounds, are tried all the while.
        ways: the fabrics; of pools the first one says what the pool is like.
    """

    seed: int
    requests: int = 40
    shares: Shares | None = None
    delay_s: float | None = None
    attacks: bool = True
    ways: Sequence[Way] = ()


@dataclass(slots=True)
class FabricResult:
    """What came of it; `failure` is empty where everything held."""

    seed: int
    requests: int = 0
    answered: int = 0
    by_fabric: int = 0
    by_stream: int = 0
    errors: int = 0
    voided: int = 0
    retired: int = 0
    corrupted: int = 0
    turned_away: int = 0
    attacks: int = 0
    longest_fall_back_s: float = 0.0
    longest_answer_s: float = 0.0
    failure: str = ""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Request:
    """One request: what was asked, and when; on the executor's side, which run of the engine counts."""

    data: bytes
    way: Way
    began_at: float
    run: int = 0
    answered_at: float | None = None
    finished: bool = False


class Conversation:
    """Requests of one end to the other; `ask` begins one."""

    def __init__(self, pair: Pair, clock: Clock, there: Pipe, back: Pipe, luck: random.Random) -> None:
        """Joins both ends by a stream."""
        self.pair, self.clock, self.luck = pair, clock, luck
        self.requests: dict[int, _Request] = {}
        self.services_s: tuple[float, ...] = (0.0, 0.001, 0.05, 0.5, 3.0)
        self.uses_s: tuple[float, ...] = (0.0, 0.01, 1.0)
        self.join(there, back)

    def join(self, there: Pipe, back: Pipe) -> None:
        """Both ends speak by a new stream."""
        asker, executor = self.pair.asker, self.pair.executor
        asker.joins(there, back)
        executor.joins(back, there)
        executor.taken, executor.void = self._engine, self._stop_engine
        asker.taken, asker.void = self._answer, self._void_answer

    def ask(self, number: int, data: bytes, way: Way) -> None:
        """Asks for something; where it was asked before and not answered, once more."""
        known = self.requests.get(number)
        self.requests[number] = _Request(data, way, self.clock.now if known is None else known.began_at)
        self.pair.open(way)
        self.pair.asker.give(number, data, way)

    def _engine(self, number: int, data: bytes) -> None:
        request, executor = self.requests[number], self.pair.executor
        if data != request.data:
            raise BrokenPromiseError(f"request {number} arrives as something else")
        request.run += 1
        run = request.run

        def finish() -> None:
            if request.run == run and not request.finished and executor.done(number):
                request.finished = True
                executor.give(number, data[::-1], request.way)

        executor.clock.after(self.luck.choice(self.services_s), finish)

    def _stop_engine(self, number: int) -> None:
        self.requests[number].run += 1

    def _answer(self, number: int, data: bytes) -> None:
        request, asker = self.requests[number], self.pair.asker
        if data != request.data[::-1]:
            raise BrokenPromiseError(f"the answer to request {number} arrives as something else")
        if request.answered_at is None:
            request.answered_at = self.clock.now
        asker.clock.after(self.luck.choice(self.uses_s), lambda: _let_go(asker, number))

    def _void_answer(self, number: int) -> None:
        self.requests[number].answered_at = None


def _let_go(end: End, number: int) -> None:
    end.done(number)  # where it is void it comes again


class _Run:
    """One seed."""

    def __init__(self, settings: FabricSettings, result: FabricResult) -> None:
        self.settings, self.result = settings, result
        self.clock = Clock()
        luck = self.luck = random.Random(settings.seed)  # noqa: S311
        share, corrupt = (0.0, 0.05, 0.3, 0.7), luck.choice((0.0, 0.0, 0.05, 0.3))
        fail, stall, revoke, close = (luck.choice(share) / part for part in (2, 2, 1, 4))
        drawn = Shares(fail, stall, revoke, close, corrupt, luck.uniform(0.05, 5.0))
        self.shares = settings.shares or drawn
        pools = (Way.CXL, Way.CXL_APART, Way.CXL_TAGGED)
        self.ways = tuple(settings.ways) or (Way.SHM, Way.RDMA, Way.GPU, luck.choice(pools))
        shares = self.shares
        fates: Fates = Drawn(random.Random(luck.random()), shares.fail, shares.stall, shares.corrupt, shares.late_s)  # noqa: S311
        self.pair = Pair(self.clock, fates, luck, CONFIG, self.ways[-1], shares.lease_s)
        delay_s, hiccups = luck.choice((0.0001, 0.005, 0.05)), luck.choice((0.0, 0.02, 0.2))
        if settings.delay_s is not None:
            delay_s, hiccups = settings.delay_s, 0.0
        there, back = (Pipe(self.clock, random.Random(luck.random()), delay_s, hiccups) for _ in range(2))  # noqa: S311
        self.talk = Conversation(self.pair, self.clock, there, back, luck)

    def begin(self, number: int) -> None:
        """Asks for something, and perhaps takes back what lies ready, or closes a fabric, a little later."""
        luck, pair = self.luck, self.pair
        way = luck.choice(self.ways)
        self.talk.ask(number, luck.randbytes(luck.choice((0, 1, 2, 100, 3000, 8192))), way)
        for end in (pair.asker, pair.executor):
            if luck.random() < self.shares.revoke:
                end.clock.after(luck.random() * self.shares.lease_s, end.lane.take_back)
            if luck.random() < self.shares.close:
                end.clock.after(luck.random() * self.shares.lease_s, lambda end=end: _close(end, way.kind))  # type: ignore[misc]

    def attack(self) -> None:
        """Tries an old lease, or one that was stretched, as somebody would who has seen it."""
        self.result.attacks += 1
        luck = self.luck
        for end, other in ((self.pair.asker, self.pair.executor), (self.pair.executor, self.pair.asker)):
            for session in other.sessions.values():
                if session.taken and _gets_in_again(session.table, luck.choice(session.taken)):
                    raise BrokenPromiseError(f"{other.name} takes an offer of {end.name} a second time")
            by_card = other.sessions.get(int(Kind.RDMA))
            leases = other.segments + (by_card.granted if by_card is not None else [])
            if leases:
                segment, lease = luck.choice(leases)
                forged = luck.choice(lease_variants(lease))
                other.attack(segment, forged, luck.choice((0, lease.length, -1, 1 << 13)))

    def run(self) -> None:
        """Runs everything and checks what must hold at the end."""
        at = 0.0
        for number in range(self.settings.requests):
            at += self.luck.choice((0.0, 0.001, 0.1, 1.0))
            self.clock.after(at, lambda number=number: self.begin(number))  # type: ignore[misc]
        if self.settings.attacks:
            for _ in range(4 * self.settings.requests):
                self.clock.after(self.luck.random() * (at + SETTLE_S), self.attack)
        self.clock.run(at + SETTLE_S)
        self._judge()

    def _judge(self) -> None:
        result, ends, requests = self.result, (self.pair.asker, self.pair.executor), self.talk.requests
        result.requests = len(requests)
        result.answered = sum(request.answered_at is not None for request in requests.values())
        for end in ends:
            tally = end.tally
            result.by_fabric += tally.by_fabric
            result.by_stream += tally.by_stream
            result.errors += tally.errors
            result.voided += tally.voided
            result.retired += tally.retired
            result.corrupted += end.hardware.spoilt
            result.turned_away += end.hardware.refused
            result.longest_fall_back_s = max(result.longest_fall_back_s, tally.longest_fall_back_s)
        waits = [r.answered_at - r.began_at for r in requests.values() if r.answered_at is not None]
        result.longest_answer_s = max(waits, default=0.0)
        if result.answered < result.requests:
            missing = [number for number, request in requests.items() if request.answered_at is None]
            raise BrokenPromiseError(f"requests {missing} were not answered")
        if result.longest_fall_back_s > FALL_BACK_S:
            raise BrokenPromiseError(f"a transfer fell back {result.longest_fall_back_s:.3f} s after the first sign")
        leaks = self.pair.leaks() or self.pair.leaks_after_closing()
        if leaks:
            raise BrokenPromiseError("; ".join(leaks[:3]))


def _close(end: End, kind: Kind) -> None:
    session = end.sessions.get(int(kind))
    if session is not None:
        session.close("it is closed here")


def _gets_in_again(table: RegionTable, lease: Lease) -> bool:
    """Whether an offer that was taken before could be taken once more."""
    try:
        table.take(lease, Rights.READ)
    except RemoteProtocolError:
        return False
    return True


def run_fabric(settings: FabricSettings) -> FabricResult:
    """Runs one seed."""
    result = FabricResult(settings.seed)
    run = _Run(settings, result)
    try:
        run.run()
    except BrokenPromiseError as broken:
        result.failure = f"at {run.clock.now:.6f} s: {broken}"
    return result
