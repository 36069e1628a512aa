"""What breaks: each fault a small class, chosen per seed, begun and ended by a schedule."""

from sim.faults.base import Fault, MakeFault
from sim.faults.hostile import Intrusion
from sim.faults.packets import BurstLoss, Corruption, Duplication, Loss, Reordering
from sim.faults.paths import Clogging, Swizzle, isolation, one_way, partition, split
from sim.faults.plan import HONEST, KINDS, Planned, install, names_of, plan
from sim.faults.processes import (
    AddressChange,
    Clock,
    ClockJump,
    ClockRate,
    Crash,
    Death,
    FullQueues,
    Pause,
    Slowness,
)
from sim.faults.versions import NewNode, OldNode, OtherVersion

__all__ = [
    "HONEST",
    "KINDS",
    "AddressChange",
    "BurstLoss",
    "Clock",
    "ClockJump",
    "ClockRate",
    "Clogging",
    "Corruption",
    "Crash",
    "Death",
    "Duplication",
    "Fault",
    "FullQueues",
    "Intrusion",
    "Loss",
    "MakeFault",
    "NewNode",
    "OldNode",
    "OtherVersion",
    "Pause",
    "Planned",
    "Reordering",
    "Slowness",
    "Swizzle",
    "install",
    "isolation",
    "names_of",
    "one_way",
    "partition",
    "plan",
    "split",
]
