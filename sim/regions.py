"""Who holds whose card in a formed mesh of which no node holds all, and who is connected to whom there.

Every node is given the scope it would have found, the nearest cards by the places on them, and a few from beyond. Places are
looked at row by row: nothing is kept that grows with the square of the mesh.

Source: docs/spec/04-gossip.md, section "Scopes".
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.encoding import Luck
from protocol.node import NodeConfig
from protocol.scope import Scope, place_of
from sim.world import World

SAMPLED_MAX = 16
"""Cards from beyond for each that is kept there, a count: half of so many are nearer than the scope's edge, and are left out."""


@dataclass(frozen=True, slots=True)
class Region:
    """What one node holds.

    Attributes:
        scope: what it has found.
        nearest: the nodes that the scope covers, by their numbers, nearest first; the node itself is none of them.
        beyond: some others.
    """

    scope: Scope
    nearest: NDArray[np.int32]
    beyond: tuple[int, ...]


def regions_of(world: World, config: NodeConfig) -> list[Region]:
    """The regions of all nodes, in the order of their numbers; they must be more than a horizon."""
    places = np.array([place_of(process.node.vivaldi.coordinate) for process in world.processes])
    horizon, luck = config.gossip.horizon, world.streams.of("regions")
    assert len(places) > horizon.peers + 1, "a mesh that no node holds all of"
    found: list[Region] = []
    for index, place in enumerate(places):
        reach = np.sqrt(np.square(places[:, :-1] - place[:-1]).sum(axis=1)) + places[:, -1]
        reach[index] = np.inf
        edge = np.partition(reach, (horizon.peers - 1, horizon.peers))[horizon.peers - 1 : horizon.peers + 1]
        radius_s = float(edge.mean())
        inside = np.flatnonzero(reach <= radius_s)
        nearest = inside[np.argsort(reach[inside], kind="stable")].astype(np.int32)
        scope = Scope(tuple(float(part) for part in place[:-1]), radius_s)
        found.append(Region(scope, nearest, _some_beyond(index, reach > radius_s, horizon.sample_max, luck)))
    return found


def links_in(world: World, regions: list[Region], config: NodeConfig) -> list[tuple[int, int]]:
    """Pairs of nodes that are connected: each with a few anywhere in its region, with its nearest, and with some beyond."""
    membership, luck = config.membership, world.streams.of("links in regions")
    order = list(range(len(regions)))
    luck.shuffle(order)
    linked: dict[tuple[int, int], None] = {}  # in the order in which they are to be opened

    def link(one: int, others: list[int]) -> None:
        for other in others:
            if (other, one) not in linked:
                linked[one, other] = None

    for one in order:
        nearest = regions[one].nearest.tolist()
        link(one, luck.sample(nearest, min(len(nearest), membership.far_max)))
    for one in order:
        link(one, regions[one].nearest[: membership.near_max].tolist())
    for one in order:
        link(one, list(regions[one].beyond[: membership.beyond_max]))
    return list(linked)


def _some_beyond(index: int, is_beyond: NDArray[np.bool_], count: int, luck: Luck) -> tuple[int, ...]:
    drawn = [luck.randrange(len(is_beyond)) for _ in range(SAMPLED_MAX * count)]
    return tuple(number for number in dict.fromkeys(drawn) if is_beyond[number] and number != index)[:count]
