"""The simulator: repeatable, each fault does what it says, and what was cut heals."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import ErrorCode
from sim.__main__ import main
from sim.checks import Safety, healed, unhealed
from sim.faults import KINDS, BurstLoss, Duplication, Loss, names_of, split
from sim.luck import Streams
from sim.network import Grid, Line, Network, NetworkConfig, delays_named, load_matrix
from sim.process import Farewell
from sim.run import Run, Settings
from sim.world import World

ROOT = Path(__file__).parents[2]


def mesh(size: int, seed: int = 1) -> World:
    world = World(seed)
    for index in range(size):
        world.add(bootstrap=[world.processes[0].address] if index else [])
    return world


def test_a_stream_of_luck_does_not_shift_another() -> None:
    alone = Streams(1)
    first = [alone.of("loss").random() for _ in range(3)]
    both = Streams(1)
    both.of("jitter").random()
    assert [both.of("loss").random() for _ in range(3)] == first
    assert Streams(2).of("loss").random() != first[0]


@pytest.mark.parametrize("faults", ["none", "all"])
def test_one_seed_has_one_digest_whatever_the_hash_seed(faults: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sim", "--nodes", "6", "--for", "6", "--seed", "7", "--json", "--faults", faults]
    command += ["--output", str(tmp_path)]
    digests = set()
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
        digests.add(json.loads(done.stdout)["digest"])
    assert len(digests) == 1


def test_another_seed_has_another_digest() -> None:
    digests = [Run(Settings(nodes=4, duration_s=3.0, seed=seed)).simulate().digest for seed in (1, 2)]
    assert digests[0] != digests[1]


def network(seed: int = 1) -> tuple[World, Network]:
    world = mesh(4, seed)
    return world, world.network


def test_loss_is_the_share_it_says() -> None:
    world, net = network()
    Loss(world.streams.of("faults"), world, 0.3).begin(world)
    arrived = sum(len(net.datagram(0, 1, 9, float(number))) for number in range(4000))
    assert 0.67 < arrived / 4000 < 0.73


def test_bursts_are_lost_together() -> None:
    world, net = network()
    fault = BurstLoss(world.streams.of("faults"), world)
    fault.begin(world)
    lost = [not net.datagram(0, 1, 9, float(number)) for number in range(20_000)]
    share = sum(lost) / len(lost)
    after_loss = sum(b for a, b in itertools.pairwise(lost) if a) / sum(lost)
    assert share > 0.0
    assert after_loss > 3 * share
    fault.end(world)
    assert net.datagram(0, 1, 9, 1e6)


def test_duplication_and_its_end() -> None:
    world, net = network()
    fault = Duplication(world.streams.of("faults"), world, 0.5)
    fault.begin(world)
    twice = sum(len(net.datagram(0, 1, 9, float(number))) == 2 for number in range(2000))
    assert 900 < twice < 1100
    fault.end(world)
    assert len(net.datagram(0, 1, 9, 1e6)) == 1


def test_reordered_datagrams_overtake() -> None:
    world, net = network()
    KINDS["reordering"](world.streams.of("faults"), world).begin(world)
    arrivals = [number * 0.001 + net.datagram(0, 1, 9, number * 0.001)[0] for number in range(2000)]
    assert arrivals != sorted(arrivals)


def lateness(per_s: float, share: float = 0.3, one_way_s: float = 0.1) -> list[float]:
    """How late messages on one stream are, in one-way trips, in order of size: none arrives before the one before it."""
    net, luck = Network(Line(one_way_s), NetworkConfig(jitter_s=0.0), Streams(1)), Streams(2).of("loss")
    net.losses.append(lambda *_: luck.random() < share)
    now, arrived, late = 0.0, 0.0, []
    for _ in range(4000):
        now += luck.expovariate(per_s)
        arrived = max(arrived, now + net.message(0, 1, 200, now))
        late.append((arrived - now) / one_way_s)
    return sorted(late)


@pytest.mark.parametrize(("per_s", "median", "p99"), [(10.0, 3.9, 15.8), (40.0, 4.9, 27.4)])
def test_a_busy_stream_is_as_late_under_loss_as_real_endpoints_are(per_s: float, median: float, p99: float) -> None:
    """The figures are those of qh3 at the same loss and distance: a loss shows by the packets after it."""
    late = lateness(per_s)
    assert median / 1.5 < late[2000] < median * 1.5
    assert p99 / 2 < late[3960] < p99 * 2


def test_a_lone_message_waits_for_probe_timeouts_that_double() -> None:
    late = lateness(0.02)
    assert [round(trips) for trips in (late[2000], late[3200], late[3700])] == [1, 4, 10]


def test_a_path_that_loses_everything_is_late_and_no_more() -> None:
    assert lateness(1000.0, share=1.0)[0] > 100.0


def test_a_full_uplink_drops_and_empties_again() -> None:
    net = Network(Line(), NetworkConfig(uplink_bytes_per_s=100_000.0, uplink_queue_bytes=10_000), Streams(1))
    arrived = sum(len(net.datagram(0, 1, 940, 0.0)) for _ in range(30))
    assert 10 <= arrived <= 12
    assert net.tally.overflowed == 30 - arrived
    assert net.datagram(0, 1, 940, 1.0)


def test_delays_of_shapes_and_files(tmp_path: Path) -> None:
    assert Line().one_way_s(1, 4) == pytest.approx(0.003)
    assert Grid(3).one_way_s(0, 8) == pytest.approx(0.004)
    path = tmp_path / "rtt.csv"
    path.write_text("0,10,20\n10,0,30\n20,30,0\n")
    assert load_matrix(path).one_way_s(1, 2) == pytest.approx(0.015)
    path.write_text("0,10,20\n10,0,30\n")
    with pytest.raises(ValueError, match="square"):
        load_matrix(path)
    with pytest.raises(ValueError, match="neither"):
        delays_named("moon", 3, Streams(1))
    with pytest.raises(ValueError, match="no fault"):
        names_of("rain")


def test_a_partition_parts_and_heals() -> None:
    world = mesh(6)
    world.run(5.0)
    assert unhealed(world) is None
    cut = split(frozenset({4, 5}))
    cut.begin(world)
    world.run(12.0)
    assert "n4" in (unhealed(world) or "") or "n5" in (unhealed(world) or "")
    cut.end(world)
    assert world.run_until(healed(world), 60.0)


def test_a_stopped_process_suspects_nobody_for_its_own_stall() -> None:
    world = mesh(4)
    Safety(world)
    suspected: list[object] = []
    world.run(5.0)
    sleeper = world.processes[2]
    world.watchers.append(lambda process, output: suspected.append(output) if process is sleeper else None)
    world.pause(sleeper)
    world.run(6.2)
    world.resume(sleeper)
    world.run(6.3)
    assert not [output for output in suspected if type(output).__name__ == "PeerSuspected"]
    assert world.run_until(healed(world), 40.0)


@pytest.mark.parametrize("keeps_disk", [True, False])
def test_a_crashed_process_comes_back(keeps_disk: bool) -> None:
    world = mesh(4)
    Safety(world)
    world.run(5.0)
    world.kill(world.processes[3], keeps_disk=keeps_disk)
    world.run(10.0)
    world.start(world.processes[3])
    assert world.run_until(healed(world), 60.0)
    assert world.processes[0].node.table.get(world.processes[3].peer_id, "card") is not None


def test_the_command_ends_with_a_table_a_picture_and_the_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodes", "5", "--for", "5", "--delays", "line", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "records accepted" in shown
    assert "digest" in shown
    assert (tmp_path / "nodes-5-seed-42.svg").read_text().startswith("<svg")
    assert main(["--faults", "rain"]) == 2


def test_replay_prints_every_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodes", "2", "--for", "2", "--replay", "--json", "--output", str(tmp_path)]) == 0
    assert "SendDatagram to n" in capsys.readouterr().out


def test_every_fault_can_be_drawn_begun_and_ended() -> None:
    for name, kind in KINDS.items():
        world = mesh(4)
        world.run(1.0)
        fault = kind(world.streams.of("faults"), world)
        fault.begin(world)
        world.run(1.5)
        fault.end(world)
        world.run(2.0)
        net = world.network
        left = [*net.losses, *net.blocks, *net.duplications, *net.reorderings, *net.rates, *net.clogs, *net.queues]
        assert left == [], name
        survivors = [process for process in world.processes if not process.hostile]
        assert sum(not process.works for process in survivors) == (name == "death"), name
        assert not any(process.slow_s or process.make_node or process.wall_off_s for process in survivors), name
        assert not any(process.running for process in world.processes if process.hostile), name


def test_a_peer_hung_up_on_hears_of_it() -> None:
    world = mesh(2)
    world.run(3.0)
    one, other = world.processes
    world.hang_up(one, other.peer_id, ErrorCode.GOODBYE)
    world.run(3.1)
    assert not other.node.membership.is_connected(one.peer_id)


def test_a_lost_word_of_a_close_is_said_again_to_who_goes_on_talking() -> None:
    world = mesh(2)
    world.run(3.0)
    one, other = world.processes
    cut = split(frozenset({0}))
    cut.begin(world)
    world.hang_up(one, other.peer_id, ErrorCode.SURPLUS)
    cut.end(world)
    world.network.losses.append(lambda _now, sender, _receiver, _datagram: sender == 0)
    world.run(3.3)
    assert other.node.membership.is_connected(one.peer_id), "it has heard nothing yet"
    world.network.losses.clear()
    world.run(8.0)
    assert other.node.membership.is_connected(one.peer_id) is (one.peer_id in other.connections)
    assert world.processes[1].connections.get(one.peer_id) is one.connections.get(other.peer_id)


def test_a_forgotten_close_is_answered_no_more() -> None:
    farewell = Farewell(ErrorCode.SURPLUS, 10.0)
    assert [farewell.answers(now) for now in (1.0, 2.0, 3.0, 4.0, 5.0)] == [True, True, False, True, False]
    assert not farewell.answers(10.1)
