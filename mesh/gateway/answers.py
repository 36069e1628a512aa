"""Turns the events of an answer into the JSON that OpenAI's clients read: whole bodies, or the chunks of a stream.

`TextStream` renders each event at once; `WholeText` collects the same events into one body; `render_embeddings` reads the one
tensor of an embeddings answer. What comes from a peer is checked before it is rendered: an index outside the choices asked for,
a payload that is not JSON, a tensor whose shape does not fit its bytes, each ends the answer as the engine's fault.

Source: the OpenAI API reference, "The chat completion chunk object", "The completion object", "Create embeddings".
Spec: docs/gateway.md, section "Answers".
"""

import base64
import json
from dataclasses import dataclass, field

import numpy as np

from mesh.gateway.failures import ApiError, engine_fault
from mesh.gateway.sanitise import Call
from protocol.inference import Feature, Finished, JsonDelta, TensorsReady, TextDelta, Usage

DONE = b"data: [DONE]\n\n"
"""The end of every stream that was completed."""

Json = dict[str, object]


EVENT_COST_BYTES = 64
"""What holding one event costs besides its text, in bytes: an empty string in a list, so that empty events are not free."""


def encode(payload: object) -> bytes:
    """JSON on one line.

    Raises:
        ApiError: it holds what JSON cannot say, which only an engine can have put there.
    """
    try:
        return json.dumps(payload, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise engine_fault("The engine's answer cannot be written as JSON.") from None


def sse(payload: object) -> bytes:
    """One server-sent event; nothing in its JSON can end it early."""
    return b"data: " + encode(payload) + b"\n\n"


def usage_json(usage: Usage, feature: Feature) -> Json:
    """Token counts; embeddings have no completion."""
    counts: Json = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens + usage.completion_tokens}
    return counts if feature is Feature.EMBEDDINGS else {**counts, "completion_tokens": usage.completion_tokens}


@dataclass(frozen=True, slots=True)
class Frame:
    """What every body and chunk of one answer has in common."""

    call: Call
    request_id: str
    created_s: int

    def body(self, object_name: str) -> Json:
        """The fields round the choices."""
        prefix = "chatcmpl" if self.call.feature is Feature.CHAT else "cmpl"
        return {
            "id": f"{prefix}-{self.request_id}",
            "object": object_name,
            "created": self.created_s,
            "model": self.call.model,
        }


def read_choice(event: TextDelta | JsonDelta, call: Call) -> Json:
    """One element of a chunk's `choices`, with a valid index.

    Raises:
        ApiError: the engine's answer is not one.
    """
    if isinstance(event, TextDelta):
        choice: Json = {"index": event.index, "finish_reason": None}
        if call.feature is Feature.CHAT:
            choice["delta"] = {"content": event.text}
        else:
            choice |= {"text": event.text, "logprobs": None}
    else:
        choice = _parse_choice(event.payload, call.feature)
    index = choice["index"]
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < call.choices:
        raise engine_fault(f"The engine answered for a choice that was not asked for ({index!r}).")
    return choice


def _parse_choice(payload: bytes, feature: Feature) -> Json:
    try:
        choice: object = json.loads(payload)
    except (ValueError, RecursionError):
        raise engine_fault("The engine's answer is not JSON.") from None
    if not isinstance(choice, dict):
        raise engine_fault("The engine's answer is not a JSON object.")
    choice.setdefault("index", 0)
    choice.setdefault("finish_reason", None)
    name, kind = ("delta", dict) if feature is Feature.CHAT else ("text", str)
    if not isinstance(choice.setdefault(name, kind()), kind):
        raise engine_fault(f"The engine's answer has a '{name}' of the wrong type.")
    if not isinstance(choice["finish_reason"], str | None):
        raise engine_fault("The engine's answer has a 'finish_reason' of the wrong type.")
    return choice


