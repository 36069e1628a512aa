"""Tensors on a GPU between nodes of two processes that use it: by CUDA IPC, and by the other ways where that does not work."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio
from device_engine import MODEL, DeviceEngine
from emulated_gpu import GPUS, emulated, environment, fail, gpu, library
from mesh_nodes import MeshNode, Start, eventually, introduced, soon_told

from mesh import client
from mesh.fabric import Fabrics
from mesh.fabric.gpu import DeviceArray, Pool, array_of, device_tensor, to_device
from mesh.fabric.gpu import opener as gpu_opener
from mesh.fabric.gpu.driver import LIBRARY
from mesh.fabric.gpu.opener import GpuOpener
from mesh.fabric.shm import host_secret
from protocol.fabric import FabricConfig, FabricPeers, Kind
from protocol.identity import PeerId, parse_peer_id
from protocol.inference import Feature, Finished, InferenceRequest, Tensor, TensorsReady

ROOT = Path(__file__).parents[3]
SIZE = 1 << 20
pytestmark = pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)


class Peer:
    """A node in another process."""

    def __init__(self, process: subprocess.Popen, told: dict) -> None:
        self.process = process
        self.peer_id: PeerId = parse_peer_id(told["peer_id"])
        self.name: str = told["peer_id"]

    async def say(self, words: str) -> dict:
        def talk() -> str:
            self.process.stdin.write(words + "\n")
            self.process.stdin.flush()
            return self.process.stdout.readline()

        return json.loads(await trio.to_thread.run_sync(talk))


class World:
    """A node here and another in a process beside it, on one GPU."""

    def __init__(self, kind: str, tmp_path: Path, start: Start) -> None:
        self.kind, self.tmp_path, self.start = kind, tmp_path, start
        self.cuda = gpu(kind)
        self.device = self.cuda.devices[0]
        self.pool = Pool(self.device)

    def tune(self, service) -> None:
        """Has the node look for its driver where the tests have it."""
        fabrics = service.fabrics
        fabrics.config = FabricConfig(take_s=20.0)
        soon_told(service)
        path = LIBRARY if self.kind == "hardware" else str(library())
        fabrics._openers[Kind.GPU] = GpuOpener("test", host_secret(), path)

    def tune_other(self, service) -> None:
        """The same for the other of two nodes of this process, which forgets at once what it could not open."""
        self.tune(service)
        service.fabrics._kinds = service.fabrics._peers = FabricPeers(FabricConfig(closed_s=0.05, closed_s_max=0.05))

    @asynccontextmanager
    async def pair(self, **options) -> AsyncIterator[tuple[MeshNode, Peer]]:
        a = await self.start(tune=self.tune)
        folder = Path(__file__).parent
        env = {**environment(self.kind), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(folder / "gpu_peer.py"), str(self.tmp_path / "peer"), str(a.address), json.dumps(options)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = await trio.to_thread.run_sync(lambda: subprocess.Popen(command, env=env, cwd=ROOT, **pipes))
        try:
            peer = Peer(process, json.loads(await trio.to_thread.run_sync(process.stdout.readline)))
            await eventually(lambda: a.knows(peer.peer_id), 20)
            await eventually(lambda: Kind.GPU in {match.kind for match in a.service.fabrics._find_shared(peer.peer_id)}, 20)
            await opened(a.service.fabrics, peer.peer_id, on_device=True)
            yield a, peer
        finally:
            process.kill()
            process.stdin.close()
            process.stdout.close()
            await trio.to_thread.run_sync(process.wait)

    def on_device(self, array: np.ndarray) -> DeviceArray:
        tensor = Tensor("x", array.dtype.str[1:], array.shape, memoryview(array.tobytes()))
        return to_device(tensor, self.device, self.pool)

    def asking(self, n: int = SIZE, **named) -> InferenceRequest:
        tensors = (
            device_tensor("x", self.on_device(np.arange(n, dtype="f4").reshape(-1, 8))),
            Tensor("ids", "i8", (3,), memoryview(np.arange(3)).cast("B")),
        )
        given = {"deadline_s": 20.0, "takes_device": True, **named}
        return InferenceRequest(os.urandom(16), Feature.TENSORS, MODEL, b"", tensors, **given)


async def opened(fabrics: Fabrics, peer: PeerId, *, on_device: bool) -> None:
    """Opens a fabric, however long that takes on a busy machine."""
    with trio.fail_after(20):
        while await fabrics.session(peer, on_device=on_device) is None:
            fabrics._matched.clear()
            fabrics._peers = FabricPeers(fabrics.config)
            fabrics._kinds = FabricPeers(fabrics.config)
            await trio.sleep(0.02)


@pytest.fixture(params=GPUS)
def world(request: pytest.FixtureRequest, tmp_path: Path, start: Start) -> World:
    return World(request.param, tmp_path, start)


async def ask(node: MeshNode, request: InferenceRequest) -> tuple[dict[str, Tensor], str]:
    """The outputs, and by which way the request's tensors went."""
    async with node.service.dispatcher.submit(request) as answer:
        replies = [reply async for reply in answer]
        route = answer.route
    assert isinstance(replies[-1], Finished), replies[-1]
    assert isinstance(replies[0], TensorsReady)
    way = next(c.fabric for c in route.candidates if c.peer_id == route.chosen)
    return {tensor.name: tensor for tensor in replies[0].tensors}, way


