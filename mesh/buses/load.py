"""What passes over the buses: the counters of network devices twice, and what NVIDIA's driver measures of its GPUs.

A counter that went backwards was reset, or its device is another: nothing is said of it then. What passes over the link of a
bridge is the sum of what is known below it, and so no less than that.

Source: Linux, Documentation/ABI/testing/sysfs-class-net-statistics, sysfs-class-infiniband (ports count words of 4 bytes).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.buses.nvml import read_throughput
from mesh.buses.tree import Buses, DeviceKind

_WORD_BYTES = 4  # of the counters of an RDMA port
Counters = Mapping[str, tuple[int, int]]
"""Bytes to and from a device since some moment, by the name of its folder in `/sys/class`."""


@dataclass(frozen=True, slots=True)
class Load:
    """What passes over the link that leads up from a function, in bytes per second: to the device, and from it."""

    down_bytes_per_s: float
    up_bytes_per_s: float

    @property
    def busiest_bytes_per_s(self) -> float:
        """In the direction in which more passes."""
        return max(self.down_bytes_per_s, self.up_bytes_per_s)


def measure(
    buses: Buses, interval_s: float, root: Path = Path("/"), pause: Callable[[float], None] = time.sleep
) -> dict[str, Load]:
    """Look twice, and return the load of each function of which it is known; blocks.

    Args:
        buses: the tree.
        interval_s: between the two looks.
        root: where `sys` is; NVIDIA's driver is asked of `/` alone.
        pause: waits for some seconds.
    """
    before, began_at = read_counters(buses, root), time.monotonic()
    pause(interval_s)
    return between(buses, before, max(time.monotonic() - began_at, interval_s), root)


def between(buses: Buses, before: Counters, took_s: float, root: Path = Path("/")) -> dict[str, Load]:
    """The load of each function of which it is known, over the `took_s` seconds since `before` was read; blocks."""
    loads = rates(buses, before, read_counters(buses, root), took_s)
    for address, (received, sent) in (read_throughput() if root == Path("/") else {}).items():
        if address in buses.functions:
            loads[address] = Load(received, sent)
    return loads | _of_bridges(buses, loads)


def read_counters(buses: Buses, root: Path = Path("/")) -> Counters:
    """The counters of all network devices, each at its present value."""
    found = {}
    for device in buses.of(DeviceKind.NIC):
        folder = root / "sys/class/net" / device.name / "statistics"
        sent, received = _count(folder / "tx_bytes"), _count(folder / "rx_bytes")
        if sent is not None and received is not None:
            found[f"net/{device.name}"] = (sent, received)
    for device in buses.of(DeviceKind.RDMA):
        for port in sorted((root / "sys/class/infiniband" / device.name / "ports").glob("[0-9]*")):
            sent, received = _count(port / "counters/port_xmit_data"), _count(port / "counters/port_rcv_data")
            if sent is not None and received is not None:
                found[f"infiniband/{device.name}/{port.name}"] = (sent * _WORD_BYTES, received * _WORD_BYTES)
    return found


def rates(buses: Buses, before: Counters, after: Counters, took_s: float) -> dict[str, Load]:
    """The load of each function whose counters grew or stood still between two looks, `took_s` seconds apart."""
    loads: dict[str, Load] = {}
    addresses = {
        f"{group}/{device.name}": device.address
        for kind, group in ((DeviceKind.NIC, "net"), (DeviceKind.RDMA, "infiniband"))
        for device in buses.of(kind)
    }
    for name, (sent, received) in after.items():
        address = addresses.get("/".join(name.split("/")[:2]))
        earlier = before.get(name)
        if address is None or earlier is None or sent < earlier[0] or received < earlier[1]:
            continue
        sofar = loads.get(address, Load(0.0, 0.0))
        loads[address] = Load(
            sofar.down_bytes_per_s + (sent - earlier[0]) / took_s, sofar.up_bytes_per_s + (received - earlier[1]) / took_s
        )
    return loads


def _of_bridges(buses: Buses, loads: Mapping[str, Load]) -> dict[str, Load]:
    sums: dict[str, Load] = {}
    for address, load in loads.items():
        for bridge in buses.functions[address].above:
            sofar = sums.get(bridge, Load(0.0, 0.0))
            sums[bridge] = Load(sofar.down_bytes_per_s + load.down_bytes_per_s, sofar.up_bytes_per_s + load.up_bytes_per_s)
    return sums


def _count(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
