"""Chapter 3: envelopes: what is refused, what costs the connection of who passed it on, and what is kept byte for byte.

Spec: docs/spec/03-records.md, sections "Limits", "Envelope" and "Sequence numbers".
"""

import time

import trio

from mesh.conformance.gossip import (
    LIFETIME_S,
    WIDE,
    Gossip,
    Scribe,
    card_fields,
    card_of,
    joined,
    record_key,
    signed,
    talk,
    told_through,
    with_proof,
)
from mesh.conformance.peer import ScriptedPeer, Subject
from mesh.conformance.registry import case, expect
from protocol.errors import ErrorCode
from protocol.gossip.messages import Want
from protocol.identity import Identity
from protocol.records import Edge, Edges, Measured, edge_tag, encode_measured
from protocol.wire import pack

SKEW_S = 60.0
"""Allowed skew of clocks, in seconds (docs/spec/03-records.md, section "Limits")."""

NOT_A_NUMBER = b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"
"""msgpack of a float that is no number."""

PLAIN_FAULTS: dict[str, bytes] = {
    "an extension type": b"\xd4\x01\x00",
    "a timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "an integer of 2^63": b"\xcf\x80" + bytes(7),
    "an integer of -2^63": b"\xd3\x80" + bytes(7),
    "a float that is no number": NOT_A_NUMBER,
    "an infinite float": b"\xcb\x7f\xf0" + bytes(6),
    "text that is not UTF-8": b"\xa2\xff\xfe",
    "a map key that is no text": b"\x81\x01\x01",
    "a map with one key twice": b"\x82\xa1a\x01\xa1a\x02",
    "an early end": b"\x92\x01",
}
"""Values that no reader may take, as msgpack."""


def header(identity: Identity, subject: Subject, content: bytes, **changes: object) -> list[object]:
    """The elements of a signed array, some of them changed."""
    issued_ms = int(time.time() * 1000)
    fields: dict[str, object] = {
        "network": subject.network,
        "kind": "card",
        "peer_id": bytes(identity.peer_id),
        "sequence": 1,
        "issued": issued_ms,
        "expires": issued_ms + int(LIFETIME_S * 1000),
        "payload": with_proof(content, subject.proof_of(identity)) if changes.get("kind", "card") == "card" else content,
    }
    return list((fields | changes).values())


def plain_card(**changes: object) -> bytes:
    """The payload of a plain card, some of its fields changed."""
    return pack(card_fields() | changes, WIDE)


async def blamed_each(peer: ScriptedPeer, envelopes: dict[str, bytes], code: ErrorCode) -> None:
    """Push each record over a connection of its own and see that it costs it."""
    for what, envelope in envelopes.items():
        gossip = await talk(peer, peer.stranger(), settle=False)
        gossip.send_records(envelope)
        await gossip.blamed(code, f"a record with {what}")


async def kept(gossip: Gossip, identity: Identity, envelope: bytes, what: str) -> None:
    """Push a record and see that the node has it, byte for byte."""
    gossip.send_records(envelope)
    expect(await gossip.holds(envelope, record_key("card", identity.peer_id)), f"{what} is taken as it came", "it is not held")


async def not_kept(gossip: Gossip, identity: Identity, envelope: bytes, what: str, kind: str = "card") -> None:
    """Push a record and see that the node does not take it, and blames nobody."""
    gossip.send_records(envelope)
    expect(not await gossip.holds(envelope, record_key(kind, identity.peer_id)), f"{what} is not taken", "it is held")


@case("ISO-REC-001", "ISO-GOS-014", "ISO-CONV-002")
async def headers_out_of_their_limits_are_blamed(peer: ScriptedPeer) -> None:
    """Sizes are TOO_LARGE, numbers out of their range MALFORMED."""
    peer.needs_gossip()
    subject, identity = peer.subject, peer.stranger()
    payload = plain_card()

    def made(**changes: object) -> bytes:
        return signed(identity, pack(header(identity, subject, payload, **changes), WIDE))

    await blamed_each(peer, {"4,097 bytes": made(payload=plain_card(padding=bytes(4096)))}, ErrorCode.TOO_LARGE)
    wrong = {
        "sequence number 0": made(sequence=0),
        "a negative sequence number": made(sequence=-1),
        "a time of issue of 2^53 ms": made(issued=1 << 53, expires=(1 << 53) + 1),
        "a network id of 65 bytes": made(network="n" * 65),
        "no network id": made(network=""),
    }
    await blamed_each(peer, wrong, ErrorCode.MALFORMED)


