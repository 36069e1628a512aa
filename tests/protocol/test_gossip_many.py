"""Many gossip machines on virtual time: news spreads, tables converge, the mesh of links stays whole."""

from itertools import combinations

import pytest
from gossip_nodes import CONFIG, NO_MESH, Node, World, crowd, joined_world, ring_with_chords, sealed
from record_strategies import BEAT, CARD, EDGES, VERDICT, WALL_S

from protocol.gossip import BeatHeard, GossipConfig, Grafted, Pruned
from protocol.records import RecordKind
from protocol.table import TableConfig

# The mesh


def check_the_mesh(world, nodes):
    """Both ends of a link hold it, nobody has too few or too many, and all are joined."""
    for node in nodes:
        links = node.gossip.mesh()
        assert CONFIG.degree_min <= len(links) <= CONFIG.degree_max
        assert all(world.nodes[peer_id].gossip.in_mesh(node.peer_id) for peer_id in links)
    reached, todo = {nodes[0].peer_id}, [nodes[0]]
    while todo:
        new = set(todo.pop().gossip.mesh()) - reached
        reached |= new
        todo += [world.nodes[peer_id] for peer_id in sorted(new)]
    assert len(reached) == len(nodes)


def changes_since(world, since):
    return [fact for at, _, fact in world.facts if at >= since and isinstance(fact, Grafted | Pruned)]


@pytest.mark.parametrize("seed", range(5))
def test_the_mesh_comes_to_rest(seed):
    world, nodes = joined_world(seed=seed)
    world.run(until=30.0)  # of 40 seeds one is at rest at 20 s only, the others sooner
    check_the_mesh(world, nodes)
    world.run(until=80.0)
    assert changes_since(world, 30.0) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("connections", [8, 30])
def test_whoever_joins_where_all_have_enough_links_gets_some(seed, connections):
    nodes = [Node(index, seed) for index in range(30)]
    world = World(nodes, seed)
    for index in range(1, 30):
        for other in world.luck.sample(range(index), min(index, connections)):
            world.connect(nodes[index], nodes[other])
        world.run(until=float(index))
    world.run(until=40.0)
    check_the_mesh(world, nodes)
    world.run(until=80.0)
    assert changes_since(world, 40.0) == []


def test_the_mesh_closes_over_those_who_are_gone():
    world, nodes = joined_world()
    world.run(until=20.0)
    gone, left = nodes[::4], [node for index, node in enumerate(nodes) if index % 4]
    for node in gone:
        for other in nodes:
            if frozenset((node.peer_id, other.peer_id)) in world.links:
                world.disconnect(node, other)
    world.run(until=21.5)  # a heartbeat
    world.run(until=40.0)
    assert all(node.gossip.mesh() == () for node in gone)
    assert all(set(node.gossip.mesh()).isdisjoint(other.peer_id for other in gone) for node in left)
    world.publish(left[0], CARD)
    world.run(until=41.0)
    assert all(node.table.compared == 1 for node in left)


# News


@pytest.mark.parametrize("payload", [CARD, VERDICT])
@pytest.mark.parametrize("seed", range(5))
def test_news_spreads_to_all_within_half_a_second(payload, seed):
    world, nodes = joined_world(seed=seed)
    world.run(until=10.0)
    world.publish(nodes[0], payload)
    world.run(until=10.5)
    assert world.know_all(1)
    assert world.accused() == []


def test_a_renewed_card_reaches_all_within_seconds_by_announcements():
    world, nodes = joined_world(round_s=1000.0)  # not by comparison
    world.run(until=10.0)
    world.publish(nodes[0], CARD)
    world.run(until=15.0)
    world.publish(nodes[0], CARD)
    world.run(until=15.2)
    assert sum(node.table.get(nodes[0].peer_id, RecordKind.CARD).sequence == 2 for node in nodes) < 20
    world.run(until=22.0)
    assert all(node.table.get(nodes[0].peer_id, RecordKind.CARD).sequence == 2 for node in nodes)
    assert world.accused() == []


def test_edges_reach_those_at_the_other_ends_of_the_links_alone():
    world, nodes = joined_world()
    world.run(until=10.0)
    world.publish(nodes[0], EDGES)
    world.run(until=60.0)
    hearers = {node.peer_id for node in nodes if node.table.get(nodes[0].peer_id, RecordKind.EDGES) is not None}
    assert hearers == {nodes[0].peer_id, *nodes[0].gossip.mesh()}


