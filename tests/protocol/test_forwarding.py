from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.errors import RETRYABLE, ErrorCode, LocalProtocolError
from protocol.forwarding import (
    OUTPUTS,
    TRANSITIONS,
    CancelAttempt,
    Ended,
    Event,
    Forward,
    Forwarding,
    ForwardingConfig,
    Outcome,
    Output,
    Refuse,
    RunLocally,
    State,
)
from protocol.identity import PeerId

CONFIG = ForwardingConfig()
OWN, A, B, C, D = (PeerId(name) for name in (b"own", b"a", b"b", b"c", b"d"))
ID = b"0123456789abcdef"


def drain(machine: Forwarding) -> list[Output]:
    outputs = []
    while (output := machine.next_output()) is not None:
        assert isinstance(output, OUTPUTS)
        outputs.append(output)
    return outputs


def submitted(*peers: PeerId, deadline_at: float = 110.0, hops_left: int = 1, config: ForwardingConfig = CONFIG) -> Forwarding:
    machine = Forwarding(config)
    machine.submit(ID, peers, OWN, deadline_at, hops_left, 100.0)
    return machine


def ended(
    outcome: Outcome, code: ErrorCode, peer: PeerId, attempts: int = 1, *, delivered: bool = False, message: str = ""
) -> Ended:
    return Ended(ID, outcome, code, message, peer, attempts, delivered)


def test_the_first_candidate_is_asked_and_its_answer_ends_the_request() -> None:
    machine = submitted(A, B)
    assert drain(machine) == [Forward(ID, A, 10.0, 0)]
    assert machine.handle_first_output(ID, A, 100.1)
    assert machine.handle_first_output(ID, A, 100.2)
    machine.handle_finished(ID, A, 100.3)
    assert drain(machine) == [ended(Outcome.ANSWERED, ErrorCode.NO_ERROR, A, delivered=True)]
    assert machine.under_way == 0
    assert machine.next_timer() is None


def test_this_node_runs_a_request_itself_where_it_is_the_best() -> None:
    machine = submitted(OWN, A)
    assert drain(machine) == [RunLocally(ID, 10.0)]


def test_an_answer_without_output_is_an_answer() -> None:
    machine = submitted(A)
    drain(machine)
    machine.handle_finished(ID, A, 101.0)
    assert drain(machine) == [ended(Outcome.ANSWERED, ErrorCode.NO_ERROR, A)]


@pytest.mark.parametrize("code", sorted(RETRYABLE))
def test_a_failure_before_the_first_output_goes_to_the_next_candidate(code: ErrorCode) -> None:
    machine = submitted(A, OWN, B)
    drain(machine)
    machine.handle_failed(ID, A, code, "it broke", 102.0)
    assert drain(machine) == [RunLocally(ID, 8.0)]
    machine.handle_failed(ID, OWN, code, "it broke", 104.0)
    assert drain(machine) == [Forward(ID, B, 6.0, 0)]
    machine.handle_failed(ID, B, code, "all is broken", 105.0)
    assert drain(machine) == [ended(Outcome.FAILED, code, B, 3, message="all is broken")]


@pytest.mark.parametrize("code", sorted(set(ErrorCode) - RETRYABLE))
def test_a_failure_that_every_peer_would_have_ends_the_request(code: ErrorCode) -> None:
    machine = submitted(A, B)
    drain(machine)
    machine.handle_failed(ID, A, code, "no", 102.0)
    assert drain(machine) == [ended(Outcome.FAILED, code, A, message="no")]


@pytest.mark.parametrize("code", sorted(ErrorCode))
def test_after_the_first_output_nothing_is_retried(code: ErrorCode) -> None:
    machine = submitted(A, B)
    drain(machine)
    machine.handle_first_output(ID, A, 101.0)
    machine.handle_failed(ID, A, code, "gone", 102.0)
    assert drain(machine) == [ended(Outcome.FAILED, code, A, delivered=True, message="gone")]


def test_attempts_are_bounded() -> None:
    machine = submitted(A, B, C, D, config=replace(CONFIG, attempts_max=2))
    for peer in (A, B):
        machine.handle_failed(ID, peer, ErrorCode.OVERLOADED, "full", 100.5)
    assert drain(machine)[-1] == ended(Outcome.FAILED, ErrorCode.OVERLOADED, B, 2, message="full")


