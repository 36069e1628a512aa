"""Runs in a guest with two software RDMA devices, rxa and rxb: two nodes whose tensors go by RDMA, until the cable is pulled.

Prints a JSON object: what the answers were, which way they took, and what the devices have counted meanwhile.
"""

import json
import time

from inside_nodes import meet
from inside_rdma import CARDS_S, LARGE_BYTES, SIZE_BYTES, fabrics, infer, node, wait_for_port, while_pulling

from mesh import client

asker = node("asker", "rxa", "127.0.0.1", "--engine", "none")
asker.wait_ready()
answerer = node("answerer", "rxb", "127.0.0.2", "--engine", "echo", "--bootstrap", asker.address)
answerer.wait_ready()
meet(asker, answerer)
for one in (asker, answerer):
    wait_for_port(one)
time.sleep(CARDS_S)

told: dict[str, object] = {"before": fabrics(asker)}
with client.sync.attach(state_dir=asker.state_dir) as mesh:
    told["by_rdma"] = [infer(mesh, SIZE_BYTES, "rxa", "va") for _ in range(3)]
    told["open"] = fabrics(asker)
    # QUIC goes by the loopback, and stays.
    told["pulled"] = while_pulling("rxa", "vb", lambda: infer(mesh, LARGE_BYTES, "rxa", "va"))
    told["closed"] = infer(mesh, SIZE_BYTES, "rxa", "va")
    told["after"] = fabrics(asker)
for stopped in (asker, answerer):
    stopped.stop()
print(json.dumps(told))
