"""Edges in a mesh: told by all, announced and fetched, counted where both ends agree, and never shortened by a liar."""

from dataclasses import replace

import pytest

from protocol import gossip
from protocol.edges import EdgeDisputed
from protocol.node import NodeConfig
from protocol.records import Edges, Measured, RecordKind, decode_measured, edge_tag, encode_measured
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
    world = formed(Formation(30, seed=2))
    came: dict[tuple[int, bytes], int] = {}
    for process in world.processes:
        take = process.node.gossip._take

        def counted(peer_id, record, asked, sought, now, wall_s, take=take, index=process.index):
            if record.kind is RecordKind.EDGES:
                assert asked
                came[index, record.envelope] = came.get((index, record.envelope), 0) + 1
            take(peer_id, record, asked, sought, now, wall_s)

        process.node.gossip._take = counted
    world.run(world.now + 650.0)
    assert len(came) >= 29 * 30
    assert sum(came.values()) <= 1.05 * len(came)
    counts = [len(process.node.telling.store.pairs(world.now)) for process in world.processes]
    assert min(counts) >= 0.9 * 30 * 29 / 2


@pytest.mark.parametrize("claimed_s", [1e-5, 10.0])
def test_a_liar_shortens_no_edge_and_is_seen_to_disagree(claimed_s: float) -> None:
    world = mesh(seconds=50.0)
    liar = world.processes[-1]
    told: list[EdgeDisputed] = []
    world.watchers.append(lambda _process, output: told.append(output) if isinstance(output, EdgeDisputed) else None)
    honest = [process.peer_id for process in world.processes[:-1]]
    measured = encode_measured(Measured(edge_tag(liar.peer_id, peer), claimed_s) for peer in honest)
    compose = liar.node.telling._composed
    liar.node.telling._composed = lambda now: (edges := compose(now)) and replace(edges, measured=measured)
    world.run(130.0)
    assert told
    for process in world.processes[:-1]:
        store = process.node.telling.store
        assert [pair for pair in store.pairs(world.now) if liar.peer_id in pair[:2]] == []
        assert store.standing(liar.peer_id)[1] == 5
        assert all(store.standing(peer) == (4, 1) for peer in honest)


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