def test_no_peer_is_asked_twice() -> None:
    machine = submitted(A, A, B, A)
    for peer in (A, B):
        machine.handle_failed(ID, peer, ErrorCode.UNREACHABLE, "", 100.5)
    assert [type(output) for output in drain(machine)] == [Forward, Forward, Ended]


def test_a_silent_attempt_leaves_time_for_the_next() -> None:
    machine = submitted(A, B, C)
    drain(machine)
    assert machine.next_timer() == 105.0
    machine.handle_timer(105.0)
    assert drain(machine) == [CancelAttempt(ID, A), Forward(ID, B, 5.0, 0)]
    assert machine.next_timer() == 107.5
    machine.handle_timer(107.5)
    assert drain(machine) == [CancelAttempt(ID, B), Forward(ID, C, 2.5, 0)]
    assert machine.next_timer() == 110.0  # the last one has all that is left
    machine.handle_timer(110.0)
    (cancel, end) = drain(machine)
    assert cancel == CancelAttempt(ID, C)
    assert (end.outcome, end.code, end.attempts) == (Outcome.EXPIRED, ErrorCode.DEADLINE_EXCEEDED, 3)


def test_what_a_silent_peer_was_asked_is_asked_elsewhere_at_once() -> None:
    machine = submitted(A, B)
    drain(machine)
    machine.handle_suspected(B, 100.5)
    assert drain(machine) == []
    machine.handle_suspected(A, 101.0)
    assert drain(machine) == [CancelAttempt(ID, A), Forward(ID, B, 9.0, 0)]
    machine.handle_suspected(B, 102.0)
    assert drain(machine) == [], "nobody else is left, and the peer may recover"


def test_an_answer_that_has_begun_is_not_taken_from_a_suspected_peer() -> None:
    machine = submitted(A, B)
    drain(machine)
    machine.handle_first_output(ID, A, 100.1)
    machine.handle_suspected(A, 101.0)
    assert drain(machine) == []


def test_an_attempt_that_has_delivered_has_until_the_deadline() -> None:
    machine = submitted(A, B)
    drain(machine)
    machine.handle_first_output(ID, A, 104.9)
    assert machine.next_timer() == 110.0
    machine.handle_timer(109.9)
    assert drain(machine) == []
    machine.handle_timer(110.0)
    assert [type(output) for output in drain(machine)] == [CancelAttempt, Ended]


def test_a_lone_candidate_has_until_the_deadline() -> None:
    machine = submitted(A)
    assert machine.next_timer() == 110.0


def test_a_held_up_node_ends_at_the_deadline_without_another_attempt() -> None:
    machine = submitted(A, B)
    drain(machine)
    machine.handle_timer(200.0)
    assert [type(output) for output in drain(machine)] == [CancelAttempt, Ended]


def test_too_little_time_left_means_no_further_attempt() -> None:
    machine = submitted(A, B)
    drain(machine)
    machine.handle_failed(ID, A, ErrorCode.OVERLOADED, "full", 109.999)
    assert drain(machine) == [ended(Outcome.FAILED, ErrorCode.OVERLOADED, A, message="full")]


def test_cancelling_stops_the_attempt_and_ends_the_request_once() -> None:
    machine = submitted(A, B)
    drain(machine)
    machine.handle_cancelled(ID, 101.0)
    machine.handle_cancelled(ID, 101.0)
    outputs = drain(machine)
    assert outputs[0] == CancelAttempt(ID, A)
    assert [type(output) for output in outputs] == [CancelAttempt, Ended]
    assert outputs[1].outcome is Outcome.CANCELLED


def test_reports_of_a_past_attempt_change_nothing() -> None:
    machine = submitted(A, B)
    machine.handle_timer(105.0)
    drain(machine)
    assert not machine.handle_first_output(ID, A, 105.1)
    machine.handle_failed(ID, A, ErrorCode.BAD_REQUEST, "late", 105.1)
    machine.handle_finished(ID, A, 105.1)
    assert drain(machine) == []
    assert machine.handle_first_output(ID, B, 105.2)


