"""What membership is bounded by, and what comes out of it."""

from dataclasses import dataclass
from enum import StrEnum

from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.multiaddr import Multiaddr


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    """Bounds and intervals; seconds unless the name says otherwise."""

    connections_max: int = 160
    """Open connections past which those that neither end wants to keep are closed: 160 x 143 KiB of memory (measured for aioquic)
    is 22 MiB."""
    crowded_max: int = 224
    """Open connections, whoever made them, past which the newest of those that this node does not keep are closed for who comes
    next: a node that is near to many of a thousand has 204. The 32 up to the bound are for who has just come."""
    open_max: int = 256
    """Open connections, whoever made them: one more is refused. Gossip and probes talk with so many peers at least."""
    visit_s: float = 3.0
    """A connection is not closed for who comes next sooner, unless its peer has fetched the table: ten long round trips."""
    resident_s: float = 20.0
    """A visitor that has been connected for so long, wants to stay and has told its card is no newcomer any more: as
    `surplus_after_s`, in which the other end has found out whether it wants to keep the connection."""
    visits_max: int = 2
    """Short visits in a row after which a peer is not let in while it is shunned and many are here: one that lost much on the way
    has a second try, and the places are for others then."""
    small_mesh: int = 24
    """Connections up to which every peer that becomes known is dialled: below it a mesh is fully connected."""
    near_max: int = 72
    """Nearest peers that a node stays connected to: the 64 it may well send work to, and some more: estimates are not exact."""
    far_max: int = 6
    """Peers chosen at random that a node stays connected to: as many as the mesh of gossip has links."""
    beyond_max: int = 3
    """Peers beyond what the node holds of a large mesh that it stays connected to: whom it asks for what is not near."""
    surplus_after_s: float = 20.0
    """A connection is not closed as surplus sooner: the other end must have had the time to say that it keeps it."""
    surplus_at_once: int = 4
    """Connections closed as surplus at once, and near peers dialled at once: change comes slowly."""
    shunned_s: float = 120.0
    """After a connection was closed as surplus its peer is not dialled for being near for so long, and is none of the nearest."""
    shunned_doublings_max: int = 5
    """How often that time doubles where it is closed again before it was settled, to an hour: whoever is near to thousands is
    full for good."""
    gone_after_s: float = 6.0
    """A suspected peer is gone after so long: a stall of five seconds, and the second it takes to be heard again, kill nobody."""
    hearing_s: float = 2.0
    """A node that was itself held up waits at least so long for a silent peer: four of the probes that go to one."""
    linger_s: float = 45.0
    """The connection to a silent peer is kept for so long: below QUIC's idle timeout, and longer than most cuts last."""
    forget_after_s: float = 120.0
    """A peer that has been gone for so long is forgotten, card and all; a newcomer would take it for alive."""
    dials_max: int = 8
    """Dials under way at once, so that a node joining a large mesh does not flood its own uplink."""
    peers_max: int = 16_384
    """Peers remembered with their addresses; past it the longest known of those that are away make room."""
    bootstrap_max: int = 64
    """Bootstrap addresses."""
    backoff_min_s: float = 0.5
    backoff_max_s: float = 30.0
    settled_s: float = 5.0
    """A connection that ends sooner counts as a failed dial: ten times the shortest back-off."""
    goodbye_failures: int = 3
    """A goodbye counts as so many failed dials, 2 to 4 s of back-off: no hurry to call back who has just left."""
    dial_address_s: float = 10.0
    """A dial that is not answered for within this time per address has failed: name resolution, a handshake, a greeting."""
    dial_spread_s: float = 0.01
    """Each dial that waits puts off the next one by up to this at random, so that not all nodes choose the same peers."""
    pinned_failures: int = 3
    """After so many failed dials a bootstrap address given without a peer id may be somebody else's: a new key, a new node."""
    dial_polite_s: float = 0.3
    """How long the peer with the larger id leaves the dial to the other: more than a round trip within a continent."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Dial these addresses in turn; answer with `handle_connected` or `handle_dial_failed` for the same target.

    `afresh` asks for a new connection although there is one, over which nothing is heard.
    """

    target: "Target"
    addresses: tuple[Multiaddr, ...]
    afresh: bool = False


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection to the peer."""

    peer_id: PeerId
    code: ErrorCode


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """The peer may be given work from now on."""

    peer_id: PeerId


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """The peer may not be given work any more; `reason` is for people."""

    peer_id: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class KeepLink:
    """Tell the connected peer whether this node wants to keep the connection."""

    peer_id: PeerId
    keeps: bool


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The peer is held for dead; `reason` is for people."""

    peer_id: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class PeerForgotten:
    """The peer has been gone for long; drop what is known of it."""

    peer_id: PeerId


Target = PeerId | str
"""Whom a dial is for: a peer, or the text of a bootstrap address whose peer is not known yet."""

Output = Connect | Disconnect | KeepLink | PeerJoined | PeerLeft | PeerGone | PeerForgotten


class Standing(StrEnum):
    """What a node thinks of a peer."""

    ALIVE = "alive"
    SUSPECTED = "suspected"
    GONE = "gone"
    UNKNOWN = "unknown"
