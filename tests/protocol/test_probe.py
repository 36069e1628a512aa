import heapq
import math
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.coordinates import DIMENSIONS, Coordinate
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.places import PLACE_BYTES
from protocol.probe import (
    KIND_ECHO,
    KIND_PROBE,
    PROBE_BYTES,
    Liveness,
    Misbehaved,
    Output,
    PeerRecovered,
    PeerSuspected,
    Probe,
    ProbeConfig,
    SampleTaken,
    SendDatagram,
)

CONFIG = ProbeConfig()
A, B = PeerId(b"node a"), PeerId(b"node b")


def drain(machine: Probe) -> list[Output]:
    outputs = []
    while (output := machine.next_output()) is not None:
        outputs.append(output)
    return outputs


def echo_of(probe: SendDatagram) -> bytes:
    return bytes([KIND_ECHO]) + probe.payload[1:]


class Pair:
    """Two nodes and the path between them; time jumps from one event to the next."""

    def __init__(self, rtt_s: float = 0.02, config: ProbeConfig = CONFIG, *, watched: bool = True) -> None:
        self.now = 100.0
        self.rtt_s = rtt_s
        self.cut = False
        self.loss = 0.0
        self.luck = random.Random(0)
        self.sent = 0
        self.nodes = {A: Probe(config, random.Random(1)), B: Probe(config, random.Random(2))}
        self.facts: dict[PeerId, list[tuple[float, Output]]] = {A: [], B: []}
        self._flying: list[tuple[float, int, PeerId, bytes]] = []
        for here, there in ((A, B), (B, A)):
            self.nodes[here].handle_connected(there, self.now)
            self.nodes[here].handle_watched(there, self.now, watched=watched)
            self.flush(here)

    def flush(self, here: PeerId) -> None:
        for output in drain(self.nodes[here]):
            if isinstance(output, SendDatagram):
                self.sent += 1
                lost = self.cut or self.luck.random() < self.loss
                if not lost:
                    heapq.heappush(self._flying, (self.now + self.rtt_s / 2, self.sent, output.peer, output.payload))
            else:
                self.facts[here].append((self.now, output))

    def run(self, until: float) -> None:
        while True:
            timers = {node: machine.next_timer() for node, machine in self.nodes.items()}
            due = min(timer for timer in timers.values() if timer is not None)
            arrives = self._flying[0][0] if self._flying else math.inf
            if min(due, arrives) > until:
                self.now = until
                return
            self.now = max(self.now, min(due, arrives))
            if arrives <= due:
                _, _, here, payload = heapq.heappop(self._flying)
                self.nodes[here].handle_datagram(A if here is B else B, payload, self.now, self.now)
            else:
                here = min(timers, key=lambda node: timers[node])
                self.nodes[here].handle_timer(self.now)
            self.flush(here)

    def facts_of(self, node: PeerId, kind: type) -> list[tuple[float, Output]]:
        return [(at, fact) for at, fact in self.facts[node] if isinstance(fact, kind)]


def test_a_probe_is_nine_bytes_and_unpredictable() -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    payloads = [output.payload for output in drain(machine)]
    for _ in range(50):
        machine.handle_timer(machine.next_timer())
        payloads += [output.payload for output in drain(machine) if isinstance(output, SendDatagram)]
    assert all(len(payload) == PROBE_BYTES == 9 and payload[0] == KIND_PROBE == 1 for payload in payloads)
    assert len({payload[1:] for payload in payloads}) == len(payloads) > 40


def test_the_distance_is_known_within_a_round_trip_of_connecting() -> None:
    pair = Pair(rtt_s=0.02)
    pair.run(100.021)
    assert pair.nodes[A].quality(B, pair.now).rtt_s == pytest.approx(0.02)


