"""Runs in a guest: one node with an engine on the emulated GPU, in a process of its own, whose tensors take RDMA alone.

usage: inside_gpu_node.py STATE_DIR DEVICE [BOOTSTRAP], with tests/mesh/nodes in PYTHONPATH; says as JSON who it is, and then does
what its standard input says: `status`, or `ask NUMBERS`, which asks another node for an echo of numbers that lie on the device.
"""

import json
import os
import sys
from pathlib import Path

import inside_patient_node  # noqa: F401  # the node waits longer than it does elsewhere
import numpy as np
import trio
from device_engine import MODEL, DeviceEngine

from mesh.config import HostPort, NodeConfig
from mesh.fabric.gpu import DeviceArray, Pool, array_of, device_tensor, driver, to_device
from mesh.service import Service
from mesh.store import Store
from mesh.telemetry import Telemetry, make_logger
from protocol.inference import Feature, Finished, InferenceRequest, Tensor, TensorsReady
from protocol.multiaddr import parse_multiaddr


def config_of(state_dir: str, device: str, bootstrap: list[str]) -> NodeConfig:
    """Loopback for QUIC, and one card for tensors."""
    return NodeConfig(
        state_dir=Path(state_dir),
        network="test",
        listen=(parse_multiaddr("/ip4/127.0.0.1/udp/0/quic-v1"),),
        listen_default=False,
        announce=(),
        bootstrap=tuple(map(parse_multiaddr, bootstrap)),
        gateway=HostPort("127.0.0.1", 0),
        engines=(),
        quic_engine="auto",
        grace_s=1.0,
        log_level="info",
        fabric="rdma",
        rdma_devices=(device,),
    )


class Node:
    """The node, and what may be asked of it."""

    def __init__(self, service: Service, engine: DeviceEngine | None) -> None:
        self.service, self.engine = service, engine
        self.device = driver().devices[0]
        self.pool = Pool(self.device)

    def on_device(self, array: np.ndarray) -> DeviceArray:
        tensor = Tensor("x", array.dtype.str[1:], array.shape, memoryview(array.tobytes()))
        return to_device(tensor, self.device, self.pool)

    def status(self) -> dict[str, object]:
        return {
            "fabrics": self.service.fabrics.status(),
            "host_copies": self.device.host_copies,
            "lay": [] if self.engine is None else self.engine.lay,
            "alive": len(self.service.transport.connections),
        }

    async def ask(self, n: int) -> dict[str, object]:
        array = np.random.default_rng(n).standard_normal(n, np.float32)
        before = self.device.host_copies
        request = InferenceRequest(
            os.urandom(16), Feature.TENSORS, MODEL, b"", (device_tensor("x", self.on_device(array)),), 60.0, takes_device=True
        )
        async with self.service.dispatcher.submit(request) as answer:
            replies = [reply async for reply in answer]
            route = answer.route
        copies = self.device.host_copies - before
        if not isinstance(replies[-1], Finished) or not isinstance(replies[0], TensorsReady):
            return {"failed": repr(replies)}
        (output,) = replies[0].tensors
        taken = array_of(output)
        data = bytearray(array.nbytes)
        if taken is None:
            data[:] = output.data
        else:
            taken.device.read(taken.address, memoryview(data))
        return {
            "equal": bytes(data) == array.tobytes(),
            "on_device": taken is not None,
            "copies": copies,
            "way": next(c.fabric for c in route.candidates if c.peer_id == route.chosen),
            "size_bytes": array.nbytes,
        }


async def run(state_dir: str, device: str, bootstrap: list[str]) -> None:
    engine = DeviceEngine(driver()) if not bootstrap else None
    telemetry = Telemetry(make_logger("json", "info", sys.stderr))
    shutdown = trio.Event()
    with Store(Path(state_dir)) as store:
        engines = () if engine is None else (engine,)
        service = Service(config_of(state_dir, device, bootstrap), store, store.identity(), engines, telemetry)
        node = Node(service, engine)
        async with trio.open_nursery() as nursery:

            def told(ready) -> None:
                print(json.dumps({"address": ready.addresses[0], "peer_id": ready.peer_id}), flush=True)

            nursery.start_soon(service.run, told, shutdown)
            async for line in trio.wrap_file(sys.stdin):
                match line.split():
                    case ["status"]:
                        print(json.dumps(node.status()), flush=True)
                    case ["ask", n]:
                        print(json.dumps(await node.ask(int(n))), flush=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(run, sys.argv[1], sys.argv[2], sys.argv[3:])
