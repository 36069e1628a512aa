"""The small text model: reads bytes, continues them, writes a word at a time.

The graph is a recurrent step (see scripts/train_text_model.py): tokens and a state in, the odds of the next token and a new
state out, so a prompt is read in a few runs and every further byte costs the same. The tokens are the 256 bytes and END, which
stands before and after every document that the model learned from. A document is a title line and its paragraphs; so the last
message of a chat becomes a title, and the answer is what the model writes below it. Text leaves as whole characters, and what
may become a stop sequence is held back until it is decided.

Source: Holtzman et al., "The Curious Case of Neural Text Degeneration" (ICLR 2020), for top-p sampling.
"""

import codecs
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mesh.engines.body import TextBody, bad_request
from mesh.engines.onnx.runtime import Session, open_session, run_session
from protocol.inference import Feature

TEXT_MODEL = "isochrone-tiny-text"
# The graph, shipped with the program; README.md beside it says how it was made.
TEXT_GRAPH = Path(__file__).parent.parent / "data" / "tiny-text.onnx"
END = 256  # the token that is no byte: before and after every document
CONTEXT_TOKENS_MAX = 8192  # bytes of prompt and answer together: the state forgets long before, the bound is for time
ANSWER_TOKENS_DEFAULT = 256  # bytes of an answer whose length the client leaves open: a short paragraph
PREFILL_TOKENS_MAX = 512  # bytes of the prompt read in one run, about 20 ms: cancelling waits for one run
STEP_TOKENS_MAX = 16  # bytes made in one step: longer than most words, about 3 ms
_SPACE = frozenset(b" \n")


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step made: text that may leave, how many tokens it took, and why the answer is over, if it is."""

    text: str
    tokens: int
    finish_reason: str = ""


class TextModel:
    """A session; every answer keeps its own state."""

    def __init__(self, threads: int) -> None:
        self._session: Session = open_session(TEXT_GRAPH, threads)
        shape = [item.shape for item in self._session.get_inputs() if item.name == "state"]  # type: ignore[attr-defined]
        self.state_shape: tuple[int, ...] = tuple(shape[0])
        self.digest = hashlib.sha256(TEXT_GRAPH.read_bytes()).digest()

    def advance(
        self, tokens: list[int], state: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits of the token after `tokens`, of shape (257,), and the new state."""
        logits, state = run_session(
            self._session, ["logits", "state_out"], {"tokens": np.array(tokens, np.int64), "state": state}
        )
        return logits, state


class Writer:
    """One answer in the making."""

    def __init__(self, model: TextModel, feature: Feature, body: TextBody) -> None:
        """Take in the request.

        Raises:
            EngineError: BAD_REQUEST where the prompt is too long.
        """
        text = body.prompt.encode(errors="replace")
        self._unread = [END, *text, *(b"\n" if feature is Feature.CHAT else b"")]
        self.prompt_tokens = len(self._unread)
        if self.prompt_tokens >= CONTEXT_TOKENS_MAX:
            raise bad_request(
                f"This model's maximum context length is {CONTEXT_TOKENS_MAX} tokens (bytes), however your prompt has "
                f"{self.prompt_tokens}. Please reduce its length."
            )
        wanted = ANSWER_TOKENS_DEFAULT if body.tokens_max is None else body.tokens_max
        self._left = min(wanted, CONTEXT_TOKENS_MAX - self.prompt_tokens)
        self._model = model
        self._body = body
        self._luck = np.random.default_rng(None if body.seed is None else body.seed % 2**64)
        self._state = np.zeros(model.state_shape, np.float32)
        self._logits = np.zeros(0, np.float32)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def step(self) -> Piece:
        """Read a part of the prompt or, once it is read, write until a word is complete; blocks for milliseconds."""
        if self._unread:
            part, self._unread = self._unread[:PREFILL_TOKENS_MAX], self._unread[PREFILL_TOKENS_MAX:]
            self._logits, self._state = self._model.advance(part, self._state)
            return Piece("", 0)
        made = bytearray()
        count, reason = 0, ""
        while not reason and len(made) < STEP_TOKENS_MAX:
            token = self._pick()
            count += 1
            self._left -= 1
            if token == END:
                reason = "stop"
                break
            made.append(token)
            if self._left == 0:
                reason = "length"
                break
            self._logits, self._state = self._model.advance([token], self._state)
            if token in _SPACE:
                break
        return self._release(self._decoder.decode(bytes(made)), count, reason)

    def _pick(self) -> int:
        """The next token, by temperature and top-p."""
        if self._body.temperature == 0:
            return int(self._logits.argmax())
        scaled = self._logits.astype(np.float64) / self._body.temperature
        odds = np.exp(scaled - scaled.max())
        order = np.argsort(-odds, kind="stable")
        shares = np.cumsum(odds[order] / odds.sum())
        kept = int(np.searchsorted(shares, self._body.top_p)) + 1
        drawn = self._luck.random() * shares[min(kept, len(shares)) - 1]
        return int(order[min(int(np.searchsorted(shares, drawn, side="right")), len(order) - 1)])

    def _release(self, text: str, tokens: int, reason: str) -> Piece:
        """Let out what cannot become part of a stop sequence any more."""
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self._body.stops) if place >= 0]
        if found:
            return Piece(text[: min(found)], tokens, "stop")
        held = 0 if reason else max((_overlap(text, stop) for stop in self._body.stops), default=0)
        self._held = text[len(text) - held :]
        return Piece(text[: len(text) - held], tokens, reason)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((count for count in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:count])), 0)