def test_an_echo_tells_where_its_sender_is() -> None:
    here, there = Probe(CONFIG, random.Random(1)), Probe(CONFIG, random.Random(2))
    place = Coordinate((0.25, *[-0.125] * (DIMENSIONS - 1)), 0.001, 0.5)
    here.handle_connected(B, 0.0)
    there.handle_connected(A, 0.0)
    (probe,), _ = drain(here), drain(there)
    there.handle_datagram(A, probe.payload, 0.01, 0.01, place)
    (echo,) = drain(there)
    assert len(echo.payload) == PROBE_BYTES + PLACE_BYTES == 37
    here.handle_datagram(B, echo.payload, 0.02, 0.02)
    ((sample),) = drain(here)
    assert sample == SampleTaken(B, pytest.approx(0.02), sample.place)
    assert sample.place.vector == pytest.approx(place.vector)


def test_an_echo_without_a_place_or_with_one_that_cannot_be_is_a_sample_all_the_same() -> None:
    for told in (b"", b"\x7f" * PLACE_BYTES):
        machine = Probe(CONFIG, random.Random(1))
        machine.handle_connected(B, 0.0)
        (probe,) = drain(machine)
        machine.handle_datagram(B, echo_of(probe) + told, 0.02, 0.02)
        assert drain(machine) == [SampleTaken(B, 0.02, None)]


@pytest.mark.parametrize("length", [0, 1, 8, 10, 36, 38, 1200])
@pytest.mark.parametrize("kind", [KIND_PROBE, KIND_ECHO])
def test_a_datagram_of_another_length_is_blamed(kind: int, length: int) -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(B, 0.0)
    drain(machine)
    machine.handle_datagram(B, bytes([kind])[:length] + bytes(max(0, length - 1)), 0.02, 0.02)
    (complaint,) = drain(machine)
    assert complaint.code is ErrorCode.MALFORMED


def test_a_probe_with_a_place_is_blamed() -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(B, 0.0)
    drain(machine)
    machine.handle_datagram(B, bytes([KIND_PROBE]) + bytes(8 + PLACE_BYTES), 0.02, 0.02)
    assert [type(output) for output in drain(machine)] == [Misbehaved]


def test_probes_come_ever_farther_apart_until_the_path_is_known() -> None:
    config = replace(CONFIG, interval_spread=0.0)
    pair = Pair(watched=False, config=config)
    pair.run(100.0 + 4 * config.idle_interval_s)
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(pair.facts_of(A, SampleTaken))]
    doubled = [config.settle_s * 2**step for step in range(6)]
    assert gaps == pytest.approx([*doubled, *[config.idle_interval_s] * (len(gaps) - 6)])
    assert sum(doubled[:4]) < 10.0
    assert len(gaps) > 6


@pytest.mark.parametrize(("watched", "interval_s"), [(True, CONFIG.interval_s), (False, CONFIG.idle_interval_s)])
def test_probes_go_out_every_interval_and_not_in_step(watched: bool, interval_s: float) -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    machine.handle_watched(A, 0.0, watched=watched)
    times = []
    while (due := machine.next_timer()) < 40 * interval_s:
        machine.handle_timer(due)
        outputs = drain(machine)
        for output in outputs:
            if isinstance(output, SendDatagram):
                times.append(due)
                machine.handle_datagram(A, echo_of(output), due + 0.01, due + 0.01)
            assert not isinstance(output, PeerSuspected)
        drain(machine)
    if watched:  # nobody probes this node: half of the silence puts the peer in doubt, and its echo out of it
        times = [at for at, before in zip(times[1:], times, strict=False) if at - before > CONFIG.burst_interval_s * 1.01]
        assert all(gap <= CONFIG.quiet_s + 0.02 for gap in map(float.__sub__, times[1:], times))
        return
    gaps = [later - earlier for earlier, later in pairwise(times) if earlier > interval_s]
    assert all(0.9 * interval_s <= gap <= 1.1 * interval_s for gap in gaps)
    assert len(set(gaps)) > 10


