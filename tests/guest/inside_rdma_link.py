"""Runs in each of two guests with a software RDMA device, rxe, on a cable of its own: a node that gives tensors to the other.

usage: inside_rdma_link.py serve ADDRESS     start a node with an engine, which goes on, and tell its address
       inside_rdma_link.py light BOOTSTRAP INTERFACE     ask as a light node
       inside_rdma_link.py ask ADDRESS BOOTSTRAP INTERFACE     start a node and ask the other, at last while the cable is pulled
       inside_rdma_link.py look     tell what the node that serves says of its fabrics, and what the device has counted
"""

import json
import sys
import time
from pathlib import Path

from inside_nodes import Node
from inside_rdma import CARDS_S, LARGE_BYTES, SIZE_BYTES, counted, fabrics, infer, node, wait_for_port, while_pulling

ATTEMPTS_MAX = 8
"""Requests of a light node until one has gone by RDMA."""


def serve(address: str) -> dict:
    """Start a node that answers."""
    server = node("server", "rxe", address, "--engine", "echo", open_network="guests")
    server.wait_ready()
    wait_for_port(server)
    return {"address": server.address, "counted": counted("rxe")}


def light(bootstrap: str, interface: str) -> list[dict]:
    """Join as a light node, and ask until a request has gone by RDMA: both have to hear of the other's port."""
    import inside_patient_node

    from mesh import client
    from mesh.native import light as node_of_client

    node_of_client.JOIN_S_MAX *= inside_patient_node.TIMES
    found: list[dict] = []
    with client.sync.connect([bootstrap], network="guests", fabric="rdma", rdma_device=["rxe"]) as mesh:
        while len(found) < ATTEMPTS_MAX and (not found or found[-1]["ways"] == [""]):
            time.sleep(CARDS_S)
            found.append(infer(mesh, SIZE_BYTES, "rxe", interface))
    return found


def ask(address: str, bootstrap: str, interface: str) -> dict:
    """Start a node that asks, and tell how that went."""
    from mesh import client

    asker = node("asker", "rxe", address, "--engine", "none", "--bootstrap", bootstrap, open_network="guests")
    asker.wait_ready()
    wait_for_port(asker)
    asker.wait(lambda: bool(asker.peers()), "meet the other")
    time.sleep(CARDS_S)

    rdma = interface_of("rxe")
    told: dict[str, object] = {}
    with client.sync.attach(state_dir=asker.state_dir) as mesh:
        told["by_rdma"] = [infer(mesh, SIZE_BYTES, "rxe", interface) for _ in range(2)]
        told["open"] = fabrics(asker)
        told["pulled"] = while_pulling("rxe", rdma, lambda: infer(mesh, LARGE_BYTES, "rxe", interface))
        told["after"] = fabrics(asker)
    asker.stop()
    return told


def interface_of(device: str) -> str:
    """The interface below a software device."""
    return Path(f"/sys/class/infiniband/{device}/parent").read_text().strip()


def look() -> dict:
    """What the node that serves says; it was started by another run of this program."""
    server = Node.running("server")
    return {"fabrics": fabrics(server), "counted": counted("rxe")}


what, *arguments = sys.argv[1:]
print(json.dumps({"serve": serve, "light": light, "ask": ask, "look": look}[what](*arguments)))
