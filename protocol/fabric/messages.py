"""What is said about transfers on a stream, and how two nodes open a fabric.

    /isochrone/fabric/1.0.0        one `Hello`, one `Door` or `Shut`: how the fabric between the two is opened
    /isochrone/infer-fabric/1.0.0  the messages of chapter 6, and between them messages about the transfers of their tensors

On the second stream a frame is told by its bytes 4 to 7, where the messages of chapter 6 have their identifier: `ISIF` is a
message about a transfer, `ISIB` is bytes of a tensor that the fabric did not carry. The four bytes before are zero.

Spec: docs/spec/11-fabric.md, section "Messages".
"""

from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import assert_never

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric.adverts import PORTS_MAX
from protocol.fabric.values import (
    BYTES_MAX,
    DIMENSIONS_MAX,
    EPOCH_MAX,
    KEY_BYTES_MAX,
    LIFETIME_S_MAX,
    NAME_BYTES_MAX,
    REGION_MAX,
    TENSORS_MAX,
    Kind,
    Lease,
    Place,
    Rights,
    item_bytes,
)
from protocol.wire import PackingLimits, Plain, pack, unpack
from protocol.wire.inference import DATA_TYPES

FABRIC_PROTOCOL = "/isochrone/fabric/1.0.0"
"""Opens a fabric."""

INFER_FABRIC_PROTOCOL = "/isochrone/infer-fabric/1.0.0"
"""One request and its answer, with tensors by a fabric."""

MESSAGE_BYTES_MAX = 16 * 1024
"""Longest message in bytes with its head: 32 tensors with the longest names and shapes take 11,000."""

TRANSFER_MAX = 2**16 - 1
"""Largest number of a transfer within one stream, unitless: each event of an answer may have one."""

TAG_BYTES_MAX = 32
"""Longest tag of a transfer's bytes."""

DETAIL_BYTES_MAX = 256
"""Longest sentence of a refusal in bytes of UTF-8."""

SECRET_BYTES = 32
"""Length in bytes of the secret by which the local socket is tied to the QUIC session."""

NONCE_BYTES = 16
"""Length in bytes of what each side draws for one opening."""

PLACE_BYTES_MAX = 107
"""Longest name of a local socket in bytes: what `sun_path` holds with a zero (unix(7))."""

KINDS_MAX = 8
"""Most kinds of fabric that a `Hello` may name; there are four."""

HEAD_BYTES = 8
"""Bytes before a message: four zeros and the identifier."""

ABOUT_TRANSFER = b"ISIF"
"""Identifier of messages about transfers."""

BULK = b"ISIB"
"""Identifier of bytes that the fabric did not carry."""

_LIMITS = PackingLimits(size_bytes_max=MESSAGE_BYTES_MAX - HEAD_BYTES, depth_max=4, values_max=640)
_OPENING_LIMITS = PackingLimits(size_bytes_max=1024, depth_max=2, values_max=32)
_ZEROS = bytes(HEAD_BYTES - len(ABOUT_TRANSFER))
# Largest size of one dimension, unitless: 32 bits, as in the messages of chapter 6.
_SHAPE_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Offer:
    """A transfer begins. With `lease` its tensors are there to be read; without, one to write is asked for.

    With `on_device` they lie on a device, and a lease of memory of a device would be written to without a tag.
    """

    transfer: int
    kind: Kind
    places: tuple[Place, ...]
    lease: Lease | None = None
    tag: bytes = b""
    on_device: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(place.length for place in self.places)


@dataclass(frozen=True, slots=True)
class Leased:
    """The receiver leases a region to write the tensors of a transfer to."""

    transfer: int
    lease: Lease


@dataclass(frozen=True, slots=True)
class Placed:
    """The giver has written; `tag` is that of the bytes."""

    transfer: int
    tag: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """The receiver has the tensors."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The receiver does not have them and uses no lease of this transfer from now on; the bytes are wanted by the stream."""

    transfer: int
    code: ErrorCode
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Released:
    """The receiver is done with the tensors, and the lease is over."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Revoked:
    """The owner takes the lease back; what was read by it and has not been answered for does not count."""

    transfer: int


@dataclass(frozen=True, slots=True)
class Streamed:
    """The tensors' bytes follow, one after another, in frames of their own."""

    transfer: int


Message = Offer | Leased | Placed | Taken | Refused | Released | Revoked | Streamed


class FrameKind(Enum):
    """What a frame of the stream is."""

    INFERENCE = "inference"
    TRANSFER = "transfer"
    BULK = "bulk"


def kind_of_frame(frame: bytes | memoryview) -> FrameKind:
    """Tell what a frame is, by its head alone."""
    head = bytes(frame[:HEAD_BYTES])
    if head == _ZEROS + ABOUT_TRANSFER:
        return FrameKind.TRANSFER
    return FrameKind.BULK if head == _ZEROS + BULK else FrameKind.INFERENCE


def bulk_head() -> bytes:
    """What stands before bytes that the fabric did not carry."""
    return _ZEROS + BULK


