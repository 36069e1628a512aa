"""Joins the mesh as a light node: an identity, a QUIC endpoint and the core that routes, no engine and no gateway.

A light node asks and is not asked: it serves no inference, passes nothing on for others, tells nobody an address or what it runs
on, and keeps few connections. It gossips what a member must, its card and what it hears, over two links. In a private network it
shows a certificate as every node does, from the same files: those of a state directory that has joined, or of the user's own
network.

Spec: docs/client.md, section "A light node".
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from mesh.admission.entering import enter
from mesh.admission.files import read_membership, read_network
from mesh.admission.gate import Gate
from mesh.admission.owners import has_our_owner
from mesh.config import DEFAULT_NETWORK, StartError, default_network_dir
from mesh.dispatch import Dispatcher
from mesh.driver import Driver
from mesh.fabric import Fabrics, Wanted, find_kinds, parse_kinds
from mesh.fabric.kinds import AUTO
from mesh.gateway.views import offer_json, route_json
from mesh.inference import ServeLimits
from mesh.local.questions import MODELS, STATUS, Question
from mesh.machine import Machine
from mesh.native.answers import Take
from mesh.native.errors import BadInputError, MeshError, NotConnectedError
from mesh.native.requests import brought, pieces_of
from mesh.relay import Sealing
from mesh.service import can_bind
from mesh.settingvalues import fabrics as parse_fabrics
from mesh.settingvalues import rdma_device as parse_rdma_device
from mesh.store import Store
from mesh.telemetry import Telemetry, make_logger
from mesh.transport import Transport, TransportConfig
from protocol.errors import ErrorCode, ProtocolError
from protocol.fabric import Kind
from protocol.fabric.adverts import POOLS_MAX
from protocol.gossip import GossipConfig
from protocol.identity import Identity, peer_id_text
from protocol.inference import InferenceRequest, Reply
from protocol.membership import MembershipConfig
from protocol.multiaddr import Multiaddr, parse_multiaddr
from protocol.node import AdmittedReader, Node
from protocol.node import NodeConfig as CoreConfig
from protocol.records import Hardware, Sequencer

AGENT = "isochrone-client"
"""What it calls itself."""

JOIN_S_MAX = 15.0
"""How long to wait for the first peer that serves something, in seconds: a handshake and the table of a large mesh."""

CLOCK_INTERVAL_S = 5.0
"""How often the wall clock is compared with the monotonic one, in seconds, as a node does."""

REPLIES_HELD_MAX = 8
"""Events between the mesh and the program, a count; past it the engine is held back."""

LISTEN = ("/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::/udp/0/quic-v1")
"""Where its endpoint is bound: anywhere, since nobody is to dial it."""

MEMBERSHIP = MembershipConfig(small_mesh=8, near_max=16, far_max=2, beyond_max=1, connections_max=32)
"""Few connections: the near peers that it sends work to, and two far ones to hear of the rest."""

GOSSIP = GossipConfig(degree=2, degree_min=1, degree_max=3, degree_lazy=1, degree_out=1)
"""Two links: news comes over one where the other fails, and little of it is passed on."""


@dataclass(frozen=True, slots=True)
class LightFabrics:
    """The fabrics that a light node may use.

    Attributes:
        kinds: which.
        pools: of memory, that it is to be a member of.
        rdma_devices: that may be used; empty for all.
    """

    kinds: tuple[Kind, ...]
    pools: tuple[Path, ...] = ()
    rdma_devices: tuple[str, ...] = ()


AUTOMATIC = LightFabrics(parse_kinds(AUTO))
"""What a program gets that says nothing of fabrics: what a node gets."""


def fabrics_of(fabric: str, cxl_pool: Sequence[Path | str], rdma_device: Sequence[str]) -> LightFabrics:
    """What a caller says of fabrics, by the names and in the words of the settings (docs/configuration.md).

    Raises:
        BadInputError: a word is none of them.
    """
    try:
        kinds = parse_kinds(parse_fabrics(fabric))
        devices = tuple(map(parse_rdma_device, rdma_device))
    except ValueError as error:
        raise BadInputError(ErrorCode.MALFORMED, str(error)) from error
    if len(cxl_pool) > POOLS_MAX:
        raise BadInputError(ErrorCode.TOO_LARGE, f"{len(cxl_pool)} pools are too many: {POOLS_MAX} at the most")
    if cxl_pool and Kind.CXL not in kinds:
        raise BadInputError(ErrorCode.MALFORMED, f"fabric is {fabric}, which leaves pools out; add cxl to it")
    return LightFabrics(kinds, tuple(Path(path).expanduser() for path in cxl_pool), devices)


class LightNode:
    """The parts of one light node; `run` it in a nursery."""

    def __init__(
        self, store: Store, identity: Identity, network: str, gate: Gate | None, fabrics: LightFabrics = AUTOMATIC
    ) -> None:
        """Composes the parts.

        Args:
            store: reserves the numbers of its records.
            identity: its key.
            network: id of the open network, where `gate` is None.
            gate: its membership of a private one.
            fabrics: those that it may use.
        """
        self._gate = gate
        self._machine = Machine()
        network_id = network if gate is None else gate.network_id
        core = CoreConfig(network_id=network_id, agent=AGENT, membership=MEMBERSHIP, gossip=GOSSIP)
        telemetry = Telemetry(make_logger("console", "error"))
        self.node = Node(core, identity, self._machine.luck, Sequencer(store.reserved(self._machine.wall())))
        door = None if gate is None else gate.door
        self.transport = Transport(identity, TransportConfig(agent=AGENT), machine=self._machine, door=door)
        self.dispatcher = Dispatcher(self.node, self.transport, (), telemetry, identity)
        self.driver = Driver(self.node, self.transport, telemetry, store.reserve, self.dispatcher.handle_output)
        self.driver.counts_origins = gate is None
        name, entropy, luck = peer_id_text(self.node.peer_id), self._machine.entropy, self._machine.luck
        wanted = Wanted(fabrics.kinds, network_id, name, entropy, luck, fabrics.pools, fabrics.rdma_devices)
        self.fabrics = Fabrics(self.node, self.transport, telemetry, find_kinds(wanted))
        self.dispatcher.fabrics = self.fabrics
        self.dispatcher.attach(self.driver, Sealing(self.node, self.transport, telemetry, identity, ServeLimits(), relays=False))
        if gate is not None:
            self.node.gossip.reader = AdmittedReader(gate.admission)
            gate.attach(self.node, self.transport, self.driver.settle)
            self.dispatcher.gate = gate
            self.fabrics.is_trusted = partial(has_our_owner, gate, self._machine.wall)

    async def run(self, bootstrap: Sequence[Multiaddr], *, task_status: trio.TaskStatus[None]) -> None:
        """Runs until cancelled; started once somebody is known who serves something.

        Raises:
            NotConnectedError: nobody answers.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self.driver.run)
            await nursery.start(self.fabrics.run)
            await nursery.start(self.transport.run, [at for at in map(parse_multiaddr, LISTEN) if can_bind(at)])
            now = self.transport.now()
            self.node.start((), Hardware("", 1, 0, 0), (), self._machine.wall(), now)
            issuers = () if self._gate is None else self._gate.membership.issuers
            self.node.add_bootstrap([*bootstrap, *issuers], now)
            self.driver.settle()
            nursery.start_soon(self._watch_clock)
            if self._gate is not None:
                nursery.start_soon(self._gate.run)
            with trio.move_on_after(JOIN_S_MAX):
                while not self.dispatcher.catalogue():  # noqa: ASYNC110  # the core tells nobody of a new card
                    await trio.sleep(0.02)
            if not self.node.membership.connected():
                told = ", ".join(map(str, [*bootstrap, *issuers])) or "nobody"
                raise NotConnectedError(
                    ErrorCode.UNREACHABLE,
                    f"nobody lets this program in (asked: {told}): are they up, and is it a member of their network?",
                )
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await self.transport.aclose()

    async def _watch_clock(self) -> None:
        while True:
            self.node.handle_wall_clock(self._machine.wall(), self.transport.now())
            self.driver.settle()
            await trio.sleep(CLOCK_INTERVAL_S)


