"""The yardstick of failure detection: SWIM, with Lifeguard's three changes when asked for, on the same virtual network.

Every member probes one other per period, in an order that is shuffled anew after each round; who does not answer is probed
through `indirect` others, and suspected when the period ends without an answer. A suspicion that nobody refutes within its
timeout is a death. Statements about members ride on probes and answers, the least often sent first, `retransmit_mult * log N`
times each; as in memberlist, they are also sent to `gossip_nodes` others every `gossip_s` while there are any, also to members
dead for less than `gossip_to_dead_s`. A member who hears of its own suspicion or death answers with a greater incarnation; who
is held for dead hears of it with the answer to its next probe, which stands for memberlist's exchange of whole states.

With `lifeguard`: a member that finds itself slow probes less often (local health), a suspicion lasts long and gets shorter with
every other member who confirms it, and who probes a suspect tells it so at once (buddy system).

A stopped process handles its expired timers first when it goes on, and the packets in its buffers after them, as `World.resume`
does. That is the flaw of failure detectors that stalls bring out: the timers accuse before the answers are read.

Source: Das, Gupta, Motivala, "SWIM" (DSN 2002); Dadgar, Phillips, Currey, "Lifeguard" (2017); constants and the order of events
of hashicorp/memberlist: config.go (SuspicionMult was 5 until 2017-07-17), state.go, suspicion.go, awareness.go, util.go.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from operator import attrgetter

from sim.luck import Streams
from sim.network import Delays, Network, NetworkConfig

MESSAGE_BYTES = 30
"""Bytes of a probe, an answer or a request to probe: a sequence number, a name and an address."""

UPDATE_BYTES = 40
"""Bytes of one statement about a member: its name, its incarnation and who says so."""


@dataclass(frozen=True, slots=True)
class SwimConfig:
    """memberlist's LAN constants from before Lifeguard."""

    period_s: float = 1.0
    timeout_s: float = 0.5
    indirect: int = 3
    suspicion_mult: float = 5.0
    retransmit_mult: int = 4
    updates_max: int = 25
    """Statements in one packet of 1,400 bytes, less what memberlist puts round them."""
    gossip_s: float = 0.2
    gossip_nodes: int = 3
    gossip_to_dead_s: float = 30.0
    lifeguard: bool = False
    suspicion_max_mult: float = 6.0
    health_max: int = 8


