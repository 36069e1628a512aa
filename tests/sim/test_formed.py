"""A formed mesh is what a mesh is after a while: cards, links and places are there, and nothing is repeated differently."""

from itertools import pairwise
from statistics import median

import numpy as np

from protocol.coordinates import estimate_rtt
from protocol.membership import MembershipConfig
from protocol.node import NodeConfig
from sim.checks import Safety, unhealed
from sim.formed import Formation, choose_links, formed
from sim.network import Matrix
from sim.world import World


def test_everybody_holds_everybodys_card_and_is_linked() -> None:
    world = formed(Formation(12, 3, start_within_s=4.0), prepare=Safety)
    assert {len(process.node.table.cards()) for process in world.processes} == {12}
    assert {len(process.node.membership.connected()) for process in world.processes} == {11}
    world.run(world.now + 3.0)
    assert unhealed(world) is None


def test_places_are_good_from_the_start() -> None:
    world = formed(Formation(16, 1, start_within_s=1.0))
    errors = []
    for one in world.processes:
        for other in world.processes[: one.index]:
            rtt_s = 2.0 * world.network.delays.one_way_s(one.index, other.index)
            estimate_s = estimate_rtt(one.node.vivaldi.coordinate, other.node.vivaldi.coordinate)
            errors.append(abs(estimate_s - rtt_s) / rtt_s)
    assert median(errors) < 0.2


def test_links_are_near_and_a_few_far() -> None:
    config = NodeConfig(membership=MembershipConfig(small_mesh=8, near_max=4, far_max=2))
    world = formed(Formation(24, 1, delays="line", start_within_s=1.0, config=config))
    pairs = choose_links(world, Formation(24, 1, delays="line", config=config))
    assert len(pairs) == len(set(pairs)) < 24 * (4 + 2)
    apart = sorted(abs(one - other) for one, other in pairs)
    assert apart[len(apart) // 3] <= 4
    assert apart[-1] > 10
    opened = {frozenset((process.peer_id, peer)) for process in world.processes for peer in process.connections}
    assert len(opened) < 24 * 23 / 2


SPARSE = NodeConfig(
    ranking_min_s=600.0, ranking_max_s=600.0, membership=MembershipConfig(small_mesh=4, near_max=6, far_max=2)
)  # nobody looks for the nearest by itself in these tests
LINE = Formation(24, 1, "line", start_within_s=1.0, config=SPARSE)
PLACES = [*range(24), 12.4]
"""Where processes are on the line, the newcomer included."""


def listeners_of(world: World, index: int) -> set[int]:
    """Who has said to a process that it keeps the connection and wants to hear its load."""
    return {world.by_id[peer_id].index for peer_id in world.processes[index].node.membership.listeners()}


def test_everybody_hears_the_load_of_its_nearest_from_the_start() -> None:
    world = formed(LINE)
    world.run(world.now + 1.0)
    pairs = [(one, other) for one in range(24) for other in (one - 2, one - 1, one + 1, one + 2) if 0 <= other < 24]
    deaf = [(one, other) for one, other in pairs if one not in listeners_of(world, other)]
    assert len(deaf) <= len(pairs) // 20


def test_a_newcomer_is_kept_by_the_near_at_once_and_not_when_they_next_look_for_who_is_near() -> None:
    world = formed(LINE)
    near = world.processes[12]
    newcomer = world.add(at=world.now + 0.5, bootstrap=[near.address], config=SPARSE)
    world.network.delays = Matrix(np.array([[abs(one - other) * 2.0 for other in PLACES] for one in PLACES]))
    world.run(world.now + 6.0)
    assert near.index in listeners_of(world, newcomer.index)


def test_one_seed_has_one_digest() -> None:
    digests = {formed(Formation(6, seed, start_within_s=1.0)).journal.digest() for seed in (1, 1, 2)}
    assert len(digests) == 2


def test_a_process_that_is_killed_comes_back_by_its_own_addresses() -> None:
    world = formed(Formation(6, 1, start_within_s=1.0))
    victim = world.processes[2]
    world.kill(victim)
    world.run(world.now + 5.0)
    world.start(victim)
    assert world.run_until(lambda: len(victim.node.membership.connected()) == 5, world.now + 60.0)


def test_a_bar_moves_all_the_while_a_mesh_forms() -> None:
    shares = [0.0]
    formed(Formation(20, 1, start_within_s=1.0), progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert max(later - share for share, later in pairwise(shares)) < 0.11