@case("ISO-REC-001", "ISO-REC-013", "ISO-GOS-013")
async def payloads_out_of_their_limits_are_not_taken(peer: ScriptedPeer) -> None:
    """They may be of a later version: nobody is blamed, and nobody takes them."""
    gossip = await talk(peer)
    coordinate = [[0.0] * 8, 0.0, 0.5]
    hardware = card_fields()["hardware"]
    assert isinstance(hardware, dict)
    wrong: dict[str, dict[str, object]] = {
        "17 addresses": {"addresses": [b"\x04\x7f\x00\x00\x01\x91\x02\x0f\xa1\xcd\x03"] * 17},
        "an agent of 257 bytes": {"agent": "a" * 257},
        "a coordinate of 7 numbers": {"coordinate": [[0.0] * 7, 0.0, 0.5]},
        "a height of 61 s": {"coordinate": [[0.0] * 8, 61.0, 0.5]},
        "an error of 1.6": {"coordinate": [[0.0] * 8, 0.0, 1.6]},
        "a negative memory": {"hardware": hardware | {"memory_bytes": -1}},
        "a million and one CPUs": {"hardware": hardware | {"cpu_count": 1_000_001}},
    }
    for what, changes in wrong.items():
        identity = peer.stranger()
        await not_kept(gossip, identity, Scribe(identity, peer.subject).by_hand(plain_card(**changes)), what)
    identity = peer.stranger()
    good = Scribe(identity, peer.subject).by_hand(plain_card(coordinate=coordinate, agent="a" * 256))
    await kept(gossip, identity, good, "a card at its limits")


@case("ISO-REC-002", "ISO-GOS-014")
async def values_that_readers_would_see_differently_are_malformed(peer: ScriptedPeer) -> None:
    """In a header and in a gossip message alike."""
    peer.needs_gossip()
    identity = peer.stranger()
    good = pack(header(identity, peer.subject, plain_card()), WIDE)
    envelopes = {f"{what} in its header": signed(identity, b"\x98" + good[1:] + junk) for what, junk in PLAIN_FAULTS.items()}
    envelopes["further bytes behind it"] = signed(identity, good + b"\x00")
    await blamed_each(peer, envelopes, ErrorCode.MALFORMED)


@case("ISO-REC-002", "ISO-GOS-004", "ISO-GOS-014")
async def messages_of_such_values_are_malformed(peer: ScriptedPeer) -> None:
    """Even in a message of a type that nobody knows."""
    peer.needs_gossip()
    for what, junk in PLAIN_FAULTS.items():
        gossip = await talk(peer, peer.stranger(), settle=False)
        gossip.send_bytes(b"\x92\xcc\xc8" + junk)
        await gossip.blamed(ErrorCode.MALFORMED, f"a message with {what}")


@case("ISO-REC-003", "ISO-CONV-002")
async def many_values_in_few_bytes_are_refused(peer: ScriptedPeer) -> None:
    """A message of 60,000 empty arrays, which would take four megabytes of memory, costs the connection."""
    peer.needs_gossip()
    gossip = await talk(peer)
    gossip.send_bytes(b"\x92\xcc\xc8\xdc" + (60_000).to_bytes(2, "big") + b"\x90" * 60_000)
    await gossip.blamed(ErrorCode.TOO_LARGE, "a message of 60,000 values")


@case("ISO-REC-004")
async def integers_are_numbers_and_booleans_are_not(peer: ScriptedPeer) -> None:
    """A coordinate of whole seconds is taken, one of booleans is not."""
    gossip = await talk(peer)
    identity = peer.stranger()
    whole = Scribe(identity, peer.subject).by_hand(plain_card(coordinate=[[0] * 8, 0, 1]))
    await kept(gossip, identity, whole, "a coordinate of integers")
    identity = peer.stranger()
    odd = Scribe(identity, peer.subject).by_hand(plain_card(coordinate=[[False] * 8, False, True]))
    await not_kept(gossip, identity, odd, "a coordinate of booleans")
    identity = peer.stranger()
    odd = Scribe(identity, peer.subject).by_hand(plain_card(incarnation=True))
    await not_kept(gossip, identity, odd, "an incarnation of true")


