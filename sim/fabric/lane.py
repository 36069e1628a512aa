"""The transfers of one stream, as one of its ends sees them: the core's states, books and codec over sessions that break.

It stands where `mesh.fabric.lane` stands. What is read is a frame at a time; what is said goes out at once. Whoever holds tensors
looks at them when it gets them and again before it counts on them.

Spec: docs/spec/11-fabric.md, sections "Messages", "States of a giver", "States of a receiver".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import Action, FabricConfig, Giver, Gives, Giving, Lease, Place, Receiver, Takes, Taking
from protocol.fabric.messages import (
    Leased,
    Message,
    Offer,
    Placed,
    Refused,
    Released,
    Revoked,
    Streamed,
    Taken,
    bulk_head,
    encode_message,
)
from sim.fabric.hardware import BrokenPromiseError, FabricError, Hardware, Timer, run_step
from sim.fabric.kinds import Session
from sim.fabric.poolsessions import CxlSession
from sim.fabric.sessions import Given, GpuSession, RdmaSession

FALL_BACK_S = 0.2
"""Seconds within which the bytes are on the stream, from the first sign that the fabric does not carry them (ISO-FAB-018)."""

BULK_FRAME_BYTES = 32 * 1024
"""Bytes of a tensor in one frame of the stream."""


class Fell(Enum):
    """Why a transfer did not take the fabric to its end."""

    LATE = "late"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(eq=False, slots=True)
class _Gift:
    """A transfer that this end gives."""

    session: Session
    given: Given
    giving: Giving
    offer: Offer
    first_sign_at: float = 0.0
    target: Lease | None = None


@dataclass(eq=False, slots=True)
class _Receipt:
    """A transfer that this end takes."""

    session: Session | None
    offer: Offer
    taking: Taking
    came_at: float
    data: bytes = b""
    lease: Lease | None = None
    collects: bool = False
    arrived: bytearray = field(default_factory=bytearray)
    tag: bytes = b""
    stale: bool = False  # the lease was taken back or ran out since the tensors were handed out


@dataclass(eq=False, slots=True)
class Tally:
    """What became of the transfers of one end, counts; and the longest way back to the stream, in seconds."""

    by_fabric: int = 0
    by_stream: int = 0
    errors: int = 0
    voided: int = 0
    retired: int = 0
    longest_fall_back_s: float = 0.0


@dataclass(eq=False, slots=True)
class Lane:
    """One end of a stream.

    Attributes:
        name: of the process.
        clock: of the process.
        hardware: of the process.
        config: bounds.
        sessions: the fabrics with the process at the other end, by kind.
        lease_s: how long leases hold, in seconds.
        send: sends a frame.
        on_fault: hears that something about a session went wrong, and whether the peer was only late.
        charge: charges an offer of the peer before any work; what it is refused with.
        taken: takes the number of a transfer and its bytes; again where what it had was void.
        void: what was handed out by a number does not count.
        tally: what became of everything.
        on_success: hears that the other end has taken what was given.
    """

    name: str
    clock: Timer
    hardware: Hardware
    config: FabricConfig
    sessions: dict[int, Session]
    lease_s: float
    send: Callable[[bytes], None]
    on_fault: Callable[[Session, Fell], None]
    charge: Callable[[], ErrorCode | None]
    taken: Callable[[int, bytes], None]
    void: Callable[[int], None]
    tally: Tally
    on_success: Callable[[Session], None] = field(default=lambda _session: None)
    over: bool = False
    gifts: dict[int, _Gift] = field(default_factory=dict[int, _Gift])
    receipts: dict[int, _Receipt] = field(default_factory=dict[int, _Receipt])
    running: _Receipt | None = None

    # Giving

    def give(self, number: int, session: Session, data: bytes) -> bool:
        """Offer some bytes as two tensors; False where they have to go within a message."""
        half = len(data) // 2
        places = (Place("a", "u1", (half,), 0, half), Place("b", "u1", (len(data) - half,), half, len(data) - half))
        try:
            given = session.give(data, places, self.lease_s)
        except FabricError:
            self.tally.errors += 1
            self.on_fault(session, Fell.FAILED)
            return False
        if given is None:
            return False
        offer = Offer(number, session.kind, given.places, given.lease, given.tag)
        gift = self.gifts[number] = _Gift(session, given, Giving(writes=given.lease is None), offer)
        self._say(offer)
        self._expect(gift)
        return True

    def take_back(self) -> None:
        """This end's memory is taken from it: whatever is given by a lease to read does not count any more."""
        for gift in list(self.gifts.values()):
            if gift.offer.lease is not None and gift.giving.state in (Giver.OFFERED, Giver.TAKEN):
                self._give(gift, Gives.FAILED)

    def _expect(self, gift: _Gift) -> None:
        def late() -> None:
            if not self.over and gift.giving.awaits_taking:
                self._give(gift, Gives.LATE)

        self.clock.after(self.config.take_s, late)

    def _lease_over(self, gift: _Gift) -> None:
        if not self.over and gift.giving.state in (Giver.TAKEN, Giver.DOUBTED):
            self._give(gift, Gives.LATE)

    def _give(self, gift: _Gift, event: Gives) -> None:
        fell = _FELL.get(event)
        if fell is not None:
            self.tally.errors += 1
            gift.first_sign_at = self.clock.now - (self.config.take_s if fell is Fell.LATE else 0.0)
        for action in gift.giving.handle(event):
            self._do_give(gift, action)
        if gift.giving.state in (Giver.TAKEN, Giver.DOUBTED) and gift.given.lease is not None:
            wait_s = gift.given.lease.lifetime_s + self.config.lease_grace_s
            self.clock.after(wait_s, lambda: self._lease_over(gift))
        if fell is not None:
            self.on_fault(gift.session, fell)
        elif event is Gives.TAKEN:
            self.on_success(gift.session)

    def _do_give(self, gift: _Gift, action: Action) -> None:
        number, session = gift.offer.transfer, gift.session
        match action:
            case Action.STREAM:
                self.tally.longest_fall_back_s = max(self.tally.longest_fall_back_s, self.clock.now - gift.first_sign_at)
                self._say(Streamed(number))
                for start in range(0, len(gift.given.data), BULK_FRAME_BYTES):
                    self.send(bulk_head() + gift.given.data[start : start + BULK_FRAME_BYTES])
            case Action.REUSE if not isinstance(session, RdmaSession):
                session.reuse(gift.given)
            case Action.RETIRE if not isinstance(session, RdmaSession):
                self.tally.retired += 1
                session.retire(gift.given)
            case Action.WRITE:
                self._step(session, "write", lambda: self._write(gift), lambda: self._written(gift, Gives.FAILED))
            case Action.SAY_PLACED:
                self._say(Placed(number, gift.offer.tag))
            case Action.SAY_REVOKED:
                self._say(Revoked(number))
            case _:
                assert action in (Action.REUSE, Action.RETIRE)

    def _write(self, gift: _Gift) -> None:
        assert isinstance(gift.session, RdmaSession)
        assert gift.target is not None
        try:
            tag = gift.session.write(gift.given, gift.target)
        except FabricError:
            self._written(gift, Gives.FAILED)
        else:
            gift.offer = Offer(gift.offer.transfer, gift.offer.kind, gift.offer.places, None, tag)
            self._written(gift, Gives.WRITTEN)

    def _written(self, gift: _Gift, event: Gives) -> None:
        if gift.giving.state in (Giver.WRITING, Giver.STREAMED):
            self._give(gift, event)
        if gift.giving.state is Giver.PLACED:
            self._expect(gift)

    # Taking

    def _begin(self, offer: Offer) -> None:
        session = self.sessions.get(int(offer.kind))
        receipt = self.receipts[offer.transfer] = _Receipt(session, offer, Taking(grants=offer.lease is None), self.clock.now)
        refused = self.charge()
        if refused is not None or session is None or session.closed:
            self._take(receipt, Takes.FAILED)
        elif receipt.taking.first is Action.GRANT:
            self._step(session, "grant", lambda: self._grant(receipt), lambda: self._ready(receipt, Takes.FAILED))
        else:
            self._step(session, "map", lambda: self._map(receipt), lambda: self._ready(receipt, Takes.FAILED))

    def _map(self, receipt: _Receipt) -> None:
        session, lease = receipt.session, receipt.offer.lease
        assert session is not None
        assert not isinstance(session, RdmaSession)
        assert lease is not None
        if receipt.taking.state is not Receiver.MAPPING:
            return
        try:
            data = session.take(receipt.offer)
        except (RemoteProtocolError, FabricError):
            self._ready(receipt, Takes.FAILED)
            return
        receipt.data, receipt.lease = data, lease
        self._ready(receipt, Takes.READY)
        self._runs_out(receipt, lease)

    def _grant(self, receipt: _Receipt) -> None:
        session = receipt.session
        assert isinstance(session, RdmaSession)
        if receipt.taking.state is not Receiver.GRANTING:
            return
        try:
            lease = session.grant(receipt.offer, self.lease_s)
        except (RemoteProtocolError, FabricError):
            self._ready(receipt, Takes.FAILED)
            return
        receipt.lease = lease
        self._ready(receipt, Takes.READY)
        self._runs_out(receipt, lease)

    def _check(self, receipt: _Receipt) -> None:
        session, lease = receipt.session, receipt.lease
        if receipt.taking.state is not Receiver.CHECKING or lease is None:
            return
        assert isinstance(session, RdmaSession)
        try:
            receipt.data = session.check(receipt.offer, lease, receipt.tag)
        except (RemoteProtocolError, FabricError):
            self._ready(receipt, Takes.FAILED)
        else:
            self._ready(receipt, Takes.READY)

    def _runs_out(self, receipt: _Receipt, lease: Lease) -> None:
        def over() -> None:
            states = (Receiver.TAKEN, Receiver.GRANTED)
            if not self.over and receipt.lease == lease and receipt.taking.state in states:
                self._take(receipt, Takes.LATE)

        self.clock.after(lease.lifetime_s, over)

    def _ready(self, receipt: _Receipt, event: Takes) -> None:
        """The hardware is done, perhaps long after anybody waited for it."""
        if self.over:
            return
        awaited = receipt.taking.state in (Receiver.MAPPING, Receiver.GRANTING, Receiver.CHECKING)
        if awaited or (event is Takes.READY and receipt.taking.state is not Receiver.TAKEN):
            self._take(receipt, event)
        if event is Takes.FAILED and receipt.session is not None:
            self.on_fault(receipt.session, Fell.FAILED)

    def _take(self, receipt: _Receipt, event: Takes) -> None:
        if event in (Takes.FAILED, Takes.LATE):
            self.tally.errors += 1
        if event in (Takes.REVOKED, Takes.LATE) and receipt.taking.state is Receiver.TAKEN:
            receipt.stale = True
        for action in receipt.taking.handle(event):
            self._do_take(receipt, action)

    def _do_take(self, receipt: _Receipt, action: Action) -> None:
        number, session = receipt.offer.transfer, receipt.session
        match action:
            case Action.SAY_LEASED:
                assert receipt.lease is not None
                self._say(Leased(number, receipt.lease))
            case Action.INVALIDATE:
                if receipt.lease is not None:
                    assert isinstance(session, RdmaSession)
                    session.invalidate(receipt.lease)
                    if receipt.taking.state is not Receiver.CHECKING:
                        self._let_go(receipt)
            case Action.CHECK:
                assert session is not None
                self._step(session, "check", lambda: self._check(receipt), lambda: self._ready(receipt, Takes.FAILED))
            case Action.SAY_TAKEN:
                self._say(Taken(number))
            case Action.SAY_REFUSED:
                self._say(Refused(number, ErrorCode.FABRIC_FAILED, "as it happens"))
            case Action.SAY_RELEASED:
                self._say(Released(number))
            case Action.HAND_OUT:
                self._hand_out(receipt)
            case Action.VOID:
                self.tally.voided += 1
                self.void(number)
            case Action.LET_GO:
                self._let_go(receipt)
            case Action.COLLECT:
                receipt.collects = True
                receipt.arrived.clear()
            case Action.DROP:
                receipt.collects = False
                receipt.arrived.clear()
            case _:
                raise AssertionError(action)

    def _let_go(self, receipt: _Receipt) -> None:
        """End the lease that this end gave, or the use of the other's."""
        lease, session = receipt.lease, receipt.session
        receipt.lease = None
        if lease is None or session is None:
            return
        if isinstance(session, RdmaSession):
            session.invalidate(lease)
            session.end(lease)
        else:
            session.let_go(lease)

    def _hand_out(self, receipt: _Receipt) -> None:
        receipt.stale = False
        if receipt.taking.state is Receiver.TAKEN:
            self.tally.by_fabric += 1
        else:
            receipt.data = bytes(receipt.arrived)
            self.tally.by_stream += 1
        self.taken(receipt.offer.transfer, receipt.data)

    def done(self, number: int) -> bool:
        """The user of a transfer is done; False where what it had is void, so that it must wait for it again."""
        receipt = self.receipts[number]
        if not receipt.taking.has_tensors:
            return False
        if receipt.stale:
            raise BrokenPromiseError(f"transfer {number} counts though its lease was over before its user was done")
        self.look_again(receipt)
        self._take(receipt, Takes.DONE)
        return True

    def look_again(self, receipt: _Receipt) -> None:
        """What is looked at where it lies is as it was."""
        lease, session = receipt.lease, receipt.session
        if receipt.taking.state is not Receiver.TAKEN or lease is None or session is None:
            return
        if isinstance(session, RdmaSession):
            own = session.own.get(lease.region)
            same = own is None or own.segment.own(lease, receipt.offer.size_bytes) == receipt.data
        elif isinstance(session, GpuSession) or (isinstance(session, CxlSession) and not session.looks_at(lease)):
            same = True  # a copy
        else:
            same = session.look(lease, receipt.offer.size_bytes) == receipt.data
        if not same:
            raise BrokenPromiseError(f"transfer {receipt.offer.transfer} has changed while it was used")

    def break_off(self) -> None:
        """The stream is over: nothing more comes, and nothing more goes."""
        if self.over:
            return
        self.over = True
        for gift in self.gifts.values():  # what is taken is given back beside the stream, or its lease runs out
            if gift.giving.awaits_taking or gift.giving.state is Giver.DOUBTED:
                for action in gift.giving.handle(Gives.BROKEN):
                    self._do_give(gift, action)
        for receipt in self.receipts.values():
            for action in receipt.taking.handle(Takes.BROKEN):
                self._do_take(receipt, action)
            self._let_go(receipt)

    # The stream

    def bulk(self, data: bytes) -> None:
        """Bytes that the fabric did not carry have come."""
        receipt = self.running
        if receipt is None:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "bytes of no transfer")
        if receipt.collects:
            receipt.arrived += data
            if len(receipt.arrived) > receipt.offer.size_bytes:
                raise BrokenPromiseError("more bytes arrive than were offered")
            self._maybe_arrived(receipt)

    def _maybe_arrived(self, receipt: _Receipt) -> None:
        if receipt.collects and len(receipt.arrived) == receipt.offer.size_bytes:
            receipt.collects = False
            self._take(receipt, Takes.ARRIVED)

    def hear(self, message: Message) -> None:
        """A message about a transfer has come."""
        match message:
            case Offer():
                self._begin(message)
            case Leased(number, lease):
                self.gifts[number].target = lease
                self._give(self.gifts[number], Gives.LEASED)
            case Placed(number, tag):
                self.receipts[number].tag = tag
                self._take(self.receipts[number], Takes.PLACED)
            case Taken(number):
                self._give(self.gifts[number], Gives.TAKEN)
            case Refused(number):
                self._give(self.gifts[number], Gives.REFUSED)
            case Released(number):
                self._give(self.gifts[number], Gives.RELEASED)
            case Revoked(number):
                self._take(self.receipts[number], Takes.REVOKED)
            case Streamed(number):
                self.running = self.receipts[number]
                self._take(self.running, Takes.STREAMED)
                self._maybe_arrived(self.running)
            case _:
                assert_never(message)

    def _say(self, message: Message) -> None:
        self.send(encode_message(message))

    def _step(self, session: Session, step: str, works: Callable[[], None], fails: Callable[[], None]) -> None:
        def alive(call: Callable[[], None]) -> Callable[[], None]:
            return lambda: None if self.over else call()

        run_step(self.clock, self.hardware, session.kind, step, alive(works), alive(fails))


_FELL = {Gives.LATE: Fell.LATE, Gives.REFUSED: Fell.REFUSED, Gives.FAILED: Fell.FAILED}
