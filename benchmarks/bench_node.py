"""A node whose engines cost nothing: `isochrone up` with a sink for tensors and two sources of tokens.

What is measured with them is the mesh and no engine. "sink" answers any tensors with eight bytes. "ticker" makes tokens in steps,
one for every answer in the making and all at the same moment, as an engine does that decodes in batches. "rush" makes them as
fast as they are taken.
"""

import argparse
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import trio

from mesh.config import NodeConfig, Ready, resolve
from mesh.engines.base import Slots, SlotsConfig, Work
from mesh.engines.body import read_text_body
from mesh.service import Service
from mesh.store import Store
from mesh.telemetry import Telemetry, make_logger
from mesh.up import run_up
from protocol.inference import Feature, Finished, InferenceRequest, Reply, Tensor, TensorsReady, TextDelta, Usage
from protocol.load import ModelLoad
from protocol.records import ModelOffer

STEP_S = 0.02
"""Seconds between two steps of "ticker": 50 tokens a second for each answer, the pace of a usual model on a good GPU."""

TOKEN = " token"
"""Every token."""

SINK, TICKER, RUSH = "sink", "ticker", "rush"
PROGRAM = ("-m", "benchmarks.bench_node")
"""What Python runs for such a node."""


class Sink:
    """Takes tensors and says that it has them."""

    kind = "bench"

    def __init__(self) -> None:
        self._slots = Slots(SINK, SlotsConfig(slots_max=64, waiting_max=256))

    async def start(self) -> None:
        """Nothing has to be loaded."""

    async def watch(self) -> None:
        """Nothing outside changes."""

    async def aclose(self) -> None:
        """Nothing is held."""

    def offers(self) -> tuple[ModelOffer, ...]:
        """The one model."""
        return (ModelOffer(SINK, frozenset({Feature.TENSORS}), engine=self.kind),)

    def load(self) -> tuple[ModelLoad, ...]:
        """How busy it is."""
        return (self._slots.load(),)

    def run(self, request: InferenceRequest) -> AbstractAsyncContextManager[AsyncIterator[Reply]]:
        """Answer with how many bytes came."""
        return self._slots.run(request, lambda: self._work(request))

    async def _work(self, request: InferenceRequest) -> Work:
        taken = sum(tensor.data.nbytes for tensor in request.tensors)
        await trio.lowlevel.checkpoint()
        yield TensorsReady((Tensor("taken", "u8", (1,), memoryview(taken.to_bytes(8, "little"))),))
        yield Finished()


class Ticker:
    """Makes tokens, as many as are asked for."""

    kind = "bench"

    def __init__(self, model: str, step_s: float) -> None:
        """Names the model, and how long a step takes; 0 makes none."""
        self._model, self._step_s = model, step_s
        self._slots = Slots(model, SlotsConfig(slots_max=128, waiting_max=256))
        self._step = trio.Event()

    async def start(self) -> None:
        """Nothing has to be loaded."""

    async def watch(self) -> None:
        """Lets one step follow the other."""
        due_s = trio.current_time()
        while self._step_s:
            due_s = max(due_s + self._step_s, trio.current_time())
            await trio.sleep_until(due_s)
            step, self._step = self._step, trio.Event()
            step.set()

    async def aclose(self) -> None:
        """Nothing is held."""

    def offers(self) -> tuple[ModelOffer, ...]:
        """The one model."""
        return (ModelOffer(self._model, frozenset({Feature.COMPLETIONS}), engine=self.kind),)

    def load(self) -> tuple[ModelLoad, ...]:
        """How busy it is."""
        return (self._slots.load(),)

    def run(self, request: InferenceRequest) -> AbstractAsyncContextManager[AsyncIterator[Reply]]:
        """Answer with tokens."""
        return self._slots.run(request, lambda: self._work(request))

    async def _work(self, request: InferenceRequest) -> Work:
        count = read_text_body(request.feature, request.body).tokens_max or 1
        for _ in range(count):
            if self._step_s:
                await self._step.wait()
            else:
                await trio.lowlevel.checkpoint()
            yield TextDelta(TOKEN)
        yield Finished(("length",), Usage(1, count))


async def serve(config: NodeConfig, ready: Callable[[Ready], None], shutdown: trio.Event) -> None:
    """Runs the node."""
    telemetry = Telemetry(make_logger("console", config.log_level))
    engines = [Sink(), Ticker(TICKER, STEP_S), Ticker(RUSH, 0.0)]
    with Store(config.state_dir) as store:
        await Service(config, store, store.identity(), engines, telemetry).run(ready, shutdown)


def main() -> int:
    """Runs the node until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("up", choices=["up"])
    for name in ("json", "open"):
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("state-dir", "gateway", "quic-engine", "fabric"):
        parser.add_argument(f"--{name}")
    for name in ("listen", "bootstrap"):
        parser.add_argument(f"--{name}", action="append")
    given = vars(parser.parse_args())
    as_json = given.pop("json")
    del given["up"]
    return run_up(resolve(given, os.environ), serve, as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
