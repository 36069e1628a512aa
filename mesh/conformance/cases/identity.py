"""Chapter 1: identify, the signed peer record, and peer ids and addresses where they stand in records.

Spec: docs/spec/01-identity.md.
"""

from mesh.conformance.gossip import WIDE, Scribe, card_of, dialled_for, lure, record_key, talk
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import Unmet, case, expect
from protocol.encoding import FrameDecoder, encode_uvarint
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.libp2p.envelope import open_peer_record
from protocol.libp2p.identify import IDENTIFY_PROTOCOL, Identify, quic_addresses
from protocol.libp2p.ping import PING_PROTOCOL
from protocol.multiaddr import Multiaddr
from protocol.records import DEFAULT_RECORD_CONFIG, encode_payload
from protocol.wire import pack, unpack

RSA_PEER_ID = bytes((0x12, 0x20)) + bytes(range(32))
"""A peer id that is the hash of a key: it holds no Ed25519 key."""


@case("ISO-ID-021")
async def identify_says_who_and_where(peer: ScriptedPeer) -> None:
    """Key, addresses, protocols, the observed address, the agent and the signed peer record are there and agree."""
    connection = await peer.dial()
    said, _ = await peer.identify(connection)
    expect(said.public_key == bytes(peer.subject.peer_id[2:]), "the key that TLS has proven", said.public_key)
    expect(said.listen_addresses, "listen addresses", "none")
    expect({PING_PROTOCOL, IDENTIFY_PROTOCOL} <= set(said.protocols), "ping and identify among the protocols", said.protocols)
    expect(said.agent_version, "an agent version", said.agent_version)
    seen = Multiaddr.from_bytes(said.observed_address or b"")
    own = connection._link.port  # noqa: SLF001  (a part of the same peer)
    loopback = peer.subject.address.host.startswith("127.") or peer.subject.address.host == "::1"
    if loopback:
        expect(seen.port == own, f"the observed address with this side's port {own}", seen)
    try:
        record = open_peer_record(said.signed_peer_record or b"")
    except RemoteProtocolError as fault:
        raise Unmet("a signed peer record that verifies", fault) from fault
    expect(record.peer_id == peer.subject.peer_id, "the node's own peer record", record.peer_id.hex())
    expect(record.addresses, "addresses in the peer record", "none")


@case("ISO-ID-028")
async def peer_records_are_numbered_upwards(peer: ScriptedPeer) -> None:
    """A record that says something new, or is sealed anew, has a greater number."""
    connection = await peer.dial()
    first = await peer.identify(connection)
    second = await peer.identify(connection)
    envelopes = [said.signed_peer_record or b"" for said, _ in (first, second)]
    numbers = [open_peer_record(envelope).sequence for envelope in envelopes]
    rises = envelopes[0] == envelopes[1] or numbers[1] > numbers[0]
    expect(rises, "the same record, or a greater number", numbers)


@case("ISO-ID-023")
async def identify_is_framed_and_ended(peer: ScriptedPeer) -> None:
    """At most ten messages of at most 8192 bytes, the stream's end behind them."""
    connection = await peer.dial()
    stream = await connection.speak(IDENTIFY_PROTOCOL)
    decoder = FrameDecoder(8192)
    decoder.receive(await stream.receive_all("the end of the identify stream"))
    n_messages = 0
    while decoder.next_frame() is not None:
        n_messages += 1
    expect(1 <= n_messages <= 10, "one to ten messages", n_messages)


@case("ISO-ID-011")
async def port_0_is_not_advertised(peer: ScriptedPeer) -> None:
    """No address on identify or on the card has port 0."""
    said: Identify = peer.subject.said
    told = list(quic_addresses(said.listen_addresses))
    told += peer.subject.card.addresses if peer.subject.card is not None else ()
    expect(told and all(address.port for address in told), "addresses with a port", [str(address) for address in told])


@case("ISO-ID-007")
async def peer_ids_that_are_none_are_malformed(peer: ScriptedPeer) -> None:
    """A record whose signer is no multihash of a known kind costs the connection of who passes it on."""
    peer.needs_gossip()
    wrong = {
        "another multihash code": bytes((0x13, 0x20)) + bytes(32),
        "a length byte that lies": bytes((0x00, 0x25)) + bytes(peer.identity.peer_id[2:]),
        "a SHA2-256 digest of 31 bytes": bytes((0x12, 0x1F)) + bytes(31),
        "an empty digest": bytes((0x00, 0x00)),
    }
    payload = encode_payload(card_of(), DEFAULT_RECORD_CONFIG)
    for what, peer_id in wrong.items():
        gossip = await talk(peer, peer.stranger())
        gossip.send_records(gossip.scribe.by_hand(payload, peer_id=peer_id))
        await gossip.blamed(ErrorCode.MALFORMED, f"a record of a peer id with {what}")


@case("ISO-ID-008", "ISO-REC-006")
async def peer_ids_without_an_ed25519_key_are_no_fault(peer: ScriptedPeer) -> None:
    """A record of such a signer is not taken, and nobody is blamed for passing it on."""
    peer.needs_gossip()
    gossip = await talk(peer)
    envelope = gossip.scribe.by_hand(encode_payload(card_of(), DEFAULT_RECORD_CONFIG), peer_id=RSA_PEER_ID)
    gossip.send_records(envelope)
    await gossip.settled()
    held = await gossip.holds(envelope, record_key("card", type(peer.identity.peer_id)(RSA_PEER_ID)))
    expect(not held, "a record that nobody can verify is not taken", "it is held")


@case("ISO-ID-012", "ISO-REC-014")
async def addresses_of_other_transports_are_left_out(peer: ScriptedPeer) -> None:
    """A card with addresses of other transports among its own is taken, byte for byte, and dialled at the one that is known."""
    peer.needs_gossip()
    gossip = await talk(peer)
    identity = peer.stranger()
    listener = peer.listen(identity)
    plain = unpack(encode_payload(card_of([listener.address]), DEFAULT_RECORD_CONFIG), WIDE)
    assert isinstance(plain, dict)
    good = plain["addresses"]
    assert isinstance(good, list)
    tcp = encode_uvarint(4) + bytes((192, 0, 2, 1)) + encode_uvarint(6) + (4001).to_bytes(2, "big")
    trailing = bytes(good[0]) + b"\x00" if isinstance(good[0], bytes) else b""
    plain["addresses"] = [tcp, trailing, b"\xff\xff", *good]
    scribe = Scribe(identity, peer.subject)
    envelope = scribe.by_hand(pack(plain, WIDE))
    gossip.send_records(envelope)
    expect(await gossip.holds(envelope, record_key("card", identity.peer_id)), "the card is taken", "it is not held")

    def tell(incarnation: int) -> None:
        gossip.send_records(scribe.by_hand(pack(plain | {"incarnation": incarnation}, WIDE)))

    if await dialled_for(listener, tell) is None:
        await lure(peer)  # a node that does not dial for a plain card either is not at fault
        raise Unmet("a dial to the one address that is known (ISO-MEMBER-013), others left out", "no dial")
