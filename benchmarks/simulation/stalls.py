"""A tenth of the nodes stopped for 0.5 to 5 s at any time, for an hour: who is declared dead in vain, beside SWIM.

Every declaration counts that a running observer makes of a process that was never killed. It is put down to the last stall of
the process it is about, by how long that stall lasted, or to no stall at all: then it was the observer that had been stopped.
"""

from dataclasses import dataclass, field

from benchmarks.simulation.figures import NEVER, Figure
from benchmarks.simulation.observe import Standings
from benchmarks.simulation.scenario import FORMING_SHARE, Options, rested, run_with_progress
from benchmarks.simulation.stall_plan import Stall, StallPlan
from benchmarks.simulation.swim import State, SwimConfig, SwimMesh
from protocol.membership import Standing
from sim.luck import Streams
from sim.network import delays_named
from sim.process import Process
from sim.world import World

NAME = "stalls"
HOUR_S = 3600.0
QUICK_S = 12.0
SHORT_S = 3.0
"""Seconds below which a stall must have no consequence."""
AFTER_S = 30.0
"""Seconds after the last stall in which late declarations are still counted."""
QUICK_AFTER_S = 6.0
"""The same in a quick run: until the last one has gone on."""

PLAIN = SwimConfig()
FAST = SwimConfig(period_s=0.7, timeout_s=0.35, suspicion_mult=3.0)
"""SWIM set to declare a death as fast as this mesh (all know after 6.7 s at 30 and at 100 nodes): its period exceeds the longest
round trip and a relay's, and the suspicion makes up the rest."""
HASTY = SwimConfig(period_s=0.7, timeout_s=0.35, suspicion_mult=1.0)
"""SWIM set to declare a death before this mesh does (after 5 s), nearer to when this mesh only stops sending work."""
LIFEGUARD = SwimConfig(suspicion_mult=4.0, lifeguard=True)
"""Today's memberlist."""


@dataclass
class Tally:
    """Declarations made in vain, by what they are put down to."""

    plan: StallPlan
    suspected: int = 0
    short: int = 0
    long: int = 0
    awake: int = 0
    subjects: dict[Stall, None] = field(default_factory=dict[Stall, None])  # long stalls that ended in somebody's declaration

    def note(self, at: float, subject: int) -> None:
        """One observer has declared a living process dead."""
        stall = self.plan.blamed(subject, at)
        if stall is None:
            self.awake += 1
        elif stall.lasts_s < SHORT_S:
            self.short += 1
        else:
            self.long += 1
            self.subjects[stall] = None

    @property
    def in_vain(self) -> int:
        """Declarations that no long stall excuses."""
        return self.short + self.awake


def measure(nodes: int, seed: int, options: Options) -> list[Figure]:
    """Runs this mesh and three kinds of SWIM under the same plan of stalls."""
    lasts_s = QUICK_S if options.quick else HOUR_S
    until_s = lasts_s + (QUICK_AFTER_S if options.quick else AFTER_S)
    plan = StallPlan(nodes, 0.0, lasts_s, Streams(seed).of("stalls"))
    ours = _ours(nodes, seed, plan, until_s, options.part(0.0, 0.9))
    theirs = {}
    settings = {"plain": PLAIN, "fast": FAST, "hasty": HASTY, "lifeguard": LIFEGUARD}
    for number, (name, config) in enumerate(settings.items()):
        theirs[name] = _swim(nodes, seed, config, plan, until_s, options.delays)
        options.progress(0.9 + 0.1 * (number + 1) / len(settings))
    return _figures(nodes, ours, theirs, len(plan.stalls), goal_nodes=NEVER if options.quick else 100)


def _ours(nodes: int, seed: int, plan: StallPlan, until_s: float, options: Options) -> Tally:
    world = rested(nodes, seed, options)
    tally, began = Tally(plan), world.now

    def changed(_observer: Process, subject: Process, standing: Standing) -> None:
        if standing is Standing.SUSPECTED:
            tally.suspected += 1
        elif standing is Standing.GONE:
            tally.note(world.now - began, subject.index)

    Standings(world, changed)
    for stall in plan.stalls:
        _stop(world, stall, began)
    run_with_progress(world, began + until_s, options.part(FORMING_SHARE, 1.0), steps=200)
    return tally


