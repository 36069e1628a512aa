"""When an input is a finding: it raises what is not declared, takes too long, or makes too much of a little.

Time is processor time of the thread, so that a busy machine is no finding, and the best of several repeats counts. Memory is the
peak that tracemalloc sees above what there was before: it counts what Python's own allocators hand out, which is where decoders
written in Python put what they make. Both are looked at in a process without coverage instrumentation, which makes everything
three to five times slower (`fuzz_judge.py`). The fast tests, which must not depend on a clock, count lines of Python instead.
"""

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

CPU_S_MAX = 0.010
"""Longest processor time of one input in seconds: as long as a loop may be held by what one peer sends at once."""

MEMORY_BYTES_MAX = 4 << 20
"""Most memory that one input may take at its peak: 64 times the longest input."""

INPUT_BYTES_MAX = 65_536
"""Longest input: the control message of the mesh."""

REPEATS = 7
"""How often a suspicious input is run before its best time is believed."""

LINES_MAX = 600_000
"""Most lines of Python that an input of the corpus may run: a walk through bytes runs 65,000 a millisecond
where this was written."""


@dataclass(frozen=True)
class Harness:
    """One decoder under test.

    Attributes:
        name: what `make fuzz ONLY=` calls it.
        run: takes what `prepare` made and the input; what it returns is held while memory is looked at. Where it is a generator,
            each of its steps is an input of its own to the clock: one datagram of several.
        declared: exceptions that are an answer, and no finding.
        seeds: good and bad inputs from the specification's vectors and from the encoders.
        covers: functions of `fuzz_scan.decoders` that it reaches; `module:*` for all private ones of a module.
        prepare: what is made anew for each input and not measured.
        mutate: changes an input so that it stays meaningful: input, longest length, seed; None to leave it to libFuzzer.
    """

    name: str
    run: Callable[[Any, bytes], object]
    declared: tuple[type[BaseException], ...]
    seeds: Callable[[], list[bytes]]
    covers: tuple[str, ...]
    prepare: Callable[[bytes], Any] = lambda _data: None
    mutate: Callable[[bytes, int, int], bytes | None] | None = None


def contained(steps: Iterator[object], declared: tuple[type[BaseException], ...]) -> Iterator[object]:
    """The same steps, the last of which may be a declared error."""
    try:
        yield from steps
    except declared as error:
        yield error


def either(name: str, *parts: Harness) -> Harness:
    """One harness of several small ones; the first byte of an input chooses which."""

    def part_of(data: bytes) -> tuple[Harness, bytes]:
        return parts[data[0] % len(parts) if data else 0], data[1:]

    def run(state: Any, data: bytes) -> object:
        part, rest = part_of(data)
        try:
            made = part.run(state, rest)
        except part.declared as error:
            return error
        return contained(made, part.declared) if isinstance(made, Iterator) else made

    def prepare(data: bytes) -> Any:
        part, rest = part_of(data)
        return part.prepare(rest)

    def mutate(data: bytes, bytes_max: int, seed: int) -> bytes | None:
        part, rest = part_of(data)
        changed = part.mutate(rest, bytes_max - 1, seed) if part.mutate is not None else None
        return None if changed is None else data[:1] + changed

    def seeds() -> list[bytes]:
        return [bytes([which]) + seed for which, part in enumerate(parts) for seed in part.seeds()]

    covers = tuple(name for part in parts for name in part.covers)
    return Harness(name, run, (), seeds, covers, prepare, mutate if any(part.mutate for part in parts) else None)


@dataclass
class Verdict:
    """What one input did.

    Attributes:
        cpu_s: best processor time in seconds of one unit.
        peak_bytes: most memory above what there was before.
        fault: what makes it a finding; empty where nothing does.
    """

    cpu_s: float = 0.0
    peak_bytes: int = 0
    fault: str = ""


def call(harness: Harness, state: Any, data: bytes) -> object:
    """Run once; a declared error is a result."""
    try:
        made = harness.run(state, data)
        return list(made) if isinstance(made, Iterator) else made
    except harness.declared as error:
        return error


def cpu_s(harness: Harness, data: bytes) -> float:
    """Processor time of one run, or of the longest step of one."""
    state = harness.prepare(data)
    longest_s, kept = 0.0, []
    began = time.thread_time()
    try:
        made = harness.run(state, data)
        if isinstance(made, Iterator):
            while True:
                began = time.thread_time()
                kept.append(next(made))
                longest_s = max(longest_s, time.thread_time() - began)
        return time.thread_time() - began
    except StopIteration:
        return longest_s
    except harness.declared:
        return max(longest_s, time.thread_time() - began)


def peak_bytes(harness: Harness, data: bytes) -> int:
    """Most memory that one run took."""
    state = harness.prepare(data)
    call(harness, harness.prepare(data), data)  # what is imported, compiled or cached the first time is not the input's doing
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = call(harness, state, data)
        _, peak = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return peak - before


def judge(harness: Harness, data: bytes) -> Verdict:
    """Say whether an input is a finding; it is run several times."""
    verdict = Verdict()
    try:
        verdict.cpu_s = cpu_s(harness, data)
        for _ in range(REPEATS):
            if verdict.cpu_s <= CPU_S_MAX:
                break
            verdict.cpu_s = min(verdict.cpu_s, cpu_s(harness, data))
        verdict.peak_bytes = peak_bytes(harness, data)
    except BaseException as error:  # noqa: BLE001  (whatever else comes out of a decoder is a finding)
        verdict.fault = f"raises {type(error).__name__}: {error}"
        return verdict
    if verdict.cpu_s > CPU_S_MAX:
        verdict.fault = f"takes {verdict.cpu_s * 1000:.1f} ms of processor time; {CPU_S_MAX * 1000:.0f} are allowed"
    elif verdict.peak_bytes > MEMORY_BYTES_MAX:
        verdict.fault = f"takes {verdict.peak_bytes / 2**20:.1f} MiB; {MEMORY_BYTES_MAX >> 20} are allowed"
    return verdict


def lines_of(harness: Harness, data: bytes) -> int:
    """How many lines of Python one run executes."""
    state = harness.prepare(data)
    count = longest = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Callable[..., Any]:
        nonlocal count
        if event == "line":
            count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        made = harness.run(state, data)
        for _ in made if isinstance(made, Iterator) else ():
            longest, count = max(longest, count), 0
    except harness.declared:
        pass
    finally:
        sys.settrace(before)
    return max(longest, count)


def lines_reached(harness: Harness, data: bytes) -> set[tuple[str, int]]:
    """Which lines of the product one run executes."""
    state, reached = harness.prepare(data), set[tuple[str, int]]()

    def trace(frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("protocol", "mesh"):
            return None
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call(harness, state, data)
    finally:
        sys.settrace(before)
    return reached


def reached_by(harness: Harness, inputs: list[bytes]) -> set[str]:
    """The functions that the inputs reach, `module:qualified name`."""
    reached: set[str] = set()

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            reached.add(f"{frame.f_globals.get('__name__')}:{frame.f_code.co_qualname}")

    for data in inputs:
        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            call(harness, harness.prepare(data), data)
        finally:
            sys.setprofile(before)
    return reached
