"""Memory of GPUs for network cards, over the emulated GPU; what cards do with it is tried in tests/guest/test_guest_gpus.py."""

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_gpu import GPUS, blocks, environment, fail, gpu, library

from mesh.fabric.gpu import Cuda, CudaError
from mesh.fabric.gpu.driver import LIBRARY
from mesh.fabric.rdma.direct import Direct, show
from mesh.fabric.rdma.memory import Pool, Registered, Use, device_class
from mesh.fabric.rdma.ports import CLASS
from mesh.fabric.rdma.trial import try_cards
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Place

SIZE = 2 << 20


@pytest.fixture(params=GPUS)
def cuda(request: pytest.FixtureRequest) -> Cuda:
    return gpu(request.param)


@pytest.fixture
def direct(cuda: Cuda, request: pytest.FixtureRequest) -> Direct:
    found = Direct(str(library()) if "emulated" in request.node.name else LIBRARY)
    found.find()
    if found.absent:
        pytest.skip(found.absent)
    return found


def test_memory_that_a_peer_is_to_write_to_holds_zeros(direct: Direct) -> None:
    (device, *_) = direct.devices
    address = device.allocate(SIZE)
    device.write(address, memoryview(b"\x77" * SIZE))
    device.free(address)
    memory = direct.make(device, SIZE)
    data = bytearray(SIZE)
    device.read(memory.address, memoryview(data))
    assert data == bytes(SIZE)


def test_memory_is_freed_when_nobody_has_it_and_not_before(direct: Direct) -> None:
    (device, *_) = direct.devices
    memory, over = direct.make(device, SIZE), []
    descriptor = memory.descriptor
    shown = show(memory, (Place("x", "f4", (4, 4), 64, 64), Place("y", "u1", (3,), 128, 3)), lambda: over.append(True))
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in shown] == [("x", "f4", (4, 4)), ("y", "u1", (3,))]
    assert [tensor.device.address - memory.address for tensor in shown] == [64, 128]
    del memory
    shown = shown[1:]
    gc.collect()
    direct.sweep()
    assert over == []
    assert device.range_of(shown[0].device.address)[1] == SIZE
    os.fstat(descriptor)
    del shown
    gc.collect()
    assert over == [True]
    assert direct.figures()["held_bytes"] == SIZE, "until it is swept"
    direct.sweep()
    assert direct.figures()["held_bytes"] == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_peers_have_so_much_of_a_gpu_and_no_more(direct: Direct) -> None:
    (device, *_) = direct.devices
    with pytest.raises(RemoteProtocolError) as caught:
        direct.make(device, device.memory_bytes // 2)
    assert caught.value.code is ErrorCode.OVERLOADED


@pytest.mark.parametrize("function", ["cuMemAlloc", "cuMemsetD8", "cuMemGetHandleForAddressRange"])
def test_what_fails_half_way_leaves_nothing_behind(function: str) -> None:
    direct = Direct(str(library()))
    direct.find()
    gc.collect()
    direct.sweep()
    before = blocks(opened=False)
    fail(function, 2)
    with pytest.raises(CudaError):
        direct.make(direct.devices[0], SIZE)
    assert (blocks(opened=False), direct.figures()["held_bytes"]) == (before, 0)


def test_a_card_that_does_not_take_a_gpus_memory_is_not_tried_again(direct: Direct) -> None:
    (device, *_) = direct.devices
    assert direct.works("mlx5_0", device)
    direct.told("mlx5_0", device, OSError(errno.ENOMEM, "no more"))
    assert direct.works("mlx5_0", device), "that says nothing of the card"
    direct.told("mlx5_0", device, OSError(errno.EOPNOTSUPP, "Operation not supported"))
    assert not direct.works("mlx5_0", device)
    assert direct.works("mlx5_1", device)
    direct.told("mlx5_1", device, None)
    assert direct.figures()["cards"] == {
        f"mlx5_0 and the GPU at {device.bus_id}": "not possible: Operation not supported",
        f"mlx5_1 and the GPU at {device.bus_id}": "used",
    }


def test_regions_on_a_gpu_are_apart_from_those_on_the_host(direct: Direct) -> None:
    (device, *_) = direct.devices
    pool = Pool(0)
    own = Registered(1, None, None, None, None, direct.make(device, device_class(5000)))
    pool.regions[1] = own
    assert own.size_bytes == SIZE
    assert pool.find(64) is None
    assert pool.find(64, device) is own
    own.use = Use.VIEWED
    assert pool.find(64, device) is None
    own.use = Use.FREE
    assert pool.surplus() == [own]
    own.close()
    assert own.gpu is None


@pytest.mark.parametrize(
    ("without", "said"),
    [("EMULATED_CUDA_NO_DMA_BUF", "no GPU here gives its memory out"), ("LD_LIBRARY_PATH", "install NVIDIA's driver"), ("", "")],
)
def test_why_no_card_reaches_a_gpu_is_said(without: str, said: str) -> None:
    env = environment("emulated") | {"PYTHONPATH": str(Path(__file__).parents[3])}
    if without == "LD_LIBRARY_PATH":
        del env[without]
        if Path("/usr/lib/x86_64-linux-gnu/libcuda.so.1").exists():
            pytest.skip("there is a driver here")
    elif without:
        env[without] = "1"
    script = "from mesh.fabric.rdma.direct import Direct\nd = Direct()\nd.find()\nprint(d.absent)"
    found = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert said in found.stdout if said else found.stdout == "\n"


def test_where_there_is_no_rdma_device_nothing_is_tried(tmp_path: Path) -> None:
    assert try_cards(tmp_path) == ("this host has no RDMA device", ())
    (tmp_path / CLASS / "mlx5_0").mkdir(parents=True)
    absent, tried = try_cards(tmp_path, library="no-such-driver.so")
    assert (absent.partition(" ")[0], tried) == ("no-such-driver.so", ())
