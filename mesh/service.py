"""One node, composed: config into parts, parts into one nursery, and a stop that loses nothing.

The order of the start is the order of need: the state directory (its lock, the key, the sequence numbers), the engines, the
transport, the core, the gateway. The stop runs it backwards: new work is refused and peers are told so, what is under way may
finish within the grace period, then peers hear goodbye.

Source: docs/architecture.md, "The shell".
"""

import gc
import ipaddress
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from mesh.admission.entering import enter
from mesh.admission.gate import Gate
from mesh.admission.owners import has_our_owner
from mesh.buses import watch_room
from mesh.config import NodeConfig, Ready, StartError, default_cache_dir, default_network_dir
from mesh.dispatch import Dispatcher
from mesh.driver import Driver
from mesh.engines.base import EmbeddedEngineUnavailableError, Engine, TakesDevice
from mesh.engines.detect import UnknownEngineError, choose_specs, make_engines
from mesh.fabric import Fabrics, Wanted, find_kinds, parse_kinds
from mesh.fabric.numa import NumaError, check_node
from mesh.floors import FloorKeeper
from mesh.gateway import GatewayAddressError, GatewayConfig, server_context
from mesh.inference import Rest, Served, ServeLimits, begin_stream, serve_stream
from mesh.inference.server import Handled
from mesh.keyfile import open_key_file
from mesh.local.door import LocalDoor
from mesh.local.place import SOCKET_FILE, listen_at
from mesh.machine import Machine
from mesh.relay import Sealing
from mesh.store import KnownPeer, Store
from mesh.telemetry import Telemetry, make_logger
from mesh.transport import Handler, Stream, Transport, TransportConfig
from protocol.budget import Verdict
from protocol.conduct import STREAM_FAULT, Account
from protocol.errors import ErrorCode, LocalProtocolError
from protocol.identity import Identity, PeerId, peer_id_text
from protocol.inference import Failed, Finished, InferenceRequest, Reply
from protocol.multiaddr import Multiaddr
from protocol.node import AdmittedReader, Node
from protocol.node import NodeConfig as CoreConfig
from protocol.quic import choose_engine
from protocol.records import Hardware, ModelOffer, Sequencer
from protocol.sealing import SEALED_PROTOCOL
from protocol.wire.inference import PROTOCOL_ID

if TYPE_CHECKING:
    from mesh.gateway.server import Gateway

LOAD_INTERVAL_S = 0.25
"""How often the engines are asked how busy they are; four times a beat, and asking costs microseconds."""
WATCH_RETRY_S = 5.0
"""Pause before an engine whose `watch` failed is watched again: a fault that stays fills no log."""
FAREWELL_S = 1.0
"""How long a stopping node waits, once all answers are finished, until peers have taken the last bytes of theirs."""
METRICS_INTERVAL_S = 1.0
"""How often counted metrics are brought up to date, in seconds: well within the 15 s at which Prometheus usually asks."""
PLACE_DIGITS = 1
"""Decimals of a degree that are told of where the machine stands: 11 km, a city and no street."""
CLOCK_INTERVAL_S = 5.0
"""How often the wall clock is compared with the monotonic one: a step is noticed long before a record would expire by it."""


def version() -> str:
    """The version of this program."""
    try:
        return metadata.version("isochrone")
    except metadata.PackageNotFoundError:
        return "0.2.0"


async def run_node(
    config: NodeConfig, ready: Callable[[Ready], None], shutdown: trio.Event, core: CoreConfig | None = None
) -> None:
    """Runs one node until `shutdown` is set and everything under way has been brought to an end.

    Args:
        config: what the node was told.
        ready: called once with the addresses, when peers and clients can be served.
        shutdown: asks for an orderly stop; cancelling this call stops at once.
        core: bounds and intervals of the core, for meshes that are tried with others; its own where None.

    Raises:
        StartError: the node cannot start; the text says what to do.
    """
    telemetry = Telemetry(make_logger("console", config.log_level))
    with Store(config.state_dir) as store:
        identity = store.identity()
        for finding in store.findings:
            telemetry.log.warning("state directory", finding=finding)
        gate = make_gate(config, identity, telemetry)
        engines = await start_engines(config, telemetry)
        try:
            await Service(config, store, identity, engines, telemetry, gate=gate, core=core).run(ready, shutdown)
            while gate is not None and gate.moved.is_set() and not shutdown.is_set():
                gate = make_gate(config, identity, telemetry)
                await Service(config, store, identity, engines, telemetry, gate=gate, core=core).run(ready, shutdown)
        finally:
            with trio.CancelScope(shield=True):
                for engine in engines:
                    await engine.aclose()


