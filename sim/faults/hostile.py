"""Peers that mean harm: processes of their own that join like others, over real links, and then do what no honest core does.

A hostile process runs a `HostileNode`: the honest core, so that it is let in and knows what a peer knows, with a `Conduct` that
says raw messages beside it and swallows, delays or changes what the core wants to say. It stands at a place of its own, dies when
the fault ends, and nothing is demanded of it or of what peers hold of it. One identity is one process here, so that a crowd of
sybils is several processes; identities that are only invented, whose records are signed but who connect to nobody, cost none.

What each attack achieves today is written down in docs/simulation.md. Source: the threats of sections 2.3 to 2.5 there.
"""

import hashlib
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from random import Random

from protocol import gossip, membership, probe
from protocol.coordinates import DIMENSIONS, Coordinate, CoordinateConfig, Vivaldi
from protocol.encoding import Luck
from protocol.gossip.messages import ENVELOPES_MAX, records_messages
from protocol.identity import Identity, PeerId
from protocol.inference import Feature
from protocol.load import ModelLoad
from protocol.multiaddr import Multiaddr
from protocol.node import Node, NodeConfig, Output
from protocol.probe import KIND_ECHO, KIND_ECHO_THREE, KIND_THIRD_LEG, PROBE_BYTES
from protocol.records import (
    Accusation,
    Card,
    Edges,
    Hardware,
    Measured,
    ModelOffer,
    RecordKind,
    Sequencer,
    Verdict,
    edge_tag,
    encode_measured,
    seal,
)
from protocol.table import record_key
from protocol.wire import PackingLimits, pack
from sim.faults.base import Fault, MakeFault
from sim.process import MakeNode, Process
from sim.world import World

ATTACK_EVERY_S = 0.5
"""Seconds between two attacks of one process: as often as honest peers probe, so that no budget notices."""

REMEMBERED = 500
"""Records of others that a replayer keeps, a count: a minute of a small mesh."""

REPLAYED = 20
"""Records replayed in one attack, a count: below the burst that a core grants."""

INVENTED = 8
"""Identities invented in one attack, a count: 16 a second, below the 20 records a second that a core grants a peer."""

NOWHERE = "198.51.100.7"
"""Where the invented say that they listen: an address of documentation (RFC 5737) at which nobody answers."""

FUTURE_S = 7_200.0
"""Seconds by which a record from the future is ahead: two hours, far past the 60 s allowed."""

ECHO_LATE_S = 0.2
"""Seconds by which a liar about round trips delays its echoes: another continent."""

FOREIGN_LEGS = 8
"""Peers to whom a nonce is said that was meant for one of them, a count: as many as half a small mesh."""

EDGES_TOLD = 128
"""Edges of one record, a count: as many as it may hold."""

SLANDERERS = 3
"""Processes that slander together, a count: one more than the voices that make a peer doubted."""

CROWD = 6
"""Processes of an eclipse attempt, a count: as many as a small mesh has honest nodes."""

FIRST_NUMBER = 10_000
"""Sequence number of the first record signed past the core, far above those of the core: none is used twice by mistake."""

GARBLED_SHARE = 0.2
"""Share of a garbler's messages in which a byte changes, unitless."""

_WIDE = PackingLimits(size_bytes_max=1 << 20, depth_max=64, values_max=1 << 16)


