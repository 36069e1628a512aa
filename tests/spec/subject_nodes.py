"""A whole node to try: real sockets, a model that answers, a gateway."""

import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from mesh.admission.entering import found_membership
from mesh.admission.files import Network
from mesh.admission.gate import Gate
from mesh.config import HostPort, NodeConfig, Ready
from mesh.conformance.peer import Subject
from mesh.conformance.registry import Case
from mesh.conformance.runner import Outcome, Result, Run, look
from mesh.engines.echo import EchoEngine
from mesh.machine import Machine
from mesh.service import Service
from mesh.store import Store
from mesh.telemetry import Telemetry, make_logger
from protocol.identity import Identity
from protocol.multiaddr import Multiaddr, parse_multiaddr

LOOPBACK = parse_multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")


@asynccontextmanager
async def subject_node(
    state_dir: Path,
    quic_engine: str = "auto",
    break_it: Callable[[Service], None] = lambda _service: None,
    *,
    bootstrap: Sequence[Multiaddr] = (),
    root: Identity | None = None,
) -> AsyncIterator[Subject]:
    """Run a node, which `break_it` may spoil before it starts and that joins by `bootstrap`, and say where it is.

    With `root`, the key of a private network, it is a member and issuer of that.
    """
    config = NodeConfig(
        state_dir=state_dir,
        network="conformance-test",
        listen=(LOOPBACK,),
        listen_default=False,
        announce=(),
        bootstrap=tuple(bootstrap),
        gateway=HostPort("127.0.0.1", 0),
        engines=(),
        quic_engine=quic_engine,
        grace_s=0.2,
        log_level="error",
    )
    engine = EchoEngine()
    await engine.start()
    with Store(state_dir) as store:
        telemetry = Telemetry(make_logger("json", "error"))
        identity = store.identity()
        gate = None
        if root is not None:
            membership = found_membership(Network(root.public_key, "test"), root, identity, time.time(), os.urandom, None)
            gate = Gate(state_dir, identity, membership, telemetry, Machine())
        service = Service(config, store, identity, (engine,), telemetry, gate=gate)
        break_it(service)
        ready: list[Ready] = []
        started, shutdown = trio.Event(), trio.Event()

        def told(answer: Ready) -> None:
            ready.append(answer)
            started.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run, told, shutdown)
            await started.wait()
            yield Subject(parse_multiaddr(ready[0].addresses[0]).with_peer(None))
            shutdown.set()


async def tried(subject: Subject, cases: Sequence[Case]) -> dict[str, Result]:
    """Look at a node and run cases on it."""
    await look(subject)
    run = Run(subject, cases)
    await run.run()
    return run.results


def failures(results: dict[str, Result]) -> dict[str, str]:
    """The reasons of the cases that failed, by their names."""
    return {name: result.reason for name, result in results.items() if result.outcome is Outcome.FAIL}