def core_config(core: CoreConfig, network: str, agent: str, *, is_open: bool) -> CoreConfig:
    """What the core is told: its bounds and intervals, and what this node is part of."""
    return replace(core, network_id=network, agent=agent, routing=replace(core.routing, slow_start=is_open))


def make_gate(config: NodeConfig, identity: Identity, telemetry: Telemetry) -> Gate | None:
    """Makes the node a member of its private network; None for an open one.

    Raises:
        StartError: it is a member of none.
    """
    if config.is_open:
        return None
    machine = Machine()
    network_dir = config.network_dir or default_network_dir(os.environ)
    membership = enter(config.state_dir, network_dir, identity, machine.wall(), machine.entropy)
    return Gate(config.state_dir, identity, membership, telemetry, machine, network_dir)


async def start_engines(config: NodeConfig, telemetry: Telemetry) -> list[Engine]:
    """Makes and loads the engines the node was told, or those it finds on this machine.

    Raises:
        StartError: an engine is unknown or cannot be loaded.
    """
    specs = await choose_specs(config.engines)
    try:
        engines = make_engines(specs, cache_dir(config))
        for spec, engine in zip(specs, engines, strict=False):
            telemetry.log.info("loading engine", engine=spec)
            await engine.start()
    except (UnknownEngineError, EmbeddedEngineUnavailableError) as error:
        raise StartError(str(error)) from error
    return engines


def cache_dir(config: NodeConfig) -> Path:
    """Where engines keep what they can make again: shared by all nodes of a user, else beside the node's own state."""
    shared = default_cache_dir(os.environ)
    try:
        shared.mkdir(parents=True, exist_ok=True)
    except OSError:
        return config.state_dir
    return shared if os.access(shared, os.W_OK) else config.state_dir


