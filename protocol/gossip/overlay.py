"""The mesh of links over which news is pushed: which of the connected peers belong to it.

Each node wants `degree` links. It asks connected peers for one (GRAFT) when it has too few and gives some back (PRUNE) when it
has too many; both ends of a link hold it or neither does. Half of the links that a node asks for lead to peers it connected to
at random, so that the mesh does not fall apart into regions; the others are any.

Source: gossipsub v1.0 and v1.1 specifications (libp2p/specs, pubsub/gossipsub), mesh maintenance and prune backoff.
Spec: docs/spec/04-gossip.md, section "The mesh".
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

from protocol.encoding import Luck
from protocol.gossip.events import GossipConfig
from protocol.identity import PeerId


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What a heartbeat changed: links asked for and links given back."""

    grafted: tuple[PeerId, ...] = ()
    pruned: tuple[PeerId, ...] = ()


class Overlay:
    """The machine; it is told of every connected peer and knows which links are held."""

    def __init__(self, config: GossipConfig, luck: Luck) -> None:
        self._config = config
        self._luck = luck
        self._far: dict[PeerId, bool] = {}  # every connected peer: whether it was chosen at random
        self._backoff: dict[PeerId, float] = {}  # until when a peer is not asked for a link
        self._refusing: dict[PeerId, float] = {}  # until when a peer that was given back its link gets none
        self._silent: set[PeerId] = set()
        self.members: list[PeerId] = []  # sorted

    def __contains__(self, peer_id: PeerId) -> bool:
        """Whether the link to the peer belongs to the mesh."""
        place = bisect_left(self.members, peer_id)
        return place < len(self.members) and self.members[place] == peer_id

    def handle_connected(self, peer_id: PeerId, now: float, *, far: bool) -> bool:
        """Notes a connected peer; whether its link is taken into the mesh at once, because there are too few."""
        self._far[peer_id] = far
        self._silent.discard(peer_id)
        if len(self.members) >= self._config.degree or peer_id in self or now < self._backoff.get(peer_id, now):
            return False
        insort(self.members, peer_id)
        return True

    def handle_disconnected(self, peer_id: PeerId) -> bool:
        """Forgets a peer; whether its link belonged to the mesh."""
        self._far.pop(peer_id, None)
        self._backoff.pop(peer_id, None)
        self._refusing.pop(peer_id, None)
        self._silent.discard(peer_id)
        return self._drop(peer_id)

    def handle_silent(self, peer_id: PeerId) -> bool:
        """Takes a peer that does not answer out until `handle_heard`; whether its link belonged to the mesh."""
        if peer_id in self._far:
            self._silent.add(peer_id)
        return self._drop(peer_id)

    def handle_heard(self, peer_id: PeerId) -> None:
        """Lets a peer that answers again be chosen."""
        self._silent.discard(peer_id)

    def handle_graft(self, peer_id: PeerId, now: float) -> bool:
        """Takes a link that a peer asks for; False when it has to be refused with a PRUNE.

        Who gave back the link is not refused when it asks: if each end refused the other after the other's refusal, the two would
        leave one another alone by turns for ever.
        """
        if peer_id in self:
            return True
        if len(self.members) > self._config.degree_max or now < self._refusing.get(peer_id, now):
            return False
        self._silent.discard(peer_id)
        insort(self.members, peer_id)
        return True

    def handle_prune(self, peer_id: PeerId, now: float) -> bool:
        """Lets go of a link that a peer gives back; whether it belonged to the mesh."""
        if peer_id in self._far:
            self._backoff[peer_id] = now + self._config.prune_backoff_s
        return self._drop(peer_id)

    def heartbeat(self, now: float) -> Maintenance:
        """Looks whether there are too few or too many links, and changes what has to be changed."""
        config = self._config
        self._backoff = {peer_id: until for peer_id, until in self._backoff.items() if now < until}
        self._refusing = {peer_id: until for peer_id, until in self._refusing.items() if now < until}
        if len(self.members) < config.degree_min:
            chosen = self._choose(config.degree - len(self.members))
            for peer_id in chosen:
                insort(self.members, peer_id)
            return Maintenance(grafted=tuple(chosen))
        if len(self.members) > config.degree_max:
            near = [peer_id for peer_id in self.members if not self._far[peer_id]]
            surplus = len(self.members) - config.degree
            given_back = self._luck.sample(near if len(near) >= surplus else self.members, surplus)
            for peer_id in given_back:
                self.handle_prune(peer_id, now)
                self._refusing[peer_id] = now + config.prune_backoff_s
            return Maintenance(pruned=tuple(sorted(given_back)))
        return Maintenance()

    def outside(self, count: int) -> list[PeerId]:
        """Up to `count` connected peers outside the mesh, at random."""
        others = [peer_id for peer_id in sorted(self._far) if peer_id not in self and peer_id not in self._silent]
        return others if len(others) <= count else self._luck.sample(others, count)

    def _choose(self, count: int) -> list[PeerId]:
        """Peers to ask for a link: as many random ones as are missing to a half, then any."""
        free = [
            peer_id
            for peer_id in sorted(self._far)
            if peer_id not in self and peer_id not in self._silent and peer_id not in self._backoff
        ]
        far = [peer_id for peer_id in free if self._far[peer_id]]
        missing = self._config.degree // 2 - sum(self._far[peer_id] for peer_id in self.members)
        chosen = self._luck.sample(far, max(0, min(missing, count, len(far))))
        others = [peer_id for peer_id in free if peer_id not in chosen]
        return chosen + self._luck.sample(others, max(0, min(count - len(chosen), len(others))))

    def _drop(self, peer_id: PeerId) -> bool:
        if peer_id not in self:
            return False
        self.members.remove(peer_id)
        return True
