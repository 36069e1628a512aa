"""The commands about distances: `isochrone distance`, `isochrone near` and `isochrone coordinates`."""

import csv
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from cyclopts import Parameter

from mesh.config import ConfigError
from mesh.distances import parse_duration
from mesh.tables import facts_table, rows_of, rows_table
from mesh.where import Where

NEAR_COLUMNS = ("peer_id", "owner", "rtt_s", "low_s", "high_s", "source", "loss", "models")
COORDINATE_COLUMNS = ("peer_id", "owner", "standing", "vector_ms", "height_ms", "error")


def distance(
    one: Annotated[str, Parameter(help="Peer id, how it begins or ends, or an owner; alone: from this node.")],
    other: Annotated[str | None, Parameter(help="The other node, named in the same ways.")] = None,
    /,
    *,
    where: Where | None = None,
) -> int:
    """Show how far two nodes are from each other: the round trip, between which bounds, and what that rests on.

    Nine of ten true round trips lie within the bounds. The source is "measured" where this node probes the path itself,
    "coordinate" where both nodes say where they are. Jitter and loss are known of measured paths.

    For example:

        isochrone distance 9kYbQh2d
        isochrone distance 9kYbQh2d x3RtUw8v --json
    """
    where = where or Where()
    path = f"/mesh/distance/{_segment(one)}" + ("" if other is None else f"/{_segment(other)}")
    with where.client() as client:
        answer = client.get(path)
    said = [] if answer.get("rtt_s") is not None else ["Not known: one of them has told no coordinate, and no path was probed."]
    return where.show(answer, lambda: facts_table("Distance", answer), said)


def near(
    of: Annotated[
        str | None, Parameter(help="Round whom: peer id, how it begins or ends, or an owner (default: this node).")
    ] = None,
    /,
    *,
    within: Annotated[str | None, Parameter(help="Longest round trip with its unit: 10ms, 0.5s, 250us.")] = None,
    model: Annotated[str | None, Parameter(help="Only who serves this model.")] = None,
    limit: Annotated[int | None, Parameter(help="How many at most (default: 100).")] = None,
    where: Where | None = None,
) -> int:
    """Show who is near a node, the nearest first; `--json` keeps the order.

    For example:

        isochrone near --within 10ms
        isochrone near 9kYbQh2d --within 10ms --model my-llm --limit 5
    """
    where = where or Where()
    if within is not None:
        try:
            parse_duration(within)
        except ValueError as error:
            raise ConfigError("within", within, "flag --within", str(error)) from error
    wishes = {"within": within, "model": model, "limit": limit}
    query = urlencode({name: value for name, value in wishes.items() if value is not None})
    with where.client() as client:
        answer = client.get("/mesh/near" + ("" if of is None else f"/{_segment(of)}") + (f"?{query}" if query else ""))
    rows = rows_of(answer, "peers")
    title = f"Near {'this node' if of is None else of}" + (f", within {within}" if within else "")
    return where.show(answer, lambda: rows_table(title, rows, NEAR_COLUMNS) if rows else None, _said(answer, rows))


def _said(answer: Mapping[str, Any], rows: Sequence[object]) -> list[str]:
    """What a table of the near leaves out."""
    said: list[str] = []
    if not rows:
        said.append(f"Nobody: of {answer.get('asked', 0)} nodes that could be meant none is known to be so near.")
    if answer.get("left_off"):
        said.append(f"{answer['left_off']} more are as near; see them with --limit.")
    if answer.get("unknown"):
        said.append(f"Of {answer['unknown']} it is not known how far they are.")
    return said


def coordinates(
    *,
    as_csv: Annotated[bool, Parameter(name="--csv", negative="", help="Print comma-separated values.")] = False,
    where: Where | None = None,
) -> int:
    """Show where every known node says it is, this one included.

    The round trip between two of them is the distance of their vectors plus both heights; all in milliseconds. The error is
    relative: 0 is certain, 1.5 unknown.

    For example:

        isochrone coordinates
        isochrone coordinates --csv > places.csv
    """
    where = where or Where()
    if as_csv and where.as_json:
        raise ConfigError("csv", None, "flag --csv", "--json is another format; give one of the two")
    with where.client() as client:
        answer = client.get("/mesh/coordinates")
    rows = rows_of(answer, "coordinates")
    if as_csv:
        _write_csv(rows)
        return os.EX_OK
    return where.show(answer, lambda: rows_table("Coordinates", rows, COORDINATE_COLUMNS))


def _write_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a node: who, how it stands, its vector, height and error."""
    dimensions = max((len(row.get("vector_ms") or ()) for row in rows), default=0)
    axes = [f"x{number}_ms" for number in range(1, dimensions + 1)]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["peer_id", "owner", "standing", *axes, "height_ms", "error"])
    for row in rows:
        vector = list(row.get("vector_ms") or ())
        vector += [""] * (dimensions - len(vector))
        plain = [str(row.get(key, "")).translate(_UNFORMULA) for key in ("peer_id", "owner", "standing")]
        writer.writerow([*plain, *vector, row.get("height_ms", ""), row.get("error", "")])


_UNFORMULA = {ord(character): None for character in "=+@\t\r\n"}
"""Characters with which a spreadsheet takes a text for a formula (CWE-1236); no peer id has one."""


def _segment(name: str) -> str:
    """A name as one segment of a path."""
    if not name or name in (".", ".."):
        raise ConfigError("peer", name, "argument", "name a node by its id, as `isochrone peers` shows it")
    return quote(name, safe="")
