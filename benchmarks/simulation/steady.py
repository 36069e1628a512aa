"""A mesh at rest with work coming and going: what each node receives and holds, how stale it is, how fast it is simulated.

One formed mesh serves all four, for forming it is the dearest part. The speed is taken first, before anybody watches.
"""

import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from benchmarks.simulation.arithmetic import GOALS_KB, PUBLISHED_KB, Costs, costs_at
from benchmarks.simulation.figures import NEVER, Figure
from benchmarks.simulation.load import Load
from benchmarks.simulation.memory import GOALS_MIB, MIB, bytes_alone, reachable_bytes
from benchmarks.simulation.observe import Traffic
from benchmarks.simulation.scenario import FORMING_SHARE, Options, quantile, rested, run_with_progress
from benchmarks.simulation.staleness import Staleness
from sim.bounds import variables
from sim.garbage import collect_seldom
from sim.network import PACKET_OVERHEAD_BYTES
from sim.world import World

NAME = "steady"
SETTLE_S = 60.0
"""Virtual seconds until a formed mesh is at rest: connections that are new are probed ever more seldom for half a minute."""
SPEED_S = 60.0
"""Virtual seconds of which the speed is taken: connections that were made together are probed together, once in so many."""
WINDOW_S = 60.0
LOOK_EVERY_S = 1.0
QUICK_SHARE = 0.05
"""Share of these times that a quick run takes, unitless."""
CORES_MEASURED = 5
"""Cores whose memory is counted, a count; they differ by a few percent."""
KB = 1000.0
TREND_SIZES = (10_000, 1_000_000)
"""Sizes that are not simulated here and told by the trend and by arithmetic."""
WIRE = "received per node, with packet headers"
PAYLOAD = "received per node, payload"
NEAR_RING = "a plain near-ring design (arithmetic)"


def measure(nodes: int, seed: int, options: Options) -> list[Figure]:
    """Runs one mesh for a while and looks at it from all sides."""
    scale = QUICK_SHARE if options.quick else 1.0
    world = rested(nodes, seed, options)
    load = Load(world)
    run_with_progress(world, world.now + SETTLE_S * scale, options.part(FORMING_SHARE, 0.6))
    collect_seldom()
    speed = _speed(world, SPEED_S * scale)
    traffic, staleness = Traffic(world), Staleness(world, load)
    window_s, watched = WINDOW_S * scale, options.part(0.6, 1.0)
    began, looks = world.now, max(3, round(window_s / LOOK_EVERY_S))
    for number in range(looks):
        world.run(began + window_s * (number + 1) / looks)
        staleness.look()
        watched.progress((number + 1) / looks)
    cores = [bytes_alone(process) for process in world.processes[:CORES_MEASURED]]
    return [
        *received(nodes, traffic, window_s, quick=options.quick),
        *_stale(nodes, staleness, quick=options.quick),
        *_parts(nodes, world),
        Figure(
            NAME,
            "memory of a core in the mesh",
            median(cores) / MIB,
            "MiB",
            nodes,
            "bytes reachable from one core after a minute at rest, records counted as if nobody shared them, without QUIC.",
            goal=None if options.quick else GOALS_MIB.get(nodes),
        ),
        Figure(
            NAME,
            "simulator speed",
            speed,
            "times",
            nodes,
            "virtual seconds per second of one core's time, mesh at rest, work coming and going.",
            goal=5.0,
            goal_nodes=NEVER if options.quick else 1000,
            at_least=True,
        ),
    ]


def _speed(world: World, lasts_s: float) -> float:
    """Virtual seconds per second of this process's CPU time, which other work on the machine does not change much."""
    began = time.process_time()
    world.run(world.now + lasts_s)
    return lasts_s / max(1e-9, time.process_time() - began)


def _parts(nodes: int, world: World) -> list[Figure]:
    """What the machines of one core hold, each by itself; what two of them share is counted for both."""
    node = world.processes[0].node
    return [
        Figure(
            NAME,
            f"memory of a core in the mesh: {name}",
            reachable_bytes(part) / MIB,
            "MiB",
            nodes,
            "the share of one machine.",
            detail=True,
        )
        for name, part in sorted(variables(node).items())
        if type(part).__module__.startswith("protocol.") and name not in ("config", "identity")
    ]


