"""Varints, frames and the two text encodings."""

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.encoding import (
    BASE_TEXT_CHARACTERS_MAX,
    UVARINT_MAX,
    FrameDecoder,
    Luck,
    decode_base32,
    decode_base58btc,
    decode_uvarint,
    encode_base32,
    encode_base58btc,
    encode_frame,
    encode_uvarint,
    peek_uvarint,
)
from protocol.errors import ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError


def outcome(call, *args):
    """Return what the call returns, or the code of its declared error."""
    try:
        return call(*args)
    except ProtocolError as fault:
        return fault.code


@given(st.integers(0, UVARINT_MAX), st.binary(max_size=4), st.binary(max_size=4))
def test_varint_returns_value_and_next_offset(value: int, before: bytes, after: bytes) -> None:
    encoded = encode_uvarint(value)
    assert decode_uvarint(before + encoded + after, len(before)) == (value, len(before) + len(encoded))


@pytest.mark.parametrize(("value", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (16384, "808001")])
def test_varint_examples_of_the_specification(value: int, encoded: str) -> None:
    assert encode_uvarint(value).hex() == encoded


def test_largest_varint_has_nine_bytes_and_a_longer_one_is_refused() -> None:
    assert decode_uvarint(b"\xff" * 8 + b"\x7f") == (UVARINT_MAX, 9)
    with pytest.raises(RemoteProtocolError, match="longer than 9"):
        decode_uvarint(b"\xff" * 9 + b"\x01")


def test_varint_that_is_not_the_shortest_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="shortest"):
        decode_uvarint(b"\x81\x00")


def test_cut_off_varint_is_awaited_by_peek_and_refused_by_decode() -> None:
    assert peek_uvarint(b"\x80\x80") is None
    with pytest.raises(RemoteProtocolError, match="inside a varint"):
        decode_uvarint(b"\x80\x80")


@given(st.binary(max_size=12))
def test_any_bytes_as_varint_raise_nothing_else(data: bytes) -> None:
    result = outcome(decode_uvarint, data)
    assert result is ErrorCode.MALFORMED or encode_uvarint(result[0]) == data[: result[1]]


@given(st.lists(st.binary(max_size=20)), st.randoms(use_true_random=False))
def test_frames_come_out_however_the_bytes_are_cut(payloads: list[bytes], luck: random.Random) -> None:
    stream = b"".join(encode_frame(payload) for payload in payloads)
    decoder = FrameDecoder(20)
    frames: list[bytes] = []
    while stream:
        size = luck.randint(1, 9)
        decoder.receive(stream[:size])
        stream = stream[size:]
        while (frame := decoder.next_frame()) is not None:
            frames.append(frame)
    decoder.finish()
    assert frames == payloads


def test_frame_at_the_limit_passes_and_one_byte_more_is_refused_by_its_length_alone() -> None:
    decoder = FrameDecoder(300)
    decoder.receive(encode_frame(bytes(300)))
    assert decoder.next_frame() == bytes(300)
    decoder.receive(encode_uvarint(301))
    with pytest.raises(RemoteProtocolError) as caught:
        decoder.next_frame()
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_stream_that_ends_inside_a_frame_is_refused() -> None:
    decoder = FrameDecoder(8)
    decoder.receive(b"\x03ab")
    assert decoder.next_frame() is None
    assert decoder.buffered_bytes == 3
    with pytest.raises(RemoteProtocolError, match="inside a frame"):
        decoder.finish()


def test_rest_is_handed_over_once() -> None:
    decoder = FrameDecoder(8)
    decoder.receive(b"\x01atail")
    assert decoder.next_frame() == b"a"
    assert (decoder.take_rest(), decoder.take_rest()) == (b"tail", b"")


@given(st.binary(max_size=80))
def test_base58btc_round_trip(data: bytes) -> None:
    assert decode_base58btc(encode_base58btc(data)) == data


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"Hello World!", "2NEpo7TZRRrLZSi2U"),
        (b"The quick brown fox jumps over the lazy dog.", "USm3fpXnKG5EUBx2ndxBDMPVciP5hGey2Jh4NDv6gmeo1LkMeiKrLJUUBk6Z"),
        (bytes.fromhex("0000287fb4cd"), "11233QC4"),
    ],
)
def test_base58_examples_of_its_draft(data: bytes, text: str) -> None:
    assert (encode_base58btc(data), decode_base58btc(text)) == (text, data)


