"""What every benchmark shares: alternating runs, rows, the table and the JSON file."""

import json
import platform
import statistics
from collections.abc import Callable, Sequence
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
    """

    work: str
    ours: float
    unit: str
    against: str = ""
    theirs: float | None = None
    goal: float | None = None

    @property
    def ratio(self) -> float | None:
        """Ours over theirs: below 1 is better for every unit used here."""
        return None if not self.theirs else self.ours / self.theirs


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


def report(name: str, title: str, rows: Sequence[Row], packages: Sequence[str]) -> None:
    """Prints the table and writes the JSON file."""
    console = Console(width=132)
    machine = f"{cpu_name()}, {platform.system()} {platform.release()}"
    used = versions(*packages)
    table = Table(title=title, caption=f"{machine}; " + ", ".join(f"{k} {v}" for k, v in used.items()))
    for column in ("work", "ours", "against", "theirs", "ratio", "goal"):
        table.add_column(column, justify="left" if column in ("work", "against") else "right")
    for row in rows:
        ratio, goal = row.ratio, row.goal
        met = "" if ratio is None or goal is None else " met" if ratio <= goal else " missed"
        table.add_row(
            row.work,
            f"{row.ours:,.1f} {row.unit}",
            row.against,
            "" if row.theirs is None else f"{row.theirs:,.1f} {row.unit}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if goal is None else f"≤ {goal:g}{met}",
        )
    console.print(table)
    FOLDER.mkdir(parents=True, exist_ok=True)
    body = {"cpu": machine, "versions": used, "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]}
    (FOLDER / f"{name}.json").write_text(json.dumps(body, indent=2) + "\n")
