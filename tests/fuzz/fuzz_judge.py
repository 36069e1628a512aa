"""Judges inputs in a process without instrumentation: `python tests/fuzz/fuzz_judge.py NAME [FILE ...]`.

With files it says of each what it does, and ends with 1 where one is a finding: this is how a finding is looked at again. Without
files it reads inputs from standard input, each with four bytes of length before it, and answers each with a line of JSON; so the
fuzzing process asks whether what looked slow to it is slow.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz_decoders import HARNESSES
from fuzz_oracle import Harness, judge


def named(name: str) -> Harness:
    """The harness of this name."""
    for harness in HARNESSES:
        if harness.name == name:
            return harness
    raise SystemExit(f"no harness called {name}; there are {', '.join(harness.name for harness in HARNESSES)}")


def serve(harness: Harness) -> None:
    """Answer until standard input ends."""
    source = sys.stdin.buffer
    while len(head := source.read(4)) == 4:
        verdict = judge(harness, source.read(int.from_bytes(head, "big")))
        print(json.dumps({"cpu_s": verdict.cpu_s, "peak_bytes": verdict.peak_bytes, "fault": verdict.fault}), flush=True)


def main() -> int:
    """Judges what the command line names."""
    harness = named(sys.argv[1])
    if len(sys.argv) == 2:
        serve(harness)
        return 0
    found = 0
    for name in sys.argv[2:]:
        verdict = judge(harness, Path(name).read_bytes())
        said = verdict.fault or "no finding"
        print(f"{name}: {said} ({verdict.cpu_s * 1000:.2f} ms, {verdict.peak_bytes / 1024:.0f} KiB)")
        found += bool(verdict.fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
