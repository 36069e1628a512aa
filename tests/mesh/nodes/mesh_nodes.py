"""Whole nodes in this process: real sockets on loopback, real state directories, engines that do what a test says."""

import json
import os
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from io import StringIO
from itertools import cycle
from pathlib import Path

import openai
import trio

from mesh.config import HostPort, NodeConfig, Ready
from mesh.engines.base import Slots, SlotsConfig
from mesh.inference import ServeLimits
from mesh.service import Service
from mesh.store import Store
from mesh.telemetry import Telemetry, make_logger
from mesh.transport import Transport
from protocol.identity import Identity, PeerId, parse_peer_id
from protocol.inference import Accepted, Failed, Feature, Finished, InferenceRequest, Reply, TextDelta, Usage
from protocol.load import ModelLoad
from protocol.membership import Standing
from protocol.multiaddr import Multiaddr, parse_multiaddr
from protocol.quic import choose_engine
from protocol.records import ModelOffer

LOOPBACK = parse_multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")
MODEL = "m"
WORDS = ("Time ", "is ", "distance.")
TEXT = "".join(WORDS)
USAGE = Usage(prompt_tokens=7, completion_tokens=3)
MESSAGES = [{"role": "user", "content": "What is time?"}]
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Nothing here is encrypted; a client of its own would first read the certificates of all authorities, 20 ms of a core."""
Behaviour = Callable[[InferenceRequest], AsyncGenerator[object, None]]


async def talk(_request: InferenceRequest) -> AsyncGenerator[object, None]:
    yield Accepted()
    for word in WORDS:
        yield TextDelta(word)
    yield Finished(("stop",), USAGE)


async def hang(_request: InferenceRequest) -> AsyncGenerator[object, None]:
    yield Accepted()
    await trio.sleep_forever()


async def say_and_hang(_request: InferenceRequest) -> AsyncGenerator[object, None]:
    yield TextDelta(WORDS[0])
    await trio.sleep_forever()


def request(**named) -> InferenceRequest:
    """A chat request as a gateway makes it."""
    body = json.dumps({"model": MODEL, "messages": MESSAGES}).encode()
    return InferenceRequest(**{"request_id": os.urandom(16), "feature": Feature.CHAT, "model": MODEL, "body": body, **named})


class Plan:
    """What engines do, request by request, whichever of them is asked; past its end they talk."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.next = deque(behaviours)

    def take(self) -> Behaviour:
        return self.next.popleft() if self.next else talk


class PlannedEngine:
    """An engine that nothing guards: what its behaviour yields and raises is what the node gets."""

    kind = "planned"

    def __init__(self, plan: Plan | None = None, model: str = MODEL) -> None:
        self.plan = plan or Plan()
        self.model = model
        self.requests: list[InferenceRequest] = []
        self.n_running = 0

    async def start(self) -> None:
        pass

    async def watch(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def offers(self) -> tuple[ModelOffer, ...]:
        return (ModelOffer(self.model, frozenset({Feature.CHAT, Feature.COMPLETIONS}), engine=self.kind),)

    def load(self) -> tuple[ModelLoad, ...]:
        return (ModelLoad(self.model, 0, 0, 4, 0.0, 0.0),)

    @asynccontextmanager
    async def run(self, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Reply]]:
        self.requests.append(request)
        self.n_running += 1
        try:
            async with aclosing(self.plan.take()(request)) as replies:
                yield replies
        finally:
            self.n_running -= 1


class SlottedEngine(PlannedEngine):
    """The same with real slots."""

    def __init__(self, plan: Plan | None = None, model: str = MODEL, slots: SlotsConfig | None = None) -> None:
        super().__init__(plan, model)
        self.slots = Slots(model, slots or SlotsConfig(1, 0))

    def load(self) -> tuple[ModelLoad, ...]:
        return (self.slots.load(),)

    def run(self, request: InferenceRequest) -> AbstractAsyncContextManager[AsyncIterator[Reply]]:
        self.requests.append(request)
        behaviour = self.plan.take()

        async def work() -> AsyncGenerator[object, None]:
            async with aclosing(behaviour(request)) as replies:
                async for reply in replies:
                    if not isinstance(reply, Accepted | Failed):
                        yield reply

        return self.slots.run(request, work)


