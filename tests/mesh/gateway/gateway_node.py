"""A gateway on a free port of the loopback, in front of a dispatcher that runs one real engine in this process."""

import array
import json
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path

import openai
import trio
import trio.testing

from mesh.distances import Distances
from mesh.engines.base import EngineError, Slots, SlotsConfig, Work, refuse
from mesh.gateway import Answer, CatalogueEntry
from mesh.gateway.server import Gateway
from mesh.map.collect import MapCollector
from mesh.telemetry import Telemetry
from protocol.errors import ErrorCode
from protocol.identity import Identity
from protocol.inference import (
    Accepted,
    Failed,
    Feature,
    Finished,
    InferenceRequest,
    JsonDelta,
    Reply,
    Tensor,
    TensorsReady,
    TextDelta,
    Usage,
)
from protocol.records import ModelOffer
from protocol.routing import Candidate, RouteReport, RttSource

sys.path.insert(0, str(Path(__file__).parents[2] / "protocol" / "node"))
from knowing import Knowing

DIMENSIONS = 4
WORDS = ("Time ", "is ", "distance.")
USAGE = Usage(prompt_tokens=7, completion_tokens=3)
PEER = Identity.from_seed(bytes(32)).peer_id
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Nothing here is encrypted; a client of its own would first read the certificates of all authorities, 20 ms of a core."""


class ModelEngine:
    """An engine whose models each behave in one way; every answer passes through real slots."""

    kind = "test"

    def __init__(self) -> None:
        self.requests: list[InferenceRequest] = []
        self.started = trio.Event()
        self.ended = trio.Event()
        self.produced_bytes = 0
        self.rubbish: TextDelta | JsonDelta | TensorsReady | None = None
        self._works: dict[str, Callable[[InferenceRequest], Work]] = {
            "org/talk": self._talk,
            "embed": self._embed,
            "tools": self._call_tool,
            "silent": self._stay_silent,
            "flood": self._flood,
            "breaks": self._break,
            "refuses": self._refuse,
            "full": self._talk,
            "rubbish": self._answer_rubbish,
        }
        self.slots = {name: Slots(name, SlotsConfig(1, 0)) for name in self._works}

    def offers(self) -> tuple[ModelOffer, ...]:
        return tuple(
            ModelOffer(name, frozenset({Feature.EMBEDDINGS} if name == "embed" else {Feature.CHAT, Feature.COMPLETIONS}))
            for name in self._works
        )

    def run(self, request: InferenceRequest) -> AbstractAsyncContextManager[AsyncIterator[Reply]]:
        self.requests.append(request)
        work = self._works.get(request.model)
        if work is None:
            return refuse(ErrorCode.MODEL_NOT_FOUND, f"The model '{request.model}' does not exist.")
        if request.model == "full":
            return self._overloaded(request, work)
        return self.slots[request.model].run(request, lambda: work(request))

    @asynccontextmanager
    async def _overloaded(
        self, request: InferenceRequest, work: Callable[[InferenceRequest], Work]
    ) -> AsyncIterator[AsyncIterator[Reply]]:
        """Fill the only slot first, so that the request meets a full house."""
        slots = self.slots["full"]
        async with slots.run(request, lambda: self._stay_silent(request)) as first, trio.open_nursery() as nursery:
            nursery.start_soon(anext, first)
            await trio.testing.wait_all_tasks_blocked()
            async with slots.run(request, lambda: work(request)) as second:
                yield second
            nursery.cancel_scope.cancel()

    async def _talk(self, _request: InferenceRequest) -> Work:
        for word in WORDS:
            yield TextDelta(word)
        yield Finished(("stop",), USAGE)

    async def _embed(self, request: InferenceRequest) -> Work:
        given = json.loads(request.body)["input"]
        texts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        rows = array.array("f")
        for text in texts:
            rows.extend([len(text), 0.5, -1.25, 1e-3])
        yield TensorsReady((Tensor("embedding", "f4", (len(texts), DIMENSIONS), memoryview(rows.tobytes())),))
        yield Finished(usage=Usage(prompt_tokens=5))

    async def _call_tool(self, _request: InferenceRequest) -> Work:
        head = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "near", "arguments": ""}}
        pieces = [{"index": 0, "function": {"arguments": part}} for part in ('{"place":', ' "Oslo"}')]
        for piece in (head, *pieces):
            choice = {"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}
            yield JsonDelta(json.dumps(choice, indent=1).encode())
        yield Finished(("tool_calls",), USAGE)

    async def _stay_silent(self, _request: InferenceRequest) -> Work:
        self.started.set()
        try:
            await trio.sleep_forever()
            yield Finished()
        finally:
            self.ended.set()

    async def _flood(self, _request: InferenceRequest) -> Work:
        self.started.set()
        try:
            while True:
                self.produced_bytes += 1024
                yield TextDelta("x" * 1024)
        finally:
            self.ended.set()

    async def _break(self, _request: InferenceRequest) -> Work:
        yield TextDelta(WORDS[0])
        raise EngineError(ErrorCode.ENGINE_FAILED, "the engine died")

    async def _refuse(self, request: InferenceRequest) -> Work:
        raise EngineError(ErrorCode[json.loads(request.body)["user"]], "told so", 0.25)
        yield Finished()

    async def _answer_rubbish(self, _request: InferenceRequest) -> Work:
        assert self.rubbish is not None
        yield self.rubbish
        yield Finished()


CANDIDATE = Candidate(
    PEER, True, "nearest", 0.0123, RttSource.MEASURED, queue_s=0.0, service_s=0.004, predicted_s=0.0163, outcome="answered"
)


@dataclass
class LocalAnswer:
    replies: AsyncIterator[Reply]
    route: RouteReport
    started_at: float = field(default_factory=trio.current_time)

    async def __aiter__(self) -> AsyncIterator[Reply]:
        async for reply in self.replies:
            if isinstance(reply, Accepted):
                continue
            if self.route.measured_s is None and not isinstance(reply, Failed):
                self.route = replace(self.route, measured_s=trio.current_time() - self.started_at)
            yield reply


class LocalDispatcher:
    """Runs every request on one engine."""

    def __init__(self, engine: ModelEngine) -> None:
        self.engine = engine
        self.routes: dict[str, RouteReport] = {}
        self.knowing = Knowing()
        self.distances = Distances(self.knowing.node, lambda: 1.0, lambda: ["own"], lambda _peer_id: "")
        self.map = MapCollector(self.knowing.node, self.distances)

    @asynccontextmanager
    async def submit(self, request: InferenceRequest) -> AsyncIterator[Answer]:
        known = any(offer.model == request.model for offer in self.engine.offers())
        chosen = PEER if known else None
        route = RouteReport(request.request_id.hex(), request.model, request.feature, (CANDIDATE,), chosen, 0.0163, hops=1)
        self.routes[route.request_id] = route
        async with self.engine.run(request) as replies:
            yield LocalAnswer(replies, route)

    def catalogue(self) -> list[CatalogueEntry]:
        return [CatalogueEntry(offer, (PEER,), 1_700_000_000.5) for offer in self.engine.offers()]

    def explain(self, request_id: str) -> RouteReport | None:
        return self.routes.get(request_id)

    def status(self) -> dict[str, object]:
        return {"peer_id": "me", "draining": False}

    def peers(self) -> list[dict[str, object]]:
        return [{"peer_id": "you", "state": "alive"}]


@dataclass
class Running:
    """A gateway at work."""

    gateway: Gateway
    engine: ModelEngine
    telemetry: Telemetry
    url: str
    log: StringIO
    dispatcher: LocalDispatcher

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def metric(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(name, labels)

    async def ask(self, question: Callable[[openai.OpenAI], object]) -> object:
        """Run `question` with the official client in a thread."""

        def in_thread() -> object:
            http = openai.DefaultHttpxClient(verify=PLAIN)
            with openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=20, http_client=http) as client:
                return question(client)

        return await trio.to_thread.run_sync(in_thread)

    async def connect(self, receive_bytes: int | None = None) -> trio.SocketStream:
        return await connect(self.url, receive_bytes)


async def connect(url: str, receive_bytes: int | None = None) -> trio.SocketStream:
    """Open a connection, with a small receive buffer where one is given."""
    socket = trio.socket.socket()
    if receive_bytes is not None:
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_bytes)
    await socket.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    return trio.SocketStream(socket)


def post(path: str, body: object, headers: str = "") -> bytes:
    """One HTTP request as bytes."""
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", f"content-length: {len(content)}"]
    return "".join(f"{line}\r\n" for line in lines).encode() + headers.encode() + b"\r\n" + content


Start = Callable[..., Awaitable[Running]]
