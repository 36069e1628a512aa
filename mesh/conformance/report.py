"""The report of a run: a table for a person, an object for a program.

Spec: docs/spec/README.md, section "The conformance suite".
"""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from mesh.conformance.index import load
from mesh.conformance.registry import CASES, INSIDE
from mesh.conformance.runner import Outcome, Row, Run
from protocol.identity import peer_id_text

STYLES = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.NOT_APPLICABLE: "dim", Outcome.NOT_RUN: "yellow"}


def rows_table(rows: Sequence[Row], *, terse: bool) -> Table:
    """A row per sentence; a terse one leaves out what cannot be seen from outside and what has no case."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("sentence", "level", "result", "why"):
        table.add_column(name, overflow="fold", no_wrap=name in ("sentence", "result"))
    for row in rows:
        if not terse or row.cases:
            result = Text(str(row.outcome), style=STYLES[row.outcome])
            table.add_row(row.sentence.id, row.sentence.level, result, Text(row.reason))
    return table


def summary(run: Run, rows: Sequence[Row]) -> str:
    """Say in one line how it went."""
    counts = Counter(row.outcome for row in rows)
    parts = [f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome]]
    return f"{', '.join(parts)} of {len(rows)} sentences; {len(run.results)} of {len(run.cases)} cases in {run.seconds:.1f} s"


def as_json(run: Run, rows: Sequence[Row]) -> dict[str, object]:
    """The whole report as one object."""
    subject = run.subject
    return {
        "address": str(subject.address),
        "peer_id": peer_id_text(subject.peer_id),
        "network": subject.network,
        "agent": subject.said.agent_version,
        "seconds": round(run.seconds, 2),
        "summary": {str(outcome): sum(row.outcome is outcome for row in rows) for outcome in Outcome},
        "sentences": [
            {
                "id": row.sentence.id,
                "level": row.sentence.level,
                "chapter": row.sentence.chapter,
                "result": str(row.outcome),
                "reason": row.reason,
                "cases": list(row.cases),
            }
            for row in rows
        ],
        "cases": [
            {
                "name": result.case.name,
                "sentences": list(result.case.sentences),
                "result": str(result.outcome),
                "reason": result.reason,
                "seconds": round(result.seconds, 3),
            }
            for result in run.results.values()
        ],
    }


def listing(only: Sequence[str]) -> list[dict[str, object]]:
    """Every sentence with what tries it, for `--list`."""
    wanted = tuple(prefix.upper() for prefix in only)
    cases: dict[str, list[str]] = {}
    for case in CASES:
        for name in case.sentences:
            cases.setdefault(name, []).append(case.name)
    return [
        {
            "id": sentence.id,
            "level": sentence.level,
            "cases": cases.get(sentence.id, []),
            "inside": list(INSIDE[sentence.id].tests) if sentence.id in INSIDE else [],
            "text": sentence.text,
        }
        for sentence in load()
        if not wanted or sentence.id.startswith(wanted)
    ]
