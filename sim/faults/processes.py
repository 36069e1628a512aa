"""What happens to processes: they die, stop, slow down, move, and their clocks and queues are not what they should be."""

from random import Random

from sim.faults.clocks import RatedNode
from sim.process import LANE_MAX, Process
from sim.world import World

CLOCK_OFF_S_MAX = 25.0
"""Seconds that a wall clock is off at most: two such clocks stay within the 60 s that records allow."""

CLOCK_JUMP_S_MIN = 300.0
"""Seconds that a wall clock jumps at least: five times the 60 s that records allow."""

CLOCK_JUMP_S_MAX = 43_200.0
"""Seconds that a wall clock jumps at most: twelve hours, a wrong time zone or a dead battery."""

CLOCK_RATE_MAX = 0.01
"""Largest share by which a monotonic clock runs fast or slow, unitless: ten times a bad quartz, a bad virtual machine."""


class Crash:
    """A process dies, and comes back when the fault ends, with its disk or without."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process = luck.choice(world.processes)
        self.keeps_disk = luck.random() < 0.5
        self._did = False

    def __str__(self) -> str:
        return f"crash of n{self.process.index}, {'with' if self.keeps_disk else 'without'} its disk"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        if self.process.running:
            world.kill(self.process, keeps_disk=self.keeps_disk)
            self._did = True

    def end(self, world: World) -> None:
        """See `Fault`."""
        if self._did and not self.process.running:
            world.start(self.process)


class Pause:
    """A process is stopped (SIGSTOP) and goes on when the fault ends."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process = luck.choice(world.processes)

    def __str__(self) -> str:
        return f"n{self.process.index} stopped"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.pause(self.process)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.resume(self.process)


class Clock:
    """A process's wall clock jumps away, and back when the fault ends."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process = luck.choice(world.processes)
        self.off_s = luck.uniform(-CLOCK_OFF_S_MAX, CLOCK_OFF_S_MAX)

    def __str__(self) -> str:
        return f"clock of n{self.process.index} {self.off_s:+.1f} s off"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.shift_clock(self.process, self.off_s)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.shift_clock(self.process, 0.0)


class Slowness:
    """A process takes a while for each event, and its uplink is narrow."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process: Process = luck.choice(world.processes)
        self.slow_s = luck.uniform(0.0001, 0.002)
        self.rate = luck.uniform(50_000.0, 500_000.0)

    def __str__(self) -> str:
        return f"n{self.process.index} slow: {self.slow_s * 1000:.1f} ms per event, {self.rate / 1000:.0f} kB/s"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        self.process.slow_s = self.slow_s
        world.network.rates[self.process.index] = self.rate

    def end(self, world: World) -> None:
        """See `Fault`."""
        self.process.slow_s = 0.0
        world.network.rates.pop(self.process.index, None)


class Death:
    """A process dies for good. The first half of the nodes is spared, for others join by them."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process = luck.choice(world.processes[len(world.processes) // 2 :])

    def __str__(self) -> str:
        return f"death of n{self.process.index}"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        if self.process.running:
            world.kill(self.process)

    def end(self, world: World) -> None:
        """See `Fault`; nobody mends this."""


class ClockJump:
    """A process's wall clock jumps by minutes to hours, ahead or back, and returns when the fault ends."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process = luck.choice(world.processes)
        self.off_s = luck.choice((-1.0, 1.0)) * luck.uniform(CLOCK_JUMP_S_MIN, CLOCK_JUMP_S_MAX)

    def __str__(self) -> str:
        return f"clock of n{self.process.index} {self.off_s:+.0f} s off"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.shift_clock(self.process, self.off_s)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.shift_clock(self.process, 0.0)


class ClockRate:
    """A process's monotonic clock runs fast or slow by 0.1 to 1 %."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process = luck.choice(world.processes)
        self.rate = 1.0 + luck.choice((-1.0, 1.0)) * luck.uniform(CLOCK_RATE_MAX / 10, CLOCK_RATE_MAX)
        self._rated: RatedNode | None = None

    def __str__(self) -> str:
        return f"monotonic clock of n{self.process.index} at {self.rate:.2%}"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        if self.process.running:
            self._rated = RatedNode.wrap(self.process, self.rate, world.now)
            world.settle(self.process)

    def end(self, world: World) -> None:
        """See `Fault`; what the clock has gained or lost it keeps, for a monotonic clock never goes back."""
        if self._rated is not None:
            self._rated.set_rate(1.0, world.now)
            if self.process.running:
                world.settle(self.process)


class AddressChange:
    """A process's address changes: after a gap its connections go on by migration, or are lost without a word."""

    def __init__(self, luck: Random, world: World) -> None:
        # who has no address to join by, moves and restarts at once cannot be found by anybody, and finds nobody
        joining = [process for process in world.processes if process.bootstrap]
        self.process = luck.choice(joining or world.processes)
        self.migrates = luck.random() < 0.5
        self.gap_s = luck.uniform(0.02, 1.0)  # a path validated again, to a network found again
        self._away = False

    def __str__(self) -> str:
        how = "keeps" if self.migrates else "loses"
        return f"address of n{self.process.index} changes, which {how} its connections, {self.gap_s * 1000:.0f} ms away"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.blocks.append(self._blocked)
        self._away = True
        world.at(world.now + self.gap_s, lambda: self._arrive(world))

    def end(self, world: World) -> None:
        """See `Fault`; the new address is kept."""
        self._arrive(world)

    def _blocked(self, one: int, other: int) -> bool:
        return (one == self.process.index) != (other == self.process.index)

    def _arrive(self, world: World) -> None:
        if self._away:
            self._away = False
            world.network.blocks.remove(self._blocked)
            world.move(self.process, migrates=self.migrates)


class FullQueues:
    """A process's uplink and its streams hold next to nothing, so that most of what comes in bursts is dropped."""

    def __init__(self, luck: Random, world: World) -> None:
        self.process = luck.choice(world.processes)
        self.uplink_bytes = luck.randrange(1_500, 6_000)  # one to four packets
        self.lane = luck.randrange(1, 5)

    def __str__(self) -> str:
        return f"queues of n{self.process.index} full: {self.uplink_bytes} bytes in its uplink, {self.lane} messages a stream"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.queues[self.process.index] = self.uplink_bytes
        self.process.lane_max = self.lane

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.network.queues.pop(self.process.index, None)
        self.process.lane_max = LANE_MAX
