"""What one more idle peer costs a node: memory, and processor time with a hundred of them.

The node is measured alone, in a process of its own; the peers are in another, over real sockets. Nobody asks for anything. Peers
of the first kind hold a connection, have shaken hands and been identified: what is said then is what the node wants to say.
Peers of the second kind are light nodes. They know nobody but this node, so that each is a link of its mesh: both ends probe,
gossip comes and goes on all hundred, where a node among a hundred equals has six such links.
"""

import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

import httpx
import trio

from benchmarks.harness import Row, cpu_s, report
from benchmarks.node_process import NodeProcess
from mesh.transport import Transport
from protocol.identity import Identity
from protocol.multiaddr import parse_multiaddr

PEERS = 100
RUNS = {"connected": 3, "light": 1}
"""Fresh nodes measured for each kind of peer; the median is told. A hundred light nodes take a core, and a minute to join."""
BETWEEN_S = 0.05
"""Seconds between two peers that come, so that their handshakes do not hinder one another."""
JOIN_S_MAX = 90.0
SETTLE_S = 8.0
"""Seconds after the last peer came, in which the mesh finds its shape."""
WATCH_S = 15.0
"""Seconds over which processor time is counted: ten of a probe's intervals."""
GOAL_KIB = 150.0
GOAL_PERCENT = 1.0
"""Of a core."""
KINDS = {"connected": "connected", "light": "light nodes, each a link"}
NETWORK = "isochrone-main"


async def be_connected(address: str) -> None:
    """Holds one connection until cancelled."""
    transport = Transport(Identity.from_seed(os.urandom(32)))
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, (parse_multiaddr("/ip4/127.0.0.1/udp/0/quic-v1"),))
        connection = await transport.dial(parse_multiaddr(address))
        await connection.identify()
        await trio.sleep_forever()


async def be_light(address: str) -> None:
    """A light node until cancelled."""
    from mesh.native.light import joined

    async with joined([address], NETWORK, None, None):
        await trio.sleep_forever()


async def be_peers(address: str, kind: str) -> None:
    """A hundred peers of a kind until standard input ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_end_of_input, nursery.cancel_scope)
        for _ in range(PEERS):
            nursery.start_soon(be_light if kind == "light" else be_connected, address)
            await trio.sleep(BETWEEN_S)


async def _until_end_of_input(scope: trio.CancelScope) -> None:
    await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
    scope.cancel()


def percent_of_core(node: NodeProcess, for_s: float) -> float:
    """Processor time of the node over a while, in percent of a core."""
    before, began = cpu_s(node.process.pid), time.perf_counter()
    time.sleep(for_s)
    return 100 * (cpu_s(node.process.pid) - before) / (time.perf_counter() - began)


def wait_for_peers(node: NodeProcess) -> None:
    """Waits until all are connected."""
    until = time.monotonic() + JOIN_S_MAX
    while (n := _connections(node)) < PEERS:
        assert time.monotonic() < until, f"{n} peers have come in {JOIN_S_MAX} s"
        time.sleep(1.0)


def _connections(node: NodeProcess) -> int:
    return int(httpx.get(f"{node.gateway}/mesh/status", trust_env=False, timeout=10).json()["connections"])


def once(kind: str) -> tuple[float, float, float]:
    """One node: KiB for each peer more, percent of a core with all of them, and without any."""
    with ExitStack() as stack:
        node = stack.enter_context(NodeProcess("--engine", "echo", "--quic-engine", "qh3", "--log-level", "error"))
        _connections(node)  # what the first question at the gateway makes is there from now on
        time.sleep(1.0)
        alone, before = percent_of_core(node, WATCH_S / 3), node.memory_mib()
        command = [sys.executable, "-m", "benchmarks.idle", node.address, kind]
        peers = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        stack.callback(peers.communicate, timeout=30)
        wait_for_peers(node)
        time.sleep(SETTLE_S)
        percent = percent_of_core(node, WATCH_S)
        return 1024 * (node.memory_mib() - before) / PEERS, percent, alone


def main() -> None:
    """Runs the benchmark."""
    rows, alone = [], []
    for kind, name in KINDS.items():
        kib, percent, without = zip(*(once(kind) for _ in range(RUNS[kind])), strict=True)
        rows += [
            Row(f"memory for one more idle peer, {name}", statistics.median(kib), "KiB", "the goal", GOAL_KIB, 1.0),
            Row(f"CPU with {PEERS} idle peers, {name}", statistics.median(percent), "% of a core", "the goal", GOAL_PERCENT, 1.0),
        ]
        alone += without
    rows.append(Row("CPU without a peer", statistics.median(alone), "% of a core"))
    report("idle", f"A node at rest with {PEERS} peers", rows, ("trio", "qh3"))


if __name__ == "__main__":
    trio.run(be_peers, *sys.argv[1:])
