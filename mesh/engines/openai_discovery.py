"""What the servers an operator already runs say about themselves: their models and how busy they are. No I/O here.

`/v1/models` names the models; what each can be asked for is told by llama.cpp (`capabilities`) and by Ollama (`/api/show`), and
otherwise guessed from the name, since vLLM and SGLang do not tell. `/metrics` gives running and waiting requests under a name
that differs by engine; the first name that is there wins.

Source: llama.cpp tools/server/README.md; docs.ollama.com "Show model details"; llm-d metrics extractor factories; docs.vllm.ai
"Metrics".
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from protocol.inference import Feature
from protocol.records import ModelOffer

MODEL_ID_CHARACTERS_MAX = 256
"""Longest model id that is taken over, in characters: the longest repository names are about 100."""

CONTEXT_LENGTH_MAX = 2**31 - 1
"""Longest believable context in tokens: a signed 32-bit integer, as engines keep it."""

GENERATION = frozenset({Feature.CHAT, Feature.COMPLETIONS})
EMBEDDING = frozenset({Feature.EMBEDDINGS})
_EMBEDDING_NAMES = re.compile(r"embed|minilm|(^|[-_/])(bge|gte|e5|sfr|mxbai)([-_]|$)", re.IGNORECASE)

_CHEAP_HEALTH = ("vllm", "sglang", "llamacpp")
_RUNNING = (
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
    "trtllm_num_requests_running",
    "tgi_batch_current_size",
)
_WAITING = (
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "llamacpp:requests_deferred",
    "trtllm_num_requests_waiting",
    "tgi_queue_size",
    "te_queue_size",
)
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?\s*$")
_MODEL_LABEL = re.compile(r'(?:^|,)\s*model_name="(?P<model>(?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class ReportedLoad:
    """Requests inside the server, also those that did not come from us."""

    running: int = 0
    waiting: int = 0


def read_models(answer: Mapping[str, object], models_max: int) -> tuple[ModelOffer, ...]:
    """The offers in an answer of `/v1/models`; entries that make no sense are left out."""
    data = answer.get("data")
    told = _llama_capabilities(answer.get("models"))
    offers: dict[str, ModelOffer] = {}
    for entry in data if isinstance(data, list) else []:
        model = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(model, str) and 0 < len(model) <= MODEL_ID_CHARACTERS_MAX and len(offers) < models_max:
            meta = entry.get("meta")
            numbers: Mapping[str, object] = {**entry, **(meta if isinstance(meta, dict) else {})}
            length = _first_count(numbers, "max_model_len", "n_ctx", "n_ctx_train", "context_length", "max_context_length")
            size = _first_count(numbers, "size")
            features = told.get(model) or features_by_name(model)
            offers[model] = ModelOffer(model, features, length, memory_bytes=size, engine="openai")
    return tuple(offers.values())


def has_cheap_health(answer: Mapping[str, object]) -> bool:
    """Whether the server is one whose `/health` costs nothing; a proxy such as LiteLLM answers it by asking every model."""
    data = answer.get("data")
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    return any(entry.get("owned_by") in _CHEAP_HEALTH for entry in entries)


def features_by_name(model: str) -> frozenset[Feature]:
    """A guess from the model's name: embedding models say so, nearly always."""
    return EMBEDDING if _EMBEDDING_NAMES.search(model) else GENERATION


def features_by_capabilities(capabilities: object) -> frozenset[Feature]:
    """The features a server tells itself; empty where it tells none that is known here."""
    named = {item for item in capabilities if isinstance(item, str)} if isinstance(capabilities, list) else set()
    generation = GENERATION if named & {"completion", "chat"} else frozenset()
    return generation | (EMBEDDING if named & {"embedding", "embeddings"} else frozenset())


def read_ollama_show(offer: ModelOffer, answer: Mapping[str, object]) -> ModelOffer:
    """The offer with what Ollama's `/api/show` adds: capabilities, context length, precision."""
    details, info = answer.get("details"), answer.get("model_info")
    precision = details.get("quantization_level") if isinstance(details, dict) else None
    lengths = {name: value for name, value in info.items() if name.endswith(".context_length")} if isinstance(info, dict) else {}
    return ModelOffer(
        offer.model,
        features_by_capabilities(answer.get("capabilities")) or offer.features,
        _first_count(lengths, *lengths) or offer.context_length,
        precision.lower()[:16] if isinstance(precision, str) else offer.precision,
        offer.memory_bytes,
        offer.engine,
        offer.digest,
    )


def read_metrics(text: str) -> dict[str, ReportedLoad]:
    """Load by model id from a Prometheus exposition; under "" what carries no model's name."""
    running: dict[tuple[str, str], float] = {}
    waiting: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None or sample["name"] not in (*_RUNNING, *_WAITING):
            continue
        try:
            value = float(sample["value"])
        except ValueError:
            continue
        label = _MODEL_LABEL.search(sample["labels"] or "")
        key = (label["model"] if label else "", sample["name"])
        table = running if sample["name"] in _RUNNING else waiting
        if math.isfinite(value) and 0 <= value < 2**31:
            table[key] = table.get(key, 0.0) + value
    models = {model for model, _ in (*running, *waiting)}
    return {model: ReportedLoad(_first(running, model, _RUNNING), _first(waiting, model, _WAITING)) for model in sorted(models)}


def _first(table: Mapping[tuple[str, str], float], model: str, names: Iterable[str]) -> int:
    return next((int(table[model, name]) for name in names if (model, name) in table), 0)


def _first_count(fields: Mapping[str, object], *names: str) -> int:
    for name in names:
        value = fields.get(name)
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and 0 < value <= (2**63 if name == "size" else CONTEXT_LENGTH_MAX)
        ):
            return value
    return 0


def _llama_capabilities(models: object) -> dict[str, frozenset[Feature]]:
    """llama.cpp's second list, `models`, beside `data`: capabilities by model name."""
    entries = [entry for entry in models if isinstance(entry, dict)] if isinstance(models, list) else []
    found = {
        str(entry.get("model") or entry.get("name")): features_by_capabilities(entry.get("capabilities")) for entry in entries
    }
    return {model: features for model, features in found.items() if features}
