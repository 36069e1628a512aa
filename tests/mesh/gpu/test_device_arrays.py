"""Arrays on a GPU: taken from other libraries and handed on to them, whatever they say of themselves."""

import ctypes
import gc
import weakref

import numpy as np
import pytest
import trio
from emulated_gpu import GPUS, blocks, emulated, fail, gpu, hold
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.fabric.gpu import (
    Cuda,
    CudaError,
    DeviceArray,
    DeviceArrayError,
    Pool,
    all_ready,
    array_of,
    device_array,
    device_tensor,
    is_on_device,
    to_device,
)
from mesh.fabric.gpu import dlpack as capsules
from mesh.fabric.gpu.dlpack import CPU, CUDA, DIMENSIONS_MAX, make_capsule, take_capsule
from mesh.fabric.gpu.pool import GRAIN_BYTES, block_size
from protocol.inference import Tensor, are_on_host, on_host

DTYPES = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


@pytest.fixture(params=GPUS)
def cuda(request: pytest.FixtureRequest) -> Cuda:
    return gpu(request.param)


def made(cuda: Cuda, array: np.ndarray, pool: Pool | None = None) -> DeviceArray:
    tensor = Tensor("x", array.dtype.str[1:], array.shape, memoryview(array.tobytes()))
    return to_device(tensor, cuda.devices[0], pool or Pool(cuda.devices[0]))


def back(array: DeviceArray) -> np.ndarray:
    return np.frombuffer(array.to_host(), array.dtype).reshape(array.shape)


class ByCapsule:
    """An array of another library, which passes it by DLPack of the given version."""

    def __init__(self, array: DeviceArray, *, versioned: bool = True, device: tuple[int, int] | None = None) -> None:
        self.array, self.versioned, self.device = array, versioned, device
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device or self.array.__dlpack_device__()

    def __dlpack__(self, **named):
        if "max_version" in named and not self.versioned:
            raise TypeError("an unexpected keyword argument 'max_version'")
        self.streams.append(named["stream"])
        device = self.device or self.array.__dlpack_device__()
        array = self.array
        return make_capsule(device, array.address, array.dtype, array.shape, self, versioned=self.versioned)


class ByInterface:
    """One that passes it by CUDA's array interface."""

    def __init__(self, **told) -> None:
        self.__cuda_array_interface__ = told


def interface(array: DeviceArray, **other) -> ByInterface:
    return ByInterface(**{**array.__cuda_array_interface__, **other})


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_is_taken_as_it_lies_and_handed_on(cuda: Cuda, dtype: str) -> None:
    source = np.arange(24).reshape(2, 3, 4).astype(dtype)
    array = made(cuda, source)
    for foreign in (ByCapsule(array), ByCapsule(array, versioned=False), interface(array)):
        assert is_on_device(foreign)
        taken = device_array(foreign, cuda)
        assert (taken.address, taken.dtype, taken.shape) == (array.address, dtype, (2, 3, 4)), "nothing is copied"
        assert (back(taken) == source).all()
    again = device_array(ByCapsule(taken), cuda)
    assert again.address == array.address


def test_the_owner_lives_as_long_as_the_array(cuda: Cuda) -> None:
    array = made(cuda, np.ones(5, "f4"))
    for versioned in (True, False):
        foreign = ByCapsule(array, versioned=versioned)
        gone = weakref.ref(foreign)
        taken = device_array(foreign, cuda)
        del foreign
        gc.collect()
        assert gone() is not None
        del taken
        gc.collect()
        assert gone() is None
    foreign = interface(array)
    gone = weakref.ref(foreign)
    taken = device_array(foreign, cuda)
    del foreign
    gc.collect()
    assert gone() is not None
    del taken
    gc.collect()
    assert gone() is None


def test_the_producer_is_asked_to_have_it_ready_for_everybody(cuda: Cuda) -> None:
    foreign = ByCapsule(made(cuda, np.ones(5, "f4")))
    device_array(foreign, cuda)
    assert foreign.streams == [1]


async def test_what_is_still_computed_is_waited_for() -> None:
    cuda = emulated()
    array = made(cuda, np.ones(5, "f4"))
    hold(on=True)
    tensors = [device_tensor("x", ByCapsule(array), cuda), device_tensor("y", interface(array, stream=2), cuda)]
    try:
        with trio.move_on_after(0.05) as waiting:
            await all_ready(tensors)
        assert waiting.cancelled_caught
    finally:
        hold(on=False)
    with trio.fail_after(5):
        await all_ready(tensors)
    assert (back(array_of(tensors[0])) == 1).all()


