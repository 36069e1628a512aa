"""What every benchmark shares: alternating runs, rows, the table and the JSON file."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path("build/bench")


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement.

    Attributes:
        work: what was done.
        ours: our figure, in `unit`.
        unit: "us", "ms", "s", "MiB", ...
        against: what a user would pick instead, or a budget; empty where there is nothing to compare with.
        theirs: its figure, in the same unit and run; None where nothing is compared.
        goal: the ratio aimed at (ours / theirs), or None.
        is_more_better: whether the goal is the least ratio, as for throughput, and not the largest.
    """

    work: str
    ours: float
    unit: str
    against: str = ""
    theirs: float | None = None
    goal: float | None = None
    is_more_better: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours over theirs."""
        return None if not self.theirs else self.ours / self.theirs

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.ratio is None or self.goal is None:
            return None
        return self.ratio >= self.goal if self.is_more_better else self.ratio <= self.goal

    def goal_text(self) -> str:
        """The goal as the table shows it."""
        if self.goal is None:
            return ""
        return f"{'≥' if self.is_more_better else '≤'} {self.goal:g}" + {None: "", True: " met", False: " missed"}[self.is_met]


def cpu_name() -> str:
    """The processor's own name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions(*names: str) -> dict[str, str]:
    """Versions of the interpreter and of the named distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def alternate(
    runs: int, *contestants: Callable[[], list[float]], of: Callable[[list[float]], float] = statistics.median
) -> list[list[float]]:
    """Lets the contestants run in turn and gathers what each one measured, run by run.

    Args:
        runs: of each.
        contestants: each measures once per call.
        of: what is taken of a run.

    Returns:
        For each contestant what was taken of its runs, medians unless told otherwise.
    """
    taken: list[list[float]] = [[] for _ in contestants]
    for _ in range(runs):
        for place, contestant in enumerate(contestants):
            taken[place].append(of(contestant()))
    return taken


def worst_of_hundred(samples: list[float]) -> float:
    """The 99th percentile."""
    return sorted(samples)[int(len(samples) * 0.99)]


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process has used so far, all its threads, in steps of the kernel's clock (10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, proc(5)


def told(value: float, unit: str) -> str:
    """A figure with two digits behind the point where it is small, and one else."""
    return f"{value:,.{2 if value < 10 else 1}f} {unit}"


def report(
    name: str, title: str, rows: Sequence[Row], packages: Sequence[str], notes: Sequence[str] = (), also: Mapping[str, str] = {}
) -> None:
    """Prints the table and writes the JSON file.

    Args:
        name: of the file.
        title: of the table.
        rows: what was measured.
        packages: distributions whose versions are told.
        notes: what was left out and why, a sentence each.
        also: versions of what is installed elsewhere.
    """
    console = Console(width=132)
    machine = f"{cpu_name()}, {platform.system()} {platform.release()}"
    used = versions(*packages) | dict(also)
    table = Table(title=title, caption=f"{machine}; " + ", ".join(f"{k} {v}" for k, v in used.items()))
    for column in ("work", "ours", "against", "theirs", "ratio", "goal"):
        table.add_column(column, justify="left" if column in ("work", "against") else "right")
    for row in rows:
        table.add_row(
            row.work,
            told(row.ours, row.unit),
            row.against,
            "" if row.theirs is None else told(row.theirs, row.unit),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.goal_text(),
        )
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    body = {"cpu": machine, "versions": used, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows], "notes": list(notes)}
    (FOLDER / f"{name}.json").write_text(json.dumps(body, indent=2) + "\n")