def values(tensor: Tensor) -> np.ndarray:
    array = array_of(tensor)
    return np.frombuffer(tensor.data if array is None else array.to_host(), tensor.dtype).reshape(tensor.shape)


def is_right(outputs: dict[str, Tensor], n: int = SIZE) -> bool:
    same = (values(outputs["x"]) == np.arange(n, dtype="f4").reshape(-1, 8)).all()
    return bool(same) and values(outputs["ids"]).tolist() == [0, 1, 2]


async def test_tensors_on_a_gpu_go_and_come_without_leaving_it(world: World) -> None:
    async with world.pair() as (a, peer):
        before = world.device.host_copies
        outputs, way = await ask(a, world.asking())
        assert way == "gpu"
        assert world.device.host_copies == before
        assert {name: array_of(tensor) is not None for name, tensor in outputs.items()} == {"x": True, "ids": True}
        assert is_right(outputs)
        told = await peer.say("status")
        assert (told["lay"], told["host_copies"]) == (["device", "device"], 0)
        assert told["pid"] != os.getpid()
        status = a.service.dispatcher.status()["fabrics"]
        assert list(status["open_on_device"]) == [peer.name]
        assert status["gpu"]["devices"] == [f"{world.device.name} at {world.device.bus_id}"]
        assert peer.peer_id in a.service.node.device_ways
        assert a.service.node.ways == {}, "tensors on the host have no fabric yet"


async def test_tensors_on_the_host_go_by_shared_memory_beside_it(world: World) -> None:
    async with world.pair() as (a, peer):
        assert (await ask(a, world.asking()))[1] == "gpu"
        await opened(a.service.fabrics, peer.peer_id, on_device=False)
        array = np.arange(SIZE, dtype="f4").reshape(-1, 8)
        tensors = (Tensor("x", "f4", array.shape, memoryview(array).cast("B")),)
        request = InferenceRequest(os.urandom(16), Feature.TENSORS, MODEL, b"", tensors, deadline_s=20.0)
        outputs, way = await ask(a, request)
        assert way == "shm"
        assert array_of(outputs["x"]) is None, "who asks with tensors on the host gets such"
        assert (values(outputs["x"]) == array).all()
        assert (await peer.say("status"))["lay"] == ["device", "device", "host"]
        assert (await ask(a, world.asking()))[1] == "gpu"


async def test_small_tensors_are_copied_and_take_the_stream(world: World) -> None:
    async with world.pair() as (a, peer):
        before = world.device.host_copies
        outputs, way = await ask(a, world.asking(800))
        assert (way, is_right(outputs, 800)) == ("", True)
        assert (await peer.say("status"))["lay"] == ["host", "host"]
        assert world.device.host_copies == before + 1


