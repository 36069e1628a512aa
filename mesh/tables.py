"""What the command line shows: the gateway's JSON as tables for people.

The tables name the columns they like, in order, and show those that the rows have; a key that ends in `_s` holds seconds and is
shown in milliseconds. So a node of another version, which says more or less, is shown all the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from mesh.plain import printable

PEER_COLUMNS = (
    "peer_id",
    "owner",
    "standing",
    "why",
    "rtt_s",
    "rtt_source",
    "jitter_s",
    "loss",
    "models",
    "running",
    "waiting",
    "draining",
)
MODEL_COLUMNS = ("id", "model", "features", "context_length", "precision", "engine", "peers", "peer_ids", "best_rtt_s")
CANDIDATE_COLUMNS = (
    "peer_id", "qualified", "reason", "via", "rtt_s", "rtt_source", "queue_s", "service_s", "predicted_s", "outcome",
)  # fmt: skip
SHORT_ID_CHARACTERS = 8
"""Characters of a peer id in a table: 47 bits of a base58 text, enough to tell the peers of one mesh apart."""
LONG_S = 10.0
"""Seconds from which a duration with its unit is shown in seconds instead of milliseconds."""
CELL_LENGTH_MAX = 200
"""Characters of one cell; peers choose some of these texts, and none may fill the screen."""


def rows_of(answer: object, key: str) -> list[dict[str, Any]]:
    """Return the list of rows in an answer that is the list itself or holds it under `key` or `data`."""
    if isinstance(answer, Mapping):
        answer = answer.get(key, answer.get("data", []))
    return [dict(row) for row in answer if isinstance(row, Mapping)] if isinstance(answer, Sequence) else []


def short_id(peer_id: str) -> str:
    """The end of a peer id, which is what tells two apart; `--json` has the whole."""
    return peer_id if len(peer_id) <= SHORT_ID_CHARACTERS else "…" + peer_id[-SHORT_ID_CHARACTERS:]


def rows_table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """Return a table of those `columns` that any row has."""
    table = Table(title=title, title_justify="left")
    shown = [column for column in columns if any(row.get(column) not in (None, "", [], ()) for row in rows)]
    for column in shown:
        numeric = any(isinstance(row.get(column), int | float) and not isinstance(row.get(column), bool) for row in rows)
        name = column.removesuffix("_s").replace("_", " ") if column.endswith("_s") else column.replace("_", " ")
        table.add_column(f"{name} ms" if column.endswith("_s") else name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(column, _shortened(column, row.get(column))) for column in shown))
    return table


def _shortened(column: str, value: object) -> object:
    """The value with peer ids cut to their ends."""
    if column in ("peer_id", "via") and isinstance(value, str):
        return short_id(value)
    if column == "peer_ids" and isinstance(value, Sequence) and not isinstance(value, str):
        return [short_id(str(item)) for item in value]
    return value


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Return a two-column table of a flat or nested mapping."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in facts.items():
        if isinstance(value, Mapping):
            for inner, inner_value in value.items():
                table.add_row(printable(f"{key} {inner}".replace("_", " ")), cell(str(inner), inner_value, unit=True))
        else:
            table.add_row(printable(str(key).removesuffix("_s").replace("_", " ")), cell(str(key), value, unit=True))
    return table


def cell(column: str, value: object, *, unit: bool = False) -> Text:
    """Return one value as plain text: no markup is read from it, and control characters are gone."""
    text: str
    match value:
        case None:
            text = ""
        case bool():
            text = "yes" if value else "no"
        case int() | float() if column.endswith("_s"):
            text = f"{value:,.0f} s" if unit and value >= LONG_S else f"{value * 1000:,.2f}" + (" ms" if unit else "")
        case float():
            text = f"{value:,.3g}"
        case Mapping():
            text = ", ".join(f"{key}={inner}" for key, inner in value.items())
        case str():
            text = value
        case Sequence():
            text = ", ".join(str(item) for item in value)
        case _:
            text = str(value)
    shown = printable(text, keep="\n")
    return Text(shown if len(shown) <= CELL_LENGTH_MAX else shown[: CELL_LENGTH_MAX - 1] + "…")
