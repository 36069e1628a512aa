"""Requests and replies survive the wire; values out of their range do not, on either side."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.inference import (
    Accepted,
    Failed,
    Feature,
    Finished,
    InferenceRequest,
    JsonDelta,
    Reply,
    Tensor,
    TensorsReady,
    TextDelta,
    Timing,
    Usage,
)
from protocol.wire.generated.layouts import REPLY, REQUEST
from protocol.wire.inference import (
    DATA_TYPES,
    REQUEST_BYTES_MAX,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from protocol.wire.writer import write_message

microseconds = st.integers(0, 3_600_000_000).map(lambda count: count / 1e6)
text = st.text(max_size=60)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(sorted(DATA_TYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=4)))
    length = math.prod(shape) * int(dtype[1:])
    return Tensor(draw(text), dtype, shape, memoryview(draw(st.binary(min_size=length, max_size=length))))


requests = st.builds(
    InferenceRequest,
    request_id=st.binary(min_size=16, max_size=16),
    feature=st.sampled_from(Feature),
    model=text.filter(lambda name: bool(name) and name.isprintable()),
    body=st.binary(max_size=100),
    tensors=st.lists(tensors(), max_size=4).map(tuple),
    deadline_s=st.integers(1, 3_600_000_000).map(lambda count: count / 1e6),
    hops_left=st.integers(0, 2),
    stream=st.booleans(),
    memory_bytes=st.integers(0, 2**50),
    output_tokens=st.integers(0, 2**31),
    receipt=st.booleans(),
)
tokens = st.integers(0, 2**32 - 1)
replies: st.SearchStrategy[Reply] = st.one_of(
    st.builds(Accepted, microseconds),
    st.builds(TextDelta, text, st.integers(0, 65535)),
    st.builds(JsonDelta, st.binary(max_size=100)),
    st.builds(TensorsReady, st.lists(tensors(), max_size=4).map(tuple)),
    st.builds(
        Finished,
        st.lists(st.sampled_from(["stop", "length", ""]), max_size=5).map(tuple),
        st.builds(Usage, tokens, tokens),
        st.builds(Timing, microseconds, microseconds),
        st.binary(max_size=1024),
    ),
    st.builds(
        Failed,
        st.sampled_from([code for code in ErrorCode if code]),
        text,
        st.integers(0, 3_600_000).map(lambda count: count / 1e3),
    ),
)


@given(requests)
def test_request_survives_the_wire(request: InferenceRequest) -> None:
    assert decode_request(encode_request(request)) == request


@given(replies)
def test_reply_survives_the_wire(reply: Reply) -> None:
    assert decode_reply(encode_reply(reply)) == reply


REQUEST_VALUES: dict[str, Any] = {
    "id": bytes(16),
    "feature": 1,
    "model": "m",
    "body": b"{}",
    "tensors": [],
    "deadline_us": 1_000_000,
    "hops_left": 1,
    "stream": False,
    "memory_bytes": 0,
    "output_tokens": 0,
    "receipt": False,
}
TENSOR = ("x", 11, (2,), bytes(8))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, None),
        ({"id": bytes(15)}, ErrorCode.MALFORMED),
        ({"feature": 0}, ErrorCode.UNSUPPORTED),
        ({"feature": 5}, ErrorCode.UNSUPPORTED),
        ({"model": ""}, ErrorCode.MALFORMED),
        ({"model": "a\nb"}, ErrorCode.MALFORMED),
        ({"model": "a\0b"}, ErrorCode.MALFORMED),
        ({"deadline_us": 0}, ErrorCode.MALFORMED),
        ({"deadline_us": 1}, None),
        ({"deadline_us": 3_600_000_000}, None),
        ({"deadline_us": 3_600_000_001}, ErrorCode.MALFORMED),
        ({"hops_left": 2}, None),
        ({"hops_left": 3}, ErrorCode.MALFORMED),
        ({"memory_bytes": 2**50}, None),
        ({"memory_bytes": 2**50 + 1}, ErrorCode.MALFORMED),
        ({"memory_bytes": 2**64 - 1}, ErrorCode.MALFORMED),
        ({"output_tokens": 2**31}, None),
        ({"output_tokens": 2**31 + 1}, ErrorCode.MALFORMED),
        ({"tensors": [TENSOR] * 32}, None),
        ({"tensors": [("x", 0, (2,), bytes(8))]}, ErrorCode.UNSUPPORTED),
        ({"tensors": [("x", 13, (2,), bytes(8))]}, ErrorCode.UNSUPPORTED),
        ({"tensors": [("x", 11, (3,), bytes(8))]}, ErrorCode.MALFORMED),
        ({"tensors": [("x", 11, (2**31, 2**31, 2**31), bytes(8))]}, ErrorCode.MALFORMED),
        ({"tensors": [("x", 11, (), bytes(4))]}, None),
        ({"tensors": [("x", 11, (2**32 - 1, 0), b"")]}, None),
    ],
)
def test_request_values_are_held_to_their_ranges(change: dict[str, Any], code: ErrorCode | None) -> None:
    data = write_message(REQUEST, tuple((REQUEST_VALUES | change).values()))
    if code is None:
        decode_request(data)
        return
    with pytest.raises(RemoteProtocolError) as caught:
        decode_request(data)
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ((1, (3_600_000_000,)), None),
        ((1, (3_600_000_001,)), ErrorCode.MALFORMED),
        ((5, ((), 0, 0, 3_600_000_001, 0, b"")), ErrorCode.MALFORMED),
        ((5, ((), 0, 0, 0, 3_600_000_001, b"")), ErrorCode.MALFORMED),
        ((6, (0, "", 0)), ErrorCode.MALFORMED),
        ((6, (0x101, "", 3_600_000)), None),
        ((6, (0x101, "", 3_600_001)), ErrorCode.MALFORMED),
    ],
)
def test_reply_values_are_held_to_their_ranges(event: tuple[int, Any], code: ErrorCode | None) -> None:
    data = write_message(REPLY, (event,))
    if code is None:
        decode_reply(data)
        return
    with pytest.raises(RemoteProtocolError) as caught:
        decode_reply(data)
    assert caught.value.code is code


def test_a_failure_of_a_newer_version_is_internal() -> None:
    reply = decode_reply(write_message(REPLY, ((6, (0x7F, "odd", 0)),)))
    assert reply == Failed(ErrorCode.INTERNAL, "odd")


GOOD = InferenceRequest(bytes(16), Feature.CHAT, "m", b"{}")
FLOATS = memoryview(bytes(8)).cast("f")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"request_id": b""}, ErrorCode.MALFORMED),
        ({"model": ""}, ErrorCode.MALFORMED),
        ({"model": "m" * 257}, ErrorCode.MALFORMED),
        ({"model": "\ud800"}, ErrorCode.MALFORMED),
        ({"deadline_s": 0.0}, ErrorCode.MALFORMED),
        ({"deadline_s": math.nan}, ErrorCode.MALFORMED),
        ({"deadline_s": math.inf}, ErrorCode.MALFORMED),
        ({"deadline_s": 3601.0}, ErrorCode.MALFORMED),
        ({"hops_left": 3}, ErrorCode.MALFORMED),
        ({"hops_left": -1}, ErrorCode.MALFORMED),
        ({"memory_bytes": 2**50 + 1}, ErrorCode.MALFORMED),
        ({"memory_bytes": -1}, ErrorCode.MALFORMED),
        ({"output_tokens": 2**31 + 1}, ErrorCode.MALFORMED),
        ({"output_tokens": -1}, ErrorCode.MALFORMED),
        ({"tensors": [Tensor("x", "f4", (3,), FLOATS)]}, ErrorCode.MALFORMED),
        ({"tensors": [Tensor("x", "c8", (1,), FLOATS)]}, ErrorCode.MALFORMED),
        ({"tensors": [Tensor("x", "f4", (-1, -2), FLOATS)]}, ErrorCode.MALFORMED),
        ({"tensors": [Tensor("\ud800", "f4", (2,), FLOATS)]}, ErrorCode.MALFORMED),
        ({"tensors": [Tensor("x" * 257, "f4", (2,), FLOATS)]}, ErrorCode.TOO_LARGE),
        ({"tensors": [Tensor("x", "f4", (1,) * 8 + (2,), FLOATS)]}, ErrorCode.TOO_LARGE),
        ({"tensors": [Tensor("x", "f4", (2,), FLOATS)] * 33}, ErrorCode.TOO_LARGE),
        ({"body": bytes(REQUEST_BYTES_MAX)}, ErrorCode.TOO_LARGE),
    ],
)
def test_what_may_not_be_sent_is_the_callers_fault(change: dict[str, Any], code: ErrorCode) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        encode_request(replace(GOOD, **change))
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (TextDelta("x", -1), ErrorCode.MALFORMED),
        (TextDelta("x", 65536), ErrorCode.MALFORMED),
        (TextDelta("\ud800"), ErrorCode.MALFORMED),
        (TextDelta("x" * 8 * 1024 * 1024), ErrorCode.TOO_LARGE),
        (JsonDelta(bytes(8 * 1024 * 1024 + 1)), ErrorCode.TOO_LARGE),
        (Finished(("stop",) * 129), ErrorCode.TOO_LARGE),
        (Finished(("x" * 33,)), ErrorCode.TOO_LARGE),
        (Finished((), receipt=bytes(1025)), ErrorCode.TOO_LARGE),
        (Finished((), Usage(-1, 0)), ErrorCode.MALFORMED),
        (Accepted(-0.1), ErrorCode.MALFORMED),
        (Accepted(math.nan), ErrorCode.MALFORMED),
        (Failed(ErrorCode.NO_ERROR, ""), ErrorCode.MALFORMED),
    ],
)
def test_replies_that_may_not_be_sent_are_the_callers_fault(reply: Reply, code: ErrorCode) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        encode_reply(reply)
    assert caught.value.code is code


def test_floats_travel_as_a_view_of_floats() -> None:
    decoded = decode_request(encode_request(replace(GOOD, tensors=(Tensor("x", "f4", (2,), FLOATS),))))
    assert decoded.tensors[0].data == memoryview(bytes(8))


def test_long_error_messages_are_cut_between_characters() -> None:
    reply = decode_reply(encode_reply(Failed(ErrorCode.INTERNAL, "x" + "é" * 1000)))
    assert reply == Failed(ErrorCode.INTERNAL, "x" + "é" * 511)
    assert decode_reply(encode_reply(Failed(ErrorCode.INTERNAL, "\ud800!"))) == Failed(ErrorCode.INTERNAL, "?!")


def test_durations_and_counts_past_their_range_are_told_as_its_end() -> None:
    assert decode_reply(encode_reply(Accepted(math.inf))) == Accepted(3600.0)
    long = Finished((), Usage(2**40, 0), Timing(0.0, 1e9))
    assert decode_reply(encode_reply(long)) == Finished((), Usage(2**32 - 1, 0), Timing(0.0, 3600.0))


def test_a_message_over_its_limit_is_refused_unread() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_request(bytes(REQUEST_BYTES_MAX + 1))
    assert caught.value.code is ErrorCode.TOO_LARGE
