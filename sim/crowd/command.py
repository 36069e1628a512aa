"""`python -m sim crowd`: an attack by a crowd of sybils, with a table at the end."""

import argparse
import json
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from sim.crowd.attacks import ATTACKS
from sim.crowd.run import Calm, CrowdResult, CrowdSettings, Delivered, attacked, prepare, undisturbed
from sim.garbage import collect_seldom

Result = TypeVar("Result")

EXIT_MISSED = 1
"""Exit code: a goal was missed."""

EXAMPLES = """
examples:
  python -m sim crowd --attack eclipse-all --honest 60 --sybils 240 --links 15
  python scripts/compiled.py -m sim crowd --attack covert-flash --honest 1000 --sybils 4000 --links 100
  python -m sim crowd --attack all --honest 60 --sybils 240 --links 15 --json
  python -m sim crowd --attack eclipse-all --carded --honest 60 --sybils 240 --links 15

attacks:
"""


def main(arguments: list[str]) -> int:
    """Runs what the command line says, and returns the exit code: 1 when a goal was missed."""
    told = "\n".join(f"  {name:20} {attack.says}" for name, attack in ATTACKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m sim crowd",
        description="Sybils against a mesh of the product's own cores: how many cards still arrive, how late, over which links.",
        epilog=EXAMPLES + told,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--attack", required=True, choices=(*ATTACKS, "all"), metavar="NAME", help="one of those below, or all")
    parser.add_argument("--honest", type=int, default=1000, help="honest nodes (1000)")
    parser.add_argument("--sybils", type=int, default=4000, help="sybils (4000)")
    parser.add_argument("--links", type=int, default=100, help="connections that each sybil wants (100)")
    parser.add_argument("--carded", action="store_true", help="sybils publish cards, so that they may be dialled and kept")
    parser.add_argument("--network", choices=("open", "private"), default="open", help="private: a handshake needs a certificate")
    parser.add_argument("--seed", type=int, default=1, help="everything follows from it (1)")
    parser.add_argument(
        "--for", dest="measure_s", type=float, default=60.0, metavar="SECONDS", help="in which cards are sent (60)"
    )
    parser.add_argument("--cards", type=int, default=20, help="cards that are followed (20)")
    parser.add_argument("--json", action="store_true", help="one line of JSON per attack instead of a table")
    options = parser.parse_args(arguments)
    if options.honest < 20 or options.sybils < 0 or options.honest + options.sybils > 60_000 or options.links < 1:
        parser.error("at least 20 honest nodes, at most 60000 nodes in all, at least one link for each sybil")
    settings = CrowdSettings(
        attack=options.attack,
        honest=options.honest,
        sybils=options.sybils,
        links=options.links,
        seed=options.seed,
        measure_s=options.measure_s,
        cards=options.cards,
        carded=options.carded,
        private=options.network == "private",
    )
    collect_seldom()
    results: list[CrowdResult] = []
    for result in run_all(settings, list(ATTACKS) if options.attack == "all" else [options.attack]):
        results.append(result)
        if options.json:
            print(json.dumps(result.as_dict()), flush=True)
        elif len(results) == 1 and options.attack != "all":
            Console().print(table(results))
    if not options.json and len(results) > 1:
        Console(width=None if sys.stdout.isatty() else 200).print(table(results))
    return EXIT_MISSED if any(result.missed for result in results) else 0


def run_all(settings: CrowdSettings, names: list[str]) -> Iterator[CrowdResult]:
    """Runs attacks one after another; those on the same mesh begin with copies of it, for making it takes the longest."""
    rest = names
    while rest:
        first = replace(settings, attack=rest[0])
        alike = [name for name in rest if _mesh_of(replace(settings, attack=name)) == _mesh_of(first)]
        rest = [name for name in rest if name not in alike]
        stage = prepare(first, _progress)
        calm: dict[bool, Calm] = {}
        for name in alike:
            chosen = replace(settings, attack=name)
            victims = name == "censoring"  # half of the cards are those of the victim then
            if victims not in calm:
                calm[victims] = in_a_copy(partial(undisturbed, stage, chosen))
            yield in_a_copy(partial(attacked, stage, chosen, calm[victims]))


def in_a_copy(work: Callable[[], Result]) -> Result:
    """Does some work in a copy of this process, which leaves everything here as it is, and hands on what comes of it."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reads)
            with os.fdopen(writes, "wb") as pipe:
                pickle.dump(work(), pipe)
            status = 0
        finally:
            if status:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(status)  # no clean-up of what is this process's
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    if not told:
        raise ChildProcessError("a run ended without a result; what went wrong stands above")
    result: Result = pickle.loads(told)  # noqa: S301 - written by a copy of this process a moment ago
    return result


def _mesh_of(settings: CrowdSettings) -> tuple[bool, float]:
    """What the mesh of an attack is made by, beside the seed and the numbers."""
    return settings.plan.forms, settings.plan.honest_late_s


def _progress(what: str, share: float) -> None:
    """Shows what is under way: a line that changes on a terminal, one for each part elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{what} {share:4.0%}".ljust(60), end="", file=sys.stderr, flush=True)
    elif share >= 1.0:
        print(what, file=sys.stderr, flush=True)


def table(results: list[CrowdResult]) -> Table:
    """The figures, an attack a column."""
    shown = Table(title="A crowd of sybils")
    shown.add_column("")
    for result in results:
        shown.add_column(result.attack)
    rows: dict[str, Callable[[CrowdResult], str]] = {
        "honest nodes, sybils, seed": lambda r: f"{r.honest}, {r.sybils}, {r.seed}",
        "deliveries": lambda r: f"{r.under.share:.3%}",
        "delivery p50": lambda r: _ms(r.under.p50_s),
        "delivery p99": lambda r: _ms(r.under.p99_s),
        "undisturbed p99": lambda r: _ms(r.calm.p99_s),
        "ratio of p99": lambda r: f"{r.ratio:.2f}",
        "slowest": lambda r: _ms(r.under.longest_s),
        "of or to the victim": lambda r: "-" if r.of_victim is None else _told(r.of_victim),
        "fewest honest links chosen": lambda r: f"{r.out_min}",
        "nodes and seconds below 2": lambda r: f"{r.out_few_share:.3%}",
        "mesh links to sybils, mean, end": lambda r: f"{r.sybil_links_share:.0%}, {r.sybil_links_end:.0%}",
        "chosen connections to sybils, dials": lambda r: f"{r.sybil_chosen_share:.1%}, {r.sybil_dials}",
        "scores of sybils <0, 0, >0": lambda r: f"{r.sybil_signs.below}, {r.sybil_signs.zero}, {r.sybil_signs.above}",
        "honest held for bad": lambda r: f"{r.honest_below_zero}",
        "dials of sybils": lambda r: f"{r.dials}",
        "closed to them": lambda r: ", ".join(f"{code} {number}" for code, number in r.closed.items()) or "-",
        "most connections, of sybils": lambda r: f"{r.connected_max}, {r.sybils_max}",
        "messages/s of a node, calm": lambda r: f"{r.messages_per_s:.1f}, {r.calm_messages_per_s:.1f}",
        "handshakes refused": lambda r: ", ".join(f"{code} {number}" for code, number in r.refused.items()) or "-",
        "left behind": lambda r: "; ".join(r.left_behind) or "-",
        "memory, time": lambda r: f"{r.memory_mb:.0f} MB, {r.took_s:.0f} s",
        "missed": lambda r: "; ".join(r.missed) or "-",
    }
    for name, of in rows.items():
        shown.add_row(name, *(of(result) for result in results))
    return shown


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _told(delivered: Delivered) -> str:
    return f"{delivered.share:.1%}, p99 {_ms(delivered.p99_s)}"
