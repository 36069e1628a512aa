"""A stream of a world whose tensors take a fabric: to whoever asks or answers over it, it is a stream as any other.

It stands where `mesh.fabric.lane` stands between the transport and inference. Messages of chapter 6 pass as they are, each once
the tensors are there that were offered before it; what is said about transfers is taken out on the way in. An end that is closed
stays until nobody needs it for a transfer any more.

Spec: docs/spec/11-fabric.md, section "Messages".
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, ProtocolError
from protocol.fabric import Giver, Kind, Receiver
from protocol.fabric.messages import HEAD_BYTES, FrameKind, Offer, decode_message, kind_of_frame
from protocol.identity import PeerId
from protocol.inference import InferenceRequest, Reply, Tensor, TensorsReady
from protocol.wire.inference import REPLY_BYTES_MAX
from sim.checks import CheckFailedError
from sim.fabric.hardware import BrokenPromiseError
from sim.fabric.kinds import Session
from sim.fabric.lane import FALL_BACK_S, Lane
from sim.process import Process
from sim.streams import Broken, StreamEnd

if TYPE_CHECKING:
    from sim.fabric.nodes import NodeFabrics

DEVICE = "device"
"""Name of tensors that lie on a GPU."""

ARRIVES_S = 1.5
"""Seconds from an offer's arrival within which its tensors have to be there where only fabrics are broken: several times what the
stream takes to bring them round the world."""


class TensorStream:
    """One end of a stream, with fabrics beside it; it is used as `StreamEnd` is."""

    def __init__(self, own: "NodeFabrics", stream: StreamEnd, sessions: dict[int, Session], deadline_s: float) -> None:
        """Begins to speak for one end.

        Args:
            own: the fabrics of its process.
            stream: the end.
            sessions: the fabrics with the peer, by kind, as they are now.
            deadline_s: of the request; a lease lasts as long, and some seconds more.
        """
        self._own, self._stream = own, stream
        self.tally = own.fabrics.tally
        self.lane = Lane(
            own.hardware.name,
            own.timer,
            own.hardware,
            own.config,
            sessions,
            deadline_s + own.config.lease_slack_s,
            lambda frame: stream.send(encode_frame(frame)),
            own.fault,
            lambda: own.charge(stream.peer.peer_id),
            self._taken,
            self._void,
            self.tally,
            own.succeeded,
        )
        self._decoder = FrameDecoder(REPLY_BYTES_MAX + HEAD_BYTES)
        self._ready: deque[bytes] = deque()
        self._there: dict[int, bytes] = {}
        self._n_given = self._n_offered = self._n_consumed = 0
        self._is_closing = False
        self.on_data: Callable[[bytes], None] = lambda _data: None
        self.on_broken: Callable[[Broken], None] = lambda _broken: None
        stream.on_data, stream.on_broken = self._receive, self._broke
        own.open_streams.append(self)

    @property
    def process(self) -> Process:
        """Whose end it is."""
        return self._stream.process

    @property
    def peer(self) -> Process:
        """The process at the other end."""
        return self._stream.peer

    @property
    def peer_id(self) -> PeerId:
        """The same by its id."""
        return self._stream.peer.peer_id

    # What a stream does

    def send(self, data: bytes) -> None:
        """Sends messages, behind what was said of transfers."""
        self._stream.send(data)

    def reset(self, code: ErrorCode) -> None:
        """Gives the stream up in both directions."""
        self._stream.reset(code)
        self._over()

    def close(self) -> None:
        """Is done with the stream; what others still need of it goes on."""
        for number in self._there:
            self._guard(lambda number=number: self.lane.done(number))  # type: ignore[misc]
        self._is_closing = True
        self._maybe_close()

    # Tensors

    def carry(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Let tensors take a fabric; what the message has to hold itself."""
        if not tensors:
            return ()
        session = self._own.session_for(self.lane.sessions, on_device=tensors[0].name == DEVICE)
        if session is None:
            return tuple(tensors)
        if not self.lane.give(self._n_given, session, bytes(tensors[0].data)):
            return tuple(tensors)
        self._n_given += 1
        self._look()
        return ()

    def asks(self, request: InferenceRequest) -> InferenceRequest:
        """A request as it goes out."""
        return replace(request, tensors=self.carry(request.tensors))

    def asked(self, request: InferenceRequest) -> InferenceRequest:
        """A request as it was meant, with the tensors that took a fabric."""
        self.lane.lease_s = request.deadline_s + self._own.config.lease_slack_s
        return request if request.tensors else replace(request, tensors=self._next())

    def answers(self, reply: Reply) -> Reply:
        """A reply as it goes out."""
        return TensorsReady(self.carry(reply.tensors)) if isinstance(reply, TensorsReady) else reply

    def answered(self, reply: Reply) -> Reply:
        """A reply as it was meant."""
        return TensorsReady(self._next()) if isinstance(reply, TensorsReady) and not reply.tensors else reply

    def _next(self) -> tuple[Tensor, ...]:
        data = self._there.get(self._n_consumed)
        if data is None:
            return ()
        by_device = self.lane.receipts[self._n_consumed].offer.kind is Kind.GPU
        self._n_consumed += 1
        return (Tensor(DEVICE if by_device else "x", "u1", (len(data),), memoryview(data)),)

    # What comes

    def _receive(self, data: bytes) -> None:
        self._decoder.receive(data)
        while not self.lane.over and (frame := self._decoder.next_frame()) is not None:
            self._guard(lambda frame=frame: self._take(frame))  # type: ignore[misc]
        self._deliver()
        self._maybe_close()

    def _take(self, frame: bytes) -> None:
        match kind_of_frame(frame):
            case FrameKind.INFERENCE:
                self._ready.append(encode_frame(frame))
            case FrameKind.BULK:
                self.lane.bulk(frame[HEAD_BYTES:])
            case FrameKind.TRANSFER:
                message = decode_message(frame)
                assert message is not None
                if isinstance(message, Offer):
                    self._n_offered += 1
                    self._expect(message.transfer)
                self.lane.hear(message)

    def _deliver(self) -> None:
        """Hands messages on whose tensors are there."""
        while self._ready and not self._is_closing and len(self._there) >= self._n_offered:
            self.on_data(self._ready.popleft())

    def _taken(self, number: int, data: bytes) -> None:
        self._there[number] = data
        self._own.timer.after(0.0, self._goes_on)  # not within what brings them

    def _goes_on(self) -> None:
        if not self.lane.over:
            self._deliver()
            self._maybe_close()

    def _void(self, number: int) -> None:
        raise CheckFailedError("I11", f"{self._who} has to begin again: transfer {number} was taken back while it was used")

    def _broke(self, broken: Broken) -> None:
        self._over()
        self.on_broken(broken)

    def _maybe_close(self) -> None:
        """Closes once nobody needs the stream for a transfer."""
        awaits = any(gift.giving.awaits_taking for gift in self.lane.gifts.values())
        if self._is_closing and not self.lane.over and not awaits:
            self._over()
            self._stream.close()

    def _over(self) -> None:
        if not self.lane.over:
            self._guard(self.lane.break_off)
        if self in self._own.open_streams:
            self._own.open_streams.remove(self)

    # What must hold

    @property
    def _who(self) -> str:
        return f"n{self.process.index}, with n{self.peer.index}"

    def _guard(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BrokenPromiseError as broken:
            raise CheckFailedError("I12", f"{self._who}: {broken}") from broken
        except ProtocolError as error:
            raise CheckFailedError("I11", f"{self._who}: the other broke the protocol of transfers: {error}") from error
        self._look()

    def _look(self) -> None:
        """Whether the way back to the stream was taken in time."""
        longest_s, process, now = self.tally.longest_fall_back_s, self.process, self._own.timer.now
        if longest_s <= FALL_BACK_S:
            return
        self.tally.longest_fall_back_s = 0.0
        if process.slow_s == 0.0 and process.busy_until < now - longest_s and not process.stalled_s(now - longest_s, now):
            raise CheckFailedError("I11", f"{self._who}: tensors turn to the stream {longest_s:.3f} s after the first sign")

    def _expect(self, number: int) -> None:
        """What was offered has to come, be it by the stream, where nothing but fabrics is broken."""
        world, came_at = self._own.world, self._own.timer.now
        fabrics = self._own.fabrics
        sound = fabrics.are_alone_broken

        def look() -> None:
            receipt = self.lane.receipts[number]
            missing = not self.lane.over and receipt.taking.state in (Receiver.WAITING, Receiver.MAPPING, Receiver.GRANTED)
            still = self._own.is_alive and self._stream.is_open() and not self.process.stalled_s(came_at, world.now)
            if missing and still and sound and fabrics.are_alone_broken and self._other_lives():
                raise CheckFailedError("I11", f"{self._who}: tensors offered {ARRIVES_S:g} s ago are not there")

        world.at(came_at + ARRIVES_S, look)

    def _other_lives(self) -> bool:
        other = self._stream.other
        return other is not None and other.is_open() and not other.over and other.process.works

    def open_gifts(self) -> int:
        """Transfers that are given and were not taken yet."""
        return sum(gift.giving.state is not Giver.OVER for gift in self.lane.gifts.values())