def test_who_is_asked_through_another_waits_for_nobody_who_can_be_reached() -> None:
    for roundabout, first in (((), B), ((A,), A)):
        machine = Forwarding(CONFIG)
        machine.handle_left(A)
        machine.submit(ID, (A, B), OWN, 110.0, 1, 100.0, roundabout)
        assert drain(machine) == [Forward(ID, first, 10.0, 0)]


def test_without_hops_left_only_this_node_answers() -> None:
    assert drain(submitted(A, OWN, B, hops_left=0)) == [RunLocally(ID, 10.0)]
    (refusal,) = drain(submitted(A, B, hops_left=0))
    assert (type(refusal), refusal.code) == (Refuse, ErrorCode.MODEL_NOT_FOUND)


def test_each_forward_takes_a_hop() -> None:
    assert drain(submitted(A, hops_left=2)) == [Forward(ID, A, 10.0, 1)]


@pytest.mark.parametrize(
    ("peers", "deadline_at", "code"), [((), 110.0, ErrorCode.MODEL_NOT_FOUND), ((A,), 100.0, ErrorCode.DEADLINE_EXCEEDED)]
)
def test_what_cannot_begin_is_refused(peers: tuple[PeerId, ...], deadline_at: float, code: ErrorCode) -> None:
    machine = submitted(*peers, deadline_at=deadline_at)
    (refusal,) = drain(machine)
    assert (type(refusal), refusal.request_id, refusal.code) == (Refuse, ID, code)
    assert machine.under_way == 0
    assert machine.next_timer() is None


def test_requests_are_bounded_and_room_comes_back() -> None:
    machine = Forwarding(replace(CONFIG, requests_max=2))
    for number in range(3):
        machine.submit(b"%d" % number, (A,), OWN, 110.0, 1, 100.0)
    *forwards, refusal = drain(machine)
    assert [type(output) for output in forwards] == [Forward, Forward]
    assert (refusal.request_id, refusal.code) == (b"2", ErrorCode.OVERLOADED)
    machine.handle_finished(b"0", A, 101.0)
    machine.submit(b"3", (A,), OWN, 110.0, 1, 101.0)
    assert [type(output) for output in drain(machine)] == [Ended, Forward]


def test_the_same_id_twice_at_once_is_the_callers_fault() -> None:
    machine = submitted(A)
    with pytest.raises(LocalProtocolError):
        machine.submit(ID, (A,), OWN, 110.0, 1, 100.0)


def test_a_request_that_comes_round_is_refused_while_it_runs_and_for_a_while_after() -> None:
    machine = submitted(A)
    assert machine.admit(ID, B, 1, 100.1).code is ErrorCode.HOPS_EXCEEDED
    machine.handle_finished(ID, A, 101.0)
    assert machine.admit(ID, B, 1, 101.0 + CONFIG.seen_s - 0.1).code is ErrorCode.HOPS_EXCEEDED
    assert machine.admit(ID, B, 1, 101.0 + CONFIG.seen_s) is None


def test_an_id_that_has_ended_does_not_begin_again() -> None:
    machine = submitted(A)
    machine.handle_finished(ID, A, 101.0)
    drain(machine)
    machine.submit(ID, (A,), OWN, 110.0, 1, 102.0)
    (refusal,) = drain(machine)
    assert refusal.code is ErrorCode.HOPS_EXCEEDED


@pytest.mark.parametrize("hops_left", [-1, CONFIG.hops_max + 1, 2**31])
def test_a_request_with_too_many_hops_is_refused(hops_left: int) -> None:
    assert Forwarding(CONFIG).admit(ID, A, hops_left, 100.0).code is ErrorCode.HOPS_EXCEEDED


def test_one_peer_cannot_take_all_the_room() -> None:
    machine = Forwarding(replace(CONFIG, requests_per_peer_max=2))
    assert machine.admit(b"1", A, 0, 100.0) is None
    assert machine.admit(b"2", A, 0, 100.0) is None
    assert machine.admit(b"3", A, 0, 100.0).code is ErrorCode.OVERLOADED
    assert machine.admit(b"4", B, 0, 100.0) is None
    machine.submit(b"1", (OWN,), OWN, 110.0, 0, 100.0)
    machine.handle_finished(b"1", OWN, 101.0)
    machine.release(b"2", 101.0)
    assert machine.admit(b"5", A, 0, 102.0) is None
    assert machine.admit(b"6", A, 0, 102.0) is None
    assert machine.admit(b"7", A, 0, 102.0).code is ErrorCode.OVERLOADED


