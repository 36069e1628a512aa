"""The second tier: real QUIC endpoints on virtual time do what the shell does, repeat, and heal."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from protocol.errors import ErrorCode, LocalProtocolError
from protocol.membership import MembershipConfig
from protocol.multiaddr import Multiaddr
from protocol.probe import Liveness
from protocol.quic import choose_engine
from protocol.quic.endpoint import Endpoint
from protocol.records import RecordKind
from sim.__main__ import main
from sim.checks import Safety, unhealed
from sim.faults import Corruption, Loss, split
from sim.faults.paths import unclog
from sim.network import Clog
from sim.quic import QuicWorld
from sim.quic.speech import OUTBOX_MESSAGES_MAX
from sim.quic.transport import Transport
from sim.run import Run, Settings

ROOT = Path(__file__).parents[2]
PATIENCE = MembershipConfig()
GIVEN_UP_S = 3.0 + PATIENCE.gone_after_s + PATIENCE.linger_s  # after its death a peer is suspected, gone, and hung up on
ENGINES = [("qh3",), ("aioquic",), ("qh3", "aioquic")]


@pytest.fixture(params=ENGINES, ids="-".join)
def engines(request: pytest.FixtureRequest) -> tuple[str, ...]:
    for name in request.param:
        try:
            choose_engine(name)
        except LocalProtocolError as fault:
            pytest.skip(f"the engine {name} cannot be used here: {fault}")
    return request.param


def mesh(size: int, engines: tuple[str, ...] = (), seed: int = 1) -> QuicWorld:
    world = QuicWorld(seed, engines=engines)
    Safety(world)
    for index in range(size):
        world.add(bootstrap=[world.processes[0].address] if index else [])
    return world


def agreed(world: QuicWorld) -> Callable[[], bool]:
    """Whether all hold the newest card of all, and nobody is suspected."""
    return lambda: world.now >= 2.0 and unhealed(world, fresh_s=1.0) is None


def noted(world: QuicWorld) -> list[str]:
    """Everything that happens from now on, as text."""
    lines: list[str] = []
    world.journal.watch = lines.append
    return lines


def test_one_seed_has_one_digest_whatever_the_hash_seed(engines: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sim", "--tier", "quic", "--engine", ",".join(engines), "--json", "--output", str(tmp_path)]
    command += ["--nodes", "4", "--for", "10", "--seed", "3", "--faults", "loss,reordering,partition,crash,slow"]
    digests = set()
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
        digests.add(json.loads(done.stdout)["digest"])
    assert len(digests) == 1


def test_the_packets_have_the_same_sizes_and_times_in_every_run() -> None:
    def sent() -> list[tuple[float, int, int]]:
        seen: list[tuple[float, int, int]] = []
        world = mesh(3, ("qh3", "aioquic"))
        carry = world.network.datagram
        world.network.datagram = lambda one, other, size, now: seen.append((now, one, size)) or carry(one, other, size, now)
        world.run(2.0)
        return seen

    first = sent()
    assert len(first) > 100
    assert sent() == first


def test_runs_in_one_process_repeat_under_loss_copies_and_overtaking() -> None:
    def digest(seed: int) -> str:
        world = mesh(4, ("qh3", "aioquic"), seed)
        Loss(world.streams.of("faults"), world, 0.2).begin(world)
        world.network.duplications.append(0.1)
        world.network.reorderings.append((0.3, 0.05))
        world.run(2.0)
        return world.journal.digest()

    seeds = range(1, 7)
    assert [digest(seed) for seed in seeds] == [digest(seed) for seed in seeds]


def test_another_seed_has_another_digest() -> None:
    runs = [Run(Settings(nodes=3, duration_s=2.0, seed=seed, tier="quic")) for seed in (1, 2)]
    assert len({run.simulate().digest for run in runs}) == 2


def test_a_mesh_forms_with_one_connection_per_pair(engines: tuple[str, ...]) -> None:
    world = mesh(5, engines)
    world.run(8.0)
    assert agreed(world)()
    for process in world.processes:
        others = [other.peer_id for other in world.processes if other is not process]
        assert sorted(world.shells[process.index].transport.connections) == sorted(others)
        assert world.shells[process.index].transport.n_connections == len(others)
        assert world.shells[process.index].waiting == 0


def test_dials_that_cross_end_on_the_same_connection(engines: tuple[str, ...]) -> None:
    world = QuicWorld(1, engines=engines)
    one, other = world.add(), world.add()
    one.bootstrap, other.bootstrap = (other.address,), (one.address,)
    world.run(0.5)
    shells = [world.shells[index] for index in (0, 1)]
    assert [shell.transport.endpoint.counters.accepted for shell in shells] == [1, 1]
    assert [shell.transport.endpoint.counters.dialled for shell in shells] == [1, 1]
    world.run(5.0)
    assert [shell.transport.n_connections for shell in shells] == [1, 1]
    smaller, larger = sorted((one, other), key=lambda process: process.peer_id)
    assert world.shells[smaller.index].transport.connections[larger.peer_id].is_dialled
    assert not world.shells[larger.index].transport.connections[smaller.peer_id].is_dialled
    assert agreed(world)()


def test_corrupted_packets_harm_nobody(engines: tuple[str, ...]) -> None:
    world = mesh(3, engines)
    assert world.corruptions is not None
    world.corruptions.append(0.2)
    lines = noted(world)
    world.run(10.0)
    world.corruptions.clear()
    assert world.corrupted > 50
    assert world.run_until(agreed(world), 40.0)
    assert not [line for line in lines if "Misbehaved" in line]


def test_a_mesh_forms_where_every_third_packet_is_lost(engines: tuple[str, ...]) -> None:
    world = mesh(4, engines)
    Loss(world.streams.of("faults"), world, 0.3).begin(world)
    assert world.run_until(agreed(world), 30.0)
    assert world.network.tally.lost > 100


def test_a_process_that_comes_back_at_once_replaces_its_connections(engines: tuple[str, ...]) -> None:
    world = mesh(3, engines)
    world.run(5.0)
    lines = noted(world)
    dead = world.processes[2]
    world.kill(dead)
    world.run(5.5)
    assert dead.peer_id in world.shells[0].transport.connections, "nothing tells of a death but silence"
    world.start(dead)
    world.run(8.0)
    assert [line for line in lines if "n0 has another connection with n2" in line]
    assert agreed(world)()


def test_a_process_that_stays_dead_is_given_up(engines: tuple[str, ...]) -> None:
    world = mesh(3, engines)
    world.run(5.0)
    lines = noted(world)
    dead = world.processes[2]
    world.kill(dead)
    world.run(5.0 + GIVEN_UP_S)
    assert [line for line in lines if "n0 has lost" in line and "n2" in line]
    assert dead.peer_id not in world.shells[0].transport.connections


def test_the_code_of_a_close_reaches_the_peer(engines: tuple[str, ...]) -> None:
    world = mesh(3, engines)
    world.run(3.0)
    lines = noted(world)
    world.hang_up(world.processes[0], world.processes[1].peer_id, ErrorCode.FLOODING)
    world.run(3.1)
    assert [line for line in lines if "n1 has lost (FLOODING) n0" in line]
    world.leave(world.processes[2])
    world.run(3.2)
    assert [line for line in lines if "n0 has lost (GOODBYE) n2" in line]


def test_what_is_cut_idles_out_and_heals(engines: tuple[str, ...]) -> None:
    world = mesh(4, engines)
    world.run(4.0)
    lines = noted(world)
    cut = split(frozenset({3}))
    cut.begin(world)
    world.run(4.0 + GIVEN_UP_S)
    assert [line for line in lines if "n3 has lost (IDLE) n0" in line]
    cut.end(world)
    assert world.run_until(agreed(world), 120.0)


def test_a_dial_tries_the_next_address_when_one_leads_nowhere_or_to_somebody_else(engines: tuple[str, ...]) -> None:
    world = QuicWorld(1, engines=engines)
    listener = world.add()
    other = world.add()
    nowhere = Multiaddr("ip4", "192.0.2.1", 64_000, listener.peer_id)
    wrong = Multiaddr("ip4", "192.0.2.1", other.address.port, listener.peer_id)
    lines = noted(world)
    world.run(0.0)
    dialler = world.add(at=0.0)
    world.run(0.0)
    world._dial(dialler, listener.peer_id, (nowhere, wrong, listener.address))
    world.run(4.9)
    assert not [line for line in lines if "n2 is connected" in line]
    world.run(6.0)
    assert [line for line in lines if "n2 is connected with n0" in line]
    assert not [line for line in lines if "n1" in line and "connected" in line]
    assert dialler.node.membership.is_connected(listener.peer_id)


def test_what_is_said_to_a_peer_that_does_not_read_is_bounded(engines: tuple[str, ...]) -> None:
    world = mesh(2, engines)
    world.run(3.0)
    speaker, listener = world.processes
    world.pause(listener)
    for _ in range(2 * OUTBOX_MESSAGES_MAX):
        world.shells[0].post(listener.peer_id, bytes(30_000))
        world.run(world.now + 0.001)
    assert world.shells[0].waiting == OUTBOX_MESSAGES_MAX
    assert speaker.node.membership.is_connected(listener.peer_id)


def test_a_timer_that_stands_still_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: an endpoint that never lets its due timers fire, so that virtual time would stand still."""
    monkeypatch.setattr(Endpoint, "handle_timer", lambda *_: None)
    world = mesh(2)
    with pytest.raises(AssertionError, match="stands still"):
        world.run(5.0)


