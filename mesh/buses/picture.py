"""The buses as a picture for the terminal and as JSON for programs.

The picture leaves out what nobody asks for: root ports and the downstream ports of switches, which have the link of what is below
them, and whatever leads to no GPU, network device or fast disk. A line says how the link runs, of what it could, what passes over
it in both directions, and in a bar how much of it that is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mesh.buses.load import Load
from mesh.buses.tree import Buses, Device, DeviceKind, closeness
from mesh.plain import printable
from protocol.fabric import Closeness

BAR_CHARACTERS = 10
"""Characters of a bar: a tenth of a link each."""
BUSY_SHARE = 0.8
"""Share of a link from which on it is drawn as full: what is left of the rest goes to the packets' headers."""
NETWORK = (DeviceKind.RDMA, DeviceKind.NIC)
WORDS = {Closeness.SWITCH: "switch", Closeness.ROOT: "root", Closeness.NODE: "node", Closeness.SYSTEM: "sockets", None: "?"}
"""How near, in a cell: below one switch, one root complex, one NUMA node, across the sockets, not known."""
_STYLES = {DeviceKind.GPU: "bold green", DeviceKind.NIC: "bold cyan", DeviceKind.RDMA: "bold cyan", DeviceKind.DISK: "dim"}
_NEARNESS = {"switch": "green", "root": "green", "node": "yellow", "sockets": "red", "?": "dim"}


def tree_picture(buses: Buses, loads: Mapping[str, Load], title: str = "") -> Tree:
    """The tree of what is interesting; empty branches are left out."""
    picture = Tree(Text(title or "PCIe", style="bold"), guide_style="dim")
    many = len(buses.distances) > 1
    branches: dict[object, Tree] = {}
    for address in sorted(buses.functions):
        below = buses.below(address)
        function = buses.functions[address]
        is_switch = function.is_bridge and len(function.above) % 2 == 1
        if not below or (function.is_bridge and not is_switch):
            continue
        node = f"  NUMA node {'not known' if function.numa_node is None else function.numa_node}" if many else ""
        parent = branches.get(function.root)
        if parent is None:
            parent = branches[function.root] = picture.add(Text.assemble(("root complex ", ""), function.root, (node, "dim")))
        for bridge in function.above:
            parent = branches.get(bridge, parent)
        own = [device for device in below if device.address == address]
        branches[address] = parent.add(_line(buses, address, own, loads.get(address)))
    if not branches:
        picture.add(Text("no GPU, network device or NVMe disk on a PCI bus is seen here", style="dim"))
    return picture


def closeness_table(buses: Buses) -> Table | None:
    """GPUs against network devices: how near they are; None where there are none of one of them."""
    gpus, network = buses.of(DeviceKind.GPU), _network(buses)
    if not gpus or not network:
        return None
    table = Table(title="How near", title_justify="left")
    table.add_column("")
    for device in network:
        table.add_column(printable(device.title))
    for gpu in gpus:
        words = [WORDS[closeness(gpu.address, device.address, buses)] for device in network]
        table.add_row(gpu.title, *(Text(word, style=_NEARNESS[word]) for word in words))
    return table


def buses_json(buses: Buses, loads: Mapping[str, Load], said: Sequence[str]) -> dict[str, Any]:
    """All of it for programs; None is what is not known."""
    return {
        "functions": [_function_json(buses, address, loads.get(address)) for address in sorted(buses.functions)],
        "devices": [
            {"kind": str(device.kind), "name": device.name, "index": device.index, "address": device.address}
            for device in buses.devices
        ],
        "closeness": [
            {"gpu": gpu.address, "device": device.name, "closeness": None if near is None else near.name.lower()}
            for gpu in buses.of(DeviceKind.GPU)
            for device in _network(buses)
            for near in [closeness(gpu.address, device.address, buses)]
        ],
        "numa_distances": {str(node): list(told) for node, told in buses.distances.items()},
        "warnings": list(said),
    }


def _network(buses: Buses) -> list[Device]:
    """One device for each network function: RDMA before the interface that stands on it as well."""
    found: dict[str, Device] = {}
    for device in buses.of(*NETWORK):
        found.setdefault(device.address, device)
    return sorted(found.values(), key=lambda device: device.name)


def _line(buses: Buses, address: str, own: Sequence[Device], load: Load | None) -> Text:
    function = buses.functions[address]
    line = Text()
    if own:
        kinds = sorted({device.kind for device in own}, key=list(DeviceKind).index)
        titles = ("GPU" if device.kind is DeviceKind.GPU and device.index is None else device.title for device in own)
        line.append(" ".join(dict.fromkeys(printable(title) for title in titles)), style=_STYLES[kinds[0]])
        names = [printable(device.name) for device in own if device.kind is DeviceKind.GPU]
        line.append("".join(f" {name}" for name in names))
    else:
        shared = len(buses.below(address))
        line.append("switch", style="bold")
        line.append(f" shared by {shared}" if shared > 1 else "")
    line.append(f"  {address}", style="dim")
    if function.now is not None and function.now.lanes:
        possible = function.possible
        link = buses.usable(address) or function.now
        is_full = link.lanes >= possible.lanes and link.gts >= possible.gts
        line.append(f"  PCIe {link}", style="" if is_full else "bold yellow")
        if not is_full:
            line.append(f" of {possible}", style="yellow")
        if function.now.gts < link.gts:
            line.append(f" (idle at {function.now})", style="dim")
        if link.bytes_per_s:
            line.append(f"  {link.bytes_per_s / 1e9:.1f} GB/s", style="dim")
    if load is not None:
        _append_load(line, load, 0.0 if (usable := buses.usable(address)) is None else usable.bytes_per_s)
    return line


def _append_load(line: Text, load: Load, bytes_per_s: float) -> None:
    if bytes_per_s:
        share = min(1.0, load.busiest_bytes_per_s / bytes_per_s)
        filled = round(share * BAR_CHARACTERS)
        line.append("  ")
        line.append("█" * filled, style="red" if share >= BUSY_SHARE else "green")
        line.append("░" * (BAR_CHARACTERS - filled), style="dim")
    line.append(f"  ↓ {_rate(load.down_bytes_per_s)} ↑ {_rate(load.up_bytes_per_s)}")


def _rate(bytes_per_s: float) -> str:
    for size, unit in ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")):
        if bytes_per_s >= size:
            return f"{bytes_per_s / size:.1f} {unit}"
    return f"{bytes_per_s:.0f} B/s"


def _function_json(buses: Buses, address: str, load: Load | None) -> dict[str, Any]:
    function, narrowest = buses.functions[address], buses.narrowest(address)
    links = {"now": function.now, "able": function.able, "port": function.port}
    return {
        "address": address,
        "root": function.root,
        "above": list(function.above),
        "class": f"{function.kind:04x}",
        "driver": function.driver or None,
        "numa_node": function.numa_node,
        "link": None
        if function.now is None
        else {name: None if link is None else {"gts": link.gts, "lanes": link.lanes} for name, link in links.items()},
        "narrowest": None if narrowest is None else {"at": narrowest[0], "bytes_per_s": narrowest[1].bytes_per_s},
        "load": None if load is None else {"down_bytes_per_s": load.down_bytes_per_s, "up_bytes_per_s": load.up_bytes_per_s},
    }
