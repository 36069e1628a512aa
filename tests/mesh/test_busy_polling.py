"""Looking whether something has come before the event loop sleeps: when it is done, and that nothing is held up by it."""

import os
import socket
import threading
import time

import pytest
import trio

from mesh import busypoll
from mesh.busypoll import BUSY_POLL_S, BusyPoll, busy_polling
from mesh.config import ConfigError, resolve
from mesh.polling import SLOW_LOOKS, Polling

LOOK_S = 0.005
QUICK = [0.2 * LOOK_S] * 40


@pytest.fixture(autouse=True)
def processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})


@pytest.fixture
def looking():
    """What looks before this loop sleeps, or None."""
    return busypoll._OF_LOOP.get


def trained(looking: BusyPoll) -> None:
    for waited_s in QUICK:
        looking._polling.handle_wait(waited_s)


async def test_a_loop_looks_while_somebody_wants_it_to_and_not_longer(looking):
    assert looking() is None
    with busy_polling(LOOK_S):
        first = looking()
        with busy_polling(BUSY_POLL_S):
            assert looking() is first
        assert looking() is first
    assert looking() is None
    assert first._events.closed


async def test_no_time_at_all_or_one_processor_and_nobody_looks(looking, monkeypatch):
    with busy_polling(0.0):
        assert looking() is None
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    with busy_polling(LOOK_S):
        assert looking() is None


async def test_where_the_loop_has_no_epoll_nobody_looks(looking, monkeypatch):
    monkeypatch.setattr(busypoll, "_loop_epoll", lambda: None)
    with busy_polling(LOOK_S):
        assert looking() is None


async def test_this_trio_tells_what_its_loop_waits_by():
    assert busypoll._loop_epoll() is not None, "trio has changed: nodes would not look any more"


async def test_a_loop_that_sleeps_long_does_not_look(looking, monkeypatch):
    with busy_polling(LOOK_S):
        slept: list[bool] = []
        monkeypatch.setattr(os, "sched_yield", lambda: slept.append(False))
        for _ in range(4):
            await trio.sleep(4 * LOOK_S)
        assert slept == []


async def test_what_comes_is_seen_while_one_looks(looking):
    """A datagram from another thread ends the look, so that the sleep that follows is none."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, busy_polling(LOOK_S):
        ours.setblocking(False)
        polling = looking()
        for number in range(30):
            trained(polling)
            sender = threading.Timer(0.2 * LOOK_S, theirs.send, [bytes([number])])
            sender.start()
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(ours)
            assert ours.recv(1) == bytes([number])
            sender.join()


async def test_a_timer_is_not_held_up_by_a_look(looking):
    """The look ends when the loop has something to do: a deadline is met though nothing comes, and threads are heard."""
    with busy_polling(1000.0):
        for _ in range(20):
            looking()._polling.mean_s = 100.0
            with trio.move_on_after(0.002) as scope:
                await trio.sleep_forever()
            assert scope.cancelled_caught
        looking()._polling.mean_s = 100.0
        with trio.fail_after(5):
            assert await trio.to_thread.run_sync(time.monotonic)


def test_waits_that_are_long_are_forgotten_after_some_that_are_short():
    polling = Polling(LOOK_S)
    polling.handle_wait(1000.0)
    assert polling.mean_s <= SLOW_LOOKS * LOOK_S
    waits = 0
    while polling.budget_s == 0.0:
        polling.handle_wait(QUICK[0])
        waits += 1
    assert 4 <= waits <= 12
    for _ in range(2):
        polling.handle_wait(1000.0)
    assert polling.budget_s == 0.0


@pytest.mark.parametrize("value", ["-1", "soon", "10001", "1.5"])
def test_a_look_that_is_none_is_refused_and_said_why(value):
    with pytest.raises(ConfigError, match="give microseconds from 0"):
        resolve({"busy_poll_us": value}, {"HOME": "/nonexistent"})


def test_how_long_to_look_is_a_setting():
    assert resolve({}, {"HOME": "/nonexistent"}).busy_poll_us * 1e-6 == pytest.approx(BUSY_POLL_S)
    assert resolve({"busy_poll_us": "0"}, {"HOME": "/nonexistent"}).busy_poll_us == 0
