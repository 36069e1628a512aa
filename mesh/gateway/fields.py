"""Which fields a request may have, and what each may hold.

One table per feature maps a top-level field to a check. A check returns what was expected when the value is wrong, else None. A
field that no table names does not reach an engine: engines have fields that make them fetch URLs, load adapters or log elsewhere.

Source: the OpenAI API reference (chat, completions, embeddings) and the sampling fields that vLLM, SGLang and llama.cpp add.
Spec: docs/gateway.md, section "Fields".
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping

from protocol.inference import Feature

Check = Callable[[object], str | None]
"""Returns None for a good value, else what was expected."""

TEXT_CHARS_MAX = 256
"""Longest model id or other name, in characters; the longest model ids in public registries stay under 100."""

STOPS_MAX = 16
"""Most stop sequences in one request; OpenAI allows 4, llama.cpp and vLLM more."""

TOP_LOGPROBS_MAX = 20
"""Most alternatives for one token, as at OpenAI."""

CHOICES_MAX = 128
"""Most choices for one prompt, as at OpenAI."""

COUNT_MAX = 2**31 - 1
"""Largest count an engine is asked for: what fits a signed 32-bit integer, the smallest type engines read it into."""

_NO_WORD = re.compile(r"[^A-Za-z0-9]+", re.ASCII)
"""What `plain_name` takes out."""

SEED_BITS = 64
"""Width of a seed in bits, signed or not, as engines read it."""


def _text(value: object) -> str | None:
    return None if isinstance(value, str) else "a string"


def _name(value: object) -> str | None:
    fits = isinstance(value, str) and 0 < len(value) <= TEXT_CHARS_MAX
    return None if fits else f"a string of 1 to {TEXT_CHARS_MAX} characters"


def _flag(value: object) -> str | None:
    return None if isinstance(value, bool) else "a boolean"


def _object(value: object) -> str | None:
    return None if isinstance(value, dict) else "an object"


def _objects(value: object) -> str | None:
    fits = isinstance(value, list) and all(isinstance(item, dict) for item in value)
    return None if fits else "an array of objects"


def _texts(value: object) -> str | None:
    return None if isinstance(value, list) and all(isinstance(item, str) for item in value) else "an array of strings"


def _integers(value: object) -> str | None:
    return None if isinstance(value, list) and all(_is_integer(item) for item in value) else "an array of integers"


def _text_or_object(value: object) -> str | None:
    return None if isinstance(value, str | dict) else "a string or an object"


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -COUNT_MAX <= value <= COUNT_MAX


def _integer(low: int, high: int) -> Check:
    def _check(value: object) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if fits else f"an integer from {low} to {high}"

    return _check


def _number(low: float, high: float) -> Check:
    def _check(value: object) -> str | None:
        # Integers are compared first: an integer of a thousand digits does not become a float.
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and math.isfinite(value)
        return None if fits else f"a number from {low:g} to {high:g}"

    return _check


def _stop(value: object) -> str | None:
    fits = isinstance(value, str) or (isinstance(value, list) and len(value) <= STOPS_MAX and _texts(value) is None)
    return None if fits else f"a string or an array of at most {STOPS_MAX} strings"


def _messages(value: object) -> str | None:
    return None if isinstance(value, list) and value and _objects(value) is None else "a non-empty array of objects"


def is_token_array(value: object) -> bool:
    """Whether `value` is one text given as token numbers."""
    return isinstance(value, list) and bool(value) and all(_is_integer(item) and item >= 0 for item in value)


def _prompt(value: object) -> str | None:
    several = isinstance(value, list) and (_texts(value) is None or all(is_token_array(item) for item in value))
    fits = isinstance(value, str) or (bool(value) and (several or is_token_array(value)))
    return None if fits else "a string, an array of strings, an array of token numbers, or an array of such arrays, not empty"


def _encoding_format(value: object) -> str | None:
    return None if value in ("float", "base64") else '"float" or "base64"'


_count = _integer(1, COUNT_MAX)
_seed = _integer(-(2 ** (SEED_BITS - 1)), 2**SEED_BITS - 1)
_penalty = _number(-2, 2)
_share = _number(0, 1)

_SAMPLING: Mapping[str, Check] = {
    "frequency_penalty": _penalty,
    "logit_bias": _object,
    "max_tokens": _count,
    "n": _integer(1, CHOICES_MAX),
    "presence_penalty": _penalty,
    "seed": _seed,
    "stop": _stop,
    "stream": _flag,
    "stream_options": _object,
    "temperature": _number(0, 100),
    "top_p": _share,
    "user": _text,
}
"""What chat and completions share."""

_ENGINE_SAMPLING: Mapping[str, Check] = {
    "cache_prompt": _flag,
    "echo": _flag,
    "grammar": _text,
    "guided_choice": _texts,
    "guided_grammar": _text,
    "guided_json": _text_or_object,
    "guided_regex": _text,
    "ignore_eos": _flag,
    "include_stop_str_in_output": _flag,
    "json_schema": _object,
    "length_penalty": _number(-100, 100),
    "min_p": _share,
    "min_tokens": _integer(0, COUNT_MAX),
    "mirostat": _integer(0, 2),
    "mirostat_eta": _number(0, 100),
    "mirostat_tau": _number(0, 100),
    "repeat_last_n": _integer(-1, COUNT_MAX),
    "repeat_penalty": _number(0, 100),
    "repetition_penalty": _number(0, 100),
    "skip_special_tokens": _flag,
    "stop_token_ids": _integers,
    "structured_outputs": _object,
    "top_k": _integer(-1, COUNT_MAX),
    "typical_p": _share,
}
"""Fields that are not OpenAI's but that engines know and that only steer sampling; passed through."""