class LightWay:
    """Asks through a light node in this process."""

    def __init__(self, light: LightNode, nursery: trio.Nursery) -> None:
        self._light = light
        self._nursery = nursery
        self._asking: dict[trio.CancelScope, None] = {}
        self._closed = False

    async def begin(self, request: InferenceRequest, *, text: bool) -> "LightExchange":
        """Hand a request to the mesh.

        Raises:
            BadInputError: it cannot be sent.
        """
        del text
        request = self._checked(request)
        send, receive = trio.open_memory_channel[Reply](REPLIES_HELD_MAX)
        exchange = LightExchange(receive)
        self._nursery.start_soon(exchange.carry, self._light.dispatcher, request, send)
        await trio.lowlevel.checkpoint()
        return exchange

    async def gather(self, request: InferenceRequest, take: Take, scope: trio.CancelScope | None = None) -> None:
        """Ask the mesh in the task of the caller, and hand the events to `take` until the last.

        Args:
            request: what to ask.
            take: is handed each event; returns whether it was the last.
            scope: cancelling it gives the answer up.

        Raises:
            BadInputError: the request cannot be sent.
            RequestError: as `take` does.
            NotConnectedError: the light node has ended.
        """
        request = self._checked(request)
        failure: MeshError | None = None
        with scope or trio.CancelScope() as scope:
            if self._closed:
                scope.cancel()
            self._asking[scope] = None
            try:
                async with self._light.dispatcher.submit(request) as answer:
                    try:
                        async for reply in answer.replies():
                            if take(reply):
                                return
                    except MeshError as error:  # raised below: a nursery of the dispatcher would wrap it in a group
                        failure = error
            finally:
                del self._asking[scope]
        raise failure or ended()

    def _checked(self, request: InferenceRequest) -> InferenceRequest:
        """Have what cannot be sent told as by every way; a fabric carries tensors that no message holds, or from a device.

        Raises:
            BadInputError: it cannot be sent.
        """
        if self._light.fabrics.wants_large(request):
            pieces_of(replace(request, tensors=()))
            return request
        request = brought(request)
        pieces_of(request)
        return request

    def close(self) -> None:
        """Give up what is under way, and begin nothing more."""
        self._closed = True
        for scope in self._asking:
            scope.cancel()

    async def look(self, question: Question) -> object:
        """Answer a question from what the light node knows."""
        await trio.lowlevel.checkpoint()
        dispatcher = self._light.dispatcher
        if question.word == MODELS:
            return [offer_json(entry) for entry in dispatcher.catalogue()]
        if question.word == STATUS:
            return dispatcher.status()
        route = dispatcher.explain(question.request_id.hex())
        return None if route is None else route_json(route)


