"""The PCIe tree as the kernel shows it: functions, the links between them, NUMA nodes, and which devices are where.

A function's path in `/sys/devices` is its way to the processor: root complex, root port, then for each switch its upstream and
one of its downstream ports. So the bridges of a path alternate, and the link of a function leads up where a root port or a
downstream port is above it. How it runs and what both ends could do stands in `current_link_*` and `max_link_*`. A number that
the kernel does not know is 0 here, a NUMA node that it does not know is None; nothing is guessed.

GPUs, and bridges above them, slow their links down while they idle: of those the speed that both ends could do counts, and the
lanes that are there now. All others are taken as they run.

Source: Linux, Documentation/ABI/testing/sysfs-bus-pci; PCI Express Base Specification 5.0, 1.3 (topology) and 4.2 (encodings).
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from mesh.buses.nvml import NvmlGpu
from protocol.fabric import Closeness

FUNCTIONS_MAX = 4096
"""PCI functions read: many times what the largest servers have, with all their virtual functions."""
FILE_BYTES_MAX = 4096
"""Bytes read of one file: one page is what sysfs gives."""
GPU_DRIVERS = frozenset({"nvidia", "nouveau", "amdgpu", "xe"})
"""Drivers of GPUs that compute: a server's own graphics, by which its console is seen from afar, is of another."""
BYTES_PER_LANE = {2.5: 0.25e9, 5.0: 0.5e9, 8.0: 8e9 / 8 * 128 / 130, 16.0: 16e9 / 8 * 128 / 130, 32.0: 32e9 / 8 * 128 / 130,
                  64.0: 64e9 / 8 * 242 / 256}  # fmt: skip
"""Bytes per second of one lane in one direction, by its 10^9 transfers per second: without the encoding, with headers."""
_GENERATIONS = {2.5: "1.0", 5.0: "2.0", 8.0: "3.0", 16.0: "4.0", 32.0: "5.0", 64.0: "6.0"}
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_NODES_MAX = 1024  # most NUMA nodes of a kernel (CONFIG_NODES_SHIFT)
_LANES_MAX = 32  # widest link there is; drivers answer 255 for "unknown"
_BRIDGE = 0x06  # PCI class of bridges
_DISPLAY, _ACCELERATOR = 0x03, 0x12  # PCI classes of display controllers and of accelerators
_COMPUTE = 0x0302  # PCI class and subclass of a GPU without a screen
_NVME = 0x0108  # PCI class and subclass of a disk on the bus


class DeviceKind(StrEnum):
    """What a device is for."""

    GPU = "gpu"
    NIC = "nic"
    RDMA = "rdma"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class BusLink:
    """A link: the transfers of a lane in 10^9 per second, and the number of lanes; 0 where the kernel does not know."""

    gts: float
    lanes: int

    @property
    def bytes_per_s(self) -> float:
        """What passes in one direction; 0 where it is not known."""
        return BYTES_PER_LANE.get(self.gts, 0.0) * self.lanes

    def __str__(self) -> str:
        """As people write it: `4.0 x16`."""
        return f"{_GENERATIONS.get(self.gts, '?')} x{self.lanes or '?'}"


@dataclass(frozen=True, slots=True)
class Function:
    """One PCI function.

    Attributes:
        address: as the kernel calls it.
        root: its root complex, `pci0000:00`.
        above: the bridges between them, from the root port down.
        kind: PCI class and subclass.
        driver: empty where it has none.
        numa_node: of its root complex; None where the kernel does not know.
        now: the link that leads up, as it runs; None of what is part of the root complex or of a switch.
        able: the same as the device itself could; with the kernel's zeros.
        port: the same as the port above could.
        speed_mbps: of its fastest network interface; 0 unknown.
    """

    address: str
    root: str
    above: tuple[str, ...]
    kind: int
    driver: str = ""
    numa_node: int | None = None
    now: BusLink | None = None
    able: BusLink = BusLink(0.0, 0)
    port: BusLink = BusLink(0.0, 0)
    speed_mbps: int = 0

    @property
    def is_bridge(self) -> bool:
        """Whether other functions may be below it."""
        return self.kind >> 8 == _BRIDGE

    @property
    def possible(self) -> BusLink:
        """What both ends of the link that leads up could do; of an end that does not say, what the other could."""
        return BusLink(
            min((end.gts for end in (self.able, self.port) if end.gts), default=0.0),
            min((end.lanes for end in (self.able, self.port) if end.lanes), default=0),
        )


