"""The signed envelope round a record: sealing, a cheap look at the header, and full verification.

An envelope is a 64-byte signature followed by the signed bytes, a msgpack array of header fields and the packed payload:

    signature (64 bytes) | [network id, kind, peer id, sequence, issued ms, expires ms, payload, ...]

The signature covers a domain-separation string and the signed bytes exactly as they came; nothing is ever encoded again, so
nobody but the signer can make a second envelope that says the same. The key stands inside the peer id (Ed25519 ids hold their
key), so a record cannot name one peer and be signed by another. Elements after the known ones belong to later versions: signed,
passed on with the envelope, and not read here.

Source: libp2p RFC 0002 (signed envelopes) and RFC 0003 (routing records): domain separation, and a greater sequence number wins.
Spec: docs/spec/03-records.md, section "Envelope".
"""

from dataclasses import replace

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import Identity, PeerId, peer_id_from_bytes, public_key_of, verify_signature
from protocol.records.config import (
    DEFAULT_RECORD_CONFIG,
    NETWORK_ID_BYTES_MAX,
    SEQUENCE_MAX,
    SIGNATURE_BYTES,
    TIME_MS_MAX,
    RecordConfig,
)
from protocol.records.mapping import decode_payload, encode_payload, kind_of
from protocol.records.values import Payload, Record, RecordHeader, RecordKind
from protocol.wire import PackingLimits, Plain, pack, unpack

RECORD_DOMAIN = b"isochrone-record-v1:"
"""Stands before the signed bytes, so that no signature made for another purpose is one of a record."""

_HEADER_FIELDS = 7
"""Elements of the signed array that this version knows, payload included, a count."""

_HEADER_VALUES_MAX = 64
"""Values in the signed array, later versions' nested ones included, a count; the payload is one of them, still packed."""

_KINDS = {kind.value: kind for kind in RecordKind}

_MS_PER_S = 1000
"""Milliseconds in a second: times travel as whole milliseconds."""


def seal(
    identity: Identity,
    network_id: str,
    payload: Payload,
    sequence: int,
    issued_s: float,
    expires_s: float,
    config: RecordConfig = DEFAULT_RECORD_CONFIG,
) -> Record:
    """Sign a payload as this node's newest record of its kind.

    Args:
        identity: who signs.
        network_id: the network the record belongs to, 1 to 64 bytes of text.
        payload: a card, edges or a verdict; `fit` cuts one that may be too long.
        sequence: greater than that of every record this identity ever sealed, from a `Sequencer`.
        issued_s: now, in wall-clock seconds since 1970; kept to the millisecond.
        expires_s: when it stops being true, within the lifetime of its kind.
        config: the bounds.

    Returns:
        The record as any receiver will read it.

    Raises:
        LocalProtocolError: MALFORMED or TOO_LARGE when receivers would refuse the record.
    """
    kind = kind_of(payload)
    fields = [
        network_id,
        kind.value,
        bytes(identity.peer_id),
        sequence,
        round(issued_s * _MS_PER_S),
        round(expires_s * _MS_PER_S),
        encode_payload(payload, config),
    ]
    signed = pack(fields, _signed_limits(config))
    envelope = identity.sign(RECORD_DOMAIN + signed) + signed
    try:
        header, packed = _read(envelope, config)
        read_back = decode_payload(kind, packed, config)
    except RemoteProtocolError as error:
        raise LocalProtocolError(error.code, error.detail) from None
    return _record(header, read_back, envelope)


def peek(envelope: bytes, config: RecordConfig = DEFAULT_RECORD_CONFIG) -> RecordHeader:
    """Read the header without checking the signature or decoding the payload: for dropping what is not worth either.

    Raises:
        RemoteProtocolError: TOO_LARGE or MALFORMED; UNSUPPORTED for a kind of record, or a kind of key, that this version lacks.
    """
    return _read(envelope, config)[0]


def open_record(envelope: bytes, network_id: str, wall_s: float, config: RecordConfig = DEFAULT_RECORD_CONFIG) -> Record:
    """Verify an envelope and decode what is in it.

    Args:
        envelope: the bytes as they were received.
        network_id: this node's network.
        wall_s: now, in wall-clock seconds since 1970.
        config: the bounds.

    Returns:
        The record, with `envelope` inside for passing on.

    Raises:
        RemoteProtocolError: TOO_LARGE or MALFORMED, UNSUPPORTED as in `peek`, WRONG_NETWORK, NOT_YET_VALID, EXPIRED,
            BAD_SIGNATURE, looked for in this order; a payload is decoded only after the signature was found good.
    """
    header, packed = _read(envelope, config)
    check_network_and_time(header, network_id, wall_s, config)
    if not verify_signature(public_key_of(header.peer_id), envelope[:SIGNATURE_BYTES], RECORD_DOMAIN + signed_bytes(envelope)):
        raise RemoteProtocolError(ErrorCode.BAD_SIGNATURE, f"{header.kind} {header.sequence} is not signed by the peer it names")
    return _record(header, decode_payload(header.kind, packed, config), bytes(envelope))


