"""What is said of GPU memory beside transfers: leases that are over, regions that are gone, and regions that nobody has open.

A region is opened by its token, which is the key of every lease of it. It stays open until its owner says that it is gone; the
owner gives its memory back only when the other side has let go of it.

Spec: docs/spec/11-fabric.md, section "GPU memory".
"""

from dataclasses import dataclass
from typing import assert_never

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric.values import EPOCH_MAX, REGION_MAX
from protocol.wire import PackingLimits, Plain, pack, unpack

TOKEN_BYTES = 64
"""Length of the token of a region in bytes: that of a handle of CUDA IPC."""

_LIMITS = PackingLimits(size_bytes_max=64, depth_max=1, values_max=8)


@dataclass(frozen=True, slots=True)
class LeaseOver:
    """By the receiver: it has copied what a lease was for."""

    region: int
    epoch: int


@dataclass(frozen=True, slots=True)
class RegionGone:
    """By the owner: no lease of a region comes any more."""

    region: int


@dataclass(frozen=True, slots=True)
class RegionClosed:
    """By the receiver: it does not have a region open that is gone."""

    region: int


Word = LeaseOver | RegionGone | RegionClosed


def encode_word(word: Word) -> bytes:
    """A word without a frame."""
    match word:
        case LeaseOver(region, epoch):
            return pack(["released", region, epoch], _LIMITS)
        case RegionGone(region):
            return pack(["hidden", region], _LIMITS)
        case RegionClosed(region):
            return pack(["closed", region], _LIMITS)
        case _:
            assert_never(word)


def decode_word(frame: bytes | memoryview) -> Word | None:
    """Read a word; None for one of a later version, which is passed over.

    Raises:
        RemoteProtocolError: TOO_LARGE past a bound; MALFORMED for anything else that is no word.
    """
    match unpack(frame, _LIMITS):
        case ["released", region, epoch, *_]:
            return LeaseOver(_number(region, REGION_MAX), _number(epoch, EPOCH_MAX))
        case ["hidden", region, *_]:
            return RegionGone(_number(region, REGION_MAX))
        case ["closed", region, *_]:
            return RegionClosed(_number(region, REGION_MAX))
        case [str(word), *_] if word not in ("released", "hidden", "closed"):
            return None
        case _:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "no word about GPU memory")


def _number(value: Plain, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"no integer from 0 to {largest} in a word about GPU memory")
    return value