@dataclass(frozen=True, slots=True)
class Device:
    """Something with a name on a PCI function; a GPU's name is the driver's, its `index` the place in the driver's list."""

    kind: DeviceKind
    name: str
    address: str
    index: int | None = None

    @property
    def title(self) -> str:
        """How it is called in a sentence."""
        if self.kind is not DeviceKind.GPU:
            return self.name
        return f"GPU at {self.address}" if self.index is None else f"GPU {self.index}"


@dataclass(frozen=True, slots=True)
class Buses:
    """The tree.

    Attributes:
        functions: by address, in the kernel's order.
        devices: GPUs in the driver's order, then the others by name.
        distances: of NUMA nodes, as the firmware tells them: 10 is local.
    """

    functions: dict[str, Function] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    distances: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def of(self, *kinds: DeviceKind) -> tuple[Device, ...]:
        """The devices of some kinds."""
        return tuple(device for device in self.devices if device.kind in kinds)

    def below(self, address: str) -> tuple[Device, ...]:
        """The devices on a function and below it."""
        inside = {name for name, function in self.functions.items() if name == address or address in function.above}
        return tuple(device for device in self.devices if device.address in inside)

    def may_sleep(self, address: str) -> bool:
        """Whether a link may be slow because nothing is to be done: a GPU's, and those that lead to one."""
        return any(device.kind is DeviceKind.GPU for device in self.below(address))

    def usable(self, address: str) -> BusLink | None:
        """The link of a function that leads up as it is when there is work; None where there is none, or it is not known."""
        function = self.functions.get(address)
        if function is None or function.now is None:
            return None
        gts = function.possible.gts if self.may_sleep(address) else 0.0
        link = BusLink(gts or function.now.gts, function.now.lanes)
        return link if link.bytes_per_s else None

    def narrowest(self, address: str) -> tuple[str, BusLink] | None:
        """The narrowest link between a function and the processor, with the function that it leads up from; None if not known."""
        function = self.functions.get(address)
        if function is None:
            return None
        links = [(name, link) for name in (address, *reversed(function.above)) if (link := self.usable(name)) is not None]
        return min(links, key=lambda pair: pair[1].bytes_per_s, default=None)


def read_buses(root: Path = Path("/"), gpus: Sequence[NvmlGpu] = ()) -> Buses:
    """Read the tree; blocks for milliseconds, and never fails.

    Args:
        root: where `sys` is.
        gpus: those that NVIDIA's driver lists.
    """
    functions: dict[str, Function] = {}
    with suppress(OSError):
        names = sorted(entry.name for entry in (root / "sys/bus/pci/devices").iterdir() if _ADDRESS.fullmatch(entry.name))
        for name in names[:FUNCTIONS_MAX]:
            if (function := _function(root / "sys/bus/pci/devices" / name)) is not None:
                functions[name] = function
    devices = _devices(root, functions, gpus)
    return Buses(functions, devices, _distances(root))


def closeness(one: str, other: str, buses: Buses) -> Closeness | None:
    """How near two functions are, None where the kernel does not know; nothing is further than across the sockets."""
    a, b = buses.functions.get(one), buses.functions.get(other)
    if a is None or b is None:
        return None
    if a.above and b.above and a.above[0] == b.above[0]:
        return Closeness.SWITCH
    if a.root == b.root:
        return Closeness.ROOT
    if a.numa_node is None or b.numa_node is None:
        return Closeness.NODE if len(buses.distances) == 1 else None
    return Closeness.NODE if a.numa_node == b.numa_node else Closeness.SYSTEM


