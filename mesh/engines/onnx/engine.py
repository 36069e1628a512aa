"""The embedded engine as a node sees it.

Loading and every step of an answer run in worker threads, a limited number at once; between two steps the answer can be
cancelled. A step is one batch of embeddings, one part of a prompt, or one word of text.

Spec: docs/spec/06-inference.md, section "Answer".
"""

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import trio

from mesh.engines.base import Slots, SlotsConfig, Work, refuse
from mesh.engines.body import bad_request, read_embedding_body, read_text_body
from mesh.engines.onnx.embedding import (
    EMBEDDING_DIMENSIONS,
    EMBEDDING_INPUTS_MAX,
    EMBEDDING_MODEL,
    EMBEDDING_TOKENS_MAX,
    WEIGHTS_SHA256,
    EmbeddingModel,
)
from mesh.engines.onnx.text import CONTEXT_TOKENS_MAX, TEXT_MODEL, TextModel, Writer
from protocol.errors import ErrorCode
from protocol.inference import (
    REQUEST_ID_BYTES,
    Feature,
    Finished,
    InferenceRequest,
    Reply,
    Tensor,
    TensorsReady,
    TextDelta,
    Usage,
)
from protocol.load import ModelLoad
from protocol.records import ModelOffer

_OFFERS = {
    EMBEDDING_MODEL: ModelOffer(
        EMBEDDING_MODEL, frozenset({Feature.EMBEDDINGS}), EMBEDDING_TOKENS_MAX, "f32", memory_bytes=91_000_000, engine="onnx"
    ),
    TEXT_MODEL: ModelOffer(
        TEXT_MODEL,
        frozenset({Feature.CHAT, Feature.COMPLETIONS}),
        CONTEXT_TOKENS_MAX,
        "f16",
        memory_bytes=4_500_000,
        engine="onnx",
    ),
}


_WARM_UPS: dict[str, tuple[Feature, dict[str, object]]] = {
    EMBEDDING_MODEL: (Feature.EMBEDDINGS, {"input": ["a sentence of ordinary length, such as people search for"]}),
    TEXT_MODEL: (Feature.COMPLETIONS, {"prompt": "hacker", "max_tokens": 32}),
}
"""What each model answers once before it is offered: about as much as an ordinary request."""


@dataclass(frozen=True, slots=True)
class OnnxConfig:
    """How much of the machine the embedded engine takes.

    Attributes:
        threads: threads of one run; the rest of the machine belongs to others.
        models: which of the two models are loaded.
        slots: answers at once, per model.
    """

    threads: int = 1
    models: tuple[str, ...] = (EMBEDDING_MODEL, TEXT_MODEL)
    slots: SlotsConfig = field(default_factory=SlotsConfig)


class OnnxEngine:
    """The two embedded models."""

    kind = "onnx"

    def __init__(self, cache_dir: Path, config: OnnxConfig | None = None) -> None:
        """An engine that keeps the graph it builds in `cache_dir`."""
        self._cache_dir = cache_dir
        self._config = config or OnnxConfig()
        self._slots = {model: Slots(model, self._config.slots) for model in self._config.models}
        self._threads = trio.CapacityLimiter(self._config.slots.slots_max * len(self._config.models))
        self._loading = trio.Lock()
        self._embedding: EmbeddingModel | None = None
        self._text: TextModel | None = None

    async def start(self) -> None:
        """Load the models.

        Raises:
            EmbeddedEngineUnavailableError: a library or the weights are not installed.
        """
        async with self._loading:
            if EMBEDDING_MODEL in self._slots and self._embedding is None:
                self._embedding = await trio.to_thread.run_sync(
                    EmbeddingModel, self._cache_dir, self._config.threads, limiter=self._threads
                )
            if TEXT_MODEL in self._slots and self._text is None:
                self._text = await trio.to_thread.run_sync(TextModel, self._config.threads, limiter=self._threads)
            for model in self._slots:
                await self._warm_up(model)

    async def _warm_up(self, model: str) -> None:
        """Answers two small requests: the first pays for the runtime's own preparations, the second is the first measurement.

        So the first beat already says how fast this node is, and nobody has to guess.
        """
        feature, body = _WARM_UPS[model]
        for _ in range(2):
            self._slots[model] = Slots(model, self._config.slots)
            request = InferenceRequest(bytes(REQUEST_ID_BYTES), feature, model, json.dumps(body).encode())
            async with self.run(request) as replies:
                async for _reply in replies:
                    pass

    async def watch(self) -> None:
        """Nothing outside changes."""

    async def aclose(self) -> None:
        """Let go of the models."""
        self._embedding = None
        self._text = None

    def offers(self) -> tuple[ModelOffer, ...]:
        """The models that are loaded."""
        digests = {
            EMBEDDING_MODEL: None if self._embedding is None else bytes.fromhex(WEIGHTS_SHA256),
            TEXT_MODEL: None if self._text is None else self._text.digest,
        }
        return tuple(replace(offer, digest=digest) for model, offer in _OFFERS.items() if (digest := digests[model]) is not None)

    def load(self) -> tuple[ModelLoad, ...]:
        """How busy each model is."""
        return tuple(self._slots[offer.model].load() for offer in self.offers())

    def run(self, request: InferenceRequest) -> AbstractAsyncContextManager[AsyncIterator[Reply]]:
        """Answer with the model that is asked for."""
        offer = next((offer for offer in self.offers() if offer.model == request.model), None)
        if offer is None:
            return refuse(ErrorCode.MODEL_NOT_FOUND, f"The model '{request.model}' does not exist.")
        if request.feature not in offer.features:
            return refuse(ErrorCode.FEATURE_NOT_SUPPORTED, f"The model '{offer.model}' does not support {request.feature}.")
        if request.feature is Feature.EMBEDDINGS and self._embedding is not None:
            model = self._embedding
            return self._slots[offer.model].run(request, lambda: self._embed(model, request))
        assert self._text is not None
        writer_model = self._text
        return self._slots[offer.model].run(request, lambda: self._write(writer_model, request))

    async def _embed(self, model: EmbeddingModel, request: InferenceRequest) -> Work:
        body = read_embedding_body(request.body, EMBEDDING_INPUTS_MAX)
        if (body.dimensions or EMBEDDING_DIMENSIONS) > EMBEDDING_DIMENSIONS:
            raise bad_request(f"Invalid 'dimensions': this model has {EMBEDDING_DIMENSIONS}, but got {body.dimensions}.")
        rows = await trio.to_thread.run_sync(model.tokens, body.inputs, limiter=self._threads)
        result = np.zeros((len(rows), EMBEDDING_DIMENSIONS), "<f4")
        for places in model.batches(rows):
            batch = [rows[place] for place in places]
            result[places] = await trio.to_thread.run_sync(model.embed, batch, limiter=self._threads)
        if body.dimensions is not None:
            result = result[:, : body.dimensions]
            result = result / np.maximum(np.linalg.norm(result, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        yield TensorsReady((Tensor("embedding", "f4", result.shape, memoryview(np.ascontiguousarray(result).tobytes())),))
        yield Finished((), Usage(prompt_tokens=sum(map(len, rows))))

    async def _write(self, model: TextModel, request: InferenceRequest) -> Work:
        writer = Writer(model, request.feature, read_text_body(request.feature, request.body))
        tokens, reason = 0, ""
        while not reason:
            piece = await trio.to_thread.run_sync(writer.step, limiter=self._threads)
            tokens += piece.tokens
            reason = piece.finish_reason
            if piece.text:
                yield TextDelta(piece.text)
        yield Finished((reason,), Usage(writer.prompt_tokens, tokens))
