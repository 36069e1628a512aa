"""Two processes that pass tensors to each other by every kind of fabric, with what lies between them.

Each has a lane on one stream, and with the other at most one session of each kind; a session that something went wrong with is
closed at both ends, stays closed for a while, and is then opened anew. Both are in one pool, on one host and use one GPU.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from protocol.fabric import FabricConfig, FabricPeers, Kind, Lease
from protocol.fabric.messages import FrameKind, bulk_head, decode_message, kind_of_frame
from protocol.fabric.pools import LINE_BYTES, PoolFlags
from protocol.identity import PeerId
from sim.fabric.device import Device
from sim.fabric.hardware import BrokenPromiseError, FabricError, Fates, Hardware, Segment
from sim.fabric.kinds import Session, connect, refresh, session_of
from sim.fabric.lane import Fell, Lane, Tally
from sim.fabric.pool import Host, SimOwner, SimPool
from sim.fabric.poolsessions import CxlSession, Member
from sim.fabric.sessions import Base, RdmaSession, ShmSession
from sim.fabric.world import Clock, Pipe

PEER = PeerId(b"the other end")

WHOLE = b"T"
"""First byte of a frame that holds tensors that no fabric took; no other frame begins with it."""

LATES_MAX = 3
"""Transfers in a row that are not taken in time until a session counts as broken, a count: as in the shell."""


class Way(StrEnum):
    """The fabrics, and of pools what makes them differ."""

    SHM = "shm"
    RDMA = "rdma"
    GPU = "gpu"
    CXL = "cxl"
    CXL_APART = "cxl, not coherent"
    CXL_TAGGED = "cxl, tagged"

    @property
    def kind(self) -> Kind:
        """Which fabric."""
        return {Way.SHM: Kind.SHM, Way.RDMA: Kind.RDMA, Way.GPU: Kind.GPU}.get(self, Kind.CXL)

    @property
    def flags(self) -> PoolFlags:
        """Of the pool, where it is one."""
        match self:
            case Way.CXL_APART:
                return PoolFlags(0)
            case Way.CXL_TAGGED:
                return PoolFlags.TAGGED
            case _:
                return PoolFlags.COHERENT


@dataclass(eq=False)
class End:
    """One process.

    Attributes:
        name: with the number of its life.
        clock: virtual time.
        hardware: its memory.
        device: the GPU that both use.
        host: the pool as it sees it.
        peers: whether the fabric with the other is open.
        lane: its end of the stream.
        sessions: its fabrics with the other, by kind.
    """

    name: str
    clock: "Life"
    hardware: Hardware
    device: Device
    config: FabricConfig
    host: Host
    luck: random.Random
    lease_s: float
    uses_pool: bool = True
    owner: SimOwner = field(init=False)
    member: Member = field(init=False)
    peers: FabricPeers = field(init=False)
    tally: Tally = field(default_factory=Tally)
    sessions: dict[int, Session] = field(default_factory=dict[int, Session])
    segments: list[tuple[Segment, Lease]] = field(default_factory=list[tuple[Segment, Lease]])
    lane: Lane = field(init=False)

    def __post_init__(self) -> None:
        if self.uses_pool:
            self.enter_pool()
        self.peers = FabricPeers(self.config)
        self.taken: Callable[[int, bytes], None] = lambda _number, _data: None
        self.void: Callable[[int], None] = lambda _number: None

    def enter_pool(self) -> None:
        """Claim a slot; nobody else claims one meanwhile."""
        self.owner = SimOwner(self.host, self.name, self.luck.randbytes, self.luck, lambda: self.clock.now)
        for _ in self.owner.claiming_slot():
            pass
        self.member = Member(self.host, self.owner)

    def joins(self, out: Pipe, back: Pipe) -> None:
        """Begins to speak on a stream, and to hear it."""
        self.out = out
        self.lane = Lane(
            self.name,
            self.clock,
            self.hardware,
            self.config,
            self.sessions,
            self.lease_s,
            out.send,
            self.fault,
            lambda: self.peers.charge_offer(PEER, self.clock.now),
            self._hand_out,
            self._void,
            self.tally,
        )
        back.taker = self.frame

    def give(self, number: int, data: bytes, way: Way) -> None:
        """Give tensors by a fabric, or within a message where it takes none."""
        session = self.sessions.get(int(way.kind))
        if session is None or session.closed or not self.lane.give(number, session, data):
            self.out.send(WHOLE + number.to_bytes(4, "big") + data)

    def _hand_out(self, number: int, data: bytes) -> None:
        self.taken(number, data)

    def _void(self, number: int) -> None:
        self.void(number)

    def frame(self, frame: bytes) -> None:
        """A frame has come."""
        if frame[:1] == WHOLE:
            self.tally.by_stream += 1
            self.taken(int.from_bytes(frame[1:5], "big"), frame[5:])
            return
        match kind_of_frame(frame):
            case FrameKind.BULK:
                self.lane.bulk(frame[len(bulk_head()) :])
            case FrameKind.TRANSFER:
                message = decode_message(frame)
                assert message is not None
                self.lane.hear(message)
            case FrameKind.INFERENCE:
                raise AssertionError("there are no requests on this stream")

    def done(self, number: int) -> bool:
        """The user of tensors is done; False where they are void, so that it must wait for them again."""
        return number not in self.lane.receipts or self.lane.done(number)

    def fault(self, session: Session, fell: Fell) -> None:
        """Something about a session went wrong."""
        session.n_late = session.n_late + 1 if fell is Fell.LATE else 0
        if fell is not Fell.LATE or session.n_late >= LATES_MAX:
            session.close(fell.value)

    def closed(self, session: Base, why: str) -> None:
        """A session is over; the other end hears of it."""
        if isinstance(session, ShmSession | RdmaSession):
            self.segments += session.granted
        if self.sessions.get(int(session.kind)) is session:
            del self.sessions[int(session.kind)]
        if why:
            self.peers.handle_error(PEER, why, self.clock.now)

    def beat(self) -> None:
        """What a process does once a second; it leaves a pool in which it was taken for dead, and enters it anew."""
        if self.uses_pool and not self.owner.beat():
            for session in list(self.sessions.values()):
                if isinstance(session, CxlSession):
                    session.close("")
            self.enter_pool()
        for session in list(self.sessions.values()):
            refresh(session)

    def attack(self, segment: Segment, lease: Lease, offset: int) -> None:
        """The other end writes by a lease that is over, or past one that holds."""
        if segment.admits(segment.peer, lease) and lease.covers(offset, 4):
            return  # a lease that holds, inside its bounds, belongs to it
        try:
            segment.put(segment.peer, lease, offset, b"evil")
        except FabricError:
            self.hardware.refused += 1
        else:
            raise BrokenPromiseError(f"{segment.peer} got in by {lease} at {offset}")


class Life:
    """Virtual time of one process: nothing happens in it after its death."""

    def __init__(self, clock: Clock) -> None:
        """Begins."""
        self._clock = clock
        self.is_over = False

    @property
    def now(self) -> float:
        """Seconds."""
        return self._clock.now

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Does something later, if it lives then."""
        self._clock.after(delay_s, lambda: None if self.is_over else call())


