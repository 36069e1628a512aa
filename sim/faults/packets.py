"""What happens to single packets: they are lost, changed, doubled, overtaken.

QUIC's AEAD finds a changed byte, and the packet is thrown away: what was a datagram never comes, what was a piece of a stream
comes again after a retransmission timeout. So where no QUIC runs `Corruption` is a loss by another name, and is counted apart;
over real endpoints it flips real bits. Bytes that change above QUIC, in a peer's own memory, are the hostile peer
`hostile-garbled`.

Source: Gilbert (1960) and Elliott (1963) for bursts; RFC 9001 section 5.5, packets that cannot be authenticated are discarded.
"""

from random import Random

from sim.network import Lossy
from sim.world import World

LOSS_MAX = 0.5
"""Largest share of packets lost, unitless: beyond it a path is as good as cut."""

CORRUPTION_MAX = 0.3
"""Largest share of packets with a changed byte, unitless: the interop runner's handshakecorruption."""


class Loss:
    """Every packet is lost with the same probability."""

    def __init__(self, luck: Random, world: World, share: float | None = None) -> None:
        self.share = luck.uniform(0.01, LOSS_MAX) if share is None else share
        stream = world.streams.of("loss")
        self._lossy: Lossy = lambda _now, _one, _other, _datagram: stream.random() < self.share

    def __str__(self) -> str:
        return f"loss of {self.share:.0%}"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.losses.append(self._lossy)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.network.losses.remove(self._lossy)


class BurstLoss:
    """Gilbert-Elliott: every path is good or bad by turns, and loses most packets while it is bad."""

    def __init__(self, luck: Random, world: World) -> None:
        self.worsens = luck.uniform(0.002, 0.02)  # per packet: a burst every 50 to 500 packets
        self.improves = luck.uniform(0.05, 0.3)  # per packet: bursts of 3 to 20 packets
        self.lost_when_bad = luck.uniform(0.5, 0.95)
        self._bad: dict[tuple[int, int], bool] = {}
        stream = world.streams.of("burst loss")

        def lossy(_now: float, one: int, other: int, _datagram: bool) -> bool:
            bad = self._bad.get((one, other), False)
            if stream.random() < (self.improves if bad else self.worsens):
                bad = not bad
            self._bad[one, other] = bad
            return bad and stream.random() < self.lost_when_bad

        self._lossy: Lossy = lossy

    def __str__(self) -> str:
        return f"bursts of loss, {1 / self.improves:.0f} packets long"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.losses.append(self._lossy)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.network.losses.remove(self._lossy)


class Corruption:
    """Bytes change on the way; see the module's docstring."""

    def __init__(self, luck: Random, world: World, share: float | None = None) -> None:
        self.share = luck.uniform(0.01, CORRUPTION_MAX) if share is None else share
        stream = world.streams.of("corruption")

        def changed(_now: float, _one: int, _other: int, _datagram: bool) -> bool:
            hit = stream.random() < self.share
            world.network.tally.corrupted += hit
            return hit

        self._changed: Lossy = changed

    def __str__(self) -> str:
        return f"corruption of {self.share:.0%}"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        if world.corruptions is None:
            world.network.losses.append(self._changed)
        else:
            world.corruptions.append(self.share)

    def end(self, world: World) -> None:
        """See `Fault`."""
        if world.corruptions is None:
            world.network.losses.remove(self._changed)
        else:
            world.corruptions.remove(self.share)


class Duplication:
    """Datagrams come twice."""

    def __init__(self, luck: Random, _world: World, share: float | None = None) -> None:
        self.share = luck.uniform(0.01, 0.3) if share is None else share

    def __str__(self) -> str:
        return f"duplication of {self.share:.0%}"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.duplications.append(self.share)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.network.duplications.remove(self.share)


class Reordering:
    """Datagrams are late and overtaken by others."""

    def __init__(self, luck: Random, _world: World) -> None:
        self.rule = (luck.uniform(0.01, 0.5), luck.uniform(0.005, 0.2))

    def __str__(self) -> str:
        return f"reordering of {self.rule[0]:.0%} by up to {self.rule[1] * 1000:.0f} ms"

    def begin(self, world: World) -> None:
        """See `Fault`."""
        world.network.reorderings.append(self.rule)

    def end(self, world: World) -> None:
        """See `Fault`."""
        world.network.reorderings.remove(self.rule)