class State(IntEnum):
    """What a member is held for."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2


@dataclass(frozen=True, slots=True)
class Update:
    """One statement about a member."""

    subject: int
    state: State
    incarnation: int
    said_by: int


@dataclass(frozen=True, slots=True)
class Packet:
    """One datagram: `kind` is ping, ack, ping-req, nack or gossip; `target` is whom a ping-req is about."""

    kind: str
    sequence: int
    target: int
    updates: tuple[Update, ...]


@dataclass(slots=True)
class _Member:
    state: State = State.ALIVE
    incarnation: int = 0
    changed_at: float = -math.inf
    confirmed_by: dict[int, None] = field(default_factory=dict[int, None])
    suspicion: int = 0  # which suspicion this is, so that the timer of an older one does nothing


@dataclass(slots=True)
class _Queued:
    update: Update
    sent: int = 0


@dataclass(slots=True)
class _Probe:
    sequence: int
    target: int
    answered: bool = False
    nacks: int = 0
    nacks_expected: int = 0


Declared = Callable[[float, int, int, State], None]
"""Who hears that at a time an observer holds a subject for something else."""


class SwimMesh:
    """All members on one clock and one network."""

    def __init__(self, nodes: int, seed: int, config: SwimConfig, delays: Delays, declared: Declared) -> None:
        """Makes a mesh in which everybody knows everybody.

        Args:
            nodes: how many members.
            seed: everything follows from it.
            config: of all of them.
            delays: of the paths.
            declared: hears of every suspicion, death and recovery.
        """
        self.config = config
        self.streams = Streams(seed)
        self.network = Network(delays, NetworkConfig(), self.streams)
        self.declared = declared
        self.now = 0.0
        self.members = [SwimMember(self, index, nodes) for index in range(nodes)]
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        for member in self.members:
            phase_s = self.streams.of("phases").uniform(0.0, config.period_s)
            member.after(phase_s, member.start_probe)

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Lets something happen at a time."""
        heapq.heappush(self._heap, (when, next(self._order), event))

    def run(self, until: float) -> None:
        """Lets time pass."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, event = heapq.heappop(self._heap)
            event()
        self.now = until

    def send(self, sender: int, receiver: int, packet: Packet) -> None:
        """Puts a packet on the network."""
        size = MESSAGE_BYTES + UPDATE_BYTES * len(packet.updates)
        for late_s in self.network.datagram(sender, receiver, size, self.now):
            self.at(self.now + late_s, lambda: self.members[receiver].arrived(sender, packet))


class SwimMember:
    """One member."""

    def __init__(self, mesh: SwimMesh, index: int, nodes: int) -> None:
        """Knows everybody from the start."""
        self.mesh = mesh
        self.index = index
        self.config = mesh.config
        self.incarnation = 0
        self.members = {other: _Member() for other in range(nodes) if other != index}
        self.running, self.paused = True, False
        self.health = 0
        self._luck = mesh.streams.of(f"member {index}")
        self._queue: dict[int, _Queued] = {}  # by subject
        self._round: list[int] = []
        self._sequence = 0
        self._probe: _Probe | None = None
        self._relayed: dict[int, tuple[int, int]] = {}  # own sequence number: who asked, and under which number
        self._gossiping = False
        self._late_timers: list[Callable[[], None]] = []
        self._held: list[tuple[int, Packet]] = []
        self._retransmit_max = mesh.config.retransmit_mult * math.ceil(math.log10(nodes + 1))
        self._suspicion_s = mesh.config.suspicion_mult * max(1.0, math.log10(nodes)) * mesh.config.period_s

    # What is done to the process

    def after(self, wait_s: float, action: Callable[[], None]) -> None:
        """Sets a timer, which fires late when the process is stopped meanwhile."""

        def fire() -> None:
            if self.paused:
                self._late_timers.append(action)
            elif self.running:
                action()

        self.mesh.at(self.mesh.now + wait_s, fire)

    def pause(self) -> None:
        """Stops the process (SIGSTOP)."""
        self.paused = True

    def resume(self) -> None:
        """Lets it go on: expired timers first, then what lies in its buffers."""
        self.paused = False
        timers, self._late_timers = self._late_timers, []
        held, self._held = self._held, []
        for action in timers:
            action()
        for sender, packet in held:
            self.arrived(sender, packet)

    def kill(self) -> None:
        """Ends it without a word."""
        self.running = False

    def arrived(self, sender: int, packet: Packet) -> None:
        """A packet comes in."""
        if self.paused:
            self._held.append((sender, packet))
        elif self.running:
            self._take(sender, packet)

    # Probing

    def start_probe(self) -> None:
        """Begins a period."""
        target = self._next_target()
        if target is None:
            self.after(self.config.period_s, self.start_probe)
            return
        self._sequence += 1
        probe = self._probe = _Probe(self._sequence, target)
        buddy = self.config.lifeguard and self.members[target].state is State.SUSPECT
        self._send(target, "ping", probe.sequence, first=self._statement(target) if buddy else None)
        self.after(self.config.timeout_s, lambda: self._ask_others(probe))
        scale = 1 + self.health if self.config.lifeguard else 1
        self.after(self.config.period_s * scale, lambda: self._end_probe(probe))

    def _next_target(self) -> int | None:
        for _ in range(2 * len(self.members)):
            if not self._round:
                self._round = list(self.members)
                self._luck.shuffle(self._round)
            target = self._round.pop()
            if self.members[target].state is not State.DEAD:
                return target
        return None

    def _ask_others(self, probe: _Probe) -> None:
        if probe.answered:
            return
        others = self._some(self.config.indirect, but=probe.target)
        probe.nacks_expected = len(others)
        for other in others:
            self._send(other, "ping-req", probe.sequence, target=probe.target)

    def _end_probe(self, probe: _Probe) -> None:
        if probe.answered:
            self._feel(-1)
        else:
            missing = probe.nacks_expected - probe.nacks
            self._feel(max(0, missing) if probe.nacks_expected else 1)
            member = self.members[probe.target]
            self._hear(Update(probe.target, State.SUSPECT, member.incarnation, self.index))
        self.start_probe()

    def _feel(self, change: int) -> None:
        self.health = min(self.config.health_max - 1, max(0, self.health + change))

    def _take(self, sender: int, packet: Packet) -> None:
        for update in packet.updates:
            self._hear(update)
        match packet.kind:
            case "ping":
                away = self.members[sender].state is State.DEAD
                self._send(sender, "ack", packet.sequence, first=self._statement(sender) if away else None)
            case "ack":
                if self._probe is not None and packet.sequence == self._probe.sequence:
                    self._probe.answered = True
                elif (asker := self._relayed.pop(packet.sequence, None)) is not None:
                    self._send(asker[0], "ack", asker[1])
            case "nack":
                if self._probe is not None and packet.sequence == self._probe.sequence:
                    self._probe.nacks += 1
            case "ping-req":
                self._relay(sender, packet)
            case _:
                pass

    def _relay(self, asker: int, packet: Packet) -> None:
        self._sequence += 1
        number = self._sequence
        self._relayed[number] = (asker, packet.sequence)
        self._send(packet.target, "ping", number)

        def unanswered() -> None:
            if number in self._relayed and self.config.lifeguard:
                self._send(asker, "nack", packet.sequence)

        self.after(self.config.timeout_s, unanswered)

        def forgotten() -> None:
            self._relayed.pop(number, None)

        self.after(10.0 * self.config.period_s, forgotten)

    # Statements

    def _hear(self, update: Update) -> None:
        """Takes in a statement, and passes it on when it is news."""
        if update.subject == self.index:
            self._refute(update)
            return
        member = self.members[update.subject]
        match update.state:
            case State.ALIVE:
                if update.incarnation > member.incarnation:
                    self._become(update, member)
            case State.SUSPECT:
                self._hear_suspicion(update, member)
            case State.DEAD:
                if update.incarnation >= member.incarnation and member.state is not State.DEAD:
                    self._become(update, member)

    def _hear_suspicion(self, update: Update, member: _Member) -> None:
        if update.incarnation < member.incarnation or member.state is State.DEAD:
            return
        if member.state is State.ALIVE or update.incarnation > member.incarnation:
            self._become(update, member)
            self._arm(update.subject, member)
        elif self._confirms(update, member):
            member.confirmed_by[update.said_by] = None
            self._tell(update)
            self._arm(update.subject, member)

    def _confirms(self, update: Update, member: _Member) -> bool:
        """Whether a suspicion that is known is worth more for being said by somebody else."""
        wanted = self.config.lifeguard and len(member.confirmed_by) <= self._confirmations_wanted()
        return wanted and update.said_by not in member.confirmed_by

    def _refute(self, update: Update) -> None:
        if update.state is not State.ALIVE and update.incarnation >= self.incarnation:
            self.incarnation = update.incarnation + 1
            if self.config.lifeguard:
                self._feel(1)
            self._tell(Update(self.index, State.ALIVE, self.incarnation, self.index))

    def _become(self, update: Update, member: _Member) -> None:
        changed = member.state is not update.state
        member.state, member.incarnation = update.state, update.incarnation
        member.changed_at = self.mesh.now
        member.suspicion += 1
        member.confirmed_by = {update.said_by: None}
        self._tell(update)
        if changed:
            self.mesh.declared(self.mesh.now, self.index, update.subject, update.state)

    def _confirmations_wanted(self) -> int:
        wanted = int(self.config.suspicion_mult) - 2
        return wanted if len(self.members) - 1 >= wanted else 0

    def _arm(self, subject: int, member: _Member) -> None:
        """Sets the timer of a suspicion, which Lifeguard shortens with every confirmation."""
        which = member.suspicion

        def due() -> None:
            if member.state is State.SUSPECT and member.suspicion == which:
                self._hear(Update(subject, State.DEAD, member.incarnation, self.index))

        self.after(max(0.0, member.changed_at + self._lasts_s(member) - self.mesh.now), due)

    def _lasts_s(self, member: _Member) -> float:
        """How long a suspicion lasts with the confirmations it has."""
        wanted = self._confirmations_wanted()
        if not self.config.lifeguard or wanted == 0:
            return self._suspicion_s
        longest_s = self.config.suspicion_max_mult * self._suspicion_s
        share = math.log(len(member.confirmed_by)) / math.log(wanted + 1)  # the first one is the suspicion itself
        return max(self._suspicion_s, longest_s - share * (longest_s - self._suspicion_s))

    def _statement(self, subject: int) -> Update:
        """What this member holds of another, to be told to it."""
        member = self.members[subject]
        return Update(subject, member.state, member.incarnation, self.index)

    # Sending

    def _tell(self, update: Update) -> None:
        self._queue[update.subject] = _Queued(update)
        if not self._gossiping and self.config.gossip_nodes:
            self._gossiping = True
            self.after(self.config.gossip_s, self._gossip)

    def _gossip(self) -> None:
        self._gossiping = bool(self._queue)
        if not self._queue:
            return
        now, limit_s = self.mesh.now, self.config.gossip_to_dead_s
        asked = [
            other for other, member in self.members.items() if member.state is not State.DEAD or now - member.changed_at < limit_s
        ]
        for other in self._luck.sample(asked, min(len(asked), self.config.gossip_nodes)):
            if self._queue:
                self._send(other, "gossip", 0)
        self.after(self.config.gossip_s, self._gossip)

    def _some(self, amount: int, but: int) -> list[int]:
        """Members at random that are held for alive."""
        alive = [other for other, member in self.members.items() if member.state is State.ALIVE and other != but]
        return self._luck.sample(alive, min(len(alive), amount))

    def _send(self, receiver: int, kind: str, sequence: int, *, target: int = -1, first: Update | None = None) -> None:
        updates = [] if first is None else [first]
        for queued in sorted(self._queue.values(), key=attrgetter("sent"))[: self.config.updates_max]:
            updates.append(queued.update)
            queued.sent += 1
            if queued.sent >= self._retransmit_max:
                del self._queue[queued.update.subject]
        self.mesh.send(self.index, receiver, Packet(kind, sequence, target, tuple(updates)))
