"""Runs in a guest: the program as it is, but for how long it waits, times ten, and what a peer may cost it, times thirty.

Between two guests that have both cores of a machine to themselves, emulated, a fabric is open after 0.12 s and a transfer gets on
within 0.25 s, where the program allows 0.2 s and 0.1 s. With three times as much to do on the machine as it has cores it is
0.53 s, and five times was just enough. What a peer costs is measured in processor time of the guest, which counts the time
of others on the machine too: with five times as much to do a peer looked hostile that had done nothing. usage: as node.py
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

TIMES = 10
"""Of waits: twice what was needed on a machine that had three times as much to do as it has cores."""
COSTS = 30
"""Of processor time: as many times as an emulated processor is slower on such a machine."""


def change_defaults(config: type, **changed: object) -> None:
    """Give fields of a data class other defaults."""
    defaults = {name: p.default for name, p in inspect.signature(config).parameters.items()}
    assert changed.keys() <= defaults.keys()
    config.__init__.__defaults__ = tuple({**defaults, **changed}.values())


change_defaults(ConductConfig, slow_s=0.002 * COSTS, cpu_s_per_byte=100e-9 * COSTS, cpu=Allowance(1.0, 60.0))
change_defaults(FabricConfig, take_s=0.1 * TIMES)
fabrics.OPEN_S_MAX *= TIMES
wire.STALL_S *= TIMES
wire.PACKET_TIMEOUT += (TIMES - 1).bit_length()  # an exponent of two; what is sent again needlessly is confirmed even later
session.WRITTEN_S *= TIMES

if __name__ == "__main__":
    node.main()
