"""Signed envelopes and the peer record in them: addresses that a peer vouches for, verifiable by anybody.

The signature covers a domain, a payload type and the payload, each with its length before it, so that a signature made for one
purpose never passes for another. It is checked before anything inside the payload is read. The domain and type of the peer
record are those of the implementations, which differ from the text of RFC 3.

Source: libp2p/specs RFC/0002-signed-envelopes.md, RFC/0003-routing-records.md; go-libp2p core/peer/record.go.
Spec: docs/spec/01-identity.md, section "Signed peer records".
"""

from dataclasses import dataclass

from protocol.encoding import encode_frame
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import (
    Identity,
    PeerId,
    decode_public_key,
    encode_public_key,
    peer_id_from_bytes,
    peer_id_of,
    verify_signature,
)
from protocol.libp2p import protobuf

PEER_RECORD_DOMAIN = "libp2p-peer-record"
"""Signature domain of peer records in go, rust and js (go-libp2p core/peer/record.go)."""

PEER_RECORD_TYPE = b"\x03\x01"
"""Payload type of peer records: the multicodec libp2p-peer-record 0x0301 as two plain bytes (go-libp2p core/peer/record.go)."""

ENVELOPE_BYTES_MAX = 8192
"""Largest envelope in bytes: it must fit an identify message, whose limit is the same."""

RECORD_ADDRESSES_MAX = 128
"""Most addresses in a peer record: some hosts list several dozen, one per interface and transport."""

_ENVELOPE_FIELDS_MAX = 16
"""Most fields of an envelope: it has four; the rest is room for later versions."""

_ADDRESS_FIELDS_MAX = 8
"""Most fields of an AddressInfo: it has one; the rest is room for later versions."""

_RECORD_FIELDS_MAX = RECORD_ADDRESSES_MAX + 8
"""Most fields of a peer record: its addresses, the id, the sequence number and some room."""

# Field numbers of Envelope, PeerRecord and AddressInfo (RFC 2, RFC 3).
_PUBLIC_KEY, _PAYLOAD_TYPE, _PAYLOAD, _SIGNATURE = 1, 2, 3, 5
_PEER_ID, _SEQUENCE, _ADDRESSES = 1, 2, 3
_MULTIADDR = 1  # the only field of AddressInfo


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """What a peer says of its own addresses.

    Attributes:
        peer_id: whose addresses these are; always the signer.
        sequence: greater in each newer record, 0 to 2^64 - 1; not a time.
        addresses: binary multiaddrs of any transport, at most `RECORD_ADDRESSES_MAX`.
    """

    peer_id: PeerId
    sequence: int
    addresses: tuple[bytes, ...]


def seal_envelope(identity: Identity, domain: str, payload_type: bytes, payload: bytes) -> bytes:
    """Sign `payload` for one domain and type; the result is at most `ENVELOPE_BYTES_MAX` bytes.

    Raises:
        LocalProtocolError: TOO_LARGE, when the payload is too long.
    """
    signature = identity.sign(_signed_bytes(domain, payload_type, payload))
    envelope = b"".join(
        (
            protobuf.encode_bytes(_PUBLIC_KEY, encode_public_key(identity.public_key)),
            protobuf.encode_bytes(_PAYLOAD_TYPE, payload_type),
            protobuf.encode_bytes(_PAYLOAD, payload),
            protobuf.encode_bytes(_SIGNATURE, signature),
        )
    )
    if len(envelope) > ENVELOPE_BYTES_MAX:
        detail = f"an envelope would have {len(envelope)} bytes; the limit is {ENVELOPE_BYTES_MAX}"
        raise LocalProtocolError(ErrorCode.TOO_LARGE, detail)
    return envelope


