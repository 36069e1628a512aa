"""The layout of pools: what is written is read again, what does not agree with itself is refused, and nothing lies outside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.fabric.pools import (
    LINE_BYTES,
    PAGE_BYTES,
    POOL_BYTES_MAX,
    POOL_BYTES_MIN,
    SLAB_BYTES_MIN,
    SLABS_MAX,
    Enter,
    Entered,
    Hidden,
    LeaseReleased,
    PoolFlags,
    RegionHead,
    SlotHead,
    SlotState,
    Token,
    decode_beat,
    decode_name,
    decode_place,
    decode_region,
    decode_slot,
    decode_superblock,
    decode_token,
    decode_word,
    encode_beat,
    encode_name,
    encode_place,
    encode_region,
    encode_slot,
    encode_superblock,
    encode_token,
    encode_word,
    lay_out,
    slab_bytes_for,
)
from protocol.fabric.tags import TAG_BYTES, check_tag, tag_of

POOL_ID = bytes(range(16))
LAYOUT = lay_out(POOL_ID, PoolFlags.COHERENT, 64 << 20, SLAB_BYTES_MIN)
EPOCHS = st.integers(0, 2**63 - 1)
sizes = st.integers(POOL_BYTES_MIN, POOL_BYTES_MAX)


def code_of(call) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        call()
    return caught.value.code


def code_or_none(call) -> ErrorCode | None:
    try:
        call()
    except RemoteProtocolError as error:
        return error.code
    return None


@given(sizes, st.sampled_from([4096, 1 << 21, 1 << 30]))
def test_whatever_the_size_everything_lies_inside_and_nothing_over_another(size_bytes, alignment_bytes):
    slab_bytes = slab_bytes_for(size_bytes, alignment_bytes)
    try:
        layout = lay_out(POOL_ID, PoolFlags(0), size_bytes, slab_bytes)
    except LocalProtocolError:
        assert size_bytes < 2 * slab_bytes + (2 << 20), "only what has no room for a slab behind the slots"
        return
    assert slab_bytes % alignment_bytes == layout.slabs_at % slab_bytes == 0
    assert 0 < layout.slabs <= SLABS_MAX
    assert layout.slab_at(layout.slabs - 1) + slab_bytes <= size_bytes
    assert layout.slot_at(0) == PAGE_BYTES
    assert layout.claims_at(0) == layout.slot_at(0) + PAGE_BYTES
    assert layout.holds_at(0) >= layout.claims_at(0) + -(-layout.slabs // 8)
    assert layout.holds_at(0) + layout.bits_bytes <= layout.slot_at(1)
    assert layout.slot_at(layout.slots - 1) + layout.slot_bytes <= layout.slabs_at
    assert all(at % LINE_BYTES == 0 for at in (layout.claims_at(1), layout.holds_at(1), layout.slab_at(0)))
    assert decode_superblock(encode_superblock(layout), size_bytes) == layout


@pytest.mark.parametrize(
    ("size_bytes", "slab_bytes", "slots"),
    [(64 << 20, 65535, 64), (64 << 20, 32768, 64), (64 << 20, 3 << 16, 64), (64 << 20, 65536, 0), (64 << 20, 65536, 65),
     (POOL_BYTES_MIN - 1, 65536, 64), (POOL_BYTES_MAX + 1, 1 << 40, 64), (1 << 40, 65536, 64), (8 << 20, 8 << 20, 64)],
)  # fmt: skip
def test_there_is_no_pool_past_the_bounds(size_bytes, slab_bytes, slots):
    with pytest.raises(LocalProtocolError):
        lay_out(POOL_ID, PoolFlags(0), size_bytes, slab_bytes, slots)


def test_a_superblock_is_believed_no_further_than_the_file_goes():
    line = encode_superblock(LAYOUT)
    assert code_of(lambda: decode_superblock(line, (64 << 20) - 1)) is ErrorCode.OUT_OF_BOUNDS
    assert decode_superblock(line, 1 << 40) == LAYOUT


@given(st.integers(0, 63), st.integers(1, 255))
def test_a_line_with_one_byte_changed_is_none(at, change):
    slot = encode_slot(SlotHead(SlotState.CLAIMED, 5, POOL_ID))
    region = encode_region(RegionHead(1, 2, 3, 4, 5))
    for line, decode in (
        (encode_superblock(LAYOUT), lambda data: decode_superblock(data, 64 << 20)),
        (slot, decode_slot),
        (region, decode_region),
    ):
        spoiled = bytearray(line)
        spoiled[at] ^= change
        assert code_of(lambda decode=decode, spoiled=spoiled: decode(bytes(spoiled))) in (
            ErrorCode.MALFORMED,
            ErrorCode.STALE_LEASE,
        )


@given(st.sampled_from(SlotState), EPOCHS, st.binary(min_size=16, max_size=16))
def test_a_slot_is_read_as_it_was_written(state, epoch, nonce):
    head = SlotHead(state, epoch, nonce)
    assert len(encode_slot(head)) == LINE_BYTES
    assert decode_slot(encode_slot(head)) == head


def test_a_slot_of_zeros_was_never_used():
    assert decode_slot(bytes(LINE_BYTES)) == SlotHead(SlotState.FREE, 0, bytes(16))


@given(st.integers(0, 2**32 - 1), EPOCHS, st.integers(0, 2**32 - 1), EPOCHS, st.integers(0, 2**46))
def test_a_region_is_read_as_it_was_written(slot, owner_epoch, region, epoch, length):
    head = RegionHead(slot, owner_epoch, region, epoch, length)
    assert decode_region(encode_region(head)) == head


@given(st.binary(min_size=64, max_size=64))
def test_any_line_is_a_beat_and_a_name_that_a_terminal_can_show(line):
    assert decode_beat(line) >= 0
    assert decode_name(line).isprintable()
    assert len(decode_name(line).encode()) <= 63


@given(st.text(max_size=100), st.integers(0, 2**64 - 1))
def test_names_and_beats(name, beat):
    assert decode_beat(encode_beat(beat)) == beat
    assert len(encode_name(name)) == LINE_BYTES
    if name.isprintable() and len(name.encode()) <= 63:
        assert decode_name(encode_name(name)) == name


@given(st.binary(max_size=70))
def test_what_is_no_line_raises_what_is_declared(data):
    for decode in (decode_slot, decode_region, lambda line: decode_superblock(line, 64 << 20)):
        assert code_or_none(lambda decode=decode: decode(data)) in (None, ErrorCode.MALFORMED, ErrorCode.STALE_LEASE)


@given(st.binary(max_size=12))
def test_a_place_lies_in_the_pool_or_is_none(key):
    try:
        first, count = decode_place(key, LAYOUT)
    except RemoteProtocolError:
        return
    assert 0 <= first < first + count <= LAYOUT.slabs


def test_places_at_the_edges():
    assert decode_place(encode_place(0, LAYOUT.slabs), LAYOUT) == (0, LAYOUT.slabs)
    for first, count in ((0, 0), (0, LAYOUT.slabs + 1), (LAYOUT.slabs, 1), (1, LAYOUT.slabs), (2**32 - 1, 2**32 - 1)):
        key = encode_place(first, count)
        assert code_of(lambda key=key: decode_place(key, LAYOUT)) is ErrorCode.OUT_OF_BOUNDS
    assert code_of(lambda: decode_place(b"1234567", LAYOUT)) is ErrorCode.MALFORMED


def test_a_token_is_that_of_this_pool():
    token = Token(POOL_ID, 7, 9, bytes(16))
    assert decode_token(encode_token(token), LAYOUT) == token
    other = Token(bytes(16), 7, 9, bytes(16))
    assert code_of(lambda: decode_token(encode_token(other), LAYOUT)) is ErrorCode.UNSUPPORTED
    outside = Token(POOL_ID, LAYOUT.slots, 9, bytes(16))
    assert code_of(lambda: decode_token(encode_token(outside), LAYOUT)) is ErrorCode.OUT_OF_BOUNDS
    assert code_of(lambda: decode_token(encode_token(token) + b"x", LAYOUT)) is ErrorCode.MALFORMED


@pytest.mark.parametrize("word", [Enter(bytes(42)), Entered(), LeaseReleased(3, 2**63 - 1), Hidden(2**32 - 1)])
def test_words_are_read_as_they_were_said(word):
    assert decode_word(encode_word(word)) == word


@given(st.binary(max_size=80))
def test_what_is_no_word_is_refused(frame):
    assert code_or_none(lambda: decode_word(frame)) in (None, ErrorCode.MALFORMED, ErrorCode.TOO_LARGE)


@given(st.binary(min_size=1), st.integers(0))
def test_a_tag_tells_other_bytes(data, at):
    tag = tag_of([data[:5], data[5:]])
    check_tag([data], tag)
    spoiled = bytearray(data)
    spoiled[at % len(data)] ^= 1
    assert code_of(lambda: check_tag([bytes(spoiled)], tag)) is ErrorCode.CORRUPTED
    assert code_of(lambda: check_tag([data], tag[: TAG_BYTES - 1])) is ErrorCode.CORRUPTED
    assert code_of(lambda: check_tag([data], b"")) is ErrorCode.CORRUPTED
