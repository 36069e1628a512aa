"""Runs in a guest: a node that is in a pool of CXL memory, and requests whose tensors go by that pool.

usage: inside_pool.py serve NAME ADDRESS DEVICE [BOOTSTRAP]     start a node, which goes on, and tell its address
       inside_pool.py ask NAME ADDRESS DEVICE BOOTSTRAP SEED BYTES     start a node, and ask the other for a tensor made of SEED
"""

import json
import random
import sys
import time
from pathlib import Path

from inside_nodes import Node

what, name, address, device, *rest = sys.argv[1:]
ATTEMPTS_MAX = 8
"""Requests until one has gone by the pool: one may be sent before it is open."""

CARDS_S = 6.0
"""Seconds until both know that the other is in the pool: a card is told at most every 2 s, and looked at again after 5."""


def sent() -> int:
    """Bytes that have left by the cable between the guests."""
    (cable,) = Path("/sys/bus/virtio/drivers/virtio_net").glob("virtio*/net/*")
    return int((cable / "statistics/tx_bytes").read_text())


def main() -> None:
    bootstrap = ["--bootstrap", rest[0]] if rest else []
    flags = ["--engine", "echo" if what == "serve" else "none", "--fabric", "cxl", "--cxl-pool", device, *bootstrap]
    node = Node(name, *flags, listen=address, open_network="guests", program="tests/guest/inside_patient_node.py")
    node.wait_ready()
    node.wait(lambda: fabrics(node)["kinds"] == ["cxl"], "enter the pool")
    if what == "serve":
        print(json.dumps({"address": node.address, "peer_id": node.peer_id}))
        return
    print(json.dumps(ask(node, rest[1], int(rest[2]))))


def fabrics(node: Node) -> dict:
    """What it says of its fabrics."""
    return node.ask("/mesh/status")[0]["fabrics"]


def ask(node: Node, seed: str, size_bytes: int) -> dict:
    """Ask until a request has gone by the pool; whether all answers were right, and what the cable had to carry for that one."""
    import numpy as np

    from mesh.client import sync

    array = np.frombuffer(random.Random(seed).randbytes(size_bytes), np.uint8)
    node.wait(lambda: bool(node.peers()), "meet the other")
    time.sleep(CARDS_S)
    ways, is_same = [], True
    with sync.attach(state_dir=node.state_dir) as mesh:
        for _ in range(ATTEMPTS_MAX):
            before = sent()
            answer = mesh.infer("echo", {"x": array}, deadline_s=120.0)
            is_same = is_same and bytes(answer["x"]) == array.tobytes()
            route = answer.route()
            ways.append(next(row["fabric"] for row in route.candidates if row["peer_id"] == route.node))
            if ways[-1] == "cxl":
                break
    return {"is_same": is_same, "ways": ways, "sent_bytes": sent() - before, "fabrics": fabrics(node)}


main()
