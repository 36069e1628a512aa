"""What the probe machine wants done, and what it found out."""

from dataclasses import dataclass
from enum import StrEnum

from protocol.coordinates import Coordinate
from protocol.errors import ErrorCode
from protocol.identity import PeerId


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send `payload` to the peer in a QUIC DATAGRAM frame, at once."""

    peer: PeerId
    payload: bytes


@dataclass(frozen=True, slots=True)
class SampleTaken:
    """A round trip was measured, by an echo or by a third leg: this node's own nonce by its own clock, either way.

    `place` is where the peer says it is, None where it does not say.
    """

    peer: PeerId
    rtt_s: float
    place: Coordinate | None = None


@dataclass(frozen=True, slots=True)
class PeerSuspected:
    """The peer has been silent since `since`, a monotonic time in seconds; work should go elsewhere."""

    peer: PeerId
    since: float


@dataclass(frozen=True, slots=True)
class PeerRecovered:
    """A suspected peer has answered."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """The peer broke the protocol; it is to be scored."""

    peer: PeerId
    code: ErrorCode
    detail: str


Output = SendDatagram | SampleTaken | PeerSuspected | PeerRecovered | Misbehaved
"""What the machine wants done, and what it found out."""


class Liveness(StrEnum):
    """What is known of a connected peer."""

    ALIVE = "alive"
    SUSPECTED = "suspected"
