"""The two faces of the native client, over any way that leads to the mesh: `AsyncMesh` for trio, `Mesh` for everybody else.

Both have the same names and take the same arguments; a call of the first is awaited. Several calls may be under way at once.

Spec: docs/client.md.
"""

import time
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Protocol

from mesh.local.questions import MODELS, ROUTE, STATUS, Question
from mesh.native.answers import Answer, Gathering, Route, Take, to_route
from mesh.native.errors import RequestError
from mesh.native.requests import DEADLINE_S, embedding_request, tensor_request, text_request
from mesh.native.tensors import Array
from mesh.native.text import AsyncExchange, AsyncText, Exchange, Text
from protocol.errors import ErrorCode
from protocol.inference import REQUEST_ID_BYTES, InferenceRequest

Message = Mapping[str, object]


class AsyncWay(Protocol):
    """A way to the mesh for trio programs."""

    async def begin(self, request: InferenceRequest, *, text: bool) -> AsyncExchange:
        """Send a request; `text` says that its answer comes in many small pieces. Raises MeshError."""

    async def gather(self, request: InferenceRequest, take: Take) -> None:
        """Send a request and hand its events to `take` until that says it was the last. Raises MeshError."""

    async def look(self, question: Question) -> object:
        """Ask a question; what the JSON of its answer holds. Raises MeshError."""


class Way(Protocol):
    """A way to the mesh for plain programs."""

    def begin(self, request: InferenceRequest, *, text: bool) -> Exchange:
        """Send a request; `text` says that its answer comes in many small pieces. Raises MeshError."""

    def gather(self, request: InferenceRequest, take: Take) -> None:
        """Send a request and hand its events to `take` until that says it was the last. Raises MeshError."""

    def look(self, question: Question) -> object:
        """Ask a question; what the JSON of its answer holds. Raises MeshError."""


class AsyncMesh:
    """The mesh, for a trio program."""

    def __init__(self, way: AsyncWay) -> None:
        self._way = way

    async def infer(
        self,
        model: str,
        tensors: Mapping[str, object],
        *,
        body: bytes = b"",
        deadline_s: float = DEADLINE_S,
        memory_bytes: int = 0,
        receipt: bool = False,
    ) -> Answer[Awaitable[Route]]:
        """Ask a model for tensors; cancelling the call cancels the work wherever it is done.

        Args:
            model: its id.
            tensors: the inputs by name: NumPy arrays, or anything on the CPU with `__array_interface__`, `__dlpack__` or a
                buffer, or arrays on a GPU, with `__dlpack__` or `__cuda_array_interface__`. They are sent as they lie; leave
                them alone until the answer is there.
            body: what the engine takes besides, as it defines it.
            deadline_s: how long the answer may take, at most an hour.
            memory_bytes: least memory that the node which answers must have.
            receipt: whether it is to sign what it answers (docs/privacy.md).

        Returns:
            The answer; its tensors view what was received and cannot be written to. Where inputs were on a GPU, outputs
            that came there stay there (`mesh.fabric.gpu.DeviceArray`).

        Raises:
            BadInputError: an input cannot be sent.
            NotConnectedError: the node is not there.
            RequestError: the mesh refuses, or the answer failed; DeadlineError where it was late.
        """
        request = tensor_request(model, tensors, body, deadline_s=deadline_s, memory_bytes=memory_bytes, receipt=receipt)
        return await self._whole(request)

    def generate(
        self,
        model: str,
        messages: Sequence[Message] | None = None,
        *,
        prompt: str | None = None,
        deadline_s: float = DEADLINE_S,
        memory_bytes: int = 0,
        receipt: bool = False,
        **options: object,
    ) -> AsyncText:
        """Ask a model for text, which comes as it is made: `async for piece in mesh.generate(…)`.

        Args:
            model: its id.
            messages: a chat, as OpenAI's API has it; or
            prompt: a text to continue.
            deadline_s: how long the whole answer may take, at most an hour.
            memory_bytes: least memory that the node which answers must have.
            receipt: whether it is to sign what it answers.
            options: fields of OpenAI's API, such as `temperature` and `max_tokens`.

        Raises:
            BadInputError: there is neither a chat nor a prompt, or they are no JSON. What else can go wrong is raised by the
                iteration, as in `infer`.
        """
        request = text_request(
            model, messages, prompt, options, deadline_s=deadline_s, memory_bytes=memory_bytes, receipt=receipt
        )
        return AsyncText(request, partial(self._way.begin, request, text=True), partial(self.route, request.request_id.hex()))

    async def embed(self, model: str, inputs: str | Sequence[str], *, deadline_s: float = DEADLINE_S, **options: object) -> Array:
        """Ask a model for embeddings; returns an array of shape (inputs, dimensions). Raises as `infer`."""
        answer = await self._whole(embedding_request(model, inputs, options, deadline_s=deadline_s))
        return answer.tensor

    async def models(self) -> list[dict[str, object]]:
        """Every model that can be asked for now, with what it can do and who serves it."""
        return _rows(await self._way.look(Question(MODELS)))

    async def status(self) -> dict[str, object]:
        """How the node is doing through which this program asks."""
        return _row(await self._way.look(Question(STATUS)))

    async def route(self, request_id: str) -> Route:
        """Who answered a recent request, and why.

        Raises:
            RequestError: the node does not know it any more.
        """
        return to_route(_report(await self._way.look(_route_question(request_id))))

    async def _whole(self, request: InferenceRequest) -> Answer[Awaitable[Route]]:
        began_s = time.perf_counter()
        gathering = Gathering(request)
        await self._way.gather(request, gathering.take)
        return gathering.answer(time.perf_counter() - began_s, partial(self.route, request.request_id.hex()))


