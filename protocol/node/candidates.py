"""Nodes as candidates for a request: what routing is told of this node and of its peers."""

from protocol.announcer import Announcer
from protocol.identity import PeerId
from protocol.membership import Standing
from protocol.node.config import PeerView
from protocol.records import Beat, Hardware
from protocol.routing import CandidateInput, Path, RttSource


def own_candidate(peer_id: PeerId, announcer: Announcer, in_flight: int) -> CandidateInput:
    """This node as a candidate: no path, its own load."""
    return CandidateInput(
        peer_id=peer_id,
        path=Path(RttSource.SELF),
        offers=announcer.offers,
        beat=Beat(announcer.draining, announcer.loads),
        memory_bytes=_memory_bytes(announcer.hardware),
        in_flight=in_flight,
    )


def peer_candidate(view: PeerView, own_error: float, in_flight: int) -> CandidateInput:
    """A peer as a candidate: the best that is known of the path, its own word on the rest.

    Args:
        view: what is known of the peer.
        own_error: the error estimate of this node's coordinate, unitless.
        in_flight: requests of this node that the peer works on.
    """
    card, quality = view.card, view.quality
    if quality is not None:
        path = Path(RttSource.MEASURED, quality.rtt_s, quality.jitter_s, quality.loss, connected=view.connected)
    elif view.coordinate_rtt_s is not None and card is not None and card.coordinate is not None:
        error = max(card.coordinate.error, own_error)
        path = Path(RttSource.COORDINATE, view.coordinate_rtt_s, error=error, connected=view.connected)
    else:
        path = Path(RttSource.UNKNOWN, connected=view.connected)
    return CandidateInput(
        peer_id=view.peer_id,
        path=path,
        offers=() if card is None else card.models,
        beat=view.beat,
        unavailable="" if view.standing is Standing.ALIVE else f"{view.standing}: {view.why}",
        memory_bytes=_memory_bytes(None if card is None else card.hardware),
        in_flight=in_flight,
    )


def _memory_bytes(hardware: Hardware | None) -> int:
    """The memory that models live in: that of the largest accelerator, or the host's where there is none."""
    if hardware is None:
        return 0
    return max((gpu.memory_bytes for gpu in hardware.gpus), default=hardware.memory_bytes)
