"""What the gateway asks of whoever finds the answers.

The node's dispatcher routes requests through the mesh; a test's dispatcher runs one engine. The gateway sees neither, only this.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from protocol.identity import PeerId
from protocol.inference import InferenceRequest, Reply
from protocol.records import ModelOffer


class Candidate(Protocol):
    """One peer that was considered for a request."""

    @property
    def peer_id(self) -> PeerId:
        """Who it is."""

    @property
    def qualified(self) -> bool:
        """Whether it could answer at all."""

    @property
    def reason(self) -> str:
        """Why it was not qualified, or what stands behind its place in the ranking."""

    @property
    def rtt_s(self) -> float | None:
        """Distance to it."""

    @property
    def rtt_source(self) -> str:
        """Where the distance comes from."""

    @property
    def queue_s(self) -> float | None:
        """Expected wait for a slot."""

    @property
    def service_s(self) -> float | None:
        """Expected time in the slot."""

    @property
    def predicted_s(self) -> float | None:
        """Expected time to the first output."""

    @property
    def outcome(self) -> str:
        """What came of it."""


class RouteReport(Protocol):
    """How a request found its peer."""

    @property
    def request_id(self) -> str:
        """The request's id in hexadecimal."""

    @property
    def model(self) -> str:
        """The model asked for."""

    @property
    def feature(self) -> str:
        """The feature asked for."""

    @property
    def candidates(self) -> Sequence[Candidate]:
        """Everybody considered, best first."""

    @property
    def chosen(self) -> PeerId | None:
        """Who answered; before that, who was ranked first; None where nobody is able to."""

    @property
    def predicted_s(self) -> float | None:
        """Expected time to the first output."""

    @property
    def measured_s(self) -> float | None:
        """Measured time to the first output, None before it."""

    @property
    def hops(self) -> int:
        """How many peers the request passed."""


class Answer(Protocol):
    """One answer as it comes.

    Iterating yields outputs, then exactly one `Finished` or `Failed`; a failed answer raises nothing. `route` is complete once
    the first event was received.
    """

    @property
    def route(self) -> RouteReport:
        """How the request found its peer."""

    def __aiter__(self) -> AsyncIterator[Reply]: ...


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model somewhere in the mesh.

    Attributes:
        offer: what it can do, as the nearest of its peers offers it.
        peer_ids: who serves it.
        first_seen_s: when this node first heard of it, in wall-clock seconds since 1970.
    """

    offer: ModelOffer
    peer_ids: tuple[PeerId, ...]
    first_seen_s: float


class DispatcherPort(Protocol):
    """Finds the peer that answers soonest, and says what it knows."""

    def submit(self, request: InferenceRequest) -> AbstractAsyncContextManager[Answer]:
        """Ask for one answer; leaving the context before its end cancels the work wherever it is done."""

    def catalogue(self) -> Sequence[CatalogueEntry]:
        """Every model that can be asked for now."""

    def explain(self, request_id: str) -> RouteReport | None:
        """How a recent request was routed, or None when it is not known (any more)."""

    def status(self) -> Mapping[str, object]:
        """How the node is doing, as a JSON object; `peer_id` is who it is."""

    def peers(self) -> Sequence[Mapping[str, object]]:
        """The peers this node knows, each as a JSON object."""
