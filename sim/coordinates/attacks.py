"""Liars: what they tell in place of the truth, and how long they hold back echoes and acknowledgements.

A liar runs the method as everybody does and changes only what leaves it. It can delay, never shorten: a packet that comes back
has made the way. It may tell each peer something else, in echoes and in what it publishes; a product that signs and numbers what
it publishes makes that provable, which is not assumed here. Where places are worked out from edges that both ends sign, liars can
sign whatever they like among themselves, and nothing with the honest but what both have measured.

Source: M. A. Kaafar, L. Mathy, T. Turletti, W. Dabbous, "Virtual Networks under Attack: Disrupting Internet Coordinate Systems",
2006 (disorder, repulsion); E. Chan-Tin, V. Heorhiadi, N. Hopper, Y. Kim, "The Frog-Boiling Attack", TISSEC 2011.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from sim.coordinates.method import Kind, Place

CLAIMED_ERROR = 0.01
"""Unitless. The error that liars claim: next to certain, so that they pull hardest."""

DISORDER_REACH_S = 1.0
"""Seconds. How far each component of a random coordinate lies from the origin at most."""

DISORDER_HOLD_S = (0.1, 1.0)
"""Seconds. The delay that goes with it."""

INFLATE_REACH_S = (1.0, 3.0)
"""Seconds. How far away an inflating liar claims to be."""

DEFLATE_HOLD_S = (0.0, 0.5)
"""Seconds. The delay that goes with the claim of standing at the origin."""

REPULSE_REACH_S = 3.0
"""Seconds. How far away the point is that all repulsing liars push their victims to."""

REPULSE_STEP_S = 0.001
"""Seconds. How near to a victim, on the side away from that point, a liar claims to be."""

REPULSE_HOLD_S = 1.0
"""Seconds. The delay that makes the victim flee from there."""

FROG_S_PER_S = 0.0005
"""Seconds per second. How fast boiling frogs drift: half a millisecond a round of one second, too little to be noticed."""


TOGETHER_S = 0.0001
"""Seconds. The round trip that liars sign who want to seem to be in one place."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One way of lying.

    Attributes:
        says: one line for the help.
        hold_s: the range that each delay of an echo or an acknowledgement is drawn from.
        lie: the place that is claimed, from the own one, the victim's where it is known, and the time since the attack began.
        edge_s: the round trip that two liars sign, where edges are published and no places.
    """

    says: str
    hold_s: tuple[float, float]
    lie: Callable[["Liar", Place, Place | None, float], Place]
    edge_s: Callable[["Liar", float], float]


class Liar:
    """One liar's choices that last, and its luck."""

    def __init__(
        self, attack: Attack, kind: Kind, begins_s: float, common: Random, luck: Random, others: Sequence[int] = ()
    ) -> None:
        """Makes a liar; `common` gives all liars of a run the same direction when each is handed a fresh equal stream."""
        self._others = others
        self._attack = attack
        self._kind = kind
        self._begins_s = begins_s
        self.luck = luck
        self._towards = [common.gauss(0.0, 1.0) for _ in range(DIRECTIONS_MAX)]
        self._fixed = [luck.gauss(0.0, 1.0) for _ in range(DIRECTIONS_MAX)]
        self._reach_s = luck.uniform(*INFLATE_REACH_S)

    def hold_s(self, now_s: float) -> float:
        """Seconds by which an echo or acknowledgement is held back."""
        return self.luck.uniform(*self._attack.hold_s) if now_s >= self._begins_s else 0.0

    def tell(self, told: object, victim: object | None, now_s: float) -> object:
        """What leaves in place of `told`.

        Args:
            told: the truth.
            victim: what the receiver has told itself, None where that is not known.
            now_s: virtual time.
        """
        if now_s < self._begins_s:
            return told
        if self._kind.conspire is not None:
            return self._kind.conspire(told, self._others, lambda: self._attack.edge_s(self, now_s - self._begins_s))
        own = self._kind.place(told)
        if own is None:
            return told
        theirs = None if victim is None else self._kind.place(victim)
        return self._kind.forge(told, self._attack.lie(self, own, theirs, now_s - self._begins_s))

    def common(self, dimensions: int, length_s: float) -> tuple[float, ...]:
        """A vector in the direction that all liars agree on."""
        return _scaled(self._towards[:dimensions], length_s)

    def fixed(self, dimensions: int) -> tuple[float, ...]:
        """This liar's own far point."""
        return _scaled(self._fixed[:dimensions], self._reach_s)


