"""Programs ask through the node's own socket: both faces, several at once, cancelled, held back, refused."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import trio
from mesh_nodes import MESSAGES, MODEL, TEXT, WORDS, Plan, PlannedEngine, Start, eventually, hang, introduced, say_and_hang

from mesh import client
from mesh.engines.echo import EchoEngine
from mesh.local.door import AT_ONCE_MAX, DoorConfig
from mesh.nodefile import write_node_file
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode
from protocol.inference import Feature, Finished, InferenceRequest, Tensor, TensorsReady, TextDelta
from protocol.records import ModelOffer
from protocol.wire.inference import decode_reply, encode_request

ONE_ENGINE = pytest.mark.parametrize("quic_engines", [("qh3",)], ids=["qh3"], indirect=True)
"""The unix socket is the same on every QUIC engine."""


class TensorEngine(PlannedEngine):
    """Takes tensors, notes them, and gives them back."""

    def offers(self) -> tuple[ModelOffer, ...]:
        return (ModelOffer(self.model, frozenset({Feature.TENSORS}), engine=self.kind),)


async def give_back(request: InferenceRequest) -> AsyncGenerator[object, None]:
    yield TensorsReady(tuple(request.tensors))
    yield Finished()


def door(node) -> Path:
    return Path(node.ready.client_socket)


async def test_the_model_of_another_node_answers_both_faces(start: Start) -> None:
    b = await start(EchoEngine(), PlannedEngine())
    a = await start(join=(b,))
    await introduced(a, b)
    x = np.arange(300, dtype="f4").reshape(3, 100)

    async with client.attach(door(a)) as mesh:
        began = trio.current_time()
        answer = await mesh.infer("echo", {"x": x, "y": x[:1]}, deadline_s=7.0)
        waited_s = trio.current_time() - began
        route = await answer.route()
        text = mesh.generate(MODEL, MESSAGES)
        pieces = [piece async for piece in text]
        models = await mesh.models()
        status = await mesh.status()
    assert np.array_equal(answer["x"], x)
    assert np.array_equal(answer["y"], x[:1])
    assert not answer["x"].flags.writeable
    assert (answer.deadline_s, route.request_id) == (7.0, answer.request_id)
    assert 0 < answer.took_s <= waited_s
    assert (route.node, route.hops) == (b.name, 1)
    assert route.measured_s is not None
    assert route.rtt_s is not None
    assert {row["peer_id"]: row["outcome"] for row in route.candidates} == {a.name: "", b.name: "answered"}
    assert "".join(pieces) == TEXT
    assert text.answer is not None
    assert (text.answer.finish_reasons, text.answer.usage.completion_tokens) == (("stop",), 3)
    assert [model["model"] for model in models] == ["echo", MODEL]
    assert status["client_socket"] == str(door(a))

    def plain() -> tuple[object, ...]:
        with client.sync.attach(door(a)) as mesh:
            answer = mesh.infer("echo", {"x": x})
            text = mesh.generate(MODEL, MESSAGES)
            names = [model["model"] for model in mesh.models()]
            return answer["x"].tolist(), answer.route().node, list(text), text.route().hops, names, mesh.status()["peer_id"]

    told = await trio.to_thread.run_sync(plain)
    assert told == (x.tolist(), b.name, list(WORDS), 1, ["echo", MODEL], a.name)


@ONE_ENGINE
async def test_the_node_file_leads_to_the_door(start: Start, tmp_path: Path) -> None:
    a = await start(EchoEngine())
    write_node_file(a.config.state_dir, a.ready)
    async with client.attach(state_dir=a.config.state_dir) as mesh:
        assert (await mesh.infer("echo", {"": np.zeros(2)})).tensor.tolist() == [0.0, 0.0]
    with pytest.raises(client.NotConnectedError, match="isochrone up"):
        async with client.attach(state_dir=tmp_path / "nowhere"):
            pass
    with pytest.raises(client.NotConnectedError, match="there is no socket at"):
        async with client.attach(tmp_path / "nowhere"):
            pass
    await a.stop()
    assert not door(a).exists()


@ONE_ENGINE
async def test_many_requests_are_under_way_at_once_and_one_that_is_not_read_holds_up_no_other(start: Start) -> None:
    """A reader that stops holds its own engine back, after what the buffers between them hold."""
    said = 0

    async def talk_forever(_request: InferenceRequest) -> AsyncGenerator[object, None]:
        nonlocal said
        while True:
            said += 1
            yield TextDelta("x" * 50_000)

    engine = PlannedEngine(Plan(talk_forever))
    a = await start(engine, EchoEngine())
    async with client.attach(door(a)) as mesh, mesh.generate(MODEL, MESSAGES) as slow:
        await anext(slow)
        x = np.arange(1000)

        async def ask() -> None:
            assert np.array_equal((await mesh.infer("echo", {"x": x})).tensor, x)

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(ask)
        before = -1
        while before < said:  # the engine stands still once nothing between it and the reader has room
            before = said
            for _ in range(30):
                await trio.sleep(0.01)
        assert said < 200
        assert engine.n_running == 1
    await eventually(lambda: engine.n_running == 0)


@ONE_ENGINE
@pytest.mark.parametrize("way", ["cancel", "break", "close", "leave", "thread"])
async def test_whoever_goes_stops_the_engine(start: Start, way: str) -> None:
    engine = PlannedEngine(Plan(hang if way == "cancel" else say_and_hang))
    a = await start(engine)

    def plain() -> None:
        with client.sync.attach(door(a)) as mesh, mesh.generate(MODEL, MESSAGES) as text:
            next(text)

    async def read_one() -> None:
        async for _ in mesh.generate(MODEL, MESSAGES):
            break

    async with client.attach(door(a)) as mesh:
        match way:
            case "cancel":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(anext, mesh.generate(MODEL, MESSAGES))
                    await eventually(lambda: engine.n_running == 1)
                    nursery.cancel_scope.cancel()
            case "break":
                await read_one()
            case "close":
                text = mesh.generate(MODEL, MESSAGES)
                await anext(text)
                await text.aclose()
                assert [piece async for piece in text] == []
            case "thread":
                await trio.to_thread.run_sync(plain)
            case _:
                text = mesh.generate(MODEL, MESSAGES)
                await anext(text)
        if way != "leave":
            await eventually(lambda: engine.n_running == 0)
            assert [piece async for piece in mesh.generate(MODEL, MESSAGES)] == list(WORDS)
    await eventually(lambda: engine.n_running == 0)
    with suppress(client.NotConnectedError):
        [piece async for piece in mesh.generate(MODEL, MESSAGES)]
        pytest.fail("a closed client asks")


@ONE_ENGINE
async def test_errors_say_what_was_wrong_and_what_to_do(start: Start) -> None:
    a = await start(EchoEngine(), PlannedEngine(Plan(hang, hang)))
    async with client.attach(door(a)) as mesh:
        with pytest.raises(client.RequestError, match=r"serves the model 'nobody'.*models\(\) lists") as caught:
            await mesh.infer("nobody", {"x": np.zeros(1)})
        assert caught.value.code == "model_not_found"
        with pytest.raises(client.DeadlineError):
            [piece async for piece in mesh.generate(MODEL, MESSAGES, deadline_s=0.2)]
        with pytest.raises(client.BadInputError, match=r"complex128.*astype"):
            await mesh.infer("echo", {"x": np.zeros(1, "c16")})
        with pytest.raises(client.BadInputError, match="limit is 8388608"):
            await mesh.infer("echo", {"x": np.zeros(9 << 20, "u1")})
        with pytest.raises(client.BadInputError, match="deadline"):
            await mesh.infer("echo", {"x": np.zeros(1)}, deadline_s=-1.0)
        with pytest.raises(client.BadInputError, match="one of the two"):
            mesh.generate(MODEL)
        with pytest.raises(client.RequestError, match="no such request"):
            await mesh.route("00" * 16)
        with pytest.raises(client.RequestError, match="32 hexadecimal"):
            await mesh.route("abc")
        assert issubclass(client.BadInputError, client.MeshError)


def converse(path: Path, data: bytes) -> bytes:
    """What the door says to these bytes until it closes, or is silent for half a second."""
    heard = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(0.5)
        connection.connect(str(path))
        with suppress(TimeoutError, ConnectionError):
            connection.sendall(data)
            while piece := connection.recv(65536):
                heard += piece
    return heard


@ONE_ENGINE
async def test_a_door_that_is_sent_rubbish_refuses_it_and_goes_on(start: Start) -> None:
    a = await start(PlannedEngine(Plan(hang)))
    request = InferenceRequest(os.urandom(16), Feature.CHAT, MODEL, b"{}")
    for data, code in (
        (encode_frame(b"rubbish of some length"), ErrorCode.MALFORMED),
        (encode_frame(b"?whatever"), ErrorCode.UNSUPPORTED),
        (b"\xff\xff\xff\x7f", None),
        (b"\x00\x00\x00\x00", None),
        (encode_frame(encode_request(request)) + b"more", None),
    ):
        heard = await trio.to_thread.run_sync(converse, door(a), data)
        if code is None:
            assert heard == b"", data
        else:
            failed = decode_reply(heard[1:])
            assert failed.code is code
    await eventually(lambda: all(engine.n_running == 0 for engine in a.engines))
    async with client.attach(door(a)) as mesh:
        assert [piece async for piece in mesh.generate(MODEL, MESSAGES)] == list(WORDS)


def echo_of(size: int) -> bytes:
    """A request to the echo of so many bytes, as a frame."""
    tensor = Tensor("x", "u1", (size,), memoryview(os.urandom(size)))
    return encode_frame(encode_request(InferenceRequest(os.urandom(16), Feature.TENSORS, "echo", b"", (tensor,))))


def frames_in(heard: bytes) -> list[bytes]:
    decoder = FrameDecoder(1 << 20)
    decoder.receive(heard)
    return list(iter(decoder.next_frame, None))


@ONE_ENGINE
async def test_answers_at_once_are_given_one_after_another_to_whoever_asks_on(start: Start) -> None:
    a = await start(EchoEngine())
    n_asked = 6 * AT_ONCE_MAX
    ticks, seen = 0, []
    dispatcher, begin = a.service.dispatcher, a.service.dispatcher.begin

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    def begin_and_look(request: InferenceRequest) -> object:
        seen.append(ticks)
        return begin(request)

    dispatcher.begin = begin_and_look

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        heard = await trio.to_thread.run_sync(converse, door(a), b"".join(echo_of(100) for _ in range(n_asked)))
        nursery.cancel_scope.cancel()
    replies = [decode_reply(frame) for frame in frames_in(heard)]
    assert [type(reply) for reply in replies] == [TensorsReady, Finished] * n_asked
    assert seen[-1] - seen[0] >= n_asked // AT_ONCE_MAX - 2, "others come in between; the order of one turn is drawn"
    await eventually(lambda: not a.service.door._visits)
    assert [line["outcome"] for line in a.logged("request ended")] == ["ok"] * n_asked


@ONE_ENGINE
async def test_whoever_does_not_read_an_answer_at_once_gets_it_later_or_loses_the_connection(start: Start) -> None:
    a = await start(EchoEngine())
    a.service.door._config = DoorConfig(slack_s=0.2)
    asked = echo_of(50_000)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(door(a)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        connection.settimeout(5)
        await eventually(lambda: len(a.service.door._visits) == 1)
        (visit,) = a.service.door._visits
        visit._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel makes it the least that it allows
        await trio.to_thread.run_sync(connection.sendall, asked)
        await eventually(lambda: visit.is_busy)

        def read() -> bytes:
            heard = b""
            while len(frames_in(heard)) < 2:
                heard += connection.recv(65536)
            return heard

        first, end = map(decode_reply, frames_in(await trio.to_thread.run_sync(read)))
        assert first.tensors[0].data.nbytes == 50_000
        assert isinstance(end, Finished)
        await eventually(lambda: not visit.is_busy)
        late = InferenceRequest(os.urandom(16), Feature.TENSORS, "echo", b"", first.tensors, 0.2)
        await trio.to_thread.run_sync(connection.sendall, encode_frame(encode_request(late)))
        await eventually(lambda: not a.service.door._visits)
    assert [line["outcome"] for line in a.logged("request ended")] == ["ok", "client_slow"]


@ONE_ENGINE
async def test_a_crash_of_ours_while_an_answer_begins_ends_that_connection_alone(start: Start) -> None:
    a = await start(EchoEngine())
    dispatcher, begin = a.service.dispatcher, a.service.dispatcher.begin

    def crash(_request: InferenceRequest) -> None:
        raise ZeroDivisionError

    dispatcher.begin = crash
    assert await trio.to_thread.run_sync(converse, door(a), echo_of(8)) == b""
    dispatcher.begin = begin
    assert len(frames_in(await trio.to_thread.run_sync(converse, door(a), echo_of(8)))) == 2
    assert len(a.logged("handler crashed")) == 1


@ONE_ENGINE
async def test_a_node_that_serves_nothing_has_an_empty_list_of_models(start: Start) -> None:
    a = await start()
    async with client.attach(door(a)) as mesh:
        assert await mesh.models() == []


@ONE_ENGINE
async def test_connections_are_bounded_and_the_idle_make_room(start: Start) -> None:
    engine = PlannedEngine(Plan(hang, hang))
    a = await start(engine)
    a.service.door._config = DoorConfig(connections_max=2, request_read_s=0.3)
    async with client.attach(door(a)) as first, client.attach(door(a)) as second, client.attach(door(a)) as third:
        await eventually(lambda: len(a.service.door._visits) == 2)
        async with trio.open_nursery() as nursery:
            for mesh in (second, third):
                nursery.start_soon(anext, mesh.generate(MODEL, MESSAGES))
            await eventually(lambda: engine.n_running == 2)
            with pytest.raises(client.NotConnectedError):  # both are busy
                await first.models()
            nursery.cancel_scope.cancel()
        await eventually(lambda: engine.n_running == 0)
        assert {line["outcome"] for line in a.logged("request ended")} == {"client_gone"}
        assert [model["model"] for model in await first.models()] == [MODEL]
    await eventually(lambda: not a.service.door._visits)
    # Who begins a request and does not go on is closed.
    assert await trio.to_thread.run_sync(converse, door(a), b"\x90\x90\x01\x00\x00") == b""
    assert a.logged("a client broke the protocol")[-1]["reason"].endswith("did not arrive within 0.3 s")


FOREIGNER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect(sys.argv[1])
    connection.settimeout(10)
    connection.sendall(bytes([7]) + b"?models")
    print("heard", len(connection.recv(10)))
except OSError as error:
    print(type(error).__name__)
"""


