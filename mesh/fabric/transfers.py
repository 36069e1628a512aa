"""The transfers of one lane, as the lane keeps them beside their states."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mesh.fabric.base import Given, Session
from protocol.encoding import encode_frame
from protocol.fabric import Giver, Giving, Kind, Lease, Taking
from protocol.fabric.messages import HEAD_BYTES, Offer, bulk_head
from protocol.inference import Tensor

TRANSFERS_MAX = 4096
"""Transfers of one stream and direction, a count: an answer of so many outputs with large tensors goes on by the stream."""

COMPARED_BYTES = 16 * 2**20
"""Bytes that a receiver is given the time for a transfer once more to compare with their tag: 160 MB/s, which BLAKE2b does on any
processor of today."""

FIRST_BYTES = 16 * 1024
"""Bytes of a transfer that leave first by the stream, in a frame of their own: so many leave at once on any path, and tell when
the stream has taken over (ISO-FAB-018), which a whole piece does only when the peer has made room for it."""


@dataclass(eq=False, slots=True)
class Gift:
    """A transfer that this side gives.

    Attributes:
        session: the fabric that it takes.
        given: its tensors.
        giving: its state.
        streaming: its bytes are being sent by the stream.
        timed: the time to take it runs.
        fresh: it has got on since the time was looked at.
        tag: of the bytes that were written.
        looks: how often the time was looked at while the peer compares the tag.
        failed_at: when the first sign came that the fabric does not carry it, in monotonic seconds; None without one.
    """

    session: Session
    given: Given
    giving: Giving
    streaming: bool = False
    timed: bool = False
    fresh: bool = False
    tag: bytes = b""
    looks: int = 0
    failed_at: float | None = None

    def has_time(self) -> bool:
        """Whether the time to take it begins anew.

        It does where it has got on, where the hardware still writes, which ends by itself, and where so much is to be compared.
        """
        if self.fresh or self.giving.state is Giver.WRITING:
            self.fresh = False
            return True
        self.looks += 1
        compares = self.giving.state is Giver.PLACED or (self.giving.state is Giver.OFFERED and bool(self.given.tag))
        return compares and self.looks <= self.given.size_bytes // COMPARED_BYTES

    def failed(self, now: float) -> None:
        """There is a sign that the fabric does not carry it; the first one counts."""
        if self.failed_at is None:
            self.failed_at = now

    @property
    def is_open(self) -> bool:
        """Whether the stream is still needed for it."""
        return self.giving.awaits_taking or self.streaming


async def send_pieces(
    gift: Gift, send: Callable[[bytes], Awaitable[None]], frame_bytes_max: int, fell_back: Callable[[Kind, float], None]
) -> None:
    """Send the bytes of a transfer, the first few by themselves, until the receiver has taken it after all.

    Args:
        gift: the transfer.
        send: sends a frame.
        frame_bytes_max: of one frame.
        fell_back: is told when the first have left.
    """
    first = True
    for piece in gift.given.pieces(frame_bytes_max - HEAD_BYTES):
        for part in (piece[:FIRST_BYTES], piece[FIRST_BYTES:]) if first else (piece,):
            if gift.giving.state is Giver.TAKEN:  # the receiver drops what comes
                return
            if part:
                await send(encode_frame(bulk_head() + part))
            if first and gift.failed_at is not None:
                fell_back(gift.session.kind, gift.failed_at)
            first = False


@dataclass(eq=False, slots=True)
class Receipt:
    """A transfer that this side takes.

    Attributes:
        session: the fabric by which it comes; None where there is none.
        offer: what came.
        taking: its state.
        tensors: what it has brought, until somebody takes them.
        is_there: whether it has brought them.
        collects: its bytes come by the stream, and are kept.
        arrived: they.
        lease: what this side has granted for it.
        tag: what the peer says it has written.
    """

    session: Session | None
    offer: Offer
    taking: Taking
    tensors: tuple[Tensor, ...] = ()
    is_there: bool = False
    collects: bool = False
    arrived: bytearray = field(default_factory=bytearray)
    lease: Lease | None = None
    tag: bytes = b""

    @property
    def has_arrived(self) -> bool:
        """Whether all bytes are there that are collected."""
        return self.collects and len(self.arrived) == self.offer.size_bytes

    def from_stream(self) -> tuple[Tensor, ...]:
        """The tensors, all of whose bytes have come by the stream."""
        view, tensors, at = memoryview(self.arrived).toreadonly(), [], 0
        for place in self.offer.places:
            tensors.append(Tensor(place.name, place.dtype, place.shape, view[at : at + place.length]))
            at += place.length
        return tuple(tensors)
