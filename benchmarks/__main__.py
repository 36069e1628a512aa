"""`python -m benchmarks [NAME …] [--FLAG …]`: runs all benchmarks, or the named ones; flags go to those that take some.

With `--undisturbed` the kernel runs the benchmark and all that it starts before other programs, where it lets us: what those do
is then no part of a figure. They stand still meanwhile, so it is for machines on which that hurts nobody.
"""

import ast
import importlib
import sys
import time
from pathlib import Path

from benchmarks.mesh_node import prefer

ALL = (
    "hop", "native", "bulk", "throughput", "gateway", "ping", "handshake", "lifecycle", "idle", "relay", "distances",
)  # fmt: skip
"""Run where none is named: some ten minutes on two cores, and twice that where other programs are busy."""
APART = ("flame", "fabric", "crossover", "interop", "mesh_distances", "hostile")
"""Run only by name: they need more than the project installs, or take long: `hostile` most of an hour without --quick."""

FLAGGED = ("hostile", "mesh_distances", "flame")
"""Those that take flags."""


USAGE = """usage: python -m benchmarks [NAME ...] [--undisturbed] [--FLAG ...]

Prints tables and writes build/bench/NAME.json; all are run where none is named. With --undisturbed other programs stand still
meanwhile, where the system lets us: for latencies on a machine that others use. Other flags go to those that take some.
"""
EXAMPLE = """
For example:

  python -m benchmarks hop ping
  python -m benchmarks gateway --undisturbed
  python -m benchmarks hostile --help"""
UNDISTURBED = "--undisturbed"


def line_of(name: str) -> str:
    """The first sentence of a benchmark's own description."""
    text = ast.get_docstring(ast.parse((Path(__file__).parent / f"{name}.py").read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def overview() -> str:
    """What there is, a line each, and an example."""
    width = max(map(len, (*ALL, *APART)))
    rows = [f"  {name.ljust(width)}  {line_of(name)}{'' if name in ALL else ' (only by name)'}" for name in (*ALL, *APART)]
    return "\n".join([USAGE, *rows, EXAMPLE])


def main() -> int:
    """Runs the benchmarks named on the command line."""
    at = next((at for at, word in enumerate(sys.argv) if word.startswith("-")), len(sys.argv))
    names, flags = sys.argv[1:at] or list(ALL), sys.argv[at:]
    if UNDISTURBED in flags:
        flags.remove(UNDISTURBED)
        prefer()
    if at == 1 and flags and flags[0] in ("-h", "--help"):
        print(overview())
        return 0
    unknown = [name for name in names if name not in (*ALL, *APART)]
    if unknown:
        print(f"no benchmark called {', '.join(unknown)}; there are {', '.join((*ALL, *APART))}", file=sys.stderr)
        return 2
    for name in names:
        began = time.perf_counter()
        run = importlib.import_module(f"benchmarks.{name}").main
        run(flags) if name in FLAGGED else run()
        print(f"{name}: {time.perf_counter() - began:.0f} s\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
