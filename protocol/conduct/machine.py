"""Accounts of what each peer cost, and bans of peers and prefixes that cost too much or broke the rules too often.

Every cost has an account: a token bucket that refuses what exceeds it and, past a debt that no honest peer would run up, says
FLOODED. A peer that floods has committed a fault; so has one of which another machine says so (`fault`). A few faults are
forgiven, slowly; one more, or a used-up CPU account, and the peer is banned for a while, together with its prefix when several
peers there were. Accounts outlive the connection, so that coming again buys nothing; the oldest without a connection give way.

Source: docs/spec/02-transport.md, section "Conduct"; go-libp2p `p2p/host/resource-manager`; CVE-2023-44487 (rapid reset).
Spec: docs/spec/02-transport.md.
"""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from protocol.budget import Budget, Verdict
from protocol.conduct.config import Account, Allowance, ConductConfig
from protocol.conduct.prefixes import Prefix
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.timers import TimerQueue

FAULTS = frozenset(
    {
        ErrorCode.MALFORMED,
        ErrorCode.TOO_LARGE,
        ErrorCode.BAD_SIGNATURE,
        ErrorCode.WRONG_PEER,
        ErrorCode.FLOODING,
    }
)
"""Codes that an honest peer never earns; the others (another network, an expired record, a lost clock) happen to honest ones."""


@dataclass(frozen=True, slots=True)
class PeerBanned:
    """A peer is turned away for `ban_s` seconds, for what `code` says."""

    peer_id: PeerId
    code: ErrorCode
    ban_s: float


@dataclass(frozen=True, slots=True)
class PrefixBanned:
    """Strangers of a prefix are turned away for `ban_s` seconds."""

    prefix: Prefix
    ban_s: float


@dataclass(frozen=True, slots=True)
class BanExpired:
    """The ban of a peer, or that of a prefix, is over or gave way to newer ones."""

    peer_id: PeerId | None
    prefix: Prefix | None = None


Fact: TypeAlias = PeerBanned | PrefixBanned | BanExpired

Key = TypeVar("Key", bound=bytes)


class _Peer:
    """The accounts of one peer; made one by one, for most peers never open a stream or send a record."""

    __slots__ = ("budgets", "connections", "faults", "prefix")

    def __init__(self, config: ConductConfig, now: float) -> None:
        self.budgets: dict[Account, Budget] = {}
        self.faults = _budget(config.faults, now)
        self.connections = 0
        self.prefix: Prefix | None = None


class _Bans(Generic[Key]):
    """Until when who is banned; when there are too many the one that ends soonest gives way."""

    def __init__(self, bans_max: int) -> None:
        self._max = bans_max
        self.until: TimerQueue[Key] = TimerQueue()

    def add(self, key: Key, until: float) -> Key | None:
        """Ban `key`; return whose ban had to give way."""
        self.until.set(key, until)
        if len(self.until) <= self._max:
            return None
        gone = self.until.pop_due(float("inf"))
        return gone[0] if gone is not None else None

    def holds(self, key: Key, now: float) -> bool:
        """Whether `key` is banned now."""
        until = self.until.due_of(key)
        return until is not None and now < until


