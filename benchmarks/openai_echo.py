"""A small OpenAI-compatible server that echoes: the engine that the gateway benchmark fronts.

It is written with the same HTTP libraries as the gateway, so that a comparison shows what the node adds and not what another HTTP
server costs. Run as a module it prints its URL and serves until its standard input ends.
"""

import json
import socket
import sys
import time
from collections.abc import AsyncIterator
from functools import partial

import hypercorn.trio
import trio
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODEL = "echo-bench"


async def models(_: Request) -> Response:
    """The one model there is."""
    return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "bench"}]})


async def health(_: Request) -> Response:
    """It is well: routers ask."""
    return Response()


async def chat(request: Request) -> Response:
    """Answers with the last message, word by word when asked to stream."""
    body = await request.json()
    words = body["messages"][-1]["content"].split(" ")
    base = {"id": "chatcmpl-bench", "created": int(time.time()), "model": MODEL}
    usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
    if not body.get("stream"):
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({**base, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def events() -> AsyncIterator[bytes]:
        chunk = {**base, "object": "chat.completion.chunk"}
        for place, word in enumerate(words):
            delta = {"content": word if place == 0 else " " + word}
            yield _event({**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        yield _event({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield _event({**chunk, "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def serve() -> None:
    """Serves until standard input ends."""
    app = Starlette(
        routes=[Route("/v1/models", models), Route("/health", health), Route("/v1/chat/completions", chat, methods=["POST"])]
    )
    listening = socket.create_server(("127.0.0.1", 0))
    port, descriptor = listening.getsockname()[1], listening.detach()  # hypercorn closes it
    config = Config()
    config.bind = [f"fd://{descriptor}"]
    config.errorlog = None
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(hypercorn.trio.serve, app, config, shutdown_trigger=over.wait))
        print(f"http://127.0.0.1:{port}", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        over.set()


if __name__ == "__main__":
    trio.run(serve)
