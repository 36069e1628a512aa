"""The first packets of a dial: they go out until one is answered, or until it has taken too long.

A dial finds a peer also where that was started, or its path healed, a moment after the first packet was lost.

Source: RFC 9002 section 6.2 (probe timeouts double).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol.quic.seam import EngineConfig
from sim.process import Process

if TYPE_CHECKING:
    from sim.world import World

DIAL_TIMEOUT_S = 5.0
"""Seconds after which a dial into the void has failed, as in the shell."""

DIAL_AGAIN_S = tuple(2.0 * EngineConfig().initial_rtt_s * (2.0**tries - 1.0) for tries in range(1, 5))
"""Seconds after which the first packet of a dial that is not answered goes out again: 0.2, 0.6, 1.4 and 3. Probe timeouts that
double, from twice the round trip that is assumed before there is a sample (RFC 9002 section 6.2)."""

HANDSHAKE_BYTES = 1200
"""Bytes of a handshake's first datagram: RFC 9000 section 14.1."""


class FirstPackets:
    """Of one dial of one address."""

    def __init__(
        self,
        world: "World",
        process: Process,
        other: Process,
        host: str,
        answered: Callable[[], None],
        timed_out: Callable[[], None],
    ) -> None:
        """Says nothing yet.

        Args:
            world: in which it happens.
            process: who dials.
            other: whom.
            host: at which host.
            answered: called in the process that dials when somebody has answered.
            timed_out: called there when nobody has.
        """
        self._world = world
        self._process = process
        self._other = other
        self._host = host
        self._life = process.life
        self._began_at = world.now
        self._answered = answered
        self._timed_out = timed_out
        self._tries = 0
        self._over = False

    def send(self) -> None:
        """Sends the packet, and again when its time has come."""
        if self._over:
            return
        world = self._world
        if self._reaches() and (took_s := self._answer_s()) is not None:
            self._enter_at(world.now + took_s, self._take_answer)
        if self._tries < len(DIAL_AGAIN_S):
            world.at(self._began_at + DIAL_AGAIN_S[self._tries], self.send)
            self._tries += 1
        else:
            self._enter_at(self._began_at + DIAL_TIMEOUT_S, self._give_up)

    def _enter_at(self, when: float, action: Callable[[], None]) -> None:
        self._world.at(when, lambda: self._world.enter(self._process, self._life, action))

    def _take_answer(self) -> None:
        if not self._over and self._reaches():
            self._over = True
            self._answered()

    def _give_up(self) -> None:
        if not self._over:
            self._over = True
            self._timed_out()

    def _reaches(self) -> bool:
        """Whether somebody is at the address and paths lead there and back."""
        one, other = self._process.index, self._other.index
        cut = self._world.network.is_cut
        if cut(one, other) or cut(other, one):
            return False
        return self._other.works and self._host == self._other.address.host

    def _answer_s(self) -> float | None:
        """Seconds until the answer to a packet that leaves now is there; None when either is lost."""
        one, other, network, now = self._process.index, self._other.index, self._world.network, self._world.now
        there_s, back_s = network.datagram(one, other, HANDSHAKE_BYTES, now), network.datagram(other, one, HANDSHAKE_BYTES, now)
        return there_s[0] + back_s[0] if there_s and back_s else None