def test_two_ends_that_watch_one_another_probe_by_turns() -> None:
    """Each probes every interval and hears the other twice as often, and no silence is long enough for doubt."""
    pair = Pair()
    pair.run(110.0)
    pair.sent = 0
    pair.run(310.0)
    assert pair.sent == pytest.approx(4 * 200.0 / CONFIG.interval_s, rel=0.1)  # a probe and an echo, from either end
    samples = [at for at, _ in pair.facts_of(A, SampleTaken) if at > 110.0]
    probed = [at for at, _ in pair.facts_of(B, SampleTaken) if at > 110.0]
    heard = sorted(samples + [at - 0.01 for at in probed])
    assert max(later - earlier for earlier, later in pairwise(heard)) < CONFIG.quiet_s


def test_a_watched_peer_that_probes_often_is_still_measured() -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    machine.handle_watched(A, 0.0, watched=True)
    times = [0.0]
    for step in range(1, 1200):
        now = step * 0.05
        if step % 10 == 0:
            machine.handle_datagram(A, bytes([KIND_PROBE]) + step.to_bytes(8, "big"), now, now)
        machine.handle_timer(now)
        for output in drain(machine):
            if isinstance(output, SendDatagram) and output.payload[0] == KIND_PROBE:
                times.append(now)
                machine.handle_datagram(A, echo_of(output), now + 0.001, now + 0.001)
    longest_s = max(later - earlier for earlier, later in pairwise([*times, now]))
    assert longest_s <= 1.5 * CONFIG.interval_s + 0.1  # the clock goes in steps here


def test_peers_that_are_only_measured_cost_little() -> None:
    pair = Pair(watched=False)
    pair.run(110.0)
    pair.sent = 0
    pair.run(710.0)
    assert pair.sent == pytest.approx(4 * 600.0 / CONFIG.idle_interval_s, rel=0.2)
    assert pair.facts_of(A, PeerSuspected) == []


def test_quality_tells_median_minimum_jitter_and_loss() -> None:
    config = replace(CONFIG, interval_spread=0.0, idle_interval_s=0.5, echo_s=10.0)
    machine = Probe(config, random.Random(1))
    machine.handle_connected(A, 0.0)
    rtts = [0.010, 0.030, 0.010, None, 0.020]
    now = 0.0
    for rtt_s in rtts:
        (probe,) = [output for output in drain(machine) if isinstance(output, SendDatagram)]
        if rtt_s is not None:
            machine.handle_datagram(A, echo_of(probe), now + rtt_s, now + rtt_s)
        now = machine.next_timer()
        machine.handle_timer(now)
    quality = machine.quality(A, now)
    assert quality.rtt_s == pytest.approx(0.015)
    assert quality.rtt_s_min == pytest.approx(0.010)
    jitter_s = 0.0
    for difference_s in (0.020, 0.020, 0.010):
        jitter_s += (difference_s - jitter_s) / 16  # RFC 3550 section 6.4.1
    assert quality.jitter_s == pytest.approx(jitter_s)
    assert quality.samples == 4
    assert quality.loss == 0.0  # the missing echo may still come
    assert quality.measured_at == pytest.approx(2.02)
    assert machine.quality(A, now + 2.0).loss == pytest.approx(1 / 5)
    assert machine.quality(A, now + 2.6).loss == pytest.approx(2 / 6)
    assert machine.quality(B, now) is None


def test_the_kernels_time_of_arrival_counts_and_not_ours() -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    (probe,) = drain(machine)
    machine.handle_datagram(A, echo_of(probe), received_at=0.015, now=0.4)
    assert drain(machine) == [SampleTaken(A, pytest.approx(0.015))]


@pytest.mark.parametrize("received_at", [4.9, 5.0, 15.1, math.nan, math.inf, -math.inf])
def test_an_echo_at_an_impossible_moment_is_no_sample(received_at: float) -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 5.0)
    (probe,) = drain(machine)
    machine.handle_datagram(A, echo_of(probe), received_at, now=16.0)
    assert drain(machine) == []
    assert machine.quality(A, 16.0) is None