async def test_an_engine_on_the_host_gets_a_copy_of_what_came_by_the_gpu(world: World) -> None:
    async with world.pair(takes_device=False, answers_on_device=False) as (a, peer):
        outputs, way = await ask(a, world.asking())
        assert (way, is_right(outputs)) == ("gpu", True)
        told = await peer.say("status")
        assert (told["lay"], told["host_copies"]) == (["host", "host"], 2)


async def test_regions_are_used_again(world: World) -> None:
    async with world.pair() as (a, peer):
        for n in range(12):
            outputs, way = await ask(a, world.asking(SIZE + 8 * n))
            assert (way, is_right(outputs, SIZE + 8 * n)) == ("gpu", True)
        session = a.service.fabrics._device_sessions[peer.peer_id]
        await eventually(lambda: all(own.lease is None for own in session._own.values()))
        assert session.figures()["regions_given"] <= 2
        told = await peer.say("status")
        assert told["fabrics"]["open_on_device"][a.name]["regions_open"] <= 2


async def test_requests_at_once_do_not_get_into_each_others_way(world: World) -> None:
    async with world.pair() as (a, _):
        ways = []

        async def one(n: int) -> None:
            outputs, way = await ask(a, world.asking(SIZE + 8 * n))
            ways.append((way, is_right(outputs, SIZE + 8 * n)))

        async with trio.open_nursery() as nursery:
            for n in range(4):
                nursery.start_soon(one, n)
        assert ways == [("gpu", True)] * 4


async def test_a_device_that_cannot_open_memory_gets_the_bytes_by_the_stream(tmp_path: Path, start: Start) -> None:
    world = World("emulated", tmp_path, start)
    async with world.pair() as (a, peer):
        await opened(a.service.fabrics, peer.peer_id, on_device=False)
        await peer.say("fail cuIpcOpenMemHandle 205")
        outputs, way = await ask(a, world.asking())
        assert is_right(outputs)
        assert way.startswith("gpu, then the stream: refused: fabric_failed:")
        assert "CUDA_ERROR_MAP_FAILED" in way
        await eventually(lambda: "open_on_device" not in a.service.fabrics.status())
        outputs, way = await ask(a, world.asking())
        assert (way, is_right(outputs)) == ("shm", True), "GPU memory is left out for a while, and the other kinds are not"


async def test_a_device_that_fails_while_tensors_are_given_leaves_them_to_shared_memory(tmp_path: Path, start: Start) -> None:
    world = World("emulated", tmp_path, start)
    async with world.pair() as (a, peer):
        assert (await ask(a, world.asking()))[1] == "gpu"
        await opened(a.service.fabrics, peer.peer_id, on_device=False)
        array = np.ones(SIZE, "f4")
        tensors = (Tensor("x", "f4", array.shape, memoryview(array).cast("B")),)
        assert (await ask(a, InferenceRequest(os.urandom(16), Feature.TENSORS, MODEL, b"", tensors)))[1] == "shm"
        request = world.asking()
        fail("cuMemcpyDtoDAsync", 700)
        outputs, way = await ask(a, request)
        assert (way, is_right(outputs)) == ("shm", True)
        assert peer.peer_id not in a.service.fabrics._device_sessions


async def test_a_gpu_that_is_full_leaves_them_to_other_ways(tmp_path: Path, start: Start) -> None:
    world = World("emulated", tmp_path, start)
    async with world.pair() as (a, peer):
        assert (await ask(a, world.asking()))[1] == "gpu"
        await opened(a.service.fabrics, peer.peer_id, on_device=False)
        request = world.asking(2 * SIZE)
        fail("cuMemAlloc", 2)
        outputs, way = await ask(a, request)
        assert (way, is_right(outputs, 2 * SIZE)) == ("shm", True)
        assert peer.peer_id in a.service.fabrics._device_sessions, "that is no fault of the fabric"


