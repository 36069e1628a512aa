"""Tensors on a device through a node: they stay there for who takes them there, and are copied once for who does not."""

import os

import numpy as np
import pytest
from device_engine import MODEL, DeviceEngine
from emulated_gpu import GPUS, emulated, fail, gpu
from mesh_nodes import MeshNode, Start, introduced

from mesh import client
from mesh.engines.echo import EchoEngine
from mesh.fabric.gpu import Cuda, DeviceArray, Pool, array_of, device_tensor, to_device
from protocol.errors import ErrorCode, LocalProtocolError
from protocol.inference import Failed, Feature, Finished, InferenceRequest, Tensor, TensorsReady
from protocol.wire.inference import encode_reply, encode_request


@pytest.fixture(params=GPUS)
def cuda(request: pytest.FixtureRequest) -> Cuda:
    return gpu(request.param)


def on_device(cuda: Cuda, array: np.ndarray) -> DeviceArray:
    device = cuda.devices[0]
    tensor = Tensor("x", array.dtype.str[1:], array.shape, memoryview(array.tobytes()))
    return to_device(tensor, device, Pool(device))


def asking(cuda: Cuda, model: str = MODEL, *, size: int = 1000, **named) -> InferenceRequest:
    tensors = (
        device_tensor("x", on_device(cuda, np.arange(size, dtype="f4"))),
        Tensor("ids", "i8", (3,), memoryview(np.arange(3)).cast("B")),
    )
    return InferenceRequest(os.urandom(16), Feature.TENSORS, model, b"", tensors, deadline_s=20.0, **named)


async def ask(node: MeshNode, request: InferenceRequest) -> TensorsReady:
    async with node.service.dispatcher.submit(request) as answer:
        replies = [reply async for reply in answer]
    assert isinstance(replies[-1], Finished), replies[-1]
    return replies[0]


def copies(cuda: Cuda) -> int:
    return cuda.devices[0].host_copies


def values(tensor: Tensor) -> np.ndarray:
    array = array_of(tensor)
    data = tensor.data if array is None else array.to_host()
    return np.frombuffer(data, tensor.dtype).reshape(tensor.shape)


@pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)
class TestOneNode:
    async def test_an_engine_that_takes_tensors_on_a_device_is_given_them_there(self, start: Start, cuda: Cuda) -> None:
        engine = DeviceEngine(cuda)
        node, before = await start(engine), copies(cuda)
        ready = await ask(node, asking(cuda, takes_device=True))
        assert engine.lay == ["device", "host"]
        assert [array_of(tensor) is not None for tensor in ready.tensors] == [True, True]
        assert copies(cuda) == before
        assert (values(ready.tensors[0]) == np.arange(1000)).all()
        assert (values(ready.tensors[1]) == np.arange(3)).all()

    async def test_an_engine_that_does_not_say_so_gets_one_copy_on_the_host(self, start: Start, cuda: Cuda) -> None:
        engine = DeviceEngine(cuda, takes_device=False, answers_on_device=False)
        node, before = await start(engine), copies(cuda)
        ready = await ask(node, asking(cuda, takes_device=True))
        assert engine.lay == ["host", "host"]
        assert copies(cuda) == before + 1
        assert (values(ready.tensors[0]) == np.arange(1000)).all()

    async def test_who_does_not_take_outputs_on_a_device_gets_them_on_the_host(self, start: Start, cuda: Cuda) -> None:
        node, before = await start(DeviceEngine(cuda)), copies(cuda)
        ready = await ask(node, asking(cuda))
        assert [array_of(tensor) for tensor in ready.tensors] == [None, None]
        assert copies(cuda) == before + 2
        assert (values(ready.tensors[0]) == np.arange(1000)).all()

    async def test_a_receipt_is_of_bytes_on_the_host(self, start: Start, cuda: Cuda) -> None:
        node = await start(DeviceEngine(cuda))
        request = asking(cuda, takes_device=True, receipt=True)
        ready = await ask(node, request)
        assert [array_of(tensor) for tensor in ready.tensors] == [None, None]
        told = node.service.dispatcher.receipt(request.request_id.hex(), content=True)
        assert told is not None
        assert not told.get("fault")

    async def test_a_device_that_fails_fails_the_answer(self, start: Start) -> None:
        cuda = emulated()
        node = await start(DeviceEngine(cuda, takes_device=False))
        fail("cuMemcpyDtoH", 700)
        async with node.service.dispatcher.submit(asking(cuda)) as answer:
            replies = [reply async for reply in answer]
        assert isinstance(replies[-1], Failed)
        assert replies[-1].code is ErrorCode.ENGINE_FAILED

    async def test_what_an_engine_answers_at_once_from_a_device_is_answered(self, start: Start, cuda: Cuda) -> None:
        node = await start(EchoEngine())
        ready = await ask(node, asking(cuda, "echo", takes_device=True))
        assert array_of(ready.tensors[0]) is not None
        assert (values(ready.tensors[0]) == np.arange(1000)).all()

    async def test_a_program_hands_over_arrays_on_a_gpu(self, start: Start, cuda: Cuda) -> None:
        node, before = await start(DeviceEngine(cuda)), copies(cuda)
        async with client.attach(node.ready.client_socket) as mesh:
            answer = await mesh.infer(MODEL, {"x": on_device(cuda, np.arange(6, dtype="i4").reshape(2, 3))})
        assert (answer.tensors["x"] == np.arange(6).reshape(2, 3)).all()
        assert copies(cuda) == before + 2, "to the node's socket, and from the engine"


@pytest.mark.parametrize("n_elements", [1000, 1 << 20])
async def test_between_nodes_without_a_fabric_for_devices_they_are_copied_once(start: Start, cuda: Cuda, n_elements: int) -> None:
    """By the stream, or by shared memory where they are large."""
    engine = DeviceEngine(cuda, takes_device=False, answers_on_device=False)
    b = await start(engine)
    a = await start(join=(b,))
    await introduced(a, b)
    before = copies(cuda)
    ready = await ask(a, asking(cuda, size=n_elements, takes_device=True))
    assert engine.lay == ["host", "host"]
    assert (values(ready.tensors[0]) == np.arange(n_elements, dtype="f4")).all()
    assert copies(cuda) == before + 1


def test_no_message_holds_what_lies_on_a_device(cuda: Cuda) -> None:
    request = asking(cuda)
    with pytest.raises(LocalProtocolError):
        encode_request(request)
    with pytest.raises(LocalProtocolError):
        encode_reply(TensorsReady(tuple(request.tensors)))


@pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)
@pytest.mark.parametrize("named", [{}, {"receipt": True}, {"stream": True}], ids=["", "with a receipt", "in a task of its own"])
async def test_a_device_that_cannot_be_read_fails_the_request_to_a_peer(start: Start, named: dict[str, bool]) -> None:
    cuda = emulated()
    b = await start(DeviceEngine(cuda, takes_device=False))
    a = await start(join=(b,))
    await introduced(a, b)
    fail("cuMemcpyDtoH", 700, 10)
    try:
        async with a.service.dispatcher.submit(asking(cuda, **named)) as answer:
            replies = [reply async for reply in answer.replies()]
    finally:
        fail("cuMemcpyDtoH", 0, 0)
    assert isinstance(replies[-1], Failed)
    assert replies[-1].code is ErrorCode.ENGINE_FAILED
    assert replies[-1].message.startswith("a device cannot be read: ")
    assert a.logged("engine crashed") == []
    assert a.faults() == b.faults() == {}
