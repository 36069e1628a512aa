"""Runs in a guest with two software RDMA devices, rxa and rxb: two nodes whose tensors go by RDMA, until the cable is pulled.

Prints a JSON object: what the answers were, which way they took, and what the devices have counted meanwhile.
"""

import fcntl
import json
import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np
from inside_nodes import Node, meet

from mesh import client

SIZE = 1 << 20
"""Numbers of 4 bytes in a tensor: 4 MiB, above what makes RDMA worth it at the speed that the devices claim."""
LARGE = 7 << 18
"""The same while the cable is pulled: 7 MiB, about what a program may hand to its own node in one message."""
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h


def counted(device: str) -> dict[str, int]:
    """What a device has counted so far: packets and requests of RDMA."""
    folder = Path(f"/sys/class/infiniband/{device}/ports/1/hw_counters")
    return {name: int((folder / name).read_text()) for name in ("sent_pkts", "rcvd_pkts", "retry_exceeded_err")}


def sent_bytes(interface: str) -> int:
    return int(Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text())


def since(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    return {name: now[name] - before[name] for name in now}


def node(name: str, device: str, address: str, *flags: str) -> Node:
    flags = ("--fabric", "rdma", "--rdma-device", device, *flags)
    return Node(name, *flags, listen=address, program="tests/guest/inside_patient_node.py")


asker = node("asker", "rxa", "127.0.0.1", "--engine", "none")
asker.wait_ready()
answerer = node("answerer", "rxb", "127.0.0.2", "--engine", "echo", "--bootstrap", asker.address)
answerer.wait_ready()
meet(asker, answerer)


def fabrics(of: Node) -> dict:
    return of.ask("/mesh/status")[0]["fabrics"]


def port_there(of: Node) -> bool:
    return "rdma" in fabrics(of)["kinds"]


asker.wait(lambda: port_there(asker), "find its port", 60)
answerer.wait(lambda: port_there(answerer), "find its port", 60)
time.sleep(6)  # cards with the ports are told, and looked at again


def infer(mesh, size: int = SIZE) -> dict[str, object]:
    """Ask the other node for what it is asked, and see which way that took."""
    array = np.random.default_rng(3).standard_normal(size, np.float32)
    before, packets = counted("rxa"), sent_bytes("va")
    began = time.monotonic()
    answer = mesh.infer("echo", {"x": array}, deadline_s=60.0)
    took_s = time.monotonic() - began
    route = answer.route()
    return {
        "equal": bool(np.array_equal(answer["x"], array)),
        "ways": [c["fabric"] for c in route.candidates if c["peer_id"] == answerer.peer_id],
        "took_s": round(took_s, 3),
        "size_bytes": array.nbytes,
        "counted": since(before, counted("rxa")),
        "sent_bytes": sent_bytes("va") - packets,
    }


def take_down(interface: str) -> None:
    """As `ip link set INTERFACE down`, without the time that a program takes to start."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", interface.encode(), 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", interface.encode(), flags & ~IFF_UP))


def pull_while_writing() -> bool:
    """Take the cable down as soon as the asker's device sends; whether it did send."""
    end = time.monotonic() + 20.0
    begun = counted("rxa")["sent_pkts"]
    while time.monotonic() < end:
        if counted("rxa")["sent_pkts"] > begun + 16:
            take_down("vb")
            return True
    return False


def infer_and_pull(mesh) -> dict[str, object]:
    """The same, with the cable pulled meanwhile; QUIC goes by the loopback, and stays."""
    outcome: list[bool] = []
    pulling = threading.Thread(target=lambda: outcome.append(pull_while_writing()))
    pulling.start()
    found = infer(mesh, LARGE)
    pulling.join()
    return {**found, "was_writing": outcome[0]}


told: dict[str, object] = {"before": fabrics(asker)}
with client.sync.attach(state_dir=asker.state_dir) as mesh:
    told["by_rdma"] = [infer(mesh) for _ in range(3)]
    told["open"] = fabrics(asker)
    told["pulled"] = infer_and_pull(mesh)
    told["closed"] = infer(mesh)
    told["after"] = fabrics(asker)
for stopped in (asker, answerer):
    stopped.stop()
print(json.dumps(told))
