"""Forwarding: the life of each request on this node, from its candidates to exactly one end.

A request is submitted with its candidates, best first. One attempt is made at a time: `RunLocally` when the candidate is this
node itself, `Forward` otherwise. A failure before the first output that another peer may not have goes to the next candidate. So
does an attempt that has delivered nothing within its share of the time left, as long as there is a next one. Once something was
delivered there is no way back: the caller holds a part of one answer, which another peer would not continue. Every request ends
with exactly one `Ended`, at its deadline at the latest; one that cannot begin ends with exactly one `Refuse` in its place.

Attempts are known by request id and peer, and no peer is asked twice for one request. What is reported about an attempt that is
no longer the current one changes nothing.

Loops: a request carries how many further forwards are allowed, and `admit` refuses an id that was here before, while it runs and
for a while after. `admit` also bounds what a single peer can have under way here.

Source: h11 (the transitions of a state machine as a table); gRPC retry design A6 (nothing is retried once it was committed).
Spec: docs/spec/06-inference.md.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum, auto

from protocol.errors import RETRYABLE, ErrorCode, LocalProtocolError
from protocol.identity import PeerId
from protocol.timers import TimerQueue


@dataclass(frozen=True, slots=True)
class ForwardingConfig:
    """Bounds and shares.

    Attributes:
        attempts_max: candidates asked for one request at most: the best, a second opinion, and one more.
        requests_max: requests under way at once, admitted ones included, over which new ones are refused.
        requests_per_peer_max: of those, how many one peer may have sent.
        hops_max: forwards a request may still ask for when it arrives; at most two hops in all.
        first_output_share: the share of the time left that an attempt may take until its first output while another candidate
            remains; a half leaves the next one as much as the first had.
        deadline_s_min: seconds below which no further attempt is made: a round trip within a continent.
        seen_s: seconds that an id is remembered after its request has ended: longer than any copy stays under way.
        seen_max: ids remembered; the oldest ended one makes room.
    """

    attempts_max: int = 3
    requests_max: int = 1024
    requests_per_peer_max: int = 32
    hops_max: int = 2
    first_output_share: float = 0.5
    deadline_s_min: float = 0.005
    seen_s: float = 60.0
    seen_max: int = 16384


@dataclass(frozen=True, slots=True)
class RunLocally:
    """Run the request on an engine of this node."""

    request_id: bytes
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the request to the peer with these values for `deadline_s` and `hops_left`."""

    request_id: bytes
    peer: PeerId
    deadline_s: float
    hops_left: int


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Stop what `RunLocally` or `Forward` began; whatever still comes of it is of no interest."""

    request_id: bytes
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request does not begin; it is over."""

    request_id: bytes
    code: ErrorCode
    message: str


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "deadline exceeded"


@dataclass(frozen=True, slots=True)
class Ended:
    """The request is over.

    Attributes:
        request_id: which.
        outcome: how.
        code: what the caller is told; NO_ERROR when answered.
        message: a sentence on what was wrong, empty when answered.
        peer: the peer of the last attempt.
        attempts: how many were made.
        delivered: whether the caller has received any output.
    """

    request_id: bytes
    outcome: Outcome
    code: ErrorCode
    message: str
    peer: PeerId
    attempts: int
    delivered: bool


Output = RunLocally | Forward | CancelAttempt | Refuse | Ended
"""What the machine wants done, and how requests ended."""

OUTPUTS = (RunLocally, Forward, CancelAttempt, Refuse, Ended)
"""The classes of `Output`, for those who take outputs of several machines apart."""


class State(IntEnum):
    """Where a request stands."""

    TRYING = auto()
    """An attempt is under way and has delivered nothing."""
    STREAMING = auto()
    """The current attempt has delivered something."""
    ENDED = auto()


