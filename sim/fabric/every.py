"""Every fault at every step of every fabric, one at a time: requests, one of them with the fault, and a request afterwards.

A step is something that the hardware does, or a frame that is sent. A sound run counts them; then the run is made once more for
each step and each fault that the kind of fabric may have, and each time the same must hold: all requests are answered with the
right bytes, the one with the fault within 200 ms of it, whatever it was; nothing is read or written that no lease covers;
nothing is kept for nobody afterwards.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from protocol.errors import ProtocolError
from protocol.fabric import Kind
from sim.fabric.ends import End, Pair, Way
from sim.fabric.hardware import BrokenPromiseError, Fate
from sim.fabric.lane import FALL_BACK_S
from sim.fabric.run import CONFIG, Conversation
from sim.fabric.sessions import RdmaSession
from sim.fabric.world import Clock, Pipe

SIZES_BYTES = (3000, 12_000, 30_000, 60_000)
"""Bytes of the tensors of four requests, of which the third meets the fault: each needs a larger region than the one before, and
there may be two, so that the first of them has to go."""

POOL_SIZES_BYTES = (1000, 1000, 1000, 1000)
"""The same of pools, whose regions are whole slabs."""

REGIONS_MAX = 2
"""Regions of one peer, a count."""

FAULTY = 2
"""The request that meets the fault, by its number."""

LEASE_S = 2.0
"""Seconds that a lease holds."""

DELAY_S = 0.0001
"""Seconds one way on the stream: two processes of one rack."""

AWAY_S = 0.3
"""Seconds until a process that has died is there again."""

ASKED_S, AGAIN_S, END_S = 1.0, 5.0, 9.0
"""Seconds at which the request with the fault begins, at which the last one does, and at which all is over: the longest stall
lies between."""


class Break(StrEnum):
    """What breaks, from the step on at which it does."""

    FAILS = "the step fails"
    LATE = "the step is late"
    NEVER = "the step never ends"
    SPOILT = "bytes arrive changed"
    STANDS = "the stream stands still for 50 ms"
    TAKEN_BACK_BY_ASKER = "the asker takes back what it has leased"
    TAKEN_BACK_BY_EXECUTOR = "the executor takes back what it has leased"
    CLOSED_BY_ASKER = "the asker closes the fabric"
    CLOSED_BY_EXECUTOR = "the executor closes the fabric"
    CRASH = "the executor dies and comes back"
    NO_MEMORY = "no memory is left"
    PORT_DOWN = "the port is down"
    KEYS_VOID = "the card lets nobody in"
    FULL = "the pool is full"
    SLOT_OF_ASKER = "the asker was taken for dead in the pool"
    SLOT_OF_EXECUTOR = "the executor was taken for dead in the pool"
    PREFETCHED = "caches fetch lines"
    EVICTED = "caches write lines back"
    DEVICE_FULL = "the GPU is full"
    DEVICE_LOST = "the GPU is lost"
    TORN_OF_ASKER = "memory of the asker on the GPU is freed"
    TORN_OF_EXECUTOR = "memory of the executor on the GPU is freed"


OF_A_STEP = (Break.FAILS, Break.LATE, Break.NEVER, Break.SPOILT)
"""Faults that belong to a step of the hardware; all others come between two steps."""

OF_ALL = (
    Break.FAILS, Break.LATE, Break.NEVER, Break.STANDS, Break.CLOSED_BY_ASKER, Break.CLOSED_BY_EXECUTOR, Break.CRASH,
)  # fmt: skip
"""Faults that every fabric may have."""

OF_READERS = (Break.TAKEN_BACK_BY_ASKER, Break.TAKEN_BACK_BY_EXECUTOR)
"""Those where the receiver reads."""

OF_POOLS = (*OF_READERS, Break.FULL, Break.SLOT_OF_ASKER, Break.SLOT_OF_EXECUTOR, Break.PREFETCHED, Break.EVICTED)
"""Those of pools."""

FAULTS: dict[Way, tuple[Break, ...]] = {
    Way.SHM: (*OF_ALL, *OF_READERS, Break.NO_MEMORY),
    Way.RDMA: (*OF_ALL, Break.SPOILT, Break.NO_MEMORY, Break.PORT_DOWN, Break.KEYS_VOID),
    Way.GPU: (
        *OF_ALL, *OF_READERS, Break.DEVICE_FULL, Break.DEVICE_LOST, Break.TORN_OF_ASKER, Break.TORN_OF_EXECUTOR,
    ),
    Way.CXL: (*OF_ALL, *OF_POOLS),
    Way.CXL_APART: (*OF_ALL, *OF_POOLS),
    Way.CXL_TAGGED: (*OF_ALL, *OF_POOLS, Break.SPOILT),
}  # fmt: skip
"""What may break of each."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run: what breaks, and at which step."""

    way: Way
    fault: Break
    step: int


