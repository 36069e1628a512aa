"""Nodes that were held up, floods, and any order of calls."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from probe_pair import CONFIG, A, B, Pair, drain, echo_of

from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.probe import (
    ECHO_THREE_BYTES,
    KIND_ECHO_THREE,
    KIND_PROBE,
    KIND_PROBE_THREE,
    KIND_THIRD_LEG,
    PROBE_BYTES,
    Datagram,
    Liveness,
    Misbehaved,
    PeerRecovered,
    PeerSuspected,
    Probe,
    SampleTaken,
    SendDatagram,
    decode_datagram,
    encode_datagram,
)


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


@pytest.mark.parametrize("payload", [b"\x00" * 9, b"\x06" * 9, b"\xff", b"\x7f" * 1200])
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
        self.offers: list[tuple[PeerId, int]] = []
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

    @rule(peer=st.sampled_from([A, B, PeerId(b"c")]))
    def three_legs(self, peer: PeerId) -> None:
        self.machine.handle_legs(peer, 3)

    @precondition(lambda self: self.probes)
    @rule(data=st.data(), delay_s=st.floats(-1.0, 1.0))
    def echo_of_three_legs(self, data: st.DataObject, delay_s: float) -> None:
        probe = data.draw(st.sampled_from(self.probes))
        echo = Datagram(KIND_ECHO_THREE, int.from_bytes(probe.payload[1:], "big"), 5)
        self.machine.handle_datagram(probe.peer, encode_datagram(echo), self.now + delay_s, self.now)

    @rule(peer=st.sampled_from([A, B]), nonce=st.integers(0, 3))
    def ask(self, peer: PeerId, nonce: int) -> None:
        self.machine.handle_datagram(peer, encode_datagram(Datagram(KIND_PROBE_THREE, nonce)), self.now, self.now)

    @precondition(lambda self: self.offers)
    @rule(data=st.data(), peer=st.sampled_from([None, A, B]), delay_s=st.floats(-1.0, 1.0))
    def third_leg(self, data: st.DataObject, peer: PeerId | None, delay_s: float) -> None:
        asker, drawn = data.draw(st.sampled_from(self.offers))
        leg = encode_datagram(Datagram(KIND_THIRD_LEG, drawn))
        self.machine.handle_datagram(peer or asker, leg, self.now + delay_s, self.now)

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
                    datagram = decode_datagram(payload)
                    assert datagram is not None
                    assert len(payload) == (ECHO_THREE_BYTES if datagram.kind == KIND_ECHO_THREE else PROBE_BYTES)
                    if datagram.kind == KIND_ECHO_THREE:
                        self.offers = [*self.offers[-20:], (output.peer, datagram.drawn)]
                    if datagram.kind in (KIND_PROBE, KIND_PROBE_THREE):
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
            assert len(state.path.sent) <= 8
            assert self.machine.liveness(peer) is self.believed[peer]
            quality = self.machine.quality(peer, self.now)
            assert quality is None or (0.0 <= quality.loss <= 1.0 and 0.0 < quality.rtt_s_min <= quality.rtt_s <= 10.0)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