class TextStream:
    """Renders chat and completion events as server-sent events.

    The first chunk of each chat choice carries the role; the last chunk of each choice carries the finish reason; where the
    client asked for it, a chunk without choices carries the token counts.
    """

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._call = frame.call
        self._started: set[int] = set()
        self._ended: set[int] = set()

    def add(self, event: TextDelta | JsonDelta) -> bytes:
        """The chunks for one event."""
        choice = read_choice(event, self._call)
        index, delta = choice["index"], choice.get("delta")
        assert isinstance(index, int)
        chunks = b""
        if index not in self._started:
            self._started.add(index)
            if isinstance(delta, dict) and "role" not in delta:
                chunks = self._opening(index)
        if choice["finish_reason"] is not None:
            self._ended.add(index)
        return chunks + self._chunk([choice])

    def finish(self, finished: Finished) -> bytes:
        """The chunks after the last output."""
        chunks = b""
        reasons = finished.finish_reasons[: self._call.choices]
        for index in sorted(self._started | set(range(max(1, len(reasons))))):
            if index in self._ended:
                continue
            if index not in self._started and self._call.feature is Feature.CHAT:
                chunks += self._opening(index)
            choice: Json = {"index": index, "finish_reason": reasons[index] if index < len(reasons) else "stop"}
            if self._call.feature is Feature.CHAT:
                choice["delta"] = {}
            else:
                choice |= {"text": "", "logprobs": None}
            chunks += self._chunk([choice])
        if self._call.include_usage:
            chunks += self._chunk([], usage_json(finished.usage, self._call.feature))
        return chunks + DONE

    def _opening(self, index: int) -> bytes:
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def _chunk(self, choices: list[Json], usage: Json | None = None) -> bytes:
        chunk = self._frame.body("chat.completion.chunk" if self._call.feature is Feature.CHAT else "text_completion")
        chunk["choices"] = choices
        if self._call.include_usage:
            chunk["usage"] = usage
        return sse(chunk)


@dataclass(slots=True)
class _ToolCall:
    """One tool call as far as it has come."""

    fields: Json = field(default_factory=lambda: {"id": None, "type": "function"})
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def whole(self) -> Json:
        """The tool call."""
        return {**self.fields, "function": {"name": self.name, "arguments": "".join(self.arguments)}}


