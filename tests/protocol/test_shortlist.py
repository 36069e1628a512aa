"""Whom to measure before a request goes out, and until when that is waited for."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identity import PeerId
from protocol.shortlist import Contender, Shortlist, ShortlistConfig, chance_of_none, expected_gap, shortlist

CONFIG = ShortlistConfig()


def contender(number: int, low_s: float, rtt_s: float, high_s: float, **named) -> Contender:
    return Contender(PeerId(b"%03d" % number), **{"rest_s": 1.0, "low_s": low_s, "rtt_s": rtt_s, "high_s": high_s, **named})


def fresh(number: int, rtt_s: float, **named) -> Contender:
    return contender(number, rtt_s, rtt_s, rtt_s, fresh=True, **named)


def chosen(best: Contender, *others: Contender, seed: int = 1) -> Shortlist | None:
    return shortlist(best, others, CONFIG, random.Random(seed).random)


def numbers(found: Shortlist | None) -> list[int]:
    return [] if found is None else [int(asked.peer_id) for asked in found.asked]


def test_two_that_overlap_are_both_measured() -> None:
    found = chosen(contender(1, 0.02, 0.03, 0.05, turns=2), contender(2, 0.015, 0.035, 0.06, turns=2))
    assert numbers(found) == [1, 2]
    assert found.wait_s == pytest.approx(0.1)  # until the best has been dialled, as far as it may be
    assert found.known_s == float("inf")


def test_nobody_is_measured_where_the_best_is_sooner_than_all_others_can_be() -> None:
    assert chosen(fresh(1, 0.02), contender(2, 0.03, 0.04, 0.06)) is None
    assert chosen(contender(1, 0.01, 0.015, 0.02), contender(2, 0.03, 0.04, 0.06)) is None
    assert chosen(contender(1, 0.01, 0.03, 0.05), fresh(2, 0.06)) is None
    assert chosen(contender(1, 0.01, 0.03, 0.05)) is None


def test_less_than_a_millisecond_is_not_worth_a_handshake() -> None:
    assert chosen(fresh(1, 0.001), contender(2, 0.0, 0.001, 0.002)) is None
    assert chosen(contender(1, 0.0, 0.001, 0.0019), contender(2, 0.0, 0.001, 0.0019)) is None


def test_a_measured_best_does_not_wait_for_an_unlikely_gain() -> None:
    near = fresh(1, 0.05)
    assert chosen(near, contender(2, 0.01, 0.022, 0.04, turns=2)) is None  # even odds for 7 ms, at 25 ms of waiting
    found = chosen(near, contender(2, 0.004, 0.008, 0.016, turns=2))
    assert numbers(found) == [2]
    assert found.wait_s == pytest.approx(0.05 / 1.5)  # two round trips to dial it and one to ask it take no longer than the other
    assert found.known_s == pytest.approx(1.05)


def test_service_counts_as_much_as_the_path() -> None:
    assert numbers(chosen(fresh(1, 0.01, rest_s=1.2), contender(2, 0.02, 0.04, 0.08))) == [2]
    assert chosen(fresh(1, 0.01, rest_s=1.0), contender(2, 0.0, 0.04, 0.08, rest_s=1.2)) is None


def test_the_eight_most_likely_are_measured_and_chance_decides_among_equals() -> None:
    best = contender(0, 0.02, 0.04, 0.06)
    others = [contender(number, 0.01, 0.04 + 0.001 * number, 0.09) for number in range(1, 20)]
    assert numbers(chosen(best, *others)) == list(range(8))
    alike = [contender(number, 0.0, 0.3, 0.3, turns=2) for number in range(1, 64)]
    first, second = (set(numbers(chosen(contender(0, 0.0, 0.3, 0.3, turns=2), *alike, seed=seed))) for seed in (1, 2))
    assert len(first) == len(second) == 8
    assert first != second


def test_the_wait_ends_when_no_answer_can_change_the_choice() -> None:
    found = chosen(contender(1, 0.02, 0.03, 0.05, turns=2), contender(2, 0.015, 0.035, 0.06, turns=2))
    one, two = (asked.peer_id for asked in found.asked)
    assert found.until({one: 0.0, two: 0.0}, {}) == float("inf")  # nobody has answered: as long as there is time
    assert found.until({two: 0.0}, {one: 0.05}) == pytest.approx(0.049 / 1.5)
    assert found.until({two: 0.0}, {one: 0.02}) == float("-inf")
    assert found.until({}, {one: 0.05, two: 0.04}) == float("-inf")
    assert found.until({}, {}) == float("-inf")


INTERVALS = st.lists(st.floats(0.0, 0.5), min_size=3, max_size=3).map(sorted)


@st.composite
def contenders(draw: st.DrawFn) -> list[Contender]:
    found = []
    for number in range(draw(st.integers(1, 24))):
        low_s, rtt_s, high_s = draw(INTERVALS)
        if is_fresh := draw(st.booleans()):
            low_s = rtt_s = high_s
        rest_s, turns = draw(st.floats(0.0, 0.5)), draw(st.sampled_from((1, 2)))
        found.append(contender(number, low_s, rtt_s, high_s, rest_s=rest_s, turns=turns, fresh=is_fresh))
    return sorted(found, key=lambda one: one.after(one.high_s))


@settings(max_examples=400)
@given(contenders(), st.integers(0, 2**32))
def test_never_more_than_eight_never_the_fresh_never_the_disjoint_and_never_for_long(ranked: list[Contender], seed: int) -> None:
    best, *others = ranked
    found = chosen(best, *others, seed=seed)
    if found is None:
        return
    assert 1 <= len(found.asked) <= CONFIG.probes_max
    assert len(set(found.asked)) == len(found.asked)
    assert all(not asked.fresh for asked in found.asked)
    assert any(asked is not best for asked in found.asked)
    assert all(asked is best or asked.after(asked.low_s) < best.after(best.high_s) for asked in found.asked)
    assert 0.0 < found.wait_s <= CONFIG.wait_s_max
    if best.fresh:  # a wait can cost no more than what is there without it
        assert found.wait_s <= best.after(best.high_s)


@settings(max_examples=200)
@given(contenders(), st.integers(0, 2**32), st.data())
def test_an_answer_never_makes_the_wait_longer(ranked: list[Contender], seed: int, data: st.DataObject) -> None:
    best, *others = ranked
    found = chosen(best, *others, seed=seed)
    if found is None:
        return
    open_since = {asked.peer_id: 0.0 for asked in found.asked}
    answers: dict[PeerId, float] = {}
    before = found.until(open_since, answers)
    for asked in found.asked:
        del open_since[asked.peer_id]
        if data.draw(st.booleans()):
            answers[asked.peer_id] = data.draw(st.floats(0.0, 1.0))
        until = found.until(open_since, answers)
        assert until <= before
        before = until
    assert before == float("-inf")


def test_bounds_follow_the_config() -> None:
    config = replace(CONFIG, probes_max=2, wait_s_max=0.04)
    best, others = contender(0, 0.0, 0.03, 0.06), [contender(number, 0.0, 0.035, 0.09) for number in range(1, 5)]
    found = shortlist(best, others, config, random.Random(1).random)
    assert len(found.asked) == 2
    assert found.wait_s == 0.04
    far = [replace(other, rtt_s=0.05) for other in others]  # would not have answered by then
    assert shortlist(best, far, config, random.Random(1).random) is None


@settings(max_examples=30)
@given(contenders().filter(lambda found: len(found) >= 2), st.integers(0, 2**32))
def test_gains_and_chances_are_those_of_even_intervals(found: list[Contender], seed: int) -> None:
    one, other = found[:2]
    luck = random.Random(seed)
    drawn = [
        (one.after(luck.uniform(one.low_s, one.high_s)), other.after(luck.uniform(other.low_s, other.high_s)))
        for _ in range(4000)
    ]
    gap_s = sum(max(0.0, first - second) for first, second in drawn) / len(drawn)
    assert expected_gap(one, other) == pytest.approx(gap_s, abs=0.02)
    limit_s = one.after(one.high_s)
    assert chance_of_none(limit_s, [other]) == pytest.approx(sum(second > limit_s for _, second in drawn) / len(drawn), abs=0.04)
