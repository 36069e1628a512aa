"""What this machine has, for the node's card: processors, memory, NUMA nodes, GPUs and network interfaces, and the buses to them.

Processors and memory come from `/proc` and `/sys`, GPUs from NVIDIA's driver through NVML, interfaces from the kernel through
rtnetlink. Nothing here is needed to serve, so nothing here fails: what cannot be read is left out, and a number that is not
known is 0. Everything may block (a driver that wakes up takes seconds), so that it belongs in a worker thread.

Source: proc(5); Documentation/ABI/testing/sysfs-class-net; rtnetlink(7).
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.buses import Buses, DeviceKind, NvmlGpu, list_gpus, read_buses
from mesh.links import read_links
from protocol.records import Gpu, Hardware, Nic

NICS_MAX = 16
"""Interfaces told: a GPU server has one per GPU, and two for management."""
NAME_BYTES_MAX = 64
"""Bytes of a name: the card is small, and processor names end with what everybody knows."""
FILE_BYTES_MAX = 1 << 20
"""Bytes read of one file: `/proc/cpuinfo` of 512 processors."""
MBPS_MAX = 10_000_000
"""Fastest interface believed, in megabits per second; some drivers answer 2^32 - 1 for "unknown"."""
BITS_PER_MBIT = 1_000_000
"""Bits in the unit in which speeds are told."""
CGROUP_LIMITS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's memory limit stands, in version 2 and version 1 of control groups."""

_IFF_UP = 0x1  # interface flag, linux/if.h
_IFF_LOOPBACK = 0x8  # interface flag, linux/if.h
_ETHERNET = 1  # ARPHRD_ETHER, linux/if_arp.h
_INFINIBAND = 32  # ARPHRD_INFINIBAND, linux/if_arp.h


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface as the kernel lists it; `is_virtual` ones are bridges, tunnels and the like."""

    name: str
    mtu_bytes: int
    is_up: bool
    is_virtual: bool


def read_hardware(root: Path = Path("/")) -> Hardware:
    """Read everything; blocks, and never fails.

    Args:
        root: where `proc` and `sys` are; of another root than `/`, interfaces are listed from its `sys` and there are no GPUs.
    """
    is_here = root == Path("/")
    found = list_gpus() if is_here else ()
    buses = read_buses(root, found)
    interfaces = (_interfaces_by_netlink() if is_here else None) or _interfaces_by_files(root)
    return Hardware(
        cpu_model=cpu_model(root),
        cpu_count=cpu_count() if is_here else len(_cpuinfo_values(root, "processor")),
        memory_bytes=memory_bytes(root),
        numa_nodes=numa_nodes(root),
        gpus=told_gpus(found, buses),
        nics=told_nics(interfaces, root, buses),
    )


def cpu_model(root: Path = Path("/")) -> str:
    """Return the processor's name; ARM boards say it in the device tree. Empty when nobody says it."""
    for key in ("model name", "cpu model", "Model", "uarch"):
        for value in _cpuinfo_values(root, key):
            if value:
                return _short(value)
    return _short(_read(root / "proc/device-tree/model"))


def cpu_count() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory this process may use: the machine's, or the container's limit where that is lower."""
    match = re.search(r"^MemTotal:\s+(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE)
    total = int(match[1]) * 1024 if match else 0
    limits = [int(text) for name in CGROUP_LIMITS if (text := _read(root / name).strip()).isdigit()]
    return min([limit for limit in limits if limit > 0] + [total]) if total else 0


def numa_nodes(root: Path = Path("/")) -> int:
    """Return the number of NUMA nodes that have memory; at least 1."""
    folder = root / "sys/devices/system/node"
    for name in ("has_memory", "online"):
        count = _count_of_list(_read(folder / name).strip())
        if count:
            return count
    return 1


def told_gpus(gpus: Sequence[NvmlGpu], buses: Buses) -> tuple[Gpu, ...]:
    """Return NVIDIA's GPUs in the driver's order, with the bus that leads to each."""
    return tuple(Gpu(_short(gpu.name), gpu.memory_bytes, *bus_of(gpu.address, buses)) for gpu in gpus)


def bus_of(address: str, buses: Buses) -> tuple[int, int | None]:
    """What the narrowest link to a PCI function carries in Mbit/s (0 unknown), and its NUMA node (None unknown)."""
    function, narrowest = buses.functions.get(address), buses.narrowest(address)
    mbps = 0 if narrowest is None else round(narrowest[1].bytes_per_s * 8 / BITS_PER_MBIT)
    return mbps, None if function is None else function.numa_node


def told_nics(interfaces: Sequence[Interface], root: Path = Path("/"), buses: Buses | None = None) -> tuple[Nic, ...]:
    """Return the interfaces worth telling, with their speeds, by name.

    Those are the real ones that are up; where there is none, as in a container, all that are up.
    """
    up = [interface for interface in interfaces if interface.is_up]
    chosen = [interface for interface in up if not interface.is_virtual] or up
    buses = buses or Buses()
    places = {device.name: device.address for device in buses.of(DeviceKind.NIC)}
    return tuple(
        Nic(
            _short(interface.name),
            speed_mbps(interface.name, root),
            interface.mtu_bytes,
            *bus_of(places.get(interface.name, ""), buses),
        )
        for interface in sorted(chosen, key=lambda interface: interface.name)[:NICS_MAX]
    )


def speed_mbps(name: str, root: Path = Path("/")) -> int:
    """Return an interface's speed in megabits per second; 0 where the driver does not say, as most virtual ones do not."""
    text = _read(root / "sys/class/net" / name / "speed").strip()
    return int(text) if text.isdigit() and 0 < int(text) <= MBPS_MAX else 0


def _interfaces_by_netlink() -> list[Interface] | None:
    """List interfaces through rtnetlink; None where that is not allowed."""
    try:
        links = read_links()
    except OSError:
        return None
    return [
        Interface(link.name, link.mtu_bytes, bool(link.flags & _IFF_UP), link.is_virtual)
        for link in links
        if link.name and not link.flags & _IFF_LOOPBACK and link.hardware in {_ETHERNET, _INFINIBAND}
    ]


def _interfaces_by_files(root: Path) -> list[Interface]:
    """List interfaces from `/sys/class/net`: a real one has a `device`."""
    found = []
    with suppress(OSError):
        for folder in sorted((root / "sys/class/net").iterdir()):
            flags, kind = _number(_read(folder / "flags")), _number(_read(folder / "type"))
            if not flags & _IFF_LOOPBACK and kind in {_ETHERNET, _INFINIBAND}:
                is_virtual = not (folder / "device").exists()
                found.append(Interface(folder.name, _number(_read(folder / "mtu")), bool(flags & _IFF_UP), is_virtual))
    return found


def _cpuinfo_values(root: Path, key: str) -> list[str]:
    lines = (line.partition(":") for line in _read(root / "proc/cpuinfo").splitlines())
    return [value.strip() for name, _, value in lines if name.strip() == key]


def _count_of_list(text: str) -> int:
    """Count a kernel list such as `0-1,4`; 0 if it is none."""
    count = 0
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            return 0
        count += int(match[2] or match[1]) - int(match[1]) + 1
    return count


def _number(text: str) -> int:
    try:
        return int(text.strip(), 0)
    except ValueError:
        return 0


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode("utf-8", "replace").replace("\0", "")
    except OSError:
        return ""


def _short(name: str) -> str:
    return " ".join(name.split()).encode()[:NAME_BYTES_MAX].decode("utf-8", "ignore")
