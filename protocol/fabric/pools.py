"""How a pool of memory is laid out that several hosts map, and what two of its owners say to each other beside transfers.

    superblock     one page, written when the pool is made, and by nobody afterwards
    slots          one for each owner: head, beat, name; then its claims and its holds, a bit for each slab
    slabs          the memory; a region is a run of slabs that one owner claims, and begins with a head

No host can lock another out, and none is asked to: every field has one writer. The owner of a slot alone writes the slot, the
claims and the slabs that it claims, and also the holds, by which it says that it still looks at slabs of others. How a slot gets
its owner, and slabs theirs, is written in the specification.

Every field here is read from memory that others write whenever they like. A line of 64 bytes carries a checksum, since it may be
read while it is written; the checksum finds accidents and nobody's ill will.

Spec: docs/spec/11-fabric.md, section "Pools".
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.fabric.adverts import POOL_ID_BYTES
from protocol.fabric.values import EPOCH_MAX, REGION_MAX
from protocol.wire import PackingLimits, pack, unpack

LINE_BYTES = 64
"""Size of a line in bytes: what a processor writes back at once, so heads are no longer."""

PAGE_BYTES = 4096
"""Size of a page in bytes: where the superblock ends and slots begin."""

SLOTS_MAX = 64
"""Owners of one pool, a count: hosts that one device of CXL memory serves are fewer, and each has a node or a few."""

SLAB_BYTES_MIN = 64 * 1024
"""Smallest slab in bytes: tensors below a mebibyte take the stream."""

SLABS_MAX = 65536
"""Slabs of one pool, a count: their bits take 8 KiB of a slot, and a pool of a tebibyte has slabs of 16 MiB."""

POOL_BYTES_MIN = 8 * 2**20
"""Smallest pool in bytes: the slots of an empty one take less than a fifth of it."""

POOL_BYTES_MAX = 2**46
"""Largest pool in bytes: 64 TiB, as offsets are bounded (`BYTES_MAX`)."""

NONCE_BYTES = 16
"""Length in bytes of what an owner draws for each claim of a slot: two never draw the same."""

NAME_BYTES_MAX = 63
"""Longest name of an owner in bytes: a line, less its length."""

TOKEN_BYTES = 42
"""Length of a token in bytes."""

VERSION_MAGIC = b"ISOPOOL1"
"""What a pool of this layout begins with."""

_SUPERBLOCK = struct.Struct("<8s16sIIQQI8x")
_SLOT = struct.Struct("<4sIQ16s28x")
_REGION = struct.Struct("<4sIQIIQQ20x")
_BEAT = struct.Struct("<Q")
_PLACE = struct.Struct("<II")
_TOKEN = struct.Struct("<16sHQ16s")
_CHECK = struct.Struct("<I")
_SLOT_MAGIC, _REGION_MAGIC = b"ISOO", b"ISOR"
_WORD_LIMITS = PackingLimits(size_bytes_max=128, depth_max=2, values_max=8)


class PoolFlags(IntFlag):
    """What holds for a whole pool; the numbers stand in memory."""

    COHERENT = 1  # what one host writes the others see without flushes
    TAGGED = 2  # readers copy what they take and check its tag


_FLAGS_KNOWN = int(PoolFlags.COHERENT | PoolFlags.TAGGED)


class SlotState(IntEnum):
    """Whether a slot has an owner; the numbers stand in memory."""

    FREE = 0
    CLAIMED = 1


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """A pool: what its superblock says, and where everything stands, which follows from it.

    Attributes:
        pool_id: drawn when the pool is made.
        flags: what holds for all of it.
        size_bytes: of all of it.
        slab_bytes: of each slab, a power of two.
        slots: how many owners it may have.
        bits_bytes: length of the claims of a slot, and of its holds.
        slot_bytes: length of a slot.
        slabs_at: where the first slab begins.
        slabs: how many there are.
    """

    pool_id: bytes
    flags: PoolFlags
    size_bytes: int
    slab_bytes: int
    slots: int
    bits_bytes: int
    slot_bytes: int
    slabs_at: int
    slabs: int

    def slot_at(self, slot: int) -> int:
        """Where a slot begins, in bytes from the start."""
        assert 0 <= slot < self.slots
        return PAGE_BYTES + slot * self.slot_bytes

    def claims_at(self, slot: int) -> int:
        """Where its claims begin."""
        return self.slot_at(slot) + PAGE_BYTES

    def holds_at(self, slot: int) -> int:
        """Where its holds begin."""
        return self.claims_at(slot) + self.bits_bytes

    def slab_at(self, slab: int) -> int:
        """Where a slab begins."""
        assert 0 <= slab < self.slabs
        return self.slabs_at + slab * self.slab_bytes


def lay_out(pool_id: bytes, flags: PoolFlags, size_bytes: int, slab_bytes: int, slots: int = SLOTS_MAX) -> PoolLayout:
    """Where everything stands in a pool.

    Raises:
        LocalProtocolError: OUT_OF_BOUNDS, there is no such pool.
    """
    is_power = slab_bytes > 0 and slab_bytes & (slab_bytes - 1) == 0
    if not (is_power and slab_bytes >= SLAB_BYTES_MIN and 0 < slots <= SLOTS_MAX and len(pool_id) == POOL_ID_BYTES):
        raise _no_pool(f"slabs of {slab_bytes} bytes and {slots} owners")
    if not POOL_BYTES_MIN <= size_bytes <= POOL_BYTES_MAX or size_bytes // slab_bytes > SLABS_MAX:
        raise _no_pool(f"{size_bytes} bytes in slabs of {slab_bytes}")
    bits_bytes = _up(-(-(size_bytes // slab_bytes) // 8), LINE_BYTES)
    slot_bytes = PAGE_BYTES + _up(2 * bits_bytes, PAGE_BYTES)
    slabs_at = _up(PAGE_BYTES + slots * slot_bytes, slab_bytes)
    if slabs_at + slab_bytes > size_bytes:
        raise _no_pool(f"{size_bytes} bytes, of which {slabs_at} are taken by {slots} owners' slots")
    slabs = (size_bytes - slabs_at) // slab_bytes
    return PoolLayout(pool_id, flags, size_bytes, slab_bytes, slots, bits_bytes, slot_bytes, slabs_at, slabs)


def slab_bytes_for(size_bytes: int, alignment_bytes: int = PAGE_BYTES) -> int:
    """The slabs of a pool of so many bytes: small ones, but no more than there may be, and whole pages of the device."""
    slab_bytes = SLAB_BYTES_MIN
    while slab_bytes < alignment_bytes or size_bytes // slab_bytes > SLABS_MAX:
        slab_bytes *= 2
    return slab_bytes


def encode_superblock(layout: PoolLayout) -> bytes:
    """The first line of a pool."""
    return _checked(
        _SUPERBLOCK.pack(
            VERSION_MAGIC,
            layout.pool_id,
            layout.flags,
            layout.slots,
            layout.size_bytes,
            layout.slab_bytes,
            layout.slabs,
        )
    )


def decode_superblock(line: bytes | memoryview, size_bytes: int) -> PoolLayout:
    """Read the first line of a pool; nothing in it is believed that the rest of the pool could not be.

    Args:
        line: `LINE_BYTES` bytes, a copy.
        size_bytes: of the pool, as the system tells it.

    Raises:
        RemoteProtocolError: MALFORMED, it is no pool of this version; OUT_OF_BOUNDS, it is larger than what is there.
    """
    data = _unchecked(line, "a superblock")
    magic, pool_id, flags, slots, told_bytes, slab_bytes, slabs = _SUPERBLOCK.unpack(data)
    if magic != VERSION_MAGIC:
        raise _malformed("no pool of this version")
    if told_bytes > size_bytes:
        raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, f"a pool of {told_bytes} bytes where {size_bytes} are")
    try:
        layout = lay_out(pool_id, PoolFlags(flags & _FLAGS_KNOWN), told_bytes, slab_bytes, slots)
    except LocalProtocolError as error:
        raise _malformed(error.detail) from None
    if layout.slabs != slabs or flags & ~_FLAGS_KNOWN:
        raise _malformed("a superblock that does not agree with itself, or of a later version")
    return layout


@dataclass(frozen=True, slots=True)
class SlotHead:
    """Who owns a slot: in which epoch, greater with each owner, and by which nonce."""

    state: SlotState = SlotState.FREE
    epoch: int = 0
    nonce: bytes = bytes(NONCE_BYTES)


def encode_slot(head: SlotHead) -> bytes:
    """The first line of a slot."""
    return _checked(_SLOT.pack(_SLOT_MAGIC, head.state, head.epoch, head.nonce))


def decode_slot(line: bytes | memoryview) -> SlotHead:
    """Read the first line of a slot; a line of zeros is a slot that nobody has had.

    Raises:
        RemoteProtocolError: MALFORMED, it is none, or is being written.
    """
    if bytes(line) == bytes(LINE_BYTES):
        return SlotHead()
    magic, state, epoch, nonce = _SLOT.unpack(_unchecked(line, "a slot"))
    if magic != _SLOT_MAGIC or state not in (SlotState.FREE, SlotState.CLAIMED) or epoch > EPOCH_MAX:
        raise _malformed("no slot")
    return SlotHead(SlotState(state), epoch, nonce)


def encode_beat(beat: int) -> bytes:
    """The second line of a slot: a counter that grows while its owner lives."""
    return _BEAT.pack(beat) + bytes(LINE_BYTES - _BEAT.size)


def decode_beat(line: bytes | memoryview) -> int:
    """Read the second line of a slot; every number is one."""
    beat: int = _BEAT.unpack(bytes(line[: _BEAT.size]))[0]
    return beat


def encode_name(name: str) -> bytes:
    """The third line of a slot: what the owner calls itself, for people."""
    told = name.encode()[:NAME_BYTES_MAX]
    return bytes([len(told)]) + told + bytes(LINE_BYTES - 1 - len(told))


def decode_name(line: bytes | memoryview) -> str:
    """Read the third line of a slot; what cannot be shown in a terminal is left out."""
    told = bytes(line[1 : 1 + min(line[0], NAME_BYTES_MAX)]).decode(errors="ignore")
    return "".join(character for character in told if character.isprintable())


@dataclass(frozen=True, slots=True)
class RegionHead:
    """What a region says of itself: whose it is, and which lease of it holds.

    Attributes:
        slot: of its owner.
        owner_epoch: and of the slot.
        region: its number, in the session with the peer that it is given to.
        epoch: of the lease that holds.
        length: of that, in bytes.
    """

    slot: int
    owner_epoch: int
    region: int
    epoch: int
    length: int


def encode_region(head: RegionHead) -> bytes:
    """The first line of a region."""
    told = (_REGION_MAGIC, head.slot, head.owner_epoch, head.region, 0, head.epoch, head.length)
    return _checked(_REGION.pack(*told))


def decode_region(line: bytes | memoryview) -> RegionHead:
    """Read the first line of a region.

    Raises:
        RemoteProtocolError: STALE_LEASE, none is there any more, or none yet.
    """
    try:
        magic, slot, owner_epoch, region, _, epoch, length = _REGION.unpack(_unchecked(line, "a region"))
    except RemoteProtocolError as error:
        raise RemoteProtocolError(ErrorCode.STALE_LEASE, error.detail) from None
    if magic != _REGION_MAGIC:
        raise RemoteProtocolError(ErrorCode.STALE_LEASE, "no region")
    return RegionHead(slot, owner_epoch, region, epoch, length)


def encode_place(first: int, count: int) -> bytes:
    """The key of a lease: the slabs in which its region lies."""
    return _PLACE.pack(first, count)


def decode_place(key: bytes, layout: PoolLayout) -> tuple[int, int]:
    """Read the key of a lease: the first slab, and how many.

    Raises:
        RemoteProtocolError: MALFORMED, OUT_OF_BOUNDS.
    """
    if len(key) != _PLACE.size:
        raise _malformed(f"a key of {len(key)} bytes")
    first, count = _PLACE.unpack(key)
    if not 0 < count <= layout.slabs - first:
        raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, f"{count} slabs from {first} of {layout.slabs}")
    return first, count


# What is said on the control stream.


@dataclass(frozen=True, slots=True)
class Token:
    """Who a node is in a pool: told by the QUIC session, and to be found in the slot, which proves that both map one pool."""

    pool_id: bytes
    slot: int
    epoch: int
    nonce: bytes


def encode_token(token: Token) -> bytes:
    """A token as the place of a door, and in a word."""
    return _TOKEN.pack(token.pool_id, token.slot, token.epoch, token.nonce)


def pool_of_token(data: bytes) -> bytes:
    """The id of the pool that a token is of, for who is in several.

    Raises:
        RemoteProtocolError: MALFORMED, it is no token.
    """
    if len(data) != TOKEN_BYTES:
        raise _malformed(f"a token of {len(data)} bytes")
    return data[:POOL_ID_BYTES]


def decode_token(data: bytes, layout: PoolLayout) -> Token:
    """Read a token.

    Raises:
        RemoteProtocolError: MALFORMED; OUT_OF_BOUNDS for a slot that is none; UNSUPPORTED for another pool.
    """
    if len(data) != TOKEN_BYTES:
        raise _malformed(f"a token of {len(data)} bytes")
    pool_id, slot, epoch, nonce = _TOKEN.unpack(data)
    if pool_id != layout.pool_id:
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED, "another pool")
    if slot >= layout.slots or epoch > EPOCH_MAX:
        raise RemoteProtocolError(ErrorCode.OUT_OF_BOUNDS, f"slot {slot} of {layout.slots}")
    return Token(pool_id, slot, epoch, nonce)


@dataclass(frozen=True, slots=True)
class Enter:
    """The opener says who it is."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Entered:
    """The other side has let it in: the fabric is open."""


