"""`python -m sim fabric`: requests over fabrics that break at every step, with a table at the end."""

import argparse
import json
from collections import Counter

from rich.console import Console
from rich.table import Table

from sim.fabric.deaths import POOLS, try_every_death
from sim.fabric.ends import Way
from sim.fabric.every import summed, try_every
from sim.fabric.run import FabricResult, FabricSettings, run_fabric

EXIT_BROKEN = 1
"""Exit code: something happened that must not."""

BROKEN_SHOWN_MAX = 20
"""Broken promises that are told one by one, a count: a screen."""

EXAMPLES = """
examples:
  python -m sim fabric --seeds 200            # a table of what went wrong and what came of it
  python -m sim fabric --seed 17 --json       # one seed, for programs
  python -m sim fabric --every                # each fault at each step of each fabric, one at a time
  python -m sim fabric --every --way gpu      # of one of them
"""


def main(arguments: list[str]) -> int:
    """Runs what the command line says, and returns the exit code: 1 when a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m sim fabric",
        description="Tensors by fabrics that fail, stall, corrupt and revoke at every step, while others try old leases.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1, help="everything follows from it (1)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs N seeds, from --seed on (1)")
    parser.add_argument("--requests", type=int, default=40, help="requests of each seed (40)")
    parser.add_argument("--every", action="store_true", help="each fault at each step, and a death at each write of a pool")
    parser.add_argument("--way", choices=[str(way) for way in Way], action="append", help="with --every: of this fabric (all)")
    parser.add_argument("--json", action="store_true", help="one line of JSON per seed instead of a table")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or not 1 <= options.requests <= 10_000:
        parser.error("at least one seed, and 1 to 10000 requests")
    if options.every:
        return _every([Way(way) for way in options.way or Way], options.seed)
    results: list[FabricResult] = []
    for seed in range(options.seed, options.seed + options.seeds):
        results.append(run_fabric(FabricSettings(seed, options.requests)))
        if options.json:
            print(json.dumps(results[-1].as_dict()), flush=True)
    if not options.json:
        Console().print(_table(results))
    return EXIT_BROKEN if any(result.failure for result in results) else 0


def _every(ways: list[Way], seed: int) -> int:
    """Every fault at every step, and a death at every write; the exit code."""
    verdicts = try_every(ways, seed)
    deaths = try_every_death([way for way in ways if way in POOLS], seed)
    table = Table("fabric: fault", "steps", "then by the stream", "broken")
    for name, steps, fell, broke in summed(verdicts):
        table.add_row(name, f"{steps}", f"{fell}", f"{broke}")
    for way in {death.way: None for death, _ in deaths}:
        mine = [broken for death, broken in deaths if death.way is way]
        table.add_row(f"{way}: an owner dies at a write", f"{len(mine)}", "", f"{sum(map(bool, mine))}")
    console = Console()
    console.print(table)
    broken = [f"{verdict.case}: {verdict.failure}" for verdict in verdicts if verdict.failure]
    broken += [f"{death}: {failure}" for death, failure in deaths if failure]
    for line in broken[:BROKEN_SHOWN_MAX]:
        console.print(line, markup=False, highlight=False)
    return EXIT_BROKEN if broken else 0


def _table(results: list[FabricResult]) -> Table:
    """The sums over all seeds, and what broke."""
    sums: Counter[str] = Counter()
    for result in results:
        sums.update({name: value for name, value in result.as_dict().items() if isinstance(value, int)})
    table = Table(show_header=False)
    rows = (
        ("requests, answered", f"{sums['requests']}, {sums['answered']}"),
        ("transfers by the fabric, by the stream", f"{sums['by_fabric']}, {sums['by_stream']}"),
        ("errors of the fabric", f"{sums['errors']}"),
        ("tensors taken back while in use", f"{sums['voided']}"),
        ("bytes that arrived changed", f"{sums['corrupted']}"),
        ("attacks, accesses turned away", f"{sums['attacks']}, {sums['turned_away']}"),
        ("longest way back to the stream", f"{max(result.longest_fall_back_s for result in results) * 1000:.0f} ms"),
        ("promises", "; ".join(f"seed {r.seed} {r.failure}" for r in results if r.failure) or "held"),
    )
    for name, value in rows:
        table.add_row(name, value)
    return table
