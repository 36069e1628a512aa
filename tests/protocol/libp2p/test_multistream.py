"""Protocol negotiation between two ends in memory, and against bytes written by hand."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.encoding import encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.libp2p.multistream import Initiator, Listener, MultistreamConfig

HEADER = b"\x13/multistream/1.0.0\n"
PING = b"\x11/ipfs/ping/1.0.0\n"
CONFIG = MultistreamConfig()
NA = b"\x03na\n"


def listener(*spoken: str, config: MultistreamConfig = CONFIG) -> Listener:
    return Listener(lambda protocol_id: protocol_id in spoken, config)


def code_of(machine: Initiator | Listener, data: bytes) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        machine.receive_data(data)
    return caught.value.code


def outcome(call, *args):
    """Return what the call returns, or the code of its declared error."""
    try:
        return call(*args)
    except RemoteProtocolError as fault:
        return fault.code


def run(one: Initiator, other: Listener, chunk: int) -> None:
    """Carry bytes both ways in pieces of `chunk` until neither end has more to say."""
    while True:
        to_other, to_one = one.data_to_send(), other.data_to_send()
        if not to_other and not to_one:
            return
        for data, receiver in ((to_other, other), (to_one, one)):
            while data and receiver.agreed is None:
                receiver.receive_data(data[:chunk])
                data = data[chunk:]


@given(
    st.lists(st.sampled_from(["/a/1", "/b/1", "/c/1"]), min_size=1, unique=True),
    st.sets(st.sampled_from(["/a/1", "/b/1", "/c/1"])),
    st.integers(1, 50),
)
def test_both_ends_agree_on_the_first_common_proposal(proposals: list[str], spoken: set[str], chunk: int) -> None:
    one, other = Initiator(proposals), listener(*spoken)
    common = [protocol_id for protocol_id in proposals if protocol_id in spoken]
    if common:
        run(one, other, chunk)
        assert one.agreed == other.agreed == common[0]
    else:
        with pytest.raises(RemoteProtocolError, match=f"does not speak {proposals[-1]}") as caught:
            run(one, other, chunk)
        assert caught.value.code is ErrorCode.UNSUPPORTED


def test_initiator_sends_header_and_proposal_at_once() -> None:
    one = Initiator(["/ipfs/ping/1.0.0"])
    assert one.data_to_send() == HEADER + PING
    assert one.data_to_send() == b""
    assert one.receive_data(HEADER) is None
    assert one.receive_data(PING + b"echo") == "/ipfs/ping/1.0.0"
    assert one.take_rest() == b"echo"
    one.receive_eof()


def test_listener_answers_both_lines_together_and_keeps_pipelined_bytes() -> None:
    other = listener("/ipfs/ping/1.0.0")
    assert other.data_to_send() == b""
    assert other.receive_data(HEADER + PING + b"first data") == "/ipfs/ping/1.0.0"
    assert other.data_to_send() == HEADER + PING
    assert other.take_rest() == b"first data"
    other.receive_eof()


@given(st.integers(1, 60))
def test_pipelined_bytes_survive_any_cutting(chunk: int) -> None:
    other = listener("/ipfs/ping/1.0.0")
    stream, rest = HEADER + PING + bytes(range(64)), b""
    for start in range(0, len(stream), chunk):
        piece = stream[start : start + chunk]
        if other.agreed is not None:
            rest += piece
        elif other.receive_data(piece) is not None:
            rest += other.take_rest()
    assert rest == bytes(range(64))


def test_listing_and_unknown_protocols_are_answered_na() -> None:
    other = listener("/b/1")
    assert other.receive_data(HEADER + encode_frame(b"ls\n") + encode_frame(b"/a/1\n")) is None
    assert other.data_to_send() == HEADER + NA + NA
    assert other.receive_data(encode_frame(b"/b/1\n")) == "/b/1"


def test_text_that_is_no_protocol_id_is_never_asked_for() -> None:
    other = Listener(lambda _: True)
    assert other.receive_data(HEADER + encode_frame(b"ls\n") + encode_frame(b"\n")) is None
    assert other.data_to_send() == HEADER + NA + NA


def test_proposals_at_the_limit_are_answered_and_one_more_is_refused() -> None:
    other = listener(config=MultistreamConfig(proposals_max=3))
    assert other.receive_data(HEADER + PING * 3) is None
    assert other.data_to_send() == HEADER + NA * 3
    assert code_of(other, PING) is ErrorCode.UNSUPPORTED


def test_message_at_the_limit_is_read_and_a_longer_one_is_refused() -> None:
    other = listener()
    assert other.receive_data(HEADER + encode_frame(b"/" + b"a" * 1022 + b"\n")) is None
    assert other.data_to_send() == HEADER + NA
    assert code_of(other, b"\x81\x08") is ErrorCode.TOO_LARGE


@pytest.mark.parametrize(
    "data",
    [
        PING,
        NA,
        encode_frame(b"/multistream/0.9.9\n"),
        encode_frame(b"/multistream/1.0.0"),
        b"\x00",
        HEADER + b"\x02\xff\n",
        HEADER + b"\x00",
        b"\xff" * 10,
        b"GET / HTTP/1.1\r\n" * 8,
    ],
)
def test_listener_refuses_what_is_not_multistream(data: bytes) -> None:
    assert code_of(listener("/ipfs/ping/1.0.0"), data) is ErrorCode.MALFORMED


@pytest.mark.parametrize("data", [PING, NA, HEADER + encode_frame(b"/other\n"), HEADER + HEADER, HEADER + b"\x01a"])
def test_initiator_refuses_what_it_did_not_ask_for(data: bytes) -> None:
    assert code_of(Initiator(["/ipfs/ping/1.0.0"]), data) is ErrorCode.MALFORMED


def test_initiator_proposes_the_next_after_na() -> None:
    one = Initiator(["/a/2", "/a/1"])
    one.data_to_send()
    assert one.receive_data(HEADER + NA) is None
    assert one.data_to_send() == encode_frame(b"/a/1\n")
    assert one.receive_data(encode_frame(b"/a/1\n")) == "/a/1"


@pytest.mark.parametrize("machine", [Initiator(["/a"]), listener("/a")], ids=["initiator", "listener"])
def test_stream_that_ends_before_an_agreement_is_refused(machine: Initiator | Listener) -> None:
    assert machine.receive_data(HEADER) is None
    with pytest.raises(RemoteProtocolError, match="ended before"):
        machine.receive_eof()


@given(
    st.lists(st.binary(max_size=40) | st.binary(max_size=30).map(lambda text: encode_frame(text + b"\n")), max_size=6),
    st.booleans(),
)
def test_any_bytes_raise_nothing_else_and_what_is_sent_stays_bounded(chunks: list[bytes], headed: bool) -> None:
    for machine in (Initiator(["/a"]), listener("/a")):
        for chunk in [HEADER, *chunks] if headed else chunks:
            result = outcome(machine.receive_data, chunk)
            if result is not None:
                assert result in ("/a", ErrorCode.MALFORMED, ErrorCode.TOO_LARGE, ErrorCode.UNSUPPORTED)
                break
        assert len(machine.data_to_send()) <= 200


MESSAGES = [
    HEADER,
    PING,
    NA,
    b"\x05/a/1\n",
    b"\x06/a/1x\n",
    b"\x05/a/12",
    b"\x02/\n",
    b"\x00",
    b"\x01\n",
    b"\x80\x01",
    b"\x06/\xc3\xa4/1\n",
]


@given(
    st.lists(st.one_of(st.sampled_from(MESSAGES), st.sampled_from([HEADER, PING]), st.binary(max_size=30)), max_size=5),
    st.sampled_from([8, 20, 1024]),
)
@example([HEADER, PING], 8)
def test_what_comes_at_once_has_the_outcome_of_what_comes_byte_by_byte(parts: list[bytes], bytes_max: int) -> None:
    """Where a negotiation begins as usual it is not taken apart; nobody can tell."""
    data, config = b"".join(parts), MultistreamConfig(message_bytes_max=bytes_max)
    for make in (
        lambda: Initiator(["/ipfs/ping/1.0.0", "/a/1"], config),
        lambda: listener("/ipfs/ping/1.0.0", "/a/1", config=config),
    ):
        whole, pieces = make(), make()
        at_once = outcome(whole.receive_data, data)
        rest, step = data, None
        while rest and step is None:
            step, rest = outcome(pieces.receive_data, rest[:1]), rest[1:]
        assert at_once == step
        assert whole.agreed == pieces.agreed
        if not isinstance(at_once, ErrorCode):
            assert whole.data_to_send() == pieces.data_to_send()
            assert whole.take_rest() == pieces.take_rest() + rest