class Pair:
    """Both processes, and what they share."""

    def __init__(self, clock: Clock, fates: Fates, luck: random.Random, config: FabricConfig, way: Way, lease_s: float) -> None:
        """Starts both.

        Args:
            clock: virtual time.
            fates: of the hardware.
            luck: for everything else.
            config: bounds.
            way: what the pool is like.
            lease_s: how long leases hold.
        """
        self.clock, self.fates, self.luck, self.config, self.lease_s = clock, fates, luck, config, lease_s
        self.uses_pool = way.kind is Kind.CXL
        self.pool = SimPool(luck.randbytes(16), way.flags)
        self.device = Device()
        self.lives: list[End] = []
        self.others: SimOwner | None = None
        self.asker, self.executor = self.start("asker"), self.start("executor")

    def start(self, name: str) -> End:
        """Starts a process, which claims a slot of the pool at once."""
        number = sum(end.name.startswith(name) for end in self.lives)
        name = f"{name} {number}"
        luck = random.Random(self.luck.random())  # noqa: S311
        life, hardware = Life(self.clock), Hardware(name, self.fates, luck)
        end = End(name, life, hardware, self.device, self.config, Host(name, self.pool), luck, self.lease_s, self.uses_pool)
        self.lives.append(end)

        def beat() -> None:
            end.beat()
            life.after(1.0, beat)

        life.after(1.0, beat)
        return end

    def open(self, way: Way) -> None:
        """Open the fabric of a kind between both, unless it is open, or was closed for a while."""
        ends, kind = (self.asker, self.executor), way.kind
        sessions = [end.sessions.get(int(kind)) for end in ends]
        if all(session is not None and not session.closed for session in sessions):
            return
        if not all(end.peers.is_open(PEER, self.clock.now) for end in ends):
            return
        if kind is Kind.CXL and not all(end.owner.has_slot for end in ends):
            return
        for session in sessions:
            if session is not None:
                session.close("")
        one, other = self._session(*ends, kind), self._session(*ends[::-1], kind)
        connect(one, other)
        for end, session in zip(ends, (one, other), strict=True):
            end.sessions[int(kind)] = session

    def _session(self, end: End, other: End, kind: Kind) -> Session:
        common = (kind, end.hardware, other.name, self.config, end.clock, self._closed(end))
        member, theirs = (end.member, other.owner.token) if kind is Kind.CXL else (None, None)
        return session_of(common, self.device, member, theirs)

    def _closed(self, end: End) -> Callable[[Base, str], None]:
        """Tells the other end of a session when one is over, as the end of the control stream does."""

        def closed(session: Base, why: str) -> None:
            end.closed(session, why)
            other = self.executor if end is self.asker else self.asker
            theirs = other.sessions.get(int(session.kind))
            if theirs is not None and not theirs.closed:
                other.clock.after(0.0001, lambda: theirs.close(why and "the other end has closed it"))

        return closed

    def crash(self, end: End) -> None:
        """A process dies without a word: the system takes its memory, but what others have mapped of the host's stays."""
        end.clock.is_over = True
        end.lane.over = True
        self.device.forget(end.name)
        end.host.die()

    def lose_slot(self, end: End) -> None:
        """Another owner has taken a process for dead, and its slot over: it finds another head there."""
        host = Host("somebody", self.pool)
        somebody = SimOwner(host, host.name, self.luck.randbytes, self.luck, lambda: self.clock.now)
        for _ in somebody.taking(end.owner.slot):
            pass
        somebody.leave()
        self.pool.hosts.remove(host)
        self.pool.note_death(end.name)
        end.host.looked_at.clear()

    def fill_pool(self) -> None:
        """Others claim all slabs that are free."""
        host = Host("others", self.pool)
        others = SimOwner(host, host.name, self.luck.randbytes, self.luck, lambda: self.clock.now)
        for _ in others.claiming_slot():
            pass
        member = Member(host, others)
        while (run := member.claim(1)) is not None:
            run.window.write(0, bytes(2 * LINE_BYTES))
        self.others = others

    def free_pool(self) -> None:
        """What other owners do with slots whose owners have died."""
        if self.others is not None:
            self.others.leave()
            self.pool.note_death("others")
        keeper = self.asker.owner
        for _ in range(2):
            keeper.watch()
            self.clock.run(self.clock.now + 16.0)
            for end in (self.asker, self.executor):
                end.owner.beat()
            for slot in keeper.watch():
                for _ in keeper.reaping(slot):
                    pass

    def leaks(self) -> list[str]:
        """What is kept for nobody where no request is under way."""
        found = [leak for end in (self.asker, self.executor) for session in end.sessions.values() for leak in session.leaks()]
        return found + [f"{end.name} looks at slab {slab}" for end in self.lives for slab in end.host.looked_at]

    def leaks_after_closing(self) -> list[str]:
        """The same once every session is closed and the pool is left."""
        for end in (self.asker, self.executor):
            for session in list(end.sessions.values()):
                session.close("")
        self.clock.run(self.clock.now + 15.0)
        found = [
            f"{end.name} keeps {len(end.hardware.segments)} regions"
            for end in (self.asker, self.executor)
            if end.hardware.segments
        ]
        found += [f"{name} keeps memory of a GPU open" for name, _ in self.device.open_by]
        found += [f"memory of {segment.owner} stays on the GPU" for segment in self.device.allocations.values()]
        if not self.uses_pool:
            return found
        self.free_pool()
        used = self.pool.layout.slabs - self.asker.owner.free_slabs
        found += [f"slab {slab} stays claimed by {name}" for slab, name in self.pool.claimed.items()]
        return found + ([f"{used} slabs of the pool stay in use"] if used else [])


def lease_variants(lease: Lease) -> tuple[Lease, ...]:
    """A lease, and what somebody might make of it."""
    return lease, replace(lease, epoch=lease.epoch + 1), replace(lease, length=1 << 20)
