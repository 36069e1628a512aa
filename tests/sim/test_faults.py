"""Faults: each does what its name says, what the core does not come through yet is written down, and failures can be replayed."""

import itertools
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from protocol import gossip, membership, probe, suspicion
from protocol.node import Node, Output
from protocol.records import RecordKind
from sim.__main__ import EXIT_FAILED, main
from sim.bounds import containers
from sim.checks import Safety, envelopes_in, healed, unhealed
from sim.faults import KINDS, AddressChange, ClockRate, Clogging, Corruption, FullQueues, Intrusion, Swizzle
from sim.faults.hostile import CONDUCTS
from sim.process import LANE_MAX
from sim.run import Run, Settings
from sim.world import World


def formed(size: int = 4, seed: int = 1) -> World:
    world = World(seed)
    Safety(world)
    for index in range(size):
        world.add(bootstrap=[world.processes[0].address] if index else [])
    world.run(3.0)
    return world


def test_a_corrupted_packet_is_lost_and_counted() -> None:
    world = formed()
    before = world.network.tally.corrupted
    fault = Corruption(Random(1), world, 0.25)
    fault.begin(world)
    arrived = sum(len(world.network.datagram(0, 1, 9, 10.0 + number)) for number in range(2000))
    assert 1420 < arrived < 1580
    assert world.network.tally.corrupted - before == 2000 - arrived
    fault.end(world)
    assert world.network.datagram(0, 1, 9, 1e6)


def test_a_clogged_path_holds_what_it_carries_and_delivers_it_in_order() -> None:
    world = formed()
    fault = Clogging(Random(3), world)
    taken: list[float] = []
    fault.begin(world)
    clog = world.network.clogs[0]
    one, other = next(pair for pair in itertools.permutations(range(4), 2) if clog.blocked(*pair))
    for number in range(5):
        assert world.network.hold(one, other, lambda number=number: taken.append(number), datagram=True)
    world.run(4.0)
    assert taken == []
    assert len(clog.held) > 5
    fault.end(world)
    world.run(4.0)
    assert taken == [0, 1, 2, 3, 4]
    assert not world.network.hold(one, other, lambda: None)


def test_a_swizzle_clogs_one_after_another_and_frees_all() -> None:
    world = formed()
    fault = Swizzle(Random(2), world)
    fault.begin(world)
    most = 0
    while world.now < 3.0 + fault.span_s:
        world.run(world.now + 0.01)
        most = max(most, len(world.network.clogs))
    assert most == len(fault.nodes)
    assert world.network.clogs == []
    assert world.run_until(healed(world), 30.0)


@pytest.mark.parametrize("migrates", [True, False])
def test_a_moved_process_is_found_again(migrates: bool) -> None:
    world = formed(3)
    fault = AddressChange(Random(1), world)
    fault.process, fault.migrates, fault.gap_s = world.processes[2], migrates, 0.3
    old = world.processes[2].address
    fault.begin(world)
    world.run(3.4)
    assert world.processes[2].address != old
    assert bool(world.processes[2].connections) is migrates
    world.run(15.0)
    assert unhealed(world) is None
    card = world.processes[0].node.table.get(world.processes[2].peer_id, RecordKind.CARD)
    assert card is not None
    assert card.payload.addresses == (world.processes[2].address,)


def test_a_fast_clock_wakes_its_core_sooner() -> None:
    world = formed()
    beats = {process.index: 0 for process in world.processes}

    def count_probe(process, output):
        beats[process.index] += isinstance(output, gossip.RecordAccepted)

    world.watchers.append(count_probe)
    fault = ClockRate(Random(1), world)
    fault.process, fault.rate = world.processes[1], 1.01
    fault.begin(world)
    rated = world.processes[1].node
    world.run(8.0)
    assert rated.local(8.0) == pytest.approx(8.05)
    fault.end(world)
    world.run(11.0)
    assert rated.local(11.0) == pytest.approx(11.05)
    assert beats[1] > 0
    assert unhealed(world) is None


def test_full_queues_drop_and_are_made_whole_again() -> None:
    world = formed()
    fault = FullQueues(Random(1), world)
    fault.begin(world)
    assert fault.process.lane_max < 5
    assert len(world.network.datagram(fault.process.index, 0, 60_000, 99.0)) == 1
    assert world.network.datagram(fault.process.index, 0, 9, 99.0) == ()
    fault.end(world)
    assert fault.process.lane_max == LANE_MAX
    assert not world.network.queues


