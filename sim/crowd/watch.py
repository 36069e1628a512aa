"""What is seen of a mesh under attack: how cards reach the honest nodes, and what becomes of their links."""

from dataclasses import dataclass, field

from protocol import gossip, membership
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.node import Output
from protocol.records import Card, ModelOffer, Record, RecordKind
from sim.process import Process
from sim.world import World

SAMPLE_S = 1.0
"""Seconds between two looks at the links: a heartbeat, after which a link that was lost is made good."""

LINKS_OUT = 2
"""Honest links that a node is to have to peers that it chose itself (it dialled them, or keeps a place for them), a count: the
goal."""


@dataclass
class Followed:
    """One card on its way to all other honest nodes."""

    peer_id: PeerId
    sequence: int
    began_at: float
    by_victim: bool
    after_s: dict[int, float] = field(default_factory=dict[int, float])  # by the index of the process


class Cards:
    """Has honest nodes publish cards, and follows them."""

    def __init__(self, world: World, honest: list[Process], victim: Process | None = None) -> None:
        """Follows every card of the honest that is published through it."""
        self.world = world
        self.followed: list[Followed] = []
        self._honest = honest
        self._victim = victim
        self._made = 0
        self._offers: dict[PeerId, ModelOffer] = {}  # that are to stand on a card that is followed
        self._newest: dict[PeerId, Followed] = {}
        world.seal_watchers.append(self._sealed)
        world.watchers.append(self._heard)

    def publish(self, process: Process, *, follow: bool) -> None:
        """Gives a process a new model; the card that tells of it is followed, or not."""
        self._made += 1
        offer = ModelOffer(f"marker {self._made}", frozenset(), engine="echo")
        process.offers = (*process.offers[:1], offer)
        if follow:
            self._offers[process.peer_id] = offer
        process.node.handle_offers(process.offers, self.world.now)
        self.world.settle(process)

    def _sealed(self, process: Process, record: Record) -> None:
        offer = self._offers.get(process.peer_id)
        if offer is None or not isinstance(record.payload, Card) or offer not in record.payload.models:
            return
        del self._offers[process.peer_id]
        followed = Followed(process.peer_id, record.sequence, self.world.now, process is self._victim)
        self._newest[process.peer_id] = followed
        self.followed.append(followed)

    def _heard(self, process: Process, output: Output) -> None:
        if not isinstance(output, gossip.RecordAccepted) or output.record.kind is not RecordKind.CARD or process.hostile:
            return
        followed = self._newest.get(output.record.peer_id)
        if followed is not None and output.record.sequence >= followed.sequence:
            followed.after_s.setdefault(process.index, self.world.now - followed.began_at)


@dataclass
class Links:
    """Looks at the links of all honest nodes, once a second.

    Attributes:
        out_min: (seconds, the fewest honest links of a node to peers that it chose, how many nodes have fewer than wanted).
        sybil_links: (seconds, links of honest meshes that lead to sybils, all links).
        refused: connections of sybils that were closed, by the code.
        sybils_max: the most sybils that any node was connected to.
        connected_max: the most connections that any node had.
        sybil_dials: connections that honest nodes tried to make to sybils.
    """

    world: World
    honest: list[Process]
    out_min: list[tuple[float, int, int]] = field(default_factory=list[tuple[float, int, int]])
    sybil_links: list[tuple[float, int, int]] = field(default_factory=list[tuple[float, int, int]])
    refused: dict[ErrorCode, int] = field(default_factory=dict[ErrorCode, int])
    messages: int = 0
    message_bytes: int = 0
    sybils_max: int = 0
    connected_max: int = 0
    sybil_dials: int = 0
    below_zero: list[str] = field(default_factory=list[str])  # honest nodes that an honest node holds for bad, as text
    _until: float = 0.0

    def __post_init__(self) -> None:
        self._ids = {process.peer_id: process for process in self.honest}
        self.world.watchers.append(self._watch)
        self.world.message_watchers.append(self._sent)

    def look_until(self, until: float) -> None:
        """Looks from now on until a time."""
        self._until = until
        self._look()

    def _look(self) -> None:
        fewest, few, sybil, links = 1 << 30, 0, 0, 0
        for process in self.honest:
            if not process.running:
                continue
            mesh = process.node.gossip.mesh()
            is_chosen = process.node.gossip.overlay.is_chosen
            own = sum(peer in self._ids and is_chosen(peer) for peer in mesh)
            fewest, few = min(fewest, own), few + (own < LINKS_OUT)
            sybil, links = sybil + sum(peer not in self._ids for peer in mesh), links + len(mesh)
            connected = process.node.membership.connected()
            self.connected_max = max(self.connected_max, len(connected))
            self.sybils_max = max(self.sybils_max, sum(peer not in self._ids for peer in connected))
        self.out_min.append((self.world.now, fewest, few))
        self.sybil_links.append((self.world.now, sybil, links))
        if self.world.now + SAMPLE_S <= self._until:
            self.world.at(self.world.now + SAMPLE_S, self._look)

    def _watch(self, process: Process, output: Output) -> None:
        if process.hostile:
            return
        if isinstance(output, membership.Connect):
            self.sybil_dials += isinstance(output.target, bytes) and output.target not in self._ids
        elif isinstance(output, (membership.Disconnect, gossip.Misbehaved)):
            if output.peer_id not in self._ids:
                self.refused[output.code] = self.refused.get(output.code, 0) + 1
            elif isinstance(output, gossip.Misbehaved):
                self.below_zero.append(f"n{process.index} blames n{self._ids[output.peer_id].index}: {output.code.name}")

    def _sent(self, process: Process, _peer_id: PeerId, payload: bytes) -> None:
        if not process.hostile:
            self.messages += 1
            self.message_bytes += len(payload)


@dataclass(frozen=True, slots=True)
class Signs:
    """Scores by their sign, counts of pairs of an honest node and a connected peer."""

    below: int
    zero: int
    above: int


def signs_of(honest: list[Process], others: set[PeerId], now: float) -> Signs:
    """What the honest nodes think of some of those that they are connected to."""
    below = zero = above = 0
    for process in honest:
        for peer_id in process.node.membership.connected():
            if peer_id in others:
                score = process.node.gossip.scores.score(peer_id, now)
                below, zero, above = below + (score < 0.0), zero + (score == 0.0), above + (score > 0.0)
    return Signs(below, zero, above)


def chosen_share(honest: list[Process], sybils: set[PeerId]) -> float:
    """Of the connections that honest nodes dialled or keep a place for, the share that leads to sybils."""
    chosen = hostile = 0
    for process in honest:
        for peer_id in process.node.membership.connected():
            if process.node.gossip.overlay.is_chosen(peer_id):
                chosen, hostile = chosen + 1, hostile + (peer_id in sybils)
    return hostile / max(1, chosen)
