"""The world: whole cores on virtual time, with one heap of events, one clock and one seed, and no tasks.

It stands where the shell stands and behaves as the shell does: outputs are drained after every call, a core is woken when its
timer is due or has moved to an earlier time, a gossip stream is greeted before it is spoken on, two dials of one pair end on one
connection, and a connection that replaces another is reported as such. Whatever a fault does to a process (stop it, slow it
down, kill it) is done at the one place where events enter a process, and whatever it does to a path is done in the network.

Source: TigerBeetle, src/vopr.zig; FoundationDB, "Simulation and Testing"; the driver in mesh/driver.py is what it stands for.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from protocol import forwarding, gossip, membership, probe
from protocol.errors import ErrorCode
from protocol.identity import Identity, PeerId
from protocol.inference import Feature
from protocol.multiaddr import Multiaddr
from protocol.node import Node, NodeConfig, Output, RecordSealed, Reranked, ReserveSequences
from protocol.quic.events import EndpointConfig
from protocol.records import Hardware, ModelOffer, Record, Sequencer
from sim.agenda import Agenda
from sim.dial import FirstPackets
from sim.flight import Alarm, Datagram
from sim.journal import Journal
from sim.luck import Streams
from sim.network import Delays, Line, Network, NetworkConfig
from sim.process import FIRST_PORT, Farewell, Lane, Link, MakeNode, Process
from sim.reader import SharedPacker, SharedReader

if TYPE_CHECKING:
    from sim.fabric.nodes import Fabrics

WALL_S = 1_800_000_000.0
"""Wall-clock seconds since 1970 at virtual time 0: a round number in 2027."""

IDLE_TIMEOUT_S = 30.0
"""Seconds after which a greeting that never got through is given up, as QUIC's idle timeout does."""

RETRY_S = 0.25
"""Seconds between two tries of a stream to get through a blocked path: a probe timeout that has doubled a few times."""

FAREWELL_S = EndpointConfig().farewell_s
"""Seconds in which the end that closed a connection says so again to a peer that goes on talking, as the endpoint does."""

HARDWARE = Hardware("virtual", 1, 8_000_000_000, 1)
ECHO = ModelOffer("echo", frozenset({Feature.EMBEDDINGS}), engine="echo")

Watcher = Callable[[Process, Output], None]
"""Who hears of every output that is a fact (everything but what is sent and sampled), after it was noted."""

ForwardingTaker = Callable[[Process, forwarding.Output | Reranked], None]
"""Who carries out what the cores want done with requests."""

SealWatcher = Callable[[Process, Record], None]
"""Who hears of every record that a process has sealed."""

Arrival = Callable[[Process, Process, bytes, bool], None]
"""Who hears of every payload that enters a core: receiver, sender, the payload, and whether it is a datagram."""

Handshake = Callable[[Process, Process], bool]
"""Whether the handshake between who dials and who is dialled succeeds at both ends, before either core hears of it."""

MessageWatcher = Callable[[Process, PeerId, bytes], None]
"""Who hears of every gossip message that a process sends, and to whom."""


