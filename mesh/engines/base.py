"""What an engine is, and the slots that bound how much it does at once.

An engine answers inference requests with a stream of replies. Each engine writes only the work itself, an async generator of
outputs that ends with `Finished`, or that raises `EngineError`. `Slots` does the rest for all of them: it admits a request or
refuses it, keeps a bounded queue in order of arrival, measures waiting and service, holds the deadline, and sees to it that an
answer has exactly one end. Leaving the context early closes the generator, which is how cancelling reaches the engine.

Spec: docs/spec/06-inference.md, sections "Answer" and "Refusal".
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import trio

from protocol.errors import ErrorCode
from protocol.inference import Accepted, Failed, Finished, InferenceRequest, JsonDelta, Reply, TensorsReady, TextDelta, Timing
from protocol.load import ModelLoad
from protocol.records import ModelOffer

Work = AsyncGenerator[TextDelta | JsonDelta | TensorsReady | Finished, None]
"""One answer in the making: outputs, then `Finished`; `EngineError` is raised for anything else."""

RATE_WEIGHT = 0.2
"""Weight of the newest sample in the means of service time and speed: half of a mean comes from the last three answers."""

RETRY_AFTER_S_MIN = 0.1
"""Least advised wait after a refusal, in seconds: a client that returns sooner finds the same queue."""

RETRY_AFTER_S_MAX = 30.0
"""Longest advised wait after a refusal, in seconds: past that the client does better to ask elsewhere."""

UNFINISHED = "the engine ended the answer without finishing it"
"""How an answer fails whose outputs just stop."""


class Engine(Protocol):
    """Something that answers requests for the models it offers."""

    kind: str

    async def start(self) -> None:
        """Load what is needed; may take seconds; a second call does nothing."""

    async def watch(self) -> None:
        """Keep offers and load up to date until cancelled; returns at once where nothing outside changes them."""

    def offers(self) -> tuple[ModelOffer, ...]:
        """The models that can be asked for now."""

    def load(self) -> tuple[ModelLoad, ...]:
        """How busy each offered model is."""

    def run(self, request: InferenceRequest) -> AbstractAsyncContextManager[AsyncIterator[Reply]]:
        """Answer one request: at most one Accepted, outputs, then exactly one Finished or Failed.

        Leaving the context before the end stops the work and frees the slot.
        """

    async def aclose(self) -> None:
        """Free everything; a second call does nothing."""


@runtime_checkable
class AtOnce(Protocol):
    """An engine that has some answers without waiting for anything, and is spared the tasks that waiting needs."""

    def answer_at_once(self, request: InferenceRequest) -> Iterator[Reply] | None:
        """The whole answer as `run` would give it, or None where it takes waiting or more than a millisecond: then it is run."""


@runtime_checkable
class TakesDevice(Protocol):
    """An engine that may take tensors where they lie on a device.

    Where `takes_device` is true, tensors of a request may have a `device`: a `mesh.fabric.gpu.DeviceArray`, which any library
    takes by DLPack or `__cuda_array_interface__`. Others lie on the host as ever, so it is ready for both. Whatever an engine
    answers may lie on a device (`mesh.fabric.gpu.device_tensor`): who cannot take it there gets a copy. What an engine answers at
    once (`AtOnce`) has been computed.
    """

    takes_device: bool


class EngineError(Exception):
    """Why an answer fails; it becomes the answer's `Failed`."""

    def __init__(self, code: ErrorCode, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class EmbeddedEngineUnavailableError(Exception):
    """The embedded engine cannot be had on this installation; the message says what to install."""


@dataclass(frozen=True, slots=True)
class SlotsConfig:
    """How much at once.

    Attributes:
        slots_max: answers in the making at the same time.
        waiting_max: requests that may wait for a slot; the next one is refused.
    """

    slots_max: int = 2
    waiting_max: int = 64


class Slots:
    """Bounded concurrency with a bounded queue, and the measurements of what passes through."""

    def __init__(self, model: str, config: SlotsConfig) -> None:
        self._model = model
        self._config = config
        self._semaphore = trio.Semaphore(config.slots_max)
        self._running = 0
        self._waiting = 0
        self._service_s = 0.0
        self._tokens_per_s = 0.0

    @property
    def queue_s(self) -> float:
        """Estimated wait of a request that came now, in seconds: the requests ahead of it, shared among the slots."""
        ahead = self._running + self._waiting - self._config.slots_max
        return max(ahead + 1, 0) * self._service_s / self._config.slots_max

    def load(self) -> ModelLoad:
        """The measurements, as the beat carries them."""
        return ModelLoad(
            model=self._model,
            running=self._running,
            waiting=self._waiting,
            slots=self._config.slots_max,
            queue_s=self.queue_s,
            service_s=self._service_s,
            tokens_per_s=self._tokens_per_s,
        )

    @asynccontextmanager
    async def run(self, request: InferenceRequest, work: Callable[[], Work]) -> AsyncIterator[AsyncIterator[Reply]]:
        """Answer `request` by `work` as soon as a slot is free; the answer is what `Engine.run` promises."""
        async with aclosing(self._replies(request, work)) as replies:
            yield replies

    def answer_at_once(
        self, work: Callable[[], Sequence[TextDelta | JsonDelta | TensorsReady | Finished]]
    ) -> Iterator[Reply] | None:
        """What `run` would answer by `work`, which waits for nothing and ends with `Finished`; None while no slot is free."""
        return self._replies_at_once(work) if self._semaphore.value and not self._waiting else None

    def _replies_at_once(self, work: Callable[[], Sequence[TextDelta | JsonDelta | TensorsReady | Finished]]) -> Iterator[Reply]:
        yield Accepted(self.queue_s)
        began_s = trio.current_time()
        try:
            outputs = work()
        except EngineError as error:
            yield Failed(error.code, error.message, error.retry_after_s)
            return
        for output in outputs:
            if isinstance(output, Finished):
                timing = Timing(0.0, trio.current_time() - began_s)
                self._learn(timing.service_s, output.usage.completion_tokens)
                yield Finished(output.finish_reasons, output.usage, timing, output.receipt)
                return
            yield output
        yield Failed(ErrorCode.ENGINE_FAILED, f"{self._model}: {UNFINISHED}")

    async def _replies(self, request: InferenceRequest, work: Callable[[], Work]) -> AsyncGenerator[Reply, None]:
        came_s = trio.current_time()
        deadline_s = came_s + request.deadline_s
        if self._running + self._waiting >= self._config.slots_max + self._config.waiting_max:
            retry_after_s = min(max(self.queue_s, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)
            yield Failed(ErrorCode.OVERLOADED, f"{self._model}: every slot and every place in the queue is taken", retry_after_s)
            return
        accepted = Accepted(self.queue_s)
        self._waiting += 1
        admitted = False
        try:
            yield accepted
            with trio.move_on_at(deadline_s):
                try:
                    self._semaphore.acquire_nowait()
                except trio.WouldBlock:
                    await self._semaphore.acquire()
                admitted = True
        finally:
            self._waiting -= 1
        if not admitted:
            yield Failed(ErrorCode.DEADLINE_EXCEEDED, f"{self._model}: no slot became free within {request.deadline_s:.1f} s")
            return
        self._running += 1
        try:
            async with aclosing(self._serve(work, trio.current_time() - came_s, deadline_s)) as replies:
                async for reply in replies:
                    yield reply
        finally:
            self._running -= 1
            self._semaphore.release()

    async def _serve(self, work: Callable[[], Work], queue_s: float, deadline_s: float) -> AsyncGenerator[Reply, None]:
        began_s = trio.current_time()
        async with aclosing(work()) as outputs:
            while True:
                output: Reply = Failed(ErrorCode.DEADLINE_EXCEEDED, f"{self._model}: the answer was not complete in time")
                try:
                    with trio.move_on_at(deadline_s):
                        output = await anext(outputs)
                except EngineError as error:
                    output = Failed(error.code, error.message, error.retry_after_s)
                except StopAsyncIteration:
                    output = Failed(ErrorCode.ENGINE_FAILED, f"{self._model}: {UNFINISHED}")
                if isinstance(output, Finished):
                    timing = Timing(queue_s, trio.current_time() - began_s)
                    self._learn(timing.service_s, output.usage.completion_tokens)
                    output = replace(output, timing=timing)
                yield output
                if isinstance(output, Finished | Failed):
                    return

    def _learn(self, service_s: float, tokens: int) -> None:
        self._service_s = _mean(self._service_s, service_s)
        if tokens > 0 and service_s > 0:
            self._tokens_per_s = _mean(self._tokens_per_s, tokens / service_s)


def _mean(mean: float, sample: float) -> float:
    """The exponentially weighted mean after one more sample; zero means that there was none before."""
    return sample if mean == 0 else mean + RATE_WEIGHT * (sample - mean)


@asynccontextmanager
async def refuse(code: ErrorCode, message: str) -> AsyncIterator[AsyncIterator[Reply]]:
    """An answer that is a refusal and nothing else."""

    async def replies() -> AsyncGenerator[Reply, None]:
        """The refusal."""
        yield Failed(code, message)

    async with aclosing(replies()) as refusal:
        yield refusal