def open_envelope(envelope: bytes, domain: str, payload_type: bytes) -> tuple[PeerId, bytes]:
    """Verify an envelope made for one domain and type.

    Returns:
        The signer and the payload.

    Raises:
        RemoteProtocolError: BAD_SIGNATURE, when the signature does not fit key, domain, type and payload; UNSUPPORTED for a key
            that is not Ed25519; TOO_LARGE or MALFORMED for bytes that are no envelope of this type.
    """
    if len(envelope) > ENVELOPE_BYTES_MAX:
        detail = f"an envelope of {len(envelope)} bytes; the limit is {ENVELOPE_BYTES_MAX}"
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, detail)
    fields: dict[int, bytes] = {}
    for number, value in protobuf.read_fields(envelope, _ENVELOPE_FIELDS_MAX):
        if number in (_PUBLIC_KEY, _PAYLOAD_TYPE, _PAYLOAD, _SIGNATURE):
            fields[number] = protobuf.as_bytes(value)
    public_key = decode_public_key(fields.get(_PUBLIC_KEY, b""))
    if fields.get(_PAYLOAD_TYPE, b"") != payload_type:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "an envelope has a payload of another type")
    payload = fields.get(_PAYLOAD, b"")
    if not verify_signature(public_key, fields.get(_SIGNATURE, b""), _signed_bytes(domain, payload_type, payload)):
        raise RemoteProtocolError(ErrorCode.BAD_SIGNATURE, "an envelope's signature does not match")
    return peer_id_of(public_key), payload


def seal_peer_record(identity: Identity, sequence: int, addresses: tuple[bytes, ...]) -> bytes:
    """Make and sign the peer record of `identity`.

    Args:
        identity: the peer that vouches.
        sequence: greater than in every record before, 0 to 2^64 - 1.
        addresses: binary multiaddrs, at most `RECORD_ADDRESSES_MAX`.

    Raises:
        LocalProtocolError: TOO_LARGE, when there are too many addresses or they are too long.
    """
    if len(addresses) > RECORD_ADDRESSES_MAX:
        detail = f"{len(addresses)} addresses in a peer record; the limit is {RECORD_ADDRESSES_MAX}"
        raise LocalProtocolError(ErrorCode.TOO_LARGE, detail)
    payload = protobuf.encode_bytes(_PEER_ID, identity.peer_id) + protobuf.encode_uint(_SEQUENCE, sequence)
    for address in addresses:
        payload += protobuf.encode_bytes(_ADDRESSES, protobuf.encode_bytes(_MULTIADDR, address))
    return seal_envelope(identity, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, payload)


def open_peer_record(envelope: bytes) -> PeerRecord:
    """Verify a signed peer record; whether its sequence number is new is the caller's to decide.

    Raises:
        RemoteProtocolError: WRONG_PEER, when the record speaks of another peer than its signer; else as `open_envelope`.
    """
    signer, payload = open_envelope(envelope, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE)
    peer_id = b""
    sequence = 0
    addresses: list[bytes] = []
    for number, value in protobuf.read_fields(payload, _RECORD_FIELDS_MAX):
        if number == _PEER_ID:
            peer_id = peer_id_from_bytes(protobuf.as_bytes(value))
        elif number == _SEQUENCE:
            sequence = protobuf.as_uint(value)
        elif number == _ADDRESSES:
            addresses.append(_read_address(protobuf.as_bytes(value)))
    if peer_id != signer:
        raise RemoteProtocolError(ErrorCode.WRONG_PEER, "a peer record speaks of another peer than its signer")
    if len(addresses) > RECORD_ADDRESSES_MAX:
        detail = f"{len(addresses)} addresses in a peer record; the limit is {RECORD_ADDRESSES_MAX}"
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, detail)
    return PeerRecord(signer, sequence, tuple(addresses))


def _signed_bytes(domain: str, payload_type: bytes, payload: bytes) -> bytes:
    return encode_frame(domain.encode()) + encode_frame(payload_type) + encode_frame(payload)


def _read_address(message: bytes) -> bytes:
    address = b""
    for number, value in protobuf.read_fields(message, _ADDRESS_FIELDS_MAX):
        if number == _MULTIADDR:
            address = protobuf.as_bytes(value)
    return address