class Conduct:
    """The conduct of all peers of a node.

    Whoever finds that a peer broke the rules calls `fault(peer_id, code, now)`; whoever begins work for a peer calls `charge`
    first and does not begin it unless GRANTED. A caller that closes connections looks at `is_banned` after either.
    """

    def __init__(self, config: ConductConfig | None = None) -> None:
        self.config = config or ConductConfig()
        self._peers: dict[PeerId, _Peer] = {}
        self._bans: _Bans[PeerId] = _Bans(self.config.bans_max)
        self._prefix_bans: _Bans[Prefix] = _Bans(self.config.prefix_bans_max)
        self._prefixes: dict[Prefix, Budget] = {}
        self._facts: deque[Fact] = deque()

    @property
    def n_banned(self) -> int:
        """Peers that are banned."""
        return len(self._bans.until)

    def next_output(self) -> Fact | None:
        """Return the oldest fact not yet taken."""
        return self._facts.popleft() if self._facts else None

    # Who is there.

    def connected(self, peer_id: PeerId, prefix: Prefix | None, now: float) -> None:
        """A connection of a peer is established; `prefix` is where it comes from, None for one of the owner's own networks."""
        peer = self._peer(peer_id, now)
        peer.connections += 1
        peer.prefix = prefix

    def disconnected(self, peer_id: PeerId) -> None:
        """A connection of a peer is over; its accounts stay for as long as there is room."""
        peer = self._peers.pop(peer_id, None)
        if peer is not None:
            peer.connections = max(0, peer.connections - 1)
            self._peers[peer_id] = peer  # the last of those that give way

    # What it costs.

    def charge(self, peer_id: PeerId, account: Account, amount: float, now: float) -> Verdict:
        """Charge a peer for what is about to be done for it.

        Returns:
            GRANTED: do it. REFUSED: leave it, or do less. FLOODED: close its connections; it has committed a fault, and is banned
            when that was one too many or the account is that of the CPU.
        """
        verdict = self._budget(peer_id, account, now).take(amount, now)
        if verdict is Verdict.FLOODED:
            if account is Account.CPU:
                self.ban(peer_id, ErrorCode.FLOODING, now)
            else:
                self.fault(peer_id, ErrorCode.FLOODING, now)
        return verdict

    def give_back(self, peer_id: PeerId, account: Account, amount: float, now: float) -> None:
        """Return what was charged for something found to be wanted."""
        self._budget(peer_id, account, now).give_back(amount)

    def left(self, peer_id: PeerId, account: Account, now: float) -> float:
        """Return what is left of an account: from minus its largest debt to its burst."""
        return self._budget(peer_id, account, now).left(now)

    def fault(self, peer_id: PeerId, code: ErrorCode, now: float, weight: float = 1.0) -> bool:
        """Note that a peer broke the rules, and return whether it is banned now.

        Args:
            peer_id: whose fault it is, proven: by TLS, or by its signature.
            code: what it did. Codes that honest peers earn too (`FAULTS` lists the others) are passed over.
            now: monotonic seconds.
            weight: how much of a fault it is; one that ended a single stream is the less.
        """
        if self.is_banned(peer_id, now):
            return True
        if code not in FAULTS or self._peer(peer_id, now).faults.take(weight, now) is Verdict.GRANTED:
            return False
        self.ban(peer_id, code, now)
        return True

    # Who is turned away.

    def ban(self, peer_id: PeerId, code: ErrorCode, now: float) -> None:
        """Turn a peer away for `ban_s`, for something that is not forgiven once; a ban that holds is prolonged."""
        is_new = not self.is_banned(peer_id, now)
        if (gone := self._bans.add(peer_id, now + self.config.ban_s)) is not None:
            self._facts.append(BanExpired(gone))
        if not is_new:
            return
        self._facts.append(PeerBanned(peer_id, code, self.config.ban_s))
        peer = self._peers.get(peer_id)
        if peer is None or peer.prefix is None:
            return
        budget = self._prefixes.pop(peer.prefix, None) or _budget(self.config.banned_per_prefix, now)
        self._prefixes[peer.prefix] = budget
        while len(self._prefixes) > self.config.prefix_bans_max:
            del self._prefixes[next(iter(self._prefixes))]
        if budget.take(1, now) is not Verdict.GRANTED and not self.is_banned_prefix(peer.prefix, now):
            if (freed := self._prefix_bans.add(peer.prefix, now + self.config.ban_s)) is not None:
                self._facts.append(BanExpired(None, freed))
            self._facts.append(PrefixBanned(peer.prefix, self.config.ban_s))

    def is_banned(self, peer_id: PeerId, now: float) -> bool:
        """Whether a peer is turned away now."""
        return self._bans.holds(peer_id, now)

    def is_banned_prefix(self, prefix: Prefix | None, now: float) -> bool:
        """Whether strangers of a prefix are turned away now."""
        return prefix is not None and self._prefix_bans.holds(prefix, now)

    def next_timer(self) -> float | None:
        """Return when the next ban ends."""
        ends = [end for end in (self._bans.until.next_due(), self._prefix_bans.until.next_due()) if end is not None]
        return min(ends) if ends else None

    def handle_timer(self, now: float) -> None:
        """Let bans end."""
        while (peer := self._bans.until.pop_due(now)) is not None:
            self._facts.append(BanExpired(peer[0]))
        while (prefix := self._prefix_bans.until.pop_due(now)) is not None:
            self._facts.append(BanExpired(None, prefix[0]))

    # Helpers.

    def _peer(self, peer_id: PeerId, now: float) -> _Peer:
        peer = self._peers.get(peer_id)
        if peer is None:
            if len(self._peers) >= self.config.peers_max:
                idle = (other for other, account in self._peers.items() if account.connections == 0)
                del self._peers[next(idle, next(iter(self._peers)))]
            peer = self._peers[peer_id] = _Peer(self.config, now)
        return peer

    def _budget(self, peer_id: PeerId, account: Account, now: float) -> Budget:
        peer = self._peers.get(peer_id) or self._peer(peer_id, now)
        budget = peer.budgets.get(account)
        if budget is None:
            budget = peer.budgets[account] = _budget(self.config.allowance(account), now)
        return budget


def _budget(allowance: Allowance, now: float) -> Budget:
    return Budget(allowance.rate_per_s, allowance.burst, allowance.debt_max, now)
