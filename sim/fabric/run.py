"""Many requests between two ends over a fabric that breaks at every step; what must hold is checked while they run.

What must hold: every request is answered with the right bytes; nobody reads or writes outside a lease, or by a lease whose epoch
is over; the bytes are on the stream within 200 ms of the first sign that the fabric does not carry them; what is kept is bounded.
"""

import random
from dataclasses import asdict, dataclass, replace

from protocol.fabric import FabricConfig, Kind
from sim.fabric.ends import FALL_BACK_S, End, Fates
from sim.fabric.memory import BrokenPromiseError, FabricError, Memory
from sim.fabric.world import Clock, Pipe

SETTLE_S = 30.0
"""Virtual seconds after the last request: the longest stall and lease, several times."""

CONFIG = FabricConfig(
    closed_s=0.02, closed_s_max=0.05, regions_max=8, mapped_bytes_max=8 * 8192, offers_per_s=1e6, offers_burst=1e6
)
"""As the specification's, but that a fabric opens again at once: otherwise every second request would take the stream anyway."""


@dataclass(frozen=True, slots=True)
class FabricSettings:
    """What is run.

    Attributes:
        seed: everything follows from it.
        requests: how many.
        fates: what goes wrong; None to draw it from the seed.
        corrupt_share: how often bytes arrive changed, where the kind has a tag; None to draw it.
        delay_s: of the stream, one way, without hiccups; None to draw it, with some.
        attacks: whether old leases, and accesses past their bounds, are tried all the while.
    """

    seed: int
    requests: int = 40
    fates: Fates | None = None
    corrupt_share: float | None = None
    delay_s: float | None = None
    attacks: bool = True


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
    kind: Kind
    began_at: float
    run: int = 0
    answered_at: float | None = None
    finished: bool = False


class _Run:
    """One seed."""

    def __init__(self, settings: FabricSettings, result: FabricResult) -> None:
        self.settings, self.result = settings, result
        self.clock = Clock()
        self.requests: dict[int, _Request] = {}
        luck = self.luck = random.Random(settings.seed)  # noqa: S311
        share = (0.0, 0.05, 0.3, 0.7)
        drawn = Fates(luck.choice(share) / 2, luck.choice(share) / 2, luck.choice(share), luck.uniform(0.05, 5.0))
        fates = self.settings.fates or drawn
        corrupt = self.settings.corrupt_share
        corrupt = luck.choice((0.0, 0.0, 0.05, 0.3)) if corrupt is None else corrupt
        self.asker, self.executor = (
            End(name, self.clock, luck, fates, CONFIG, Memory(random.Random(luck.random()), corrupt))  # noqa: S311
            for name in ("asker", "executor")
        )
        delay_s, hiccups = luck.choice((0.0001, 0.005, 0.05)), luck.choice((0.0, 0.02, 0.2))
        if settings.delay_s is not None:
            delay_s, hiccups = settings.delay_s, 0.0
        there, back = (Pipe(self.clock, random.Random(luck.random()), delay_s, hiccups) for _ in range(2))  # noqa: S311
        self.asker.joins(there, back, self.executor)
        self.executor.joins(back, there, self.asker)
        self.executor.taker, self.executor.on_void = self._engine, self._stop_engine
        self.asker.taker, self.asker.on_void = self._answer, self._void_answer

    def begin(self, number: int) -> None:
        """Asks for something; tensors whose kind has no tag are not corrupted, as memory of one host is not."""
        kind = self.luck.choice((Kind.SHM, Kind.CXL, Kind.RDMA))
        if kind is Kind.SHM and self.asker.memory.corrupt_share > 0.0:
            kind = Kind.CXL
        data = self.luck.randbytes(self.luck.choice((0, 1, 2, 100, 3000, 8192)))
        self.requests[number] = _Request(data, kind, self.clock.now)
        self.asker.give(number, data, kind)

    def _engine(self, number: int, data: bytes) -> None:
        request = self.requests[number]
        if data != request.data:
            raise BrokenPromiseError(f"request {number} arrives as something else")
        request.run += 1
        run = request.run
        service_s = self.luck.choice((0.0, 0.001, 0.05, 0.5, 3.0))

        def finish() -> None:
            if request.run == run and not request.finished and self.executor.done(number):
                request.finished = True
                self.executor.give(number, data[::-1], request.kind)

        self.clock.after(service_s, finish)

    def _stop_engine(self, number: int) -> None:
        self.requests[number].run += 1

    def _answer(self, number: int, data: bytes) -> None:
        request = self.requests[number]
        if data != request.data[::-1]:
            raise BrokenPromiseError(f"the answer to request {number} arrives as something else")
        if request.answered_at is None:
            request.answered_at = self.clock.now

        def let_go() -> None:
            self.asker.done(number)  # where it is void it comes again

        self.clock.after(self.luck.choice((0.0, 0.01, 1.0)), let_go)

    def _void_answer(self, number: int) -> None:
        self.requests[number].answered_at = None

    def attack(self) -> None:
        """Tries an old lease, or one that was stretched, as somebody would who has seen it."""
        self.result.attacks += 1
        for end, other in ((self.asker, self.executor), (self.executor, self.asker)):
            if other.taken_leases and other.gets_in_again(self.luck.choice(other.taken_leases)):
                raise BrokenPromiseError(f"{other.name} takes an offer of {end.name} a second time")
            if other.old_leases:
                lease = self.luck.choice(other.old_leases)
                forged = self.luck.choice((lease, replace(lease, epoch=lease.epoch + 1), replace(lease, length=1 << 20)))
                offset = self.luck.choice((0, lease.length, -1, 1 << 13))
                before = other.memory.refused
                current = other.memory.admits(forged) and forged.covers(offset, 4)
                try:
                    if not current:  # a lease that holds, inside its bounds, belongs to the peer
                        other.memory.write(forged, offset, b"evil")
                except FabricError:
                    pass
                else:
                    if not current:
                        raise BrokenPromiseError(f"{end.name} got in by {forged} at {offset}")
                assert current or other.memory.refused == before + 1

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
        result, ends = self.result, (self.asker, self.executor)
        result.requests = len(self.requests)
        result.answered = sum(request.answered_at is not None for request in self.requests.values())
        for end in ends:
            result.by_fabric += end.by_fabric
            result.by_stream += end.by_stream
            result.errors += end.errors
            result.voided += end.voided
            result.retired += end.retired
            result.corrupted += end.memory.corrupted
            result.turned_away += end.memory.refused
            result.longest_fall_back_s = max(result.longest_fall_back_s, end.longest_fall_back_s)
        waits = [r.answered_at - r.began_at for r in self.requests.values() if r.answered_at is not None]
        result.longest_answer_s = max(waits, default=0.0)
        if result.answered < result.requests:
            missing = [number for number, request in self.requests.items() if request.answered_at is None]
            raise BrokenPromiseError(f"requests {missing} were not answered")
        if result.longest_fall_back_s > FALL_BACK_S:
            raise BrokenPromiseError(f"a transfer fell back {result.longest_fall_back_s:.3f} s after the first sign")


def run_fabric(settings: FabricSettings) -> FabricResult:
    """Runs one seed."""
    result = FabricResult(settings.seed)
    run = _Run(settings, result)
    try:
        run.run()
    except BrokenPromiseError as broken:
        result.failure = f"at {run.clock.now:.6f} s: {broken}"
    return result
