"""How a mesh would do with someone's sites, engines and load: one plan, run on virtual time, and what its callers saw.

The mesh forms first, then the load runs for as long as is wanted while the plan's failures happen, then what is still under way
may end. Callers of a site sit at its nodes that run, each at one drawn by luck; a caller whose site has none running is counted
as one without a node. Whatever is promised of requests is looked at all the while: a broken promise ends the run and is a fault
of the mesh, not of the plan.

Source: docs/simulate.md.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from protocol.inference import Finished
from sim.checks import CheckFailedError
from sim.faults import split
from sim.network import LAN_ONE_WAY_S
from sim.process import Process
from sim.promises import END_SLACK_S, Promises
from sim.requests import Ask, Requests, failure_of
from sim.sites import Failure, Load, Plan, SiteDelays, What
from sim.world import World

FORM_S = 10.0
"""Seconds for the mesh to form before the load begins: five times what a thousand nodes need to hear of one another."""

START_WITHIN_S = 1.0
"""Seconds in which all processes start."""

DOORS = 3
"""Sites whose first nodes the others join by, a count: one of them may be down."""

LENGTH_MAX = 4.0
"""The longest answer in mean answers, unitless: an exponential draw passes it once in 55 times, and engines cut answers off."""

STEP_S = 0.25
"""Virtual seconds between two reports of progress: a bar that moves."""

BINS = 60
"""Points of a line over time in the picture, a count: what the eye tells apart."""


@dataclass(frozen=True, slots=True)
class SiteResult:
    """What the callers of one site saw; times are in seconds, None where nothing was answered.

    Attributes:
        requests: how many were asked.
        answered: how many were answered in full.
        answered_at: by which sites, the most frequent first.
        first_p50_s: median time to the first output.
        first_p95_s: and the 95th percentile.
        error_median: median of |predicted - measured| / measured of that time.
        found_at_first: share whose first attempt went to a peer that was able, and was answered by it.
        retried: how many took more than one attempt.
        failures: why the others failed, the most frequent first.
        series: (seconds of load, median, 95th percentile) of the time to first output.
    """

    site: str
    requests: int
    answered: int
    answered_at: dict[str, int]
    first_p50_s: float | None
    first_p95_s: float | None
    error_median: float | None
    found_at_first: float | None
    retried: int
    failures: dict[str, int]
    series: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class EngineResult:
    """How one model of one site was used: `busy` is the share of its slots in use, `queue_p95_s` the wait for a slot."""

    site: str
    model: str
    answered: int
    busy: float
    queue_p95_s: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation has shown; `ended` is "time", "interrupt" or "check", and `failure` the broken promise."""

    name: str
    seed: int
    load_s: float
    sites: tuple[SiteResult, ...]
    engines: tuple[EngineResult, ...]
    ended: str
    failure: str
    digest: str


