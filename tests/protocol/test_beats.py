"""Beats as they travel."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_strategies import BEAT, counts, model_names

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.gossip.beats import BEAT_BYTES_MAX, LOADS_MAX, decode_beat, encode_beat
from protocol.load import Beat, ModelLoad
from protocol.wire import PackingLimits, pack

WIDE = PackingLimits(size_bytes_max=1_000_000, depth_max=10, values_max=100_000)
LOAD = ["m", 1, 0, 4, 25, 20_000, 305]

times = st.integers(0, 864_000_000).map(lambda units: units / 10_000)
loads = st.builds(
    ModelLoad,
    model=model_names,
    running=counts,
    waiting=counts,
    slots=counts,
    queue_s=times,
    service_s=times,
    tokens_per_s=st.integers(0, 10_000_000_000).map(lambda units: units / 10),
)


@given(beat=st.builds(Beat, st.booleans(), st.lists(loads, max_size=8).map(tuple), st.integers(0, 2**53 - 1)))
def test_a_beat_comes_back(beat: Beat) -> None:
    packed = encode_beat(beat)
    assert decode_beat(packed) == beat
    assert len(packed) <= BEAT_BYTES_MAX


@given(queue_s=st.floats(0.0, 86_400.0), tokens_per_s=st.floats(0.0, 1e9))
def test_times_and_tokens_are_rounded_and_not_to_nothing(queue_s: float, tokens_per_s: float) -> None:
    load = replace(BEAT.loads[0], queue_s=queue_s, tokens_per_s=tokens_per_s)
    (back,) = decode_beat(encode_beat(Beat(draining=False, loads=(load,)))).loads
    assert back.queue_s == pytest.approx(queue_s, abs=1.01e-4)
    assert back.tokens_per_s == pytest.approx(tokens_per_s, abs=0.101)
    assert (back.queue_s > 0.0) is (queue_s > 0.0)
    assert (back.tokens_per_s > 0.0) is (tokens_per_s > 0.0)


def test_a_usual_beat_is_short() -> None:
    load = ModelLoad("echo", 8, 3, 8, 0.75, 2.0, 30.5)
    assert len(encode_beat(Beat(draining=False, loads=(load,)))) <= 22


def test_the_idlest_models_are_left_out_of_a_beat_that_is_too_long() -> None:
    many = tuple(replace(BEAT.loads[0], model=f"organisation/model-{index}", running=index) for index in range(100))
    told = decode_beat(encode_beat(Beat(draining=True, loads=many))).loads
    assert 16 < len(told) < LOADS_MAX
    assert [load.running for load in told] == list(range(99, 99 - len(told), -1))
    short = tuple(replace(BEAT.loads[0], model="m", running=index) for index in range(100))
    assert len(decode_beat(encode_beat(Beat(draining=True, loads=short))).loads) == LOADS_MAX


def test_a_load_that_cannot_be_told_is_a_local_fault() -> None:
    with pytest.raises(LocalProtocolError):
        encode_beat(Beat(draining=False, loads=(replace(BEAT.loads[0], model="m" * 2000),)))


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], ErrorCode.MALFORMED),
        ([False], ErrorCode.MALFORMED),
        ([0, []], ErrorCode.MALFORMED),
        ([False, {}], ErrorCode.MALFORMED),
        ({"draining": False, "loads": []}, ErrorCode.MALFORMED),
        ([False, [LOAD[:6]]], ErrorCode.MALFORMED),
        ([False, ["m"]], ErrorCode.MALFORMED),
        ([False, [["", *LOAD[1:]]]], ErrorCode.MALFORMED),
        ([False, [[b"m", *LOAD[1:]]]], ErrorCode.MALFORMED),
        ([False, [["m" * 257, *LOAD[1:]]]], ErrorCode.TOO_LARGE),
        *(([False, [[*LOAD[:at], -1, *LOAD[at + 1 :]]]], ErrorCode.MALFORMED) for at in range(1, 7)),
        *(([False, [[*LOAD[:at], True, *LOAD[at + 1 :]]]], ErrorCode.MALFORMED) for at in range(1, 7)),
        *(([False, [[*LOAD[:at], 1.0, *LOAD[at + 1 :]]]], ErrorCode.MALFORMED) for at in range(1, 7)),
        ([False, [["m", 1_000_001, *LOAD[2:]]]], ErrorCode.MALFORMED),
        ([False, [[*LOAD[:4], 864_000_001, *LOAD[5:]]]], ErrorCode.MALFORMED),
        ([False, [[*LOAD[:6], 10_000_000_001]]], ErrorCode.MALFORMED),
        ([False, [["m", 0, 0, 0, 0, 0, 0]] * (LOADS_MAX + 1)], ErrorCode.TOO_LARGE),
        ([False, [["m" * 100, *LOAD[1:]]] * 20], ErrorCode.TOO_LARGE),
    ],
    ids=range(33),
)
def test_a_beat_out_of_its_limits_is_refused(value: object, code: ErrorCode) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_beat(pack(value, WIDE))
    assert caught.value.code is code


@pytest.mark.parametrize("bus", [None, True, -1, 1.5, "fast", [1], 2**53])
def test_a_bus_that_is_no_number_says_nothing(bus: object) -> None:
    assert decode_beat(pack([True, [], bus], WIDE)) == Beat(draining=True, loads=())


def test_a_bus_that_is_not_known_takes_no_room() -> None:
    assert encode_beat(Beat(draining=False, loads=())) == pack([False, []], WIDE)
    assert decode_beat(pack([False, [], 504_000, "more"], WIDE)) == Beat(draining=False, loads=(), bus_free_mbps=504_000)


def test_what_later_versions_add_is_ignored() -> None:
    packed = pack([True, [[*LOAD, "more"]], "more"], WIDE)
    assert decode_beat(packed) == Beat(draining=True, loads=(ModelLoad("m", 1, 0, 4, 0.0025, 2.0, 30.5),))