def test_an_echo_counts_once_and_only_from_the_peer_it_was_sent_to() -> None:
    machine = Probe(CONFIG, random.Random(1))
    for peer in (A, B):
        machine.handle_connected(peer, 0.0)
    to_a, to_b = drain(machine)
    machine.handle_datagram(A, echo_of(to_b), 0.001, 0.001)
    machine.handle_datagram(A, bytes([KIND_ECHO]) + bytes(8), 0.001, 0.001)
    assert drain(machine) == []
    machine.handle_datagram(A, echo_of(to_a), 0.010, 0.010)
    machine.handle_datagram(A, echo_of(to_a), 0.020, 0.020)
    assert drain(machine) == [SampleTaken(A, 0.010)]


def test_outstanding_nonces_are_bounded_and_the_oldest_are_forgotten() -> None:
    machine = Probe(replace(CONFIG, window_probes=4), random.Random(1))
    machine.handle_connected(A, 0.0)
    probes = drain(machine)
    for _ in range(30):
        machine.handle_timer(machine.next_timer())
        probes += [output for output in drain(machine) if isinstance(output, SendDatagram)]
        assert len(machine._peers[A].sent) <= 4
    now = machine.next_timer()
    machine.handle_datagram(A, echo_of(probes[0]), now, now)
    assert drain(machine) == []


def test_peers_are_bounded() -> None:
    machine = Probe(replace(CONFIG, peers_max=1), random.Random(1))
    assert machine.handle_connected(A, 0.0)
    assert not machine.handle_connected(B, 0.0)
    assert machine.handle_connected(A, 1.0)
    assert {output.peer for output in drain(machine)} == {A}


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
    assert len(fast) == pytest.approx(CONFIG.suspect_after_s / CONFIG.burst_interval_s, abs=2)
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


def test_a_node_that_was_held_up_speaks_at_once() -> None:
    pair = Pair()
    pair.run(110.0)
    stalled = pair.nodes[A]
    stalled.handle_timer(120.0)
    assert any(isinstance(output, SendDatagram) for output in drain(stalled))


def test_probes_that_piled_up_while_this_node_was_held_up_are_no_flood() -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    while (due := machine.next_timer()) < 5.0:
        machine.handle_timer(due)
    for index in range(CONFIG.answers_burst):
        machine.handle_datagram(A, b"\x01" + index.to_bytes(8, "big"), 5.0, 5.0)
    drain(machine)
    machine.handle_timer(machine.next_timer() + 1.0)
    for index in range(CONFIG.answers_burst):
        machine.handle_datagram(A, b"\x01" + index.to_bytes(8, "big"), 7.0, 7.0)
    assert not any(isinstance(output, Misbehaved) for output in drain(machine))


def test_a_node_that_was_held_up_blames_nobody() -> None:
    pair = Pair()
    pair.run(110.0)
    stalled = pair.nodes[A]
    stalled.handle_timer(120.0)  # ten seconds in which neither timers nor datagrams were handled
    assert not any(isinstance(output, PeerSuspected) for output in drain(stalled))
    assert stalled.stalls == 1
    assert stalled.health(120.0) == 1
    assert stalled.liveness(B) is Liveness.ALIVE


def found_dead(machine: Probe, limit: float) -> float:
    """When the one peer, which never answers, is suspected; each timer is in time."""
    while (due := machine.next_timer()) < limit:
        machine.handle_timer(due)
        if any(isinstance(output, PeerSuspected) for output in drain(machine)):
            return due
    raise AssertionError(f"not suspected before {limit}")


def test_a_held_up_node_still_finds_the_dead_peer_afterwards_and_takes_longer() -> None:
    pair = Pair()
    pair.run(110.0)
    stalled = pair.nodes[A]
    stalled.handle_timer(120.0)
    drain(stalled)
    found_at = found_dead(stalled, 123.0)
    assert found_at >= 120.0 + 2 * CONFIG.suspect_after_s
    assert found_at <= 120.0 + CONFIG.quiet_s + 2 * CONFIG.suspect_after_s + pair.rtt_s + 1e-9


