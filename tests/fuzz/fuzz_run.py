"""`make fuzz [TIME=60] [ONLY=name,…]`: fuzzes every harness for so many seconds, two at a time, and prints a table.

Ends with 1 where something was found; the input is kept under build/fuzz/findings, and what to type to see it again is printed.
With `--minimise` the corpus that grew under build/fuzz/corpus is cut down to what adds coverage and put into tests/fuzz/corpus.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from fuzz_decoders import HARNESSES  # noqa: E402
from fuzz_oracle import lines_reached  # noqa: E402

BUILD = ROOT / "build" / "fuzz"
COMMITTED = HERE / "corpus"

AT_ONCE = 2
"""Harnesses fuzzed at a time: the processors of the smallest machine this runs on."""

START_S = 120
"""Longest time in seconds that a harness may take beyond its own: importing with instrumentation, and the last input."""

LOOK_S = 15.0
"""Time in seconds between two lines about one harness."""

COMMITTED_BYTES_MAX = 4096
"""Longest input that is put into the repository by itself; longer ones only as findings, by hand."""


@dataclass
class Fuzzed:
    """What became of one harness."""

    name: str
    seconds: float = 0.0
    runs: int = 0
    judged: int = 0
    cpu_ms: float = 0.0
    peak_kib: float = 0.0
    corpus: int = 0
    fault: str = ""
    kept: Path | None = None


def fuzz(name: str, seconds: int) -> Fuzzed:
    """Fuzz one harness in a process of its own."""
    findings, corpus = BUILD / "findings", BUILD / "corpus" / name
    for folder in (findings, corpus, BUILD / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    for old in findings.glob(f"{name}-crash-*"):
        old.unlink()
    stats, log = BUILD / f"{name}.json", BUILD / "logs" / f"{name}.log"
    stats.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "fuzz_one.py"), name, str(corpus), str(stats)]
    command += [
        f"-max_total_time={seconds}",
        "-len_control=10",
        f"-artifact_prefix={findings / name}-",
        "-rss_limit_mb=4096",
        "-timeout=60",
    ]
    if (COMMITTED / name).is_dir():
        command.append(str(COMMITTED / name))
    began, looked = time.monotonic(), time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                told = figures(name, stats)
                print(
                    f"fuzz: {name}: {looked - began:.0f} s, {told.runs:,} runs, "
                    f"worst {told.cpu_ms:.1f} ms, {told.peak_kib:,.0f} KiB",
                    flush=True,
                )
            if time.monotonic() - began > seconds + START_S:
                process.kill()
    result = figures(name, stats)
    result.seconds = time.monotonic() - began
    result.corpus = len(list(corpus.iterdir()))
    kept = sorted(findings.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    if process.returncode:
        result.kept = kept[-1] if kept else None
        result.fault = result.fault or f"the fuzzer ended with {process.returncode}: see {log.relative_to(ROOT)}"
    return result


def figures(name: str, stats: Path) -> Fuzzed:
    """What the process has written of itself."""
    try:
        told = json.loads(stats.read_text())
    except (OSError, ValueError):
        return Fuzzed(name)
    return Fuzzed(name, 0.0, told["runs"], told["judged"], told["cpu_s"] * 1000, told["peak_bytes"] / 1024, 0, told["fault"])


def minimise(name: str) -> None:
    """Put the inputs that reach lines which no shorter one and no seed reaches into the repository."""
    harness = next(harness for harness in HARNESSES if harness.name == name)
    target, grown = COMMITTED / name, BUILD / "corpus" / name
    target.mkdir(parents=True, exist_ok=True)
    kept = [path.read_bytes() for path in target.iterdir() if path.name.startswith("finding-")]
    reached = set().union(*(lines_reached(harness, seed) for seed in [*harness.seeds(), *kept]))
    candidates = {path.read_bytes() for folder in (grown, target) if folder.is_dir() for path in folder.iterdir()}
    for old in target.iterdir():
        if not old.name.startswith("finding-"):
            old.unlink()
    for data in sorted(candidates, key=lambda data: (len(data), data)):
        found = lines_reached(harness, data) if len(data) <= COMMITTED_BYTES_MAX else set()
        if found - reached and data not in kept:
            reached |= found
            (target / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    print(f"fuzz: {name}: {len(list(target.iterdir()))} files kept", flush=True)


def show(results: list[Fuzzed]) -> None:
    """Print the table."""
    print(f"\n{'harness':<18}{'seconds':>9}{'runs':>11}{'judged':>9}{'worst ms':>10}{'worst KiB':>11}{'corpus':>8}  found")
    for row in results:
        print(
            f"{row.name:<18}{row.seconds:>9.0f}{row.runs:>11,}{row.judged:>9,}{row.cpu_ms:>10.2f}{row.peak_kib:>11,.0f}"
            f"{row.corpus:>8}  {row.fault or 'nothing'}"
        )
    for row in results:
        if row.kept is not None:
            again = f"{sys.executable} tests/fuzz/fuzz_judge.py {row.name} {row.kept.relative_to(ROOT)}"
            print(f"\n{row.name}: {row.fault}\n  again: {again}")


def main() -> int:
    """Fuzzes what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=int, default=60, help="seconds for each harness")
    parser.add_argument("--only", default="", help="harnesses, separated by commas: " + ", ".join(h.name for h in HARNESSES))
    parser.add_argument("--minimise", action="store_true", help="put what was learnt into tests/fuzz/corpus, and fuzz nothing")
    told = parser.parse_args()
    names = [harness.name for harness in HARNESSES]
    only = told.only.split(",") if told.only else names
    if unknown := [name for name in only if name not in names]:
        parser.error(f"no harness called {', '.join(unknown)}; there are {', '.join(names)}")
    if told.minimise:
        for name in only:
            minimise(name)
        return 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(lambda name: fuzz(name, told.time), only))
    show(results)
    return 1 if any(row.fault for row in results) else 0


if __name__ == "__main__":
    sys.exit(main())
