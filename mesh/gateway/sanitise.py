"""Turns the body of an OpenAI request into a checked call, and refuses what no engine should see.

The bytes are parsed once, with constants such as NaN refused; then known fields are checked one by one, unknown ones and nulls
are dropped, names that redirect an engine are taken out at every depth, and remote media are refused, since an engine that
fetches them does it from inside its owner's network. What is left is encoded again: engines see our JSON and not the client's.

Source: the advisories named in `mesh.gateway.fields`; CVE-2026-24779 and CVE-2026-34753 (an engine fetches the URL of a message
part).
Spec: docs/gateway.md, section "Fields".
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from mesh.gateway.config import GatewayConfig
from mesh.gateway.failures import ApiError
from mesh.gateway.fields import FIELDS, GATEWAY_ONLY, OPAQUE, REQUIRED, is_forbidden, is_token_array
from protocol.inference import Feature

DROPPED_MAX = 16
"""Most dropped names told to the client in `x-mesh-dropped`; the rest is only counted."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""A name that may stand in a header."""

_PROSE_FIELDS = frozenset({"type", "text", "refusal"})
"""Fields of a message part that are read and never fetched."""

_ADDRESS = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*://|(?:https?|ftp|file):)", re.IGNORECASE)
"""A string that names a place, whatever the field it stands in."""

_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
"""A text in JSON."""

_OPAQUE_DEPTH_MAX = max(map(len, OPAQUE))
"""Names that lead to the deepest schema, a count; below it nobody looks where a value stands."""

_CONTAINERS = frozenset({list, dict})
"""What nests in JSON."""

_PART_DEPTH_MAX = 4
"""Nesting of a message part in levels: OpenAI's parts have two, a cache hint adds one."""


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request.

    Attributes:
        feature: what is asked for.
        model: the model's id.
        body: the JSON object for the engine, in UTF-8.
        stream: whether the answer is sent as it comes.
        include_usage: whether a stream ends with a chunk of token counts.
        choices: how many choices or embeddings the answer has.
        base64: whether embeddings are sent as base64 in place of numbers.
        output_tokens: most tokens wanted of one choice, 0 where the client does not say.
        dropped: names that were taken out, fit for a header.
    """

    feature: Feature
    model: str
    body: bytes
    stream: bool
    include_usage: bool
    choices: int
    base64: bool
    output_tokens: int
    dropped: tuple[str, ...]


def parse_call(feature: Feature, body: bytes, config: GatewayConfig) -> Call:
    """Check one request body.

    Raises:
        ApiError: status 400 with the field at fault.
    """
    fields = _parse_object(body, config)
    dropped: list[str] = []
    kept: dict[str, object] = {}
    for name, value in fields.items():
        if name not in FIELDS[feature]:
            dropped.append(name)
        elif value is not None:
            kept[name] = _clean(value, dropped, config.json_depth_max, (name,))
    for name in REQUIRED[feature]:
        if name not in kept:
            raise _wrong(name, f"Missing required parameter: '{name}'.", "missing_required_parameter")
    for name, value in kept.items():
        expected = FIELDS[feature][name](value)
        if expected is not None:
            raise _wrong(name, f"Invalid value for '{name}': expected {expected}.", "invalid_value")
    options = kept.get("stream_options")
    include_usage = options.get("include_usage", False) if isinstance(options, dict) else False
    if not isinstance(include_usage, bool):
        raise _wrong("stream_options.include_usage", "Invalid value: expected a boolean.", "invalid_value")
    if feature is Feature.CHAT:
        _check_messages(kept["messages"])
    model = kept["model"]
    assert isinstance(model, str)
    return Call(
        feature=feature,
        model=model,
        body=_encode({name: value for name, value in kept.items() if name not in GATEWAY_ONLY}),
        stream=kept.get("stream") is True,
        include_usage=include_usage,
        choices=_count_choices(feature, kept, config),
        base64=kept.get("encoding_format") == "base64",
        output_tokens=_output_tokens(kept),
        dropped=tuple(sorted(name for name in set(dropped) if _PLAIN_NAME.fullmatch(name))[:DROPPED_MAX]),
    )


def _output_tokens(kept: Mapping[str, object]) -> int:
    """The bound a client sets; where it gives both fields, the newer one counts, as at OpenAI."""
    told = kept.get("max_completion_tokens", kept.get("max_tokens"))
    return told if isinstance(told, int) else 0


def _parse_object(body: bytes, config: GatewayConfig) -> Mapping[str, object]:
    _count_values(body, config)
    try:
        value: object = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError:
        raise ApiError(400, "invalid_json", "The body is nested too deeply.", retry=False) from None
    except ValueError as error:  # also a UnicodeDecodeError, and a number with more digits than Python converts
        raise ApiError(400, "invalid_json", f"The body is not valid JSON: {error}", retry=False) from None
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_json", "The body is not a JSON object.", retry=False)
    return value


def _count_values(body: bytes, config: GatewayConfig) -> None:
    """Refuse a body of more values than an engine has a use for, before they are made: each costs tens of bytes and a look.

    Counted are the signs between values, which in most bodies are few even with those inside texts; only where they are not are
    texts taken out first.
    """
    if _are_few(body, config) or _are_few(_TEXT.sub(b"", body), config):
        return
    message = f"The body holds more than {config.containers_max} arrays and objects, or {config.values_max} values."
    raise ApiError(400, "invalid_json", message, retry=False)


def _are_few(body: bytes, config: GatewayConfig) -> bool:
    containers, names, values = body.count(b"[") + body.count(b"{"), body.count(b":"), body.count(b",")
    return containers <= config.containers_max and names <= 2 * config.containers_max and values <= config.values_max


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object, each of whose names stands there once: programs differ on which of two values counts."""
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("an object gives one name twice")
    return read


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _encode(fields: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and UTF-8 cannot
        raise ApiError(400, "invalid_json", "The body holds text that is not valid Unicode.", retry=False) from None
    except ValueError as error:  # a float out of range, written as 1e999
        raise ApiError(400, "invalid_json", f"The body holds a number out of range: {error}", retry=False) from None
    except RecursionError:  # inside a caller's schema, which is not walked
        raise ApiError(400, "invalid_json", "The body is nested too deeply.", retry=False) from None


def _clean(value: object, dropped: list[str], depth_left: int, where: tuple[str, ...]) -> object:
    """Copy `value` without forbidden names; `where` are the names that lead to it."""
    if len(where) <= _OPAQUE_DEPTH_MAX and where in OPAQUE:
        return value
    if depth_left == 0:
        raise ApiError(400, "invalid_json", "The body is nested too deeply.", retry=False)
    if isinstance(value, list):
        # Most long arrays are token numbers: nothing to look at, nothing to copy.
        if _CONTAINERS.isdisjoint(map(type, value)):
            return value
        return [_clean(item, dropped, depth_left - 1, where) for item in value]
    if isinstance(value, dict):
        cleaned: dict[str, object] = {}
        for name, item in value.items():
            if is_forbidden(name):
                dropped.append(name)
            else:
                inside = (*where, name) if len(where) <= _OPAQUE_DEPTH_MAX else where
                cleaned[name] = _clean(item, dropped, depth_left - 1, inside)
        return cleaned
    return value


def _check_messages(messages: object) -> None:
    assert isinstance(messages, list)
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message.get("role"), str):
            raise _wrong(f"{where}.role", f"Invalid value for '{where}.role': expected a string.", "invalid_value")
        content = message.get("content")
        if isinstance(content, list):
            for number, part in enumerate(content):
                _check_part(part, f"{where}.content[{number}]")
        elif content is not None and not isinstance(content, str):
            expected = "expected a string, an array of parts, or null"
            raise _wrong(f"{where}.content", f"Invalid value for '{where}.content': {expected}.", "invalid_value")


