"""Chapter 1: certificates, as a listener demands and shows them.

Spec: docs/spec/01-identity.md, section "Certificates"; docs/spec/02-transport.md, section "Handshake".
"""

import time

from mesh.conformance.certificates import (
    ACCEPTED,
    OUT_OF_TIME,
    REFUSED,
    WRONG_HOSTS,
    Chain,
    stolen_chain,
    two_certificates,
)
from mesh.conformance.peer import ScriptedPeer, proven
from mesh.conformance.quic import Manner
from mesh.conformance.registry import Unmet, case, expect

BAD_CERTIFICATE = 0x12A
"""TLS alert bad_certificate as QUIC tells it (docs/spec/01-identity.md, section "Certificates")."""

CERTIFICATE_EXPIRED = 0x12D
"""TLS alert certificate_expired as QUIC tells it."""


async def _refused(peer: ScriptedPeer, chain: Chain, what: str, codes: tuple[int, ...] = (BAD_CERTIFICATE,)) -> None:
    connection = peer.begin(Manner(chain))
    end = await connection.ended(f"the end of the handshake with {what}")
    if not end.by_node or end.by_application or end.code not in codes:
        raise Unmet(f"the alert {' or '.join(hex(code) for code in codes)} for {what}", end)
    expect(not connection.quic.confirmed, f"no confirmed handshake with {what}", "HANDSHAKE_DONE")


@case("ISO-ID-017", "ISO-TRANSPORT-004")
async def certificates_that_break_a_rule_are_refused(peer: ScriptedPeer) -> None:
    """One certificate for each rule ends the handshake with bad_certificate."""
    for what, recipe in REFUSED.items():
        await _refused(peer, peer.chain(peer.identity, recipe), what)
    await peer.others_are_served()


@case("ISO-ID-002")
async def host_keys_of_another_type_are_refused(peer: ScriptedPeer) -> None:
    """A secp256k1 host is refused, though everything else is right."""
    what = "a host key of the type secp256k1"
    await _refused(peer, peer.chain(peer.identity, WRONG_HOSTS[what]), what)


@case("ISO-ID-003")
async def only_the_36_bytes_are_a_key(peer: ScriptedPeer) -> None:
    """The same key in a message of other bytes is refused."""
    what = "an Ed25519 host key in a message of more than 36 bytes"
    await _refused(peer, peer.chain(peer.identity, WRONG_HOSTS[what]), what)


@case("ISO-ID-016", "ISO-TRANSPORT-004")
async def no_certificate_and_two_certificates_are_refused(peer: ScriptedPeer) -> None:
    """A client with none or two is refused; without possession of the key none counts."""
    await _refused(peer, Chain(), "no certificate", (BAD_CERTIFICATE, 0x174))
    await _refused(peer, two_certificates(peer.chain(), peer.chain()), "two certificates")
    await _refused(peer, stolen_chain(peer.chain()), "a certificate of another's key", (BAD_CERTIFICATE, 0x133))


@case("ISO-ID-016", "ISO-TRANSPORT-004")
async def one_certificate_is_shown_and_one_asked_for(peer: ScriptedPeer) -> None:
    """The node shows one certificate that holds all rules, and sends a CertificateRequest."""
    connection = await peer.dial()
    peer_id = proven(connection, time.time())
    expect(peer_id == peer.subject.peer_id, "the same peer id as before", peer_id.hex())
    expect(connection.quic.was_asked_for_certificate, "a CertificateRequest", "none")


@case("ISO-ID-018", "ISO-TRANSPORT-004")
async def certificates_outside_their_validity_are_refused(peer: ScriptedPeer) -> None:
    """Both ends of the validity count, and the alert is certificate_expired."""
    for what, recipe in OUT_OF_TIME.items():
        await _refused(peer, peer.chain(peer.identity, recipe), what, (CERTIFICATE_EXPIRED,))


@case("ISO-ID-019", "ISO-ID-017")
async def unusual_certificates_are_accepted(peer: ScriptedPeer) -> None:
    """What no rule forbids is no reason to refuse: other keys, other issuers, extensions that are not critical."""
    for recipe in ACCEPTED.values():
        identity = peer.stranger()
        connection = await peer.dial(Manner(peer.chain(identity, recipe)))
        await peer.ping(connection)
        connection.close()


@case("ISO-ID-015")
async def the_validity_leaves_room_for_clocks(peer: ScriptedPeer) -> None:
    """The certificate is valid for a peer whose clock is fifty minutes late, and for a year."""
    connection = await peer.dial()
    for offset_s in (-3000.0, 365 * 86400.0):
        expect(proven(connection, time.time() + offset_s), "a certificate that is valid then", "none")


@case("ISO-ID-001")
async def the_key_is_one(peer: ScriptedPeer) -> None:
    """TLS and identify name the same Ed25519 key on every connection."""
    for _ in range(2):
        connection = await peer.dial(identity=peer.stranger())
        peer_id = proven(connection, time.time())
        said, _ = await peer.identify(connection)
        key = bytes(peer_id[2:])
        expect(said.public_key == key, "identify with the key of the certificate", said.public_key)
        expect(peer_id == peer.subject.peer_id, "one key", peer_id.hex())
