"""The echo engine: answers with what it was asked, at a chosen pace.

Chat and completions give the prompt back word by word, with `word_interval_s` between the words; a tensor request gives its
tensors back. There is no model behind it, so whatever time an answer takes beyond the pace is the mesh's own: benchmarks and
test networks measure with it, and an operator can try a mesh before any GPU is attached. The model's id is "echo".
"""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import trio

from mesh.engines.base import Slots, SlotsConfig, Work, refuse
from mesh.engines.body import read_text_body
from protocol.errors import ErrorCode
from protocol.inference import Feature, Finished, InferenceRequest, Reply, TensorsReady, TextDelta, Usage
from protocol.load import ModelLoad
from protocol.records import ModelOffer

ECHO_MODEL = "echo"

AT_ONCE_BYTES_MAX = 1 << 20
"""Tensors given back at once, in bytes: to copy so many, which may have to be done, costs less than a task."""
_FEATURES = frozenset({Feature.CHAT, Feature.COMPLETIONS, Feature.TENSORS})
_WORD = re.compile(r"\s*\S+|\s+")


@dataclass(frozen=True, slots=True)
class EchoConfig:
    """How the echo behaves.

    Attributes:
        word_interval_s: pause before each word, in seconds.
        slots: how much at once.
    """

    word_interval_s: float = 0.0
    slots: SlotsConfig = field(default_factory=lambda: SlotsConfig(slots_max=64, waiting_max=256))


class EchoEngine:
    """An engine without a model."""

    kind = "echo"
    takes_device = True

    def __init__(self, config: EchoConfig | None = None) -> None:
        self._config = config or EchoConfig()
        self._slots = Slots(ECHO_MODEL, self._config.slots)

    async def start(self) -> None:
        """Nothing has to be loaded."""

    async def watch(self) -> None:
        """Nothing outside changes."""

    async def aclose(self) -> None:
        """Nothing is held."""

    def offers(self) -> tuple[ModelOffer, ...]:
        """The one model "echo"."""
        return (ModelOffer(ECHO_MODEL, _FEATURES, engine=self.kind),)

    def load(self) -> tuple[ModelLoad, ...]:
        """How busy it is."""
        return (self._slots.load(),)

    def run(self, request: InferenceRequest) -> AbstractAsyncContextManager[AsyncIterator[Reply]]:
        """Answer with the request's own words or tensors."""
        if request.model != ECHO_MODEL:
            return refuse(ErrorCode.MODEL_NOT_FOUND, f"The model '{request.model}' does not exist.")
        if request.feature not in _FEATURES:
            return refuse(ErrorCode.FEATURE_NOT_SUPPORTED, f"The model '{ECHO_MODEL}' does not support {request.feature}.")
        return self._slots.run(request, lambda: self._work(request))

    def answer_at_once(self, request: InferenceRequest) -> Iterator[Reply] | None:
        """Tensors that are small; words have their pace."""
        if request.feature is not Feature.TENSORS or request.model != ECHO_MODEL:
            return None
        if sum(tensor.size_bytes for tensor in request.tensors) > AT_ONCE_BYTES_MAX:
            return None
        return self._slots.answer_at_once(lambda: (TensorsReady(tuple(request.tensors)), Finished()))

    async def _work(self, request: InferenceRequest) -> Work:
        if request.feature is Feature.TENSORS:
            yield TensorsReady(tuple(request.tensors))
            yield Finished()
            return
        body = read_text_body(request.feature, request.body)
        words = _WORD.findall(body.prompt)
        kept = words if body.tokens_max is None else words[: body.tokens_max]
        for word in kept:
            await trio.sleep(self._config.word_interval_s)
            yield TextDelta(word)
        reason = "stop" if len(kept) == len(words) else "length"
        yield Finished((reason,), Usage(len(words), len(kept)))