class Service:
    """The parts of one running node."""

    _bus_free_mbps = 0  # what is left of the bus to the GPUs; not known until somebody has looked

    def __init__(
        self,
        config: NodeConfig,
        store: Store,
        identity: Identity,
        engines: Sequence[Engine],
        telemetry: Telemetry,
        limits: ServeLimits | None = None,
        machine: Machine | None = None,
        gate: Gate | None = None,
        core: CoreConfig | None = None,
    ) -> None:
        """Composes the parts; nothing runs before `run`.

        Args:
            config: what the node was told.
            store: its state directory.
            identity: its key.
            engines: what answers here; started already.
            telemetry: where facts become metrics and log lines.
            limits: what a peer that asks may cost; defaults where None.
            machine: what it runs on; the one of this process where None.
            gate: who is let in; anybody where None.
            core: bounds and intervals of the core; its own where None.

        Raises:
            StartError: the QUIC engine asked for is not there.
        """
        self._config, self._gate = config, gate
        self._store, self._engines = store, engines
        self._telemetry = telemetry
        self._limits, self._machine = limits or ServeLimits(), machine or Machine()
        self._gateway_ended = trio.Event()
        self._n_serving = 0
        self._served = trio.Event()
        agent = f"isochrone/{version()}"
        try:
            named = None if config.quic_engine == "auto" else config.quic_engine
            quic_engine = choose_engine(named, untrusted=config.is_open)
        except LocalProtocolError as error:
            raise StartError(error.detail) from error
        network = config.network if gate is None else gate.network_id
        core = core_config(core or CoreConfig(), network, agent, is_open=config.is_open)
        self.node = Node(core, identity, self._machine.luck, Sequencer(store.reserved(self._machine.wall())))
        self.floors = FloorKeeper(self.node.table, store, self._machine, telemetry)
        self.transport = Transport(
            identity,
            TransportConfig(agent=agent, busy_poll_s=config.busy_poll_us * 1e-6),
            quic_engine,
            announce=config.announce,
            machine=self._machine,
            door=None if gate is None else gate.door,
        )
        telemetry.tell_holds(self.transport.holds.longest_s)
        self.dispatcher = Dispatcher(self.node, self.transport, engines, telemetry, identity)
        self.driver = Driver(self.node, self.transport, telemetry, store.reserve, self.dispatcher.handle_output)
        self.driver.counts_origins = gate is None
        self.sealing = Sealing(self.node, self.transport, telemetry, identity, self._limits, relays=config.relay)
        self.sealing.is_draining = lambda: self.dispatcher.draining
        self.dispatcher.attach(self.driver, self.sealing)
        self.transport.add_handler(PROTOCOL_ID, self._serve, self._begin_to_serve)
        self.fabrics = self._add_fabrics(gate)
        if gate is not None:
            self.node.gossip.reader = AdmittedReader(gate.admission)
            gate.attach(self.node, self.transport, self.driver.settle)
            self.dispatcher.gate = gate
        self.transport.add_handler(SEALED_PROTOCOL, self._serve_sealed)
        self.transport.on_crash = lambda stream, error: telemetry.handler_crashed(stream.protocol_id, error)
        self._gateway_config = gateway_config(config)
        self.door = LocalDoor(self.dispatcher, telemetry)

    def _add_fabrics(self, gate: Gate | None) -> Fabrics:
        """Lets tensors take fabrics, of the kinds that the node may use."""
        config, node, machine = self._config, self.node, self._machine
        if config.memory_node is not None:
            try:
                check_node(config.memory_node)
            except NumaError as error:
                raise StartError(str(error)) from error
        wanted = Wanted(
            parse_kinds(config.fabric),
            node.config.network_id,
            peer_id_text(node.peer_id),
            machine.entropy,
            machine.luck,
            config.cxl_pools,
            config.rdma_devices,
            config.memory_node,
        )
        kinds = find_kinds(wanted)
        self.dispatcher.fabrics = fabrics = Fabrics(self.node, self.transport, self._telemetry, kinds)
        fabrics.add_handler(self._serve_by_fabric)
        fabrics.takes_device = any(isinstance(engine, TakesDevice) and engine.takes_device for engine in self._engines)
        if gate is not None:
            fabrics.is_trusted = partial(has_our_owner, gate, machine.wall)
        return fabrics

    async def run(self, ready: Callable[[Ready], None], shutdown: trio.Event) -> None:
        """Runs until `shutdown` is set and everything under way has been brought to an end."""
        async with trio.open_nursery() as nursery:
            # The driver first: the transport tells it of peers as soon as it listens.
            await nursery.start(self.driver.run)
            await nursery.start(self.fabrics.run)
            self.transport.endpoint.rehearse(self.transport.now())
            await self._listen(nursery)
            hardware = located(await self._machine.hardware(), self._config)
            now = self.transport.now()
            self.node.start(worth_telling(self.transport.addresses), hardware, self._offers(), self._machine.wall(), now)
            issuers = () if self._gate is None else self._gate.membership.issuers
            self.node.add_bootstrap([*self._config.bootstrap, *issuers, *self._remembered()], now)
            self.driver.settle()
            nursery.start_soon(self._watch_engines)
            if any(gpu.bus_mbps for gpu in hardware.gpus):
                nursery.start_soon(watch_room, self._take_room)
            nursery.start_soon(self._watch_clock)
            nursery.start_soon(self._watch_mesh)
            nursery.start_soon(self.floors.run)
            if self._gate is not None:
                self.driver.on_turned_away = self._gate.turned_away
                nursery.start_soon(self._gate.run)
            for engine in self._engines:
                nursery.start_soon(self._watch, engine)
            # Now and not above: the HTTP libraries take a tenth of a second, in which peers are heard already.
            from mesh.gateway.server import Gateway

            gateway = Gateway(self._gateway_config, self.dispatcher, self._telemetry)
            url: str = await nursery.start(self._serve_gateway, gateway)
            client_socket = self._open_door(nursery)
            addresses = tuple(str(address.with_peer(self.node.peer_id)) for address in self.transport.addresses)
            # What stands now stands until the end: the collector need not look at it again. It was off while the node was made.
            gc.collect()
            gc.freeze()
            gc.enable()
            ready(Ready(peer_id_text(self.node.peer_id), addresses, url, client_socket))
            await self._stopped(shutdown)
            await self._stop(gateway)
            nursery.cancel_scope.cancel()

    def _open_door(self, nursery: trio.Nursery) -> str:
        """Lets programs of the same user in, and says where; empty where the node was told to have no such door.

        Raises:
            StartError: the socket cannot be made.
        """
        if not self._config.client_door:
            return ""
        path = self._config.client_socket or self._config.state_dir / SOCKET_FILE
        nursery.start_soon(self.door.serve, listen_at(path))
        self.dispatcher.client_socket = str(path)
        return str(path)

    async def _stopped(self, shutdown: trio.Event) -> None:
        """Waits for the stop, or for the node to become a member of another network."""
        async with trio.open_nursery() as nursery:

            async def wait_for(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for, shutdown)
            if self._gate is not None:
                nursery.start_soon(wait_for, self._gate.moved)

    async def _listen(self, nursery: trio.Nursery) -> None:
        """Binds the sockets; of the default addresses those of a family this machine lacks are left out."""
        listen = list(self._config.listen)
        if self._config.listen_default:
            listen = [address for address in listen if can_bind(address)] or listen
        try:
            await nursery.start(self.transport.run, listen)
        except OSError as error:
            listened = ", ".join(str(address) for address in listen)
            raise StartError(f"cannot listen on {listened} ({error.strerror}): choose another address with --listen") from error

    async def _stop(self, gateway: "Gateway") -> None:
        """Refuses new work, lets what is under way finish within the grace period, and says goodbye."""
        self._telemetry.log.info("draining", grace_s=self._config.grace_s)
        self.dispatcher.draining = True
        self.node.drain(self.transport.now())
        self.driver.settle()
        # The gateway ends when the last byte of the last answer is out, which is after the dispatcher is done with it.
        gateway.stop()
        with trio.move_on_after(self._config.grace_s) as grace:
            await self.dispatcher.idle()
            await self.door.idle()
            await self._gateway_ended.wait()
            with trio.move_on_after(FAREWELL_S):
                while self._n_serving:
                    self._served = trio.Event()
                    await self._served.wait()
        if grace.cancelled_caught:
            self._telemetry.log.warning("the grace period ended before all answers were finished")
        self._remember()
        await self.floors.keep()
        await self.transport.aclose()

    async def _serve_gateway(self, gateway: "Gateway", *, task_status: trio.TaskStatus[str]) -> None:
        """Serves clients until the stop.

        Raises:
            StartError: the gateway cannot listen where it was told to.
        """
        try:
            await gateway.serve(task_status=task_status)
        except GatewayAddressError as error:
            raise StartError(f"{error}: choose another address with --gateway") from error
        finally:
            self._gateway_ended.set()

    def _begin_to_serve(self, stream: Stream, over: Callable[[], None]) -> Handler | None:
        """Answers one incoming inference stream where that goes without waiting; `over` is called once its peer has all."""
        if not self._charged(stream):
            over()
            return None
        begun = begin_stream(stream, self._within_quota, self._limits)
        if not isinstance(begun, Served):
            return partial(self._serve_on, begun)
        self._n_serving += 1
        stream.see_off(partial(self._seen_off, begun, stream, over))
        return None

    def _seen_off(self, served: Served, stream: Stream, over: Callable[[], None]) -> None:
        """A stream that was answered without a task is over."""
        self._n_serving -= 1
        self._served.set()
        if isinstance(served.end, Finished):
            self.transport.answered(stream.peer_id)
        over()

    async def _serve(self, stream: Stream) -> None:
        """Answers one incoming inference stream."""
        if self._charged(stream):
            await self._serve_on(partial(serve_stream, stream, self._within_quota, self._limits), stream)

    async def _serve_by_fabric(self, stream: Stream) -> None:
        """Answers one incoming inference stream whose tensors may take a fabric."""
        if self._charged(stream):
            await self._serve_on(partial(self.fabrics.serve, stream, self._within_quota, self._limits), stream)

    async def _serve_on(self, rest: Rest, stream: Stream) -> None:
        """Does what is left of an incoming inference stream."""
        served = await self._counted_by(rest, stream)
        if served is not None and served.fault is not None:
            self._telemetry.peer_faulted(stream.peer_id, served.fault.code, served.fault.detail)
            self.transport.fault(stream.peer_id, served.fault.code, STREAM_FAULT)

    async def _serve_sealed(self, stream: Stream) -> None:
        """Answers a request that a relay has brought; what is wrong in it may be the requester's fault or the relay's."""
        if not self._charged(stream):
            return
        served = await self._counted_by(partial(self.sealing.answer, stream, self._within_quota), stream)
        if served is not None and served.fault is not None:
            self._telemetry.peer_faulted(stream.peer_id, served.fault.code, f"through it as a relay: {served.fault.detail}")

    def _charged(self, stream: Stream) -> bool:
        """Charges a peer for a request, until it has taken the whole answer; one that cannot pay is turned away."""
        if self.transport.charge(stream.peer_id, Account.WORK) is Verdict.GRANTED:
            return True
        stream.reset(ErrorCode.OVERLOADED)
        return False

    async def _counted_by(self, work: Callable[[], Awaitable[Served | None]], stream: Stream) -> Served | None:
        """Does the work of an incoming request, which was charged for."""
        self._n_serving += 1
        try:
            served = await work()
        finally:
            self._n_serving -= 1
            self._served.set()
        if served is not None and isinstance(served.end, Finished):
            self.transport.answered(stream.peer_id)
        return served

    def _within_quota(self, request: InferenceRequest, from_peer: PeerId) -> Handled:
        """Answers a request of a peer; one past the quota of a federated network is refused before any work."""
        counted = "" if self._gate is None else self._gate.begin_request(from_peer)
        if counted is None:
            return (Failed(ErrorCode.OVERLOADED, "the quota of requests of the peer's network is used up"),)
        handled: Handled = ()
        try:
            handled = self.dispatcher.serve(request, from_peer)
        finally:
            if counted and isinstance(handled, tuple):
                self._end_counted(counted)
        return self._counted(handled, counted) if counted and not isinstance(handled, tuple) else handled

    @asynccontextmanager
    async def _counted(
        self, handled: AbstractAsyncContextManager[AsyncIterator[Reply]], counted: str
    ) -> AsyncIterator[AsyncIterator[Reply]]:
        """The same answer, of which the quota is told when it is over."""
        try:
            async with handled as replies:
                yield replies
        finally:
            self._end_counted(counted)

    def _end_counted(self, counted: str) -> None:
        """Tells the quota that a request is over."""
        if self._gate is not None:
            self._gate.end_request(counted)

    def _offers(self) -> tuple[ModelOffer, ...]:
        """Everything this node's engines serve, each model once."""
        offers: dict[str, ModelOffer] = {}
        for engine in self._engines:
            for offer in engine.offers():
                offers.setdefault(offer.model, offer)
        return tuple(offers.values())

    def _remembered(self) -> list[Multiaddr]:
        """The addresses of the peers known at the last stop."""
        known = self._store.load_peers(self._machine.wall())
        return [address.with_peer(peer.peer_id) for peer in known for address in peer.addresses]

    def _remember(self) -> None:
        """Keeps the addresses of the connected peers for the next start."""
        wall_s = self._machine.wall()
        now = self.transport.now()
        views = [self.node.peer(peer_id, now) for peer_id in self.node.membership.connected()]
        fault = self._store.save_peers(
            KnownPeer(view.peer_id, view.card.addresses, wall_s) for view in views if view.card is not None
        )
        if fault is not None:
            self._telemetry.log.warning("known peers were not kept", reason=str(fault))

    async def _watch(self, engine: Engine) -> None:
        """Lets an engine keep itself up to date; one that fails at it is let try again."""
        while True:
            try:
                await engine.watch()
            except Exception as error:  # noqa: BLE001 -- an engine is foreign code: what it raises does not end the node
                self._telemetry.engine_crashed(engine.kind, error)
                await trio.sleep(WATCH_RETRY_S)
            else:
                return

    async def _watch_engines(self) -> None:
        """Keeps the core's idea of offers and load fresh."""
        while True:
            loads = tuple(load for engine in self._engines for load in engine.load())
            for load in loads:
                self._telemetry.load_measured(load)
            self.node.handle_load(loads, self._bus_free_mbps)
            self.node.handle_offers(self._offers(), self.transport.now())
            self.driver.settle()
            await trio.sleep(LOAD_INTERVAL_S)

    def _take_room(self, mbps: int) -> None:
        """Takes over what the bus to the GPUs has left, for the next beat."""
        self._bus_free_mbps = mbps

    async def _watch_clock(self) -> None:
        """Keeps the core's idea of the wall clock fresh."""
        while True:
            self.node.handle_wall_clock(self._machine.wall(), self.transport.now())
            self.driver.settle()
            await trio.sleep(CLOCK_INTERVAL_S)

    async def _watch_mesh(self) -> None:
        """Keeps the metrics of the mesh and of the transport fresh."""
        while True:
            self._telemetry.peers_counted(Counter(map(str, self.node.views.standings(self.transport.now()))))
            connected, in_mesh = len(self.node.membership.connected()), len(self.node.gossip.mesh())
            self._telemetry.links_counted(connected, in_mesh, len(self.driver.strangers))
            self._telemetry.stale_counted(self.node.gossip.stale)
            self._telemetry.coordinate_moved(self.node.vivaldi.coordinate.error)
            counters = self.transport.endpoint.counters
            self._telemetry.datagrams_counted("in", counters.datagrams_in, counters.bytes_in)
            self._telemetry.datagrams_counted("out", counters.datagrams_out, counters.bytes_out)
            await trio.sleep(METRICS_INTERVAL_S)


