"""Serves the programs of the node's own user over a unix socket.

A connection carries one request at a time and the next when its answer has ended; a client that wants several at once opens as
many connections, so that each is held back by itself. One task reads a connection as long as it lasts: the end of the connection
while a request is under way means that nobody wants the answer, and stops the work. The answer to a request leaves in one write,
or, if it is streamed, one event after another, none before the last was taken; an answer that need not be waited for is given by
the task that has read the request. Nothing is copied here: a tensor lies where the kernel has put it until the engine reads it.

Spec: docs/client.md, section "The door".
"""

import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial

import trio

from mesh.dispatch import Dispatcher
from mesh.gateway.views import offer_json, route_json
from mesh.local.frames import MESSAGE_BYTES_MIN, FrameReader, without
from mesh.local.place import BACKLOG_MAX, Listening, is_ours, peer_uid
from mesh.local.questions import MODELS, STATUS, is_question, read_question
from mesh.telemetry import ABORTED, RequestOutcome, Telemetry
from mesh.tickets import Answer
from protocol.encoding import encode_uvarint
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.inference import Accepted, Failed, Finished, InferenceRequest, Reply
from protocol.wire.inference import REQUEST_BYTES_MAX, decode_request, frame_reply

PIECES_MAX = 512
"""Pieces of one vectored write: half of what Linux takes (IOV_MAX, 1024)."""

AT_ONCE_MAX = 16
"""Messages of one client that are taken without a look at others, a count: answers at once take some 0.2 ms each."""

NAME = "the client's door"
"""What it is called in the log."""

Rest = Callable[[], Awaitable[None]]
"""What is left of an answer."""


@dataclass(frozen=True, slots=True)
class DoorConfig:
    """What clients may cost.

    Attributes:
        connections_max: connections at a time; the one that has been idle for longest makes room, and where none is idle the next
            client is turned away.
        request_bytes_max: one request without its frame.
        request_read_s: how long a request may take to arrive once it has begun.
        held_bytes_max: outputs held back of an answer that is not streamed.
        slack_s: how long past a request's deadline its answer may take to leave.
        accept_pause_s: pause after the system could accept no connection, for want of descriptors.
    """

    connections_max: int = BACKLOG_MAX
    request_bytes_max: int = REQUEST_BYTES_MAX
    request_read_s: float = 30.0
    held_bytes_max: int = 64 * 1024
    slack_s: float = 2.0
    accept_pause_s: float = 0.1


