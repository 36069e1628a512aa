"""The program: `isochrone`, or `python node.py`.

The command line lives in `mesh.cli`; `isochrone up` composes configuration, parts and one nursery in `mesh.service`. The
simulator, which the shell does not know, has its command added here.
"""

import gc
import sys

# Nothing of what imports leave behind is garbage; to look for some again and again takes a sixth of the start.
gc.disable()

from mesh.cli import app, run  # noqa: E402
from sim.command import simulate  # noqa: E402

gc.enable()
app.command(simulate)


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
