"""Connect time and ping with other implementations of libp2p, both directions, beside our own node met in the same way.

The other implementations run as processes of their own, the programs of tests/interop; `make bench-interop` installs them. Each
dialler measures with its own clock and its own code. The contestants take turns, run by run, so that a busy moment of the machine
meets all of them.
"""

import functools
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import trio

from benchmarks.harness import Row, report
from benchmarks.node_process import NodeProcess
from mesh.transport import Connection, Transport
from protocol.identity import Identity
from protocol.libp2p.ping import PING_BYTES, PING_PROTOCOL
from protocol.multiaddr import Multiaddr, parse_multiaddr

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "interop"))

from foreign import ALL, Foreign, Talk

RUNS = 5
DIALS = 10
"""Connections made and closed per run and contestant."""

PINGS = 200
"""Echoes timed per run and contestant, on one stream; 1,000 over all runs."""

OURS = "isochrone"
LOOPBACK = parse_multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")


class Samples:
    """What was measured between one dialler and one listener, in seconds, one list per run."""

    def __init__(self) -> None:
        self.connected: list[list[float]] = []
        self.identified: list[list[float]] = []
        self.echoes: list[list[float]] = []

    def begin(self) -> None:
        """Start the next run."""
        for lists in (self.connected, self.identified, self.echoes):
            lists.append([])


async def echoes(connection: Connection) -> list[float]:
    """Time echoes on one ping stream of ours."""
    times: list[float] = []
    async with await connection.open_stream(PING_PROTOCOL) as stream:
        for number in range(PINGS):
            sent = number.to_bytes(PING_BYTES, "big")
            started = time.perf_counter()
            await stream.send_all(sent)
            heard = b""
            while len(heard) < PING_BYTES:
                heard += await stream.receive_some()
            times.append(time.perf_counter() - started)
            assert heard == sent
    return times


@asynccontextmanager
async def stranger_of_theirs() -> AsyncIterator[Transport]:
    """A node of ours with a new identity: some implementations mix up the connections of a peer that comes back at once."""
    transport = Transport(Identity.from_seed(os.urandom(32)))
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, (LOOPBACK,))
        yield transport
        await transport.aclose()


async def we_dial(address: Multiaddr, samples: Samples) -> None:
    """Dial, identify and ping a listener."""
    samples.begin()
    for number in range(DIALS):
        async with stranger_of_theirs() as transport:
            started = time.perf_counter()
            connection = await transport.dial(address)
            samples.connected[-1].append(time.perf_counter() - started)
            await connection.identify()
            samples.identified[-1].append(time.perf_counter() - started)
            if number == DIALS - 1:
                samples.echoes[-1] += await echoes(connection)


async def they_dial(theirs: Talk, samples: Samples) -> None:
    """Let a foreign program dial, identify and ping us."""
    samples.begin()
    for number in range(DIALS):
        async with stranger_of_theirs() as transport:
            address = str(transport.addresses[0])
            peer = address.rpartition("/")[2]
            told = await theirs.ask("dial", address=address)
            samples.connected[-1].append(told["connected_s"])
            samples.identified[-1].append(told["identified_s"])
            await theirs.ask("meet", peer=peer)
            if number == DIALS - 1:
                samples.echoes[-1] += (await theirs.ask("round_trips", peer=peer, count=PINGS))["times_s"]


async def measure(node: NodeProcess, strangers: list[Foreign]) -> dict[tuple[str, str], Samples]:
    """Let all contestants take turns; the keys are dialler and listener."""
    async with AsyncExitStack() as stack:
        turns: dict[tuple[str, str], Callable[[Samples], Awaitable[None]]] = {
            (OURS, OURS): functools.partial(we_dial, parse_multiaddr(node.address))
        }
        for stranger in strangers:
            talk, name = await stack.enter_async_context(stranger.talking()), stranger.implementation.name
            turns[OURS, name] = functools.partial(we_dial, stranger.address)
            turns[name, OURS] = functools.partial(they_dial, talk)
        found = {pair: Samples() for pair in turns}
        for _ in range(RUNS):
            for pair, turn in turns.items():
                await turn(found[pair])
    return found


def median_s(runs: list[list[float]]) -> float:
    """The median over the runs of each run's median, in seconds."""
    return statistics.median(statistics.median(run) for run in runs)


def p99_s(runs: list[list[float]]) -> float:
    """The 99th percentile of all samples, in seconds."""
    return statistics.quantiles([sample for run in runs for sample in run], n=100)[98]


def main() -> None:
    """Runs the benchmark."""
    if missing := [implementation.name for implementation in ALL if not implementation.is_installed]:
        raise SystemExit(f"{' and '.join(missing)} not installed: run `make bench-interop`")
    with ExitStack() as stack:
        node = stack.enter_context(NodeProcess("--engine", "none"))
        strangers = [Foreign(implementation) for implementation in ALL]
        for stranger in strangers:
            stack.callback(stranger.stop)
        found = trio.run(measure, node, strangers)
    own = found[OURS, OURS]
    rows = []
    for (dialler, listener), samples in found.items():
        is_own = samples is own
        for work, unit, of in (
            ("handshake", "ms", lambda one: 1e3 * median_s(one.connected)),
            ("handshake and identify", "ms", lambda one: 1e3 * median_s(one.identified)),
            ("ping p50", "us", lambda one: 1e6 * median_s(one.echoes)),
            ("ping p99", "us", lambda one: 1e6 * p99_s(one.echoes)),
        ):
            against, theirs = ("", None) if is_own else (f"{OURS} to {OURS}", of(own))
            rows.append(Row(f"{dialler} to {listener}: {work}", of(samples), unit, against, theirs))
    report("interop", "Meeting other implementations of libp2p", rows, ("trio", "qh3", "aioquic"))
    installed = json.loads((Path(__file__).parents[1] / "tests" / "interop" / "js" / "package.json").read_text())["dependencies"]
    print(f"js-libp2p {installed['libp2p']} with @chainsafe/libp2p-quic {installed['@chainsafe/libp2p-quic']}")


if __name__ == "__main__":
    main()