@case("ISO-REC-005", "ISO-REC-011", "ISO-REC-012")
async def records_are_kept_and_passed_on_as_they_came(peer: ScriptedPeer) -> None:
    """Bytes that another encoder would write otherwise, elements and fields of later versions: all of it comes out again."""
    gossip = await talk(peer)
    other = await talk(peer, peer.stranger())
    identity = peer.stranger()
    fields = card_fields() | {"tomorrow": {"what": [1, 2, 3]}, "coordinate": [[0.0] * 8, 0.0, 0.5, "later"]}
    payload = pack(fields, WIDE).replace(b"\xa5agent", b"\xd9\x05agent")  # a longer form of the same text
    elements = [*header(identity, peer.subject, payload), "later", {"more": 1}]
    packed = pack(elements, WIDE).replace(b"\xa4card", b"\xd9\x04card", 1)
    envelope = signed(identity, packed)
    await kept(gossip, identity, envelope, "a record of another encoder with parts of later versions")
    key = record_key("card", identity.peer_id)
    other.send(Want((key,)))
    await other.hears(envelope, "the same bytes for another peer")


@case("ISO-REC-006", "ISO-REC-030", "ISO-GOS-013")
async def kinds_that_nobody_knows_are_no_fault(peer: ScriptedPeer) -> None:
    """A record of a later kind, and one of the kind that is given up, are not taken, and nobody is blamed."""
    gossip = await talk(peer)
    for kind in ("tomorrow", "beat"):
        identity = peer.stranger()
        envelope = Scribe(identity, peer.subject).by_hand(pack({"draining": False, "loads": []}, WIDE), kind)
        gossip.send_records(envelope)
        held = await gossip.holds(envelope, record_key(kind, identity.peer_id))
        expect(not held, f"a record of the kind {kind!r} is not taken", "it is held")


@case("ISO-REC-007", "ISO-GOS-014")
async def records_of_another_network_are_blamed(peer: ScriptedPeer) -> None:
    """Whoever passes one on is in the wrong mesh."""
    peer.needs_gossip()
    envelope = Scribe(peer.stranger(), peer.subject).card(network=peer.subject.network[:60] + "-not")
    await blamed_each(peer, {"another network": envelope}, ErrorCode.WRONG_NETWORK)


@case("ISO-REC-008", "ISO-GOS-013")
async def records_out_of_their_time_are_not_taken(peer: ScriptedPeer) -> None:
    """Beyond the skew they are refused without blame, within it they are taken."""
    gossip = await talk(peer)
    for what, issued_in_s, lasts_s, taken in (
        ("a record issued in 70 s", SKEW_S + 10.0, LIFETIME_S, False),
        ("a record issued in 50 s", SKEW_S - 10.0, LIFETIME_S, True),
        ("a record that expired 70 s ago", -SKEW_S - 20.0, 10.0, False),
        ("a record that expired 50 s ago", -SKEW_S, 10.0, True),
    ):
        identity = peer.stranger()
        envelope = Scribe(identity, peer.subject).card(issued_in_s=issued_in_s, lasts_s=lasts_s)
        await (kept if taken else not_kept)(gossip, identity, envelope, what)


@case("ISO-REC-009", "ISO-GOS-014")
async def lifetimes_out_of_their_range_are_blamed(peer: ScriptedPeer) -> None:
    """An expiry before the issue, or later than the kind allows, is MALFORMED."""
    peer.needs_gossip()
    identity = peer.stranger()
    issued = int(time.time() * 1000)

    def made(expires: int, kind: str = "card", payload: bytes | None = None) -> bytes:
        body = plain_card() if payload is None else payload
        fields = header(identity, peer.subject, body, issued=issued, expires=expires, kind=kind)
        return signed(identity, pack(fields, WIDE))

    wrong = {
        "an expiry at its issue": made(issued),
        "an expiry before its issue": made(issued - 1),
        "a lifetime of a day and a second": made(issued + 86_401_000),
        "edges for an hour and a second": made(issued + 3_601_000, "edges", pack({"edges": []}, WIDE)),
        "a verdict for 601 s": made(issued + 601_000, "verdict", pack({"accused": []}, WIDE)),
    }
    await blamed_each(peer, wrong, ErrorCode.MALFORMED)


