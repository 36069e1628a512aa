"""A transfer: both tables side by side over a stream that keeps the order, with everything that can go wrong at every step."""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.fabric.transfer import GIVING, TAKING, Action, Giver, Gives, Giving, Receiver, Takes, Taking

A = Action


def test_every_state_is_reached_and_is_left_when_the_peer_goes():
    for table, states, broken in ((GIVING, Giver, Gives.BROKEN), (TAKING, Receiver, Takes.BROKEN)):
        assert {state for state, _ in table} == set(states)
        for state in states:
            assert table[state, broken][0] is states.OVER


@pytest.mark.parametrize("state", Giver)
@pytest.mark.parametrize("event", Gives)
def test_a_giver_does_what_the_table_says_and_blames_who_is_to_blame(state, event):
    giving = Giving(writes=event is Gives.LEASED)
    giving.state = state
    if (found := GIVING.get((state, event))) is not None:
        assert giving.handle(event) == found[1]
        assert giving.state is found[0]
        return
    of_the_peer = event in (Gives.LEASED, Gives.TAKEN, Gives.REFUSED, Gives.RELEASED)
    with pytest.raises(RemoteProtocolError if of_the_peer else LocalProtocolError):
        giving.handle(event)
    assert giving.state is state


@pytest.mark.parametrize("state", Receiver)
@pytest.mark.parametrize("event", Takes)
def test_a_receiver_does_what_the_table_says_and_blames_who_is_to_blame(state, event):
    taking = Taking(grants=False)
    taking.state = state
    if (found := TAKING.get((state, event))) is not None:
        assert taking.handle(event) == found[1]
        assert taking.state is found[0]
        return
    of_the_peer = event in (Takes.PLACED, Takes.REVOKED, Takes.STREAMED)
    with pytest.raises(RemoteProtocolError if of_the_peer else LocalProtocolError):
        taking.handle(event)
    assert taking.state is state


def test_a_lease_to_read_is_not_answered_by_one_to_write_nor_the_other_way_round():
    with pytest.raises(RemoteProtocolError):
        Giving(writes=False).handle(Gives.LEASED)
    with pytest.raises(RemoteProtocolError):
        Giving(writes=True).handle(Gives.TAKEN)


TOLD = {
    A.SAY_LEASED: Gives.LEASED,
    A.SAY_TAKEN: Gives.TAKEN,
    A.SAY_REFUSED: Gives.REFUSED,
    A.SAY_RELEASED: Gives.RELEASED,
    A.SAY_PLACED: Takes.PLACED,
    A.SAY_REVOKED: Takes.REVOKED,
}


@dataclass
class Pair:
    """A giver and a receiver; what is under way between them keeps its order in each direction.

    `runs` counts the runs of bytes by the stream, `collecting` says whether the one that is arriving is collected. `has` is what
    the receiver's user holds: "fabric", "stream" or nothing; `lost` that what it held was void.
    """

    writes: bool
    giving: Giving = None
    taking: Taking = None
    there: deque = field(default_factory=deque)
    back: deque = field(default_factory=deque)
    runs: int = 0
    collecting: bool = False
    has: str = ""
    region: str = "leased"
    mapped: bool = False

    def __post_init__(self):
        self.giving, self.taking = Giving(writes=self.writes), Taking(grants=self.writes)

    def give(self, event):
        for action in self.giving.handle(event):
            match action:
                case A.STREAM:
                    self.runs += 1
                    self.there += [Takes.STREAMED, "end of run"]
                case A.REUSE:
                    # nobody reads what is written over: the receiver has let go, and has no word under way that it has not
                    assert self.writes or not self.mapped
                    self.region = "free" if self.region == "leased" else self.region
                case A.RETIRE:
                    self.region = "retired"
                case A.SAY_PLACED | A.SAY_REVOKED:
                    self.there.append(TOLD[action])
                case _:
                    assert action is A.WRITE

    def take(self, event):
        for action in self.taking.handle(event):
            match action:
                case A.HAND_OUT:
                    assert self.has == ""
                    self.has = "fabric" if self.taking.state is Receiver.TAKEN else "stream"
                    self.mapped = self.has == "fabric"
                case A.VOID:
                    assert self.has == "fabric"
                    self.has = ""
                case A.LET_GO:
                    self.mapped = False
                case A.COLLECT:
                    self.collecting = True
                case A.DROP:
                    self.collecting = False
                case A.SAY_LEASED | A.SAY_TAKEN | A.SAY_REFUSED | A.SAY_RELEASED:
                    self.back.append(TOLD[action])
                case _:
                    assert action in (A.INVALIDATE, A.CHECK)

    def deliver_there(self):
        if self.there:
            event = self.there.popleft()
            if event != "end of run":
                self.take(event)
            elif self.collecting:
                self.collecting = False
                self.take(Takes.ARRIVED)

    def deliver_back(self):
        if self.back:
            self.give(self.back.popleft())


