"""The bounded msgpack codec."""

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_strategies import plain

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.wire import PackingLimits, pack, packing, unpack

LIMITS = PackingLimits(size_bytes_max=4096, depth_max=4, values_max=64)


def refused(buffer: bytes, limits: PackingLimits = LIMITS) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        unpack(buffer, limits)
    return caught.value.code


@given(plain)
def test_a_plain_value_comes_back_as_it_went(value):
    limits = PackingLimits(size_bytes_max=65536, depth_max=16, values_max=1000)
    assert unpack(pack(value, limits), limits) == value


@given(st.binary(max_size=300))
def test_any_bytes_give_a_plain_value_or_the_one_declared_error(buffer):
    try:
        value, code = unpack(buffer, LIMITS), ErrorCode.NO_ERROR
    except RemoteProtocolError as error:
        value, code = None, error.code
    assert code in (ErrorCode.NO_ERROR, ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)
    pack(value, LIMITS)  # what was read is within what may be written


@pytest.mark.parametrize(
    "buffer",
    [
        b"",
        b"\xc1",  # never used
        b"\x01\x02",  # bytes left over
        b"\x92\x01",  # ends early
        b"\xdc\x00\x40",  # an array longer than the buffer
        b"\xa2\xff\xfe",  # not UTF-8
        msgpack.packb(float("nan")),
        msgpack.packb(float("inf")),
        msgpack.packb(2**64 - 1),
        msgpack.packb({1: 2}),
        msgpack.packb({b"key": 2}, use_bin_type=True),
        b"\x82\xa1a\x01\xa1a\x02",  # one key twice
        msgpack.packb(msgpack.ExtType(5, b"x")),
        msgpack.packb(msgpack.Timestamp(1)),
        b"\x91" * 2000,  # very deep, and ends early
    ],
)
def test_what_is_not_plain_is_malformed(buffer):
    assert refused(buffer) is ErrorCode.MALFORMED


def test_size_depth_and_count_are_bounded_exactly():
    assert unpack(pack(b"x" * 4093, LIMITS), LIMITS) == b"x" * 4093
    assert refused(msgpack.packb(b"x" * 4094, use_bin_type=True)) is ErrorCode.TOO_LARGE
    assert unpack(b"\x91\x91\x91\x91\x01", LIMITS) == [[[[1]]]]
    assert refused(b"\x91\x91\x91\x91\x91\x01") is ErrorCode.TOO_LARGE
    assert unpack(msgpack.packb([1] * 63), LIMITS) == [1] * 63
    assert refused(msgpack.packb([1] * 64)) is ErrorCode.TOO_LARGE
    for announced in (b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"):  # longer than the buffer, too
        assert refused(announced) is ErrorCode.TOO_LARGE
    assert refused(msgpack.packb([1] * 65)) is ErrorCode.TOO_LARGE  # here the library itself refuses to begin
    assert refused(msgpack.packb({str(number): 1 for number in range(65)})) is ErrorCode.TOO_LARGE
    assert refused(msgpack.packb([[1] * 20] * 4)) is ErrorCode.TOO_LARGE


def test_deep_nesting_costs_no_recursion():
    limits = PackingLimits(size_bytes_max=65536, depth_max=8, values_max=64)
    assert refused(b"\x91" * 60000 + b"\x01", limits) in (ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)


@pytest.mark.parametrize(
    "value", [float("nan"), float("-inf"), {1: 2}, object(), "\ud800", 2**63, [[[[[1]]]]], [1] * 64, b"x" * 5000]
)
def test_what_the_other_side_would_refuse_is_not_packed(value):
    with pytest.raises(LocalProtocolError):
        pack(value, LIMITS)


def test_arrays_are_counted_before_room_is_made_for_them():
    limits = PackingLimits(size_bytes_max=65_536, depth_max=6, values_max=576)
    tracemalloc.start()
    try:
        for header in (b"\xdc\x02\x40", b"\xdd\x00\x00\x02\x40", b"\x91\xdc\x02\x40"):
            assert refused(header * 1100, limits) is ErrorCode.TOO_LARGE
        for empty in (b"\x90", b"\x80"):
            assert refused(b"\xdc\x02\x30" + (b"\xdc\x02\x30" + empty * 0x230) * 100, limits) is ErrorCode.TOO_LARGE
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@given(plain)
def test_a_buffer_that_is_walked_first_is_read_as_any_other(value):
    limits = PackingLimits(size_bytes_max=1 << 20, depth_max=17, values_max=100_000)
    suspicious = [value, b"\xdc" * 8]
    packed = pack(suspicious, limits)
    assert packed.count(b"\xdc") * limits.values_max * 8 > 1 << 20, "as many headers as make it walk"
    assert unpack(packed, limits) == suspicious


@given(plain, st.integers(0, 4), st.integers(1, 12))
def test_the_walk_refuses_what_the_check_refuses(value, depth, count):
    packed = pack(value, PackingLimits(1 << 20, 16, 100_000))
    limits = PackingLimits(1 << 20, depth, count)
    try:
        packing._walk(packed, limits)
        walked = False
    except packing._UnacceptableError:
        walked = True
    try:
        packing._check(value, limits)
        checked = False
    except packing._UnacceptableError:
        checked = True
    assert walked == checked


@given(st.binary(max_size=200))
def test_the_walk_takes_any_bytes(buffer):
    code = ErrorCode.TOO_LARGE
    try:
        packing._walk(buffer, LIMITS)
    except packing._UnacceptableError as error:
        code = error.code
    assert code is ErrorCode.TOO_LARGE
