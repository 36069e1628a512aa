"""`python -m benchmarks [NAME …] [--FLAG …]`: runs all benchmarks, or the named ones; flags go to those that take some."""

import importlib
import sys

ALL = ("hop", "native", "gateway", "relay", "lifecycle", "distances", "hostile")
APART = ("interop", "mesh_distances")
"""Run only by name: they need more than the project installs, or take minutes on an idle machine."""

FLAGGED = ("hostile", "mesh_distances")
"""Those that take flags."""


def main() -> int:
    """Runs the benchmarks named on the command line."""
    at = next((at for at, word in enumerate(sys.argv) if word.startswith("-")), len(sys.argv))
    names, flags = sys.argv[1:at] or list(ALL), sys.argv[at:]
    unknown = [name for name in names if name not in (*ALL, *APART)]
    if unknown:
        print(f"no benchmark called {', '.join(unknown)}; there are {', '.join((*ALL, *APART))}", file=sys.stderr)
        return 2
    for name in names:
        run = importlib.import_module(f"benchmarks.{name}").main
        run(flags) if name in FLAGGED else run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
