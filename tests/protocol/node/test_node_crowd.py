"""A whole core through which many join: whom it lets in, and that nobody is connected whom gossip and probes do not know."""

from dataclasses import replace

from world import World, request

from protocol import gossip
from protocol.errors import ErrorCode
from protocol.identity import Identity
from protocol.membership import Connect, Disconnect, MembershipConfig
from protocol.node import NodeConfig
from protocol.probe import Liveness

CONFIG = NodeConfig(
    membership=MembershipConfig(small_mesh=2, near_max=2, far_max=1, connections_max=3, crowded_max=4, open_max=6, visit_s=1.0)
)
PEERS = [Identity.from_seed(bytes([100 + number]) * 32).peer_id for number in range(30)]


def test_nobody_is_connected_to_a_full_core_who_hears_no_news() -> None:
    world = World(1)
    member = world.add((0.0, 0.0), config=CONFIG)
    world.run(0.05)
    node = member.node
    for number, peer_id in enumerate(PEERS):
        node.handle_connected(peer_id, 0.1 + 0.001 * number)
    outputs = []
    while (output := node.next_output()) is not None:
        outputs.append(output)
    inside, outside = PEERS[: CONFIG.membership.open_max], PEERS[CONFIG.membership.open_max :]
    assert node.membership.connected() == sorted(inside)
    assert [output for output in outputs if isinstance(output, Disconnect)] == [
        Disconnect(peer_id, ErrorCode.SURPLUS) for peer_id in outside
    ]
    assert not {output.peer_id for output in outputs if isinstance(output, gossip.Send)} & set(outside)
    assert {peer_id for peer_id in PEERS if node.probe.liveness(peer_id) is Liveness.ALIVE} == set(inside)


def test_visitor_whose_request_is_under_way_stays() -> None:
    world = World(1)
    member = world.add((0.0, 0.0), config=CONFIG)
    world.run(0.05)
    node, working = member.node, PEERS[5]
    for number, peer_id in enumerate(PEERS[:6]):
        node.handle_connected(peer_id, 0.1 + 0.001 * number)
    asked = request()
    assert node.submit(asked, node.rank(asked, 0.2, working), working, 0.2) is None
    told: list[object] = []
    for number, stranger in enumerate(PEERS[6:20]):
        node.handle_connected(stranger, 10.0 + number)
        while (output := node.next_output()) is not None:
            if isinstance(output, Disconnect):
                told.append(output.peer_id)
                node.handle_disconnected(output.peer_id, output.code, 10.0 + number)
    assert len(told) > 8
    assert working not in told
    assert node.membership.is_connected(working)


def test_mesh_that_is_larger_than_its_only_door_forms() -> None:
    config = replace(CONFIG, membership=replace(CONFIG.membership, crowded_max=10, open_max=14))
    world = World(3)
    door = world.add((0.0, 0.0), config=config)
    for number in range(24):
        place = (world.luck.uniform(0.0, 0.04), world.luck.uniform(0.0, 0.04))
        world.add(place, bootstrap=[door.address], config=config, at=0.02 * number)
    world.run(1.0)
    world.run_until(lambda: all(len(member.routable) == 24 for member in world.members), 10.0)
    assert all(len(member.node.membership.connected()) <= config.membership.open_max for member in world.members)
    assert all(not member.faults for member in world.members)


def test_node_that_all_have_turned_away_looks_for_others_soon() -> None:
    world = World(1)
    door = world.add((0.0, 0.0), config=CONFIG)
    for number in range(20):
        world.add((0.001 * number, 0.0), bootstrap=[door.address], config=CONFIG)
    world.run(200.0)  # by now a minute passes between two looks for the nearest
    looked = 0
    for member in world.members:
        core, until = member.node, world.now + 1.5 * CONFIG.ranking_min_s + CONFIG.membership.dial_polite_s
        left = core.membership.connected()
        for peer in left:
            core.handle_disconnected(peer, ErrorCode.SURPLUS, world.now)
        if not any(core.membership._may_be_chosen(peer, world.now) for peer in core.table.known() if peer != core.peer_id):
            continue  # everybody has been here lately, or is about to be dialled
        looked += 1
        dialled: list[object] = []
        while not dialled:
            assert core.next_timer() <= until
            core.handle_timer(core.next_timer())
            while (output := core.next_output()) is not None:
                dialled += [output.target] if isinstance(output, Connect) else []
        assert dialled[0] not in left or dialled[0] == door.node.peer_id  # the door is asked again, for it has told too little
    assert looked > 10
