"""`isochrone conformance`: the suite at the terminal, with a progress bar, a report and an exit code.

Ctrl-C ends the run and not the report: what was found out by then is shown, the rest is told as not run.

Spec: docs/spec/README.md, section "The conformance suite".
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from mesh.admission.files import ROOT_FILE, read_root
from mesh.conformance.index import load
from mesh.conformance.papers import Papers
from mesh.conformance.peer import Subject
from mesh.conformance.report import as_json, listing, rows_table, summary
from mesh.conformance.runner import MEMBERS_ALONE, Outcome, Result, Run, UnreachableError, choose, look
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.multiaddr import Multiaddr, parse_multiaddr

EXIT_FAILED = 1
"""Exit code: a sentence is not kept, or nobody could be tested."""

EXIT_USAGE = 2
"""Exit code: the address or a flag cannot be used."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as of all commands."""


def run_conformance(
    address: str | None,
    *,
    only: Sequence[str],
    slow: bool,
    everything: bool,
    as_text: bool,
    network_dir: Path | None = None,
) -> int:
    """Try the node at an address and show what was found.

    Args:
        address: its multiaddr, with or without a peer id.
        only: prefixes of sentence ids; empty for all.
        slow: whether cases that wait for long timers run too.
        everything: whether the table names the sentences that have no case, too.
        as_text: a table for a person; else one line of JSON.
        network_dir: where the key of the node's private network lies, by which the suite acts as members of it.

    Returns:
        The exit code.
    """
    unknown = [prefix for prefix in only if not any(s.id.startswith(prefix.upper()) for s in load())]
    if unknown:
        return _refused(f"--only {unknown[0]}: no sentence has such an id; --list shows all", EXIT_USAGE)
    if address is None:
        return _refused("name an address, such as /ip4/127.0.0.1/udp/4001/quic-v1; --list shows the sentences", EXIT_USAGE)
    root = None if network_dir is None else read_root(network_dir.expanduser().absolute())
    if network_dir is not None and root is None:
        return _refused(f"--network-dir {network_dir}: there is no key of a network ({ROOT_FILE})", EXIT_USAGE)
    try:
        subject = _subject(address)
        subject.papers = None if root is None else Papers(root)
    except (RemoteProtocolError, LocalProtocolError) as fault:
        return _refused(f"{address}: {fault}", EXIT_USAGE)
    except OSError as fault:
        return _refused(f"{address}: the name cannot be resolved ({fault.strerror})", EXIT_FAILED)
    run = Run(subject, choose(only), slow=slow, only=only)
    try:
        interrupted = trio.run(partial(_watched, run, quiet=not as_text))
    except UnreachableError as fault:
        return _refused(str(fault), EXIT_FAILED)
    rows = run.rows()
    if as_text:
        console = Console(highlight=False)
        terse = not everything and not only
        seen = [row for row in rows if MEMBERS_ALONE not in row.reason] if terse else rows
        console.print(rows_table(seen, terse=terse))
        console.print(Text(summary(run, rows), style="bold"))
        if subject.is_closed:
            console.print(Text(f"The rest was not tried: {MEMBERS_ALONE}"), soft_wrap=True)
    else:
        print(json.dumps(as_json(run, rows)))
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if any(row.outcome is Outcome.FAIL for row in rows) else os.EX_OK


def list_sentences(only: Sequence[str], *, as_text: bool) -> int:
    """Show every sentence and what tries it."""
    found = listing(only)
    if not as_text:
        print(json.dumps(found))
        return os.EX_OK
    console = Console(highlight=False)
    for row in found:
        how = ", ".join(map(str, row["cases"])) if isinstance(row["cases"], list) and row["cases"] else ""  # fmt: skip
        how = how or ("inside" if row["inside"] else "no case")
        console.print(
            Text.assemble((f"{row['id']} ", "bold"), (f"{row['level']} ", "cyan"), str(row["text"]), (f"  [{how}]", "dim"))
        )
    return os.EX_OK


def _refused(text: str, code: int) -> int:
    print(f"isochrone: {text}", file=sys.stderr)
    return code


def _subject(text: str) -> Subject:
    """Return the subject at an address, whose name is resolved."""
    address = parse_multiaddr(text)
    host, protocol = address.host, address.protocol
    if protocol not in ("ip4", "ip6"):
        families = {"dns4": socket.AF_INET, "dns6": socket.AF_INET6}
        found = socket.getaddrinfo(host, address.port, families.get(protocol, socket.AF_UNSPEC), socket.SOCK_DGRAM)
        host = str(found[0][4][0])
        protocol = "ip6" if ":" in host else "ip4"
    return Subject(Multiaddr(protocol, host, address.port), address.peer_id)


async def _watched(run: Run, *, quiet: bool) -> bool:
    """Run with a progress bar where there is somebody to see it; return whether it was broken off."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=console, transient=True) if console.is_terminal and not quiet else None
    interrupted = False
    failure: UnreachableError | None = None
    with bar or nullcontext():
        task = bar.add_task("trying the node", total=len(run.cases)) if bar else None

        def advanced(result: Result) -> None:
            if bar is not None and task is not None:
                bar.update(task, advance=1, description=result.case.sentences[0])

        async with trio.open_nursery() as nursery:

            async def listen_for_interrupts(*, task_status: trio.TaskStatus[None]) -> None:
                nonlocal interrupted
                with trio.open_signal_receiver(signal.SIGINT) as interrupts:
                    task_status.started()
                    async for _ in interrupts:
                        interrupted = True
                        nursery.cancel_scope.cancel()

            await nursery.start(listen_for_interrupts)
            try:
                await look(run.subject)
                await run.run(advanced)
            except UnreachableError as fault:
                failure = fault
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return interrupted