@dataclass(eq=False, slots=True)
class Script:
    """Fates by the script: everything works but what breaks at one step.

    Attributes:
        case: what breaks; None in the sound run.
        apply: breaks what is between steps.
        steps: those of the request with the fault, as they came.
        broke_at: when it broke.
    """

    case: Case | None
    apply: Callable[[Break], None] = field(default=lambda _fault: None)
    steps: list[str] = field(default_factory=list[str])
    broke_at: float | None = None
    now: Callable[[], float] = field(default=lambda: 0.0)
    late_s: float = 3.0
    counting: bool = False

    def of(self, kind: Kind, step: str) -> Fate:
        """See `sim.fabric.hardware.Fates`."""
        del kind
        match self._take(step):
            case Break.FAILS:
                return Fate.FAILS
            case Break.LATE:
                return Fate.LATE
            case Break.NEVER:
                return Fate.NEVER
            case _:
                return Fate.WORKS

    def spoils(self, kind: Kind) -> bool:
        """See `sim.fabric.hardware.Fates`."""
        del kind
        return self._take("carry") is Break.SPOILT

    def sends(self) -> None:
        """A frame is sent."""
        self._take("send")

    def _take(self, step: str) -> Break | None:
        """Count a step; what breaks at it, as far as it is of the step itself."""
        if not self.counting:
            return None
        number = len(self.steps)
        self.steps.append(step)
        if self.case is None or self.case.step != number:
            return None
        if self.case.fault in OF_A_STEP:
            if not is_of(self.case.fault, step):
                return None
            self.broke_at = self.now()
            return self.case.fault
        self.broke_at = self.now()
        self.apply(self.case.fault)
        return None


def is_of(fault: Break, step: str) -> bool:
    """Whether a fault may come at a step of a name."""
    if fault is Break.SPOILT:
        return step == "carry"
    if fault in (Break.LATE, Break.NEVER):  # what is done at once does not last
        return step in ("map", "grant", "write", "check")
    return fault not in OF_A_STEP or step not in ("carry", "send")


