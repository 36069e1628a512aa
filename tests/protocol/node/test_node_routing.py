"""What a node knows of the others and whom it would ask: whole cores on virtual time."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from world import ECHO, HARDWARE, WALL_S, World, mesh, request

from protocol.coordinates import estimate_rtt
from protocol.errors import ErrorCode
from protocol.fabric import Link
from protocol.forwarding import Ended, Forward, Outcome, RunLocally
from protocol.identity import Identity
from protocol.inference import Feature, Finished, Tensor, Timing, Usage
from protocol.load import Beat
from protocol.node.candidates import bus_of
from protocol.records import Card, Edges, Gpu, RecordKind, seal
from protocol.routing import RttSource

STRANGER = Identity.from_seed(b"s" * 32)
ROOT = Path(__file__).parents[3]


def line(*places: float, offers=(ECHO,), seed: int = 1) -> World:
    """Members on a line; the first one serves nothing, so that it always has to ask."""
    world = World(seed)
    for index, place in enumerate(places):
        world.add((place, 0.0), bootstrap=[world.members[0].address] if index else [], offers=offers if index else ())
    world.run_until(world.all_know_all, 10.0)
    world.run(world.now + 1.0)
    return world


def test_round_trips_are_those_of_the_paths() -> None:
    world = mesh(6, 2)
    world.run(10.0)
    for one in world.members:
        for other in world.members:
            if one is not other:
                quality = one.node.peer(other.peer_id, world.now).quality
                assert quality is not None
                assert quality.rtt_s == pytest.approx(world.rtt_s(one, other), rel=1e-6)
                assert quality.jitter_s < 1e-9
                assert quality.loss == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_coordinates_predict_the_distances_of_a_plane(seed: int) -> None:
    world = mesh(8, seed, spread_s=0.1)
    world.run(60.0)
    errors = []
    for one in world.members:
        for other in world.members:
            if one is not other:
                view = one.node.peer(other.peer_id, world.now)
                assert view.coordinate_rtt_s is not None
                errors.append(abs(view.coordinate_rtt_s - world.rtt_s(one, other)) / world.rtt_s(one, other))
    assert median(errors) < 0.15
    cards = [one.node.table.get(one.peer_id, RecordKind.CARD).payload for one in world.members]
    told = [card.coordinate.error for card in cards]  # not the uncertainty of the first second
    assert median(told) < 0.2
    assert max(told) < 0.5


def test_quiet_mesh_renews_its_cards_seldom() -> None:
    """Once the coordinates have settled, cards are not sent because of noise."""
    world = mesh(6, 1)
    world.run(120.0)
    world.run(240.0)
    for member in world.members:
        for other in world.members:
            cards = [at for at, peer_id, kind in member.accepted if (peer_id, kind) == (other.peer_id, RecordKind.CARD)]
            if other is not member:
                assert sum(at > 120.0 for at in cards) <= 3
                assert len(cards) <= 30


def test_nearest_able_node_comes_first_and_the_others_are_explained() -> None:
    world = line(0.0, 0.05, 0.01, 0.03)
    asker, far, near, middle = world.members
    report = asker.node.rank(request(), world.now)
    assert report.qualified == (near.peer_id, middle.peer_id, far.peer_id)
    assert report.chosen == near.peer_id
    by_id = {candidate.peer_id: candidate for candidate in report.candidates}
    assert len(by_id) == 4
    assert by_id[asker.peer_id].reason == "does not serve echo"
    assert by_id[near.peer_id].rtt_source is RttSource.MEASURED
    assert by_id[near.peer_id].rtt_s == pytest.approx(0.01)
    world.kill(near)
    world.run(world.now + 3.0)
    report = asker.node.rank(request(2), world.now)
    assert report.chosen == middle.peer_id
    for stage, wait_s in (("suspected: no answer to probes", 0.0), ("gone: stopped answering", 5.0)):
        world.run(world.now + wait_s)
        report = asker.node.rank(request(2), world.now)
        dead = next(candidate for candidate in report.candidates if candidate.peer_id == near.peer_id)
        assert not dead.qualified
        assert dead.reason.startswith(stage)
    assert asker.node.rank(request(3), world.now, from_peer=middle.peer_id).chosen == far.peer_id


def test_unconnected_peer_is_ranked_by_what_was_measured_and_then_by_coordinates() -> None:
    world = mesh(8, 5, spread_s=0.1)
    world.run(60.0)
    asker, target = world.members[0], world.members[3]
    measured = asker.node.peer(target.peer_id, world.now).quality
    asker.node.handle_disconnected(target.peer_id, ErrorCode.IDLE, world.now)
    view = asker.node.peer(target.peer_id, world.now)
    assert view.quality is None
    report = asker.node.rank(request(), world.now)
    (candidate,) = [candidate for candidate in report.candidates if candidate.peer_id == target.peer_id]
    assert candidate.rtt_s == pytest.approx(measured.rtt_s, rel=0.01)
    asker.node.survey.distances.forget(target.peer_id)
    report = asker.node.rank(request(), world.now)
    (candidate,) = [candidate for candidate in report.candidates if candidate.peer_id == target.peer_id]
    assert candidate.rtt_source is RttSource.COORDINATE
    assert view.coordinate_rtt_s == estimate_rtt(asker.node.vivaldi.coordinate, view.card.coordinate)
    assert candidate.rtt_s == pytest.approx(view.coordinate_rtt_s, rel=1e-6)  # places are kept as 32-bit floats


def test_draining_node_is_chosen_by_nobody() -> None:
    world = line(0.0, 0.01, 0.03, 0.05)
    asker, near, middle, _ = world.members
    assert asker.node.rank(request(), world.now).chosen == near.peer_id
    near.node.drain(world.now)
    world.settle(near)
    world.run(world.now + 0.2)
    for member in world.members:
        report = member.node.rank(request(2), world.now)
        candidate = next(candidate for candidate in report.candidates if candidate.peer_id == near.peer_id)
        assert not candidate.qualified
        assert candidate.reason == "draining"
    assert asker.node.rank(request(3), world.now).chosen == middle.peer_id


def test_node_with_too_little_memory_is_passed_over_with_its_reason_and_refuses_it_itself() -> None:
    world = World(1)
    gpu = replace(HARDWARE, gpus=(Gpu("a", 4_000_000_000), Gpu("b", 24_000_000_000)))
    asker = world.add(offers=())
    near, far = (
        world.add((place, 0.0), bootstrap=[asker.address], hardware=hardware)
        for place, hardware in ((0.01, HARDWARE), (0.05, gpu))
    )
    world.run_until(world.all_know_all, 10.0)
    world.run(world.now + 1.0)
    assert asker.node.rank(request(), world.now).chosen == near.peer_id
    needy = replace(request(2), memory_bytes=16_000_000_000)
    report = asker.node.rank(needy, world.now)
    assert report.qualified == (far.peer_id,)
    passed = next(candidate for candidate in report.candidates if candidate.peer_id == near.peer_id)
    assert (passed.refusal, passed.reason) == (ErrorCode.INSUFFICIENT_MEMORY, "has 8.0 GB of memory, 16.0 GB needed")
    for executor, qualified in ((near, ()), (far, (far.peer_id,))):
        report = executor.node.rank(replace(needy, hops_left=0), world.now, from_peer=asker.peer_id)
        assert report.qualified == qualified
    assert asker.node.rank(replace(needy, memory_bytes=25_000_000_000), world.now).qualified == ()


def test_bus_to_the_accelerators_is_the_widest_with_what_it_has_left_and_unknown_where_one_is_not_told() -> None:
    two = replace(HARDWARE, gpus=(Gpu("a", 1, 63_000), Gpu("b", 1, 504_000)))
    assert bus_of(two, None) == Link(0.0, 63e9)
    assert bus_of(two, Beat(draining=False, loads=(), bus_free_mbps=80_000)) == Link(0.0, 10e9)
    assert bus_of(two, Beat(draining=False, loads=(), bus_free_mbps=800_000)) == Link(0.0, 63e9), "a beat adds nothing"
    assert bus_of(replace(two, gpus=(*two.gpus, Gpu("c", 1))), None) is None
    assert bus_of(replace(two, gpus=()), None) is None
    assert bus_of(None, None) is None


def test_tensors_go_past_the_near_node_whose_accelerator_hangs_on_a_narrow_link() -> None:
    world = World(1)
    asker = world.add(offers=())
    offer = replace(ECHO, engine="openai")
    near, far = (
        world.add((place, 0.0), bootstrap=[asker.address], hardware=replace(HARDWARE, gpus=(Gpu("a", 1, mbps),)), offers=(offer,))
        for place, mbps in ((0.01, 2_000), (0.05, 504_000))
    )
    world.run_until(world.all_know_all, 10.0)
    world.run(world.now + 1.0)
    assert asker.node.rank(request(), world.now).chosen == near.peer_id
    large = replace(request(2), tensors=(Tensor("x", "u1", (32 << 20,), memoryview(bytes(32 << 20))),))
    assert asker.node.rank(large, world.now).chosen == far.peer_id


def test_tokens_wanted_shorten_the_expected_answer() -> None:
    world = line(0.0, 0.01)
    asker, near = world.members
    asker.node.services.record(near.peer_id, "echo", Feature.EMBEDDINGS, world.now, 2.0, 0.1, 101)
    long, short = (asker.node.rank(replace(request(), output_tokens=n), world.now).candidates[0] for n in (0, 11))
    assert short.service_s < 0.5 < long.service_s


def test_new_model_is_known_everywhere_within_seconds() -> None:
    world = line(0.0, 0.01, 0.03)
    asker, near, _ = world.members
    fresh = replace(ECHO, model="fresh")
    near.node.handle_offers((ECHO, fresh), world.now)
    world.settle(near)
    world.run(world.now + 2.5)
    assert asker.node.rank(request(1, "fresh"), world.now).qualified == (near.peer_id,)


def test_request_is_forwarded_measured_and_remembered() -> None:
    world = line(0.0, 0.01, 0.03)
    asker, near, _ = world.members
    asked = request()
    report = asker.node.rank(asked, world.now)
    assert asker.node.submit(asked, report, None, world.now) is None
    forward = asker.node.next_output()
    assert isinstance(forward, Forward)
    assert forward.peer == near.peer_id
    assert asker.node.handle_first_output(asked, near.peer_id, world.now + 0.06)
    end = Finished(Timing(0.0, 0.05), Usage())
    asker.node.handle_finished(asked, report, near.peer_id, end, 0.06, 0.06, world.now + 0.06)
    ended = asker.node.next_output()
    assert isinstance(ended, Ended)
    assert ended.outcome is Outcome.ANSWERED
    estimate = asker.node.services.estimate(near.peer_id, "echo", Feature.EMBEDDINGS, 0, world.now)
    assert estimate.service_s == pytest.approx(0.05)


def test_own_engine_comes_before_equals_and_requests_do_not_loop() -> None:
    world = line(0.0, 0.01, 0.03)
    _, near, middle = world.members
    asked = request()
    report = near.node.rank(asked, world.now, from_peer=middle.peer_id)
    assert report.chosen == near.peer_id
    assert near.node.submit(asked, report, middle.peer_id, world.now) is None
    assert isinstance(near.node.next_output(), RunLocally)
    refusal = near.node.submit(asked, report, middle.peer_id, world.now)
    assert refusal.code is ErrorCode.HOPS_EXCEEDED


def card() -> Card:
    return Card((), HARDWARE, (ECHO,), None, "stranger/1")


def test_forged_expired_and_foreign_records_are_never_believed() -> None:
    wall_s = WALL_S + 20.0
    genuine = seal(STRANGER, "isochrone", card(), 1, wall_s, wall_s + 600.0).envelope
    forged = genuine[:10] + bytes([genuine[10] ^ 1]) + genuine[11:]
    expired = seal(STRANGER, "isochrone", Edges(()), 2, wall_s - 300.0, wall_s - 270.0).envelope
    stale = seal(STRANGER, "isochrone", card(), 2, wall_s - 700.0, wall_s - 100.0).envelope
    future = seal(STRANGER, "isochrone", card(), 2, wall_s + 100.0, wall_s + 700.0).envelope
    foreign = seal(STRANGER, "elsewhere", card(), 3, wall_s, wall_s + 600.0).envelope
    for envelope, is_fault in ((forged, True), (expired, False), (stale, False), (future, False), (foreign, True)):
        world = mesh(3, 1)
        world.run(20.0)
        victim, liar, other = world.members
        world.inject(victim, liar, envelope)
        world.run(20.05)
        for member in world.members:
            assert STRANGER.peer_id not in {view.peer_id for view in member.node.peers(world.now)}
        assert bool(victim.faults) is is_fault
        assert (liar.peer_id in victim.routable) is not is_fault  # it is hung up on
        assert other.faults == []
    world = mesh(3, 1)
    world.run(20.0)
    world.inject(world.members[0], world.members[1], genuine)
    world.run(25.0)
    for member in world.members:
        assert STRANGER.peer_id in {view.peer_id for view in member.node.peers(world.now)}


def test_peer_that_stays_away_is_forgotten_and_dialled_no_more() -> None:
    world = mesh(3, 1)
    world.run(10.0)
    dead = world.members[1]
    world.kill(dead)
    world.run(10.0 + 3.0 + 5.0 + 45.0 + 120.0 + 5.0)
    for member in world.running():
        assert [view.peer_id for view in member.node.peers(world.now)] == [
            other.peer_id for other in world.running() if other is not member
        ]
        assert dead.peer_id not in member.node.membership._peers
        before = len(member.dials)
        world.run(world.now + 120.0)
        bootstrap = {address.peer_id for address in member.bootstrap}
        assert len(member.dials) == before or dead.peer_id in bootstrap


def test_identity_that_lost_its_sequence_numbers_catches_up() -> None:
    """A node restored without its reservation hears its own newer records and moves past them."""
    world = mesh(3, 1)
    world.run(60.0)
    lost = world.members[1]
    world.kill(lost)
    lost.reserved = 0
    world.run(62.0)
    lost.offers = (replace(ECHO, model="fresh"),)
    world.start(lost)
    world.run(75.0)
    for member in (world.members[0], world.members[2]):
        view = member.node.peer(lost.peer_id, world.now)
        assert view.card.models == lost.offers
    lost.node.handle_offers((ECHO,), world.now)
    world.settle(lost)
    world.run(78.0)
    for member in (world.members[0], world.members[2]):
        assert member.node.peer(lost.peer_id, world.now).card.models == (ECHO,)
        assert lost.peer_id in member.routable


def eventful(seed: int) -> str:
    """A minute with everything in it, as a hash of every output of every node."""
    world = mesh(6, seed, loss=0.05, start_within_s=2.0)
    world.jitter_s = 0.002
    world.run(10.0)
    world.kill(world.members[2])
    world.run(20.0)
    world.leave(world.members[3])
    world.members[4].node.handle_offers((ECHO, replace(ECHO, model="m", features=frozenset(Feature))), world.now)
    world.settle(world.members[4])
    world.start(world.members[2])
    world.run(30.0)
    return world.digest()


def test_same_seed_is_the_same_run_whatever_the_hash_seed() -> None:
    digests = set()
    for hash_seed in ("1", "2"):
        script = "from test_node_routing import eventful; print(eventful(11))"
        path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
        digests.add(ran.stdout.strip())
    assert len(digests) == 1
    assert eventful(11) in digests
    assert eventful(12) not in digests
