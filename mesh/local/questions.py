"""What a client asks the node besides inference: which models there are, how a request was routed, how the node is doing.

A question is a frame that is no request: a question mark, a word and, for a route, the id of a request. The answer is one frame
of JSON. Neither is on the way of a request, so that an answer costs nothing for being explained.

Spec: docs/client.md, section "The door".
"""

from dataclasses import dataclass

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.inference import REQUEST_ID_BYTES

MODELS = b"?models"
STATUS = b"?status"
ROUTE = b"?route"
"""The questions; the id of a request follows the last."""

ANSWER_BYTES_MAX = 8 * 1024 * 1024
"""Longest answer in bytes: some thousand models, or a route with 64 candidates many times over."""

_REQUEST_IDENTIFIER = b"ISIQ"
"""At bytes 4 to 8 of every request (docs/spec/06-inference.md, section "Messages")."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: `MODELS`, `STATUS`, or `ROUTE` with the id of a request."""

    word: bytes
    request_id: bytes = b""


def is_question(message: bytes | memoryview) -> bool:
    """Whether a message is a question; anything else is to be read as a request."""
    return message[:1] == b"?" and message[4:8] != _REQUEST_IDENTIFIER


def write_question(question: Question) -> bytes:
    """A question as a message, without a frame."""
    return question.word + question.request_id


def read_question(message: bytes | memoryview) -> Question:
    """Read a question.

    Raises:
        RemoteProtocolError: UNSUPPORTED, for one that this version does not know.
    """
    if len(message) <= len(ROUTE) + REQUEST_ID_BYTES:
        said = bytes(message)
        if said in (MODELS, STATUS):
            return Question(said)
        if said.startswith(ROUTE) and len(said) == len(ROUTE) + REQUEST_ID_BYTES:
            return Question(ROUTE, said[len(ROUTE) :])
    raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"a question of {len(message)} bytes that this node does not know")
