"""Sequence numbers that survive crashes: whole blocks are reserved on disk before a number out of them is used.

The shell writes the end of the next block to disk and only then says so; after a restart counting goes on behind everything that
was ever reserved. Numbers are skipped, none is used twice. A sequence number is no time and says nothing but "newer".

Spec: docs/spec/03-records.md, section "Sequence numbers".
"""

from protocol.errors import ErrorCode, LocalProtocolError
from protocol.records.config import SEQUENCE_MAX

SEQUENCE_BLOCK = 1000
"""Numbers reserved at a time, a count: at a record each second one write to disk lasts a quarter of an hour."""


class Sequencer:
    """Hands out this identity's sequence numbers.

    At start: persist what `needs_reservation` returns, call `reserve` with it, then use `next`. From then on look at
    `needs_reservation` after each `next`; it asks early enough for the write to happen in the background.
    """

    def __init__(self, reserved: int, block: int = SEQUENCE_BLOCK) -> None:
        """Start behind everything reserved before.

        Args:
            reserved: the persisted end of the last reservation; 0 on the very first start.
            block: how many numbers to reserve at a time, at least 2.
        """
        if not 0 <= reserved < SEQUENCE_MAX - block or block < 2:
            raise LocalProtocolError(ErrorCode.MALFORMED, f"a reservation of {reserved} cannot be continued")
        self._last = reserved
        self._reserved = reserved
        self._block = block

    def needs_reservation(self) -> int | None:
        """The end of the reservation to persist next, or None while at least half a block is left."""
        if self._reserved - self._last >= self._block // 2:
            return None
        return min(max(self._reserved, self._last) + self._block, SEQUENCE_MAX)

    def reserve(self, upto: int) -> None:
        """Say that `upto` is on disk: numbers up to and including it may be used."""
        self._reserved = max(self._reserved, upto)

    @property
    def is_ready(self) -> bool:
        """Whether `next` has a number that is safe to use."""
        return self._last < self._reserved

    @property
    def upcoming(self) -> int:
        """The number that `next` returns next."""
        return self._last + 1

    def next(self) -> int:
        """Return the next number.

        Raises:
            LocalProtocolError: INTERNAL when nothing is reserved, so that the number could be used again after a crash.
        """
        if self._last >= self._reserved:
            raise LocalProtocolError(ErrorCode.INTERNAL, "no sequence number is reserved; persist the reservation first")
        self._last += 1
        return self._last

    def observe(self, sequence: int) -> None:
        """Move behind a number that this identity used in a life it no longer remembers, as its own record coming back shows.

        The record need not be the last one of that life: a whole block is left out, so that no number of it is used again.
        What was reserved below it is void, so the next number needs a new reservation.
        """
        if sequence > self._last:
            self._last = min(sequence + self._block, SEQUENCE_MAX - self._block)
