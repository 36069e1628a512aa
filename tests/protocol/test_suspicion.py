"""What nodes say of silent peers: accusations, doubt, refutation."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocol.suspicion import Cleared, Doubted, Output, Refute, Suspicion, SuspicionConfig, TellVerdict
from protocol.table import RecordKey

CONFIG = SuspicionConfig()
OWN, SUBJECT, *OTHERS = (RecordKey(bytes([n]) * 8) for n in range(20))


class Heard:
    """A machine with the incarnations that its node knows, and everything that came out of it."""

    def __init__(self, config: SuspicionConfig = CONFIG) -> None:
        self.incarnations = dict.fromkeys((OWN, SUBJECT, *OTHERS), 1)
        self.machine = Suspicion(config, OWN, random.Random(1), self.incarnations.get)
        self.now = 0.0

    def outputs(self) -> list[Output]:
        outputs = []
        while (output := self.machine.next_output()) is not None:
            outputs.append(output)
        return outputs

    def run(self, until: float) -> list[tuple[float, Output]]:
        came = [(self.now, output) for output in self.outputs()]
        while (due := self.machine.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            self.machine.handle_timer(self.now)
            came += [(self.now, output) for output in self.outputs()]
        self.now = until
        return came

    def accused_by(self, *accusers: RecordKey, subject: RecordKey = SUBJECT, incarnation: int = 1) -> None:
        for accuser in accusers:
            self.machine.handle_verdict(accuser, [(subject, incarnation)], self.now)


def test_one_voice_is_not_enough_and_two_are() -> None:
    heard = Heard()
    heard.accused_by(OTHERS[0])
    heard.accused_by(OTHERS[0])  # the same voice twice is one
    assert heard.outputs() == []
    assert not heard.machine.is_doubted(SUBJECT)
    heard.accused_by(OTHERS[1])
    assert heard.outputs() == [Doubted(SUBJECT)]
    assert heard.machine.is_doubted(SUBJECT)
    heard.accused_by(OTHERS[2])
    assert heard.outputs() == []  # told once


def test_own_voice_does_not_confirm_itself() -> None:
    heard = Heard()
    heard.machine.accuse(SUBJECT, 0.0)
    heard.machine.handle_verdict(OWN, [(SUBJECT, 1)], 0.0)
    heard.accused_by(OTHERS[0])
    assert not heard.machine.is_doubted(SUBJECT)


def test_newest_verdict_of_a_node_replaces_its_earlier_ones() -> None:
    heard = Heard()
    heard.accused_by(*OTHERS[:2])
    heard.machine.handle_verdict(OTHERS[0], [(OTHERS[5], 1)], 1.0)
    assert heard.outputs() == [Doubted(SUBJECT), Cleared(SUBJECT, heard=True)]
    assert heard.machine.voices(SUBJECT) == heard.machine.voices(OTHERS[5]) == 1


def test_voice_that_runs_out_clears_and_says_that_nobody_was_heard() -> None:
    heard = Heard()
    heard.accused_by(*OTHERS[:2])
    heard.machine.handle_expired(OTHERS[0], 1.0)
    assert heard.outputs() == [Doubted(SUBJECT), Cleared(SUBJECT, heard=False)]


def test_greater_incarnation_makes_accusations_void() -> None:
    heard = Heard()
    heard.accused_by(*OTHERS[:3])
    heard.outputs()
    heard.incarnations[SUBJECT] = 2
    heard.machine.handle_incarnation(SUBJECT, 1.0)
    assert heard.outputs() == [Cleared(SUBJECT, heard=True)]
    heard.accused_by(OTHERS[4], OTHERS[5])  # the old incarnation again
    assert heard.outputs() == []
    heard.accused_by(OTHERS[4], OTHERS[5], incarnation=2)
    assert heard.outputs() == [Doubted(SUBJECT)]


def test_accusations_count_before_the_card_of_their_subject_is_known() -> None:
    heard = Heard()
    del heard.incarnations[SUBJECT]
    heard.accused_by(*OTHERS[:2])
    assert heard.machine.is_doubted(SUBJECT)
    heard.outputs()
    heard.incarnations[SUBJECT] = 1
    heard.machine.handle_incarnation(SUBJECT, 1.0)
    assert heard.machine.is_doubted(SUBJECT)
    assert heard.outputs() == []


def test_accusation_of_an_incarnation_that_nobody_has_shown_waits_for_it() -> None:
    heard = Heard()
    heard.accused_by(*OTHERS[:2], incarnation=2**60)  # what no refutation would ever reach
    assert not heard.machine.is_doubted(SUBJECT)
    heard.accused_by(*OTHERS[2:4], incarnation=2)  # from where a newer card is known already
    assert not heard.machine.is_doubted(SUBJECT)
    heard.incarnations[SUBJECT] = 2
    heard.machine.handle_incarnation(SUBJECT, 1.0)
    assert heard.machine.voices(SUBJECT) == 2
    assert heard.outputs() == [Doubted(SUBJECT)]


def test_accusers_that_are_refuted_again_and_again_are_not_believed_for_a_while() -> None:
    heard = Heard(replace(CONFIG, refuted_burst=3.0))
    slanderers, honest = OTHERS[:2], OTHERS[2:4]

    def slandered(incarnation: int) -> bool:
        heard.accused_by(*slanderers, incarnation=incarnation)
        doubted = heard.machine.is_doubted(SUBJECT)
        heard.incarnations[SUBJECT] = incarnation + 1
        heard.machine.handle_incarnation(SUBJECT, heard.now)
        return doubted

    assert [slandered(incarnation) for incarnation in range(1, 7)] == [True, True, True, False, False, False]
    heard.accused_by(*honest, incarnation=7)
    assert heard.machine.is_doubted(SUBJECT)  # others are believed as before
    heard.incarnations[SUBJECT] = 8
    heard.machine.handle_incarnation(SUBJECT, heard.now)
    heard.now += 1.0 / CONFIG.refuted_per_s
    assert [slandered(incarnation) for incarnation in (8, 9)] == [True, False]  # one is forgiven after a while


def test_accuser_past_its_credit_is_still_believed_in_what_it_said_before() -> None:
    heard = Heard(replace(CONFIG, refuted_burst=1.0))
    heard.accused_by(OTHERS[0], subject=OTHERS[5])
    for accuser in OTHERS[:2]:
        heard.machine.handle_verdict(accuser, [(SUBJECT, 1), (OTHERS[5], 1)], 0.0)
    heard.incarnations[SUBJECT] = 2
    heard.machine.handle_incarnation(SUBJECT, 0.0)
    heard.machine.handle_verdict(OTHERS[0], [(OTHERS[5], 1), (OTHERS[6], 1)], 1.0)
    assert heard.machine.is_doubted(OTHERS[5])
    assert heard.machine.voices(OTHERS[6]) == 0


def test_silent_peer_is_accused_after_a_moment_and_acquitted_at_once() -> None:
    heard = Heard()
    heard.machine.accuse(SUBJECT, 0.0)
    ((told_at, told),) = heard.run(CONFIG.hold_back_s)
    assert told == TellVerdict(((SUBJECT, 1),))
    assert 0.0 < told_at <= CONFIG.hold_back_s
    heard.run(5.0)
    heard.machine.acquit(SUBJECT, 5.0)
    assert heard.outputs() == [TellVerdict(())]
    heard.machine.acquit(SUBJECT, 6.0)
    assert heard.run(1000.0) == []


def test_accusation_that_is_taken_back_before_it_was_told_is_never_told() -> None:
    heard = Heard()
    heard.machine.accuse(SUBJECT, 0.0)
    heard.machine.acquit(SUBJECT, 0.0)
    assert heard.run(1000.0) == []


def test_stranger_is_not_accused() -> None:
    heard = Heard()
    heard.machine.accuse(RecordKey(b"stranger"), 0.0)
    assert heard.run(10.0) == []


def test_voice_is_saved_where_enough_others_speak_and_raised_when_they_fall_silent() -> None:
    heard = Heard()
    heard.accused_by(*OTHERS[: CONFIG.voices_max])
    heard.machine.accuse(SUBJECT, 0.0)
    assert heard.run(10.0) == [(0.0, Doubted(SUBJECT))]
    for accuser in OTHERS[: CONFIG.voices_max]:
        heard.machine.handle_expired(accuser, 10.0)
    (_, cleared), (told_at, told) = heard.run(20.0)
    assert cleared == Cleared(SUBJECT, heard=False)
    assert told == TellVerdict(((SUBJECT, 1),))
    assert told_at <= 10.0 + CONFIG.hold_back_s


def test_one_voice_less_than_enough_is_joined() -> None:
    heard = Heard()
    heard.accused_by(*OTHERS[: CONFIG.voices_max - 1])
    heard.machine.accuse(SUBJECT, 0.0)
    assert TellVerdict(((SUBJECT, 1),)) in [output for _, output in heard.run(1.0)]


def test_peer_that_is_not_watched_is_accused_later_and_only_where_others_do_not() -> None:
    heard = Heard()
    heard.machine.accuse(SUBJECT, 0.0, watched=False)
    ((told_at, told),) = heard.run(10.0)
    assert told == TellVerdict(((SUBJECT, 1),))
    assert CONFIG.hold_back_idle_s / 2 <= told_at <= CONFIG.hold_back_idle_s
    heard = Heard()
    heard.machine.accuse(SUBJECT, 0.0, watched=False)
    heard.accused_by(*OTHERS[: CONFIG.confirmations])
    assert heard.run(10.0) == [(0.0, Doubted(SUBJECT))]


def test_accusation_that_is_held_back_waits_its_time_while_another_is_told() -> None:
    heard = Heard()
    heard.machine.accuse(SUBJECT, 0.0, watched=False)
    heard.machine.accuse(OTHERS[0], 0.0)
    first, second = heard.run(10.0)
    assert first[1] == TellVerdict(((OTHERS[0], 1),))
    assert second[1] == TellVerdict(((SUBJECT, 1), (OTHERS[0], 1)))
    assert first[0] <= CONFIG.hold_back_s < CONFIG.hold_back_idle_s / 2 <= second[0] <= CONFIG.hold_back_idle_s


def test_verdict_is_renewed_while_it_names_somebody_who_is_silent() -> None:
    heard = Heard()
    heard.machine.accuse(SUBJECT, 0.0)
    times = [at for at, _ in heard.run(1000.0)]
    assert [later - earlier for earlier, later in pairwise(times)] == pytest.approx([CONFIG.renew_s] * 8)


def test_forgotten_peer_is_not_acquitted_and_its_verdict_runs_out() -> None:
    """Whoever forgets it later would take that for a sign of life."""
    heard = Heard()
    heard.machine.accuse(SUBJECT, 0.0)
    heard.run(170.0)
    heard.machine.handle_forgotten(SUBJECT, 170.0)
    assert heard.run(200.0) == []
    heard.machine.accuse(OTHERS[0], 200.0)
    ((_, told),) = heard.run(201.0)
    assert told == TellVerdict(((SUBJECT, 1), (OTHERS[0], 1)))  # to leave it out would be to take it back
    heard.machine.acquit(OTHERS[0], 202.0)
    assert heard.outputs() == [TellVerdict(((SUBJECT, 1),))]
    assert heard.run(2000.0) == []
    heard.machine.accuse(OTHERS[1], 2000.0)
    assert [output for _, output in heard.run(2001.0)] == [TellVerdict(((OTHERS[1], 1),))]


def test_forgotten_peer_that_refutes_is_acquitted() -> None:
    heard = Heard()
    heard.machine.accuse(SUBJECT, 0.0)
    heard.run(170.0)
    heard.machine.handle_forgotten(SUBJECT, 170.0)
    heard.machine.acquit(SUBJECT, 175.0)  # it is connected, but its card is gone: it has to hear of that, and to refute
    assert heard.run(179.0) == []
    heard.incarnations[SUBJECT] = 2
    heard.machine.handle_incarnation(SUBJECT, 180.0)
    assert heard.outputs() == [TellVerdict(())]


def test_many_peers_that_fall_silent_at_once_make_few_verdicts_within_the_bound() -> None:
    heard = Heard(SuspicionConfig(subjects_max=5))
    told = []
    for index, peer in enumerate(OTHERS):
        told += heard.run(index * 0.05)
        heard.machine.accuse(peer, heard.now)
    told += heard.run(10.0)
    assert len(told) <= len(OTHERS) * 0.05 / CONFIG.tell_interval_s + 2
    assert told[-1][1] == TellVerdict(tuple((peer, 1) for peer in OTHERS[:5]))


def test_verdicts_are_told_at_most_so_often() -> None:
    heard = Heard()
    told = []
    for step in range(200):
        told += heard.run(step * 0.01)
        (heard.machine.acquit if step % 2 else heard.machine.accuse)(SUBJECT, heard.now)
        heard.machine.accuse(OTHERS[step % 18], heard.now)
    times = [at for at, output in told if isinstance(output, TellVerdict)]
    assert len(times) > 3
    assert all(later - earlier >= CONFIG.tell_interval_s - 1e-9 for earlier, later in pairwise(times))


def test_node_that_hears_itself_accused_refutes_after_a_moment_once() -> None:
    heard = Heard()
    heard.accused_by(*OTHERS[:4], subject=OWN)
    ((refuted_at, refute),) = heard.run(10.0)
    assert refute == Refute()
    assert CONFIG.refute_min_s <= refuted_at <= CONFIG.refute_max_s
    heard.incarnations[OWN] = 2
    heard.accused_by(*OTHERS[4:8], subject=OWN)
    assert heard.run(20.0) == []
    assert not heard.machine.is_doubted(OWN)


def test_accusation_of_oneself_that_is_taken_back_in_time_needs_no_answer() -> None:
    heard = Heard()
    heard.accused_by(*OTHERS[:2], subject=OWN)
    heard.run(CONFIG.refute_min_s / 2)
    heard.machine.handle_verdict(OTHERS[0], [], heard.now)
    assert heard.run(10.0) == []


def test_one_liar_cannot_have_a_node_refute() -> None:
    heard = Heard()
    heard.accused_by(OTHERS[0], subject=OWN)
    assert heard.run(10.0) == []


def test_verdict_of_an_earlier_life_is_replaced_each_time_that_a_record_of_that_life_shows() -> None:
    heard = Heard()
    heard.machine.handle_forgotten_self(0.0)
    heard.machine.handle_forgotten_self(0.1)
    told = [(0.0, TellVerdict(())), (CONFIG.tell_interval_s, TellVerdict(()))]
    assert heard.run(10.0) == told  # the second record may have had a greater number than the first verdict
    heard.machine.handle_forgotten_self(20.0)
    assert [output for _, output in heard.run(30.0)] == [TellVerdict(())]


def test_accusers_and_subjects_are_bounded() -> None:
    heard = Heard(SuspicionConfig(accusers_max=3, subjects_max=4))
    for accuser in OTHERS:
        heard.machine.handle_verdict(accuser, [(subject, 1) for subject in OTHERS], 0.0)
    assert len(heard.machine._named) == 3
    assert len(heard.machine._accusers) == 4
    heard.machine.handle_verdict(OTHERS[0], [(SUBJECT, 1)], 0.0)  # who is known may still change its mind
    assert heard.machine.voices(SUBJECT) == 1
    for accuser in OTHERS:
        heard.machine.handle_verdict(accuser, [], 0.0)
    assert heard.machine._named == heard.machine._accusers == {}


class AnyOrder(RuleBasedStateMachine):
    """Every order of calls, beside a model that keeps the newest verdicts and counts."""

    peers = st.sampled_from([OWN, SUBJECT, *OTHERS[:4]])
    others = st.sampled_from([SUBJECT, *OTHERS[:4]])

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.incarnations: dict[RecordKey, int] = {OWN: 1}
        believing = replace(CONFIG, refuted_burst=1e6)  # how credit is lost has its own tests
        self.machine = Suspicion(believing, OWN, random.Random(1), self.incarnations.get)
        self.verdicts: dict[RecordKey, dict[RecordKey, int]] = {}
        self.doubted: set[RecordKey] = set()
        self.silent: dict[RecordKey, int] = {}
        self.told: dict[RecordKey, int] = {}
        self.forgotten: set[RecordKey] = set()
        self.told_at = float("-inf")

    def voices(self, subject: RecordKey) -> int:
        newest = self.incarnations.get(subject)
        said = [accused[subject] for accused in self.verdicts.values() if subject in accused]
        return len(said) if newest is None else said.count(newest)

    @rule(accuser=others, accused=st.dictionaries(peers, st.integers(0, 4), max_size=4))
    def verdict(self, accuser: RecordKey, accused: dict[RecordKey, int]) -> None:
        self.verdicts[accuser] = {peer: said for peer, said in accused.items() if said >= self.incarnations.get(peer, 0)}
        self.machine.handle_verdict(accuser, list(accused.items()), self.now)

    @rule(accuser=others)
    def expire(self, accuser: RecordKey) -> None:
        self.verdicts.pop(accuser, None)
        self.machine.handle_expired(accuser, self.now)

    @rule(peer=others)
    def renew(self, peer: RecordKey) -> None:
        self.incarnations[peer] = self.incarnations.get(peer, 0) + 1
        self.silent.pop(peer, None)
        self.forgotten.discard(peer)
        self.machine.handle_incarnation(peer, self.now)

    @rule(peer=others, watched=st.booleans())
    def accuse(self, peer: RecordKey, watched: bool) -> None:
        if peer in self.incarnations:
            self.silent.setdefault(peer, self.incarnations[peer])
        self.machine.accuse(peer, self.now, watched=watched)

    @rule(peer=others)
    def acquit(self, peer: RecordKey) -> None:
        self.silent.pop(peer, None)
        self.machine.acquit(peer, self.now)

    @rule(peer=others)
    def forget(self, peer: RecordKey) -> None:
        if self.silent.pop(peer, None) is not None:
            self.forgotten.add(peer)
        self.machine.handle_forgotten(peer, self.now)

    @rule(step_s=st.floats(0.0, 2.0) | st.sampled_from([60.0, 300.0]))
    def wait(self, step_s: float) -> None:
        until = self.now + step_s
        while (due := self.machine.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            self.machine.handle_timer(self.now)
            following = self.machine.next_timer()
            assert following is None or following > self.now
            self.outputs_are_lawful()
        self.now = until

    @invariant()
    def outputs_are_lawful(self) -> None:
        while (output := self.machine.next_output()) is not None:
            match output:
                case Doubted(peer):
                    assert peer not in self.doubted
                    self.doubted.add(peer)
                case Cleared(peer, _):
                    self.doubted.remove(peer)
                case TellVerdict(accused):
                    assert self.now >= self.told_at + CONFIG.tell_interval_s - 1e-9
                    for peer, incarnation in accused:
                        assert peer in self.forgotten or self.silent[peer] == incarnation
                    assert OWN not in dict(accused)
                    self.told, self.told_at = dict(accused), self.now
                case Refute():
                    assert self.voices(OWN) >= CONFIG.confirmations
                    self.incarnations[OWN] += 4

    @invariant()
    def doubt_is_what_enough_others_say(self) -> None:
        self.outputs_are_lawful()
        for peer in (SUBJECT, *OTHERS[:4]):
            assert self.machine.voices(peer) == self.voices(peer)
            assert self.machine.is_doubted(peer) is (peer in self.doubted) is (self.voices(peer) >= CONFIG.confirmations)

    @invariant()
    def who_is_silent_is_accused_unless_enough_others_do_it(self) -> None:
        due = self.machine.next_timer()
        for peer, incarnation in self.silent.items():
            told = self.told.get(peer) == incarnation
            assert (
                told
                or self.voices(peer) >= CONFIG.confirmations
                or (due is not None and due <= self.now + CONFIG.hold_back_idle_s)
            )

    @invariant()
    def who_is_heard_is_not_accused_for_long(self) -> None:
        due = self.machine.next_timer()
        for peer in self.told:
            if peer not in self.silent and peer not in self.forgotten:
                assert due is not None
                assert due <= self.now + CONFIG.tell_interval_s


TestAnyOrderOfVerdicts = AnyOrder.TestCase
TestAnyOrderOfVerdicts.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
