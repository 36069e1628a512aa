"""Traps for who acknowledges what it did not receive, for qh3: packets that are made and not sent.

Each holds a lone PING, whose acknowledgement the library tells. An honest peer never acknowledges it; the library finds that it
is lost, and sends the PING again in a packet that does leave. To its congestion control a trap would be a loss like any other:
the window would shrink, and slow start be over for good, on a path that loses nothing. A loss counts only once for all that
was sent before it was found (RFC 9002 section 7.3.2), so every trap is dated long before it. The first one needs a loss before
it that costs nothing: in a quiet moment two packets of different age are withheld together, which the library takes for a path
that was gone for a while (RFC 9002 section 7.6), and it begins with slow start anew.

Source: RFC 9000 section 21.4; RFC 9002 sections 7.3.2 and 7.6; qh3 2.1.0.
Spec: docs/spec/02-transport.md, section "Engines".
"""
# pyright: basic

from typing import Any

from protocol.quic.guards import Traps
from protocol.quic.seam import Address

TRAP_UIDS = 1 << 62
"""PINGs with numbers from here on are of traps, this first one of none; the endpoint counts its own from 1."""

TRAP_RECEIPTS_MAX = 256
"""Times of receiving after which a trap is forgotten: long after an honest peer's acknowledgements have passed it."""

LONG_AGO_S = 0.0
"""When a trap is said to have been sent, in seconds: before everything else."""

UNPRIMED_MAX = 640
"""Packets by which the first trap is put off while no moment is quiet, a count: most of a megabyte passes in slow start."""

QUIET_S_MIN = 60.0
"""Least clock, in seconds, for the two ages to be apart far enough: half of it is three probe timeouts of the worst path."""


class PacketTraps:
    """The traps of one connection; the caller says what was sent and received."""

    def __init__(self, secret: bytes, cid: bytes) -> None:
        """Begin with none; the arguments are those of `Traps`."""
        self.places = Traps(secret, cid)
        self._trap: tuple[int, int] | None = None
        self._is_set = False
        self._is_primed = False
        self._age = 0
        self._n_laid = 0

    def handle_receipt(self, core: Any) -> None:
        """Something is about to be received."""
        self._is_set = False
        if self._trap is not None:
            self._age += 1
            self._is_set = self._age <= TRAP_RECEIPTS_MAX and self._is_outstanding(core, self._trap[0])

    def springs(self, uid: int) -> bool:
        """Whether the PING of a trap was acknowledged while the trap was neither acknowledged nor given up for lost."""
        if self._trap is None or self._trap[1] != uid:
            return False
        self._trap = None
        return self._is_set

    def prime(self, core: Any, now: float) -> None:
        """Make the losses of traps cost nothing; the moment is quiet, and something that is acknowledged follows at once."""
        if self._is_primed or core.get_send_buffer_size():
            return
        self._is_primed = True
        for sent_at in (LONG_AGO_S, now / 2) if now >= QUIET_S_MIN else ():
            core.send_ping(TRAP_UIDS)
            core.poll_transmit(sent_at)

    def lay(self, core: Any, now: float, n_sent: int) -> list[tuple[bytes, Address]]:
        """Lay a trap where one is due; return what is to be sent behind it."""
        if n_sent < self.places.next + (0 if self._is_primed else UNPRIMED_MAX):
            return []
        self.prime(core, now)
        self._n_laid += 1
        uid = TRAP_UIDS + self._n_laid
        core.send_ping(uid)
        withheld = core.poll_transmit(LONG_AGO_S)
        if withheld is not None and (outstanding := core.outstanding_application_packets):
            self._trap = (outstanding[-1][0], uid)
            self._age = 0
            self.places.laid()
        # The library would probe at once for what it believes to be so old, if nothing newer was under way.
        core.send_ping(TRAP_UIDS)
        behind = core.poll_transmit(now)
        return [] if behind is None else [(behind[0], behind[1])]

    def _is_outstanding(self, core: Any, number: int) -> bool:
        """Whether a packet is neither acknowledged nor given up for lost."""
        return core is not None and any(packet[0] == number for packet in core.outstanding_application_packets)
