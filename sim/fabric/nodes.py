"""The fabrics of the processes of a world: who shares memory with whom, how a fabric is opened, and what breaks of it.

Three processes share a host (its memory and its GPU), two hosts a rack (a pool and a network that does RDMA). Each says on its
card which fabrics it has, and requests with tensors take what two cards have in common, opened over a stream of its own where it
is not open. It stands where `mesh.fabric.fabrics` stands and decides as that does; what a session does is in
`sim.fabric.sessions`.

Spec: docs/spec/11-fabric.md, sections "Adverts", "Matching", "Opening".
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import (
    CXL,
    GPU,
    SHM,
    Advert,
    FabricConfig,
    FabricPeers,
    Kind,
    Match,
    Port,
    Way,
    decode_advert,
    encode_advert,
    matches,
    reaches_devices,
)
from protocol.fabric.adverts import GID_BYTES, GPU_TAG_BYTES, HOST_TAG_BYTES
from protocol.fabric.owners import BEAT_S
from protocol.fabric.pools import PoolFlags
from protocol.identity import PeerId
from sim.checks import CheckFailedError
from sim.fabric.device import Device
from sim.fabric.hardware import Fate, Hardware
from sim.fabric.kinds import Session, refresh, session_of
from sim.fabric.lane import Fell, Tally
from sim.fabric.opening import Answering, Opening
from sim.fabric.pool import Host, SimOwner, SimPool
from sim.fabric.poolsessions import CxlSession, Member
from sim.fabric.sessions import Base
from sim.fabric.tensors import DEVICE, TensorStream
from sim.process import Link, Process
from sim.streams import StreamEnd, Streams
from sim.world import World

if TYPE_CHECKING:
    from protocol.inference import InferenceRequest

HOST_PROCESSES = 3
"""Processes of one host, a count."""

RACK_PROCESSES = 6
"""And of one rack, a count: two hosts."""

LATES_MAX = 3
"""Transfers in a row that are not taken in time until a session counts as broken, a count: as in the shell."""

CONFIG = FabricConfig(closed_s=0.1, closed_s_max=1.0, regions_max=16)
"""As the specification's, but that a fabric opens again soon, so that a run of a minute has it break many times."""

OPENS = 8.0
"""How much seldomer an opening breaks than a step of a transfer, unitless: what cannot be opened breaks nothing afterwards."""

LEAK_S = 2.5
"""Seconds past its end that a lease may still be there: a tick, and a call that was late."""

KINDS = (
    frozenset((Kind.SHM, Kind.CXL, Kind.RDMA, Kind.GPU)),
    frozenset((Kind.SHM, Kind.RDMA, Kind.GPU)),
    frozenset((Kind.CXL, Kind.RDMA, Kind.GPU)),
    frozenset((Kind.RDMA, Kind.SHM)),
)
"""Which kinds a process may use; it draws one of these."""

FLAGS = (PoolFlags.COHERENT, PoolFlags(0), PoolFlags.TAGGED)
"""What a pool may be like."""


@dataclass(eq=False, slots=True)
class Trouble:
    """What is broken of the fabrics of one process; see `sim.faults.fabrics`."""

    fail: float = 0.0
    stall: float = 0.0
    spoil: float = 0.0
    no_memory: bool = False


@dataclass(eq=False, slots=True)
class _Fates:
    """What becomes of the steps of one process, by the trouble that it has."""

    fabrics: "Fabrics"
    index: int
    luck: Random
    late_s: float = 3.0

    def of(self, kind: Kind, step: str) -> Fate:
        """See `sim.fabric.hardware.Fates`."""
        del kind
        trouble = self.fabrics.troubles.get(self.index)
        if trouble is None:
            return Fate.WORKS
        drawn = self.luck.random() * (OPENS if step in ("knock", "admit") else 1.0)
        if drawn < trouble.fail:
            return Fate.FAILS
        if drawn < trouble.fail + trouble.stall:
            return self.luck.choice((Fate.LATE, Fate.NEVER))
        return Fate.WORKS

    def spoils(self, kind: Kind) -> bool:
        """See `sim.fabric.hardware.Fates`."""
        del kind
        trouble = self.fabrics.troubles.get(self.index)
        return trouble is not None and self.luck.random() < trouble.spoil


class _Timer:
    """Virtual time of one life of a process."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process, self._life = world, process, process.life

    @property
    def now(self) -> float:
        """Seconds."""
        return self._world.now

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Does something later in the process, if this life of it lasts that long."""
        world, process, life = self._world, self._process, self._life
        world.at(world.now + delay_s, lambda: world.enter(process, life, call))


