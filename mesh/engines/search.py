"""Finds a running engine where the operator named none.

Each of the ports that vLLM, SGLang, llama.cpp and Ollama use is asked for its models at the same time, on loopback only, with
half a second to answer. Whatever answers as an OpenAI-compatible server with at least one model counts; the gateway of a node
of this mesh, which says so in a header, does not. No API key is sent: what listens on a usual port is not known yet.
"""

import json
from collections.abc import Sequence

import httpx
import trio

from mesh.engines.openai import NODE_HEADER, unwind
from mesh.engines.openai_discovery import read_models

USUAL_PORTS = (8000, 30000, 8080, 11434)
"""Default ports of vLLM, SGLang, llama.cpp's server and Ollama, in this order of preference."""

DETECT_S_MAX = 0.5
"""Time for the whole search, in seconds: a server on loopback answers in milliseconds, and a start must not be slow."""

DETECT_BYTES_MAX = 1 << 20
"""Largest list of models that is read while searching, in bytes."""


async def detect_engines(ports: Sequence[int] = USUAL_PORTS) -> tuple[str, ...]:
    """The URLs of OpenAI-compatible servers on loopback, in the order of `ports`; empty where none answers in time."""
    found: dict[int, str] = {}

    async def ask(port: int) -> None:
        """Note the server at one port, if it is one."""
        if await _is_engine(client, f"http://127.0.0.1:{port}"):
            found[port] = f"http://127.0.0.1:{port}"

    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=None) as client:  # noqa: S113  # bounded below
        with trio.move_on_after(DETECT_S_MAX):
            async with trio.open_nursery() as nursery:
                for port in ports:
                    nursery.start_soon(ask, port)
    return tuple(found[port] for port in ports if port in found)


async def _is_engine(client: httpx.AsyncClient, url: str) -> bool:
    """Whether an OpenAI-compatible server with a model, and no node of this mesh, answers at `url`."""
    body = bytearray()
    try:
        async with client.stream("GET", f"{url}/v1/models") as response:
            if response.status_code != 200 or NODE_HEADER in response.headers:
                return False
            chunks = response.aiter_raw()
            async for chunk in chunks:
                body += chunk
                if len(body) > DETECT_BYTES_MAX:
                    await unwind(chunks)
                    return False
        answer = json.loads(body)
    except (httpx.HTTPError, ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and bool(read_models(answer, models_max=1))
