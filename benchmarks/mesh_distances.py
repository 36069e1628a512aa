"""Distances on real sockets: what a mesh of processes says of them, and whom it asks, beside the simulator on the same matrix.

Nodes of a matrix are drawn by the seed; each is a process of the program, and a link emulator gives every pair the round trip
that the matrix has. After `--settle` seconds every node is asked how far everybody is from everybody. Then each asks for models
that it does not serve itself. The nodes are of three kinds, in turn: some serve "echo", some the model of an engine beside them,
some nothing.

It is run twice: with the program as it is, where in a mesh so small everybody measures everybody, and with few connections
(`benchmarks.mesh_node`), where most estimates rest on edges and coordinates. The simulator gets the same matrix, and so many
pings that both ends together have measured about as large a share of the pairs. Its memory says nothing of pairs that no edges
reach, so what rests on coordinates is held against its Vivaldi.

Where the system permits it, nodes are scheduled before all else, so that what else this machine does is not taken for distance.
How long a bare echo by UDP takes is told beside.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import trio

from benchmarks.echo_floor import floor_s
from benchmarks.harness import FOLDER, Row, report
from benchmarks.mesh_node import LINKS, prefer
from benchmarks.mesh_score import (
    Answers,
    Asked,
    Seconds,
    cost_s,
    errors,
    excess_s,
    is_near_equal,
    is_nearest,
    missed_percent,
    percentiles,
)
from benchmarks.openai_echo import MODEL as BESIDE
from mesh.testnet.matrix import drawn, read_matrix, topology_of
from mesh.testnet.runner import Testnet, testnet
from mesh.testnet.topology import Topology

GOAL_ERROR = 1.3
"""How many times the simulator's error the running mesh's may be, unitless."""

MISSED_PERCENT_MAX = 5.0
"""Requests of a hundred that another than the nearest may answer."""

SIM_PINGS = (1, 2, 4, 64)
"""Pings of a node that the simulator is tried with: as many as measure what the mesh measured. 64 measure all of twelve nodes."""

SIM_SEEDS = 3
"""Runs of the simulator of which the means are taken, a count: with few pings it matters whom they meet."""

SIM_S_MAX = 120.0
"""Seconds for one run of the simulator; twelve nodes take two."""

REQUEST_S_MAX = 30.0
"""Seconds for an answer of a gateway."""

PROGRAM = (sys.executable, str(Path(__file__).with_name("mesh_node.py")))
"""What runs a node."""

KINDS = (("echo",), ("beside",), ("echo",), ("beside",), ("none",))
"""Engines of the nodes, in turn."""

WHY = ("node", "truth_s", "rtt_s", "source", "jitter_s", "loss", "queue_s", "service_s", "predicted_s", "outcome")
"""What is kept of the candidate that answered and of the nearest where they are not the same."""

SOURCES = ("measured", "edges", "coordinate")


@dataclass(frozen=True, slots=True)
class Sim:
    """What the simulator found: the mean figures of two methods with so many pings of each node."""

    pings: int
    memory: dict[str, Any]
    vivaldi: dict[str, Any]


@dataclass(slots=True)
class Mesh:
    """What came of one running mesh."""

    name: str
    truth_s: Seconds
    answers: Answers
    asked: list[Asked]
    floor_s: list[float]
    links: dict[str, float] = field(default_factory=dict)

    def excess_s(self) -> float:
        """How much longer measured round trips are than the emulator was told, in seconds, the median."""
        own_s, source = self.answers.own()
        return percentiles(excess_s(np.where(source == "measured", own_s, np.nan), self.truth_s))[0]

    @property
    def right(self) -> list[bool]:
        """Whether each request went to the nearest."""
        return [is_nearest(one, self.truth_s) for one in self.asked]


@contextmanager
def engine_beside() -> Iterator[str]:
    """The URL of an engine for as long as the context lasts."""
    command = [sys.executable, "-m", "benchmarks.openai_echo"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        prefer(process.pid)
        yield url
    finally:
        process.stdin.close()
        process.wait(REQUEST_S_MAX)
        process.stdout.close()


async def run_mesh(name: str, topology: Topology, links: int, settle_s: float, requests: int) -> Mesh:
    """Starts the mesh, lets it settle, and asks it for distances and for answers."""
    count = len(topology.nodes)
    truth_s = np.array([[topology.rtt_ms(i, j) / 1e3 for j in range(count)] for i in range(count)])
    with tempfile.TemporaryDirectory(prefix="isochrone-bench-") as folder, engine_beside() as url:
        kinds = [KINDS[index % len(KINDS)] for index in range(count)]
        nodes = [
            replace(node, engines=tuple(url if engine == "beside" else engine for engine in kind))
            for node, kind in zip(topology.nodes, kinds, strict=True)
        ]
        flags = ("--network-dir", f"{folder}/network", "--links", str(links))
        async with testnet(
            replace(topology, nodes=tuple(nodes)), folder=Path(folder) / "nodes", program=PROGRAM, flags=flags
        ) as net:
            floor = await trio.to_thread.run_sync(floor_s)
            await trio.sleep(settle_s)
            answers = await gather(net)
            asked = await ask_all(net, kinds, requests, truth_s)
    return Mesh(name, truth_s, answers, asked, floor, net.links)


async def gather(net: Testnet) -> Answers:
    """What every node says of every pair."""
    count = len(net.nodes)
    place = {node.peer_id: index for index, node in enumerate(net.nodes)}
    rtt_s, source = np.full((count, count, count), np.nan), np.full((count, count, count), "", dtype="U16")
    for judge, node in enumerate(net.nodes):
        async with httpx.AsyncClient(base_url=node.gateway, trust_env=False, timeout=REQUEST_S_MAX) as client:
            for centre in net.nodes:
                rows = (await client.get(f"/mesh/near/{centre.peer_id}")).raise_for_status().json()["peers"]
                for row in rows:
                    at = judge, place[centre.peer_id], place[row["peer_id"]]
                    rtt_s[at], source[at] = row["rtt_s"], row["source"]
    return Answers(rtt_s, source)


async def ask_all(net: Testnet, kinds: Sequence[Sequence[str]], requests: int, truth_s: Seconds) -> list[Asked]:
    """Has every node ask for each model that it does not serve, one request at a time."""
    found = []
    for engine, model in (("echo", "echo"), ("beside", BESIDE)):
        serving = tuple(index for index, kind in enumerate(kinds) if engine in kind)
        for asker in range(len(net.nodes)):
            if asker not in serving:
                found += [await ask(net, asker, model, serving, truth_s) for _ in range(requests)]
    return found


async def ask(net: Testnet, asker: int, model: str, serving: tuple[int, ...], truth_s: Seconds) -> Asked:
    """One request, and who answered it."""
    place = {node.peer_id: index for index, node in enumerate(net.nodes)}
    body = {"model": model, "messages": [{"role": "user", "content": "one two three"}]}
    async with httpx.AsyncClient(base_url=net.nodes[asker].gateway, trust_env=False, timeout=REQUEST_S_MAX) as client:
        response = await client.post("/v1/chat/completions", json=body)
        answerer = place.get(response.headers.get("x-mesh-node", ""))
        found = Asked(asker, answerer, serving)
        if is_nearest(found, truth_s) or not response.is_success:
            return found
        told = (await client.get(f"/mesh/explain/{response.headers['x-request-id']}")).raise_for_status().json()
        nearest = min(serving, key=lambda peer: truth_s[asker, peer])
        lines = []
        for row in told["candidates"]:
            if (peer := place[row["peer_id"]]) in (answerer, nearest):
                path = (await client.get(f"/mesh/distance/{row['peer_id']}")).raise_for_status().json()
                whole = {**row, **path, "node": peer, "truth_s": float(truth_s[asker, peer])}
                lines.append({key: whole.get(key) for key in WHY})
    return replace(found, why=lines)


def simulated(matrix: Path, share: float, seed: int, wait_ms: float) -> Sim:
    """The simulator's figures where both ends together have measured about this share of the pairs.

    Args:
        matrix: what the mesh was given too.
        share: of the pairs, 0 to 1.
        seed: of the first run.
        wait_ms: mean delay of each packet beside its way, in milliseconds.
    """
    found = []
    for pings in SIM_PINGS if share < 1.0 else SIM_PINGS[-1:]:
        command = [
            sys.executable, "-m", "sim", "coordinates", str(matrix), "--method", "memory,vivaldi", "--json",
            "--pings-per-node", str(pings), "--seed", str(seed), "--seeds", str(SIM_SEEDS), "--jitter", f"{wait_ms:.4f}",
        ]  # fmt: skip
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SIM_S_MAX).stdout
        memory, vivaldi = (json.loads(told)["methods"][name]["mean"] for name in ("memory", "vivaldi"))
        found.append(Sim(pings, memory, vivaldi))
    return min(found, key=lambda figures: abs(figures.memory["pairs_measured"] - share))


def rows_of(mesh: Mesh, sim: Sim, waiting: Sim) -> list[Row]:
    """The table's rows for one mesh; errors are in thousandths of the round trip.

    Args:
        mesh: what was measured.
        sim: the simulator's figures.
        waiting: and those where every packet waits for half as long as the mesh's round trips are too long, the median.
    """
    own_s, source = mesh.answers.own()
    rows = [Row(f"{mesh.name}: pairs measured by either end", 100 * mesh.answers.measured_share(), "%")]
    known = errors(np.where(source == "coordinate", np.nan, own_s), mesh.truth_s)
    for rank, value in zip((50, 90, 95), percentiles(known), strict=True):
        for said, one in (("the simulator", sim), ("where packets wait as here", waiting)):
            against = f"{said}, {one.memory['pairs_measured']:.0%} measured"
            theirs = 1e3 * one.memory[f"error_p{rank}"]
            rows.append(
                Row(
                    f"{mesh.name}: error p{rank}, {len(known)} by samples or edges", 1e3 * value, "‰", against, theirs, GOAL_ERROR
                )
            )
    others_s, others_source = mesh.answers.of_others()
    for kind in SOURCES:
        against = "the simulator's Vivaldi, waiting" if kind == "coordinate" else ""
        for said, some_s, rests in (("own", own_s, source), ("of two others", others_s, others_source)):
            some = errors(np.where(rests == kind, some_s, np.nan), mesh.truth_s)
            for rank, value in zip((50, 90), percentiles(some), strict=False):
                theirs = 1e3 * waiting.vivaldi[f"error_p{rank}"] if against else None
                if len(some):
                    rows.append(Row(f"{mesh.name}: {said}, {len(some)} by {kind}, p{rank}", 1e3 * value, "‰", against, theirs))
    return rows + rows_of_machine(mesh, own_s, source) + rows_of_requests(mesh)


def rows_of_machine(mesh: Mesh, own_s: Seconds, source: Any) -> list[Row]:
    """How much longer round trips were than the emulator was told, and what the machine alone adds."""
    late = percentiles(excess_s(np.where(source == "measured", own_s, np.nan), mesh.truth_s))
    floor = percentiles(np.array(mesh.floor_s))
    return [
        Row(f"{mesh.name}: measured longer than emulated, p{rank}", 1e3 * ours, "ms", "a bare echo by UDP", 1e3 * theirs)
        for rank, ours, theirs in zip((50, 90), late, floor, strict=False)
    ] + [
        Row(f"{mesh.name}: the emulator's lateness each way, p50", mesh.links.get("late_p50_us", 0.0) / 1e3, "ms"),
        Row("  the same, p99", mesh.links.get("late_p99_us", 0.0) / 1e3, "ms"),
        Row(
            "  datagrams it dropped, of all",
            1e3 * mesh.links.get("dropped", 0.0) / max(1.0, mesh.links.get("forwarded", 0.0)),
            "‰",
        ),
    ]


def rows_of_requests(mesh: Mesh) -> list[Row]:
    """Who answered."""
    budget = f"a budget; {len(mesh.asked)} requests"
    goal = 1.0 if mesh.name == "full" else None
    equal = [is_near_equal(one, mesh.truth_s) for one in mesh.asked]
    cost = cost_s(mesh.asked, mesh.truth_s)
    return [
        Row(f"{mesh.name}: not to the nearest", missed_percent(mesh.right), "%", budget, MISSED_PERCENT_MAX, goal),
        Row("  nor to one as near within 5 %", missed_percent(equal), "%", budget, MISSED_PERCENT_MAX, goal),
        Row("  lost by that, mean round trip", 1e3 * float(np.mean(cost)), "ms"),
    ]


def choose_matrix(text: str, nodes: int, seed: int, folder: Path) -> Path:
    """Writes the drawn part of a matrix file, or of a made-up one, where both the mesh and the simulator read it."""
    if Path(text).suffix:
        whole = read_matrix(Path(text))
        chosen = drawn(len(whole.names), nodes, seed)
        rtt_ms = whole.rtt_ms[:, chosen][:, :, chosen]
    else:
        from sim.coordinates.synthetic import named

        made = named(text, seed)
        if made is None:
            raise SystemExit(f"{text}: neither a .npz or .csv file nor a name as synthetic-12 or volatile-12")
        chosen = drawn(made.nodes, nodes, seed)
        rtt_ms = made.rtt_s[:, chosen][:, :, chosen].astype(np.float64) * 1e3
    path = folder / "matrix.npz"
    np.savez(path, rtt=rtt_ms)
    return path


def main(argv: Sequence[str] = ()) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks mesh_distances",
        description=__doc__,
        epilog="example:\n  python -m benchmarks mesh_distances --matrix rtt.npz --seed 2 --only full",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--matrix", default="synthetic-200", help="an .npz or .csv file of round trips, or a made-up one by name (synthetic-200)")
    add("--nodes", type=int, default=12, help="how many of its nodes, each a process (12)")
    add("--seed", type=int, default=1, help="which of them (1)")
    add("--settle", type=float, default=150.0, help="seconds until they are asked: jitter remembers the start for 100 (150)")
    add("--requests", type=int, default=8, help="requests of each node for each model it does not serve (8)")
    add("--only", choices=("full", "few"), help="only the program as it is, or only the one with few connections")
    told = parser.parse_args(list(argv))
    rows: list[Row] = []
    wrong: list[Asked] = []
    with tempfile.TemporaryDirectory(prefix="isochrone-bench-") as folder:
        path = choose_matrix(told.matrix, told.nodes, told.seed, Path(folder))
        matrix = read_matrix(path)
        topology = topology_of(matrix, range(len(matrix.names)), told.matrix)
        for name, links in (("full", 0), ("few", LINKS)):
            if told.only in (None, name):
                mesh = trio.run(run_mesh, name, topology, links, told.settle, told.requests)
                share, wait_ms = mesh.answers.measured_share(), max(0.0, 1e3 * mesh.excess_s() / 2)
                sim, waiting = (simulated(path, share, told.seed, each_ms) for each_ms in (0.0, wait_ms))
                rows += rows_of(mesh, sim, waiting)
                wrong += [one for one, right in zip(mesh.asked, mesh.right, strict=True) if not right]
    report(
        "mesh_distances",
        f"Distances on real sockets: {told.nodes} processes, {Path(told.matrix).name}, seed {told.seed}",
        rows,
        ("trio", "qh3", "numpy"),
    )
    said = [asdict(one) for one in wrong]
    (FOLDER / "mesh_distances_missed.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
