"""Where RDMA ports and GPUs are on the buses of this machine, and what that means for which of them is used with which.

A port carries no more than the narrowest PCIe link between it and the processor, so its speed is told as the lesser of the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from mesh.buses import Buses, DeviceKind, closeness, list_gpus, nearest_ports, read_buses
from mesh.buses.advice import BITS_PER_MBPS
from mesh.buses.nvml import pci_address
from mesh.fabric.gpu.driver import Device
from mesh.fabric.rdma.ports import RdmaPort
from protocol.fabric import FAR, GpuPath


@dataclass(frozen=True, slots=True)
class Places:
    """What was found.

    Attributes:
        ports: the fastest first, none faster than what leads to it.
        gpu_paths: for the advert: the port that is nearest to each GPU.
        gpus: of each RDMA device the GPUs of this process, the nearest first.
        nodes: the NUMA nodes of RDMA devices, where the machine has several.
        on_card: the places of GPUs on the card, by their PCI functions.
    """

    ports: tuple[RdmaPort, ...] = ()
    gpu_paths: tuple[GpuPath, ...] = ()
    gpus: dict[str, tuple[Device, ...]] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    on_card: dict[str, int] = field(default_factory=dict)

    def place_of(self, device: Device) -> int | None:
        """The place of a GPU on the card; None for one that is not there."""
        return self.on_card.get(pci_address(device.bus_id))

    def ports_on(self, node: int | None) -> frozenset[int]:
        """The ports on a NUMA node, by their places in the advert."""
        here = (place for place, port in enumerate(self.ports) if self.nodes.get(port.device) == node)
        return frozenset() if node is None else frozenset(here)


def find_places(ports: Sequence[RdmaPort], devices: Sequence[Device], root: Path = Path("/")) -> Places:
    """Look at the buses; blocks for milliseconds, and belongs in a worker thread.

    Args:
        ports: those that can be used.
        devices: the GPUs of this process whose memory cards may have.
        root: where `sys` is.
    """
    listed = list_gpus() if ports else ()
    buses = read_buses(root, listed)
    places = {device.name: device.address for device in buses.of(DeviceKind.RDMA)}
    measured = sorted((_as_fast_as_its_link(port, places, buses) for port in ports), key=lambda port: -port.speed_mbps)
    cards = {port.device: places.get(port.device, "") for port in ports}

    def distance(device: Device, card: str) -> int:
        return closeness(pci_address(device.bus_id), card, buses) or FAR

    nodes = {name: buses.functions[address].numa_node for name, address in cards.items() if address in buses.functions}
    return Places(
        tuple(measured),
        nearest_ports([port.device for port in measured], listed, buses),
        {name: tuple(sorted(devices, key=partial(distance, card=address))) for name, address in cards.items()},
        {name: node for name, node in nodes.items() if node is not None and len(buses.distances) > 1},
        {gpu.address: place for place, gpu in enumerate(listed)},
    )


def _as_fast_as_its_link(port: RdmaPort, places: dict[str, str], buses: Buses) -> RdmaPort:
    found = buses.narrowest(places.get(port.device, ""))
    if found is None:
        return port
    most_mbps = max(1, round(found[1].bytes_per_s * 8 / BITS_PER_MBPS))
    return port if 0 < port.speed_mbps <= most_mbps else replace(port, speed_mbps=most_mbps)
