"""A simulation of sites at the terminal: a progress bar, tables or JSON, a page with a picture, and an exit code.

Source: docs/simulate.md.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from sim.simulate import Outcome, Simulation
from sim.simulate_report import as_json, page, tables
from sim.sites import SECONDS_MAX, SitesError, read_plan

EXIT_FAILED = 1
"""Exit code: a promise to callers was broken, which is a fault of the mesh."""

EXIT_USAGE = 2
"""Exit code: the file or a flag cannot be used."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as of all commands."""


def run_simulation(file: Path | None, *, for_s: float, seed: int, output: Path, quiet: bool) -> int:
    """Simulates what a file says and shows what was seen.

    Args:
        file: the plan.
        for_s: seconds of load.
        seed: what all luck follows from.
        output: the folder for the page.
        quiet: print one line of JSON and nothing else.

    Returns:
        The exit code.
    """
    if file is None:
        return _refused("name a file; `isochrone simulate --example` prints one to start from")
    if not 0.0 < for_s <= SECONDS_MAX:
        return _refused(f"--for {for_s:g}: give seconds above 0, {SECONDS_MAX:g} at most")
    try:
        plan = read_plan(file)
    except SitesError as error:
        return _refused(str(error))
    outcome = _watched(Simulation(plan, seed, for_s), quiet=quiet)
    picture = output / f"{plan.name}-seed-{seed}.html"
    try:
        output.mkdir(parents=True, exist_ok=True)
        picture.write_text(page(plan, outcome))
    except OSError as error:
        return _refused(f"--output {output}: the page cannot be written ({error.strerror})")
    _show(outcome, picture, quiet=quiet)
    return {"check": EXIT_FAILED, "interrupt": EXIT_INTERRUPTED}.get(outcome.ended, os.EX_OK)


def _refused(text: str) -> int:
    print(f"isochrone: {text}", file=sys.stderr)
    return EXIT_USAGE


def _watched(simulation: Simulation, *, quiet: bool) -> Outcome:
    """Runs with a progress bar where there is somebody to see it."""
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True) if console.is_terminal and not quiet else None
    with bar or nullcontext():
        task = bar.add_task("simulating", total=1.0) if bar else None

        def advance(share: float) -> None:
            if bar is not None and task is not None:
                bar.update(task, completed=share)

        return simulation.run(advance)


def _show(outcome: Outcome, picture: Path, *, quiet: bool) -> None:
    if quiet:
        print(json.dumps({**as_json(outcome), "picture": str(picture)}))
        return
    console = Console()
    for table in tables(outcome):
        console.print(table)
    console.print(f"{outcome.load_s:g} s of load, seed {outcome.seed}\npicture  {picture}", highlight=False, soft_wrap=True)
    if outcome.ended == "interrupt":
        console.print("ended early by Ctrl-C")
    if outcome.failure:
        print(f"isochrone: a promise was broken, which is a fault of the mesh: {outcome.failure}", file=sys.stderr)