class World:
    """See the module's docstring."""

    def __init__(self, seed: int, delays: Delays | None = None, network: NetworkConfig | None = None) -> None:
        """Makes an empty world.

        Args:
            seed: the one number that everything follows from.
            delays: of the paths; a line when None.
            network: uplinks and jitter.
        """
        self.seed = seed
        self.streams = Streams(seed)
        self.network = Network(delays or Line(), network or NetworkConfig(), self.streams)
        self.journal = Journal()
        self.now = 0.0
        self.events = 0
        self.processes: list[Process] = []
        self.by_id: dict[PeerId, Process] = {}
        self.watchers: list[Watcher] = []
        self.seal_watchers: list[SealWatcher] = []
        self.life_watchers: list[Callable[[Process], None]] = []  # hear of every start and of every end
        self.on_forwarding: ForwardingTaker | None = None
        self.reader = SharedReader()
        self.packer = SharedPacker()
        self.arrival_watchers: list[Arrival] = []
        self.message_watchers: list[MessageWatcher] = []
        self.make_node: MakeNode = Node
        self.handshakes: list[Handshake] = []  # each has to admit the other, or the dial fails
        self.faults_on: dict[int, str] = {}
        self.fabrics: Fabrics | None = None  # of the processes, where requests have tensors
        self.corruptions: list[float] | None = None  # shares of datagrams that arrive changed; None where they have no bytes
        self._agenda = Agenda()

    # Processes

    def add(
        self,
        *,
        bootstrap: Iterable[Multiaddr] = (),
        offers: tuple[ModelOffer, ...] = (ECHO,),
        at: float = 0.0,
        config: NodeConfig | None = None,
    ) -> Process:
        """Makes a process that starts at a time."""
        index = len(self.processes)
        identity = Identity.from_seed(hashlib.sha256(b"process %d" % index).digest())
        process = Process(index, identity, offers, tuple(bootstrap), config or NodeConfig())
        self.processes.append(process)
        self.by_id[process.peer_id] = process
        self.journal.names[process.peer_id] = f"n{index}"
        self.at(at, lambda: self.start(process))
        return process

    def start(self, process: Process) -> None:
        """Starts a process, anew or for the first time."""
        assert not process.running
        process.life += 1
        process.running, process.paused = True, False
        process.started_at = self.now
        process.armed_for = math.inf
        process.busy_until = 0.0
        process.stalls, process.heard = [], {}
        process.held.clear()
        self.journal.note(self.now, process.index, f"starts, life {process.life}")
        luck = self.streams.of(f"core {process.index}, life {process.life}")
        make_node = process.make_node or self.make_node
        process.node = make_node(process.config, process.identity, luck, Sequencer(process.reserved))
        process.node.gossip.reader = self.reader
        process.node.table.use_packer(self.packer)
        process.node.start((process.address,), HARDWARE, process.offers, self.wall_s(process), self.now)
        self.settle(process)
        process.node.add_bootstrap(process.bootstrap, self.now)
        self.settle(process)
        for watcher in self.life_watchers:
            watcher(process)

    def kill(self, process: Process, *, keeps_disk: bool = True) -> None:
        """Ends a process without a word; its peers' connections stay as they are."""
        self.journal.note(self.now, process.index, "is killed" if keeps_disk else "is killed and loses its disk")
        process.running = process.paused = False
        process.connections = {}
        process.held.clear()
        if not keeps_disk:
            process.reserved = 0
            process.disks += 1
        for watcher in self.life_watchers:
            watcher(process)

    def leave(self, process: Process) -> None:
        """Ends a process that says goodbye to its peers."""
        for peer_id in list(process.connections):
            self.hang_up(process, peer_id, ErrorCode.GOODBYE)
        self.kill(process)

    def pause(self, process: Process) -> None:
        """Stops a process: it gets no event until it goes on, and then all of them, late."""
        if process.works:
            self.journal.note(self.now, process.index, "is stopped")
            process.paused, process.paused_at = True, self.now

    def resume(self, process: Process) -> None:
        """Lets a stopped process go on: its timer first, as a loop that comes round does, then what has come meanwhile."""
        if not process.paused:
            return
        self.journal.note(self.now, process.index, "goes on")
        process.paused = False
        process.stalls.append((process.paused_at, self.now))
        held, process.held = list(process.held), process.held
        process.held.clear()
        if process.node.next_timer() <= self.now:
            self._wake(process)
        for action in held:
            self._do(process, process.life, action)

    def connect(self, process: Process, other: Process) -> None:
        """Connects two processes that run as if a dial had just succeeded; the greetings take their time as ever."""
        self._established(process, other, other.peer_id)

    def shift_clock(self, process: Process, off_s: float) -> None:
        """Sets how far a process's wall clock is from the true one."""
        process.clock_steps += abs(off_s - process.wall_off_s) > process.config.table.records.skew_s
        process.wall_off_s = off_s
        if process.running:
            self.journal.note(self.now, process.index, f"has its wall clock {off_s:+.3f} s off")
            process.node.handle_wall_clock(self.wall_s(process), self.now)
            self.settle(process)

    def move(self, process: Process, *, migrates: bool) -> None:
        """Changes a process's address; its connections go on from the new one, or are lost without a word to its peers."""
        process.moves += 1
        how = "with" if migrates else "without"
        self.journal.note(self.now, process.index, f"moves to {process.address.host}, {how} migration")

        def learns() -> None:
            if not migrates:
                self._lose_connections(process)
            process.node.handle_addresses((process.address,), self.now)
            self.settle(process)

        self.enter(process, process.life, learns)

    def _lose_connections(self, process: Process) -> None:
        """Ends all connections at one end, without a word to the other."""
        for peer_id in sorted(process.connections):
            process.connections.pop(peer_id).close_at(process.peer_id)
            process.node.handle_disconnected(peer_id, ErrorCode.IDLE, self.now)

    def wall_s(self, process: Process) -> float:
        """What a process's wall clock shows, in seconds since 1970."""
        return WALL_S + self.now + process.wall_off_s

    def working(self) -> list[Process]:
        """Those that run, are not stopped, and mean well."""
        return [process for process in self.processes if process.works and not process.hostile]

    # Time

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Lets something happen at a time."""
        self._agenda.put(max(when, self.now), event)

    def later(self, process: Process, delay_s: float, action: Callable[[], None]) -> None:
        """Lets something happen in a process after a while, if this life of it lasts that long."""
        life = process.life
        self.at(self.now + delay_s, lambda: self.enter(process, life, action))

    def run(self, until: float) -> None:
        """Lets time pass."""
        agenda, before, done = self._agenda, self.events, 0
        try:
            while (due := agenda.take(until)) is not None:
                self.now = due[0]
                done += 1
                due[2]()
        finally:
            self.events = before + done
        self.now = until

    def run_until(self, reached: Callable[[], bool], limit: float, step_s: float = 0.1) -> bool:
        """Lets time pass until something holds; False when it does not by the limit."""
        while not reached():
            if self.now >= limit:
                return False
            self.run(min(self.now + step_s, limit))
        return True

    # Into and out of a process

    def enter(self, process: Process, life: int, action: Callable[[], None]) -> None:
        """The one way into a process; faults stop it or make it late here."""
        if process.life != life or not process.running:
            return
        if process.paused:
            process.held.append(action)
        elif process.slow_s > 0.0 or process.busy_until > self.now:
            process.busy_until = max(process.busy_until, self.now) + process.slow_s
            self.at(process.busy_until, lambda: self._do(process, life, action))
        else:
            self._do(process, life, action)

    def _do(self, process: Process, life: int, action: Callable[[], None]) -> None:
        if process.life != life or not process.running:
            return
        if process.paused:
            process.held.append(action)
        else:
            action()

    def _arm(self, process: Process) -> None:
        due = process.node.next_timer()
        if due < process.armed_for:
            process.armed_for = due
            self._agenda.put(max(due, self.now), Alarm(self, process, process.life, due))

    def ring(self, process: Process, life: int) -> None:
        """The time has come at which a core wanted to be woken."""
        if process.paused or process.slow_s > 0.0 or process.busy_until > self.now:
            self.enter(process, life, lambda: self._wake(process))
        elif process.life == life and process.running:
            self._wake(process)

    def _wake(self, process: Process) -> None:
        """What the driver's loop does when it comes round; a timer that has moved to later is waited for."""
        process.armed_for = math.inf
        if process.node.next_timer() > self.now:
            self._arm(process)
            return
        process.node.handle_timer(self.now)
        self.settle(process)
        assert process.armed_for > self.now, "the core wants to be woken in the past for ever"

    def settle(self, process: Process) -> None:
        """Drains a core and arms its timer; follows every call into it."""
        node, journal, now, index = process.node, self.journal, self.now, process.index
        while (output := node.next_output()) is not None:
            journal.output(now, index, output)
            self._carry_out(process, output)
        self._arm(process)

    def _carry_out(self, process: Process, output: Output) -> None:
        if isinstance(output, gossip.Send):  # no `match` for what is frequent: it costs more than all that is done here
            self._send_message(process, output.peer_id, output.payload)
        elif isinstance(output, probe.SendDatagram):
            self._send_datagram(process, output.peer, output.payload)
        elif isinstance(output, probe.SampleTaken):
            process.heard[output.peer] = self.now
        elif not isinstance(output, gossip.BeatHeard):
            self._carry_out_rest(process, output)
        elif self.watchers:
            for watcher in self.watchers:
                watcher(process, output)

    def _carry_out_rest(self, process: Process, output: Output) -> None:
        match output:
            case membership.Connect(target, addresses, afresh):
                self._dial(process, target, addresses, afresh=afresh)
            case membership.Disconnect(peer_id, code) | gossip.Misbehaved(peer_id, code) | probe.Misbehaved(peer_id, code):
                life = process.life
                self.at(self.now, lambda: self.enter(process, life, lambda: self.hang_up(process, peer_id, code)))
            case (
                forwarding.RunLocally()
                | forwarding.Forward()
                | forwarding.CancelAttempt()
                | forwarding.Refuse()
                | forwarding.Ended()
                | Reranked()
            ):
                if self.on_forwarding is not None:
                    self.on_forwarding(process, output)
            case ReserveSequences(upto):
                process.reserved = upto
                process.node.handle_reserved(upto, self.now)
            case RecordSealed(record):
                for seal_watcher in self.seal_watchers:
                    seal_watcher(process, record)
                return
            case _:
                pass
        for watcher in self.watchers:
            watcher(process, output)

    # Datagrams and streams

    def _send_datagram(self, process: Process, peer_id: PeerId, payload: bytes) -> None:
        link = process.connections.get(peer_id)
        if link is None:
            return
        lane = link.lanes[process.peer_id]
        process.bytes_sent += len(payload)
        datagram, now = Datagram(lane, payload), self.now
        for late_s in self.network.datagram(process.index, lane.receiver.index, len(payload), now):
            self._agenda.put(now + late_s, datagram)

    def datagram_arrives(self, datagram: Datagram) -> None:
        """A datagram has made its way to a process, which may be stopped, slow, or have closed the connection."""
        lane = datagram.lane
        receiver = lane.receiver
        if self.network.clogs and self.network.hold(lane.sender.index, receiver.index, datagram, datagram=True):
            return
        if not lane.leads_somewhere:
            self._repeat_farewell(lane.link, receiver, lane.sender)
        elif receiver.paused or receiver.slow_s > 0.0 or receiver.busy_until > self.now:
            self.enter(receiver, lane.life, lambda: self._take_datagram(datagram))
        else:
            self._take_datagram(datagram)

    def _take_datagram(self, datagram: Datagram) -> None:
        lane = datagram.lane
        if not lane.leads_somewhere:
            return
        for watcher in self.arrival_watchers:
            watcher(lane.receiver, lane.sender, datagram.payload, True)
        lane.receiver.node.handle_datagram(lane.sender.peer_id, datagram.payload, self.now, self.now)
        self.settle(lane.receiver)

    def _send_message(self, process: Process, peer_id: PeerId, payload: bytes) -> None:
        link = process.connections.get(peer_id)
        if link is None:
            return
        process.bytes_sent += len(payload)
        for watcher in self.message_watchers:
            watcher(process, peer_id, payload)
        lane = link.lanes[process.peer_id]
        now = self.now
        late_s = self.network.message(process.index, lane.receiver.index, len(payload), now)
        waiting = lane.waiting
        if len(waiting) >= process.lane_max:
            waiting.popleft()
        waiting.append((now + late_s, payload))
        if lane.speaking and not lane.moving:
            self._move(lane)

    def _move(self, lane: Lane) -> None:
        """Sees to it that the first message of an open stream is on its way."""
        lane.moving = True
        self._agenda.put(max(self.now, lane.waiting[0][0]), lane)

    def message_arrives(self, lane: Lane) -> None:
        """The first message of a stream arrives, or finds its path blocked and tries again; the next one follows."""
        sender, receiver, network = lane.sender, lane.receiver, self.network
        if network.clogs and network.hold(sender.index, receiver.index, lane):
            return
        lane.moving = False
        waiting = lane.waiting
        if not waiting or not lane.leads_somewhere:
            waiting.clear()
            self._insist(lane.link, sender, receiver)
            return
        if network.blocks and network.is_blocked(sender.index, receiver.index):
            if self._is_open(lane.link, sender):
                lane.moving = True
                self.at(self.now + RETRY_S, lane)
            return
        payload = waiting.popleft()[1]
        if receiver.paused or receiver.slow_s > 0.0 or receiver.busy_until > self.now:
            self.enter(receiver, lane.life, lambda: self._take_message(lane, payload))
        else:
            self._take_message(lane, payload)
        if waiting and lane.speaking and not lane.moving:
            self._move(lane)

    def _take_message(self, lane: Lane, payload: bytes) -> None:
        if not lane.leads_somewhere:
            return
        receiver, sender = lane.receiver, lane.sender
        for watcher in self.arrival_watchers:
            watcher(receiver, sender, payload, False)
        node, sender_id = receiver.node, sender.peer_id
        if not node.membership.is_connected(sender_id):
            self._note_greeting(receiver, sender)
            node.handle_connected(sender_id, self.now, None, sender.origin)
        node.handle_message(sender_id, payload, self.now)
        self.settle(receiver)

    def _is_open(self, link: Link, end: Process) -> bool:
        return end.running and end.peer_id in link.open_at and link.lives[end.peer_id] == end.life

    # Connections

    def _dial(
        self, process: Process, target: membership.Target, addresses: tuple[Multiaddr, ...], *, afresh: bool = False
    ) -> None:
        """Tries the addresses in turn: packets go out until one is answered, or until the timeout."""
        life = process.life
        if not addresses:
            self.at(self.now, lambda: self.enter(process, life, lambda: self._dial_failed(process, target)))
            return
        other = self.processes[addresses[0].port - FIRST_PORT]

        def answered() -> None:
            if addresses[0].peer_id in (None, other.peer_id) and all(admits(process, other) for admits in self.handshakes):
                self._established(process, other, target)
            else:
                self._dial(process, target, addresses[1:], afresh=afresh)

        def timed_out() -> None:
            self._dial(process, target, addresses[1:], afresh=afresh)

        FirstPackets(self, process, other, addresses[0].host, answered, timed_out).send()

    def _dial_failed(self, process: Process, target: membership.Target) -> None:
        process.node.handle_dial_failed(target, self.now)
        self.settle(process)

    def _established(self, process: Process, other: Process, target: membership.Target | None) -> None:
        if process is other:
            process.node.handle_connected(process.peer_id, self.now, target)
            self.settle(process)
            return
        rtt_s = self.network.path_s(process.index, other.index) + self.network.path_s(other.index, process.index)
        link = process.connections.get(other.peer_id)
        if link is not None and self._is_open(link, other):
            if process.node.membership.is_connected(other.peer_id):
                process.node.handle_connected(other.peer_id, self.now, target, other.origin)
                self.settle(process)
            else:
                self._greet_later(link, process, other, rtt_s, target, self.now)
            return
        link = Link({process.peer_id: process.life, other.peer_id: other.life})
        for end, peer in ((process, other), (other, process)):
            link.lanes[end.peer_id] = Lane(self, link, end, peer)
            old = end.connections.get(peer.peer_id)
            if old is not None:
                old.close_at(end.peer_id)
            link.open_at.add(end.peer_id)
            end.connections[peer.peer_id] = link
            if old is not None:
                self.enter(end, end.life, lambda end=end, peer=peer: self._replaced(end, peer))  # type: ignore[misc]
        if target is not None:
            process.node.handle_reached(other.peer_id, rtt_s, self.now)
            self.settle(process)
        self._greet_later(link, process, other, rtt_s, target, self.now)
        self._greet_later(link, other, process, rtt_s * 1.5, None, self.now)

    def _replaced(self, end: Process, peer: Process) -> None:
        end.heard[peer.peer_id] = self.now
        end.node.handle_replaced(peer.peer_id, self.now)
        self.settle(end)

    def _note_greeting(self, end: Process, peer: Process) -> None:
        """A greeting counts as hearing a peer that was not taken for alive; of the others only echoes count."""
        if end.node.probe.liveness(peer.peer_id) is not probe.Liveness.ALIVE:
            end.heard[peer.peer_id] = self.now

    def _greet_later(
        self, link: Link, end: Process, peer: Process, wait_s: float, target: membership.Target | None, since: float
    ) -> None:
        """Opens the gossip stream of one end; the other end has confirmed it after a round trip."""

        def confirmed() -> None:
            if not self._is_open(link, end):
                return
            cut = self.network.is_cut
            if cut(end.index, peer.index) or cut(peer.index, end.index) or not self._is_open(link, peer):
                if self.now - since < IDLE_TIMEOUT_S:
                    self._greet_later(link, end, peer, RETRY_S, target, since)
                else:
                    self.hang_up(end, peer.peer_id, ErrorCode.IDLE)
                return
            self.enter(end, link.lives[end.peer_id], greeted)

        def greeted() -> None:
            if self._is_open(link, end):
                lane = link.lanes[end.peer_id]
                lane.speaking = True
                self._note_greeting(end, peer)
                end.node.handle_connected(peer.peer_id, self.now, target, peer.origin)
                self.settle(end)
                if lane.waiting and not lane.moving:
                    self._move(lane)

        self.at(self.now + wait_s, confirmed)

    def hang_up(self, process: Process, peer_id: PeerId, code: ErrorCode) -> None:
        """Closes a connection; the other end hears of it when it lives and the path lets the word through."""
        link = process.connections.pop(peer_id, None)
        if link is None:
            return
        link.close_at(process.peer_id)
        link.farewells[process.peer_id] = Farewell(code, self.now + FAREWELL_S)
        process.node.handle_disconnected(peer_id, code, self.now)
        self.settle(process)
        self._say_farewell(link, process, self.by_id[peer_id], code)

    def _repeat_farewell(self, link: Link, end: Process, peer: Process) -> None:
        """Answers a packet that came for a connection which this end has closed."""
        farewell = link.farewells.get(end.peer_id)
        if farewell is None or not end.running or link.lives[end.peer_id] != end.life:
            return

        def answer() -> None:
            if farewell.answers(self.now):
                self._say_farewell(link, end, peer, farewell.code)

        self.enter(end, end.life, answer)

    def _insist(self, link: Link, sender: Process, receiver: Process) -> None:
        """Sends again, as long as that may be answered, what no acknowledgement comes for because the connection is closed."""
        farewell = link.farewells.get(receiver.peer_id)
        if farewell is None or self.now > farewell.until or not self._is_open(link, sender):
            return
        if not (self.network.clogs and self.network.is_cut(sender.index, receiver.index)):
            for late_s in self.network.datagram(sender.index, receiver.index, 0, self.now):
                self.at(self.now + late_s, lambda: self._repeat_farewell(link, receiver, sender))
        self.at(self.now + RETRY_S, lambda: self._insist(link, sender, receiver))

    def _say_farewell(self, link: Link, process: Process, other: Process, code: ErrorCode) -> None:
        """Sends the word that a connection is closed."""

        def heard() -> None:
            if self.network.clogs and self.network.hold(process.index, other.index, heard):
                return
            if self._is_open(link, other):
                self.enter(other, link.lives[other.peer_id], closed)

        def closed() -> None:
            if not self._is_open(link, other):
                return
            link.close_at(other.peer_id)
            if other.connections.get(process.peer_id) is link:
                del other.connections[process.peer_id]
                other.node.handle_disconnected(process.peer_id, code, self.now)
                self.settle(other)

        for late_s in self.network.datagram(process.index, other.index, 0, self.now):
            self.at(self.now + late_s, heard)