OWN_OF_GIVER = {Giver.WRITING: [Gives.WRITTEN, Gives.FAILED, Gives.LATE]}
OWN_OF_RECEIVER = {
    Receiver.MAPPING: [Takes.READY, Takes.FAILED, Takes.LATE],
    Receiver.GRANTING: [Takes.READY, Takes.FAILED, Takes.LATE],
    Receiver.GRANTED: [Takes.FAILED, Takes.LATE],
    Receiver.CHECKING: [Takes.READY, Takes.FAILED, Takes.LATE],
    Receiver.TAKEN: [Takes.LATE, Takes.FAILED],
}


@settings(max_examples=500)
@given(st.booleans(), st.lists(st.integers(0, 9), max_size=30))
def test_whatever_happens_in_whatever_order_the_receiver_gets_the_tensors(writes, choices):
    pair = Pair(writes)
    for choice in choices:
        kind = choice % 4
        if kind == 0:
            pair.deliver_there()
        elif kind == 1:
            pair.deliver_back()
        elif kind == 2:
            events = OWN_OF_GIVER.get(pair.giving.state, [Gives.FAILED, Gives.LATE] if pair.giving.awaits_taking else [])
            if pair.giving.state is Giver.TAKEN:
                events = [Gives.FAILED]
            if events:
                pair.give(events[choice % len(events)])
        elif events := OWN_OF_RECEIVER.get(pair.taking.state, []):
            pair.take(events[choice % len(events)])
    # From here on nothing goes wrong but time.
    for _ in range(60):
        pair.deliver_there()
        pair.deliver_back()
        if pair.giving.state is Giver.WRITING:
            pair.give(Gives.WRITTEN)
        if pair.taking.state in (Receiver.MAPPING, Receiver.GRANTING, Receiver.CHECKING):
            pair.take(Takes.READY)
        if pair.giving.awaits_taking and not pair.there and not pair.back:
            pair.give(Gives.LATE)
    assert pair.has in ("fabric", "stream")
    assert pair.runs <= 2
    pair.take(Takes.DONE)
    for _ in range(10):
        pair.deliver_back()
    assert pair.giving.state is Giver.OVER
    assert pair.taking.state is Receiver.OVER


@pytest.mark.parametrize("writes", [False, True])
def test_where_nothing_goes_wrong_no_byte_takes_the_stream(writes):
    pair = Pair(writes)
    while pair.has == "":
        if pair.taking.state in (Receiver.MAPPING, Receiver.GRANTING, Receiver.CHECKING):
            pair.take(Takes.READY)
        pair.deliver_back()
        if pair.giving.state is Giver.WRITING:
            pair.give(Gives.WRITTEN)
        pair.deliver_there()
    pair.deliver_back()
    assert (pair.has, pair.runs, pair.giving.is_held) == ("fabric", 0, True)
    assert pair.taking.has_tensors
    pair.take(Takes.DONE)
    pair.deliver_back()
    assert pair.region == "free"


def test_a_region_whose_receiver_says_nothing_is_retired():
    pair = Pair(writes=False)
    pair.take(Takes.READY)
    pair.deliver_back()
    pair.give(Gives.LATE)
    assert (pair.region, pair.giving.state) == ("retired", Giver.TAKEN)
    pair.take(Takes.REVOKED)  # its refusal comes after the lease's end, and brings the bytes all the same
    pair.deliver_back()
    assert (pair.runs, pair.giving.state) == (1, Giver.STREAMED)
