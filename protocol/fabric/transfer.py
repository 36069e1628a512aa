"""One transfer, as the side sees it that gives and as the side sees it that takes: two tables of states.

What the shell is to do comes out of `handle` as actions, in order. An event that has crossed another on its way is in the tables
and does nothing; one that is not in them is a fault of whoever caused it. Whatever goes wrong before the receiver has the
tensors, and after that as long as the lease lasts, leads to the same end: the giver sends their bytes by the stream.

    giver     with a lease to read:   OFFERED -> TAKEN -> OVER
              asking for one to write: OFFERED -> WRITING -> PLACED -> TAKEN -> OVER
              any failure:             -> STREAMED; -> DOUBTED while the receiver may still look at the region
    receiver  with a lease to read:   MAPPING -> TAKEN -> OVER
              giving one to write:    GRANTING -> GRANTED -> CHECKING -> TAKEN -> OVER
              any failure:             -> WAITING -> FROM_STREAM -> OVER

Source: the shape of the tables is h11's (`h11/_state.py`).
Spec: docs/spec/11-fabric.md, sections "States of a giver" and "States of a receiver".
"""

from enum import Enum

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError


class Giver(Enum):
    """The states of a giver."""

    OFFERED = "offered"
    WRITING = "writing"
    PLACED = "placed"
    TAKEN = "taken"
    STREAMED = "streamed"
    DOUBTED = "doubted"
    OVER = "over"


class Gives(Enum):
    """What happens to a giver; the first four are words of the peer."""

    LEASED = "leased"
    TAKEN = "taken"
    REFUSED = "refused"
    RELEASED = "released"
    WRITTEN = "written"
    FAILED = "failed"
    LATE = "late"
    BROKEN = "broken"


class Receiver(Enum):
    """The states of a receiver."""

    MAPPING = "mapping"
    GRANTING = "granting"
    GRANTED = "granted"
    CHECKING = "checking"
    TAKEN = "taken"
    WAITING = "waiting"
    FROM_STREAM = "from the stream"
    OVER = "over"


class Takes(Enum):
    """What happens to a receiver; the first three are words of the peer."""

    PLACED = "placed"
    REVOKED = "revoked"
    STREAMED = "streamed"
    READY = "ready"
    FAILED = "failed"
    LATE = "late"
    ARRIVED = "arrived"
    DONE = "done"
    BROKEN = "broken"


class Action(Enum):
    """What is to be done.

    Of the giver: WRITE into the lease; SAY_PLACED; SAY_REVOKED; STREAM the bytes; REUSE the region, which the receiver is done
    with; RETIRE it, at which the receiver may still be looking. Of the receiver: MAP what is leased and check it; GRANT a lease;
    SAY_LEASED; INVALIDATE the lease; CHECK what was written; SAY_TAKEN; SAY_REFUSED; SAY_RELEASED; HAND_OUT the tensors; VOID
    what was handed out, as far as nobody has counted on it; LET_GO of the mapping; COLLECT the run of bytes that begins; DROP it.
    """

    WRITE = "write"
    SAY_PLACED = "say placed"
    SAY_REVOKED = "say revoked"
    STREAM = "stream"
    REUSE = "reuse"
    RETIRE = "retire"
    MAP = "map"
    GRANT = "grant"
    SAY_LEASED = "say leased"
    INVALIDATE = "invalidate"
    CHECK = "check"
    SAY_TAKEN = "say taken"
    SAY_REFUSED = "say refused"
    SAY_RELEASED = "say released"
    HAND_OUT = "hand out"
    VOID = "void"
    LET_GO = "let go"
    COLLECT = "collect"
    DROP = "drop"


_A = Action

