"""What this node thinks of each peer of its gossip, by what it has seen of it itself.

A score is a sum: credit for new cards that came from the peer first, at most so much; less what it did not bring although it was
left to bring it (`audits`), what it announced and never sent, what was invalid or a flood, links asked for too soon, and too many
peers from one place. Faults count by their squares beyond what chance brings, so that no credit outweighs a fault that goes on.
All of it fades by halves. Nothing counts that others say.

Below zero a peer has no link of the mesh; below `ignored_below` nothing that it announces is asked for; below `banned_below` its
connection is closed and a new one too, until enough has faded. A score below zero outlives the connection. What is missing, and
whom a peer shares its address with, takes it out of the mesh and no further: who is cut off itself brings nothing either.

Beside the score stands how much of what others bring a link brings, its yield: of a mesh that is too large the links with the
least go first. It starts at a guess and is no merit, so that a peer which is always told first by this node keeps a good name.

Source: gossipsub v1.1 (libp2p/specs), section "Peer Scoring"; Vyzovitis et al., "GossipSub: Attack-Resilient Message Propagation
in the Filecoin and ETH2.0 Networks" (2020). The counts of missing deliveries are our own: there they are a rate.
Spec: docs/spec/04-gossip.md, section "Scores".
"""

from dataclasses import dataclass
from enum import IntEnum

from protocol.identity import PeerId


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """How much conduct weighs.

    Attributes:
        first_weight: of a card that came from the peer first.
        first_max: such cards that count at once: with the weight, at most 4 points, less than the second fault of any kind costs.
        missing_weight: of the square of what the peer did not bring, beyond `missing_free`.
        missing_free: deliveries that may be missing: who lost all other links for a moment brings nothing.
        missing_kept: what is left of a count of missing ones each time that the peer brings what it was left to.
        invalid_weight: of the square of the times that the peer was blamed: the third bans.
        behaviour_weight: of the square of broken promises and links asked for too soon, beyond `behaviour_free`.
        behaviour_free: of these, what chance brings: messages that cross on the way, a stream that stood still.
        origin_weight: of the square of the peers of one origin beyond `origin_free`.
        origin_free: connected peers of one origin (an address, a prefix) that count for nothing: a household, a small office.
        floor: the most that missing deliveries cost, and the most that an origin does: out of the mesh, and no further.
        half_life_s: after which half of all this is left: a fault a minute becomes 14, and is forgiven in an hour.
        ignored_below: below it announcements are ignored.
        banned_below: below it connections are closed.
        retained_s: for how long a score below zero is remembered of a peer that is gone.
        retained_max: peers so remembered; past it those that went first are forgotten.
        yield_first: the yield of a link that nothing is known of.
        yield_gain: share of the newest card in a yield: the last ten weigh most.
        idle_below: a link below this yield brings next to nothing: a newcomer after eleven cards in a row.
    """

    first_weight: float = 0.25
    first_max: float = 16.0
    missing_weight: float = 2.0
    missing_free: float = 2.0
    missing_kept: float = 0.9
    invalid_weight: float = 12.0
    behaviour_weight: float = 5.0
    behaviour_free: float = 3.0
    origin_weight: float = 5.0
    origin_free: int = 8
    floor: float = 30.0
    half_life_s: float = 600.0
    ignored_below: float = -40.0
    banned_below: float = -100.0
    retained_s: float = 3600.0
    retained_max: int = 1024
    yield_first: float = 0.3
    yield_gain: float = 0.1
    idle_below: float = 0.1


class Yield(IntEnum):
    """How much a link brings, in three steps."""

    IDLE = 0
    """Next to nothing of what others bring."""
    UNPROVEN = 1
    """Nothing is known of it, or less than of most."""
    PROVEN = 2
    """As much as from links that go both ways."""