async def test_what_failed_to_be_computed_is_told() -> None:
    cuda = emulated()
    tensor = device_tensor("x", ByCapsule(made(cuda, np.ones(5, "f4"))), cuda)
    fail("cuEventQuery", 700)
    with pytest.raises(CudaError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        await all_ready([tensor])


def test_a_copy_to_the_host_is_counted(cuda: Cuda) -> None:
    device = cuda.devices[0]
    before = device.host_copies, device.host_copied_bytes
    tensor = device_tensor("x", made(cuda, np.arange(100, dtype="i4")))
    assert not are_on_host([tensor])
    assert tensor.size_bytes == 400
    (here,) = on_host([tensor])
    assert (here.name, here.dtype, here.shape, here.device) == ("x", "i4", (100,), None)
    assert bytes(here.data) == np.arange(100, dtype="i4").tobytes()
    assert here.data.readonly
    assert (device.host_copies, device.host_copied_bytes) == (before[0] + 1, before[1] + 400)
    assert on_host([here]) == (here,)
    assert device.host_copies == before[0] + 1


def test_an_array_without_elements_is_one(cuda: Cuda) -> None:
    array = made(cuda, np.zeros((0, 3), "f4"))
    for foreign in (ByCapsule(array), interface(array)):
        taken = device_array(foreign, cuda)
        assert (taken.shape, bytes(taken.to_host())) == ((0, 3), b"")


def test_an_array_with_gaps_is_refused(cuda: Cuda) -> None:
    array = made(cuda, np.ones((4, 6), "f4"))
    with pytest.raises(DeviceArrayError, match=r"gaps \(strides \(4, 16\)\): make it contiguous first"):
        device_array(interface(array, strides=(4, 16)), cuda)
    assert device_array(interface(array, strides=(24, 4)), cuda).address == array.address


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"typestr": ">f4"}, "data type"),
        ({"typestr": "<c8"}, "data type"),
        ({"typestr": "<V2"}, "data type"),
        ({"typestr": ""}, "data type"),
        ({"shape": [4]}, "is none"),
        ({"shape": (-1,)}, "shape"),
        ({"shape": (2**33,)}, "shape"),
        ({"shape": (1,) * 9}, "shape"),
        ({"shape": (2**20, 2**20, 2**20)}, "larger than any"),
        ({"shape": (2**20,)}, "reaches out of its memory"),
        ({"data": (16, False)}, "no memory of a GPU's own"),
        ({"data": (-8, False)}, "no memory of a GPU's own"),
        ({"data": None}, "is none"),
        ({"data": ("a", False)}, "is none"),
        ({"strides": (4, 4)}, "strides"),
        ({"strides": "abc"}, "strides"),
        ({"mask": object()}, "mask"),
        ({"stream": 0}, "stream"),
        ({"stream": "x"}, "stream"),
    ],
)
def test_what_an_interface_says_is_not_believed(told: dict, said: str) -> None:
    cuda = emulated()
    array = made(cuda, np.ones(4, "f4"))
    with pytest.raises(DeviceArrayError, match=said):
        device_array(interface(array, **told), cuda)


def test_what_is_no_array_on_a_gpu_is_refused() -> None:
    cuda = emulated()
    assert not is_on_device(np.ones(3))
    assert not is_on_device(object())
    with pytest.raises(DeviceArrayError, match="neither __dlpack__ nor"):
        device_array(object(), cuda)
    with pytest.raises(DeviceArrayError, match="device of type 1"):
        device_array(np.ones(3), cuda)
    array = made(cuda, np.ones(3))
    with pytest.raises(DeviceArrayError, match="said to be on GPU 1 and lies on GPU 0"):
        device_array(ByCapsule(array, device=(CUDA, 1)), cuda)
    host = np.ones(3)
    there = DeviceArray(cuda.devices[0], host.ctypes.data, "f8", (3,), host)
    with pytest.raises(DeviceArrayError, match="no memory of a GPU's own"):
        device_array(ByCapsule(there), cuda)
    with pytest.raises(RuntimeError, match="Unsupported device"):
        np.from_dlpack(array)


# Capsules, with NumPy at the other end, whose arrays lie on the host


@pytest.mark.parametrize("dtype", DTYPES)
def test_capsules_of_numpy_are_read(dtype: str) -> None:
    source = np.arange(6).reshape(2, 3).astype(dtype)
    for options in ({}, {"max_version": (1, 1)}):
        told = take_capsule(source.__dlpack__(**options))
        assert (told.device_type, told.device_id, told.address) == (CPU, 0, source.ctypes.data)
        assert (told.dtype, told.shape) == (dtype, (2, 3))


def test_numpy_is_told_once_that_its_array_is_not_needed() -> None:
    for options in ({}, {"max_version": (1, 1)}):
        source = np.ones(1000)
        gone = weakref.ref(source)
        capsule = source.__dlpack__(**options)
        told = take_capsule(capsule)
        del source, capsule
        gc.collect()
        assert gone() is not None
        del told
        gc.collect()
        assert gone() is None


