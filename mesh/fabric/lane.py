"""A stream whose tensors take a fabric: to whoever asks or answers over it, it reads and writes as any stream of chapter 6.

The messages of chapter 6 pass as they are. Messages about transfers, and bytes that the fabric did not carry, are taken out on
the way in, and offers are put in on the way out. An inference message is handed on only when the tensors that were offered before
it are there, so nobody has to wait for them apart.

Spec: docs/spec/11-fabric.md, section "Messages".
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from mesh.fabric.base import Reads, Session, Writes
from mesh.fabric.transfers import TRANSFERS_MAX, Gift, Receipt, send_pieces
from mesh.transport import ConnectionLost, Doing, Stream, StreamReset
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import STREAM, Action, Giver, Gives, Giving, Lease, Receiver, Takes, Taking, crossover_bytes, reaches_devices
from protocol.fabric.messages import (
    HEAD_BYTES,
    FrameKind,
    Leased,
    Message,
    Offer,
    Placed,
    Refused,
    Released,
    Revoked,
    Streamed,
    Taken,
    decode_message,
    encode_message,
    kind_of_frame,
)
from protocol.identity import PeerId
from protocol.inference import Tensor, are_on_host, on_host
from protocol.wire.inference import REPLY_BYTES_MAX

if TYPE_CHECKING:
    from mesh.fabric.fabrics import Fabrics


class Lane:
    """Both directions of a stream, with a fabric beside it; see the module's docstring."""

    def __init__(
        self, stream: Stream, sessions: Sequence[Session], fabrics: "Fabrics", deadline_s: float, *, serves: bool
    ) -> None:
        """Begins.

        Args:
            stream: negotiated for requests with a fabric; it is the lane's from now on.
            sessions: the fabrics with the peer, at most one that reaches devices and one other; where all are closed by now
                everything takes the stream.
            fabrics: bounds, budgets, and who hears of faults.
            deadline_s: of the request; a lease lasts as long.
            serves: whether this side answers.
        """
        self._stream = stream
        self.sessions = tuple(sessions)
        self._fabrics = fabrics
        self._lifetime_s = deadline_s + fabrics.config.lease_slack_s
        self._serves = serves
        self._decoder = FrameDecoder(REPLY_BYTES_MAX + HEAD_BYTES)
        self._ready: deque[bytes] = deque()
        self._unsaid: list[bytes] = []
        self._gifts: list[Gift] = []
        self._receipts: list[Receipt] = []
        self._consumed = 0
        self._run: Receipt | None = None
        self._reading = False
        self._hearing = trio.CancelScope()
        self._n_steps = 0
        self._fell_back = False
        self._is_reset = False
        self._sending = trio.Lock()
        self._settled = trio.Event()
        self.fault: RemoteProtocolError | None = None
        self.takes_device = False  # whether tensors of the peer may be put on a device
        self.on_way: Callable[[str], None] = lambda _way: None

    # What a stream is

    @property
    def peer_id(self) -> PeerId:
        """Who is at the other end."""
        return self._stream.peer_id

    def waiting(self) -> AbstractContextManager[None]:
        """Enter while the peer is to finish what it began."""
        return self._stream.waiting()

    def tell(self, doing: Doing, *, sent: bool, data: bytes | memoryview = b"", code: int = 0) -> None:
        """Tell those who watch what happened."""
        self._stream.tell(doing, sent=sent, data=data, code=code)

    def at_hand(self) -> bytes:
        """Inference messages that have come already; empty where they would have to be waited for."""
        while not self._deliverable and (data := self._stream.at_hand()):
            self._feed(data)
        return self._ready.popleft() if self._deliverable else b""

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """Wait for an inference message with all its tensors; empty when the peer has finished.

        Raises:
            RemoteProtocolError: the peer broke the protocol, on the side that asks.
            StreamReset: as the stream, and for that on the side that answers.
            ConnectionLost: as the stream.
        """
        del max_bytes  # whole messages
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._deliverable:
            if not await self._read():
                if self._n_steps:  # what came last is still being looked at
                    with trio.CancelScope() as self._hearing:
                        await trio.sleep_forever()
                    continue
                if self._ready or self._awaits_bytes:
                    self._broke(RemoteProtocolError(ErrorCode.MALFORMED, "the stream ended before the tensors came"))
                return b""
        return self._ready.popleft()

    async def send_all(self, data: bytes | bytearray | memoryview, *, end: bool = False, **when: bool) -> None:
        """Send inference messages, behind what is to be said of transfers; an end waits until all transfers are settled.

        Raises:
            StreamReset: as the stream.
            ConnectionLost: as the stream.
        """
        is_open = any(gift.is_open for gift in self._gifts)
        await self._send(data, end=end and not is_open, **when)
        self._sent_offers()
        if end and is_open:
            await self._settle()
            await self._send(end=True)

    def reset(self, code: int) -> None:
        """Abandon both sides; the first code is what the peer sees."""
        if not self._is_reset:
            self._is_reset = True
            self._over()
            self._stream.reset(code)

    async def aclose(self) -> None:
        """Finish this side, and read no more."""
        # What was taken is told even where whoever closes is cancelled, as happens once it has the answer: a peer that is not
        # told never uses the region again. It may leave with what is said next.
        if not self._sending.locked() and not any(gift.is_open for gift in self._gifts):
            said = self._said()
            if not self._stream.send_now(said, end=True, linger=True) and said:
                self._unsaid.append(said)
        try:
            if self._unsaid:
                await self._send()
        finally:
            self._over()
            await self._stream.aclose()

    # Tensors

    def carry(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Let tensors take a fabric: their offer leaves with the next message.

        Returns:
            What the message is to hold itself: nothing, or all of them where no fabric takes them or they are too few.

        Raises:
            OSError: a device fails from which they are brought to the host.
        """
        by_way = {reaches_devices(session.kind): session for session in self.sessions if not session.closed}
        apart, other = by_way.get(True), by_way.get(False)
        if not are_on_host(tensors) and self._offer(apart, tensors):
            return ()
        if other is None or not other.takes_devices:
            tensors = on_host(tensors)
        return () if self._offer(other, tensors) else on_host(tensors)

    def _offer(self, session: Session | None, tensors: Sequence[Tensor]) -> bool:
        if session is None or len(self._gifts) >= TRANSFERS_MAX:
            return False
        if tensors and sum(tensor.size_bytes for tensor in tensors) < crossover_bytes(session.way, STREAM):
            return False
        try:
            given = session.give(tensors, self._lifetime_s, self._fabrics.now())
        except OSError as error:
            self._fabrics.fault(session, f"no memory for a region: {error.strerror}")
            return False
        if given is None:
            return False
        self._say(Offer(len(self._gifts), session.kind, given.places, given.lease, given.tag, given.on_device))
        self._gifts.append(Gift(session, given, Giving(writes=given.lease is None)))
        self.on_way(session.title)
        return True

    def next_tensors(self) -> tuple[Tensor, ...] | None:
        """The tensors of the next transfer of the peer, which are there; None where it has offered no more."""
        if self._consumed >= len(self._receipts):
            return None
        receipt = self._receipts[self._consumed]
        assert receipt.is_there
        self._consumed += 1
        tensors, receipt.tensors = receipt.tensors, ()
        return tensors

    def lives(self, deadline_s: float) -> None:
        """The request is known, and with it how long the answer may take."""
        self._lifetime_s = deadline_s + self._fabrics.config.lease_slack_s

    def late(self, number: int) -> None:
        """The time is over in which a transfer was to be taken."""
        gift = self._gifts[number]
        if not gift.giving.awaits_taking or gift.given.size_bytes > self._fabrics.config.bulk_bytes_max:
            return
        if gift.has_time():
            self._fabrics.expect(self, number)
            return
        self._give(number, Gives.LATE, "what was offered was not taken in time")

    def broken(self, session: Session, number: int, why: str) -> None:
        """A fabric has failed that a transfer may be using: what nobody can write any more takes the stream at once."""
        gift = self._gifts[number]
        if gift.session is session and gift.giving.awaits_taking:
            gift.failed(self._fabrics.now())
            if gift.giving.state is Giver.OFFERED and gift.given.lease is None:
                self._give(number, Gives.FAILED, why)

    # Reading

    @property
    def _awaits_bytes(self) -> bool:
        return any(not receipt.is_there for receipt in self._receipts[self._consumed :])

    @property
    def _deliverable(self) -> bool:
        return bool(self._ready) and not self._awaits_bytes

    async def _read(self) -> bool:
        """Read once, and take what it brings; False at the end. Also returns when a step of the hardware is done."""
        self._hearing = hearing = trio.CancelScope()
        self._reading = True
        data = None
        try:
            if self._unsaid:
                await self._send(linger=True)  # it may leave with what is said next
            with hearing:
                data = await self._stream.receive_some()
        finally:
            self._reading = False
        if data is None:
            return True
        self._feed(data)
        return bool(data)

    def _feed(self, data: bytes) -> None:
        try:
            self._decoder.receive(data)
            while (frame := self._decoder.next_frame()) is not None:
                match kind_of_frame(frame):
                    case FrameKind.INFERENCE:
                        self._ready.append(encode_frame(frame))
                    case FrameKind.BULK:
                        self._collect(memoryview(frame)[HEAD_BYTES:])
                    case FrameKind.TRANSFER:
                        self.tell(Doing.FRAME, sent=False, data=frame)
                        if (message := decode_message(frame)) is not None:
                            self._hear(message)
        except RemoteProtocolError as error:
            self._broke(error)

    def _broke(self, error: RemoteProtocolError) -> None:
        """The peer broke the protocol.

        Raises:
            RemoteProtocolError: on the side that asks.
            StreamReset: on the side that answers, where a fault past the request ends the stream.
        """
        self.fault = error
        for session in self.sessions:
            self._fabrics.fault(session, error.detail)
        if not self._serves:
            raise error
        self.reset(error.code)
        raise StreamReset(error.code, error.detail) from error

    def _hear(self, message: Message) -> None:
        match message:
            case Offer():
                self._take_offer(message)
            case Taken(number):
                self._give(number, Gives.TAKEN)
            case Refused(number, code, detail):
                self._give(number, Gives.REFUSED, f"refused: {code.name.lower()}: {detail}", code=code)
            case Released(number):
                self._give(number, Gives.RELEASED)
            case Leased(number, lease):
                self._give(number, Gives.LEASED, lease=lease)
            case Placed(number, tag):
                receipt = self._receipt(number)
                receipt.tag = tag
                self._take(receipt, Takes.PLACED)
            case Revoked(number):
                self._take(self._receipt(number), Takes.REVOKED)
            case Streamed(number):
                self._run = self._receipt(number)
                self._take(self._run, Takes.STREAMED)
                self._look_at_run(self._run)

    # Giving

    def _give(
        self, number: int, event: Gives, why: str = "", lease: Lease | None = None, code: ErrorCode = ErrorCode.FABRIC_FAILED
    ) -> None:
        if number >= len(self._gifts):
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"{event.value} of transfer {number}, which was not offered")
        gift = self._gifts[number]
        actions = gift.giving.handle(event)
        if why:
            gift.failed(self._fabrics.now())
        # The bytes are read from the region: it must not be used again before they are.
        for action in sorted(actions, key=lambda action: action is not Action.STREAM):
            self._do_give(gift, number, action, lease)
        gift.fresh = True
        if event is Gives.TAKEN:
            self._fabrics.succeeded(gift.session)
        if why:
            if not self._fell_back:
                self.on_way(f"{gift.session.title}, then the stream: {why}")
            self._fell_back = True
            if event is Gives.LATE:
                self._fabrics.was_late(gift.session, why)
            elif code is not ErrorCode.OVERLOADED:  # nothing is broken where only this transfer finds no room
                self._fabrics.fault(gift.session, why)
        self._settled.set()

    def _do_give(self, gift: Gift, number: int, action: Action, lease: Lease | None) -> None:
        session = gift.session
        match action:
            case Action.REUSE:
                session.reuse(gift.given)
            case Action.RETIRE:
                session.retire(gift.given)
            case Action.STREAM:
                gift.streaming = True
                gift.given.hold()
                self._fabrics.spawn(self._stream_bytes, gift, number)
            case Action.SAY_REVOKED:
                self._say(Revoked(number))
            case Action.WRITE:
                assert session.writes is not None
                assert lease is not None
                gift.given.hold()
                self._begin_step(self._write, session.writes, gift, number, lease)
            case _:
                assert action is Action.SAY_PLACED
                self._say(Placed(number, gift.tag))

    async def _write(self, writes: Writes, gift: Gift, number: int, lease: Lease) -> None:
        """Writes a transfer's tensors into what the peer has leased."""
        try:
            gift.tag = await writes.write(gift.given, lease)
        except (RemoteProtocolError, OSError) as error:
            code = error.code if isinstance(error, RemoteProtocolError) else ErrorCode.FABRIC_FAILED
            self._give(number, Gives.FAILED, f"it could not be written: {error}", code=code)
        else:
            self._give(number, Gives.WRITTEN)
        finally:
            gift.given.let_go()

    async def _stream_bytes(self, gift: Gift, number: int) -> None:
        """Sends the bytes of a transfer by the stream; where they are too many for that, the stream ends."""
        config = self._fabrics.config
        try:
            if gift.given.size_bytes > config.bulk_bytes_max:
                self.reset(ErrorCode.FABRIC_FAILED)
                return
            self._say(Streamed(number))
            await self._send()
            await send_pieces(gift, self._send, config.bulk_frame_bytes_max, self._fabrics.fell_back)
        except (StreamReset, ConnectionLost):
            pass  # whoever reads the stream learns of it
        finally:
            gift.streaming = False
            gift.given.let_go()
            self._settled.set()

    async def _settle(self) -> None:
        """Wait until no transfer of this side needs the stream any more."""
        while any(gift.is_open for gift in self._gifts):
            self._settled = trio.Event()
            if self._reading:
                await self._settled.wait()
            elif any(gift.giving.awaits_taking for gift in self._gifts):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read_until_settled, nursery.cancel_scope)
                    await self._settled.wait()
                    nursery.cancel_scope.cancel()
            else:
                await self._settled.wait()

    async def _read_until_settled(self, scope: trio.CancelScope) -> None:
        with suppress(StreamReset, ConnectionLost):
            while await self._read():
                pass
        self._over()
        scope.cancel()

    def _over(self) -> None:
        """The stream is over: what the peer has not taken it may be looking at for all we know."""
        for number, gift in enumerate(self._gifts):
            if gift.giving.awaits_taking or gift.giving.state is Giver.DOUBTED:
                self._give(number, Gives.BROKEN)
        for receipt in self._receipts:
            if not receipt.is_there and receipt.taking.state is not Receiver.OVER:
                self._take(receipt, Takes.BROKEN)
        self._settled.set()

    # Taking

    def _receipt(self, number: int) -> Receipt:
        if number >= len(self._receipts):
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"a word about transfer {number}, which was not offered")
        return self._receipts[number]

    def _take_offer(self, offer: Offer) -> None:
        if offer.transfer != len(self._receipts) or offer.transfer >= TRANSFERS_MAX:
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"transfer {offer.transfer} is offered after {len(self._receipts)}")
        refused = self._fabrics.charge_offer(self.peer_id)
        session = next((session for session in self.sessions if session.kind is offer.kind), None)
        offer = replace(offer, on_device=offer.on_device and self.takes_device)
        receipt = Receipt(session, offer, Taking(grants=offer.lease is None))
        self._receipts.append(receipt)
        if refused is ErrorCode.FLOODING:
            raise RemoteProtocolError(ErrorCode.FLOODING, "more transfers are offered than anybody takes")
        if refused is not None or session is None or session.closed:
            self._take(receipt, Takes.FAILED, refused or ErrorCode.FABRIC_FAILED, "this fabric is closed here")
        elif receipt.taking.first is Action.GRANT:
            if session.writes is None:
                self._take(receipt, Takes.FAILED, ErrorCode.UNSUPPORTED, "nobody writes by this fabric")
            else:
                self._begin_step(self._grant, session.writes, receipt)
        elif session.reads is None:
            self._take(receipt, Takes.FAILED, ErrorCode.UNSUPPORTED, "nobody reads by this fabric")
        else:
            self._map(session.reads, receipt)

    def _map(self, reads: Reads, receipt: Receipt) -> None:
        """Take what the peer has leased, now or when it is ready."""
        offer = receipt.offer
        assert offer.lease is not None
        try:
            taken = reads.take(offer.lease, offer.places, offer.tag)
        except RemoteProtocolError as error:
            self._take_failed(receipt, error)
            return
        if isinstance(taken, tuple):
            receipt.tensors = taken
            self._take(receipt, Takes.READY)
        else:
            self._begin_step(self._await_taken, taken, receipt)

    async def _await_taken(self, taken: Awaitable[tuple[Tensor, ...]], receipt: Receipt) -> None:
        try:
            tensors = await taken
        except (RemoteProtocolError, OSError) as error:
            self._take_failed(receipt, error)
        else:
            self._take_ready(receipt, tensors)

    async def _grant(self, writes: Writes, receipt: Receipt) -> None:
        """Leases memory for a transfer that the peer writes."""
        try:
            receipt.lease = await writes.grant(receipt.offer, self._lifetime_s, self._fabrics.now())
        except (RemoteProtocolError, OSError) as error:
            self._take_failed(receipt, error)
        else:
            self._take(receipt, Takes.READY)

    def _take_ready(self, receipt: Receipt, tensors: tuple[Tensor, ...]) -> None:
        """The tensors of a transfer are in place; they are wanted only where nobody has turned to the stream meanwhile."""
        if receipt.taking.state in (Receiver.MAPPING, Receiver.CHECKING):
            receipt.tensors = tensors
        self._take(receipt, Takes.READY)
        if receipt.lease is not None and receipt.taking.state is Receiver.TAKEN:
            self._take(receipt, Takes.DONE)  # they lie in this side's memory, and the lease was taken back

    def _take_failed(self, receipt: Receipt, error: RemoteProtocolError | OSError) -> None:
        code = error.code if isinstance(error, RemoteProtocolError) else ErrorCode.FABRIC_FAILED
        detail = error.detail if isinstance(error, RemoteProtocolError) else str(error)
        if receipt.taking.state in (Receiver.MAPPING, Receiver.GRANTING, Receiver.CHECKING):
            self._take(receipt, Takes.FAILED, code, detail)
        if code is not ErrorCode.OVERLOADED:
            assert receipt.session is not None
            self._fabrics.fault(receipt.session, detail)

    def _take(
        self, receipt: Receipt, event: Takes, code: ErrorCode = ErrorCode.FABRIC_FAILED, detail: str = "taken back"
    ) -> None:
        number = receipt.offer.transfer
        for action in receipt.taking.handle(event):
            match action:
                case Action.SAY_TAKEN:
                    self._say(Taken(number))
                case Action.SAY_REFUSED:
                    self._say(Refused(number, code, detail))
                case Action.SAY_RELEASED:
                    self._say(Released(number))
                case Action.SAY_LEASED:
                    assert receipt.lease is not None
                    self._say(Leased(number, receipt.lease))
                case Action.HAND_OUT:
                    receipt.is_there = True
                case Action.LET_GO | Action.INVALIDATE | Action.CHECK:
                    self._let_go(receipt, action, event)
                case Action.COLLECT:
                    receipt.collects = True
                    receipt.arrived = bytearray()
                case Action.DROP:
                    receipt.collects = False
                case _:
                    assert action is Action.VOID
                    if self._consumed > number:
                        # They are in use already, and whoever uses them cannot begin again (ISO-FAB-019).
                        raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "a lease was taken back while its tensors were used")
                    receipt.is_there = False

    def _let_go(self, receipt: Receipt, action: Action, event: Takes) -> None:
        """End what this side has of a lease: of the peer's, or of its own that the peer has written to."""
        writes = None if receipt.session is None else receipt.session.writes
        if receipt.lease is None or writes is None:
            receipt.tensors = ()
        elif action is Action.CHECK:
            self._begin_step(self._await_taken, writes.check(receipt.offer, receipt.lease, receipt.tag), receipt)
        elif receipt.taking.state is not Receiver.CHECKING and event is not Takes.DONE:
            receipt.tensors = ()
            writes.withdraw(receipt.lease)

    # Steps of the hardware

    def _begin_step(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        """Do beside the stream what takes a while; whoever reads goes on once it is done, and what it says leaves at once."""
        self._n_steps += 1
        self._fabrics.spawn(self._step, work, args)

    async def _step(self, work: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        try:
            await work(*args)
        finally:
            self._n_steps -= 1
            self._hearing.cancel()
        if self._unsaid:
            with suppress(StreamReset, ConnectionLost):  # whoever reads the stream learns of it
                await self._send()

    def _collect(self, data: memoryview) -> None:
        """Take bytes that the fabric did not carry."""
        receipt = self._run
        if receipt is None:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "bytes of no transfer")
        if not receipt.collects:
            return
        size = receipt.offer.size_bytes
        if len(receipt.arrived) + len(data) > min(size, self._fabrics.config.bulk_bytes_max):
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"more bytes than the {size} of the transfer, or than are taken")
        receipt.arrived += data
        self._look_at_run(receipt)

    def _look_at_run(self, receipt: Receipt) -> None:
        """Hand the tensors out once all of their bytes are there."""
        if receipt.has_arrived:
            receipt.collects = False
            receipt.tensors = receipt.from_stream()
            self._take(receipt, Takes.ARRIVED)

    # Saying

    def _say(self, message: Message) -> None:
        self._unsaid.append(encode_frame(encode_message(message)))

    async def _send(self, data: bytes | bytearray | memoryview = b"", *, end: bool = False, **when: bool) -> None:
        """Send something behind what is to be said."""
        async with self._sending:
            await self._stream.send_all(self._said() + data, end=end, **when)

    def _said(self) -> bytes:
        said = b"".join(self._unsaid)
        self._unsaid.clear()
        return said

    def _sent_offers(self) -> None:
        """The time to take what was offered begins when the offer has left."""
        for number, gift in enumerate(self._gifts):
            if gift.giving.awaits_taking and not gift.timed:
                gift.timed = True
                self._fabrics.expect(self, number)
