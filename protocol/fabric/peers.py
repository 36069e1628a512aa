"""What each peer may use of fabrics: a budget of offers, and a door that its first error closes for a while.

An error of a fabric is never held against the peer's standing in the mesh: cables break. But whatever it was, the next requests
go by QUIC, and the longer the more often it happens.

Source: Rothenberger et al., "ReDMArk" (USENIX Security 2021), section 8 (mitigations).
Spec: docs/spec/11-fabric.md, section "Limits".
"""

from collections import OrderedDict
from dataclasses import dataclass

from protocol.budget import Budget, Verdict
from protocol.errors import ErrorCode
from protocol.fabric.values import FabricConfig
from protocol.identity import PeerId


@dataclass(slots=True)
class _Peer:
    """What is remembered of one peer."""

    offers: Budget
    errors: int = 0
    closed_until: float = 0.0
    why: str = ""


class FabricPeers:
    """Remembers what peers did with fabrics; bounded, whoever was used the longest ago is forgotten first."""

    def __init__(self, config: FabricConfig) -> None:
        """Begins with nobody."""
        self._config = config
        self._peers: OrderedDict[PeerId, _Peer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._peers)

    def is_open(self, peer: PeerId, now: float) -> bool:
        """Whether a fabric with this peer may be used."""
        known = self._peers.get(peer)
        return known is None or now >= known.closed_until

    def why_closed(self, peer: PeerId, now: float) -> str:
        """What closed it, empty while it is open."""
        known = self._peers.get(peer)
        return "" if known is None or now >= known.closed_until else known.why

    def charge_offer(self, peer: PeerId, now: float) -> ErrorCode | None:
        """Charge an offer before any work is done for it; what it is refused with, None where it is not."""
        known = self._known(peer, now)
        if now < known.closed_until:
            return ErrorCode.FABRIC_FAILED
        match known.offers.take(1.0, now):
            case Verdict.GRANTED:
                return None
            case Verdict.REFUSED:
                return ErrorCode.OVERLOADED
            case Verdict.FLOODED:
                return ErrorCode.FLOODING

    def handle_error(self, peer: PeerId, why: str, now: float) -> float:
        """Close the peer's fabric; return for how long, in seconds."""
        known = self._known(peer, now)
        closed_s = min(self._config.closed_s * 2.0**known.errors, self._config.closed_s_max)
        known.errors = min(known.errors + 1, 32)
        known.closed_until, known.why = now + closed_s, why
        return closed_s

    def handle_success(self, peer: PeerId) -> None:
        """A transfer went well after the door opened again: earlier errors are forgotten."""
        known = self._peers.get(peer)
        if known is not None:
            known.errors = 0

    def _known(self, peer: PeerId, now: float) -> _Peer:
        known = self._peers.get(peer)
        if known is None:
            config = self._config
            known = _Peer(Budget(config.offers_per_s, config.offers_burst, config.offers_debt_max, now))
            self._peers[peer] = known
            while len(self._peers) > config.peers_max:
                self._peers.popitem(last=False)
        else:
            self._peers.move_to_end(peer)
        return known