class LocalDoor:
    """The listening end; `serve` it in a nursery."""

    def __init__(self, dispatcher: Dispatcher, telemetry: Telemetry, config: DoorConfig | None = None) -> None:
        """Connects the parts.

        Args:
            dispatcher: finds who answers.
            telemetry: hears of requests and of faults of clients.
            config: what clients may cost.
        """
        self._dispatcher = dispatcher
        self._telemetry = telemetry
        self._config = config or DoorConfig()
        self._visits: dict[_Visit, None] = {}  # the one that has been idle for longest first
        self._ended = trio.Event()

    async def serve(self, listening: Listening) -> None:
        """Lets clients in until cancelled, and then takes the socket away."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(listening.listener)
                    try:
                        connection, _ = listening.listener.accept()
                    except (BlockingIOError, ConnectionAbortedError):
                        continue
                    except OSError as error:
                        self._telemetry.log.warning("no client can be let in", reason=str(error))
                        await trio.sleep(self._config.accept_pause_s)
                        continue
                    if self._lets_in(connection):
                        # Counted from here on: several may be accepted before the first of their tasks runs.
                        visit = _Visit(connection, self._config)
                        self._visits[visit] = None
                        nursery.start_soon(self._attend, visit)
                    else:
                        connection.close()
        finally:
            listening.close()

    async def idle(self) -> None:
        """Returns once no answer is under way."""
        while any(visit.is_busy for visit in self._visits):
            self._ended = trio.Event()
            await self._ended.wait()

    def _lets_in(self, connection: socket.socket) -> bool:
        uid = peer_uid(connection)
        if not is_ours(uid):
            self._telemetry.log.warning("another user was turned away", uid=uid)
            return False
        if len(self._visits) >= self._config.connections_max:
            idle = next((visit for visit in self._visits if visit.is_idle), None)
            if idle is None:
                self._telemetry.log.warning("a client was turned away", connections=len(self._visits))
                return False
            idle.leave()
            del self._visits[idle]
        connection.setblocking(False)
        return True

    async def _attend(self, visit: "_Visit") -> None:
        """Serves one connection until it ends."""
        try:
            with visit.scope:
                async with trio.open_nursery() as nursery:
                    await self._converse(visit, nursery)
                    nursery.cancel_scope.cancel()
        finally:
            self._visits.pop(visit, None)
            visit.close()
            self._ended.set()

    async def _converse(self, visit: "_Visit", nursery: trio.Nursery) -> None:
        """Takes messages until the client goes, or may stay no longer."""
        try:
            while (message := await visit.next_message()) is not None:
                await self._take(visit, message, nursery)
            visit.gone = True
        except OSError:
            visit.gone = True
        except RemoteProtocolError as error:
            self._telemetry.log.warning("a client broke the protocol", reason=str(error))

    async def _take(self, visit: "_Visit", message: memoryview, nursery: trio.Nursery) -> None:
        """Begins the answer to one message.

        Raises:
            RemoteProtocolError: it came before the last answer had ended.
        """
        if visit.is_busy:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "a message before the end of the last answer")
        visit.is_busy = True
        visit.turn += 1
        self._visits[visit] = self._visits.pop(visit, None)
        try:
            if is_question(message):
                told = self._told(message)
                await visit.send([encode_uvarint(len(told)), told], last=True)
            else:
                self._answer(visit, decode_request(message), nursery)
        except RemoteProtocolError as error:
            await visit.send(frame_reply(Failed(error.code, error.detail)), last=True)

    def _told(self, message: memoryview) -> bytes:
        """The answer to a question.

        Raises:
            RemoteProtocolError: it is none that this node knows.
        """
        question = read_question(message)
        answer: object
        if question.word == MODELS:
            answer = [offer_json(entry) for entry in self._dispatcher.catalogue()]
        elif question.word == STATUS:
            answer = self._dispatcher.status()
        else:
            route = self._dispatcher.explain(question.request_id.hex())
            answer = None if route is None else route_json(route)
        return json.dumps(answer).encode().ljust(MESSAGE_BYTES_MIN)  # an empty list is shorter than a frame may be

    def _answer(self, visit: "_Visit", request: InferenceRequest, nursery: trio.Nursery) -> None:
        """Answers one request: here, where nothing has to be waited for, else in a task beside the one that reads."""
        outcome = RequestOutcome(request.feature, request.stream)
        self._telemetry.request_started(outcome)
        started_s, rest = trio.current_time(), None
        try:
            rest = self._begin(visit, request, outcome)
        except OSError:
            outcome.result = "client_gone"
        except Exception as error:  # noqa: BLE001 -- a fault of our own ends this connection and nothing else
            self._telemetry.handler_crashed(NAME, error)
        if rest is None:
            self._over(visit, visit.turn, outcome, started_s)
        else:
            nursery.start_soon(self._go_on, visit, request, outcome, rest, started_s)

    def _begin(self, visit: "_Visit", request: InferenceRequest, outcome: RequestOutcome) -> "Rest | None":
        """Begins an answer, and sends it if it is there already; returns what is left to do.

        Raises:
            OSError: the client is gone.
        """
        began_s = trio.current_time()
        begun = self._dispatcher.begin(request)
        if not isinstance(begun, Answer):
            return partial(self._pass_on, visit, request, outcome, begun)
        outcome.first_output_s = trio.current_time() - began_s
        outcome.predicted_s, outcome.measured_s = begun.route.predicted_s, begun.route.measured_s
        framed: list[bytes | memoryview] = []
        for reply in begun.at_hand:
            if not isinstance(reply, Accepted):
                pieces, end = _framed(reply)
                framed += pieces
                if end is not None:
                    _note_end(outcome, request, end)
                    break
        left = visit.send_now(framed, last=True)
        return partial(visit.send, left, last=True) if left else None

    async def _go_on(
        self, visit: "_Visit", request: InferenceRequest, outcome: RequestOutcome, rest: "Rest", started_s: float
    ) -> None:
        """Does what is left of one answer; a client that does not take it all in time loses the connection."""
        turn = visit.turn
        try:
            with trio.move_on_after(request.deadline_s + self._config.slack_s) as patience:
                await rest()
            if patience.cancelled_caught:
                outcome.result = "client_slow"
        except OSError:
            outcome.result = "client_gone"
        except Exception as error:  # noqa: BLE001 -- a fault of our own ends this connection and nothing else
            self._telemetry.handler_crashed(NAME, error)
        finally:
            self._over(visit, turn, outcome, started_s)

    def _over(self, visit: "_Visit", turn: int, outcome: RequestOutcome, started_s: float) -> None:
        """Tells of one answer that is over."""
        if visit.gone and outcome.result == ABORTED:
            outcome.result = "client_gone"
        if visit.is_busy and visit.turn == turn:  # the answer has no end, so that nothing can follow it
            visit.leave()
        outcome.duration_s = trio.current_time() - started_s
        self._telemetry.request_ended(outcome, is_native=True)
        self._ended.set()

    async def _pass_on(
        self, visit: "_Visit", request: InferenceRequest, outcome: RequestOutcome, begun: AbstractAsyncContextManager[Answer]
    ) -> None:
        """Sends the events of an answer; those of one that is not streamed go out with its end.

        Raises:
            OSError: the client is gone.
        """
        held: list[bytes | memoryview] = []
        held_bytes = 0
        gone: OSError | None = None
        began_s = trio.current_time()
        async with begun as answer:
            async for reply in answer.replies():
                if isinstance(reply, Accepted):
                    continue
                if outcome.first_output_s is None:
                    outcome.first_output_s = trio.current_time() - began_s
                pieces, end = _framed(reply)
                held += pieces
                held_bytes += sum(map(len, pieces))
                if end is None and not request.stream and held_bytes < self._config.held_bytes_max:
                    continue
                try:
                    await visit.send(held, last=end is not None)
                except OSError as error:
                    gone = error  # raised below: an exception of ours would pass through the dispatcher's contexts
                    break
                held, held_bytes = [], 0
                if end is not None:
                    _note_end(outcome, request, end)
                    break
            outcome.predicted_s, outcome.measured_s = answer.route.predicted_s, answer.route.measured_s
        if gone is not None:
            raise gone


def _note_end(outcome: RequestOutcome, request: InferenceRequest, end: Finished | Failed) -> None:
    """Notes how a request went."""
    if isinstance(end, Finished):
        outcome.result, outcome.usage, outcome.model = "ok", end.usage, request.model
    else:
        outcome.result = end.code.name.lower()


def _framed(reply: Reply) -> tuple[list[bytes | memoryview], Finished | Failed | None]:
    """One event as a frame in pieces, and the end that it is, if any; what no message can hold is the engine's failure."""
    try:
        return frame_reply(reply), reply if isinstance(reply, Finished | Failed) else None
    except LocalProtocolError as error:
        failed = Failed(ErrorCode.ENGINE_FAILED, f"the engine's answer cannot be sent: {error}")
        return frame_reply(failed), failed


