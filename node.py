"""The program: `isochrone`, or `python node.py`.

The command line lives in `mesh.cli`; `isochrone up` composes configuration, parts and one nursery in `mesh.service`. The
simulator, which the shell does not know, has its command added here.

numpy's matrices are small here, and a second thread for one takes more than it gives where other work waits for the processor
(up to thirteen times the processor time was measured); so it gets one, unless the owner says otherwise.
"""

import gc
import os
import sys

# Nothing of what imports leave behind is garbage; to look for some again and again takes a sixth of the start.
gc.disable()

from mesh.cli import app, run  # noqa: E402
from sim.command import simulate  # noqa: E402

gc.enable()
app.command(simulate)


def main() -> None:
    """Run the command line and leave with its exit code."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # it is read when numpy is imported
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
