"""Virtual engines: slots, a bounded queue in order of arrival, and speeds drawn from a stream of luck of their own.

An engine answers as one behind `Slots` of the shell does: `Accepted` at once or a refusal, then the wait for a slot, the first
output after the time to first token, further outputs at so many tokens a second, and `Finished` with what was measured. Its
model says numbers: token n of an answer is the text "n ", so that whoever reads an answer sees what is missing or doubled. How
many tokens an answer has is told in the request's body, as if the question decided it; the engine hears of it only as it goes.

Source: mesh/engines/base.py, whose `Slots` this stands for; times to first token of real servers are skewed to the right, hence
the log-normal draws (Patel et al., "Splitwise", ISCA 2024, figures 3 and 4).
"""

import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from protocol.errors import ErrorCode
from protocol.inference import (
    Accepted,
    Failed,
    Feature,
    Finished,
    InferenceRequest,
    Reply,
    Tensor,
    TensorsReady,
    TextDelta,
    Timing,
    Usage,
)
from protocol.load import ModelLoad
from protocol.records import ModelOffer
from sim.process import Process
from sim.world import World

RATE_WEIGHT = 0.2
"""Weight of the newest sample in the means of service time and speed, unitless: as in the shell."""

RETRY_AFTER_S = (0.1, 30.0)
"""Least and longest advised wait after a refusal, in seconds: as in the shell."""

DELTA_S = 0.05
"""Seconds of generated tokens in one output: a reader sees no difference, and an answer of 500 tokens costs no 500 events."""

TOKENS_MAX = 100_000
"""Most tokens of one answer, a count: no model writes more in one go."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One model on one node.

    Attributes:
        model: its id.
        slots: answers in the making at once.
        waiting_max: requests that may wait for a slot; the next one is refused.
        first_token_s: median time from the slot to the first token, in seconds.
        tokens_per_s: median speed after it.
        spread: standard deviation of the logarithm of both: 0.1 is about 10 % either way.
    """

    model: str
    slots: int = 2
    waiting_max: int = 64
    first_token_s: float = 0.1
    tokens_per_s: float = 50.0
    spread: float = 0.1

    @property
    def offer(self) -> ModelOffer:
        """What the node's card says of it."""
        return ModelOffer(self.model, frozenset({Feature.CHAT}), engine="virtual")


@dataclass(eq=False, slots=True)
class Job:
    """One request at an engine; `reply` takes its events until it is over."""

    request: InferenceRequest
    reply: Callable[[Reply], None]
    came_at: float
    began_at: float | None = None
    tokens: int = 0
    said: int = 0
    over: bool = False


