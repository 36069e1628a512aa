"""The messages of gossip and their msgpack.

Each is an array whose first element tells which: records pushed or asked for; a digest of hashes; entries of buckets, or of
what is news; wants; a link asked for or given back; records not wanted any more; a beat; whether the connection is kept; which
part of the mesh the sender holds; cards looked for beyond that part. Keys and sequence numbers are packed into one byte string,
8 and 8 bytes big-endian: there may be thousands of them. Elements after the known ones are ignored, and so are messages of
unknown types: later versions may send them.

Spec: docs/spec/04-gossip.md, section "Messages".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.coordinates import DIMENSIONS
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import SIGNATURE_BYTES
from protocol.records import DEFAULT_RECORD_CONFIG, SEQUENCE_MAX
from protocol.scope import RADIUS_S_MAX, Scope
from protocol.table import BUCKET_HASH_BYTES, BUCKETS, RECORD_KEY_BYTES, RecordKey
from protocol.wire import PackingLimits, Plain, pack, unpack

GOSSIP_PROTOCOL = "/isochrone/gossip/3.0.0"
"""What streams of these messages are negotiated as; frozen with release 0.1.0 (docs/spec/README.md, "Versions")."""

MESSAGE_BYTES_MAX = 65_536
"""Longest message in bytes: the control message size of the mesh; longer lists are split."""

ENTRIES_MAX = 3072
"""Most entries in one message, a count: 48 KiB of them, three quarters of a message."""

WANTS_MAX = 1024
"""Most keys in one want, a count: 8 KiB, and about half a megabyte of answer."""

ENVELOPES_MAX = 512
"""Most envelopes in one message, a count: the shortest have 150 bytes."""

LEGS_MAX = 127
"""Most legs of a probe that a node can say it speaks, a count: one byte of msgpack. Three are known."""

SOUGHT_MAX = 16
"""Most cards in the answer to one search, a count: more than a request has candidates worth asking."""

MODEL_BYTES_MAX = DEFAULT_RECORD_CONFIG.name_bytes_max
"""Longest name of a model in bytes of UTF-8: as on a card."""

STAMP_BYTES = SIGNATURE_BYTES
"""Length of a stamp in bytes: it is a signature (chapter 8)."""

_STAMP_OVERHEAD_BYTES = 2
"""msgpack's header of one stamp, in bytes: bin 8."""

_SEQUENCE_BYTES = 8
"""Length of a sequence number in an entry, in bytes."""

STAMPED_MAX = 256
"""Most envelopes in one message with stamps, a count: a nil or a stamp for each is a value of the message too."""

_ENVELOPE_OVERHEAD_BYTES = 3
"""msgpack's header of one envelope, in bytes: bin 16."""

_MESSAGE_OVERHEAD_BYTES = 12
"""msgpack's headers round the envelopes of a message, in bytes: array, type, two times array 16, with some to spare."""

RECORDS_PER_PIECE = 8
"""Records that are verified in one go, a count: each takes up to 0.3 ms of a core, and no peer may hold the loop for 5 ms."""

RECORD_BYTES_MIN = SIGNATURE_BYTES
"""Length below which nothing is a record, in bytes: its signature alone has as many."""

_SHORT_ARRAYS = tuple(bytes([0x90 + length]) for length in range(16))
"""msgpack's headers of arrays of up to 15 elements."""

_RECORDS_FIRST = b"\x01"
"""msgpack of the type of `Records`."""

_NO_SMALL_NUMBER = b"\x80"
"""msgpack of whole numbers from 0 to 127 is below this byte; a type may be written in more bytes, too."""

_LIMITS = PackingLimits(size_bytes_max=MESSAGE_BYTES_MAX, depth_max=6, values_max=ENVELOPES_MAX + 64)

_RECORDS, _DIGEST, _ENTRIES, _WANT, _GRAFT, _PRUNE, _DONT_WANT, _BEAT, _KEEP, _SCOPE, _SEEK = range(1, 12)