def intruded(name: str, seconds: float = 4.0, seed: int = 1) -> tuple[World, Intrusion, list[tuple[int, object]]]:
    """A mesh of four that a hostile peer has joined, and the facts that concern it."""
    world = formed(4, seed)
    facts: list[tuple[int, object]] = []
    world.watchers.append(lambda process, output: None if process.hostile else facts.append((process.index, output)))
    fault = KINDS[name](Random(1), world)
    assert isinstance(fault, Intrusion)
    fault.begin(world)
    world.run(world.now + seconds)
    return world, fault, facts


@pytest.mark.parametrize("name", ["hostile-forged", "hostile-oversized"])
def test_who_breaks_the_protocol_is_dropped(name: str) -> None:
    world, fault, facts = intruded(name)
    hostile = fault.processes[0].peer_id
    assert [output for _, output in facts if isinstance(output, gossip.Misbehaved) and output.peer_id == hostile]
    assert unhealed(world) is None


def test_two_records_with_one_number_are_told_of() -> None:
    _, fault, facts = intruded("hostile-equivocating")
    told = [output for _, output in facts if isinstance(output, gossip.Equivocated)]
    assert told
    assert {output.kept.peer_id for output in told} == {fault.processes[0].peer_id}


def test_a_silent_peer_is_taken_out_again() -> None:
    _, fault, facts = intruded("hostile-silent")
    hostile = fault.processes[0].peer_id
    assert any(isinstance(output, probe.PeerSuspected) and output.peer == hostile for _, output in facts)
    joined = {index for index, output in facts if isinstance(output, membership.PeerJoined) and output.peer_id == hostile}
    left = {index for index, output in facts if isinstance(output, membership.PeerLeft) and output.peer_id == hostile}
    assert left == joined == {door.index for door in fault.doors}  # the others never hear of it


def test_late_echoes_lengthen_only_the_path_of_the_liar() -> None:
    world, fault, _ = intruded("hostile-rtt")
    node = world.processes[0].node
    liar, honest = fault.processes[0].peer_id, world.processes[1].peer_id
    assert node.probe.quality(liar, world.now).rtt_s > 0.2
    assert node.probe.quality(honest, world.now).rtt_s < 0.01


def test_nonces_that_are_returned_again_or_by_others_count_once() -> None:
    world = formed(5)
    fault = KINDS["hostile-legs"](Random(1), world)
    outputs: list[tuple[int, Output]] = []
    carry_out = world._carry_out
    world._carry_out = lambda process, output: outputs.append((process.index, output)) or carry_out(process, output)
    fault.begin(world)
    world.run(world.now + 20.0)
    liar = fault.processes[0].peer_id
    drawn, measured = Counter[int](), Counter[int]()
    for index, output in outputs:
        if isinstance(output, probe.SampleTaken) and output.peer == liar:
            measured[index] += 1
        elif isinstance(output, probe.SendDatagram) and output.peer == liar:
            drawn[index] += output.payload[0] in (probe.KIND_PROBE, probe.KIND_PROBE_THREE, probe.KIND_ECHO_THREE)
    assert len(measured) >= 3
    assert all(0 < count <= drawn[index] for index, count in measured.items())
    assert not [output for _, output in outputs if isinstance(output, probe.Misbehaved)]


def test_edges_that_a_liar_tells_shorten_none_and_stand_against_it() -> None:
    world = formed(5)
    world.run(110.0)
    fault = KINDS["hostile-edges"](Random(1), world)
    before = world.processes[0].node.telling.store.pairs(world.now)
    fault.begin(world)
    world.run(world.now + 150.0)
    liar = fault.processes[0].peer_id
    store = world.processes[0].node.telling.store
    pairs = {(one, other): rtt_s for one, other, rtt_s in store.pairs(world.now)}
    assert len(before) == 10
    delays = world.network.delays
    for one, other in (ends for ends in pairs if liar in ends):  # who is within 5 ms has no dispute, and tells the longer figure
        indices = world.by_id[one].index, world.by_id[other].index
        true_s = delays.one_way_s(*indices) + delays.one_way_s(*reversed(indices))
        assert 0.999 * true_s <= pairs[one, other] <= 0.006 + true_s
        assert true_s <= 0.006
    assert all(pairs[one, other] >= 0.7 * rtt_s for one, other, rtt_s in before)
    agrees, disputes = store.standing(liar)
    assert agrees == sum(liar in ends for ends in pairs) <= 2
    assert disputes >= 3
    assert max(store.standing(process.peer_id)[1] for process in world.processes[:5]) == 1


