"""What a method of telling distances is to the simulator: one object per node, and some facts about its kind.

The engine asks whom to ping, hands in every round trip and what peers tell, carries what the node tells to others, and asks
for estimates in the end. A method holds no clock: `now_s` is virtual time. Nodes are numbers from 0 to n - 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.encoding import Luck
from protocol.identity import PeerId

Estimates = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Round trips in seconds with the lower and upper ends of their 90 % intervals; NaN where the method tells none."""


class Hears(Enum):
    """When a method is handed what others publish; what it has not been handed by then it gets before it is asked to estimate."""

    LATE = auto()
    """Only before it is asked: all it uses it for is the estimate."""

    MEASURED = auto()
    """As it arrives, from the peers that the node has measured or was measured by."""

    ALL = auto()
    """As it arrives, from everybody."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a method's own space, as liars look at it and forge it.

    Attributes:
        vector_s: its components in seconds.
        height_s: its height in seconds.
        error: the relative error that is claimed.
    """

    vector_s: tuple[float, ...]
    height_s: float
    error: float


class Method(Protocol):
    """One node's method."""

    def whom(self, alive: Sequence[int], now_s: float) -> int | None:
        """Whom to ping now: one of `alive`, which may hold the node itself; None for nobody."""
        ...

    def handle_rtt(self, peer: int, rtt_s: float, now_s: float, told: object | None) -> None:
        """Takes in one round trip by the node's own clock, with what the peer told in the same packet."""
        ...

    def handle_lost(self, peer: int, now_s: float) -> None:
        """Takes in that a ping to `peer` stayed without an echo."""
        ...

    def handle_told(self, peer: int, told: object, now_s: float) -> None:
        """Takes in what `peer` has published."""
        ...

    def told(self, now_s: float, *, echoed: bool) -> tuple[object, int] | None:
        """What the node tells now, in an echo or to everybody, and how many bytes that is; None for nothing."""
        ...

    def tick(self, now_s: float) -> None:
        """Time passes: whatever is to be worked out again is worked out."""
        ...

    def estimate(self, peers: NDArray[np.int64], now_s: float) -> Estimates:
        """How far `peers` are."""
        ...


@dataclass(frozen=True, slots=True)
class Seat:
    """What a method object is made from.

    Attributes:
        index: the node's number.
        nodes: how many there are.
        luck: the node's own.
        settings: of the method, by name, as given with `--set`.
        shared: what the nodes of this run share, where the kind has such a thing.
    """

    index: int
    nodes: int
    luck: Luck
    settings: dict[str, float] = field(default_factory=dict)
    shared: "Shared | None" = None


class Shared(Protocol):
    """What all nodes of a run would work out alike, worked out once.

    Attributes:
        worked_s: seconds of processor time that this took so far; each node would have needed them by itself.
    """

    worked_s: float

    def handle_told(self, peer: int, told: object, now_s: float) -> None:
        """Takes in what a node has published, in place of all the others."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A method as a whole.

    Attributes:
        says: one line for the help.
        make: makes the object of one node.
        both_ends: whether the end that was pinged uses its round trip too.
        keeps_rtt: whether the node keeps what it measured, so that a choice need not ping those again.
        hears: when it is handed what others publish.
        ticks: whether `tick` does anything.
        place: the place in what a node tells; None where it tells none.
        forge: what is told, with another place put in.
        share: makes what all nodes of a run share, from how many there are, luck and settings; None where they share nothing.
        conspire: what a liar publishes, from the truth, the other liars, and false round trips in seconds between two of them.
        settings: what can be set, by name.
    """

    says: str
    make: Callable[[Seat], Method]
    both_ends: bool = False
    keeps_rtt: bool = False
    hears: Hears = Hears.LATE
    ticks: bool = False
    place: Callable[[Any], Place | None] = lambda _: None
    forge: Callable[[Any, Place], object] = lambda told, _: told
    share: Callable[[int, Luck, dict[str, float]], Shared] | None = None
    conspire: Callable[[object, Sequence[int], Callable[[], float]], object] | None = None
    settings: tuple[str, ...] = ()


def peer_id(index: int) -> PeerId:
    """The peer id that stands for a node in the product's code."""
    return PeerId(index.to_bytes(4, "big"))


def anybody(alive: Sequence[int], own: int, luck: Luck) -> int | None:
    """One of `alive` other than `own`, each as likely; None where there is no other."""
    if not alive or (len(alive) == 1 and alive[0] == own):
        return None
    while True:  # the node itself is one of many: a second draw is seldom needed
        peer = alive[luck.randrange(len(alive))]
        if peer != own:
            return peer


def unknown(count: int) -> NDArray[np.float64]:
    """As many NaN: no interval, or no estimate."""
    return np.full(count, np.nan)
