"""Churn: a mesh whose nodes are replaced all the while, and how often a request finds an able peer at the first attempt.

Replacements come as a Poisson process, so many that half of the nodes are replaced in a period. The one who goes is drawn from
those that run; one in two dies without a word, the other drains and says goodbye. A newcomer with a new identity starts at the
same moment and joins by some that run. Requests come as a Poisson process too, each at a node that has had a moment to join, for
a model that this node does not serve itself, so that a peer must be found.

Source: docs/measurements.md, the row on churn; Rhea et al., "Handling Churn in a DHT" (USENIX ATC 2004) for Poisson replacement.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from sim.engines import EngineConfig
from sim.network import delays_named
from sim.process import MakeNode, Process
from sim.promises import Promises
from sim.requests import Ask, Requests, failure_of
from sim.world import World

BOOTSTRAPS = 3
"""Addresses a newcomer joins by, a count: as in a run."""

START_WITHIN_S = 2.0
"""Seconds in which the first nodes start: as in a run."""

STEP_S = 0.25
"""Virtual seconds between two reports of progress."""

TOKENS = 4
"""Tokens of an answer, a count: enough that an answer can break, few enough that engines stay idle and only the choice counts."""


@dataclass(frozen=True, slots=True)
class ChurnSettings:
    """What a run of churn is told.

    Attributes:
        nodes: how many run at any time.
        half_life_s: seconds in which half as many are replaced.
        load_s: seconds of churn and requests, after `form_s` for the mesh to form.
        requests_per_s: of all callers together.
        models: how many there are; every node serves one, in turn, and a newcomer that of the one it replaces.
        joined_s: how long a node runs before somebody asks there.
        deadline_s: of a request.
        delays: as `python -m sim --delays`.
    """

    nodes: int = 1000
    half_life_s: float = 300.0
    load_s: float = 60.0
    seed: int = 42
    requests_per_s: float = 20.0
    models: int = 8
    form_s: float = 15.0
    joined_s: float = 5.0
    deadline_s: float = 10.0
    delays: str = "continents"


@dataclass(frozen=True, slots=True)
class ChurnResult:
    """What a run of churn has shown.

    Attributes:
        requests: those whose caller's node lived to see the end.
        able_at_first: of them, whose first attempt went to a peer that ran, took work and served the model.
        found_at_first: of those, which that peer answered.
        answered: by whomever.
        failures: why the others failed.
        first_failures: of those that were not found at first, what was wrong: "not able" or "failed there".
        died: nodes that died without a word.
        left: nodes that left in order.
    """

    requests: int
    able_at_first: int
    found_at_first: int
    answered: int
    failures: dict[str, int]
    first_failures: dict[str, int]
    died: int
    left: int

    @property
    def share(self) -> float:
        """The share of requests that found a qualified living peer at the first attempt and were answered by it."""
        return self.found_at_first / self.requests if self.requests else 0.0


@dataclass
class Churn:
    """A world under churn; `run` runs it to its end. The world is there for more checks and faults."""

    settings: ChurnSettings
    make_node: MakeNode | None = None
    world: World = field(init=False)
    requests: Requests = field(init=False)
    died: int = 0
    left: int = 0

    def __post_init__(self) -> None:
        settings = self.settings
        world = self.world = World(settings.seed)
        if self.make_node is not None:
            world.make_node = self.make_node
        world.network.delays = delays_named(settings.delays, settings.nodes, world.streams)
        self.requests = Requests(world)
        self.promises = Promises(self.requests)
        self._luck, self._callers = world.streams.of("churn"), world.streams.of("callers")
        self._engines = [EngineConfig(f"model-{number}", slots=4, first_token_s=0.05) for number in range(settings.models)]
        self._up: list[Process] = []  # those that run and are not about to leave, oldest first
        doors = max(BOOTSTRAPS, settings.nodes // 10)
        # In order, so that whoever joins finds those it joins by running and waits for no dial to time out.
        for index, at in enumerate(sorted(self._luck.uniform(0.0, START_WITHIN_S) for _ in range(settings.nodes))):
            self._add(self._engines[index % len(self._engines)], self._up[:doors], at)
        world.at(settings.form_s, self._begin)

    def run(self, progress: Callable[[float], None] | None = None) -> ChurnResult:
        """Runs to the end.

        Args:
            progress: called with the virtual time now and then.

        Raises:
            CheckFailedError: a promise to callers was broken.
        """
        settings, world = self.settings, self.world
        end_s = settings.form_s + settings.load_s
        limit_s = end_s + settings.deadline_s + 1.0
        while world.now < end_s or (world.now < limit_s and any(not ask.over for ask in self.requests.asks)):
            world.run(world.now + STEP_S)
            if progress is not None:
                progress(world.now)
        return self._result()

    def _begin(self) -> None:
        settings = self.settings
        until = settings.form_s + settings.load_s
        replacements_per_s = settings.nodes / 2.0 / settings.half_life_s
        self.requests.arrive("replacements", replacements_per_s, until, self._replace)
        self.requests.arrive("requests", settings.requests_per_s, until, self._ask)

    def _add(self, engine: EngineConfig, known: list[Process], at: float) -> None:
        """Lets a new node start at a time, joining by some of those that are known."""
        chosen = self._luck.sample(known, min(BOOTSTRAPS, len(known)))
        self._up.append(self.requests.add((engine,), bootstrap=[peer.address for peer in chosen], at=at))

    def _replace(self) -> None:
        """One node goes, another comes."""
        leaver = self._up.pop(self._luck.randrange(len(self._up)))
        engine = next(engine for engine in self._engines if self.requests.is_able(leaver, engine.model))
        if self._luck.random() < 0.5:
            self.died += 1
            self.world.kill(leaver)
        else:
            self.left += 1
            self.requests.leave(leaver)
        self._add(engine, self._up, self.world.now)

    def _ask(self) -> None:
        """Somebody asks at a node that has joined, for a model that it does not serve."""
        joined = [process for process in self._up if process.works and self._has_joined(process)]
        if not joined:
            return
        process = self._callers.choice(joined)
        models = [engine.model for engine in self._engines if not self.requests.is_able(process, engine.model)]
        self.requests.ask(process, self._callers.choice(models), TOKENS, deadline_s=self.settings.deadline_s)

    def _has_joined(self, process: Process) -> bool:
        return self.world.now - process.started_at >= self.settings.joined_s

    def _result(self) -> ChurnResult:
        asks = [ask for ask in self.requests.asks if ask.over and not ask.node_died]
        missed = [ask for ask in asks if not ask.answered_at_first]
        return ChurnResult(
            requests=len(asks),
            able_at_first=sum(ask.first_peer_able for ask in asks),
            found_at_first=len(asks) - len(missed),
            answered=sum(ask.answered for ask in asks),
            failures=dict(Counter(failure_of(ask) for ask in asks if not ask.answered).most_common()),
            first_failures=dict(Counter(map(_missed_by, missed)).most_common()),
            died=self.died,
            left=self.left,
        )


def _missed_by(ask: Ask) -> str:
    if ask.first_peer is None:
        return "nobody was asked"
    return "failed there" if ask.first_peer_able else "not able"


__all__ = ["Churn", "ChurnResult", "ChurnSettings"]
