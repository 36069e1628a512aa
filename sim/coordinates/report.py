"""What is shown of runs: a table with a method a column, and JSON with every figure.

With several seeds a figure is their mean, and its smallest and largest stand beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from sim.coordinates.matrices import RttMatrix
from sim.coordinates.run import Figures, Outcome, mean

Row = tuple[str, tuple[str, ...], str]
"""What a row is called, which figures stand in it, and how one is written."""

ROWS: tuple[Row, ...] = (
    ("error p50", ("error_p50",), ".3f"),
    ("error p90", ("error_p90",), ".3f"),
    ("error p95", ("error_p95",), ".3f"),
    ("error of pairs nobody measured, p50 / p90", ("error_unmeasured_p50", "error_unmeasured_p90"), ".3f"),
    ("pairs measured", ("pairs_measured",), ".1%"),
    *(
        row
        for name, said in (("16", "16"), ("64", "64"), ("all", "all"))
        for row in (
            (f"nearest of {said}: ratio p50 / p90", (f"nearest_{name}_ratio_p50", f"nearest_{name}_ratio_p90"), ".2f"),
            ("  penalty p50 / p90, ms", (f"nearest_{name}_penalty_ms_p50", f"nearest_{name}_penalty_ms_p90"), ".1f"),
            ("  within 10 %", (f"nearest_{name}_within_10",), ".0%"),
            ("  with a shortlist of 8: ratio p90", (f"request_{name}_ratio_p90",), ".2f"),
            ("  penalty p90, ms; pings", (f"request_{name}_penalty_ms_p90", f"request_{name}_pings"), ".1f"),
        )
    ),
    ("90 % intervals hold; of pairs nobody measured", ("coverage", "coverage_unmeasured"), ".1%"),
    ("  width, relative, p50", ("width_p50",), ".2f"),
    ("  width, ms, p50", ("width_ms_p50",), ".1f"),
    ("change of a prediction per slice", ("change_per_slice",), ".2%"),
    ("joiner: error p50 / p90", ("joiner_error_p50", "joiner_error_p90"), ".3f"),
    ("joiner: nearest of 64, ratio p90", ("joiner_nearest_64_ratio_p90",), ".2f"),
    ("liars chosen, nearest of 64; their share", ("liars_chosen", "liars_share"), ".1%"),
    ("  liars that truly are the nearest", ("liars_nearest",), ".1%"),
    ("pings; lost", ("pings", "lost"), ".0f"),
    ("bytes sent per node and second: pings, gossip", ("ping_bytes_per_s", "gossip_bytes_per_s"), ".0f"),
    ("CPU per node and second, us; of it the shared chart", ("cpu_us_per_node_s", "shared_us_per_node_s"), ".0f"),
    ("  a tick, ms; 10,000 estimates, ms", ("tick_ms", "estimate_10k_ms"), ".2f"),
    ("the run took, s", ("took_s",), ".1f"),
)
"""The table's rows; those in which no method has a figure are left out."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One method over all seeds.

    Attributes:
        method: its name.
        mean: of each figure.
        least: the smallest of each.
        most: the largest of each.
        runs: one for each seed.
    """

    method: str
    mean: Figures
    least: Figures
    most: Figures
    runs: tuple[Outcome, ...]


def summary(runs: Sequence[Outcome]) -> Summary:
    """Runs of one method, together."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.figures.items():
            values.setdefault(name, []).extend([] if value is None else [value])
    least: Figures = {name: min(found) if found else None for name, found in values.items()}
    most: Figures = {name: max(found) if found else None for name, found in values.items()}
    return Summary(runs[0].method, mean([run.figures for run in runs]), least, most, tuple(runs))


def table(title: str, summaries: Sequence[Summary]) -> Table:
    """The figures, a method a column."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for found in summaries:
        shown.add_column(found.method, justify="right")
    for name, figures, form in ROWS:
        cells = [" / ".join(_cell(found, figure, form) for figure in figures) for found in summaries]
        if any(cell.strip("-/ ") for cell in cells):
            shown.add_row(name, *cells)
    return shown


def as_json(matrix: RttMatrix, asked: dict[str, object], summaries: Sequence[Summary]) -> dict[str, object]:
    """Every figure."""
    return {
        "matrix": about(matrix),
        **asked,
        "methods": {
            found.method: {
                "mean": found.mean,
                "min": found.least,
                "max": found.most,
                "seeds": {str(run.seed): {**run.figures, "digest": run.digest} for run in found.runs},
            }
            for found in summaries
        },
    }


def about(matrix: RttMatrix) -> dict[str, object]:
    """A matrix in a few figures."""
    rtt_s = matrix.middle()
    known = rtt_s[np.isfinite(rtt_s)]
    ranks = (5, 50, 95)
    found = {f"rtt_ms_p{rank}": round(float(np.percentile(known, rank)) * 1e3, 3) for rank in ranks}
    share = len(known) / (matrix.nodes * (matrix.nodes - 1))
    return {"name": matrix.name, "nodes": matrix.nodes, "slices": matrix.slices, "pairs_known": round(share, 6), **found}


def _cell(found: Summary, figure: str, form: str) -> str:
    middle, least, most = (values.get(figure) for values in (found.mean, found.least, found.most))
    if middle is None or least is None or most is None:
        return "-"
    if len(found.runs) == 1 or least == most:
        return format(middle, form)
    return f"{format(middle, form)} [{format(least, form)}..{format(most, form)}]"
