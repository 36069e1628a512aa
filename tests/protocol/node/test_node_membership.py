"""Nodes find one another, lose one another and come back: whole cores on virtual time."""

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
    world.start(victim)
    back = world.run_until(world.all_know_all, world.now + 10.0)
    assert back - killed_at - 20.0 <= 5.0
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
    """Five nodes: four peers probed twice a second, a beat, a round; the rest is what moved the timer to an earlier time."""
    world = mesh(5, 2)
    world.run(10.0)
    before = [member.wakes for member in world.members]
    world.run(70.0)
    for member, wakes in zip(world.members, before, strict=True):
        assert (member.wakes - wakes) / 60.0 <= 30.0


def test_disk_that_refuses_silences_a_node_and_nothing_more() -> None:
    world = World(7)
    first = world.add(offers=(ECHO,))
    mute = world.add((0.02, 0.0), bootstrap=[first.address], disk_works=False)
    world.run(30.0)
    view = first.node.peer(mute.peer_id, world.now)
    assert view.card is None
    assert view.beat is None
    assert view.connected
    assert mute.asked_disk <= 35
    assert mute.wakes <= 30 * 12
    assert mute.node.peer(first.peer_id, world.now).card is not None
    mute.disk_works = True
    world.run_until(world.all_know_all, 33.0)


@pytest.mark.parametrize("block_left", range(22, 28))
def test_disk_that_fills_up_later_loses_no_node(block_left: int) -> None:
    """The last number is used when a beat and the edges are due at once; what is left waits until the disk works again."""
    world = mesh(3, 1)
    world.run(5.5)
    node = world.members[1]
    node.disk_works = False
    node.node._sequencer._last = node.reserved - block_left
    before = node.reserved
    world.run(world.now + 60.0)
    assert node.reserved == before
    assert world.standing(world.members[0], node) is Standing.ALIVE  # its probes are answered
    node.disk_works = True
    world.run(world.now + 2.0)
    for other in (world.members[0], world.members[2]):
        assert max(at for at, peer_id, _ in other.accepted if peer_id == node.peer_id) > world.now - 2.0


def test_peers_without_a_connection_live_by_their_beats() -> None:
    """More nodes than connections: everyone is known to everyone, nobody polls, and the dead fall silent."""
    world = World(3)
    few = NodeConfig(membership=MembershipConfig(connections_max=4))
    for index in range(14):
        place = (world.luck.uniform(0.0, 0.04), world.luck.uniform(0.0, 0.04))
        world.add(place, bootstrap=[world.members[0].address] if index else [], config=few)
    world.run(20.0)
    assert all(len(member.routable) == 13 for member in world.members)
    assert min(len(member.connections) for member in world.members) < 13
    before = sum(member.wakes for member in world.members)
    victim = world.members[5]
    world.kill(victim)
    world.run(26.0)
    assert all(victim.peer_id not in member.routable for member in world.running())
    assert (sum(member.wakes for member in world.members) - before) / 6.0 / 14 <= 40.0