def test_slanderers_are_refuted_and_then_not_believed() -> None:
    world, fault, facts = intruded("hostile-slander", 50.0)  # three who accuse four, each refuted within 2 s: 64 accusations
    refuted = sum(isinstance(output, suspicion.Refute) for _, output in facts)
    assert refuted > 4
    facts.clear()
    world.run(world.now + 20.0)
    later = [index for index, output in facts if isinstance(output, suspicion.Refute)]
    assert len(later) <= 4  # who is refuted 64 times is believed once in 30 s
    assert not [output for _, output in facts if isinstance(output, probe.PeerSuspected | membership.PeerGone)]
    fault.end(world)
    assert unhealed(world) is None


def test_every_conduct_is_a_kind() -> None:
    assert set(CONDUCTS) < set(KINDS)


def test_envelopes_are_found_in_messages_of_any_shape() -> None:
    world = formed(2)
    record = world.processes[0].node.table.get(world.processes[0].peer_id, RecordKind.CARD)
    for message in gossip.messages.records_messages([record.envelope]):
        assert list(envelopes_in(message)) == [record.envelope]
    assert list(envelopes_in(b"\xc1")) == []


def test_the_walk_finds_the_containers_of_every_machine() -> None:
    world = formed(3)
    paths = {path for path, _ in containers(world.processes[0].node)}
    assert {path.split(".")[0] for path in paths} >= {
        "table",
        "gossip",
        "membership",
        "probe",
        "forwarding",
        "services",
        "vivaldi",
    }
    assert any(".*." in path for path in paths)


@pytest.mark.parametrize("off_s", [14_400.0, -14_400.0, 300.0, -300.0])
@pytest.mark.parametrize("publishes", [True, False])
def test_a_wall_clock_that_jumped_and_returned_is_no_loss(off_s: float, publishes: bool) -> None:
    world = formed(3)
    world.run(20.0)
    jumper = world.processes[1]
    world.shift_clock(jumper, off_s)
    world.run(21.0)
    if publishes:
        jumper.node.handle_offers((), world.now)
        world.settle(jumper)
    world.run(36.0)  # long enough for what has expired by the wrong clock to be dropped
    world.shift_clock(jumper, 0.0)
    assert world.run_until(healed(world), 40.0, 0.5), unhealed(world, fresh_s=3.0)
    assert unhealed(world, fresh_s=3.0) is None


def test_nobody_is_blamed_for_probes_that_waited() -> None:
    world = formed(3)
    blamed: list[probe.Misbehaved] = []
    world.watchers.append(lambda _process, output: blamed.append(output) if isinstance(output, probe.Misbehaved) else None)
    KINDS["duplication"](Random(1), world).begin(world)
    world.pause(world.processes[1])
    world.run(5.4)
    world.resume(world.processes[1])
    world.run(6.0)
    assert blamed == []


def test_a_crowd_of_invented_peers_keeps_nobody_from_coming_back() -> None:
    world, fault, _ = intruded("hostile-sybil", 8.0)
    fault.end(world)
    victim = world.processes[3]
    world.network.blocks.append(lambda one, other: (one == victim.index) != (other == victim.index))
    world.run(world.now + 60.0)
    left = [peer for peer in victim.node.membership.connected() if not world.by_id[peer].hostile]
    assert left == []  # long enough to be given up
    world.network.blocks.clear()
    assert world.run_until(healed(world), world.now + 40.0, 0.5), unhealed(world)


def test_a_failure_tells_its_seed_its_faults_and_the_last_events(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.records.envelope.verify_signature", lambda key, signature, signed: True)
    command = [
        "--nodes",
        "4",
        "--for",
        "6",
        "--faults",
        "hostile-forged",
        "--delays",
        "line",
        "--output",
        str(tmp_path),
        "--json",
    ]
    assert main([*command, "--seed", "1"]) == EXIT_FAILED
    told = capsys.readouterr().err
    assert "check failed with seed 1" in told
    assert "fault on: hostile-forged" in told
    events = told.split("the last events:\n")[1].split("the same command")[0].splitlines()
    assert len(events) == 200
    assert main([*command, "--seed", "1", "--replay"]) == EXIT_FAILED
    replayed = capsys.readouterr().out
    assert "fault begins: hostile-forged" in replayed
    assert events[-1] in replayed.splitlines()
    assert len(replayed.splitlines()) > 200


@pytest.mark.soak
@pytest.mark.parametrize("name", KINDS)
def test_a_replay_shows_each_fault_begin_and_end(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--nodes", "4", "--for", "4", "--faults", name, "--delays", "line", "--output", str(tmp_path), "--json", "--replay"])
    shown = capsys.readouterr().out
    assert "fault begins: " in shown
    assert "fault ends: " in shown


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 31))
def test_a_swarm_of_faults_is_healed(seed: int) -> None:
    assert Run(Settings(8, 20.0, seed, "all"), Node).simulate().failure == ""