class MeshNode:
    """One node: `run` it in a nursery."""

    def __init__(
        self,
        state_dir: Path,
        engines: Sequence[PlannedEngine] = (),
        *,
        bootstrap: Sequence[Multiaddr] = (),
        network: str = "test",
        quic_engine: str = "auto",
        grace_s: float = 5.0,
        limits: ServeLimits | None = None,
        listen: Multiaddr = LOOPBACK,
        announce: Sequence[Multiaddr] = (),
        relay: bool = True,
        fabric: str = "auto",
        cxl_pools: tuple[Path, ...] = (),
        place: tuple[float, float] | None = None,
        tune: Callable[[Service], None] | None = None,
    ) -> None:
        self.config = NodeConfig(
            state_dir=state_dir,
            network=network,
            listen=(listen,),
            listen_default=False,
            announce=tuple(announce),
            bootstrap=tuple(bootstrap),
            gateway=HostPort("127.0.0.1", 0),
            engines=(),
            quic_engine=quic_engine,
            grace_s=grace_s,
            log_level="debug",
            relay=relay,
            fabric=fabric,
            cxl_pools=cxl_pools,
            latitude=None if place is None else place[0],
            longitude=None if place is None else place[1],
        )
        self.engines = engines
        self.limits = limits
        self.tune = tune
        self.log = StringIO()
        self.telemetry = Telemetry(make_logger("json", "debug", self.log))
        self.scope = trio.CancelScope()
        self.shutdown = trio.Event()
        self.ended = trio.Event()
        self.service: Service
        self.ready: Ready

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        def told(ready: Ready) -> None:
            self.ready = ready
            task_status.started()

        with self.scope, Store(self.config.state_dir) as store:
            self.service = Service(self.config, store, store.identity(), self.engines, self.telemetry, self.limits)
            if self.tune is not None:
                self.tune(self.service)
            await self.service.run(told, self.shutdown)
        self.ended.set()

    async def stop(self) -> None:
        """Ask for an orderly stop and wait for it."""
        self.shutdown.set()
        with trio.fail_after(10):
            await self.ended.wait()

    async def kill(self) -> None:
        """End at once and without a word, as SIGKILL would."""
        self.service.transport._closing = True
        self.scope.cancel()
        with trio.fail_after(10):
            await self.ended.wait()

    @property
    def peer_id(self) -> PeerId:
        return parse_peer_id(self.ready.peer_id)

    @property
    def address(self) -> Multiaddr:
        return parse_multiaddr(self.ready.addresses[0])

    @property
    def name(self) -> str:
        return self.ready.peer_id

    def knows(self, other: PeerId) -> bool:
        """Whether work may be sent to `other`: it is alive, and what it serves and how busy it is are known."""
        view = self.service.node.peer(other, self.service.transport.now())
        return view.standing is Standing.ALIVE and view.card is not None and view.beat is not None

    def faults(self) -> dict[str, float]:
        """Protocol errors of peers, by code."""
        samples = [s for m in self.telemetry.registry.collect() if m.name == "isochrone_peer_faults" for s in m.samples]
        return {s.labels["code"]: s.value for s in samples if s.name.endswith("_total")}

    def logged(self, event: str) -> list[dict]:
        return [line for line in map(json.loads, self.log.getvalue().splitlines()) if line["event"] == event]

    async def ask(self, question: Callable[[openai.OpenAI], object], *, retries: int = 0):
        """Run `question` with the official client in a thread."""

        def in_thread() -> object:
            http = openai.DefaultHttpxClient(verify=PLAIN)
            base_url = f"{self.ready.gateway}/v1"
            with openai.OpenAI(base_url=base_url, api_key="any", max_retries=retries, timeout=20, http_client=http) as client:
                return question(client)

        return await trio.to_thread.run_sync(in_thread)

    async def chat(self, deadline_s: float | None = None, model: str = MODEL):
        """One whole answer as the client's raw response."""
        headers = {} if deadline_s is None else {"x-request-timeout": str(deadline_s)}
        return await self.ask(
            lambda client: client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, extra_headers=headers)
        )

    def route(self, response):
        """What the node says of the way a response took."""
        report = self.service.dispatcher.explain(response.headers["x-request-id"])
        assert report is not None
        return report


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for what other tasks bring about."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  # what is waited for tells nobody
            await trio.sleep(0.01)


async def introduced(*nodes: MeshNode) -> None:
    """Wait until all nodes know each other well enough to send work."""
    await eventually(lambda: all(a.knows(b.peer_id) for a in nodes for b in nodes if a is not b), 10)


async def heartbeats(node: MeshNode, count: int) -> None:
    """Wait for so many heartbeats of a node's gossipsub, which is served to somebody."""
    router = node.service.node.strangers.router
    before = router._heartbeats
    await eventually(lambda: router._heartbeats >= before + count, 5.0 + 2.0 * count)


def text_of(response) -> str:
    return response.parse().choices[0].message.content


def soon_told(service: Service) -> None:
    """Has a node announce a change of what it has a moment later, not two seconds after what it announced before."""
    announcer = service.node.announcer
    announcer._config = replace(announcer._config, card_interval_s=0.05)


class Start:
    """Starts nodes in one test: each takes the next of the test's QUIC engines, and so does each stranger."""

    def __init__(self, nursery: trio.Nursery, folder: Path, quic_engines: Sequence[str]) -> None:
        self._nursery = nursery
        self._folder = folder
        self._quic_engines = cycle(quic_engines)
        self._n_started = 0

    async def __call__(self, *engines: PlannedEngine, join: tuple[MeshNode, ...] = (), **named) -> MeshNode:
        """Start a node with the given engines; those that are to know each other are given the others as `join`."""
        self._n_started += 1
        state_dir = named.pop("state_dir", self._folder / f"node{self._n_started}")
        bootstrap = [other.address for other in join]
        node = MeshNode(state_dir, engines, bootstrap=bootstrap, quic_engine=next(self._quic_engines), **named)
        with trio.fail_after(10):
            await self._nursery.start(node.run)
        return node

    @asynccontextmanager
    async def stranger(self, seed: int, **handlers: Callable) -> AsyncIterator[Transport]:
        """A libp2p peer that speaks ping, identify and what is given, by protocol id, but is no node."""
        identity = Identity.from_seed(bytes([seed]) * 32)
        transport = Transport(identity, engine=choose_engine(next(self._quic_engines)), handlers=handlers)
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run, [LOOPBACK])
            yield transport
            await transport.aclose()
