"""What a lane and the node's fabrics need of a fabric, whatever its kind: how one is opened, and what a session does.

There are two ways for tensors. Where the peer *reads*, the giver puts them into memory of its own and offers a lease to it. Where
the giver *writes*, it offers without a lease; the receiver grants one to memory of its own, and the giver says when it has
written, with a tag. A session has one of the two, `reads` or `writes`, in both directions.

Spec: docs/spec/11-fabric.md.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol, runtime_checkable

from mesh.fabric.control import Control
from protocol.fabric import Advert, FabricConfig, Kind, Lease, Match, Place, Way
from protocol.fabric.messages import Door, Hello, Offer
from protocol.identity import PeerId
from protocol.inference import Tensor

REGION_NUMBERS = count()
"""Numbers of the regions of this process, whoever they are for: none comes again when a fabric is opened anew (ISO-FAB-032)."""


class Given(Protocol):
    """Tensors that a session gives: where they lie, and their bytes for the stream where the fabric does not carry them."""

    @property
    def lease(self) -> Lease | None:
        """What the peer is told to read; None asks it for a lease to write to."""
        ...

    @property
    def places(self) -> tuple[Place, ...]:
        """Each tensor, and where it lies in the lease."""
        ...

    @property
    def tag(self) -> bytes:
        """What is told of the bytes with the offer; empty where nothing is."""
        ...

    @property
    def on_device(self) -> bool:
        """Whether the receiver may lease memory of a device for them, which is written to without a tag."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        ...

    def hold(self) -> None:
        """Keep the bytes as they are, also when the session may use their memory again, until `let_go`."""
        ...

    def let_go(self) -> None:
        """Their memory may be used again."""
        ...

    def pieces(self, bytes_max: int) -> Iterator[memoryview]:
        """All bytes of the tensors, in order, in pieces of at most so many."""
        ...


class Reads(Protocol):
    """A session whose peer leases what is read here."""

    def take(self, lease: Lease, places: Sequence[Place], tag: bytes = b"") -> tuple[Tensor, ...] | Awaitable[tuple[Tensor, ...]]:
        """View tensors that the peer has leased, at once, or after what takes a while and is waited for.

        The lease is given back by the session when nothing views them any more, and when waiting for them was given up.

        Raises:
            RemoteProtocolError: STALE_LEASE, OUT_OF_BOUNDS, CORRUPTED, or whatever is wrong; the same where it is waited for.
        """
        ...


class Writes(Protocol):
    """A session in which the giver writes into memory that the receiver has leased to it for one transfer."""

    async def write(self, given: Given, lease: Lease) -> bytes:
        """Write tensors into what the peer has leased; return the tag of their bytes.

        It ends by itself when the hardware does not: nobody else watches the time. `given` is held meanwhile.

        Raises:
            RemoteProtocolError: the lease is none for these tensors, or the hardware fails.
            OSError: the same, by the system's words.
        """
        ...

    async def grant(self, offer: Offer, lifetime_s: float, now: float) -> Lease:
        """Lease memory that takes all tensors of an offer: of a device only where the offer is of tensors on one.

        Raises:
            RemoteProtocolError: there is none for this peer.
            OSError: the system refuses.
        """
        ...

    async def check(self, offer: Offer, lease: Lease, tag: bytes) -> tuple[Tensor, ...]:
        """Take a lease back, have that confirmed, and then see that what was written is what the tag says.

        Memory of a device is not compared with a tag: there is none.

        Returns:
            Views of memory that nobody writes to any more; it is used again when nothing views it.

        Raises:
            RemoteProtocolError: CORRUPTED, STALE_LEASE, or the hardware fails.
            OSError: the same, by the system's words.
        """
        ...

    def withdraw(self, lease: Lease) -> None:
        """Begin to take a lease back whose tensors are not wanted; its memory is not used before that is confirmed.

        It may come while `check` runs, or more than once.
        """
        ...


