"""A node of the benchmark of distances: `isochrone up`, undisturbed by what else the machine does, and if asked with few links.

It takes the flags that a test mesh gives its nodes. Once it is loaded it has itself scheduled before all else, where the system
permits that: in truth each node has a machine of its own, and what a dozen of them do to one another while they load would be
taken for jitter and loss of the paths between them. In a mesh of twelve the program connects every node to every other, so no
estimate rests on anything but measurements; with `--links` it dials so few, looks for no others, and tells its edges often.
"""

import argparse
import os
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mesh.config import resolve
from mesh.service import run_node
from mesh.up import run_up
from protocol.node import NodeConfig

PRIORITY = 1
"""Real-time priority, the lowest there is: it is above everything that has none."""

LINKS = 2
"""Peers that a node dials of itself, a count; as many dial it, so a third of eleven peers is measured."""

EDGES_INTERVAL_S = 15.0
"""Seconds between two tellings of edges, in place of five minutes: a benchmark does not last that long."""

NO_LOOK_S = 3600.0
"""Seconds between two looks for the nearest, whose visits would measure everybody in two minutes: longer than any run."""


def few(links: int) -> NodeConfig:
    """The core's bounds and intervals with so few links."""
    core = NodeConfig()
    membership = replace(core.membership, small_mesh=links, near_max=links, far_max=0)
    announcer = replace(core.announcer, edges_interval_s=EDGES_INTERVAL_S)
    return replace(core, membership=membership, announcer=announcer, ranking_min_s=NO_LOOK_S, ranking_max_s=NO_LOOK_S)


def prefer(pid: int = 0) -> None:
    """Has the kernel run a process, this one by itself, before all others, where it lets us."""
    with suppress(OSError):
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(PRIORITY))


def main() -> int:
    """Runs the node until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("up", choices=["up"])
    parser.add_argument("--json", action="store_true")
    for name in ("state-dir", "network-dir", "gateway"):
        parser.add_argument(f"--{name}")
    for name in ("listen", "announce", "engine", "bootstrap"):
        parser.add_argument(f"--{name}", action="append")
    parser.add_argument("--links", type=int, default=0)
    given = vars(parser.parse_args())
    core = few(links) if (links := given.pop("links")) else None
    as_json = given.pop("json")
    del given["up"]
    prefer()
    return run_up(resolve(given, os.environ), partial(run_node, core=core), as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