class Event(IntEnum):
    """What can happen to a request."""

    FIRST_OUTPUT = auto()
    FINISHED = auto()
    NEXT_CANDIDATE = auto()
    GAVE_UP = auto()
    CANCELLED = auto()
    EXPIRED = auto()


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.TRYING: {
        Event.FIRST_OUTPUT: State.STREAMING,
        Event.FINISHED: State.ENDED,
        Event.NEXT_CANDIDATE: State.TRYING,
        Event.GAVE_UP: State.ENDED,
        Event.CANCELLED: State.ENDED,
        Event.EXPIRED: State.ENDED,
    },
    State.STREAMING: {
        Event.FIRST_OUTPUT: State.STREAMING,
        Event.FINISHED: State.ENDED,
        Event.GAVE_UP: State.ENDED,
        Event.CANCELLED: State.ENDED,
        Event.EXPIRED: State.ENDED,
    },
    State.ENDED: {},
}
"""Every legal transition. STREAMING knows no NEXT_CANDIDATE: nothing is retried once something was delivered."""


@dataclass(slots=True)
class _Request:
    """One request under way; `candidates` are the peers not asked yet."""

    candidates: deque[PeerId]
    deadline_at: float
    hops_left: int
    peer: PeerId
    roundabout: Collection[PeerId] = ()
    attempts: int = 0
    state: State = State.TRYING


