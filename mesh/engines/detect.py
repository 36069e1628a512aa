"""Turns what the operator wrote into engines, or what is found running where nothing was written, else the embedded engine.

An engine's own module is imported when it is chosen: a node starts without the HTTP client or the tokenizer of engines that it
does not have.
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from mesh.engines.base import Engine
from mesh.engines.echo import EchoEngine

API_KEY_VARIABLE = "ISOCHRONE_ENGINE_API_KEY"
"""Environment variable with the key for engines given by URL."""

_KINDS = ("onnx", "echo", "none")


class UnknownEngineError(ValueError):
    """An engine was asked for that there is none of; the message says what there is."""


_PARTS = ("onnx:embeddings", "onnx:text")
"""The embedded engine with one of its models alone."""


def make_engines(specs: Sequence[str], cache_dir: Path) -> list[Engine]:
    """The engines for `specs`, not started yet.

    Args:
        specs: each `onnx`, `echo`, `none` or the URL of an OpenAI-compatible server; repeated ones count once.
        cache_dir: where the embedded engine keeps the graph it builds.

    Raises:
        UnknownEngineError: a spec is none of these, or `none` stands beside others.
    """
    wanted = list(dict.fromkeys(_checked(spec) for spec in specs))
    if "none" in wanted and len(wanted) > 1:
        raise UnknownEngineError(
            f"engine 'none' cannot stand beside {', '.join(repr(spec) for spec in wanted if spec != 'none')}"
        )
    return [_make(spec, cache_dir) for spec in wanted if spec != "none"]


async def choose_specs(specs: Sequence[str], ports: Sequence[int] | None = None) -> tuple[str, ...]:
    """`specs` where there are any, else the servers that run on this machine at these or the usual ports, else `onnx`."""
    if specs:
        return tuple(specs)
    from mesh.engines.search import USUAL_PORTS, detect_engines

    return await detect_engines(USUAL_PORTS if ports is None else ports) or ("onnx",)


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


def _make(spec: str, cache_dir: Path) -> Engine:
    if spec == "echo":
        return EchoEngine()
    if spec == "onnx" or spec in _PARTS:
        return _embedded(spec, cache_dir)
    from mesh.engines.openai import OpenAIConfig, OpenAIEngine

    return OpenAIEngine(spec, replace(OpenAIConfig(), api_key=os.environ.get(API_KEY_VARIABLE)))


def _embedded(spec: str, cache_dir: Path) -> Engine:
    from mesh.engines.onnx import OnnxConfig, OnnxEngine
    from mesh.engines.onnx.embedding import EMBEDDING_MODEL
    from mesh.engines.onnx.text import TEXT_MODEL

    models = {"onnx:embeddings": (EMBEDDING_MODEL,), "onnx:text": (TEXT_MODEL,)}
    return OnnxEngine(cache_dir, replace(OnnxConfig(), models=models[spec]) if spec in models else OnnxConfig())
