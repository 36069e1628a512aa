"""Ping as a libp2p peer: 32 bytes there and back on one stream of `/ipfs/ping/1.0.0`, beside py-libp2p with itself."""

import os
import statistics
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import trio

from benchmarks.bulk import ABSENT, interop_versions
from benchmarks.harness import Row, alternate, report
from benchmarks.interop import PINGS, echoes
from benchmarks.node_process import NodeProcess
from mesh.transport import Transport
from protocol.identity import Identity
from protocol.multiaddr import parse_multiaddr

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "interop"))

from foreign import PY, Foreign

RUNS = 5
GOAL = 0.1


def ours_s(node: NodeProcess) -> list[float]:
    """Round trips from a peer of ours to a node of ours."""
    return trio.run(_ours, node)


async def _ours(node: NodeProcess) -> list[float]:
    transport = Transport(Identity.from_seed(os.urandom(32)))
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, (parse_multiaddr("/ip4/127.0.0.1/udp/0/quic-v1"),))
        connection = await transport.dial(parse_multiaddr(node.address))
        times = await echoes(connection)
        await transport.aclose()
        nursery.cancel_scope.cancel()
    return times


def theirs_s(dialler: Foreign, address: str, peer: str) -> list[float]:
    """Round trips from a py-libp2p program, by its own clock."""
    return trio.run(_theirs, dialler, address, peer)


async def _theirs(dialler: Foreign, address: str, peer: str) -> list[float]:
    async with dialler.talking() as talk:
        await talk.ask("dial", address=address)
        times: list[float] = (await talk.ask("round_trips", peer=peer, count=PINGS))["times_s"]
        await talk.ask("hang_up", peer=peer)
    return times


def main() -> None:
    """Runs the benchmark."""
    rows, notes = [], []
    with ExitStack() as stack:
        node = stack.enter_context(NodeProcess("--engine", "none", "--quic-engine", "qh3"))
        if PY.is_installed:
            pair = [Foreign(PY), Foreign(PY)]
            for one in pair:
                stack.callback(one.stop)
            ways = (
                partial(ours_s, node),
                partial(theirs_s, pair[0], str(pair[1].address), pair[1].text_id),
                partial(theirs_s, pair[0], node.address, node.peer_id),
            )
            ours, theirs, met = (statistics.median(taken) * 1e6 for taken in alternate(RUNS, *ways))
            rows.append(Row("libp2p ping, p50", ours, "us", "py-libp2p to py-libp2p", theirs, GOAL))
            rows.append(Row("libp2p ping from py-libp2p, p50", met, "us", "py-libp2p to py-libp2p", theirs))
        else:
            (ours,) = (statistics.median(taken) * 1e6 for taken in alternate(RUNS, partial(ours_s, node)))
            rows.append(Row("libp2p ping, p50", ours, "us"))
            notes.append(ABSENT)
    report("ping", "Ping as a libp2p peer, two processes", rows, ("trio", "qh3"), notes, interop_versions())


if __name__ == "__main__":
    main()