@given(st.binary(max_size=70))
def test_base32_round_trip(data: bytes) -> None:
    assert decode_base32(encode_base32(data)) == data


def test_base32_example_of_rfc_4648() -> None:
    assert encode_base32(b"fooba") == "mzxw6ytb"


@pytest.mark.parametrize("text", ["m", "MZXW6", "mzxw6===", "mz", "m1", "mzxw6ytb\n", "é", "mzxw6yta mzxw6yta"])
def test_text_that_is_not_canonical_base32_is_refused(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        decode_base32(text)


@given(st.text(max_size=BASE_TEXT_CHARACTERS_MAX + 1))
def test_any_text_raises_nothing_else(text: str) -> None:
    for decode, encode in ((decode_base58btc, encode_base58btc), (decode_base32, encode_base32)):
        data = outcome(decode, text)
        assert data is ErrorCode.MALFORMED or encode(data) == text


def test_long_text_is_refused_before_it_is_decoded() -> None:
    assert len(decode_base58btc("z" * BASE_TEXT_CHARACTERS_MAX)) == 94
    with pytest.raises(LocalProtocolError, match="129 characters"):
        decode_base58btc("z" * (BASE_TEXT_CHARACTERS_MAX + 1))


def test_seeded_random_serves_as_luck() -> None:
    def draw(luck: Luck) -> list[object]:
        shuffled = [1, 2, 3, 4]
        luck.shuffle(shuffled)
        return [
            luck.random(),
            luck.uniform(1, 2),
            luck.randrange(9),
            luck.getrandbits(64),
            luck.choice("abc"),
            luck.sample([1, 2, 3], 2),
            shuffled,
        ]

    assert draw(random.Random(7)) == draw(random.Random(7))


@pytest.mark.parametrize(
    ("piece_bytes", "copies_max"),
    [(32_000, 1.1), (1200, 2.2)],
    ids=["large pieces are joined once", "small ones are joined as they come"],
)
def test_a_large_frame_is_copied_as_seldom_as_can_be(piece_bytes: int, copies_max: float) -> None:
    pieces = [bytes(piece_bytes)] * (4_800_000 // piece_bytes)  # one object: what is measured are the copies
    size_bytes = sum(map(len, pieces))
    decoder = FrameDecoder(size_bytes)
    tracemalloc.start()
    try:
        decoder.receive(encode_uvarint(size_bytes))
        for piece in pieces:
            decoder.receive(piece)
        frame = decoder.next_frame()
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frame is not None
    assert len(frame) == size_bytes
    assert peak_bytes < copies_max * size_bytes


@given(
    st.lists(st.integers(0, 12_000), max_size=12),
    st.lists(st.integers(1, 9000), min_size=1, max_size=8),
    st.booleans(),
)
def test_frames_come_out_whole_however_their_bytes_are_cut(sizes: list[int], cuts: list[int], drains: bool) -> None:
    payloads = [random.Random(size).randbytes(size) for size in sizes]
    stream, decoder, frames = b"".join(map(encode_frame, payloads)), FrameDecoder(12_000), list[bytes]()
    at = turn = 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        decoder.receive(memoryview(stream)[at : at + size])
        at, turn = at + size, turn + 1
        while drains and (frame := decoder.next_frame()) is not None:
            frames.append(frame)
        assert decoder.buffered_bytes == min(at, len(stream)) - sum(len(encode_frame(frame)) for frame in frames)
    while (frame := decoder.next_frame()) is not None:
        frames.append(frame)
    assert frames == payloads
    decoder.finish()


@given(st.lists(st.binary(max_size=40)), st.integers(0, 30))
def test_the_rest_is_what_no_frame_was_made_of(pieces: list[bytes], frame_bytes_max: int) -> None:
    stream, decoder, n_used = b"".join(pieces), FrameDecoder(frame_bytes_max), 0
    for piece in pieces:
        decoder.receive(piece)
    try:
        while (frame := decoder.next_frame()) is not None:
            n_used += len(encode_frame(frame))
    except RemoteProtocolError:
        pass
    assert decoder.take_rest() == stream[n_used:]
