"""Random draws from a seed that only this node knows.

Whom a node measures must not be foreseen by peers, or they could wait for it; and what the estimate draws must not change what
the rest of a node draws. So it has its own source, seeded once with a secret.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

_T = TypeVar("_T")


class Draws(Protocol):
    """What the estimate needs of a source of randomness."""

    def random(self) -> float:
        """A number from 0 to 1, 1 left out."""
        ...

    def choice(self, seq: Sequence[_T], /) -> _T:
        """One of those, each as likely."""
        ...


class SeededDraws:
    """PCG64, seeded."""

    def __init__(self, secret: bytes) -> None:
        """The same secret gives the same draws."""
        self._generator = np.random.default_rng(int.from_bytes(secret, "big"))

    def random(self) -> float:
        """A number from 0 to 1, 1 left out."""
        return float(self._generator.random())

    def choice(self, seq: Sequence[_T], /) -> _T:
        """One of those, each as likely."""
        return seq[int(self._generator.integers(len(seq)))]
