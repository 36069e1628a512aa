"""A node with few connections: `isochrone up` with other bounds, for meshes so small that everybody would measure everybody.

It takes the flags that a test mesh gives its nodes. In a mesh of twelve the program itself connects every node to every other, so
no estimate rests on anything but measurements. This one dials few, looks for no others, and tells its edges often.
"""

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mesh.config import resolve
from mesh.service import run_node
from mesh.up import run_up
from protocol.node import NodeConfig

LINKS = 2
"""Peers that a node dials of itself, a count; as many dial it, so a third of eleven peers is measured."""

EDGES_INTERVAL_S = 15.0
"""Seconds between two tellings of edges, in place of five minutes: a benchmark does not last that long."""

NO_LOOK_S = 3600.0
"""Seconds between two looks for the nearest, whose visits would measure everybody in two minutes: longer than any run."""


def few(links: int = LINKS) -> NodeConfig:
    """The core's bounds and intervals with so few links."""
    core = NodeConfig()
    membership = replace(core.membership, small_mesh=links, near_max=links, far_max=0)
    announcer = replace(core.announcer, edges_interval_s=EDGES_INTERVAL_S)
    return replace(core, membership=membership, announcer=announcer, ranking_min_s=NO_LOOK_S, ranking_max_s=NO_LOOK_S)


def main() -> int:
    """Runs the node until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("up", choices=["up"])
    parser.add_argument("--json", action="store_true")
    for name in ("state-dir", "network-dir", "gateway"):
        parser.add_argument(f"--{name}")
    for name in ("listen", "announce", "engine", "bootstrap"):
        parser.add_argument(f"--{name}", action="append")
    given = vars(parser.parse_args())
    as_json = given.pop("json")
    del given["up"]
    return run_up(resolve(given, os.environ), partial(run_node, core=few()), as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