FIELDS: Mapping[Feature, Mapping[str, Check]] = {
    Feature.CHAT: {
        **_SAMPLING,
        **_ENGINE_SAMPLING,
        "add_generation_prompt": _flag,
        "audio": _object,
        "chat_template_kwargs": _object,
        "continue_final_message": _flag,
        "function_call": _text_or_object,
        "functions": _objects,
        "logprobs": _flag,
        "max_completion_tokens": _count,
        "messages": _messages,
        "metadata": _object,
        "modalities": _texts,
        "model": _name,
        "parallel_tool_calls": _flag,
        "prediction": _object,
        "prompt_cache_key": _text,
        "reasoning_effort": _text,
        "response_format": _object,
        "safety_identifier": _text,
        "service_tier": _text,
        "store": _flag,
        "tool_choice": _text_or_object,
        "tools": _objects,
        "top_logprobs": _integer(0, TOP_LOGPROBS_MAX),
        "verbosity": _text,
    },
    Feature.COMPLETIONS: {
        **_SAMPLING,
        **_ENGINE_SAMPLING,
        "best_of": _integer(1, CHOICES_MAX),
        "logprobs": _integer(0, TOP_LOGPROBS_MAX),
        "model": _name,
        "prompt": _prompt,
        "suffix": _text,
    },
    Feature.EMBEDDINGS: {
        "dimensions": _count,
        "encoding_format": _encoding_format,
        "input": _prompt,
        "input_type": _text,
        "model": _name,
        "normalize": _flag,
        "truncate_prompt_tokens": _integer(-1, COUNT_MAX),
        "user": _text,
    },
}
"""Every field of every feature."""

REQUIRED: Mapping[Feature, tuple[str, ...]] = {
    Feature.CHAT: ("model", "messages"),
    Feature.COMPLETIONS: ("model", "prompt"),
    Feature.EMBEDDINGS: ("model", "input"),
}
"""What a request cannot do without."""

GATEWAY_ONLY = frozenset({"stream", "stream_options", "encoding_format"})
"""Fields that say how the gateway answers; they do not travel."""

FORBIDDEN = frozenset(
    {
        "apitype",
        "apiversion",
        "callbackurl",
        "extrabody",
        "headers",
        "proxies",
        "proxy",
        "webhook",
        "webhookurl",
    }
)
"""Names, as `plain_name` writes them, under which some engine or proxy takes a target or a secret; taken out at every depth."""

FORBIDDEN_PARTS = ("apibase", "apikey", "baseurl", "extraheaders", "stsendpoint", "runtimeendpoint", "userconfig")
"""The same for names that only hold such a word, as `openai_api_base` and `api_base_url` do.

Source: CVE-2024-6587 (`api_base` in the body) and PYSEC-2026-4070 (the same, nested in `user_config`).
"""

OPAQUE = frozenset(
    {
        ("functions", "parameters"),
        ("guided_json",),
        ("json_schema",),
        ("response_format", "json_schema", "schema"),
        ("response_format", "schema"),
        ("structured_outputs", "json"),
        ("tools", "function", "parameters"),
    }
)
"""Where a request holds the caller's own JSON Schema, in which any name is a mere name; left as it is."""


_FORBIDDEN_PART = re.compile("|".join(sorted(map(re.escape, FORBIDDEN_PARTS))))


def is_forbidden(name: str) -> bool:
    """Whether a name is taken out, however it is spelt."""
    plain = plain_name(name)
    return plain in FORBIDDEN or _FORBIDDEN_PART.search(plain) is not None


def plain_name(name: str) -> str:
    """A name without what programs differ about: case, width, dashes, dots, spaces, characters that nobody sees."""
    if name.isascii():
        if name.isalnum():  # most names, and a body may have thousands
            return name.lower()
        return _NO_WORD.sub("", name).lower()
    return _NO_WORD.sub("", unicodedata.normalize("NFKC", name).casefold())