@dataclass(frozen=True, slots=True)
class Records:
    """Envelopes, pushed as news or asked for.

    `stamps` are those beside the envelopes, in the same order, None where there is none; empty where no envelope has one.
    """

    envelopes: tuple[bytes, ...]
    stamps: tuple[bytes | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Digest:
    """What the sender's table hashes to: one hash over everything, or one for each bucket.

    The answer to the first, when it differs, is the second or all entries; the answer to the second the entries of those buckets
    that differ.
    """

    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """What the sender holds.

    Attributes:
        entries: keys and sequence numbers.
        buckets: the buckets that are told completely: what the receiver holds in them and the sender does not list, it lacks.
            The receiver answers with its own newer entries there. Empty in such an answer.
    """

    entries: tuple[tuple[RecordKey, int], ...]
    buckets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Want:
    """Keys whose records the sender asks for."""

    keys: tuple[RecordKey, ...]


@dataclass(frozen=True, slots=True)
class Graft:
    """The sender pushes news over this link from now on, and asks for the same."""


@dataclass(frozen=True, slots=True)
class Prune:
    """The sender pushes no news over this link any more."""


@dataclass(frozen=True, slots=True)
class DontWant:
    """Records that the sender has, with their sequence numbers, and need not be sent."""

    entries: tuple[tuple[RecordKey, int], ...]


@dataclass(frozen=True, slots=True)
class BeatTold:
    """How the sender is doing, as `beats` packs it. The connection proves who says so."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Keep:
    """Whether the sender wants to keep the connection, and hear beats over it.

    `legs` is how many legs of a probe it speaks (chapter 5), as far as it says: 0 where it says nothing.
    """

    keeps: bool
    legs: int = 0


@dataclass(frozen=True, slots=True)
class ScopeTold:
    """Which part of the mesh the sender holds cards of; None for all of it."""

    scope: Scope | None


@dataclass(frozen=True, slots=True)
class Seek:
    """The sender asks for cards beyond its scope.

    Attributes:
        model: those that offer it, nearest to the sender first; any cards at random when empty.
        count: at most so many, 1 to `SOUGHT_MAX`.
    """

    model: str
    count: int


Message = Records | Digest | Entries | Want | Graft | Prune | DontWant | BeatTold | Keep | ScopeTold | Seek


def encode_message(message: Message) -> bytes:
    """Encode one message, which must be within its limits."""
    match message:
        case Records():
            value: list[object] = [_RECORDS, list(message.envelopes)]
            if message.stamps:
                value.append(list(message.stamps))
        case Digest():
            value = [_DIGEST, b"".join(message.hashes)]
        case Entries():
            told = sum(1 << bucket for bucket in set(message.buckets)).to_bytes(BUCKETS // 8, "little")
            value = [_ENTRIES, told, _packed_entries(message.entries)]
        case Want():
            value = [_WANT, b"".join(message.keys)]
        case Graft():
            value = [_GRAFT, None]
        case Prune():
            value = [_PRUNE, None]
        case DontWant():
            value = [_DONT_WANT, _packed_entries(message.entries)]
        case BeatTold():
            value = [_BEAT, message.payload]
        case Keep():
            value = [_KEEP, message.keeps, message.legs] if message.legs else [_KEEP, message.keeps]
        case ScopeTold(scope=scope):
            value = [_SCOPE, None] if scope is None else [_SCOPE, list(scope.vector), scope.radius_s]
        case Seek():
            value = [_SEEK, message.model, message.count]
    return pack(value, _LIMITS)


def decode_message(payload: bytes) -> Message | None:
    """Decode one message from a peer; None for one of a later version.

    Raises:
        RemoteProtocolError: TOO_LARGE for a message or count over its limit, MALFORMED for any other fault.
    """
    value = unpack(payload, _LIMITS)
    if not isinstance(value, list) or len(value) < 2 or not isinstance(value[0], int) or isinstance(value[0], bool):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a gossip message without a type")
    match value[0]:
        case 1:
            return _records(value)
        case 2:
            hashes = tuple(_split(value[1], BUCKET_HASH_BYTES, 1, BUCKETS))
            if len(hashes) not in (1, BUCKETS):
                raise RemoteProtocolError(ErrorCode.MALFORMED, f"a digest of {len(hashes)} hashes")
            return Digest(hashes)
        case 3:
            return _entries(value)
        case 4:
            return Want(tuple(RecordKey(key) for key in _split(value[1], RECORD_KEY_BYTES, 1, WANTS_MAX)))
        case 5:
            return Graft()
        case 6:
            return Prune()
        case 7:
            return DontWant(_split_entries(value[1]))
        case 8:
            return _beat(value[1])
        case 9:
            return _keep(value)
        case 10:
            return _scope(value)
        case 11:
            return _seek(value)
        case _:
            return None


def records_messages(envelopes: Iterable[bytes]) -> list[bytes]:
    """As few messages as hold all the envelopes, in order, without stamps."""
    return stamped_messages((envelope, None) for envelope in envelopes)


def stamped_messages(told: Iterable[tuple[bytes, bytes | None]]) -> list[bytes]:
    """As few messages as hold all the envelopes, in order, each with the stamp beside it or None."""
    messages: list[bytes] = []
    batch: list[tuple[bytes, bytes | None]] = []
    room = MESSAGE_BYTES_MAX - _MESSAGE_OVERHEAD_BYTES
    is_stamped = False
    for envelope, stamp in told:
        size = len(envelope) + _ENVELOPE_OVERHEAD_BYTES + (1 if stamp is None else _STAMP_OVERHEAD_BYTES + STAMP_BYTES)
        is_full = len(batch) >= (STAMPED_MAX if is_stamped or stamp else ENVELOPES_MAX)
        if batch and (size > room or is_full):
            messages.append(encode_message(_batched(batch)))
            batch, room, is_stamped = [], MESSAGE_BYTES_MAX - _MESSAGE_OVERHEAD_BYTES, False
        batch.append((envelope, stamp))
        is_stamped = is_stamped or stamp is not None
        room -= size
    if batch:
        messages.append(encode_message(_batched(batch)))
    return messages


def in_pieces(payload: bytes, records_max: int = RECORDS_PER_PIECE) -> list[bytes]:
    """Return a message as several, in order, where it holds more records than are verified in one go.

    Only what holds many is decoded for that. What cannot be decoded stays whole, for whoever takes it to find fault with.
    """
    is_other = payload[:1] in _SHORT_ARRAYS and payload[1:2] != _RECORDS_FIRST and payload[1:2] < _NO_SMALL_NUMBER
    if is_other or len(payload) <= records_max * RECORD_BYTES_MIN:
        return [payload]
    try:
        message = decode_message(payload)
    except RemoteProtocolError:
        return [payload]
    if not isinstance(message, Records) or len(message.envelopes) <= records_max:
        return [payload]
    starts = range(0, len(message.envelopes), records_max)
    envelopes, stamps = message.envelopes, message.stamps
    return [encode_message(Records(envelopes[at : at + records_max], stamps[at : at + records_max])) for at in starts]


def _batched(batch: Iterable[tuple[bytes, bytes | None]]) -> Records:
    envelopes, stamps = zip(*batch, strict=True)
    return Records(envelopes, stamps if any(stamps) else ())


def entries_messages(told: Sequence[tuple[int, Sequence[tuple[RecordKey, int]]]]) -> list[bytes]:
    """As few messages as tell whole buckets; a bucket too long for one message is cut: its rest is told in answers.

    Args:
        told: buckets with all their entries.
    """
    messages: list[bytes] = []
    buckets: list[int] = []
    entries: list[tuple[RecordKey, int]] = []
    for bucket, held in told:
        fitting = held[:ENTRIES_MAX]
        if len(entries) + len(fitting) > ENTRIES_MAX:
            messages.append(encode_message(Entries(tuple(entries), tuple(buckets))))
            buckets, entries = [], []
        buckets.append(bucket)
        entries.extend(fitting)
    if buckets:
        messages.append(encode_message(Entries(tuple(entries), tuple(buckets))))
    return messages


def answer_messages(entries: Sequence[tuple[RecordKey, int]]) -> list[bytes]:
    """As few messages as hold all entries, none of which asks for an answer."""
    cuts = range(0, len(entries), ENTRIES_MAX)
    return [encode_message(Entries(tuple(entries[cut : cut + ENTRIES_MAX]))) for cut in cuts]


def _records(value: list[Plain]) -> Records:
    told = value[1]
    if not isinstance(told, list):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "records that are no array")
    if len(told) > ENVELOPES_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{len(told)} records in one message")
    envelopes = tuple(item for item in told if isinstance(item, bytes))
    if len(envelopes) != len(told):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a record that is not bytes")
    return Records(envelopes, _stamps(value[2], len(told)) if len(value) > 2 else ())


def _stamps(value: Plain, count: int) -> tuple[bytes | None, ...]:
    if not isinstance(value, list) or len(value) != count:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"no array of {count} stamps")
    stamps = tuple(item for item in value if item is None or (isinstance(item, bytes) and len(item) == STAMP_BYTES))
    if len(stamps) != count:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a stamp that is not {STAMP_BYTES} bytes")
    return stamps if any(stamps) else ()


def _entries(value: list[Plain]) -> Entries:
    told = value[1]
    if len(value) < 3 or not isinstance(told, bytes) or len(told) != BUCKETS // 8:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "entries without their buckets")
    bits = int.from_bytes(told, "little")
    return Entries(
        entries=_split_entries(value[2]),
        buckets=tuple(bucket for bucket in range(BUCKETS) if bits >> bucket & 1),
    )


def _beat(value: Plain) -> BeatTold:
    if not isinstance(value, bytes):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a beat that is not bytes")
    return BeatTold(value)


def _keep(value: list[Plain]) -> Keep:
    keeps, legs = value[1], value[2] if len(value) > 2 else 0
    if not isinstance(keeps, bool):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "neither kept nor not")
    if not isinstance(legs, int) or isinstance(legs, bool) or not 0 <= legs <= LEGS_MAX:
        legs = 0  # of a later version, which says it otherwise
    return Keep(keeps, legs)


def _scope(value: list[Plain]) -> ScopeTold:
    if value[1] is None:
        return ScopeTold(None)
    if len(value) < 3 or not isinstance(value[1], list) or len(value[1]) != DIMENSIONS:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a scope without a middle and a radius")
    farthest_s = DEFAULT_RECORD_CONFIG.rtt_s_max
    vector = tuple(_number(part, -farthest_s, farthest_s) for part in value[1])
    return ScopeTold(Scope(vector, _number(value[2], 0.0, RADIUS_S_MAX)))


def _seek(value: list[Plain]) -> Seek:
    count = value[2] if len(value) > 2 else None
    if not isinstance(value[1], str) or not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a search without a model and a count")
    if count > SOUGHT_MAX or len(value[1].encode()) > MODEL_BYTES_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a search for {count} cards")
    return Seek(value[1], count)


def _number(value: Plain, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "no number, or one out of its range")
    return float(value)


def _packed_entries(entries: Iterable[tuple[RecordKey, int]]) -> bytes:
    return b"".join(key + sequence.to_bytes(_SEQUENCE_BYTES, "big") for key, sequence in entries)


def _split_entries(value: Plain) -> tuple[tuple[RecordKey, int], ...]:
    pieces = _split(value, RECORD_KEY_BYTES + _SEQUENCE_BYTES, 0, ENTRIES_MAX)
    entries = tuple((RecordKey(piece[:RECORD_KEY_BYTES]), int.from_bytes(piece[RECORD_KEY_BYTES:], "big")) for piece in pieces)
    if not all(1 <= sequence <= SEQUENCE_MAX for _, sequence in entries):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a sequence number out of range")
    return entries


def _split(value: Plain, size: int, count_min: int, count_max: int) -> list[bytes]:
    """A byte string as pieces of `size` bytes."""
    if not isinstance(value, bytes) or len(value) % size or len(value) // size < count_min:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"no row of {size}-byte pieces")
    if len(value) // size > count_max:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{len(value) // size} pieces where {count_max} are allowed")
    return [value[start : start + size] for start in range(0, len(value), size)]
