"""What hangs on this machine's buses: the PCIe tree with GPUs and network devices in it, how near they are, and what passes."""

from mesh.buses.advice import warnings
from mesh.buses.load import Load, measure
from mesh.buses.nvml import NvmlGpu, list_gpus
from mesh.buses.picture import buses_json, closeness_table, tree_picture
from mesh.buses.tree import Buses, BusLink, Device, DeviceKind, Function, closeness, read_buses

__all__ = [
    "BusLink",
    "Buses",
    "Device",
    "DeviceKind",
    "Function",
    "Load",
    "NvmlGpu",
    "buses_json",
    "closeness",
    "closeness_table",
    "list_gpus",
    "measure",
    "read_buses",
    "tree_picture",
    "warnings",
]