class NodeFabrics:
    """The fabrics of one life of one process."""

    def __init__(self, fabrics: "Fabrics", process: Process) -> None:
        """Has nothing open."""
        self.fabrics, self.process, self.world = fabrics, process, fabrics.world
        self.life = process.life
        self.timer = _Timer(self.world, process)
        self.config = CONFIG
        luck = self.luck = self.world.streams.of(f"fabrics of {process.index}, life {process.life}")
        self.hardware = Hardware(f"n{process.index}.{process.life}", _Fates(fabrics, process.index, luck), luck)
        self.kinds = KINDS[fabrics.kinds_of(process.index)]
        self.device = fabrics.devices.setdefault(process.index // HOST_PROCESSES, Device())
        self.pool = fabrics.pool_of(process.index)
        self.host = Host(self.hardware.name, self.pool)
        self.member: Member | None = None
        self.sessions: dict[tuple[PeerId, bool], Session] = {}
        self.waiting: dict[tuple[PeerId, bool], list[Callable[[Session | None], None]]] = {}
        self.open_streams: list[TensorStream] = []
        self.peers, self.of_kinds = FabricPeers(CONFIG), FabricPeers(CONFIG)
        if Kind.CXL in self.kinds:
            self._enter_pool()
        self.tell()
        self.timer.after(BEAT_S, self._beat)

    @property
    def is_alive(self) -> bool:
        """Whether this life lasts."""
        return self.process.running and self.process.life == self.life

    # What there is

    def advert(self) -> Advert:
        """What the card says."""
        index, kinds = self.process.index, self.kinds
        rack, host = index // RACK_PROCESSES, index // HOST_PROCESSES
        gid = _id(f"rack {rack}", 8) + index.to_bytes(GID_BYTES - 8, "big")
        return Advert(
            _id(f"host {host}", HOST_TAG_BYTES) if Kind.SHM in kinds else b"",
            (Port(gid, 64, 100_000),) if Kind.RDMA in kinds else (),
            (self.pool.layout.pool_id,) if self.member is not None else (),
            (),
            (_id(f"gpu {host}", GPU_TAG_BYTES),) if Kind.GPU in kinds else (),
        )

    def tell(self) -> None:
        """Has the card say it."""
        self.process.node.handle_fabric(encode_advert(self.advert()))
        self.world.settle(self.process)

    def _enter_pool(self) -> None:
        """Claims a slot, which takes a while; the card says so then."""
        owner = SimOwner(self.host, self.hardware.name, self.luck.randbytes, self.luck, lambda: self.world.now)
        steps = owner.claiming_slot()

        def go_on() -> None:
            try:
                self.timer.after(next(steps), go_on)
            except StopIteration as end:
                if end.value:
                    self.pool.note_slot(owner.slot, self.hardware.name)
                    self.member = Member(self.host, owner)
                    self.tell()

        go_on()

    def _beat(self) -> None:
        """What is done every second."""
        self.timer.after(BEAT_S, self._beat)
        trouble = self.fabrics.troubles.get(self.process.index)
        self.hardware.is_out_of_memory = trouble is not None and trouble.no_memory
        member = self.member
        if member is not None:
            if member.owner.beat():
                for slot in member.owner.watch():
                    self._reap(member.owner, slot)
            else:
                self._leave_pool()
        elif Kind.CXL in self.kinds and self.luck.random() < 0.2:
            self._watch_for_room()
        for session in list(self.sessions.values()):
            refresh(session)

    def _leave_pool(self) -> None:
        """This process was taken for dead: its sessions are over, and it enters anew."""
        for session in list(self.sessions.values()):
            if isinstance(session, CxlSession):
                session.close("")
        self.member = None
        self.host.looked_at.clear()
        self.pool.note_death(self.hardware.name)
        self._enter_pool()

    def _watch_for_room(self) -> None:
        """No slot was free: one of an owner that has died may be by now."""
        self._enter_pool()

    def _reap(self, owner: SimOwner, slot: int) -> None:
        steps = owner.reaping(slot)

        def go_on() -> None:
            try:
                self.timer.after(next(steps), go_on)
            except StopIteration as end:
                if end.value:
                    self.pool.note_reaped(slot)

        go_on()

    # Requests

    def wants(self, peer: PeerId, request: "InferenceRequest") -> bool:
        """Whether a request to a peer is worth a fabric, and there may be one."""
        if not request.tensors:
            return False
        return any((peer, way) in self.sessions or self.shared(peer, on_device=way) for way in _ways_of(request))

    def way_to(self, link: Link, peer: Process, request: "InferenceRequest", done: Callable[[bool], None]) -> None:
        """Opens a fabric for a request where there is none; `done` hears whether there is one."""
        ways = list(_ways_of(request))

        def try_next(session: Session | None) -> None:
            if session is not None or not ways:
                done(session is not None)
            else:
                self.session(link, peer, ways.pop(0), try_next)

        try_next(None)

    def with_peer(self, peer: PeerId) -> dict[int, Session]:
        """The fabrics that are open with a peer, by kind."""
        found = (self.sessions.get((peer, way)) for way in (True, False))
        return {int(session.kind): session for session in found if session is not None}

    def session_for(self, sessions: dict[int, Session], *, on_device: bool) -> Session | None:
        """Which of the fabrics with a peer tensors take: for those on a device one that reaches it, if it is open."""
        live = [session for session in sessions.values() if not session.closed]
        fitting = [session for session in live if reaches_devices(session.kind) == on_device]
        return next(iter(fitting or [session for session in live if not reaches_devices(session.kind)]), None)

    def stream(self, stream: StreamEnd, deadline_s: float) -> TensorStream:
        """An end of a stream whose tensors may take the fabrics that are open now."""
        return TensorStream(self, stream, self.with_peer(stream.peer.peer_id), deadline_s)

    # Opening

    def shared(self, peer: PeerId, *, on_device: bool) -> tuple[Match, ...]:
        """The fabrics that this process and a peer have by their cards, where nothing has closed them."""
        now = self.world.now
        if not self.peers.is_open(peer, now):
            return ()
        card = self.process.node.peer(peer, now).card
        try:
            other = Advert() if card is None else decode_advert(card.fabric)
        except RemoteProtocolError:
            return ()
        found = [match for match in matches(self.advert(), other) if reaches_devices(match.kind) == on_device]
        return tuple(match for match in found if self.of_kinds.is_open(_key(peer, match.kind), now))

    def session(self, link: Link, peer: Process, on_device: bool, done: Callable[[Session | None], None]) -> None:
        """The fabric with a peer, opened where there is none; None where that does not work out."""
        key = peer.peer_id, on_device
        held = self.sessions.get(key)
        shared = self.shared(peer.peer_id, on_device=on_device)
        if held is not None or not shared:
            done(held)
        elif key in self.waiting:
            self.waiting[key].append(done)
        else:
            self.waiting[key] = [done]
            Opening(self, link, peer, shared, lambda: self._opened(key)).knock()

    def _opened(self, key: tuple[PeerId, bool]) -> None:
        for done in self.waiting.pop(key):
            done(self.sessions.get(key))

    def make(self, match: Match, peer: "NodeFabrics") -> Session:
        """One end of a fabric with a process."""
        common = (match.kind, self.hardware, peer.hardware.name, self.config, self.timer, self._closed(peer.process.peer_id))
        return session_of(common, self.device, self.member, None if peer.member is None else peer.member.owner.token)

    def begin(self, peer: PeerId, session: Session) -> None:
        """A fabric is open; it takes the place of an earlier one with the same peer."""
        key = peer, reaches_devices(session.kind)
        earlier = self.sessions.get(key)
        if earlier is not None:
            earlier.close("")
        self.sessions[key] = session
        self._ways(session.kind)[peer] = {Kind.GPU: GPU, Kind.CXL: CXL}.get(session.kind, SHM)
        self.world.journal.note(self.world.now, self.process.index, f"has a fabric open: {session.kind.name} with {session.peer}")

    def _ways(self, kind: Kind) -> dict[PeerId, Way]:
        return self.process.node.device_ways if reaches_devices(kind) else self.process.node.ways

    def _closed(self, peer: PeerId) -> Callable[[Base, str], None]:
        def closed(session: Base, why: str) -> None:
            key = peer, reaches_devices(session.kind)
            if self.sessions.get(key) is session:
                del self.sessions[key]
                if self.is_alive:
                    self._ways(session.kind).pop(peer, None)
                self.world.journal.note(
                    self.world.now, self.process.index, f"closes {session.kind.name}: {why or 'nothing is wrong'}"
                )
            session.on_end(why)
            if why and reaches_devices(session.kind):
                self.of_kinds.handle_error(_key(peer, session.kind), why, self.world.now)
            elif why:
                self.peers.handle_error(peer, why, self.world.now)

        return closed

    def cannot_open(self, peer: PeerId, kind: Kind, why: str) -> None:
        """A kind of fabric could not be opened with a peer: it is left out for a while."""
        self.of_kinds.handle_error(_key(peer, kind), why, self.world.now)

    def fault(self, session: Session, fell: Fell) -> None:
        """Something about a fabric went wrong: it is closed, but for a transfer that was late once or twice."""
        session.n_late = session.n_late + 1 if fell is Fell.LATE else 0
        if fell is not Fell.LATE or session.n_late >= LATES_MAX:
            session.close(fell.value)

    def succeeded(self, session: Session) -> None:
        """A transfer went well: earlier errors are forgotten."""
        session.n_late = 0
        peer = next((peer for (peer, _), held in self.sessions.items() if held is session), None)
        if peer is not None:
            self.peers.handle_success(peer)
            self.of_kinds.handle_success(_key(peer, session.kind))

    def charge(self, peer: PeerId) -> ErrorCode | None:
        """Charge a peer for an offer."""
        return self.peers.charge_offer(peer, self.world.now)

    def end(self) -> None:
        """The process has died: the system takes what it had, and the ends of its local sockets are closed."""
        for session in list(self.sessions.values()):
            session.on_end("")
        self.device.forget(self.hardware.name)
        self.host.die()

    # What must hold

    def leaks(self, *, all_of_them: bool) -> list[str]:
        """What is kept past its time, or for nobody where no request is under way."""
        found: list[str] = []
        for session in self.sessions.values():
            found += session.leaks() if all_of_them else session.outstanding(self.world.now - LEAK_S)
        if all_of_them:
            found += [f"{self.hardware.name} looks at slab {slab}" for slab in self.host.looked_at]
        return found


@dataclass(eq=False)
class Fabrics:
    """The fabrics of all processes of a world, and what is broken of them.

    Attributes:
        world: which.
        streams: of the world's requests.
        troubles: by process.
        halves: fabrics that the side which was asked has open, by the number of the stream.
        tally: what became of tensors.
    """

    world: World
    streams: Streams
    troubles: dict[int, Trouble] = field(default_factory=dict[int, Trouble])
    nodes: dict[int, NodeFabrics] = field(default_factory=dict[int, NodeFabrics])
    devices: dict[int, Device] = field(default_factory=dict[int, Device])
    pools: dict[int, SimPool] = field(default_factory=dict[int, SimPool])
    halves: dict[int, tuple[Session, StreamEnd]] = field(default_factory=dict[int, tuple[Session, StreamEnd]])
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.world.fabrics = self
        self.world.life_watchers.append(self._lives)
        self.world.at(self.world.now + 1.0, self._look)

    def _lives(self, process: Process) -> None:
        known = self.nodes.pop(process.index, None)
        if known is not None:
            known.end()
        if process.running and not process.hostile:
            self.nodes[process.index] = NodeFabrics(self, process)

    def kinds_of(self, index: int) -> int:
        """Which kinds a process may use, by its place in `KINDS`; for all of its lives."""
        return Random(f"{self.world.seed}/kinds {index}").randrange(len(KINDS))  # noqa: S311

    def pool_of(self, index: int) -> SimPool:
        """The pool of a process's rack."""
        rack = index // RACK_PROCESSES
        if rack not in self.pools:
            flags = self.world.streams.of(f"pool {rack}").choice(FLAGS)
            self.pools[rack] = SimPool(_id(f"pool {rack}", 16), flags, slots=RACK_PROCESSES + 2)
        return self.pools[rack]

    def accept(self, stream: StreamEnd) -> None:
        """Answers a peer that asks for a fabric."""
        own = self.nodes.get(stream.process.index)
        if own is None:
            stream.reset(ErrorCode.UNSUPPORTED)
        else:
            Answering(own, stream)

    @property
    def are_alone_broken(self) -> bool:
        """Whether nothing but fabrics is broken now."""
        return all(text.startswith("fabric") for text in self.world.faults_on.values())

    def kinds_open(self) -> dict[str, int]:
        """How many fabrics of each kind are open."""
        found: dict[str, int] = {}
        for node in self.nodes.values():
            for session in node.sessions.values():
                found[session.kind.name.lower()] = found.get(session.kind.name.lower(), 0) + 1
        return found

    def _look(self) -> None:
        """Once a second: nothing is leased past its time, as far as whoever should see to it runs."""
        for node in self.nodes.values():
            process = node.process
            if process.works and process.slow_s == 0.0 and not process.stalled_s(self.world.now - 2 * LEAK_S, self.world.now):
                leaks = node.leaks(all_of_them=False)
                if leaks:
                    raise CheckFailedError("I12", leaks[0])
        self.world.at(self.world.now + 1.0, self._look)

    def leaks(self) -> list[str]:
        """What is kept for nobody, where no request is under way."""
        found = [leak for node in self.nodes.values() if node.process.works for leak in node.leaks(all_of_them=True)]
        names = {node.hardware.name for node in self.nodes.values()}
        for pool in self.pools.values():
            found += [
                f"slab {slab} is claimed by {name}, which is dead" for slab, name in pool.claimed.items() if name not in names
            ]
        for device in self.devices.values():
            found += [f"{name}, which is dead, has memory of a GPU open" for name, _ in device.open_by if name not in names]
        return found


def _ways_of(request: "InferenceRequest") -> tuple[bool, ...]:
    """The sorts of fabric for a request's tensors, the first to be tried first."""
    return (True, False) if request.tensors and request.tensors[0].name == DEVICE else (False,)


def _key(peer: PeerId, kind: Kind) -> PeerId:
    return PeerId(peer + bytes([kind]))


def _id(text: str, size: int) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:size]