# A region that was retired is used no more, and REUSE does nothing to it. The bytes are kept until the stream ends: a refusal
# that was slow on its way still wants them.
GIVING: dict[tuple[Giver, Gives], tuple[Giver, tuple[Action, ...]]] = {
    (Giver.OFFERED, Gives.LEASED): (Giver.WRITING, (_A.WRITE,)),
    (Giver.OFFERED, Gives.TAKEN): (Giver.TAKEN, ()),
    (Giver.OFFERED, Gives.REFUSED): (Giver.STREAMED, (_A.REUSE, _A.STREAM)),
    (Giver.OFFERED, Gives.FAILED): (Giver.DOUBTED, (_A.SAY_REVOKED, _A.STREAM)),
    (Giver.OFFERED, Gives.LATE): (Giver.DOUBTED, (_A.STREAM,)),
    (Giver.OFFERED, Gives.BROKEN): (Giver.OVER, (_A.RETIRE,)),
    (Giver.WRITING, Gives.WRITTEN): (Giver.PLACED, (_A.SAY_PLACED,)),
    (Giver.WRITING, Gives.REFUSED): (Giver.STREAMED, (_A.REUSE, _A.STREAM)),
    (Giver.WRITING, Gives.FAILED): (Giver.STREAMED, (_A.REUSE, _A.STREAM)),
    (Giver.WRITING, Gives.LATE): (Giver.STREAMED, (_A.REUSE, _A.STREAM)),
    (Giver.WRITING, Gives.BROKEN): (Giver.OVER, (_A.REUSE,)),
    (Giver.PLACED, Gives.TAKEN): (Giver.TAKEN, ()),
    (Giver.PLACED, Gives.REFUSED): (Giver.STREAMED, (_A.REUSE, _A.STREAM)),
    (Giver.PLACED, Gives.FAILED): (Giver.STREAMED, (_A.REUSE, _A.STREAM)),
    (Giver.PLACED, Gives.LATE): (Giver.DOUBTED, (_A.STREAM,)),
    (Giver.PLACED, Gives.BROKEN): (Giver.OVER, (_A.REUSE,)),
    (Giver.TAKEN, Gives.RELEASED): (Giver.OVER, (_A.REUSE,)),
    (Giver.TAKEN, Gives.REFUSED): (Giver.STREAMED, (_A.REUSE, _A.STREAM)),
    (Giver.TAKEN, Gives.FAILED): (Giver.DOUBTED, (_A.SAY_REVOKED, _A.STREAM)),
    (Giver.TAKEN, Gives.LATE): (Giver.TAKEN, (_A.RETIRE,)),
    (Giver.TAKEN, Gives.BROKEN): (Giver.OVER, (_A.RETIRE,)),
    # The bytes are under way; the receiver may have taken the tensors before it learns of that.
    (Giver.DOUBTED, Gives.LEASED): (Giver.STREAMED, (_A.REUSE,)),
    (Giver.DOUBTED, Gives.TAKEN): (Giver.TAKEN, ()),
    (Giver.DOUBTED, Gives.REFUSED): (Giver.STREAMED, (_A.REUSE,)),
    (Giver.DOUBTED, Gives.RELEASED): (Giver.OVER, (_A.REUSE,)),
    (Giver.DOUBTED, Gives.FAILED): (Giver.DOUBTED, ()),
    (Giver.DOUBTED, Gives.LATE): (Giver.DOUBTED, (_A.RETIRE,)),
    (Giver.DOUBTED, Gives.BROKEN): (Giver.OVER, (_A.RETIRE,)),
    (Giver.STREAMED, Gives.TAKEN): (Giver.STREAMED, ()),
    (Giver.STREAMED, Gives.REFUSED): (Giver.STREAMED, ()),
    (Giver.STREAMED, Gives.RELEASED): (Giver.OVER, ()),
    (Giver.STREAMED, Gives.WRITTEN): (Giver.STREAMED, ()),
    (Giver.STREAMED, Gives.FAILED): (Giver.STREAMED, ()),
    (Giver.STREAMED, Gives.LATE): (Giver.STREAMED, ()),
    (Giver.STREAMED, Gives.BROKEN): (Giver.OVER, ()),
    **{(Giver.OVER, event): (Giver.OVER, ()) for event in Gives},
}
"""What a giver does; what is not in the table is a fault."""

