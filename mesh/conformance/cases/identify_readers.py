"""Chapters 0 and 1: how a node reads what a peer says of itself, shown by pushes of identify that are right and wrong.

Spec: docs/spec/00-conventions.md, section "Protocol buffers"; docs/spec/01-identity.md, sections "Identify" to "Identify push".
"""

import os
from dataclasses import replace

import trio

from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import case, expect
from mesh.conformance.wire import Connection, Stream
from protocol.encoding import encode_frame, encode_uvarint
from protocol.errors import ErrorCode
from protocol.identity import Identity, encode_public_key
from protocol.libp2p.envelope import PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, seal_envelope, seal_peer_record
from protocol.libp2p.identify import IDENTIFY_PROTOCOL, IDENTIFY_PUSH_PROTOCOL, Identify, encode_identify
from protocol.libp2p.protobuf import encode_bytes, encode_text, encode_uint
from protocol.multiaddr import Multiaddr

CLAIMED = Multiaddr("ip4", "192.0.2.77", 4077)
"""An address for documentation (RFC 5737), where nobody is."""

UNKNOWN_FIELD = 1000
"""The number of a field that no version has, unitless."""

FIELDS_MAX = 800
"""Fields of an identify message (docs/spec/01-identity.md, section "Limits")."""

MESSAGE_BYTES_MAX = 8192
"""Longest identify message in bytes, as above."""


def _tag(number: int, wire_type: int) -> bytes:
    return encode_uvarint(number << 3 | wire_type)


def _said(identity: Identity, sequence: int = 1) -> Identify:
    address = CLAIMED.to_bytes()
    return Identify(
        public_key=encode_public_key(identity.public_key),
        listen_addresses=(address,),
        protocols=(IDENTIFY_PROTOCOL,),
        observed_address=address,
        agent_version="conformance",
        signed_peer_record=seal_peer_record(identity, sequence, (address,)),
    )


async def _pushed(peer: ScriptedPeer, connection: Connection, data: bytes) -> Stream:
    """Push bytes as they are and wait for the end of the stream."""
    peer.needs(IDENTIFY_PUSH_PROTOCOL)
    stream = await connection.speak(IDENTIFY_PUSH_PROTOCOL)
    stream.send(data, end=True)
    await stream.over("the end of a push")
    return stream


async def _taken(peer: ScriptedPeer, connection: Connection, data: bytes, what: str) -> None:
    stream = await _pushed(peer, connection, data)
    expect(stream.ended and stream.reset_code is None, f"{what} is taken", stream)


async def _refused(peer: ScriptedPeer, connection: Connection, data: bytes, code: ErrorCode, what: str) -> None:
    stream = await _pushed(peer, connection, data)
    expect(stream.reset_code == code, f"{code.name} for {what}", stream)


@case("ISO-CONV-007", "ISO-CONV-001")
async def unknown_fields_are_skipped(peer: ScriptedPeer) -> None:
    """Fields of a later version, of each wire type that has a length, are no fault."""
    connection = await peer.dial()
    unknown = {
        "a varint": _tag(UNKNOWN_FIELD, 0) + b"\x07",
        "eight bytes": _tag(UNKNOWN_FIELD, 1) + bytes(8),
        "bytes with a length": encode_bytes(UNKNOWN_FIELD, b"tomorrow"),
        "four bytes": _tag(UNKNOWN_FIELD, 5) + bytes(4),
    }
    for what, field in unknown.items():
        await _taken(peer, connection, encode_frame(field + encode_text(6, "conformance")), f"an unknown field of {what}")


@case("ISO-CONV-007")
async def what_is_no_message_is_malformed(peer: ScriptedPeer) -> None:
    """Groups, unused wire types, field 0, a field past the end, and a known field of another type."""
    connection = await peer.dial()
    wrong = {f"wire type {kind}": _tag(UNKNOWN_FIELD, kind) + b"\x00" for kind in (3, 4, 6, 7)}
    wrong["field number 0"] = _tag(0, 0) + b"\x07"
    wrong["a field past the end"] = _tag(6, 2) + b"\x64abc"
    wrong["a text as a varint"] = encode_uint(6, 7)
    for what, message in wrong.items():
        await _refused(peer, connection, encode_frame(message), ErrorCode.MALFORMED, what)


@case("ISO-CONV-008", "ISO-CONV-002")
async def the_number_of_fields_is_bounded(peer: ScriptedPeer) -> None:
    """As many fields as the limit says are read, skipped ones included; one more is too many."""
    connection = await peer.dial()
    field = _tag(15, 0) + b"\x01"
    await _taken(peer, connection, encode_frame(field * FIELDS_MAX), f"a message of {FIELDS_MAX} fields")
    await _refused(peer, connection, encode_frame(field * (FIELDS_MAX + 1)), ErrorCode.TOO_LARGE, "one field more")


@case("ISO-CONV-009", "ISO-ID-024", "ISO-ID-030")
async def the_last_of_single_fields_counts(peer: ScriptedPeer) -> None:
    """Of two public keys in one message the last is held against the peer."""
    connection = await peer.dial()
    own = encode_bytes(1, encode_public_key(peer.identity.public_key))
    other = encode_bytes(1, encode_public_key(peer.stranger().public_key))
    await _taken(peer, connection, encode_frame(other + own), "another key and then the right one")
    await _refused(peer, connection, encode_frame(own + other), ErrorCode.WRONG_PEER, "the right key and then another")


