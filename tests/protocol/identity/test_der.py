"""The DER reader."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity.der import ELEMENTS_MAX, OCTET_STRING, SEQUENCE, encode_element, read_elements, read_sequence


@given(st.lists(st.tuples(st.sampled_from([OCTET_STRING, SEQUENCE, 0x02, 0xA0]), st.binary(max_size=300)), max_size=8))
def test_elements_round_trip_in_order(values: list[tuple[int, bytes]]) -> None:
    encoded = [encode_element(tag, content) for tag, content in values]
    expected = [(tag, content, whole) for (tag, content), whole in zip(values, encoded, strict=True)]
    assert read_elements(b"".join(encoded)) == expected
    assert read_sequence(encode_element(SEQUENCE, b"".join(encoded))) == expected


@pytest.mark.parametrize("size", [0, 127, 128, 255, 256, 65535])
def test_lengths_of_every_form(size: int) -> None:
    assert read_elements(encode_element(OCTET_STRING, bytes(size)))[0][1] == bytes(size)


@pytest.mark.parametrize(
    "data",
    [
        "04",
        "0401",
        "0480",
        "0481",
        "04817f" + "00" * 127,
        "048200ff" + "00" * 255,
        "0483010000",
        "04ff",
        "1f0100",
        "3f8101",
        "0482ffff00",
    ],
    ids=lambda data: data[:8],
)
def test_bytes_that_are_not_der_are_refused(data: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read_elements(bytes.fromhex(data))
    assert caught.value.code is ErrorCode.BAD_CERTIFICATE


@pytest.mark.parametrize("data", ["", "0400", "30003000", "3000ff"])
def test_anything_but_one_sequence_is_refused(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        read_sequence(bytes.fromhex(data))


def test_count_of_elements_is_bounded() -> None:
    assert len(read_elements(b"\x04\x00" * ELEMENTS_MAX)) == ELEMENTS_MAX
    with pytest.raises(RemoteProtocolError, match="more than 64"):
        read_elements(b"\x04\x00" * (ELEMENTS_MAX + 1))


@given(st.binary(max_size=80))
def test_any_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        elements = read_elements(data)
    except RemoteProtocolError:
        return
    assert b"".join(whole for _, _, whole in elements) == data
