"""Whole nodes (`mesh.service.Service`: driver, transport, gateway, engines, state directory) on virtual machines.

`play` runs a scenario on a clock that jumps. Trio's scheduler and the entropy of the QUIC libraries are fed from the seed, so
that a scenario repeats; what does not is the content of the packets.
"""

import gc
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import trio
from trio._core import _run
from trio.testing import MockClock
from virtual_machines import VirtualMachine, VirtualNet

from mesh.config import HostPort, NodeConfig, Ready
from mesh.engines.base import Engine
from mesh.engines.echo import EchoEngine
from mesh.gateway import server as _imported_later  # noqa: F401 - by a node as it starts, when entropy already follows from the seed
from mesh.service import Service
from mesh.store import Store
from mesh.telemetry import Telemetry, make_logger
from protocol.identity import PeerId
from protocol.membership import Standing
from protocol.multiaddr import Multiaddr
from sim.network import Delays
from sim.quic.steady import SteadyEngine, steady_entropy


@dataclass(frozen=True)
class Counts:
    """What a node holds; all of it is bounded, and steady while the mesh is at rest."""

    connections: int
    streams: int
    dials: int
    waiting_messages: int
    buffered_datagrams: int


class ShellNode:
    """One node on one virtual machine."""

    def __init__(self, machine: VirtualMachine, folder: Path, bootstrap: Sequence[Multiaddr], quic_engine: str) -> None:
        self.machine = machine
        self.config = NodeConfig(
            state_dir=folder / f"node{machine.index}",
            network="virtual",
            listen=(machine.address,),
            listen_default=False,
            announce=(),
            bootstrap=tuple(bootstrap),
            gateway=HostPort("127.0.0.1", 0),
            engines=(),
            quic_engine=quic_engine,
            grace_s=5.0,
            log_level="info",
        )
        self.engines: tuple[Engine, ...] = (EchoEngine(),)
        self.log = StringIO()
        self.tune: Callable[[Service], None] = lambda _service: None
        self.service: Service
        self.ready: Ready
        self.shutdown = trio.Event()
        self.ended = trio.Event()
        self._scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        def told(ready: Ready) -> None:
            self.ready = ready
            task_status.started()

        telemetry = Telemetry(make_logger("json", self.config.log_level, self.log))
        identity_seed = self.machine.net.luck(f"identity {self.machine.index}").randbytes
        with self._scope, Store(self.config.state_dir) as store:
            identity = store.identity(identity_seed)
            self.service = Service(self.config, store, identity, self.engines, telemetry, machine=self.machine.machine)
            self.tune(self.service)
            endpoint = self.service.transport.endpoint
            endpoint._engine = SteadyEngine(endpoint._engine)
            await self.service.run(told, self.shutdown)
        self.ended.set()

    @property
    def peer_id(self) -> PeerId:
        return self.service.node.peer_id

    @property
    def address(self) -> Multiaddr:
        return self.machine.address

    def standing(self, other: "ShellNode") -> Standing:
        return self.service.node.peer(other.peer_id, self.service.transport.now()).standing

    def knows(self, other: "ShellNode") -> bool:
        """Whether work may be sent to `other`: it is alive, and what it serves and how busy it is are known."""
        view = self.service.node.peer(other.peer_id, self.service.transport.now())
        return view.standing is Standing.ALIVE and view.card is not None and view.beat is not None

    def metrics(self) -> str:
        return self.service._telemetry.render_metrics()[0].decode()

    def counts(self) -> Counts:
        transport, driver = self.service.transport, self.service.driver
        return Counts(
            connections=transport.endpoint.n_connections,
            streams=sum(len(connection.streams) for connection in transport._by_handle.values()),
            dials=len(transport._dials),
            waiting_messages=sum(len(outbox.messages) for outbox in driver._outboxes.values()),
            buffered_datagrams=sum(virtual.buffered for virtual in self.machine.sockets),
        )

    async def kill(self) -> None:
        """End at once and without a word, as SIGKILL would."""
        self.service.transport._closing = True
        self._scope.cancel()
        await self.ended.wait()

    def cancel(self) -> None:
        """End at once, as a program that is told to stop at once: its peers still hear goodbye."""
        self._scope.cancel()

    async def leave(self) -> None:
        """Ask for an orderly stop and wait for it."""
        self.shutdown.set()
        await self.ended.wait()

    def stop(self, *, sleeps: bool = False) -> None:
        """Stop the program: it is woken for nothing and hears nothing, until `go_on`."""
        self.machine.stop(sleeps=sleeps)
        self.service.node.next_timer = lambda: float("inf")  # type: ignore[method-assign]
        self.service.transport.endpoint.next_timer = lambda: None  # type: ignore[method-assign]

    def go_on(self) -> None:
        del self.service.node.next_timer
        del self.service.transport.endpoint.next_timer
        self.machine.go_on()
        self.service.driver._wake.set()
        self.service.transport._set_timer()


class ShellMesh:
    """The nodes of a scenario."""

    def __init__(self, nursery: trio.Nursery, net: VirtualNet, folder: Path, quic_engines: Sequence[str]) -> None:
        self.net = net
        self.nodes: list[ShellNode] = []
        self._nursery = nursery
        self._folder = folder
        self._quic_engines = quic_engines

    async def start(
        self,
        *,
        join: Sequence["ShellNode | VirtualMachine"] = (),
        machine: VirtualMachine | None = None,
        tune: Callable[[Service], None] = lambda _service: None,
        engines: tuple[Engine, ...] | None = None,
    ) -> ShellNode:
        """Start a node, on a new machine unless one is given, with an echo engine unless others are.

        `tune` may change its parts before they run.
        """
        machine = machine or self.net.add()
        engine = self._quic_engines[machine.index % len(self._quic_engines)]
        node = ShellNode(machine, self._folder, [other.address for other in join], engine)
        node.tune = tune
        node.engines = node.engines if engines is None else engines
        await self._nursery.start(node.run)
        self.nodes.append(node)
        return node

    async def start_many(self, size: int) -> list[ShellNode]:
        """Start nodes that join by the first."""
        first = await self.start()
        return [first, *[await self.start(join=[first]) for _ in range(size - 1)]]


def all_know(*nodes: ShellNode) -> bool:
    return all(one.knows(other) for one in nodes for other in nodes if one is not other)


async def within(seconds: float, condition: Callable[[], bool]) -> float:
    """Wait until something holds; returns after how many virtual seconds it did, and fails when it does not."""
    began = trio.current_time()
    while not condition():
        assert trio.current_time() - began < seconds, f"not within {seconds} virtual seconds"
        await trio.sleep(0.05)
    return trio.current_time() - began


Scenario = Callable[[ShellMesh], Awaitable[None]]


def play(
    scenario: Scenario, folder: Path, *, seed: int = 1, delays: Delays | None = None, quic_engines: Sequence[str] = ("qh3",)
) -> VirtualNet:
    """Run a scenario on a clock that jumps, and end all its nodes."""
    net = VirtualNet(seed, delays)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(net.run)
            await scenario(ShellMesh(nursery, net, folder, quic_engines))
            nursery.cancel_scope.cancel()

    with _steady_scheduler(net), steady_entropy(net.luck("entropy of the QUIC libraries")):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    gc.unfreeze()
    return net


@contextmanager
def _steady_scheduler(net: VirtualNet) -> Iterator[None]:
    """Lets trio run tasks in an order that follows from the seed; the switch is private to trio, and for tests."""
    was, luck = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r = random.Random(net.luck("scheduler").random())
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r = was, luck
