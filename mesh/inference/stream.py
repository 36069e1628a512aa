"""What an inference request and its answer travel on: a stream of a peer, or the same with a seal round it."""

from contextlib import AbstractContextManager
from typing import Protocol

from mesh.transport import Doing
from protocol.identity import PeerId


class ByteStream(Protocol):
    """Both directions of a stream, as `mesh.transport.Stream` has them."""

    @property
    def peer_id(self) -> PeerId:
        """Who is at the other end."""

    def waiting(self) -> AbstractContextManager[None]:
        """Enter while the peer is to finish what it began."""

    def tell(self, doing: Doing, *, sent: bool, data: bytes | memoryview = b"", code: int = 0) -> None:
        """Tell those who watch what happened."""

    def at_hand(self) -> bytes:
        """Bytes that have come already; empty where they would have to be waited for."""

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """Wait for bytes; empty when the peer has finished."""

    async def send_all(self, data: bytes, *, end: bool = False, linger: bool = False, with_others: bool = False) -> None:
        """Send bytes, waiting while there is no room."""

    def reset(self, code: int) -> None:
        """Abandon both sides."""

    async def aclose(self) -> None:
        """Finish this side, and read no more."""
