"""How long to look for something before sleeping, decided by how long it took the last times.

Waking up from sleep costs some microseconds; a device that is quick is done before that. Looking costs the whole program, since
nothing else runs meanwhile. So one looks only where what was waited for came within what looking may cost, and never longer.

Source: Karlin et al., "Empirical Studies of Competitive Spinning for a Shared-Memory Multiprocessor" (SOSP 1991).
"""

from dataclasses import dataclass

SPIN_S_MAX = 50e-6
"""Longest look in seconds: about what going to sleep and being woken by the event loop costs, so that at most twice the least
possible is ever spent (the bound of the competitive algorithm)."""

WEIGHT = 0.25
"""Weight of the newest wait in the mean, unitless: four waits turn it."""

SLOW_LOOKS = 4.0
"""What a longer wait counts as, in longest looks: one of a second among quick ones is forgotten after some eight."""


@dataclass(slots=True)
class Polling:
    """Remembers how long the waits took; it begins as if they were long: a device has to show that it is quick."""

    spin_s_max: float = SPIN_S_MAX
    mean_s: float = 1.0

    def __post_init__(self) -> None:
        """Bound what it begins with as every wait."""
        self.mean_s = min(self.mean_s, SLOW_LOOKS * self.spin_s_max)

    @property
    def budget_s(self) -> float:
        """How long to look now, in seconds: twice the usual wait, nothing where that would be too long."""
        return 2.0 * self.mean_s if 2.0 * self.mean_s <= self.spin_s_max else 0.0

    def handle_wait(self, waited_s: float) -> None:
        """Take how long one wait took, from when it began."""
        self.mean_s += WEIGHT * (min(max(waited_s, 0.0), SLOW_LOOKS * self.spin_s_max) - self.mean_s)
