"""What probes measure: distances, their quality, how often they go out, and what is bounded."""

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from probe_pair import CONFIG, A, B, Pair, drain, echo_of

from protocol.coordinates import DIMENSIONS, Coordinate
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.places import PLACE_BYTES
from protocol.probe import (
    KIND_ECHO,
    KIND_PROBE,
    PROBE_BYTES,
    Misbehaved,
    PeerSuspected,
    Probe,
    SampleTaken,
    SendDatagram,
)
from protocol.probe.quality import PathWindow


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
    doubled = [config.settle_s * 2**step for step in range(7)]
    assert gaps == pytest.approx([*doubled, *[config.idle_interval_s] * (len(gaps) - 7)])
    assert sum(doubled[:4]) < 10.0
    assert len(gaps) > 7


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
    assert machine.quality(A, now + 2.0).usual_loss == 0.0  # a single one
    assert machine.quality(A, now + 2.6).loss == pytest.approx(2 / 6)
    assert machine.quality(A, now + 2.6).usual_loss == pytest.approx(1 / 6)
    assert machine.quality(B, now) is None


def test_one_stall_leaves_the_usual_jitter_as_it_was() -> None:
    path = PathWindow(CONFIG)
    for nonce, rtt_s in enumerate([0.020, 0.021] * 10 + [0.5] + [0.020, 0.021] * 10):
        path.send_probe(nonce, float(nonce))
        path.take_echo(nonce, nonce + rtt_s)
    quality = path.quality(41.0)
    assert quality.jitter_s > 0.01
    assert quality.usual_jitter_s == pytest.approx(0.001)


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
        assert len(machine._peers[A].path.sent) <= 4
    now = machine.next_timer()
    machine.handle_datagram(A, echo_of(probes[0]), now, now)
    assert drain(machine) == []


def test_peers_are_bounded() -> None:
    machine = Probe(replace(CONFIG, peers_max=1), random.Random(1))
    assert machine.handle_connected(A, 0.0)
    assert not machine.handle_connected(B, 0.0)
    assert machine.handle_connected(A, 1.0)
    assert {output.peer for output in drain(machine)} == {A}


def test_the_distance_of_a_peer_that_left_is_remembered_for_a_while() -> None:
    pair = Pair(rtt_s=0.02)
    pair.run(110.0)
    machine = pair.nodes[A]
    assert machine.distances(110.0)[B] == pytest.approx(0.02)
    machine.handle_disconnected(B, 110.0)
    assert machine.quality(B, 110.0) is None
    assert machine.distances(110.0 + CONFIG.remembered_s)[B] == pytest.approx(0.02)
    assert machine.distances(110.1 + CONFIG.remembered_s) == {}


def test_the_distance_of_a_connected_peer_is_what_is_measured_now() -> None:
    pair = Pair(rtt_s=0.02)
    pair.run(110.0)
    machine = pair.nodes[A]
    machine.handle_disconnected(B, 110.0)
    machine.handle_connected(B, 110.0)
    assert machine.distances(110.0)[B] == pytest.approx(0.02)  # until the first echo
    (probe,) = [output for output in drain(machine) if isinstance(output, SendDatagram)]
    machine.handle_datagram(B, echo_of(probe), 110.05, 110.05)
    assert machine.distances(110.05)[B] == pytest.approx(0.05)


def test_distances_of_those_who_left_are_bounded() -> None:
    config = replace(CONFIG, remembered_max=3)
    machine = Probe(config, random.Random(1))
    peers = [PeerId(b"peer %d" % number) for number in range(5)]
    for peer in peers:
        machine.handle_connected(peer, 0.0)
        (probe,) = [output for output in drain(machine) if isinstance(output, SendDatagram)]
        machine.handle_datagram(peer, echo_of(probe), 0.01, 0.01)
        machine.handle_disconnected(peer, 0.01)
        drain(machine)
    assert list(machine.distances(0.01)) == peers[2:]


def test_a_peer_that_is_sought_is_probed_at_once_unless_an_echo_is_awaited() -> None:
    pair = Pair(rtt_s=0.02)
    machine = pair.nodes[A]
    assert machine.handle_sought(B, pair.now)  # its first probe is under way
    assert drain(machine) == []
    pair.run(103.0)
    assert machine.handle_sought(B, pair.now)
    (sent,) = drain(machine)
    assert isinstance(sent, SendDatagram)
    assert machine.handle_sought(B, pair.now)
    assert drain(machine) == []
    assert not machine.handle_sought(PeerId(b"nobody"), pair.now)
