"""What happens to fabrics: their hardware fails, stalls or spoils what it carries, is full, is lost; sessions end.

Each is drawn by a stream of luck of its own, so that the other faults of an old seed stay as they were. Where no request has
tensors there are no fabrics, and nothing happens.

Source: what `sim.fabric.every` tries one at a time between two processes.
"""

from random import Random

from sim.fabric.nodes import HOST_PROCESSES, RACK_PROCESSES, Fabrics, Trouble
from sim.fabric.pool import Host, SimOwner, SimPool
from sim.fabric.poolsessions import Member
from sim.faults.base import Fault, MakeFault, listed, some
from sim.world import World

CLOSES_PER_S = 8.0
"""Sessions that are closed in a second, in the mean."""


class Flaws:
    """The steps of the hardware of some processes fail, or stall, or bytes arrive changed; or they have no memory."""

    def __init__(self, luck: Random, world: World, what: str) -> None:
        self.part = some(luck, world)
        self.what, self.share = what, luck.uniform(0.1, 1.0)

    def __str__(self) -> str:
        return f"fabrics of {listed(self.part)}: {self.what} {self.share:.0%}"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        for index in self.part if world.fabrics is not None else ():
            assert world.fabrics is not None
            trouble = world.fabrics.troubles.setdefault(index, Trouble())
            setattr(trouble, self.what, self.share)

    def end(self, world: World) -> None:
        """See `Fault`."""
        for index in self.part if world.fabrics is not None else ():
            assert world.fabrics is not None
            setattr(world.fabrics.troubles[index], self.what, 0.0)


class Full:
    """The pool of a rack, the GPU of a host and the memory of some processes are full."""

    def __init__(self, luck: Random, world: World) -> None:
        self.part = some(luck, world)
        self._fillers: list[tuple[SimPool, Host, SimOwner]] = []

    def __str__(self) -> str:
        return f"fabrics of {listed(self.part)} are full"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        fabrics = world.fabrics
        if fabrics is None:
            return
        for index in sorted(self.part):
            fabrics.troubles.setdefault(index, Trouble()).no_memory = True
        for host in sorted({index // HOST_PROCESSES for index in self.part}):
            if host in fabrics.devices:
                fabrics.devices[host].is_full = True
        for rack in sorted({index // RACK_PROCESSES for index in self.part}):
            self._fill(world, fabrics, rack)

    def _fill(self, world: World, fabrics: Fabrics, rack: int) -> None:
        pool = fabrics.pool_of(rack * RACK_PROCESSES)
        host = Host(f"filler {rack} at {world.now}", pool)
        owner = SimOwner(host, host.name, world.streams.of("fillers").randbytes, world.streams.of("fillers"), lambda: world.now)
        for _ in owner.claiming_slot():
            pass
        if owner.slot < 0:
            pool.hosts.remove(host)
            return
        member = Member(host, owner)
        while (run := member.claim(1)) is not None:
            run.window.write(0, bytes(64))
        self._fillers.append((pool, host, owner))

    def end(self, world: World) -> None:
        """See `Fault`."""
        fabrics = world.fabrics
        if fabrics is None:
            return
        for index in self.part:
            fabrics.troubles[index].no_memory = False
        for number in {index // HOST_PROCESSES for index in self.part}:
            if number in fabrics.devices:
                fabrics.devices[number].is_full = False
        for pool, host, owner in self._fillers:
            owner.leave()
            pool.note_death(host.name)
            pool.hosts.remove(host)
        self._fillers.clear()


class Lost:
    """The GPU of a host is lost, and comes back without what was in its memory."""

    def __init__(self, luck: Random, world: World) -> None:
        self.host = luck.randrange(len(world.processes)) // HOST_PROCESSES

    def __str__(self) -> str:
        return f"fabric: the GPU of host {self.host} is lost"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        device = None if world.fabrics is None else world.fabrics.devices.get(self.host)
        if device is not None:
            device.lost = True
            for segment in device.allocations.values():
                segment.torn = True

    def end(self, world: World) -> None:
        """See `Fault`."""
        device = None if world.fabrics is None else world.fabrics.devices.get(self.host)
        if device is not None:
            device.lost = False


class Closing:
    """Sessions are closed, one after another and wherever, as by cables that are pulled."""

    def __init__(self, luck: Random, world: World) -> None:
        del world
        self._luck = Random(luck.random())  # noqa: S311
        self._on = False

    def __str__(self) -> str:
        return "fabrics close one after another"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        self._on = True
        self._next(world)

    def _next(self, world: World) -> None:
        fabrics = world.fabrics
        if not self._on or fabrics is None:
            return
        sessions = [s for node in fabrics.nodes.values() if node.process.works for s in node.sessions.values()]
        if sessions:
            self._luck.choice(sessions).close("it is broken")
        world.at(world.now + self._luck.expovariate(CLOSES_PER_S), lambda: self._next(world))

    def end(self, world: World) -> None:
        """See `Fault`."""
        del world
        self._on = False


class Reaped:
    """Another owner takes a process of a pool for dead, and its slot over, again and again."""

    def __init__(self, luck: Random, world: World) -> None:
        self.index = luck.randrange(len(world.processes))
        self._on = False

    def __str__(self) -> str:
        return f"fabric: n{self.index} is taken for dead in its pool"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        self._on = True
        self._next(world)

    def _next(self, world: World) -> None:
        node = None if world.fabrics is None else world.fabrics.nodes.get(self.index)
        if not self._on:
            return
        if node is not None and node.member is not None and node.member.owner.has_slot:
            host, slot = Host("somebody", node.pool), node.member.owner.slot
            somebody = SimOwner(host, host.name, node.luck.randbytes, node.luck, lambda: world.now)
            for _ in somebody.taking(slot):
                pass
            somebody.leave()
            node.pool.hosts.remove(host)
            node.pool.note_reaped(slot)
        world.at(world.now + 3.0, lambda: self._next(world))

    def end(self, world: World) -> None:
        """See `Fault`."""
        del world
        self._on = False


def _flaws(what: str) -> MakeFault:
    def make(luck: Random, world: World, /) -> Fault:
        return Flaws(luck, world, what)

    return make


KINDS: dict[str, MakeFault] = {
    "fabric-fails": _flaws("fail"),
    "fabric-stalls": _flaws("stall"),
    "fabric-corrupts": _flaws("spoil"),
    "fabric-full": Full,
    "fabric-lost": Lost,
    "fabric-closes": Closing,
    "fabric-reaped": Reaped,
}
"""Faults of fabrics, by their names."""