def test_a_beat_reaches_those_it_is_told_alone():
    world, nodes = joined_world()
    world.run(until=10.0)
    hearers = [nodes[1].peer_id, nodes[3].peer_id]
    nodes[0].gossip.tell_beat(BEAT, hearers)
    world.drain(nodes[0])
    world.run(until=20.0)
    heard = [(peer_id, fact) for _, peer_id, fact in world.facts if isinstance(fact, BeatHeard)]
    assert sorted(heard, key=lambda item: hearers.index(item[0])) == [
        (peer_id, BeatHeard(nodes[0].peer_id, BEAT)) for peer_id in hearers
    ]


# Convergence


def test_all_records_of_all_converge():
    world, nodes = joined_world()
    for node in nodes:
        for payload in (CARD, VERDICT):
            world.publish(node, payload)
    world.run(until=8.0)
    assert world.know_all(40)
    assert world.accused() == []


def test_a_node_that_missed_everything_converges_by_comparison_alone():
    world, nodes = joined_world(19, **NO_MESH)
    for node in nodes:
        world.publish(node, CARD)
        world.publish(node, VERDICT)
    world.run(until=40.0)
    late = Node(19, config=GossipConfig(**NO_MESH))
    world.nodes[late.peer_id] = late
    late.publish(CARD, world.now)
    world.connect(late, nodes[4])
    world.run(until=41.0)
    assert late.table.compared == 39
    world.run(until=80.0)
    assert world.know_all(39)
    assert world.accused() == []


@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_all_messages_lost_delays_and_no_more(seed):
    world, nodes = joined_world(loss=0.2, seed=seed)
    for node in nodes:
        world.publish(node, CARD)
    world.run(until=30.0)
    assert world.know_all(20)
    assert world.accused() == []


def test_two_halves_that_were_apart_become_one():
    world, nodes = joined_world()
    for one, other in combinations(range(20), 2):
        if (one < 10) != (other < 10) and frozenset((nodes[one].peer_id, nodes[other].peer_id)) in world.links:
            world.disconnect(nodes[one], nodes[other])
    for node in nodes:
        world.publish(node, CARD)
    world.run(until=20.0)
    assert all(node.table.compared == 10 for node in nodes)
    world.connect(nodes[0], nodes[19])
    world.run(until=25.0)
    assert world.know_all(20)


def test_five_nodes_know_one_another_at_once():
    nodes = [Node(index) for index in range(5)]
    world = World(nodes)
    for node in nodes:
        world.publish(node, CARD)
    for node in nodes[1:]:
        world.connect(node, nodes[0])  # all they know is the bootstrap node
    world.run(until=1.0)
    assert world.know_all(5)


def test_clocks_apart_within_the_skew_disturb_nothing():
    nodes = [Node(index, clock_off_s=(index - 2) * 12.0) for index in range(5)]
    world = World(nodes)
    ring_with_chords(world, nodes)
    for node in nodes:
        world.publish(node, CARD)
        world.publish(node, VERDICT)
    world.run(until=10.0)
    assert world.know_all(10)
    assert world.accused() == []


def test_a_table_of_a_thousand_peers_is_fetched_by_hashes_and_pages():
    table_config = TableConfig(peers_max=2000)
    full, empty = Node(0, table_config=table_config), Node(1, table_config=table_config)
    for identity in crowd(700):
        full.table.offer(sealed(identity, VERDICT), 0.0, WALL_S)
        full.table.offer(sealed(identity, CARD, sequence=2), 0.0, WALL_S)
    world = World([full, empty])
    world.connect(full, empty)
    world.run(until=8.0)
    assert empty.table.compared == 1400
    assert world.accused() == []
    sent = world.sent
    world.run(until=20.0)
    assert world.sent - sent < 16  # equal tables exchange one hash and nothing else


def test_the_same_seed_gives_the_same_run():
    def facts_of_a_run(seed):
        world, nodes = joined_world(10, loss=0.1, seed=seed)
        for node in nodes:
            world.publish(node, CARD)
        world.run(until=6.0)
        return world.facts, world.sent

    assert facts_of_a_run(3) == facts_of_a_run(3)
    assert facts_of_a_run(3) != facts_of_a_run(4)
