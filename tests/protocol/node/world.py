"""A world of cores on virtual time: one heap of events, one seed, paths with delay and loss, processes that die and come back.

It stands where the shell stands and behaves as the shell does: outputs are drained after every call, a core is woken when its
timer is due or has moved to an earlier time, a gossip message from a peer not greeted yet greets it, two dials of one pair end
on one connection, and a connection is reported again when a later dial ends on it.
"""

import hashlib
import heapq
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from protocol import gossip, membership, probe
from protocol.errors import ErrorCode
from protocol.gossip.messages import records_messages
from protocol.identity import Identity, PeerId
from protocol.inference import Feature, InferenceRequest
from protocol.membership import PeerJoined, PeerLeft, Standing
from protocol.multiaddr import Multiaddr
from protocol.node import Node, NodeConfig, Output, RecordSealed, ReserveSequences
from protocol.records import Hardware, ModelOffer, RecordKind, Sequencer

WALL_S = 1_800_000_000.0
"""Wall-clock seconds since 1970 at virtual time 0."""
DIAL_TIMEOUT_S = 5.0
"""Seconds after which a dial into the void has failed, as in the shell."""
DIAL_AGAIN_S = (0.2, 0.6, 1.4, 3.0)
"""Seconds after which the first packet of a dial that is not answered goes out again, as in the simulator's world."""
HARDWARE = Hardware("virtual", 1, 8_000_000_000, 1)
ECHO = ModelOffer("echo", frozenset({Feature.EMBEDDINGS}), engine="echo")


@dataclass(eq=False)
class Link:
    """One connection: which life of which process is at each end, and at which ends it is open."""

    lives: dict[PeerId, int]
    open_at: set[PeerId] = field(default_factory=set)
    speaking: set[PeerId] = field(default_factory=set)  # whose gossip stream is open
    unsaid: list[Callable[[], None]] = field(default_factory=list)  # what was sent before, and waits


@dataclass
class Member:
    """One process: its core, what survives a crash, and what a test wants to know."""

    index: int
    identity: Identity
    place: tuple[float, float]
    offers: tuple[ModelOffer, ...]
    bootstrap: tuple[Multiaddr, ...]
    clock_off_s: float
    config: NodeConfig
    hardware: Hardware
    life: int = 0
    running: bool = False
    disk_works: bool = True
    reserved: int = 0
    asked_disk: int = 0
    armed_for: float = math.inf
    wakes: int = 0
    node: Node = field(init=False)
    connections: dict[PeerId, Link] = field(default_factory=dict)
    routable: set[PeerId] = field(default_factory=set)
    left: list[tuple[float, PeerId, str]] = field(default_factory=list)
    joined: list[tuple[float, PeerId]] = field(default_factory=list)
    dials: list[tuple[float, membership.Target]] = field(default_factory=list)
    faults: list[Output] = field(default_factory=list)
    accepted: list[tuple[float, PeerId, RecordKind]] = field(default_factory=list)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def address(self) -> Multiaddr:
        return Multiaddr("ip4", "192.0.2.1", 1000 + self.index, self.peer_id)


