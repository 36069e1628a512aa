"""Which RDMA port is nearest to each GPU, for the advert of a node.

Spec: docs/spec/11-fabric.md, section "Adverts".
"""

from collections.abc import Sequence

from mesh.buses.nvml import NvmlGpu
from mesh.buses.tree import Buses, DeviceKind, closeness
from protocol.fabric import GpuPath


def nearest_ports(devices: Sequence[str], gpus: Sequence[NvmlGpu], buses: Buses) -> tuple[GpuPath, ...]:
    """The way from each GPU to the port that is nearest to it; none of those of which it is not known.

    Args:
        devices: the RDMA device of each port, in the order of the advert.
        gpus: in the order of the card.
        buses: where they are.
    """
    places = {device.name: device.address for device in buses.of(DeviceKind.RDMA)}
    paths = []
    for place, gpu in enumerate(gpus):
        known = [(closeness(gpu.address, places.get(name, ""), buses), port) for port, name in enumerate(devices)]
        near = min(((found, port) for found, port in known if found is not None), default=None)
        if near is not None:
            paths.append(GpuPath(place, near[1], near[0]))
    return tuple(paths)