def _function(folder: Path) -> Function | None:
    parts = [part for part in folder.resolve().parts if part.startswith("pci") or _ADDRESS.fullmatch(part)]
    if len(parts) < 2 or not parts[0].startswith("pci"):
        return None  # behind a bus of another kind
    kind = _number(folder / "class") >> 8
    node = _read(folder / "numa_node")
    above = tuple(parts[1:-1])
    leads_up = len(above) % 2 == 1 and bool(_read(folder / "current_link_width"))
    driver = folder / "driver"
    return Function(
        address=folder.name,
        root=parts[0],
        above=above,
        kind=kind,
        driver=driver.resolve().name if driver.exists() else "",
        numa_node=int(node) if node.isdigit() and int(node) < _NODES_MAX else None,
        now=_link(folder, "current") if leads_up else None,
        able=_link(folder, "max") if leads_up else BusLink(0.0, 0),
        port=_link(folder.resolve().parent, "max") if leads_up else BusLink(0.0, 0),
        speed_mbps=_fastest(folder),
    )


def _link(folder: Path, which: str) -> BusLink:
    told = re.match(r"\d+(?:\.\d+)?(?= GT/s)", _read(folder / f"{which}_link_speed"))
    gts, lanes = float(told[0]) if told else 0.0, _number(folder / f"{which}_link_width")
    return BusLink(gts if gts in BYTES_PER_LANE else 0.0, lanes if 0 < lanes <= _LANES_MAX else 0)


def _fastest(folder: Path) -> int:
    """The speed of the fastest interface on a function in megabits per second."""
    texts = [_read(path) for path in (*folder.glob("net/*/speed"), *folder.glob("virtio*/net/*/speed"))]
    return max((int(text) for text in texts if text.isdigit()), default=0)


def _devices(root: Path, functions: dict[str, Function], gpus: Sequence[NvmlGpu]) -> tuple[Device, ...]:
    found = [Device(DeviceKind.GPU, gpu.name, gpu.address, gpu.index) for gpu in gpus if gpu.address in functions]
    told = {device.address for device in found}
    for function in functions.values():
        if function.address not in told and _is_gpu(function):
            found.append(Device(DeviceKind.GPU, function.driver or "no driver", function.address))
        elif function.kind == _NVME:
            names = sorted(path.name for path in (root / "sys/bus/pci/devices" / function.address).glob("nvme/nvme*"))
            found.append(Device(DeviceKind.DISK, names[0] if names else "NVMe disk", function.address))
    for kind, group in ((DeviceKind.RDMA, "infiniband"), (DeviceKind.NIC, "net")):
        with suppress(OSError):
            for entry in sorted((root / "sys/class" / group).iterdir()):
                address = _function_of(entry / "device")
                if address in functions:
                    found.append(Device(kind, entry.name, address))
    return tuple(found)


def _is_gpu(function: Function) -> bool:
    if function.kind == _COMPUTE or function.kind >> 8 == _ACCELERATOR:
        return True
    return function.kind >> 8 == _DISPLAY and function.driver in GPU_DRIVERS


def _function_of(device: Path) -> str:
    """The PCI function that a device is on; empty where it is on none."""
    if not device.exists():
        return ""
    return next((part for part in reversed(device.resolve().parts) if _ADDRESS.fullmatch(part)), "")


def _distances(root: Path) -> dict[int, tuple[int, ...]]:
    found = {}
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        number, told = folder.name.removeprefix("node"), _read(folder / "distance").split()
        if number.isdigit() and all(part.isdigit() for part in told):
            found[int(number)] = tuple(int(part) for part in told)
    return dict(sorted(found.items()))


def _number(path: Path) -> int:
    try:
        return int(_read(path), 0)
    except ValueError:
        return 0


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode("utf-8", "replace").strip()
    except OSError:
        return ""
