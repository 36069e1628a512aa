"""What an inference request and its answer are made of, whatever the wire or the engine.

A request names a model and a feature and carries an opaque `body` (for the OpenAI features the JSON object as the client sent
it, without fields that concern only the gateway) and tensors. The answer is a sequence of events that ends with exactly one
`Finished` or `Failed`. Nothing here knows how they are encoded: that is `protocol.wire`.

Spec: docs/spec/06-inference.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import Protocol

from protocol.errors import RETRYABLE, ErrorCode, RemoteProtocolError

REQUEST_ID_BYTES = 16
"""Length of a request id in bytes: 128 random bits, as a UUID, so that ids never meet by chance."""


class Feature(StrEnum):
    """What a model can be asked for."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    TENSORS = "tensors"


class OnDevice(Protocol):
    """Where a tensor lies that is in the memory of a device; whoever has this keeps the memory."""

    def to_host(self) -> memoryview:
        """Copy it to the host.

        Raises:
            OSError: the device fails.
        """
        ...


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named array; `data` is a contiguous little-endian buffer that is never copied by the core.

    What lies on a device has no `data`: it takes a fabric that reaches the device, or it is brought to the host (`on_host`)
    before anybody reads it. No message holds it as it is.

    Attributes:
        name: the input or output name; empty where there is only one.
        dtype: numpy's short name without byte order: "f4", "f2", "i8", "i4", "u1" and so on.
        shape: the dimensions, outermost first; empty for a scalar.
        data: the bytes, `prod(shape) * itemsize` of them; none where it lies on a device.
        device: and where; None for one on the host.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview
    device: OnDevice | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements, wherever they lie."""
        return self.data.nbytes if self.device is None else prod(self.shape) * int(self.dtype[1:])


def on_host(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors that all lie on the host: those that lie on a device are copied.

    Raises:
        OSError: the device fails.
    """
    return tuple(
        tensor if tensor.device is None else Tensor(tensor.name, tensor.dtype, tensor.shape, tensor.device.to_host())
        for tensor in tensors
    )


def are_on_host(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors lie on the host."""
    return all(tensor.device is None for tensor in tensors)


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """One request as it travels.

    Attributes:
        request_id: `REQUEST_ID_BYTES` bytes chosen by the first node; the same on every hop and every attempt.
        feature: what is asked for.
        model: the model's id.
        body: for chat, completions and embeddings the OpenAI request body as a JSON object in UTF-8; otherwise free.
        tensors: inputs of a tensor request, else empty.
        deadline_s: seconds left when the request was handed over; relative, so that clocks need not agree.
        hops_left: how many further forwards are allowed; 0 means "answer it yourself".
        stream: whether the caller wants the text as it comes.
        memory_bytes: least accelerator or host memory that the executing node must have, 0 for any.
        output_tokens: most tokens wanted of one output, 0 when unknown.
        receipt: whether the executing node is to sign a receipt, which ends the answer.
        takes_device: whether tensors of the answer may lie on a device of this host; told to nobody.
    """

    request_id: bytes
    feature: Feature
    model: str
    body: bytes | memoryview
    tensors: Sequence[Tensor] = ()
    deadline_s: float = 60.0
    hops_left: int = 1
    stream: bool = False
    memory_bytes: int = 0
    output_tokens: int = 0
    receipt: bool = False
    takes_device: bool = False

    def within(self, deadline_s: float, hops_left: int) -> "InferenceRequest":
        """The request as it is handed on: what `dataclasses.replace` gives, in a third of the time."""
        return InferenceRequest(
            self.request_id, self.feature, self.model, self.body, self.tensors, deadline_s, hops_left, self.stream,
            self.memory_bytes, self.output_tokens, self.receipt, self.takes_device,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the engine reports them; zero where it reports none."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """What the executing node measured, in seconds: waiting for a slot, then from the slot to the last output."""

    queue_s: float = 0.0
    service_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The executing node has admitted the request; `queue_s` is its own estimate of the wait."""

    queue_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of generated text for choice `index`."""

    text: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class JsonDelta:
    """A piece of an answer that is more than text (tool calls, log-probabilities): one `choices[]` element of an OpenAI chunk."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class TensorsReady:
    """Output arrays; for embeddings one tensor "embedding" of dtype f4 and shape (inputs, dimensions)."""

    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete. `finish_reasons` holds one OpenAI finish reason per choice, empty for tensors.

    `receipt` is what the executing node has signed of the answer (`protocol.receipts`), empty where it was not asked to.
    """

    finish_reasons: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    timing: Timing = field(default_factory=Timing)
    receipt: bytes = b""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer will not be completed. `retry_after_s` is 0 when the node gives no advice."""

    code: ErrorCode
    message: str
    retry_after_s: float = 0.0

    @property
    def retryable(self) -> bool:
        """Whether another candidate may be tried, provided that nothing was delivered yet."""
        return self.code in RETRYABLE


Output = TextDelta | JsonDelta | TensorsReady
"""Something that reaches the caller."""

Reply = Accepted | TextDelta | JsonDelta | TensorsReady | Finished | Failed
"""One event of an answer, in the order: at most one Accepted, any number of outputs, exactly one Finished or Failed."""


class AnswerOrder:
    """Holds one answer to its order: at most one `Accepted`, and that first; outputs; one `Finished` or `Failed`, last."""

    __slots__ = ("_ended", "_started")

    def __init__(self) -> None:
        self._started = False
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the answer has had its end."""
        return self._ended

    def take(self, reply: Reply) -> None:
        """Note the next event.

        Raises:
            RemoteProtocolError: MALFORMED, when it may not stand here; the order is then as it was before.
        """
        if self._ended:
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"{type(reply).__name__} came after the end of the answer")
        if isinstance(reply, Accepted) and self._started:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "Accepted came after the answer had begun")
        self._started = True
        self._ended = isinstance(reply, Finished | Failed)
