"""What the gateway asks of whoever finds the answers.

The node's dispatcher routes requests through the mesh; a test's dispatcher runs one engine. The gateway sees neither, only this.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from mesh.distances import Distances
from mesh.map.collect import MapCollector
from protocol.identity import PeerId
from protocol.inference import InferenceRequest, Reply
from protocol.records import ModelOffer
from protocol.routing import RouteReport


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


class TracePort(Protocol):
    """What is seen of one peer's connections while somebody watches."""

    async def take(self, patience_s: float) -> list[dict[str, object]]:
        """Wait up to `patience_s` seconds and return the events since the last call, as JSON objects."""


class DispatcherPort(Protocol):
    """Finds the peer that answers soonest, and says what it knows."""

    @property
    def distances(self) -> Distances:
        """Answers questions about distances."""

    @property
    def map(self) -> MapCollector:
        """Collects what a map is drawn from."""

    def submit(self, request: InferenceRequest) -> AbstractAsyncContextManager[Answer]:
        """Ask for one answer; leaving the context before its end cancels the work wherever it is done."""

    def catalogue(self) -> Sequence[CatalogueEntry]:
        """Every model that can be asked for now."""

    def explain(self, request_id: str) -> RouteReport | None:
        """How a recent request was routed, or None when it is not known (any more)."""

    def receipt(self, request_id: str, *, content: bool) -> Mapping[str, object] | None:
        """The receipt of a recent answer as its file, None when there is none (any more); `content`: request and answer too."""

    def trace(self, peer: str, *, content: bool) -> AbstractContextManager[TracePort]:
        """Watch the connections of the peer whose id is or ends with `peer`; `content`: prompts and answers too.

        Raises:
            TraceRefusedError: on entering, with what to do instead.
        """

    def status(self) -> Mapping[str, object]:
        """How the node is doing, as a JSON object; `peer_id` is who it is."""

    def protocols(self) -> Mapping[str, object]:
        """Which protocols the node speaks and where they are specified, as a JSON object."""

    def peers(self) -> Sequence[Mapping[str, object]]:
        """The peers this node knows, each as a JSON object."""
