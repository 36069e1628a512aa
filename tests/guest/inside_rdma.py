"""For programs in a guest that have nodes use its software RDMA devices, look at these, and pull their cables."""

import fcntl
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from inside_nodes import Node

SIZE_BYTES = 4 << 20
"""Of a tensor: above what makes RDMA worth it at the speed that the devices claim."""
LARGE_BYTES = 7 << 20
"""The same while the cable is pulled: about what a program may hand to its own node in one message."""
CARDS_S = 6.0
"""Seconds until both know of the other's port: a card is told at most every 2 s, and looked at again after 5."""
PULL_S_MAX = 120.0
"""Seconds until a device begins to write, with which the cable is pulled."""
PACKETS = 16
"""Packets after which the cable is pulled, a count: of a transfer of megabytes few, and more than what binds or confirms."""
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h


def node(name: str, device: str, address: str, *flags: str, open_network: str = "") -> Node:
    """Start a node that uses a device, and no other fabric."""
    flags = ("--fabric", "rdma", "--rdma-device", device, *flags)
    return Node(name, *flags, listen=address, open_network=open_network, program="tests/guest/inside_patient_node.py")


def fabrics(of: Node) -> dict:
    """What a node says of its fabrics."""
    return of.ask("/mesh/status")[0]["fabrics"]


def wait_for_port(of: Node) -> None:
    """Wait until a node has found its port."""
    of.wait(lambda: "rdma" in fabrics(of)["kinds"], "find its port")


def counted(device: str) -> dict[str, int]:
    """What a device has counted so far: packets and requests of RDMA."""
    folder = Path(f"/sys/class/infiniband/{device}/ports/1/hw_counters")
    return {name: int((folder / name).read_text()) for name in ("sent_pkts", "rcvd_pkts", "retry_exceeded_err")}


def sent_bytes(interface: str) -> int:
    """What has left by an interface so far."""
    return int(Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text())


def since(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """What was counted meanwhile."""
    return {name: now[name] - before[name] for name in now}


def infer(mesh, size_bytes: int, device: str, interface: str) -> dict[str, object]:
    """Ask the other node for what it is asked; which way that took, and what a device and an interface have counted meanwhile."""
    import numpy as np

    array = np.random.default_rng(size_bytes).integers(0, 256, size_bytes, np.uint8)
    before, bytes_before = counted(device), sent_bytes(interface)
    began = time.monotonic()
    answer = mesh.infer("echo", {"x": array}, deadline_s=120.0)
    took_s = time.monotonic() - began
    route = answer.route()
    return {
        "equal": bool(np.array_equal(answer["x"], array)),
        "ways": [row["fabric"] for row in route.candidates if row["peer_id"] == route.node],
        "took_s": round(took_s, 3),
        "size_bytes": size_bytes,
        "counted": since(before, counted(device)),
        "sent_bytes": sent_bytes(interface) - bytes_before,
    }


def take_down(interface: str) -> None:
    """As `ip link set INTERFACE down`, without the time that a program takes to start."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", interface.encode(), 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", interface.encode(), flags & ~IFF_UP))


def while_pulling(device: str, interface: str, work: Callable[[], dict]) -> dict:
    """Do something, and take an interface down as soon as a device sends; `was_writing` says whether it did send."""
    outcome: list[bool] = []

    def pull() -> None:
        end, begun = time.monotonic() + PULL_S_MAX, counted(device)["sent_pkts"]
        while time.monotonic() < end:
            if counted(device)["sent_pkts"] > begun + PACKETS:
                take_down(interface)
                outcome.append(True)
                return

    pulling = threading.Thread(target=pull)
    pulling.start()
    found = work()
    pulling.join()
    return {**found, "was_writing": bool(outcome)}
