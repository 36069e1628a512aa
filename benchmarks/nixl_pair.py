"""The yardstick of fabrics: a write of NIXL into the memory of another process, as its own examples do it, over UCX.

`python -m benchmarks.nixl_pair TRANSPORT RUNS COUNTS`, where the counts of writes stand in JSON by their bytes, prints the least
median in seconds by bytes. A program of its own: both processes poll, and the library may not survive the end of its peer.

NIXL is not among this project's dependencies: `scripts/bench_nixl.sh` puts it into a folder of its own, where this looks for it
beside what is installed. It needs NumPy and no GPU.
"""

import ctypes
import json
import mmap
import multiprocessing
import os
import statistics
import sys
from importlib import util
from time import perf_counter
from typing import Any, Self

MAPPED_BYTES = 1 << 30
"""The largest tensor that is written."""


FOLDER = os.environ.get("BENCH_NIXL", ".venv-nixl")
"""Where `scripts/bench_nixl.sh` puts it."""


def nixl_is_there() -> bool:
    """Whether it is installed, here or in its folder."""
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    return util.find_spec("nixl_cu12") is not None


def _agent(name: str, transport: str) -> Any:
    os.environ.update(UCX_TLS=transport, NIXL_LOG_LEVEL="ERROR", UCX_NET_DEVICES="all")
    from nixl_cu12._api import nixl_agent, nixl_agent_config

    return nixl_agent(name, nixl_agent_config(False, False, backends=["UCX"]))


def _memory(agent: Any) -> tuple[mmap.mmap, int]:
    memory = mmap.mmap(-1, MAPPED_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    agent.register_memory([(address, MAPPED_BYTES, 0, "")], "DRAM")
    return memory, address


def _target(pipe: Any, transport: str) -> None:
    """Takes writes and tells the writer of each, until it is killed. It polls, so nothing else may have to wait for it."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    agent = _agent("target", transport)
    _memory_kept, address = _memory(agent)
    pipe.send((agent.get_agent_metadata(), address))
    agent.add_remote_agent(pipe.recv())
    pipe.send("ready")
    while not pipe.poll():
        for messages in agent.get_new_notifs().values():
            for message in messages:
                agent.send_notif("writer", message)


class NixlPair:
    """A writer here and a target in another process, which keeps a core busy as long as it lives; use as a context manager."""

    def __init__(self, transport: str) -> None:
        """Starts the target.

        Args:
            transport: of UCX: "shm,tcp", which needs tcp to find the other side, or "tcp".
        """
        self.transport = transport
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_target, args=(theirs, transport), daemon=True)
        self._process.start()
        self._agent = _agent("writer", transport)
        self._memory, self._address = _memory(self._agent)
        metadata, self._there = self._pipe.recv()
        self._target = self._agent.add_remote_agent(metadata)
        self._pipe.send(self._agent.get_agent_metadata())
        self._pipe.recv()

    def __enter__(self) -> Self:
        """It runs already."""
        return self

    def __exit__(self, *args: object) -> None:
        """Ends the target."""
        self._process.kill()
        self._process.join()

    def measure(self, size: int, count: int) -> list[float]:
        """Seconds of each of `count` writes of `size` bytes, until the target has said that it was told of it."""
        agent, took = self._agent, []
        ours = agent.get_xfer_descs([(self._address, size, 0)], "DRAM")
        theirs = agent.get_xfer_descs([(self._there, size, 0)], "DRAM")
        for _ in range(count):
            began = perf_counter()
            handle = agent.initialize_xfer("WRITE", ours, theirs, self._target, b"w")
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            assert state == "DONE", state
            while not agent.get_new_notifs():
                pass
            took.append(perf_counter() - began)
            agent.release_xfer_handle(handle)
        return took


def main() -> None:
    """Measures, and leaves without a look back."""
    transport, runs, counts = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    assert nixl_is_there()
    with NixlPair(transport) as pair:
        least = {size: min(statistics.median(pair.measure(int(size), n)) for _ in range(runs)) for size, n in counts.items()}
        print(json.dumps(least), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