TAKING: dict[tuple[Receiver, Takes], tuple[Receiver, tuple[Action, ...]]] = {
    (Receiver.MAPPING, Takes.READY): (Receiver.TAKEN, (_A.SAY_TAKEN, _A.HAND_OUT)),
    (Receiver.MAPPING, Takes.FAILED): (Receiver.WAITING, (_A.LET_GO, _A.SAY_REFUSED)),
    (Receiver.MAPPING, Takes.LATE): (Receiver.WAITING, (_A.LET_GO, _A.SAY_REFUSED)),
    (Receiver.MAPPING, Takes.REVOKED): (Receiver.WAITING, (_A.LET_GO, _A.SAY_REFUSED)),
    (Receiver.MAPPING, Takes.STREAMED): (Receiver.WAITING, (_A.LET_GO, _A.COLLECT, _A.SAY_REFUSED)),
    (Receiver.MAPPING, Takes.BROKEN): (Receiver.OVER, (_A.LET_GO,)),
    (Receiver.GRANTING, Takes.READY): (Receiver.GRANTED, (_A.SAY_LEASED,)),
    (Receiver.GRANTING, Takes.FAILED): (Receiver.WAITING, (_A.SAY_REFUSED,)),
    (Receiver.GRANTING, Takes.LATE): (Receiver.WAITING, (_A.INVALIDATE, _A.SAY_REFUSED)),
    (Receiver.GRANTING, Takes.STREAMED): (Receiver.WAITING, (_A.INVALIDATE, _A.COLLECT)),
    (Receiver.GRANTING, Takes.REVOKED): (Receiver.WAITING, (_A.INVALIDATE, _A.SAY_REFUSED)),
    (Receiver.GRANTING, Takes.BROKEN): (Receiver.OVER, (_A.INVALIDATE,)),
    (Receiver.GRANTED, Takes.PLACED): (Receiver.CHECKING, (_A.INVALIDATE, _A.CHECK)),
    (Receiver.GRANTED, Takes.FAILED): (Receiver.WAITING, (_A.INVALIDATE, _A.SAY_REFUSED)),
    (Receiver.GRANTED, Takes.LATE): (Receiver.WAITING, (_A.INVALIDATE, _A.SAY_REFUSED)),
    (Receiver.GRANTED, Takes.STREAMED): (Receiver.WAITING, (_A.INVALIDATE, _A.COLLECT)),
    (Receiver.GRANTED, Takes.REVOKED): (Receiver.WAITING, (_A.INVALIDATE, _A.SAY_REFUSED)),
    (Receiver.GRANTED, Takes.BROKEN): (Receiver.OVER, (_A.INVALIDATE,)),
    (Receiver.CHECKING, Takes.READY): (Receiver.TAKEN, (_A.SAY_TAKEN, _A.HAND_OUT)),
    (Receiver.CHECKING, Takes.FAILED): (Receiver.WAITING, (_A.LET_GO, _A.SAY_REFUSED)),
    (Receiver.CHECKING, Takes.LATE): (Receiver.WAITING, (_A.LET_GO, _A.SAY_REFUSED)),
    (Receiver.CHECKING, Takes.STREAMED): (Receiver.WAITING, (_A.LET_GO, _A.COLLECT)),
    (Receiver.CHECKING, Takes.REVOKED): (Receiver.WAITING, (_A.LET_GO, _A.SAY_REFUSED)),
    (Receiver.CHECKING, Takes.BROKEN): (Receiver.OVER, (_A.LET_GO,)),
    (Receiver.TAKEN, Takes.DONE): (Receiver.OVER, (_A.LET_GO, _A.SAY_RELEASED)),
    (Receiver.TAKEN, Takes.REVOKED): (Receiver.WAITING, (_A.VOID, _A.LET_GO, _A.SAY_REFUSED)),
    (Receiver.TAKEN, Takes.LATE): (Receiver.WAITING, (_A.VOID, _A.LET_GO, _A.SAY_REFUSED)),
    (Receiver.TAKEN, Takes.FAILED): (Receiver.WAITING, (_A.VOID, _A.LET_GO, _A.SAY_REFUSED)),
    (Receiver.TAKEN, Takes.STREAMED): (Receiver.TAKEN, (_A.DROP,)),
    (Receiver.TAKEN, Takes.BROKEN): (Receiver.OVER, (_A.LET_GO,)),
    (Receiver.WAITING, Takes.STREAMED): (Receiver.WAITING, (_A.COLLECT,)),
    (Receiver.WAITING, Takes.ARRIVED): (Receiver.FROM_STREAM, (_A.HAND_OUT,)),
    (Receiver.WAITING, Takes.REVOKED): (Receiver.WAITING, ()),
    (Receiver.WAITING, Takes.PLACED): (Receiver.WAITING, ()),
    (Receiver.WAITING, Takes.READY): (Receiver.WAITING, (_A.LET_GO,)),
    (Receiver.WAITING, Takes.FAILED): (Receiver.WAITING, ()),
    (Receiver.WAITING, Takes.LATE): (Receiver.WAITING, ()),
    (Receiver.WAITING, Takes.BROKEN): (Receiver.OVER, ()),
    (Receiver.FROM_STREAM, Takes.DONE): (Receiver.OVER, (_A.SAY_RELEASED,)),
    (Receiver.FROM_STREAM, Takes.REVOKED): (Receiver.FROM_STREAM, ()),
    (Receiver.FROM_STREAM, Takes.PLACED): (Receiver.FROM_STREAM, ()),
    (Receiver.FROM_STREAM, Takes.READY): (Receiver.FROM_STREAM, (_A.LET_GO,)),
    (Receiver.FROM_STREAM, Takes.FAILED): (Receiver.FROM_STREAM, ()),
    (Receiver.FROM_STREAM, Takes.LATE): (Receiver.FROM_STREAM, ()),
    (Receiver.FROM_STREAM, Takes.STREAMED): (Receiver.FROM_STREAM, (_A.DROP,)),
    (Receiver.FROM_STREAM, Takes.BROKEN): (Receiver.OVER, ()),
    **{(Receiver.OVER, event): (Receiver.OVER, ()) for event in Takes},
    (Receiver.OVER, Takes.STREAMED): (Receiver.OVER, (_A.DROP,)),
    (Receiver.OVER, Takes.READY): (Receiver.OVER, (_A.LET_GO,)),
}
"""What a receiver does; what is not in the table is a fault."""

