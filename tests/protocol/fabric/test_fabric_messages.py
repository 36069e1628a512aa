"""The messages about transfers and the opening of a fabric."""

import pytest
from fabric_strategies import about_transfers, hellos, openings
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric.messages import (
    HEAD_BYTES,
    MESSAGE_BYTES_MAX,
    FrameKind,
    Offer,
    Released,
    bulk_head,
    decode_hello,
    decode_message,
    decode_opening,
    encode_hello,
    encode_message,
    encode_opening,
    kind_of_frame,
)
from protocol.fabric.values import DIMENSIONS_MAX, NAME_BYTES_MAX, TENSORS_MAX, Kind, Lease, Place, Rights
from protocol.inference import Accepted, Feature, InferenceRequest
from protocol.wire import PackingLimits, pack
from protocol.wire.inference import encode_reply, encode_request

ROOMY = PackingLimits(size_bytes_max=1 << 20, depth_max=8, values_max=1 << 16)
HEAD = bytes(4) + b"ISIF"
DECLARED = (ErrorCode.NO_ERROR, ErrorCode.MALFORMED, ErrorCode.TOO_LARGE, ErrorCode.UNSUPPORTED, ErrorCode.OUT_OF_BOUNDS)
LEASE = [1, 2, 0, 64, 1, 1000, b""]
TENSOR = ["x", "f4", [2, 2], 0, 16]


def refused(plain: object) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_message(HEAD + pack(plain, ROOMY))
    return caught.value.code


@given(about_transfers)
def test_a_message_comes_back_as_it_went(message):
    frame = encode_message(message)
    assert kind_of_frame(frame) is FrameKind.TRANSFER
    assert decode_message(frame) == message


@given(hellos, openings)
def test_an_opening_comes_back_as_it_went(hello, answer):
    assert decode_hello(encode_hello(hello)) == hello
    assert decode_opening(encode_opening(answer)) == answer


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_the_one_declared_error(data):
    for read in (lambda: decode_message(HEAD + data), lambda: decode_hello(data), lambda: decode_opening(data)):
        try:
            read()
            code = ErrorCode.NO_ERROR
        except RemoteProtocolError as error:
            code = error.code
        assert code in DECLARED


def test_the_longest_offer_fits():
    place = Place(
        "n" * NAME_BYTES_MAX, "f8", (1,) * (DIMENSIONS_MAX - 1) + (2**32 - 1,), 2**46 - 8 * (2**32 - 1), 8 * (2**32 - 1)
    )
    lease = Lease(2**32 - 1, 2**63 - 1, 2**46, 2**46, Rights.READ, 3700.0, bytes(64))
    offer = Offer(2**16 - 1, Kind.RDMA, (place,) * TENSORS_MAX, lease, bytes(32))
    frame = encode_message(offer)
    assert len(frame) <= MESSAGE_BYTES_MAX
    assert decode_message(frame) == offer


def test_frames_are_told_apart_by_their_heads():
    request = InferenceRequest(bytes(16), Feature.TENSORS, "m", b"")
    assert kind_of_frame(encode_request(request)) is FrameKind.INFERENCE
    assert kind_of_frame(encode_reply(Accepted())) is FrameKind.INFERENCE
    assert kind_of_frame(bulk_head() + b"abc") is FrameKind.BULK
    assert kind_of_frame(b"") is FrameKind.INFERENCE
    assert len(bulk_head()) == HEAD_BYTES


@pytest.mark.parametrize(
    ("plain", "code"),
    [
        ({}, ErrorCode.MALFORMED),
        ([], ErrorCode.MALFORMED),
        (["taken"], ErrorCode.MALFORMED),
        (["taken", -1], ErrorCode.MALFORMED),
        (["taken", 2**16], ErrorCode.MALFORMED),
        (["taken", True], ErrorCode.MALFORMED),
        (["leased", 0, None], ErrorCode.MALFORMED),
        (["leased", 0, [1, 2, 0, 64, 3, 1000, b""]], ErrorCode.MALFORMED),  # to read and to write
        (["leased", 0, [1, 2, 0, 64, 0, 1000, b""]], ErrorCode.MALFORMED),
        (["leased", 0, [1, 2, 0, 64, 1, 0, b""]], ErrorCode.MALFORMED),
        (["leased", 0, [1, 2, 0, 64, 1, 3_700_001, b""]], ErrorCode.MALFORMED),
        (["leased", 0, [1, 2, 0, 2**46 + 1, 1, 1000, b""]], ErrorCode.MALFORMED),
        (["leased", 0, [1, 2, 0, 64, 1, 1000, bytes(73)]], ErrorCode.MALFORMED),
        (["offer", 0, 99, [], None, b""], ErrorCode.UNSUPPORTED),
        (["offer", 0, 1, [TENSOR] * 33, None, b""], ErrorCode.TOO_LARGE),
        (["offer", 0, 1, [["x", "f4", [2, 2], 0, 15]], None, b""], ErrorCode.MALFORMED),
        (["offer", 0, 1, [["x", "f4", [1] * 9, 0, 4]], None, b""], ErrorCode.TOO_LARGE),
        (["offer", 0, 1, [["x", "c8", [1], 0, 8]], None, b""], ErrorCode.UNSUPPORTED),
        (["offer", 0, 1, [["x" * 257, "f4", [1], 0, 4]], None, b""], ErrorCode.MALFORMED),
        (["offer", 0, 1, [["x", "f4", [2, 2], 49, 16]], LEASE, b""], ErrorCode.OUT_OF_BOUNDS),
        (["offer", 0, 1, [["x", "f4", [2**31, 2**31, 0], 0, 4]], LEASE, b""], ErrorCode.MALFORMED),
        (["offer", 0, 1, [], None, bytes(33)], ErrorCode.MALFORMED),
        (["offer", 0, 3, [["x", "u1", [2**32 - 1, 2**13], 0, (2**32 - 1) * 2**13]] * 3, None, b""], ErrorCode.TOO_LARGE),
        (["refused", 0, 2, "x" * 257], ErrorCode.MALFORMED),
        (["placed", 0, "text"], ErrorCode.MALFORMED),
    ],
)
def test_what_is_no_message_is_refused(plain, code):
    assert refused(plain) is code


def test_too_long_a_message_is_refused_before_it_is_read():
    with pytest.raises(RemoteProtocolError) as caught:
        decode_message(HEAD + bytes(MESSAGE_BYTES_MAX))
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_what_a_later_version_says_is_passed_over():
    assert decode_message(HEAD + pack(["teleported", 1, 2], ROOMY)) is None
    assert decode_message(HEAD + pack(["released", 7, "more"], ROOMY)) == Released(7)