class _Visit:
    """One connection of a client."""

    __slots__ = ("_config", "_connection", "_n_at_once", "_reader", "gone", "is_busy", "scope", "turn")

    def __init__(self, connection: socket.socket, config: DoorConfig) -> None:
        self._connection = connection
        self._config = config
        self._reader = FrameReader(config.request_bytes_max)
        self._n_at_once = 0
        self.is_busy = False
        """Whether the answer to a message is still to end."""
        self.gone = False
        """Whether the client has left."""
        self.turn = 0
        """How many messages were taken: an answer may still be tidying up when the next has begun."""
        self.scope = trio.CancelScope()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, nor has begun to arrive."""
        return not self.is_busy and not self._reader.begun

    def leave(self) -> None:
        """Ends the visit soon."""
        self.scope.cancel()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    async def next_message(self) -> memoryview | None:
        """Waits for a message; None when the client has gone.

        Raises:
            RemoteProtocolError: what came is no frame, or takes too long.
            OSError: the connection broke.
        """
        if self._n_at_once < AT_ONCE_MAX:
            self._n_at_once += 1
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._n_at_once = 0
            await trio.lowlevel.checkpoint()
        while True:
            try:
                return self._receive()
            except BlockingIOError:
                self._n_at_once = 0
                if self._reader.begun:
                    break
                await trio.lowlevel.wait_readable(self._connection)
        with trio.move_on_after(self._config.request_read_s):
            while True:
                await trio.lowlevel.wait_readable(self._connection)
                with suppress(BlockingIOError):
                    return self._receive()
        raise RemoteProtocolError(ErrorCode.IDLE, f"the request did not arrive within {self._config.request_read_s:g} s")

    def _receive(self) -> memoryview | None:
        """Takes what is there until a message is whole; None at the end of the connection.

        Raises:
            BlockingIOError: the rest has not come yet.
        """
        while n_bytes := self._connection.recv_into(self._reader.room()):
            message = self._reader.took(n_bytes)
            if message is not None:
                return message
        return None

    async def send(self, pieces: Sequence[bytes | memoryview], *, last: bool) -> None:
        """Sends whole frames, waiting while the client does not read.

        Args:
            pieces: the frames.
            last: they end an answer. That is noted before anybody else runs: the client may ask anew at once.

        Raises:
            OSError: the client is gone.
        """
        left = self.send_now(pieces, last=last)
        while left:
            await trio.lowlevel.wait_writable(self._connection)
            left = self.send_now(left, last=last)

    def send_now(self, pieces: Sequence[bytes | memoryview], *, last: bool) -> list[bytes | memoryview]:
        """Sends what goes without waiting, and returns what is left; arguments and errors are those of `send`."""
        left = list(pieces)
        try:
            while left:
                left = without(left, self._connection.sendmsg(left[:PIECES_MAX]))
        except BlockingIOError:
            return left
        if last:
            self.is_busy = False
        return left
