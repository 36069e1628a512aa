"""A node with an engine on a GPU in a process of its own, since memory passes between processes only.

It says as JSON who it is, and then does what its standard input says: `status`, or `fail FUNCTION RESULT`, after which a function
of its emulated driver fails once.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import trio
from device_engine import DeviceEngine
from mesh_nodes import MeshNode, soon_told

from mesh.fabric.gpu import driver
from protocol.fabric import FabricConfig, FabricPeers
from protocol.multiaddr import parse_multiaddr


async def run(state_dir: str, bootstrap: str, options: dict) -> None:
    cuda = driver()
    engine = DeviceEngine(cuda, **options)

    def patient(service) -> None:
        fabrics = service.fabrics
        fabrics.config = FabricConfig(take_s=20.0)
        soon_told(service)
        # What could not be opened in time, on a busy machine, is tried again at once.
        fabrics._kinds = fabrics._peers = FabricPeers(FabricConfig(closed_s=0.05, closed_s_max=0.05))

    node = MeshNode(Path(state_dir), (engine,), bootstrap=(parse_multiaddr(bootstrap),), quic_engine="qh3", tune=patient)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        print(json.dumps(asdict(node.ready)), flush=True)
        lines = trio.wrap_file(sys.stdin)
        async for line in lines:
            match line.split():
                case ["status"]:
                    told = {
                        "lay": engine.lay,
                        "host_copies": cuda.devices[0].host_copies,
                        "fabrics": node.service.fabrics.status(),
                        "pid": os.getpid(),
                    }
                    print(json.dumps(told), flush=True)
                case ["fail", function, result]:
                    from emulated_gpu import fail_in

                    fail_in("libcuda.so.1", function, int(result))
                    print("{}", flush=True)
        await node.stop()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(run, sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
