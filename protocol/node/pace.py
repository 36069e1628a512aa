"""When a node tells its edges, and which of those it has measured.

The first edges are told soon after the start, the next a minute later, then seldom. Sooner only where much is other than it was
told, or where somebody is new: who tells of an edge to this node, and agrees with few so far, waits for the other ends to tell of
it too. Each such time the node waits longer before the next, so whatever others do it tells a few times more at most; and as soon
as some have answered a newcomer the others need not.

Told are the nearest; of the others those first that are told already and whose other ends tell of them too, for an edge that one
end alone tells is worth nothing; some that wait for this node; and some drawn at random, which no peer can steer.

Spec: docs/spec/03-records.md, section "When records are told"; docs/spec/05-coordinates.md, section "Edges".
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from protocol.announcer import AnnouncerConfig
from protocol.encoding import Luck
from protocol.identity import PeerId

Path: TypeAlias = tuple[PeerId, float]
"""A measured path: the other end and the round trip in seconds."""

Named: TypeAlias = Callable[[PeerId], int | None]
"""With how many others a peer agrees that tells of an edge to this node; None for one that does not."""

_ANSWERED_TIMES = 4
"""Newcomers that count as answered, in what is told at once: more than the times that edges are told between two regular ones."""


class Pace:
    """The machine; see the module's docstring. Times are monotonic seconds."""

    def __init__(self, config: AnnouncerConfig, luck: Luck) -> None:
        """Has told nothing."""
        self._config = config
        self._luck = luck
        self._told: dict[PeerId, float] = {}  # round trips by peer, as they were told last
        self._told_at = float("-inf")
        self._turns = 0
        self._wait_s = config.edges_second_s  # before it may be told again early
        self._answered: dict[PeerId, None] = {}  # newcomers that were told of since the last regular time

    def settle(self, now: float) -> None:
        """Counts as one that has told its edges for long, for who begins in the middle of a node's life."""
        self._turns, self._told_at = 3, now - self._config.edges_interval_s * self._luck.random()

    def turn(self, measured: Sequence[Path], named: Named, now: float) -> tuple[list[Path], float]:
        """What to tell now, and how many seconds later to ask again.

        Args:
            measured: the paths that count, the shortest first.
            named: who tells of edges to this node.
            now: monotonic seconds.

        Returns:
            What to tell, nothing where it is no time to; and the wait.
        """
        config = self._config
        told: list[Path] = []
        if self._turns == 0:  # nothing is measured yet
            self._turns, wait_s = 1, config.edges_first_s
        elif self._turns > 2 and not self._is_due(measured, named, now):
            wait_s = config.edges_look_s
        else:
            told = self._chosen(measured, named)
            wait_s = config.edges_second_s if self._turns == 1 else config.edges_look_s
            self._note_told(told, named, now)
        return told, min(wait_s, config.edges_interval_s) * self._luck.uniform(0.8, 1.2)

    # Helpers

    def _note_told(self, told: list[Path], named: Named, now: float) -> None:
        if not told:
            return
        self._turns += 1
        if now - self._told_at >= self._config.edges_interval_s:
            self._answered = {}
        self._answered.update((peer, None) for peer, _ in told if self._is_new(peer, named))
        for peer in list(self._answered)[: -_ANSWERED_TIMES * self._config.edges_max]:
            del self._answered[peer]
        self._told, self._told_at = dict(told), now

    def _is_due(self, measured: Sequence[Path], named: Named, now: float) -> bool:
        """Whether it is time to tell: regularly, and sooner where much has changed or somebody waits for it."""
        config = self._config
        since_s = now - self._told_at
        if since_s >= config.edges_interval_s:
            self._wait_s = config.edges_second_s
            return True
        if since_s < self._wait_s or not (self._has_changed(measured) or self._is_awaited(measured, named)):
            return False
        self._wait_s = min(4.0 * self._wait_s, config.edges_interval_s)
        return True

    def _has_changed(self, measured: Sequence[Path]) -> bool:
        """Whether what was told is no longer what would be told, by more than a share: paths, or who is among the nearest."""
        config = self._config
        if not self._told:
            return False  # it was settled, and what it told is not known
        lengths = dict(measured)
        changed = sum(
            rtt_s is None or abs(rtt_s - told_s) > config.edges_changed_rtt * told_s + config.edges_changed_s
            for rtt_s, told_s in ((lengths.get(peer), told_s) for peer, told_s in self._told.items())
        )
        more = min(len(measured), config.edges_max) - len(self._told)
        nearer = sum(peer not in self._told for peer, _ in measured[: config.edges_max // 2])
        return changed + max(0, more, nearer) >= config.edges_changed_share * len(self._told)

    def _is_awaited(self, measured: Sequence[Path], named: Named) -> bool:
        """Whether a newcomer tells of an edge that this node has measured, and neither tells nor has answered lately."""
        return any(peer not in self._told and peer not in self._answered and self._is_new(peer, named) for peer, _ in measured)

    def _is_new(self, peer: PeerId, named: Named) -> bool:
        agreed = named(peer)
        return agreed is not None and agreed < self._config.edges_newcomer

    def _chosen(self, measured: Sequence[Path], named: Named) -> list[Path]:
        """Whom to tell of; see the module's docstring."""
        count = self._config.edges_max
        if len(measured) <= count:
            return list(measured)
        near, others = list(measured[: count // 2]), measured[count // 2 :]
        mutual = [(agreed, path) for path in others if (agreed := named(path[0])) is not None]
        new = [path for agreed, path in sorted(mutual) if agreed < self._config.edges_newcomer][: count // 8]
        kept = [path for _, path in mutual if path[0] in self._told and path not in new]
        fresh = [path for _, path in mutual if path[0] not in self._told and path not in new]
        room = 3 * count // 8 - len(new)
        drawn = [*new, *self._some(kept, room)]
        drawn += self._some(fresh, room + len(new) - len(drawn))
        taken = {peer for peer, _ in drawn}
        left = [path for path in others if path[0] not in taken]
        return [*near, *drawn, *self._some(left, count - len(near) - len(drawn))]

    def _some(self, paths: list[Path], count: int) -> list[Path]:
        return paths if len(paths) <= count else self._luck.sample(paths, count)
