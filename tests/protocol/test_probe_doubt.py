"""When a silent peer is doubted and suspected, and when it is heard again."""

import math
import random
from itertools import pairwise

import pytest
from probe_pair import CONFIG, A, B, Pair, drain, echo_of

from protocol.probe import (
    KIND_PROBE,
    Liveness,
    Misbehaved,
    PeerRecovered,
    PeerSuspected,
    Probe,
    SendDatagram,
)


@pytest.mark.parametrize("killed_at", [110.0 + step / 10 for step in range(23)])
def test_a_dead_peer_that_is_watched_is_suspected_in_time(killed_at: float) -> None:
    pair = Pair()
    pair.run(killed_at)
    pair.cut = True
    pair.run(120.0)
    ((suspected_at, suspected),) = pair.facts_of(A, PeerSuspected)
    assert suspected.since <= killed_at + 0.01
    longest_s = CONFIG.quiet_s + CONFIG.suspect_after_s + pair.rtt_s
    assert CONFIG.suspect_after_s < suspected_at - suspected.since <= longest_s + 1e-9
    assert longest_s < 2.0
    assert pair.nodes[A].liveness(B) is Liveness.SUSPECTED
    assert pair.nodes[A].silent_since(B) == suspected.since


def test_a_dead_peer_that_is_only_measured_is_suspected_after_its_next_probe() -> None:
    pair = Pair(watched=False)
    pair.run(110.0)
    pair.cut = True
    pair.run(200.0)
    ((suspected_at, _),) = pair.facts_of(A, PeerSuspected)
    assert suspected_at - 110.0 <= 1.1 * CONFIG.idle_interval_s + CONFIG.echo_s + CONFIG.suspect_after_s + pair.rtt_s


def test_word_that_others_hear_nothing_has_a_measured_peer_probed_at_once() -> None:
    pair = Pair(watched=False)
    pair.run(110.0)
    pair.cut = True
    pair.nodes[A].handle_doubt(B, pair.now)
    pair.run(120.0)
    ((suspected_at, _),) = pair.facts_of(A, PeerSuspected)
    assert suspected_at - 110.0 == pytest.approx(CONFIG.suspect_after_s + pair.rtt_s)


@pytest.mark.parametrize("watched", [True, False])
def test_word_that_others_hear_nothing_harms_nobody_who_answers(watched: bool) -> None:
    pair = Pair(rtt_s=0.2, watched=watched)
    pair.run(110.0)
    before = pair.sent
    for turn in range(10):
        pair.nodes[A].handle_doubt(B, pair.now)
        pair.flush(A)
        pair.run(110.0 + 2 * (turn + 1))
    assert pair.facts_of(A, PeerSuspected) == []
    assert (
        pair.sent - before <= 10 * 2 * (0.2 / CONFIG.burst_interval_s + 2) + 60
    )  # probes until the first echo, and their echoes


def test_a_peer_that_joins_the_mesh_is_not_blamed_for_its_silence_before() -> None:
    pair = Pair(watched=False)
    pair.run(125.0)
    silent_s = pair.now - pair.nodes[A]._peers[B].heard_at
    assert silent_s > CONFIG.quiet_s + CONFIG.suspect_after_s
    before = pair.sent
    for here, there in ((A, B), (B, A)):
        pair.nodes[here].handle_watched(there, pair.now, watched=True)
    pair.run(125.0 + CONFIG.interval_s)
    assert pair.sent - before <= 8  # no burst
    assert pair.nodes[A].stalls == 0  # nothing was due before
    assert pair.facts_of(A, PeerSuspected) == []
    pair.cut = True
    pair.run(130.0)
    assert len(pair.facts_of(A, PeerSuspected)) == 1


def test_a_peer_that_is_heard_and_does_not_answer_is_suspected() -> None:
    """Its probes come, its echoes do not: it hears nothing of this node, so it can be given no work."""
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    machine.handle_watched(A, 0.0, watched=True)
    now, found = 0.0, []
    while not found:
        machine.handle_datagram(A, bytes([KIND_PROBE]) + random.Random(now).randbytes(8), now, now)
        now += 0.1
        machine.handle_timer(now)
        found = [output for output in drain(machine) if isinstance(output, PeerSuspected)]
        assert now < 3.0
    machine.handle_datagram(A, bytes([KIND_PROBE]) + bytes(8), now, now)
    assert not any(isinstance(output, PeerRecovered) for output in drain(machine))
    soon = machine.next_timer()
    assert soon <= now + 2 * CONFIG.burst_interval_s * (1.0 + CONFIG.interval_spread)
    machine.handle_timer(soon)
    (probe,) = drain(machine)  # whether it hears this node is found out at once
    machine.handle_datagram(A, echo_of(probe), soon + 0.02, soon + 0.02)
    assert PeerRecovered(A) in drain(machine)


