"""An owner of a pool that dies at any of its writes, with the line that it was writing whole, half written or not written at all.

It claims a slot and slabs, gives from them, frees them, holds slabs of another and lets go, and leaves. A sound run counts its
writes; then it dies at each of them. Afterwards its peer finds by the lease that it was told the right bytes or none, whoever
comes back claims a slot in a greater epoch, nobody ever claims what another claims or looks at, and once the dead owner's slot
was taken over every slab is free.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from protocol.errors import ProtocolError, RemoteProtocolError
from protocol.fabric import FabricConfig, Lease, RegionTable, Rights
from protocol.fabric.owners import DEAD_S
from protocol.fabric.pools import LINE_BYTES, RegionHead, Token, encode_place, encode_region
from sim.fabric.ends import Way
from sim.fabric.hardware import BrokenPromiseError
from sim.fabric.pool import Host, Put, SimOwner, SimPool, SimRun
from sim.fabric.poolsessions import Member

POOLS = (Way.CXL, Way.CXL_APART)
"""What pools are like in this; a tagged one is no other pool."""

DATA_BYTES = 300
"""Bytes that are given: five lines."""

ROUNDS = 2
"""How often the owner gives, a count: the second time from the same slabs."""


class DiedError(Exception):
    """The process is gone."""


@dataclass(frozen=True, slots=True)
class Death:
    """At which write the owner dies, and how many of its bytes are written."""

    way: Way
    write: int
    written_share: float


@dataclass(eq=False)
class _Party:
    """One owner."""

    host: Host
    owner: SimOwner
    member: Member
    table: RegionTable = field(default_factory=lambda: RegionTable(FabricConfig()))

    def hold_and_read(self, theirs: Token, lease: Lease, put: Put, first: int, count: int) -> bool:
        """Read by a lease as a receiver does; whether it held. Other bytes than were put there break a promise."""
        self.member.hold(first, count)
        try:
            self.owner.check(theirs, lease, first, count)
            if lease.region not in self.table:
                self.table.show(lease.region, count * self.host.layout.slab_bytes - LINE_BYTES)
            self.table.take(lease, Rights.READ)
        except RemoteProtocolError:
            self.owner.let_go(first, count)
            return False
        at = self.host.layout.slab_at(first) + LINE_BYTES
        self.host.invalidate(at, lease.length)
        seen = self.host.load(at, lease.length)
        self.owner.let_go(first, count)
        if seen != put.data:
            raise BrokenPromiseError(f"{self.host.name} reads other bytes than were given under epoch {lease.epoch}")
        return True


class _Story:
    """One run."""

    def __init__(self, death: Death | None, way: Way, seed: int) -> None:
        self.death, self.luck, self.now = death, random.Random(seed), 0.0  # noqa: S311
        self.pool = SimPool(bytes(16), way.flags)
        self.n_writes = 0
        self.peer, self.third = self.party("peer"), self.party("third")
        for party in (self.peer, self.third):
            assert self.enter(party)
        self.told: list[tuple[Token, Lease, Put, int, int]] = []

    def party(self, name: str) -> _Party:
        """A process that maps the pool."""
        host = Host(name, self.pool)
        owner = SimOwner(host, name, self.luck.randbytes, self.luck, lambda: self.now)
        return _Party(host, owner, Member(host, owner))

    def enter(self, party: _Party) -> bool:
        """Claims a slot; time passes where it waits."""
        steps = party.owner.claiming_slot()
        while True:
            try:
                self.now += next(steps)
            except StopIteration as end:
                return bool(end.value)

    def writes(self, dying: Host, at: int, data: bytes) -> None:
        """Counts a write of the owner, which may be its last."""
        number = self.n_writes
        self.n_writes += 1
        if self.death is None or self.death.write != number:
            return
        dying.on_write = lambda _at, _data: None
        done = data[: int(len(data) * self.death.written_share)]
        if done:
            dying.store(at, done)
            dying.write_back(at, len(done))
        raise DiedError

    def run(self) -> None:
        """Runs it and checks what must hold."""
        mortal = self.party("mortal")
        mortal.host.on_write = lambda at, data: self.writes(mortal.host, at, data)
        theirs = self.third.member.claim(DATA_BYTES)
        assert theirs is not None
        before: Token | None = None
        try:
            assert self.enter(mortal)
            before = mortal.owner.token
            self.live(mortal, theirs.first, theirs.count)
        except DiedError:
            before = mortal.owner.token if mortal.owner.slot >= 0 else None
            mortal.host.die()
        self.read_all()
        again = self.party("mortal again")
        assert self.enter(again)
        if before is not None and again.owner.slot == before.slot and again.owner.head.epoch <= before.epoch:
            raise BrokenPromiseError("a slot has another owner in no greater epoch")
        self.fill((again, self.third))
        self.read_all()
        self.third.member.retire(theirs)
        self.clear((again, self.third, self.peer))

    def live(self, mortal: _Party, first: int, count: int) -> None:
        """What the owner does until it dies."""
        run = mortal.member.claim(DATA_BYTES)
        assert run is not None
        for epoch in range(1, ROUNDS + 1):
            data, token = self.luck.randbytes(DATA_BYTES), mortal.owner.token
            put = Put("mortal", "peer", 7, epoch, data)
            lease = Lease(7, epoch, 0, DATA_BYTES, Rights.READ, 60.0, encode_place(run.first, run.count))
            run.window.put(LINE_BYTES, data)
            run.window.write_back(LINE_BYTES, DATA_BYTES)
            self.told.append((token, lease, put, run.first, run.count))
            run.window.write(0, encode_region(RegionHead(token.slot, token.epoch, 7, epoch, DATA_BYTES)))
            if not self.peer.hold_and_read(*self.told[-1]):
                raise BrokenPromiseError("what lies ready is not found")
            mortal.owner.beat()
        mortal.member.hold(first, count)
        mortal.owner.let_go(first, count)
        mortal.member.retire(run)
        mortal.owner.leave()

    def read_all(self) -> None:
        """By whatever leases were told the peer finds the right bytes, or nothing."""
        for told in self.told:
            self.peer.hold_and_read(*told)

    def fill(self, parties: Sequence[_Party]) -> None:
        """Others claim all that is free, and write into it; whatever the pool lets them claim is theirs alone."""
        runs: list[tuple[_Party, SimRun]] = []
        for size_bytes in (16 * self.pool.layout.slab_bytes, 1):
            while True:
                party = parties[len(runs) % len(parties)]
                run = party.member.claim(size_bytes)
                if run is None:
                    break
                run.window.write(0, bytes(LINE_BYTES + DATA_BYTES))
                runs.append((party, run))
        for party, run in runs:
            party.member.retire(run)

    def clear(self, living: Sequence[_Party]) -> None:
        """Time passes until whoever has died is found dead; then nothing of it is left."""
        for party in living:
            party.owner.watch()
        for _ in range(2):
            self.now += DEAD_S / 2 + 1.0
            for party in living:
                party.owner.beat()
        keeper = living[0].owner
        for slot in keeper.watch():
            for wait_s in keeper.reaping(slot):
                self.now += wait_s
        if keeper.free_slabs != self.pool.layout.slabs:
            raise BrokenPromiseError(f"{self.pool.layout.slabs - keeper.free_slabs} slabs stay in use")
        self.fill(living)
        for told in self.told:
            self.third.hold_and_read(*told)  # one that has not taken any of them


def deaths_of(way: Way, seed: int = 1) -> Iterator[Death]:
    """Every write at which the owner may die."""
    story = _Story(None, way, seed)
    story.run()
    for write in range(story.n_writes):
        yield from (Death(way, write, share) for share in (0.0, 0.5, 1.0))


def try_death(death: Death, seed: int = 1) -> str:
    """Runs one; what was broken, empty where everything held."""
    story = _Story(death, death.way, seed)
    try:
        story.run()
    except (BrokenPromiseError, ProtocolError) as broken:
        return str(broken)
    return ""


def try_every_death(ways: Sequence[Way] = POOLS, seed: int = 1) -> list[tuple[Death, str]]:
    """Runs all of them."""
    return [(death, try_death(death, seed)) for way in ways for death in deaths_of(way, seed)]
