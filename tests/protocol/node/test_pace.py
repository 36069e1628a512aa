"""When a node tells its edges, and which."""

import random

from hypothesis import given
from hypothesis import strategies as st

from protocol.announcer import AnnouncerConfig
from protocol.identity import PeerId
from protocol.node.pace import Pace

CONFIG = AnnouncerConfig(edges_max=16)
PEERS = [PeerId(b"\0\x24" + number.to_bytes(2, "big")) for number in range(400)]


def nobody(_peer: PeerId) -> None:
    return None


def paths(count: int, first: int = 0) -> list[tuple[PeerId, float]]:
    return [(PEERS[number], 0.01 + 0.001 * number) for number in range(first, first + count)]


def times(pace: Pace, measured, named=nobody, until: float = 3000.0, now: float = 0.0) -> list[float]:
    """When it tells, asked each time as it says; `measured` and `named` may hang on the time."""
    told = []
    while now < until:
        edges, wait_s = pace.turn(measured(now), named, now)
        if edges:
            told.append(now)
        now += wait_s
    return told


def test_the_first_are_told_soon_and_those_that_stay_as_they_are_every_ten_minutes() -> None:
    told = times(Pace(CONFIG, random.Random(1)), lambda _now: paths(16))
    waits = [b - a for a, b in zip([0.0, *told], told, strict=False)]
    assert 16.0 <= waits[0] <= 24.0
    assert 48.0 <= waits[1] <= 72.0
    assert len(waits) >= 6
    assert all(600.0 <= wait <= 672.0 for wait in waits[2:])


def test_who_meets_ever_more_tells_sooner_and_waits_longer_each_time() -> None:
    told = times(Pace(CONFIG, random.Random(1)), lambda now: paths(min(16, 2 + int(now / 30.0))), until=600.0)
    assert 4 <= len(told) <= 5
    told = times(Pace(CONFIG, random.Random(1)), lambda now: paths(16, first=4 * int(now / 30.0)), until=1800.0)
    assert len(told) <= 12  # everything is other every time, and yet it is told thrice in ten minutes


def test_a_newcomer_is_answered_once_and_no_more_when_it_agrees_with_enough() -> None:
    pace, config = Pace(CONFIG, random.Random(1)), CONFIG
    measured = [*paths(20), (PEERS[150], 0.5)]
    times(pace, lambda _now: measured[:20], until=1000.0)
    began = pace._told_at + 100.0
    answered = times(pace, lambda _now: measured, lambda peer: 2 if peer == PEERS[150] else None, until=began + 300.0, now=began)
    assert len(answered) == 1
    assert answered[0] == began
    assert PEERS[150] in pace._told
    pace = Pace(config, random.Random(1))
    times(pace, lambda _now: measured[:20], until=1000.0)
    began = pace._told_at + 100.0
    enough = config.edges_newcomer
    assert (
        times(pace, lambda _now: measured, lambda peer: enough if peer == PEERS[150] else None, until=began + 300.0, now=began)
        == []
    )


def test_a_crowd_of_newcomers_makes_a_node_tell_a_few_times_more() -> None:
    pace = Pace(CONFIG, random.Random(1))
    times(pace, lambda _now: paths(16), until=1300.0)
    began = pace._told_at + 61.0

    def crowd(now: float) -> list[tuple[PeerId, float]]:
        return [*paths(16), *paths(100, first=16 + int((now - began) / 30.0) % 80)]

    told = times(pace, crowd, lambda peer: 0 if peer in PEERS[16:] else None, until=began + 6000.0, now=began)
    assert len(told) <= 4 * 10
    assert len(pace._answered) <= 4 * CONFIG.edges_max


def test_edges_that_both_ends_tell_are_told_again() -> None:
    pace, mutual = Pace(CONFIG, random.Random(1)), set(PEERS[:100:2])
    times(pace, lambda _now: paths(100), lambda peer: 20 if peer in mutual else None, until=200.0)
    kept = [peer for peer in pace._told if peer in mutual and peer not in PEERS[:8]]
    assert len(kept) >= 5
    times(pace, lambda _now: paths(100), lambda peer: 20 if peer in mutual else None, until=3000.0, now=201.0)
    assert len(set(kept) & set(pace._told)) >= 4


@given(
    st.lists(st.sampled_from(PEERS), unique=True), st.dictionaries(st.sampled_from(PEERS), st.integers(0, 30)), st.integers(0, 9)
)
def test_what_is_told_are_measured_paths_the_nearest_first_and_not_too_many(peers, agreed, seed) -> None:
    pace = Pace(CONFIG, random.Random(seed))
    measured = [(peer, 0.001 * number) for number, peer in enumerate(peers, 1)]
    for now in (0.0, 20.0, 80.0):
        told, wait_s = pace.turn(measured, agreed.get, now)
        assert wait_s > 0.0
    assert len(told) == len(dict(told)) == min(len(measured), CONFIG.edges_max)
    assert set(told) <= set(measured)
    assert told[: CONFIG.edges_max // 2] == measured[: CONFIG.edges_max // 2]
