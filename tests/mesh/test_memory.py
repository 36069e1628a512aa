"""What the C library is told of freed memory, in a process of its own."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
from mesh.memory import keep_freed_memory
if {keeps} and not keep_freed_memory():
    raise SystemExit("cannot be told")
def message():
    return [bytes(1 << 20) for _ in range(4)]
message()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    message()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, keeps: bool) -> int:
    """Page faults of a hundred times four megabytes, taken and freed."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keeps=keeps)], capture_output=True, text=True, check=False)
    if "cannot be told" in done.stderr:
        pytest.skip("the C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_large_messages_take_memory_from_the_kernel_once() -> None:
    assert faults(keeps=True) < faults(keeps=False) / 10
