"""The protocol buffers subset."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.libp2p.protobuf import (
    FIELD_NUMBER_MAX,
    UINT64_MAX,
    as_bytes,
    as_text,
    as_uint,
    encode_bytes,
    encode_text,
    encode_uint,
    read_fields,
)


def outcome(call, *args):
    """Return what the call returns, or the code of its declared error."""
    try:
        return call(*args)
    except RemoteProtocolError as fault:
        return fault.code


numbers = st.integers(1, FIELD_NUMBER_MAX)
fields = st.lists(st.tuples(numbers, st.integers(0, UINT64_MAX) | st.binary(max_size=40)), max_size=10)


@given(fields)
def test_fields_round_trip_in_order(values: list[tuple[int, int | bytes]]) -> None:
    message = b"".join(encode_uint(n, v) if isinstance(v, int) else encode_bytes(n, v) for n, v in values)
    assert list(read_fields(message, 10)) == values


def test_examples_of_the_documentation() -> None:
    assert encode_uint(1, 150).hex() == "089601"
    assert encode_text(2, "testing").hex() == "120774657374696e67"


def test_fixed_width_fields_are_skipped() -> None:
    message = b"\x09" + bytes(8) + encode_uint(2, 5) + b"\x1d" + bytes(4)
    assert list(read_fields(message, 3)) == [(2, 5)]


def test_count_of_fields_is_bounded_and_counts_skipped_ones() -> None:
    message = (b"\x0d" + bytes(4)) * 4
    assert list(read_fields(message, 4)) == []
    with pytest.raises(RemoteProtocolError) as caught:
        list(read_fields(message, 3))
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_largest_number_passes_and_more_bits_are_refused() -> None:
    largest = b"\x08" + b"\xff" * 9 + b"\x01"
    assert list(read_fields(largest, 1)) == [(1, UINT64_MAX)]
    for varint in (b"\xff" * 9 + b"\x02", b"\x80" * 10 + b"\x00"):
        with pytest.raises(RemoteProtocolError, match="64 bits"):
            list(read_fields(b"\x08" + varint, 1))


@pytest.mark.parametrize(
    "message", ["08", "0880", "0a", "0a05abcd", "0b", "0c", "0f", "00ff", "0900", "0d000000", "808080801000"]
)
def test_bytes_that_are_no_message_are_refused(message: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        list(read_fields(bytes.fromhex(message), 8))
    assert caught.value.code is ErrorCode.MALFORMED


@given(st.binary(max_size=60))
def test_any_bytes_raise_nothing_else(message: bytes) -> None:
    fields = outcome(lambda: list(read_fields(message, 8)))
    if isinstance(fields, list):
        assert all(isinstance(value, int) or len(value) <= len(message) for _, value in fields)
    else:
        assert fields in (ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)


def test_value_of_another_kind_than_expected_is_refused() -> None:
    assert (as_uint(3), as_bytes(b"x"), as_text("é".encode())) == (3, b"x", "é")
    for read, value in ((as_uint, b"x"), (as_bytes, 3), (as_text, 3), (as_text, b"\xff")):
        with pytest.raises(RemoteProtocolError) as caught:
            read(value)
        assert caught.value.code is ErrorCode.MALFORMED