def test_releasing_a_request_under_way_changes_nothing() -> None:
    machine = Forwarding(CONFIG)
    assert machine.admit(ID, A, 0, 100.0) is None
    machine.submit(ID, (OWN,), OWN, 110.0, 0, 100.0)
    machine.release(ID, 100.5)
    machine.handle_finished(ID, OWN, 101.0)
    assert isinstance(drain(machine)[-1], Ended)


def test_an_admitted_request_that_is_refused_gives_its_room_back() -> None:
    machine = Forwarding(replace(CONFIG, requests_per_peer_max=1))
    for number in range(3):
        assert machine.admit(b"%d" % number, A, 0, 100.0) is None
        machine.submit(b"%d" % number, (), OWN, 110.0, 0, 100.0)
    assert [type(output) for output in drain(machine)] == [Refuse] * 3


def test_remembered_ids_are_bounded_however_long_one_request_runs() -> None:
    machine = Forwarding(replace(CONFIG, seen_max=4))
    machine.submit(b"long", (A,), OWN, 1e9, 1, 100.0)
    for number in range(100):
        assert machine.admit(b"%d" % number, B, 0, 100.0) is None
        machine.release(b"%d" % number, 100.0)
        assert len(machine._ended) <= 4
    assert machine.admit(b"long", B, 0, 100.0).code is ErrorCode.HOPS_EXCEEDED
    assert machine.admit(b"99", B, 0, 100.0).code is ErrorCode.HOPS_EXCEEDED
    assert machine.admit(b"0", B, 0, 100.0) is None


def test_attempts_in_flight_are_counted() -> None:
    machine = submitted(A, OWN)
    assert machine.in_flight(A) == 1
    machine.handle_failed(ID, A, ErrorCode.OVERLOADED, "", 101.0)
    assert (machine.in_flight(A), machine.in_flight(OWN)) == (0, 1)
    machine.handle_cancelled(ID, 102.0)
    assert machine.in_flight(OWN) == 0


def test_the_table_of_transitions_is_whole() -> None:
    assert set(TRANSITIONS) == set(State)
    assert Event.NEXT_CANDIDATE not in TRANSITIONS[State.STREAMING]
    assert TRANSITIONS[State.ENDED] == {}
    assert all(TRANSITIONS[state][Event.EXPIRED] is State.ENDED for state in (State.TRYING, State.STREAMING))