def test_a_node_that_is_held_up_again_and_again_grows_patient_up_to_a_bound_and_gets_well() -> None:
    pair = Pair()
    pair.run(110.0)
    machine, now = pair.nodes[A], 110.0
    for stall in range(1, 21):
        now = machine.next_timer() + 1.0
        machine.handle_timer(now)
        drain(machine)
        assert machine.health(now) == min(stall, CONFIG.health_max)
    assert machine.liveness(B) is Liveness.ALIVE
    found_at = found_dead(machine, now + 10.0)
    assert found_at - now <= CONFIG.quiet_s + CONFIG.suspect_after_s * (1 + CONFIG.health_max)
    assert machine.health(now + CONFIG.health_back_s - 0.1) == CONFIG.health_max
    assert machine.health(now + CONFIG.health_back_s) == CONFIG.health_max - 1
    assert machine.health(now + CONFIG.health_back_s * CONFIG.health_max) == 0


def test_lateness_within_the_limit_is_no_excuse() -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    facts = []
    while not facts:
        now = machine.next_timer() + 0.2
        machine.handle_timer(now)
        facts = [output for output in drain(machine) if isinstance(output, PeerSuspected)]
    assert now < CONFIG.echo_s + CONFIG.suspect_after_s + 3 * 0.2
    assert machine.stalls == 0


def test_a_probe_is_answered_at_once_with_its_nonce() -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    drain(machine)
    machine.handle_datagram(A, b"\x01abcdefgh", 0.1, 0.1)
    assert drain(machine) == [SendDatagram(A, b"\x02abcdefgh")]


def test_a_flood_is_answered_up_to_the_budget_and_told_once_a_second() -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    drain(machine)
    counted: Counter[type] = Counter()
    for index in range(10_000):
        now = index / 1000
        machine.handle_datagram(A, b"\x01" + index.to_bytes(8, "big"), now, now)
        for output in drain(machine):
            counted[type(output)] += 1
            if isinstance(output, Misbehaved):
                assert output.code is ErrorCode.FLOODING
    assert counted[SendDatagram] <= CONFIG.answers_burst + 10 * CONFIG.answers_per_s + 1
    assert 9 <= counted[Misbehaved] <= 10


def test_a_flood_of_echoes_costs_nothing() -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    drain(machine)
    for index in range(1000):
        machine.handle_datagram(A, b"\x02" + index.to_bytes(8, "big"), 0.1, 0.1)
    assert drain(machine) == []


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x02", b"\x01" + bytes(7), b"\x01" + bytes(9), b"\x02" + bytes(1199)])
def test_a_probe_of_the_wrong_length_is_told_once(payload: bytes) -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    drain(machine)
    for _ in range(5):
        machine.handle_datagram(A, payload, 0.1, 0.1)
    (fault,) = drain(machine)
    assert isinstance(fault, Misbehaved)
    assert fault.code is ErrorCode.MALFORMED


@pytest.mark.parametrize("payload", [b"\x00" * 9, b"\x03" * 9, b"\xff", b"\x7f" * 1200])
def test_a_datagram_of_an_unknown_kind_is_ignored(payload: bytes) -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    drain(machine)
    machine.handle_datagram(A, payload, 0.1, 0.1)
    assert drain(machine) == []


def test_a_peer_that_left_is_forgotten() -> None:
    machine = Probe(CONFIG, random.Random(1))
    machine.handle_connected(A, 0.0)
    (probe,) = drain(machine)
    machine.handle_disconnected(A, 0.01)
    machine.handle_datagram(A, echo_of(probe), 0.02, 0.02)
    assert machine.next_output() is None
    assert machine.next_timer() is None
    assert machine.liveness(A) is None
    machine.handle_connected(A, 0.03)
    drain(machine)
    machine.handle_datagram(A, echo_of(probe), 0.04, 0.04)  # the nonce of an earlier connection
    assert drain(machine) == []


