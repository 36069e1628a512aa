"""`python -m benchmarks.simulation [NAME ...]`: measures, prints a table, writes the JSON file and the documents' section.

Scenarios that are named are measured and replace their rows; the others keep those of the last run. `--quick` goes through
everything at tiny size, prints, and writes nothing unless told where. A missed goal stays in the table and fails nothing.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import Array
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.harness import FOLDER
from benchmarks.simulation import churn, deaths, horizon, memory, split, spread, stalls, steady
from benchmarks.simulation.figures import COLUMNS, Figure, merged, read, update_document, write
from benchmarks.simulation.scenario import Measure, Options
from sim.garbage import collect_seldom

PROCESSES_MAX = 2
"""Meshes simulated at once, a count: a mesh of 1,000 takes gigabytes and a core of its own."""

POLL_S = 0.5
"""Seconds between two looks at how far the others are."""

DOCUMENT = Path("docs/measurements.md")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario with its sizes."""

    measure: Measure
    sizes: tuple[int, ...]
    quick_size: int = 8
    horizon: int | None = None  # cards that a node means to hold, where the scenario is about that; in quick runs a sixteenth


SCENARIOS = {
    spread.NAME: Scenario(spread.measure, (1000,)),
    split.NAME: Scenario(split.measure, (100, 1000)),
    deaths.NAME: Scenario(deaths.measure, (30,)),
    stalls.NAME: Scenario(stalls.measure, (100,), quick_size=10),
    steady.NAME: Scenario(steady.measure, (100, 1000, 3000)),
    horizon.NAME: Scenario(horizon.measure, (1000, 4000, 10_000), quick_size=24, horizon=256),
    memory.NAME: Scenario(memory.measure, (100, 1000, 10_000), quick_size=50),
    churn.NAME: Scenario(churn.measure, (1000,)),
}

JOBS_MAX = 256
"""Jobs of one call, a count: every scenario at more sizes than anybody asks for."""


def _adopt(shares: "SynchronizedArray[float]") -> None:
    """Begins a process that does jobs and tells through `shares` how far each is."""
    global _shares  # noqa: PLW0603 - a process has one, handed to it when it begins
    _shares = shares


_shares: "SynchronizedArray[float] | None" = None


def run_job(place: int, name: str, nodes: int, seed: int, quick: bool, delays: str, peers: int | None) -> list[Figure]:
    """One scenario at one size, in whatever process."""

    def progress(share: float) -> None:
        if _shares is not None:
            _shares[place] = share

    collect_seldom()  # the mesh of the job before is collected too
    options = Options(quick=quick, delays=delays, progress=progress)
    usual = SCENARIOS[name].horizon
    peers = peers or (usual // 16 if usual is not None and quick else usual)
    figures = SCENARIOS[name].measure(nodes, seed, options if peers is None else options.with_horizon(peers))
    progress(1.0)
    return figures


def run_all(
    jobs: Sequence[tuple[str, int]], seed: int, *, quick: bool, delays: str, processes: int, peers: int | None = None
) -> list[Figure]:
    """All jobs, at most so many at once, with a bar for each; the figures in the order of the jobs."""
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True) if console.is_terminal else None
    shares: SynchronizedArray[float] = Array("d", JOBS_MAX)
    workers = min(processes, PROCESSES_MAX)
    with ProcessPoolExecutor(workers, initializer=_adopt, initargs=(shares,)) as pool, bar or nullcontext():
        futures: list[Future[list[Figure]]] = []
        for place, (name, nodes) in enumerate(jobs):
            futures.append(pool.submit(run_job, place, name, nodes, seed, quick, delays, peers))
        tasks = [bar.add_task(f"{name}, {nodes:,} nodes", total=1.0) for name, nodes in jobs] if bar else []
        waiting = set(futures)
        while waiting:
            waiting = wait(waiting, timeout=POLL_S).not_done
            for place, task in enumerate(tasks):
                if bar is not None:
                    bar.update(task, completed=shares[place])
    return [figure for future in futures for figure in future.result()]


def table(figures: Sequence[Figure]) -> Table:
    """What is printed."""
    shown = Table(title="The mesh at scale, simulated")
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column in ("work", "against") else "right")
    for figure in figures:
        shown.add_row(*figure.cells())
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Runs what the command line says, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description="The mesh at scale, on virtual time.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SCENARIOS)} (all)")
    parser.add_argument("--quick", action="store_true", help="everything at tiny size; writes nothing unless --output is given")
    parser.add_argument("--nodes", type=int, action="append", help="a size instead of the usual ones; may be given again")
    parser.add_argument("--seed", type=int, default=1, help="everything follows from it (1)")
    parser.add_argument("--delays", default="continents", help="line, grid, continents, or a file as in `python -m sim`")
    parser.add_argument("--horizon", type=int, help="cards that a node means to hold, instead of the usual number")
    parser.add_argument("--processes", type=int, default=1, help="meshes at once, at most 2 (1); the speed is true with 1")
    parser.add_argument("--output", type=Path, help=f"the JSON file ({FOLDER}/simulation.json)")
    parser.add_argument("--document", type=Path, help=f"the file with the generated section ({DOCUMENT})")
    parser.add_argument("--details", action="store_true", help="also prints the rows that the document leaves out")
    options = parser.parse_args(arguments)
    names = options.names or list(SCENARIOS)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario called {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    if any(nodes < 4 for nodes in options.nodes or ()) or options.processes < 1:
        parser.error("at least 4 nodes and one process")
    jobs = [(name, nodes) for name in names for nodes in _sizes(name, options.nodes, quick=options.quick)]
    found = run_all(
        jobs,
        options.seed,
        quick=options.quick,
        delays=options.delays,
        processes=options.processes,
        peers=options.horizon,
    )
    found += steady.trend(found, Options(quick=options.quick))
    Console(width=170).print(table([figure for figure in found if options.details or not figure.detail]))
    output = options.output or (None if options.quick else FOLDER / "simulation.json")
    document = options.document or (None if options.quick else DOCUMENT)
    figures = found if output is None else merged(read(output), found)
    if output is not None:
        write(output, figures, options.seed)
    if document is not None:
        update_document(document, figures)
    return 0


def _sizes(name: str, asked: list[int] | None, *, quick: bool) -> Sequence[int]:
    if asked:
        return asked
    return (SCENARIOS[name].quick_size,) if quick else SCENARIOS[name].sizes


if __name__ == "__main__":
    sys.exit(main())
