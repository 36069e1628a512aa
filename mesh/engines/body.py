"""Reads the OpenAI request bodies that our own engines answer.

The body comes from a client by way of a gateway and perhaps another node, so nothing in it is believed: every field that an
engine uses is checked for type and range, and a wrong one becomes `BAD_REQUEST` with a sentence that names the field, as
OpenAI's servers do. Fields that an engine of ours has no use for are ignored.

Source: OpenAI API reference, "Create chat completion", "Create completion", "Create embeddings".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.engines.base import EngineError
from protocol.errors import ErrorCode
from protocol.inference import Feature

STOPS_MAX = 4
"""Stop sequences per request: OpenAI's limit."""

STOP_CHARACTERS_MAX = 256
"""Length of one stop sequence in characters: text is held back up to this length while it may become one."""

TOP_P_MIN = 1e-6
"""Smallest nucleus: below it, and at zero, only the likeliest token is left anyway."""

TEMPERATURE_MAX = 2.0
"""Highest temperature: OpenAI's limit."""

MESSAGES_MAX = 1024
"""Messages per chat: more than any conversation that fits the context of a model served here."""

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TextBody:
    """A chat or completion request.

    Attributes:
        prompt: the last user message, or the text to continue.
        tokens_max: how many tokens may be generated; None where the client sets no limit.
        temperature: 0 picks the likeliest token always.
        top_p: share of the probability that may be picked from, in (0, 1].
        stops: texts that end the answer and are not part of it.
        seed: makes the answer repeatable; None where any will do.
    """

    prompt: str
    tokens_max: int | None
    temperature: float
    top_p: float
    stops: tuple[str, ...]
    seed: int | None


@dataclass(frozen=True, slots=True)
class EmbeddingBody:
    """An embedding request: each input is a text or the tokens of one."""

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None


def bad_request(message: str) -> EngineError:
    """The error of a request that is wrong wherever it is sent."""
    return EngineError(ErrorCode.BAD_REQUEST, message)


def read_json(body: bytes | memoryview) -> Json:
    """The body as a JSON object.

    Raises:
        EngineError: BAD_REQUEST where it is none.
    """
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise bad_request("We could not parse the JSON body of your request.") from None
    if not isinstance(value, dict):
        raise bad_request("The body of the request must be a JSON object.")
    return value


def read_text_body(feature: Feature, body: bytes | memoryview) -> TextBody:
    """A chat or completion body.

    Raises:
        EngineError: BAD_REQUEST with the field at fault.
    """
    fields = read_json(body)
    if _integer(fields, "n", 1, 128) not in {None, 1}:
        raise bad_request("Invalid value for 'n': this model gives one choice per request.")
    limit = _integer(fields, "max_completion_tokens", 1, 2**31)
    stop = fields.get("stop")
    stops = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if not isinstance(stops, Sequence) or not all(
        isinstance(item, str) and 0 < len(item) <= STOP_CHARACTERS_MAX for item in stops
    ):
        raise bad_request(f"Invalid 'stop': expected texts of 1 to {STOP_CHARACTERS_MAX} characters.")
    if len(stops) > STOPS_MAX:
        raise bad_request(f"Invalid 'stop': expected at most {STOPS_MAX} texts, but got {len(stops)}.")
    temperature = _number(fields, "temperature", 0.0, TEMPERATURE_MAX)
    top_p = _number(fields, "top_p", 0.0, 1.0)
    return TextBody(
        prompt=_last_message(fields) if feature is Feature.CHAT else _prompt(fields),
        tokens_max=_integer(fields, "max_tokens", 1, 2**31) if limit is None else limit,
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else max(top_p, TOP_P_MIN),
        stops=tuple(stops),
        seed=_integer(fields, "seed", -(2**63), 2**64 - 1),
    )


def read_embedding_body(body: bytes | memoryview, inputs_max: int) -> EmbeddingBody:
    """An embedding body.

    Raises:
        EngineError: BAD_REQUEST with the field at fault.
    """
    fields = read_json(body)
    value = fields.get("input")
    if value is None:
        raise bad_request("Missing required parameter: 'input'.")
    if isinstance(value, str):
        inputs: list[object] = [value]
    elif isinstance(value, list):
        inputs = [value] if value and all(_is_integer(item) for item in value) else value
    else:
        raise bad_request(f"Invalid type for 'input': expected a text or an array, but got {_type_of(value)} instead.")
    if not inputs:
        raise bad_request("Invalid 'input': it is empty.")
    if len(inputs) > inputs_max:
        raise bad_request(f"Invalid 'input': at most {inputs_max} inputs per request, but got {len(inputs)}.")
    return EmbeddingBody(tuple(_embedding_input(item) for item in inputs), _integer(fields, "dimensions", 1, 2**16))


def _embedding_input(value: object) -> str | tuple[int, ...]:
    if isinstance(value, str):
        if not value:
            raise bad_request("Invalid 'input': input cannot be an empty string.")
        return value
    if isinstance(value, list) and value and all(_is_integer(item) for item in value):
        return tuple(value)
    raise bad_request("Invalid 'input': expected texts, or arrays of at least one token each.")


def _prompt(fields: Json) -> str:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise bad_request(f"Invalid type for 'prompt': this model takes one text, but got {_type_of(prompt)} instead.")
    return prompt


def _last_message(fields: Json) -> str:
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise bad_request(f"Invalid type for 'messages': expected an array of objects, but got {_type_of(messages)} instead.")
    if not 0 < len(messages) <= MESSAGES_MAX:
        raise bad_request(f"Invalid 'messages': expected 1 to {MESSAGES_MAX} messages, but got {len(messages)}.")
    last = ""
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_request(f"Invalid 'messages[{index}]': expected an object with 'role' and 'content'.")
        if message["role"] == "user":
            last = _content(message.get("content"), index)
    return last


def _content(content: object, index: int) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if any(not isinstance(text, str) for text in texts):
        raise bad_request(f"Invalid 'messages[{index}].content': this model takes text only.")
    return "".join(str(text) for text in texts)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(fields: Json, name: str, low: int, high: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise bad_request(f"Invalid type for '{name}': expected an integer, but got {_type_of(value)} instead.")
    if not low <= value <= high:
        raise bad_request(f"Invalid '{name}': expected a value from {low} to {high}, but got {value}.")
    return value


def _number(fields: Json, name: str, low: float, high: float) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise bad_request(f"Invalid type for '{name}': expected a number, but got {_type_of(value)} instead.")
    if not low <= value <= high:  # NaN is not either; an integer of any length can be compared, not always converted
        raise bad_request(f"Invalid '{name}': expected a value from {low} to {high}, but got {value}.")
    return float(value)


def _type_of(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "a boolean"
        case str():
            return "a text"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"
