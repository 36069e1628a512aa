"""`make test-conformance`: the tests of the suite in several processes at once, for they wait for timers most of the time.

The tests patch modules and share nothing, so that each process may run any part of them. What a process says is shown when it has
ended; the exit code is that of the first that failed.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent

SHARES = 4
"""Processes that share the broken nodes, a count: together they use less than one core."""

AGAIN = "tests/spec/test_conformance_again.py"
PRIVATE = "tests/spec/test_conformance_private.py"
OF_NODES = "tests/spec/test_conformance_of_nodes.py"


def main() -> int:
    """Run the parts and return the exit code."""
    parts = [(f"{AGAIN}::test_a_node_passes_again_and_again", None), (f"{AGAIN}::test_a_member_of_a_mesh_passes", None)]
    parts += [(PRIVATE, None)]
    parts += [(OF_NODES, f"{number}/{SHARES}") for number in range(1, SHARES + 1)]
    running = [(f"{path} {share or ''}", *_begin(path, share)) for path, share in parts]
    codes: list[int] = []
    while running:
        for part in [part for part in running if part[1].poll() is not None]:
            running.remove(part)
            name, process, said = part
            said.seek(0)
            print(f"== {name.strip()}\n{said.read()}", flush=True)
            codes.append(process.returncode)
        time.sleep(0.2)
    return next((code for code in codes if code), 0)


def _begin(path: str, share: str | None) -> tuple[subprocess.Popen[bytes], IO[str]]:
    """Start one process; what it says goes to a file, for a pipe would fill."""
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (read when the process has ended)
    environment = os.environ if share is None else {**os.environ, "CONFORMANCE_SHARE": share}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "conformance", "-p", "no:cacheprovider", path, *sys.argv[1:]]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT), said


if __name__ == "__main__":
    sys.exit(main())