DIRECTIONS_MAX = 16
"""Components of the spaces that can be lied about, a count: twice what the methods have."""


def _scaled(parts: list[float], length_s: float) -> tuple[float, ...]:
    size = math.hypot(*parts) or 1.0
    return tuple(part / size * length_s for part in parts)


def _disorder(liar: Liar, own: Place, victim: Place | None, after_s: float) -> Place:  # noqa: ARG001
    vector = tuple(liar.luck.uniform(-DISORDER_REACH_S, DISORDER_REACH_S) for _ in own.vector_s)
    return Place(vector, own.height_s, CLAIMED_ERROR)


def _inflate(liar: Liar, own: Place, victim: Place | None, after_s: float) -> Place:  # noqa: ARG001
    return Place(liar.fixed(len(own.vector_s)), own.height_s, CLAIMED_ERROR)


def _deflate(liar: Liar, own: Place, victim: Place | None, after_s: float) -> Place:  # noqa: ARG001
    return Place((0.0,) * len(own.vector_s), own.height_s, CLAIMED_ERROR)


def _repulse(liar: Liar, own: Place, victim: Place | None, after_s: float) -> Place:  # noqa: ARG001
    target = liar.common(len(own.vector_s), REPULSE_REACH_S)
    start = own if victim is None else victim
    away = [there - here for there, here in zip(target, start.vector_s, strict=True)]
    step = _scaled(away, REPULSE_STEP_S)
    vector = tuple(here - part for here, part in zip(start.vector_s, step, strict=True))
    return Place(vector, own.height_s, CLAIMED_ERROR)


def _frog(liar: Liar, own: Place, victim: Place | None, after_s: float) -> Place:  # noqa: ARG001
    drift = liar.common(len(own.vector_s), FROG_S_PER_S * after_s)
    vector = tuple(here + part for here, part in zip(own.vector_s, drift, strict=True))
    return replace(own, vector_s=vector, error=min(own.error, CLAIMED_ERROR))


def _sinkhole(liar: Liar, own: Place, victim: Place | None, after_s: float) -> Place:  # noqa: ARG001
    return own if victim is None else Place(victim.vector_s, 0.0, CLAIMED_ERROR)


def _edge_of(least_s: float, most_s: float) -> Callable[[Liar, float], float]:
    return lambda liar, _: liar.luck.uniform(least_s, most_s)


def _frogs_edge(liar: Liar, after_s: float) -> float:  # noqa: ARG001
    return TOGETHER_S + FROG_S_PER_S * after_s


ATTACKS: dict[str, Attack] = {
    "disorder": Attack(
        "a random coordinate each time, delays of 0.1 to 1 s", DISORDER_HOLD_S, _disorder, _edge_of(*DISORDER_HOLD_S)
    ),
    "inflate": Attack(
        "a fixed coordinate 1 to 3 s away, next to no error claimed", (0.0, 0.0), _inflate, _edge_of(*INFLATE_REACH_S)
    ),
    "deflate": Attack(
        "claims to stand at the origin, delays of up to 0.5 s", DEFLATE_HOLD_S, _deflate, _edge_of(TOGETHER_S, TOGETHER_S)
    ),
    "repulse": Attack(
        "pushes everybody to one far point, delays of 1 s",
        (REPULSE_HOLD_S, REPULSE_HOLD_S),
        _repulse,
        _edge_of(TOGETHER_S, TOGETHER_S),
    ),
    "frog": Attack("the true coordinate and a common drift of 0.5 ms a second", (0.0, 0.0), _frog, _frogs_edge),
    "sinkhole": Attack("tells each victim the victim's own coordinate", (0.0, 0.0), _sinkhole, _edge_of(TOGETHER_S, TOGETHER_S)),
}
"""All attacks."""
