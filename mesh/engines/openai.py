"""Fronts any server that speaks OpenAI's HTTP API: vLLM, SGLang, llama.cpp, Ollama, TensorRT-LLM and their like.

Every text request is asked for as a stream, whether the caller streams or not, so that cancelling and the time limits take
effect between chunks; leaving an answer early closes the HTTP stream, at which these servers stop generating. `watch` asks
every few seconds for health, models and load; while a server does not answer it offers no models, so that nothing is routed to
it. Redirects are not followed and proxies of the environment are not used: prompts go to the URL that the operator named and
nowhere else, and a name in it leads to no address at which machines keep secrets (`mesh.engines.reach`).

Source: OpenAI API reference; facts about each server in docs/engines.md.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import httpx
import trio

from mesh.engines.base import EngineError, Slots, SlotsConfig, Work, refuse
from mesh.engines.body import read_json
from mesh.engines.openai_chunks import (
    DONE,
    ChunkReader,
    engine_failed,
    error_of_status,
    read_embeddings,
    read_object,
    read_usage,
)
from mesh.engines.openai_discovery import ReportedLoad, has_cheap_health, read_metrics, read_models, read_ollama_show
from mesh.engines.reach import engine_transport
from mesh.engines.sse import SseError, SseReader
from protocol.errors import ErrorCode
from protocol.inference import Feature, Finished, InferenceRequest, Reply, TensorsReady, Usage
from protocol.load import ModelLoad
from protocol.records import ModelOffer

_PATHS = {
    Feature.CHAT: "/v1/chat/completions",
    Feature.COMPLETIONS: "/v1/completions",
    Feature.EMBEDDINGS: "/v1/embeddings",
}

NODE_HEADER = "x-mesh-node"
"""The header by which a gateway of this mesh says that it is one; such a server is never fronted as an engine."""

ERROR_BYTES_MAX = 64 << 10
"""Longest error body that is read, in bytes: one sentence is wanted from it."""

DRAIN_S_MAX = 0.05
"""How long the end of a body may take after the last event, in seconds: past that a new connection costs less than the wait."""

CLOSE_S_MAX = 1.0
"""How long closing an HTTP stream may take, in seconds, once nobody wants it any more: a TLS goodbye at most."""


@dataclass(frozen=True, slots=True)
class OpenAIConfig:
    """Bounds of the talk with one server.

    Attributes:
        api_key: sent as a bearer token, where set.
        connect_s_max: time for the connection; the server is near.
        first_output_s_max: time to the first chunk, which covers the server's own queue and the reading of a long prompt.
        idle_s_max: time between chunks; a server that generates says something every second.
        inquiry_s_max: time for each answer about health, models or load.
        refresh_interval_s: pause between two inquiries.
        answer_bytes_max: largest answer that is no stream, in bytes: 2048 embeddings of 4096 numbers in base64 are 45 MB.
        inquiry_bytes_max: largest answer about models or load, in bytes.
        models_max: models taken over from one server.
        slots: requests handed to the server at once, per model; the server batches them and keeps its own queue.
    """

    api_key: str | None = field(default=None, repr=False)
    connect_s_max: float = 2.0
    first_output_s_max: float = 120.0
    idle_s_max: float = 30.0
    inquiry_s_max: float = 2.0
    refresh_interval_s: float = 2.0
    answer_bytes_max: int = 64 << 20
    inquiry_bytes_max: int = 4 << 20
    models_max: int = 256
    slots: SlotsConfig = field(default_factory=lambda: SlotsConfig(slots_max=64, waiting_max=256))


def root_of(url: str) -> str:
    """The server's root: the URL without a trailing slash and without `/v1`."""
    return url.rstrip("/").removesuffix("/v1")


