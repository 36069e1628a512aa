"""The mesh of links over which news is pushed: which of the connected peers belong to it.

Each node wants `degree` links. It asks connected peers for one (GRAFT) when it has too few and gives some back (PRUNE) when it
has too many; both ends of a link hold it or neither does. Half of the links that a node asks for lead to peers it connected to
at random, so that the mesh does not fall apart into regions; the others are any.

So many links as `degree_out` lead to peers that this node chose itself, because it dialled them or keeps a place for them,
whoever else asks: who dials here cannot take the whole mesh. Who has a score below zero has no link. Of too many those go first
that bring next to nothing, then those of peers that have no card and have not proven themselves, and last those of peers that
this node did not choose and that have proven themselves. A peer that is worth more than the first of these takes its place when
it asks.

Source: gossipsub v1.0 and v1.1 specifications (libp2p/specs, pubsub/gossipsub), mesh maintenance and prune backoff.
Spec: docs/spec/04-gossip.md, section "The mesh".
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass

from protocol.encoding import Luck
from protocol.gossip.events import GossipConfig
from protocol.gossip.score import PeerScores, Yield
from protocol.identity import PeerId


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What a heartbeat changed: links asked for and links given back."""

    grafted: tuple[PeerId, ...] = ()
    pruned: tuple[PeerId, ...] = ()