def reopen(envelope: bytes, config: RecordConfig) -> Record:
    """Decode an envelope that was verified before, as this node has kept it."""
    header, packed = _read(envelope, config)
    return _record(header, decode_payload(header.kind, packed, config), envelope)


def check_network_and_time(header: RecordHeader, network_id: str, wall_s: float, config: RecordConfig) -> None:
    """Refuse a record of another network or another time.

    Raises:
        RemoteProtocolError: WRONG_NETWORK, NOT_YET_VALID or EXPIRED.
    """
    if header.network_id != network_id:
        raise RemoteProtocolError(ErrorCode.WRONG_NETWORK, f"a record of network {header.network_id!r}")
    if header.issued_s > wall_s + config.skew_s:
        raise RemoteProtocolError(ErrorCode.NOT_YET_VALID, f"issued {header.issued_s - wall_s:.0f} s in the future")
    if wall_s >= header.expires_s + config.skew_s:
        raise RemoteProtocolError(ErrorCode.EXPIRED, f"expired {wall_s - header.expires_s:.0f} s ago")


def stamped(record: Record, stamp: bytes | None) -> Record:
    """The record with this stamp beside it."""
    return record if record.stamp == stamp else replace(record, stamp=stamp)


class RecordReader:
    """Reads envelopes; whoever runs many nodes in one process may hand in one that remembers what it has verified."""

    def peek(self, envelope: bytes, config: RecordConfig) -> RecordHeader:
        """See the function `peek`."""
        return peek(envelope, config)

    def check(self, header: RecordHeader, network_id: str, wall_s: float, config: RecordConfig) -> None:
        """See the function `check_network_and_time`."""
        check_network_and_time(header, network_id, wall_s, config)

    def open(self, envelope: bytes, network_id: str, wall_s: float, config: RecordConfig) -> Record:
        """See the function `open_record`."""
        return open_record(envelope, network_id, wall_s, config)

    def stamped(self, record: Record, stamp: bytes | None) -> Record:
        """See the function `stamped`."""
        return stamped(record, stamp)


def signed_bytes(envelope: bytes) -> bytes:
    """The part of an envelope that its signature covers; two envelopes say the same exactly if these are equal."""
    return envelope[SIGNATURE_BYTES:]


def _read(envelope: bytes, config: RecordConfig) -> tuple[RecordHeader, bytes]:
    """The header, all of its ranges checked, and the payload still packed."""
    if len(envelope) > config.bytes_max:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"an envelope of {len(envelope)} bytes")
    value = unpack(signed_bytes(envelope), _signed_limits(config))
    if not isinstance(value, list) or len(value) < _HEADER_FIELDS:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"the signed part is no array of {_HEADER_FIELDS}")
    network, kind_name, peer, sequence, issued_ms, expires_ms, packed = value[:_HEADER_FIELDS]
    if not isinstance(network, str) or not 1 <= len(network.encode()) <= NETWORK_ID_BYTES_MAX:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "no network id")
    if not isinstance(packed, bytes):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "the payload is not bytes")
    kind = _kind(kind_name)
    if len(envelope) > config.bytes_max_of(kind):
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a {kind} of {len(envelope)} bytes")
    issued = _within(issued_ms, "issue time", 0, TIME_MS_MAX)
    expires = _within(expires_ms, "expiry", 0, TIME_MS_MAX)
    if not 0 < expires - issued <= config.lifetime_s_max_of(kind) * _MS_PER_S:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a {kind} valid for {expires - issued} ms")
    header = RecordHeader(
        network_id=network,
        kind=kind,
        peer_id=_peer(peer),
        sequence=_within(sequence, "sequence", 1, SEQUENCE_MAX),
        issued_s=issued / _MS_PER_S,
        expires_s=expires / _MS_PER_S,
    )
    return header, packed


def _kind(value: Plain) -> RecordKind:
    if not isinstance(value, str):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "the kind is no text")
    kind = _KINDS.get(value)
    if kind is None:
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED, "a kind of record that this version does not know")
    return kind


def _peer(value: Plain) -> PeerId:
    if not isinstance(value, bytes):
        raise RemoteProtocolError(ErrorCode.MALFORMED, "the peer id is not bytes")
    peer_id = peer_id_from_bytes(value)
    public_key_of(peer_id)  # raises where the id holds no Ed25519 key: nobody could check the signature
    return peer_id


def _within(value: Plain, what: str, least: int, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"{what} out of range")
    return value


def _signed_limits(config: RecordConfig) -> PackingLimits:
    size = config.bytes_max - SIGNATURE_BYTES
    return PackingLimits(size_bytes_max=size, depth_max=config.depth_max, values_max=_HEADER_VALUES_MAX)


def _record(header: RecordHeader, payload: Payload, envelope: bytes) -> Record:
    return Record(
        kind=header.kind,
        peer_id=header.peer_id,
        sequence=header.sequence,
        issued_s=header.issued_s,
        expires_s=header.expires_s,
        payload=payload,
        envelope=envelope,
    )