_OF_THE_PEER = frozenset((Gives.LEASED, Gives.TAKEN, Gives.REFUSED, Gives.RELEASED))
_OF_THE_OTHER_PEER = frozenset((Takes.PLACED, Takes.REVOKED, Takes.STREAMED))


class Giving:
    """A transfer as its giver keeps it."""

    __slots__ = ("_writes", "state")

    def __init__(self, *, writes: bool) -> None:
        """Begins when the offer is sent.

        Args:
            writes: the offer asks for a lease to write to; else it brings one to read.
        """
        self._writes = writes
        self.state = Giver.OFFERED

    def handle(self, event: Gives) -> tuple[Action, ...]:
        """Take what has happened; return what is to be done.

        Raises:
            RemoteProtocolError: MALFORMED, for a word of the peer that may not come now.
            LocalProtocolError: MALFORMED, for anything else that may not.
        """
        found = GIVING.get((self.state, event))
        if self.state is Giver.OFFERED and event in (Gives.LEASED, Gives.TAKEN) and (event is Gives.LEASED) != self._writes:
            found = None
        if found is None:
            detail = f"{event.value} where a transfer is {self.state.value}"
            if event in _OF_THE_PEER:
                raise RemoteProtocolError(ErrorCode.MALFORMED, detail)
            raise LocalProtocolError(ErrorCode.MALFORMED, detail)
        self.state, actions = found
        return actions

    @property
    def awaits_taking(self) -> bool:
        """Whether the receiver is still to take it: the time for that runs."""
        return self.state in (Giver.OFFERED, Giver.WRITING, Giver.PLACED)

    @property
    def is_held(self) -> bool:
        """Whether the receiver may be looking at the region."""
        return self.state in (Giver.OFFERED, Giver.TAKEN, Giver.DOUBTED)


class Taking:
    """A transfer as its receiver keeps it."""

    __slots__ = ("_has_first", "state")

    def __init__(self, *, grants: bool) -> None:
        """Begins when the offer has come; `first` is what is to be done.

        Args:
            grants: the offer asks for a lease to write to; else it brings one to read.
        """
        self.state = Receiver.GRANTING if grants else Receiver.MAPPING

    @property
    def first(self) -> Action:
        """What is to be done first."""
        return Action.GRANT if self.state is Receiver.GRANTING else Action.MAP

    def handle(self, event: Takes) -> tuple[Action, ...]:
        """Take what has happened; return what is to be done.

        Raises:
            RemoteProtocolError: MALFORMED, for a word of the peer that may not come now.
            LocalProtocolError: MALFORMED, for anything else that may not.
        """
        found = TAKING.get((self.state, event))
        if found is None:
            detail = f"{event.value} where a transfer is {self.state.value}"
            if event in _OF_THE_OTHER_PEER:
                raise RemoteProtocolError(ErrorCode.MALFORMED, detail)
            raise LocalProtocolError(ErrorCode.MALFORMED, detail)
        self.state, actions = found
        return actions

    @property
    def has_tensors(self) -> bool:
        """Whether the tensors are handed out."""
        return self.state in (Receiver.TAKEN, Receiver.FROM_STREAM)
