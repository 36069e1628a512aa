"""What is wrong with where devices are, in words that say what to do.

A GPU is told where its link, or one above it, has fewer lanes or a lower speed than it could use. A network device is told where
its link carries less than its cable does: a card that could more than it needs is no fault. A GPU is told to be far from the
network where even the nearest network device is on another socket.
"""

from mesh.buses.tree import Buses, BusLink, Device, DeviceKind, closeness
from protocol.fabric import Closeness

BITS_PER_MBPS = 1e6
"""Bits per second in one Mbit/s."""


def warnings(buses: Buses) -> list[str]:
    """One sentence or two for each thing that is wrong; empty where nothing is known to be."""
    said = [text for gpu in buses.of(DeviceKind.GPU) for text in (*_of_link(gpu, buses), *_of_path(gpu, buses))]
    told = set()
    for device in buses.of(DeviceKind.NIC, DeviceKind.RDMA):
        if device.address not in told and (text := _of_network(device, buses)):
            told.add(device.address)
            said.append(text)
    return said + [text for gpu in buses.of(DeviceKind.GPU) if (text := _of_sockets(gpu, buses))]


def _of_link(gpu: Device, buses: Buses) -> list[str]:
    """Of a GPU's own link."""
    function, link = buses.functions[gpu.address], buses.usable(gpu.address)
    if link is None or function.now is None:
        return []
    possible, able = function.possible, function.able
    runs = f"{gpu.title} runs at PCIe {link} of {BusLink(able.gts or link.gts, able.lanes or link.lanes)}"
    if link.lanes < possible.lanes:
        advice = "Put the card in again, look at its riser, and the firmware's settings for lanes split between slots."
        return [f"{runs}: its slot could give x{possible.lanes}. {advice}"]
    if 0 < possible.lanes < able.lanes:
        return [f"{runs}: its slot has x{possible.lanes}. Move the card to a slot with x{able.lanes}."]
    if 0 < possible.gts < able.gts:
        return [
            f"{runs}: the port above is older. Move the card to a faster slot, or look for a limit in the firmware's settings."
        ]
    return []


def _of_path(gpu: Device, buses: Buses) -> list[str]:
    """Of the links above a GPU's own."""
    own, found = buses.usable(gpu.address), buses.narrowest(gpu.address)
    if own is None or found is None:
        return []
    address, link = found
    if address == gpu.address or link.bytes_per_s >= own.bytes_per_s:
        return []
    shared = f"that is all there is for {_and(buses.below(address))}"
    return [
        f"{gpu.title} has PCIe {own}, but the switch above it, {address}, has {link}: {shared}. Take a slot without a switch."
    ]


def _of_network(device: Device, buses: Buses) -> str:
    """Of a network device that is slower than its cable."""
    function, found = buses.functions[device.address], buses.narrowest(device.address)
    if found is None or function.speed_mbps == 0:
        return ""
    address, link = found
    cable_bytes_per_s = function.speed_mbps * BITS_PER_MBPS / 8
    if link.bytes_per_s >= cable_bytes_per_s:
        return ""
    names = _and(tuple(other for other in buses.devices if other.address == device.address))
    where = "its slot" if address == device.address else f"the switch above it, {address},"
    return (
        f"{names}: the cable carries {function.speed_mbps / 1000:g} Gbit/s, but {where} gives PCIe {link}, "
        f"{link.bytes_per_s * 8 / 1e9:.0f} Gbit/s. Move the card to a wider slot."
    )


def _of_sockets(gpu: Device, buses: Buses) -> str:
    """Of a GPU whose nearest network device is on another socket: RDMA devices count where there are any."""
    network = buses.of(DeviceKind.RDMA) or buses.of(DeviceKind.NIC)
    near = [(found, device) for device in network if (found := closeness(gpu.address, device.address, buses)) is not None]
    if not near or len(near) < len(network) or any(found is not Closeness.SYSTEM for found, _ in near):
        return ""
    nodes = [buses.functions[device.address].numa_node for device in (gpu, near[0][1])]
    names = _and(tuple(device for _, device in near))
    return (
        f"{gpu.title} and {names} are on different sockets (NUMA nodes {nodes[0]} and {nodes[1]}): "
        f"tensors cross from one to the other. Run the engine on a GPU of node {nodes[1]}, or move one of the cards."
    )


def _and(devices: tuple[Device, ...]) -> str:
    titles = list(dict.fromkeys(device.title for device in devices))
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"