class HostileNode(Node):
    """An honest core with a conduct of its own.

    Attributes:
        key: what it signs with.
        numbers: the sequence numbers of what it signs past the core.
        luck: its luck.
        now: when it was last called.
        heard: envelopes of others that it has accepted, the newest last.
        raw: what it says next, past the core.
    """

    def __init__(self, config: NodeConfig, identity: Identity, luck: Luck, sequencer: Sequencer, conduct: "Conduct") -> None:
        self.key, self.luck, self.conduct = identity, luck, conduct
        self.numbers = count(FIRST_NUMBER)
        self.now = float("-inf")
        self.heard: deque[bytes] = deque(maxlen=REMEMBERED)
        self.raw: deque[Output] = deque()
        self._later: list[tuple[float, int, Output]] = []
        self._order = count()
        self._attack_at = float("-inf")
        super().__init__(config, identity, luck, sequencer)
        if conduct.coordinate is not None:
            self.vivaldi = _Elsewhere(config.coordinates, luck, conduct.coordinate)

    def next_timer(self) -> float:
        """When the core or the conduct wants to be woken."""
        later = [self._later[0][0]] if self._later else []
        return min([super().next_timer(), max(self._attack_at, self.now + 1e-3), *later])

    def handle_timer(self, now: float) -> None:
        """Does what the core wants, and what the conduct wants."""
        self.now = now
        super().handle_timer(now)
        while self._later and self._later[0][0] <= now:
            self.raw.append(heapq.heappop(self._later)[2])
        if now >= self._attack_at:
            self._attack_at = now + ATTACK_EVERY_S
            self.conduct.attack(self)

    def handle_datagram(self, peer_id: PeerId, payload: bytes, received_at: float, now: float) -> None:
        """Notes the time, which an answer may be late by."""
        self.now = now
        super().handle_datagram(peer_id, payload, received_at, now)

    def _take_gossip(self, output: gossip.Output, now: float) -> None:
        if not (self.conduct.unrepentant and isinstance(output, gossip.OwnRecordHeard)):
            super()._take_gossip(output, now)

    def next_output(self) -> Output | None:
        """What the conduct says, then what it lets the core say."""
        while True:
            if self.raw:
                return self.raw.popleft()
            output = super().next_output()
            if output is None:
                return None
            if isinstance(output, gossip.RecordAccepted):
                self.heard.append(output.record.envelope)
            said = self.conduct.says(self, output)
            if said is not None:
                return said

    def say(self, peer_id: PeerId, *payloads: bytes) -> None:
        """Sends gossip messages as they are."""
        self.raw.extend(gossip.Send(peer_id, payload) for payload in payloads)

    def say_later(self, output: Output, wait_s: float) -> None:
        """Does something after a while."""
        heapq.heappush(self._later, (self.now + wait_s, next(self._order), output))

    def card(self) -> Card:
        """The card that the core has published, to be changed and signed again."""
        record = self.table.get(self.peer_id, RecordKind.CARD)
        if record is not None and isinstance(record.payload, Card):
            return record.payload
        return Card((), Hardware("virtual", 1, 1, 1), (), None, "")

    def sealed(
        self, card: Card | Edges | Verdict, key: Identity | None = None, sequence: int | None = None, ahead_s: float = 0.0
    ) -> bytes:
        """An envelope round what is told, signed by its own key or another of which it has the private half."""
        issued_s = self.wall(self.now) + ahead_s
        number = next(self.numbers) if sequence is None else sequence
        lifetime_s = self.config.announcer.card_lifetime_s if isinstance(card, Card) else self.config.verdict_lifetime_s
        return seal(key or self.key, self.config.network_id, card, number, issued_s, issued_s + lifetime_s).envelope


class _Elsewhere(Vivaldi):
    """A place that is no place but a claim."""

    def __init__(self, config: CoordinateConfig, luck: Luck, claimed: Coordinate) -> None:
        super().__init__(config, luck)
        self._claimed = claimed

    @property
    def coordinate(self) -> Coordinate:
        """What is claimed."""
        return self._claimed


def _nothing(_node: HostileNode) -> None:
    """Does nothing of its own accord."""


def _everything(_node: HostileNode, output: Output) -> Output | None:
    """Says what the core says."""
    return output


@dataclass(frozen=True, slots=True)
class Conduct:
    """What a hostile process does.

    Attributes:
        attack: done twice a second.
        says: what becomes of an output of the core.
        coordinate: a place that it claims.
        unrepentant: whether it leaves standing what it said of others, which an honest core takes back on hearing it.
    """

    attack: Callable[[HostileNode], None] = _nothing
    says: Callable[[HostileNode, Output], Output | None] = _everything
    coordinate: Coordinate | None = None
    unrepentant: bool = False


def forge(node: HostileNode) -> None:
    """Cards in the names of others, signed by the wrong key, that lead to the attacker."""
    others = [record.peer_id for record in node.table.cards() if record.peer_id != node.peer_id]
    for peer_id in node.membership.connected():
        named = [other for other in others if other != peer_id]
        if named:
            envelope = node.sealed(node.card(), sequence=1_000_000 + int(node.now * 10))
            envelope = envelope.replace(bytes(node.peer_id), bytes(node.luck.choice(named)))
            node.say(peer_id, *records_messages([envelope]))


def replay(node: HostileNode) -> None:
    """Old records of others, in any order."""
    if node.heard:
        for peer_id in node.membership.connected():
            old = [node.heard[node.luck.randrange(len(node.heard))] for _ in range(REPLAYED)]
            node.say(peer_id, *records_messages(old))


def foretell(node: HostileNode) -> None:
    """Own cards from the future: one by two hours, one by just less than what is allowed."""
    config = node.config.table.records
    early = [node.sealed(node.card(), ahead_s=ahead_s) for ahead_s in (FUTURE_S, config.skew_s - 1.0)]
    for peer_id in node.membership.connected():
        node.say(peer_id, *records_messages(early))