def _check_part(part: object, where: str) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise _wrong(where, f"Invalid value for '{where}': expected an object with a 'type'.", "invalid_value")
    for name, value in part.items():
        if name not in _PROSE_FIELDS:
            for address in _addresses(value, name, _PART_DEPTH_MAX):
                message = f"'{where}.{name}' names the address {address[:64]!r}; send the content itself as a data: URL."
                raise _wrong(f"{where}.{name}", message, "remote_content_refused")


def _addresses(value: object, name: str, depth_left: int) -> Iterator[str]:
    """Yield the strings below the field `name` of a message part that an engine could fetch."""
    if isinstance(value, str):
        if _ADDRESS.match(value) or ("url" in name.lower() and not value.startswith("data:")):
            yield value
    elif isinstance(value, dict | list) and depth_left == 0:
        yield "(too deep to tell)"
    elif isinstance(value, dict):
        for inner, item in value.items():
            yield from _addresses(item, inner, depth_left - 1)
    elif isinstance(value, list):
        for item in value:
            yield from _addresses(item, name, depth_left - 1)


def _count_choices(feature: Feature, fields: Mapping[str, object], config: GatewayConfig) -> int:
    """How many choices or embeddings the answer will have."""
    wished = fields.get("n", 1)
    assert isinstance(wished, int)
    if feature is Feature.CHAT:
        name, count, most = "n", wished, config.choices_max
    else:
        name = "input" if feature is Feature.EMBEDDINGS else "prompt"
        given = fields[name]
        several = isinstance(given, list) and not is_token_array(given)
        count = wished * len(given) if isinstance(given, list) and several else wished
        most = config.inputs_max if feature is Feature.EMBEDDINGS else config.choices_max
    if count > most:
        raise _wrong(name, f"Too many in '{name}': {count}, the most is {most}.", "invalid_value")
    return count


def _wrong(param: str, message: str, code: str) -> ApiError:
    return ApiError(400, code, message, param=param, retry=False)
