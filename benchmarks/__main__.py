"""`python -m benchmarks [NAME …]`: runs all benchmarks, or the named ones."""

import importlib
import sys

ALL = ("hop", "gateway", "lifecycle")
APART = ("interop",)
"""Run only by name: they need more than the project installs."""


def main() -> int:
    """Runs the benchmarks named on the command line."""
    names = sys.argv[1:] or list(ALL)
    unknown = [name for name in names if name not in (*ALL, *APART)]
    if unknown:
        print(f"no benchmark called {', '.join(unknown)}; there are {', '.join((*ALL, *APART))}", file=sys.stderr)
        return 2
    for name in names:
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
