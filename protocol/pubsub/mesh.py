"""The mesh of one topic: the few peers to which messages are pushed, and when it is time to take or give back one.

The numbers and the order of the steps are those of gossipsub v1.1: who has a negative score goes; below D_lo links are asked for
up to D; above D_hi the D_score best stay, others at random up to D, with at least D_out that this node dialled; now and then,
where the median score is poor, better peers are asked in. A link given back is not asked for while its backoff lasts.

Source: libp2p/specs pubsub/gossipsub/gossipsub-v1.1.md, sections "Heartbeat Maintenance", "Outbound Mesh Quotas", "Opportunistic
Grafting", "PRUNE Backoff and Peer Exchange".
Spec: docs/spec/08-pubsub.md, section "Meshes".
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from protocol.encoding import Luck
from protocol.identity import PeerId
from protocol.pubsub.config import PubsubConfig

BACKOFFS_MAX = 1024
"""Peers that are not asked for a link, a count, those gone meanwhile among them; past it those that stand there longest go."""


class GraftAnswer(Enum):
    """What becomes of a GRAFT; all but the first two are answered by a PRUNE."""

    TAKEN = "taken"
    HELD = "held"
    TOO_SOON = "too soon"
    MUCH_TOO_SOON = "much too soon"
    POOR_SCORE = "poor score"
    FULL = "full"


@dataclass(slots=True)
class MeshChange:
    """What a heartbeat has changed."""

    grafted: list[PeerId] = field(default_factory=list[PeerId])
    pruned: list[PeerId] = field(default_factory=list[PeerId])


class TopicMesh:
    """The machine; see the module's docstring. Times are monotonic seconds."""

    def __init__(self, config: PubsubConfig, luck: Luck, score: Callable[[PeerId], float]) -> None:
        """Starts without links.

        Args:
            config: degrees and backoffs.
            luck: who is chosen.
            score: what is thought of a peer.
        """
        self._config = config
        self._luck = luck
        self._score = score
        self._backoff: dict[PeerId, float] = {}
        self.members: dict[PeerId, None] = {}

    def handle_graft(self, peer_id: PeerId, now: float, *, is_dialled: bool) -> GraftAnswer:
        """A peer holds the link from now on, and asks for the same."""
        if peer_id in self.members:
            return GraftAnswer.HELD
        until = self._backoff.get(peer_id, now)
        if now < until:
            flood = now < until + self._config.graft_flood_s - self._config.backoff_s
            self.back_off(peer_id, self._config.backoff_s, now)
            return GraftAnswer.MUCH_TOO_SOON if flood else GraftAnswer.TOO_SOON
        if self._score(peer_id) < 0.0:
            self.back_off(peer_id, self._config.backoff_s, now)
            return GraftAnswer.POOR_SCORE
        if len(self.members) >= self._config.degree_max and not is_dialled:
            self.back_off(peer_id, self._config.backoff_s, now)
            return GraftAnswer.FULL
        self.members[peer_id] = None
        return GraftAnswer.TAKEN

    def handle_prune(self, peer_id: PeerId, backoff_s: float | None, now: float) -> bool:
        """A peer gives the link back; whether it was held."""
        told_s = self._config.backoff_s if not backoff_s else min(backoff_s, self._config.backoff_max_s)
        self.back_off(peer_id, told_s, now)
        return self.drop(peer_id)

    def drop(self, peer_id: PeerId) -> bool:
        """Holds the link to a peer no more; whether it was held."""
        if peer_id not in self.members:
            return False
        del self.members[peer_id]
        return True

    def back_off(self, peer_id: PeerId, seconds: float, now: float) -> None:
        """Asks a peer for no link for a while; a longer time that was set before stays."""
        self._backoff[peer_id] = max(now + seconds, self._backoff.get(peer_id, now))
        if len(self._backoff) > BACKOFFS_MAX:
            del self._backoff[next(iter(self._backoff))]

    def join(self, candidates: Iterable[PeerId]) -> list[PeerId]:
        """Takes the first links, up to D, of those subscribed."""
        grafted = self._chosen(candidates, self._config.degree - len(self.members))
        self.members.update(dict.fromkeys(grafted))
        return grafted

    def heartbeat(self, candidates: Mapping[PeerId, bool], now: float, *, betters: bool) -> MeshChange:
        """Looks after the mesh.

        Args:
            candidates: those subscribed, each with whether this node dialled it.
            now: monotonic seconds.
            betters: whether it is time to look for better peers.
        """
        config, change = self._config, MeshChange()
        slack_s = config.backoff_slack_s
        self._backoff = {peer_id: until for peer_id, until in self._backoff.items() if now < until + slack_s}
        self._prune([peer_id for peer_id in self.members if self._score(peer_id) < 0.0], change, now)
        if len(self.members) < config.degree_min:
            self._graft(self._chosen(candidates, config.degree - len(self.members)), change)
        if len(self.members) > config.degree_max:
            kept = self._kept(candidates)
            self._prune([peer_id for peer_id in self.members if peer_id not in kept], change, now)
        if len(self.members) >= config.degree_min:
            missing = config.degree_out - sum(candidates.get(peer_id, False) for peer_id in self.members)
            dialled = [peer_id for peer_id, is_dialled in candidates.items() if is_dialled]
            self._graft(self._chosen(dialled, missing), change)
        if betters and len(self.members) > 1:
            scores = sorted(map(self._score, self.members))
            median = scores[len(scores) // 2]
            if median < config.score.opportunistic_threshold:
                above = [peer_id for peer_id in candidates if self._score(peer_id) > median]
                self._graft(self._chosen(above, config.opportunistic_peers), change)
        return change

    def _chosen(self, candidates: Iterable[PeerId], count: int) -> list[PeerId]:
        """At most so many peers, at random, of those that may be asked for a link."""
        free = [peer_id for peer_id in candidates if peer_id not in self.members and peer_id not in self._backoff]
        able = [peer_id for peer_id in free if self._score(peer_id) >= 0.0]
        return self._luck.sample(able, min(max(0, count), len(able)))

    def _graft(self, peers: list[PeerId], change: MeshChange) -> None:
        self.members.update(dict.fromkeys(peers))
        change.grafted += peers

    def _prune(self, peers: list[PeerId], change: MeshChange, now: float) -> None:
        for peer_id in peers:
            del self.members[peer_id]
            self.back_off(peer_id, self._config.backoff_s, now)
        change.pruned += peers

    def _kept(self, candidates: Mapping[PeerId, bool]) -> set[PeerId]:
        """Those that stay of too many: the best, then others at random, then as many dialled ones as are missing."""
        config = self._config
        ordered = list(self.members)
        self._luck.shuffle(ordered)  # equal scores are in no order
        ordered.sort(key=self._score, reverse=True)
        best, rest = ordered[: config.degree_score], ordered[config.degree_score :]
        self._luck.shuffle(rest)
        kept, others = best + rest[: config.degree - len(best)], rest[config.degree - len(best) :]
        missing = config.degree_out - sum(candidates.get(peer_id, False) for peer_id in kept)
        for dialled in [peer_id for peer_id in others if candidates.get(peer_id, False)][: max(0, missing)]:
            gives_way = next((peer_id for peer_id in reversed(kept) if not candidates.get(peer_id, False)), None)
            if gives_way is not None:
                kept[kept.index(gives_way)] = dialled
        return set(kept)