@dataclass
class VirtualEngine:
    """See the module's docstring; `changed` is called when the load has, `began` when a request gets its slot."""

    world: World
    process: Process
    config: EngineConfig
    changed: Callable[[], None]
    began: Callable[[InferenceRequest], None]
    running: int = 0
    waiting: deque[Job] = field(default_factory=deque[Job])
    service_s: float = 0.0
    tokens_per_s: float = 0.0

    def __post_init__(self) -> None:
        self._luck = luck_of(self.world, self.process, self.config)

    @property
    def queue_s(self) -> float:
        """Estimated wait of a request that came now, in seconds."""
        ahead = self.running + len(self.waiting) - self.config.slots
        return max(ahead + 1, 0) * self.service_s / self.config.slots

    def load(self) -> ModelLoad:
        """How busy it is."""
        config = self.config
        return ModelLoad(
            config.model, self.running, len(self.waiting), config.slots, self.queue_s, self.service_s, self.tokens_per_s
        )

    def run(self, request: InferenceRequest, reply: Callable[[Reply], None]) -> Callable[[], None]:
        """Answers a request.

        Args:
            request: what to answer; its deadline counts from now.
            reply: takes the events of the answer, later.

        Returns:
            What stops the work and frees the slot; it does nothing once the answer has ended.
        """
        config = self.config
        job = Job(request, reply, self.world.now, tokens=tokens_of(request))
        if self.running + len(self.waiting) >= config.slots + config.waiting_max:
            advised_s = min(max(self.queue_s, RETRY_AFTER_S[0]), RETRY_AFTER_S[1])
            message = f"{config.model}: every slot and every place in the queue is taken"
            self._after(0.0, job, lambda: self._end(job, Failed(ErrorCode.OVERLOADED, message, advised_s)))
            return lambda: self._stop(job)
        accepted = Accepted(self.queue_s)
        self._after(0.0, job, lambda: job.reply(accepted))
        late = Failed(ErrorCode.DEADLINE_EXCEEDED, f"{config.model}: the answer was not complete in time")
        self._after(request.deadline_s, job, lambda: self._end(job, late))
        self.waiting.append(job)
        self._fill()
        return lambda: self._stop(job)

    def _after(self, delay_s: float, job: Job, action: Callable[[], None]) -> None:
        """Does something later, unless the job is over by then."""
        self.world.later(self.process, delay_s, lambda: None if job.over else action())

    def _fill(self) -> None:
        """Gives free slots to those that wait longest."""
        while self.waiting and self.running < self.config.slots:
            job = self.waiting.popleft()
            self.running += 1
            job.began_at = self.world.now
            self.began(job.request)
            first_s = self._drawn(self.config.first_token_s)
            rate = self._drawn(self.config.tokens_per_s)
            self._after(first_s, job, lambda job=job, rate=rate: self._say(job, 1, rate))  # type: ignore[misc]
        self.changed()

    def _say(self, job: Job, count: int, rate: float) -> None:
        """Says the next tokens, and sees to the ones after them or to the end."""
        if not job.said and job.request.tensors:
            job.reply(TensorsReady(tuple(turned(tensor) for tensor in job.request.tensors)))
        text = "".join(f"{number} " for number in range(job.said, job.said + count))
        job.said += count
        job.reply(TextDelta(text))
        if job.over:
            return
        if job.said < job.tokens:
            more = min(job.tokens - job.said, max(1, int(DELTA_S * rate)))
            self._after(more / rate, job, lambda: self._say(job, more, rate))
            return
        assert job.began_at is not None
        service_s = self.world.now - job.began_at
        self._learn(service_s, job.said)
        self._end(job, Finished(("stop",), Usage(1, job.said), Timing(job.began_at - job.came_at, service_s)))

    def _end(self, job: Job, end: Finished | Failed) -> None:
        self._stop(job)
        job.reply(end)

    def _stop(self, job: Job) -> None:
        """Takes a job out, whether it waits or runs."""
        if job.over:
            return
        job.over = True
        if job.began_at is not None:
            self.running -= 1
        elif job in self.waiting:
            self.waiting.remove(job)
        self._fill()

    def _learn(self, service_s: float, tokens: int) -> None:
        self.service_s = _mean(self.service_s, service_s)
        if service_s > 0.0:
            self.tokens_per_s = _mean(self.tokens_per_s, tokens / service_s)

    def _drawn(self, median: float) -> float:
        return median * math.exp(self._luck.gauss(0.0, self.config.spread)) if self.config.spread else median


def luck_of(world: World, process: Process, config: EngineConfig) -> Random:
    """The stream of luck of one engine; it goes on where it was when the process is started again."""
    return world.streams.of(f"engine {process.index} {config.model}")


def body_of(tokens: int) -> bytes:
    """The body of a request whose answer has so many tokens."""
    return json.dumps({"tokens": tokens}).encode()


def tokens_of(request: InferenceRequest) -> int:
    """How many tokens the answer to a request has: at least one, and no more than the caller wants."""
    tokens = int(json.loads(bytes(request.body))["tokens"])
    wanted = request.output_tokens or TOKENS_MAX
    return max(1, min(tokens, wanted, TOKENS_MAX))


def numbers_in(text: str) -> list[int]:
    """The numbers of the tokens in a piece of text that an engine has said."""
    return [int(word) for word in text.split()]


def turned(tensor: Tensor) -> Tensor:
    """What a tensor becomes in an answer: the same bytes, the last one first."""
    return Tensor(tensor.name, tensor.dtype, tensor.shape, memoryview(bytes(tensor.data)[::-1]))


def _mean(mean: float, sample: float) -> float:
    """The exponentially weighted mean after one more sample; zero means that there was none before."""
    return sample if mean == 0.0 else mean + RATE_WEIGHT * (sample - mean)
