"""One side of a fabric by GPU memory: regions of another process, and a peer that says what it should not."""

import gc
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import trio
import trio.testing
from emulated_gpu import GPUS, blocks, emulated, environment, fail, gpu, library

from mesh.fabric.gpu import Cuda, CudaError, DeviceArray, Pool, array_of, device_tensor, to_device
from mesh.fabric.gpu.pool import GRAIN_BYTES
from mesh.fabric.gpu.session import WORDS_MAX, GpuSession
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import FabricConfig, Lease, Place, Rights
from protocol.fabric.gpu import TOKEN_BYTES, LeaseOver, RegionClosed, RegionGone, decode_word, encode_word
from protocol.identity import PeerId
from protocol.inference import Tensor

ROOT = Path(__file__).parents[3]
SIZE = 2 << 20


class Said:
    """The control stream: keeps what is said, and is told what comes."""

    def __init__(self) -> None:
        self.words: list[object] = []
        self.send, self.receive = trio.open_memory_channel[bytes](float("inf"))
        self.code: int | None = None

    def say(self, frame: bytes) -> None:
        self.words.append(decode_word(frame))

    def close(self, code: int) -> None:
        self.code = code

    async def run(self, take) -> str:
        try:
            async for frame in self.receive:
                take(frame)
        except RemoteProtocolError as error:
            return error.detail
        return ""


class Owner:
    """A process with memory on the same GPU."""

    def __init__(self, kind: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("region_owner.py"))]
        env = {**environment(kind), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, words: str) -> str:
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def make(self, size: int = SIZE) -> bytes:
        return bytes.fromhex(self.say(f"make {size}"))

    def end(self) -> None:
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Side:
    """A session, and what it left."""

    made: ClassVar[list["Side"]] = []

    def __init__(self, cuda, config: FabricConfig | None = None) -> None:
        self.device = cuda.devices[0]
        self.pool, self.said = Pool(self.device), Said()
        self.freed: list[tuple[int, bool]] = []
        self.closed: list[str] = []
        Side.made.append(self)
        self.session = GpuSession(
            PeerId(b"peer"), config or FabricConfig(), self.said, self.device, self.pool,
            lambda _, address, is_open: self.freed.append((address, is_open)), lambda _session, why: self.closed.append(why),
        )  # fmt: skip

    def tensor(self, size: int, byte: int = 7) -> Tensor:
        host = Tensor("x", "u1", (size,), memoryview(bytes([byte]) * size))
        return device_tensor("x", to_device(host, self.device, self.pool))

    async def hear(self, *words) -> None:
        """What comes by the control stream, until all of it is done."""

        def is_busy() -> bool:
            waiting = self.said.receive.statistics().current_buffer_used
            return bool(waiting or self.session._to_close or self.session._taking.locked())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.session.run)
            for word in words:
                await self.said.send.send(encode_word(word))
            with trio.fail_after(10):
                while is_busy():  # noqa: ASYNC110  # nobody tells
                    await trio.sleep(0.005)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()


