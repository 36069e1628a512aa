"""What hangs on this machine's buses: the PCIe tree with GPUs and network devices in it, how near they are, and what passes.

The picture is apart (`mesh.buses.picture`): a node draws none.
"""

from mesh.buses.advice import warnings
from mesh.buses.load import Load, measure
from mesh.buses.near import nearest_ports
from mesh.buses.nvml import NvmlGpu, list_gpus
from mesh.buses.room import room_mbps, watch_room
from mesh.buses.tree import Buses, BusLink, Device, DeviceKind, Function, closeness, read_buses

__all__ = [
    "BusLink",
    "Buses",
    "Device",
    "DeviceKind",
    "Function",
    "Load",
    "NvmlGpu",
    "closeness",
    "list_gpus",
    "measure",
    "nearest_ports",
    "read_buses",
    "room_mbps",
    "warnings",
    "watch_room",
]
