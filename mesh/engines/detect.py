"""Turns what the operator wrote into engines, and finds a running one where nothing was written.

Each of the ports that vLLM, SGLang, llama.cpp and Ollama use is asked for its models at the same time, on loopback only, with
half a second to answer. Whatever answers as an OpenAI-compatible server with at least one model counts; the gateway of a node
of this mesh, which says so in a header, does not. Where none is found the embedded engine takes its place. No API key is sent
while searching: what listens on a usual port is not known yet.
"""

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import trio

from mesh.engines.base import Engine
from mesh.engines.echo import EchoConfig, EchoEngine
from mesh.engines.onnx import OnnxConfig, OnnxEngine
from mesh.engines.onnx.embedding import EMBEDDING_MODEL
from mesh.engines.onnx.text import TEXT_MODEL
from mesh.engines.openai import NODE_HEADER, OpenAIConfig, OpenAIEngine, unwind
from mesh.engines.openai_discovery import read_models

USUAL_PORTS = (8000, 30000, 8080, 11434)
"""Default ports of vLLM, SGLang, llama.cpp's server and Ollama, in this order of preference."""

DETECT_S_MAX = 0.5
"""Time for the whole search, in seconds: a server on loopback answers in milliseconds, and a start must not be slow."""

DETECT_BYTES_MAX = 1 << 20
"""Largest list of models that is read while searching, in bytes."""

API_KEY_VARIABLE = "ISOCHRONE_ENGINE_API_KEY"
"""Environment variable with the key for engines given by URL."""

_KINDS = ("onnx", "echo", "none")


class UnknownEngineError(ValueError):
    """An engine was asked for that there is none of; the message says what there is."""


@dataclass(frozen=True, slots=True)
class EnginesConfig:
    """The configuration of every kind of engine; the API key falls back to the environment."""

    onnx: OnnxConfig = field(default_factory=OnnxConfig)
    echo: EchoConfig = field(default_factory=EchoConfig)
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)


_PARTS = {"onnx:embeddings": EMBEDDING_MODEL, "onnx:text": TEXT_MODEL}
"""The embedded engine with one of its models alone."""


def make_engines(specs: Sequence[str], cache_dir: Path, config: EnginesConfig | None = None) -> list[Engine]:
    """The engines for `specs`, not started yet.

    Args:
        specs: each `onnx`, `echo`, `none` or the URL of an OpenAI-compatible server; repeated ones count once.
        cache_dir: where the embedded engine keeps the graph it builds.
        config: bounds and pace; defaults where None.

    Raises:
        UnknownEngineError: a spec is none of these, or `none` stands beside others.
    """
    config = config or EnginesConfig()
    wanted = list(dict.fromkeys(_checked(spec) for spec in specs))
    if "none" in wanted and len(wanted) > 1:
        raise UnknownEngineError(
            f"engine 'none' cannot stand beside {', '.join(repr(spec) for spec in wanted if spec != 'none')}"
        )
    return [_make(spec, cache_dir, config) for spec in wanted if spec != "none"]


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


async def choose_specs(specs: Sequence[str], ports: Sequence[int] = USUAL_PORTS) -> tuple[str, ...]:
    """`specs` where there are any, else the servers that run on this machine, else the embedded engine."""
    return tuple(specs) or await detect_engines(ports) or ("onnx",)


def _checked(spec: str) -> str:
    """The spec in one spelling."""
    name = spec.strip()
    if name.lower() in _KINDS or name.lower() in _PARTS:
        return name.lower()
    parts = urlsplit(name)
    if parts.scheme in {"http", "https"} and parts.hostname:
        return name.rstrip("/").removesuffix("/v1")
    if parts.scheme in {"http", "https"}:
        raise UnknownEngineError(f"engine {spec!r} has no host; write it like http://127.0.0.1:8000")
    close = difflib.get_close_matches(name.lower(), _KINDS, n=1)
    if close:
        raise UnknownEngineError(f"unknown engine {spec!r}; did you mean {close[0]!r}?")
    hint = f"; did you mean 'http://{name}'?" if ":" in name or "." in name else ""
    raise UnknownEngineError(
        f"unknown engine {spec!r}{hint} Known are onnx, echo, none, or the URL of an OpenAI-compatible server"
    )


def _make(spec: str, cache_dir: Path, config: EnginesConfig) -> Engine:
    match spec:
        case "onnx":
            return OnnxEngine(cache_dir, config.onnx)
        case _ if spec in _PARTS:
            return OnnxEngine(cache_dir, replace(config.onnx, models=(_PARTS[spec],)))
        case "echo":
            return EchoEngine(config.echo)
        case _:
            api_key = config.openai.api_key or os.environ.get(API_KEY_VARIABLE)
            return OpenAIEngine(spec, replace(config.openai, api_key=api_key))


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