def overflow(node: HostileNode) -> None:
    """Messages that are too long, hold too many records, or are too deep; one of them at random to each peer."""
    deep: object = b"x"
    for _ in range(40):
        deep = [deep]
    too_much = (
        pack([1, [bytes(gossip.MESSAGE_BYTES_MAX + 1)]], _WIDE),
        pack([1, [b"x"] * (ENVELOPES_MAX + 1)], _WIDE),
        pack([1, [bytes(node.config.table.records.bytes_max + 1)]], _WIDE),
        pack([3, deep], _WIDE),
    )
    for peer_id in node.membership.connected():
        node.say(peer_id, node.luck.choice(too_much))


def equivocate(node: HostileNode) -> None:
    """Two cards with one sequence number, one to every other peer."""
    number = next(node.numbers)
    two = [node.sealed(replace(node.card(), agent=agent), sequence=number) for agent in ("one", "other")]
    for place, peer_id in enumerate(node.membership.connected()):
        node.say(peer_id, *records_messages([two[place % 2]]))


def shorten_edges(node: HostileNode) -> None:
    """Edges to everybody that are as short as can be told, and the edges of others among one another as if they were its own."""
    others = sorted(node.membership.connected())
    tags = {edge_tag(node.peer_id, other) for other in others}
    tags.update(edge_tag(one, other) for one in others[:FOREIGN_LEGS] for other in others[:FOREIGN_LEGS] if one < other)
    told = encode_measured([Measured(tag, 1e-5, jitter_s=10.0) for tag in sorted(tags)][:EDGES_TOLD])
    for peer_id in others:
        node.say(peer_id, *records_messages([node.sealed(Edges((), told))]))


def invent(node: HostileNode) -> None:
    """Cards of identities that nobody is, each told to everybody."""
    crowd: list[bytes] = []
    for _ in range(INVENTED):
        seed = hashlib.sha256(b"invented" + node.luck.getrandbits(64).to_bytes(8, "big")).digest()
        key, card = Identity.from_seed(seed), node.card()
        nowhere = tuple(Multiaddr("ip4", NOWHERE, address.port, key.peer_id) for address in card.addresses)
        crowd.append(node.sealed(replace(card, addresses=nowhere), key=key, sequence=1))
    for peer_id in node.membership.connected():
        node.say(peer_id, *records_messages(crowd))


def slander(node: HostileNode) -> None:
    """Accuses everybody, in the newest incarnation that is known."""
    others = [record for record in node.table.cards() if record.peer_id != node.peer_id]
    named = sorted(
        (record_key(record.peer_id, RecordKind.CARD), record.payload.incarnation)
        for record in others
        if isinstance(record.payload, Card)
    )
    accused = tuple(Accusation(subject, incarnation) for subject, incarnation in named[: node.config.table.records.accused_max])
    envelope = node.sealed(Verdict(accused))
    for peer_id in node.membership.connected():
        node.say(peer_id, *records_messages([envelope]))


def boast_of_load(node: HostileNode) -> None:
    """Says that all its engines are idle and faster than light."""
    loads = tuple(ModelLoad(offer.model, 0, 0, 64, 0.0, 1e-5, 1e6) for offer in node.card().models)
    node.handle_load(loads)


def boast_of_models(node: HostileNode) -> None:
    """Claims models that it does not have."""
    names = ("echo", "llama-405b", "everything")
    node.handle_offers(tuple(ModelOffer(name, frozenset(Feature), 1_000_000, engine="echo") for name in names), node.now)


def keep_silent(_node: HostileNode, output: Output) -> Output | None:
    """Says nothing at all, and keeps its connections."""
    match output:
        case gossip.Send() | probe.SendDatagram() | membership.Disconnect():
            return None
        case _:
            return output


def keep_mute(_node: HostileNode, output: Output) -> Output | None:
    """Answers probes, and no gossip."""
    return None if isinstance(output, gossip.Send) else output


def echo_late(node: HostileNode, output: Output) -> Output | None:
    """Answers probes late, so that it seems farther than it is."""
    if isinstance(output, probe.SendDatagram) and output.payload[0] in (KIND_ECHO, KIND_ECHO_THREE, KIND_THIRD_LEG):
        node.say_later(output, ECHO_LATE_S)
        return None
    return output


