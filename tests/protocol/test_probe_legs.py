"""Probes of three legs: both ends measure one exchange, each by its own nonce and clock, and nobody can shorten it."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_pair import CONFIG, A, B, Pair, drain, echo_of

from protocol.coordinates import DIMENSIONS, Coordinate
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId
from protocol.places import PLACE_BYTES
from protocol.probe import (
    KIND_ECHO,
    KIND_ECHO_THREE,
    KIND_PROBE,
    KIND_PROBE_THREE,
    KIND_THIRD_LEG,
    Datagram,
    Misbehaved,
    PeerRecovered,
    PeerSuspected,
    Probe,
    SampleTaken,
    SendDatagram,
    decode_datagram,
    encode_datagram,
)

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "spec" / "vectors" / "coordinates.json").read_text())["datagrams"]
KINDS = (KIND_PROBE, KIND_ECHO, KIND_PROBE_THREE, KIND_ECHO_THREE, KIND_THIRD_LEG)
PLACE = Coordinate((0.25, *[-0.125] * (DIMENSIONS - 1)), 0.001, 0.5)

nonces = st.integers(0, 2**64 - 1)
places = st.just(b"") | st.binary(min_size=PLACE_BYTES, max_size=PLACE_BYTES)


def speaking(peer: PeerId, now: float = 0.0, **changes: object) -> Probe:
    """A machine that is connected to a peer which speaks three legs, its first probe answered 10 ms after it."""
    machine = Probe(replace(CONFIG, settle_s=CONFIG.third_leg_after_s, **changes), random.Random(1))
    machine.handle_connected(peer, now)
    (probe,) = drain(machine)
    machine.handle_datagram(peer, echo_of(probe), now + 0.01, now + 0.01)
    machine.handle_legs(peer, 3)
    drain(machine)
    return machine


def next_probe(machine: Probe) -> tuple[float, Datagram]:
    """What the machine sends when it is due."""
    now = machine.next_timer()
    assert now is not None
    machine.handle_timer(now)
    (sent,) = [output for output in drain(machine) if isinstance(output, SendDatagram)]
    datagram = decode_datagram(sent.payload)
    assert datagram is not None
    return now, datagram


def asked(machine: Probe, peer: PeerId, now: float, nonce: int = 7) -> Datagram:
    """The echo of a probe that asks for three legs."""
    machine.handle_datagram(peer, encode_datagram(Datagram(KIND_PROBE_THREE, nonce)), now, now, PLACE)
    (sent,) = [output for output in drain(machine) if isinstance(output, SendDatagram)]
    echo = decode_datagram(sent.payload)
    assert echo is not None
    assert (echo.kind, echo.nonce) == (KIND_ECHO_THREE, nonce)
    return echo


def say(machine: Probe, peer: PeerId, datagram: Datagram, now: float) -> list[object]:
    machine.handle_datagram(peer, encode_datagram(datagram), now, now, PLACE)
    return drain(machine)


# The wire


@pytest.mark.parametrize("vector", [pytest.param(vector, id=vector["name"]) for vector in VECTORS])
def test_a_datagram_is_read_and_written_as_specified(vector: dict) -> None:
    packed = bytes.fromhex(vector["datagram"])
    if vector["kind"] is None:
        assert decode_datagram(packed) is None
        return
    datagram = Datagram(vector["kind"], int(vector["nonce"], 16), int(vector["drawn"], 16), bytes.fromhex(vector["place"]))
    assert decode_datagram(packed) == datagram
    assert encode_datagram(datagram) == packed


@given(st.sampled_from(KINDS), nonces, nonces, places)
def test_a_datagram_comes_back_as_it_was(kind: int, nonce: int, drawn: int, place: bytes) -> None:
    bare = kind in (KIND_PROBE, KIND_PROBE_THREE)
    datagram = Datagram(kind, nonce, drawn if kind == KIND_ECHO_THREE else 0, b"" if bare else place)
    assert decode_datagram(encode_datagram(datagram)) == datagram


@given(
    st.binary(max_size=60) | st.builds(lambda kind, rest: bytes((kind,)) + rest, st.sampled_from(KINDS), st.binary(max_size=60))
)
def test_any_bytes_are_a_datagram_or_malformed(payload: bytes) -> None:
    datagram, refused = None, None
    try:
        datagram = decode_datagram(payload)
    except RemoteProtocolError as error:
        refused = error.code
    if datagram is not None:
        assert encode_datagram(datagram) == payload
    elif not payload or payload[0] in KINDS:
        assert refused is ErrorCode.MALFORMED
    else:
        assert refused is None


@pytest.mark.parametrize("kind", [KIND_PROBE_THREE, KIND_ECHO_THREE, KIND_THIRD_LEG])
@pytest.mark.parametrize("length", [1, 8, 10, 16, 18, 36, 38, 44, 46, 1200])
def test_a_datagram_of_three_legs_with_another_length_is_blamed(kind: int, length: int) -> None:
    machine = speaking(B)
    machine.handle_datagram(B, bytes([kind]) + bytes(length - 1), 0.02, 0.02)
    assert [output.code for output in drain(machine) if isinstance(output, Misbehaved)] == [ErrorCode.MALFORMED]


# What is measured


def three_legged(**changes: object) -> Pair:
    pair = Pair(config=replace(CONFIG, **changes), watched=False)
    for here, there in ((A, B), (B, A)):
        pair.nodes[here].handle_legs(there, 3)
    return pair


def test_both_ends_measure_one_exchange() -> None:
    machines = {A: speaking(B), B: speaking(A)}
    now, probe = next_probe(machines[A])
    assert probe.kind == KIND_PROBE_THREE
    echo = asked(machines[B], A, now + 0.01, probe.nonce)
    third, sample = say(machines[A], B, echo, now + 0.03)
    assert sample == SampleTaken(B, pytest.approx(0.03), sample.place)
    assert sample.place.vector == pytest.approx(PLACE.vector)
    leg = decode_datagram(third.payload)
    assert leg is not None
    assert (leg.kind, leg.nonce) == (KIND_THIRD_LEG, echo.drawn)
    (mine,) = say(machines[B], A, leg, now + 0.05)
    assert mine == SampleTaken(A, pytest.approx(0.04), mine.place)
    assert mine.place.vector == pytest.approx(PLACE.vector)


def test_who_says_nothing_of_three_legs_is_sent_none() -> None:
    pair = Pair()
    seen: set[int] = set()
    for machine in pair.nodes.values():
        handle = machine.handle_datagram

        def heard(peer, payload, received_at, now, place=None, handle=handle):
            seen.add(payload[0])
            handle(peer, payload, received_at, now, place)

        machine.handle_datagram = heard
    pair.run(200.0)
    assert seen == {KIND_PROBE, KIND_ECHO}
    pair.nodes[A].handle_legs(B, 3)  # one end knows of the other; the other sees it by what comes
    pair.run(210.0)
    assert seen == set(KINDS)


def test_a_node_of_an_earlier_version_is_not_harmed_by_a_mistake() -> None:
    """It ignores kinds that it does not know; whoever takes it for one that speaks them never suspects it."""
    pair = Pair()
    pair.nodes[A].handle_legs(B, 3)
    old = pair.nodes[B]
    handle = old.handle_datagram

    def heard(peer, payload, received_at, now, place=None):
        if payload[0] <= KIND_ECHO:
            handle(peer, payload, received_at, now, place)

    old.handle_datagram = heard
    pair.run(300.0)
    assert pair.facts_of(A, PeerSuspected) == []
    assert pair.facts_of(B, PeerSuspected) == []
    assert [type(fact) for _, fact in pair.facts_of(A, Misbehaved)] == []


def test_a_peer_that_is_probed_plainly_is_echoed_plainly() -> None:
    machine = speaking(A)
    (echo,) = say(machine, A, Datagram(KIND_PROBE, 9), 0.1)
    assert echo.payload[0] == KIND_ECHO


def test_a_third_leg_counts_once_and_only_from_the_peer_it_was_meant_for() -> None:
    machine = speaking(A)
    machine.handle_connected(B, 0.0)
    drain(machine)
    echo = asked(machine, A, 1.0)
    assert say(machine, B, Datagram(KIND_THIRD_LEG, echo.drawn), 1.01) == []
    assert say(machine, A, Datagram(KIND_THIRD_LEG, echo.drawn ^ 1), 1.01) == []
    assert [type(fact) for fact in say(machine, A, Datagram(KIND_THIRD_LEG, echo.drawn), 1.02)] == [SampleTaken]
    assert say(machine, A, Datagram(KIND_THIRD_LEG, echo.drawn), 1.03) == []
    assert machine.quality(A, 1.1).samples == 2


def test_each_nonce_is_returned_by_its_own_leg_alone() -> None:
    """Else a peer could have its nonce of an echo counted as the answer to a probe, or the other way round."""
    machine = speaking(A)
    echo = asked(machine, A, 0.1)
    for kind in (KIND_ECHO, KIND_ECHO_THREE):
        assert say(machine, A, Datagram(kind, echo.drawn, 5 if kind == KIND_ECHO_THREE else 0), 0.2) == []
    _, probe = next_probe(machine)
    assert say(machine, A, Datagram(KIND_THIRD_LEG, probe.nonce), 1.0) == []


def test_an_echo_that_comes_again_brings_no_other_third_leg() -> None:
    machine = speaking(A)
    now, probe = next_probe(machine)
    first = say(machine, A, Datagram(KIND_ECHO_THREE, probe.nonce, 5), now + 0.01)
    assert [type(output) for output in first] == [SendDatagram, SampleTaken]
    for drawn in (5, 6):
        assert say(machine, A, Datagram(KIND_ECHO_THREE, probe.nonce, drawn), now + 0.02) == []
    assert say(machine, A, Datagram(KIND_ECHO_THREE, probe.nonce ^ 1, 7), now + 0.02) == []


@pytest.mark.parametrize("late_s", [0.0, -0.001, 10.1])
def test_a_third_leg_at_an_impossible_moment_is_no_sample(late_s: float) -> None:
    machine = speaking(A)
    echo = asked(machine, A, 1.0)
    leg = encode_datagram(Datagram(KIND_THIRD_LEG, echo.drawn))
    machine.handle_datagram(A, leg, 1.0 + late_s, 12.0)
    assert drain(machine) == []


def test_the_kernels_time_of_a_third_leg_counts() -> None:
    machine = speaking(A)
    echo = asked(machine, A, 1.0)
    machine.handle_datagram(A, encode_datagram(Datagram(KIND_THIRD_LEG, echo.drawn)), 1.015, 1.4)
    assert drain(machine) == [SampleTaken(A, pytest.approx(0.015))]


@given(delays=st.lists(st.floats(0.0, 0.5), min_size=3, max_size=3), guesses=st.lists(nonces, max_size=8))
def test_a_liar_can_delay_what_either_end_measures_and_never_shorten_it(delays: list[float], guesses: list[int]) -> None:
    """The liar sees everything that reaches it, not before it is there, and says what it likes at any moment."""
    one_way_s = 0.02
    honest = speaking(A)
    asked_at = 1.0
    echo = asked(honest, A, asked_at)
    for guess in guesses:
        if guess != echo.drawn:
            assert say(honest, A, Datagram(KIND_THIRD_LEG, guess), asked_at + 0.001) == []
    back_at = asked_at + 2 * one_way_s + delays[0]
    (sample,) = [fact for fact in say(honest, A, Datagram(KIND_THIRD_LEG, echo.drawn), back_at) if isinstance(fact, SampleTaken)]
    assert sample.rtt_s >= 2 * one_way_s - 1e-9


def test_third_legs_feed_jitter_and_loss() -> None:
    machine = speaking(A)  # one round trip of 10 ms by an echo
    for turn, rtt_s in enumerate((0.03, 0.01, None)):
        at = 1.0 + turn
        echo = asked(machine, A, at, turn)
        if rtt_s is not None:
            say(machine, A, Datagram(KIND_THIRD_LEG, echo.drawn), at + rtt_s)
    jitter_s = 0.0
    for difference_s in (0.02, 0.02):
        jitter_s += (difference_s - jitter_s) / 16  # RFC 3550 section 6.4.1
    quality = machine.quality(A, 3.5)
    assert (quality.samples, quality.loss) == (3, 0.0)
    assert quality.jitter_s == pytest.approx(jitter_s)
    assert machine.quality(A, 5.6).loss == pytest.approx(1 / 4)


# What it costs


def test_peers_that_are_only_measured_cost_less_with_three_legs() -> None:
    sent = {}
    for legs in (2, 3):
        pair = three_legged() if legs == 3 else Pair(watched=False)
        pair.run(160.0)
        pair.sent = 0
        before = [len(pair.facts_of(node, SampleTaken)) for node in (A, B)]
        pair.run(3760.0)
        sent[legs] = pair.sent
        samples = [len(pair.facts_of(node, SampleTaken)) - count for node, count in zip((A, B), before, strict=True)]
        assert min(samples) >= 0.9 * 3600.0 / CONFIG.idle_interval_s, legs
    assert sent[3] <= 0.85 * sent[2]


def test_watched_peers_cost_a_sixteenth_more_with_three_legs() -> None:
    sent = []
    for legs in (2, 3):
        pair = Pair()
        for here, there in ((A, B), (B, A)) if legs == 3 else ():
            pair.nodes[here].handle_legs(there, 3)
        pair.run(110.0)
        pair.sent = 0
        pair.run(1110.0)
        sent.append(pair.sent)
        assert pair.facts_of(A, PeerSuspected) == []
    assert 1.03 * sent[0] < sent[1] <= 1.08 * sent[0]


def test_a_peer_that_asks_and_never_returns_is_still_measured() -> None:
    """Its probes put off nothing where no third leg comes, and drive out no nonce of a probe."""
    machine = speaking(A, window_probes=32)
    probed, now = 0, 1.0
    for step in range(4000):
        now = 1.0 + step * 0.05
        machine.handle_datagram(A, encode_datagram(Datagram(KIND_PROBE_THREE, step)), now, now)
        machine.handle_timer(now)
        for output in drain(machine):
            assert isinstance(output, SendDatagram)
            datagram = decode_datagram(output.payload)
            assert datagram is not None
            if datagram.kind == KIND_PROBE_THREE:
                probed += 1
                answer = say(machine, A, Datagram(KIND_ECHO_THREE, datagram.nonce, 1), now + 0.04)
                assert [fact for fact in answer if isinstance(fact, SampleTaken)]
        path = machine._peers[A].path
        assert len(path.offered) <= CONFIG.offered_max
        assert len(path.sent) <= 32
    assert probed >= 200.0 / (1.1 * CONFIG.idle_interval_s)


def test_probes_of_three_legs_are_answered_within_the_budget() -> None:
    machine = speaking(A)
    for nonce in range(3 * CONFIG.answers_burst):
        machine.handle_datagram(A, encode_datagram(Datagram(KIND_PROBE_THREE, nonce)), 1.0, 1.0)
    outputs = drain(machine)
    assert sum(isinstance(output, SendDatagram) for output in outputs) == CONFIG.answers_burst
    assert [output.code for output in outputs if isinstance(output, Misbehaved)] == [ErrorCode.FLOODING]


# Liveness


def test_a_peer_in_doubt_is_probed_plainly() -> None:
    machine = speaking(A)
    machine.handle_doubt(A, 0.1)
    _, probe = next_probe(machine)
    assert probe.kind == KIND_PROBE


def test_a_third_leg_ends_a_suspicion_and_a_probe_does_not() -> None:
    machine = speaking(A)
    machine.handle_doubt(A, 0.1)
    while not any(isinstance(output, PeerSuspected) for output in drain(machine)):
        machine.handle_timer(machine.next_timer())
    now = machine.next_timer()
    echo = asked(machine, A, now)
    facts = say(machine, A, Datagram(KIND_THIRD_LEG, echo.drawn), now + 0.02)
    assert PeerRecovered(A) in facts