class LightExchange:
    """One request and its answer."""

    def __init__(self, replies: trio.MemoryReceiveChannel[Reply]) -> None:
        self._replies = replies
        self._scope = trio.CancelScope()

    async def carry(self, dispatcher: Dispatcher, request: InferenceRequest, send: trio.MemorySendChannel[Reply]) -> None:
        """Passes the events on until the answer ends or nobody wants it."""
        with self._scope, send:
            async with dispatcher.submit(request) as answer:
                async for reply in answer.replies():
                    await send.send(reply)

    async def next_reply(self) -> Reply:
        """Wait for the next event.

        Raises:
            NotConnectedError: the light node has ended.
        """
        try:
            return await self._replies.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise ended() from None

    def close(self) -> None:
        """Cancel whatever is left."""
        self._scope.cancel()


def ended() -> NotConnectedError:
    """What is told of an answer that nobody brings any more."""
    return NotConnectedError(ErrorCode.CANCELLED, "the answer was given up: this client, or the answer, was closed")


@asynccontextmanager
async def joined(
    bootstrap: Sequence[str],
    network: str | None,
    state_dir: Path | None,
    network_dir: Path | None,
    may_use: LightFabrics = AUTOMATIC,
) -> AsyncIterator[LightWay]:
    """A light node as long as the context lasts; arguments and errors are those of `mesh.client.connect`."""
    addresses = [_address(text) for text in bootstrap]
    with ExitStack() as stack:
        directory = state_dir or Path(stack.enter_context(TemporaryDirectory(prefix="isochrone-client-")))
        try:
            store = stack.enter_context(Store(directory))
            identity = store.identity()
            gate = _gate(directory, network_dir or default_network_dir(os.environ), identity) if network is None else None
            light = LightNode(store, identity, network or DEFAULT_NETWORK, gate, may_use)
        except StartError as error:
            raise NotConnectedError(ErrorCode.UNREACHABLE, str(error)) from error
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            way = LightWay(light, nursery)
            try:
                await nursery.start(light.run, addresses)
                yield way
            except BaseException as error:  # noqa: BLE001 -- raised again below: the nursery would wrap it in a group
                failure = error
            way.close()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise _single(failure)


def _single(failure: BaseException) -> BaseException:
    """What failed, without the groups that nurseries put round it."""
    while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
        failure = failure.exceptions[0]
    return failure


def _gate(state_dir: Path, network_dir: Path, identity: Identity) -> Gate:
    """What makes it a member of its private network.

    Raises:
        StartError: there is none here.
    """
    if read_membership(state_dir) is None and read_network(network_dir) is None:
        raise StartError(
            f"there is no private network in {network_dir}, and {state_dir} has joined none: type `isochrone join TOKEN "
            "--state-dir DIR` once and pass state_dir, or name an open network"
        )
    machine = Machine()
    membership = enter(state_dir, network_dir, identity, machine.wall(), machine.entropy)
    telemetry = Telemetry(make_logger("console", "error"))
    return Gate(state_dir, identity, membership, telemetry, machine, network_dir)


def _address(text: str) -> Multiaddr:
    try:
        return parse_multiaddr(text)
    except ProtocolError as error:
        raise BadInputError(
            ErrorCode.MALFORMED, f"{text!r} is no address ({error.detail}): write one such as /ip4/192.0.2.7/udp/4001/quic-v1"
        ) from error