def repeat_legs(node: HostileNode, output: Output) -> Output | None:
    """Says each nonce that it returns again, to whom it belongs and to others, and has others' nonces returned to it."""
    if isinstance(output, probe.SendDatagram) and output.payload[0] in (KIND_ECHO_THREE, KIND_THIRD_LEG):
        for peer_id in sorted({output.peer, *node.membership.connected()})[:FOREIGN_LEGS]:
            node.raw.append(probe.SendDatagram(peer_id, bytes((KIND_THIRD_LEG,)) + output.payload[1:PROBE_BYTES]))
            node.raw.append(probe.SendDatagram(peer_id, output.payload))
    return output


def garble(node: HostileNode, output: Output) -> Output | None:
    """Changes a byte of some messages, as broken memory does."""
    if isinstance(output, gossip.Send) and node.luck.random() < GARBLED_SHARE:
        place = node.luck.randrange(len(output.payload))
        changed = output.payload[place] ^ (1 + node.luck.randrange(255))
        return gossip.Send(output.peer_id, output.payload[:place] + bytes((changed,)) + output.payload[place + 1 :])
    return output


class Intrusion:
    """Hostile processes join, and die when the fault ends.

    They join by up to three nodes, or all by one victim, to whom they keep.
    """

    def __init__(self, luck: Random, world: World, name: str, conduct: Conduct, *, crowd: int = 1, eclipse: bool = False) -> None:
        known = world.processes
        self.name = name
        self.doors: Sequence[Process] = [luck.choice(known)] if eclipse else luck.sample(known, min(3, len(known)))
        self.conduct = _kept_to(conduct, self.doors[0].peer_id) if eclipse else conduct
        self.crowd = crowd
        self.processes: list[Process] = []

    def __str__(self) -> str:
        who = f"{self.crowd} peers" if self.crowd > 1 else "a peer"
        return f"{self.name}: {who}, by way of {', '.join(f'n{door.index}' for door in self.doors)}"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        doors = [door.address for door in self.doors]
        for _ in range(self.crowd):
            process = world.add(bootstrap=doors, at=world.now)
            process.hostile = True
            process.make_node = _make(self.conduct)
            self.processes.append(process)

    def end(self, world: World) -> None:
        """See `Fault`; who has not started yet does so first."""

        def dies(process: Process) -> None:
            if process.running:
                world.kill(process)

        for process in self.processes:
            world.at(world.now, lambda process=process: dies(process))  # type: ignore[misc]


def _kept_to(conduct: Conduct, victim: PeerId) -> Conduct:
    """The same conduct, that connects to nobody but the victim."""

    def says(node: HostileNode, output: Output) -> Output | None:
        if isinstance(output, membership.Connect) and output.target != victim:
            return None
        return conduct.says(node, output)

    return replace(conduct, says=says)


def _make(conduct: Conduct) -> MakeNode:
    return lambda config, identity, luck, sequencer: HostileNode(config, identity, luck, sequencer, conduct)


def _kind(name: str, conduct: Conduct, *, crowd: int = 1, eclipse: bool = False) -> MakeFault:
    def draw(luck: Random, world: World, /) -> Fault:
        return Intrusion(luck, world, name, conduct, crowd=crowd, eclipse=eclipse)

    return draw


_NEAR = Coordinate((0.0,) * DIMENSIONS, 0.0001, 0.0)

CONDUCTS: dict[str, Conduct] = {
    "hostile-forged": Conduct(forge),
    "hostile-replayed": Conduct(replay),
    "hostile-future": Conduct(foretell),
    "hostile-oversized": Conduct(overflow),
    "hostile-equivocating": Conduct(equivocate),
    "hostile-silent": Conduct(says=keep_silent),
    "hostile-mute": Conduct(says=keep_mute),
    "hostile-garbled": Conduct(says=garble),
    "hostile-rtt": Conduct(says=echo_late),
    "hostile-edges": Conduct(shorten_edges),
    "hostile-legs": Conduct(says=repeat_legs),
    "hostile-coordinate": Conduct(coordinate=_NEAR),
    "hostile-load": Conduct(boast_of_load),
    "hostile-models": Conduct(boast_of_models),
    "hostile-sybil": Conduct(invent),
}
"""What single hostile processes do, by the names of the faults."""

KINDS: dict[str, MakeFault] = {
    **{name: _kind(name, conduct) for name, conduct in CONDUCTS.items()},
    "hostile-slander": _kind("hostile-slander", Conduct(slander, unrepentant=True), crowd=SLANDERERS),
    "hostile-eclipse": _kind("hostile-eclipse", Conduct(coordinate=_NEAR), crowd=CROWD, eclipse=True),
}
"""All hostile faults, by their names."""
