"""Inference requests in a world: engines on its processes, callers beside them, and what became of every request.

`Requests` gives every life of a process its dispatcher and takes the streams that peers open. A caller sits at a process as a
client sits at its own node: it asks there, reads everything at once, and may lose patience. The result of each request is kept
as an `Ask`: who answered, after how many attempts, what was predicted and what was measured, and whether the first peer that was
asked was able to answer. A caller whose process dies has lost its node, which no mesh can mend: that is kept as `node_died` and
counts for no promise.

Arrivals are Poisson processes with streams of luck of their own, so that another site's callers do not shift them.

Source: docs/simulation.md, "Requests".
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from protocol import forwarding
from protocol.identity import PeerId
from protocol.inference import Accepted, Failed, Feature, Finished, InferenceRequest, Reply, Tensor
from protocol.multiaddr import Multiaddr
from protocol.node import NodeConfig, Reranked
from sim.asking import Serving
from sim.dispatch import TENSORS, AttemptBegan, AttemptEnded, Dispatcher, Note, Step, Ticket
from sim.engines import EngineConfig, body_of
from sim.fabric.opening import FABRIC
from sim.process import Process
from sim.streams import StreamEnd, Streams
from sim.world import World

LEAVE_CHECK_S = 0.1
"""Seconds between two looks whether a draining process is done: far below any grace period."""

GRACE_S = 5.0
"""Seconds that a draining process gives its requests, unless it is told otherwise: the shell's default."""


@dataclass(eq=False, slots=True)
class Ask:
    """One request of a caller, and what became of it.

    Attributes:
        label: whatever the caller goes by, such as its site.
        process: the caller's own node, and `life` the life of it that was asked.
        first_peer: who was asked first, None when nobody was.
        first_peer_able: whether that one then ran, took work and served the model.
        first_failed: whether the first attempt failed or was given up.
        predicted_s: time to first output as the router predicted it for the one who answered.
        first_s: and as it was.
        tokens: how many tokens have come.
        end: `Finished` or `Failed`, None while under way.
        left: whether the caller has lost patience.
        node_died: whether the caller's node died before the end.
    """

    request: InferenceRequest
    label: str
    process: Process
    life: int
    asked_at: float
    first_peer: PeerId | None = None
    first_peer_able: bool = False
    first_failed: bool = False
    attempts: int = 0
    answered_by: PeerId | None = None
    predicted_s: float | None = None
    first_s: float | None = None
    tokens: int = 0
    ended_at: float | None = None
    end: Finished | Failed | None = None
    left: bool = False
    node_died: bool = False

    @property
    def deadline_at(self) -> float:
        """When the answer is due."""
        return self.asked_at + self.request.deadline_s

    @property
    def answered(self) -> bool:
        """Whether the whole answer has come."""
        return isinstance(self.end, Finished)

    @property
    def over(self) -> bool:
        """Whether nothing more is waited for."""
        return self.end is not None or self.left or self.node_died

    @property
    def answered_at_first(self) -> bool:
        """Whether a qualified living peer was found at the first attempt, and answered."""
        return self.answered and self.attempts == 1 and self.first_peer_able


AskWatcher = Callable[[Ask, Reply | None], None]
"""Who hears of each request when it is asked (None) and of each reply to its caller."""


