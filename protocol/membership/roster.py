"""Everybody that membership has heard of, kept small where there is nothing to say.

Of most peers of a large mesh a node knows the addresses and no more: it has never been connected to them, nobody doubts them,
work may be sent to them. Such a peer is plain, and its packed addresses stand for it, fifty bytes in place of five hundred. It is
spelled out again when somebody asks for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from protocol.encoding import encode_frame
from protocol.identity import PeerId
from protocol.membership.events import Standing
from protocol.multiaddr import Multiaddr

_LENGTH_BYTES = 2
"""Length in bytes of the length of one packed address."""


SILENT = ("stopped answering", "others have lost it")
"""Why a peer is gone that fell silent: by this node's own probes, and by what others say."""


UNREACHED = "could not be reached"
"""Why work cannot be sent to a peer that nobody doubts and this node cannot dial."""

NO_ADDRESS = "no card"
"""Why work cannot be sent to a peer of which no address is known."""


class Link(StrEnum):
    """Why this node keeps a connection."""

    NONE = "none"
    NEAR = "near"
    FAR = "far"
    BEYOND = "beyond"


@dataclass(slots=True)
class Peer:
    """Everything remembered of one peer."""

    addresses: tuple[Multiaddr, ...] = ()
    has_card: bool = False
    connected_at: float | None = None
    failures: int = 0  # dials that failed and connections that did not last, in a row
    suspected_since: float | None = None  # by this node's own probes
    doubted_since: float | None = None  # by others
    in_question: bool = False  # doubted while connected, and not heard since
    gone_because: str | None = None
    gone_at: float | None = None  # when it was declared gone for its silence
    link: Link = Link.NONE
    dialled: bool = False  # a dial of this node has ended on the connection
    kept_by_peer: bool = False
    leaving: bool = False  # told to go, and still connected
    turned_away: int = 0  # connections in a row that it closed as surplus before they were settled
    shunned_until: float = 0.0
    wanted: bool = False  # dialled on purpose, also where not everybody is
    proven: bool = False  # connected at least once
    missed: bool = False  # a dial failed, and has not counted: another follows
    joined: bool = False

    @property
    def connected(self) -> bool:
        """Whether a connection is open."""
        return self.connected_at is not None

    @property
    def may_be_missed(self) -> bool:
        """Whether a dial that fails need not count: five packets are lost together once in 29 times where 30 % are."""
        return self.proven and not self.missed and self.gone_because is None and self.doubted_since is None

    def standing(self, now: float, *, unreached: bool) -> tuple[Standing, str]:
        """What this node thinks of the peer, with the reason in words; `unreached` while failed dials of it are tried again."""
        if self.gone_because is not None:
            return Standing.GONE, self.gone_because
        if self.suspected_since is not None:
            return Standing.SUSPECTED, f"no answer to probes, suspected for {now - self.suspected_since:.1f} s"
        if self.in_question:
            return Standing.SUSPECTED, "others hear nothing of it, and it is being probed"
        if self.connected:
            return Standing.ALIVE, "connected"
        if self.doubted_since is not None:
            return Standing.SUSPECTED, f"others have heard nothing for {now - self.doubted_since:.1f} s"
        if unreached:
            return Standing.SUSPECTED, UNREACHED
        return (Standing.ALIVE, "known by its card") if self.addresses else (Standing.UNKNOWN, NO_ADDRESS)


class Roster:
    """Peers by their ids, in the order in which they became known."""

    def __init__(self) -> None:
        """Nobody."""
        self._entries: dict[PeerId, Peer | bytes] = {}

    def __len__(self) -> int:
        """How many peers are known."""
        return len(self._entries)

    def __contains__(self, peer_id: PeerId) -> bool:
        """Whether a peer is known."""
        return peer_id in self._entries

    def __iter__(self) -> Iterator[PeerId]:
        """The ids, the longest known first."""
        return iter(self._entries)

    def __getitem__(self, peer_id: PeerId) -> Peer:
        """A peer that is known; what is changed in it is kept."""
        entry = self._entries[peer_id]
        if isinstance(entry, bytes):
            entry = self._entries[peer_id] = Peer(addresses=_unpacked(peer_id, entry), has_card=True, joined=True)
        return entry

    def __delitem__(self, peer_id: PeerId) -> None:
        del self._entries[peer_id]

    def get(self, peer_id: PeerId) -> Peer | None:
        """A peer, or None for a stranger."""
        entry = self._entries.get(peer_id)
        return self[peer_id] if isinstance(entry, bytes) else entry

    def add(self, peer_id: PeerId) -> Peer:
        """Makes the entry of a stranger."""
        peer = self._entries[peer_id] = Peer()
        return peer

    def is_plain(self, peer_id: PeerId) -> bool:
        """Whether a peer is known by its card and there is nothing else to say of it."""
        return isinstance(self._entries.get(peer_id), bytes)

    def put_away(self, peer_id: PeerId, peer: Peer) -> None:
        """Keeps a peer packed if it is plain; `peer` is not to be changed any more then."""
        if peer.connected_at is None and peer.addresses and peer == Peer(addresses=peer.addresses, has_card=True, joined=True):
            self._entries[peer_id] = _packed(peer_id, peer.addresses)

    def away(self) -> Iterator[PeerId]:
        """Those that are neither connected nor may be given work, the longest known first."""
        for peer_id, entry in self._entries.items():
            if not (isinstance(entry, bytes) or entry.connected or entry.joined):
                yield peer_id


@lru_cache(maxsize=256)  # a card that comes is often the one that has come to another node of this process
def _packed(peer_id: PeerId, addresses: tuple[Multiaddr, ...]) -> bytes:
    """The addresses, each with its length; a peer's own id at the end of one is left out, which 0 stands for."""
    pieces: list[bytes] = []
    for address in addresses:
        whole = address.to_bytes()
        told = whole.removesuffix(encode_frame(peer_id))
        pieces.append(bytes((len(told) == len(whole),)) + len(told).to_bytes(_LENGTH_BYTES, "big") + told)
    return b"".join(pieces)


def _unpacked(peer_id: PeerId, packed: bytes) -> tuple[Multiaddr, ...]:
    """What `_packed` was given."""
    addresses: list[Multiaddr] = []
    while packed:
        begin = 1 + _LENGTH_BYTES
        end = begin + int.from_bytes(packed[1:begin], "big")
        addresses.append(Multiaddr.from_bytes(packed[begin:end] + (b"" if packed[0] else encode_frame(peer_id))))
        packed = packed[end:]
    return tuple(addresses)