@pytest.fixture(params=GPUS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _closed_afterwards():
    yield
    while Side.made:
        Side.made.pop().session.close("")


@pytest.fixture
def side(kind: str) -> Side:
    return Side(gpu(kind))


@pytest.fixture
def owner(kind: str):
    gpu(kind)  # or the test is skipped
    owner = Owner(kind)
    yield owner
    owner.end()


def lease(token: bytes, *, region: int = 0, epoch: int = 1, offset: int = 0, length: int = SIZE, rights=Rights.READ) -> Lease:
    return Lease(region, epoch, offset, length, rights, 60.0, token)


def place(length: int, offset: int = 0) -> Place:
    return Place("x", "u1", (length,), offset, length)


def data_of(tensor: Tensor) -> bytes:
    return bytes(array_of(tensor).to_host())


async def refused(side: Side, *args) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        await side.session.take(*args)
    return caught.value.code


# Taking


async def test_what_was_taken_stays_as_it_was_whatever_its_giver_does(side: Side, owner: Owner) -> None:
    token = owner.make()
    owner.say("fill 0 5")
    (tensor, other) = await side.session.take(lease(token, offset=64, length=1 << 20), (place(1000), place(50_000, 4096)))
    assert side.said.words == [LeaseOver(0, 1)]
    owner.say("fill 0 9")
    assert data_of(tensor) == bytes([5]) * 1000
    assert data_of(other) == bytes([5]) * 50_000
    assert (await side.session.take(lease(token, epoch=2), (place(8),)))[0].size_bytes == 8
    assert side.session.figures()["regions_open"] == 1


async def test_an_old_lease_is_refused(side: Side, owner: Owner) -> None:
    token = owner.make()
    await side.session.take(lease(token, epoch=5), (place(8),))
    for epoch in (5, 4, 0):
        assert await refused(side, lease(token, epoch=epoch), (place(8),)) is ErrorCode.STALE_LEASE
    assert len(side.said.words) == 1


async def test_a_region_has_one_token(side: Side, owner: Owner) -> None:
    token, other = owner.make(), owner.make()
    await side.session.take(lease(token), (place(8),))
    assert await refused(side, lease(other, epoch=2), (place(8),)) is ErrorCode.STALE_LEASE
    assert await refused(side, lease(b"", epoch=2), (place(8),)) is ErrorCode.STALE_LEASE


async def test_the_size_of_a_region_is_what_the_driver_says(side: Side, owner: Owner) -> None:
    token = owner.make()
    assert await refused(side, lease(token, length=SIZE + 1), (place(8),)) is ErrorCode.OUT_OF_BOUNDS
    assert await refused(side, lease(token, offset=SIZE - 8, length=16), (place(8),)) is ErrorCode.OUT_OF_BOUNDS
    assert await refused(side, lease(token, length=16), (place(17),)) is ErrorCode.OUT_OF_BOUNDS
    assert await refused(side, lease(token, epoch=2, length=16), (place(8, 9),)) is ErrorCode.OUT_OF_BOUNDS
    assert await refused(side, lease(token, epoch=3, rights=Rights.WRITE), (place(8),)) is ErrorCode.OUT_OF_BOUNDS
    assert side.said.words == []


async def test_what_is_no_token_is_refused_and_leaves_nothing_open(side: Side, kind: str) -> None:
    for token in (b"", bytes(63)):
        assert await refused(side, lease(token), (place(8),)) is ErrorCode.MALFORMED
    with pytest.raises(CudaError):
        await side.session.take(lease(bytes(range(64))), (place(8),))
    own = side.device.allocate(SIZE)
    with pytest.raises(CudaError):
        await side.session.take(lease(side.device.token(own)), (place(8),))
    side.device.free(own)
    assert side.session.figures()["regions_open"] == 0
    if kind == "emulated":
        assert blocks(opened=True) == 0


async def test_a_peer_has_so_many_regions_open_and_so_much(kind: str, owner: Owner) -> None:
    side = Side(gpu(kind), FabricConfig(regions_max=3, mapped_bytes_max=6 * SIZE))
    for number in range(2):
        await side.session.take(lease(owner.make(), region=number), (place(8),))
    assert await refused(side, lease(owner.make(5 * SIZE), region=8), (place(8),)) is ErrorCode.TOO_LARGE
    assert side.session.figures()["open_bytes"] == 2 * SIZE
    await side.session.take(lease(owner.make(), region=9), (place(8),))
    assert await refused(side, lease(owner.make(), region=10), (place(8),)) is ErrorCode.TOO_LARGE
    if kind == "emulated":
        assert blocks(opened=True) == 3
    side.session.close("")
    assert side.closed == [""]
    if kind == "emulated":
        assert blocks(opened=True) == 0
    assert await refused(side, lease(bytes(64)), (place(8),)) is ErrorCode.FABRIC_FAILED


async def test_a_region_that_is_gone_is_closed_and_that_is_said(side: Side, owner: Owner, kind: str) -> None:
    await side.session.take(lease(owner.make()), (place(8),))
    await side.hear(RegionGone(0), RegionGone(77))
    assert side.said.words == [LeaseOver(0, 1), RegionClosed(0), RegionClosed(77)]
    assert side.session.figures() == {"regions_given": 0, "given_bytes": 0, "regions_open": 0, "open_bytes": 0}
    if kind == "emulated":
        assert blocks(opened=True) == 0


async def test_a_flood_of_regions_that_are_gone_ends_the_fabric() -> None:
    side = Side(emulated())
    await side.session._taking.acquire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(side.session.run)
        for number in range(WORDS_MAX + 2):
            side.said.send.send_nowait(encode_word(RegionGone(number)))
        with trio.fail_after(5):
            while not side.closed:  # noqa: ASYNC110
                await trio.sleep(0.01)
        side.session._taking.release()
        nursery.cancel_scope.cancel()
    assert side.closed == ["more regions are gone than were ever there"]
    assert side.said.code == ErrorCode.FABRIC_FAILED


@pytest.mark.parametrize("kind", ["emulated"], indirect=True)
async def test_a_copy_that_fails_is_told(owner: Owner) -> None:
    side, token = Side(emulated()), owner.make()
    fail("cuMemcpyDtoDAsync", 700)
    with pytest.raises(CudaError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        await side.session.take(lease(token), (place(8),))
    assert side.said.words == []


@pytest.mark.parametrize("kind", ["emulated"], indirect=True)
async def test_a_session_that_is_closed_while_it_copies_leaves_nothing_open(owner: Owner) -> None:
    side, token = Side(emulated()), owner.make()
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            with pytest.raises(RemoteProtocolError):
                await side.session.take(lease(token), (place(8),))

        await side.session._taking.acquire()
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        side.session.close("why")
        side.session._taking.release()
    assert blocks(opened=True) == 0


# Giving


async def test_tensors_lie_in_a_region_of_their_own(side: Side, owner: Owner) -> None:
    host = Tensor("ids", "u1", (3,), memoryview(b"abc"))
    given = side.session.give([side.tensor(100), host, side.tensor(0)], 60.0, 0.0)
    assert [(p.offset, p.length) for p in given.places] == [(0, 100), (128, 3), (192, 0)]
    own = side.session._own[given.lease.region]
    assert own.size_bytes % GRAIN_BYTES == 0
    assert side.device.range_of(own.address) == (own.address, own.size_bytes), "nothing else lies there"
    data = bytearray(131)
    side.device.read(own.address, memoryview(data))
    assert bytes(data[:100]) == bytes([7]) * 100
    assert bytes(data[128:]) == b"abc"
    assert owner.say(f"peek {given.lease.key.hex()}") == "07" * 8


async def test_bytes_for_the_stream_come_from_where_the_tensors_lay(side: Side, owner: Owner) -> None:
    host = Tensor("ids", "u1", (3,), memoryview(b"abc"))
    given = side.session.give([side.tensor(100), host, side.tensor(0)], 60.0, 0.0)
    owner.say(f"peek {given.lease.key.hex()}")
    pieces = [bytes(piece) for piece in given.pieces(64)]
    assert [len(piece) for piece in pieces] == [64, 36, 3]
    assert b"".join(pieces) == bytes([7]) * 100 + b"abc"


async def test_a_region_is_used_again_when_its_lease_is_over(side: Side) -> None:
    first = side.session.give([side.tensor(100)], 60.0, 0.0)
    second = side.session.give([side.tensor(100)], 60.0, 0.0)
    assert second.lease.region != first.lease.region
    await side.hear(LeaseOver(first.lease.region, first.lease.epoch + 1), LeaseOver(99, 1))
    assert side.session.give([side.tensor(100)], 60.0, 0.0).lease.region not in (first.lease.region, second.lease.region)
    side = Side(emulated())
    first = side.session.give([side.tensor(100)], 60.0, 0.0)
    side.session._hear(encode_word(LeaseOver(first.lease.region, first.lease.epoch)))
    again = side.session.give([side.tensor(100)], 60.0, 0.0)
    assert (again.lease.region, again.lease.epoch, again.lease.key) == (first.lease.region, 2, first.lease.key)
    side.session.reuse(first)  # a word that came too late
    assert side.session._own[again.lease.region].lease == again.lease


async def test_a_lease_that_runs_out_retires_its_region(side: Side) -> None:
    given = side.session.give([side.tensor(100)], 60.0, 0.0)
    side.session.handle_timer(61.0)
    assert side.said.words == []
    side.session.handle_timer(63.0)
    assert side.said.words == [RegionGone(given.lease.region)]
    assert side.freed == [], "the peer may still be copying from it"
    side.session.retire(given)
    assert len(side.said.words) == 1


async def test_memory_is_given_back_when_the_peer_has_closed_it(side: Side) -> None:
    given = side.session.give([side.tensor(100)], 60.0, 0.0)
    address = side.session._own[given.lease.region].address
    side.session.retire(given)
    assert side.freed == []
    side.session._hear(encode_word(RegionClosed(given.lease.region)))
    assert side.freed == [(address, False)]
    with pytest.raises(RemoteProtocolError, match="which is not gone"):
        side.session._hear(encode_word(RegionClosed(given.lease.region)))


async def test_a_peer_that_closes_nothing_is_given_no_more(kind: str) -> None:
    side = Side(gpu(kind), FabricConfig(regions_max=4, mapped_bytes_max=8 * SIZE))
    numbers = []
    while (given := side.session.give([side.tensor(100)], 60.0, 0.0)) is not None:
        numbers.append(given.lease.region)
        side.session.retire(given)
    assert len(numbers) == 4
    for number in numbers:
        side.session._hear(encode_word(RegionClosed(number)))
    assert side.session.give([side.tensor(100)], 60.0, 0.0) is not None


async def test_a_peer_is_given_so_many_regions_at_a_time(kind: str) -> None:
    side = Side(gpu(kind), FabricConfig(regions_max=4, mapped_bytes_max=8 * SIZE))
    assert [side.session.give([side.tensor(100)], 60.0, 0.0) is not None for _ in range(5)] == [True] * 4 + [False]


async def test_a_gpu_without_memory_gives_nothing_and_one_that_fails_says_so() -> None:
    side = Side(emulated())
    tensor = side.tensor(100)
    fail("cuMemAlloc", 2)
    assert side.session.give([tensor], 60.0, 0.0) is None
    fail("cuIpcGetMemHandle", 400)
    with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_HANDLE"):
        side.session.give([tensor], 60.0, 0.0)
    assert len(side.freed) == 1
    assert side.session.give([tensor], 60.0, 0.0) is not None
    assert side.session.figures()["regions_given"] == 1


async def test_the_end_leaves_memory_to_whoever_frees_it_later(side: Side) -> None:
    given = side.session.give([side.tensor(100)], 60.0, 0.0)
    gone = side.session.give([side.tensor(100)], 60.0, 0.0)
    side.session.retire(gone)
    side.session.close("a reason")
    assert [is_open for _, is_open in side.freed] == [True, True]
    assert (side.closed, side.said.code) == (["a reason"], ErrorCode.FABRIC_FAILED)
    side.session.close("another")
    assert len(side.closed) == 1
    assert given.size_bytes == 100
    for address, _ in side.freed:
        side.device.free(address)
    gc.collect()


async def test_an_array_that_is_given_may_be_any_that_lies_on_the_device(side: Side) -> None:
    block = side.pool.take(1000)
    side.device.write(block.address, memoryview(np.arange(100, dtype="i4")).cast("B"))
    inner = DeviceArray(side.device, block.address + 40, "i4", (5,), block)
    given = side.session.give([device_tensor("x", inner)], 60.0, 0.0)
    assert b"".join(given.pieces(100)) == np.arange(10, 15, dtype="i4").tobytes()


class TwoGpus:
    """A session between two processes that use two GPUs."""

    def __init__(self, folder: Path, shared: tuple[bytes, ...] = (b"first gp", b"second g")) -> None:
        copied = folder / "libcuda.so.1"  # with a state of its own: it has two GPUs where the other has one
        shutil.copy(library(), copied)
        self.devices = Cuda(str(copied)).devices
        self.pools = [Pool(device) for device in self.devices]
        self.freed: list[object] = []
        others = dict(zip((b"first gp", b"second g"), zip(self.devices, self.pools, strict=True), strict=True))
        self.session = GpuSession(
            PeerId(b"peer"), FabricConfig(), Said(), self.devices[0], self.pools[0],
            lambda device, _address, _is_open: self.freed.append(device), lambda _session, _why: None, others, shared,
        )  # fmt: skip

    def tensor(self, ordinal: int) -> Tensor:
        host = Tensor("x", "u1", (SIZE,), memoryview(bytes([ordinal + 1]) * SIZE))
        return device_tensor("x", to_device(host, self.devices[ordinal], self.pools[ordinal]))

    def given(self, ordinal: int) -> tuple[bytes, object, bool]:
        """Behind the token, on which GPU, and whether the bytes are the tensor's."""
        given = self.session.give((self.tensor(ordinal),), 60.0, 0.0)
        own = self.session._own[given.lease.region]
        data = bytearray(SIZE)
        own.device.read(own.address, memoryview(data))
        return given.lease.key[TOKEN_BYTES:], own.device, data == bytes([ordinal + 1]) * SIZE


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TwoGpus:
    monkeypatch.setenv("EMULATED_CUDA_DEVICES", "2")
    return TwoGpus(tmp_path)


async def test_tensors_stay_on_the_gpu_that_the_key_names(two_gpus: TwoGpus) -> None:
    owner = Owner("emulated")
    try:
        for number, (ordinal, tag) in enumerate(((0, b""), (1, b"second g"), (0, b"first gp"))):
            token = bytes.fromhex(owner.say(f"make {SIZE} {ordinal}"))
            (taken,) = await two_gpus.session.take(lease(token + tag, region=number), (place(SIZE),))
            assert array_of(taken).device is two_gpus.devices[ordinal]
        for tag, code in ((b"third gp", ErrorCode.UNSUPPORTED), (b"x", ErrorCode.MALFORMED)):
            with pytest.raises(RemoteProtocolError) as caught:
                await two_gpus.session.take(lease(token + tag, region=9), (place(SIZE),))
            assert caught.value.code is code
    finally:
        two_gpus.session.close("")
        owner.end()


def test_a_tensor_is_given_on_its_own_gpu_which_is_named_where_it_is_not_the_first(two_gpus: TwoGpus) -> None:
    first, second = two_gpus.devices
    assert two_gpus.given(0) == (b"", first, True)
    assert two_gpus.given(1) == (b"second g", second, True)
    assert two_gpus.given(0) == (b"", first, True)
    two_gpus.session.close("")
    assert sorted(two_gpus.freed, key=two_gpus.devices.index) == [first, first, second]


def test_a_tensor_on_a_gpu_that_the_peer_does_not_use_is_copied_to_one_that_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_CUDA_DEVICES", "2")
    one = TwoGpus(tmp_path, shared=(b"first gp",))
    assert one.given(1) == (b"", one.devices[0], True)
    one.session.close("")
