"""One figure with what it is compared with, the JSON file, and the generated section of docs/measurements.md.

A figure is judged against its goal only at the size the goal is for: a small run says `not at that size`, never `met`.
"""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.harness import cpu_name, versions

BEGIN = "<!-- bench-sim: begin; written by `make bench-sim`, do not edit by hand -->"
END = "<!-- bench-sim: end -->"
NEVER = 10**9
"""A size that no run has: what a quick run measures is judged against no goal."""

HEADING = "## The mesh at scale, simulated"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement.

    Attributes:
        scenario: which scenario it comes from.
        work: what was done.
        ours: our figure in `unit`; None for what never happened within the time given.
        unit: "ms", "s", "kB/s", "MiB", a count (""), "%" or "times".
        nodes: size of the mesh it was measured in.
        meaning: what it says, in one sentence.
        against: whose figure stands beside it; empty where there is none.
        theirs: that figure in the same unit.
        goal: what is aimed at, in the same unit.
        goal_nodes: the smallest size that the goal is for; None where it is for every size.
        at_least: whether more is better.
        note: what a reader has to know about this run.
        detail: whether it is left out of the documents' table.
    """

    scenario: str
    work: str
    ours: float | None
    unit: str
    nodes: int
    meaning: str
    against: str = ""
    theirs: float | None = None
    goal: float | None = None
    goal_nodes: int | None = None
    at_least: bool = False
    note: str = ""
    detail: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours over theirs."""
        return None if self.ours is None or not self.theirs else self.ours / self.theirs

    @property
    def verdict(self) -> str:
        """`met`, `missed`, `not at that size`, `not measured`, or nothing where there is no goal."""
        if self.goal is None:
            return ""
        if self.note.startswith("not measured"):
            return "not measured"
        if self.goal_nodes is not None and self.nodes < self.goal_nodes:
            return "not at that size"
        if self.ours is None:
            return "missed"
        return "met" if (self.ours >= self.goal if self.at_least else self.ours <= self.goal) else "missed"

    def cells(self) -> tuple[str, ...]:
        """The row of a table: work, nodes, ours, against, theirs, ratio, goal."""
        sign = "≥" if self.at_least else "≤"
        goal = "" if self.goal is None else f"{sign} {_number(self.goal)} {self.unit}, {self.verdict}".replace(" ,", ",")
        ours = "never" if self.ours is None else f"{_number(self.ours)} {self.unit}".strip()
        return (
            self.work,
            f"{self.nodes:,}",
            "-" if self.note.startswith("not measured") else ours,
            self.against,
            "" if self.theirs is None else f"{_number(self.theirs)} {self.unit}".strip(),
            "" if self.ratio is None else f"{self.ratio:.2g}",
            goal,
        )


COLUMNS = ("work", "nodes", "ours", "against", "theirs", "ratio", "goal")


def _number(value: float) -> str:
    """Three digits that mean something, without exponents."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def read(path: Path) -> list[Figure]:
    """The figures of an earlier run, none where there is no file; rows of another shape are dropped."""
    if not path.is_file():
        return []
    names = {field.name for field in fields(Figure)}
    rows = json.loads(path.read_text())["rows"]
    return [Figure(**{key: row[key] for key in names}) for row in rows if names <= set(row)]


def merged(old: Iterable[Figure], new: Sequence[Figure]) -> list[Figure]:
    """The old figures with those of the scenarios and sizes that were measured again replaced."""
    again = {(figure.scenario, figure.nodes) for figure in new}
    return [figure for figure in old if (figure.scenario, figure.nodes) not in again] + list(new)


def write(path: Path, figures: Sequence[Figure], seed: int) -> None:
    """Writes the JSON file."""
    machine = f"{cpu_name()}, {platform.system()} {platform.release()}"
    rows = [{**asdict(figure), "ratio": figure.ratio, "verdict": figure.verdict} for figure in figures]
    body = {"cpu": machine, "versions": versions("cryptography", "msgpack", "numpy"), "seed": seed, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=2) + "\n")


def as_markdown(figures: Sequence[Figure]) -> str:
    """The section of the documents: a table, and one sentence for each figure."""
    shown = [figure for figure in figures if not figure.detail]
    lines = [
        HEADING,
        "",
        "`make bench-sim` prints these figures and writes `build/bench/simulation.json` and this section. Whole cores run on",
        "virtual time (see [simulation.md](simulation.md)). `ratio` is ours over theirs. What others say of themselves is marked",
        "as published or as arithmetic; everything else was measured in the same run.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(figure.cells()) + " |" for figure in shown),
        "",
        "What they mean:",
        "",
    ]
    meanings = dict.fromkeys((figure.work, figure.meaning) for figure in shown)
    lines += [f"- {work}: {meaning}" for work, meaning in meanings]
    notes = dict.fromkeys((figure.nodes, figure.work, figure.note) for figure in shown if figure.note)
    if notes:
        lines += ["", "Notes:", "", *(f"- {work}, {nodes:,} nodes: {note}" for nodes, work, note in notes)]
    return "\n".join(lines) + "\n"


def update_document(path: Path, figures: Sequence[Figure]) -> None:
    """Puts the section between its markers, which are added at the end where they are missing."""
    text = path.read_text()
    section = f"{BEGIN}\n{as_markdown(figures)}{END}"
    if BEGIN in text and END in text:
        before, rest = text.split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        path.write_text(before + section + after)
    else:
        path.write_text(f"{text.rstrip()}\n\n{section}\n")