@dataclass(frozen=True, slots=True)
class LeaseReleased:
    """The lease of a region and epoch is over."""

    region: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Hidden:
    """A region is gone, and its number does not come again."""

    region: int


PoolWord = Enter | Entered | LeaseReleased | Hidden


def encode_word(word: PoolWord) -> bytes:
    """A word of the control stream, without a frame."""
    match word:
        case Enter(token):
            return pack(["enter", token], _WORD_LIMITS)
        case Entered():
            return pack(["entered"], _WORD_LIMITS)
        case LeaseReleased(region, epoch):
            return pack(["released", region, epoch], _WORD_LIMITS)
        case Hidden(region):
            return pack(["hidden", region], _WORD_LIMITS)


def decode_word(frame: bytes | memoryview) -> PoolWord | None:
    """Read a word; None for one of a later version.

    Raises:
        RemoteProtocolError: TOO_LARGE, MALFORMED.
    """
    match unpack(frame, _WORD_LIMITS):
        case ["enter", bytes(token), *_]:
            return Enter(token)
        case ["entered", *_]:
            return Entered()
        case ["released", int(region), int(epoch), *_] if 0 <= region <= REGION_MAX and 0 <= epoch <= EPOCH_MAX:
            return LeaseReleased(int(region), int(epoch))
        case ["hidden", int(region), *_] if 0 <= region <= REGION_MAX:
            return Hidden(int(region))
        case [str(word), *_] if word not in _WORDS:
            return None
        case _:
            raise _malformed("no word of a pool")


_WORDS = frozenset(("enter", "entered", "released", "hidden"))


def _checked(data: bytes) -> bytes:
    """A line: 60 bytes, and their checksum."""
    return data + _CHECK.pack(zlib.crc32(data))


def _unchecked(line: bytes | memoryview, what: str) -> bytes:
    """The 60 bytes of a line whose checksum is right."""
    data = bytes(line)
    if len(data) != LINE_BYTES or _CHECK.pack(zlib.crc32(data[: -_CHECK.size])) != data[-_CHECK.size :]:
        raise _malformed(f"{what} whose checksum is wrong, or that is being written")
    return data[: -_CHECK.size]


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


def _no_pool(detail: str) -> LocalProtocolError:
    return LocalProtocolError(ErrorCode.OUT_OF_BOUNDS, f"there is no such pool: {detail}")


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.MALFORMED, detail)
