"""A mesh whose true round trips are known: points in a plane with heights, and noise of each pair where it is wanted."""

import random
from dataclasses import dataclass

import numpy as np

from protocol.distances import Chart, DistanceConfig, Distances
from protocol.identity import Identity, PeerId


def peers_of(count: int) -> list[PeerId]:
    return sorted(Identity.from_seed(number.to_bytes(4, "big") * 8).peer_id for number in range(count))


@dataclass
class Planted:
    """Peers, and the seconds between them as a matrix."""

    peers: list[PeerId]
    rtts: np.ndarray

    def edges(self, row: int, ends: list[int]) -> list[tuple[PeerId, float]]:
        return [(self.peers[end], float(self.rtts[row, end])) for end in ends]


def planted(count: int, seed: int = 1, noise: float = 0.0) -> Planted:
    """Sites within 100 ms, heights up to 5 ms, and a factor of each pair."""
    luck = np.random.default_rng(seed)
    points, heights = luck.uniform(0.0, 0.1, (count, 2)), luck.uniform(0.0002, 0.005, count)
    rtts = np.linalg.norm(points[:, None] - points[None], axis=2) + heights[:, None] + heights[None]
    factors = np.triu(np.exp(luck.normal(0.0, noise, (count, count))), 1)
    rtts = rtts * (factors + factors.T + np.eye(count))
    return Planted(peers_of(count), rtts)


def some_ends(mesh: Planted, row: int, count: int, luck: random.Random) -> list[int]:
    return luck.sample([end for end in range(len(mesh.peers)) if end != row], count)


def charted(mesh: Planted, degree: int, seed: int = 1, config: DistanceConfig | None = None) -> Chart:
    """A chart that knows `degree` edges and more of every peer."""
    luck = random.Random(seed)
    chart = Chart(config or DistanceConfig(), luck)
    for row, peer in enumerate(mesh.peers):
        chart.set_edges(peer, mesh.edges(row, some_ends(mesh, row, degree, luck)))
    chart.finish(0.0)
    return chart


def newcomer(mesh: Planted, chart: Chart, row: int, measured: list[int], now: float = 0.0) -> Distances:
    """A node at the place of one peer that has measured some others, drawn at random."""
    distances = Distances(DistanceConfig(), mesh.peers[row], random.Random(row), chart)
    for end in measured:
        distances.handle_sample(mesh.peers[end], float(mesh.rtts[row, end]), now, drawn=True)
    distances.resolve(now)
    return distances
