"""Requests and answers through hands that may do anything to them."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import Identity, SealingKey
from protocol.sealing import (
    CHUNK_CONTENT_BYTES_MAX,
    HEADER_BYTES_MAX,
    AnswerOpener,
    AnswerSealer,
    Header,
    Refused,
    Route,
    decode_answer_frame,
    decode_header,
    encode_answer_frame,
    encode_header,
    open_request,
    seal_request,
)
from protocol.sealing.frames import PAD_BYTES_MAX, REQUEST_BYTES_MAX, Begun, Chunk, padded, unpadded

REQUESTER, RELAY, EXECUTOR, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3, 4))
KEY = SealingKey(bytes([5]) * 32)
ROUTE = Route(bytes([6]) * 16, REQUESTER.peer_id, RELAY.peer_id, EXECUTOR.peer_id)
EPHEMERAL, NONCE = bytes([7]) * 32, bytes([8]) * 32
REQUEST = b"what is time?"


def ends(pad_bytes: int = 256) -> tuple[AnswerSealer, AnswerOpener]:
    """Both ends of one answer."""
    sealed, opener = seal_request(REQUESTER, ROUTE, REQUEST, KEY.public_key, EPHEMERAL, pad_bytes)
    request, sealer = open_request(KEY, ROUTE, sealed, NONCE)
    assert request == REQUEST
    sealer.pad_bytes = pad_bytes
    return sealer, opener


def answered(*pieces: bytes) -> tuple[list[bytes], AnswerOpener]:
    """The frames of an answer, and who is to open them."""
    sealer, opener = ends()
    frames = [frame for number, piece in enumerate(pieces) for frame in sealer.seal(piece, is_final=number == len(pieces) - 1)]
    return frames, opener


def opened(frames: list[bytes], opener: AnswerOpener) -> bytes:
    pieces = [opener.receive(frame) for frame in frames]
    opener.finish()
    assert all(isinstance(piece, bytes) for piece in pieces)
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


@given(st.lists(st.binary(max_size=600), min_size=1, max_size=8), st.sampled_from([1, 256]))
def test_an_answer_comes_out_as_it_went_in(pieces: list[bytes], pad_bytes: int) -> None:
    sealer, opener = ends(pad_bytes)
    frames = [frame for number, piece in enumerate(pieces) for frame in sealer.seal(piece, is_final=number == len(pieces) - 1)]
    assert opened(frames, opener) == b"".join(pieces)


def test_a_long_piece_travels_in_several_chunks() -> None:
    piece = bytes(range(256)) * (3 * CHUNK_CONTENT_BYTES_MAX // 256) + b"x"
    frames, opener = answered(piece)
    assert len(frames) == 1 + 4
    assert opened(frames, opener) == piece


@pytest.mark.parametrize("size", [0, 1, 100, 187, 188, 189, 1000])
def test_lengths_are_told_to_256_bytes_only(size: int) -> None:
    sealed, _ = seal_request(REQUESTER, ROUTE, bytes(size), KEY.public_key, EPHEMERAL)
    assert (len(sealed) - 32 - 16) % 256 == 0
    bare, _ = seal_request(REQUESTER, ROUTE, bytes(size), KEY.public_key, EPHEMERAL, pad_bytes=1)
    assert len(bare) == 32 + 4 + 64 + size + 16
    assert 0 <= len(sealed) - len(bare) < 256


def test_what_is_sealed_holds_nothing_of_what_it_says() -> None:
    sealed, _ = seal_request(REQUESTER, ROUTE, REQUEST, KEY.public_key, EPHEMERAL)
    frames, _ = answered(b"an answer in plain words")
    for secret in (REQUEST, b"plain words"):
        assert secret not in sealed + b"".join(frames)


@pytest.mark.parametrize("changed", ["request_id", "requester", "relay", "executor"])
def test_a_request_opens_for_its_route_alone(changed: str) -> None:
    sealed, _ = seal_request(REQUESTER, ROUTE, REQUEST, KEY.public_key, EPHEMERAL)
    values = {name: getattr(ROUTE, name) for name in ("request_id", "requester", "relay", "executor")}
    values[changed] = bytes(16) if changed == "request_id" else OTHER.peer_id
    with pytest.raises(RemoteProtocolError) as caught:
        open_request(KEY, Route(**values), sealed, NONCE)
    assert caught.value.code is ErrorCode.SEAL_REFUSED


def test_a_request_opens_with_its_key_alone() -> None:
    sealed, _ = seal_request(REQUESTER, ROUTE, REQUEST, KEY.public_key, EPHEMERAL)
    with pytest.raises(RemoteProtocolError) as caught:
        open_request(SealingKey(bytes([9]) * 32), ROUTE, sealed, NONCE)
    assert caught.value.code is ErrorCode.SEAL_REFUSED


def test_nobody_seals_in_the_name_of_another() -> None:
    sealed, _ = seal_request(RELAY, ROUTE, REQUEST, KEY.public_key, EPHEMERAL)
    with pytest.raises(RemoteProtocolError) as caught:
        open_request(KEY, ROUTE, sealed, NONCE)
    assert caught.value.code is ErrorCode.BAD_SIGNATURE


@given(st.data())
def test_a_request_that_was_altered_does_not_open(data: st.DataObject) -> None:
    sealed, _ = seal_request(REQUESTER, ROUTE, REQUEST, KEY.public_key, EPHEMERAL)
    position = data.draw(st.integers(0, len(sealed) - 1))
    altered = bytearray(sealed)
    altered[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RemoteProtocolError) as caught:
        open_request(KEY, ROUTE, bytes(altered), NONCE)
    assert caught.value.code is ErrorCode.SEAL_REFUSED


@given(st.binary(max_size=400))
def test_any_bytes_as_a_sealed_request_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        open_request(KEY, ROUTE, data, NONCE)
    assert caught.value.code is ErrorCode.SEAL_REFUSED


def test_a_request_over_the_limit_is_not_sealed() -> None:
    with pytest.raises(LocalProtocolError):
        seal_request(REQUESTER, ROUTE, bytes(REQUEST_BYTES_MAX + 1), KEY.public_key, EPHEMERAL)


def test_the_same_request_answered_twice_is_answered_under_two_keys() -> None:
    sealed, _ = seal_request(REQUESTER, ROUTE, REQUEST, KEY.public_key, EPHEMERAL)
    first, second = (open_request(KEY, ROUTE, sealed, bytes([n]) * 32)[1].seal(b"answer", is_final=True)[1] for n in (1, 2))
    assert first != second


Tamper = Callable[[list[bytes]], list[bytes]]


def flipped(frames: list[bytes]) -> list[bytes]:
    return [*frames[:2], frames[2][:-1] + bytes((frames[2][-1] ^ 1,)), *frames[3:]]


def renumbered(frames: list[bytes]) -> list[bytes]:
    """The third chunk in the place of the second, under its number."""
    return [*frames[:2], frames[2][:6] + frames[3][6:], *frames[3:]]


def declared_final(frames: list[bytes]) -> list[bytes]:
    return [*frames[:2], frames[2][:1] + b"\x01" + frames[2][2:]]


_SEALED, _ = seal_request(REQUESTER, ROUTE, REQUEST, KEY.public_key, EPHEMERAL)
FOREIGN = open_request(KEY, ROUTE, _SEALED, bytes([9]) * 32)[1].seal(b"second", is_final=False)[1]
"""A chunk of another answer to the same request."""

TAMPERINGS: dict[str, tuple[Tamper, ErrorCode, str]] = {
    "cut off": (lambda frames: frames[:-1], ErrorCode.MALFORMED, "cut off after 3 chunks"),
    "cut to nothing": (lambda frames: frames[:1], ErrorCode.MALFORMED, "cut off after 0 chunks"),
    "empty": (lambda frames: [], ErrorCode.MALFORMED, "cut off"),
    "swapped": (lambda frames: [*frames[:2], frames[3], frames[2], frames[4]], ErrorCode.MALFORMED, "out of its order"),
    "one left out": (lambda frames: [*frames[:2], *frames[3:]], ErrorCode.MALFORMED, "out of its order"),
    "repeated": (lambda frames: [*frames[:3], frames[2], *frames[3:]], ErrorCode.MALFORMED, "repeated"),
    "flipped": (flipped, ErrorCode.SEAL_REFUSED, "altered"),
    "renumbered": (renumbered, ErrorCode.SEAL_REFUSED, "altered"),
    "ended early": (declared_final, ErrorCode.SEAL_REFUSED, "altered"),
    "of another answer": (lambda frames: [frames[0], FOREIGN, *frames[1:]], ErrorCode.SEAL_REFUSED, "another answer"),
    "begun twice": (lambda frames: [frames[0], *frames], ErrorCode.MALFORMED, "begins twice"),
    "not begun": (lambda frames: frames[1:], ErrorCode.MALFORMED, "before the beginning"),
    "gone on": (lambda frames: [*frames, frames[-1]], ErrorCode.MALFORMED, "after the final chunk"),
    "refused in mid-answer": (
        lambda frames: [*frames[:2], encode_answer_frame(Refused(ErrorCode.OVERLOADED))],
        ErrorCode.MALFORMED,
        "a refusal inside",
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_what_is_done_to_an_answer_is_seen_and_named(name: str) -> None:
    tamper, code, words = TAMPERINGS[name]
    frames, opener = answered(b"first", b"second", b"third", b"last")
    with pytest.raises(RemoteProtocolError) as caught:
        opened(tamper(frames), opener)
    assert caught.value.code is code
    assert words in caught.value.detail


@given(st.lists(st.integers(0, 4), max_size=7))
def test_only_the_answer_itself_opens_as_an_answer(order: list[int]) -> None:
    frames, opener = answered(b"first", b"second", b"third", b"last")
    try:
        opened([frames[number] for number in order], opener)
    except RemoteProtocolError:
        assert order != [0, 1, 2, 3, 4]
    else:
        assert order == [0, 1, 2, 3, 4]


@given(st.binary(max_size=80))
def test_any_bytes_as_a_frame_of_an_answer_are_read_or_refused(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        frame = decode_answer_frame(data)
        assert isinstance(frame, Refused) or encode_answer_frame(frame) == data


@given(
    st.sampled_from(
        [Begun(bytes(32)), Chunk(5, True, bytes(40)), Chunk(0, False, bytes(16)), Refused(ErrorCode.DRAINING, b"card")]
    )
)
def test_frames_of_an_answer_round_trip(frame: Begun | Chunk | Refused) -> None:
    assert decode_answer_frame(encode_answer_frame(frame)) == frame


def test_a_refusal_with_too_long_a_card_is_refused() -> None:
    assert isinstance(decode_answer_frame(encode_answer_frame(Refused(ErrorCode.DRAINING, bytes(4096)))), Refused)
    with pytest.raises(RemoteProtocolError) as caught:
        decode_answer_frame(encode_answer_frame(Refused(ErrorCode.DRAINING, bytes(4097))))
    assert caught.value.code is ErrorCode.TOO_LARGE


@given(st.binary(min_size=16, max_size=16), st.integers(1, 3_600_000_000), st.integers(0, 255))
def test_headers_round_trip(request_id: bytes, deadline_us: int, hop: int) -> None:
    header = Header(request_id, deadline_us / 1e6, hop, EXECUTOR.peer_id)
    data = encode_header(header)
    assert len(data) <= HEADER_BYTES_MAX
    assert decode_header(data) == header


@given(st.binary(max_size=80))
def test_any_bytes_as_a_header_are_read_or_refused(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert encode_header(decode_header(data)) == data


@given(st.binary(max_size=600), st.sampled_from([1, 2, 256]))
def test_padding_comes_off_again(content: bytes, pad_bytes: int) -> None:
    assert unpadded(padded(content, pad_bytes)) == content


@pytest.mark.parametrize(
    "message", [b"", b"\0\0\0", b"\0\0\0\1", b"\0\0\0\0\1", b"\xff\xff\xff\xff" + bytes(40), bytes(5 + PAD_BYTES_MAX)]
)
def test_wrong_padding_is_refused(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unpadded(message)
    assert caught.value.code is ErrorCode.MALFORMED