class Mesh:
    """The mesh, for a program without an event loop; may be used from several threads."""

    def __init__(self, way: Way) -> None:
        self._way = way

    def infer(
        self,
        model: str,
        tensors: Mapping[str, object],
        *,
        body: bytes = b"",
        deadline_s: float = DEADLINE_S,
        memory_bytes: int = 0,
        receipt: bool = False,
    ) -> Answer[Route]:
        """Ask a model for tensors; as `AsyncMesh.infer`."""
        request = tensor_request(model, tensors, body, deadline_s=deadline_s, memory_bytes=memory_bytes, receipt=receipt)
        return self._whole(request)

    def generate(
        self,
        model: str,
        messages: Sequence[Message] | None = None,
        *,
        prompt: str | None = None,
        deadline_s: float = DEADLINE_S,
        memory_bytes: int = 0,
        receipt: bool = False,
        **options: object,
    ) -> Text:
        """Ask a model for text, which comes as it is made: `for piece in mesh.generate(…)`; as `AsyncMesh.generate`."""
        request = text_request(
            model, messages, prompt, options, deadline_s=deadline_s, memory_bytes=memory_bytes, receipt=receipt
        )
        return Text(request, partial(self._way.begin, request, text=True), partial(self.route, request.request_id.hex()))

    def embed(self, model: str, inputs: str | Sequence[str], *, deadline_s: float = DEADLINE_S, **options: object) -> Array:
        """Ask a model for embeddings; returns an array of shape (inputs, dimensions). Raises as `infer`."""
        return self._whole(embedding_request(model, inputs, options, deadline_s=deadline_s)).tensor

    def models(self) -> list[dict[str, object]]:
        """Every model that can be asked for now, with what it can do and who serves it."""
        return _rows(self._way.look(Question(MODELS)))

    def status(self) -> dict[str, object]:
        """How the node is doing through which this program asks."""
        return _row(self._way.look(Question(STATUS)))

    def route(self, request_id: str) -> Route:
        """Who answered a recent request, and why; raises RequestError where the node does not know it any more."""
        return to_route(_report(self._way.look(_route_question(request_id))))

    def _whole(self, request: InferenceRequest) -> Answer[Route]:
        began_s = time.perf_counter()
        gathering = Gathering(request)
        self._way.gather(request, gathering.take)
        return gathering.answer(time.perf_counter() - began_s, partial(self.route, request.request_id.hex()))


def _route_question(request_id: str) -> Question:
    try:
        identity = bytes.fromhex(request_id)
    except ValueError:
        identity = b""
    if len(identity) != REQUEST_ID_BYTES:
        raise RequestError(
            ErrorCode.MALFORMED, f"{request_id!r} is no request id: write {2 * REQUEST_ID_BYTES} hexadecimal digits"
        )
    return Question(ROUTE, identity)


def _report(answer: object) -> dict[str, object] | None:
    return None if answer is None else _row(answer)


def _row(answer: object) -> dict[str, object]:
    if not isinstance(answer, dict):
        raise RequestError(ErrorCode.MALFORMED, f"the node answered a question with a {type(answer).__name__}")
    return answer


def _rows(answer: object) -> list[dict[str, object]]:
    if not isinstance(answer, list):
        raise RequestError(ErrorCode.MALFORMED, f"the node answered a question with a {type(answer).__name__}")
    return [_row(item) for item in answer]