class _Story:
    """One run."""

    def __init__(self, way: Way, case: Case | None, seed: int) -> None:
        self.way = way
        self.clock = Clock()
        luck = self.luck = random.Random(seed)  # noqa: S311
        self.script = Script(case, self._break, now=lambda: self.clock.now)
        self.pair = Pair(self.clock, self.script, luck, replace(CONFIG, regions_max=REGIONS_MAX), way, LEASE_S)
        self.talk = Conversation(self.pair, self.clock, *self._pipes(), luck)
        self.talk.services_s = self.talk.uses_s = (0.01,)
        self.back_at: float | None = None

    def _pipes(self) -> tuple[Pipe, Pipe]:
        there, back = (Pipe(self.clock, self.luck, DELAY_S, 0.0) for _ in range(2))
        there.on_send = back.on_send = self.script.sends
        self.pipes = there, back
        return there, back

    def run(self) -> None:
        """Runs it and checks what must hold."""
        data = [self.luck.randbytes(n) for n in (POOL_SIZES_BYTES if self.way.kind is Kind.CXL else SIZES_BYTES)]
        for number in range(FAULTY):
            self.clock.after(0.1 * number, lambda number=number: self.talk.ask(number, data[number], self.way))  # type: ignore[misc]
        self.clock.run(ASKED_S)
        self.script.counting = True
        self.talk.ask(FAULTY, data[FAULTY], self.way)
        self.clock.run(AGAIN_S)
        self.script.counting = False
        self.talk.ask(FAULTY + 1, data[FAULTY + 1], self.way)
        self.clock.run(END_S)
        self._judge()

    def _judge(self) -> None:
        for number, request in self.talk.requests.items():
            if request.answered_at is None:
                raise BrokenPromiseError(f"request {number} was not answered")
        answered_at = self.talk.requests[FAULTY].answered_at
        broke_at = self.script.broke_at if self.back_at is None else self.back_at
        if broke_at is not None and answered_at is not None and answered_at - broke_at > FALL_BACK_S:
            raise BrokenPromiseError(f"request {FAULTY} was answered {answered_at - broke_at:.3f} s after the fault")
        longest_s = max(end.tally.longest_fall_back_s for end in self.pair.lives)
        if longest_s > FALL_BACK_S:
            raise BrokenPromiseError(f"a transfer fell back {longest_s:.3f} s after the first sign")
        leaks = self.pair.leaks() or self.pair.leaks_after_closing()
        if leaks:
            raise BrokenPromiseError("; ".join(leaks[:3]))

    def by_stream(self) -> int:
        """How many tensors came by the stream."""
        return sum(end.tally.by_stream for end in self.pair.lives)

    # What breaks

    def _break(self, fault: Break) -> None:
        """Breaks something once the step that is under way is over."""
        self.clock.after(0.0, lambda: self._do_break(fault))

    def _do_break(self, fault: Break) -> None:
        pair = self.pair
        asker, executor = pair.asker, pair.executor
        match fault:
            case Break.STANDS:
                for pipe in self.pipes:
                    pipe.stand(0.05)
            case Break.TAKEN_BACK_BY_ASKER | Break.TAKEN_BACK_BY_EXECUTOR:
                (asker if fault is Break.TAKEN_BACK_BY_ASKER else executor).lane.take_back()
            case Break.CLOSED_BY_ASKER | Break.CLOSED_BY_EXECUTOR:
                _close(asker if fault is Break.CLOSED_BY_ASKER else executor, self.way.kind)
                if self.way.kind is Kind.CXL:
                    pair.fill_pool()  # who still looks has to be left alone
            case Break.CRASH:
                self._crash()
            case Break.NO_MEMORY:
                asker.hardware.is_out_of_memory = executor.hardware.is_out_of_memory = True
            case Break.PORT_DOWN | Break.KEYS_VOID:
                for session in (*asker.sessions.values(), *executor.sessions.values()):
                    assert isinstance(session, RdmaSession)
                    session.break_card(keys_alone=fault is Break.KEYS_VOID)
            case _:
                self._break_shared(fault)

    def _break_shared(self, fault: Break) -> None:
        """Breaks something of what both processes share."""
        pair = self.pair
        match fault:
            case Break.FULL:
                pair.fill_pool()
            case Break.SLOT_OF_ASKER | Break.SLOT_OF_EXECUTOR:
                pair.lose_slot(pair.asker if fault is Break.SLOT_OF_ASKER else pair.executor)
            case Break.PREFETCHED | Break.EVICTED:
                for host in pair.pool.hosts:
                    host.prefetch() if fault is Break.PREFETCHED else host.evict()
            case Break.DEVICE_FULL:
                pair.device.is_full = True
            case Break.DEVICE_LOST:
                pair.device.lost = True
            case Break.TORN_OF_ASKER | Break.TORN_OF_EXECUTOR:
                pair.device.tear((pair.asker if fault is Break.TORN_OF_ASKER else pair.executor).name)
            case _:
                raise AssertionError(fault)

    def _crash(self) -> None:
        """The executor dies; the asker loses the connection, and asks again when somebody is there."""
        pair = self.pair
        pair.crash(pair.executor)
        for pipe in self.pipes:
            pipe.taker = lambda _frame: None
        pair.asker.lane.break_off()
        for session in list(pair.asker.sessions.values()):
            session.close("")

        def comes_back() -> None:
            self.back_at = self.clock.now
            pair.executor = pair.start("executor")
            self.talk.join(*self._pipes())
            for number, request in list(self.talk.requests.items()):
                if request.answered_at is None:
                    self.talk.ask(number, request.data, self.way)

        self.clock.after(AWAY_S, comes_back)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one case; `failure` is empty where everything held."""

    case: Case
    by_stream: int
    failure: str


def steps_of(way: Way, seed: int = 1) -> list[str]:
    """The steps of a request and its answer by a fabric where nothing breaks."""
    story = _Story(way, None, seed)
    story.run()
    assert story.by_stream() == 0
    return story.script.steps


def cases_of(way: Way, seed: int = 1) -> Iterator[Case]:
    """Every fault at every step of one fabric."""
    steps = steps_of(way, seed)
    for fault in FAULTS[way]:
        yield from (Case(way, fault, number) for number, step in enumerate(steps) if is_of(fault, step))


def try_case(case: Case, seed: int = 1) -> Verdict:
    """Runs one case."""
    story = _Story(case.way, case, seed)
    failure = ""
    try:
        story.run()
    except (BrokenPromiseError, ProtocolError) as broken:  # a core that blames the other end is caught, too
        failure = f"at {story.clock.now:.6f} s: {broken}"
    return Verdict(case, story.by_stream(), failure)


def try_every(ways: Sequence[Way] = tuple(Way), seed: int = 1) -> list[Verdict]:
    """Runs every fault at every step of some fabrics."""
    return [try_case(case, seed) for way in ways for case in cases_of(way, seed)]


def summed(verdicts: Sequence[Verdict]) -> list[tuple[str, int, int, int]]:
    """For each fabric and fault: its name, how many steps, how many fell back to the stream, and how many broke a promise."""
    runs, fell, broke = Counter[str](), Counter[str](), Counter[str]()
    for verdict in verdicts:
        name = f"{verdict.case.way}: {verdict.case.fault}"
        runs[name] += 1
        fell[name] += verdict.by_stream > 0
        broke[name] += bool(verdict.failure)
    return [(name, runs[name], fell[name], broke[name]) for name in runs]


def _close(end: End, kind: Kind) -> None:
    session = end.sessions.get(int(kind))
    if session is not None:
        session.close("it is closed here")
