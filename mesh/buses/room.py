"""What is left of the buses to the GPUs, looked at again and again while a node runs, for its beats.

A transfer to a GPU goes over every link above it, and is as quick as the one with the least left. A link that is full is shared
with whoever comes: something is always left. Where there is no GPU, or the width of a link is not known, nothing is looked at.

Source: docs/hardware.md, "What others are told".
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio

from mesh.buses.load import Load, between, read_counters
from mesh.buses.nvml import NvmlGpu, list_gpus
from mesh.buses.tree import Buses, Device, DeviceKind, read_buses

LOOK_S = 5.0
"""Seconds between two looks: as often as a beat is told. A look takes a thread for 40 ms a GPU, as NVIDIA's driver does."""
SHARE_MIN = 0.1
"""Share of a link that a new transfer gets where others fill it: a tenth, as beside nine that are as hungry."""
BYTES_PER_MBIT = 125_000
"""Bytes in a megabit."""


def room_mbps(buses: Buses, loads: Mapping[str, Load]) -> int:
    """What the bus to the GPU with the most room has left, in Mbit/s; 0 where there is none or it is not known of each GPU."""
    rooms = [_room(gpu, buses, loads) for gpu in buses.of(DeviceKind.GPU) if gpu.index is not None]
    return 0 if not rooms or 0 in rooms else max(rooms)


async def watch_room(tell: Callable[[int], None], root: Path = Path("/"), gpus: Sequence[NvmlGpu] | None = None) -> None:
    """Tell what is left each time it was looked at; returns at once where there is nothing to look at.

    Args:
        tell: is told, in Mbit/s.
        root: where `sys` is.
        gpus: those of the machine; None asks NVIDIA's driver.
    """
    buses = await trio.to_thread.run_sync(lambda: read_buses(root, list_gpus() if gpus is None else gpus))
    if room_mbps(buses, {}) == 0:
        return
    while True:
        before, began_at = await trio.to_thread.run_sync(read_counters, buses, root), trio.current_time()
        await trio.sleep(LOOK_S)
        took_s = trio.current_time() - began_at
        tell(room_mbps(buses, await trio.to_thread.run_sync(between, buses, before, took_s, root)))


def _room(gpu: Device, buses: Buses, loads: Mapping[str, Load]) -> int:
    function = buses.functions[gpu.address]
    left = []
    for address in (gpu.address, *function.above):
        link = buses.usable(address)
        if link is not None:
            taken = loads[address].busiest_bytes_per_s if address in loads else 0.0
            left.append(max(link.bytes_per_s - taken, SHARE_MIN * link.bytes_per_s))
    return max(1, round(min(left) / BYTES_PER_MBIT)) if left and buses.usable(gpu.address) is not None else 0
