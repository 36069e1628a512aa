"""The messages of gossip and their msgpack.

Each is an array whose first element tells which: records pushed or asked for; a digest of hashes; entries of buckets, or of
what is news; wants; a link asked for or given back; records not wanted any more; a beat; whether the connection is kept. Keys
and sequence numbers are packed into one byte string, 8 and 8 bytes big-endian: there may be thousands of them. Elements after
the known ones are ignored, and so are messages of unknown types: later versions may send them.

Spec: docs/spec/04-gossip.md, section "Messages".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.records import SEQUENCE_MAX
from protocol.table import BUCKET_HASH_BYTES, BUCKETS, RECORD_KEY_BYTES, RecordKey
from protocol.wire import PackingLimits, Plain, pack, unpack

MESSAGE_BYTES_MAX = 65_536
"""Longest message in bytes: the control message size of the mesh; longer lists are split."""

ENTRIES_MAX = 3072
"""Most entries in one message, a count: 48 KiB of them, three quarters of a message."""

WANTS_MAX = 1024
"""Most keys in one want, a count: 8 KiB, and about half a megabyte of answer."""

ENVELOPES_MAX = 512
"""Most envelopes in one message, a count: the shortest have 150 bytes."""

_SEQUENCE_BYTES = 8
"""Length of a sequence number in an entry, in bytes."""

_ENVELOPE_OVERHEAD_BYTES = 3
"""msgpack's header of one envelope, in bytes: bin 16."""

_MESSAGE_OVERHEAD_BYTES = 8
"""msgpack's headers round the envelopes of a message, in bytes: array, type, array 16, with some to spare."""

_LIMITS = PackingLimits(size_bytes_max=MESSAGE_BYTES_MAX, depth_max=6, values_max=ENVELOPES_MAX + 64)

_RECORDS, _DIGEST, _ENTRIES, _WANT, _GRAFT, _PRUNE, _DONT_WANT, _BEAT, _KEEP = 1, 2, 3, 4, 5, 6, 7, 8, 9


@dataclass(frozen=True, slots=True)
class Records:
    """Envelopes, pushed as news or asked for."""

    envelopes: tuple[bytes, ...]


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
    """How the sender is doing: the payload of a beat, packed. The connection proves who says so."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Keep:
    """Whether the sender wants to keep the connection, and hear beats over it."""

    keeps: bool


Message = Records | Digest | Entries | Want | Graft | Prune | DontWant | BeatTold | Keep


def encode_message(message: Message) -> bytes:
    """Encode one message, which must be within its limits."""
    match message:
        case Records():
            value: list[object] = [_RECORDS, list(message.envelopes)]
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
            value = [_KEEP, message.keeps]
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
            return _records(value[1])
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
            if not isinstance(value[1], bytes):
                raise RemoteProtocolError(ErrorCode.MALFORMED, "a beat that is not bytes")
            return BeatTold(value[1])
        case 9:
            if not isinstance(value[1], bool):
                raise RemoteProtocolError(ErrorCode.MALFORMED, "neither kept nor not")
            return Keep(value[1])
        case _:
            return None


def records_messages(envelopes: Iterable[bytes]) -> list[bytes]:
    """As few messages as hold all the envelopes, in order."""
    messages: list[bytes] = []
    batch: list[bytes] = []
    room = MESSAGE_BYTES_MAX - _MESSAGE_OVERHEAD_BYTES
    for envelope in envelopes:
        size = len(envelope) + _ENVELOPE_OVERHEAD_BYTES
        if batch and (size > room or len(batch) == ENVELOPES_MAX):
            messages.append(encode_message(Records(tuple(batch))))
            batch, room = [], MESSAGE_BYTES_MAX - _MESSAGE_OVERHEAD_BYTES
        batch.append(envelope)
        room -= size
    if batch:
        messages.append(encode_message(Records(tuple(batch))))
    return messages


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


def _records(value: Plain) -> Records:
    if not isinstance(value, list):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "records that are no array")
    if len(value) > ENVELOPES_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{len(value)} records in one message")
    envelopes = tuple(item for item in value if isinstance(item, bytes))
    if len(envelopes) != len(value):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a record that is not bytes")
    return Records(envelopes)


def _entries(value: list[Plain]) -> Entries:
    told = value[1]
    if len(value) < 3 or not isinstance(told, bytes) or len(told) != BUCKETS // 8:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "entries without their buckets")
    bits = int.from_bytes(told, "little")
    return Entries(
        entries=_split_entries(value[2]),
        buckets=tuple(bucket for bucket in range(BUCKETS) if bits >> bucket & 1),
    )


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