class AnyOrder(RuleBasedStateMachine):
    """Every order of calls: facts alternate, samples are plausible, memory is bounded, the timer moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Probe(replace(CONFIG, window_probes=8, peers_max=2), random.Random(1))
        self.now = 0.0
        self.probes: list[SendDatagram] = []
        self.believed: dict[PeerId, Liveness] = {}
        self.answered_at: dict[PeerId, float] = {}  # or connected

    @rule(peer=st.sampled_from([A, B, PeerId(b"c")]))
    def connect(self, peer: PeerId) -> None:
        known = peer in self.believed
        if self.machine.handle_connected(peer, self.now):
            self.believed[peer] = Liveness.ALIVE
            self.answered_at[peer] = self.now
        else:
            assert not known
            assert len(self.believed) == 2

    @rule(peer=st.sampled_from([A, B, PeerId(b"c")]))
    def disconnect(self, peer: PeerId) -> None:
        self.machine.handle_disconnected(peer, self.now)
        self.believed.pop(peer, None)

    @rule(peer=st.sampled_from([A, B, PeerId(b"c")]), watched=st.booleans())
    def watch(self, peer: PeerId, watched: bool) -> None:
        self.machine.handle_watched(peer, self.now, watched=watched)

    @rule(peer=st.sampled_from([A, B, PeerId(b"c")]))
    def doubt(self, peer: PeerId) -> None:
        self.machine.handle_doubt(peer, self.now)

    @precondition(lambda self: self.probes)
    @rule(data=st.data(), delay_s=st.floats(-1.0, 1.0))
    def echo(self, data: st.DataObject, delay_s: float) -> None:
        probe = data.draw(st.sampled_from(self.probes))
        self.machine.handle_datagram(probe.peer, echo_of(probe), self.now + delay_s, self.now)

    @rule(peer=st.sampled_from([A, B]), payload=st.binary(max_size=12))
    def junk(self, peer: PeerId, payload: bytes) -> None:
        self.machine.handle_datagram(peer, payload, self.now, self.now)

    @rule(late_s=st.sampled_from([0.0, 1e-6, 0.1, 0.3, 5.0]))
    def timer(self, late_s: float) -> None:
        due = self.machine.next_timer()
        assert (due is None) == (not self.believed)
        if due is not None:
            self.now = max(self.now, due + late_s)
            self.machine.handle_timer(self.now)
            assert self.machine.next_timer() > self.now

    @rule(step_s=st.floats(0.0, 0.4))
    def wait(self, step_s: float) -> None:
        self.now += step_s
        self.machine.handle_timer(self.now)

    @invariant()
    def outputs_are_lawful(self) -> None:
        for output in drain(self.machine):
            assert output.peer in self.believed or isinstance(output, SendDatagram)
            match output:
                case SendDatagram(_, payload):
                    assert len(payload) == PROBE_BYTES
                    if payload[0] == KIND_PROBE:
                        self.probes = [*self.probes[-20:], output]
                case SampleTaken(peer, rtt_s):
                    assert 0.0 < rtt_s <= CONFIG.rtt_s_max
                    self.answered_at[peer] = self.now
                case PeerSuspected(peer, since):
                    assert self.believed[peer] is Liveness.ALIVE
                    assert since <= self.now
                    assert self.now - self.answered_at[peer] >= CONFIG.suspect_after_s - 1e-9
                    self.believed[peer] = Liveness.SUSPECTED
                case PeerRecovered(peer):
                    assert self.believed[peer] is Liveness.SUSPECTED
                    self.believed[peer] = Liveness.ALIVE

    @invariant()
    def state_is_bounded(self) -> None:
        assert len(self.machine._peers) <= 2
        for peer, state in self.machine._peers.items():
            assert len(state.sent) <= 8
            assert self.machine.liveness(peer) is self.believed[peer]
            quality = self.machine.quality(peer, self.now)
            assert quality is None or (0.0 <= quality.loss <= 1.0 and 0.0 < quality.rtt_s_min <= quality.rtt_s <= 10.0)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