def test_numpy_reads_our_capsules() -> None:
    class Ours:
        def __dlpack_device__(self):
            return (CPU, 0)

        def __dlpack__(self, **named):
            versioned = named.get("max_version") is not None
            return make_capsule((CPU, 0), data.ctypes.data, "i2", (3, 4), self, versioned=versioned)

    data = np.arange(12, dtype="i2")
    ours = Ours()
    gone = weakref.ref(ours)
    there = np.from_dlpack(ours)
    assert (there == data.reshape(3, 4)).all()
    assert there.ctypes.data == data.ctypes.data
    del ours
    gc.collect()
    assert gone() is not None
    del there
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("versioned", [True, False])
def test_a_capsule_that_nobody_takes_lets_go(versioned: bool) -> None:
    class Owner:
        pass

    owner, before = Owner(), len(capsules._alive)
    gone = weakref.ref(owner)
    capsule = make_capsule((CPU, 0), 4096, "f4", (1,), owner, versioned=versioned)
    del owner
    assert len(capsules._alive) == before + 1
    capsules._sweep()
    assert gone() is not None, "somebody may still take it"
    del capsule
    capsules._sweep()
    assert gone() is None
    assert len(capsules._alive) == before


def test_a_capsule_is_taken_once() -> None:
    capsule = np.ones(3).__dlpack__()
    take_capsule(capsule)
    with pytest.raises(DeviceArrayError, match="taken already"):
        take_capsule(capsule)
    with pytest.raises(DeviceArrayError, match="no DLPack capsule"):
        take_capsule("capsule")


@given(
    ndim=st.integers(-(2**31), 2**31 - 1) | st.integers(0, DIMENSIONS_MAX + 1),
    sizes=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), min_size=9, max_size=9),
    strides=st.none() | st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 8), min_size=9, max_size=9),
    dtype=st.tuples(st.integers(0, 255) | st.integers(0, 7), st.sampled_from([0, 1, 8, 16, 32, 64, 255]), st.integers(0, 2))
    | st.just((2, 32, 1)),
    offset=st.integers(0, 2**64 - 1) | st.just(0),
    has_shape=st.booleans(),
    versioned=st.booleans(),
)
@example(ndim=2, sizes=[3] * 9, strides=None, dtype=(2, 32, 1), offset=0, has_shape=False, versioned=True)
@example(ndim=2, sizes=[3] * 9, strides=None, dtype=(2, 32, 1), offset=2**63, has_shape=True, versioned=False)
@example(ndim=2, sizes=[2**31] * 9, strides=None, dtype=(2, 32, 1), offset=0, has_shape=True, versioned=False)
def test_whatever_a_capsule_says_is_within_bounds_or_refused(ndim, sizes, strides, dtype, offset, has_shape, versioned) -> None:
    deleted = []
    deleter = capsules._DELETER(deleted.append)
    shape = (ctypes.c_int64 * 9)(*sizes)
    steps = None if strides is None else (ctypes.c_int64 * 9)(*strides)
    pointer = ctypes.POINTER(ctypes.c_int64)
    tensor = capsules._Tensor(
        4096, capsules._Device(CUDA, 0), ndim, capsules._DataType(*dtype),
        ctypes.cast(shape, pointer) if has_shape else None, None if steps is None else ctypes.cast(steps, pointer), offset,
    )  # fmt: skip
    as_pointer = ctypes.cast(deleter, ctypes.c_void_p)
    managed = capsules._Versioned(1, 7, None, as_pointer, 0, tensor) if versioned else capsules._Managed(tensor, None, as_pointer)
    name = capsules._VERSIONED if versioned else capsules._OLD
    capsule = capsules._new(ctypes.addressof(managed), name, None)
    try:
        told = take_capsule(capsule)
    except DeviceArrayError:
        pass
    else:
        assert len(told.shape) == ndim <= DIMENSIONS_MAX
        assert told.dtype in DTYPES
        assert all(0 <= size < 2**32 for size in told.shape)
        assert np.prod([*told.shape, int(told.dtype[1:])], dtype=object) <= capsules.BYTES_MAX
        assert deleted == []
        del told
    gc.collect()
    assert deleted == [ctypes.addressof(managed)]


# The pool


def test_memory_is_used_again_once_nobody_has_it() -> None:
    device = emulated().devices[0]
    pool, before = Pool(device), blocks(opened=False)
    first = pool.take(1000)
    address = first.address
    second = pool.take(1000)
    assert second.address != address, "somebody has the first"
    del first
    assert pool.take(1000).address == address
    assert blocks(opened=False) == before + 2
    del second
    pool._idle_bytes_max = 0
    pool.trim()
    assert blocks(opened=False) == before


def test_a_block_that_is_used_again_is_waited_for() -> None:
    pool = Pool(emulated().devices[0])
    pool.take(1)
    fail("cuCtxSynchronize", 700)
    with pytest.raises(CudaError, match="cuCtxSynchronize"):
        pool.take(1)


@given(st.integers(1, 2**40))
def test_blocks_are_whole_pages_and_little_is_wasted(size: int) -> None:
    block = block_size(size)
    assert block >= size
    assert block % GRAIN_BYTES == 0
    assert block - size < max(GRAIN_BYTES, size / 4)
    assert block_size(block) == block


def test_there_is_no_end_of_blocks_without_memory() -> None:
    device = emulated().devices[0]
    pool = Pool(device)
    with pytest.raises(CudaError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        pool.take(device.memory_bytes * 4)
    assert pool.n_blocks == 0