def encode_message(message: Message) -> bytes:
    """A message with its head, without a frame.

    Raises:
        LocalProtocolError: it would be too long.
    """
    return _ZEROS + ABOUT_TRANSFER + pack(_to_plain(message), _LIMITS)


def decode_message(frame: bytes | memoryview) -> Message | None:
    """Read a message; None for a word of a later version, which is passed over.

    Raises:
        RemoteProtocolError: TOO_LARGE past a bound; MALFORMED for anything else that is no message.
    """
    if len(frame) > MESSAGE_BYTES_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a message of {len(frame)} bytes")
    if kind_of_frame(frame) is not FrameKind.TRANSFER:
        raise _malformed("no message about a transfer")
    value = unpack(frame[HEAD_BYTES:], _LIMITS)
    match value:
        case [str(word), *_] if word not in _WORDS:
            return None
        case [str(word), transfer, *rest]:
            return _read(word, _number(transfer, TRANSFER_MAX, "a transfer"), rest)
        case _:
            raise _malformed("no message about a transfer")


_WORDS = frozenset(("offer", "leased", "placed", "taken", "refused", "released", "revoked", "streamed"))


def _to_plain(message: Message) -> list[object]:
    match message:
        case Offer(transfer, kind, places, lease, tag, on_device):
            told = [[place.name, place.dtype, list(place.shape), place.offset, place.length] for place in places]
            more = [True] if on_device else []
            return ["offer", transfer, int(kind), told, None if lease is None else _lease_to_plain(lease), tag, *more]
        case Leased(transfer, lease):
            return ["leased", transfer, _lease_to_plain(lease)]
        case Placed(transfer, tag):
            return ["placed", transfer, tag]
        case Taken(transfer):
            return ["taken", transfer]
        case Refused(transfer, code, detail):
            return ["refused", transfer, int(code), _cut(detail)]
        case Released(transfer):
            return ["released", transfer]
        case Revoked(transfer):
            return ["revoked", transfer]
        case Streamed(transfer):
            return ["streamed", transfer]
        case _:
            assert_never(message)


def _read(word: str, transfer: int, rest: list[Plain]) -> Message:
    """Read what follows a word that is known and the number of its transfer."""
    match word, rest:
        case "offer", [kind, list(places), lease, bytes(tag), *more] if len(tag) <= TAG_BYTES_MAX:
            return _offer(transfer, kind, places, lease, tag, more[0] if more else False)
        case "leased", [lease, *_]:
            return Leased(transfer, _lease(lease))
        case "placed", [bytes(tag), *_] if len(tag) <= TAG_BYTES_MAX:
            return Placed(transfer, tag)
        case "taken", _:
            return Taken(transfer)
        case "refused", [code, str(detail), *_] if len(detail.encode()) <= DETAIL_BYTES_MAX:
            return Refused(transfer, _code(code), detail)
        case "released", _:
            return Released(transfer)
        case "revoked", _:
            return Revoked(transfer)
        case "streamed", _:
            return Streamed(transfer)
        case _:
            raise _malformed(f"{word} with something else behind it")


def _offer(transfer: int, kind: Plain, places: list[Plain], lease: Plain, tag: bytes, on_device: Plain) -> Offer:
    if not isinstance(on_device, bool):
        raise _malformed("an offer that does not say whether its tensors lie on a device")
    number = _number(kind, 255, "a kind")
    if number not in _KINDS:
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"fabric {number}")
    if len(places) > TENSORS_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{len(places)} tensors; {TENSORS_MAX} are allowed")
    told = None if lease is None else _lease(lease)
    offer = Offer(transfer, Kind(number), tuple(map(_place, places)), told, tag, on_device)
    if offer.size_bytes > BYTES_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a transfer of {offer.size_bytes} bytes")
    if offer.lease is not None:
        _inside(offer.places, offer.lease)
    return offer


def _inside(places: tuple[Place, ...], lease: Lease) -> None:
    """Refuse tensors that do not lie in the lease they come with."""
    for place in places:
        if not lease.covers(place.offset, place.length):
            raise RemoteProtocolError(
                ErrorCode.OUT_OF_BOUNDS, f"{place.length} bytes at {place.offset} of a lease of {lease.length}"
            )


def _place(value: Plain) -> Place:
    match value:
        case [str(name), str(dtype), list(shape), offset, length, *_] if len(name.encode()) <= NAME_BYTES_MAX:
            if dtype not in DATA_TYPES:
                raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"data type {dtype[:8]!r} is not known to this version")
            if len(shape) > DIMENSIONS_MAX:
                raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{len(shape)} dimensions")
            sizes = tuple(_number(size, _SHAPE_MAX, "a dimension") for size in shape)
            place = Place(name, dtype, sizes, _number(offset, BYTES_MAX, "an offset"), _number(length, BYTES_MAX, "a length"))
            if prod(sizes) * item_bytes(dtype) != place.length:
                raise _malformed(f"a tensor {dtype} of shape {sizes} with {place.length} bytes")
            return place
        case _:
            raise _malformed("no tensor")