def gateway_config(config: NodeConfig) -> GatewayConfig:
    """What the gateway is told, with the keys and the certificate read.

    Raises:
        StartError: one of these files cannot be used.
    """
    cert, key = config.gateway_tls_cert, config.gateway_tls_key
    return GatewayConfig(
        host=config.gateway.host,
        port=config.gateway.port,
        grace_s=config.grace_s,
        allowed_hosts=config.gateway_hosts,
        keys=None if config.gateway_key_file is None else open_key_file(config.gateway_key_file),
        tls=None if cert is None or key is None else server_context(cert, key),
        insecure_remote=config.gateway_insecure_remote,
    )


def located(hardware: Hardware, config: NodeConfig) -> Hardware:
    """Adds where the machine stands to what its card tells, to a tenth of a degree; nothing unless the owner has said it."""
    if config.latitude is None or config.longitude is None:
        return hardware
    place = {"latitude": round(config.latitude, PLACE_DIGITS), "longitude": round(config.longitude, PLACE_DIGITS)}
    return replace(hardware, extra={**hardware.extra, **place})


def worth_telling(addresses: tuple[Multiaddr, ...]) -> tuple[Multiaddr, ...]:
    """The addresses for this node's card: a loopback address leads others to themselves, told only where there is no other."""
    outside = tuple(address for address in addresses if not _is_loopback(address))
    return outside or addresses


def _is_loopback(address: Multiaddr) -> bool:
    """Whether an address leads to the machine that dials it."""
    return address.protocol in ("ip4", "ip6") and ipaddress.ip_address(address.host).is_loopback


def can_bind(address: Multiaddr) -> bool:
    """Whether this machine has the address family at all."""
    family = socket.AF_INET6 if address.protocol == "ip6" else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address.host, 0))
    except OSError:
        return False
    return True
