"""The binding to CUDA's driver: on the emulated GPU here, and the same on a real one by `make test-gpu`."""

import errno
import os
import re
import subprocess
import sys
import threading

import pytest
from emulated_gpu import GPUS, blocks, emulated, environment, fail, gpu, hold, library

from mesh.fabric.gpu.driver import TOKEN_BYTES, UUID_BYTES, Allocation, Cuda, CudaError, GpuAbsentError, driver

SIZE = 2 << 20


@pytest.fixture(params=GPUS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def cuda(kind: str) -> Cuda:
    return gpu(kind)


def read(device, address: int, size: int) -> bytes:
    data = bytearray(size)
    device.read(address, memoryview(data))
    return bytes(data)


def test_a_gpu_says_what_it_is(cuda: Cuda) -> None:
    device = cuda.devices[0]
    assert re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]", device.bus_id)
    assert len(device.uuid) == UUID_BYTES
    assert any(device.uuid)
    assert device.memory_bytes > SIZE
    assert device.name
    assert re.fullmatch(r"\d+\.\d", cuda.version)


def test_bytes_come_back_from_the_device_as_they_went(cuda: Cuda) -> None:
    device, data = cuda.devices[0], os.urandom(SIZE - 12_345)
    here, there = device.allocate(SIZE), device.allocate(SIZE)
    try:
        device.write(here, memoryview(data))
        device.copy([(there + 64, here, 1_000_000), (there + 64 + 1_000_000, here + 1_000_000, len(data) - 1_000_000)])
        assert read(device, there + 64, len(data)) == data
        assert device.range_of(there + 999) == (there, SIZE)
        assert cuda.allocation_of(there + 5) == Allocation(0, there, SIZE)
    finally:
        device.free(here)
        device.free(there)


def test_memory_of_the_host_is_of_no_device(cuda: Cuda) -> None:
    data = memoryview(bytearray(64))
    for address in (id(data), 0, -1, 2**64, 2**70):
        assert cuda.allocation_of(address) is None


def test_a_failure_has_the_drivers_own_name(cuda: Cuda) -> None:
    device = cuda.devices[0]
    with pytest.raises(CudaError, match=r"^\[Errno 5\] cuMemFree_v2: CUDA_ERROR_INVALID_VALUE \(.+\)$") as caught:
        device.free(0x1234)
    assert (caught.value.function, caught.value.name, caught.value.errno) == (
        "cuMemFree_v2",
        "CUDA_ERROR_INVALID_VALUE",
        errno.EIO,
    )
    with pytest.raises(CudaError) as caught:
        device.allocate(device.memory_bytes * 2)
    assert (caught.value.name, caught.value.errno) == ("CUDA_ERROR_OUT_OF_MEMORY", errno.ENOMEM)
    with pytest.raises(CudaError):
        device.open(os.urandom(TOKEN_BYTES))


def test_every_thread_may_use_a_device(cuda: Cuda) -> None:
    device = cuda.devices[0]
    found = []

    def use() -> None:
        address = device.allocate(SIZE)
        device.write(address, memoryview(b"abc"))
        found.append(read(device, address, 3))
        device.free(address)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"abc"] * 4


def test_work_that_was_queued_is_waited_for(cuda: Cuda) -> None:
    device = cuda.devices[0]
    mark = device.mark()
    mark.wait()
    assert mark.is_reached()
    device.wait()
    device.wait(1)


def test_a_mark_is_reached_only_when_the_work_is_done() -> None:
    device = emulated().devices[0]
    hold(on=True)
    mark = device.mark()
    assert not mark.is_reached()
    hold(on=False)
    assert mark.is_reached()


def test_work_that_has_failed_is_told() -> None:
    mark = emulated().devices[0].mark()
    fail("cuEventQuery", 700)
    with pytest.raises(CudaError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        mark.is_reached()


CHILD = """
import sys
from mesh.fabric.gpu.driver import driver
device = driver().devices[0]
address = device.open(bytes.fromhex(sys.argv[1]))
base, size = device.range_of(address)
data = bytearray(16)
device.read(address, memoryview(data))
device.write(address + 16, memoryview(data[::-1]))
device.close(address)
print(base == address, size, bytes(data).hex())
"""


def test_another_process_opens_memory_by_its_token(cuda: Cuda, kind: str) -> None:
    device, told = cuda.devices[0], os.urandom(16)
    address = device.allocate(SIZE)
    try:
        device.write(address, memoryview(told))
        token = device.token(address)
        command = [sys.executable, "-c", CHILD, token.hex()]
        said = subprocess.run(command, env=environment(kind), capture_output=True, text=True, timeout=60, check=True)
        assert said.stdout.split() == ["True", str(SIZE), told.hex()]
        assert read(device, address + 16, 16) == told[::-1], "whoever opens memory can write to it"
        with pytest.raises(CudaError):
            device.open(token)  # not in the process that made it
    finally:
        device.free(address)


def test_a_network_card_is_given_a_descriptor_of_memory(cuda: Cuda) -> None:
    device = cuda.devices[0]
    if not device.has_dma_buf:
        pytest.skip("this GPU or its driver has no dma-buf")
    address = device.allocate(SIZE)
    try:
        descriptor = device.dma_buf(address, SIZE)
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
        with pytest.raises(CudaError):
            device.dma_buf(address + 1, SIZE)
    finally:
        device.free(address)


def test_nothing_is_left_behind() -> None:
    device = emulated().devices[0]
    before = blocks(opened=False)
    device.free(device.allocate(SIZE))
    assert blocks(opened=False) == before


def test_without_a_driver_it_is_said(tmp_path) -> None:
    with pytest.raises(GpuAbsentError, match=r"no-such-driver\.so cannot be loaded .*: install NVIDIA's driver"):
        driver("no-such-driver.so")
    other = tmp_path / "libold.so"
    subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", str(other)], check=True)
    with pytest.raises(GpuAbsentError, match="the driver has no cuInit: install one of CUDA 11"):
        driver(str(other))


@pytest.mark.parametrize(("devices", "said"), [("0", "CUDA_ERROR_NO_DEVICE"), ("1", "ok")])
def test_without_a_gpu_it_is_said(devices: str, said: str) -> None:
    script = "from mesh.fabric.gpu.driver import *\ntry: driver(); print('ok')\nexcept GpuAbsentError as error: print(error)"
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment("emulated"), "EMULATED_CUDA_DEVICES": devices},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert said in found.stdout


def test_the_emulated_memory_is_out_of_the_processors_reach() -> None:
    """Code that takes an address of the device for one of the host dies on it, as it would with a real GPU."""
    script = (
        "import ctypes\nfrom mesh.fabric.gpu.driver import driver\naddress = driver().devices[0].allocate(4096)\n"
        "print('allocated', flush=True)\nctypes.string_at(address, 1)"
    )
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, env=environment("emulated"), capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout == "allocated\n"
    assert found.returncode < 0
    assert library().exists()