class _Seen:
    """What was seen of one peer; the counters are those of the time `at`."""

    __slots__ = ("at", "behaviour", "first", "invalid", "missing", "origin", "share", "streak")

    def __init__(self, config: ScoreConfig, now: float) -> None:
        self.at = now
        self.first = self.missing = self.invalid = self.behaviour = 0.0
        self.origin: bytes | None = None
        self.share = config.yield_first
        self.streak = 0  # cards in a row that it did not bring

    def fade(self, half_life_s: float, now: float) -> None:
        """Lets the counters fade until now."""
        if now > self.at:
            left = 0.5 ** ((now - self.at) / half_life_s)
            self.first *= left
            self.missing *= left
            self.invalid *= left
            self.behaviour *= left
            self.at = now


class PeerScores:
    """The machine; times are monotonic seconds."""

    def __init__(self, config: ScoreConfig) -> None:
        """Starts with no opinions."""
        self._config = config
        self._peers: dict[PeerId, _Seen] = {}  # connected ones
        self._faulty: dict[PeerId, None] = {}  # those of them that were blamed, broke a promise or asked too soon
        self._gone: dict[PeerId, tuple[_Seen, float]] = {}  # those remembered, with the time of going, the first first
        self._origins: dict[bytes, int] = {}  # connected peers by origin

    def handle_connected(self, peer_id: PeerId, now: float, origin: bytes | None = None) -> None:
        """Notes a connection.

        Args:
            peer_id: whose.
            now: monotonic seconds.
            origin: the address or prefix that it comes from; None where peers that share it are to be expected.
        """
        seen = self._peers.get(peer_id)
        if seen is None:
            kept = self._gone.pop(peer_id, None)
            seen = self._peers[peer_id] = _Seen(self._config, now) if kept is None else kept[0]
            seen.share, seen.streak = self._config.yield_first, 0
            if kept is not None:
                self._faulty[peer_id] = None
        if seen.origin != origin:
            self._leave_origin(seen)
            seen.origin = origin
            if origin is not None:
                self._origins[origin] = self._origins.get(origin, 0) + 1

    def handle_disconnected(self, peer_id: PeerId, now: float) -> None:
        """Forgets a good score, and remembers a bad one for a while."""
        seen = self._peers.pop(peer_id, None)
        if seen is None:
            return
        self._faulty.pop(peer_id, None)
        self._leave_origin(seen)  # who shared its origin is still here, and it is not
        if self._sum(seen, now) < 0.0:
            seen.first = 0.0
            self._gone[peer_id] = seen, now
        until = now - self._config.retained_s
        while self._gone and (len(self._gone) > self._config.retained_max or self._gone[next(iter(self._gone))][1] <= until):
            del self._gone[next(iter(self._gone))]

    # What was seen

    def handle_first(self, peer_id: PeerId, now: float) -> None:
        """Notes a new card that came from the peer first, unasked."""
        if (seen := self._faded(peer_id, now)) is not None:
            seen.first = min(self._config.first_max, seen.first + 1.0)

    def handle_due(self, peer_id: PeerId, *, brought: bool) -> None:
        """Notes whether a peer of the mesh has brought a card that another one brought."""
        if (seen := self._peers.get(peer_id)) is not None:
            seen.share += self._config.yield_gain * ((1.0 if brought else 0.0) - seen.share)
            seen.streak = 0 if brought else seen.streak + 1

    def handle_left(self, peer_id: PeerId, now: float, *, brought: bool) -> None:
        """Notes whether a peer has brought what it was left to bring."""
        self.handle_due(peer_id, brought=brought)
        if (seen := self._faded(peer_id, now)) is not None:
            seen.missing = seen.missing * self._config.missing_kept if brought else seen.missing + 1.0

    def handle_invalid(self, peer_id: PeerId, now: float) -> None:
        """Notes that a peer was blamed: for what is invalid, or for a flood."""
        if (seen := self._faded(peer_id, now)) is not None:
            seen.invalid += 1.0
            self._faulty[peer_id] = None

    def handle_broken(self, peer_id: PeerId, now: float) -> None:
        """Notes a promise that was not kept, or a link asked for too soon."""
        if (seen := self._faded(peer_id, now)) is not None:
            seen.behaviour += 1.0
            self._faulty[peer_id] = None

    # What comes of it

    def score(self, peer_id: PeerId, now: float) -> float:
        """The score of a peer, remembered ones included; 0 for a stranger."""
        seen = self._peers.get(peer_id)
        if seen is None:
            kept = self._gone.get(peer_id)
            return 0.0 if kept is None else self._sum(kept[0], now)
        return self._sum(seen, now)

    def origin_of(self, peer_id: PeerId) -> bytes | None:
        """Where a connected peer comes from, as it was told."""
        seen = self._peers.get(peer_id)
        return None if seen is None else seen.origin

    def is_good(self, peer_id: PeerId, now: float) -> bool:
        """Whether a peer may have a link of the mesh."""
        seen = self._peers.get(peer_id)
        if seen is None or (seen.missing == seen.invalid == seen.behaviour == 0.0 and not self._is_crowded(seen)):
            return peer_id not in self._gone
        return self._sum(seen, now) >= 0.0

    def is_ignored(self, peer_id: PeerId, now: float) -> bool:
        """Whether what a peer announces is not asked for."""
        return self.score(peer_id, now) < self._config.ignored_below

    def is_banned(self, peer_id: PeerId, now: float) -> bool:
        """Whether a peer is not let in."""
        return self.score(peer_id, now) < self._config.banned_below

    def banned(self, now: float) -> list[PeerId]:
        """The connected peers whose connections are to be closed."""
        return [peer_id for peer_id in self._faulty if self.is_banned(peer_id, now)]

    def yield_of(self, peer_id: PeerId) -> Yield:
        """How much a link to a peer brings."""
        seen = self._peers.get(peer_id)
        if seen is None or self._config.idle_below <= seen.share <= self._config.yield_first:
            return Yield.UNPROVEN
        return Yield.IDLE if seen.share < self._config.idle_below else Yield.PROVEN

    def streak_of(self, peer_id: PeerId) -> int:
        """How many cards in a row a peer of the mesh has not brought."""
        seen = self._peers.get(peer_id)
        return 0 if seen is None else seen.streak

    def is_suspect(self, peer_id: PeerId, now: float) -> bool:
        """Whether anything that a peer was left to bring has been missing lately."""
        seen = self._faded(peer_id, now)
        return seen is not None and seen.missing >= 0.5

    # Helpers

    def _faded(self, peer_id: PeerId, now: float) -> _Seen | None:
        seen = self._peers.get(peer_id)
        if seen is not None:
            seen.fade(self._config.half_life_s, now)
        return seen

    def _sum(self, seen: _Seen, now: float) -> float:
        config = self._config
        seen.fade(config.half_life_s, now)
        missing = config.missing_weight * max(0.0, seen.missing - config.missing_free) ** 2
        score = config.first_weight * seen.first - min(missing, config.floor)
        score -= config.invalid_weight * (seen.invalid**2 if seen.invalid >= 0.25 else 0.0)  # two half-lives after one fault
        score -= config.behaviour_weight * max(0.0, seen.behaviour - config.behaviour_free) ** 2
        if self._is_crowded(seen):
            assert seen.origin is not None
            score -= min(config.floor, config.origin_weight * (self._origins[seen.origin] - config.origin_free) ** 2)
        return score

    def _is_crowded(self, seen: _Seen) -> bool:
        return seen.origin is not None and self._origins.get(seen.origin, 0) > self._config.origin_free

    def _leave_origin(self, seen: _Seen) -> None:
        if seen.origin is not None:
            self._origins[seen.origin] -= 1
            if not self._origins[seen.origin]:
                del self._origins[seen.origin]
            seen.origin = None