@dataclass
class Simulation:
    """A plan with its world; `run` runs it to its end."""

    plan: Plan
    seed: int
    for_s: float
    world: World = field(init=False)
    requests: Requests = field(init=False)
    without_node: Counter[str] = field(default_factory=Counter[str])

    def __post_init__(self) -> None:
        plan = self.plan
        self._site_of_node = plan.site_of
        world = self.world = World(self.seed, SiteDelays(plan.site_of, plan.rtt_s))
        world.network.jitter_of = self._jitter_s
        if any(site.loss for site in plan.sites):
            losing = world.streams.of("loss of lines")
            world.network.losses.append(lambda _now, one, other, _datagram: losing.random() < self._loss(one, other))
        self.requests = Requests(world)
        self.promises = Promises(self.requests)
        luck = world.streams.of("starts")
        # In order, so that whoever joins finds those it joins by running.
        starts = sorted(luck.uniform(0.0, START_WITHIN_S) for _ in plan.site_of)
        doors: list[Process] = []
        for index, site_index in enumerate(plan.site_of):
            site = plan.sites[site_index]
            known = [door.address for door in doors]
            process = self.requests.add(site.models, bootstrap=known, at=starts[index])
            if index == plan.site_of.index(site_index) and len(doors) < DOORS:
                doors.append(process)
        for load in plan.loads:
            world.at(FORM_S, partial(self._begin, load))
        for failure in plan.failures:
            world.at(FORM_S + failure.from_s, partial(self._fail, failure))

    @property
    def end_s(self) -> float:
        """When the last answer is due, in virtual seconds."""
        return FORM_S + self.for_s + max(load.deadline_s for load in self.plan.loads) + 2.0 * END_SLACK_S

    def run(self, progress: Callable[[float], None] | None = None) -> Outcome:
        """Runs to the end, or to Ctrl-C, and returns what was seen until then.

        Args:
            progress: called with the share that is done now and then.
        """
        world, load_end_s = self.world, FORM_S + self.for_s
        ended, failure = "time", ""
        try:
            while world.now < load_end_s or (world.now < self.end_s and any(not ask.over for ask in self.requests.asks)):
                world.run(world.now + STEP_S)
                if progress is not None:
                    progress(min(1.0, world.now / load_end_s))
        except CheckFailedError as error:
            ended, failure = "check", str(error)
        except KeyboardInterrupt:
            ended = "interrupt"
        load_s = min(max(world.now - FORM_S, 0.0), self.for_s)
        return Outcome(
            name=self.plan.name,
            seed=self.seed,
            load_s=load_s,
            sites=tuple(self._site_result(site.name, load_s) for site in self.plan.sites if self._asks_at(site.name)),
            engines=tuple(self._engine_results(load_s)),
            ended=ended,
            failure=failure,
            digest=world.journal.digest(),
        )

    # What happens

    def _jitter_s(self, one: int, other: int) -> float:
        sites, site_of = self.plan.sites, self._site_of_node
        if site_of[one] == site_of[other]:
            return LAN_ONE_WAY_S / 10.0
        return sites[site_of[one]].jitter_s + sites[site_of[other]].jitter_s

    def _loss(self, one: int, other: int) -> float:
        sites, site_of = self.plan.sites, self._site_of_node
        if site_of[one] == site_of[other]:
            return 0.0
        return 1.0 - (1.0 - sites[site_of[one]].loss) * (1.0 - sites[site_of[other]].loss)

    def _begin(self, load: Load) -> None:
        """Lets the callers of one entry come."""
        name = f"{self.plan.sites[load.site].name} {load.model}"
        callers, lengths = self.world.streams.of(f"callers {name}"), self.world.streams.of(f"lengths {name}")
        nodes = [index for index, site in enumerate(self._site_of_node) if site == load.site]

        def come() -> None:
            running = [self.world.processes[index] for index in nodes if self.world.processes[index].works]
            length = min(LENGTH_MAX * load.tokens, lengths.expovariate(1.0 / load.tokens))
            if not running:
                self.without_node[self.plan.sites[load.site].name] += 1
                return
            process = callers.choice(running)
            self.requests.ask(
                process,
                load.model,
                max(1, round(length)),
                deadline_s=load.deadline_s,
                output_tokens=load.max_tokens,
                stream=load.stream,
                label=self.plan.sites[load.site].name,
            )

        self.requests.arrive(name, load.requests_per_s, FORM_S + self.for_s, come)

    def _fail(self, failure: Failure) -> None:
        """Breaks what a failure breaks, and mends it in time."""
        world = self.world
        processes = [world.processes[index] for index in failure.nodes]
        if failure.what is What.CUT:
            cut = split(frozenset(failure.nodes))
            cut.begin(world)
            if failure.to_s is not None:
                world.at(FORM_S + failure.to_s, lambda: cut.end(world))
            return
        for process in processes:
            if failure.what is What.DRAIN:
                self.requests.leave(process)
            elif process.running:
                world.kill(process)
        if failure.to_s is not None:
            world.at(FORM_S + failure.to_s, lambda: self._restart(processes))

    def _restart(self, processes: Sequence[Process]) -> None:
        for process in processes:
            if not process.running:
                self.world.start(process)

    # What was seen

    def _asks_at(self, site: str) -> bool:
        return any(self.plan.sites[load.site].name == site for load in self.plan.loads)

    def _site_of(self, ask: Ask) -> str:
        """The site of the peer that answered."""
        assert ask.answered_by is not None
        return self.plan.sites[self._site_of_node[self.world.by_id[ask.answered_by].index]].name

    def _site_result(self, site: str, load_s: float) -> SiteResult:
        asks = [ask for ask in self.requests.asks if ask.label == site and ask.over]
        answered = [ask for ask in asks if ask.answered]
        firsts = sorted(ask.first_s for ask in answered if ask.first_s is not None)
        errors = [
            abs(ask.predicted_s - ask.first_s) / ask.first_s for ask in answered if ask.predicted_s is not None and ask.first_s
        ]
        failures = Counter(failure_of(ask) for ask in asks if not ask.answered)
        if self.without_node[site]:
            failures["no node of the site runs"] = self.without_node[site]
        total = len(asks) + self.without_node[site]
        return SiteResult(
            site=site,
            requests=total,
            answered=len(answered),
            answered_at=dict(Counter(self._site_of(ask) for ask in answered).most_common()),
            first_p50_s=quantile(firsts, 0.5),
            first_p95_s=quantile(firsts, 0.95),
            error_median=median(errors) if errors else None,
            found_at_first=sum(ask.answered_at_first for ask in asks) / total if total else None,
            retried=sum(ask.attempts > 1 for ask in asks),
            failures=dict(failures.most_common()),
            series=series_of(answered, load_s),
        )

    def _engine_results(self, load_s: float) -> list[EngineResult]:
        ends: dict[tuple[str, str], list[Finished]] = {}
        for ask in self.requests.asks:
            if isinstance(ask.end, Finished) and ask.answered_by is not None:
                ends.setdefault((self._site_of(ask), ask.request.model), []).append(ask.end)
        results = []
        for site in self.plan.sites:
            for engine in site.models:
                mine = ends.get((site.name, engine.model), [])
                slot_s = site.nodes * engine.slots * load_s
                busy = sum(end.timing.service_s for end in mine) / slot_s if slot_s else 0.0
                waits = sorted(end.timing.queue_s for end in mine)
                results.append(EngineResult(site.name, engine.model, len(mine), busy, quantile(waits, 0.95)))
        return results


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which a share of the ordered values lies; None of nothing."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def series_of(asks: Sequence[Ask], load_s: float) -> tuple[tuple[float, float, float], ...]:
    """Median and 95th percentile of the time to first output over the seconds of load."""
    width_s = max(load_s / BINS, 1.0)
    bins: dict[int, list[float]] = {}
    for ask in asks:
        if ask.first_s is not None:
            bins.setdefault(int((ask.asked_at - FORM_S) / width_s), []).append(ask.first_s)
    points = []
    for number, values in sorted(bins.items()):
        values.sort()
        middle, high = quantile(values, 0.5), quantile(values, 0.95)
        assert middle is not None
        assert high is not None
        points.append(((number + 0.5) * width_s, middle, high))
    return tuple(points)