def _lease_to_plain(lease: Lease) -> list[object]:
    lifetime_ms = max(1, round(min(lease.lifetime_s, LIFETIME_S_MAX) * 1e3))
    return [lease.region, lease.epoch, lease.offset, lease.length, int(lease.rights), lifetime_ms, lease.key]


def _lease(value: Plain) -> Lease:
    match value:
        case [region, epoch, offset, length, rights, lifetime_ms, bytes(key), *_] if len(key) <= KEY_BYTES_MAX:
            allowed = _number(rights, 255, "rights")
            if allowed not in (Rights.READ, Rights.WRITE):
                raise _malformed(f"rights {allowed}")
            lasts_ms = _number(lifetime_ms, round(LIFETIME_S_MAX * 1e3), "a lifetime")
            if lasts_ms == 0:
                raise _malformed("a lease without a lifetime")
            return Lease(
                _number(region, REGION_MAX, "a region"),
                _number(epoch, EPOCH_MAX, "an epoch"),
                _number(offset, BYTES_MAX, "an offset"),
                _number(length, BYTES_MAX, "a length"),
                Rights(allowed),
                lasts_ms / 1e3,
                key,
            )
        case _:
            raise _malformed("no lease")


# How a fabric is opened.


@dataclass(frozen=True, slots=True)
class Hello:
    """Opens a fabric: the kinds that would do, the preferred first, and what the opener draws for this opening.

    Of RDMA `ports` names the pair that is to be tried, the opener's port and the door's, by their places in both adverts.
    """

    kinds: tuple[int, ...]
    nonce: bytes
    ports: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Door:
    """Where the other side is reached by a fabric of the kind, and by which secret an entrant shows that it was told so here."""

    kind: Kind
    place: bytes
    secret: bytes
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Shut:
    """There is no fabric between the two at present."""

    code: ErrorCode
    detail: str = ""


def encode_hello(hello: Hello) -> bytes:
    """A `Hello` without a frame."""
    more = [] if hello.ports is None else [list(hello.ports)]
    return pack(["hello", list(hello.kinds), hello.nonce, *more], _OPENING_LIMITS)


def decode_hello(frame: bytes | memoryview) -> Hello:
    """Read a `Hello`; kinds of later versions are among its numbers.

    Raises:
        RemoteProtocolError: TOO_LARGE or MALFORMED.
    """
    match unpack(frame, _OPENING_LIMITS):
        case ["hello", list(kinds), bytes(nonce), *more] if len(kinds) <= KINDS_MAX and len(nonce) == NONCE_BYTES:
            return Hello(tuple(_number(kind, 255, "a kind") for kind in kinds), nonce, _ports(more[0]) if more else None)
        case _:
            raise _malformed("no hello of a fabric")


def _ports(value: Plain) -> tuple[int, int]:
    match value:
        case [own, theirs, *_]:
            return _number(own, PORTS_MAX - 1, "a port"), _number(theirs, PORTS_MAX - 1, "a port")
        case _:
            raise _malformed("no pair of ports")


def encode_opening(answer: Door | Shut) -> bytes:
    """What is said to a `Hello`, without a frame."""
    match answer:
        case Door(kind, place, secret, nonce):
            return pack(["door", int(kind), place, secret, nonce], _OPENING_LIMITS)
        case Shut(code, detail):
            return pack(["shut", int(code), _cut(detail)], _OPENING_LIMITS)


def decode_opening(frame: bytes | memoryview) -> Door | Shut:
    """Read what is said to a `Hello`.

    Raises:
        RemoteProtocolError: TOO_LARGE or MALFORMED; UNSUPPORTED for a kind that was not asked for.
    """
    match unpack(frame, _OPENING_LIMITS):
        case ["door", kind, bytes(place), bytes(secret), bytes(nonce), *_] if (
            0 < len(place) <= PLACE_BYTES_MAX and len(secret) == SECRET_BYTES and len(nonce) == NONCE_BYTES
        ):
            number = _number(kind, 255, "a kind")
            if number not in _KINDS:
                raise RemoteProtocolError(ErrorCode.UNSUPPORTED, f"fabric {number}")
            return Door(Kind(number), place, secret, nonce)
        case ["shut", code, str(detail), *_] if len(detail.encode()) <= DETAIL_BYTES_MAX:
            return Shut(_code(code), detail)
        case _:
            raise _malformed("no answer to a hello of a fabric")


_KINDS = frozenset(int(kind) for kind in Kind)
_CODES = {int(code): code for code in ErrorCode}


def _code(value: Plain) -> ErrorCode:
    """An error code; one of a later version is INTERNAL (chapter 0)."""
    return _CODES.get(_number(value, 2**16 - 1, "a code"), ErrorCode.INTERNAL)


def _number(value: Plain, largest: int, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise _malformed(f"{what} that is no integer from 0 to {largest}")
    return value


def _cut(detail: str) -> str:
    return detail.encode(errors="replace")[:DETAIL_BYTES_MAX].decode(errors="ignore")


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.MALFORMED, detail)
