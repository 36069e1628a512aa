"""A mesh that forms through one door which cannot hold it: everybody gets in, and the bounds hold."""

import pytest

from protocol import membership
from protocol.errors import ErrorCode
from protocol.membership import MembershipConfig
from protocol.node import NodeConfig
from protocol.records import ModelOffer
from sim.checks import Safety, healed, unhealed
from sim.network import delays_named
from sim.process import Process
from sim.world import World

CONFIG = NodeConfig(
    membership=MembershipConfig(
        small_mesh=4, near_max=5, far_max=2, connections_max=10, crowded_max=12, open_max=16, surplus_after_s=5.0
    )
)
NODES = 60


def crowd(seed: int, nodes: int = NODES) -> World:
    """Nodes that all start within a second and know one door, in a world that is watched."""
    world = World(seed)
    world.network.delays = delays_named("continents", nodes, world.streams)
    Safety(world)
    starts = world.streams.of("starts")
    door = world.add(config=CONFIG)
    for _ in range(nodes - 1):
        world.add(bootstrap=[door.address], at=starts.uniform(0.0, 1.0), config=CONFIG)
    return world


@pytest.mark.parametrize("seed", [1, 2])
def test_crowd_comes_in_through_one_door_that_has_room_for_a_quarter_of_it(seed: int) -> None:
    world = crowd(seed)
    turned_away: list[tuple[Process, object]] = []

    def watch(process: Process, output: object) -> None:
        assert len(process.node.membership.connected()) <= CONFIG.membership.open_max
        if isinstance(output, membership.Disconnect) and output.code is ErrorCode.SURPLUS:
            turned_away.append((process, output.peer_id))

    world.watchers.append(watch)
    world.run(2.0)
    assert world.run_until(healed(world), 20.0, 0.5), unhealed(world)
    door = world.processes[0]
    assert len({peer_id for process, peer_id in turned_away if process is door}) > CONFIG.membership.open_max


def test_door_that_a_crowd_holds_on_purpose_keeps_its_own_and_lets_others_in() -> None:
    """Peers that keep the door and go to nobody else: who joins after them is let in, and the door is not cut off."""
    world = crowd(3, 24)
    door = world.processes[0]
    world.run(2.0)
    assert world.run_until(healed(world), 30.0, 0.5), unhealed(world)
    chosen = [peer_id for peer_id in door.node.membership.connected() if door.node.membership.is_far(peer_id)]
    crowding = [world.add(bootstrap=[door.address], at=world.now + 0.01 * number, config=CONFIG) for number in range(20)]
    for process in crowding:
        process.hostile = True

    def keep_holding() -> None:
        for process in crowding:
            if process.running and door.peer_id not in process.connections:
                world.connect(process, door)
        world.at(world.now + 0.5, keep_holding)

    world.at(world.now + 1.0, keep_holding)
    honest = world.processes[12]
    world.at(world.now + 15.0, lambda: honest.node.handle_offers((*honest.offers, ModelOffer("new", frozenset())), world.now))
    late = world.add(bootstrap=[door.address], at=world.now + 5.0, config=CONFIG)
    world.run(world.now + 30.0)
    connected = door.node.membership.connected()
    assert len(connected) <= CONFIG.membership.open_max
    assert set(chosen) <= set(connected)
    assert len(late.node.table.known()) > 24
    for process in (door, late):
        told = process.node.table.serving(honest.peer_id)
        assert told is not None
        assert "new" in {offer.model for offer in told[0].models}