def test_shells_that_choose_differently_between_two_connections_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: each side keeps the connection that it dialled itself, and they never agree."""
    monkeypatch.setattr(Transport, "_keeps_older", lambda _self, older, _newer: older.is_dialled)
    world = QuicWorld(1)
    one, other = world.add(), world.add()
    one.bootstrap, other.bootstrap = (other.address,), (one.address,)
    lines = noted(world)
    world.run(40.0)
    assert [line for line in lines if "has lost (DUPLICATE)" in line]


def test_an_engine_that_does_not_exist_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tier", "quic", "--engine", "quiche", "--nodes", "2"]) == 2
    assert "quiche" in capsys.readouterr().err


def test_corruption_flips_bits_that_quic_finds(engines: tuple[str, ...]) -> None:
    world = mesh(3, engines)
    world.run(3.0)
    fault = Corruption(Random(1), world, 0.2)
    fault.begin(world)
    world.run(8.0)
    fault.end(world)
    assert world.corrupted > 20
    assert world.network.tally.lost == 0
    assert world.corruptions == []
    assert world.run_until(agreed(world), 20.0)


def test_a_clogged_path_holds_datagrams(engines: tuple[str, ...]) -> None:
    world = mesh(3, engines)
    world.run(3.0)
    clog = Clog(lambda _one, other: other == 2)
    world.network.clogs.append(clog)
    world.run(6.0)
    assert len(clog.held) > 5
    assert world.processes[2].node.probe.liveness(world.processes[0].peer_id) is Liveness.SUSPECTED
    unclog(world, clog)
    assert world.run_until(agreed(world), 20.0)


@pytest.mark.parametrize("migrates", [True, False])
def test_a_process_that_moves_is_found_again(migrates: bool, engines: tuple[str, ...]) -> None:
    world = mesh(3, engines)
    world.run(5.0)
    moved, lines = world.processes[2], noted(world)
    world.move(moved, migrates=migrates)
    world.run(5.01)
    assert bool([line for line in lines if "n2 has lost (IDLE) n0" in line]) is not migrates
    assert world.run_until(agreed(world), 40.0)
    world.run(world.now + 5.0)
    cards = [process.node.table.get(moved.peer_id, RecordKind.CARD) for process in world.processes]
    assert all(card is not None and card.payload.addresses == (moved.address,) for card in cards)
    assert unhealed(world) is None


def test_a_peer_that_is_not_heard_is_dialled_afresh(engines: tuple[str, ...]) -> None:
    world = mesh(2, engines)
    world.run(5.0)
    lines = noted(world)
    one, other = world.processes
    world._dial(one, other.peer_id, (other.address,))
    world.run(6.0)
    assert not [line for line in lines if "another connection" in line]
    world._dial(one, other.peer_id, (other.address,), afresh=True)
    world.run(7.0)
    assert [line for line in lines if "n0 has another connection with n1" in line]