def probes_within(machine: Probe, until: float) -> list[float]:
    """When probes go out."""
    times = []
    while (due := machine.next_timer()) is not None and due <= until:
        machine.handle_timer(due)
        times += [due for output in drain(machine) if isinstance(output, SendDatagram)]
    return times


def test_a_silent_peer_that_says_something_on_a_stream_is_probed_at_once() -> None:
    """Its path has healed: where 30 % of all datagrams are lost, one probe every 0.4 s left some suspicions for three seconds."""
    pair = Pair()
    pair.run(110.0)
    assert not pair.nodes[A].handle_spoken(B, pair.now)  # who answers is not probed more
    pair.cut = True
    pair.run(112.0)
    assert pair.nodes[A].liveness(B) is Liveness.SUSPECTED
    assert not pair.nodes[A].handle_spoken(B, pair.now)  # it is probed fast as yet
    pair.run(140.0)
    assert pair.nodes[A].handle_spoken(B, pair.now)
    assert len(probes_within(pair.nodes[A], pair.now + CONFIG.burst_probes * CONFIG.burst_interval_s)) == CONFIG.burst_probes
    for _ in range(100):  # and not without bound, however much it says
        assert pair.nodes[A].handle_spoken(B, pair.now + 0.5)
    assert len(probes_within(pair.nodes[A], pair.now + 0.7)) <= CONFIG.burst_probes + 2
    assert pair.nodes[A].liveness(B) is Liveness.SUSPECTED  # only an echo tells that it hears
    assert not pair.nodes[A].handle_spoken(A, pair.now)  # nobody that it is connected to


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("silence_s", [2.0, 30.0])
def test_a_later_echo_recovers_the_peer(silence_s: float, watched: bool) -> None:
    pair = Pair(watched=watched)
    pair.run(110.0)
    pair.cut = True
    pair.nodes[A].handle_doubt(B, 110.0)
    pair.run(110.0 + silence_s)
    assert pair.nodes[A].liveness(B) is Liveness.SUSPECTED
    pair.cut = False
    pair.run(110.0 + silence_s + 0.275 * CONFIG.interval_s + 0.02)
    assert len(pair.facts_of(A, PeerRecovered)) == 1
    assert pair.nodes[A].liveness(B) is Liveness.ALIVE
    assert pair.nodes[A].silent_since(B) is None
    pair.run(200.0)
    assert len(pair.facts_of(A, PeerSuspected)) == 1


def test_lost_datagrams_make_loss_and_no_suspicion() -> None:
    pair = Pair()
    pair.loss = 0.2
    pair.run(400.0)
    assert pair.facts_of(A, PeerSuspected) == []
    assert 0.15 < pair.nodes[A].quality(B, pair.now).loss < 0.55  # a fifth each way


def test_silent_peer_is_probed_fast_until_it_is_suspected_and_then_seldom() -> None:
    pair = Pair()
    pair.run(110.0)
    pair.cut = True
    times, asked, suspected_at = [], pair.nodes[A], math.inf
    while (due := asked.next_timer()) < 140.0:
        asked.handle_timer(due)
        for output in drain(asked):
            if isinstance(output, SendDatagram):
                times.append(due)
            elif isinstance(output, PeerSuspected):
                suspected_at = due
    doubted_at = suspected_at - CONFIG.suspect_after_s - pair.rtt_s
    fast = [at for at in times if doubted_at <= at <= suspected_at]
    assert len(fast) == pytest.approx(CONFIG.suspect_after_s / CONFIG.doubt_interval_s, abs=2)
    assert len(fast) <= CONFIG.answers_burst
    assert len([at for at in times if doubted_at <= at <= doubted_at + CONFIG.insist_s]) <= CONFIG.answers_burst
    after_s = CONFIG.insist_s + CONFIG.interval_s / 4
    gaps = [later - earlier for earlier, later in pairwise(at for at in times if at > doubted_at + after_s)]
    assert len(gaps) > 20
    assert all(0.9 <= 4 * gap / CONFIG.interval_s <= 1.1 for gap in gaps)