class Session(Protocol):
    """A fabric with one peer."""

    @property
    def kind(self) -> Kind:
        """Of which kind it is."""
        ...

    @property
    def title(self) -> str:
        """How people are told the way of tensors: the kind, and which of several ways of this kind it is."""
        ...

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        ...

    @property
    def way(self) -> Way:
        """What a transfer costs, for the estimates."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        ...

    @property
    def takes_devices(self) -> bool:
        """Whether it may be given tensors as they lie on a device."""
        ...

    @property
    def reads(self) -> Reads | None:
        """How what the peer offers with a lease is taken; None where nothing is."""
        ...

    @property
    def writes(self) -> Writes | None:
        """How what the peer offers without a lease is taken, and given; None where nothing is."""
        ...

    def give(self, tensors: Sequence[Tensor], lifetime_s: float, now: float) -> Given | None:
        """Make tensors ready for the peer; None where it has as much as it may have.

        Raises:
            OSError: the system refuses more memory.
        """
        ...

    def reuse(self, given: Given) -> None:
        """The peer is done with what was given, or has never used it."""
        ...

    def retire(self, given: Given) -> None:
        """Never use that memory again: the peer may still be looking at it."""
        ...

    def handle_timer(self, now: float) -> None:
        """Look at leases that have run out; called about every second."""
        ...

    def close(self, why: str) -> None:
        """End the session and tell so; a second call does nothing. Empty where nothing is wrong."""
        ...

    def figures(self) -> dict[str, int]:
        """How much is given and taken, for people."""
        ...

    async def run(self) -> None:
        """Listens to the peer until the session is over; then it is closed."""
        ...


@runtime_checkable
class Ordering(Protocol):
    """An opener that has several ways to a peer, of which one suits some tensors more than another."""

    def order(self, found: tuple[Match, ...], other: Advert, tensors: Sequence[Tensor]) -> tuple[Match, ...]:
        """The matches of all kinds, those of its own in the order in which they are to be tried.

        Args:
            found: by the adverts, the fastest first.
            other: what the peer tells.
            tensors: that are to be given first; none where that is not known.
        """
        ...


Closed = Callable[[Session, str], None]
"""Hears once that a session is over, and why; nothing where nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A fabric that is being opened.

    Attributes:
        own: this node.
        peer: and the other.
        match: by what the adverts of both say.
        config: bounds.
        control: the stream of the opening; the session's own from now on, where its kind keeps it.
        entropy: draws so many bytes.
        on_closed: what the session tells when it is over.
    """

    own: PeerId
    peer: PeerId
    match: Match
    config: FabricConfig
    control: Control
    entropy: Callable[[int], bytes]
    on_closed: Closed


class Opener(Protocol):
    """Opens fabrics of one kind; where there is none, `absent` says why."""

    @property
    def kind(self) -> Kind:
        """Which."""
        ...

    @property
    def keeps_stream(self) -> bool:
        """Whether the stream of an opening becomes the session's, which ends with it; else it is closed when that is open."""
        ...

    @property
    def absent(self) -> str:
        """Why this kind cannot be used now, and what to do about it; empty where it can."""
        ...

    def advert(self) -> Advert:
        """What of the node's advert tells of this kind."""
        ...

    def way(self, match: Match) -> Way:
        """What a transfer would cost, before anything is open."""
        ...

    def figures(self) -> dict[str, object]:
        """What people want to know of it beside the sessions."""
        ...

    async def knock(self, opening: Opening, door: Door, own_nonce: bytes) -> Session:
        """Open a fabric where the peer has said a door.

        Raises:
            RemoteProtocolError: the peer breaks the protocol, or is elsewhere.
            OSError: the system refuses.
        """
        ...

    async def admit(self, opening: Opening, hello: Hello) -> Session:
        """Say a door to a peer that asks for one, and let it in.

        The peer must not count the fabric as open before this side does, or its first offer finds it closed: so the last word
        of an opening is this side's, and it is said without waiting (by `Control.say`, which the session's run sends).

        Raises:
            RemoteProtocolError: the peer breaks the protocol, or does not come.
            OSError: the system refuses.
        """
        ...

    async def run(self, changed: Callable[[], None]) -> None:
        """Carries out what the kind does beside its sessions, until cancelled; may return where there is nothing.

        Args:
            changed: to be called when `absent` or the advert has become another.
        """
        ...
