"""Templates read and write as the walks do in whose place they stand: the same values, bytes and errors."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_infer_codec import replies, requests

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.inference import (
    Accepted,
    Failed,
    Feature,
    Finished,
    InferenceRequest,
    JsonDelta,
    Tensor,
    TensorsReady,
    TextDelta,
    Timing,
    Usage,
)
from protocol.wire import template
from protocol.wire.generated.layouts import REPLY, REQUEST
from protocol.wire.inference import (
    REPLY_BYTES_MAX,
    REQUEST_BYTES_MAX,
    _reply_values,
    _request_values,
    encode_reply,
    encode_request,
)
from protocol.wire.layout import MessageLayout
from protocol.wire.template import MISSES_MAX, SIGHTINGS, TEMPLATE_BYTES_MAX, TEMPLATES_MAX, Reader, Writer
from protocol.wire.verifier import read_message
from protocol.wire.writer import write_frame


@pytest.fixture
def walks(monkeypatch):
    """Counts the messages that are walked."""
    counted: list[int] = []

    def counting(buffer, layout):
        counted.append(len(buffer))
        return read_message(buffer, layout)

    monkeypatch.setattr(template, "read_message", counting)
    return counted


def outcome(read: Any, *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except RemoteProtocolError as error:
        return error.code, error.detail


def trained(layout: MessageLayout, message: bytes) -> Reader:
    reader = Reader(layout)
    for _ in range(SIGHTINGS):
        reader.read(message)
    return reader


def tensor(size: int, name: str = "x") -> Tensor:
    return Tensor(name, "u1", (size,), memoryview(bytes(range(256)) * (size // 256 + 1))[:size])


def request(number: int = 0, **changes: Any) -> InferenceRequest:
    fields: dict[str, Any] = {"body": b"{}", "tensors": (tensor(1024),), "deadline_s": 9.0} | changes
    return InferenceRequest(number.to_bytes(16), Feature.TENSORS, "echo", **fields)


def changed(draw: st.DrawFn, message: bytes) -> bytes:
    """The message with some bytes set, most of them near its head, where offsets and lengths stand."""
    data = bytearray(message)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.one_of(st.integers(0, min(len(data), 200) - 1), st.integers(0, len(data) - 1)))
        data[at] = draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 4, 8, 0x80, 0xFF])))
    return bytes(data)


@given(st.data(), st.one_of(requests.map(encode_request), replies.map(encode_reply)))
def test_whatever_has_the_length_of_a_template_is_read_as_by_a_walk(data: st.DataObject, message: bytes) -> None:
    layout = REQUEST if message[4:8] == REQUEST.identifier else REPLY
    reader = trained(layout, message)
    other = changed(data.draw, message)
    assert outcome(reader.read, message) == outcome(read_message, message, layout)
    assert outcome(reader.read, other) == outcome(read_message, other, layout)


@given(st.lists(requests, min_size=1, max_size=3))
def test_requests_are_framed_as_by_the_writer(some: list[InferenceRequest]) -> None:
    writer = Writer(REQUEST, REQUEST_BYTES_MAX)
    for _ in range(SIGHTINGS + 1):
        for each in some:
            values = _request_values(each)
            assert writer.frame(values) == write_frame(REQUEST, values, REQUEST_BYTES_MAX)


@given(st.lists(replies, min_size=1, max_size=3))
def test_replies_are_framed_as_by_the_writer(some: list[Any]) -> None:
    writer = Writer(REPLY, REPLY_BYTES_MAX)
    for _ in range(SIGHTINGS + 1):
        for each in some:
            values = _reply_values(each)
            assert writer.frame(values) == write_frame(REPLY, values, REPLY_BYTES_MAX)


@pytest.mark.parametrize(
    "make",
    [
        lambda number: encode_request(request(number, deadline_s=1.0 + number)),
        lambda number: encode_reply(Accepted(float(number))),
        lambda number: encode_reply(TextDelta(f"{number}", number)),
        lambda number: encode_reply(JsonDelta(b"%d" % number)),
        lambda number: encode_reply(TensorsReady((tensor(16, f"{number}"), tensor(16)))),
        lambda number: encode_reply(Finished(("stop",), Usage(number, 1), Timing(float(number), 0.0), bytes(3))),
        lambda number: encode_reply(Failed(ErrorCode.OVERLOADED, f"{number} wait", float(number))),
    ],
    ids=["request", "accepted", "text", "json", "tensors", "finished", "failed"],
)
def test_a_shape_that_was_met_twice_is_walked_no_more(make: Callable[[int], bytes], walks: list[int]) -> None:
    messages = [make(number) for number in range(6)]
    layout = REQUEST if messages[0][4:8] == REQUEST.identifier else REPLY
    reader = Reader(layout)
    for message in messages:
        assert reader.read(message) == read_message(message, layout)
    assert len(walks) == SIGHTINGS


def test_data_are_read_as_views_and_written_as_they_are() -> None:
    writer = Writer(REQUEST, REQUEST_BYTES_MAX)
    for number in range(SIGHTINGS + 1):
        each = request(number)
        pieces = writer.frame(_request_values(each))
        assert [piece for piece in pieces if isinstance(piece, memoryview)] == [each.tensors[0].data]
        assert any(piece is each.tensors[0].data for piece in pieces)
    message = encode_request(request())
    data = trained(REQUEST, message).read(message)[4][0][3]
    assert data.obj is message
    assert data.readonly


def test_text_of_the_right_length_that_is_no_utf8_is_refused_as_ever() -> None:
    message = encode_request(request())
    reader = trained(REQUEST, message)
    broken = message.replace(b"echo", b"ec\xffo")
    assert outcome(reader.read, broken) == outcome(read_message, broken, REQUEST)
    with pytest.raises(RemoteProtocolError, match="UTF-8"):
        reader.read(broken)


def test_half_of_a_surrogate_pair_is_refused_as_ever() -> None:
    writer = Writer(REPLY, REPLY_BYTES_MAX)
    for _ in range(SIGHTINGS + 1):
        with pytest.raises(LocalProtocolError, match="surrogate"):
            writer.frame(((2, ("\ud800", 0)),))


def test_values_that_share_bytes_are_walked_each_time(walks: list[int]) -> None:
    message = bytearray(encode_request(request(tensors=(tensor(16, "ab"), tensor(16, "cd")))))
    first, second = message.index(b"ab\0") - 4, message.index(b"cd\0") - 4  # where their lengths stand
    at = next(at for at in range(first) if at + int.from_bytes(message[at : at + 4], "little") == first)
    message[at : at + 4] = (second - at).to_bytes(4, "little")
    reader, shared = Reader(REQUEST), bytes(message)
    for _ in range(5):
        assert [name for name, *_ in reader.read(shared)[4]] == ["cd", "cd"]
    assert len(walks) == 5


def test_templates_are_bounded() -> None:
    reader, writer = Reader(REPLY), Writer(REPLY, REPLY_BYTES_MAX)
    for length in range(TEMPLATES_MAX + 50):
        values = ((2, ("x" * length, 0)),)
        for _ in range(SIGHTINGS + 1):
            message = b"".join(writer.frame(values))
        for _ in range(SIGHTINGS + 1):
            reader.read(message[1 if len(message) < 129 else 2 :])
    assert len(reader._templates) <= TEMPLATES_MAX
    assert len(reader._misses) <= TEMPLATES_MAX
    assert len(writer._templates) == TEMPLATES_MAX
    assert len(writer._sightings) <= TEMPLATES_MAX


def test_another_shape_of_the_same_length_takes_over_only_after_some_misses(walks: list[int]) -> None:
    one = encode_request(request(tensors=(tensor(16, "abc"),), body=b"1234"))
    other = encode_request(request(tensors=(tensor(16, "ab"),), body=b"12345"))
    assert len(one) == len(other)
    reader = trained(REQUEST, one)
    walks.clear()
    for _ in range(MISSES_MAX + 3):
        assert reader.read(other) == read_message(other, REQUEST)
    assert len(walks) == MISSES_MAX


def test_nothing_is_made_of_long_messages(walks: list[int]) -> None:
    long = encode_request(request(tensors=(tensor(TEMPLATE_BYTES_MAX),)))
    reader = Reader(REQUEST)
    for _ in range(4):
        reader.read(long)
    assert len(walks) == 4
    writer = Writer(REQUEST, REQUEST_BYTES_MAX)
    for _ in range(4):
        writer.frame(_request_values(request(tensors=(tensor(TEMPLATE_BYTES_MAX),))))
    assert not writer._templates
