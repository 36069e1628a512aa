"""Runs in a guest: the program as it is, but for how long it waits and what a peer may cost it, both times thirty.

An emulated processor takes ten to thirty times as long for everything, and longer where others use the machine: a fabric is not
open within 200 ms then, and a peer that sends a large tensor by the stream looks hostile. usage: as node.py
"""

import inspect
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import node
from mesh.fabric import fabrics
from mesh.fabric.rdma import session, wire
from protocol.conduct.config import Allowance, ConductConfig
from protocol.fabric import FabricConfig

TIMES = 30


def change_defaults(config: type, **changed: object) -> None:
    """Give fields of a data class other defaults."""
    defaults = {name: p.default for name, p in inspect.signature(config).parameters.items()}
    assert changed.keys() <= defaults.keys()
    config.__init__.__defaults__ = tuple({**defaults, **changed}.values())


change_defaults(ConductConfig, slow_s=0.002 * TIMES, cpu_s_per_byte=100e-9 * TIMES, cpu=Allowance(1.0, 60.0))
change_defaults(FabricConfig, take_s=0.1 * TIMES)
fabrics.OPEN_S_MAX *= TIMES
wire.STALL_S *= TIMES
session.WRITTEN_S *= TIMES

if __name__ == "__main__":
    node.main()
