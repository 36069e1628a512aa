"""Edges in a mesh: told by all, announced and fetched, counted where both ends agree, and never shortened by a liar."""

from dataclasses import replace

import pytest

from protocol import gossip
from protocol.announcer import AnnouncerConfig
from protocol.edges import EdgeDisputed
from protocol.node import NodeConfig
from protocol.node.ring import RingConfig
from protocol.records import Edge, Edges, Measured, RecordKind, decode_measured, edge_tag, encode_measured
from sim.formed import Formation, formed
from sim.world import World


def mesh(nodes: int = 6, seconds: float = 120.0, seed: int = 1) -> World:
    world = World(seed)
    for index in range(nodes):
        world.add(bootstrap=[world.processes[0].address] if index else [])
    world.run(seconds)
    return world


def test_everybody_learns_all_edges_and_they_are_as_long_as_the_paths() -> None:
    world = mesh()
    delays = world.network.delays
    by_id = {process.peer_id: process.index for process in world.processes}
    for process in world.processes:
        pairs = process.node.telling.store.pairs(world.now)
        assert len(pairs) == 15
        for one, other, rtt_s in pairs:
            ends = by_id[one], by_id[other]
            true_s = delays.one_way_s(*ends) + delays.one_way_s(*reversed(ends))
            assert true_s <= rtt_s * 1.001 <= 1.5 * true_s + 0.005
        assert process.node.telling.store.disputed() == {}


def test_edges_are_first_told_after_twenty_seconds_and_are_small() -> None:
    world, sealed = World(1), list[tuple[float, int]]()
    world.seal_watchers.append(
        lambda _process, record: sealed.append((world.now, len(record.envelope))) if record.kind is RecordKind.EDGES else None
    )
    for index in range(4):
        world.add(bootstrap=[world.processes[0].address] if index else [])
    world.run(110.0)
    config = NodeConfig().announcer
    assert len(sealed) == 8
    assert all(0.8 * config.edges_first_s <= at <= 1.2 * config.edges_first_s + 1.0 for at, _ in sealed[:4])
    assert all(size < 200 for _, size in sealed)


def test_edges_are_announced_and_go_once_to_each() -> None:
    """Nobody is sent edges that it did not ask for, but for the first comparison of a connection."""
    often = AnnouncerConfig(edges_interval_s=100.0)
    world = formed(Formation(16, seed=2, config=replace(NodeConfig(), announcer=often)))
    came: dict[tuple[int, bytes], int] = {}
    for process in world.processes:
        take = process.node.gossip._take

        def counted(peer_id, record, asked, sought, now, wall_s, take=take, index=process.index):
            if record.kind is RecordKind.EDGES:
                assert asked or sought
                came[index, record.envelope] = came.get((index, record.envelope), 0) + 1
            take(peer_id, record, asked, sought, now, wall_s)

        process.node.gossip._take = counted
    world.run(world.now + 170.0)
    assert len(came) >= 15 * 16
    assert sum(came.values()) <= 1.05 * len(came)
    counts = [len(process.node.telling.store.pairs(world.now)) for process in world.processes]
    assert min(counts) >= 0.9 * 16 * 15 / 2


@pytest.mark.parametrize("claimed_s", [1e-5, 10.0])
def test_a_liar_shortens_no_edge_and_is_seen_to_disagree(claimed_s: float) -> None:
    world = mesh(seconds=50.0)
    liar = world.processes[-1]
    delays, told = world.network.delays, list[EdgeDisputed]()
    world.watchers.append(lambda _process, output: told.append(output) if isinstance(output, EdgeDisputed) else None)
    honest = [process.peer_id for process in world.processes[:-1]]
    measured = encode_measured(Measured(edge_tag(liar.peer_id, peer), claimed_s) for peer in honest)
    turn = liar.node.telling.turn
    liar.node.telling.turn = lambda now: (edges := turn(now)) and replace(edges, measured=measured)
    world.run(130.0)
    assert told
    for process in world.processes[:-1]:
        store = process.node.telling.store
        agreed, disputed = store.standing(liar.peer_id)
        assert agreed + disputed == 5
        assert disputed >= 3
        for one, other, rtt_s in store.pairs(world.now):
            ends = world.by_id[one].index, world.by_id[other].index
            assert rtt_s >= 0.999 * (delays.one_way_s(*ends) + delays.one_way_s(*reversed(ends)))


