"""The guards of a QUIC engine in one place: what it must hold, and where nobody can guess what an engine does next.

Nine weaknesses were measured in QUIC libraries (docs/transport-guards.md says what each engine does about each, and which test
shows it). Each is a row here. An engine names the rows that it holds, in the library or above it; one that does not hold all of
them is not used in a network where strangers may come (`missing`, and `choose_engine` in this package).

`Traps` says after how many packets an engine lays the next trap for a peer that acknowledges what it did not receive: a packet
number that no packet has, or a packet that is not sent. An honest peer never acknowledges it.

Source: RFC 9000 sections 7.5, 13.1, 21.4; draft-chen-quic-logical-vuln-mitigations-00; picoquic's policy of skipping numbers.
Spec: docs/spec/02-transport.md, section "Engines".
"""

import hashlib
from collections import deque
from collections.abc import Iterable
from enum import Enum

TRAP_SPAN = 256
"""Packets within which the first trap lies; each span is twice the one before, so that the cost fades (picoquic)."""


class Guard(Enum):
    """What an engine must hold against, by the row of docs/transport-guards.md."""

    CRYPTO_GAPS = "F1"
    """Gaps in the handshake's bytes cost bounded time."""
    STREAM_GAPS = "F2"
    """Gaps in a stream cost bounded time."""
    CRYPTO_MEMORY = "F3"
    """Handshake bytes far ahead cost bounded memory."""
    CREDIT = "F4"
    """What nobody reads costs bounded memory."""
    FALSE_ACKS = "F5"
    """Acknowledging what was not sent, or not received, ends the connection."""
    SHORT_RTTS = "F6"
    """No round trip that a peer can shorten is taken for a distance."""
    DEAD_PEERS = "F7"
    """A peer that died or was started again is noticed without the idle timeout."""
    MOVED_PATHS = "F8"
    """A download goes on after the reader's address has changed."""
    TIMERS = "F9"
    """A timer that is due does not stand still."""


def missing(guarantees: Iterable[Guard]) -> tuple[Guard, ...]:
    """Return the rows that an engine does not hold, in the order of the table."""
    held = frozenset(guarantees)
    return tuple(guard for guard in Guard if guard not in held)


DESTINATIONS_MAX = 8
"""Connection ids of a peer, lately used, that are remembered, a count: two for each path of a few that it changes between."""

_LONG_HEADER = 0x80
"""Set in the first byte of every packet of a handshake (RFC 9000 section 17.2)."""


class Traps:
    """Says when the next trap is to be laid, in numbers of packets that only the owner of the secret can foresee."""

    def __init__(self, secret: bytes, cid: bytes) -> None:
        """Begin with the first span.

        Args:
            secret: the endpoint's.
            cid: a connection id of this connection, so that no two have their traps in the same places.
        """
        self._key = hashlib.blake2b(secret, digest_size=32, person=b"isochrone traps").digest()
        self._cid = cid
        self._spans = 0
        self._starts = 0
        self.next = self._place()

    def laid(self) -> None:
        """The trap at `next` was laid; choose the next place."""
        self._starts += TRAP_SPAN << self._spans
        self._spans += 1
        self.next = self._place()

    def _place(self) -> int:
        digest = hashlib.blake2b(self._cid + self._spans.to_bytes(2, "big"), key=self._key, digest_size=8).hexdigest()
        return self._starts + int(digest, 16) % (TRAP_SPAN << self._spans)


class Destinations:
    """The connection ids of a peer to which packets went lately.

    The compiled core says nothing of the ids that a peer issues and retires. What each costs grows with those that were, so a
    peer that replaces them all the time is noticed by where the packets go.
    """

    __slots__ = ("_used",)

    def __init__(self) -> None:
        self._used: deque[bytes] = deque(maxlen=DESTINATIONS_MAX)

    def is_new(self, data: bytes, first_cid: bytes | None) -> bool:
        """Note where a packet goes; whether that is an id which was not used lately in place of another.

        Args:
            data: the datagram; handshake packets do not count.
            first_cid: the id that the peer chose at first: all of a peer are of one length.
        """
        if data[0] & _LONG_HEADER:
            return False
        cid = data[1 : 1 + len(first_cid or b"")]
        if cid in self._used:
            return False
        is_first = not self._used
        self._used.append(cid)
        return not is_first
