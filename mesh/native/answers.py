"""What a program gets: whole answers with their tensors, text as it comes, and the route that led to either.

Spec: docs/client.md; docs/spec/06-inference.md, section "Answer".
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mesh.native.errors import RequestError, request_error
from mesh.native.tensors import Array, to_array
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.inference import (
    Accepted,
    AnswerOrder,
    Failed,
    Finished,
    InferenceRequest,
    JsonDelta,
    Reply,
    TensorsReady,
    TextDelta,
    Timing,
    Usage,
)

ANSWER_BYTES_MAX = 64 * 1024 * 1024 + 64 * 1024
"""Bytes of the tensors of one answer: as many as a requester takes (ISO-INFER-013), and what stands round them."""

Take = Callable[[Reply], bool]
"""Takes the next event of an answer, and returns whether it was the last."""

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Route:
    """Who answered and why.

    Attributes:
        request_id: in hexadecimal digits, as `isochrone explain` takes it.
        node: the peer id of who answered; empty where nobody did.
        hops: how many forwards it took: 0 where the node that was asked answered itself.
        rtt_s: round trip to who answered, in seconds; None where it is not known.
        predicted_s: what routing expected until the first output, in seconds.
        measured_s: what it was.
        candidates: everybody who was considered, in order of preference, with the reason; as `isochrone explain --json`.
    """

    request_id: str
    node: str
    hops: int
    rtt_s: float | None
    predicted_s: float | None
    measured_s: float | None
    candidates: tuple[Mapping[str, object], ...]


def to_route(report: Mapping[str, object] | None) -> Route:
    """Read a report as the node tells it.

    Raises:
        RequestError: the node does not know the request (any more).
    """
    if report is None:
        raise RequestError(ErrorCode.UNSUPPORTED, "the node knows no such request any more: it keeps the last thousand")
    node = report.get("chosen")
    rows = report.get("candidates")
    candidates = tuple(row for row in rows if isinstance(row, Mapping)) if isinstance(rows, list) else ()
    chosen = next((row for row in candidates if row.get("peer_id") == node), {})
    hops = report.get("hops")
    return Route(
        str(report.get("request_id")),
        node if isinstance(node, str) else "",
        hops if isinstance(hops, int) else 0,
        _seconds(chosen.get("rtt_s")),
        _seconds(report.get("predicted_s")),
        _seconds(report.get("measured_s")),
        candidates,
    )


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True, slots=True)
class Answer(Generic[R_co]):
    """A whole answer.

    Attributes:
        request_id: in hexadecimal digits, as `isochrone explain` takes it.
        tensors: the outputs by name; each views the received message and cannot be written to.
        finish_reasons: one for each choice of a text; empty for tensors.
        usage: tokens, as the engine counted them.
        timing: what the node that answered measured: waiting and working, in seconds.
        deadline_s: how long it was given.
        took_s: how long it took, as the program saw it.
        receipt: what the node that answered has signed; empty where none was asked for.
        route: call it for who answered and why; awaitable where the client is. The node keeps the last thousand.
    """

    request_id: str
    tensors: Mapping[str, Array]
    finish_reasons: tuple[str, ...]
    usage: Usage
    timing: Timing
    deadline_s: float
    took_s: float
    receipt: bytes
    route: Callable[[], R_co] = field(repr=False)

    def __getitem__(self, name: str) -> Array:
        return self.tensors[name]

    @property
    def tensor(self) -> Array:
        """The only output.

        Raises:
            KeyError: there is none, or there are several.
        """
        if len(self.tensors) != 1:
            raise KeyError(f"the answer has the outputs {sorted(self.tensors)}: name one, answer['NAME']")
        return next(iter(self.tensors.values()))


class Gathering:
    """Takes the events of one answer until its end; the same for every way by which they come."""

    __slots__ = ("_bytes", "_order", "_request", "end", "tensors")

    def __init__(self, request: InferenceRequest) -> None:
        self._request = request
        self._order = AnswerOrder()
        self._bytes = 0
        self.tensors: dict[str, Array] = {}
        self.end: Finished | None = None

    def take(self, reply: Reply) -> bool:
        """Take the next event; return whether it was the last.

        Raises:
            RequestError: the answer failed, or is none.
        """
        try:
            self._order.take(reply)
        except RemoteProtocolError as error:
            raise RequestError(error.code, f"the answer is out of order: {error.detail}") from error
        match reply:
            case Finished():
                self.end = reply
                return True
            case Failed():
                raise request_error(reply)
            case TensorsReady(tensors):
                self._bytes += sum(tensor.size_bytes for tensor in tensors)
                if self._bytes > ANSWER_BYTES_MAX:
                    raise RequestError(ErrorCode.TOO_LARGE, f"an answer of more than {ANSWER_BYTES_MAX} bytes of tensors")
                self.tensors.update((tensor.name, to_array(tensor)) for tensor in tensors)
            case Accepted() | TextDelta() | JsonDelta():
                pass
        return False

    def answer(self, took_s: float, route: Callable[[], R]) -> Answer[R]:
        """The whole answer, once the last event was taken."""
        end = self.end
        assert end is not None, "the answer has not ended"
        request = self._request
        return Answer(
            request.request_id.hex(),
            self.tensors,
            end.finish_reasons,
            end.usage,
            end.timing,
            request.deadline_s,
            took_s,
            end.receipt,
            route,
        )


def text_of(reply: Reply) -> str:
    """The text in one event, empty where there is none."""
    if isinstance(reply, TextDelta):
        return reply.text
    if isinstance(reply, JsonDelta):
        try:
            choice = json.loads(reply.payload)
        except (ValueError, RecursionError):
            return ""
        match choice:
            case {"delta": {"content": str() as text}} | {"text": str() as text}:
                return text
    return ""