@case("ISO-ID-023", "ISO-ID-030", "ISO-CONV-002")
async def ten_messages_are_merged_and_the_eleventh_refused(peer: ScriptedPeer) -> None:
    """What is at the limits is taken, what is over them is TOO_LARGE, and nothing at all is MALFORMED."""
    connection = await peer.dial()
    message = encode_frame(encode_text(6, "conformance"))
    await _taken(peer, connection, message * 10, "ten messages")
    await _refused(peer, connection, message * 11, ErrorCode.TOO_LARGE, "eleven messages")
    await _refused(peer, connection, b"", ErrorCode.MALFORMED, "a push without a message")
    too_long = encode_bytes(UNKNOWN_FIELD, bytes(MESSAGE_BYTES_MAX))
    await _refused(peer, connection, encode_frame(too_long), ErrorCode.TOO_LARGE, "a message of more than 8192 bytes")
    await peer.nothing_happens(connection)


@case("ISO-ID-024", "ISO-ID-030")
async def another_peers_key_or_record_is_refused(peer: ScriptedPeer) -> None:
    """Who is proven by TLS cannot speak for somebody else."""
    connection = await peer.dial()
    said, other = _said(peer.identity), _said(peer.stranger())
    wrong_key = encode_identify(replace(said, public_key=other.public_key))
    await _refused(peer, connection, wrong_key, ErrorCode.WRONG_PEER, "another peer's key")
    wrong_record = encode_identify(replace(said, signed_peer_record=other.signed_peer_record))
    await _refused(peer, connection, wrong_record, ErrorCode.WRONG_PEER, "another peer's record")


@case("ISO-ID-026", "ISO-ID-030")
async def peer_records_that_do_not_verify_are_refused(peer: ScriptedPeer) -> None:
    """The signature, the signer's kind of key and the type of the payload are looked at."""
    connection = await peer.dial()
    said = _said(peer.identity)
    record = said.signed_peer_record or b""
    spoilt = record[:-1] + bytes([record[-1] ^ 1])
    payload = encode_bytes(1, peer.identity.peer_id) + encode_uint(2, 9)
    of_another_type = seal_envelope(peer.identity, PEER_RECORD_DOMAIN, b"\x03\x02", payload)
    of_another_domain = seal_envelope(peer.identity, "something-else", PEER_RECORD_TYPE, payload)
    secp256k1 = b"\x08\x02\x12\x21\x02" + os.urandom(32)
    of_another_key = b"".join(
        (encode_bytes(1, secp256k1), encode_bytes(2, PEER_RECORD_TYPE), encode_bytes(3, payload), encode_bytes(5, bytes(70)))
    )
    for what, wrong, code in (
        ("a spoilt signature", spoilt, ErrorCode.BAD_SIGNATURE),
        ("a signature of another domain", of_another_domain, ErrorCode.BAD_SIGNATURE),
        ("another payload type", of_another_type, ErrorCode.MALFORMED),
        ("a signer whose key is not Ed25519", of_another_key, ErrorCode.UNSUPPORTED),
    ):
        await _refused(peer, connection, encode_identify(replace(said, signed_peer_record=wrong)), code, what)


@case("ISO-ID-027", "ISO-ID-030")
async def a_record_about_somebody_else_is_refused(peer: ScriptedPeer) -> None:
    """A peer record that names another peer than its signer."""
    connection = await peer.dial()
    payload = encode_bytes(1, peer.stranger().peer_id) + encode_uint(2, 9)
    record = seal_envelope(peer.identity, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, payload)
    pushed = encode_identify(Identify(signed_peer_record=record))
    await _refused(peer, connection, pushed, ErrorCode.WRONG_PEER, "a record about somebody else")


@case("ISO-ID-028", "ISO-ID-030")
async def an_older_peer_record_is_no_fault(peer: ScriptedPeer) -> None:
    """It is ignored; the stream ends as any other."""
    connection = await peer.dial()
    for sequence in (9, 8, 9):
        await _taken(peer, connection, encode_identify(_said(peer.identity, sequence)), f"a record with number {sequence}")


@case("ISO-ID-032", "ISO-ID-033", "ISO-ID-030")
async def descriptions_may_leave_everything_out(peer: ScriptedPeer) -> None:
    """An empty message, one with only a version of any form, and one without a record are taken."""
    connection = await peer.dial()
    said = _said(peer.identity)
    await _taken(peer, connection, encode_frame(b""), "an empty description")
    for version in ("ipfs/0.1.0", "/isochrone/1", "", "whatever\u00e9"):
        odd = encode_identify(Identify(protocol_version=version, agent_version=version))
        await _taken(peer, connection, odd, f"the version {version!r}")
    await _taken(peer, connection, encode_identify(replace(said, signed_peer_record=None)), "a description without a record")
    await _taken(peer, connection, encode_identify(replace(said, public_key=None)), "a description without a key")


@case("ISO-ID-033")
async def the_protocol_version_begins_with_a_slash(peer: ScriptedPeer) -> None:
    """Some peers read it as the id of a protocol."""
    version = peer.subject.said.protocol_version
    expect((version or "").startswith("/"), "a protocol version that begins with /", version)
    await peer.ping(await peer.dial())


@case("ISO-ID-025")
async def an_observed_address_is_a_claim(peer: ScriptedPeer) -> None:
    """What one peer says that it sees is not told by identify afterwards."""
    connection = await peer.dial()
    await _taken(peer, connection, encode_identify(_said(peer.identity)), "a push with an observed address")
    await trio.sleep(min(0.1, peer.subject.quiet_s))
    said, _ = await peer.identify(connection)
    expect(CLAIMED.to_bytes() not in said.listen_addresses, "addresses of its own", "the address that one peer claimed")
