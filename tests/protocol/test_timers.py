import random

from hypothesis import given
from hypothesis import strategies as st

from protocol.timers import TimerQueue


def test_keys_come_in_order_of_their_time_and_then_of_arrival() -> None:
    timers: TimerQueue[str] = TimerQueue()
    for key, due in [("late", 3.0), ("first", 1.0), ("second", 1.0)]:
        timers.set(key, due)
    assert timers.next_due() == 1.0
    assert [timers.pop_due(2.0) for _ in range(3)] == [("first", 1.0), ("second", 1.0), None]
    assert timers.pop_due(3.0) == ("late", 3.0)
    assert timers.next_due() is None


def test_a_new_time_replaces_the_old_one() -> None:
    timers: TimerQueue[str] = TimerQueue()
    timers.set("a", 1.0)
    timers.set("a", 5.0)
    assert timers.pop_due(4.0) is None
    timers.set("a", 2.0)
    assert timers.pop_due(4.0) == ("a", 2.0)
    assert timers.pop_due(9.0) is None
    assert len(timers) == 0


def test_a_discarded_key_never_comes() -> None:
    timers: TimerQueue[str] = TimerQueue()
    timers.set("a", 1.0)
    timers.discard("a")
    timers.discard("unknown")
    assert timers.pop_due(9.0) is None


def test_memory_follows_the_living_keys() -> None:
    timers: TimerQueue[int] = TimerQueue()
    for key in range(10):
        timers.set(key, 1e9)
    for turn in range(10_000):
        timers.set(turn % 10, 1e9 - turn)
        timers.set(10 + turn, 1e9)
        timers.discard(10 + turn)
        assert len(timers._heap) <= 2 * (len(timers) + 1) + 65
    assert len(timers) == 10


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.floats(0, 100)), max_size=200), st.integers(0, 2**32))
def test_it_behaves_like_a_dictionary_sorted_by_time(steps: list[tuple[int, float | None]], seed: int) -> None:
    timers: TimerQueue[int] = TimerQueue()
    model: dict[int, float] = {}
    luck = random.Random(seed)
    for key, due in steps:
        if due is None:
            timers.discard(key)
            model.pop(key, None)
        else:
            timers.set(key, due)
            model[key] = due
        assert timers.next_due() == min(model.values(), default=None)
        assert (key in timers) == (key in model)
        if luck.random() < 0.3 and (popped := timers.pop_due(50.0)):
            assert popped[1] == min(model.values()) == model.pop(popped[0])


def test_moving_a_time_to_later_ones_takes_no_room() -> None:
    timers: TimerQueue[str] = TimerQueue()
    for turn in range(100):
        timers.set("heard", float(turn))
        timers.set("other", 50.5)
    assert len(timers._heap) == 2
    assert timers.pop_due(98.0) == ("other", 50.5)
    assert timers.pop_due(98.0) is None
    assert timers.pop_due(99.0) == ("heard", 99.0)
