"""Nodes as candidates for a request: what routing is told of this node and of its peers."""

from collections.abc import Mapping
from dataclasses import replace

from protocol.announcer import Announcer
from protocol.fabric import Link, Way
from protocol.identity import PeerId
from protocol.inference import Finished, InferenceRequest
from protocol.load import Beat
from protocol.membership import Standing
from protocol.node.config import PeerFacts
from protocol.records import Hardware
from protocol.routing import CandidateInput, Path, Requirement, RouteReport, RttSource

BYTES_PER_MBIT = 125_000
"""Bytes in a megabit."""


def own_candidate(peer_id: PeerId, announcer: Announcer, in_flight: int) -> CandidateInput:
    """This node as a candidate: no path, its own load."""
    beat = announcer.whole_beat()
    return CandidateInput(
        peer_id=peer_id,
        path=Path(RttSource.SELF),
        offers=announcer.offers,
        beat=beat,
        memory_bytes=_memory_bytes(announcer.hardware),
        bus=bus_of(announcer.hardware, beat),
        in_flight=in_flight,
    )


def requirement_of(request: InferenceRequest, from_peer: PeerId | None) -> Requirement:
    """What a request needs; the peer that forwarded it is not asked again."""
    return Requirement(
        model=request.model,
        feature=request.feature,
        memory_bytes=request.memory_bytes,
        output_tokens=request.output_tokens,
        stream=request.stream,
        payload_bytes=sum(tensor.size_bytes for tensor in request.tensors),
        excluded=frozenset() if from_peer is None else frozenset({from_peer}),
    )


def with_ways(candidates: list[CandidateInput], ways: Mapping[PeerId, Way]) -> list[CandidateInput]:
    """The candidates with the fabrics that are open to them."""
    return [
        candidate if (way := ways.get(candidate.peer_id)) is None else replace(candidate, way=way) for candidate in candidates
    ]


def peer_candidate(facts: PeerFacts, own_error: float, in_flight: int) -> CandidateInput:
    """A peer as a candidate: the best that is known of the path, its own word on the rest.

    Args:
        facts: what is known of the peer.
        own_error: the error estimate of this node's coordinate, unitless.
        in_flight: requests of this node that the peer works on.
    """
    serving, quality = facts.serving, facts.quality
    if quality is not None:
        path = Path(RttSource.MEASURED, quality.rtt_s, quality.usual_jitter_s, quality.usual_loss, connected=facts.connected)
    elif facts.coordinate_rtt_s is not None:
        rtt_s, low_s = facts.coordinate_rtt_s, facts.coordinate_low_s
        source = RttSource.MEASURED if facts.remembered else RttSource.COORDINATE
        error = facts.coordinate_error if low_s is not None else max(facts.coordinate_error, own_error)
        low_s = max(0.0, rtt_s * (1.0 - error)) if low_s is None else low_s
        path = Path(source, rtt_s, error=error, low_s=low_s, connected=facts.connected)
    else:
        path = Path(RttSource.UNKNOWN, connected=facts.connected)
    return CandidateInput(
        peer_id=facts.peer_id,
        path=path,
        offers=() if serving is None else serving.models,
        beat=facts.beat,
        unavailable="" if facts.standing is Standing.ALIVE else f"{facts.standing}: {facts.why}",
        memory_bytes=_memory_bytes(None if serving is None else serving.hardware),
        in_flight=in_flight,
        bus=bus_of(None if serving is None else serving.hardware, facts.beat),
    )


def served_in(report: RouteReport, peer: PeerId, end: Finished, took_s: float, first_s: float) -> tuple[float, float]:
    """The time of the service and that to its first output, in seconds: this node's own measurement less the path and the queue.

    The peer's word is believed only for the time in its queue, and that only makes it look better for a moment: the next request
    is measured again.
    """
    path_s = next((c.rtt_s or 0.0 for c in report.candidates if c.peer_id == peer), 0.0)
    waited_s = path_s + min(max(end.timing.queue_s, 0.0), first_s)
    return max(0.0, took_s - waited_s), max(0.0, first_s - waited_s)


def bus_of(hardware: Hardware | None, beat: Beat | None) -> Link | None:
    """The bus over which tensors reach an accelerator of a node; None where it has none or does not tell of all.

    Nobody says which accelerator a request comes to: it is the one that is connected best, with what its bus has left as far as a
    beat tells. A node that claims more than it has gains no more than it did before buses were told.
    """
    buses = [gpu.bus_mbps for gpu in hardware.gpus] if hardware is not None else []
    if not buses or 0 in buses:
        return None
    free_mbps = beat.bus_free_mbps if beat is not None else 0
    return Link(0.0, min(max(buses), free_mbps or max(buses)) * BYTES_PER_MBIT)


def _memory_bytes(hardware: Hardware | None) -> int:
    """The memory that models live in: that of the largest accelerator, or the host's where there is none."""
    if hardware is None:
        return 0
    return max((gpu.memory_bytes for gpu in hardware.gpus), default=hardware.memory_bytes)
