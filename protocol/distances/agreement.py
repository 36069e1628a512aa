"""Edges that both ends have signed: what two records say of one path, and whether they agree.

Each node tells what it has measured itself. A path counts only where the records of both its ends name one another, and it is as
long as the longer of the two figures: whoever lies can make a path longer, never shorter, and only those that lead to it. Where
the two differ by more than paths change between two records the path counts for nothing; who disagrees with most of those it
names is not believed in anything. Two liars may agree on whatever they like about the path between them; it says nothing of
anybody else's.

Source: docs/coordinates.md, section "How a node knows".
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.distances.config import DistanceConfig
from protocol.identity import PeerId

_AGREE_RATIO = 1.5
"""How much longer one figure may be than the other, unitless: nine of ten paths change by less than a tenth within a day, and a
busy access link doubles a short one for a minute."""

_AGREE_S = 0.005
"""By how many seconds they may differ in any case: queueing at one end."""

_DISPUTED_MIN = 8
"""Paths that are disputed, a count, from which a peer may lose all its edges: a few are bad luck or a liar at the other end."""

_DISPUTED_SHARE = 0.5
"""Share of a peer's paths, unitless, that are disputed when it loses them all: with 30 % of liars an honest peer has 0.3."""


@dataclass(slots=True)
class _Told:
    """What a peer has told last: the number of its record, when it was heard, and round trips in seconds."""

    sequence: int
    heard_at: float
    rtts: dict[PeerId, float]


class Agreements:
    """What peers have told, the one longest unheard first."""

    def __init__(self, config: DistanceConfig) -> None:
        """Nothing told."""
        self._config = config
        self._told: OrderedDict[PeerId, _Told] = OrderedDict()

    def __len__(self) -> int:
        """How many peers have told edges."""
        return len(self._told)

    def handle_told(self, peer: PeerId, sequence: int, edges: Iterable[tuple[PeerId, float]], now: float) -> bool:
        """Takes over what a peer tells in place of what it told before.

        Args:
            peer: who signed it.
            sequence: the number of its record; one that is not newer changes nothing.
            edges: other ends and round trips in seconds; what can be no round trip is left out, and so is what is too much.
            now: monotonic seconds.

        Returns:
            Whether it was newer.
        """
        known = self._told.pop(peer, None)
        if known is not None and sequence <= known.sequence:
            self._told[peer] = known
            return False
        rtts: dict[PeerId, float] = {}
        for other, rtt_s in edges:
            if other != peer and 0.0 < rtt_s <= self._config.rtt_s_max and len(rtts) < self._config.edges_max:
                rtts[other] = max(rtt_s, rtts.get(other, 0.0))
        self._told[peer] = _Told(sequence, now, rtts)
        if len(self._told) > self._config.peers_max:
            self._told.popitem(last=False)
        return True

    def forget(self, peer: PeerId) -> None:
        """Drops what a peer has told."""
        self._told.pop(peer, None)

    def agreed(self, peer: PeerId, now: float) -> list[tuple[PeerId, float]]:
        """The paths of a peer that count, with seconds; none where it disagrees with most of those it names."""
        edges: list[tuple[PeerId, float]] = []
        disputed = 0
        for other, rtt_s in self._fresh(peer, now).items():
            back_s = self._fresh(other, now).get(peer)
            if back_s is None:
                continue
            shorter_s, longer_s = min(rtt_s, back_s), max(rtt_s, back_s)
            if longer_s <= max(_AGREE_RATIO * shorter_s, shorter_s + _AGREE_S):
                edges.append((other, longer_s))
            else:
                disputed += 1
        if disputed >= _DISPUTED_MIN and disputed > _DISPUTED_SHARE * (len(edges) + disputed):
            return []
        return edges

    def _fresh(self, peer: PeerId, now: float) -> dict[PeerId, float]:
        told = self._told.get(peer)
        return {} if told is None or now - told.heard_at > self._config.told_s else told.rtts
