"""What stands between a program and its node: the socket's place, frames received where they stay, arrays, questions."""

import os
import socket
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config import StartError
from mesh.local.frames import FrameReader, without
from mesh.local.place import SOCKET_MODE, connect_to, listen_at, peer_uid
from mesh.local.questions import MODELS, ROUTE, STATUS, Question, is_question, read_question, write_question
from mesh.native.errors import BadInputError
from mesh.native.tensors import to_array, to_tensor, to_tensors
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import RemoteProtocolError
from protocol.inference import Feature, InferenceRequest, TensorsReady
from protocol.wire.inference import DATA_TYPES, decode_reply, encode_reply, encode_request, frame_reply, frame_request

# The place


def test_a_socket_is_its_owners_alone_and_goes_with_its_node(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        listening = listen_at(tmp_path / "s")
    finally:
        os.umask(before)
    assert (tmp_path / "s").stat().st_mode & 0o777 == SOCKET_MODE
    with connect_to(tmp_path / "s") as connection:
        assert peer_uid(connection) == os.geteuid()
    listening.close()
    assert not (tmp_path / "s").exists()


def test_a_socket_that_a_dead_node_left_is_replaced_and_that_of_a_live_one_is_not(tmp_path: Path) -> None:
    dead = listen_at(tmp_path / "s")
    dead.listener.close()  # as the end of a process does
    live = listen_at(tmp_path / "s")
    with pytest.raises(StartError, match=r"a node answers at .* already"):
        listen_at(tmp_path / "s")
    dead.close()  # its file is another's now
    connect_to(tmp_path / "s").close()
    live.close()


def test_what_is_no_socket_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(StartError, match="is no socket"):
        listen_at(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "precious"
    with pytest.raises(StartError, match="--client-socket none"):
        listen_at(tmp_path / "absent" / "s")


def test_a_path_longer_than_the_kernel_takes_will_do(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120) / "s"
    path.parent.mkdir()
    listening = listen_at(path)
    with connect_to(path) as connection:
        assert peer_uid(connection) == os.geteuid()
    listening.close()
    assert not path.exists()


def test_a_full_queue_is_told_at_once_or_waited_for(tmp_path: Path) -> None:
    listening = listen_at(tmp_path / "s")
    listening.listener.listen(0)
    waiting = connect_to(tmp_path / "s")
    with pytest.raises(BlockingIOError):
        connect_to(tmp_path / "s")
    with pytest.raises((BlockingIOError, TimeoutError)):
        connect_to(tmp_path / "s", 0.05)
    waiting.close()
    listening.close()


# Frames


def received(reader: FrameReader, data: bytes, cuts: list[int]) -> list[bytes]:
    """The messages that a reader makes of bytes that come in pieces of these sizes."""
    messages, at = [], 0
    sizes = iter([*cuts, *([len(data)] * (len(data) + 1))])
    while at < len(data):
        room = reader.room()
        n_bytes = min(len(room), next(sizes), len(data) - at)
        room[:n_bytes] = data[at : at + n_bytes]
        at += n_bytes
        message = reader.took(n_bytes)
        if message is not None:
            messages.append(bytes(message))
    return messages


@given(st.lists(st.binary(min_size=3, max_size=300), max_size=5), st.lists(st.integers(1, 50), max_size=20))
def test_frames_come_out_as_they_went_in_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    reader = FrameReader(1000)
    assert received(reader, b"".join(map(encode_frame, messages)), cuts) == messages
    assert not reader.begun


@given(st.binary(max_size=200), st.lists(st.integers(1, 9), max_size=20))
def test_arbitrary_bytes_are_read_as_the_other_decoder_reads_them_or_refused(data: bytes, cuts: list[int]) -> None:
    other = FrameDecoder(100)
    expected: list[bytes] = []
    try:
        got = received(FrameReader(100), data, cuts)
    except RemoteProtocolError:
        return
    other.receive(data)
    while (frame := other.next_frame()) is not None:
        expected.append(frame)
    assert got == expected


def test_a_frame_at_the_bound_is_read_and_one_past_it_is_refused_before_there_is_room_for_it() -> None:
    assert received(FrameReader(1 << 20), encode_frame(b"x" * (1 << 20)), []) == [b"x" * (1 << 20)]
    for data in (encode_frame(b"x" * 101)[:4], b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x02ab\x00"):
        with pytest.raises(RemoteProtocolError):
            received(FrameReader(100), data, [])


def test_a_message_is_the_room_that_it_was_received_into() -> None:
    reader = FrameReader(1 << 20)
    data = encode_frame(bytes(range(256)) * 1000)
    reader.room()[:4] = data[:4]
    assert reader.took(4) is None
    room = reader.room()
    room[:] = data[4:]
    message = reader.took(len(room))
    assert message is not None
    assert np.shares_memory(np.asarray(message), np.asarray(room))
    assert len(message) == len(room) + 1  # the head held the first byte


@given(st.lists(st.binary(max_size=20), max_size=6), st.integers(0, 130))
def test_what_is_left_of_pieces_is_what_was_not_sent(pieces: list[bytes], n_bytes: int) -> None:
    whole = b"".join(pieces)
    n_bytes = min(n_bytes, len(whole))
    assert b"".join(without(list(pieces), n_bytes)) == whole[n_bytes:]


# Questions


@given(st.binary(min_size=16, max_size=16))
def test_questions_are_read_as_they_were_written(request_id: bytes) -> None:
    for question in (Question(MODELS), Question(STATUS), Question(ROUTE, request_id)):
        message = write_question(question)
        assert is_question(message)
        assert read_question(message) == question


@given(st.binary(max_size=100) | st.binary(max_size=40).map(lambda rest: b"?route" + rest))
def test_arbitrary_bytes_are_a_question_or_refused(message: bytes) -> None:
    try:
        question = read_question(message)
    except RemoteProtocolError:
        return
    assert write_question(question) == message


def test_no_request_is_taken_for_a_question() -> None:
    assert not is_question(encode_request(InferenceRequest(bytes(16), Feature.CHAT, "m", b"?")))
    assert not is_question(b"?...ISIQ")


# Arrays

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(st.sampled_from(sorted(DATA_TYPES)), SHAPES, st.randoms(use_true_random=False))
def test_arrays_come_back_as_they_were_sent(dtype: str, shape: tuple[int, ...], luck) -> None:
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array = np.frombuffer(luck.randbytes(n_bytes), "u1").view(dtype).reshape(shape)
    if dtype == "b1":
        array = array.view("u1") % 2 == 1
    reply = decode_reply(encode_reply(TensorsReady((to_tensor("x", array),))))
    (tensor,) = reply.tensors
    back = to_array(tensor)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert not back.flags.writeable


class Interface:
    def __init__(self, array) -> None:
        self.array = array
        self.__array_interface__ = array.__array_interface__


class Capsule:
    def __init__(self, array) -> None:
        self.array = array

    def __dlpack__(self, **named):
        return self.array.__dlpack__(**named)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("wrap", [lambda a: a, Interface, Capsule, memoryview, lambda a: a.view(np.matrix)])
def test_whatever_lies_in_memory_is_sent_as_it_lies(wrap) -> None:
    array = np.arange(1000, dtype="i4").reshape(10, 100)
    tensor = to_tensor("x", wrap(array))
    assert (tensor.dtype, tensor.shape) == ("i4", (10, 100))
    assert np.shares_memory(np.asarray(tensor.data), array)
    pieces = frame_request(InferenceRequest(bytes(16), Feature.TENSORS, "m", b"", (tensor,)))
    assert [np.shares_memory(np.asarray(memoryview(piece)), array) for piece in pieces].count(True) == 1
    assert len(pieces) <= 3
    assert b"".join(pieces) == encode_frame(encode_request(InferenceRequest(bytes(16), Feature.TENSORS, "m", b"", (tensor,))))
    said = TensorsReady((tensor,))
    assert any(np.shares_memory(np.asarray(memoryview(piece)), array) for piece in frame_reply(said))
    assert b"".join(frame_reply(said)) == encode_frame(encode_reply(said))


def test_plain_buffers_and_what_has_to_be_copied_are_sent_too() -> None:
    assert to_array(to_tensor("", b"abc")).tolist() == [97, 98, 99]
    assert to_array(to_tensor("", np.float32(2.5))).shape == ()
    gaps, other = np.arange(10)[::2], np.arange(3, dtype=">i4")
    assert [to_array(tensor).tolist() for tensor in to_tensors({"a": gaps, "b": other})] == [[0, 2, 4, 6, 8], [0, 1, 2]]


@pytest.mark.parametrize("array", ["text", object(), [1, 2], None, np.array(["a"]), np.array([object()])])
def test_what_is_no_array_is_refused_by_name(array: object) -> None:
    with pytest.raises(BadInputError, match="the input 'x' is"):
        to_tensor("x", array)


def test_sending_allocates_next_to_nothing() -> None:
    """What `frame_request` makes of 8 MB is a few hundred bytes beside them."""
    array = np.zeros(1_000_000, "f8")
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    tracemalloc.start()
    try:
        pieces = frame_request(InferenceRequest(bytes(16), Feature.TENSORS, "m", b"", (to_tensor("x", array),)))
        ours.setblocking(False)
        n_sent = ours.sendmsg(pieces)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        ours.close()
        theirs.close()
    assert n_sent > 100_000
    assert peak < 100_000