async def test_a_peer_that_is_gone_takes_no_memory_with_it(tmp_path: Path, start: Start, monkeypatch) -> None:
    from emulated_gpu import blocks

    monkeypatch.setattr(gpu_opener, "LINGER_S", 0.1)
    world = World("emulated", tmp_path, start)
    async with world.pair() as (a, peer):
        a.service.fabrics.config = FabricConfig(take_s=0.5)  # a transfer is remembered for so long
        before = blocks(opened=False)
        outputs, way = await ask(a, world.asking())
        assert way == "gpu"
        peer.process.kill()
        await trio.to_thread.run_sync(peer.process.wait)
        assert is_right(outputs), "what was taken was copied"
        a.service.fabrics._device_sessions[peer.peer_id].close("")
        del outputs
        await eventually(lambda: blocks(opened=True) == 0)
        (_, pool), *_ = a.service.fabrics._openers[Kind.GPU]._devices.values()
        world.pool._idle_bytes_max = 0

        def is_back() -> bool:
            gc.collect()
            world.pool.trim()
            return blocks(opened=False) <= before + pool.n_blocks

        await eventually(is_back)


async def test_a_light_node_gets_its_answer_on_the_gpu(world: World, tmp_path: Path) -> None:
    async with world.pair() as (a, peer), client.connect([str(a.address)], network="test") as mesh:
        light = mesh._way._light
        opener = light.fabrics._openers[Kind.GPU]
        if world.kind == "emulated":
            assert "no NVIDIA driver" in opener.absent
            opener._path = str(library())
            opener._find(world.cuda)
            light.fabrics._tell()
        light.fabrics.config = FabricConfig(take_s=20.0)
        await mesh.infer(MODEL, {"x": np.ones(8, "f4")}, deadline_s=20.0)  # who is asked is dialled
        await opened(light.fabrics, peer.peer_id, on_device=True)
        array = np.arange(SIZE, dtype="f4").reshape(-1, 8)
        answer = await mesh.infer(MODEL, {"x": world.on_device(array)}, deadline_s=20.0)
        output = answer.tensors["x"]
        assert isinstance(output, DeviceArray)
        assert (np.frombuffer(output.to_host(), "f4").reshape(output.shape) == array).all()


async def test_two_nodes_of_one_process_fall_back(start: Start, tmp_path: Path) -> None:
    """The driver opens no memory in the process that it is of; the first request finds that, and is answered."""
    world = World("emulated", tmp_path, start)
    engine = DeviceEngine(emulated())
    b = await start(engine, tune=world.tune_other)
    a = await start(join=(b,), tune=world.tune)
    await introduced(a, b)
    await eventually(lambda: Kind.GPU in {match.kind for match in a.service.fabrics._find_shared(b.peer_id)}, 20)
    await opened(a.service.fabrics, b.peer_id, on_device=True)
    outputs, way = await ask(a, world.asking())
    assert is_right(outputs)
    assert way.startswith("gpu, then the stream: refused: fabric_failed: ")
    assert "CUDA_ERROR_INVALID_CONTEXT" in way
    assert engine.lay == ["host", "host"]


async def test_who_cannot_show_the_secret_at_the_local_socket_has_nothing_opened(start: Start, tmp_path: Path) -> None:
    """It takes the fabric for open and offers a token; the other side has never let it in."""
    world = World("emulated", tmp_path, start)
    b = await start(DeviceEngine(emulated()), tune=world.tune_other)
    a = await start(join=(b,), tune=world.tune)
    await introduced(a, b)
    await eventually(lambda: Kind.GPU in {match.kind for match in a.service.fabrics._find_shared(b.peer_id)}, 20)
    opener = a.service.fabrics._openers[Kind.GPU]

    async def stay_away(opening, door, own_nonce):
        return opener._session(opening)

    opener.knock = stay_away
    await opened(a.service.fabrics, b.peer_id, on_device=True)
    outputs, way = await ask(a, world.asking())
    assert is_right(outputs)
    assert way == "gpu, then the stream: refused: fabric_failed: this fabric is closed here"
    assert b.service.fabrics._device_sessions == {}


async def test_a_machine_without_a_gpu_says_so(start: Start, tmp_path: Path) -> None:
    def none(service) -> None:
        service.fabrics._openers[Kind.GPU] = GpuOpener("test", host_secret(), "libno-such-driver.so.1")

    a = await start(tune=none)
    told = a.service.dispatcher.status()["fabrics"]
    assert told["absent"]["gpu"] == "absent: no NVIDIA driver is installed here (libno-such-driver.so.1)"
    assert "gpu" not in told["kinds"]