@ONE_ENGINE
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_turned_away_by_the_mode_and_where_that_was_loosened_by_the_node(start: Start) -> None:
    a = await start(EchoEngine())
    path = door(a)
    assert path.stat().st_mode & 0o777 == 0o600

    def foreigner() -> str:
        command = [sys.executable, "-c", FOREIGNER, path.name]
        return subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    assert await trio.to_thread.run_sync(foreigner) == "PermissionError"
    path.chmod(0o666)
    path.parent.chmod(0o711)
    assert await trio.to_thread.run_sync(foreigner) in ("heard 0", "BrokenPipeError", "ConnectionResetError")
    assert [line["uid"] for line in a.logged("another user was turned away")] == [65534]


def owner(array: object) -> np.ndarray:
    """Whose memory an array views."""
    while not (isinstance(array, np.ndarray) and array.base is None):
        array = array.obj if isinstance(array, memoryview) else array.base
    return array


@ONE_ENGINE
async def test_tensors_lie_where_they_were_received_on_their_whole_way(start: Start) -> None:
    engine = TensorEngine(Plan(*[give_back] * 3))
    a = await start(engine)
    x, y = np.arange(100_000, dtype="f8"), np.arange(7, dtype="u1")
    async with client.attach(door(a)) as mesh:
        answer = await mesh.infer(MODEL, {"x": x, "y": y})
    (request,) = engine.requests
    at_engine = [tensor.data.obj for tensor in request.tensors]
    # One buffer, made for this message alone, holds both; it was received into, and nothing has been moved since.
    assert at_engine[0] is at_engine[1]
    assert isinstance(at_engine[0], np.ndarray)
    assert at_engine[0].base is None
    assert len(encode_request(request)) == at_engine[0].nbytes
    assert request.tensors[0].data.readonly
    assert np.frombuffer(request.tensors[0].data, "u1").ctypes.data % 16 == 0
    assert np.array_equal(answer["x"], x)
    assert np.array_equal(answer["y"], y)
    assert owner(answer["x"]) is owner(answer["y"])


@ONE_ENGINE
async def test_threads_share_one_client(start: Start) -> None:
    a = await start(EchoEngine())
    wrong: list[int] = []

    def plain() -> None:
        with client.sync.attach(door(a)) as mesh:

            def ask(number: int) -> None:
                x = np.full(1000, number)
                answers = [mesh.infer("echo", {"x": x})["x"] for _ in range(10)]
                wrong.extend(number for answer in answers if not np.array_equal(answer, x))

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    await trio.to_thread.run_sync(plain)
    assert wrong == []


@ONE_ENGINE
async def test_a_node_that_dies_is_told_as_gone(start: Start) -> None:
    a = await start(PlannedEngine(Plan(say_and_hang, say_and_hang)))
    async with client.attach(door(a)) as mesh:
        text = mesh.generate(MODEL, MESSAGES)
        await anext(text)
        await a.kill()
        with pytest.raises(client.NotConnectedError, match=r"ended the connection .*: is it still running\?"):
            await anext(text)
        with pytest.raises(client.NotConnectedError, match="isochrone up"):
            await mesh.models()
