"""`python -m benchmarks [NAME …]`: runs all benchmarks, or the named ones."""

import importlib
import sys

ALL = ("hop", "gateway", "lifecycle")


def main() -> int:
    """Runs the benchmarks named on the command line."""
    names = sys.argv[1:] or list(ALL)
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no benchmark called {', '.join(unknown)}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    for name in names:
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
