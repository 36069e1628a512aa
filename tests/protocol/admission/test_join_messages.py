"""The frames of the join and notices streams."""

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.admission import (
    Granted,
    JoinRequest,
    Refused,
    decode_join_answer,
    decode_join_request,
    decode_notice_frame,
    encode_join_answer,
    encode_join_request,
    encode_notice_frame,
)
from protocol.errors import ErrorCode, RemoteProtocolError


@given(st.binary(max_size=1200))
def test_requests_round_trip(token) -> None:
    assert decode_join_request(encode_join_request(JoinRequest(token))) == JoinRequest(token)


@given(
    st.builds(Granted, st.binary(max_size=1600)) | st.builds(Refused, st.sampled_from(ErrorCode), st.text("abcä", max_size=120))
)
def test_answers_round_trip(answer) -> None:
    assert decode_join_answer(encode_join_answer(answer)) == answer


def test_a_long_sentence_is_cut_and_an_unknown_code_counts_as_internal() -> None:
    cut = decode_join_answer(encode_join_answer(Refused(ErrorCode.EXPIRED, "ä" * 300)))
    assert isinstance(cut, Refused)
    assert cut.detail == "ä" * 128
    assert decode_join_answer(msgpack.packb(["refused", 999_999, ""])) == Refused(ErrorCode.INTERNAL, "")


@pytest.mark.parametrize(
    "value", [[], ["join"], ["join", b""], ["join", bytes(1201)], [1], {}, ["granted"], ["refused", True, ""]]
)
def test_malformed_frames_are_refused(value) -> None:
    frame = msgpack.packb(value)
    for decode in (decode_join_request, decode_join_answer, decode_notice_frame):
        with pytest.raises(RemoteProtocolError) as caught:
            decode(frame)
        assert caught.value.code in (ErrorCode.MALFORMED, ErrorCode.UNSUPPORTED)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_notices_round_trip(data, delegation) -> None:
    assert decode_notice_frame(encode_notice_frame(data, delegation)) == (data, delegation)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_one_kind_of_error(frame) -> None:
    for decode in (decode_join_request, decode_join_answer, decode_notice_frame):
        with suppress(RemoteProtocolError):
            decode(frame)