def test_a_peer_has_answered_lately_for_as_long_as_a_watcher_waits() -> None:
    pair = Pair(watched=False)
    pair.run(100.05)
    asked, answered_at = pair.nodes[A], pair.nodes[A].quality(B, pair.now).measured_at
    assert asked.answered_lately(B, answered_at + 0.99)
    assert not asked.answered_lately(B, answered_at + CONFIG.quiet_s)
    pair.cut = True
    pair.run(140.0)
    assert asked.liveness(B) is Liveness.SUSPECTED
    assert not asked.answered_lately(B, answered_at), "a suspected peer has to answer anew"


def test_probes_that_a_path_held_for_three_seconds_are_no_flood_when_they_come_at_once() -> None:
    """One way is clogged, so each end misses the other's echoes, and one of them hears the other ask."""
    pair = Pair(rtt_s=0.0)
    pair.run(110.0)
    asks, deaf = pair.nodes[A], pair.nodes[B]
    asks.handle_doubt(B, 110.0)
    held: list[bytes] = []
    for step in range(3000):
        now = 110.0 + step * 0.001
        for machine in (asks, deaf):
            machine.handle_timer(now)
        for output in drain(deaf):
            if isinstance(output, SendDatagram):
                asks.handle_datagram(B, output.payload, now, now)
        held += [output.payload for output in drain(asks) if isinstance(output, SendDatagram) and output.payload[0] == KIND_PROBE]
    assert len(held) > 20
    for payload in held:
        deaf.handle_datagram(A, payload, 113.0, 113.0)
    assert not [output for output in drain(deaf) if isinstance(output, Misbehaved)]


def suspected_for_s(seed: int, answered: float) -> float:
    """How long a peer stays suspected of whose probes a share is answered, while it does not probe itself."""
    machine, luck = Probe(CONFIG, random.Random(seed)), random.Random(seed)
    machine.handle_connected(A, 0.0)
    drain(machine)
    suspected_at = None
    while True:
        now = machine.next_timer()
        machine.handle_timer(now)
        for output in drain(machine):
            if isinstance(output, PeerSuspected):
                suspected_at = now
            elif isinstance(output, SendDatagram) and suspected_at is not None and luck.random() < answered:
                machine.handle_datagram(A, echo_of(output), now + 0.02, now + 0.02)
                return now + 0.02 - suspected_at


def test_a_living_peer_is_not_suspected_for_long_though_half_of_the_probes_get_no_echo() -> None:
    assert max(suspected_for_s(seed, 0.49) for seed in range(2000)) < 2.0


@pytest.mark.parametrize("seed", range(5))
def test_a_fifth_of_all_datagrams_lost_at_random_makes_no_suspicion(seed: int) -> None:
    pair = Pair(rtt_s=0.08)
    pair.luck = random.Random(seed)
    pair.loss = 0.2
    pair.run(400.0)
    assert pair.facts_of(A, PeerSuspected) == pair.facts_of(B, PeerSuspected) == []


def test_who_is_doubted_for_the_first_time_is_hardly_suspected_though_half_of_the_probes_get_no_echo() -> None:
    """The path has not shown yet that it loses much: with seven probes in doubt ten in a thousand were suspected."""
    suspected = 0
    for seed in range(1000):
        pair = Pair(rtt_s=0.1)
        pair.run(101.0)
        pair.luck, pair.loss = random.Random(seed), 0.3
        pair.nodes[A].handle_doubt(B, pair.now)
        pair.flush(A)
        pair.run(pair.now + CONFIG.suspect_after_s + 0.11)
        suspected += len(pair.facts_of(A, PeerSuspected))
    assert suspected <= 1


def test_path_that_loses_much_is_met_with_patience_that_passes() -> None:
    """Each doubt that proves wrong makes the next suspicion later, up to twice the time; undisturbed echoes take it back."""
    pair = Pair()
    pair.run(110.0)

    def patience_s() -> float:
        machine = pair.nodes[A]
        machine.handle_doubt(B, pair.now)
        due_s = machine._suspect_at(machine._peers[B]) - pair.now - pair.rtt_s
        pair.flush(A)
        pair.run(pair.now + 0.1)
        return due_s

    grown = [patience_s() for _ in range(8)]
    assert grown[0] == pytest.approx(CONFIG.suspect_after_s)
    assert grown[1] > grown[0]
    assert grown[-1] == pytest.approx(2 * CONFIG.suspect_after_s)
    pair.run(pair.now + 100.0)
    assert patience_s() == pytest.approx(CONFIG.suspect_after_s)
