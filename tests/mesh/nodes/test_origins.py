"""Many peers at one address: counted by gossip's scores in an open network, and no offence in a private one."""

from dataclasses import replace

from mesh_nodes import MeshNode, PlannedEngine, Start, introduced

from mesh.service import Service

HOUSEHOLD = 3


def _counted_everywhere(node: MeshNode) -> None:
    """Have a node take the addresses of this machine for those of strangers."""
    transport = node.service.transport
    transport.config = replace(transport.config, endpoint=replace(transport.config.endpoint, own_networks=()))


def _in_a_small_household(service: Service) -> None:
    """Have a node count so few peers of one address for nothing that the rest are soon started."""
    scores = service.node.gossip.scores
    scores._config = replace(scores._config, origin_free=HOUSEHOLD)


async def test_the_score_knows_which_peers_share_an_address_and_takes_more_than_a_household_out_of_the_mesh(start: Start) -> None:
    door = await start(PlannedEngine(), tune=_in_a_small_household)
    _counted_everywhere(door)
    crowd = [await start(join=(door,)) for _ in range(HOUSEHOLD + 3)]
    for node in crowd:
        await introduced(door, node)
    scores, now = door.service.node.gossip.scores, door.service.transport.now()
    assert {scores.origin_of(node.peer_id) for node in crowd} == {b"\x7f\0\0\1"}
    assert not any(scores.is_good(node.peer_id, now) for node in crowd)


async def test_the_owners_own_networks_and_private_networks_are_not_counted(start: Start) -> None:
    door = await start(PlannedEngine())
    one = await start(join=(door,))
    await introduced(door, one)
    assert door.service.node.gossip.scores.origin_of(one.peer_id) is None

    _counted_everywhere(one)
    one.service.driver.counts_origins = False
    another = await start(join=(one,))
    await introduced(one, another)
    assert one.service.node.gossip.scores.origin_of(another.peer_id) is None
