"""The transfers of one lane, as the lane keeps them beside their states."""

from dataclasses import dataclass, field

from mesh.fabric.base import Given
from protocol.fabric import Giving, Lease, Taking
from protocol.fabric.messages import Offer
from protocol.inference import Tensor


@dataclass(eq=False, slots=True)
class Gift:
    """A transfer that this side gives.

    Attributes:
        given: its tensors.
        giving: its state.
        streaming: its bytes are being sent by the stream.
        timed: the time to take it runs.
        fresh: it has got on since the time was looked at.
        tag: of the bytes that were written.
    """

    given: Given
    giving: Giving
    streaming: bool = False
    timed: bool = False
    fresh: bool = False
    tag: bytes = b""

    @property
    def is_open(self) -> bool:
        """Whether the stream is still needed for it."""
        return self.giving.awaits_taking or self.streaming


@dataclass(eq=False, slots=True)
class Receipt:
    """A transfer that this side takes.

    Attributes:
        offer: what came.
        taking: its state.
        tensors: what it has brought, until somebody takes them.
        is_there: whether it has brought them.
        collects: its bytes come by the stream, and are kept.
        arrived: they.
        lease: what this side has granted for it.
        tag: what the peer says it has written.
    """

    offer: Offer
    taking: Taking
    tensors: tuple[Tensor, ...] = ()
    is_there: bool = False
    collects: bool = False
    arrived: bytearray = field(default_factory=bytearray)
    lease: Lease | None = None
    tag: bytes = b""
