"""Nodes find one another, lose one another and come back: whole cores on virtual time."""

from dataclasses import replace
from itertools import pairwise

import pytest
from world import ECHO, World, mesh

from protocol.errors import ErrorCode
from protocol.membership import MembershipConfig, Standing
from protocol.node import NodeConfig

DEAD_AFTER_S = 3.0
"""Seconds after which no node may send work to one that died: the promise of the specification."""


def test_five_nodes_with_one_bootstrap_know_one_another_within_seconds() -> None:
    for seed in range(10):
        world = mesh(5, seed)
        when = world.run_until(world.all_know_all, 5.0)
        assert when <= 3.0, f"seed {seed}: {when}"
        for member in world.members:
            assert len(member.node.peers(world.now)) == 4
            assert member.faults == []
            assert member.left == []


def test_nodes_that_start_in_any_order_find_one_another() -> None:
    """The bootstrap node may be the last to start: those who came before try again with back-off."""
    for seed in range(10):
        world = mesh(5, seed, start_within_s=10.0)
        world.run(10.0)
        world.run_until(world.all_know_all, 30.0)


def test_node_that_joins_late_converges() -> None:
    world = mesh(5, 3)
    world.run(30.0)
    late = world.add((0.01, 0.01), bootstrap=[world.members[2].address], at=30.0)
    world.run(30.0)
    assert late.running
    when = world.run_until(world.all_know_all, 40.0)
    assert when - 30.0 <= 3.0


def test_node_without_peers_is_found_by_address_without_identity() -> None:
    world = World(1)
    first = world.add()
    second = world.add((0.0, 0.02), bootstrap=[first.address.with_peer(None)])
    own = world.add((0.02, 0.0), bootstrap=[first.address.with_peer(None)])
    own.bootstrap += (own.address.with_peer(None),)  # its own among them
    world.run_until(world.all_know_all, 5.0)
    world.run(60.0)
    assert sum(target == str(own.address.with_peer(None)) for _, target in own.dials) == 1
    assert second.faults == own.faults == []


@pytest.mark.parametrize("seed", range(30))
def test_killed_node_leaves_every_routing_set_in_time_and_comes_back(seed: int) -> None:
    world = mesh(5, seed)
    killed_at = 10.0 + world.luck.random() * 2.0
    victim = world.members[seed % 5]
    others = [member for member in world.members if member is not victim]
    world.run(killed_at)
    world.kill(victim)
    world.run(killed_at + DEAD_AFTER_S)
    for member in others:
        assert victim.peer_id not in member.routable
        assert world.standing(member, victim) is not Standing.ALIVE
        assert [peer_id for _, peer_id, _ in member.left] == [victim.peer_id]
    world.run(killed_at + 20.0)
    assert all(victim.peer_id not in member.routable for member in others)  # last words do not bring it back
    assert all(world.standing(member, victim) is Standing.GONE for member in others)
    world.start(victim)
    back = world.run_until(world.all_know_all, world.now + 10.0)
    assert back - killed_at - 20.0 <= 5.0  # the back-off of those who dial it has not grown to more
    assert all(not member.faults for member in world.members)


def test_dead_node_is_dialled_ever_more_seldom() -> None:
    world = mesh(3, 1)
    world.run(10.0)
    world.kill(world.members[0])
    world.run(310.0)
    for member in world.members[1:]:
        dials = [at for at, target in member.dials if target == world.members[0].peer_id and at > 10.0]
        assert 10 <= len(dials) <= 35
        assert max(b - a for a, b in pairwise(dials)) <= 30.0 + 5.0 + 1e-6  # back-off and the dial itself


def test_goodbye_takes_a_node_out_at_once() -> None:
    world = mesh(5, 4)
    world.run(10.0)
    leaver = world.members[1]
    world.leave(leaver)
    world.run(10.1)
    for member in world.running():
        assert leaver.peer_id not in member.routable
        assert member.node.peer(leaver.peer_id, world.now).why == "said goodbye"
    world.run(30.0)
    assert all(leaver.peer_id not in member.routable for member in world.running())