class OpenAIEngine:
    """One OpenAI-compatible server."""

    kind = "openai"

    def __init__(self, url: str, config: OpenAIConfig | None = None) -> None:
        self._config = config or OpenAIConfig()
        self.url = root_of(url)
        headers = {"accept-encoding": "identity", "user-agent": "isochrone"}
        if self._config.api_key:
            headers["authorization"] = f"Bearer {self._config.api_key}"
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            follow_redirects=False,
            trust_env=False,
            timeout=httpx.Timeout(None, connect=self._config.connect_s_max),
            transport=engine_transport(httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=30.0)),
        )
        self._offers: dict[str, ModelOffer] = {}
        self._slots: dict[str, Slots] = {}
        self._reported: dict[str, ReportedLoad] = {}
        self._shown: dict[str, ModelOffer] = {}
        self._absent: set[str] = set()
        self.problem = "not asked yet"

    async def start(self) -> None:
        """Ask the server once; one that is not up yet offers nothing until `watch` finds it."""
        if not self._offers:
            await self.refresh()

    async def watch(self) -> None:
        """Keep asking the server for health, models and load."""
        while True:
            await trio.sleep(self._config.refresh_interval_s)
            await self.refresh()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def offers(self) -> tuple[ModelOffer, ...]:
        """The models the server named last; none while it does not answer. `problem` says why."""
        return tuple(self._offers.values())

    def load(self) -> tuple[ModelLoad, ...]:
        """Our own requests and those that the server reports from others."""
        return tuple(self._load(model) for model in self._offers)

    def run(self, request: InferenceRequest) -> AbstractAsyncContextManager[AsyncIterator[Reply]]:
        """Hand the request to the server and its answer back."""
        if request.feature not in _PATHS:
            return refuse(ErrorCode.FEATURE_NOT_SUPPORTED, f"The engine at {self.url} does not support {request.feature}.")
        if request.model not in self._offers:
            return refuse(ErrorCode.MODEL_NOT_FOUND, f"The model '{request.model}' does not exist.")
        work = self._embed if request.feature is Feature.EMBEDDINGS else self._generate
        return self._slots[request.model].run(request, lambda: work(request))

    async def refresh(self) -> None:
        """Ask for health, models and load, once."""
        try:
            answer = read_object(await self._inquire("GET", "/v1/models"))
            if has_cheap_health(answer):
                await self._inquire("GET", "/health")
            offers = tuple([await self._show(offer) for offer in read_models(answer, self._config.models_max)])
            metrics = await self._inquire_if_served("GET", "/metrics")
        except EngineError as error:
            self._lose(error.message)
            return
        self._offers = {offer.model: offer for offer in offers}
        self._slots = {offer.model: self._slots.get(offer.model) or Slots(offer.model, self._config.slots) for offer in offers}
        self._reported = read_metrics(metrics.decode(errors="replace")) if metrics else {}
        self.problem = "" if offers else f"the server at {self.url} has no models"

    def _lose(self, problem: str) -> None:
        """The server is gone: offer nothing, forget what a new one may do differently."""
        self.problem = problem
        self._offers = {}
        self._reported = {}
        self._shown = {}
        self._absent = set()

    def _load(self, model: str) -> ModelLoad:
        own = self._slots[model].load()
        reported = self._reported.get(model) or (self._reported.get("") if len(self._offers) == 1 else None) or ReportedLoad()
        running = max(own.running, reported.running)
        behind_s = reported.waiting * own.service_s / max(running, 1)
        return replace(own, running=running, waiting=own.waiting + reported.waiting, queue_s=own.queue_s + behind_s)

    async def _show(self, offer: ModelOffer) -> ModelOffer:
        """The offer with what Ollama tells of it, asked once per model."""
        if offer.model not in self._shown:
            answer = await self._inquire_if_served("POST", "/api/show", json.dumps({"model": offer.model}).encode())
            if not answer:
                return offer
            self._shown[offer.model] = read_ollama_show(offer, read_object(answer))
            self._shown = dict(list(self._shown.items())[-self._config.models_max :])
        return self._shown[offer.model]

    async def _inquire(self, method: str, path: str, content: bytes | None = None) -> bytes:
        """The body of one small answer.

        Raises:
            EngineError: the server does not answer, or says that it is not well.
        """
        async with self._open(method, path, content, self._config.inquiry_s_max) as response:
            if NODE_HEADER in response.headers:
                raise engine_failed(f"{self.url} is the gateway of a mesh node, not an engine")
            body = await self._read(response, self._config.inquiry_bytes_max, self._config.inquiry_s_max)
            if response.status_code != 200:
                raise error_of_status(response.status_code, response.headers, body)
            return body

    async def _inquire_if_served(self, method: str, path: str, content: bytes | None = None) -> bytes:
        """The same for what only some servers have; empty where it is not to be had.

        That there is nothing at this path is remembered until the server goes away.
        """
        if path in self._absent:
            return b""
        try:
            return await self._inquire(method, path, content)
        except EngineError as error:
            if error.code is ErrorCode.MODEL_NOT_FOUND:
                self._absent.add(path)
            return b""

    async def _generate(self, request: InferenceRequest) -> Work:
        fields = {**read_json(request.body), "model": request.model, "stream": True, "stream_options": {"include_usage": True}}
        reader = ChunkReader(request.feature)
        content = json.dumps(fields).encode()
        async with self._open("POST", _PATHS[request.feature], content, self._config.first_output_s_max) as response:
            await self._check(response)
            async with aclosing(self._events(response)) as events:
                async for data in events:
                    if data == DONE:
                        await _drain(events)
                        yield reader.finish(done=True)
                        return
                    for output in reader.read(data):
                        yield output
        yield reader.finish(done=False)

    async def _events(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event."""
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise engine_failed("the engine did not answer with a stream of events")
        parser = SseReader()
        async with aclosing(self._chunks(response, self._config.first_output_s_max)) as chunks:
            try:
                async for chunk in chunks:
                    for data in parser.feed(chunk):
                        yield data
            except SseError as error:
                raise engine_failed(f"the engine sent a stream that cannot be read: {error}") from None

    async def _embed(self, request: InferenceRequest) -> Work:
        fields = {**read_json(request.body), "model": request.model, "encoding_format": "float"}
        inputs = fields.get("input")
        is_list_of_inputs = isinstance(inputs, list) and bool(inputs) and not isinstance(inputs[0], int)
        content = json.dumps(fields).encode()
        async with self._open("POST", _PATHS[request.feature], content, self._config.first_output_s_max) as response:
            await self._check(response)
            body = await self._read(response, self._config.answer_bytes_max, self._config.idle_s_max)
        answer = read_object(body)
        tensor = read_embeddings(answer, len(inputs) if is_list_of_inputs and isinstance(inputs, list) else 1)
        usage = read_usage(answer) or Usage()
        yield TensorsReady((tensor,))
        yield Finished((), usage)

    async def _check(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            body = await self._read(response, ERROR_BYTES_MAX, self._config.inquiry_s_max)
            raise error_of_status(response.status_code, response.headers, body)

    async def _read(self, response: httpx.Response, bytes_max: int, idle_s_max: float) -> bytes:
        """The whole body."""
        body = bytearray()
        async with aclosing(self._chunks(response, idle_s_max)) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > bytes_max:
                    raise engine_failed(f"the engine sent more than {bytes_max} bytes")
        return bytes(body)

    async def _chunks(self, response: httpx.Response, first_s_max: float) -> AsyncGenerator[bytes, None]:
        """The body as it comes: the first piece within `first_s_max`, every later one within the idle limit."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise engine_failed("the engine sent a compressed answer, which it was not asked for")
        patience_s = first_s_max
        chunks = response.aiter_raw()
        try:
            while True:
                try:
                    with trio.fail_after(patience_s):
                        chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                except trio.TooSlowError:
                    raise engine_failed(f"the engine at {self.url} said nothing for {patience_s:.0f} s") from None
                except httpx.HTTPError as error:
                    raise engine_failed(f"the engine at {self.url} broke off its answer: {_reason(error)}") from None
                yield chunk
                patience_s = min(first_s_max, self._config.idle_s_max)
        finally:
            await unwind(chunks)

    @asynccontextmanager
    async def _open(self, method: str, path: str, content: bytes | None, answer_s_max: float) -> AsyncIterator[httpx.Response]:
        """An answer whose body is still to be read; it is closed on leaving, at which the server stops its work."""
        headers = {"content-type": "application/json"} if content is not None else {}
        request = self._client.build_request(method, path, content=content, headers=headers)
        try:
            with trio.fail_after(answer_s_max):
                response = await self._client.send(request, stream=True)
        except trio.TooSlowError:
            raise engine_failed(f"the engine at {self.url} did not answer {path} within {answer_s_max:.0f} s") from None
        except httpx.ConnectError as error:
            self._lose(f"nothing answers at {self.url}: {_reason(error)}")
            raise engine_failed(self.problem) from None
        except httpx.HTTPError as error:
            raise engine_failed(f"the engine at {self.url} did not answer {path}: {_reason(error)}") from None
        try:
            yield response
        finally:
            with trio.move_on_after(CLOSE_S_MAX, shield=True):
                await response.aclose()


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


async def _drain(events: AsyncIterator[bytes]) -> None:
    """Read the end of a body after its last event, so that the connection can be used again."""
    with trio.move_on_after(DRAIN_S_MAX), suppress(EngineError):
        async for _ in events:
            pass


async def unwind(chunks: AsyncIterator[bytes]) -> None:
    """End a body that is not read to its end.

    The HTTP client nests several async generators, and closing the outermost leaves the inner ones to the garbage collector.
    Reading on under a cancelled scope ends them all in order, and closes the connection; it returns what is buffered, at most,
    and never waits.
    """
    with trio.CancelScope(shield=True) as scope, suppress(httpx.HTTPError):
        scope.cancel()
        async for _ in chunks:
            pass