def _stop(world: World, stall: Stall, began: float) -> None:
    process = world.processes[stall.index]
    world.at(began + stall.begin_s, lambda: world.pause(process))
    world.at(began + stall.end_s, lambda: world.resume(process))


def _swim(nodes: int, seed: int, config: SwimConfig, plan: StallPlan, until_s: float, delays: str) -> Tally:
    tally = Tally(plan)

    def declared(at: float, _observer: int, subject: int, state: State) -> None:
        if state is State.SUSPECT:
            tally.suspected += 1
        elif state is State.DEAD:
            tally.note(at, subject)

    mesh = SwimMesh(nodes, seed, config, delays_named(delays, nodes, Streams(seed)), declared)
    for stall in plan.stalls:
        member = mesh.members[stall.index]
        mesh.at(stall.begin_s, member.pause)
        mesh.at(stall.end_s, member.resume)
    mesh.run(until_s)
    return tally


def _figures(nodes: int, ours: Tally, theirs: dict[str, Tally], stalls: int, goal_nodes: int) -> list[Figure]:
    plain, fast, hasty, lifeguard = (theirs[name] for name in ("plain", "fast", "hasty", "lifeguard"))
    short = f"declarations of death, one per observer, of living processes stopped for less than {SHORT_S:g} s or not at all"
    beyond = f"the same of processes stopped for {SHORT_S:g} s and more"
    whole = f"one run of {stalls:,} stalls, a tenth of the nodes stopped at any time"
    patient = "SWIM at this setting waits out every stall of 5 s: it needs about 11 s to notice a death, see the kills"
    rows = (
        (
            "false deaths, stalls below 3 s or none",
            ours.in_vain,
            "SWIM, as fast as ours",
            fast.in_vain,
            0.0,
            f"{short}, in {whole}; beside SWIM with a period of {FAST.period_s:g} s, which declares deaths as fast.",
            "",
        ),
        (
            "false deaths, stalls of 3 to 5 s",
            ours.long,
            "SWIM, as fast as ours",
            fast.long,
            0.01 * max(fast.long, 1),
            f"{beyond}; the goal is a hundredth of that SWIM's.",
            "",
        ),
        (
            "false deaths in all, beside slow SWIM",
            ours.in_vain + ours.long,
            "SWIM, period 1 s",
            plain.in_vain + plain.long,
            None,
            "all of them together, beside SWIM with the constants of memberlist before Lifeguard.",
            patient,
        ),
        (
            "false deaths in all, beside hasty SWIM",
            ours.in_vain + ours.long,
            "SWIM, faster than ours",
            hasty.in_vain + hasty.long,
            None,
            "all of them together, beside SWIM that declares a death after 5 s.",
            "",
        ),
        (
            "false deaths in all, beside Lifeguard",
            ours.in_vain + ours.long,
            "SWIM with Lifeguard",
            lifeguard.in_vain + lifeguard.long,
            None,
            "all of them together, beside today's memberlist.",
            "",
        ),
        (
            "stalls of 3 to 5 s that somebody took for a death",
            len(ours.subjects),
            "SWIM, as fast as ours",
            len(fast.subjects),
            None,
            "stalls after which at least one observer declared the process dead.",
            "",
        ),
        (
            "suspicions of living processes",
            ours.suspected,
            "SWIM, as fast as ours",
            fast.suspected,
            None,
            "one per observer; a suspect is sent no work, and comes back when it answers.",
            "",
        ),
    )
    figures = [
        Figure(NAME, work, float(own), "", nodes, meaning, against, float(other), goal, goal_nodes, note=note)
        for work, own, against, other, goal, meaning, note in rows
    ]
    for work, own, other in (
        ("false deaths after stalls below 3 s", ours.short, fast.short),
        ("false deaths of processes not stopped", ours.awake, fast.awake),
    ):
        figures.append(
            Figure(NAME, work, float(own), "", nodes, "a part of the first.", "SWIM, as fast as ours", float(other), detail=True)
        )
    return figures
