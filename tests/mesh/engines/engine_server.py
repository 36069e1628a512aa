"""Requests, a collector of replies, and a real OpenAI-compatible server that misbehaves by the name of the model."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

import hypercorn.config
import hypercorn.trio
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from protocol.inference import Feature, InferenceRequest

CHAT_MODELS = [
    "good",
    "tools",
    "rubbish",
    "no-events",
    "long-line",
    "hangs",
    "hangs-midway",
    "dies",
    "ends-early",
    "no-done",
    "busy",
    "loading",
    "broken",
    "picky",
    "absent",
    "redirects",
    "error-chunk",
    "endless",
    "forbidden",
    "compressed",
]
EMBEDDING_MODELS = ["embed-good", "embed-base64", "embed-short", "embed-text", "embed-huge"]


def make_request(feature: Feature, model: str, deadline_s: float = 30.0, **body) -> InferenceRequest:
    return InferenceRequest(bytes(16), feature, model, json.dumps(body).encode(), deadline_s=deadline_s)


def chat(model: str, text: str = "hello there", deadline_s: float = 30.0, **body) -> InferenceRequest:
    return make_request(Feature.CHAT, model, deadline_s, messages=[{"role": "user", "content": text}], **body)


async def collect(engine, request: InferenceRequest) -> list:
    async with engine.run(request) as replies:
        return [reply async for reply in replies]


class ClosingStream(StreamingResponse):
    """A stream whose generator is closed when the client is gone."""

    async def __call__(self, scope, receive, send) -> None:
        async with aclosing(self.body_iterator):
            await super().__call__(scope, receive, send)


@dataclass
class OpenAIServer:
    """What the test server saw, and its address."""

    url: str = ""
    bodies: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    stopped: trio.Event = field(default_factory=trio.Event)  # an endless answer was given up
    visits: int = 0  # of the place that a redirect names
    health: int = 200
    metrics: str | None = None
    node_header: bool = False
    ports: list[int] = field(default_factory=list)  # of the client, one per request
    models: list[dict] = field(
        default_factory=lambda: [{"id": name, "owned_by": "vllm"} for name in [*CHAT_MODELS, *EMBEDDING_MODELS]]
    )

    async def list_models(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        extra = {"x-mesh-node": "12D3KooWtest"} if self.node_header else {}
        return JSONResponse({"object": "list", "data": self.models}, headers=extra)

    async def tell_health(self, request: Request) -> Response:
        return Response(status_code=self.health)

    async def visit(self, _request: Request) -> Response:
        self.visits += 1
        return JSONResponse({"choices": [{"index": 0, "delta": {"content": "stolen"}, "finish_reason": "stop"}]})

    async def tell_metrics(self, request: Request) -> Response:
        return Response(status_code=404) if self.metrics is None else PlainTextResponse(self.metrics)

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.ports.append(request.client.port)
        self.headers.append(dict(request.headers))
        error = {"error": {"message": "the engine's own words", "type": "x", "code": None}}
        match body["model"]:
            case "busy":
                return JSONResponse(error, 429, {"retry-after": "3"})
            case "loading":
                return JSONResponse(error, 503, {"retry-after-ms": "1500"})
            case "broken":
                return JSONResponse(error, 500)
            case "picky":
                return JSONResponse(error, 400)
            case "absent":
                return JSONResponse(error, 404)
            case "forbidden":
                return JSONResponse(error, 401)
            case "redirects":
                return Response(status_code=307, headers={"location": f"{self.url}/elsewhere"})
            case "no-events":
                return JSONResponse({"choices": []})
            case "compressed":
                return Response(b"\x1f\x8b", media_type="text/event-stream", headers={"content-encoding": "gzip"})
            case "hangs":
                await trio.sleep_forever()
        return ClosingStream(self._chunks(body), media_type="text/event-stream")

    async def _chunks(self, body: dict) -> AsyncIterator[bytes]:
        is_chat = "messages" in body

        def piece(text: str, index: int = 0, reason: str | None = None, **more) -> bytes:
            content = {"delta": {"content": text, **more}} if is_chat else {"text": text}
            return event({"choices": [{"index": index, **content, "finish_reason": reason}]})

        model = body["model"]
        if is_chat:
            yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        yield b": keep-alive\n\n"
        yield piece("Grüße")
        match model:
            case "rubbish":
                yield b"data: {nonsense\n\n"
            case "long-line":
                for _ in range(20):
                    yield b"data" + b"x" * (1 << 16)
            case "hangs-midway":
                await trio.sleep_forever()
            case "dies":
                raise ConnectionError("the engine dies")
            case "ends-early":
                return
            case "error-chunk":
                yield event({"error": {"message": "out of memory", "code": 500}})
            case "tools":
                call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                yield event({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]})
                yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
            case "endless":
                try:
                    while True:
                        yield piece("more ")
                        await trio.sleep(0.001)
                finally:
                    self.stopped.set()
        yield piece(" aus Köln", reason="stop")
        yield event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})
        if model != "no-done":
            yield b"data: [DONE]\n\n"

    async def embed(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        is_list = isinstance(body["input"], list) and not isinstance(body["input"][0], int)
        inputs = body["input"] if is_list else [body["input"]]
        rows = [{"index": index, "embedding": [float(index), 1.0, 2.0]} for index in range(len(inputs))]
        match body["model"]:
            case "embed-short":
                rows = rows[1:]
            case "embed-text":
                rows[0]["embedding"] = ["a", "b", "c"]
            case "embed-base64":
                rows[0]["embedding"] = "AACAPwAAAEAAAEBA"
            case "embed-huge":
                return PlainTextResponse("x" * 100_000)
        return JSONResponse({"data": rows[::-1], "usage": {"prompt_tokens": 5}})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.tell_health),
                Route("/elsewhere", self.visit, methods=["GET", "POST"]),
                Route("/metrics", self.tell_metrics),
                Route("/v1/models", self.list_models),
                Route("/v1/chat/completions", self.generate, methods=["POST"]),
                Route("/v1/completions", self.generate, methods=["POST"]),
                Route("/v1/embeddings", self.embed, methods=["POST"]),
            ]
        )

    async def serve(self, nursery: trio.Nursery) -> None:
        config = hypercorn.config.Config()
        config.bind = ["127.0.0.1:0"]
        config.errorlog = config.accesslog = None
        config.graceful_timeout = config.shutdown_timeout = 0.1
        self.url = (await nursery.start(hypercorn.trio.serve, self.app(), config))[0]


def event(value: dict) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
