"""What a relay does for whom: how many sealed requests pass through this node at once, and how fast they may begin.

A relay knows of a request only who asks, who is to answer and how often it may be passed on. It is charged before
anything is done for it, per requester and per executor, so that neither can use up the relay.

Source: libp2p/specs relay/circuit-v2.md (limits of a relay by peer and in all).
Spec: docs/spec/10-sealing.md, section "Relay".
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass

from protocol.budget import Budget, Verdict
from protocol.errors import ErrorCode
from protocol.identity import PeerId


@dataclass(frozen=True, slots=True)
class CircuitConfig:
    """Bounds.

    Attributes:
        circuits_max: requests that pass through at once; each holds two streams and what one read of each brings.
        circuits_per_peer_max: of those, how many of one requester, and how many to one executor.
        rate_per_s: how many a requester may begin in a second: as fast as it may ask this node itself.
        burst: and how many at once after a pause.
        peers_max: requesters whose rate is remembered; the longest idle makes room.
    """

    circuits_max: int = 128
    circuits_per_peer_max: int = 16
    rate_per_s: float = 100.0
    burst: float = 200.0
    peers_max: int = 512


@dataclass(frozen=True, slots=True)
class Declined:
    """Why a request does not pass."""

    code: ErrorCode
    reason: str


class Circuits:
    """The requests that pass through this node now."""

    def __init__(self, config: CircuitConfig, own: PeerId) -> None:
        """Nothing passes yet.

        Args:
            config: bounds.
            own: this node, through which nothing passes to itself.
        """
        self._config = config
        self._own = own
        self._open = 0
        self._asking: Counter[PeerId] = Counter()
        self._answering: Counter[PeerId] = Counter()
        self._budgets: OrderedDict[PeerId, Budget] = OrderedDict()

    def __len__(self) -> int:
        """How many requests pass through now."""
        return self._open

    def open(self, requester: PeerId, executor: PeerId, hop: int, now: float) -> Declined | None:
        """Let a request pass; `close` has to follow where it may.

        Args:
            requester: who asks, as TLS has proven it.
            executor: who is to answer.
            hop: how often it may still be passed on.
            now: monotonic seconds.

        Returns:
            Why it does not pass, None where it does.
        """
        config = self._config
        if not self._may_begin(requester, now):
            return Declined(ErrorCode.RELAY_REFUSED, "requests begin too fast")
        if hop != 1:
            return Declined(ErrorCode.HOPS_EXCEEDED, f"{hop} hops are left where a relay has one")
        if executor in (requester, self._own):
            return Declined(ErrorCode.RELAY_REFUSED, "a request passes to a third peer only")
        if self._open >= config.circuits_max:
            return Declined(ErrorCode.RELAY_REFUSED, "too many requests pass through here")
        if max(self._asking[requester], self._answering[executor]) >= config.circuits_per_peer_max:
            return Declined(ErrorCode.RELAY_REFUSED, f"{config.circuits_per_peer_max} requests pass for this peer")
        self._open += 1
        self._asking[requester] += 1
        self._answering[executor] += 1
        return None

    def close(self, requester: PeerId, executor: PeerId) -> None:
        """Note that a request that was let pass is over."""
        self._open -= 1
        for counter, peer in ((self._asking, requester), (self._answering, executor)):
            counter[peer] -= 1
            if counter[peer] <= 0:
                del counter[peer]

    def _may_begin(self, requester: PeerId, now: float) -> bool:
        config = self._config
        budget = self._budgets.pop(requester, None) or Budget(config.rate_per_s, config.burst, 0.0, now)
        self._budgets[requester] = budget
        if len(self._budgets) > config.peers_max:
            self._budgets.popitem(last=False)
        return budget.take(1.0, now) is Verdict.GRANTED
