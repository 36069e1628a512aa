"""One process of a world, and the connections between two of them, as values that the world changes."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.encoding import Luck
from protocol.errors import ErrorCode
from protocol.identity import Identity, PeerId
from protocol.multiaddr import Multiaddr
from protocol.node import Node, NodeConfig
from protocol.records import ModelOffer, Sequencer

if TYPE_CHECKING:
    from sim.world import World

FIRST_PORT = 1000
"""UDP port of process 0, a number: the ports tell the processes apart, so that there may be 64,000 of them."""

HOSTS = 254
"""Host addresses of one network of documentation (192.0.2.0/24, RFC 5737), a count; a process that moves takes the next one."""

HELD_MAX = 20_000
"""Events a stopped process finds when it goes on, a count: about what two minutes bring in a mesh of 64 connections; the oldest
give way, as they do in a full socket buffer."""

LANE_MAX = 512
"""Messages on their way on one stream, a count; the oldest that has not left gives way, as in the shell's bounded outbox."""

MakeNode = Callable[[NodeConfig, Identity, Luck, Sequencer], Node]
"""How a core is made; tests plant their bugs here, and faults put other versions and hostile peers in its place."""


@dataclass(eq=False, slots=True)
class Farewell:
    """The word that a connection is closed, which is repeated to a peer that goes on talking, as the endpoint does.

    Attributes:
        code: why it was closed.
        until: when the end that closed it has forgotten it.
        heard: packets that have come since.
    """

    code: ErrorCode
    until: float
    heard: int = 0

    def answers(self, now: float) -> bool:
        """Whether a packet that comes now is answered: the first, the second, the fourth, the eighth."""
        if now > self.until:
            return False
        self.heard += 1
        return self.heard & (self.heard - 1) == 0


class Lane:
    """One direction of a connection and of its gossip stream; it is called when the first message of the stream arrives.

    Attributes:
        world: in which it is.
        link: the connection.
        sender: who is at its near end.
        receiver: who is at its far end, in this life of it.
        life: of the receiver, when the connection was made.
        is_open: whether the receiver has not closed the connection.
        waiting: what was sent and has not arrived, with the earliest time of arrival.
        speaking: whether the stream is open.
        moving: whether it has an event under way.
    """

    __slots__ = ("is_open", "life", "link", "moving", "receiver", "sender", "speaking", "waiting", "world")

    def __init__(self, world: "World", link: "Link", sender: "Process", receiver: "Process") -> None:
        """A stream that is not open yet, of a connection that is."""
        self.world = world
        self.link = link
        self.sender = sender
        self.receiver = receiver
        self.life = receiver.life
        self.is_open = True
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.speaking = self.moving = False

    def __call__(self) -> None:
        """The first message arrives."""
        self.world.message_arrives(self)

    @property
    def leads_somewhere(self) -> bool:
        """Whether what arrives is taken in: the receiver lives, and has not closed the connection."""
        return self.is_open and self.receiver.running and self.receiver.life == self.life


@dataclass(eq=False, slots=True)
class Link:
    """One connection: which life of which process is at each end, and at which ends it is open.

    Attributes:
        lives: the lives of both processes when it was made.
        open_at: the ends that have not closed it.
        lanes: the gossip stream of each end.
        streams: whoever else uses it, by a number of their own; each hears of an end that closes it.
        farewells: what ends that have closed it answer to whatever still comes.
    """

    lives: dict[PeerId, int]
    open_at: set[PeerId] = field(default_factory=set[PeerId])
    lanes: dict[PeerId, Lane] = field(default_factory=dict[PeerId, Lane])
    streams: dict[int, Callable[[PeerId], None]] = field(default_factory=dict[int, Callable[[PeerId], None]])
    farewells: dict[PeerId, Farewell] = field(default_factory=dict[PeerId, Farewell])

    def close_at(self, end: PeerId) -> None:
        """Closes it at one end, and tells its streams."""
        self.open_at.discard(end)
        for lane in self.lanes.values():
            lane.is_open = lane.is_open and lane.receiver.peer_id != end
        for closed in list(self.streams.values()):
            closed(end)


@dataclass(eq=False)
class Process:
    """One process: its core, what survives a crash, and what the world does to it.

    Attributes:
        index: its number, which is also its place in the network.
        wall_off_s: how far its wall clock is from the true one.
        clock_steps: how often its wall clock was set by more than its records allow.
        life: how often it was started.
        reserved: the sequence numbers on its disk.
        paused: whether it is stopped (SIGSTOP); `held` is what came meanwhile.
        stalls: from when to when it was stopped, in this life.
        slow_s: how long it takes for each event.
        heard: when it last took in an echo of each peer, or was connected to it anew.
        bytes_sent: payload bytes given to the network.
        make_node: how its core is made; as everybody's in this world when None.
        hostile: whether it means harm; nothing is promised to it, and nothing demanded of it.
        origin: the address or prefix that others see it come from; None where that is of no account.
        disks: how often it has lost its disk.
        moves: how often its address has changed.
        lane_max: messages that may be on their way on one of its streams.
    """

    index: int
    identity: Identity
    offers: tuple[ModelOffer, ...]
    bootstrap: tuple[Multiaddr, ...]
    config: NodeConfig
    wall_off_s: float = 0.0
    clock_steps: int = 0
    life: int = 0
    running: bool = False
    started_at: float = 0.0
    reserved: int = 0
    armed_for: float = math.inf
    paused: bool = False
    paused_at: float = 0.0
    held: deque[Callable[[], None]] = field(default_factory=lambda: deque[Callable[[], None]](maxlen=HELD_MAX))
    stalls: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    slow_s: float = 0.0
    busy_until: float = 0.0
    node: Node = field(init=False)
    peer_id: PeerId = field(init=False)
    connections: dict[PeerId, Link] = field(default_factory=dict[PeerId, Link])
    heard: dict[PeerId, float] = field(default_factory=dict[PeerId, float])
    bytes_sent: int = 0
    make_node: MakeNode | None = None
    hostile: bool = False
    origin: bytes | None = None
    disks: int = 0
    moves: int = 0
    lane_max: int = LANE_MAX

    def __post_init__(self) -> None:
        self.peer_id = self.identity.peer_id

    @property
    def address(self) -> Multiaddr:
        """Where it listens."""
        return Multiaddr("ip4", f"192.0.2.{1 + self.moves % HOSTS}", FIRST_PORT + self.index, self.peer_id)

    @property
    def works(self) -> bool:
        """Whether it runs and is not stopped."""
        return self.running and not self.paused

    def stalled_s(self, since: float, now: float) -> float:
        """For how much of the time from `since` to `now` it was stopped."""
        return sum(max(0.0, min(end, now) - max(begin, since)) for begin, end in self.stalls)
