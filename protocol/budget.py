"""A token bucket that tells a burst from a flood."""

from enum import Enum


class Verdict(Enum):
    """What a budget says to a demand."""

    GRANTED = "granted"
    REFUSED = "refused"
    FLOODED = "flooded"


class Budget:
    """Tokens that grow with time up to a burst, and a debt that grows with every refusal.

    A demand is granted while tokens are left. Past that it is refused and goes on the account all the same, until the debt is so
    large that no honest peer would have made it. Time pays both back at the same rate.
    """

    __slots__ = ("_at", "_burst", "_debt_max", "_rate", "_tokens")

    def __init__(self, rate_per_s: float, burst: float, debt_max: float, now: float) -> None:
        self._rate = rate_per_s
        self._burst = burst
        self._debt_max = debt_max
        self._tokens = burst
        self._at = now

    def take(self, amount: float, now: float) -> Verdict:
        """Ask for `amount` tokens at monotonic time `now`."""
        tokens = self._tokens  # every message comes here: comparisons in place of calls of min and max
        if now > self._at:
            tokens += (now - self._at) * self._rate
            if tokens > self._burst:
                tokens = self._burst
            self._at = now
        left = tokens - amount
        if left >= 0.0:
            self._tokens = left
            return Verdict.GRANTED
        if left < -self._debt_max:
            self._tokens = tokens
            return Verdict.FLOODED
        self._tokens = left
        return Verdict.REFUSED

    def left(self, now: float) -> float:
        """Return the tokens left at monotonic time `now`; a debt is negative."""
        return min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)

    def give_back(self, amount: float) -> None:
        """Return tokens that were taken for something found to be free."""
        self._tokens = min(self._burst, self._tokens + amount)