def test_lossy_paths_take_nobody_out() -> None:
    """A fifth of all datagrams is lost, 36 % of all round trips."""
    for seed in range(5):
        world = mesh(5, seed, loss=0.2)
        world.run(70.0)
        for member in world.members:
            assert member.left == []
            assert len(member.routable) == 4


def test_peer_that_accepts_and_closes_is_not_called_without_end() -> None:
    world = mesh(2, 1)
    world.run(5.0)
    one, other = world.members

    def refuse() -> None:
        world.hang_up(other, one.peer_id, ErrorCode.OVERLOADED)
        world.at(world.now + 0.05, refuse)

    refuse()
    for member in world.members:
        member.dials.clear()
    world.run(305.0)
    assert len(one.dials) + len(other.dials) <= 60


def test_clocks_that_disagree_do_no_harm() -> None:
    world = World(5)
    for index, off_s in enumerate([0.0, 45.0, 20.0, 0.0, 45.0]):
        bootstrap = [world.members[0].address] if index else []
        world.add((0.01 * index, 0.0), bootstrap=bootstrap, clock_off_s=off_s)
    world.run_until(world.all_know_all, 5.0)
    world.run(120.0)
    assert world.all_know_all()
    for member in world.members:
        assert member.left == []
        assert member.faults == []


def test_wall_clock_that_steps_does_no_harm() -> None:
    world = mesh(4, 6)
    world.run(20.0)
    for off_s in (50.0, 0.0, -50.0, 0.0):
        stepped = world.members[1]
        stepped.node.handle_wall_clock(1_800_000_000.0 + world.now + off_s, world.now)
        world.run(world.now + 20.0)
        assert world.all_know_all()
    assert all(not member.left and not member.faults for member in world.members)


def test_core_is_seldom_woken() -> None:
    """Five nodes: four peers probed by turns, heartbeats, rounds; the rest is what moved the timer to an earlier time."""
    world = mesh(5, 2)
    world.run(10.0)
    before = [member.wakes for member in world.members]
    world.run(70.0)
    for member, wakes in zip(world.members, before, strict=True):
        assert (member.wakes - wakes) / 60.0 <= 12.0


def test_disk_that_refuses_silences_a_node_and_nothing_more() -> None:
    world = World(7)
    first = world.add(offers=(ECHO,))
    mute = world.add((0.02, 0.0), bootstrap=[first.address], disk_works=False)
    world.run(30.0)
    view = first.node.peer(mute.peer_id, world.now)
    assert view.card is None  # a card is signed with a number of its own, a beat is not
    assert view.beat is not None
    assert view.connected
    assert view.standing is Standing.ALIVE
    assert mute.asked_disk <= 35
    assert mute.wakes <= 30 * 12
    assert mute.node.peer(first.peer_id, world.now).card is not None
    mute.disk_works = True
    world.run_until(world.all_know_all, 33.0)


@pytest.mark.parametrize("block_left", range(4))
def test_disk_that_fills_up_later_loses_no_node(block_left: int) -> None:
    """The last number may be used when card and edges are due at once; what is left waits until the disk works again."""
    world = mesh(3, 1)
    world.run(5.5)
    node = world.members[1]
    node.disk_works = False
    node.node.signing.sequencer._last = node.reserved - block_left
    before = node.reserved
    for number in range(20):
        node.node.handle_offers((ECHO, replace(ECHO, model=f"m{number}")), world.now)
        world.settle(node)
        world.run(world.now + 3.0)
    assert node.reserved == before
    assert len([at for at, peer_id, _ in world.members[0].accepted if peer_id == node.peer_id and at > 5.5]) == block_left
    assert world.standing(world.members[0], node) is Standing.ALIVE  # its probes are answered
    node.disk_works = True
    world.run(world.now + 2.0)
    for other in (world.members[0], world.members[2]):
        assert max(at for at, peer_id, _ in other.accepted if peer_id == node.peer_id) > world.now - 2.0


LARGE = NodeConfig(membership=MembershipConfig(small_mesh=4, near_max=3, far_max=2, connections_max=8, surplus_after_s=5.0))


