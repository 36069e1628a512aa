"""One run: a mesh of so many nodes for so long, broken and mended, checked and measured.

Without faults the whole time is calm. With faults the mesh forms during the first quarter, things break until 60 % of the time is
over, and the rest is for healing; where that is not enough, up to `HEAL_S_MAX` more are given before liveness counts as failed.

Source: TigerBeetle, src/vopr.zig: safety while it breaks, liveness once it is mended.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from protocol.errors import LocalProtocolError
from protocol.node import Node, NodeConfig
from sim.callers import Callers
from sim.checks import CheckFailedError, Safety, healed, unhealed
from sim.fabric.hardware import BrokenPromiseError
from sim.faults import install, names_of, plan
from sim.figures import Figures
from sim.network import delays_named
from sim.process import MakeNode
from sim.world import World

FORM_SHARE = 0.25
"""Share of the time in which the mesh forms undisturbed."""

BREAK_SHARE = 0.6
"""Share of the time after which everything is mended."""

HEAL_S_MAX = 60.0
"""Seconds after the end in which the mesh must have healed: two of the longest back-offs of a dial."""

QUIET_S = 15.0
"""Seconds without requests after which no fabric may keep anything for one: the longest deadline, lease slack and grace."""

START_WITHIN_S = 2.0
"""Seconds in which all processes start: a site that comes up after a power cut."""

BOOTSTRAPS = 3
"""Addresses a node joins by, a count; they are drawn from the first tenth of the nodes, so that no node meets all."""

PROGRESS_S = 0.25
"""Virtual seconds between two reports of progress: a bar that moves."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is told; `engines` are names of QUIC engines with commas between them, for the tier `quic`."""

    nodes: int = 100
    duration_s: float = 60.0
    seed: int = 42
    faults: str = "none"
    delays: str = "continents"
    requests_per_s: float = 0.0
    tier: str = "core"
    engines: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run has shown; a time is None where so many nodes were never reached."""

    nodes: int
    seed: int
    virtual_s: float
    events: int
    events_per_s: float
    times_real_time: float
    records_accepted: int
    bytes_per_node_per_s: float
    spread_50_s: float | None
    spread_99_s: float | None
    spread_100_s: float | None
    error_median: float | None
    error_p90: float | None
    suspicions: int
    false_suspicions: int
    healed_after_s: float | None
    digest: str
    failure: str
    requests: int = 0
    answered: int = 0
    answered_later: int = 0  # of those, by a second or third attempt
    by_fabric: int = 0  # tensors
    by_stream: int = 0  # those that were offered and fell back

    def as_dict(self) -> dict[str, object]:
        """The fields by their names."""
        return asdict(self)


def make_world(settings: Settings) -> World:
    """The empty world of a tier; the QUIC libraries are loaded for the tier that needs them.

    Raises:
        ValueError: for a tier or an engine that does not exist.
    """
    if settings.tier == "core":
        return World(settings.seed)
    if settings.tier != "quic":
        raise ValueError(f"{settings.tier!r} is no tier; there are core and quic")
    from sim.quic import QuicWorld

    try:
        return QuicWorld(settings.seed, engines=[name.strip() for name in settings.engines.split(",") if name.strip()])
    except LocalProtocolError as fault:
        raise ValueError(fault.detail) from fault


class Run:
    """A world with its checks and figures; `simulate` runs it to its end."""

    def __init__(self, settings: Settings, make_node: MakeNode = Node, config: NodeConfig | None = None) -> None:
        """Makes the world of the settings.

        Raises:
            ValueError: for delays, faults, tiers or engines that do not exist.
        """
        self.settings = settings
        self.world = make_world(settings)
        self.world.make_node = make_node
        self.world.network.delays = delays_named(settings.delays, settings.nodes, self.world.streams)
        self.safety = Safety(self.world)
        self.figures = Figures(self.world)
        self.callers = Callers(self.world) if settings.requests_per_s > 0.0 else None
        add = self.callers.add if self.callers is not None else self.world.add
        starts, chooses = self.world.streams.of("starts"), self.world.streams.of("bootstrap")
        doors = max(BOOTSTRAPS, settings.nodes // 10)
        for _ in range(settings.nodes):
            known = self.world.processes[:doors]
            chosen = chooses.sample(known, min(BOOTSTRAPS, len(known)))
            add(bootstrap=[peer.address for peer in chosen], at=starts.uniform(0.0, START_WITHIN_S), config=config)
        self.figures.schedule(settings.duration_s)
        if self.callers is not None:
            self.callers.begin(settings.requests_per_s, START_WITHIN_S, settings.duration_s)
        names = names_of(settings.faults)
        self.mended_at = settings.duration_s * BREAK_SHARE if names else 0.0
        if names:
            swarm = settings.faults == "all"
            install(self.world, plan(self.world, names, settings.duration_s * FORM_SHARE, self.mended_at, swarm=swarm))

    def simulate(self, progress: Callable[[float], None] | None = None) -> Result:
        """Runs to the end and returns what was seen; a failed check ends the run early and stands in `failure`.

        Args:
            progress: called with the virtual time now and then.
        """
        began = time.perf_counter()
        failure = ""
        healed_after_s: float | None = None
        try:
            while self.world.now < self.settings.duration_s:
                self.world.run(min(self.world.now + PROGRESS_S, self.settings.duration_s))
                if progress is not None:
                    progress(self.world.now)
                if healed_after_s is None and self.mended_at and self.world.now >= self.mended_at:
                    healed_after_s = self.world.now - self.mended_at if unhealed(self.world) is None else None
            if not self.world.run_until(healed(self.world), self.settings.duration_s + HEAL_S_MAX, 0.5):
                failure = f"not healed: {unhealed(self.world)}"
            elif healed_after_s is None and self.mended_at:
                healed_after_s = self.world.now - self.mended_at
            if not failure and self.callers is not None:
                self.world.run(self.world.now + QUIET_S)
                leaks = self.callers.fabrics.leaks()
                failure = f"I12: {leaks[0]}" if leaks else ""
        except CheckFailedError as error:
            failure = str(error)
        except BrokenPromiseError as broken:
            failure = f"I12: {broken}"
        return self._result(time.perf_counter() - began, healed_after_s, failure)

    def _result(self, took_s: float, healed_after_s: float | None, failure: str) -> Result:
        world, figures = self.world, self.figures
        error = figures.errors[-1] if figures.errors else None
        asks = self.callers.requests.asks if self.callers is not None else []
        answered = [ask for ask in asks if ask.answered]
        return Result(
            nodes=self.settings.nodes,
            seed=self.settings.seed,
            virtual_s=world.now,
            events=world.events,
            events_per_s=world.events / took_s,
            times_real_time=world.now / took_s,
            records_accepted=figures.accepted,
            bytes_per_node_per_s=sum(process.bytes_sent for process in world.processes) / self.settings.nodes / world.now,
            spread_50_s=figures.spread_s(0.5),
            spread_99_s=figures.spread_s(0.99),
            spread_100_s=figures.spread_s(1.0),
            error_median=error[1] if error else None,
            error_p90=error[2] if error else None,
            suspicions=figures.suspicions,
            false_suspicions=figures.false_suspicions,
            healed_after_s=healed_after_s,
            digest=world.journal.digest(),
            failure=failure,
            requests=len(asks),
            answered=len(answered),
            answered_later=sum(ask.attempts > 1 for ask in answered),
            by_fabric=self.callers.fabrics.tally.by_fabric if self.callers is not None else 0,
            by_stream=self.callers.fabrics.tally.by_stream if self.callers is not None else 0,
        )