def received(nodes: int, traffic: Traffic, window_s: float, *, quick: bool, scenario: str = NAME) -> list[Figure]:
    """What a node has received in a window, whole and by kind of message."""
    per = nodes * window_s
    payload = sum(traffic.payload_bytes.values()) / per / KB
    kinds = sorted(traffic.messages)
    wire = sum(traffic.wire_bytes(kind) for kind in kinds) / per / KB
    goal, theirs = (None, None) if quick else (GOALS_KB.get(nodes), PUBLISHED_KB.get(nodes))
    against = NEAR_RING if theirs else ""
    rows = [
        Figure(
            scenario,
            PAYLOAD,
            payload,
            "kB/s",
            nodes,
            "bytes of all messages and datagrams that enter a core, per second, in a mesh at rest under changing load.",
            against,
            theirs,
            goal,
        ),
        Figure(
            scenario,
            WIRE,
            wire,
            "kB/s",
            nodes,
            f"the same with {PACKET_OVERHEAD_BYTES} bytes of IP, UDP and QUIC round every 1,200; acknowledgements left out.",
            against,
            theirs,
            goal,
        ),
        Figure(
            scenario,
            "messages received per node",
            sum(traffic.messages.values()) / per,
            "/s",
            nodes,
            "messages and datagrams that enter a core, per second.",
        ),
    ]
    for kind in kinds:
        rows.append(
            Figure(
                scenario,
                f"{WIRE}: {kind}",
                traffic.wire_bytes(kind) / per / KB,
                "kB/s",
                nodes,
                "the share of one kind of message.",
                detail=True,
            )
        )
        rows.append(
            Figure(
                scenario,
                f"messages received per node: {kind}",
                traffic.messages[kind] / per,
                "/s",
                nodes,
                "the share of one kind of message.",
                detail=True,
            )
        )
    return rows


def _stale(nodes: int, seen: Staleness, *, quick: bool) -> list[Figure]:
    def p99(values: Sequence[float], unknown: int) -> float | None:
        found = quantile([*values, *[float("inf")] * unknown], 0.99)
        return None if found is None or found == float("inf") else found

    limit = NEVER if quick else 100
    return [
        Figure(
            NAME,
            "staleness of the load of the 64 nearest, p99",
            p99(seen.wait_wrong_s, seen.load_unknown),
            "s",
            nodes,
            "for how long the wait that a node works out from what it knows of a peer's load has been wrong by more than a fifth"
            " of a service time; a load never heard of counts as for ever.",
            goal=3.0,
            goal_nodes=limit,
        ),
        Figure(
            NAME,
            "staleness of the counts of running and waiting requests of the 64 nearest, p99",
            p99(seen.load_wrong_s, seen.load_unknown),
            "s",
            nodes,
            "for how long what a node knows of them has not been the very truth; a change that changes no wait is told late.",
            goal=3.0,
            goal_nodes=limit,
        ),
        Figure(
            NAME,
            "age of the last beat of the 64 nearest, p99",
            p99(seen.beat_age_s, 0),
            "s",
            nodes,
            "seconds since a peer sent the last word of its load that has arrived; a load that does not change need not be told.",
        ),
        Figure(
            NAME,
            "staleness of a card anywhere, p99",
            p99(seen.card_wrong_s, seen.cards_unknown),
            "s",
            nodes,
            "for how long the card that a node holds of any other has been replaced by a newer one; a card not held counts as for"
            " ever.",
            goal=90.0,
            goal_nodes=limit,
        ),
    ]


def trend(figures: Sequence[Figure], options: Options) -> list[Figure]:
    """What the sizes that were simulated say about those that were not: a straight line for each kind, and arithmetic beside it.

    Args:
        figures: of all sizes.
        options: whose configuration the arithmetic is about.
    """
    measured = [figure for figure in figures if figure.scenario == NAME and figure.work.startswith(f"{WIRE}: ")]
    sizes = sorted({figure.nodes for figure in measured})
    if len(sizes) < 2 or options.quick:
        return []
    lines: dict[str, tuple[float, float]] = {}
    for work in sorted({figure.work for figure in measured}):
        by_size = {figure.nodes: figure.ours or 0.0 for figure in measured if figure.work == work}
        slope, offset = np.polyfit(np.array(sizes, dtype=float), np.array([by_size.get(size, 0.0) for size in sizes]), 1)
        lines[work] = (max(0.0, float(slope)), float(offset))
    shown = ", ".join(f"{size:,}" for size in sizes)
    costs = Costs.measured(figures, options.config)
    horizon = options.config.gossip.horizon
    most = int(horizon.peers * (1.0 + horizon.slack))  # whatever grows with the nodes grows with the cards held, and no farther
    rows: list[Figure] = []
    for nodes in TREND_SIZES:
        by_fit = sum(max(0.0, offset + slope * min(nodes, most)) for slope, offset in lines.values())
        rows.append(
            Figure(
                f"{NAME} trend",
                f"{WIRE}, trend",
                by_fit,
                "kB/s",
                nodes,
                f"a straight line per kind of message through {shown} nodes, carried on to {most:,}, the most cards held.",
                NEAR_RING,
                PUBLISHED_KB[nodes],
                GOALS_KB[nodes],
            )
        )
        rows.append(
            Figure(
                f"{NAME} trend",
                f"{WIRE}, arithmetic",
                costs_at(nodes, costs),
                "kB/s",
                nodes,
                "what the intervals and bounds of the configuration come to; see benchmarks/simulation/arithmetic.py.",
                NEAR_RING,
                PUBLISHED_KB[nodes],
                GOALS_KB[nodes],
            )
        )
    return rows