def large_mesh(size: int, seed: int) -> World:
    """More nodes than any of them is connected to."""
    world = World(seed)
    for index in range(size):
        place = (world.luck.uniform(0.0, 0.04), world.luck.uniform(0.0, 0.04))
        bootstrap = [world.members[index // 2].address] if index else []
        world.add(place, bootstrap=bootstrap, config=LARGE, at=index * 0.1)
    return world


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (2, 3, 4))])
def test_dead_peers_without_a_connection_leave_every_routing_set_in_time(seed: int) -> None:
    """Everyone is known to everyone, few are connected; who watches the dead tells the others."""
    world = large_mesh(20, seed)
    world.run(60.0)
    assert all(len(member.routable) == 19 for member in world.members)
    assert max(len(member.connections) for member in world.members) < 15
    assert all(not member.left for member in world.members)
    victim = world.members[5 + seed]
    world.kill(victim)
    world.run(60.0 + DEAD_AFTER_S)
    for member in world.running():
        assert victim.peer_id not in member.routable
        assert [peer_id for _, peer_id, _ in member.left] == [victim.peer_id]
    world.run(60.0 + 240.0)
    for member in world.running():
        assert victim.peer_id not in {view.peer_id for view in member.node.peers(world.now)}  # forgotten, card and all
    world.start(victim)
    world.run(330.0)
    assert all(len(member.routable) == 19 for member in world.members)
    assert all(not member.faults for member in world.members)


def test_node_that_is_cut_off_for_a_while_is_missed_and_comes_back_by_itself() -> None:
    world = large_mesh(14, 2)
    world.run(60.0)
    lonely = world.members[6]
    world.cut_off(lonely)
    world.run(60.0 + 2.0 + LARGE.membership.gone_after_s + 3.0)
    for member in world.running():
        if member is not lonely:
            assert world.standing(member, lonely) is Standing.GONE
            assert world.standing(lonely, member) is not Standing.ALIVE or not lonely.node.membership.is_connected(member.peer_id)
    world.heal()
    world.run(world.now + 5.0)
    assert all(len(member.routable) == 13 for member in world.members)
    assert all(not member.faults for member in world.members)


@pytest.mark.parametrize("cut_s", [0.5, 3.0, 10.0, 40.0, 100.0])
def test_halves_that_were_cut_apart_grow_together(cut_s: float) -> None:
    world = mesh(6, 1)
    world.run(30.0)
    world.cut_off(*world.members[3:])
    world.run(30.0 + cut_s)
    assert all((len(member.routable) == 5) is (cut_s < 1.0) for member in world.members)
    world.heal()
    world.run_until(world.all_know_all, world.now + 40.0)
    assert all(len(member.routable) == 5 for member in world.members)
    assert all(not member.faults for member in world.members)


def test_halves_that_have_forgotten_one_another_grow_together() -> None:
    """Their cards are no news to the others, who remember the numbers: who hears what was said of it shows a new incarnation."""
    world = mesh(6, 1)
    world.run(400.0)
    world.cut_off(*world.members[3:])
    world.run(600.0)
    assert {len(member.node.peers(world.now)) for member in world.members} == {2}
    world.heal()
    world.run_until(world.all_know_all, 660.0)


def test_machine_that_slept_is_back_as_soon_as_it_wakes() -> None:
    """Its peers hold it for gone; it says a greater incarnation and finds out who still hears it."""
    world = mesh(5, 3)
    world.run(30.0)
    sleeper = world.members[2]
    world.cut_off(sleeper)
    sleeper.node.next_timer()
    world.run(50.0)
    before = sleeper.node.announcer.incarnation
    world.heal()
    sleeper.node.handle_slept(20.0, world.now)
    world.settle(sleeper)
    assert sleeper.node.announcer.incarnation > before
    back = world.run_until(world.all_know_all, 56.0)
    assert back <= 53.0
    sleeper.node.handle_slept(LARGE.membership.gone_after_s - 0.1, world.now)  # nobody has noticed
    assert sleeper.node.announcer.incarnation == max(before + 1, sleeper.node.announcer.incarnation)