@dataclass(slots=True)
class _Choice:
    """One choice as far as it has come."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    tool_calls: dict[int, _ToolCall] = field(default_factory=dict)
    others: Json = field(default_factory=dict)
    logprobs: Json = field(default_factory=dict)
    finish_reason: str | None = None

    def text(self, name: str) -> str | None:
        """One text field, or None where no piece of it came."""
        return "".join(self.texts[name]) if name in self.texts else None


class WholeText:
    """Collects chat and completion events into one body."""

    def __init__(self, frame: Frame, answer_bytes_max: int) -> None:
        self._frame = frame
        self._call = frame.call
        self._choices: dict[int, _Choice] = {}
        self._left_bytes = answer_bytes_max

    def add(self, event: TextDelta | JsonDelta) -> None:
        """Take in one event."""
        size_bytes = len(event.text) if isinstance(event, TextDelta) else len(event.payload)
        self._left_bytes -= size_bytes + EVENT_COST_BYTES
        if self._left_bytes < 0:
            raise engine_fault("The engine's answer is longer than this gateway holds; ask for a stream.")
        read = read_choice(event, self._call)
        index, finish_reason, logprobs = read["index"], read["finish_reason"], read.get("logprobs")
        assert isinstance(index, int)
        choice = self._choices.setdefault(index, _Choice())
        if isinstance(finish_reason, str):
            choice.finish_reason = finish_reason
        if isinstance(logprobs, dict):
            _join_lists(choice.logprobs, logprobs)
        delta = read["delta"] if self._call.feature is Feature.CHAT else {"content": read["text"]}
        assert isinstance(delta, dict)
        for name, value in delta.items():
            if name == "tool_calls":
                _join_tool_calls(choice.tool_calls, value)
            elif isinstance(value, str) and name != "role":
                choice.texts.setdefault(name, []).append(value)
            elif value is not None:
                choice.others[name] = value

    def finish(self, finished: Finished) -> Json:
        """The body."""
        body = self._frame.body("chat.completion" if self._call.feature is Feature.CHAT else "text_completion")
        reasons = finished.finish_reasons[: self._call.choices]
        choices: list[Json] = []
        for index in sorted(set(self._choices) | set(range(max(1, len(reasons))))):
            choice = self._choices.get(index, _Choice())
            reason = choice.finish_reason or (reasons[index] if index < len(reasons) else "stop")
            rendered: Json = {"index": index, "logprobs": choice.logprobs or None, "finish_reason": reason}
            if self._call.feature is Feature.CHAT:
                rendered["message"] = _message(choice)
            else:
                rendered["text"] = choice.text("content") or ""
            choices.append(rendered)
        return {**body, "choices": choices, "usage": usage_json(finished.usage, self._call.feature)}


def _message(choice: _Choice) -> Json:
    message: Json = {"role": "assistant", "content": None, **choice.others}
    message |= {name: "".join(texts) for name, texts in choice.texts.items()}
    message["role"] = "assistant"
    if choice.tool_calls:
        message["tool_calls"] = [choice.tool_calls[index].whole() for index in sorted(choice.tool_calls)]
    elif message["content"] is None:
        message["content"] = choice.text("content") or ""
    return message


def _join_lists(joined: Json, new: Json) -> None:
    """Append the token lists of further log-probabilities to those collected."""
    for name, value in new.items():
        before = joined.get(name)
        if isinstance(before, list) and isinstance(value, list):
            before.extend(value)
        else:
            joined[name] = value


def _join_tool_calls(calls: dict[int, _ToolCall], pieces: object) -> None:
    """Merge pieces of tool calls: names and ids come once, arguments come in pieces."""
    if not isinstance(pieces, list):
        raise engine_fault("The engine's tool calls are not a list.")
    for piece in pieces:
        if not isinstance(piece, dict) or not isinstance(piece.get("index", 0), int):
            raise engine_fault("The engine's tool call has no valid index.")
        call = calls.setdefault(piece.get("index", 0), _ToolCall())
        call.fields |= {name: value for name, value in piece.items() if name not in ("index", "function") and value is not None}
        function = piece.get("function") or {}
        if not isinstance(function, dict):
            raise engine_fault("The engine's tool call has a 'function' of the wrong type.")
        name, arguments = function.get("name") or call.name, function.get("arguments") or ""
        if not isinstance(name, str) or not isinstance(arguments, str):
            raise engine_fault("The engine's tool call has a name or arguments that are not text.")
        call.name = name
        call.arguments.append(arguments)


def render_embeddings(ready: TensorsReady, finished: Finished, call: Call, answer_bytes_max: int) -> Json:
    """The body of an embeddings answer.

    Raises:
        ApiError: the engine's tensor is not what was asked for.
    """
    tensor = next((tensor for tensor in ready.tensors if tensor.name in ("embedding", "")), None)
    if tensor is None or tensor.dtype != "f4" or len(tensor.shape) != 2:
        raise engine_fault("The engine's answer holds no embeddings.")
    count, dimensions = tensor.shape
    if count != call.choices or dimensions < 1 or count * dimensions * 4 != tensor.data.nbytes:
        raise engine_fault(f"The engine answered with embeddings of shape {tensor.shape} to {call.choices} inputs.")
    if tensor.data.nbytes > answer_bytes_max:
        raise engine_fault("The engine's embeddings are larger than this gateway holds; ask for fewer at a time.")
    rows = np.frombuffer(tensor.data, dtype="<f4").reshape(count, dimensions)
    if not np.isfinite(rows).all():
        raise engine_fault("The engine's embeddings are not numbers.")
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.tobytes()).decode() if call.base64 else row.tolist(),
        }
        for index, row in enumerate(rows)
    ]
    return {"object": "list", "data": data, "model": call.model, "usage": usage_json(finished.usage, call.feature)}


def fault_event(error: ApiError) -> bytes:
    """The last event of a stream that breaks."""
    return sse(error.body())
