"""Ping: both ends on a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.libp2p.ping import PING_BYTES, PingConfig, PingDialer, PingListener

FRAME = bytes(range(32))


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_listener_echoes_whole_frames_and_holds_less_than_one(chunks: list[bytes]) -> None:
    listener = PingListener(0.0)
    sent = b"".join(chunks)
    echoed = b""
    for chunk in chunks:
        echo = listener.handle_data(chunk, 0.0)
        assert len(echo) % PING_BYTES == 0
        echoed += echo
    assert echoed == sent[: len(sent) - len(sent) % PING_BYTES]


@given(st.integers(1, 32), st.floats(0, 9.9))
def test_dialer_measures_the_round_trip_however_the_echo_is_cut(chunk: int, rtt_s: float) -> None:
    dialer, listener = PingDialer(), PingListener(100.0)
    for _ in range(3):
        echo = listener.handle_data(dialer.start(FRAME, 100.0), 100.0)
        measured = [dialer.handle_data(echo[start : start + chunk], 100.0 + rtt_s) for start in range(0, PING_BYTES, chunk)]
        assert measured[:-1] == [None] * (len(measured) - 1)
        assert measured[-1] == pytest.approx(rtt_s, abs=1e-9)
        assert dialer.next_timer() is None


@pytest.mark.parametrize("echo", [bytes(32), FRAME[:31] + b"\x00", FRAME + b"\x00", b"\x01"])
def test_wrong_echo_is_refused(echo: bytes) -> None:
    dialer = PingDialer()
    dialer.start(FRAME, 0.0)
    with pytest.raises(RemoteProtocolError) as caught:
        dialer.handle_data(echo, 1.0)
    assert caught.value.code is ErrorCode.MALFORMED


def test_bytes_that_nobody_asked_for_are_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        PingDialer().handle_data(b"\x00", 0.0)
    assert PingDialer().handle_data(b"", 0.0) is None


def test_late_echo_is_an_error_at_the_timer_and_not_before() -> None:
    dialer = PingDialer(PingConfig(timeout_s=2.0))
    dialer.handle_timer(1e9)
    dialer.start(FRAME, 10.0)
    assert dialer.next_timer() == 12.0
    dialer.handle_timer(11.999)
    with pytest.raises(RemoteProtocolError) as caught:
        dialer.handle_timer(12.0)
    assert caught.value.code is ErrorCode.IDLE


def test_silent_stream_is_an_error_at_the_timer_and_bytes_move_it() -> None:
    listener = PingListener(0.0, PingConfig(idle_s=5.0))
    listener.handle_timer(4.9)
    listener.handle_data(b"", 4.9)
    assert listener.next_timer() == 5.0
    listener.handle_data(b"\x00", 4.9)
    listener.handle_timer(5.0)
    assert listener.next_timer() == 9.9
    with pytest.raises(RemoteProtocolError) as caught:
        listener.handle_timer(9.9)
    assert caught.value.code is ErrorCode.IDLE