@case("ISO-REC-010", "ISO-GOS-014")
async def a_wrong_signature_is_blamed_before_the_payload_is_read(peer: ScriptedPeer) -> None:
    """A flipped bit, another signer, another domain: BAD_SIGNATURE, also where the payload is rubbish."""
    peer.needs_gossip()
    identity, other = peer.stranger(), peer.stranger()
    good = Scribe(identity, peer.subject).card()
    rubbish = Scribe(identity, peer.subject).by_hand(b"\xc1\xc1\xc1")
    wrong = {
        "a flipped bit of its signature": bytes([good[0] ^ 1]) + good[1:],
        "a flipped bit of what is signed": good[:-1] + bytes([good[-1] ^ 1]),
        "another signer than it names": other.sign(b"isochrone-record-v1:" + good[64:]) + good[64:],
        "a signature of another domain": identity.sign(b"isochrone-record-v2:" + good[64:]) + good[64:],
        "a wrong signature and a payload of rubbish": bytes([rubbish[0] ^ 1]) + rubbish[1:],
    }
    await blamed_each(peer, wrong, ErrorCode.BAD_SIGNATURE)


@case("ISO-REC-013", "ISO-GOS-013")
async def payloads_that_lack_something_are_not_taken(peer: ScriptedPeer) -> None:
    """Each required field of a card, missing or of another type."""
    gossip = await talk(peer)
    for name in ("addresses", "hardware", "models", "coordinate", "agent"):
        fields = card_fields()
        del fields[name]
        identity = peer.stranger()
        envelope = Scribe(identity, peer.subject).by_hand(pack(fields, WIDE))
        await not_kept(gossip, identity, envelope, f"a card without {name}")
        identity = peer.stranger()
        envelope = Scribe(identity, peer.subject).by_hand(plain_card(**{name: 7}))
        await not_kept(gossip, identity, envelope, f"a card with a number for {name}")


@case("ISO-REC-014")
async def features_that_nobody_knows_are_left_out(peer: ScriptedPeer) -> None:
    """A model with a feature of a later version does not cost the card."""
    gossip = await talk(peer)
    identity = peer.stranger()
    model = {"model": "m", "features": ["telepathy"], "context_length": 0, "precision": "", "memory_bytes": 0, "engine": "x"}
    envelope = Scribe(identity, peer.subject).by_hand(plain_card(models=[model]))
    await kept(gossip, identity, envelope, "a card with an unknown feature")


@case("ISO-REC-018", "ISO-REC-032")
async def the_greatest_number_counts(peer: ScriptedPeer) -> None:
    """An older record that comes later is ignored, as is the same again, and a newer one replaces; nobody is blamed."""
    gossip = await talk(peer)
    identity = peer.stranger()
    scribe = Scribe(identity, peer.subject)
    await kept(gossip, identity, scribe.card(sequence=5), "a record with number 5")
    await not_kept(gossip, identity, scribe.card(sequence=4), "a record with number 4 behind it")
    sixth = scribe.card(sequence=6)
    await kept(gossip, identity, sixth, "a record with number 6")
    gossip.send_records(*[sixth] * 20)
    await kept(gossip, identity, scribe.card(sequence=7), "a record with number 7 behind twenty repeats of the one before")


@case("ISO-REC-020")
async def of_an_equivocation_the_first_is_kept(peer: ScriptedPeer) -> None:
    """Two records with one number: the second is not taken, and who passed it on is not blamed."""
    gossip = await talk(peer)
    identity = peer.stranger()
    scribe = Scribe(identity, peer.subject)
    first = scribe.seal(card_of(agent="one"), sequence=7)
    second = scribe.seal(card_of(agent="two"), sequence=7)
    await kept(gossip, identity, first, "the first of two records")
    await not_kept(gossip, identity, second, "the second of two records with one number")
    expect(await gossip.holds(first, record_key("card", identity.peer_id)), "the first is kept", "it is gone")


