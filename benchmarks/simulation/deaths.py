"""One of thirty is killed: when its neighbours stop sending it work, when all do, and when all have declared it gone."""

from dataclasses import dataclass

from benchmarks.simulation.figures import NEVER, Figure
from benchmarks.simulation.scenario import FORMING_SHARE, Options, quantile, rested
from benchmarks.simulation.split import Agreement
from benchmarks.simulation.stalls import FAST, PLAIN
from benchmarks.simulation.swim import State, SwimConfig, SwimMesh
from protocol.membership import Standing
from sim.luck import Streams
from sim.network import delays_named
from sim.process import Process
from sim.world import World

NAME = "deaths"
KILLS = 40
QUICK_KILLS = 1
LIMIT_S = 30.0
"""Seconds after which a death that not all have noticed never is."""
STEP_S = 0.02
"""Seconds between two looks: what the figure is exact to."""
BACK_S = 60.0
"""Seconds that the mesh has to be whole again after the process was started anew."""
CALM_S = 5.0
"""Seconds between two kills, with some luck added so that they do not fall in step with the probes."""


@dataclass(frozen=True, slots=True)
class Death:
    """Seconds after a kill; None for what did not happen within the limit."""

    neighbours_s: float | None
    all_s: float | None
    gone_s: float | None


def measure(nodes: int, seed: int, options: Options) -> list[Figure]:
    """Kills one process after another, each started again and the mesh whole before the next."""
    world = rested(nodes, seed, options)
    kills = QUICK_KILLS if options.quick else KILLS
    luck = world.streams.of("kills")
    seen: list[Death] = []
    for number in range(kills):
        world.run(world.now + CALM_S + luck.uniform(0.0, 2.0))
        victim = luck.choice(world.working())
        seen.append(_kill(world, victim))
        world.start(victim)
        assert world.run_until(Agreement(world).reached, world.now + BACK_S, 0.5), f"n{victim.index} did not come back"
        options.part(FORMING_SHARE, 0.9).progress((number + 1) / kills)
    plain = _swim(nodes, seed, PLAIN, kills, options.delays)
    fast = _swim(nodes, seed, FAST, kills, options.delays)
    return _figures(nodes, seen, plain, fast, goal_nodes=NEVER if options.quick else 30)


def _kill(world: World, victim: Process) -> Death:
    linked = [process for process in world.working() if process.node.membership.is_connected(victim.peer_id)]
    others = [process for process in world.working() if process is not victim]
    world.kill(victim)
    began = world.now

    def standings(of: list[Process]) -> list[Standing]:
        return [process.node.membership.standing(victim.peer_id, world.now)[0] for process in of]

    neighbours_s = all_s = gone_s = None
    while gone_s is None and world.now < began + LIMIT_S:
        world.run(world.now + STEP_S)
        held = standings(others)
        if neighbours_s is None and Standing.ALIVE not in standings(linked):
            neighbours_s = world.now - began
        if all_s is None and Standing.ALIVE not in held:
            all_s = world.now - began
        if Standing.ALIVE not in held and Standing.SUSPECTED not in held:
            gone_s = world.now - began
    return Death(neighbours_s, all_s, gone_s)


def _swim(nodes: int, seed: int, config: SwimConfig, kills: int, delays: str) -> list[float | None]:
    """The same of SWIM: seconds until all have declared it dead, a mesh for every kill."""
    took: list[float | None] = []
    for number in range(kills):
        dead_at: dict[int, float] = {}
        streams = Streams(seed + number)
        victim = streams.of("victim").randrange(nodes)

        def declared(at: float, observer: int, subject: int, state: State) -> None:
            if subject == victim and state is State.DEAD:  # noqa: B023 - used within this turn
                dead_at.setdefault(observer, at)  # noqa: B023

        mesh = SwimMesh(nodes, seed + number, config, delays_named(delays, nodes, Streams(seed)), declared)
        began = CALM_S + streams.of("victim").uniform(0.0, 2.0)
        mesh.run(began)
        mesh.members[victim].kill()
        mesh.run(began + LIMIT_S)
        took.append(max(dead_at.values()) - began if len(dead_at) == nodes - 1 else None)
    return took


def _p(values: list[float | None], share: float) -> float | None:
    """A percentile in which what never happened took for ever."""
    found = quantile([float("inf") if value is None else value for value in values], share)
    return None if found is None or found == float("inf") else found


def _figures(nodes: int, seen: list[Death], plain: list[float | None], fast: list[float | None], goal_nodes: int) -> list[Figure]:
    rows: list[Figure] = []
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        judged = name == "p99"
        of = f"{name} of {len(seen)} kills"
        rows += [
            Figure(
                NAME,
                f"killed, neighbours know, {name}",
                _p([death.neighbours_s for death in seen], share),
                "s",
                nodes,
                f"seconds until no linked neighbour sends it work, {of}.",
                "SWIM, period 1 s, until dead",
                _p(plain, share),
                2.0 if judged else None,
                goal_nodes,
            ),
            Figure(
                NAME,
                f"killed, all know, {name}",
                _p([death.all_s for death in seen], share),
                "s",
                nodes,
                f"seconds until nobody sends it work, {of}.",
                "SWIM, period 1 s, until dead",
                _p(plain, share),
                4.0 if judged else None,
                goal_nodes,
            ),
            Figure(
                NAME,
                f"killed, all have declared it gone, {name}",
                _p([death.gone_s for death in seen], share),
                "s",
                nodes,
                f"seconds until everybody holds it for gone, {of}.",
                "SWIM set to be as fast, until dead",
                _p(fast, share),
            ),
        ]
    return rows