class Requests:
    """See the module's docstring."""

    def __init__(self, world: World) -> None:
        """Takes over what the world's cores want done with requests."""
        self.world = world
        self.asks: list[Ask] = []
        self.ask_watchers: list[AskWatcher] = []
        self.step_watchers: list[Note] = [self._note_step]
        self._engines: dict[int, tuple[EngineConfig, ...]] = {}
        self._dispatchers: dict[int, Dispatcher] = {}
        self._open: dict[bytes, tuple[Ask, Ticket | None]] = {}
        self.streams = Streams(world, self._accept)
        world.on_forwarding = self._handle_output
        world.life_watchers.append(self._lives)

    # Processes

    def add(
        self,
        engines: tuple[EngineConfig, ...] = (),
        *,
        bootstrap: Iterable[Multiaddr] = (),
        at: float = 0.0,
        config: NodeConfig | None = None,
    ) -> Process:
        """Makes a process with engines that starts at a time; also while the world runs."""
        offers = tuple(engine.offer for engine in engines)
        process = self.world.add(bootstrap=bootstrap, offers=offers, at=at, config=config)
        self._engines[process.index] = engines
        return process

    def dispatcher(self, process: Process) -> Dispatcher:
        """The dispatcher of a running process."""
        return self._dispatchers[process.index]

    def leave(self, process: Process, grace_s: float = GRACE_S) -> None:
        """Lets a process leave as the program does at Ctrl-C: refuse work, tell peers, finish what is under way, say goodbye."""
        if not process.works:
            return
        life, gone_at = process.life, self.world.now + grace_s
        self.dispatcher(process).draining = True
        process.node.drain(self.world.now)
        self.world.settle(process)

        def look() -> None:
            if process.life != life or not process.running:
                return
            if self.dispatcher(process).under_way and self.world.now < gone_at:
                self.world.at(self.world.now + LEAVE_CHECK_S, look)
            else:
                self.world.leave(process)

        self.world.at(self.world.now + LEAVE_CHECK_S, look)

    def is_able(self, process: Process, model: str) -> bool:
        """Whether a process runs, takes work and serves a model."""
        serves = any(engine.model == model for engine in self._engines.get(process.index, ()))
        return serves and process.works and not self.dispatcher(process).draining

    def _lives(self, process: Process) -> None:
        """Gives a started process its dispatcher; tells the callers of one that has ended."""
        if process.running:
            engines = self._engines.get(process.index, ())
            self._dispatchers[process.index] = Dispatcher(self.world, process, engines, self.streams, self._note)
            return
        for request_id in [key for key, (ask, _) in self._open.items() if ask.process is process]:
            ask, _ = self._open.pop(request_id)
            ask.node_died, ask.ended_at = True, self.world.now

    # Callers

    def ask(
        self,
        process: Process,
        model: str,
        tokens: int,
        *,
        deadline_s: float = 30.0,
        output_tokens: int = 0,
        hops: int = 1,
        stream: bool = True,
        patience_s: float | None = None,
        label: str = "",
        tensors: tuple[Tensor, ...] = (),
    ) -> Ask:
        """Asks a question at a running process.

        Args:
            process: the caller's own node.
            model: what is asked.
            tokens: how long the answer will be.
            deadline_s: until when it is wanted.
            output_tokens: the most tokens that the caller says it wants, 0 when it says nothing.
            hops: forwards allowed.
            stream: whether the answer is read as it comes.
            patience_s: after how long the caller leaves, None for never.
            label: kept with the result.
            tensors: what goes with it; the answer has the same bytes, the last one first.
        """
        number = len(self.asks)
        request_id = hashlib.sha256(b"request %d" % number).digest()[:16]
        body = body_of(tokens)
        request = InferenceRequest(
            request_id, Feature.CHAT, model, body, tensors, deadline_s, hops, stream, output_tokens=output_tokens
        )
        ask = Ask(request, label, process, process.life, self.world.now)
        self.asks.append(ask)
        self._tell(ask, None)
        self._open[request_id] = (ask, None)
        # A client's question enters its node as everything does, late where the node is slow or stopped.
        self.world.later(process, 0.0, lambda: self._submit(ask))
        if patience_s is not None:
            self.world.later(process, patience_s, lambda: self._lose_patience(ask))
        return ask

    def arrive(self, name: str, rate_per_s: float, until: float, event: Callable[[], None]) -> None:
        """Lets something happen at the times of a Poisson process, from now until a time.

        Args:
            name: of the stream of luck.
            rate_per_s: events per second in the mean, more than 0.
            until: when it ends.
            event: what happens.
        """
        luck = self.world.streams.of(f"arrivals {name}")

        def due() -> None:
            if self.world.now <= until:
                event()
                self.world.at(self.world.now + luck.expovariate(rate_per_s), due)

        self.world.at(self.world.now + luck.expovariate(rate_per_s), due)

    def _submit(self, ask: Ask) -> None:
        """Hands a question to the caller's node, which counts the deadline from when it takes the question in."""
        key = ask.request.request_id
        if key not in self._open or ask.left:
            return
        ticket = self.dispatcher(ask.process).submit(ask.request, None, partial(self._take, ask))
        self._open[key] = (ask, ticket)

    def _take(self, ask: Ask, reply: Reply) -> None:
        """Reads one reply for the caller."""
        _, ticket = self._open.get(ask.request.request_id, (ask, None))
        self._tell(ask, reply)
        if ticket is not None and not isinstance(reply, Accepted | Failed) and ask.first_s is None:
            ask.first_s = self.world.now - ask.asked_at
            ask.answered_by, ask.predicted_s = ticket.report.chosen, ticket.report.predicted_s
        if isinstance(reply, Finished):
            ask.tokens = reply.usage.completion_tokens
        if isinstance(reply, Finished | Failed) and ask.end is None:
            ask.end, ask.ended_at = reply, self.world.now
            self._open.pop(ask.request.request_id, None)

    def _lose_patience(self, ask: Ask) -> None:
        _, ticket = self._open.pop(ask.request.request_id, (ask, None))
        if not ask.over:
            ask.left, ask.ended_at = True, self.world.now
            if ticket is not None:
                ticket.leave()

    def _tell(self, ask: Ask, reply: Reply | None) -> None:
        for watcher in self.ask_watchers:
            watcher(ask, reply)

    # From the world

    def _accept(self, stream: StreamEnd) -> None:
        """Serves a stream that a peer has opened."""

        def serve(request: InferenceRequest, peer: PeerId, reply: Callable[[Reply], None]) -> Ticket:
            return self.dispatcher(stream.process).submit(request, peer, reply)

        fabrics = self.world.fabrics
        own = None if fabrics is None else fabrics.nodes.get(stream.process.index)
        if stream.name == FABRIC and fabrics is not None:
            fabrics.accept(stream)
        elif stream.name == TENSORS and own is not None:
            end = own.stream(stream, 0.0)

            def serve_filled(request: InferenceRequest, peer: PeerId, reply: Callable[[Reply], None]) -> Ticket:
                return serve(end.asked(request), peer, lambda said: reply(end.answers(said)))

            Serving(self.world, end, serve_filled)
        else:
            Serving(self.world, stream, serve)

    def _handle_output(self, process: Process, output: forwarding.Output | Reranked) -> None:
        dispatcher = self._dispatchers.get(process.index)
        if dispatcher is not None:
            dispatcher.handle_output(output)

    def _note(self, process: Process, step: Step) -> None:
        for watcher in self.step_watchers:
            watcher(process, step)

    def _note_step(self, process: Process, step: Step) -> None:
        """Keeps what an `Ask` tells of its attempts."""
        ask, _ = self._open.get(step.request_id, (None, None))
        if ask is None or ask.process is not process:
            return
        match step:
            case AttemptBegan(peer=peer):
                ask.attempts += 1
                if ask.first_peer is None:
                    ask.first_peer = peer
                    ask.first_peer_able = self.is_able(self.world.by_id[peer], ask.request.model)
            case AttemptEnded():
                ask.first_failed = ask.first_failed or (ask.attempts == 1 and step.failed is not None)
            case _:
                pass


def failure_of(ask: Ask) -> str:
    """Why a request was not answered, for a table."""
    if isinstance(ask.end, Failed):
        return ask.end.code.name.lower().replace("_", " ")
    return "its node died"
