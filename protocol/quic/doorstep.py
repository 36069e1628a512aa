"""Who may begin a handshake: the bounds on strangers, before anything is kept of them.

A first packet may come from anywhere, so its source proves nothing. While strangers are few they are let in as they come. When a
prefix has used up its allowance, or all together have, a stranger first proves its address by a Retry, which costs this node one
small datagram and no memory. A proven address is held to a second allowance of its prefix. So whoever forges addresses uses up
what is for unproven ones, and an honest stranger of any other prefix comes in with one round trip more.

Source: go-libp2p `p2p/net/swarm` and `p2p/host/resource-manager` (connections and rate per /32 and /56); RFC 9000 section 8.1.
Spec: docs/spec/02-transport.md, section "Strangers".
"""

from collections.abc import Callable
from dataclasses import dataclass

from protocol.budget import Budget, Verdict
from protocol.conduct import Allowance, Prefix, prefix_of
from protocol.quic.events import EndpointConfig
from protocol.quic.retry import Initial, Retry
from protocol.quic.seam import Address


@dataclass(frozen=True, slots=True)
class Admitted:
    """A handshake may begin.

    Attributes:
        original_cid: the connection id that the client chose at first.
        retry_cid: the one a Retry gave it; None where its address is not proven.
        prefix: where it comes from; None for one of the owner's own networks.
    """

    original_cid: bytes
    retry_cid: bytes | None
    prefix: Prefix | None


@dataclass(frozen=True, slots=True)
class Refused:
    """No handshake begins; `retry` is what to answer, None for nothing."""

    retry: bytes | None = None


class Doorstep:
    """Counts who comes from where."""

    def __init__(self, config: EndpointConfig, secret: bytes) -> None:
        self._config = config
        self._retry = Retry(secret)
        self._connections: dict[Prefix, int] = {}
        self._strangers: dict[Prefix, int] = {}
        self._n_unproven = 0
        self._all_unproven = Budget(config.unproven.rate_per_s, config.unproven.burst, 0.0, 0.0)
        self._unproven: dict[Prefix, Budget] = {}
        self._proven: dict[Prefix, Budget] = {}

    def prefix(self, address: Address) -> Prefix | None:
        """Where an address counts; None where it does not."""
        return prefix_of(address[0], self._config.own_networks)

    def judge(
        self, initial: Initial, address: Address, now: float, n_strangers: int, banned: Callable[[Prefix | None, float], bool]
    ) -> Admitted | Refused:
        """Decide about a first Initial packet."""
        config, prefix = self._config, self.prefix(address)
        if banned(prefix, now) or n_strangers >= config.handshakes_max:
            return Refused()
        if prefix is not None and (
            self._connections.get(prefix, 0) >= config.connections_per_prefix_max
            or self._strangers.get(prefix, 0) >= config.handshakes_per_prefix_max
        ):
            return Refused()
        if initial.token and (original := self._retry.original_cid(initial, address, now)) is not None:
            if prefix is not None and not self._take(self._proven, config.proven_per_prefix, prefix, now):
                return Refused()
            return Admitted(original, initial.cid, prefix)
        if not self._lets_in_unproven(prefix, now):
            return Refused(self._retry.packet(initial, address, now))
        return Admitted(initial.cid, None, prefix)

    def _lets_in_unproven(self, prefix: Prefix | None, now: float) -> bool:
        if self._n_unproven >= self._config.handshakes_unproven_max:
            return False
        own = self._unproven.get(prefix) if prefix is not None else None
        if own is not None and own.left(now) < 1:
            return False  # first, so that one prefix alone does not use up what is for all
        if self._all_unproven.take(1, now) is not Verdict.GRANTED:
            return False
        return prefix is None or self._take(self._unproven, self._config.unproven_per_prefix, prefix, now)

    def _take(self, budgets: dict[Prefix, Budget], allowance: Allowance, prefix: Prefix, now: float) -> bool:
        budget = budgets.get(prefix)
        if budget is None:
            if len(budgets) >= self._config.prefixes_max:
                del budgets[next(iter(budgets))]
            budget = budgets[prefix] = Budget(allowance.rate_per_s, allowance.burst, 0.0, now)
        return budget.take(1, now) is Verdict.GRANTED

    # What became of those who were let in.

    def entered(self, admitted: Admitted) -> None:
        """A connection was made."""
        _count(self._connections, admitted.prefix, 1)
        _count(self._strangers, admitted.prefix, 1)
        self._n_unproven += admitted.retry_cid is None

    def introduced(self, admitted: Admitted) -> None:
        """It is a stranger no more: its handshake is over, well or not."""
        _count(self._strangers, admitted.prefix, -1)
        self._n_unproven -= admitted.retry_cid is None

    def left(self, admitted: Admitted) -> None:
        """The connection is gone."""
        _count(self._connections, admitted.prefix, -1)


def _count(counts: dict[Prefix, int], prefix: Prefix | None, change: int) -> None:
    if prefix is None:
        return
    left = counts.get(prefix, 0) + change
    if left > 0:
        counts[prefix] = left
    else:
        counts.pop(prefix, None)