class Overlay:
    """The machine; it is told of every connected peer and knows which links are held."""

    def __init__(self, config: GossipConfig, luck: Luck, scores: PeerScores, has_card: Callable[[PeerId], bool]) -> None:
        """Knows nobody; `has_card` says whether the card of a peer is held."""
        self._has_card = has_card
        self._config = config
        self._luck = luck
        self._scores = scores
        self._far: dict[PeerId, bool] = {}  # every connected peer: whether it was chosen at random
        self._backoff: dict[PeerId, float] = {}  # until when a peer is not asked for a link
        self._refusing: dict[PeerId, float] = {}  # until when a peer that was given back its link gets none
        self._told_no: dict[PeerId, float] = {}  # until when a peer that was sent a prune should not ask
        self._silent: set[PeerId] = set()
        self._dialled: set[PeerId] = set()  # those that this node has dialled
        self._kept: set[PeerId] = set()  # those whose connections this node wants to keep
        self._keeping: set[PeerId] = set()  # those who said that they want to keep theirs
        self._heartbeats = 0
        self.members: list[PeerId] = []  # sorted

    def __contains__(self, peer_id: PeerId) -> bool:
        """Whether the link to the peer belongs to the mesh."""
        place = bisect_left(self.members, peer_id)
        return place < len(self.members) and self.members[place] == peer_id

    def handle_connected(self, peer_id: PeerId, now: float, *, far: bool, dialled: bool = False) -> bool:
        """Notes a connected peer; whether its link is taken into the mesh at once, because there are too few."""
        self.handle_dialled(peer_id, far=far, dialled=dialled)
        self._silent.discard(peer_id)
        if len(self.members) >= self._config.degree or peer_id in self or not self._is_free(peer_id, now):
            return False
        self._hold(peer_id)
        return True

    def handle_dialled(self, peer_id: PeerId, *, far: bool, dialled: bool) -> None:
        """Notes why a peer is connected."""
        self._far[peer_id] = far
        if dialled:
            self._dialled.add(peer_id)

    def handle_disconnected(self, peer_id: PeerId) -> bool:
        """Forgets a peer; whether its link belonged to the mesh."""
        self._far.pop(peer_id, None)
        self._backoff.pop(peer_id, None)
        self._refusing.pop(peer_id, None)
        self._told_no.pop(peer_id, None)
        self._silent.discard(peer_id)
        for chosen in (self._dialled, self._kept, self._keeping):
            chosen.discard(peer_id)
        return self._drop(peer_id)

    def handle_kept(self, peer_id: PeerId, *, keeps: bool) -> None:
        """Notes whether this node wants to keep the connection to a peer."""
        if keeps:
            self._kept.add(peer_id)
        else:
            self._kept.discard(peer_id)

    def handle_keeping(self, peer_id: PeerId, *, keeps: bool) -> None:
        """Notes whether a peer has said that it wants to keep the connection."""
        if keeps:
            self._keeping.add(peer_id)
        else:
            self._keeping.discard(peer_id)

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
        leave one another alone by turns for ever. Who was refused or given back its link, and asks again too soon, is noted.
        """
        if peer_id in self:
            return True
        if now < self._told_no.get(peer_id, now):
            self._scores.handle_broken(peer_id, now)
        if now < self._refusing.get(peer_id, now) or not self._scores.is_good(peer_id, now) or not self._has_room_for(peer_id):
            self._told_no[peer_id] = now + self._config.refused_backoff_s
            return False
        self._silent.discard(peer_id)
        self._hold(peer_id)
        return True

    def handle_prune(self, peer_id: PeerId, now: float) -> bool:
        """Lets go of a link that a peer gives back; whether it belonged to the mesh."""
        if peer_id in self._far:
            self._backoff[peer_id] = now + self._config.prune_backoff_s
        return self._drop(peer_id)

    def make_good(self, now: float) -> list[PeerId]:
        """Whom to ask for a link at once, because too few are left to peers that this node chose; they are held from now on.

        A mesh that is full of others' links for the moment has room for these, as for those that are worth more than one of them.
        """
        config = self._config
        missing = config.degree_out - 1 - sum(map(self.is_chosen, self.members))
        has_room = len(self.members) <= config.degree_max + config.displaced_max
        grafted = self._more(missing, [], now) if missing > 0 and has_room else []
        for peer_id in grafted:
            self._hold(peer_id)
        return grafted

    def heartbeat(self, now: float) -> Maintenance:
        """Looks which links are bad, and whether there are too few or too many, and changes what has to be changed."""
        config = self._config
        self._heartbeats += 1
        self._backoff = {peer_id: until for peer_id, until in self._backoff.items() if now < until}
        self._refusing = {peer_id: until for peer_id, until in self._refusing.items() if now < until}
        self._told_no = {peer_id: until for peer_id, until in self._told_no.items() if now < until}
        pruned = [peer_id for peer_id in self.members if not self._scores.is_good(peer_id, now)]
        self._give_back(pruned, now)
        chosen = sum(map(self.is_chosen, self.members))
        grafted: list[PeerId] = []
        if len(self.members) < config.degree_min:
            grafted = self._choose(config.degree - len(self.members), now)
        missing = config.degree_out - chosen - sum(map(self.is_chosen, grafted))
        is_time = self._heartbeats % config.opportunity_heartbeats == 0
        if missing > 1 or (missing > 0 and is_time):
            grafted += self._more(missing, grafted, now)
        elif is_time and self._is_poor():
            grafted += self._more(1, grafted, now)
        for peer_id in grafted:
            self._hold(peer_id)
        if len(self.members) > config.degree_max:
            surplus = [peer_id for peer_id in self._least() if peer_id not in grafted][: len(self.members) - config.degree]
            self._give_back(surplus, now)
            pruned += surplus
        return Maintenance(grafted=tuple(grafted), pruned=tuple(sorted(pruned)))

    def outside(self, count: int, now: float) -> list[PeerId]:
        """Up to `count` connected peers outside the mesh, at random, one of them chosen by this node where there is one."""
        others = [peer_id for peer_id in self._listening(now) if peer_id not in self]
        if len(others) <= count:
            return others
        own = [peer_id for peer_id in others if self.is_chosen(peer_id)]
        first = [self._luck.choice(own)] if own and count else []
        return first + self._luck.sample([peer_id for peer_id in others if peer_id not in first], count - len(first))

    def chosen(self, count: int, now: float) -> list[PeerId]:
        """Up to `count` peers outside the mesh that this node chose itself, at random."""
        others = [peer_id for peer_id in self._listening(now) if self.is_chosen(peer_id) and peer_id not in self]
        return others if len(others) <= count else self._luck.sample(others, count)

    def is_chosen(self, peer_id: PeerId) -> bool:
        """Whether this node chose a connected peer itself: it dialled it, or keeps a place for it."""
        return peer_id in self._dialled or peer_id in self._kept

    def is_dialled(self, peer_id: PeerId) -> bool:
        """Whether this node has dialled a connected peer."""
        return peer_id in self._dialled

    def is_far(self, peer_id: PeerId) -> bool:
        """Whether a connected peer was chosen at random."""
        return self._far.get(peer_id, True)

    def _listening(self, now: float) -> list[PeerId]:
        return [peer_id for peer_id in sorted(self._far) if peer_id not in self._silent and self._scores.is_good(peer_id, now)]

    def _candidates(self, now: float) -> list[PeerId]:
        """Who may be asked for a link, in the order of the ids."""
        return [peer_id for peer_id in self._listening(now) if peer_id not in self and peer_id not in self._backoff]

    def _choose(self, count: int, now: float) -> list[PeerId]:
        """Peers to ask for a link: as many random ones as are missing to a half, then any."""
        free = self._candidates(now)
        far = [peer_id for peer_id in free if self._far[peer_id]]
        missing = self._config.degree // 2 - sum(self._far[peer_id] for peer_id in self.members)
        chosen = self._luck.sample(far, max(0, min(missing, count, len(far))))
        others = [peer_id for peer_id in free if peer_id not in chosen]
        return chosen + self._luck.sample(others, max(0, min(count - len(chosen), len(others))))

    def _least(self) -> list[PeerId]:
        """The links that may be given back, those first that are worth least, of those alike near ones, else in any order.

        The best of those that this node chose are not among them: of those that bring as much the ones that it has dialled, for
        who has dialled it may have come to be kept, and far ones first. Others have no claim to the places left: a far link is
        chosen by one of its ends and has to find a place at the other, and without any the mesh falls apart into regions.
        """
        order = self._luck.sample(self.members, len(self.members))
        order.sort(key=lambda peer_id: (self._worth(peer_id), self._far[peer_id]))
        chosen = [peer_id for peer_id in order if self.is_chosen(peer_id)]
        chosen.sort(key=lambda peer_id: (self._scores.yield_of(peer_id), peer_id in self._dialled, self._far[peer_id]))
        kept = chosen[-self._config.degree_out :] if self._config.degree_out else []
        return [peer_id for peer_id in order if peer_id not in kept]

    def _worth(self, peer_id: PeerId) -> int:
        """What a link is worth beside those that this node has by its own choice: nothing if it brings nothing."""
        brings = self._scores.yield_of(peer_id)
        if brings is Yield.IDLE:
            return 0
        if brings is Yield.PROVEN:
            return 3 if self.is_chosen(peer_id) else 4
        return 2 if self.is_chosen(peer_id) or self._has_card(peer_id) else 1  # nobody can be dialled who has no card

    def _has_room_for(self, peer_id: PeerId) -> bool:
        """Whether a link that is asked for is taken: there is room, or it is worth more than one that goes for it soon."""
        surplus = len(self.members) - self._config.degree_max
        if surplus <= 0:
            return True
        wanted = self.is_chosen(peer_id) and sum(map(self.is_chosen, self.members)) < self._config.degree_out
        return surplus <= self._config.displaced_max and (wanted or self._worth(peer_id) > self._worth(self._least()[0]))

    def _more(self, count: int, grafted: list[PeerId], now: float) -> list[PeerId]:
        """Chosen peers to ask for a link: far ones while they are too few, then such as keep this node too; first dialled ones.

        Where fewer are left than have to be it is the other way round: who keeps this node has a place for it as long as it has
        too few such links itself.
        """
        urgent = sum(map(self.is_chosen, self.members)) < self._config.degree_out - 1
        able = [peer_id for peer_id in self._candidates(now) if self.is_chosen(peer_id) and peer_id not in grafted]
        able = self._luck.sample(able, len(able))
        lacks_far = self._lacks_far()
        able.sort(
            key=lambda peer_id: (
                peer_id not in self._dialled,
                urgent and peer_id not in self._keeping,
                lacks_far and not self._far[peer_id],
                peer_id not in self._keeping,
            )
        )
        return able[:count]

    def _lacks_far(self) -> bool:
        """Whether fewer than half of the links lead to peers chosen at random, though there are more of these."""
        far = sum(self._far[peer_id] for peer_id in self.members)
        return far < self._config.degree // 2 and sum(self._far.values()) > far

    def _is_poor(self) -> bool:
        """Whether half of the links bring next to nothing, or too few lead to peers chosen at random."""
        idle = sum(self._worth(peer_id) == 0 for peer_id in self.members)
        return 2 * idle >= max(1, len(self.members)) or self._lacks_far()

    def _is_free(self, peer_id: PeerId, now: float) -> bool:
        return now >= self._backoff.get(peer_id, now) and self._scores.is_good(peer_id, now)

    def _hold(self, peer_id: PeerId) -> None:
        insort(self.members, peer_id)

    def _give_back(self, peers: list[PeerId], now: float) -> None:
        for peer_id in peers:
            self.handle_prune(peer_id, now)
            self._refusing[peer_id] = now + self._config.prune_backoff_s
            self._told_no[peer_id] = now + self._config.refused_backoff_s

    def _drop(self, peer_id: PeerId) -> bool:
        if peer_id not in self:
            return False
        self.members.remove(peer_id)
        return True
