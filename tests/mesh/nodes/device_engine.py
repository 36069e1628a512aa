"""Engines on a GPU: one that takes tensors where they lie and answers from there, and one that takes them on the host alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mesh.engines.base import Slots, SlotsConfig, Work
from mesh.fabric.gpu import Cuda, DeviceArray, Pool, array_of, device_tensor, to_device
from protocol.inference import Feature, Finished, InferenceRequest, Reply, TensorsReady
from protocol.load import ModelLoad
from protocol.records import ModelOffer

MODEL = "on-device"


class DeviceEngine:
    """Brings what it is asked to its device, copies it there, and answers with the copy; remembers where everything lay."""

    kind = "device"

    def __init__(self, cuda: Cuda, *, takes_device: bool = True, answers_on_device: bool = True) -> None:
        self.takes_device, self.answers_on_device = takes_device, answers_on_device
        self.device = cuda.devices[0]
        self.pool = Pool(self.device)
        self.slots = Slots(MODEL, SlotsConfig(4, 4))
        self.lay: list[str] = []

    async def start(self) -> None:
        pass

    async def watch(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def offers(self) -> tuple[ModelOffer, ...]:
        return (ModelOffer(MODEL, frozenset({Feature.TENSORS}), engine=self.kind),)

    def load(self) -> tuple[ModelLoad, ...]:
        return (self.slots.load(),)

    @asynccontextmanager
    async def run(self, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Reply]]:
        async with self.slots.run(request, lambda: self._work(request)) as replies:
            yield replies

    async def _work(self, request: InferenceRequest) -> Work:
        self.lay += ["host" if array_of(tensor) is None else "device" for tensor in request.tensors]
        tensors = request.tensors
        if self.answers_on_device:
            tensors = [device_tensor(tensor.name, self._copied(tensor)) for tensor in request.tensors]
        yield TensorsReady(tuple(tensors))
        yield Finished()

    def _copied(self, tensor):
        source = to_device(tensor, self.device, self.pool)
        block = self.pool.take(max(1, source.size_bytes))
        self.device.copy([(block.address, source.address, source.size_bytes)])
        return DeviceArray(self.device, block.address, source.dtype, source.shape, block)
