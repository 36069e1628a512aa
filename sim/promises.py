"""What is promised to callers, looked at in every simulation that has requests.

I3: a request ends exactly once for its caller, complete or with one error, at the latest 100 ms after its deadline. Nothing is
promised to a caller whose own node died, was stopped or was slow meanwhile, nor to one that has left.

I4: what the caller has of an answer is a prefix of it: token after token, none twice, none missing, and `Finished` comes only
behind all of them; nothing comes after the end.

Of tensors it has all, once, and they are those of its own request (I11).

I10: no node works twice on one request; one that asks others asks each of them once at most, a further one only after it has
declared the attempt before for failed or given up, and none at all once the caller has had any output. That an attempt which was
given up has not run is not promised: whoever gives up cancels, and the word may come late.

Source: the invariants of docs/simulation.md.
"""

from dataclasses import dataclass, field

from protocol.identity import PeerId
from protocol.inference import Accepted, Failed, Finished, Reply, Tensor, TensorsReady, TextDelta
from sim.checks import CheckFailedError
from sim.dispatch import AttemptBegan, AttemptEnded, ExecutionBegan, Step
from sim.engines import numbers_in, turned
from sim.process import Process
from sim.requests import Ask, Requests

END_SLACK_S = 0.1
"""Seconds past the deadline at which a request must have ended: the grace that an asker gives its peer."""

LOOK_AFTER_S = 0.001
"""Seconds between that moment and the look at it: the end may be an event of the very same time."""


@dataclass(slots=True)
class _Attempts:
    """What one life of one process has asked of others for one request."""

    asked: set[PeerId] = field(default_factory=set[PeerId])
    current: PeerId | None = None
    delivered: bool = False


@dataclass
class Promises:
    """Watches the requests of a world from the moment it is made."""

    requests: Requests
    executed: set[tuple[bytes, int, int]] = field(default_factory=set[tuple[bytes, int, int]])
    attempts: dict[tuple[bytes, int, int], _Attempts] = field(default_factory=dict[tuple[bytes, int, int], _Attempts])
    next_token: dict[bytes, int] = field(default_factory=dict[bytes, int])
    ended: set[bytes] = field(default_factory=set[bytes])
    turned: set[bytes] = field(default_factory=set[bytes])
    looked_at: int = 0

    def __post_init__(self) -> None:
        self.requests.ask_watchers.append(self._watch_caller)
        self.requests.step_watchers.append(self._watch_step)

    def _who(self, ask: Ask) -> str:
        return f"request {ask.request.request_id.hex()[:8]} of n{ask.process.index}"

    # I3 and I4

    def _watch_caller(self, ask: Ask, reply: Reply | None) -> None:
        request_id, world = ask.request.request_id, self.requests.world
        if reply is None:
            world.at(ask.deadline_at + END_SLACK_S + LOOK_AFTER_S, lambda: self._look_at_end(ask))
            return
        if request_id in self.ended:
            raise CheckFailedError("I3", f"{self._who(ask)} got a {type(reply).__name__} after its end")
        match reply:
            case Accepted():
                pass
            case TextDelta(text=text):
                self._look_at_tokens(ask, text)
            case TensorsReady(tensors=tensors):
                self._look_at_tensors(ask, tensors)
            case Finished():
                if ask.request.tensors and request_id not in self.turned:
                    raise CheckFailedError("I4", f"{self._who(ask)} ended without its tensors")
                had = self.next_token.get(request_id, 0)
                if reply.usage.completion_tokens != had:
                    raise CheckFailedError("I4", f"{self._who(ask)} ended with {had} of {reply.usage.completion_tokens} tokens")
                self.ended.add(request_id)
            case Failed():
                self.ended.add(request_id)
            case _:
                raise CheckFailedError("I4", f"{self._who(ask)} got a {type(reply).__name__}, which no engine here says")

    def _look_at_tokens(self, ask: Ask, text: str) -> None:
        due = self.next_token.get(ask.request.request_id, 0)
        for number in numbers_in(text):
            if number != due:
                raise CheckFailedError("I4", f"{self._who(ask)} got token {number} where {due} was next")
            due += 1
        self.next_token[ask.request.request_id] = due

    def _look_at_tensors(self, ask: Ask, tensors: tuple[Tensor, ...]) -> None:
        if ask.request.request_id in self.turned:
            raise CheckFailedError("I4", f"{self._who(ask)} got its tensors twice")
        self.turned.add(ask.request.request_id)
        due = [bytes(turned(tensor).data) for tensor in ask.request.tensors]
        if [bytes(tensor.data) for tensor in tensors] != due:
            raise CheckFailedError("I11", f"{self._who(ask)} got other tensors than its own, turned round")

    def _look_at_end(self, ask: Ask) -> None:
        process, world = ask.process, self.requests.world
        stalled = process.paused or process.stalled_s(ask.asked_at, world.now) > 0.0
        slow = process.slow_s > 0.0 or process.busy_until > ask.asked_at
        if ask.left or ask.node_died or (process.life == ask.life and (stalled or slow)):
            return
        self.looked_at += 1
        if ask.request.request_id not in self.ended:
            raise CheckFailedError("I3", f"{self._who(ask)} has not ended {world.now - ask.deadline_at:.3f} s after its deadline")
        assert ask.ended_at is not None
        if ask.ended_at > ask.deadline_at + END_SLACK_S:
            raise CheckFailedError("I3", f"{self._who(ask)} ended {ask.ended_at - ask.deadline_at:.3f} s after its deadline")

    # I10

    def _watch_step(self, process: Process, step: Step) -> None:
        place = (step.request_id, process.index, process.life)
        where = f"n{process.index}, request {step.request_id.hex()[:8]}"
        match step:
            case ExecutionBegan():
                if place in self.executed:
                    raise CheckFailedError("I10", f"{where}: runs here a second time")
                self.executed.add(place)
            case AttemptBegan(peer=peer):
                attempts = self.attempts.setdefault(place, _Attempts())
                name = self.requests.world.journal.names.get(peer)
                if attempts.delivered:
                    raise CheckFailedError("I10", f"{where}: asks {name} after the caller has had output")
                if attempts.current is not None:
                    raise CheckFailedError("I10", f"{where}: asks {name} while another attempt is under way")
                if peer in attempts.asked:
                    raise CheckFailedError("I10", f"{where}: asks {name} a second time")
                attempts.asked.add(peer)
                attempts.current = peer
            case AttemptEnded():
                attempts = self.attempts[place]
                attempts.current = None
                attempts.delivered = attempts.delivered or step.delivered
