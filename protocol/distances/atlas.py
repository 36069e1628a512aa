"""What others have told of distances, and the chart that follows: the part of the estimate that is the same for all who hold it.

Nodes that hold the same edges make charts that say the same, so several nodes of one process may share an atlas; a node on its
own has its own.
"""

from collections.abc import Iterable

from protocol.distances.agreement import Agreements
from protocol.distances.chart import Chart
from protocol.distances.config import DistanceConfig
from protocol.distances.draws import Draws
from protocol.identity import PeerId


class Atlas:
    """Told edges, and where they put everybody.

    Attributes:
        agreements: what peers have told.
        chart: where that puts them.
    """

    def __init__(self, config: DistanceConfig, draws: Draws) -> None:
        """Nothing told yet; draws shake the chart."""
        self.agreements = Agreements(config)
        self.chart = Chart(config, draws)

    def handle_told(self, peer: PeerId, sequence: int, edges: Iterable[tuple[PeerId, float]], now: float) -> bool:
        """Takes over what a peer has signed; whether it was newer than what it told before.

        Args:
            peer: who.
            sequence: the number of its record.
            edges: other ends and round trips in seconds.
            now: monotonic seconds.
        """
        if not self.agreements.handle_told(peer, sequence, edges, now):
            return False
        self.chart.set_edges(peer, self.agreements.agreed(peer, now))
        return True

    def forget(self, peer: PeerId) -> None:
        """Drops a peer that is gone for good."""
        self.agreements.forget(peer)
        self.chart.forget(peer)