def test_edges_that_come_too_often_are_not_announced_on() -> None:
    world = mesh(nodes=3, seconds=50.0)
    teller, other = world.processes[1], world.processes[2]
    announced = [0]
    add = other.node.gossip._spreading.renewals.add

    def counted(renewal, now):
        announced[0] += renewal.record.kind is RecordKind.EDGES and renewal.record.peer_id == teller.peer_id
        add(renewal, now)

    other.node.gossip._spreading.renewals.add = counted
    for turn in range(60):
        tag = edge_tag(teller.peer_id, other.peer_id)
        teller.node.signing.spread(Edges((), encode_measured([Measured(tag, 0.001 * (turn + 1))])), 1800.0, world.now)
        world.settle(teller)
        world.run(world.now + 1.0)
    held = other.node.table.get(teller.peer_id, RecordKind.EDGES)
    assert held is not None
    assert decode_measured(held.payload.measured)[0].rtt_s > 0.05
    assert announced[0] <= 4


def test_edges_of_the_earlier_form_go_one_hop_as_before() -> None:
    world = mesh(nodes=4, seconds=30.0)
    sent = []
    teller = world.processes[1]
    world.watchers.append(
        lambda process, output: (
            sent.append(output)
            if isinstance(output, gossip.RecordAccepted) and output.record.peer_id == teller.peer_id and process is not teller
            else None
        )
    )
    teller.node.signing.spread(Edges(()), 1800.0, world.now)
    world.settle(teller)
    world.run(world.now + 5.0)
    assert {output.from_peer for output in sent} == {teller.peer_id}


def test_edges_of_both_forms_mix() -> None:
    """A node of version 0.1.0 tells its edges by id; where the other end tells them in the compact form they count."""
    world = mesh(nodes=4, seconds=110.0)
    old, other = world.processes[1], world.processes[2]
    turn = old.node.telling.turn
    old.node.telling.turn = lambda now: turn(now) and None
    reader = world.processes[0].node.telling
    agreed = dict(reader.store.edges_of(old.peer_id, world.now))
    old.node.signing.spread(Edges((Edge(other.peer_id, agreed[other.peer_id] * 1.1, 0.0, 8),)), 1800.0, world.now)
    world.settle(old)
    world.run(world.now + 5.0)
    ((peer, rtt_s),) = reader.store.edges_of(old.peer_id, world.now)
    assert peer == other.peer_id
    assert rtt_s == pytest.approx(agreed[other.peer_id] * 1.1, rel=0.01)
    chart = world.processes[0].node.survey.distances.chart
    ends, _ = chart.edges_of(chart.row(old.peer_id))
    assert [chart.peer(end) for end in ends.tolist()] == [other.peer_id]


def test_a_joiner_has_a_place_everywhere_and_the_whole_chart_within_two_minutes() -> None:
    """Of what was told before it came it asks for, and who has met it tells of it sooner than in ten minutes."""
    world = mesh(nodes=12, seconds=150.0)
    told = [0]
    world.seal_watchers.append(lambda _process, record: told.__setitem__(0, told[0] + (record.kind is RecordKind.EDGES)))
    joiner = world.add(bootstrap=[world.processes[0].address])
    world.run(world.now + 120.0)
    for process in world.processes[:-1]:
        assert len(process.node.telling.store.edges_of(joiner.peer_id, world.now)) >= 6
        assert process.node.survey.distances.chart.row(joiner.peer_id) is not None
    chart = joiner.node.survey.distances.chart
    assert all(chart.placed[chart.row(process.peer_id)] for process in world.processes)
    assert len(joiner.node.telling.store) == 13
    assert told[0] <= 2 + 12  # the joiner twice, each of the others once at most


def test_in_a_large_mesh_a_node_holds_the_edges_of_its_nearest_and_of_a_sample() -> None:
    config = replace(NodeConfig(), ring=RingConfig(peers_max=10, sample_max=3), announcer=AnnouncerConfig(edges_interval_s=100.0))
    world = formed(Formation(24, seed=3, config=config))
    world.run(world.now + 200.0)
    for process in world.processes:
        telling, known = process.node.telling, process.node.table.known()
        held = {peer for peer in telling.store.peers() if peer != process.peer_id}
        assert len(telling.ring.members) == 10
        assert held <= set(telling.ring.members)
        assert len(held) >= 9
        records = [peer for peer in known if peer != process.peer_id and process.node.table.get(peer, RecordKind.EDGES)]
        assert len(records) <= 18  # those of the ring, and of who was in it or came before the first look
        placed = process.node.survey.distances.chart.placed
        assert sum(placed) >= 8
