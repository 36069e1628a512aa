"""What a client makes of the messages of its node."""

import pytest

from mesh.native.errors import RequestError
from mesh.native.inbox import reply_of, value_of
from protocol.errors import ErrorCode
from protocol.inference import Accepted, Failed
from protocol.wire.inference import encode_reply


def test_an_answer_to_a_question_is_its_json() -> None:
    assert value_of(memoryview(b'[{"model": "echo"}]')) == [{"model": "echo"}]


def test_a_refusal_in_place_of_an_answer_is_raised_as_what_it_says() -> None:
    with pytest.raises(RequestError, match="another time") as caught:
        value_of(encode_reply(Failed(ErrorCode.OVERLOADED, "another time")))
    assert caught.value.code == "overloaded"


@pytest.mark.parametrize("message", [b"", b"\xff\xfe", b"\x00" * 64, encode_reply(Accepted())])
def test_whatever_else_comes_in_place_of_an_answer_is_an_error_of_this_client(message: bytes) -> None:
    with pytest.raises(RequestError):
        value_of(message)


def test_bytes_that_are_no_reply_are_an_error_of_this_client() -> None:
    with pytest.raises(RequestError, match="same version"):
        reply_of(b"\x00" * 64)
