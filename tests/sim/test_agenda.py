import random

from hypothesis import given
from hypothesis import strategies as st

from sim.agenda import SLOTS_PER_S, Agenda

SLOT_S = 1.0 / SLOTS_PER_S


def nothing() -> None:
    """What happens."""


def test_events_of_one_time_happen_in_the_order_in_which_they_were_put_in() -> None:
    agenda, happened = Agenda(), list[str]()
    for name in "abc":
        agenda.put(1.0, lambda name=name: happened.append(name))  # type: ignore[misc]
    while (due := agenda.take(1.0)) is not None:
        due[2]()
    assert happened == ["a", "b", "c"]


def test_nothing_is_taken_before_its_time() -> None:
    agenda = Agenda()
    agenda.put(1.0, nothing)
    agenda.put(1.0 + SLOT_S / 4, nothing)
    assert agenda.take(0.999) is None
    assert agenda.take(1.0) is not None
    assert agenda.take(1.0) is None
    assert len(agenda) == 1


def test_what_is_put_into_the_slot_under_way_finds_its_place() -> None:
    agenda = Agenda()
    times = [2.0, 2.0 + SLOT_S / 2, 2.0 + 3 * SLOT_S / 4]
    agenda.put(times[0], nothing)
    agenda.put(times[2], nothing)
    assert agenda.take(3.0) is not None
    agenda.put(times[1], nothing)
    taken = [agenda.take(3.0), agenda.take(3.0), agenda.take(3.0)]
    assert [due and due[0] for due in taken] == [times[1], times[2], None]


@given(st.lists(st.floats(0.0, 0.02), max_size=60), st.integers(0, 2**32))
def test_events_come_in_order_of_time_whatever_is_put_in_meanwhile(delays_s: list[float], seed: int) -> None:
    agenda, luck = Agenda(), random.Random(seed)
    model: list[tuple[float, int]] = []
    now = 0.0
    for number, delay_s in enumerate(delays_s):
        agenda.put(now + delay_s, nothing)
        model.append((now + delay_s, number))
        until = now + luck.uniform(0.0, 0.01)
        while luck.random() < 0.6:
            due = agenda.take(until)
            expected = min(model, default=None)
            if expected is None or expected[0] > until:
                assert due is None
                now = until
                break
            assert due is not None
            assert (due[0], due[1] - 1) == expected
            model.remove(expected)
            now = due[0]
        assert len(agenda) == len(model)
