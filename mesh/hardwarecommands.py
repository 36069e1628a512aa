"""`isochrone hardware`: what this machine has, how its devices are connected, and what is wrong with that; no node is needed."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mesh.buses import Buses, Load, list_gpus, measure, read_buses, warnings
from mesh.buses.picture import buses_json, closeness_table, tree_picture
from mesh.config import ConfigError
from mesh.hardware import read_hardware
from mesh.plain import printable
from protocol.records import Hardware

if TYPE_CHECKING:
    from mesh.fabric.rdma.trial import Tried

INTERVAL_S_MAX = 3600.0
"""Longest interval in seconds: nobody waits longer for a picture."""


def hardware(
    *,
    interval: Annotated[float, Parameter(help="Seconds over which the load of links is measured; 0 leaves it out.")] = 1.0,
    watch: Annotated[bool, Parameter(negative="", help="Draw the picture again and again, until Ctrl-C.")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON for programs.")] = False,
) -> int:
    """Show this machine: processors, memory, the PCIe tree with its links and their load, and what is wrong with it.

    A link is shown as it runs, `PCIe 4.0 x8`, and of what both its ends could do where that is more. The load of a GPU's link is
    measured by NVIDIA's driver, that of a network device by its counters. What the kernel does not know is left out. Where there
    are RDMA devices and NVIDIA's driver, it is tried whether the ones take memory of the GPUs (GPUDirect RDMA).

    For example:

        isochrone hardware
        isochrone hardware --watch --interval 2
        isochrone hardware --json --interval 0
    """
    if not 0.0 <= interval <= INTERVAL_S_MAX:
        raise ConfigError("interval", interval, "flag --interval", f"give seconds from 0 to {INTERVAL_S_MAX:g}")
    if watch and (as_json or interval == 0.0):
        raise ConfigError("watch", None, "flag --watch", "a picture that is drawn again takes an interval, and no --json")
    from mesh.fabric.rdma.trial import try_cards  # NumPy comes with it, which takes longer to load than all other commands

    facts = read_hardware()
    buses, loads = _look(interval)
    absent, tried = try_cards()
    if as_json:
        direct = {"absent": absent, "tried": [asdict(one) for one in tried]}
        told = {"hardware": asdict(facts), "buses": buses_json(buses, loads, warnings(buses)), "gpu_direct": direct}
        print(json.dumps(told))
    elif watch:
        with Live(view(facts, buses, loads, tried), auto_refresh=False, screen=False) as live:
            while True:
                live.update(view(facts, *_look(interval), tried), refresh=True)
    else:
        Console().print(view(facts, buses, loads, tried), soft_wrap=True)
    return os.EX_OK


def view(facts: Hardware, buses: Buses, loads: Mapping[str, Load], tried: "Sequence[Tried]" = ()) -> RenderableType:
    """The whole picture."""
    memory = f"{facts.memory_bytes / 2**30:.1f} GiB" if facts.memory_bytes else "memory not known"
    head = Text(printable(f"{facts.cpu_model or 'processor not known'}, {facts.cpu_count} cores, {memory}"), style="bold")
    parts: list[RenderableType] = [head, tree_picture(buses, loads)]
    parts += [table for table in (closeness_table(buses), _distances(buses)) if table is not None]
    parts += [Text(printable(f"GPUDirect RDMA: {one.card} and the GPU at {one.gpu}: {one.why or 'works'}")) for one in tried]
    parts += [Text.assemble(("! ", "bold yellow"), printable(text)) for text in warnings(buses)]
    return Group(*parts)


def _look(interval_s: float) -> tuple[Buses, dict[str, Load]]:
    buses = read_buses(gpus=list_gpus())
    return buses, measure(buses, interval_s, pause=time.sleep) if interval_s else {}


def _distances(buses: Buses) -> Table | None:
    """How far NUMA nodes are from one another; None where there is one."""
    if len(buses.distances) < 2:
        return None
    table = Table(title="NUMA distance (10 is local)", title_justify="left")
    table.add_column("")
    for node in buses.distances:
        table.add_column(f"node {node}", justify="right")
    for node, told in buses.distances.items():
        table.add_row(f"node {node}", *(str(number) for number in told))
    return table
