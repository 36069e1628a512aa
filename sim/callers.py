"""Callers of every kind at the nodes of a run, so that a swarm of faults meets requests.

Requests are streamed and whole, short and long, with one hop and two; callers are patient and not. Two nodes in three serve one
model with few slots and a short queue, so that requests also wait, are refused and move on. What is promised to callers is looked
at all the while.

Source: docs/simulation.md, "Requests".
"""

from collections.abc import Iterable

from protocol.inference import Tensor
from protocol.multiaddr import Multiaddr
from protocol.node import NodeConfig
from sim.engines import EngineConfig
from sim.fabric.nodes import Fabrics
from sim.fabric.tensors import DEVICE
from sim.process import Process
from sim.promises import Promises
from sim.requests import Requests
from sim.world import World

MODEL = EngineConfig("m", slots=2, waiting_max=2, first_token_s=0.3, tokens_per_s=40.0)
"""Slow and narrow: at a few requests a second and node every queue fills now and then."""

TOKENS_MAX = 40
"""Longest answer in tokens: 1.3 s of work."""

TENSORS_SHARE, DEVICE_SHARE = 0.5, 0.4
"""Share of the requests that have a tensor, and of those whose tensor lies on a GPU, unitless: all kinds of fabric are used."""

TENSOR_BYTES_MAX = 40_000
"""Largest tensor in bytes: it takes a fabric whatever its size here, and the stream has to bring it in milliseconds."""

DEADLINES_S = (0.5, 4.0)
"""Shortest and longest deadline in seconds: about as long as an answer alone, and as several that wait."""

PATIENCE_S = 1.0
"""Seconds after which one caller in four leaves: amid most answers."""


class Callers:
    """Requests for one run; `begin` lets them come."""

    def __init__(self, world: World) -> None:
        self.requests = Requests(world)
        self.promises = Promises(self.requests)
        self.fabrics = Fabrics(world, self.requests.streams)
        self._world = world

    def add(self, *, bootstrap: Iterable[Multiaddr], at: float, config: NodeConfig | None = None) -> Process:
        """Makes a process of the run, with an engine or without."""
        engines = (MODEL,) if len(self._world.processes) % 3 else ()
        return self.requests.add(engines, bootstrap=bootstrap, at=at, config=config)

    def begin(self, rate_per_s: float, from_s: float, until_s: float) -> None:
        """Lets requests come as a Poisson process, each at some process that runs."""
        self._world.at(from_s, lambda: self.requests.arrive("callers", rate_per_s, until_s, self._ask))

    def _ask(self) -> None:
        luck = self._world.streams.of("callers")
        working = self._world.working()
        if not working:
            return
        tensors = self._tensors()
        self.requests.ask(
            luck.choice(working),
            MODEL.model,
            luck.randint(1, TOKENS_MAX),
            deadline_s=luck.uniform(*DEADLINES_S),
            hops=luck.choice((1, 2)),
            stream=luck.random() < 0.7,
            patience_s=PATIENCE_S if luck.random() < 0.25 else None,
            tensors=tensors,
        )

    def _tensors(self) -> tuple[Tensor, ...]:
        """What goes with a request, if anything: on the host or on a GPU."""
        luck = self._world.streams.of("tensors of callers")
        if luck.random() >= TENSORS_SHARE:
            return ()
        data = luck.randbytes(luck.randint(1, TENSOR_BYTES_MAX))
        return (Tensor(DEVICE if luck.random() < DEVICE_SHARE else "x", "u1", (len(data),), memoryview(data)),)
