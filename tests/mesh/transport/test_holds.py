"""The time that datagrams hold the loop: runs of one sender, and the longest of the last seconds."""

from mesh.transport.holds import RUN_MAX, SPAN_S, Holds, runs
from protocol.quic.events import Received

HERE, THERE = ("192.0.2.1", 1), ("192.0.2.2", 1)


def batch(*addresses):
    return [Received(bytes([number % 256]), address, 0.0) for number, address in enumerate(addresses)]


class Clocks:
    def __init__(self):
        self.now = 100.0
        self.cpu = 5.0


def test_a_batch_is_cut_into_runs_of_one_sender_in_order():
    told = batch(HERE, HERE, THERE, HERE)
    assert [[received.address for received in run] for run in runs(told)] == [[HERE, HERE], [THERE], [HERE]]
    assert [received for run in runs(told) for received in run] == told


def test_a_run_has_a_largest_length():
    told = batch(*[HERE] * (2 * RUN_MAX + 1))
    assert [len(run) for run in runs(told)] == [RUN_MAX, RUN_MAX, 1]
    assert list(runs([])) == []


def test_the_longest_is_the_mean_of_the_dearest_run():
    clocks = Clocks()
    holds = Holds(lambda: clocks.now, lambda: clocks.cpu)
    costs = {HERE: 0.004, THERE: 0.003}

    def handle(run, now):
        assert now == clocks.now
        clocks.cpu += costs[run[0].address]

    holds.take(batch(HERE, HERE, THERE), handle)
    assert abs(holds.longest_s() - 0.003) < 1e-9


def test_what_is_long_ago_is_forgotten():
    clocks = Clocks()
    holds = Holds(lambda: clocks.now)
    holds.note(0.5)
    clocks.now += 1
    holds.note(0.1)
    assert holds.longest_s() == 0.5
    clocks.now += SPAN_S - 1
    assert holds.longest_s() == 0.1
    clocks.now += 1
    assert holds.longest_s() == 0.0
