"""A machine that was suspended: the driver notices, and the core tells others that this node is still there."""

import random
from io import StringIO

import pytest
import trio

from mesh.driver import SLEEP_LOOK_S, SLEPT_S_MIN, Driver
from mesh.machine import Machine, read_suspended_s
from mesh.telemetry import Telemetry, make_logger
from mesh.transport import Transport
from protocol.identity import Identity
from protocol.node import Node, NodeConfig
from protocol.records import Hardware, Sequencer

IDENTITY = Identity.from_seed(bytes([1]) * 32)


class Sleeper:
    """A driver with a core whose machine sleeps when it is told to, and whose announcements are kept."""

    def __init__(self) -> None:
        self.suspended_s = 1000.0  # it slept before this node was started
        self.log = StringIO()
        self.telemetry = Telemetry(make_logger("json", "info", self.log))
        self.transport = Transport(IDENTITY, machine=Machine(suspended_s=lambda: self.suspended_s))
        self.node = Node(NodeConfig(), IDENTITY, random.Random(1), Sequencer(0))
        self.driver = Driver(
            self.node,
            self.transport,
            self.telemetry,
            reserve=lambda _upto: None,
            on_forwarding=lambda _output: None,
        )

    def start(self) -> None:
        """Has the core tell of this node."""
        self.node.start((), Hardware("cpu", 1, 1, 1), (), 1_780_000_000.0, self.driver.now)
        self.driver.settle()

    @property
    def slept_s(self) -> float:
        """What was told of it."""
        told = self.telemetry.registry.get_sample_value("isochrone_suspended_seconds_total")
        assert told is not None
        return told

    async def looks_again(self) -> None:
        """Lets so much virtual time pass that the driver has looked at least once more."""
        await trio.sleep(SLEEP_LOOK_S * 1.1)


@pytest.fixture
def sleeper() -> Sleeper:
    return Sleeper()


async def test_a_sleep_is_noticed_within_seconds_though_nothing_else_wakes_the_core(
    sleeper: Sleeper, nursery: trio.Nursery, autojump_clock
) -> None:
    assert sleeper.node.next_timer() == float("inf")
    await nursery.start(sleeper.driver.run)
    sleeper.suspended_s += 30.0
    await sleeper.looks_again()
    assert sleeper.slept_s == 30.0


async def test_a_sleep_is_told_and_refuted_once(sleeper: Sleeper, nursery: trio.Nursery, autojump_clock) -> None:
    sleeper.start()
    await nursery.start(sleeper.driver.run)
    before = sleeper.node.announcer.incarnation
    assert before > 0
    await sleeper.looks_again()
    assert sleeper.slept_s == 0.0
    sleeper.suspended_s += 30.0
    await sleeper.looks_again()
    assert sleeper.slept_s == 30.0
    assert "suspended" in sleeper.log.getvalue()
    after = sleeper.node.announcer.incarnation
    assert after > before
    await sleeper.looks_again()
    assert sleeper.slept_s == 30.0
    assert sleeper.node.announcer.incarnation == after


async def test_a_sleep_too_short_to_be_noticed_by_others_says_nothing(
    sleeper: Sleeper, nursery: trio.Nursery, autojump_clock
) -> None:
    sleeper.start()
    await nursery.start(sleeper.driver.run)
    before = sleeper.node.announcer.incarnation
    sleeper.suspended_s += SLEPT_S_MIN
    await sleeper.looks_again()
    assert sleeper.slept_s == 0.0
    sleeper.suspended_s += 0.5  # short ones add up
    await sleeper.looks_again()
    assert sleeper.slept_s == SLEPT_S_MIN + 0.5
    assert sleeper.node.announcer.incarnation == before  # which the core finds too short to refute anything


async def test_a_clock_that_steps_back_is_no_sleep(sleeper: Sleeper, nursery: trio.Nursery, autojump_clock) -> None:
    await nursery.start(sleeper.driver.run)
    sleeper.suspended_s -= 500.0
    await sleeper.looks_again()
    sleeper.suspended_s += 500.0
    await sleeper.looks_again()
    assert sleeper.slept_s == 0.0


def test_the_kernel_tells_how_long_the_machine_slept() -> None:
    first = read_suspended_s()
    assert first > -0.1
    assert abs(read_suspended_s() - first) < SLEPT_S_MIN
