"""What an OpenAI-compatible server sends, turned into outputs: no I/O here.

A chunk of text becomes a `TextDelta`. Whatever is more than text (tool calls, log-probabilities, reasoning) becomes a
`JsonDelta` that carries the choice as it came, without its finish reason, which `Finished` carries. A server is a foreign
program: everything it sends is checked, and rubbish is `ENGINE_FAILED`.

Source: OpenAI API reference, "The chat completion chunk object", "The embedding object"; vLLM, SGLang, llama.cpp and Ollama
servers.
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping

import numpy as np

from mesh.engines.base import EngineError
from protocol.errors import ErrorCode
from protocol.inference import Feature, Finished, JsonDelta, Tensor, TextDelta, Usage

CHOICES_MAX = 128
"""Choices per answer: OpenAI's limit for `n`."""

MESSAGE_CHARACTERS_MAX = 500
"""How much of a server's own error message is passed on, in characters: enough to act on, too little to flood a log."""

RETRY_AFTER_S_MAX = 120.0
"""Longest wait that is passed on from a server, in seconds: the official client honours no more."""

DONE = b"[DONE]"
"""The data of the last event of a stream."""


def engine_failed(message: str) -> EngineError:
    """The error of a server that does not do its part; another node may still answer."""
    return EngineError(ErrorCode.ENGINE_FAILED, message)


def read_object(data: bytes) -> dict[str, object]:
    """A JSON object.

    Raises:
        EngineError: ENGINE_FAILED where it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise engine_failed("the engine sent something that is not JSON") from None
    if not isinstance(value, dict):
        raise engine_failed("the engine sent JSON that is not an object")
    return value


class ChunkReader:
    """Reads the chunks of one answer."""

    def __init__(self, feature: Feature) -> None:
        self._feature = feature
        self._reasons: dict[int, str | None] = {}
        self._usage = Usage()

    def read(self, data: bytes) -> list[TextDelta | JsonDelta]:
        """The outputs in one event's data.

        Raises:
            EngineError: the server reports an error, or sends rubbish.
        """
        chunk = read_object(data)
        if chunk.get("error") is not None:
            raise error_of_chunk(chunk)
        self._usage = read_usage(chunk) or self._usage
        choices = chunk.get("choices")
        if not isinstance(choices, list) or len(choices) > CHOICES_MAX:
            raise engine_failed("the engine sent a chunk without choices")
        deltas = [self._read_choice(choice) for choice in choices]
        return [delta for delta in deltas if delta is not None]

    def finish(self, done: bool) -> Finished:
        """The end of the answer, `done` where the server said so itself.

        Raises:
            EngineError: ENGINE_FAILED where the stream broke off before every choice was finished.
        """
        reasons = [self._reasons.get(index) for index in range(max(self._reasons, default=-1) + 1)]
        if not done and (not reasons or None in reasons):
            raise engine_failed("the engine ended its answer before it was finished")
        return Finished(tuple(reason or "stop" for reason in reasons) or ("stop",), self._usage)

    def _read_choice(self, choice: object) -> TextDelta | JsonDelta | None:
        if not isinstance(choice, dict):
            raise engine_failed("the engine sent a choice that is not an object")
        index, reason = choice.get("index", 0), choice.get("finish_reason")
        if not isinstance(index, int) or not 0 <= index < CHOICES_MAX or not isinstance(reason, str | None):
            raise engine_failed("the engine sent a choice with an index or finish reason of the wrong kind")
        self._reasons[index] = reason or self._reasons.get(index)
        delta = choice.get("delta") if self._feature is Feature.CHAT else {"content": choice.get("text")}
        if not isinstance(delta, dict):
            raise engine_failed("the engine sent a choice without a delta")
        said = {name for name, value in delta.items() if value not in (None, "", [], {}) and name != "role"}
        content = delta.get("content")
        if not said and choice.get("logprobs") is None:
            return None
        if said == {"content"} and isinstance(content, str) and choice.get("logprobs") is None:
            return TextDelta(content, index)
        return JsonDelta(json.dumps({**choice, "finish_reason": None}, separators=(",", ":")).encode())


def read_usage(answer: Mapping[str, object]) -> Usage | None:
    """Token counts, where the server gives them."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    return Usage(*(count if isinstance(count, int) and 0 <= count < 2**63 else 0 for count in counts))


def read_embeddings(answer: Mapping[str, object], inputs: int | None) -> Tensor:
    """The embeddings in order of their index, as one tensor of dtype f4 and shape (inputs, dimensions).

    Args:
        answer: the JSON object of the answer.
        inputs: how many are expected; None where that is not known.

    Raises:
        EngineError: ENGINE_FAILED where some are missing, of different lengths or not numbers.
    """
    data = answer.get("data")
    if not isinstance(data, list) or not data or (inputs is not None and len(data) != inputs):
        raise engine_failed("the engine did not send one embedding per input")
    rows: list[np.ndarray | None] = [None] * len(data)
    for place, item in enumerate(data):
        index = item.get("index", place) if isinstance(item, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(rows) or rows[index] is not None:
            raise engine_failed("the engine sent embeddings with wrong indices")
        rows[index] = _vector(item.get("embedding"))
    vectors = [row for row in rows if row is not None]
    if len({vector.size for vector in vectors}) != 1 or vectors[0].size == 0:
        raise engine_failed("the engine sent embeddings of different lengths")
    matrix = np.stack(vectors)
    return Tensor("embedding", "f4", matrix.shape, memoryview(matrix.tobytes()))


def _vector(value: object) -> np.ndarray:
    try:
        if isinstance(value, str):
            vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4")
        else:
            vector = np.asarray(value, "<f4")
    except (ValueError, TypeError, OverflowError, binascii.Error):
        raise engine_failed("the engine sent an embedding that is not an array of numbers") from None
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise engine_failed("the engine sent an embedding that is not an array of numbers")
    return vector


def error_of_status(status: int, headers: Mapping[str, str], body: bytes) -> EngineError:
    """What an HTTP status means for the request: ours to blame, busy, or broken."""
    message = _message_of(body) or f"the engine answered with status {status}"
    match status:
        case 404 | 405 | 501:
            return EngineError(ErrorCode.MODEL_NOT_FOUND, message)
        case 400 | 413 | 422:
            return EngineError(ErrorCode.BAD_REQUEST, message)
        case 429 | 503:
            return EngineError(ErrorCode.OVERLOADED, message, retry_after_s(headers))
        case 401 | 403:
            return engine_failed(f"the engine refuses the API key (status {status})")
        case _ if 300 <= status < 400:
            return engine_failed(f"the engine redirects (status {status}); give its final URL")
        case _:
            return engine_failed(message)


def error_of_chunk(chunk: Mapping[str, object]) -> EngineError:
    """An error that the server reports inside its stream."""
    error = chunk.get("error")
    status = error.get("code") if isinstance(error, dict) else None
    known = status if isinstance(status, int) and 400 <= status < 600 else 500
    return error_of_status(known, {}, json.dumps(chunk).encode())


def retry_after_s(headers: Mapping[str, str]) -> float:
    """The wait a server advises, in seconds; 0 where it gives none. Dates are not read: clocks differ."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds > 0:
            return min(seconds, RETRY_AFTER_S_MAX)
    return 0.0


def _message_of(body: bytes) -> str:
    """The sentence in an error body of OpenAI's, FastAPI's or Ollama's shape; empty where there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    found = value
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    text = found if isinstance(found, str) else ""
    return text[:MESSAGE_CHARACTERS_MAX]
