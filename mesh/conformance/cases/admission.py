"""Chapter 9: whom a node of a private network lets in; what takes no membership to see, and what takes the network's key.

Spec: docs/spec/09-admission.md, sections "Certificates" and "Invitations".
"""

from contextlib import suppress
from dataclasses import replace

from mesh.conformance.certificates import Recipe, make_chain
from mesh.conformance.gossip import Scribe, card_of, is_card_of, record_key, talk
from mesh.conformance.papers import Papers, invitation_of_nobody
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.quic import Manner
from mesh.conformance.registry import Unmet, case, expect
from protocol.admission import delegation_bytes, open_shown
from protocol.errors import ErrorCode
from protocol.gossip.messages import Want
from protocol.identity import Identity

BAD_CERTIFICATE, CERTIFICATE_EXPIRED, UNKNOWN_CA, ACCESS_DENIED = 0x12A, 0x12D, 0x130, 0x131
"""TLS alerts as QUIC tells them (ISO-ADM-004; RFC 9001 section 4.8)."""

SHOWN_BYTES_MAX = 1600
"""Longest proof of membership in bytes (docs/spec/09-admission.md, section "Limits")."""


async def _refused(peer: ScriptedPeer, proof: bytes, what: str, code: int, identity: Identity | None = None) -> None:
    """See that whoever shows a proof is refused in the handshake, with the right alert."""
    connection = peer.begin(Manner(make_chain(identity or peer.identity, Recipe(proof=proof))))
    end = await connection.ended(f"the end of the handshake with {what}")
    if not end.by_node or end.by_application or end.code != code:
        raise Unmet(f"the alert {code:#x} for {what}", end)
    expect(not connection.quic.confirmed, f"no confirmed handshake with {what}", "HANDSHAKE_DONE")


@case("ISO-ADM-002", "ISO-ADM-003", "ISO-ADM-004", uninvited=True)
async def who_shows_nothing_is_not_admitted(peer: ScriptedPeer) -> None:
    """A good certificate of TLS without a proof of membership gets access_denied."""
    peer.needs_a_private_node()
    await _refused(peer, b"", "no proof of membership", ACCESS_DENIED)


@case("ISO-ADM-003", "ISO-ADM-004", uninvited=True)
async def members_of_other_networks_are_refused(peer: ScriptedPeer) -> None:
    """A certificate that is right, of a network that nobody knows, gets unknown_ca."""
    peer.needs_a_private_node()
    await _refused(peer, Papers.of_nobody().of(peer.identity), "a certificate of another network", UNKNOWN_CA)


@case("ISO-ADM-003", "ISO-ADM-004", uninvited=True)
async def the_certificate_of_another_peer_is_refused(peer: ScriptedPeer) -> None:
    """What the node itself shows is good for the node alone."""
    peer.needs_a_private_node()
    await _refused(peer, peer.subject.shown, "the certificate of another peer", BAD_CERTIFICATE)


@case("ISO-ADM-001", "ISO-ADM-004", uninvited=True)
async def proofs_that_are_none_are_refused(peer: ScriptedPeer) -> None:
    """One changed bit, other bytes and too many of them get bad_certificate."""
    peer.needs_a_private_node()
    shown = peer.subject.shown
    await _refused(peer, shown[:-1] + bytes([shown[-1] ^ 1]), "a proof with one changed bit", BAD_CERTIFICATE)
    await _refused(peer, b"\xc1 no proof", "a proof that does not decode", BAD_CERTIFICATE)
    await _refused(peer, bytes(SHOWN_BYTES_MAX + 1), "a proof of 1,601 bytes", BAD_CERTIFICATE)


@case("ISO-ADM-008", uninvited=True)
async def invitations_of_others_are_refused(peer: ScriptedPeer) -> None:
    """An invitation to the node's network that the node did not make gets access_denied, of issuers and of others."""
    peer.needs_a_private_node()
    root = delegation_bytes(open_shown(peer.subject.shown).delegation).root
    await _refused(peer, invitation_of_nobody(root), "an invitation of another node", ACCESS_DENIED)


@case("ISO-ADM-003", "ISO-ADM-004")
async def certificates_count_for_their_time_alone(peer: ScriptedPeer) -> None:
    """One that has ended gets certificate_expired, one that has not begun access_denied."""
    papers = peer.needs_papers()
    for starts_in_s, ends_in_s, what, code in (
        (-500, -100, "a certificate that has ended", CERTIFICATE_EXPIRED),
        (600, 1200, "a certificate that has not begun", ACCESS_DENIED),
    ):
        identity = peer.stranger()
        await _refused(peer, papers.made(identity, starts_in_s, ends_in_s), what, code, identity)


@case("ISO-ADM-003", "ISO-ADM-005")
async def a_member_is_let_in_until_its_certificate_ends(peer: ScriptedPeer) -> None:
    """It is served while its certificate counts, and its connection is closed with EXPIRED after that."""
    papers = peer.needs_papers()
    proof = papers.made(peer.identity, -500, papers.age_s + 3)
    connection = await peer.dial(Manner(make_chain(peer.identity, Recipe(proof=proof))))
    await peer.ping(connection)
    end = await connection.ended("the end of the connection of a member whose certificate has ended", 12.0)
    expect(end.by_node and end.by_application and end.code == ErrorCode.EXPIRED, "a close with EXPIRED", end)


@case("ISO-ADM-006")
async def cards_without_the_proof_of_their_author_are_not_taken(peer: ScriptedPeer) -> None:
    """A card that shows nothing, or what another peer shows, is not kept; with its author's own it is."""
    papers = peer.needs_papers()
    peer.needs_gossip()
    for what, proof in (("no proof", b""), ("the proof of another peer", papers.of(peer.stranger()))):
        author = peer.stranger()
        herald, witness = await talk(peer, peer.stranger()), await talk(peer, peer.stranger())
        herald.send_records(Scribe(author, peer.subject).seal(replace(card_of(), membership=proof), vouched=False))
        with suppress(Unmet):
            await herald.settled()
        witness.send(Want((record_key("card", author.peer_id),)))
        await witness.settled()
        held = any(is_card_of(envelope, author.peer_id) for envelope in witness.envelopes())
        expect(not held, f"a card with {what} that is not taken", "it is held")
    author = peer.stranger()
    herald = await talk(peer, peer.stranger())
    envelope = Scribe(author, peer.subject).card()
    herald.send_records(envelope)
    expect(await herald.holds(envelope, record_key("card", author.peer_id)), "a card with its author's proof", "it is not held")