@case("ISO-REC-019", slow=True)
async def numbers_outlive_their_records(peer: ScriptedPeer) -> None:
    """After a record has expired an older one is still ignored."""
    gossip = await talk(peer)
    identity = peer.stranger()
    scribe = Scribe(identity, peer.subject)
    await kept(gossip, identity, scribe.card(sequence=9, lasts_s=1.0), "a record for a second")
    await trio.sleep(SKEW_S + 8.0)
    gossip = await talk(peer, peer.stranger())
    await not_kept(gossip, identity, scribe.card(sequence=8), "an older record after the newer has expired")


@case("ISO-REC-026", "ISO-GOS-029", alone=True)
async def edges_of_others_are_not_passed_on(peer: ScriptedPeer) -> None:
    """What concerns neighbours goes one hop: edges in the form of version 0.1.0."""
    gossip = await talk(peer)
    other = await joined(peer, peer.stranger())
    scribe = Scribe(gossip.identity, peer.subject)
    edges = scribe.seal(Edges((Edge(other.identity.peer_id, 0.01, 0.001, 5),)))
    gossip.send_records(edges)
    await gossip.settled()
    await told_through(gossip, other)
    key = record_key("edges", gossip.identity.peer_id)
    expect(edges not in other.envelopes() and key not in other.entries(), "edges that are not passed on", "they were")


@case("ISO-GOS-047", alone=True)
async def measured_edges_are_announced_and_not_pushed(peer: ScriptedPeer) -> None:
    """Over the links of the mesh, and sent to who asks."""
    gossip = await talk(peer)
    other = await joined(peer, peer.stranger())
    scribe = Scribe(gossip.identity, peer.subject)
    tag = edge_tag(gossip.identity.peer_id, other.identity.peer_id)
    edges = scribe.seal(Edges((), encode_measured([Measured(tag, 0.01)])))
    key = record_key("edges", gossip.identity.peer_id)
    gossip.send_records(edges)
    await other.until(lambda: key in other.entries(), "edges that are announced")
    expect(edges not in other.envelopes(), "edges that are not pushed", "they were")


@case("ISO-REC-033")
async def measured_edges_out_of_form_are_refused(peer: ScriptedPeer) -> None:
    """Out of order, of no length, without a round trip, too many: none is held, and whoever passed them on is not blamed."""
    gossip = await talk(peer)
    one, two = b"\0\0\0\0\1\1\0\0\0", b"\0\0\0\0\2\1\0\0\0"
    many = b"".join(number.to_bytes(5, "big") + b"\1\0\0\0" for number in range(1, 130))
    bad = {
        "not ascending": two + one,
        "one twice": one + one,
        "no length": one[:-1],
        "no round trip": one[:5] + bytes(4),
        "129": many,
    }
    for what, measured in bad.items():
        identity = peer.stranger()
        scribe = Scribe(identity, peer.subject)
        envelope = scribe.by_hand(pack({"edges": [], "measured": measured}, WIDE), "edges")
        await not_kept(gossip, identity, envelope, what, "edges")


@case("ISO-REC-012")
async def elements_of_arrays_behind_the_known_ones_are_ignored(peer: ScriptedPeer) -> None:
    """An edge and an accusation with more elements are no fault."""
    gossip = await talk(peer)
    scribe = Scribe(gossip.identity, peer.subject)
    target = bytes(peer.stranger().peer_id)
    edges = scribe.by_hand(pack({"edges": [[target, 0.01, 0.001, 5, "later"]]}, WIDE), "edges")
    verdict = scribe.by_hand(pack({"accused": [[bytes(8), 0, "later"]]}, WIDE), "verdict")
    gossip.send_records(edges, verdict)
    held = await gossip.holds(verdict, record_key("verdict", gossip.identity.peer_id))
    expect(held, "a verdict with longer accusations is taken", "it is not held")
