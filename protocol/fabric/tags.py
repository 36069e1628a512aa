"""The tag of a transfer: by which a receiver finds that a fabric has carried other bytes than were given.

Source: RFC 7693 (BLAKE2b). Spec: docs/spec/11-fabric.md, section "Messages".
"""

import hashlib
import hmac
from collections.abc import Iterable

from protocol.errors import ErrorCode, RemoteProtocolError

TAG_BYTES = 16
"""Length of the tags that this node makes, in bytes: none is met by chance, and what is checked are accidents of hardware and
peers that do not know the other bytes."""


def tag_of(pieces: Iterable[bytes | memoryview]) -> bytes:
    """The tag of the tensors' bytes, in order."""
    return _digest(pieces)[:TAG_BYTES]


def check_tag(pieces: Iterable[bytes | memoryview], tag: bytes) -> None:
    """See that bytes are those that a tag was made of.

    Raises:
        RemoteProtocolError: CORRUPTED, they are others, or the tag is too short to say.
    """
    if len(tag) < TAG_BYTES or not hmac.compare_digest(_digest(pieces)[: len(tag)], tag):
        raise RemoteProtocolError(ErrorCode.CORRUPTED, "other bytes than were given, by their tag")


def _digest(pieces: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
