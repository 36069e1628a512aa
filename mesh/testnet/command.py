"""`isochrone testnet`: a test mesh at the terminal, with a live table, until Ctrl-C or for a while."""

import json
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mesh.config import ConfigError, parse_engine
from mesh.testnet.matrix import matrix_topology
from mesh.testnet.runner import RunningNode, Testnet, testnet
from mesh.testnet.topology import Topology, preset, read_topology

REFRESH_S = 0.5
"""Seconds between two looks at the nodes: fresh to the eye, and little work for them."""
DEFAULT_PRESET = "metro"
EXIT_FAILED = 1
"""Exit code when a node ended by itself."""


@dataclass(slots=True)
class _View:
    """What the table shows: each node's view of its peers."""

    peers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the flags of `isochrone testnet` say of the mesh; None where they say nothing.

    Attributes:
        preset: the name of a preset.
        file: a topology file.
        matrix: a file of round trips.
        nodes: how many nodes of the preset or of the matrix.
        seed: which nodes of the matrix.
        engines: of every node.
    """

    preset: str | None = None
    file: Path | None = None
    matrix: Path | None = None
    nodes: int | None = None
    seed: int | None = None
    engines: Sequence[str] | None = None


def choose_topology(wish: Wish) -> Topology:
    """Return the mesh that the flags describe.

    Raises:
        ConfigError: if they contradict one another or describe none.
    """
    if wish.file is not None and (wish.preset, wish.matrix, wish.nodes) != (None, None, None):
        advice = "a file says it all; leave --preset, --matrix and --nodes out"
        raise ConfigError("--topology", str(wish.file), "command line", advice)
    if wish.matrix is not None and wish.preset is not None:
        raise ConfigError("--matrix", str(wish.matrix), "command line", "a matrix says how far nodes are; leave --preset out")
    if wish.seed is not None and wish.matrix is None:
        raise ConfigError("--seed", wish.seed, "command line", "it says which nodes of a matrix are taken; give --matrix too")
    if wish.matrix is not None:
        topology = matrix_topology(wish.matrix, wish.nodes, 1 if wish.seed is None else wish.seed)
    elif wish.file is not None:
        topology = read_topology(wish.file)
    else:
        topology = preset(wish.preset or DEFAULT_PRESET, wish.nodes)
    if wish.engines is None:
        return topology
    try:
        return topology.with_engines([parse_engine(engine) for engine in wish.engines])
    except ValueError as error:
        raise ConfigError("--engine", list(wish.engines), "command line", str(error)) from error


def run_testnet(topology: Topology, *, directory: Path | None, for_s: float | None, as_json: bool) -> int:
    """Run a mesh until a signal or for `for_s` seconds, and return the exit code.

    Args:
        topology: the mesh.
        directory: for states and logs; a temporary one if None.
        for_s: seconds from the moment the mesh stands; None runs until a signal.
        as_json: print one JSON line when the mesh stands and one with the result at the end, and no table.

    Raises:
        StartError: if the mesh cannot be built.
    """
    return trio.run(_run, topology, directory, for_s, as_json)


async def _run(topology: Topology, directory: Path | None, for_s: float | None, as_json: bool) -> int:
    console = Console(quiet=as_json)
    started = time.monotonic()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        outcome: dict[str, Any] | None = None
        async with testnet(topology, folder=directory, console=console) as net:
            stood_s = time.monotonic() - started
            if as_json:
                print(
                    json.dumps(
                        {"ready": True, "converged_s": net.converged_s, "nodes": [_node_json(node) for node in net.nodes]}
                    ),
                    flush=True,
                )
            view = _View()
            with trio.move_on_after(float("inf") if for_s is None else for_s) as limit:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_until_signal, signals, nursery.cancel_scope)
                    await _show(net, view, console, nursery.cancel_scope)
            ended = [node.name for node in net.nodes if not node.alive]
            await _refresh(net, view)
            outcome = {
                "ok": not ended,
                "topology": topology.name,
                "stood_after_s": round(stood_s, 3),
                "converged_s": net.converged_s,
                "ended": "time" if limit.cancelled_caught else "signal",
                "nodes_ended_by_themselves": ended,
                "nodes": [_node_json(node) for node in net.nodes],
                "pairs": pairs(net, view.peers),
            }
        outcome["links"] = net.links
    if as_json:
        print(json.dumps(outcome), flush=True)
    for name in outcome["nodes_ended_by_themselves"]:
        console.print(f"node {name} ended by itself; its log: {net.node(name).log}", markup=False, highlight=False)
    return os.EX_OK if outcome["ok"] else EXIT_FAILED


async def _until_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
        return


async def _show(net: Testnet, view: _View, console: Console, scope: trio.CancelScope) -> None:
    """Keep the table fresh until cancelled, or until a node ends by itself."""
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            await _refresh(net, view)
            live.update(_screen(net, view), refresh=True)
            if not all(node.alive for node in net.nodes):
                scope.cancel()
            await trio.sleep(REFRESH_S)


async def _refresh(net: Testnet, view: _View) -> None:
    async def _ask(node: RunningNode) -> None:
        view.peers[node.name] = await net.peers(node)

    async with trio.open_nursery() as nursery:
        for node in net.nodes:
            if node.alive:
                nursery.start_soon(_ask, node)


def measured_ms(rows: Sequence[dict[str, Any]], peer_id: str) -> float | None:
    """Return the round trip to a peer that a node's own view holds, in milliseconds."""
    for row in rows:
        if row.get("peer_id") == peer_id and isinstance(row.get("rtt_ms"), int | float):
            return float(row["rtt_ms"])
    return None


def alive_count(rows: Sequence[dict[str, Any]]) -> int:
    """Return how many peers a node's own view holds for alive."""
    return sum(row.get("standing", "alive") == "alive" for row in rows)


def pairs(net: Testnet, views: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return each ordered pair of nodes with its chosen and its measured round trip."""
    return [
        {
            "from": first.name,
            "to": second.name,
            "rtt_ms": round(net.topology.rtt_ms(i, j), 3),
            "measured_ms": measured_ms(views.get(first.name, []), second.peer_id),
        }
        for i, first in enumerate(net.nodes)
        for j, second in enumerate(net.nodes)
        if i != j
    ]


def _node_json(node: RunningNode) -> dict[str, Any]:
    return {
        "name": node.name,
        "region": node.spec.region,
        "engines": list(node.spec.engines),
        "peer_id": node.peer_id,
        "pid": node.pid,
        "gateway": node.gateway,
        "addresses": list(node.addresses),
        "ready_s": round(node.ready_s, 3),
        "log": str(node.log),
    }


def _screen(net: Testnet, view: _View) -> Group:
    home = net.nodes[0]
    table = Table(
        "node", "region", "engines", "gateway", "knows", f"RTT from {home.name}", "measured", "pid", title=net.topology.name
    )
    for index, node in enumerate(net.nodes):
        measured = measured_ms(view.peers.get(home.name, []), node.peer_id)
        table.add_row(
            Text(node.name, style="" if node.alive else "red"),
            Text(node.spec.region),
            Text(", ".join(node.spec.engines)),
            node.gateway,
            f"{alive_count(view.peers.get(node.name, []))} of {len(net.nodes) - 1}" if node.alive else "ended",
            f"{net.topology.rtt_ms(0, index):.1f} ms" if index else "",
            "" if measured is None else f"{measured:.2f} ms",
            str(node.pid),
        )
    hint = Text(f'isochrone ask --gateway {home.gateway} "Once upon a time"\nLogs: {net.folder}   Ctrl-C stops it.', style="dim")
    return Group(table, hint)