class Forwarding:
    """The machine: requests and reports in, `next_output` until it returns None, `handle_timer` at `next_timer`."""

    def __init__(self, config: ForwardingConfig) -> None:
        self._config = config
        self._requests: dict[bytes, _Request] = {}
        self._running: dict[bytes, PeerId | None] = {}  # by whom it was sent, None for this node's own clients
        self._ended: OrderedDict[bytes, float] = OrderedDict()  # until when it is remembered, oldest first
        self._running_from: Counter[PeerId] = Counter()
        self._in_flight: Counter[PeerId] = Counter()
        self._away: set[PeerId] = set()  # no more than membership remembers
        self._own: PeerId | None = None
        self._timers: TimerQueue[bytes] = TimerQueue()
        self._outputs: deque[Output] = deque()

    @property
    def under_way(self) -> int:
        """How many requests are under way."""
        return len(self._requests)

    def in_flight(self, peer: PeerId) -> int:
        """How many attempts at `peer` are under way, this node's own id included."""
        return self._in_flight[peer]

    def busy(self) -> list[PeerId]:
        """Those that work on requests for this node, and those for whose requests work is done here."""
        return [*self._in_flight, *self._running_from]

    def admit(self, request_id: bytes, from_peer: PeerId, hops_left: int, now: float) -> Refuse | None:
        """Judge a request that came from a peer, before anything is done for it.

        Returns:
            None when it may be submitted; `submit`, or `release` when nothing is submitted, has to follow. Otherwise the
            refusal, which is not an output too.
        """
        self._forget_old(now)
        config = self._config
        if request_id in self._running or request_id in self._ended:
            return Refuse(request_id, ErrorCode.HOPS_EXCEEDED, "the request has been here before")
        if not 0 <= hops_left <= config.hops_max:
            return Refuse(request_id, ErrorCode.HOPS_EXCEEDED, f"hops_left is {hops_left}, more than {config.hops_max}")
        if self._running_from[from_peer] >= config.requests_per_peer_max:
            message = f"{config.requests_per_peer_max} requests of this peer are under way"
            return Refuse(request_id, ErrorCode.OVERLOADED, message)
        if not self._begin(request_id, from_peer):
            return Refuse(request_id, ErrorCode.OVERLOADED, "too many requests are under way here")
        return None

    def release(self, request_id: bytes, now: float) -> None:
        """Note that an admitted request is over without having been submitted; its id stays remembered for a while."""
        if request_id not in self._requests:
            self._note_end(request_id, now)

    def submit(
        self,
        request_id: bytes,
        peers: Sequence[PeerId],
        own_peer_id: PeerId,
        deadline_at: float,
        hops_left: int,
        now: float,
        roundabout: Collection[PeerId] = (),
    ) -> None:
        """Begin a request.

        Args:
            request_id: its id; one that was not admitted before is of this node's own clients.
            peers: the candidates, best first; each is asked once at most.
            own_peer_id: this node.
            deadline_at: monotonic time at which it ends in any case.
            hops_left: further forwards allowed; with 0 only this node itself can answer.
            now: monotonic time.
            roundabout: those of the candidates that are asked through others, so that it says nothing of them that they cannot be
                reached.

        Raises:
            LocalProtocolError: the id is under way already.
        """
        if request_id in self._requests:
            raise LocalProtocolError(ErrorCode.BAD_REQUEST, f"request {request_id.hex()} is under way already")
        self._own = own_peer_id
        self._forget_old(now)
        candidates = deque(dict.fromkeys(peer for peer in peers if hops_left > 0 or peer == own_peer_id))
        if request_id in self._ended:
            self._refuse(request_id, ErrorCode.HOPS_EXCEEDED, "the request has been here before", now)
        elif request_id not in self._running and not self._begin(request_id, None):
            self._refuse(request_id, ErrorCode.OVERLOADED, f"{self._config.requests_max} requests are under way here", now)
        elif deadline_at <= now:
            self._refuse(request_id, ErrorCode.DEADLINE_EXCEEDED, "the deadline had passed before the request began", now)
        elif not candidates:
            reason = "no peer is able to answer" if hops_left > 0 else "this node cannot answer and may not forward"
            self._refuse(request_id, ErrorCode.MODEL_NOT_FOUND, reason, now)
        else:
            request = _Request(candidates, deadline_at, hops_left, candidates[0], roundabout)
            self._requests[request_id] = request
            self._attempt(request_id, request, now)

    def handle_first_output(self, request_id: bytes, peer: PeerId, now: float) -> bool:
        """Note that an attempt has delivered.

        Returns:
            Whether the output is to reach the caller: False for an attempt that is not the current one. True again for each
            further output of the current one.
        """
        del now
        request = self._current(request_id, peer)
        if request is None:
            return False
        self._transit(request, Event.FIRST_OUTPUT)
        self._timers.set(request_id, request.deadline_at)
        return True

    def handle_finished(self, request_id: bytes, peer: PeerId, now: float) -> None:
        """Note that an attempt's answer is complete."""
        request = self._current(request_id, peer)
        if request is not None:
            self._end(request_id, request, Event.FINISHED, Outcome.ANSWERED, ErrorCode.NO_ERROR, "", now)

    def handle_failed(self, request_id: bytes, peer: PeerId, code: ErrorCode, message: str, now: float) -> None:
        """Note that an attempt has failed, with the code and the sentence the caller is told when nobody else can be asked."""
        request = self._current(request_id, peer)
        if request is None:
            return
        if request.state is State.TRYING and code in RETRYABLE and self._may_move_on(request, now):
            self._move_on(request_id, request, now)
        else:
            self._end(request_id, request, Event.GAVE_UP, Outcome.FAILED, code, message, now)

    def handle_suspected(self, peer: PeerId, now: float) -> None:
        """Note that a peer has fallen silent: what it has not begun to answer is asked elsewhere, where it can be.

        The attempt does not count: where a whole site is cut off, several candidates fall silent one after another, and each
        is asked once at most anyway.
        """
        waiting = [(key, request) for key, request in self._requests.items() if request.peer == peer]
        for request_id, request in waiting:
            if request.state is State.TRYING and request.candidates and request.deadline_at - now >= self._config.deadline_s_min:
                request.attempts -= 1
                self._outputs.append(CancelAttempt(request_id, peer))
                self._move_on(request_id, request, now)

    def handle_gone(self, peer: PeerId, now: float) -> None:
        """Note that a silent peer is held for dead: what it has begun to answer will not be finished."""
        for request_id in [key for key, request in self._requests.items() if request.peer == peer]:
            self._outputs.append(CancelAttempt(request_id, peer))
            self.handle_failed(request_id, peer, ErrorCode.UNREACHABLE, "the peer has stopped answering", now)

    def handle_left(self, peer: PeerId) -> None:
        """Note that a peer may not be given work at present: it is asked only when nobody else is left."""
        self._away.add(peer)

    def handle_joined(self, peer: PeerId) -> None:
        """Note that a peer may be given work again, or is forgotten."""
        self._away.discard(peer)

    def handle_cancelled(self, request_id: bytes, now: float) -> None:
        """Note that the caller is gone; a request that has ended already is left alone."""
        request = self._requests.get(request_id)
        if request is not None:
            self._outputs.append(CancelAttempt(request_id, request.peer))
            message = "the caller has gone"
            self._end(request_id, request, Event.CANCELLED, Outcome.CANCELLED, ErrorCode.CANCELLED, message, now)

    def next_timer(self) -> float | None:
        """When `handle_timer` has to be called next, or None."""
        return self._timers.next_due()

    def handle_timer(self, now: float) -> None:
        """End what is past its deadline, and move on where an attempt has used up its share."""
        while (entry := self._timers.pop_due(now)) is not None:
            request_id = entry[0]
            request = self._requests[request_id]
            if now >= request.deadline_at:
                self._outputs.append(CancelAttempt(request_id, request.peer))
                code, message = ErrorCode.DEADLINE_EXCEEDED, "no complete answer came before the deadline"
                self._end(request_id, request, Event.EXPIRED, Outcome.EXPIRED, code, message, now)
            elif self._may_move_on(request, now):
                self._outputs.append(CancelAttempt(request_id, request.peer))
                self._move_on(request_id, request, now)
            else:
                self._timers.set(request_id, request.deadline_at)

    def next_output(self) -> Output | None:
        """The next thing to do or to know, or None."""
        return self._outputs.popleft() if self._outputs else None

    def _current(self, request_id: bytes, peer: PeerId) -> _Request | None:
        request = self._requests.get(request_id)
        return request if request is not None and request.peer == peer else None

    def _may_move_on(self, request: _Request, now: float) -> bool:
        config = self._config
        time_left_s = request.deadline_at - now
        return bool(request.candidates) and request.attempts < config.attempts_max and time_left_s >= config.deadline_s_min

    def _move_on(self, request_id: bytes, request: _Request, now: float) -> None:
        self._transit(request, Event.NEXT_CANDIDATE)
        _take_one(self._in_flight, request.peer)
        self._attempt(request_id, request, now)

    def _attempt(self, request_id: bytes, request: _Request, now: float) -> None:
        """Ask the next candidate."""
        here = (peer for peer in request.candidates if peer not in self._away or peer in request.roundabout)
        request.peer = next(here, request.candidates[0])
        request.candidates.remove(request.peer)
        request.attempts += 1
        self._in_flight[request.peer] += 1
        left_s = request.deadline_at - now
        if request.peer == self._own:
            self._outputs.append(RunLocally(request_id, left_s))
        else:
            self._outputs.append(Forward(request_id, request.peer, left_s, request.hops_left - 1))
        share = self._config.first_output_share if self._may_move_on(request, now) else 1.0
        self._timers.set(request_id, min(request.deadline_at, now + left_s * share))

    def _transit(self, request: _Request, event: Event) -> None:
        request.state = TRANSITIONS[request.state][event]

    def _end(
        self, request_id: bytes, request: _Request, event: Event, outcome: Outcome, code: ErrorCode, message: str, now: float
    ) -> None:
        delivered = request.state is State.STREAMING
        self._transit(request, event)
        _take_one(self._in_flight, request.peer)
        del self._requests[request_id]
        self._timers.discard(request_id)
        self._note_end(request_id, now)
        self._outputs.append(Ended(request_id, outcome, code, message, request.peer, request.attempts, delivered))

    def _refuse(self, request_id: bytes, code: ErrorCode, message: str, now: float) -> None:
        self._note_end(request_id, now)
        self._outputs.append(Refuse(request_id, code, message))

    # Ids that were here

    def _begin(self, request_id: bytes, from_peer: PeerId | None) -> bool:
        """Keep an id as running; False when too many are."""
        if len(self._running) >= self._config.requests_max:
            return False
        self._running[request_id] = from_peer
        if from_peer is not None:
            self._running_from[from_peer] += 1
        return True

    def _note_end(self, request_id: bytes, now: float) -> None:
        """Keep a running id for as long as a copy of the request may still be under way."""
        if request_id not in self._running:
            return
        from_peer = self._running.pop(request_id)
        if from_peer is not None:
            _take_one(self._running_from, from_peer)
        self._ended[request_id] = now + self._config.seen_s
        if len(self._ended) > self._config.seen_max:
            self._ended.popitem(last=False)

    def _forget_old(self, now: float) -> None:
        while self._ended and next(iter(self._ended.values())) <= now:
            self._ended.popitem(last=False)


def _take_one(counter: Counter[PeerId], peer: PeerId) -> None:
    """Count one less, and keep no zeros."""
    counter[peer] -= 1
    if counter[peer] <= 0:
        del counter[peer]
