"""The commands that look at the wire: `isochrone trace` and `isochrone spec`."""

import json
import os
import sys
import time
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlencode

from cyclopts import Parameter
from rich.console import Console, Group
from rich.text import Text

from mesh.nodefile import ClientError
from mesh.tables import rows_of, rows_table
from mesh.trace.lines import line_of
from mesh.trace.qlog import QlogWriter
from mesh.where import Where

PROTOCOL_COLUMNS = ("protocol", "chapter", "what")


def trace(
    peer: Annotated[str, Parameter(help="Peer id, or its last characters as `isochrone peers` shows them.")],
    /,
    *,
    for_s: Annotated[float | None, Parameter(name="--for", help="Stop after so many seconds (default: at Ctrl-C).")] = None,
    count: Annotated[int | None, Parameter(help="Stop after so many events.")] = None,
    content: Annotated[
        bool, Parameter(negative="", help="Show prompts, answers and tensors too; without it only their sizes.")
    ] = False,
    qlog: Annotated[Path | None, Parameter(help="Write a qlog file (JSON text sequence) besides.")] = None,
    where: Where | None = None,
) -> int:
    """Show what is said on the connection to one peer, frame by frame, until Ctrl-C.

    Gossip, requests and answers, pings, identify and probes are decoded. An arrow shows who spoke: → this node, ← the peer.
    What people ask and models answer is left out unless --content is given; keys never leave the node.

    For example:

        isochrone trace 9kYbQh2d
        isochrone trace 9kYbQh2d --for 30 --qlog peer.sqlog
        isochrone trace 9kYbQh2d --json | jq 'select(.frame.type == "records")'
    """
    where = where or Where()
    if content:
        print("isochrone: prompts and answers are shown, and stand in the qlog file if there is one", file=sys.stderr)
    console = Console(highlight=False, soft_wrap=True)
    with where.client() as client, ExitStack() as opened:
        writer = None
        if qlog is not None:
            try:
                file = opened.enter_context(open(qlog, "w", encoding="utf-8", opener=_privately))
            except OSError as error:
                raise ClientError(f"cannot write {qlog} ({error.strerror}); choose another file with --qlog") from error
            writer = QlogWriter(file, peer, time.time())
        wishes = {"content": "1" if content else None, "for": for_s}
        query = urlencode({name: value for name, value in wishes.items() if value is not None})
        asked = f"/mesh/trace/{quote(peer, safe='')}?{query}"
        # Closed before the file is: what came until Ctrl-C is in it.
        events = opened.enter_context(closing(client.events(asked)))
        for event in islice(events, count):
            if writer is not None:
                writer.add(event)
            if where.as_json:
                print(json.dumps(event), flush=True)
            else:
                console.print(line_of(event))
    return os.EX_OK


def _privately(path: str, flags: int) -> int:
    """Open a file that only its owner may read: it tells who speaks with whom, and with --content what is said."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def spec(*, where: Where | None = None) -> int:
    """Show where the specification of the running node lies, and which protocols the node speaks.

    For example:

        isochrone spec
        isochrone spec --json
    """
    where = where or Where()
    with where.client() as client:
        answer = client.get("/mesh/protocols")
        agent = client.get("/mesh/status").get("agent", "")
    place = answer.get("spec") or "not installed with this node; it is docs/spec in the source tree"

    def _view() -> Group:
        rows = rows_of(answer, "protocols")
        return Group(Text(f"{agent}, specification: {place}"), rows_table("Protocols", rows, PROTOCOL_COLUMNS))

    return where.show({"agent": agent, **answer}, _view)