class World:
    """See the module's docstring. `delay_s` of two members is half the distance of their places: places are in seconds."""

    def __init__(self, seed: int = 0, loss: float = 0.0, jitter_s: float = 0.0) -> None:
        self.seed = seed
        self.luck = random.Random(f"world {seed}")
        self.loss = loss
        self.jitter_s = jitter_s
        self.now = 0.0
        self.members: list[Member] = []
        self.by_id: dict[PeerId, Member] = {}
        self.side_of: dict[int, int] = {}  # by member; nothing passes from one side to another
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._digest = hashlib.sha256()

    # Processes

    def add(
        self,
        place: tuple[float, float] = (0.0, 0.0),
        *,
        bootstrap: Iterable[Multiaddr] = (),
        offers: tuple[ModelOffer, ...] = (ECHO,),
        at: float = 0.0,
        clock_off_s: float = 0.0,
        disk_works: bool = True,
        config: NodeConfig | None = None,
        hardware: Hardware = HARDWARE,
    ) -> Member:
        """Makes a process that starts at a time."""
        index = len(self.members)
        identity = Identity.from_seed(hashlib.sha256(b"member %d" % index).digest())
        member = Member(index, identity, place, offers, tuple(bootstrap), clock_off_s, config or NodeConfig(), hardware)
        member.disk_works = disk_works
        self.members.append(member)
        self.by_id[member.peer_id] = member
        self.at(at, lambda: self.start(member))
        return member

    def start(self, member: Member) -> None:
        """Starts a process, anew or for the first time."""
        assert not member.running
        member.life += 1
        member.running = True
        member.armed_for = math.inf
        luck = random.Random(f"{self.seed}/{member.index}/{member.life}")
        member.node = Node(member.config, member.identity, luck, Sequencer(member.reserved))
        wall_s = WALL_S + self.now + member.clock_off_s
        self._drained(member)
        member.node.start((member.address,), member.hardware, member.offers, wall_s, self.now)
        member.node.add_bootstrap(member.bootstrap, self.now)
        self.settle(member)

    def kill(self, member: Member) -> None:
        """Ends a process without a word; its peers' connections stay as they are."""
        member.running = False
        member.connections = {}
        member.routable = set()

    def leave(self, member: Member) -> None:
        """Ends a process that says goodbye to its peers."""
        for peer_id in list(member.connections):
            self.hang_up(member, peer_id, ErrorCode.GOODBYE)
        self.kill(member)

    # Paths

    def delay_s(self, one: Member, other: Member) -> float:
        """One-way delay between two members."""
        return max(math.dist(one.place, other.place) / 2, 1e-4)

    def rtt_s(self, one: Member, other: Member) -> float:
        """Round trip between two members."""
        return 2 * self.delay_s(one, other)

    def cut_off(self, *members: Member) -> None:
        """Lets nothing pass between these members and the others, until `heal`."""
        self.side_of = {member.index: 1 for member in members}

    def heal(self) -> None:
        """Lets everything pass again."""
        self.side_of = {}

    def _passes(self, one: Member, other: Member) -> bool:
        return self.side_of.get(one.index, 0) == self.side_of.get(other.index, 0)

    def _under_way_s(self, one: Member, other: Member) -> float:
        return self.delay_s(one, other) + (self.luck.uniform(0.0, self.jitter_s) if self.jitter_s else 0.0)

    # Time

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Lets something happen at a time."""
        heapq.heappush(self._events, (max(when, self.now), next(self._order), event))

    def run(self, until: float) -> None:
        """Lets time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until

    def run_until(self, reached: Callable[[], bool], limit: float, step_s: float = 0.05) -> float:
        """Lets time pass until something holds; returns when that was."""
        while not reached():
            assert self.now < limit, f"not reached at {limit}"
            self.run(min(self.now + step_s, limit))
        return self.now

    def _wake(self, member: Member, life: int, due: float) -> None:
        """What the driver's loop does when it comes round."""
        if member.life != life or not member.running or member.armed_for != due:
            return
        member.armed_for = math.inf
        member.wakes += 1
        member.node.handle_timer(self.now)
        self._drained(member)
        assert member.node.next_timer() > self.now, "the core wants to be woken in the past for ever"
        self._arm(member)

    def _arm(self, member: Member) -> None:
        due = member.node.next_timer()
        if due < member.armed_for:
            member.armed_for = due
            if due < math.inf:
                life = member.life
                self.at(due, lambda: self._wake(member, life, due))

    # The shell

    def settle(self, member: Member) -> None:
        """Drains a core and arms its timer; follows every call into it."""
        self._drained(member)
        self._arm(member)

    def _drained(self, member: Member) -> None:
        while (output := member.node.next_output()) is not None:
            self._digest.update(f"{self.now!r} {member.index} {_described(output)}\n".encode())
            self._carry_out(member, output)

    def digest(self) -> str:
        """A hash over every output of every core, with the times."""
        return self._digest.hexdigest()

    def _carry_out(self, member: Member, output: Output) -> None:
        match output:
            case gossip.Send(peer_id, payload):
                self._send(member, peer_id, payload, is_datagram=False)
            case probe.SendDatagram(peer_id, payload):
                if self.luck.random() >= self.loss:
                    self._send(member, peer_id, payload, is_datagram=True)
            case membership.Connect(target, addresses):
                member.dials.append((self.now, target))
                self._dial(member, target, addresses)
            case membership.Disconnect(peer_id, code) | gossip.Misbehaved(peer_id, code) | probe.Misbehaved(peer_id, code):
                if not isinstance(output, membership.Disconnect):
                    member.faults.append(output)
                life = member.life
                self.at(self.now, lambda: member.life == life and self.hang_up(member, peer_id, code))
            case ReserveSequences(upto):
                member.asked_disk += 1
                if member.disk_works:
                    member.reserved = upto
                    member.node.handle_reserved(upto, self.now)
            case PeerJoined(peer_id):
                assert peer_id not in member.routable
                member.routable.add(peer_id)
                member.joined.append((self.now, peer_id))
            case PeerLeft(peer_id, reason):
                member.routable.remove(peer_id)
                member.left.append((self.now, peer_id, reason))
            case gossip.RecordAccepted(record):
                member.accepted.append((self.now, record.peer_id, record.kind))
            case gossip.Equivocated():
                member.faults.append(output)
            case _:
                pass

    def _send(self, member: Member, peer_id: PeerId, payload: bytes, *, is_datagram: bool) -> None:
        link = member.connections.get(peer_id)
        if link is None:
            return
        other = self.by_id[peer_id]

        def arrive() -> None:
            if not self._is_open(link, other) or not self._passes(member, other):
                return
            if is_datagram:
                other.node.handle_datagram(member.peer_id, payload, self.now, self.now)
            else:
                if not other.node.membership.is_connected(member.peer_id):
                    other.node.handle_connected(member.peer_id, self.now)
                other.node.handle_message(member.peer_id, payload, self.now)
            self.settle(other)

        if is_datagram or member.peer_id in link.speaking:
            self.at(self.now + self._under_way_s(member, other), arrive)
        else:
            link.unsaid.append(lambda: self._send(member, peer_id, payload, is_datagram=False))

    def _is_open(self, link: Link, end: Member) -> bool:
        return end.running and link.lives[end.peer_id] == end.life and end.peer_id in link.open_at

    # Connections

    def _dial(self, member: Member, target: membership.Target, addresses: tuple[Multiaddr, ...]) -> None:
        """Tries the addresses in turn: packets go out until one is answered, or until the timeout."""
        life = member.life
        if not addresses:
            member.node.handle_dial_failed(target, self.now)
            self.settle(member)
            return
        other = self.members[addresses[0].port - 1000]
        expected = addresses[0].peer_id

        over: list[bool] = []

        def ended(answered: bool) -> None:
            if over or member.life != life or not member.running:
                return
            over.append(True)
            if answered and expected in (None, other.peer_id):
                self._established(member, other, target)
            else:
                self._dial(member, target, addresses[1:])

        def send() -> None:
            if not over and other.running and self._passes(member, other):
                self.at(self.now + self.rtt_s(member, other), lambda: ended(other.running and self._passes(member, other)))

        send()
        for wait_s in DIAL_AGAIN_S:
            self.at(self.now + wait_s, send)
        self.at(self.now + DIAL_TIMEOUT_S, lambda: ended(False))

    def _established(self, member: Member, other: Member, target: membership.Target) -> None:
        if member is other:
            member.node.handle_connected(member.peer_id, self.now, target)
            self.settle(member)
            return
        link = member.connections.get(other.peer_id)
        if link is None or link.lives[other.peer_id] != other.life or not self._is_open(link, other):
            link = Link({member.peer_id: member.life, other.peer_id: other.life})
            for end, peer in ((member, other), (other, member)):
                link.open_at.add(end.peer_id)
                end.connections[peer.peer_id] = link
            member.node.handle_reached(other.peer_id, self.rtt_s(member, other), self.now)
            self.settle(member)
            self._greet_later(link, member, other, self.rtt_s(member, other), target)
            self._greet_later(link, other, member, self.rtt_s(member, other) + self.delay_s(member, other), None)
        elif member.node.membership.is_connected(other.peer_id):
            member.node.handle_connected(other.peer_id, self.now, target)
            self.settle(member)
        else:
            self._greet_later(link, member, other, self.rtt_s(member, other), target)

    def _greet_later(self, link: Link, end: Member, peer: Member, wait_s: float, target: membership.Target | None) -> None:
        """Opens the gossip stream of one end; the other end has confirmed it after a round trip."""

        def greeted() -> None:
            if self._is_open(link, end):
                link.speaking.add(end.peer_id)
                unsaid, link.unsaid = link.unsaid, []
                for say in unsaid:
                    say()
                end.node.handle_connected(peer.peer_id, self.now, target)
                self.settle(end)

        self.at(self.now + wait_s, greeted)

    def hang_up(self, member: Member, peer_id: PeerId, code: ErrorCode) -> None:
        """Closes a connection; the other end hears of it when it lives."""
        link = member.connections.pop(peer_id, None)
        if link is None:
            return
        link.open_at.discard(member.peer_id)
        member.node.handle_disconnected(peer_id, code, self.now)
        self.settle(member)
        other = self.by_id[peer_id]

        def heard() -> None:
            if self._is_open(link, other) and self._passes(member, other):
                link.open_at.discard(peer_id)
                if other.connections.get(member.peer_id) is link:
                    del other.connections[member.peer_id]
                    other.node.handle_disconnected(member.peer_id, code, self.now)
                    self.settle(other)

        self.at(self.now + self._under_way_s(member, other), heard)

    # What tests ask

    def inject(self, member: Member, from_peer: Member, envelope: bytes) -> None:
        """Lets a connected peer send an envelope of the test's making."""
        for message in records_messages([envelope]):
            member.node.handle_message(from_peer.peer_id, message, self.now)
        self.settle(member)

    def standing(self, member: Member, other: Member) -> Standing:
        """What one member thinks of another."""
        return member.node.peer(other.peer_id, self.now).standing

    def running(self) -> list[Member]:
        """Those that live."""
        return [member for member in self.members if member.running]

    def all_know_all(self) -> bool:
        """Whether every living member holds card and beat of every other, believes it alive, and has measured it."""
        living = self.running()
        for member in living:
            for other in living:
                if other is not member:
                    view = member.node.peer(other.peer_id, self.now)
                    if view.card is None or view.beat is None or view.standing is not Standing.ALIVE or not view.quality:
                        return False
        return len(living) > 1


def _described(output: Output) -> str:
    """A text of an output in which no set stands, whose order would differ from run to run."""
    match output:
        case gossip.RecordAccepted(record) | gossip.RecordExpired(record) | RecordSealed(record):
            return f"{type(output).__name__} {record.envelope.hex()}"
        case _:
            return repr(output)


def mesh(size: int, seed: int = 0, *, loss: float = 0.0, spread_s: float = 0.04, start_within_s: float = 0.0) -> World:
    """A world of members at random places, all of whom know the first one's address."""
    world = World(seed, loss)
    for index in range(size):
        place = (world.luck.uniform(0.0, spread_s), world.luck.uniform(0.0, spread_s))
        bootstrap = [world.members[0].address] if index else []
        world.add(place, bootstrap=bootstrap, at=world.luck.uniform(0.0, start_within_s))
    return world


def request(number: int = 1, model: str = "echo", *, stream: bool = False) -> InferenceRequest:
    """A request of a client."""
    return InferenceRequest(number.to_bytes(16, "big"), Feature.EMBEDDINGS, model, b"{}", stream=stream)
