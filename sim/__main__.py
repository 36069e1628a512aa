"""`python -m sim`: a mesh on virtual time, with a table, a picture and a digest at the end.

The exit code is 1 when a check failed; then the seed, the faults that were on and the last events are printed, and the same
command with `--replay` prints every event.
"""

import argparse
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sim.garbage import collect_seldom
from sim.picture import draw
from sim.run import Result, Run, Settings

EXIT_FAILED = 1
"""Exit code: a check failed."""

EXIT_USAGE = 2
"""Exit code: an argument cannot be used."""


def main(arguments: list[str] | None = None) -> int:
    """Runs what the command line says, and returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["crowd"]:
        from sim.crowd.command import main as crowd

        return crowd(arguments[1:])
    if arguments[:1] == ["fabric"]:
        from sim.fabric.command import main as fabric

        return fabric(arguments[1:])
    if arguments[:1] == ["coordinates"]:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the program does (node.py); read when numpy is imported
        from sim.coordinates.command import main as coordinates

        return coordinates(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m sim", description="Whole nodes on virtual time, from one seed.")
    parser.add_argument("--nodes", type=int, default=100, help="how many nodes (100)")
    parser.add_argument("--for", dest="duration_s", type=float, default=60.0, metavar="SECONDS", help="virtual seconds (60)")
    parser.add_argument("--seed", type=int, default=42, help="everything follows from it (42)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs N seeds, from --seed on (1)")
    parser.add_argument("--faults", default="none", help="all, honest, none, or names with commas between them (none)")
    parser.add_argument("--delays", default="continents", help="line, grid, continents, or a .npz, .npy or .csv file")
    parser.add_argument("--requests", type=float, default=0.0, metavar="RATE", help="requests per second of all callers (none)")
    parser.add_argument(
        "--tier", choices=("core", "quic"), default="core", help="cores alone, or over real QUIC endpoints (core)"
    )
    parser.add_argument("--engine", default="", help="QUIC engines that the nodes take in turn, as qh3,aioquic (the fastest)")
    parser.add_argument("--json", action="store_true", help="one line of JSON per run instead of tables")
    parser.add_argument("--replay", action="store_true", help="prints every event")
    parser.add_argument("--output", type=Path, default=Path("build/sim"), help="where the pictures go (build/sim)")
    options = parser.parse_args(arguments)
    if options.nodes < 2 or options.nodes > 60_000 or options.duration_s <= 0.0 or options.seeds < 1:
        parser.error("at least 2 and at most 60000 nodes, a time above 0 and at least one seed")
    collect_seldom()
    failed = 0
    for seed in range(options.seed, options.seed + options.seeds):
        settings = Settings(
            options.nodes,
            options.duration_s,
            seed,
            options.faults,
            options.delays,
            options.requests,
            options.tier,
            options.engine,
        )
        try:
            run = Run(settings)
        except ValueError as error:
            print(f"sim: {error}", file=sys.stderr)
            return EXIT_USAGE
        result = _watched(run, replay=options.replay, quiet=options.json)
        failed += bool(result.failure)
        path = _draw(run, options.output)
        if options.json:
            print(json.dumps({**result.as_dict(), "picture": str(path)}))
        else:
            Console().print(_table(result))
            print(f"picture  {path}\ndigest   {result.digest}")
        if result.failure:
            _explain(run, result)
    return EXIT_FAILED if failed else 0


def _watched(run: Run, *, replay: bool, quiet: bool) -> Result:
    """Runs with a progress bar, or with every event on standard output."""
    if replay:
        run.world.journal.watch = print
    if replay or quiet:
        return run.simulate()
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True) if console.is_terminal else None
    with bar or nullcontext():
        task = bar.add_task(f"seed {run.settings.seed}", total=run.settings.duration_s) if bar else None

        def advance(now: float) -> None:
            if bar is not None and task is not None:
                bar.update(task, completed=now)

        return run.simulate(advance)


def _draw(run: Run, folder: Path) -> Path:
    settings = run.settings
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"nodes-{settings.nodes}-seed-{settings.seed}.svg"
    title = f"{settings.nodes} nodes, {settings.duration_s:g} s, seed {settings.seed}, faults {settings.faults}"
    path.write_text(draw(run.figures, title))
    return path


def _table(result: Result) -> Table:
    """The figures, one a row."""
    table = Table(show_header=False)
    rows = (
        ("nodes", f"{result.nodes}"),
        ("virtual seconds", f"{result.virtual_s:.1f}"),
        ("events", f"{result.events}"),
        ("events per second", f"{result.events_per_s:.0f}"),
        ("speed against real time", f"{result.times_real_time:.2f}"),
        ("records accepted", f"{result.records_accepted}"),
        ("bytes sent per node and second", f"{result.bytes_per_node_per_s:.0f}"),
        (
            "new card at 50 / 99 / 100 % of nodes",
            " / ".join(map(_ms, (result.spread_50_s, result.spread_99_s, result.spread_100_s))),
        ),
        ("coordinate error, median / 90 %", f"{_share(result.error_median)} / {_share(result.error_p90)}"),
        ("suspicions, of them false", f"{result.suspicions}, {result.false_suspicions}"),
        ("healed after", "-" if result.healed_after_s is None else f"{result.healed_after_s:.1f} s"),
        ("requests, answered, by a later attempt", f"{result.requests}, {result.answered}, {result.answered_later}"),
        ("tensors by a fabric, fallen back to the stream", f"{result.by_fabric}, {result.by_stream}"),
        ("checks", result.failure or "held"),
    )
    for name, value in rows:
        table.add_row(name, value)
    return table


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _explain(run: Run, result: Result) -> None:
    """Says on standard error what is needed to find the fault."""
    lines = [f"check failed with seed {result.seed} at {result.virtual_s:.6f} s: {result.failure}"]
    lines += [f"fault on: {text}" for text in run.world.faults_on.values()]
    lines += ["the last events:", *run.world.journal.last(), "the same command with --replay prints all of them"]
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