class AnyOrder(RuleBasedStateMachine):
    """Every order of calls on a few requests: each ends exactly once, in time, and is never retried once it has delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.config = replace(CONFIG, requests_max=3, requests_per_peer_max=2, seen_max=4)
        self.machine = Forwarding(self.config)
        self.now = 100.0
        self.number = 0
        self.current: dict[bytes, PeerId] = {}
        self.asked: dict[bytes, list[PeerId]] = {}
        self.deadlines: dict[bytes, float] = {}
        self.delivered: set[bytes] = set()
        self.ends: Counter[bytes] = Counter()
        self.begun: set[bytes] = set()

    @rule(
        peers=st.lists(st.sampled_from([OWN, A, B, C]), min_size=1, max_size=5) | st.just([]),
        deadline_s=st.floats(0.5, 20.0) | st.just(-1.0),
        hops_left=st.sampled_from([1, 2, 0]),
        sender=st.none() | st.sampled_from([A, B]),
    )
    def submit(self, peers: list[PeerId], deadline_s: float, hops_left: int, sender: PeerId | None) -> None:
        self.number += 1
        request_id = b"%d" % self.number
        if sender is not None and self.machine.admit(request_id, sender, hops_left, self.now) is not None:
            return
        self.deadlines[request_id] = self.now + deadline_s
        self.begun.add(request_id)
        self.machine.submit(request_id, peers, OWN, self.now + deadline_s, hops_left, self.now)

    @precondition(lambda self: self.current)
    @rule(which=st.integers(0, 2))
    def output(self, which: int) -> None:
        request_id = sorted(self.current)[which % len(self.current)]
        assert self.machine.handle_first_output(request_id, self.current[request_id], self.now)
        self.delivered.add(request_id)

    @precondition(lambda self: self.current)
    @rule(which=st.integers(0, 2), code=st.sampled_from([ErrorCode.OVERLOADED, ErrorCode.UNREACHABLE, ErrorCode.BAD_REQUEST]))
    def fail(self, which: int, code: ErrorCode) -> None:
        request_id = sorted(self.current)[which % len(self.current)]
        peer = self.current.pop(request_id)  # the next attempt or the end follows
        self.machine.handle_failed(request_id, peer, code, "no", self.now)

    @precondition(lambda self: self.current)
    @rule(which=st.integers(0, 2))
    def finish(self, which: int) -> None:
        request_id = sorted(self.current)[which % len(self.current)]
        self.machine.handle_finished(request_id, self.current[request_id], self.now)

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), peer=st.sampled_from([OWN, A, B, C]))
    def stale_report(self, data: st.DataObject, peer: PeerId) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.begun)))
        if self.current.get(request_id) != peer:
            assert not self.machine.handle_first_output(request_id, peer, self.now)
            self.machine.handle_failed(request_id, peer, ErrorCode.OVERLOADED, "late", self.now)
            self.machine.handle_finished(request_id, peer, self.now)
            assert self.machine.next_output() is None

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.machine.handle_cancelled(data.draw(st.sampled_from(sorted(self.begun))), self.now)

    @rule(late_s=st.sampled_from([0.0, 0.0, 0.01, 3.0]))
    def timer(self, late_s: float) -> None:
        due = self.machine.next_timer()
        assert (due is None) == (not self.current)
        if due is not None:
            self.now = max(self.now, due + late_s)
            self.machine.handle_timer(self.now)
            self.check_outputs()
            assert all(self.deadlines[request_id] > self.now for request_id in self.current)

    @rule(step_s=st.floats(0.0, 2.0))
    def wait(self, step_s: float) -> None:
        self.now += step_s
        self.machine.handle_timer(self.now)

    @invariant()
    def check_outputs(self) -> None:
        for output in drain(self.machine):
            request_id = output.request_id
            assert request_id in self.begun
            assert not self.ends[request_id], "nothing comes after the end"
            match output:
                case RunLocally(_, deadline_s) | Forward(_, _, deadline_s, _):
                    peer = OWN if isinstance(output, RunLocally) else output.peer
                    assert request_id not in self.delivered, "nothing is retried after the first output"
                    assert request_id not in self.current, "one attempt at a time"
                    assert deadline_s > 0.0
                    assert deadline_s == pytest.approx(self.deadlines[request_id] - self.now, abs=1e-6)
                    asked = self.asked.setdefault(request_id, [])
                    assert peer not in asked
                    asked.append(peer)
                    assert len(asked) <= self.config.attempts_max
                    self.current[request_id] = peer
                    if isinstance(output, Forward):
                        assert 0 <= output.hops_left < 2
                case CancelAttempt(_, peer):
                    assert self.current.pop(request_id) == peer
                case Refuse():
                    assert request_id not in self.asked
                    self.ends[request_id] += 1
                case Ended(_, outcome, code, _, _, attempts, delivered):
                    self.current.pop(request_id, None)
                    assert attempts == len(self.asked[request_id])
                    assert delivered == (request_id in self.delivered)
                    assert (code is ErrorCode.NO_ERROR) <= (outcome in (Outcome.ANSWERED, Outcome.FAILED))
                    self.ends[request_id] += 1

    @invariant()
    def state_is_bounded(self) -> None:
        assert self.machine.under_way == len(self.current) <= 3
        assert len(self.machine._ended) <= 4
        assert sum(self.machine._in_flight.values()) == len(self.current)
        assert all(count > 0 for count in (*self.machine._in_flight.values(), *self.machine._running_from.values()))
        assert self.machine._running_from.total() <= len(self.current)

    def teardown(self) -> None:
        self.now += 1000.0
        self.machine.handle_timer(self.now)
        self.check_outputs()
        assert all(self.ends[request_id] == 1 for request_id in self.begun)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
